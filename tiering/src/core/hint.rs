//! What engines know of the future, and what they want gone.

use std::collections::{BTreeMap, BTreeSet};

use lapis_config::{
    Hint, Key, LineId, PoolId, Time,
    planted::{self, Bug},
};

use super::{Core, PINNED};
use crate::{
    copies::Copy,
    face::Caller,
    kept::Kept,
    policy::{Policy, Shelf, Use},
};

/// Blocks that may be pinned by hints at once; more are only used.
const PINS_MAX: usize = 1 << 16;

/// Soft pins: such blocks go last, and only until their time is over.
#[derive(Default)]
pub(super) struct Pins {
    ends: BTreeMap<LineId, Time>,
    /// Pinned blocks that came up as victims and would be ones, per shelf, the first to end first.
    waiting: BTreeSet<(Shelf, Time, LineId)>,
}

impl Pins {
    pub fn lines(&self) -> impl Iterator<Item = LineId> + '_ {
        self.ends.keys().copied()
    }

    pub fn end(&self, line: LineId) -> Option<Time> {
        self.ends.get(&line).copied()
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn wait(&mut self, shelf: Shelf, line: LineId) {
        self.waiting.insert((shelf, self.ends[&line], line));
    }

    pub fn forget(&mut self, shelf: Shelf, line: LineId) {
        let end = self.ends.remove(&line).expect("a pinned line has an end");
        self.waiting.remove(&(shelf, end, line));
    }

    fn first(&self, shelf: Shelf) -> Option<(Time, LineId)> {
        let mut of_shelf = self.waiting.range((shelf, Time(0), LineId(0))..=(shelf, Time::NEVER, LineId::NONE));
        of_shelf.next().map(|&(_, end, line)| (end, line))
    }
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// Takes note of what an engine knows of a chain's blocks. What is not there is left out.
    pub fn hint(&mut self, now: Time, pool: PoolId, keys: &[Key], hint: Hint) {
        self.clock(now);
        if self.adopting.is_some() {
            return;
        }
        if hint == Hint::Ended {
            return self.end_session(pool, keys);
        }
        // The root last: it is the most recent.
        for key in keys.iter().rev() {
            let Some(line) = self.kept.find(pool, key).filter(|&line| self.in_dram(line)) else { continue };
            let shelf = self.shelf_of_line(line);
            self.unpin(shelf, line);
            self.policy.hinted(&mut self.kept, shelf, line, hint, self.now);
            if let Hint::Pinned { ttl_ms } = hint
                && self.pins.ends.len() < PINS_MAX
            {
                self.pins.ends.insert(line, Time(self.now.0.saturating_add(u64::from(ttl_ms) * 1000)));
                self.kept.entry_mut(line).flags |= PINNED;
            }
        }
        self.stirred = true;
        self.run();
    }

    /// The blocks that only this chain has go next, the deepest first.
    fn end_session(&mut self, pool: PoolId, keys: &[Key]) {
        let deepest = keys.iter().rev().find_map(|key| self.kept.find(pool, key));
        let mut own: Vec<LineId> = Vec::new();
        let mut at = deepest.filter(|&line| self.in_dram(line) && self.tree.is_dram_leaf(&self.kept, line));
        while let Some(line) = at {
            own.push(line);
            let parent = LineId(self.kept.entry(line).parent);
            let alone = parent.is_some() && self.tree.has_one_child(&self.kept, parent);
            at = (alone && self.in_dram(parent)).then_some(parent);
        }
        for line in own.into_iter().rev() {
            let shelf = self.shelf_of_line(line);
            self.unpin(shelf, line);
            if self.policy.is_linked(&self.kept, line) {
                self.policy.hinted(&mut self.kept, shelf, line, Hint::Ended, self.now);
            } else {
                self.relink(line);
            }
        }
    }

    /// A pin ends: a block that came up meanwhile is a candidate again.
    fn unpin(&mut self, shelf: Shelf, line: LineId) {
        let flags = &mut self.kept.entry_mut(line).flags;
        if *flags & PINNED != 0 {
            *flags &= !PINNED;
            self.pins.forget(shelf, line);
            self.relink(line);
        }
    }

    /// Blocks of the shelf whose pin is over are candidates again.
    pub(super) fn expire_pins(&mut self, shelf: Shelf) {
        while let Some((end, line)) = self.pins.first(shelf).filter(|&(end, _)| end <= self.now) {
            self.pins.waiting.remove(&(shelf, end, line));
            self.unpin(shelf, line);
        }
    }

    /// The pinned block that goes when nothing else can: the one whose pin ends first.
    pub(super) fn softest(&mut self, shelf: Shelf) -> Option<LineId> {
        while let Some((end, line)) = self.pins.first(shelf) {
            self.pins.waiting.remove(&(shelf, end, line));
            let held = self.kept.entry(line).flags & super::HELD != 0;
            // Used again, held or a parent since it came up: then it will come up again.
            let moving = Copy::of_dram(self.kept.entry(line)) == Copy::Moving;
            let free = !held && !moving && !self.policy.is_linked(&self.kept, line);
            if free && self.tree.is_dram_leaf(&self.kept, line) {
                return Some(line);
            }
        }
        None
    }

    /// These blocks are wanted soon: what is there is used, what is on SSD is read.
    pub fn prefetch(&mut self, now: Time, pool: PoolId, keys: &[Key]) {
        self.clock(now);
        if self.adopting.is_some() {
            return;
        }
        let there = keys.iter().take_while(|key| self.kept.find(pool, key).is_some()).count();
        let Some(deepest) = there.checked_sub(1) else { return };
        let line = self.kept.find(pool, &keys[deepest]).expect("found above");
        let live = self.kept.live(line).expect("found above");
        let request = self.policy.asked(&self.kept, line, self.now);
        self.touch(line, &live, there as u32, Use::Asked(request));
        for key in &keys[..there] {
            let Some(line) = self.kept.find(pool, key) else { continue };
            if !self.in_dram(line) && !self.is_on_gpu(line) && !self.fetch_unasked(line) {
                break;
            }
        }
        self.run();
    }

    /// Drops these blocks and all below them, whoever waits for them. Answered by `Removed` with how many were there, once
    /// none of them can come back.
    pub fn remove(&mut self, now: Time, to: Caller, pool: PoolId, keys: &[Key]) {
        self.clock(now);
        if self.adopting.is_some() || !self.pools.contains_key(&pool) {
            return self.removed(to, 0);
        }
        self.ticket_opened(to);
        self.wait_until_purged(pool);
        let mut removed = 0;
        for key in keys {
            if self.is_coming() && !planted::is(Bug::EarlyRemovalForgotten) {
                self.removed_early(pool, key);
            }
            if let Some(line) = self.kept.find(pool, key) {
                removed += self.drop_subtree(line);
            }
            // What was under the key before may be gone, and not for good yet.
            self.wait_until_forgotten(pool, *key);
        }
        self.settle();
        self.ticket_closed(removed);
        self.run();
    }

    /// Drops every block of the pool. Answered like `remove`.
    pub fn purge(&mut self, now: Time, to: Caller, pool: PoolId) {
        self.clock(now);
        if self.adopting.is_some() || !self.pools.contains_key(&pool) {
            return self.removed(to, 0);
        }
        self.ticket_opened(to);
        let slabs = self.memory.slabs().filter(|found| found.slab.pool == pool);
        let mut lines: Vec<LineId> = slabs.flat_map(|found| self.lines_of(found)).collect();
        lines.extend(self.lines_on_ssd(None));
        lines.extend(self.lines_on_gpus());
        let mut removed = 0;
        self.purging(pool, true);
        for line in lines {
            if self.kept.live(line).is_some_and(|live| live.pool == pool) {
                removed += self.drop_subtree(line);
            }
        }
        self.purging(pool, false);
        self.settle();
        self.ticket_closed(removed);
        self.run();
    }
}
