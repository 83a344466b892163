//! `lapis topology`, by the binary: of this host, and of one that is made up.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use serde_json::Value;

use super::binary;

fn topology(flags: &[&str]) -> String {
    let output = Command::new(binary::lapis()).arg("topology").args(flags).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a folder")).and_then(|()| fs::write(path, text)).expect("room");
}

#[test]
fn this_host_has_a_node_and_its_matrix_is_even() {
    let document: Value = serde_json::from_str(&topology(&["--json"])).expect("JSON");
    let nodes = document["topology"]["nodes"].as_array().expect("nodes");
    assert!(!nodes.is_empty(), "{document}");
    let rows = document["distances"].as_array().expect("rows");
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(row.as_array().map(Vec::len), Some(rows.len()));
        assert_eq!(row[index], "same");
    }
}

#[test]
fn a_copy_of_another_hosts_files_says_where_its_controllers_are() {
    let sys = tempfile::tempdir().expect("a folder");
    let root = sys.path();
    fs::create_dir_all(root.join("bus/pci/devices")).expect("room");
    for node in [0, 1] {
        let folder = format!("devices/system/node/node{node}");
        write(root, &format!("{folder}/cpulist"), &format!("{}-{}\n", node * 4, node * 4 + 3));
        write(root, &format!("{folder}/distance"), if node == 0 { "10 21\n" } else { "21 10\n" });
        write(root, &format!("{folder}/meminfo"), &format!("Node {node} MemTotal: 67108864 kB\n"));
        for port in [1, 2] {
            let device = format!("devices/pci0000:{node}0/0000:{node}0:0{port}.0");
            write(root, &format!("{device}/class"), "0x010802\n");
            write(root, &format!("{device}/numa_node"), &format!("{node}\n"));
            symlink(root.join(&device), root.join(format!("bus/pci/devices/0000:{node}0:0{port}.0"))).expect("a link");
        }
    }
    let sys = root.display().to_string();
    let paths = "pci:0000:00:01.0,pci:0000:10:01.0,pci:0000:10:02.0";
    let shown = topology(&["--sys", &sys, "--ssd-paths", paths]);
    for line in [
        "node 1: 64GiB, CPUs 4-7; distance 21 to node 0",
        "memory: 1 of 3 extents from node 0, 2 of 3 extents from node 1",
    ] {
        assert!(shown.lines().any(|found| found == line), "{shown}");
    }
    assert!(shown.contains("ssd: pci:0000:10:02.0: node 1, its thread on"), "{shown}");
    // Of another host's GPUs no driver is asked.
    for (address, class) in [("0000:00:03.0", "0x030200"), ("0000:10:03.0", "0x030200")] {
        let device = format!("devices/pci{}/{address}", &address[..7]);
        write(root, &format!("{device}/class"), class);
        write(root, &format!("{device}/vendor"), "0x10de");
        write(root, &format!("{device}/numa_node"), if address.starts_with("0000:1") { "1\n" } else { "0\n" });
        symlink(root.join(&device), root.join(format!("bus/pci/devices/{address}"))).expect("a link");
    }
    let gpus = topology(&["--sys", &sys, "--ssd-paths", paths, "--hbm-bytes", "1GiB", "--hbm-gpus", "10:03.0,0"]);
    for line in [
        "memory: 1 of 4 extents from node 0, 3 of 4 extents from node 1",
        "gpu: GPU 0: node not known, its thread on any CPU",
    ] {
        assert!(gpus.lines().any(|found| found == line), "{gpus}");
    }
    assert!(gpus.contains("gpu: GPU 0000:10:03.0: node 1, its thread on"), "{gpus}");
    assert!(gpus.contains(", what comes back goes to node 1 first\n") && !gpus.contains("note: GPUs"), "{gpus}");
    let free = topology(&["--sys", &sys, "--ssd-paths", paths, "--topology-follow=false"]);
    assert!(free.contains("topology.follow = false"), "{free}");
}
