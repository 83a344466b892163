//! Reservations: slots that the caller fills in place, by its own stores or by a device, and commits when they are full.

use std::{fmt, sync::Arc, time::Duration};

use lapis_arena::Mapping;
use lapis_config::{Key, PoolId, Refusal, SlotId, sizes};
use lapis_transport::frame::{COMMIT_ITEMS_MAX, ParentRef, PutResult, Request, ReserveResult};

use super::{Answer, Busy, Session, Step, Token, commits::Commits, put};
use crate::{ClientError, Pool, keys, sums};

/// A reserve under way.
pub struct ReserveJob {
    session: Arc<Session>,
    pool: Pool,
    id: PoolId,
    keys: Vec<Key>,
    parent: Option<Key>,
    /// Payload bytes of every block.
    bytes: u64,
    slot_bytes: u32,
    token: Option<Token>,
    results: Option<Vec<ReserveResult>>,
}

impl ReserveJob {
    /// Slots for these blocks of a chain. The first block's parent is `parent`, each other one's the block before it.
    pub fn new(session: Arc<Session>, pool: &Pool, keys: &[Key], parent: Option<Key>) -> Result<Self, ClientError> {
        pool.expect_kind(lapis_config::PoolKind::Chain)?;
        Self::of_bytes(session, pool, keys, parent, pool.block_bytes())
    }

    /// Slots for blocks of that many bytes.
    pub fn of_bytes(
        session: Arc<Session>,
        pool: &Pool,
        keys: &[Key],
        parent: Option<Key>,
        bytes: u64,
    ) -> Result<Self, ClientError> {
        if session.here().is_err() {
            return Err(ClientError::Closed);
        }
        keys::check(keys.len())?;
        let slot_bytes = u32::try_from(sizes::slot_bytes(pool.shape(), bytes)).unwrap_or(u32::MAX);
        let mut job = Self {
            pool: pool.clone(),
            id: PoolId::default(),
            keys: keys.to_vec(),
            parent,
            bytes,
            slot_bytes,
            token: None,
            results: None,
            session,
        };
        match job.session.pool_id(pool) {
            Some(id) => job.id = id,
            None => job.refuse(Refusal::Gone),
        }
        if !job.session.may_put() {
            job.refuse(Refusal::ReadOnly);
        }
        Ok(job)
    }

    fn refuse(&mut self, reason: Refusal) {
        self.results = Some(vec![ReserveResult::Refused(reason); self.keys.len()]);
    }

    /// Bytes of all blocks; what the default deadline depends on.
    pub fn bytes(&self) -> u64 {
        self.bytes * self.keys.len() as u64
    }

    /// Goes on without waiting. `left`: until the caller's deadline.
    pub fn step(&mut self, left: Duration) -> Step {
        if self.results.is_some() {
            return Step::Done;
        }
        let Some(token) = self.token else { return self.ask(left) };
        match self.session.take(token) {
            None => return Step::Waiting,
            Some(Answer::Reserved(results)) if results.len() == self.keys.len() => self.results = Some(results),
            Some(Answer::Refused(reason)) => self.refuse(reason),
            Some(other) => {
                tracing::error!(?other, "the daemon answered something else than was asked");
                self.refuse(Refusal::Gone);
            }
        }
        self.token = None;
        Step::Done
    }

    fn ask(&mut self, left: Duration) -> Step {
        let parent = self.parent.map_or(ParentRef::None, ParentRef::Key);
        let (pool, slot_bytes, keys) = (self.id, self.slot_bytes, self.keys.clone());
        let deadline_us = put::daemons_share_us(left);
        let asked =
            self.session.submit(|token| Request::Reserve { token, pool, slot_bytes, parent, deadline_us, keys });
        match asked {
            Ok(token) => {
                self.token = Some(token);
                Step::Posted
            }
            Err(Busy::Full) => Step::Full,
            Err(Busy::Gone) => {
                self.refuse(Refusal::Gone);
                Step::Done
            }
        }
    }

    /// What was reserved; keys without an answer are late.
    pub fn finish(mut self) -> Reservation {
        if let Some(token) = self.token.take() {
            self.session.abandon(token);
        }
        let late = vec![ReserveResult::Refused(Refusal::Late); self.keys.len()];
        let mut results = self.results.take().unwrap_or(late);
        self.session.give_back_unmapped(&mut results, self.slot_bytes);
        Reservation {
            session: self.session.clone(),
            pool: self.pool.clone(),
            id: self.id,
            keys: std::mem::take(&mut self.keys),
            parent: self.parent,
            bytes: self.bytes,
            slot_bytes: self.slot_bytes,
            results,
        }
    }
}

impl Session {
    /// Slots of an extent that this client has not heard of yet are no slots to it: settled here once, so that none is
    /// committed unfilled because the extent came in between.
    fn give_back_unmapped(&self, results: &mut [ReserveResult], slot_bytes: u32) {
        let mut unmapped = Vec::new();
        for result in results {
            if let ReserveResult::Slot(slot) = *result
                && self.maps.extents.locate(slot, u64::from(slot_bytes)).is_none()
            {
                unmapped.push(slot);
                *result = ReserveResult::Refused(Refusal::NotReady);
            }
        }
        self.give_back(&unmapped);
    }
}

impl Drop for ReserveJob {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.session.abandon(token);
        }
        // An answer that was taken and not made into a reservation.
        self.session.give_back(&slots_of(self.results.as_deref().unwrap_or_default()));
    }
}

fn slots_of(results: &[ReserveResult]) -> Vec<SlotId> {
    let slots = results.iter().filter_map(|result| match result {
        ReserveResult::Slot(slot) => Some(*slot),
        _ => None,
    });
    slots.collect()
}

/// Slots to be filled, one a key unless it exists or was refused. Dropping it aborts what was not committed: no device
/// may write there any more by then.
pub struct Reservation {
    session: Arc<Session>,
    pool: Pool,
    id: PoolId,
    keys: Vec<Key>,
    parent: Option<Key>,
    bytes: u64,
    slot_bytes: u32,
    results: Vec<ReserveResult>,
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.results).finish()
    }
}

impl Reservation {
    /// What was answered for each key.
    pub fn results(&self) -> &[ReserveResult] {
        &self.results
    }

    /// Bytes of every block.
    pub fn block_bytes(&self) -> u64 {
        self.bytes
    }

    /// Where block `i` is to be written, or `None` if it has no slot. Writable for [`Self::block_bytes`] while this
    /// lives; other processes map it, so no reference may be made of it.
    pub fn as_mut_ptr(&self, i: usize) -> Option<*mut u8> {
        self.place(i).map(|(_, mapping, offset)| mapping.as_ptr(offset))
    }

    /// Copies bytes into block `i`, from `offset` on. False if it has no slot.
    pub fn write_at(&mut self, i: usize, offset: u64, bytes: &[u8]) -> Result<bool, ClientError> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.bytes) {
            return Err(ClientError::Range { offset, bytes: bytes.len(), block_bytes: self.bytes });
        }
        Ok(self.write(i, offset, bytes))
    }

    /// Like `write_at`, the slot's tail included.
    pub(crate) fn write(&mut self, i: usize, offset: u64, bytes: &[u8]) -> bool {
        let Some((_, mapping, start)) = self.place(i) else { return false };
        assert!(offset + bytes.len() as u64 <= u64::from(self.slot_bytes), "a write within the slot");
        mapping.copy_in(start + offset as usize, bytes);
        true
    }

    /// The memory that block `i` is to be written to, for a device.
    #[cfg(feature = "cuda")]
    pub(super) fn memory(&self, i: usize) -> Option<(&Mapping, usize)> {
        self.place(i).map(|(_, mapping, offset)| (mapping, offset))
    }

    fn place(&self, i: usize) -> Option<(SlotId, &Mapping, usize)> {
        let Some(ReserveResult::Slot(slot)) = self.results.get(i) else { return None };
        let (mapping, offset) = self.session.maps.extents.locate(*slot, u64::from(self.slot_bytes))?;
        mapping.is_writable().then_some((*slot, mapping, offset))
    }

    /// Begins the commit of all slots, which are full now. Their sums are made by reading them.
    pub fn commit(self) -> CommitJob {
        self.commit_with(None)
    }

    /// Begins the commit with sums known already, one a key ([`Session::sum_of`]); for pools of one piece.
    pub fn commit_summed(self, sums: &[u64]) -> Result<CommitJob, ClientError> {
        if self.pool.pieces() != 1 {
            return Err(ClientError::Pieces { first: 0, end: 1, pieces: self.pool.pieces() });
        }
        if sums.len() != self.keys.len() {
            return Err(ClientError::KeyCount { keys: sums.len() });
        }
        Ok(self.commit_with(Some(sums)))
    }

    fn commit_with(mut self, sums: Option<&[u64]>) -> CommitJob {
        let mut commits = Commits::new(self.session.clone(), self.id, self.keys.len());
        let mut filled = Vec::new();
        for (i, result) in self.results.iter().enumerate() {
            match (result, self.place(i)) {
                (ReserveResult::Slot(_), Some((slot, mapping, offset))) => {
                    filled.push((i, slot, sums.map_or_else(|| self.sum(i, mapping, offset), |sums| sums[i])));
                }
                (ReserveResult::Slot(slot), None) => {
                    tracing::error!(slot = slot.0, "the daemon granted a slot outside of the arena");
                    self.session.give_back(&[*slot]);
                    commits.set(i, PutResult::Refused(Refusal::NotGranted));
                }
                (ReserveResult::Exists, _) => commits.set(i, PutResult::Exists),
                (ReserveResult::Refused(reason), _) => commits.set(i, PutResult::Refused(*reason)),
            }
        }
        lapis_arena::copy::sfence();
        self.results.clear();
        let keys = std::mem::take(&mut self.keys);
        CommitJob { keys, parent: self.parent, bytes: self.bytes as u32, filled, next: 0, commits }
    }

    fn sum(&self, i: usize, mapping: &Mapping, offset: usize) -> u64 {
        let (whole, pieces) = sums::slot_sum(&self.pool, &self.keys[i], self.bytes, mapping, offset);
        put::write_sums(mapping, offset + sizes::tail_offset(self.bytes) as usize, &pieces);
        whole
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.session.give_back(&slots_of(&self.results));
    }
}

/// A commit of reserved slots under way.
pub struct CommitJob {
    keys: Vec<Key>,
    parent: Option<Key>,
    bytes: u32,
    /// Index of the key, slot, sum.
    filled: Vec<(usize, SlotId, u64)>,
    next: usize,
    commits: Commits,
}

impl CommitJob {
    /// Bytes of all blocks; what the default deadline depends on.
    pub fn bytes(&self) -> u64 {
        u64::from(self.bytes) * self.keys.len() as u64
    }

    /// Goes on without waiting.
    pub fn step(&mut self) -> Step {
        self.commits.collect();
        while self.next < self.filled.len() && self.commits.pending() < COMMIT_ITEMS_MAX {
            let (i, slot, sum) = self.filled[self.next];
            self.commits.push(i, &self.keys, self.parent, slot, self.bytes, sum);
            self.next += 1;
        }
        if self.commits.pending() > 0 {
            return match self.commits.post() {
                Ok(()) | Err(Busy::Gone) => Step::Posted,
                Err(Busy::Full) => Step::Full,
            };
        }
        if self.commits.under_way() == 0 { Step::Done } else { Step::Waiting }
    }

    /// All results; what has none yet is late.
    pub fn finish(mut self) -> put::Put {
        for (i, slot, sum) in self.filled.split_off(self.next) {
            self.commits.push(i, &self.keys, self.parent, slot, self.bytes, sum);
        }
        self.commits.finish()
    }
}
