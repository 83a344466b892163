//! `lapis topology`: nodes, the devices of each, how far they are from each other, and what Lapis does with it.

use std::fmt::Write;

use lapis_config::{
    Bytes,
    topology::{Device, Distance, Kind, Near, Node, Topology, Vendor, place::mismatches},
};
use serde::Serialize;

use super::Layout;

/// The same for programs.
#[derive(Serialize)]
struct Document<'a> {
    topology: &'a Topology,
    /// By the order of `topology.devices`, which all rows and columns have.
    distances: Vec<Vec<Distance>>,
    uses: Uses,
}

/// What follows from it.
#[derive(Serialize)]
struct Uses {
    /// Of `extents` extents how many come from each node; empty: the kernel chooses.
    memory: Vec<Share>,
    extents: u64,
    ssds: Vec<Placed>,
    nics: Vec<Placed>,
    /// Of the HBM tier, in the daemon's order.
    gpus: Vec<PlacedGpu>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Share {
    node: u32,
    extents: u64,
}

#[derive(Serialize)]
struct Placed {
    name: String,
    node: Option<u32>,
    /// Those that its thread is kept on.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct PlacedGpu {
    #[serde(flatten)]
    placed: Placed,
    /// What comes back from it goes to memory of this node as long as some is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_node: Option<u32>,
    /// Other GPUs by whether a block that lies on one and in DRAM is read from there.
    from_gpus: Vec<String>,
    from_dram: Vec<String>,
}

pub fn json(layout: &Layout) -> serde_json::Result<String> {
    let topology = &layout.topology;
    let row = |one: &Device| topology.devices.iter().map(|other| topology.distance(one, other)).collect();
    let distances = topology.devices.iter().map(row).collect();
    serde_json::to_string_pretty(&Document { topology, distances, uses: uses(layout) })
}

fn uses(layout: &Layout) -> Uses {
    let spread = layout.spread();
    let (shares, extents) = spread.shares();
    let memory = shares.iter().map(|&(node, extents)| Share { node, extents }).collect();
    let ssds = layout.ssds.iter().enumerate();
    let ssds = ssds.map(|(i, near)| Placed { name: near.name.clone(), node: near.node, cpus: layout.cpus_of(i) });
    let nics = layout.nics.iter().map(|near| Placed { name: near.name.clone(), node: near.node, cpus: None });
    let memory_of = |node: Option<u32>| node.filter(|node| shares.iter().any(|(of, _)| of == node));
    let gpus = layout.gpus.near.iter().zip(layout.cpus_of_gpus()).enumerate();
    let gpus = gpus.map(|(gpu, (near, cpus))| {
        let others = layout.gpus.near.iter().enumerate().filter(|(other, _)| *other != gpu);
        let (from_gpus, from_dram): (Vec<_>, Vec<_>) =
            others.partition(|(other, _)| layout.gpus.reads_peer(&layout.topology, gpu, *other));
        let names = |of: Vec<(usize, &Near)>| of.into_iter().map(|(_, near)| near.name.clone()).collect();
        PlacedGpu {
            placed: Placed { name: near.name.clone(), node: near.node, cpus },
            memory_node: memory_of(near.node),
            from_gpus: names(from_gpus),
            from_dram: names(from_dram),
        }
    });
    let gpus = gpus.collect();
    let notes = mismatches(&layout.topology, &layout.nics, &layout.ssds, &layout.gpus.near);
    let mut notes: Vec<String> = notes.into_iter().map(|(found, advice)| format!("{found}: {advice}")).collect();
    if let Some(why) = &layout.gpus.why_unseen {
        notes.insert(0, format!("GPUs are shown as the configuration names them: {why}"));
    }
    Uses { memory, extents, ssds: ssds.collect(), nics: nics.collect(), gpus, notes }
}

pub fn text(layout: &Layout) -> String {
    let (topology, mut out) = (&layout.topology, String::new());
    let devices = labelled(topology);
    for node in &topology.nodes {
        let _ = writeln!(out, "{}", of_node(node));
        devices.iter().filter(|(_, device)| device.node == Some(node.number)).for_each(|entry| line(&mut out, entry));
    }
    if devices.iter().any(|(_, device)| device.node.is_none()) {
        let _ = writeln!(out, "of no node that is known");
        devices.iter().filter(|(_, device)| device.node.is_none()).for_each(|entry| line(&mut out, entry));
    }
    for name in &topology.virtual_rdma {
        let _ = writeln!(out, "of no device: {name} (RDMA)");
    }
    if devices.len() > 1 {
        matrix(&mut out, topology, &devices);
    }
    follows(&mut out, layout);
    for strange in &topology.strange {
        let _ = writeln!(out, "not understood: {strange}");
    }
    out
}

/// GPUs first, then NICs and drives; with what each is called in the matrix.
fn labelled(topology: &Topology) -> Vec<(String, &Device)> {
    let kind = |device: &Device| match device.kind {
        Kind::Gpu { .. } => "GPU",
        Kind::Nic { .. } => "NIC",
        Kind::Nvme { .. } => "NVMe",
        Kind::Disk { .. } => "disk",
    };
    let of_kind = |name: &'static str| {
        let devices = topology.devices.iter().filter(move |device| kind(device) == name);
        devices.enumerate().map(move |(index, device)| (format!("{name}{index}"), device))
    };
    ["GPU", "NIC", "NVMe", "disk"].into_iter().flat_map(of_kind).collect()
}

fn of_node(node: &Node) -> String {
    let memory =
        if node.memory_bytes > 0 { Bytes(round(node.memory_bytes)).to_string() } else { "memory not known".into() };
    let far = node.distances.iter().filter(|(number, _)| **number != node.number);
    let far: Vec<String> = far.map(|(number, distance)| format!("{distance} to node {number}")).collect();
    let far = if far.is_empty() { String::new() } else { format!("; distance {}", far.join(", ")) };
    format!("node {}: {}, CPUs {}{far}", node.number, memory, ranges(&node.cpus))
}

/// To a MiB: what firmware keeps is no round number.
fn round(bytes: u64) -> u64 {
    bytes >> 20 << 20
}

/// "0-15,32-47".
fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let runs = runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    let text = runs.collect::<Vec<_>>().join(",");
    if text.is_empty() { "none".into() } else { text }
}

fn line(out: &mut String, (label, device): &(String, &Device)) {
    let mut words = match &device.kind {
        Kind::Gpu { vendor: Vendor::Nvidia } => "NVIDIA".to_owned(),
        Kind::Gpu { vendor: Vendor::Amd } => "AMD".to_owned(),
        Kind::Nic { rdma, interfaces } => [rdma.clone(), interfaces.clone()].concat().join(" "),
        Kind::Nvme { controller: Some(controller), namespaces } => format!("{controller} {}", namespaces.join(" ")),
        Kind::Nvme { controller: None, .. } => "not with the kernel's driver".to_owned(),
        Kind::Disk { blocks } => blocks.join(" "),
    };
    if let Some(driver) = &device.driver {
        let _ = write!(words, " ({driver})");
    }
    let _ = writeln!(out, "  {label:6} {:12}  {words}", device.address);
}

fn matrix(out: &mut String, topology: &Topology, devices: &[(String, &Device)]) {
    let _ = write!(out, "\n{:6}", "");
    devices.iter().for_each(|(label, _)| out.push_str(&format!(" {label:>6}")));
    out.push('\n');
    for (label, one) in devices {
        let _ = write!(out, "{label:6}");
        let short = |other: &Device| topology.distance(one, other).short();
        devices.iter().for_each(|(_, other)| out.push_str(&format!(" {:>6}", short(other))));
        out.push('\n');
    }
    let seen = |distance: &Distance| {
        devices.iter().any(|(_, one)| devices.iter().any(|(_, other)| topology.distance(one, other) == *distance))
    };
    let all = [
        Distance::Switch,
        Distance::RootPort,
        Distance::RootComplex,
        Distance::Node,
        Distance::OtherNode,
        Distance::Unknown,
    ];
    let legend: Vec<String> = all.iter().filter(|d| seen(d)).map(|d| format!("{} {d}", d.short())).collect();
    let _ = writeln!(out, "{}\n", legend.join("; "));
}

fn follows(out: &mut String, layout: &Layout) {
    let Uses { memory, extents, ssds, nics, gpus, notes } = uses(layout);
    let _ = match &memory[..] {
        _ if !layout.topology.has_several_nodes() => writeln!(out, "memory: one node, nothing to choose"),
        _ if !layout.follow => writeln!(out, "memory: where the kernel puts it (topology.follow = false)"),
        [] => writeln!(out, "memory: where the kernel puts it"),
        shares => {
            let shares: Vec<String> = shares
                .iter()
                .map(|Share { node, extents: n }| format!("{n} of {extents} extents from node {node}"))
                .collect();
            writeln!(out, "memory: {}", shares.join(", "))
        }
    };
    let at = |node: &Option<u32>| node.map_or("node not known".into(), |node| format!("node {node}"));
    let thread =
        |cpus: &Option<Vec<u32>>| cpus.as_ref().map_or("on any CPU".into(), |cpus| format!("on CPUs {}", ranges(cpus)));
    for Placed { name, node, cpus } in &ssds {
        let _ = writeln!(out, "ssd: {name}: {}, its thread {}", at(node), thread(cpus));
    }
    for PlacedGpu { placed: Placed { name, node, cpus }, memory_node, from_gpus, from_dram } in &gpus {
        let memory = memory_node.map_or(String::new(), |node| format!(", what comes back goes to node {node} first"));
        let _ = writeln!(out, "gpu: {name}: {}, its thread {}{memory}", at(node), thread(cpus));
        for (others, from) in [(from_gpus, "there"), (from_dram, "DRAM")] {
            if !others.is_empty() {
                let _ = writeln!(
                    out,
                    "gpu: {name}: reads blocks that are in DRAM and on {} from {from}",
                    others.join(", ")
                );
            }
        }
    }
    for Placed { name, node, .. } in &nics {
        // As `pace::soonest` has it, where memory has nodes.
        let first = node.filter(|node| memory.iter().any(|share| share.node == *node));
        let first = first.map_or(String::new(), |node| format!(", the first choice for memory of node {node}"));
        let _ = writeln!(out, "nic: {name}: {}{first}", at(node));
    }
    for note in &notes {
        let _ = writeln!(out, "note: {note}");
    }
}

#[cfg(test)]
mod tests {
    use lapis_arena::hbm::DeviceInfo;
    use lapis_config::topology::Link;

    use super::{
        super::{SeenGpus, UsedGpus},
        *,
    };

    fn device(address: &str, node: u32, parents: &[&str], kind: Kind) -> Device {
        let parents = parents.iter().map(|&name| name.to_owned()).collect();
        Device { address: address.into(), node: Some(node), parents, driver: None, kind }
    }

    fn layout() -> Layout {
        let node = |number: u32, cpus: Vec<u32>| Node {
            number,
            cpus,
            memory_bytes: 64 << 30,
            distances: [(0, if number == 0 { 10 } else { 21 }), (1, if number == 1 { 10 } else { 21 })].into(),
        };
        let nvme = |number: u32| Kind::Nvme {
            controller: Some(format!("nvme{number}")),
            namespaces: vec![format!("nvme{number}n1")],
        };
        let below = ["pci0000:00", "0000:00:01.0", "0000:01:00.0"];
        let topology = Topology {
            nodes: vec![node(0, vec![0, 1, 2, 3, 8]), node(1, vec![4, 5])],
            devices: vec![
                device("0000:02:00.0", 0, &below, nvme(0)),
                device("0000:03:00.0", 0, &below, Kind::Gpu { vendor: Vendor::Nvidia }),
                device("0000:41:00.0", 1, &["pci0000:40"], nvme(1)),
            ],
            virtual_rdma: vec!["rxe0".into()],
            strange: Vec::new(),
        };
        let near = |name: &str, node| Near { name: name.into(), node: Some(node) };
        let ssds = vec![near("/dev/nvme0n1", 0), near("/dev/nvme1n1", 1)];
        let nics = vec![near("mlx5_0", 0), near("mlx5_1", 1)];
        Layout { topology, nics, ssds, gpus: UsedGpus::default(), follow: true, allowed: (0..16).collect() }
    }

    /// The GPU that is there, one at the other node, and one that nobody knows the place of; the second reaches none.
    fn with_gpus() -> Layout {
        let mut layout = layout();
        layout.topology.devices.push(device("0000:42:00.0", 1, &["pci0000:40"], Kind::Gpu { vendor: Vendor::Nvidia }));
        let info = |index: u16, bus_id: &str| DeviceInfo { pci_bus_id: bus_id.into(), ..crate::gpus::info(index) };
        let infos = vec![info(0, "0000:03:00.0"), info(1, "0000:42:00.0"), info(2, "0000:99:00.0")];
        let link = Some(Link { rank: Some(0), has_atomics: false });
        let links = vec![vec![None, link, link], vec![None; 3], vec![link, link, None]];
        layout.with_gpus(SeenGpus { infos, links })
    }

    #[test]
    fn people_see_nodes_devices_distances_and_what_follows() {
        let shown = text(&layout());
        let expected = "\
node 0: 64GiB, CPUs 0-3,8; distance 21 to node 1
  GPU0   0000:03:00.0  NVIDIA
  NVMe0  0000:02:00.0  nvme0 nvme0n1
node 1: 64GiB, CPUs 4-5; distance 21 to node 0
  NVMe1  0000:41:00.0  nvme1 nvme1n1
of no device: rxe0 (RDMA)

         GPU0  NVMe0  NVMe1
GPU0        X    PIX    SYS
NVMe0     PIX      X    SYS
NVMe1     SYS    SYS      X
PIX below the same switch; SYS at another NUMA node

memory: 2 of 4 extents from node 0, 2 of 4 extents from node 1
ssd: /dev/nvme0n1: node 0, its thread on CPUs 0-3,8
ssd: /dev/nvme1n1: node 1, its thread on CPUs 4-5
nic: mlx5_0: node 0, the first choice for memory of node 0
nic: mlx5_1: node 1, the first choice for memory of node 1
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn of_each_gpu_that_is_used_people_see_where_it_is_and_what_follows() {
        let shown = text(&with_gpus());
        let expected = "\
memory: 3 of 6 extents from node 0, 3 of 6 extents from node 1
ssd: /dev/nvme0n1: node 0, its thread on CPUs 0-3,8
ssd: /dev/nvme1n1: node 1, its thread on CPUs 4-5
gpu: GPU 0 at 0000:03:00.0: node 0, its thread on CPUs 0-3,8, what comes back goes to node 0 first
gpu: GPU 0 at 0000:03:00.0: reads blocks that are in DRAM and on GPU 2 at 0000:99:00.0 from there
gpu: GPU 0 at 0000:03:00.0: reads blocks that are in DRAM and on GPU 1 at 0000:42:00.0 from DRAM
gpu: GPU 1 at 0000:42:00.0: node 1, its thread on CPUs 4-5, what comes back goes to node 1 first
gpu: GPU 1 at 0000:42:00.0: reads blocks that are in DRAM and on GPU 0 at 0000:03:00.0, GPU 2 at 0000:99:00.0 from DRAM
gpu: GPU 2 at 0000:99:00.0: node not known, its thread on any CPU
gpu: GPU 2 at 0000:99:00.0: reads blocks that are in DRAM and on GPU 0 at 0000:03:00.0, GPU 1 at 0000:42:00.0 from there
";
        assert!(shown.contains(expected), "{shown}");
        let free = text(&Layout { follow: false, ..with_gpus() });
        assert!(free.contains("gpu: GPU 1 at 0000:42:00.0: node 1, its thread on any CPU\n"), "{free}");
        let mut layout = with_gpus();
        layout.gpus = layout.gpus.unseen("no driver".into());
        assert!(text(&layout).ends_with("note: GPUs are shown as the configuration names them: no driver\n"));
    }

    #[test]
    fn what_is_not_followed_is_said() {
        let shown = text(&Layout { follow: false, ..layout() });
        assert!(shown.contains("where the kernel puts it (topology.follow = false)"), "{shown}");
        assert!(shown.contains("/dev/nvme1n1: node 1, its thread on any CPU"), "{shown}");
        assert!(shown.contains("nic: mlx5_0: node 0\n"), "no choice: {shown}");
        let mut one = layout();
        one.topology.nodes.truncate(1);
        assert!(text(&one).contains("one node, nothing to choose"));
    }

    #[test]
    fn programs_get_the_same() {
        let document: serde_json::Value = serde_json::from_str(&json(&layout()).expect("it is data")).expect("JSON");
        assert_eq!(document["distances"][0][1], "switch");
        assert_eq!(document["distances"][0][2], "other_node");
        assert_eq!(document["topology"]["devices"][1]["kind"], "gpu");
        assert_eq!(document["uses"]["ssds"][1]["cpus"][0], 4);
        assert_eq!(document["uses"]["memory"][0]["extents"], 2);
        assert_eq!(document["uses"]["gpus"], serde_json::json!([]));
        let document: serde_json::Value = serde_json::from_str(&json(&with_gpus()).expect("it is data")).expect("JSON");
        let gpu = serde_json::json!({
            "name": "GPU 1 at 0000:42:00.0",
            "node": 1,
            "cpus": [4, 5],
            "memory_node": 1,
            "from_gpus": [],
            "from_dram": ["GPU 0 at 0000:03:00.0", "GPU 2 at 0000:99:00.0"],
        });
        assert_eq!(document["uses"]["gpus"][1], gpu);
    }
}
