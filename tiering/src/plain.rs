//! Kept memory as plain arrays, for replay and for tests: nothing is shared, hazards are a set.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
};

use hashbrown::hash_table::{Entry, HashTable};
use lapis_config::{GpuId, Key, LineId, PoolId, SlotId};

use crate::{
    hash::Mix,
    kept::{DevicePlace, Kept, KeyChange, Live, NoLine, Place, Slab, SlotState, Tier},
};

/// How many occupied lines a full table names, as its windows would.
const CANDIDATES: u32 = 32;

pub struct PlainKept {
    lines: Vec<Option<Live>>,
    generations: Vec<u64>,
    entries: Vec<lapis_config::Entry>,
    free: Vec<LineId>,
    /// Numbers alone: keys are compared where the lines are, so that a key that is not there costs no cache miss.
    index: HashTable<LineId>,
    slots: Vec<SlotState>,
    slabs: BTreeMap<u32, Slab>,
    hazards: BTreeSet<SlotId>,
    /// Of each line that has had one: where a GPU has a copy, and the line's generation then.
    devices: Vec<Option<(DevicePlace, u64)>>,
    gpu_slots: BTreeMap<GpuId, Vec<SlotState>>,
    gpu_slabs: BTreeMap<(GpuId, u32), Slab>,
    gpu_hazards: BTreeSet<(GpuId, SlotId)>,
    learned: Option<Vec<u8>>,
    /// Since they were last taken, if somebody takes them.
    changes: Option<Vec<KeyChange>>,
}

impl PlainKept {
    /// Room for `lines` blocks. Any line serves any key: the table is full only when every line is taken.
    pub fn new(lines: u32) -> Self {
        Self {
            lines: vec![None; lines as usize],
            generations: vec![0; lines as usize],
            entries: vec![lapis_config::Entry::default(); lines as usize],
            free: (0..lines).rev().map(LineId).collect(),
            index: HashTable::with_capacity(lines as usize),
            slots: Vec::new(),
            slabs: BTreeMap::new(),
            hazards: BTreeSet::new(),
            devices: Vec::new(),
            gpu_slots: BTreeMap::new(),
            gpu_slabs: BTreeMap::new(),
            gpu_hazards: BTreeSet::new(),
            learned: None,
            changes: None,
        }
    }

    /// As a reader does: from now on the slot is named, or not.
    pub fn name(&mut self, slot: SlotId, named: bool) {
        if named {
            self.hazards.insert(slot);
        } else {
            self.hazards.remove(&slot);
        }
    }

    pub fn is_named(&self, slot: SlotId) -> bool {
        self.hazards.contains(&slot)
    }

    /// The same of a slot on a GPU.
    pub fn name_on_gpu(&mut self, gpu: GpuId, slot: SlotId, named: bool) {
        if named {
            self.gpu_hazards.insert((gpu, slot));
        } else {
            self.gpu_hazards.remove(&(gpu, slot));
        }
    }

    /// The recorded slabs of GPUs, in order of place.
    pub fn gpu_slabs(&self) -> impl Iterator<Item = (GpuId, &Slab)> {
        self.gpu_slabs.iter().map(|(&(gpu, _), slab)| (gpu, slab))
    }

    /// The recorded slabs, in order of place.
    pub fn slabs(&self) -> impl Iterator<Item = &Slab> {
        self.slabs.values()
    }

    /// The keys that came and went since the last call, in order. The first call answers nothing: from then on they are
    /// noted.
    pub fn take_changes(&mut self) -> Vec<KeyChange> {
        self.changes.replace(Vec::new()).unwrap_or_default()
    }

    fn changed(&mut self, pool: PoolId, key: Key, came: bool) {
        if let Some(changes) = &mut self.changes {
            changes.push(KeyChange { pool, key, came });
        }
    }

    /// What a daemon's death and a new start leave: all live lines unverified.
    pub fn restart(&mut self) {
        for live in self.lines.iter_mut().flatten().filter(|live| live.place.tier == Tier::Dram) {
            live.place.tier = Tier::DramUnverified;
        }
    }
}

impl Kept for PlainKept {
    fn lines(&self) -> u32 {
        self.lines.len() as u32
    }

    #[inline]
    fn find(&self, pool: PoolId, key: &Key) -> Option<LineId> {
        self.index.find(hash(pool, key), |&line| is_of(&self.lines, line, pool, key)).copied()
    }

    #[inline]
    fn live(&self, line: LineId) -> Option<Live> {
        *self.lines.get(line.0 as usize)?
    }

    fn publish(&mut self, pool: PoolId, key: &Key, place: Place) -> Result<LineId, NoLine> {
        let Some(line) = self.free.pop() else {
            let from = (key.0[0] ^ key.0[3]) as u32 % self.lines();
            let candidates = (0..CANDIDATES.min(self.lines())).map(|i| LineId((from + i) % self.lines())).collect();
            return Err(NoLine { candidates });
        };
        let generation = &mut self.generations[line.0 as usize];
        *generation += 1;
        let lines = &self.lines;
        let again = |&other: &LineId| {
            let live = lines[other.0 as usize].as_ref().expect("the index names live lines");
            hash(live.pool, &live.key)
        };
        match self.index.entry(hash(pool, key), |&other| is_of(lines, other, pool, key), again) {
            Entry::Occupied(_) => panic!("a key has one line"),
            Entry::Vacant(place) => place.insert(line),
        };
        self.lines[line.0 as usize] = Some(Live { pool, key: *key, place, generation: *generation });
        self.changed(pool, *key, true);
        Ok(line)
    }

    fn rebind(&mut self, line: LineId, place: Place) {
        self.generations[line.0 as usize] += 1;
        let generation = self.generations[line.0 as usize];
        let live = self.lines[line.0 as usize].as_mut().expect("a live line");
        (live.place, live.generation) = (place, generation);
    }

    fn verified(&mut self, line: LineId) {
        self.lines[line.0 as usize].as_mut().expect("a live line").place.tier = Tier::Dram;
    }

    fn unpublish(&mut self, line: LineId) {
        let live = self.lines[line.0 as usize].take().expect("a live line");
        self.generations[line.0 as usize] += 1;
        let indexed = self.index.find_entry(hash(live.pool, &live.key), |&other| other == line);
        indexed.expect("a live line is indexed").remove();
        self.free.push(line);
        self.changed(live.pool, live.key, false);
    }

    #[inline]
    fn entry(&self, line: LineId) -> &lapis_config::Entry {
        &self.entries[line.0 as usize]
    }

    #[inline]
    fn entry_mut(&mut self, line: LineId) -> &mut lapis_config::Entry {
        &mut self.entries[line.0 as usize]
    }

    #[inline]
    fn slot_state(&self, slab: &Slab, index: u32) -> SlotState {
        self.slots[(slab.base.0 + index) as usize]
    }

    #[inline]
    fn set_slot_state(&mut self, slab: &Slab, index: u32, state: SlotState) {
        self.slots[(slab.base.0 + index) as usize] = state;
    }

    fn set_slab(&mut self, slab: &Slab) {
        let end = (slab.base.0 + slab.slots()) as usize;
        if self.slots.len() < end {
            self.slots.resize(end, SlotState::Free);
        }
        self.slots[slab.base.0 as usize..end].fill(SlotState::Free);
        let former = self.slabs.insert(slab.base.0, *slab);
        assert!(former.is_none(), "a slab is recorded once");
    }

    fn forget_slab(&mut self, slab: &Slab) {
        let former = self.slabs.remove(&slab.base.0);
        assert_eq!(former, Some(*slab), "only a recorded slab is forgotten");
    }

    fn keeps_learned(&self) -> bool {
        true
    }

    fn keep_learned(&mut self, bytes: &[u8]) {
        self.learned = Some(bytes.to_vec());
    }

    fn learned(&self) -> Option<Vec<u8>> {
        self.learned.clone()
    }

    fn named(&mut self, slots: &[SlotId], named: &mut Vec<bool>) {
        named.clear();
        named.extend(slots.iter().map(|slot| self.hazards.contains(slot)));
    }

    fn keeps_devices(&self) -> bool {
        true
    }

    fn device(&self, line: LineId) -> Option<DevicePlace> {
        let &(place, generation) = self.devices.get(line.0 as usize)?.as_ref()?;
        self.live(line).filter(|live| live.generation == generation).map(|_| place)
    }

    fn set_device(&mut self, line: LineId, place: Option<DevicePlace>) {
        if self.devices.is_empty() {
            self.devices.resize(self.lines.len(), None);
        }
        let generation = self.generations[line.0 as usize];
        self.devices[line.0 as usize] = place.map(|place| (place, generation));
    }

    fn device_slot_state(&self, gpu: GpuId, slab: &Slab, index: u32) -> SlotState {
        self.gpu_slots[&gpu][(slab.base.0 + index) as usize]
    }

    fn set_device_slot_state(&mut self, gpu: GpuId, slab: &Slab, index: u32, state: SlotState) {
        let slots = self.gpu_slots.get_mut(&gpu).expect("a GPU with slabs");
        slots[(slab.base.0 + index) as usize] = state;
    }

    fn set_device_slab(&mut self, gpu: GpuId, slab: &Slab) {
        let (slots, end) = (self.gpu_slots.entry(gpu).or_default(), (slab.base.0 + slab.slots()) as usize);
        if slots.len() < end {
            slots.resize(end, SlotState::Free);
        }
        slots[slab.base.0 as usize..end].fill(SlotState::Free);
        let former = self.gpu_slabs.insert((gpu, slab.base.0), *slab);
        assert!(former.is_none(), "a slab is recorded once");
    }

    fn forget_device_slab(&mut self, gpu: GpuId, slab: &Slab) {
        let former = self.gpu_slabs.remove(&(gpu, slab.base.0));
        assert_eq!(former, Some(*slab), "only a recorded slab is forgotten");
    }

    fn device_named(&mut self, gpu: GpuId, slots: &[SlotId], named: &mut Vec<bool>) {
        named.clear();
        named.extend(slots.iter().map(|&slot| self.gpu_hazards.contains(&(gpu, slot))));
    }
}

#[inline]
fn hash(pool: PoolId, key: &Key) -> u64 {
    let mut mix = Mix::default();
    (pool, key).hash(&mut mix);
    mix.finish()
}

#[inline]
fn is_of(lines: &[Option<Live>], line: LineId, pool: PoolId, key: &Key) -> bool {
    lines[line.0 as usize].as_ref().is_some_and(|live| live.key == *key && live.pool == pool)
}
