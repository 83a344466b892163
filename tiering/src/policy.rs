//! In which order blocks leave. A policy keeps lists over the entries' links; the core tells it what happens and asks
//! for victims.

mod list;
mod lru;

use lapis_config::{Hint, LineId, Time};

use crate::kept::Kept;

pub use lru::Lru;

/// Blocks of one pool and one slot size: what can make room for each other one by one. Counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shelf(pub u32);

/// Decides which block of a shelf goes first. The core keeps what may not go (parents of resident children, blocks that
/// somebody waits for or pinned) from going: it unlinks such a line when it comes up and makes it `cool` again later.
pub trait Policy {
    /// The number of shelves is now `shelves`.
    fn shelves(&mut self, shelves: usize);
    /// A block was stored or hit.
    fn used<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, now: Time);
    /// The block goes next among its like: its kin went, its session ended, or it came up as a victim before and could
    /// not go then.
    fn cool<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId);
    /// The line is no candidate from now on; it may be none already.
    fn unlink<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId);
    /// Who goes next; stays linked.
    fn coldest<K: Kept>(&self, kept: &K, shelf: Shelf, now: Time) -> Option<LineId>;
    /// Who goes after `line`, which is linked.
    fn after<K: Kept>(&self, kept: &K, shelf: Shelf, line: LineId) -> Option<LineId>;
    /// Whether a new block of the request that needs room is worth more than `victim`.
    fn admits<K: Kept>(&self, _kept: &K, _shelf: Shelf, _victim: LineId, _now: Time) -> bool {
        true
    }
    fn hinted<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, hint: Hint, now: Time);
    fn is_linked<K: Kept>(&self, kept: &K, line: LineId) -> bool;
    /// Checks the links of a shelf and returns the linked lines, the next victim first.
    fn audit<K: Kept>(&self, kept: &K, shelf: Shelf) -> Result<Vec<LineId>, String>;
}

/// The time as entries keep it: tenths of a second.
pub(crate) fn tenths(now: Time) -> u32 {
    (now.0 / 100_000) as u32
}
