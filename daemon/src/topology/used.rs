//! The GPUs of the HBM tier among what the host has. Pure.

use lapis_arena::hbm::DeviceInfo;
use lapis_config::{
    GpuName, Gpus, Options,
    topology::{Distance, Kind, Link, Near, Topology, Vendor, place::reads_peer},
};

/// GPUs as their driver shows them, and the way from each to each; `None` where one does not reach the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenGpus {
    pub infos: Vec<DeviceInfo>,
    pub links: Vec<Vec<Option<Link>>>,
}

/// In the order of the daemon's GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsedGpus {
    pub near: Vec<Near>,
    /// Of each its PCI bus id, where that is known.
    bus_ids: Vec<Option<String>>,
    /// Where the driver was asked.
    links: Option<Vec<Vec<Option<Link>>>>,
    /// Why it does not say which they are.
    pub why_unseen: Option<String>,
}

impl UsedGpus {
    /// As far as the configuration tells: without the driver nobody knows which one an index or a UUID means.
    pub fn configured(topology: &Topology, options: &Options) -> Self {
        if options.hbm_bytes == 0 {
            return Self::default();
        }
        let named = match &options.hbm_gpus {
            Gpus::Named(names) => names.iter().map(|name| (name.to_string(), bus_id(name))).collect(),
            Gpus::All => {
                let is_ours = |kind: &Kind| matches!(kind, Kind::Gpu { vendor: Vendor::Nvidia });
                let all = topology.devices.iter().filter(|device| is_ours(&device.kind));
                all.map(|device| (device.address.clone(), Some(device.address.clone()))).collect()
            }
        };
        Self::of(topology, named, None)
    }

    pub fn seen(topology: &Topology, SeenGpus { infos, links }: SeenGpus) -> Self {
        let named = |info: DeviceInfo| (format!("{} at {}", info.index, info.pci_bus_id), Some(info.pci_bus_id));
        Self::of(topology, infos.into_iter().map(named).collect(), Some(links))
    }

    fn of(topology: &Topology, named: Vec<(String, Option<String>)>, links: Option<Vec<Vec<Option<Link>>>>) -> Self {
        let node = |bus_id: &Option<String>| topology.gpu(bus_id.as_deref()?)?.node;
        let near =
            named.iter().map(|(name, bus_id)| Near { name: format!("GPU {name}"), node: node(bus_id) }).collect();
        Self { near, bus_ids: named.into_iter().map(|(_, bus_id)| bus_id).collect(), links, why_unseen: None }
    }

    /// The driver was asked, and does not say which they are.
    pub fn unseen(self, why: String) -> Self {
        Self { why_unseen: Some(why), ..self }
    }

    /// Whether the driver said which they are.
    pub fn are_seen(&self) -> bool {
        self.links.is_some()
    }

    /// Whether blocks that lie on another GPU and in DRAM are read from there. As if it reached the other one, where the
    /// driver was not asked.
    pub fn reads_peer(&self, topology: &Topology, one: usize, other: usize) -> bool {
        let link = match &self.links {
            None => Some(Link::default()),
            Some(links) => links[one][other],
        };
        let device = |gpu: usize| topology.gpu(self.bus_ids[gpu].as_deref()?);
        let distance = match (device(one), device(other)) {
            (Some(one), Some(other)) => topology.distance(one, other),
            _ => Distance::Unknown,
        };
        link.is_some_and(|link| reads_peer(link, distance))
    }
}

fn bus_id(name: &GpuName) -> Option<String> {
    matches!(name, GpuName::Pci { .. }).then(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use lapis_config::topology::{Device, Node};

    use super::*;

    /// A GPU of each of two nodes, two more of the second, and one of another maker.
    fn topology() -> Topology {
        let gpu = |address: &str, node: u32, parents: &[&str], vendor| Device {
            address: address.into(),
            node: Some(node),
            parents: parents.iter().map(|&name| name.to_owned()).collect(),
            driver: None,
            kind: Kind::Gpu { vendor },
        };
        let below = ["pci0000:80", "0000:80:01.0", "0000:81:00.0"];
        Topology {
            nodes: [0, 1].map(|number| Node { number, memory_bytes: 1 << 30, ..Node::default() }).into(),
            devices: vec![
                gpu("0000:0a:00.0", 0, &["pci0000:00"], Vendor::Nvidia),
                gpu("0000:0b:00.0", 0, &["pci0000:00"], Vendor::Amd),
                gpu("0000:82:00.0", 1, &below, Vendor::Nvidia),
                gpu("0000:83:00.0", 1, &below, Vendor::Nvidia),
            ],
            ..Topology::default()
        }
    }

    fn info(index: u16, bus_id: &str) -> DeviceInfo {
        DeviceInfo { index, pci_bus_id: bus_id.into(), ..crate::gpus::info(index) }
    }

    fn configured(bytes: u64, gpus: Gpus) -> Vec<(String, Option<u32>)> {
        let options = Options { hbm_bytes: bytes, hbm_gpus: gpus, ..Options::default() };
        let used = UsedGpus::configured(&topology(), &options);
        assert!(!used.are_seen());
        used.near.into_iter().map(|near| (near.name, near.node)).collect()
    }

    #[test]
    fn what_the_configuration_names_by_its_bus_id_is_found_without_a_driver() {
        assert_eq!(configured(0, Gpus::All), []);
        let all = [("GPU 0000:0a:00.0", 0), ("GPU 0000:82:00.0", 1), ("GPU 0000:83:00.0", 1)];
        assert_eq!(configured(1, Gpus::All), all.map(|(name, node)| (name.to_owned(), Some(node))));
        let names = ["82:00.0", "99:00.0"].map(|id| GpuName::pci(id).expect("a bus id"));
        let named = configured(1, Gpus::Named([names.to_vec(), vec![GpuName::Index(1)]].concat()));
        let expected = [("GPU 0000:82:00.0", Some(1)), ("GPU 0000:99:00.0", None), ("GPU 1", None)];
        assert_eq!(named, expected.map(|(name, node)| (name.to_owned(), node)));
    }

    #[test]
    fn what_the_driver_shows_lies_where_its_bus_id_does() {
        let infos = vec![info(2, "00000000:83:00.0"), info(0, "0000:0A:00.0"), info(1, "0000:82:00.0")];
        let link = |rank, has_atomics| Some(Link { rank: Some(rank), has_atomics });
        let links = vec![
            vec![None, link(0, false), link(0, false)],
            vec![link(0, true), None, link(0, false)],
            vec![None, link(0, false), None],
        ];
        let used = UsedGpus::seen(&topology(), SeenGpus { infos, links });
        assert!(used.are_seen());
        let nodes: Vec<_> = used.near.iter().map(|near| near.node).collect();
        assert_eq!((nodes, &*used.near[0].name), (vec![Some(1), Some(0), Some(1)], "GPU 2 at 00000000:83:00.0"));
        let reads = |one, other| used.reads_peer(&topology(), one, other);
        assert!(reads(0, 2) && !reads(0, 1), "below one switch, and at another node");
        assert!(reads(1, 0) && !reads(1, 2), "by a link of theirs, and without");
        assert!(!reads(2, 0), "it does not reach it");
    }

    #[test]
    fn where_the_driver_was_not_asked_the_tree_tells() {
        let options = Options { hbm_bytes: 1, hbm_gpus: Gpus::All, ..Options::default() };
        let used = UsedGpus::configured(&topology(), &options);
        let reads = |one, other| used.reads_peer(&topology(), one, other);
        assert!(reads(1, 2) && !reads(0, 1) && !reads(2, 0));
    }
}
