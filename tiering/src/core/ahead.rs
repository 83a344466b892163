//! Write-back: blocks go to SSD ahead of need, coldest first, so that the eviction of a clean one is free.

use lapis_config::{LineId, UNIT_BYTES};

use super::{Core, HELD, PINNED, ssd::Moving};
use crate::{
    copies::Copy,
    kept::Kept,
    log::LISTED_MAX,
    policy::{Policy, Shelf},
};

/// Most blocks of a shelf looked at in one go, and events between two of them.
const SCAN_MAX: usize = 512;
const SCAN_EVERY: u32 = 64;
/// A write that takes longer is not waited for by those that need room, us: its device may hang.
const SLOW_US: u64 = 200_000;

impl<K: Kept, P: Policy> Core<K, P> {
    /// Writes dirty blocks among those that go next, as far as devices have time for it: once less memory is free than is
    /// to be clean ahead of need, so much of it, over all shelves by what they use.
    pub(super) fn write_ahead(&mut self) {
        self.ssd.events += 1;
        if self.ssd.events < SCAN_EVERY || !self.can_write() || !self.is_low() {
            return;
        }
        self.ssd.events = 0;
        for shelf in self.memory.shelves() {
            let own = self.memory.of(shelf);
            let used: u64 = own.slabs.iter().map(|&base| u64::from(self.memory.slab(base).used)).sum();
            // Blocks of it, of as many bytes as its share of what is used.
            let part = u128::from(used) * u128::from(self.options.write_back_ahead_bytes);
            let ahead = (part / u128::from(self.counts.bytes_used.max(1))) as u64;
            let mut at = self.policy.coldest(&self.kept, shelf, self.now);
            for _ in 0..ahead.clamp(1, SCAN_MAX as u64) {
                let Some(line) = at else { break };
                at = self.policy.after(&self.kept, shelf, line, self.now);
                let Some(live) = self.kept.live(line) else { continue };
                let dirty = Copy::of_dram(self.kept.entry(line)) == Copy::Dirty;
                if dirty && self.wants_ssd(line, &live) && !self.write(line) {
                    return;
                }
            }
        }
    }

    /// The next `write_ahead` is not passed over.
    pub(super) fn write_ahead_now(&mut self) {
        self.ssd.events = SCAN_EVERY;
    }

    fn is_low(&self) -> bool {
        let bytes = u64::from(self.memory.buddy.units()) * UNIT_BYTES;
        let used = self.counts.bytes_used + self.magazine_units * UNIT_BYTES;
        used + self.options.write_back_ahead_bytes >= bytes
    }

    /// Blocks of the shelf that leave as soon as they are on SSD.
    pub(super) fn leaving(&self, shelf: Shelf) -> u32 {
        let soon = |moving: &&Moving| moving.leaves == Some(shelf) && self.now.since_us(moving.since) < SLOW_US;
        self.ssd.moving.values().filter(soon).count() as u32
    }

    /// Begins to write a victim, and those above it that are next in turn once it is gone: at most `most`. Returns how
    /// many.
    pub(super) fn write_chain(&mut self, shelf: Shelf, victim: LineId, most: u32) -> u32 {
        let last_use = self.kept.entry(victim).last_use;
        let (mut at, mut begun) = (victim, 0);
        while begun < most && self.write(at) {
            begun += 1;
            self.ssd.moving.get_mut(&at).expect("begun above").leaves = Some(shelf);
            let parent = LineId(self.kept.entry(at).parent);
            if !parent.is_some() || !self.tree.is_only_in_dram(&self.kept, parent, at) {
                break;
            }
            let entry = self.kept.entry(parent);
            // What is not linked came up before.
            let warmer = entry.last_use > last_use && self.policy.is_linked(&self.kept, parent);
            if warmer || entry.flags & (HELD | PINNED) != 0 || !self.must_be_written(parent, false) {
                break;
            }
            at = parent;
        }
        begun
    }

    /// A block on SSD whose parent is not serves nothing after a cold start: with time to spare those above it follow, as
    /// many at once as a page lists.
    pub(super) fn climb(&mut self, line: LineId) {
        let mut at = LineId(self.kept.entry(line).parent);
        for _ in 0..LISTED_MAX {
            if !at.is_some() || self.ssd.write_pages * 2 > self.flight_pages_max() {
                return;
            }
            let Some(live) = self.kept.live(at) else { return };
            let dirty = Copy::of_dram(self.kept.entry(at)) == Copy::Dirty;
            if !dirty || !self.wants_ssd(at, &live) || !self.write(at) {
                return;
            }
            at = LineId(self.kept.entry(at).parent);
        }
    }
}
