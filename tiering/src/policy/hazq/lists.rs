//! The lists of a shelf, and what goes first of them.

use lapis_config::{Entry, LineId};

use super::{
    super::{
        Shelf,
        list::{EMPTY, List, listed},
    },
    Hazq, Life,
    class::CLASSES,
    hazards::Hazards,
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
    tails: Tails,
}

impl Lists {
    pub fn new() -> Self {
        Self { of: [EMPTY; CLASSES], fresh: NOTHING, tails: Tails { at: None, stale: 0, losses: [NO_TAIL; CLASSES] } }
    }
}

/// What goes with the tails, and how old they are: victims come by the dozen, and each changes one list.
#[derive(Debug)]
struct Tails {
    /// Of which time, and which state of what was learned and of copies on SSD.
    at: Option<(u32, u64)>,
    /// Classes whose lists changed since.
    stale: u32,
    /// Loss, and below it the time of the last use.
    losses: [u64; CLASSES],
}

/// Of an empty list.
const NO_TAIL: u64 = u64::MAX;
const ALL: u32 = (1 << CLASSES) - 1;

impl Hazq {
    #[inline]
    pub(super) fn list(&mut self, shelf: Shelf, class: u8) -> &mut List {
        let lists = &mut self.shelves[shelf.0 as usize];
        lists.tails.stale |= 1 << class;
        &mut lists.of[class as usize]
    }

    /// The tail that is the least loss, and how much that is; of equals the oldest.
    pub(super) fn least<K: Kept>(&mut self, kept: &K, shelf: Shelf, now: u32) -> Option<(u32, LineId)> {
        let Lists { of, tails, .. } = &mut self.shelves[shelf.0 as usize];
        let at = Some((now, self.epoch));
        if tails.at != at {
            (tails.at, tails.stale) = (at, ALL);
        }
        while tails.stale != 0 {
            let class = tails.stale.trailing_zeros() as usize;
            tails.stale &= tails.stale - 1;
            tails.losses[class] = loss_of_tail(kept, &self.hazards, &of[class], class, now);
        }
        let (mut least, mut class) = (NO_TAIL, 0);
        for (at, &loss) in tails.losses.iter().enumerate() {
            (least, class) = if loss < least { (loss, at) } else { (least, class) };
        }
        (least != NO_TAIL).then(|| ((least >> 32) as u32, of[class].oldest))
    }

    /// Whether what is remembered of the tails is so.
    pub(super) fn audit_tails<K: Kept>(&self, kept: &K, shelf: Shelf) -> Result<(), String> {
        let lists = &self.shelves[shelf.0 as usize];
        let Some((now, epoch)) = lists.tails.at else { return Ok(()) };
        let known = |class: &usize| epoch == self.epoch && lists.tails.stale >> class & 1 == 0;
        for class in (0..CLASSES).filter(known) {
            let (loss, said) =
                (loss_of_tail(kept, &self.hazards, &lists.of[class], class, now), lists.tails.losses[class]);
            if loss != said {
                return Err(format!("class {class}: its tail costs {loss:#x}, not {said:#x}"));
            }
        }
        Ok(())
    }

    #[inline]
    pub(super) fn take_out<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId) {
        if listed(kept.entry(line)) {
            let class = self.life(line).class;
            self.list(shelf, class).remove(kept, line);
            self.listed -= 1;
        }
    }

    #[inline]
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

    #[inline]
    pub(super) fn worth_of(&self, class: u8, since: u32, now: u32) -> u32 {
        self.hazards.value(class, now.saturating_sub(since))
    }

    /// What is lost with a list's tail and how old it is, the list's number, and the tail: the least one goes first.
    pub(super) fn tail<K: Kept>(&self, kept: &K, list: &List, class: usize, now: u32) -> Option<(u64, usize, LineId)> {
        let loss = loss_of_tail(kept, &self.hazards, list, class, now);
        (loss != NO_TAIL).then_some((loss, class, list.oldest))
    }

    pub(super) fn tails<K: Kept>(
        &self,
        kept: &K,
        shelf: Shelf,
        now: u32,
    ) -> impl Iterator<Item = (u64, usize, LineId)> {
        let lists = self.shelves[shelf.0 as usize].of.iter().enumerate();
        lists.filter_map(move |(class, list)| self.tail(kept, list, class, now))
    }

    /// The deepest new block of the last request, if it may go.
    #[inline]
    pub(super) fn fresh<K: Kept>(&self, kept: &K, shelf: Shelf) -> Option<LineId> {
        let line = self.shelves[shelf.0 as usize].fresh.deepest;
        let entry = line.is_some().then(|| kept.entry(line))?;
        let may_go = listed(entry) && entry.flags & (HELD | PINNED) == 0 && Copy::of_dram(entry) != Copy::Moving;
        (may_go && is_leaf(kept, entry)).then_some(line)
    }
}

/// What goes with a list's tail, and below it the time of its last use.
#[inline]
fn loss_of_tail<K: Kept>(kept: &K, hazards: &Hazards, list: &List, class: usize, now: u32) -> u64 {
    if !list.oldest.is_some() {
        return NO_TAIL;
    }
    let entry = kept.entry(list.oldest);
    let worth = hazards.value(class as u8, now.saturating_sub(entry.last_use));
    u64::from(loss(entry, worth)) << 32 | u64::from(entry.last_use)
}

/// What DRAM loses with a block of that worth.
#[inline]
pub(super) fn loss(entry: &Entry, worth: u32) -> u32 {
    if Copy::of_dram(entry) == Copy::Clean { worth / ON_SSD_PART } else { worth }
}

#[inline]
fn is_leaf<K: Kept>(kept: &K, entry: &Entry) -> bool {
    let child = LineId(entry.first_child);
    !child.is_some() || !Copy::of_dram(kept.entry(child)).is_readable()
}
