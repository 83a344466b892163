//! Made-up hosts: folders and links as the kernel lays them out in /sys.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

pub struct Host {
    folder: TempDir,
}

impl Host {
    pub fn new() -> Self {
        let host = Self { folder: tempfile::tempdir().expect("a folder") };
        for folder in ["bus/pci/devices", "class/net", "class/infiniband", "dev/block", "devices"] {
            fs::create_dir_all(host.root().join(folder)).expect("room");
        }
        host
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("room");
        fs::write(path, text).expect("room");
    }

    pub fn folder(&self, path: &str) {
        fs::create_dir_all(self.root().join(path)).expect("room");
    }

    pub fn link(&self, at: &str, to: &str) {
        let at = self.root().join(at);
        fs::create_dir_all(at.parent().expect("a folder")).expect("room");
        symlink(self.root().join(to), at).expect("room");
    }

    pub fn node(&self, number: u32, cpus: &str, memory_kib: u64, distances: &str) {
        let folder = format!("devices/system/node/node{number}");
        self.write(&format!("{folder}/cpulist"), &format!("{cpus}\n"));
        let meminfo = format!("Node {number} MemTotal:       {memory_kib} kB\nNode {number} MemFree: 1 kB\n");
        self.write(&format!("{folder}/meminfo"), &meminfo);
        self.write(&format!("{folder}/distance"), &format!("{distances}\n"));
    }

    /// A PCI device at the end of `place`, as in "pci0000:00/0000:00:01.0/0000:01:00.0"; where it is comes back.
    pub fn pci(&self, place: &str, class: &str, vendor: &str, node: i32) -> String {
        let folder = format!("devices/{place}");
        let address = PathBuf::from(place).file_name().expect("an address").to_string_lossy().into_owned();
        self.write(&format!("{folder}/class"), &format!("{class}\n"));
        self.write(&format!("{folder}/vendor"), &format!("{vendor}\n"));
        self.write(&format!("{folder}/numa_node"), &format!("{node}\n"));
        self.link(&format!("bus/pci/devices/{address}"), &folder);
        folder
    }

    pub fn gpu(&self, place: &str, node: i32) {
        self.pci(place, "0x030200", "0x10de", node);
    }

    pub fn nic(&self, place: &str, name: &str, interface: &str, node: i32) {
        let folder = self.pci(place, "0x020000", "0x15b3", node);
        self.folder(&format!("{folder}/infiniband/{name}"));
        self.folder(&format!("{folder}/net/{interface}"));
        self.link(&format!("class/infiniband/{name}"), &format!("{folder}/infiniband/{name}"));
        self.link(&format!("class/net/{interface}"), &format!("{folder}/net/{interface}"));
        self.link(&format!("{folder}/net/{interface}/device"), &folder);
    }

    /// With one namespace, and its number as a block device.
    pub fn nvme(&self, place: &str, name: &str, number: &str, node: i32) {
        let folder = self.pci(place, "0x010802", "0x144d", node);
        self.folder(&format!("{folder}/nvme/{name}/{name}n1/{name}n1p1"));
        self.folder(&format!("{folder}/nvme/{name}/ng0n1"));
        self.write(&format!("{folder}/nvme/{name}/{name}n1/{name}n1p1/partition"), "1\n");
        self.link(&format!("dev/block/{number}"), &format!("{folder}/nvme/{name}/{name}n1"));
        self.link(&format!("{folder}/driver"), "bus/pci/drivers/nvme");
    }

    /// Two sockets; at each a root port with a switch of its own, below which lie two GPUs, two NICs and two NVMe drives.
    pub fn two_sockets() -> Self {
        let host = Self::new();
        host.node(0, "0-15,32-47", 1 << 28, "10 21");
        host.node(1, "16-31,48-63", 1 << 28, "21 10");
        for socket in 0..2 {
            let root = format!("pci0000:{socket}0");
            host.pci(&format!("{root}/0000:{socket}0:01.0"), "0x060400", "0x8086", socket);
            let up = format!("{root}/0000:{socket}0:01.0/0000:{socket}1:00.0");
            host.pci(&up, "0x060400", "0x1000", socket);
            let below = |port: i32, bus: i32| {
                let port = format!("{up}/0000:{socket}2:{port:02x}.0");
                host.pci(&port, "0x060400", "0x1000", socket);
                format!("{port}/0000:{socket}{bus}:00.0")
            };
            host.gpu(&below(0, 3), socket);
            host.gpu(&below(1, 4), socket);
            let n = socket * 2;
            host.nic(&below(2, 5), &format!("mlx5_{n}"), &format!("eth{n}"), socket);
            // Beside the switch, at a root port of its own.
            let port = format!("{root}/0000:{socket}0:02.0");
            host.pci(&port, "0x060400", "0x8086", socket);
            host.nic(
                &format!("{port}/0000:{socket}9:00.0"),
                &format!("mlx5_{}", n + 1),
                &format!("eth{}", n + 1),
                socket,
            );
            host.nvme(&below(3, 6), &format!("nvme{n}"), &format!("259:{n}"), socket);
            host.nvme(&below(4, 7), &format!("nvme{}", n + 1), &format!("259:{}", n + 1), socket);
        }
        host
    }
}
