//! Memory moves between shelves by slab: the coldest slab is emptied, and whoever is short takes its memory.
//!
//! A slab moves when its blocks were unused for clearly longer than the shelf's own next victim, or when the shelf has
//! nothing of its own that may go. In balance all shelves evict blocks of about the same age, as one list would.

use std::collections::{BTreeMap, BTreeSet};

use lapis_config::{LineId, SlotId};

use super::Core;
use crate::{
    copies::Copy,
    hash::Map,
    kept::{Kept, SlotState},
    memory::SlabMemory,
    policy::{Policy, Shelf, tenths},
};

/// Ranges whose coldness is estimated for one move, and slots looked at in each slab of one.
const RANGES_MAX: usize = 64;
const SAMPLES: u32 = 16;
/// Slabs that may be on the way out at once, waiting for readers.
const LEAVING_MAX: usize = 2;
/// A slab moves if it is colder than the own next victim by a quarter and by this, in tenths of a second.
const COLDER_TENTHS: u32 = 2;

/// When each shelf may next look for a colder slab, in evictions of the core: the estimate costs as much as some.
#[derive(Default)]
pub(super) struct Moves {
    look_from: BTreeMap<Shelf, u64>,
    /// Where the next estimate starts, so that all slabs have their turn.
    cursor: u32,
}

/// What a search for another shelf's memory came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handed {
    /// There is something new to take.
    Over,
    /// There will be, once blocks are on SSD.
    Writing,
    Nothing,
    /// What would go is worth more than what comes.
    Declined,
}

/// A range of slabs that could be handed over.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: u32,
    units: u32,
    /// Mean last use of its blocks, in tenths of a second.
    last_use: u32,
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// Empties slabs of another shelf if they are clearly colder than what this one would evict.
    pub(super) fn take_colder(&mut self, shelf: Shelf, force: bool) -> Handed {
        let Some(own) = self.policy.oldest(&self.kept, shelf) else { return Handed::Nothing };
        let own_age = self.age(self.kept.entry(own).last_use);
        let limit = own_age + own_age / 4 + COLDER_TENTHS;
        let colder = self.memory.shelves().any(|other| {
            let oldest = (other != shelf).then(|| self.policy.oldest(&self.kept, other)).flatten();
            oldest.is_some_and(|line| self.age(self.kept.entry(line).last_use) > limit)
        });
        if !colder || self.counts.evictions < self.moves.look_from.get(&shelf).copied().unwrap_or(0) {
            return Handed::Nothing;
        }
        let moved = self.hand_over(shelf, Some(limit), force);
        if moved == Handed::Nothing {
            let slots = self.memory.of(shelf).slabs.first().map_or(64, |&base| self.memory.slab(base).slab.slots());
            self.moves.look_from.insert(shelf, self.counts.evictions + u64::from(slots / 8).max(8));
        }
        moved
    }

    /// Empties slabs of another shelf, however warm: this one has nothing of its own that may go.
    pub(super) fn take_any(&mut self, shelf: Shelf, force: bool) -> Handed {
        self.hand_over(shelf, None, force)
    }

    fn age(&self, last_use: u32) -> u32 {
        tenths(self.now).saturating_sub(last_use)
    }

    /// Empties the coldest range of slabs that makes a slab for `shelf`. With `limit` only one that is older, and
    /// whose blocks are not pinned.
    fn hand_over(&mut self, shelf: Shelf, limit: Option<u32>, force: bool) -> Handed {
        let leaving = self.memory.slabs().filter(|slab| slab.leaving).count();
        if leaving >= LEAVING_MAX {
            return Handed::Nothing;
        }
        let stride = self.memory.of(shelf).stride;
        let Some(wanted) = self.memory.slab_order(stride, self.options.slab_units_min) else { return Handed::Nothing };
        let least = stride.max(self.options.slab_units_min).next_power_of_two().ilog2();
        // A smaller slab wastes more: only where no range of the wanted size can go.
        for order in (least..=wanted).rev() {
            let mut ranges = self.ranges(shelf, order);
            ranges.retain(|range| limit.is_none_or(|limit| self.age(range.last_use) > limit));
            ranges.sort_by_key(|range| (range.last_use, range.start));
            if let Some(range) = self.choose(&ranges, limit.is_some(), force) {
                return self.empty(range, force);
            }
            if limit.is_some() {
                break;
            }
        }
        Handed::Nothing
    }

    /// Ranges of 2^order units of other shelves' slabs in which no slot is being written or waited for, with estimates
    /// of their coldness.
    fn ranges(&mut self, shelf: Shelf, order: u32) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        let cursor = self.moves.cursor;
        let (before, after): (Vec<u32>, Vec<u32>) = self
            .memory
            .slabs()
            .filter(|found| found.shelf != shelf && !found.leaving)
            .map(|found| found.slab.base.0)
            .partition(|&base| base < cursor);
        for base in after.into_iter().chain(before) {
            let slab = self.memory.slab(base).slab;
            let range =
                if slab.units >= 1 << order { Some((base, slab.units)) } else { self.memory.buddy.around(base, order) };
            let Some((start, units)) = range else { continue };
            if ranges.iter().any(|known| known.start == start) {
                continue;
            }
            let quiet = |found: &SlabMemory| {
                found.shelf != shelf && !found.leaving && found.free + found.used == found.slab.slots()
            };
            if self.memory.slabs_in(start, units).all(quiet) {
                ranges.push(Range { start, units, last_use: self.mean_last_use(start, units) });
            }
            self.moves.cursor = base + 1;
            if ranges.len() == RANGES_MAX {
                break;
            }
        }
        if ranges.len() < RANGES_MAX {
            self.moves.cursor = 0;
        }
        ranges
    }

    fn mean_last_use(&self, start: u32, units: u32) -> u32 {
        let (mut sum, mut count) = (0u64, 0u64);
        for found in self.memory.slabs_in(start, units) {
            let slots = found.slab.slots();
            let step = (slots / SAMPLES).max(1);
            for index in (0..slots).step_by(step as usize) {
                if let SlotState::Used(line) = self.kept.slot_state(&found.slab, index) {
                    sum += u64::from(self.kept.entry(line).last_use);
                    count += 1;
                }
            }
        }
        sum.checked_div(count).unwrap_or(0) as u32
    }

    /// The first of some ranges in which nothing is held and no slot is named by a reader, nor with `at_once` read by a
    /// device; else the first in which nothing is held.
    fn choose(&mut self, ranges: &[Range], spare_pinned: bool, at_once: bool) -> Option<Range> {
        let (protected, mut second) = (self.protected(spare_pinned), None);
        for range in ranges {
            if protected.range(range.start..range.start + range.units).next().is_some() {
                continue;
            }
            let slots = self.used_slots(range);
            let mut named = std::mem::take(&mut self.named);
            self.kept.named(&slots, &mut named);
            let is_written = |line: LineId| self.ssd.moving.get(&line).is_some_and(|moving| moving.op.is_some());
            let is_read = |slot: &SlotId| self.ssd.strays.contains_key(slot);
            let is_copied = |slot: &SlotId| self.hbm.is_source(*slot);
            let at_device = || {
                let slots = || slots.iter();
                slots().any(is_read) || slots().any(is_copied) || self.lines_in(range).into_iter().any(is_written)
            };
            let any = named.contains(&true) || at_once && at_device();
            self.named = named;
            if !any {
                return Some(*range);
            }
            second = second.or(Some(*range));
        }
        second
    }

    fn used_slots(&self, range: &Range) -> Vec<SlotId> {
        let mut slots = Vec::new();
        for found in self.memory.slabs_in(range.start, range.units) {
            let is_used = |&index: &u32| matches!(self.kept.slot_state(&found.slab, index), SlotState::Used(_));
            slots.extend((0..found.slab.slots()).filter(is_used).map(|index| found.slab.slot(index)));
        }
        slots
    }

    fn lines_in(&self, range: &Range) -> Vec<LineId> {
        self.memory.slabs_in(range.start, range.units).flat_map(|found| self.lines_of(found)).collect()
    }

    /// The lines whose blocks lie in a slab.
    pub(super) fn lines_of(&self, found: &SlabMemory) -> impl Iterator<Item = LineId> {
        let slab = found.slab;
        (0..slab.slots()).filter_map(move |index| match self.kept.slot_state(&slab, index) {
            SlotState::Used(line) => Some(line),
            _ => None,
        })
    }

    /// Slabs that may not go: a held block, or with `spare_pinned` a pinned one, or something that it hangs on, lies in
    /// them.
    fn protected(&self, spare_pinned: bool) -> BTreeSet<u32> {
        let (mut bases, mut seen) = (BTreeSet::new(), Map::<LineId, ()>::default());
        let pinned = self.pins.lines().filter(|_| spare_pinned);
        for line in self.holds.lines().chain(pinned) {
            let mut at = line;
            while at.is_some() && seen.insert(at, ()).is_none() {
                if self.in_dram(at) {
                    let slot = self.kept.live(at).expect("a parent is resident").place.slot;
                    bases.insert(self.memory.slab_around(slot.0).expect("a published slot lies in a slab").slab.base.0);
                }
                at = LineId(self.kept.entry(at).parent);
            }
        }
        bases
    }

    /// Takes all blocks of a range out of DRAM, with what hangs on them there, and gives back the memory of the slabs
    /// that are empty then. What belongs on SSD is written first, unless `force`.
    fn empty(&mut self, range: Range, force: bool) -> Handed {
        let lines = self.leaving_with(&range);
        let writing = |core: &Self| lines.iter().any(|&line| Copy::of_dram(core.kept.entry(line)) == Copy::Moving);
        if !force && lines.iter().any(|&line| self.must_be_written(line, false)) {
            for &line in &lines {
                if self.must_be_written(line, false) && !self.write(line) {
                    break;
                }
            }
            return if writing(self) || !self.ssd.moving.is_empty() { Handed::Writing } else { Handed::Nothing };
        }
        if !force && writing(self) {
            return Handed::Writing;
        }
        let bases: Vec<u32> = self.memory.slabs_in(range.start, range.units).map(|found| found.slab.base.0).collect();
        for &base in &bases {
            self.memory.leave(base);
        }
        let before = self.counts.blocks;
        let evictions = self.counts.evictions;
        for line in lines.into_iter().rev() {
            // A block may have gone with one that it hung on, or have come back under another.
            if self.kept.live(line).is_some() && self.in_dram(line) && self.tree.is_dram_leaf(&self.kept, line) {
                self.leave(line);
            }
        }
        self.counts.evictions = evictions + before - self.counts.blocks;
        self.settle();
        for base in bases {
            if self.memory.slab(base).free == self.memory.slab(base).slab.slots() {
                self.release_slab(base);
            }
            self.counts.slabs_moved += 1;
        }
        Handed::Over
    }

    /// The blocks of a range and all in DRAM that hangs on them, parents before their children.
    fn leaving_with(&self, range: &Range) -> Vec<LineId> {
        let mut seen = Map::<LineId, ()>::default();
        let mut lines = Vec::new();
        for line in self.lines_in(range) {
            if seen.contains_key(&line) {
                continue;
            }
            let mut subtree = vec![line];
            let mut at = 0;
            while at < subtree.len() {
                let children = self.tree.children(&self.kept, subtree[at]);
                subtree.extend(children.take_while(|&child| self.in_dram(child)));
                at += 1;
            }
            subtree.retain(|&line| seen.insert(line, ()).is_none());
            lines.push(subtree);
        }
        // A subtree that was found later may be above one that was found before.
        lines.into_iter().rev().flatten().collect()
    }
}
