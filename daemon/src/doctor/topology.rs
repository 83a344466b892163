//! Whether what works together lies together. Nothing here stops a daemon: it would only be slower than it could.

use lapis_config::{Options, topology::place::mismatches};

use super::Finding;
use crate::topology::Layout;

const CHECK: &str = "topology";

pub(super) fn examine(options: &Options) -> Vec<Finding> {
    judge(&Layout::here(options))
}

fn judge(layout: &Layout) -> Vec<Finding> {
    let nodes = layout.topology.nodes.len();
    let found = mismatches(&layout.topology, &layout.nics, &layout.ssds);
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
        topology::{Near, Node, Topology},
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
}
