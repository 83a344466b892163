//! How a block leaves: unlinked, unpublished, and its slot free once no reader names it. Victims go in batches, so that
//! the readers' pages are scanned once for all.

use lapis_config::{LineId, PoolId, SlotId};

use super::{Core, HELD, PINNED};
use crate::{
    copies::{Step, step_dram},
    kept::{Kept, SlotState},
    policy::{Policy, Shelf},
};

/// Slots aside that are looked at again with each batch of victims.
const ASIDE_PER_BATCH: usize = 1024;

impl<K: Kept, P: Policy> Core<K, P> {
    /// Drops the coldest leaves of a shelf until `count` slots are free, or nothing is left that may go. Returns how
    /// many slots came free.
    pub(super) fn evict(&mut self, shelf: Shelf, count: u32) -> u32 {
        let mut freed = 0;
        while freed < count {
            let mut dropped = 0;
            while dropped < count - freed {
                let Some(line) = self.victim(shelf) else { break };
                if !self.policy.admits(&self.kept, shelf, line, self.now) {
                    break;
                }
                self.drop_line(line, true);
                dropped += 1;
            }
            if dropped == 0 {
                break;
            }
            let before = self.memory_free(shelf);
            self.settle();
            freed += self.memory_free(shelf) - before;
        }
        freed
    }

    fn memory_free(&self, shelf: Shelf) -> u32 {
        self.memory.of(shelf).free
    }

    /// The next block of the shelf that may go. What comes up and may not is unlinked until it may.
    fn victim(&mut self, shelf: Shelf) -> Option<LineId> {
        self.expire_pins(shelf);
        while let Some(line) = self.policy.coldest(&self.kept, shelf, self.now) {
            let flags = self.kept.entry(line).flags;
            if self.tree.is_leaf(&self.kept, line) && flags & (HELD | PINNED) == 0 {
                return Some(line);
            }
            self.policy.unlink(&mut self.kept, shelf, line);
            self.relink(line);
        }
        self.softest(shelf)
    }

    /// Makes a block that is no candidate one again, if it may go now: it came up before, so it goes next.
    pub(super) fn relink(&mut self, line: LineId) {
        let flags = self.kept.entry(line).flags;
        if flags & HELD != 0 || self.policy.is_linked(&self.kept, line) || !self.tree.is_leaf(&self.kept, line) {
            return;
        }
        let live = self.kept.live(line).expect("a live line");
        let shelf = self.shelf_of(live.place.slot);
        if flags & PINNED != 0 {
            self.pins.wait(shelf, line);
        } else {
            self.policy.cool(&mut self.kept, shelf, line);
        }
    }

    /// Unpublishes a leaf. Its slot is in limbo until `settle`.
    pub(super) fn drop_line(&mut self, line: LineId, evicted: bool) {
        assert!(self.tree.is_leaf(&self.kept, line), "a parent outlives its children");
        let live = self.kept.live(line).expect("a live line is dropped");
        let slot = live.place.slot;
        let (shelf, stride) = {
            let found = self.memory.slab_around(slot.0).expect("a published slot lies in a slab");
            (found.shelf, found.slab.stride)
        };
        self.policy.unlink(&mut self.kept, shelf, line);
        let entry = self.kept.entry_mut(line);
        step_dram(entry, Step::Drop);
        let flags = std::mem::take(&mut entry.flags);
        if flags & HELD != 0 {
            self.holds.forget(line);
        }
        if flags & PINNED != 0 {
            self.pins.forget(shelf, line);
        }
        let parent = self.tree.detach(&mut self.kept, line);
        self.kept.unpublish(line);
        self.memory.count_used(slot, -1);
        self.limbo.push(slot);
        self.counts.blocks -= 1;
        self.counts.slots_used -= 1;
        self.counts.bytes_used -= u64::from(stride) * lapis_config::UNIT_BYTES;
        let pool = self.pools.get_mut(&live.pool).expect("a block's pool is known");
        pool.blocks -= 1;
        pool.units_used -= u64::from(stride);
        if evicted {
            self.counts.evictions += 1;
            self.cool_kin(live.pool, &live.key);
        }
        if let Some(parent) = parent {
            self.relink(parent);
        }
    }

    /// Drops a block and all below it, whoever holds them. Returns how many.
    pub(super) fn drop_subtree(&mut self, root: LineId) -> u64 {
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        self.tree.subtree(&self.kept, root, usize::MAX, &mut lines);
        for &line in lines.iter().rev() {
            self.drop_line(line, false);
        }
        let count = lines.len() as u64;
        self.lines = lines;
        count
    }

    /// The same key's blocks in other pools of the namespace go next among theirs: together they served a hit.
    fn cool_kin(&mut self, pool: PoolId, key: &lapis_config::Key) {
        for at in 0..self.pools[&pool].kin.len() {
            let kin = self.pools[&pool].kin[at];
            let Some(line) = self.kept.find(kin, key) else { continue };
            if self.policy.is_linked(&self.kept, line) {
                let live = self.kept.live(line).expect("found");
                let shelf = self.shelf_of(live.place.slot);
                self.policy.cool(&mut self.kept, shelf, line);
            }
        }
    }

    /// Asks once for all slots in limbo, and for some that are aside, whether a reader names them: those are aside, the
    /// others free.
    pub(super) fn settle(&mut self) {
        let fresh = self.limbo.len();
        let again = self.aside.len().min(ASIDE_PER_BATCH);
        self.limbo.extend(self.aside.drain(..again));
        let (limbo, mut named) = (std::mem::take(&mut self.limbo), std::mem::take(&mut self.named));
        if !limbo.is_empty() {
            self.kept.named(&limbo, &mut named);
        }
        for (at, (&slot, &named)) in limbo.iter().zip(&named).enumerate() {
            match (at < fresh, named) {
                (_, false) => {
                    if at >= fresh {
                        self.counts.slots_aside -= 1;
                    }
                    self.give(slot);
                }
                (true, true) => {
                    self.set_aside(slot);
                    self.counts.slots_aside += 1;
                }
                (false, true) => self.aside.push_back(slot),
            }
        }
        (self.limbo, self.named) = (limbo, named);
        self.limbo.clear();
        self.look_aside_later();
    }

    fn set_aside(&mut self, slot: SlotId) {
        let (found, index) = self.memory.locate(slot).expect("a slot of ours");
        let slab = found.slab;
        self.kept.set_slot_state(&slab, index, SlotState::Aside);
        self.aside.push_back(slot);
    }

    /// Looks at all slots aside again.
    pub(super) fn settle_all(&mut self) {
        self.aside_look = lapis_config::Time::NEVER;
        for _ in 0..self.aside.len().div_ceil(ASIDE_PER_BATCH) {
            self.settle();
        }
        self.look_aside_later();
    }
}
