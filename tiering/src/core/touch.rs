//! What a use of a block means for it and for those above it.

use lapis_config::{LineId, PoolKind, Time};

use super::{Core, HIT};
use crate::{
    copies::Copy,
    kept::{Kept, Live},
    policy::{Policy, Shelf, Use, tenths},
};

/// Longest walk up the parents for one use: as long as a batch.
const TOUCHES_MAX: u32 = lapis_config::BATCH_KEYS_MAX as u32;

impl<K: Kept, P: Policy> Core<K, P> {
    /// A client hit a line: `hit` blocks up to it, of `asked`. `bind_low` is the low half of the line's bind word at that
    /// time (generation << 4 and the state): a line that changed since is left alone.
    pub fn touched(&mut self, now: Time, line: LineId, bind_low: u32, hit: u32, _asked: u32) {
        self.clock(now);
        if self.adopting.is_some() || line.0 >= self.kept.lines() {
            return;
        }
        let Some(live) = self.kept.live(line) else { return };
        if fits(bind_low, &live) {
            let request = self.policy.asked(&self.kept, line, self.now);
            self.touch(line, &live, hit, Use::Asked(request));
        }
    }

    /// Whether the line is the one that a client hit.
    pub(super) fn is_still(&self, line: LineId, bind_low: u32) -> bool {
        line.0 < self.kept.lines() && self.kept.live(line).is_some_and(|live| fits(bind_low, &live))
    }

    /// Takes note that the block and up to `most - 1` above it were used; deepest first, so that the root is the most
    /// recent. What was used in the same tenth of a second was noted then, and all above it.
    pub(super) fn touch(&mut self, line: LineId, live: &Live, most: u32, by: Use) {
        let chain = self.pools[&live.pool].def.kind == PoolKind::Chain;
        let mut shelf = self.shelf_of(line, live);
        let (mut at, now) = (line, tenths(self.now));
        for _ in 0..most.min(TOUCHES_MAX) {
            let entry = self.kept.entry_mut(at);
            if entry.last_use == now {
                return;
            }
            let parent = LineId(entry.parent);
            if entry.ssd != 0 {
                entry.flags |= HIT;
            }
            let in_dram = Copy::of_dram(entry).is_readable();
            let of = in_dram.then(|| *shelf.get_or_insert_with(|| self.shelf_of_line(at)));
            self.policy.used(&mut self.kept, of, at, by, self.now);
            if !parent.is_some() {
                return;
            }
            at = parent;
            if !chain {
                shelf = None;
            }
        }
    }

    /// The shelf of a published block; `None` if it is not in DRAM.
    pub(super) fn shelf_of(&self, line: LineId, live: &Live) -> Option<Shelf> {
        let in_dram = Copy::of_dram(self.kept.entry(line)).is_readable();
        in_dram.then(|| self.memory.slab_around(live.place.slot.0).expect("a published slot lies in a slab").shelf)
    }

    /// The shelf of a block that is in DRAM.
    pub(super) fn shelf_of_line(&self, line: LineId) -> Shelf {
        let live = self.kept.live(line).expect("a live line");
        self.memory.slab_around(live.place.slot.0).expect("a published slot lies in a slab").shelf
    }
}

fn fits(bind_low: u32, live: &Live) -> bool {
    bind_low >> 4 == live.generation as u32 & (u32::MAX >> 4)
}
