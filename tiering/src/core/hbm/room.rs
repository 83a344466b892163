//! Room on a GPU: free slots, free memory, then the coldest copies.
//!
//! Which is coldest: of the eight that were unused for longest, those with the least worth by the policy; among equals
//! the one unused for longest, of a chain the deepest. A list by last use that is put right when it is looked at costs a
//! read nothing; worth decides where the policy knows more. A copy that is the only one is copied back first.
//!
//! Where no copy of a shelf may go, the coldest slab of another one does: its copies in DRAM too at once, others when they
//! have been copied back, and until then nothing new comes into it.

use std::{cmp::Reverse, time::Duration};

use lapis_config::{GpuId, LineId, SlotId, UNIT_BYTES};

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
/// Copies by which a slab is judged, and how many of the coldest slabs are then looked at whole.
const SAMPLES: u32 = 8;
const SLABS_LOOKED: usize = 8;
/// How soon a shelf that found no slab looks for one again: a look at a large GPU takes milliseconds.
const SLAB_PAUSE: Duration = Duration::from_millis(250);

/// How cold a block is: less is colder.
pub(super) type Warmth = (u32, u32);

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

    pub(super) fn warmth(&self, line: LineId) -> Warmth {
        (self.policy.worth(&self.kept, line, self.now), self.kept.entry(line).last_use)
    }

    /// True if a slot of the shelf came free.
    fn evict_copies(&mut self, gpu: GpuId, shelf: Shelf, count: usize, than: Option<Warmth>) -> bool {
        let mut spares = false;
        loop {
            let (victims, only) = self.coldest_copies(gpu, shelf, count, than, spares);
            // Readers had all of them: what they name now stays, or all would go in vain.
            spares = true;
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

    /// Copies that may go now, at most so many, and the ones among the coldest that must be copied back first. With `spares`
    /// none that a reader names.
    fn coldest_copies(
        &mut self,
        gpu: GpuId,
        shelf: Shelf,
        count: usize,
        than: Option<Warmth>,
        spares: bool,
    ) -> (Vec<LineId>, Vec<LineId>) {
        let most = if spares { count + LOOKS } else { count + CHOICES - 1 };
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
                if found.len() == most {
                    break;
                }
            }
            only.truncate(count);
            if !found.is_empty() || !renewed {
                if spares {
                    self.spare_named(gpu, &mut found);
                }
                found.sort_unstable();
                return (found.into_iter().take(count).map(|(.., line)| line).collect(), only);
            }
        }
        (Vec::new(), Vec::new())
    }

    fn spare_named(&mut self, gpu: GpuId, found: &mut Vec<(Warmth, Reverse<u64>, LineId)>) {
        let slots: Vec<SlotId> = found.iter().map(|(.., line)| self.hbm.copies[line].slot).collect();
        let mut named = std::mem::take(&mut self.named);
        self.kept.device_named(gpu, &slots, &mut named);
        let mut is_named = named.iter();
        found.retain(|_| !is_named.next().expect("an answer for each"));
        self.named = named;
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

    /// The only copy is to go: it is copied back to DRAM. It goes when that has ended. False if there is no room for it now.
    fn save(&mut self, line: LineId) -> bool {
        // Room in DRAM may have been made of it, or of what it hangs on.
        if !self.is_only_on_gpu(line) || !self.may_leave_gpu(line) {
            return true;
        }
        let begun = self.copy_back(line);
        if begun {
            self.hbm.copies.get_mut(&line).expect("it is being copied").state.step(GpuStep::Save);
        }
        begun
    }

    /// Empties the coldest slab of another shelf, if all in it may go. True if its memory came free.
    fn empty_slab_on_gpu(&mut self, gpu: GpuId, shelf: Shelf, than: Option<Warmth>) -> bool {
        let own = &self.hbm.gpus[&gpu];
        if own.slab_looks.get(&shelf).is_some_and(|&from| self.now < from) {
            return false;
        }
        let mut leaving: Vec<Slab> = own.memory.slabs().filter(|found| found.leaving).map(|found| found.slab).collect();
        if leaving.len() < LEAVING_MAX
            && let Some(slab) = self.coldest_slab(gpu, shelf, than)
        {
            self.hbm.gpu(gpu).memory.leave(slab.base.0);
            leaving.push(slab);
        }
        // Also those before it: what was not copied back then may be now.
        let mut free = false;
        for slab in leaving {
            free |= self.clear_slab_on_gpu(gpu, &slab);
        }
        if !free {
            let from = self.now.after(SLAB_PAUSE);
            self.hbm.gpu(gpu).slab_looks.insert(shelf, from);
        }
        free
    }

    /// The slab of another shelf whose copies are coldest, of those whose copies may all go.
    fn coldest_slab(&self, gpu: GpuId, shelf: Shelf, than: Option<Warmth>) -> Option<Slab> {
        let own = &self.hbm.gpus[&gpu];
        let least = own.memory.of(shelf).stride;
        let quiet = |found: &&SlabMemory| {
            let all = found.free + found.used == found.slab.slots() && found.slab.units >= least;
            all && found.shelf != shelf && !found.leaving
        };
        let sampled = |slab: &Slab| {
            let step = (slab.slots() / SAMPLES).max(1) as usize;
            self.lines_on_gpu(gpu, slab).step_by(step).map(|line| self.warmth(line)).max().unwrap_or_default()
        };
        let slabs = own.memory.slabs().filter(quiet).map(|found| (sampled(&found.slab), found.slab));
        let mut slabs: Vec<(Warmth, Slab)> = slabs.collect();
        slabs.sort_by_key(|(warmth, _)| *warmth);
        let may = |line: LineId| self.may_leave_gpu(line) && than.is_none_or(|than| self.warmth(line) < than);
        let coldest = slabs.into_iter().take(SLABS_LOOKED).map(|(_, slab)| slab);
        coldest.into_iter().find(|slab| self.lines_on_gpu(gpu, slab).all(may))
    }

    /// Takes copies out of a slab that is on its way out. True if its memory came free.
    fn clear_slab_on_gpu(&mut self, gpu: GpuId, slab: &Slab) -> bool {
        let (lines, mut room): (Vec<LineId>, bool) = (self.lines_on_gpu(gpu, slab).collect(), true);
        for line in lines {
            if !self.may_leave_gpu(line) {
                continue;
            }
            if self.is_only_on_gpu(line) {
                room = room && self.save(line);
            } else {
                self.evict_copy(line);
            }
        }
        self.settle_gpu(gpu);
        let found = self.hbm.gpu(gpu).memory.slab(slab.base.0);
        if found.free < slab.slots() {
            // What is copied back, or named by readers, is waited for.
            return false;
        }
        self.release_on_gpu(gpu, *slab);
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
