//! A doubly linked list through entries. Invariant: a line is in at most one list, and flagged so.

use lapis_config::{Entry, LineId};

use crate::kept::Kept;

/// Bit of `Entry::flags`: in a list.
const LISTED: u8 = 1 << 3;

#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub newest: LineId,
    pub oldest: LineId,
}

pub(super) const EMPTY: List = List { newest: LineId::NONE, oldest: LineId::NONE };

pub(super) fn listed(entry: &Entry) -> bool {
    entry.flags & LISTED != 0
}

impl List {
    #[inline]
    pub fn push_newest<K: Kept>(&mut self, kept: &mut K, line: LineId) {
        let entry = kept.entry_mut(line);
        assert!(!listed(entry), "a line is in one list at most");
        entry.flags |= LISTED;
        entry.newer = LineId::NONE.0;
        entry.older = self.newest.0;
        if self.newest.is_some() {
            kept.entry_mut(self.newest).newer = line.0;
        } else {
            self.oldest = line;
        }
        self.newest = line;
    }

    pub fn push_oldest<K: Kept>(&mut self, kept: &mut K, line: LineId) {
        let entry = kept.entry_mut(line);
        assert!(!listed(entry), "a line is in one list at most");
        entry.flags |= LISTED;
        entry.older = LineId::NONE.0;
        entry.newer = self.oldest.0;
        if self.oldest.is_some() {
            kept.entry_mut(self.oldest).older = line.0;
        } else {
            self.newest = line;
        }
        self.oldest = line;
    }

    #[inline]
    pub fn remove<K: Kept>(&mut self, kept: &mut K, line: LineId) {
        let entry = kept.entry_mut(line);
        assert!(listed(entry), "only a listed line is taken out");
        entry.flags &= !LISTED;
        let (newer, older) = (LineId(entry.newer), LineId(entry.older));
        if newer.is_some() {
            kept.entry_mut(newer).older = older.0;
        } else {
            self.newest = older;
        }
        if older.is_some() {
            kept.entry_mut(older).newer = newer.0;
        } else {
            self.oldest = newer;
        }
    }

    /// The lines from the oldest on, or what is wrong with the links.
    pub fn audit<K: Kept>(&self, kept: &K) -> Result<Vec<LineId>, String> {
        let (mut lines, mut newer) = (Vec::new(), LineId::NONE);
        let mut at = self.newest;
        while at.is_some() {
            let entry = kept.entry(at);
            if entry.newer != newer.0 || !listed(entry) || lines.len() > kept.lines() as usize {
                return Err(format!("line {}: broken link of a list", at.0));
            }
            lines.push(at);
            newer = at;
            at = LineId(entry.older);
        }
        if self.oldest != newer {
            return Err(format!("a list ends at line {} and not at {}", newer.0, self.oldest.0));
        }
        lines.reverse();
        Ok(lines)
    }
}
