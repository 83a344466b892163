//! Whether what works together lies together. Nothing here stops a daemon: it would only be slower than it could.

use lapis_config::{Options, topology::place::mismatches};

use super::Finding;
use crate::topology::{Layout, SeenGpus};

const CHECK: &str = "topology";

/// `gpus`: of the HBM tier, if their driver showed them.
pub(super) fn examine(options: &Options, gpus: Option<SeenGpus>) -> Vec<Finding> {
    let layout = Layout::here(options);
    judge(&match gpus {
        Some(seen) => layout.with_gpus(seen),
        None => layout,
    })
}

fn judge(layout: &Layout) -> Vec<Finding> {
    let nodes = layout.topology.nodes.len();
    let found = mismatches(&layout.topology, &layout.nics, &layout.ssds, &layout.gpus.near);
    if found.is_empty() {
        let nodes = if nodes == 1 { "one NUMA node".to_owned() } else { format!("{nodes} NUMA nodes") };
        return vec![Finding::ok(CHECK, format!("{nodes}, nothing lies far from what it works with"))];
    }
    found.into_iter().map(|(found, advice)| Finding::warn(CHECK, found, advice)).collect()
}

#[cfg(test)]
mod tests {
    use lapis_config::{
        LoadInput,
        topology::{Device, Kind, Near, Node, Topology, Vendor},
    };

    use super::{super::Level, *};

    #[test]
    fn nics_on_the_other_side_of_all_ssds_are_a_warning() {
        let options = Options::load(&LoadInput::default()).expect("the defaults hold together").options;
        let node = |number| Node { number, memory_bytes: 1 << 30, ..Node::default() };
        let near = |name: &str, node| Near { name: name.into(), node: Some(node) };
        let topology = Topology { nodes: vec![node(0), node(1)], ..Topology::default() };
        let (nics, ssds) = (vec![near("mlx5_0", 1)], vec![near("/dev/nvme0n1", 0)]);
        let layout = Layout { topology, nics, ssds, ..Layout::here(&options) };
        let found = judge(&layout);
        assert_eq!((found.len(), found[0].level), (1, Level::Warn));
        assert!(
            found[0].to_string().contains("NICs (mlx5_0) are at node 1, SSDs (/dev/nvme0n1) at node 0"),
            "{}",
            found[0]
        );
        let fine = judge(&Layout { ssds: vec![near("/dev/nvme0n1", 1)], ..layout });
        assert_eq!((fine.len(), fine[0].level), (1, Level::Ok));
    }

    #[test]
    fn ssds_on_the_other_side_of_all_gpus_that_are_used_are_a_warning() {
        let options = Options::load(&LoadInput::default()).expect("the defaults hold together").options;
        let node = |number| Node { number, memory_bytes: 1 << 30, ..Node::default() };
        let gpu = |address: &str, node| Device {
            address: address.into(),
            node: Some(node),
            parents: Vec::new(),
            driver: None,
            kind: Kind::Gpu { vendor: Vendor::Nvidia },
        };
        let devices = vec![gpu("0000:40:00.0", 0), gpu("0000:41:00.0", 1)];
        let topology = Topology { nodes: vec![node(0), node(1)], devices, ..Topology::default() };
        let ssds = vec![Near { name: "/dev/nvme0n1".into(), node: Some(0) }];
        let layout = Layout { topology, nics: Vec::new(), ssds, ..Layout::here(&options) };
        assert_eq!(judge(&layout)[0].level, Level::Ok, "there is one at each node");
        let seen = |index| SeenGpus { infos: vec![crate::gpus::info(index)], links: vec![vec![None]] };
        let found = judge(&layout.clone().with_gpus(seen(1)));
        let words =
            "all SSDs (/dev/nvme0n1) are at node 0, the GPUs that are used (GPU 1 at 00000000:41:00.0) at node 1";
        assert!(found.len() == 1 && found[0].level == Level::Warn && found[0].to_string().contains(words), "{found:?}");
        assert_eq!(judge(&layout.with_gpus(seen(0)))[0].level, Level::Ok);
    }
}
