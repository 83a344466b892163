//! Topology over made-up hosts: read, measured, and what follows.

mod made;

use lapis_config::topology::{
    Device, Distance, Kind, Link, Near, Node, Spread, Topology, Vendor,
    place::{common_node, cpus_near, mismatches, reads_peer},
    sysfs::{is_pci_address, list, pci_of_block},
};
use made::Host;

fn named<'a>(topology: &'a Topology, name: &str) -> &'a Device {
    let found = topology.devices.iter().find(|device| device.name() == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", topology.devices))
}

#[test]
fn a_host_of_two_sockets_is_read_whole() {
    let host = Host::two_sockets();
    let topology = Topology::read(host.root());
    assert_eq!(topology.strange, Vec::<String>::new());
    assert_eq!(topology.nodes.iter().map(|node| node.number).collect::<Vec<_>>(), [0, 1]);
    let node = &topology.nodes[1];
    assert_eq!((node.cpus.len(), node.cpus[0], node.cpus[16]), (32, 16, 48));
    assert_eq!((node.memory_bytes, node.distances.get(&0), node.distances.get(&1)), (256 << 30, Some(&21), Some(&10)));
    let count = |is: fn(&Kind) -> bool| topology.devices.iter().filter(|device| is(&device.kind)).count();
    assert_eq!(topology.devices.len(), 12, "bridges are none of them: {:?}", topology.devices);
    assert_eq!(count(|kind| matches!(kind, Kind::Gpu { vendor: Vendor::Nvidia })), 4);
    assert_eq!(count(|kind| matches!(kind, Kind::Nic { .. })), 4);
    let nic = named(&topology, "mlx5_2");
    assert_eq!(nic.kind, Kind::Nic { rdma: vec!["mlx5_2".into()], interfaces: vec!["eth2".into()] });
    let drive = named(&topology, "nvme3");
    let kind = Kind::Nvme { controller: Some("nvme3".into()), namespaces: vec!["nvme3n1".into()] };
    assert_eq!((&drive.kind, drive.node, drive.driver.as_deref()), (&kind, Some(1), Some("nvme")));
    assert_eq!(drive.parents[..2], ["pci0000:10", "0000:10:01.0"]);
}

#[test]
fn distances_are_those_of_the_tree() {
    let host = Host::two_sockets();
    let topology = Topology::read(host.root());
    let distance = |a: &str, b: &str| {
        let (a, b) = (named(&topology, a), named(&topology, b));
        assert_eq!(topology.distance(a, b), topology.distance(b, a));
        topology.distance(a, b)
    };
    assert_eq!(distance("nvme0", "nvme0"), Distance::Same);
    assert_eq!(distance("0000:03:00.0", "mlx5_0"), Distance::Switch);
    assert_eq!(distance("nvme0", "nvme1"), Distance::Switch);
    assert_eq!(distance("0000:03:00.0", "mlx5_1"), Distance::RootComplex);
    assert_eq!(distance("mlx5_0", "mlx5_2"), Distance::OtherNode);
    assert_eq!(distance("0000:03:00.0", "nvme2"), Distance::OtherNode);
}

#[test]
fn a_switch_below_a_switch_and_another_root_complex_of_the_node_are_told_apart() {
    let host = Host::new();
    host.node(0, "0-3", 1 << 20, "10 20");
    host.node(1, "4-7", 1 << 20, "20 10");
    let near = "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0";
    host.nvme(&format!("{near}/0000:03:00.0"), "nvme0", "259:0", 0);
    let deep = "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0/0000:05:00.0";
    host.nvme(&format!("{deep}/0000:06:00.0"), "nvme1", "259:1", 0);
    host.nvme("pci0000:40/0000:40:01.0/0000:41:00.0", "nvme2", "259:2", 0);
    host.nvme("platform/acpi/pci0000:80/0000:80:01.0", "nvme3", "259:3", -1);
    host.gpu(&format!("{near}/0000:03:00.1"), 0);
    let topology = Topology::read(host.root());
    let distance = |a: &str, b: &str| topology.distance(named(&topology, a), named(&topology, b));
    assert_eq!(distance("nvme0", "nvme1"), Distance::RootPort);
    assert_eq!(distance("nvme0", "nvme2"), Distance::Node);
    assert_eq!(distance("nvme0", "nvme3"), Distance::Unknown, "firmware says no node");
    assert_eq!(distance("nvme0", "0000:03:00.1"), Distance::Switch, "functions of one device");
    assert_eq!(named(&topology, "nvme3").parents, ["pci0000:80"], "what is above a root complex is no bridge");
    let all = [Distance::Same, Distance::Switch, Distance::RootPort, Distance::RootComplex, Distance::Node];
    assert!(all.is_sorted() && all[4] < Distance::OtherNode && Distance::OtherNode < Distance::Unknown);
}

#[test]
fn a_host_without_numa_is_one_node_with_all() {
    let host = Host::new();
    host.write("devices/system/cpu/online", "0-3\n");
    host.nvme("pci0000:00/0000:00:02.0", "nvme0", "259:0", -1);
    let disk = host.pci("pci0000:00/0000:00:03.0", "0x010000", "0x1af4", -1);
    host.folder(&format!("{disk}/virtio1/block/vda"));
    let topology = Topology::read(host.root());
    assert_eq!(topology.strange, Vec::<String>::new());
    let node = Node { number: 0, cpus: vec![0, 1, 2, 3], memory_bytes: 0, distances: [(0, 10)].into() };
    assert_eq!(topology.nodes, [node]);
    assert!(topology.devices.iter().all(|device| device.node == Some(0)), "{:?}", topology.devices);
    assert_eq!(named(&topology, "vda").kind, Kind::Disk { blocks: vec!["vda".into()] });
    assert_eq!(topology.distance(named(&topology, "vda"), named(&topology, "nvme0")), Distance::RootComplex);
    assert_eq!(Spread::new(&topology, &[Some(0)]).node_of(0), None, "there is nothing to choose");
    assert_eq!(cpus_near(&topology, Some(0), &[0, 1]), None);
}

#[test]
fn what_is_broken_is_said_and_the_rest_is_read() {
    let host = Host::two_sockets();
    host.write("devices/system/node/node0/cpulist", "0-x\n");
    host.write("devices/system/node/node1/distance", "10\n");
    host.write("devices/system/node/node1/meminfo", "nonsense\n");
    host.write("devices/pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0/class", "");
    host.write("devices/pci0000:10/0000:10:01.0/0000:11:00.0/0000:12:00.0/0000:13:00.0/numa_node", "7\n");
    host.link("bus/pci/devices/0000:ff:00.0", "devices/nowhere");
    let topology = Topology::read(host.root());
    let said = topology.strange.join("\n");
    for words in
        ["is no list of CPUs", "no distances of 2 nodes", "0000:03:00.0: it has no class", "at node 7", "0000:ff:00.0"]
    {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    assert_eq!(topology.strange.len(), 5, "{said}");
    assert_eq!((topology.nodes[0].cpus.len(), topology.nodes[1].memory_bytes), (0, 0));
    assert_eq!((topology.devices.len(), named(&topology, "0000:13:00.0").node), (11, None));
    assert_eq!(Topology::read(std::path::Path::new("/nowhere")).devices, []);
}

#[test]
fn soft_rdma_lies_where_its_interface_does() {
    let host = Host::two_sockets();
    host.write("class/infiniband/rxe0/parent", "eth2\n");
    host.write("class/infiniband/rxe1/parent", "veth0\n");
    host.folder("class/net/veth0");
    let topology = Topology::read(host.root());
    assert_eq!(named(&topology, "mlx5_2").rdma(), ["mlx5_2", "rxe0"]);
    assert_eq!(topology.virtual_rdma, ["rxe1"]);
}

#[test]
fn a_namespace_with_several_paths_has_one_name() {
    let host = Host::new();
    let folder = host.pci("pci0000:00/0000:00:02.0", "0x010802", "0x144d", -1);
    for name in ["nvme1c1n1", "nvme1c1n2", "ng1n1", "hwmon0", "power"] {
        host.folder(&format!("{folder}/nvme/nvme1/{name}"));
    }
    host.pci("pci0000:00/0000:00:03.0", "0x010802", "0x144d", -1);
    host.link("devices/pci0000:00/0000:00:03.0/driver", "bus/pci/drivers/vfio-pci");
    let subsystem = "devices/virtual/nvme-subsystem/nvme-subsys1";
    host.folder(&format!("{subsystem}/nvme1n1"));
    host.link(&format!("{subsystem}/nvme1"), &format!("{folder}/nvme/nvme1"));
    host.link("dev/block/259:5", &format!("{subsystem}/nvme1n1"));
    let topology = Topology::read(host.root());
    let kinds: Vec<_> = topology.devices.iter().map(|device| (&device.kind, device.driver.as_deref())).collect();
    let first = Kind::Nvme { controller: Some("nvme1".into()), namespaces: vec!["nvme1n1".into(), "nvme1n2".into()] };
    let bare = Kind::Nvme { controller: None, namespaces: Vec::new() };
    assert_eq!(kinds, [(&first, None), (&bare, Some("vfio-pci"))]);
    assert_eq!(pci_of_block(host.root(), 259, 5), ["0000:00:02.0"]);
}

#[test]
fn a_block_device_is_traced_to_what_it_lies_on() {
    let host = Host::two_sockets();
    let drive = |socket: i32, port: i32, bus: i32, name: &str| {
        let up = format!("devices/pci0000:{socket}0/0000:{socket}0:01.0/0000:{socket}1:00.0");
        format!("{up}/0000:{socket}2:{port:02x}.0/0000:{socket}{bus}:00.0/nvme/{name}/{name}n1")
    };
    assert_eq!(pci_of_block(host.root(), 259, 1), ["0000:07:00.0"]);
    host.link("dev/block/259:9", &format!("{}/nvme0n1p1", drive(0, 3, 6, "nvme0")));
    assert_eq!(pci_of_block(host.root(), 259, 9), ["0000:06:00.0"], "a partition");
    host.link("devices/virtual/block/md0/slaves/nvme0n1p1", &format!("{}/nvme0n1p1", drive(0, 3, 6, "nvme0")));
    host.link("devices/virtual/block/md0/slaves/nvme2n1", &drive(1, 3, 6, "nvme2"));
    host.link("dev/block/9:0", "devices/virtual/block/md0");
    assert_eq!(pci_of_block(host.root(), 9, 0), ["0000:06:00.0", "0000:16:00.0"], "a RAID");
    host.link("devices/virtual/block/dm-0/slaves/md0", "devices/virtual/block/md0");
    host.link("devices/virtual/block/dm-0/slaves/self", "devices/virtual/block/dm-0");
    host.link("dev/block/253:0", "devices/virtual/block/dm-0");
    assert_eq!(pci_of_block(host.root(), 253, 0).len(), 2, "a volume on a RAID, and a loop that no kernel makes");
    assert_eq!(pci_of_block(host.root(), 7, 0), Vec::<String>::new());
}

#[test]
fn extents_are_spread_as_devices_are() {
    let topology = Topology::read(Host::two_sockets().root());
    let nodes = |devices: &[Option<u32>], extents: usize| {
        let spread = Spread::new(&topology, devices);
        (0..extents).map(|extent| spread.node_of(extent).expect("there are two")).collect::<Vec<_>>()
    };
    assert_eq!(nodes(&[Some(0), Some(1)], 4), [0, 1, 0, 1]);
    assert_eq!(nodes(&[], 4), [0, 1, 0, 1], "no device: all alike");
    assert_eq!(nodes(&[None, Some(1)], 3), [1, 1, 1], "what is far from all devices is left to others");
    let uneven = nodes(&[Some(0), Some(0), Some(0), Some(1)], 256);
    for extents in 1..=256 {
        let of_first = uneven[..extents].iter().filter(|node| **node == 0).count();
        assert!((of_first as f64 - extents as f64 * 0.75).abs() <= 1.0, "{of_first} of {extents}");
    }
}

#[test]
fn a_node_without_memory_gets_no_extent() {
    let host = Host::two_sockets();
    host.write("devices/system/node/node1/meminfo", "Node 1 MemTotal: 0 kB\n");
    assert_eq!(Spread::new(&Topology::read(host.root()), &[Some(1)]), Spread::default());
    host.node(2, "64", 1 << 20, "10 10 10");
    let spread = Spread::new(&Topology::read(host.root()), &[Some(1), Some(1), Some(2)]);
    assert_eq!(spread.node_of(0), Some(2));
}

#[test]
fn a_thread_is_kept_near_its_device_where_it_may_run_there() {
    let topology = Topology::read(Host::two_sockets().root());
    let all: Vec<u32> = (0..64).collect();
    assert_eq!(cpus_near(&topology, Some(1), &all).map(|cpus| cpus.len()), Some(32));
    assert_eq!(cpus_near(&topology, Some(1), &[0, 16, 17]), Some(vec![16, 17]));
    assert_eq!(cpus_near(&topology, Some(1), &[0, 1]), None, "its node's CPUs are not ours");
    assert_eq!(cpus_near(&topology, None, &all), None);
    assert_eq!(cpus_near(&topology, Some(9), &all), None);
}

#[test]
fn what_lies_on_opposite_sides_is_said() {
    let topology = Topology::read(Host::two_sockets().root());
    let near = |name: &str, node| Near { name: name.into(), node };
    let said = |nics: &[Near], ssds: &[Near]| mismatches(&topology, nics, ssds, &[]);
    let crossed = said(&[near("mlx5_0", Some(0))], &[near("/dev/nvme2n1", Some(1))]);
    assert_eq!(crossed.len(), 1, "{crossed:?}");
    assert_eq!(crossed[0].0, "NICs (mlx5_0) are at node 0, SSDs (/dev/nvme2n1) at node 1");
    assert_eq!(said(&[near("a", Some(0)), near("b", Some(1))], &[near("c", Some(1))]), [], "one of each side");
    assert_eq!(said(&[near("a", None)], &[near("c", Some(1))]), [], "nobody knows");
    assert_eq!(said(&[], &[near("c", Some(1))]), []);
}

#[test]
fn gpus_that_all_blocks_are_far_from_and_nodes_without_memory_are_said() {
    let host = Host::two_sockets();
    for bus in ["13", "14"] {
        std::fs::remove_file(host.root().join(format!("bus/pci/devices/0000:{bus}:00.0"))).expect("it was there");
    }
    let near = |name: &str, node| Near { name: name.into(), node };
    let topology = Topology::read(host.root());
    assert_eq!(common_node(topology.devices.iter().filter(|d| matches!(d.kind, Kind::Gpu { .. }))), Some(0));
    let found = mismatches(&topology, &[near("mlx5_2", Some(1))], &[near("x", Some(0))], &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[1].0, "all NICs (mlx5_2) are at node 1, all GPUs at node 0");
    host.write("devices/system/node/node1/meminfo", "Node 1 MemTotal: 0 kB\n");
    let found = mismatches(&Topology::read(host.root()), &[], &[near("x", Some(1)), near("y", Some(0))], &[]);
    assert_eq!(
        found,
        [(
            "x is at node 1, which has no memory".to_owned(),
            "put DIMMs there, or use another slot: all that it moves crosses nodes".to_owned()
        )]
    );
}

#[test]
fn of_the_gpus_that_are_used_what_is_far_from_them_is_said() {
    let host = Host::two_sockets();
    let near = |name: &str, node| Near { name: name.into(), node };
    let said = |nics: &[Near], ssds: &[Near], gpus: &[Near]| {
        let found = mismatches(&Topology::read(host.root()), nics, ssds, gpus);
        found.into_iter().map(|(found, _)| found).collect::<Vec<_>>()
    };
    let (first, second) = ([near("GPU 0", Some(0))], [near("GPU 2", Some(1))]);
    let ssds = [near("/dev/nvme2n1", Some(1)), near("/dev/nvme3n1", Some(1))];
    let none: [String; 0] = [];
    assert_eq!(said(&[], &ssds, &[]), none, "of the host's four GPUs two are there too");
    assert_eq!(
        said(&[], &ssds, &first),
        ["all SSDs (/dev/nvme2n1, /dev/nvme3n1) are at node 1, the GPUs that are used (GPU 0) at node 0"]
    );
    assert_eq!(said(&[], &ssds, &second), none);
    assert_eq!(said(&[], &ssds, &[first.clone(), second].concat()), none, "one is near");
    assert_eq!(said(&[], &ssds, &[near("GPU 0", None)]), none, "nobody knows");
    host.write("devices/system/node/node0/meminfo", "Node 0 MemTotal: 0 kB\n");
    assert_eq!(said(&[], &[], &first), ["GPU 0 is at node 0, which has no memory"]);
}

#[test]
fn a_gpu_is_found_as_its_driver_calls_it() {
    let host = Host::two_sockets();
    host.nvme("pci0000:10/0000:1a:00.0", "nvme8", "259:8", 1);
    host.gpu("pci0000:10/0000:1b:00.0", 1);
    let topology = Topology::read(host.root());
    let address = |bus_id: &str| topology.gpu(bus_id).map(|device| device.address.as_str());
    assert_eq!(address("0000:03:00.0"), Some("0000:03:00.0"));
    assert_eq!((address("00000000:1B:00.0"), address("1b:00.0")), (Some("0000:1b:00.0"), Some("0000:1b:00.0")));
    for other in ["0000:1A:00.0", "0000:03:00.1", "0001:03:00.0", "nvme8", ""] {
        assert_eq!(address(other), None, "{other}");
    }
}

#[test]
fn a_gpu_reads_from_another_what_is_near_or_comes_over_a_link_of_theirs_and_else_from_dram() {
    let host = Host::two_sockets();
    let topology = Topology::read(host.root());
    let gpus: Vec<&Device> = topology.devices.iter().filter(|device| device.is_gpu()).collect();
    let reads = |link: Link| {
        let row = |one: &&Device| gpus.iter().map(|other| reads_peer(link, topology.distance(one, other))).collect();
        gpus.iter().map(row).collect::<Vec<Vec<bool>>>()
    };
    let by_pcie = [
        [true, true, false, false],
        [true, true, false, false],
        [false, false, true, true],
        [false, false, true, true],
    ];
    assert_eq!(reads(Link::default()), by_pcie, "below one switch, and across nodes");
    for rank in [0, 3] {
        assert_eq!(reads(Link { rank: Some(rank), has_atomics: false }), by_pcie, "the tree says it");
        assert_eq!(reads(Link { rank: Some(rank), has_atomics: true }), [[true; 4]; 4], "NVLink");
    }
    let link = |rank| Link { rank, has_atomics: false };
    for distance in [Distance::RootPort, Distance::Switch, Distance::Same] {
        assert!(reads_peer(link(Some(1)), distance), "{distance}");
    }
    for distance in [Distance::RootComplex, Distance::Node, Distance::OtherNode] {
        assert!(!reads_peer(link(Some(0)), distance), "{distance}");
    }
    let unknown = [None, Some(0), Some(1)].map(|rank| reads_peer(link(rank), Distance::Unknown));
    assert_eq!(unknown, [true, true, false], "where the tree says nothing, the driver's rank counts");
}

#[test]
fn lists_and_addresses_are_read_strictly() {
    assert_eq!(list("0-3,8, 10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
    assert_eq!(list(""), Some(Vec::new()));
    for broken in ["a", "3-1", "0-99999999", "1-", "-1", "1--2"] {
        assert_eq!(list(broken), None, "{broken}");
    }
    assert!(is_pci_address("0000:65:00.0") && is_pci_address("10000:e0:06.0"));
    for broken in ["65:00.0", "0000:65:00", "pci0000:65", "0000:65:0.0", "0000:6g:00.0", "0000:65:00.0:1", ""] {
        assert!(!is_pci_address(broken), "{broken}");
    }
}

/// Whatever this host is, it has a node with CPUs, and nothing panics.
#[test]
fn this_host_is_read() {
    let topology = Topology::here();
    assert!(topology.nodes.iter().any(|node| !node.cpus.is_empty()), "{topology:?}");
    for device in &topology.devices {
        assert_eq!(topology.distance(device, device), Distance::Same);
    }
}
