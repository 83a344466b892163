//! The tier of GPUs: which blocks have a further copy in the memory of one, and its slots.
//!
//! Invariant: a readable copy is in the device table with its line's present generation, and in one GPU's order.
//! Invariant: a line that is not in DRAM and has a readable copy says `Hbm`.
//! Invariant: a slot that is copied from or to is free again only after the operation has ended, or with its GPU.
//! Invariant: a copy comes from bytes that were verified: whoever reads it on the GPU checks no sum.

mod adopt;
mod audit;
mod back;
mod lost;
mod promote;
mod put;
mod room;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use lapis_config::{GpuId, LineId, PoolId, SlotId, Time, UNIT_BYTES};

use super::{Core, Op};
use crate::{
    copies::Copy,
    hash::Map,
    hbm::{GpuStep, OnGpu},
    kept::{DevicePlace, Kept, Live, Place, Slab, SlotState, Tier},
    memory::Memory,
    policy::{Policy, Shelf, tenths},
};

/// How soon slots that readers named are looked at again, us.
const LOOK_US: u64 = 10_000;

/// A block's copy on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GpuCopy {
    pub gpu: GpuId,
    pub slot: SlotId,
    pub state: OnGpu,
    /// No other copy has or had it; grows.
    pub id: u64,
    /// A client put it there, and it was not in DRAM yet.
    pub is_unsaved: bool,
    /// Its place in `Hbm::unsaved`, 0 for none.
    turn: u64,
    /// What lies behind a block's payload in its slot came along. A client that puts there writes the payload alone.
    has_tail: bool,
    /// Of the block when it took its place in the order.
    last_use: u32,
}

impl GpuCopy {
    fn new(gpu: GpuId, slot: SlotId, id: u64) -> Self {
        Self { gpu, slot, state: OnGpu::Absent, id, is_unsaved: false, turn: 0, has_tail: false, last_use: 0 }
    }
}

/// One GPU's slice.
#[derive(Debug, Default)]
pub(super) struct Gpu {
    /// A GPU that comes back has another one.
    life: u32,
    /// Of all of it.
    units: u32,
    /// Its NUMA node, if that is known.
    node: Option<u32>,
    pub memory: Memory,
    /// Per shelf, readable copies by the last use when they were last looked at, and among equals the youngest first: a
    /// chain comes with its root first.
    order: Vec<BTreeSet<(u32, Reverse<u64>, LineId)>>,
    /// Unpublished slots of the batch under way.
    limbo: Vec<SlotId>,
    /// Unpublished slots that readers were still naming.
    aside: VecDeque<SlotId>,
    /// Copies under way that read a slot, and of these slots the ones that no block lies in any more.
    reads: BTreeMap<SlotId, u32>,
    left: BTreeSet<SlotId>,
    /// Blocks that are to be copied there, the first one first.
    wanted: VecDeque<promote::Wanted>,
    /// Bytes being copied there, and pages from there. Of each GPU by itself: one that hangs holds no other up.
    out_bytes: u64,
    pub in_pages: u64,
    /// When a shelf may look for another's slab again: a look takes long, and most find nothing.
    slab_looks: BTreeMap<Shelf, Time>,
    counts: GpuCounts,
}

/// Of one GPU, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuCounts {
    /// Blocks that readers find there, and the bytes of their slots.
    pub blocks: u64,
    pub bytes_used: u64,
    pub slots_free: u64,
    pub slots_granted: u64,
    /// Copied from or to, and of no block that readers find there.
    pub slots_busy: u64,
    /// Reuse waits for a reader, or a dead daemon's copy may write it.
    pub slots_aside: u64,
}

#[derive(Default)]
pub(super) struct Hbm {
    pub gpus: BTreeMap<GpuId, Gpu>,
    pub copies: Map<LineId, GpuCopy>,
    lives: u32,
    ids: u64,
    /// A byte a line: when it was read into a GPU last, as a stamp that recurs; 0 for never.
    read: Vec<u8>,
    /// Lines that some GPU's `wanted` has.
    queued: Map<LineId, ()>,
    /// Blocks that clients put on a GPU and that are to be in DRAM too, in turn.
    unsaved: BTreeMap<u64, LineId>,
    /// There was no room for the first of them, and nothing came free since.
    pub stalled: bool,
    /// One of them did not come: none is tried before.
    save_from: Option<Time>,
    /// Copies under way that read a slot in DRAM.
    sources: BTreeMap<SlotId, u32>,
    aside_look: Option<Time>,
}

impl Hbm {
    /// The copy that readers find.
    fn readable(&self, line: LineId) -> Option<&GpuCopy> {
        self.copies.get(&line).filter(|copy| copy.state.is_readable())
    }

    fn gpu(&mut self, id: GpuId) -> &mut Gpu {
        self.gpus.get_mut(&id).expect("a GPU that is there")
    }

    /// The GPU, if it is the one that was meant: it may have been lost and come back.
    fn same_gpu(&mut self, id: GpuId, life: u32) -> Option<&mut Gpu> {
        self.gpus.get_mut(&id).filter(|gpu| gpu.life == life)
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// Whether a copy under way reads this slot in DRAM.
    pub fn is_source(&self, slot: SlotId) -> bool {
        self.sources.contains_key(&slot)
    }

    pub fn aside_look(&self) -> Option<Time> {
        self.aside_look
    }

    pub fn save_from(&self) -> Option<Time> {
        self.save_from
    }

    /// Time passed: the pause is over, or goes on.
    pub fn end_pause(&mut self, now: Time) {
        self.save_from = self.save_from.filter(|&from| now < from);
    }
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// A GPU's slice: usable from now on, empty. False if it cannot be used: the kept memory has no device table, or the
    /// GPU is there already.
    pub fn gpu_added(&mut self, now: Time, id: GpuId, bytes: u64) -> bool {
        self.gpu_added_at(now, id, bytes, None)
    }

    /// The same at a NUMA node, if that is known: what comes back from it goes rather to memory of that node.
    pub fn gpu_added_at(&mut self, now: Time, id: GpuId, bytes: u64, node: Option<u32>) -> bool {
        self.clock(now);
        if !self.kept.keeps_devices() || self.hbm.gpus.contains_key(&id) {
            return false;
        }
        self.hbm.lives += 1;
        let mut gpu = Gpu { life: self.hbm.lives, node, ..Gpu::default() };
        let units = u32::try_from(bytes / UNIT_BYTES).expect("a GPU has less than 16 TiB");
        gpu.memory.buddy.extend(units);
        if self.adopting.is_none() {
            gpu.memory.buddy.populated(0, units);
        }
        gpu.units = units;
        self.hbm.gpus.insert(id, gpu);
        self.hbm.read.resize(self.kept.lines() as usize, 0);
        true
    }

    /// `None` if the GPU is not there.
    pub fn gpu_counts(&self, id: GpuId) -> Option<GpuCounts> {
        self.hbm.gpus.get(&id).map(|gpu| gpu.counts)
    }

    /// GPUs on which the reuse of slots waits for readers.
    pub fn gpus_named(&self) -> impl Iterator<Item = GpuId> {
        self.hbm.gpus.iter().filter(|(_, gpu)| !gpu.aside.is_empty()).map(|(&id, _)| id)
    }

    /// 4 KiB units of the slot that starts here on a GPU; `None` if none does.
    pub fn gpu_slot_units(&self, id: GpuId, slot: SlotId) -> Option<u32> {
        Some(self.hbm.gpus.get(&id)?.memory.locate(slot)?.0.slab.stride)
    }

    /// The GPU in whose memory readers find the block.
    pub(super) fn gpu_of(&self, line: LineId) -> Option<GpuId> {
        self.hbm.readable(line).map(|copy| copy.gpu)
    }

    pub(super) fn is_on_gpu(&self, line: LineId) -> bool {
        self.gpu_of(line).is_some()
    }

    /// Whether a GPU's copy is the only one.
    pub(super) fn is_only_on_gpu(&self, line: LineId) -> bool {
        let entry = self.kept.entry(line);
        !Copy::of_dram(entry).is_readable() && entry.ssd == 0 && self.is_on_gpu(line)
    }

    /// The NUMA node of the GPU that readers find the block on.
    pub(super) fn node_of_copy(&self, line: LineId) -> Option<u32> {
        self.hbm.gpus.get(&self.hbm.readable(line)?.gpu)?.node
    }

    /// The tier of a line that is not in DRAM.
    pub(super) fn tier_outside_dram(&self, line: LineId) -> Tier {
        if self.is_on_gpu(line) { Tier::Hbm } else { Tier::Elsewhere }
    }

    /// Same key, other place. Its generation changes: what goes by that follows.
    pub(super) fn rebind(&mut self, line: LineId, place: Place) {
        self.kept.rebind(line, place);
        self.ssd.queue.rebound(line, self.kept.live(line).expect("a live line").generation);
        if !self.hbm.gpus.is_empty() {
            self.show_on_gpu(line);
            self.renew_links(line);
        }
    }

    /// The device table says where the block's copy is, if readers may find it.
    fn show_on_gpu(&mut self, line: LineId) {
        let Some(&GpuCopy { gpu, slot, .. }) = self.hbm.readable(line) else { return };
        let (found, _) = self.hbm.gpus[&gpu].memory.locate(slot).expect("a copy lies in a slot");
        let units = found.slab.stride;
        self.kept.set_device(line, Some(DevicePlace { gpu, slot, units }));
    }

    /// A copy that readers find from now on: it lies in a slot that was taken.
    fn copy_is_there(&mut self, line: LineId, gpu: GpuId, slot: SlotId, step: GpuStep) {
        let id = self.hbm.next_id();
        // A clock that a former life was ahead of must not keep a copy for ever.
        let last_use = self.kept.entry(line).last_use.min(tenths(self.now));
        let fresh = GpuCopy::new(gpu, slot, id);
        let copy = self.hbm.copies.entry(line).or_insert(fresh);
        copy.state.step(step);
        copy.last_use = last_use;
        let id = copy.id;
        let own = self.hbm.gpu(gpu);
        let (found, index) = own.memory.locate(slot).expect("a slot of ours");
        let (slab, shelf) = (found.slab, found.shelf);
        own.memory.count_used(slot, 1);
        own.counts.blocks += 1;
        own.counts.bytes_used += u64::from(slab.stride) * UNIT_BYTES;
        own.order[shelf.0 as usize].insert((last_use, Reverse(id), line));
        self.kept.set_device_slot_state(gpu, &slab, index, SlotState::Used(line));
        self.show_on_gpu(line);
    }

    /// The copy on a GPU ends, if there is one. Its slot is in limbo until `settle_gpus`, unless a copy is under way there.
    /// What the line says is the caller's next step.
    pub(super) fn leave_gpu(&mut self, line: LineId) {
        let Some(mut copy) = self.hbm.copies.remove(&line) else { return };
        self.hbm.unsaved.remove(&copy.turn);
        if copy.state == OnGpu::Filling {
            copy.state.step(GpuStep::FillFailed);
            self.orphan_fill(line);
            return;
        }
        copy.state.step(GpuStep::Drop);
        self.kept.set_device(line, None);
        let Some(own) = self.hbm.gpus.get_mut(&copy.gpu) else { return };
        let (found, index) = own.memory.locate(copy.slot).expect("a copy lies in a slot");
        let (slab, shelf) = (found.slab, found.shelf);
        own.memory.count_used(copy.slot, -1);
        own.counts.blocks -= 1;
        own.counts.bytes_used -= u64::from(slab.stride) * UNIT_BYTES;
        let was_listed = own.order[shelf.0 as usize].remove(&(copy.last_use, Reverse(copy.id), line));
        assert!(was_listed, "a readable copy is in its order");
        if own.reads.contains_key(&copy.slot) {
            own.left.insert(copy.slot);
            own.counts.slots_busy += 1;
            self.kept.set_device_slot_state(copy.gpu, &slab, index, SlotState::Aside);
        } else {
            own.limbo.push(copy.slot);
        }
    }

    /// The line is dropped: what a GPU had of it goes along.
    pub(super) fn drop_from_gpu(&mut self, line: LineId) {
        if self.hbm.gpus.is_empty() {
            return;
        }
        self.leave_gpu(line);
        self.hbm.read[line.0 as usize] = 0;
    }

    // ---- Slots ----

    fn gpu_shelf(&mut self, gpu: GpuId, pool: PoolId, stride: u32) -> Shelf {
        let own = self.hbm.gpu(gpu);
        let shelf = own.memory.shelf(pool, stride);
        let shelves = own.memory.shelves().count();
        own.order.resize(shelves, BTreeSet::new());
        shelf
    }

    /// A slot that nobody writes, reads or names is free.
    fn give_on_gpu(&mut self, gpu: GpuId, slot: SlotId) {
        let own = self.hbm.gpus.get_mut(&gpu).expect("a GPU that is there");
        let (found, index) = own.memory.locate(slot).expect("a slot of ours");
        let slab = found.slab;
        own.memory.give(slot);
        own.counts.slots_free += 1;
        self.kept.set_device_slot_state(gpu, &slab, index, SlotState::Free);
    }

    /// Asks once for all slots in limbo whether a reader names them: those are aside, the others free.
    pub(super) fn settle_gpus(&mut self) {
        let busy = self.hbm.gpus.iter().filter(|(_, own)| !own.limbo.is_empty());
        let gpus: Vec<GpuId> = busy.map(|(&gpu, _)| gpu).collect();
        gpus.into_iter().for_each(|gpu| self.settle_gpu(gpu));
    }

    fn settle_gpu(&mut self, gpu: GpuId) {
        let own = self.hbm.gpu(gpu);
        let limbo = std::mem::take(&mut own.limbo);
        let mut named = std::mem::take(&mut self.named);
        if !limbo.is_empty() {
            self.kept.device_named(gpu, &limbo, &mut named);
        }
        for (&slot, &named) in limbo.iter().zip(&named) {
            if !named {
                self.give_on_gpu(gpu, slot);
                continue;
            }
            let own = self.hbm.gpus.get_mut(&gpu).expect("looked up above");
            let (found, index) = own.memory.locate(slot).expect("a slot of ours");
            let slab = found.slab;
            own.aside.push_back(slot);
            own.counts.slots_aside += 1;
            self.kept.set_device_slot_state(gpu, &slab, index, SlotState::Aside);
            let look = Time(self.now.0 + LOOK_US);
            self.hbm.aside_look = Some(self.hbm.aside_look.map_or(look, |at| at.min(look)));
        }
        self.named = named;
    }

    /// Looks at all slots aside on GPUs again.
    pub(super) fn look_aside_on_gpus(&mut self) {
        self.hbm.aside_look = None;
        for own in self.hbm.gpus.values_mut() {
            own.counts.slots_aside -= own.aside.len() as u64;
            own.limbo.extend(own.aside.drain(..));
        }
        self.settle_gpus();
    }

    /// A new slab, of free memory or of slabs that hold nothing.
    fn grow_on_gpu(&mut self, gpu: GpuId, shelf: Shelf) -> bool {
        loop {
            let own = self.hbm.gpus.get_mut(&gpu).expect("a GPU that is there");
            if let Some(slab) = own.memory.grow(shelf, self.options.slab_units_min, true) {
                own.counts.slots_free += u64::from(slab.slots());
                self.kept.set_device_slab(gpu, &slab);
                return true;
            }
            let Some(slab) = own.memory.empty_slab(shelf) else { return false };
            self.release_on_gpu(gpu, slab);
        }
    }

    fn release_on_gpu(&mut self, gpu: GpuId, slab: Slab) {
        self.kept.forget_device_slab(gpu, &slab);
        let own = self.hbm.gpu(gpu);
        own.memory.release(slab.base.0);
        own.counts.slots_free -= u64::from(slab.slots());
    }

    /// Lines that have a copy on a GPU, or get one, in order.
    pub(super) fn lines_on_gpus(&self) -> Vec<LineId> {
        let mut lines: Vec<LineId> = self.hbm.copies.keys().copied().collect();
        lines.sort_unstable();
        lines
    }

    /// Bytes of a block as they are copied: what lies behind its payload in the slot comes along.
    fn copied_bytes(&self, live: &Live) -> u32 {
        self.pools[&live.pool].def.stored_bytes(live.place.bytes)
    }

    /// The fill under way is its line's no more. The operation keeps the slot.
    fn orphan_fill(&mut self, line: LineId) {
        for op in self.ops.values_mut() {
            if let Op::CopyOut { line: of, .. } = op
                && *of == Some(line)
            {
                *of = None;
            }
        }
    }
}
