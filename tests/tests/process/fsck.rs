//! `lapis fsck`, by the binary, over controllers of SPDK's stand-in.

use std::{path::Path, process::Command};

use serde_json::Value;

use super::{
    beside, binary,
    blocks::{self, SMALL},
    machine::connect,
    ssd::{DRAM, Files, fill},
};

/// Exit status, and the one verdict or error of the document.
fn fsck(path: &Path, library: &Path, flags: &[&str]) -> (Option<i32>, Value) {
    let mut fsck = Command::new(binary::lapis());
    fsck.args(["fsck", "--json", "--spdk-library"]).arg(library).arg(path).args(flags);
    let output = fsck.output().expect("it runs");
    let mut said: Value = serde_json::from_slice(&output.stdout).expect("a document");
    (output.status.code(), said[0].take())
}

#[test]
fn a_controller_is_checked_when_no_daemon_has_it_and_else_it_is_said_what_to_do() {
    let _beside = beside();
    let Some(files) = Files::controllers(2) else { return };
    let library = files.spdk().expect("the stand-in");
    let mut host = files.serving(DRAM, &[]);
    let client = connect(&mut host);
    fill(&host, &client, &blocks::pool(&client, SMALL));
    let (code, said) = fsck(&files.path(0), &library, &[]);
    let error = said["error"].as_str().unwrap_or_default();
    assert!(code == Some(2) && error.contains("stop who else has it"), "{said}");
    assert!(host.stop_daemon().expect("it can be stopped").success());
    for index in 0..2 {
        let (code, said) = fsck(&files.path(index), &library, &["--payload"]);
        assert!(code == Some(0) && said["verdict"] == "whole", "{said}");
        let segments = said["checked"]["segments"].as_array().expect("segments");
        let records: u64 = segments.iter().filter_map(|segment| segment["records"].as_u64()).sum();
        assert!(records > 0, "{said}");
    }
    let (code, said) = fsck(Path::new("pci:0000:77:00.0"), &library, &[]);
    assert!(code == Some(2) && said.to_string().contains("bind it to vfio-pci"), "{said}");
    let (code, said) = fsck(&files.path(0), host.folder(), &[]);
    assert!(code == Some(2) && said.to_string().contains("docs/spdk.md"), "{said}");
}
