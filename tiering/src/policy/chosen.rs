//! The policy that the options name.

use lapis_config::{Hint, Key, LineId, PolicyName, PoolId, Time};

use super::{Hazq, Lru, Policy, Request, Shelf, Stored, Use};
use crate::kept::{Kept, Live};

/// One of the policies; which one is known when the daemon starts.
#[derive(Debug)]
pub enum Chosen {
    Lru(Lru),
    Hazq(Box<Hazq>),
}

impl Chosen {
    /// The policy of that name; what it remembers of blocks that are gone takes so many bytes.
    pub fn new(name: PolicyName, ghost_bytes: u64) -> Self {
        match name {
            PolicyName::Lru => Self::Lru(Lru::default()),
            PolicyName::Hazq => Self::Hazq(Box::new(Hazq::new(ghost_bytes))),
        }
    }
}

macro_rules! both {
    ($self:ident, $policy:ident => $call:expr) => {
        match $self {
            Self::Lru($policy) => $call,
            Self::Hazq($policy) => $call,
        }
    };
}

impl Policy for Chosen {
    fn shelves(&mut self, shelves: usize) {
        both!(self, policy => policy.shelves(shelves));
    }
    fn asked<K: Kept>(&self, kept: &K, deepest: LineId, now: Time) -> Request {
        both!(self, policy => policy.asked(kept, deepest, now))
    }
    fn storing<'a, K: Kept>(
        &self,
        kept: &K,
        above: Option<LineId>,
        pool: PoolId,
        keys: impl DoubleEndedIterator<Item = &'a Key>,
        now: Time,
    ) -> Request {
        both!(self, policy => policy.storing(kept, above, pool, keys, now))
    }
    fn used<K: Kept>(&mut self, kept: &mut K, shelf: Option<Shelf>, line: LineId, by: Use, now: Time) {
        both!(self, policy => policy.used(kept, shelf, line, by, now));
    }
    fn stored<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, block: &Stored<'_>, request: Request, now: Time) {
        both!(self, policy => policy.stored(kept, shelf, block, request, now));
    }
    fn enters<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, now: Time) {
        both!(self, policy => policy.enters(kept, shelf, line, now));
    }
    fn gone<K: Kept>(&mut self, kept: &K, line: LineId, live: &Live, now: Time) {
        both!(self, policy => policy.gone(kept, line, live, now));
    }
    fn declined<K: Kept>(
        &mut self,
        kept: &mut K,
        above: Option<&Key>,
        pool: PoolId,
        key: &Key,
        request: Request,
        now: Time,
    ) {
        both!(self, policy => policy.declined(kept, above, pool, key, request, now));
    }
    fn cool<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId) {
        both!(self, policy => policy.cool(kept, shelf, line));
    }
    fn unlink<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId) {
        both!(self, policy => policy.unlink(kept, shelf, line));
    }
    fn coldest<K: Kept>(&mut self, kept: &K, shelf: Shelf, now: Time) -> Option<LineId> {
        both!(self, policy => policy.coldest(kept, shelf, now))
    }
    fn copied(&mut self) {
        both!(self, policy => policy.copied());
    }
    fn oldest<K: Kept>(&self, kept: &K, shelf: Shelf) -> Option<LineId> {
        both!(self, policy => policy.oldest(kept, shelf))
    }
    fn after<K: Kept>(&self, kept: &K, shelf: Shelf, line: LineId, now: Time) -> Option<LineId> {
        both!(self, policy => policy.after(kept, shelf, line, now))
    }
    fn admits<K: Kept>(&self, kept: &K, victim: LineId, request: Request, now: Time) -> bool {
        both!(self, policy => policy.admits(kept, victim, request, now))
    }
    fn worth<K: Kept>(&self, kept: &K, line: LineId, now: Time) -> u32 {
        both!(self, policy => policy.worth(kept, line, now))
    }
    fn hinted<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, hint: Hint, now: Time) {
        both!(self, policy => policy.hinted(kept, shelf, line, hint, now));
    }
    fn is_linked<K: Kept>(&self, kept: &K, line: LineId) -> bool {
        both!(self, policy => policy.is_linked(kept, line))
    }
    fn learned(&mut self, saved: &[u8], now: Time) {
        both!(self, policy => policy.learned(saved, now));
    }
    fn audit<K: Kept>(&self, kept: &K, shelf: Shelf) -> Result<Vec<LineId>, String> {
        both!(self, policy => policy.audit(kept, shelf))
    }
}
