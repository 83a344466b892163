//! How a block leaves: unlinked, unpublished, and its slot free once no reader names it. Victims go in batches, so that
//! the readers' pages are scanned once for all.

use lapis_config::{LineId, PoolId, SlotId};

use super::{Core, HELD, PINNED, fetch::Came};
use crate::{
    copies::{Copy, Step, step_dram},
    kept::{Kept, Live, Place, SlotState, Tier},
    log::LISTED_MAX,
    policy::{Policy, Request, Shelf},
};

/// Slots aside that are looked at again with each batch of victims.
const ASIDE_PER_BATCH: usize = 1024;
/// What an eviction came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Evicted {
    /// Slots that came free.
    pub freed: u32,
    /// More will, once blocks are on SSD.
    pub writing: bool,
    /// What would go next is worth more than what comes.
    pub declined: bool,
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// Makes room on a shelf until `count` slots are free, or nothing is left that may go: the coldest leaves go, those
    /// that are on SSD stay there. Dirty blocks that belong on SSD are written first, and dropped only with `force`; as
    /// many as are needed and no more, and no warmer block leaves in their stead.
    pub(super) fn evict(&mut self, shelf: Shelf, count: u32, force: bool, request: Option<Request>) -> Evicted {
        let mut evicted = Evicted::default();
        let mut leaving = if force { 0 } else { self.leaving(shelf) };
        while evicted.freed < count {
            let (short, mut left) = (count - evicted.freed, 0);
            // Blocks that wait to be read need room at once, though they ask for it one by one.
            let wanted = short.max(self.ssd.queue.len() as u32);
            while left < short && (force || left + leaving < wanted) {
                let Some(line) = self.victim(shelf, &mut leaving, force) else { break };
                // Those that came up on the way and are being written go first.
                if !force && left + leaving >= wanted {
                    break;
                }
                // What is pinned goes only because all else is: who asks is not to be refused for that.
                let pinned = self.kept.entry(line).flags & PINNED != 0;
                if !pinned && request.is_some_and(|request| !self.admits(line, request)) {
                    evicted.declined = true;
                    break;
                }
                if self.must_be_written(line, force) {
                    evicted.writing = true;
                    // A page's worth at least, if as many are as cold: one by one each would cost a page of contents.
                    let begun = self.write_chain(shelf, line, (wanted - left - leaving).max(LISTED_MAX as u32));
                    if begun == 0 {
                        break;
                    }
                    leaving += begun;
                    // And those that are next.
                    self.write_ahead_now();
                    // Linked again when it is written.
                    self.policy.unlink(&mut self.kept, shelf, line);
                    continue;
                }
                self.leave(line);
                left += 1;
            }
            if left == 0 {
                break;
            }
            let before = self.memory_free(shelf);
            self.settle();
            evicted.freed += self.memory_free(shelf) - before;
        }
        evicted.writing |= !self.ssd.moving.is_empty();
        evicted
    }

    /// Whether a request's new blocks may take this one's place. Where there is to be a tier below, they come in any case:
    /// it decides what stays.
    fn admits(&self, victim: LineId, request: Request) -> bool {
        self.ssd.configured || self.policy.admits(&self.kept, victim, request, self.now)
    }

    /// Whether a block is to go to SSD before it leaves DRAM.
    pub(super) fn must_be_written(&self, line: LineId, force: bool) -> bool {
        let live = self.kept.live(line).expect("a live line");
        !force && Copy::of_dram(self.kept.entry(line)) == Copy::Dirty && self.wants_ssd(line, &live)
    }

    fn memory_free(&self, shelf: Shelf) -> u32 {
        self.memory.of(shelf).free
    }

    /// The next block of the shelf that may go. What comes up and may not is unlinked until it may; what is being written
    /// is counted as leaving, and goes only with `force`.
    fn victim(&mut self, shelf: Shelf, leaving: &mut u32, force: bool) -> Option<LineId> {
        self.expire_pins(shelf);
        while let Some(line) = self.policy.coldest(&self.kept, shelf, self.now) {
            let entry = self.kept.entry(line);
            let moving = Copy::of_dram(entry) == Copy::Moving;
            if !moving && entry.flags & (HELD | PINNED) == 0 && self.tree.is_dram_leaf(&self.kept, line) {
                return Some(line);
            }
            if let Some(moving) = self.ssd.moving.get_mut(&line).filter(|moving| moving.leaves.is_none()) {
                moving.leaves = Some(shelf);
                *leaving += 1;
            }
            self.policy.unlink(&mut self.kept, shelf, line);
            self.relink(line);
        }
        let moving = if force { self.coldest_moving(shelf) } else { None };
        moving.or_else(|| self.softest(shelf))
    }

    /// The coldest of the blocks that are on their way to SSD, first of those that only wait to be listed: their slots
    /// come free at once. A slow device takes longer than anybody waits, and with the leaves of a few chains it would
    /// hold all memory up.
    fn coldest_moving(&self, shelf: Shelf) -> Option<LineId> {
        let may_go = |line: LineId| {
            let kept = self.kept.entry(line).flags & (HELD | PINNED) != 0;
            !kept && self.shelf_of_line(line) == shelf && self.tree.is_dram_leaf(&self.kept, line)
        };
        let moving = self.ssd.moving.iter().filter(|&(&line, _)| may_go(line));
        let order = |line: LineId, written: bool| (!written, self.kept.entry(line).last_use, line);
        moving.map(|(&line, moving)| order(line, moving.op.is_none())).min().map(|(.., line)| line)
    }

    /// Makes a block that is no candidate one again, if it may go now: it came up before, so it goes next.
    pub(super) fn relink(&mut self, line: LineId) {
        let entry = self.kept.entry(line);
        let copy = Copy::of_dram(entry);
        let may_go = copy.is_readable() && copy != Copy::Moving && entry.flags & HELD == 0;
        let pinned = entry.flags & PINNED != 0;
        if !may_go || self.policy.is_linked(&self.kept, line) || !self.tree.is_dram_leaf(&self.kept, line) {
            return;
        }
        let shelf = self.shelf_of_line(line);
        if pinned {
            self.pins.wait(shelf, line);
        } else {
            self.policy.cool(&mut self.kept, shelf, line);
        }
    }

    /// A leaf of DRAM leaves it: a clean block stays on SSD, one with a copy on a GPU there; another is dropped, with what
    /// is below it.
    pub(super) fn leave(&mut self, line: LineId) {
        if Copy::of_dram(self.kept.entry(line)) == Copy::Clean || self.is_on_gpu(line) {
            return self.demote(line);
        }
        let live = self.kept.live(line).expect("a live line leaves");
        self.offer_to_budget(line, &live, false);
        if self.tree.is_leaf(&self.kept, line) {
            return self.drop_line(line, true);
        }
        self.counts.evictions += 1;
        self.drop_subtree(line);
    }

    /// The block is on SSD or a GPU alone from now on. Its slot is in limbo until `settle`.
    fn demote(&mut self, line: LineId) {
        assert!(self.tree.is_dram_leaf(&self.kept, line), "a parent stays in DRAM as long as its children");
        let live = self.kept.live(line).expect("a live line is demoted");
        self.leave_dram(line, &live);
        let tier = self.tier_outside_dram(line);
        self.rebind(line, Place { slot: SlotId(0), tier, ..live.place });
        self.tree.moved(&mut self.kept, line);
        self.counts.evictions += 1;
        if self.kept.entry(line).ssd != 0 {
            self.counts.demotions += 1;
        }
        self.counts.hbm_demotions += u64::from(tier == Tier::Hbm);
        self.cool_kin(live.pool, &live.key);
        let parent = LineId(self.kept.entry(line).parent);
        if parent.is_some() {
            self.relink(parent);
        }
    }

    /// The copy in DRAM ends. Its slot is in limbo, unless a device still reads it.
    fn leave_dram(&mut self, line: LineId, live: &Live) {
        let slot = live.place.slot;
        let (shelf, stride) = {
            let found = self.memory.slab_around(slot.0).expect("a published slot lies in a slab");
            (found.shelf, found.slab.stride)
        };
        self.policy.unlink(&mut self.kept, shelf, line);
        let entry = self.kept.entry_mut(line);
        step_dram(entry, Step::Drop);
        let flags = entry.flags;
        entry.flags &= !(HELD | PINNED);
        if flags & HELD != 0 {
            self.holds.forget(line);
        }
        if flags & PINNED != 0 {
            self.pins.forget(shelf, line);
        }
        self.memory.count_used(slot, -1);
        self.end_write(line);
        self.stray_fills(slot);
        if !self.is_kept_for_devices(slot) {
            self.limbo.push(slot);
        }
        self.counts.blocks -= 1;
        self.counts.slots_used -= 1;
        self.counts.bytes_used -= u64::from(stride) * lapis_config::UNIT_BYTES;
        let pool = self.pools.get_mut(&live.pool).expect("a block's pool is known");
        pool.blocks -= 1;
        pool.units_used -= u64::from(stride);
    }

    /// A block that is being written goes.
    fn end_write(&mut self, line: LineId) {
        let Some(moving) = self.ssd.moving.remove(&line) else { return };
        match moving.op {
            Some(op) => self.stray_write(op),
            None => {
                let listed = self.ssd.log.as_mut().is_some_and(|log| !log.forget_pending(moving.at));
                if listed {
                    // A page that lists it is under way: it is taken back there.
                    let live = self.kept.live(line).expect("a live line");
                    self.remove_durably(live.pool, live.key, moving.at);
                }
            }
        }
    }

    /// Unpublishes a block without children, wherever it is.
    pub(super) fn drop_line(&mut self, line: LineId, evicted: bool) {
        assert!(self.tree.is_leaf(&self.kept, line), "a parent outlives its children");
        let fetched = self.orphan_fetch(line);
        let live = self.kept.live(line).expect("a live line is dropped");
        if self.in_dram(line) {
            self.leave_dram(line, &live);
        }
        self.drop_from_gpu(line);
        let mut entry = *self.kept.entry(line);
        self.leave_ssd(line, &live, &mut entry, true);
        if entry.flags & HELD != 0 {
            self.holds.forget(line);
        }
        entry.flags = 0;
        *self.kept.entry_mut(line) = entry;
        let parent = self.tree.detach(&mut self.kept, line);
        self.policy.gone(&self.kept, line, &live, self.now);
        self.kept.unpublish(line);
        self.counts.lines_used -= 1;
        self.retired_line(line);
        if fetched {
            self.fetch_ended(line, Came::Not);
        }
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
        let mut count = 0;
        for &line in lines.iter().rev() {
            // One may have gone with what waited for another.
            if self.kept.live(line).is_some() {
                self.drop_line(line, false);
                count += 1;
            }
        }
        self.lines = lines;
        count
    }

    /// The same key's blocks in other pools of the namespace go next among theirs: together they served a hit.
    fn cool_kin(&mut self, pool: PoolId, key: &lapis_config::Key) {
        for at in 0..self.pools[&pool].kin.len() {
            let kin = self.pools[&pool].kin[at];
            let Some(line) = self.kept.find(kin, key) else { continue };
            if self.policy.is_linked(&self.kept, line) {
                let shelf = self.shelf_of_line(line);
                self.policy.cool(&mut self.kept, shelf, line);
            }
        }
    }

    /// Asks once for all slots in limbo, and for some that are aside, whether a reader names them: those are aside, the
    /// others free. The same on GPUs.
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
        self.settle_gpus();
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
