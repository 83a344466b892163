//! Where the parts of a host lie: NUMA nodes, and PCI devices with what is between them. Pure; `sysfs` reads it, `place` says
//! what follows.

pub mod place;
pub mod sysfs;

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::GpuName;
pub use place::{Link, Near, Spread};

/// A host without NUMA has one node, number 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// By number.
    pub nodes: Vec<Node>,
    /// By address.
    pub devices: Vec<Device>,
    /// Devices of RDMA that are no PCI device's: over an interface that has none.
    pub virtual_rdma: Vec<String>,
    /// What could not be read or made sense of, a line each.
    pub strange: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Node {
    pub number: u32,
    pub cpus: Vec<u32>,
    /// 0: the node has none, or it is not known.
    pub memory_bytes: u64,
    /// As firmware gives them, 10 for the node itself; by number of the other node.
    pub distances: BTreeMap<u32, u32>,
}

/// A PCI device that Lapis has a use for, or that a disk is behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// "0000:65:00.0".
    pub address: String,
    /// `None`: firmware does not say, and there are several.
    pub node: Option<u32>,
    /// From its root complex ("pci0000:64") over bridges down to, not with, itself.
    pub parents: Vec<String>,
    /// The driver that has it.
    pub driver: Option<String>,
    #[serde(flatten)]
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kind {
    /// With devices of RDMA; its interfaces, if they are in this network namespace.
    Nic {
        rdma: Vec<String>,
        interfaces: Vec<String>,
    },
    /// The kernel's names, none where another driver has it (vfio-pci).
    Nvme {
        controller: Option<String>,
        namespaces: Vec<String>,
    },
    Gpu {
        vendor: Vendor,
    },
    /// Another one with block devices.
    Disk {
        blocks: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    Nvidia,
    Amd,
}

/// How far two devices are from each other; the nearest is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    Same,
    /// Below one switch or bridge, or functions of one device.
    Switch,
    /// Below one root port, over several switches.
    RootPort,
    RootComplex,
    Node,
    OtherNode,
    /// The node of one of them is not known.
    Unknown,
}

impl Distance {
    /// As `nvidia-smi topo -m` calls them, where it knows them.
    pub fn short(self) -> &'static str {
        match self {
            Self::Same => "X",
            Self::Switch => "PIX",
            Self::RootPort => "PXB",
            Self::RootComplex => "PHB",
            Self::Node => "NODE",
            Self::OtherNode => "SYS",
            Self::Unknown => "?",
        }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "itself",
            Self::Switch => "below the same switch",
            Self::RootPort => "below the same root port, over several switches",
            Self::RootComplex => "at the same root complex",
            Self::Node => "at the same NUMA node",
            Self::OtherNode => "at another NUMA node",
            Self::Unknown => "not known",
        })
    }
}

impl Device {
    /// As people know it: "mlx5_0", "nvme0", "65:00.0" where nothing else is known.
    pub fn name(&self) -> &str {
        let named = match &self.kind {
            Kind::Nic { rdma: names, .. } | Kind::Disk { blocks: names } => names.first(),
            Kind::Nvme { controller, .. } => controller.as_ref(),
            Kind::Gpu { .. } => None,
        };
        named.unwrap_or(&self.address)
    }

    /// Of its namespaces the block devices, if it is an NVMe controller that the kernel drives.
    pub fn namespaces(&self) -> &[String] {
        if let Kind::Nvme { namespaces, .. } = &self.kind { namespaces } else { &[] }
    }

    pub fn is_gpu(&self) -> bool {
        matches!(self.kind, Kind::Gpu { .. })
    }

    /// Names of its devices of RDMA.
    pub fn rdma(&self) -> &[String] {
        if let Kind::Nic { rdma, .. } = &self.kind { rdma } else { &[] }
    }
}

impl Topology {
    pub fn distance(&self, one: &Device, other: &Device) -> Distance {
        if one.address == other.address {
            return Distance::Same;
        }
        let shared = one.parents.iter().zip(&other.parents).take_while(|(a, b)| a == b).count();
        // Of what is shared the first is the root complex, which is no bridge.
        let deepest = one.parents.len().max(other.parents.len()) - shared;
        match (shared, one.node, other.node) {
            // Its own port of a switch may be between a device and what is shared.
            (2.., ..) if deepest <= 1 => Distance::Switch,
            (2.., ..) => Distance::RootPort,
            (1, ..) => Distance::RootComplex,
            (0, Some(a), Some(b)) if a == b => Distance::Node,
            (0, Some(_), Some(_)) => Distance::OtherNode,
            _ => Distance::Unknown,
        }
    }

    pub fn device(&self, address: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.address == address)
    }

    /// A GPU by its PCI bus id as a driver writes it, in capitals or with more digits.
    pub fn gpu(&self, bus_id: &str) -> Option<&Device> {
        let wanted = GpuName::pci(bus_id)?;
        self.devices.iter().find(|device| device.is_gpu() && GpuName::pci(&device.address) == Some(wanted))
    }

    pub fn node(&self, number: u32) -> Option<&Node> {
        self.nodes.iter().find(|node| node.number == number)
    }

    pub fn has_several_nodes(&self) -> bool {
        self.nodes.len() > 1
    }
}
