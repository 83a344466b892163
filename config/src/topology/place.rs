//! What follows from where things lie: which node gets an extent, which CPUs a device's thread, where a GPU reads a block,
//! what is far from what. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Device, Distance, Topology};

/// Which node each extent of the DRAM tier is taken from: in turns, each node as often as it has devices that move blocks.
/// The default spreads nothing: the kernel chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Node and weight, by number; empty where there is nothing to choose.
    weights: Vec<(u32, u64)>,
}

impl Spread {
    /// `devices`: the nodes of what moves blocks to and from memory, one entry a device. Nodes without memory are never
    /// chosen; where no device has a node, all others are alike.
    pub fn new(topology: &Topology, devices: &[Option<u32>]) -> Self {
        let with_memory = || topology.nodes.iter().filter(|node| node.memory_bytes > 0).map(|node| node.number);
        if with_memory().count() < 2 {
            return Self::default();
        }
        let count = |number: u32| devices.iter().filter(|node| **node == Some(number)).count() as u64;
        let mut weights: Vec<(u32, u64)> = with_memory().map(|number| (number, count(number))).collect();
        if weights.iter().all(|(_, weight)| *weight == 0) {
            weights.iter_mut().for_each(|(_, weight)| *weight = 1);
        }
        weights.retain(|(_, weight)| *weight > 0);
        Self { weights }
    }

    /// The node of an extent, by its index in its group. At every index each node has had its share up to one extent.
    pub fn node_of(&self, extent: usize) -> Option<u32> {
        let all: u64 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut had: BTreeMap<u32, u64> = BTreeMap::new();
        let mut chosen = None;
        for turn in 0..=extent as u64 {
            // Whoever lacks most of its share by now; the first of equals.
            let lacks = |&(node, weight): &(u32, u64)| {
                let had = had.get(&node).copied().unwrap_or(0);
                (i128::from(weight * (turn + 1)) - i128::from(had * all), std::cmp::Reverse(node))
            };
            let (node, _) = *self.weights.iter().max_by_key(|entry| lacks(entry))?;
            *had.entry(node).or_default() += 1;
            chosen = Some(node);
        }
        chosen
    }

    /// Node and how many extents of `all` it gets.
    pub fn shares(&self) -> (&[(u32, u64)], u64) {
        (&self.weights, self.weights.iter().map(|(_, weight)| weight).sum())
    }
}

/// Where something is that moves blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Near {
    /// What people call it: a path, a NIC.
    pub name: String,
    pub node: Option<u32>,
}

/// The way from a GPU to another that it reaches, as its driver has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Among all ways of the host; 0 is the best. `None`: the driver does not say.
    pub rank: Option<u32>,
    /// Atomics go over it, as they do over NVLink and not over PCIe.
    pub has_atomics: bool,
}

/// Whether a GPU reads a block that lies on another one from there, though it lies in DRAM too.
pub fn reads_peer(link: Link, distance: Distance) -> bool {
    match distance {
        _ if link.has_atomics => true,
        Distance::Same | Distance::Switch | Distance::RootPort => true,
        // Past the switches both ways lead through the root complex. DRAM takes nothing from the other GPU's own link, and
        // processors are slow at handing reads of one device to another, at another node above all.
        Distance::RootComplex | Distance::Node | Distance::OtherNode => false,
        Distance::Unknown => link.rank.is_none_or(|rank| rank == 0),
    }
}

/// The CPUs that a device's thread runs on: those of its node which it may use. `None`: wherever it likes.
pub fn cpus_near(topology: &Topology, node: Option<u32>, allowed: &[u32]) -> Option<Vec<u32>> {
    if !topology.has_several_nodes() {
        return None;
    }
    let mut cpus = topology.node(node?)?.cpus.clone();
    cpus.retain(|cpu| allowed.contains(cpu));
    (!cpus.is_empty()).then_some(cpus)
}

/// The node that all of the devices are at; `None` if they are at several, or one is not known.
pub fn common_node<'a>(devices: impl IntoIterator<Item = &'a Device>) -> Option<u32> {
    common(devices.into_iter().map(|device| device.node))
}

fn common(nodes: impl IntoIterator<Item = Option<u32>>) -> Option<u32> {
    let mut nodes = nodes.into_iter();
    let first = nodes.next()??;
    nodes.all(|node| node == Some(first)).then_some(first)
}

/// What is far from each other and need not be, in words: a line each with what to do. `gpus`: those that are used; where
/// none is, blocks go to any of the host all the same, from DRAM.
pub fn mismatches(topology: &Topology, nics: &[Near], ssds: &[Near], gpus: &[Near]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if !topology.has_several_nodes() {
        return found;
    }
    let named = |of: &[Near]| of.iter().map(|near| near.name.clone()).collect::<Vec<_>>().join(", ");
    let at = |of: &[Near]| common(of.iter().map(|near| near.node));
    if let (Some(of_nics), Some(of_ssds)) = (at(nics), at(ssds))
        && of_nics != of_ssds
    {
        found.push((
            format!("NICs ({}) are at node {of_nics}, SSDs ({}) at node {of_ssds}", named(nics), named(ssds)),
            "what peers read off this host's SSD crosses nodes: use a NIC or an SSD of the other node too, if there is one"
                .into(),
        ));
    }
    let (of_gpus, called) = match gpus {
        [] => (common_node(topology.devices.iter().filter(|device| device.is_gpu())), "all GPUs".to_owned()),
        used => (at(used), format!("the GPUs that are used ({})", named(used))),
    };
    if let Some(of_gpus) = of_gpus {
        for (what, of) in [("NICs", nics), ("SSDs", ssds)] {
            if let Some(node) = at(of).filter(|node| *node != of_gpus) {
                found.push((
                    format!("all {what} ({}) are at node {node}, {called} at node {of_gpus}", named(of)),
                    "every block crosses nodes on its way to a GPU: use devices of the GPUs' node, if there are any"
                        .into(),
                ));
            }
        }
    }
    for near in nics.iter().chain(ssds).chain(gpus) {
        if let Some(node) = near.node.and_then(|number| topology.node(number)).filter(|node| node.memory_bytes == 0) {
            found.push((
                format!("{} is at node {}, which has no memory", near.name, node.number),
                "put DIMMs there, or use another slot: all that it moves crosses nodes".into(),
            ));
        }
    }
    found
}
