//! GPUs of the world: what lies in their slots, clients that read and write there, copies that end in any order.

use std::collections::{BTreeMap, BTreeSet};

use lapis_config::{ClientId, GpuId, Key, OpId, PoolId, SlotId, UNIT_BYTES};
use lapis_tiering::{
    face::{Action, Caller, CommitItem, Outcome, Parent, Put, Reserved, Spot},
    kept::{Kept, Tier},
};

use super::{Io, POOLS, World, key};

/// Units of each GPU's slice: few blocks.
pub const UNITS: [u64; 2] = [96, 160];

#[derive(Default)]
pub struct Gpus {
    pub there: BTreeSet<GpuId>,
    /// What lies in each slot.
    contents: BTreeMap<(GpuId, SlotId), u64>,
    /// Slots that clients may write into, and for what.
    owned: BTreeMap<(GpuId, SlotId), (ClientId, PoolId, Key)>,
    named: BTreeSet<(GpuId, SlotId)>,
    calls: BTreeMap<Caller, (GpuId, PoolId)>,
    /// Copies that can only fail: their GPU was lost.
    doomed: BTreeSet<OpId>,
    /// Put without a sum.
    unsummed: BTreeSet<(PoolId, Key)>,
}

impl Gpus {
    pub fn is_doomed(&self, op: OpId) -> bool {
        self.doomed.contains(&op)
    }

    pub fn refused(&mut self, to: Caller) {
        self.calls.remove(&to);
    }
}

impl World {
    pub fn add_gpu(&mut self, id: u8) {
        let (gpu, now) = (GpuId(id), self.now);
        let added = self.core().gpu_added(now, gpu, UNITS[usize::from(id)] * UNIT_BYTES);
        assert_eq!(added, self.gpus.there.insert(gpu), "it is added once");
    }

    pub fn has_gpu(&self, id: u8) -> bool {
        self.gpus.there.contains(&GpuId(id))
    }

    pub fn lose_gpu(&mut self, id: u8) {
        let (gpu, now) = (GpuId(id), self.now);
        if self.gpus.there.remove(&gpu) {
            self.forget_gpu(gpu).into_iter().for_each(|slot| self.core().kept_mut().name_on_gpu(gpu, slot, false));
            self.core().gpu_lost(now, gpu);
        }
    }

    /// What was there is gone: copies fail, slots are nobody's, and reads have failed. What comes back is other memory.
    /// Returns the slots that readers let go.
    fn forget_gpu(&mut self, gpu: GpuId) -> Vec<SlotId> {
        let touches = |io: &Io| {
            let of = |spot: &Spot| matches!(spot, Spot::Hbm(of, _) if *of == gpu);
            matches!(io, Io::Copy { from, to, .. } if of(from) || of(to))
        };
        self.gpus.doomed.extend(self.ops.iter().filter(|(_, io)| touches(io)).map(|(op, _)| *op));
        self.gpus.contents.retain(|(of, _), _| *of != gpu);
        self.gpus.owned.retain(|(of, _), _| *of != gpu);
        let named = self.gpus.named.range((gpu, SlotId(0))..=(gpu, SlotId(u32::MAX)));
        let slots: Vec<SlotId> = named.map(|&(_, slot)| slot).collect();
        self.gpus.named.retain(|(of, _)| *of != gpu);
        slots
    }

    /// A client reads a chain's blocks down to a depth into a GPU.
    pub fn read_into(&mut self, id: u8, pool: u16, chain: u32, depth: u32) {
        let now = self.now;
        let Some(line) = self.core().kept().find(PoolId(pool), &key(chain, depth)) else { return };
        let bind = self.core().kept().live(line).unwrap().generation << 4 | 2;
        self.core().read_into(now, GpuId(id), line, bind as u32, depth + 1);
    }

    pub fn want_on_gpu(&mut self, id: u8, pool: u16, chain: u32, depth: u32) {
        let now = self.now;
        let kept = self.core().kept();
        let lines: Vec<_> = (0..depth).filter_map(|d| kept.find(PoolId(pool), &key(chain, d))).collect();
        self.core().hbm_wanted(now, GpuId(id), &lines);
    }

    pub fn reserve_on_gpu(&mut self, client: ClientId, id: u8, pool: u16, keys: Vec<Key>, parent: Parent) {
        let to = self.caller(client, keys.clone());
        self.gpus.calls.insert(to, (GpuId(id), PoolId(pool)));
        let now = self.now;
        self.core().reserve_on_gpu(now, to, GpuId(id), PoolId(pool), &keys, parent);
        self.perform();
    }

    /// True if it was an answer of a GPU's.
    pub(super) fn reserved_on_gpu(&mut self, to: Caller, keys: &[Key], results: &[Reserved]) -> bool {
        let Some((gpu, pool)) = self.gpus.calls.remove(&to) else { return false };
        assert_eq!(results.len(), keys.len());
        for (&key, result) in keys.iter().zip(results) {
            let Reserved::Slot(slot) = *result else { continue };
            assert!(!self.gpus.named.contains(&(gpu, slot)), "slot {} is granted while it is named", slot.0);
            let former = self.gpus.owned.insert((gpu, slot), (to.client, pool, key));
            assert_eq!(former, None, "slot {} is granted twice", slot.0);
        }
        true
    }

    /// Commits up to `count` slots that the client owns on a GPU; every other with a sum.
    pub fn commit_on_gpu(&mut self, client: ClientId, id: u8, pool: u16, count: usize) {
        let (gpu, pool) = (GpuId(id), PoolId(pool));
        let own = self.gpus.owned.iter().filter(|((of, _), owned)| *of == gpu && (owned.0, owned.1) == (client, pool));
        let mut own: Vec<(Key, SlotId)> = own.map(|((_, slot), owned)| (owned.2, *slot)).take(count).collect();
        own.sort_unstable();
        let (mut items, mut payloads) = (Vec::new(), Vec::new());
        for (at, &(key, slot)) in own.iter().enumerate() {
            let above = key.0[1].checked_sub(1).map(|depth| Key([key.0[0], depth, 7, 0]));
            let parent = match above {
                None => Parent::None,
                Some(above) if at > 0 && own[at - 1].0 == above => Parent::Previous,
                Some(above) => Parent::Key(above),
            };
            let payload = self.token_next + at as u64;
            let sum = if payload.is_multiple_of(2) { payload } else { 0 };
            let bytes = POOLS[usize::from(pool.0)].1 * UNIT_BYTES as u32;
            payloads.push(payload);
            items.push(CommitItem { slot, key, parent, bytes, sum });
        }
        self.token_next += items.len() as u64;
        for (item, &payload) in items.iter().zip(&payloads) {
            self.gpus.contents.insert((gpu, item.slot), payload);
        }
        let (now, mut puts) = (self.now, Vec::new());
        self.core().commit_on_gpu(now, client, gpu, pool, &items, &mut puts);
        for ((item, put), payload) in items.iter().zip(puts).zip(payloads) {
            assert_ne!(put, Put::Refused(lapis_config::Refusal::NotGranted), "the client owns the slot");
            self.gpus.owned.remove(&(gpu, item.slot));
            if put == Put::Stored {
                let stored = (pool, item.key);
                self.stored.insert(stored, (SlotId(0), item.bytes, payload));
                self.ever.insert((stored, payload));
                if item.sum == 0 {
                    self.gpus.unsummed.insert(stored)
                } else {
                    self.gpus.unsummed.remove(&stored)
                };
                if item.parent != Parent::None {
                    self.linked.insert(stored);
                }
            }
        }
    }

    pub fn abort_on_gpu(&mut self, client: ClientId, id: u8, count: usize) {
        let own = self.gpus.owned.iter().filter(|((gpu, _), owned)| gpu.0 == id && owned.0 == client);
        let slots: Vec<SlotId> = own.map(|((_, slot), _)| *slot).take(count).collect();
        self.gpus.owned.retain(|(gpu, slot), _| gpu.0 != id || !slots.contains(slot));
        let now = self.now;
        self.core().abort_on_gpu(now, client, GpuId(id), &slots);
    }

    /// The client comes back and goes on with every second of its slots on GPUs.
    pub(super) fn resume_on_gpus(&mut self, client: ClientId) {
        let own = self.gpus.owned.iter().filter(|(_, owned)| owned.0 == client);
        let own: Vec<(GpuId, SlotId)> = own.map(|(&at, _)| at).collect();
        let writing: Vec<(GpuId, SlotId)> = own.iter().copied().step_by(2).collect();
        self.gpus.owned.retain(|at, owned| owned.0 != client || writing.contains(at));
        self.core().client_resumed_on_gpus(client, &writing);
    }

    pub(super) fn gone_from_gpus(&mut self, client: ClientId) {
        self.gpus.calls.retain(|caller, _| caller.client != client);
        self.gpus.owned.retain(|_, owned| owned.0 != client);
    }

    /// A reader names the block's copy on a GPU.
    pub fn name_on_gpu(&mut self, pool: u16, chain: u32, depth: u32) {
        let Some(line) = self.core().kept().find(PoolId(pool), &key(chain, depth)) else { return };
        let Some(place) = self.core().kept().device(line) else { return };
        self.gpus.named.insert((place.gpu, place.slot));
        self.core().kept_mut().name_on_gpu(place.gpu, place.slot, true);
    }

    pub fn unname_on_gpu(&mut self, at: usize) {
        if let Some(&(gpu, slot)) = self.gpus.named.iter().nth(at % self.gpus.named.len().max(1)) {
            self.gpus.named.remove(&(gpu, slot));
            self.core().kept_mut().name_on_gpu(gpu, slot, false);
        }
    }

    // ---- The engine's part ----

    /// A copy or a sum that the core wants.
    pub(super) fn perform_on_gpus(&mut self, action: Action) {
        match action {
            Action::Copy { op, from, to, bytes } => {
                assert!(bytes > 0);
                let written = self.ops.iter().any(|(_, io)| matches!(io, Io::Copy { to: of, .. } if *of == to));
                assert!(!written || !self.gpus.doomed.is_empty(), "{to:?} is written twice at once");
                match to {
                    Spot::Dram(slot) => assert!(!self.named.contains(&slot), "slot {} is named", slot.0),
                    Spot::Hbm(gpu, slot) => {
                        assert!(!self.gpus.named.contains(&(gpu, slot)), "slot {} of a GPU is named", slot.0);
                        assert!(!self.gpus.owned.contains_key(&(gpu, slot)), "slot {} of a GPU is granted", slot.0);
                    }
                }
                let sum = self.payload_at(from).expect("something lies where a copy is from");
                self.ops.push((op, Io::Copy { from, to, sum }));
            }
            Action::Sum { op, slot, .. } => self.ops.push((op, Io::Sum { slot })),
            other => panic!("nobody asked for {other:?}"),
        }
    }

    fn payload_at(&self, spot: Spot) -> Option<u64> {
        match spot {
            Spot::Dram(slot) => self.contents.get(&slot).copied(),
            Spot::Hbm(gpu, slot) => self.gpus.contents.get(&(gpu, slot)).copied(),
        }
    }

    /// What it did to memory, when it has ended well.
    pub(super) fn landed_on_gpus(&mut self, io: &Io) {
        let Io::Copy { from, to, sum } = *io else { return };
        assert_eq!(self.payload_at(from), Some(sum), "{from:?} changed while it was copied");
        match to {
            Spot::Dram(slot) => drop(self.contents.insert(slot, sum)),
            Spot::Hbm(gpu, slot) => drop(self.gpus.contents.insert((gpu, slot), sum)),
        }
    }

    /// Ends a copy or a sum. True if it was one.
    pub(super) fn complete_on_gpus(&mut self, op: OpId, io: &Io, outcome: Outcome) -> bool {
        let now = self.now;
        match *io {
            Io::Copy { .. } => {
                let doomed = self.gpus.doomed.remove(&op);
                let outcome = if doomed { Outcome::Failed } else { outcome };
                if outcome == Outcome::Ok {
                    self.landed_on_gpus(io);
                }
                self.core().completed(now, op, outcome);
            }
            Io::Sum { slot } => {
                let sum = (outcome == Outcome::Ok).then(|| self.contents[&slot]);
                self.core().summed(now, op, sum);
            }
            _ => return false,
        }
        true
    }

    /// GPUs whose memory outlives the daemon are told again, others are not.
    pub(super) fn adopt_gpus(
        &mut self,
        core: &mut lapis_tiering::Core<lapis_tiering::PlainKept, lapis_tiering::Chosen>,
    ) {
        self.gpus.calls.clear();
        self.gpus.doomed.clear();
        let slabs: Vec<_> = core.kept().gpu_slabs().map(|(gpu, slab)| (gpu, *slab)).collect();
        for &gpu in &self.gpus.there {
            assert!(core.gpu_added(self.now, gpu, UNITS[usize::from(gpu.0)] * UNIT_BYTES));
        }
        slabs.into_iter().for_each(|(gpu, slab)| core.adopt_gpu_slab(gpu, slab));
    }

    /// The daemon's end is that of some GPUs' memory. True if of any.
    pub(super) fn lose_gpus_with_daemon(&mut self, kept: &mut lapis_tiering::PlainKept) -> bool {
        let (gpu, one_in) = (GpuId(1), 3);
        let lost = self.token_next.is_multiple_of(one_in) && self.gpus.there.remove(&gpu);
        if lost {
            self.forget_gpu(gpu).into_iter().for_each(|slot| kept.name_on_gpu(gpu, slot, false));
        }
        lost
    }

    // ---- What must hold ----

    /// Every copy that readers find is the block's own.
    pub(super) fn check_gpus(&self) {
        let core = self.core.as_ref().unwrap();
        for (&(pool, key), stored) in &self.stored {
            let Some(line) = core.kept().find(pool, &key) else { continue };
            let Some(place) = core.kept().device(line) else { continue };
            let at = (place.gpu, place.slot);
            assert!(self.gpus.there.contains(&place.gpu), "{key:?} is on a GPU that is gone");
            assert_eq!(self.gpus.contents.get(&at), Some(&stored.2), "{key:?} is not what lies on its GPU");
            assert!(!self.gpus.owned.contains_key(&at), "slot {} of a GPU is published and written", place.slot.0);
        }
    }

    /// Whether the sum of a line is as it should be.
    pub(super) fn is_sum_right(&self, key: (PoolId, Key), tier: Tier, sum: u64, stored: u64) -> bool {
        sum == stored || sum == 0 && tier != Tier::Dram && self.gpus.unsummed.contains(&key)
    }

    /// Everybody let go and left: nothing on GPUs is granted, named or busy.
    pub(super) fn end_gpus(&mut self, purged: bool) {
        while !self.gpus.named.is_empty() {
            self.unname_on_gpu(0);
        }
        self.wait(1_000_000);
        let gpus: Vec<GpuId> = self.gpus.there.iter().copied().collect();
        for gpu in gpus {
            let counts = self.core().gpu_counts(gpu).expect("it is there");
            assert_eq!((counts.slots_granted, counts.slots_busy), (0, 0), "{counts:?}");
            assert_eq!(counts.slots_aside, self.io_in_on(gpu), "{counts:?}");
            assert!(!purged || counts.blocks == 0, "{counts:?}");
        }
    }

    /// Slots that a dead daemon's copies may write.
    fn io_in_on(&mut self, gpu: GpuId) -> u64 {
        let kept = self.core().kept();
        let slabs = kept.gpu_slabs().filter(|(of, _)| *of == gpu);
        let states =
            slabs.flat_map(|(_, slab)| (0..slab.slots()).map(|index| kept.device_slot_state(gpu, slab, index)));
        states.filter(|&state| state == lapis_tiering::kept::SlotState::IoIn).count() as u64
    }
}
