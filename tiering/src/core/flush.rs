//! An orderly end: what is only in DRAM is written to SSD, as far as there is time, so that a start without that memory
//! finds it again. The hottest blocks first, each after its parents: whenever time ends, what was written serves.

use lapis_config::{LineId, Time, UNIT_BYTES};

use super::Core;
use crate::{
    copies::Copy,
    kept::{Kept, SlotState},
    policy::Policy,
};

impl<K: Kept, P: Policy> Core<K, P> {
    /// Writes dirty blocks from now on, at most `bytes_max`: more than the log holds would only push each other out.
    pub fn flush(&mut self, now: Time, bytes_max: u64) {
        self.clock(now);
        if self.adopting.is_some() || !self.can_write() {
            return;
        }
        let mut lines = Vec::new();
        for found in self.memory.slabs() {
            let slots = (0..found.slab.slots()).map(|index| self.kept.slot_state(&found.slab, index));
            lines.extend(slots.filter_map(|state| match state {
                SlotState::Used(line) => Some(line),
                _ => None,
            }));
        }
        lines.retain(|&line| self.is_to_be_flushed(line));
        lines.sort_unstable_by_key(|&line| std::cmp::Reverse((self.kept.entry(line).last_use, line)));
        let mut left = bytes_max / UNIT_BYTES;
        lines.retain(|&line| {
            let pages = self.kept.live(line).map_or(0, |live| u64::from(self.pages_of(&live)));
            left = left.saturating_sub(pages);
            left > 0
        });
        lines.reverse();
        self.ssd.flush = lines;
    }

    /// Whether nothing is left to write, or nothing can be written.
    pub fn is_flushed(&self) -> bool {
        self.ssd.flush.is_empty() && self.ssd.moving.is_empty()
    }

    /// Blocks that are only in DRAM.
    pub fn dirty_blocks(&self) -> u64 {
        self.counts.lines_used - self.counts.ssd_blocks
    }

    fn is_to_be_flushed(&self, line: LineId) -> bool {
        let dirty = Copy::of_dram(self.kept.entry(line)) == Copy::Dirty;
        dirty && self.kept.live(line).is_some_and(|live| self.wants_ssd(line, &live))
    }

    /// Begins as many writes as devices take.
    pub(super) fn pump_flush(&mut self) {
        while let Some(&line) = self.ssd.flush.last() {
            if !self.can_write() {
                self.ssd.flush.clear();
                return;
            }
            if !self.is_to_be_flushed(line) {
                self.ssd.flush.pop();
                continue;
            }
            // Parents lie below their children on this stack at most once more than they have children: they are clean,
            // or on their way, when they come up again.
            let parent = LineId(self.kept.entry(line).parent);
            if parent.is_some() && self.is_to_be_flushed(parent) {
                self.ssd.flush.push(parent);
                continue;
            }
            if !self.write(line) {
                return;
            }
            self.ssd.flush.pop();
        }
    }
}
