//! In which order blocks leave. A policy keeps lists over the entries' links; the core tells it what happens and asks
//! for victims.

mod chosen;
mod hazq;
mod list;
mod lru;

use lapis_config::{Hint, Key, LineId, PoolId, Time};

use crate::kept::{Kept, Live};

pub use chosen::Chosen;
pub use hazq::Hazq;
pub use lru::Lru;

/// Blocks of one pool and one slot size: what can make room for each other one by one. Counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shelf(pub u32);

/// What a policy takes a request for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub(crate) turn: u8,
    pub(crate) class: u8,
    /// Of the blocks that it stores, so many from the first on lead to one that others share.
    pub(crate) shared: u32,
}

/// Why a block was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// An engine asked for it.
    Asked(Request),
    /// The same request goes on: it stores the block again, or others below it.
    Again,
}

/// A block that was stored.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    pub line: LineId,
    pub pool: PoolId,
    pub key: &'a Key,
    pub parent: Option<LineId>,
    /// As long as blocks of its pool are.
    pub full: bool,
}

/// Decides which block of a shelf goes first. The core keeps what may not go (parents of resident children, blocks that
/// somebody waits for or pinned) from going: it unlinks such a line when it comes up and makes it `cool` again later.
pub trait Policy {
    /// The number of shelves is now `shelves`.
    fn shelves(&mut self, shelves: usize);
    /// A request comes whose deepest block that is there is `deepest`.
    fn asked<K: Kept>(&self, _kept: &K, _deepest: LineId, _now: Time) -> Request {
        Request::default()
    }
    /// A request stores, or wants to store, these blocks, which are not there, below one that is or at the root.
    fn storing<'a, K: Kept>(
        &self,
        _kept: &K,
        _above: Option<LineId>,
        _pool: PoolId,
        _keys: impl DoubleEndedIterator<Item = &'a Key>,
        _now: Time,
    ) -> Request {
        Request::default()
    }
    /// A block was used; it is in DRAM if a shelf is given.
    fn used<K: Kept>(&mut self, kept: &mut K, shelf: Option<Shelf>, line: LineId, by: Use, now: Time);
    /// A block came that was not there.
    fn stored<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, block: &Stored<'_>, request: Request, now: Time);
    /// A block that is known came into DRAM, from SSD or by adoption: it was not used now.
    fn enters<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, now: Time);
    /// A block that is in no list is nowhere any more.
    fn gone<K: Kept>(&mut self, _kept: &K, _line: LineId, _live: &Live, _now: Time) {}
    /// A block was not stored, for all that could make room for it is worth more. It would have been below `above`.
    fn declined<K: Kept>(
        &mut self,
        _kept: &mut K,
        _above: Option<&Key>,
        _pool: PoolId,
        _key: &Key,
        _request: Request,
        _now: Time,
    ) {
    }
    /// The block goes next among its like: its kin went, its session ended, or it came up as a victim before and could
    /// not go then.
    fn cool<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId);
    /// The line is no candidate from now on; it may be none already.
    fn unlink<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId);
    /// Who goes next; stays linked.
    fn coldest<K: Kept>(&mut self, kept: &K, shelf: Shelf, now: Time) -> Option<LineId>;
    /// A linked block came to be on SSD too, or is not any more.
    fn copied(&mut self) {}
    /// Who of those that may go next was unused for longest: shelves are compared by it.
    fn oldest<K: Kept>(&self, kept: &K, shelf: Shelf) -> Option<LineId>;
    /// Who goes after `line`, which is linked; about.
    fn after<K: Kept>(&self, kept: &K, shelf: Shelf, line: LineId, now: Time) -> Option<LineId>;
    /// Whether new blocks of a request that needs room are worth at least as much as `victim`: those that lead to a
    /// shared one, or others.
    fn admits<K: Kept>(&self, _kept: &K, _victim: LineId, _request: Request, _now: Time) -> bool {
        true
    }
    /// Hits that a block promises for the room that it takes, on a scale of the policy's own.
    fn worth<K: Kept>(&self, _kept: &K, _line: LineId, _now: Time) -> u32 {
        0
    }
    fn hinted<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, hint: Hint, now: Time);
    fn is_linked<K: Kept>(&self, kept: &K, line: LineId) -> bool;
    /// What a former life learned, as it gave it to `Kept::keep_learned`; any bytes are survived.
    fn learned(&mut self, _saved: &[u8], _now: Time) {}
    /// Checks the links of a shelf and returns the linked lines, the next victim first.
    fn audit<K: Kept>(&self, kept: &K, shelf: Shelf) -> Result<Vec<LineId>, String>;
}

/// The time as entries keep it: tenths of a second.
pub(crate) fn tenths(now: Time) -> u32 {
    (now.0 / 100_000) as u32
}
