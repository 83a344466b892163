//! Room on a GPU: free slots, free memory, then the coldest copies.
//!
//! Which is coldest: of the eight that were unused for longest, those with the least worth by the policy; among equals
//! the one unused for longest, of a chain the deepest. A list by last use that is put right when it is looked at costs a
//! read nothing; worth decides where the policy knows more. A copy that is the only one is copied back first.

use std::cmp::Reverse;

use lapis_config::{GpuId, LineId, UNIT_BYTES};

use super::{Core, OnGpu};
use crate::{
    core::HELD,
    hbm::GpuStep,
    kept::{Kept, Place, Slab, SlotState, Tier},
    memory::SlabMemory,
    policy::{Policy, Shelf},
};

/// Of so many that were unused for longest, the ones of least worth go.
const CHOICES: usize = 8;
/// Most copies that are looked at for one search, beyond those that are wanted.
const LOOKS: usize = 64;
/// Room that is made at once: readers' pages are scanned once for all of it.
const ROOM_BYTES: u64 = 1 << 20;
/// Slabs that may be on the way out at once, waiting for readers.
const LEAVING_MAX: usize = 2;
/// Searches for one slot, each of which found only copies that were used since.
const SEARCHES: usize = 16;

/// How cold a block is: less is colder.
type Warmth = (u32, u32);

impl<K: Kept, P: Policy> Core<K, P> {
    /// Takes a slot on a GPU. Room is made of copies that are colder than that of `than`, or of any; as much as `count`
    /// such slots, if more will be asked for.
    pub(super) fn slot_on_gpu(
        &mut self,
        gpu: GpuId,
        shelf: Shelf,
        count: u32,
        than: Option<LineId>,
    ) -> Option<(Slab, u32)> {
        let warmth = than.map(|line| self.warmth(line));
        let most = (ROOM_BYTES / UNIT_BYTES) as u32 / self.hbm.gpu(gpu).memory.of(shelf).stride;
        let count = count.clamp(1, most.max(1)) as usize;
        loop {
            if let Some(taken) = self.hbm.gpu(gpu).memory.take(shelf) {
                return Some(taken);
            }
            let room = self.grow_on_gpu(gpu, shelf)
                || self.evict_copies(gpu, shelf, count, warmth)
                || self.empty_slab_on_gpu(gpu, shelf, warmth);
            if !room {
                return None;
            }
        }
    }

    fn warmth(&self, line: LineId) -> Warmth {
        (self.policy.worth(&self.kept, line, self.now), self.kept.entry(line).last_use)
    }

    /// True if a slot of the shelf came free.
    fn evict_copies(&mut self, gpu: GpuId, shelf: Shelf, count: usize, than: Option<Warmth>) -> bool {
        loop {
            let (victims, only) = self.coldest_copies(gpu, shelf, count, than);
            let none = victims.is_empty();
            victims.into_iter().for_each(|line| self.evict_copy(line));
            self.settle_gpu(gpu);
            for line in only {
                self.save(line);
            }
            if none || self.hbm.gpu(gpu).memory.of(shelf).free > 0 {
                return !none;
            }
        }
    }

    /// Copies that may go now, at most so many, and the ones among the coldest that must be copied back first.
    fn coldest_copies(
        &mut self,
        gpu: GpuId,
        shelf: Shelf,
        count: usize,
        than: Option<Warmth>,
    ) -> (Vec<LineId>, Vec<LineId>) {
        for _ in 0..SEARCHES {
            let order = &self.hbm.gpus[&gpu].order[shelf.0 as usize];
            let looked: Vec<_> = order.iter().take(count + LOOKS).copied().collect();
            let (mut found, mut only, mut renewed) = (Vec::new(), Vec::new(), false);
            for (last_use, Reverse(id), line) in looked {
                let used = self.kept.entry(line).last_use;
                if used > last_use {
                    let order = &mut self.hbm.gpu(gpu).order[shelf.0 as usize];
                    order.remove(&(last_use, Reverse(id), line));
                    order.insert((used, Reverse(id), line));
                    self.hbm.copies.get_mut(&line).expect("what is in the order").last_use = used;
                    renewed = true;
                } else if self.may_leave_gpu(line) && than.is_none_or(|than| self.warmth(line) < than) {
                    if self.is_only_on_gpu(line) {
                        only.push(line);
                    } else {
                        found.push((self.warmth(line), Reverse(id), line));
                    }
                }
                if found.len() == count + CHOICES - 1 {
                    break;
                }
            }
            only.truncate(count);
            if !found.is_empty() || !renewed {
                found.sort_unstable();
                return (found.into_iter().take(count).map(|(.., line)| line).collect(), only);
            }
        }
        (Vec::new(), Vec::new())
    }

    /// Whether nobody was promised that the copy stays, or waits for it.
    fn may_leave_gpu(&self, line: LineId) -> bool {
        let copy = self.hbm.copies.get(&line).is_some_and(|copy| copy.state == OnGpu::Ready);
        copy && self.kept.entry(line).flags & HELD == 0 && !self.gets.waits_for(line)
    }

    /// A copy that is not the only one goes.
    fn evict_copy(&mut self, line: LineId) {
        assert!(!self.is_only_on_gpu(line), "the only copy is copied back first");
        self.leave_gpu(line);
        self.counts.hbm_evictions += 1;
        if !self.in_dram(line) {
            let place = self.kept.live(line).expect("a copy's line is live").place;
            self.rebind(line, Place { tier: Tier::Elsewhere, ..place });
        }
    }

    /// The only copy is to go: it is copied back to DRAM, if there is room. It goes when that has ended.
    fn save(&mut self, line: LineId) {
        // Room in DRAM may have been made of it, or of what it hangs on.
        let still = self.is_only_on_gpu(line) && self.may_leave_gpu(line);
        if still && self.copy_back(line) {
            self.hbm.copies.get_mut(&line).expect("it is being copied").state.step(GpuStep::Save);
        }
    }

    /// Empties the coldest slab of another shelf, if all in it may go. True if its memory came free.
    fn empty_slab_on_gpu(&mut self, gpu: GpuId, shelf: Shelf, than: Option<Warmth>) -> bool {
        let own = &self.hbm.gpus[&gpu];
        if own.memory.slabs().filter(|found| found.leaving).count() >= LEAVING_MAX {
            return false;
        }
        let quiet = |found: &&SlabMemory| {
            found.shelf != shelf && !found.leaving && found.free + found.used == found.slab.slots()
        };
        let least = own.memory.of(shelf).stride;
        let slabs: Vec<Slab> = own
            .memory
            .slabs()
            .filter(quiet)
            .filter(|found| found.slab.units >= least)
            .map(|found| found.slab)
            .collect();
        let mut coldest: Option<(Warmth, Slab)> = None;
        for slab in slabs {
            let warmest = self.lines_on_gpu(gpu, &slab).try_fold((0, 0), |most: Warmth, line| {
                let may = self.may_leave_gpu(line) && !self.is_only_on_gpu(line);
                may.then(|| most.max(self.warmth(line)))
            });
            let Some(warmest) = warmest.filter(|warmest| than.is_none_or(|than| *warmest < than)) else { continue };
            if coldest.is_none_or(|(known, _)| warmest < known) {
                coldest = Some((warmest, slab));
            }
        }
        let Some((_, slab)) = coldest else { return false };
        let lines: Vec<LineId> = self.lines_on_gpu(gpu, &slab).collect();
        self.hbm.gpu(gpu).memory.leave(slab.base.0);
        lines.into_iter().for_each(|line| self.evict_copy(line));
        self.settle_gpu(gpu);
        let found = self.hbm.gpu(gpu).memory.slab(slab.base.0);
        if found.free < slab.slots() {
            // Readers name some of it: it is taken when they have let go.
            return false;
        }
        self.release_on_gpu(gpu, slab);
        true
    }

    /// The lines whose copies lie in a slab of a GPU.
    pub(super) fn lines_on_gpu(&self, gpu: GpuId, slab: &Slab) -> impl Iterator<Item = LineId> + use<'_, K, P> {
        let slab = *slab;
        (0..slab.slots()).filter_map(move |index| match self.kept.device_slot_state(gpu, &slab, index) {
            SlotState::Used(line) => Some(line),
            _ => None,
        })
    }
}
