//! Over a keeper that outlives its daemon, as a kill and a start see it.

use std::{io, os::fd::BorrowedFd, time::Duration};

use lapis_arena::{DeviceHazards, Hazards, hazard};
use lapis_config::{
    Fingerprint, GpuId, Key, PolicyName, PoolId, PoolKind, PoolShape, SlotId, Time, UNIT_BYTES,
    topology::{Node, Spread, Topology},
};
use lapis_state::{ClientRecord, Geometry};
use lapis_tiering::{
    CoreOptions,
    kept::{DevicePlace, Kept, Place, Slab, SlotState, Tier},
};

use super::*;
use crate::{
    group::{Former, Group, GroupOptions, Start},
    kept::GpuHere,
    pins::Waiting,
};

const GPU_BYTES: u64 = 8 << 20;
const SLAB: Slab = Slab { base: SlotId(0), units: 256, pool: PoolId(0), stride: 16 };
const KEY: Key = Key([1, 2, 3, 4]);

#[derive(Default)]
struct Held(Vec<(String, OwnedFd)>);

impl Held {
    fn names(&self) -> Vec<&str> {
        self.0.iter().filter_map(|(name, _)| name.strip_prefix("a.")).collect()
    }

    fn open(&mut self, hbm_bytes: u64) -> (Group, Vec<Former>) {
        self.open_with(options(hbm_bytes))
    }

    fn open_with(&mut self, options: GroupOptions) -> (Group, Vec<Former>) {
        let own = |(name, fd): &(String, OwnedFd)| {
            (name["a.".len()..].to_owned(), fd.try_clone().expect("a descriptor more"))
        };
        let found: Found = self.0.iter().map(own).collect();
        let mut next = self.0.len() as u64;
        let mut entropy = || {
            next += 1;
            next
        };
        Group::open(options, found, self, &mut entropy).expect("a group")
    }
}

impl Keeper for Held {
    fn keep(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        assert!(self.0.iter().all(|(kept, _)| kept != name), "{name} is kept once");
        self.0.push((name.to_owned(), fd.try_clone_to_owned()?));
        Ok(())
    }

    fn forget(&mut self, name: &str) -> io::Result<()> {
        self.0.retain(|(kept, _)| kept != name);
        Ok(())
    }
}

fn options(hbm_bytes: u64) -> GroupOptions {
    GroupOptions {
        name: "a".into(),
        uids: Vec::new(),
        may_put: true,
        geometry: Geometry { lines: 1024, dram_bytes: 64 << 20, floor_bytes: 0, ceiling_bytes: 64 << 20 },
        huge: Huge::Never,
        lock: false,
        spread: Default::default(),
        pin_bytes_max: 1 << 20,
        pin_age_max: Duration::from_secs(1),
        core: CoreOptions::default(),
        ssd_floor_bytes: 0,
        ssd_ceiling_bytes: 0,
        hbm_bytes,
        policy: PolicyName::Lru,
        ghost_bytes: 0,
    }
}

fn gpu(uuid: u8, memory: u64) -> GpuHere {
    GpuHere { uuid: [uuid; 16], memory }
}

/// Whether a former daemon's kept memory of GPUs was taken over, of which it had used some.
fn knows_gpus(group: &Group) -> bool {
    !group.core.kept().known_memory().is_empty()
}

/// A block with a copy on GPU 1 of two, and a client with its page.
fn used(held: &mut Held) -> DevicePlace {
    let (mut group, _) = held.open(GPU_BYTES);
    assert!(!knows_gpus(&group) && group.devices_fd.is_some());
    let shape = PoolShape {
        namespace: Fingerprint([7; 32]),
        label: "p".into(),
        kind: PoolKind::Chain,
        block_bytes: 64 << 10,
        pieces: 1,
    };
    assert_eq!(group.pool_of(&shape), Some(PoolId(0)));
    let id = group.core.kept_mut().state.next_client();
    group.make_client(id, held).expect("a client");
    let page = group.make_device_page(id, held).expect("a page").expect("GPUs are used");
    DeviceHazards::mapped(&page.mapping, 0).set(0, GpuId(1), SlotId(16));
    let kept = group.core.kept_mut();
    assert!(kept.state.add_client(ClientRecord { id: id.0, ..Default::default() }));
    assert_eq!(kept.number_gpus(&[gpu(1, 11), gpu(2, 12)]), [(GpuId(0), vec![]), (GpuId(1), vec![])]);
    kept.set_device_slab(GpuId(1), &SLAB);
    let place = Place { slot: SlotId(0), bytes: 100, sum: 1, tier: Tier::Hbm };
    let line = kept.publish(PoolId(0), &KEY, place).expect("a line");
    kept.set_device_slot_state(GpuId(1), &SLAB, 1, SlotState::Used(line));
    let place = DevicePlace { gpu: GpuId(1), slot: SlotId(16), units: 16 };
    kept.set_device(line, Some(place));
    place
}

#[test]
fn a_group_without_gpus_makes_nothing_for_them() {
    let mut held = Held::default();
    let (group, _) = held.open(0);
    assert_eq!(held.names(), ["table", "entries", "slots", "state"]);
    assert!(group.devices_fd.is_none() && !group.core.kept().keeps_devices());
    let page = group.make_device_page(ClientId(1), &mut held).expect("nothing to fail");
    assert!(page.is_none());
}

#[test]
fn what_is_on_gpus_is_known_to_the_next_daemon() {
    let mut held = Held::default();
    let place = used(&mut held);
    let (mut group, formers) = held.open(GPU_BYTES);
    assert_eq!((&group.start, knows_gpus(&group)), (&Start::Warm, true));
    assert!(held.names().ends_with(&["devices", "hbm", "client.1", "life.1", "device.1"]), "{:?}", held.names());
    let page = formers[0].device_page.as_ref().expect("the client's page");
    assert_eq!(DeviceHazards::mapped(&page.mapping, 0).get(0), Some((GpuId(1), SlotId(16))));
    let kept = group.core.kept_mut();
    // In another order now.
    assert_eq!(kept.known_memory(), [([1; 16], 11), ([2; 16], 12)]);
    let numbers = kept.number_gpus(&[gpu(2, 12), gpu(1, 11)]);
    assert_eq!(numbers, [(GpuId(1), vec![SLAB]), (GpuId(0), vec![])]);
    let line = kept.find(PoolId(0), &KEY).expect("the block");
    assert_eq!(kept.device(line), Some(place));
    assert_eq!(kept.device_slot_state(GpuId(1), &SLAB, 1), SlotState::Used(line));
}

#[test]
fn a_gpu_with_new_memory_has_no_copies_from_the_start_on() {
    let mut held = Held::default();
    used(&mut held);
    let (mut group, _) = held.open(GPU_BYTES);
    assert!(knows_gpus(&group));
    let kept = group.core.kept_mut();
    let line = kept.find(PoolId(0), &KEY).expect("the block");
    assert!(kept.device(line).is_some());
    assert_eq!(kept.number_gpus(&[gpu(1, 11), gpu(2, 22)]), [(GpuId(0), vec![]), (GpuId(1), vec![])]);
    assert_eq!((kept.device(line), kept.known_memory()), (None, vec![([1; 16], 11), ([2; 16], 22)]));
    drop(group);
    // One that is lost has none, and what it had is not known any more.
    let (mut group, _) = held.open(GPU_BYTES);
    let kept = group.core.kept_mut();
    kept.number_gpus(&[gpu(1, 11), gpu(2, 0)]);
    assert_eq!(kept.known_memory(), [([1; 16], 11)]);
}

#[test]
fn without_the_page_of_a_client_nothing_on_gpus_is_taken_over() {
    let mut held = Held::default();
    used(&mut held);
    held.forget("a.device.1").expect("it is there");
    let (mut group, formers) = held.open(GPU_BYTES);
    assert_eq!((&group.start, knows_gpus(&group)), (&Start::Warm, false));
    let kept = group.core.kept_mut();
    assert_eq!(kept.number_gpus(&[gpu(2, 12)]), [(GpuId(0), vec![])], "numbers begin anew");
    let line = kept.find(PoolId(0), &KEY).expect("the block's line");
    assert_eq!(kept.device(line), None);
    // It has one from now on, which the next daemon finds.
    assert!(formers[0].device_page.is_some());
    drop((group, formers));
    assert!(knows_gpus(&held.open(GPU_BYTES).0));
}

#[test]
fn gpus_come_and_go_with_the_configuration_and_the_rest_stays() {
    let mut held = Held::default();
    used(&mut held);
    // Other memory on each GPU.
    let (group, _) = held.open(GPU_BYTES / 2);
    assert_eq!((&group.start, knows_gpus(&group)), (&Start::Warm, false));
    drop(group);
    let (group, formers) = held.open(0);
    assert_eq!((&group.start, group.devices_fd.is_some()), (&Start::Warm, false));
    assert!(formers[0].device_page.is_none());
    assert!(held.names().iter().all(|name| !["devices", "hbm", "device.1"].contains(name)), "{:?}", held.names());
    drop((group, formers));
    let (group, formers) = held.open(GPU_BYTES);
    assert_eq!((&group.start, knows_gpus(&group)), (&Start::Warm, false));
    assert!(formers[0].device_page.is_some());
}

#[test]
fn memory_that_was_kept_is_of_the_node_that_it_was_taken_from() {
    let node = |number| Node { number, memory_bytes: 1 << 30, ..Node::default() };
    let topology = Topology { nodes: vec![node(0), node(1)], ..Topology::default() };
    let near = |devices: &[Option<u32>]| GroupOptions { spread: Spread::new(&topology, devices), ..options(0) };
    let mut held = Held::default();
    let (mut group, _) = held.open_with(near(&[Some(0)]));
    group.add_extent(2 << 20, &mut held).expect("memory");
    let first = group.extents[0].node;
    if first.is_none() {
        // A kernel without NUMA, or a container that may not say.
        return println!("skipped: the kernel places nothing");
    }
    assert_eq!(first, Some(0));
    drop(group);
    // Other devices now: what is new comes from there, if there is such a node.
    let (mut group, _) = held.open_with(near(&[Some(1)]));
    group.add_extent(2 << 20, &mut held).expect("memory");
    let nodes: Vec<_> = group.extents.iter().map(|extent| extent.node).collect();
    assert_eq!((&group.start, nodes[0]), (&Start::Warm, Some(0)));
    assert_ne!(nodes[1], Some(0));
    drop(group);
    let (group, _) = held.open(0);
    assert_eq!(group.extents[0].node, None, "where nothing is spread, nothing is near");
}

#[test]
fn a_client_is_counted_what_it_pins_where_slots_wait_and_nothing_else() {
    let mut held = Held::default();
    used(&mut held);
    let (mut group, formers) = held.open(GPU_BYTES);
    group.add_extent(2 << 20, &mut held).expect("memory");
    group.core.adopt_slab(SLAB);
    let gpus = group.core.kept_mut().number_gpus(&[gpu(1, 11), gpu(2, 12)]);
    for (id, slabs) in gpus {
        assert!(group.core.gpu_added(Time(0), id, GPU_BYTES));
        slabs.into_iter().for_each(|slab| group.core.adopt_gpu_slab(id, slab));
    }
    let (client, page) = (ClientId(1), formers[0].device_page.as_ref().expect("the client's page"));
    let control = Mapping::anonymous(hazard::BYTES as u64).expect("memory");
    let dram = Hazards::mapped(&control, 0);
    dram.set(0, SlotId(0));
    dram.set(1, SlotId(32));
    // Where no slot begins, and beyond all memory.
    dram.set(2, SlotId(17));
    dram.set(3, SlotId(1 << 30));
    let named = DeviceHazards::mapped(&page.mapping, 0);
    named.set(1, GpuId(0), SlotId(16));
    named.set(2, GpuId(9), SlotId(16));
    group.core.kept_mut().add_hazards(client, dram, Some(page));
    let pinned = |dram, gpus: &[u8]| {
        let waiting = Waiting { dram, gpus: gpus.iter().map(|&gpu| GpuId(gpu)).collect() };
        group.pinned_bytes(client, &waiting) / UNIT_BYTES
    };
    assert_eq!((pinned(false, &[]), pinned(true, &[])), (0, 32));
    // The one that `used` names; the first GPU has no slots.
    assert_eq!((pinned(false, &[1]), pinned(false, &[0]), pinned(true, &[0, 1, 9])), (16, 0, 48));
    assert_eq!(group.pinned_bytes(ClientId(2), &Waiting { dram: true, gpus: vec![GpuId(1)] }), 0);
    assert_eq!(group.waiting(), Waiting::default());
}
