//! The lists of a shelf, and what goes first of them.

use lapis_config::{Entry, LineId};

use super::{
    super::{
        Shelf,
        list::{List, listed},
    },
    Hazq, Life,
    class::CLASSES,
};
use crate::{
    copies::Copy,
    core::{HELD, PINNED},
    kept::Kept,
};

/// A block that is on SSD too is worth one part in so many of what it is worth else: to lose it costs a read, not a prefill.
const ON_SSD_PART: u32 = 4;

/// The new blocks of the last request that stored some.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fresh {
    pub deepest: LineId,
    pub count: u32,
}

pub(super) const NOTHING: Fresh = Fresh { deepest: LineId::NONE, count: 0 };

#[derive(Debug)]
pub(super) struct Lists {
    pub of: [List; CLASSES],
    pub fresh: Fresh,
}

impl Hazq {
    pub(super) fn list(&mut self, shelf: Shelf, class: u8) -> &mut List {
        &mut self.shelves[shelf.0 as usize].of[class as usize]
    }

    pub(super) fn take_out<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId) {
        if listed(kept.entry(line)) {
            let class = self.life(line).class;
            self.list(shelf, class).remove(kept, line);
            self.listed -= 1;
        }
    }

    pub(super) fn put_in<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, newest: bool) {
        let class = self.life(line).class;
        let list = self.list(shelf, class);
        if newest {
            list.push_newest(kept, line);
        } else {
            list.push_oldest(kept, line);
        }
        self.listed += 1;
    }

    /// Another class, at the same age.
    pub(super) fn reclass<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, class: u8) {
        let life = self.life(line);
        let linked = listed(kept.entry(line));
        self.take_out(kept, shelf, line);
        if life.known {
            self.hazards.cohorts.end(life.class, life.since);
        }
        self.begin(kept, line, Life { class, ..life });
        if linked {
            self.put_in(kept, shelf, line, true);
        }
    }

    pub(super) fn worth_of(&self, class: u8, since: u32, now: u32) -> u32 {
        self.hazards.value(class, now.saturating_sub(since))
    }

    /// What is lost with a list's tail, how old it is, and the list's number: the least one goes first.
    pub(super) fn tail<K: Kept>(
        &self,
        kept: &K,
        list: &List,
        class: usize,
        now: u32,
    ) -> Option<(u32, u32, usize, LineId)> {
        let line = list.oldest;
        let entry = line.is_some().then(|| kept.entry(line))?;
        Some((loss(entry, self.worth_of(class as u8, entry.last_use, now)), entry.last_use, class, line))
    }

    pub(super) fn tails<K: Kept>(
        &self,
        kept: &K,
        shelf: Shelf,
        now: u32,
    ) -> impl Iterator<Item = (u32, u32, usize, LineId)> {
        let lists = self.shelves[shelf.0 as usize].of.iter().enumerate();
        lists.filter_map(move |(class, list)| self.tail(kept, list, class, now))
    }

    /// The deepest new block of the last request, if it may go.
    pub(super) fn fresh<K: Kept>(&self, kept: &K, shelf: Shelf) -> Option<LineId> {
        let line = self.shelves[shelf.0 as usize].fresh.deepest;
        let entry = line.is_some().then(|| kept.entry(line))?;
        let may_go = listed(entry) && entry.flags & (HELD | PINNED) == 0 && Copy::of_dram(entry) != Copy::Moving;
        (may_go && is_leaf(kept, entry)).then_some(line)
    }
}

/// What DRAM loses with a block of that worth.
pub(super) fn loss(entry: &Entry, worth: u32) -> u32 {
    if Copy::of_dram(entry) == Copy::Clean { worth / ON_SSD_PART } else { worth }
}

fn is_leaf<K: Kept>(kept: &K, entry: &Entry) -> bool {
    let child = LineId(entry.first_child);
    !child.is_some() || !Copy::of_dram(kept.entry(child)).is_readable()
}
