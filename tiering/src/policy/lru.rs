//! Least recently used first; one list per shelf.

use lapis_config::{Hint, LineId, Time};

use super::{
    Policy, Request, Shelf, Stored, Use,
    list::{EMPTY, List, listed},
    tenths,
};
use crate::kept::Kept;

#[derive(Debug, Default)]
pub struct Lru {
    lists: Vec<List>,
}

impl Lru {
    fn list(&mut self, shelf: Shelf) -> &mut List {
        &mut self.lists[shelf.0 as usize]
    }

    #[inline]
    fn renew<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId) {
        let list = self.list(shelf);
        if list.newest == line {
            return;
        }
        if listed(kept.entry(line)) {
            list.remove(kept, line);
        }
        list.push_newest(kept, line);
    }
}

impl Policy for Lru {
    fn shelves(&mut self, shelves: usize) {
        self.lists.resize(shelves, EMPTY);
    }

    #[inline]
    fn used<K: Kept>(&mut self, kept: &mut K, shelf: Option<Shelf>, line: LineId, _by: Use, now: Time) {
        kept.entry_mut(line).last_use = tenths(now);
        if let Some(shelf) = shelf {
            self.renew(kept, shelf, line);
        }
    }

    fn stored<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, block: &Stored<'_>, _request: Request, now: Time) {
        self.used(kept, Some(shelf), block.line, Use::Again, now);
    }

    fn enters<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, _now: Time) {
        self.renew(kept, shelf, line);
    }

    fn cool<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId) {
        self.unlink(kept, shelf, line);
        self.list(shelf).push_oldest(kept, line);
    }

    fn unlink<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId) {
        if listed(kept.entry(line)) {
            self.list(shelf).remove(kept, line);
        }
    }

    fn coldest<K: Kept>(&mut self, kept: &K, shelf: Shelf, _now: Time) -> Option<LineId> {
        self.oldest(kept, shelf)
    }

    fn oldest<K: Kept>(&self, _kept: &K, shelf: Shelf) -> Option<LineId> {
        let oldest = self.lists[shelf.0 as usize].oldest;
        oldest.is_some().then_some(oldest)
    }

    fn after<K: Kept>(&self, kept: &K, _shelf: Shelf, line: LineId, _now: Time) -> Option<LineId> {
        let newer = LineId(kept.entry(line).newer);
        newer.is_some().then_some(newer)
    }

    /// A priority is kept in the class for a policy that can honour it; to plain LRU it is a use.
    fn hinted<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, hint: Hint, now: Time) {
        match hint {
            Hint::Ended => self.cool(kept, shelf, line),
            Hint::WillReturn | Hint::Pinned { .. } => self.used(kept, Some(shelf), line, Use::Again, now),
            Hint::Priority(priority) => {
                self.used(kept, Some(shelf), line, Use::Again, now);
                kept.entry_mut(line).class = priority;
            }
        }
    }

    fn is_linked<K: Kept>(&self, kept: &K, line: LineId) -> bool {
        listed(kept.entry(line))
    }

    fn audit<K: Kept>(&self, kept: &K, shelf: Shelf) -> Result<Vec<LineId>, String> {
        self.lists[shelf.0 as usize].audit(kept)
    }
}
