//! Puts: slots from the magazine, copies fused with their sums, commits posted every few blocks so that the daemon works
//! while we copy and a sleeping one wakes early. A batch larger than the magazine flows through it.

use std::{sync::Arc, time::Duration};

use lapis_arena::{copy, sum};
use lapis_config::{Key, PoolId, PoolKind, Refusal, SlotId, sizes};
use lapis_transport::frame::{COMMIT_ITEMS_MAX, PutResult, Request};

use super::{Answer, Busy, Session, Step, Token, commits::Commits};
use crate::{
    ClientError, Pool, keys,
    sums::BlockSum,
    vectors::{Blocks, Src},
};

/// Bytes filled between two commits.
pub(super) const COMMIT_BYTES: u64 = 256 << 10;

/// How often a put begins again because blocks of its own were evicted before those below them came.
const AGAIN_MAX: u32 = 2;

/// How to put, reserve or commit.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// Instead of the daemon's default, 1 s + bytes / 500 MB/s.
    pub deadline: Option<Duration>,
}

/// What became of a put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Put {
    /// One a key, in the order given.
    pub results: Vec<PutResult>,
}

impl Put {
    /// Blocks that were stored by this call.
    pub fn stored(&self) -> usize {
        self.results.iter().filter(|result| **result == PutResult::Stored).count()
    }

    /// Blocks that were refused.
    pub fn refused(&self) -> usize {
        self.results.iter().filter(|result| matches!(result, PutResult::Refused(_))).count()
    }
}

/// How much of a deadline the daemon may use, so that its answer arrives within it.
pub(crate) fn daemons_share_us(left: Duration) -> u64 {
    let spare = (left / 4).min(Duration::from_millis(5));
    u64::try_from((left - spare).as_micros()).unwrap_or(u64::MAX)
}

/// A put under way.
pub struct PutJob<'a> {
    session: Arc<Session>,
    pool: Pool,
    id: PoolId,
    keys: &'a [Key],
    parent: Option<Key>,
    blocks: Blocks<Src<'a>>,
    /// Indices of the keys that are not there, in order; the first `next` of them are filled.
    todo: Vec<u32>,
    next: usize,
    /// Slots taken and not filled yet.
    slots: Vec<SlotId>,
    refill: Option<Token>,
    commits: Commits,
    again: u32,
}

impl<'a> PutJob<'a> {
    /// Checks what is asked, and which keys are there already; copies nothing yet.
    pub fn new(
        session: Arc<Session>,
        pool: &Pool,
        keys: &'a [Key],
        parent: Option<Key>,
        src: Src<'a>,
    ) -> Result<Self, ClientError> {
        if session.here().is_err() {
            return Err(ClientError::Closed);
        }
        keys::check(keys.len())?;
        pool.expect_kind(PoolKind::Chain)?;
        let blocks = Blocks::from(src, keys.len(), pool.block_bytes())?;
        let id = session.pool_id(pool);
        let mut commits = Commits::new(session.clone(), id.unwrap_or_default(), keys.len());
        let mut todo: Vec<u32> = Vec::new();
        match id {
            Some(id) => session.maps.table.find_many(id, keys, |i, found| match found {
                Some(_) => commits.set(i, PutResult::Exists),
                None => todo.push(i as u32),
            }),
            None => commits.refuse(0..keys.len(), Refusal::Gone),
        }
        if !session.may_put {
            commits.refuse(todo.drain(..).map(|i| i as usize), Refusal::ReadOnly);
        }
        Ok(Self {
            session,
            pool: pool.clone(),
            id: id.unwrap_or_default(),
            keys,
            parent,
            blocks,
            todo,
            next: 0,
            slots: Vec::new(),
            refill: None,
            commits,
            again: 0,
        })
    }

    /// Bytes of the whole batch; what the default deadline depends on.
    pub fn bytes(&self) -> u64 {
        self.pool.block_bytes() * self.keys.len() as u64
    }

    /// Goes on as far as possible without waiting. `left`: until the caller's deadline.
    pub fn step(&mut self, left: Duration) -> Step {
        // Slots that the daemon made up for the last batch may wait in the ring.
        self.session.poll();
        self.commits.collect();
        let pause = self.take_refill();
        if self.commits.pending() == self.commit_blocks() || (self.is_filled() && self.commits.pending() > 0) {
            return self.post();
        }
        if self.is_filled() {
            if self.commits.under_way() > 0 {
                return Step::Waiting;
            }
            if !self.begin_again() {
                return Step::Done;
            }
        }
        if self.slots.is_empty() {
            let wanted = (self.todo.len() - self.next).min(self.commit_blocks() - self.commits.pending());
            self.session.take_slots(&self.pool, self.id, wanted, &mut self.slots);
        }
        let asked = if pause { Step::Full } else { self.ask_ahead(left) };
        if self.slots.is_empty() {
            // The magazine is dry: let the daemon have what is filled while we wait for more.
            return if self.commits.pending() > 0 { self.post() } else { asked };
        }
        let (mapped, early): (Vec<SlotId>, Vec<SlotId>) =
            std::mem::take(&mut self.slots).into_iter().partition(|slot| self.is_mapped(*slot));
        if !early.is_empty() {
            // In an extent whose descriptor is on its way over the socket: a little later they can be filled.
            self.session.give_back(&early);
            if mapped.is_empty() {
                return Step::Full;
            }
        }
        for slot in mapped {
            self.fill(slot);
        }
        self.post()
    }

    /// All results; what has none yet is late.
    pub fn finish(mut self) -> Put {
        if let Some(token) = self.refill.take() {
            self.session.abandon(token);
        }
        self.session.give_back(&std::mem::take(&mut self.slots));
        let none = Commits::new(self.session.clone(), self.id, 0);
        std::mem::replace(&mut self.commits, none).finish()
    }

    /// Blocks to a commit.
    fn commit_blocks(&self) -> usize {
        ((COMMIT_BYTES / self.pool.block_bytes()) as usize).clamp(1, COMMIT_ITEMS_MAX)
    }

    fn is_filled(&self) -> bool {
        self.next == self.todo.len()
    }

    /// If blocks of this put were evicted before those below them came, as may happen to a caller that had no processor
    /// for long, all that is not there is to be put again.
    fn begin_again(&mut self) -> bool {
        if self.again == AGAIN_MAX || !self.commits.lost_a_parent() {
            return false;
        }
        self.again += 1;
        self.todo.clear();
        self.next = 0;
        self.session.maps.table.find_many(self.id, self.keys, |i, found| {
            if found.is_none() && self.commits.take_back(i) {
                self.todo.push(i as u32);
            }
        });
        !self.todo.is_empty()
    }

    fn post(&mut self) -> Step {
        copy::sfence();
        match self.commits.post() {
            Ok(()) => Step::Posted,
            Err(Busy::Full) => Step::Full,
            Err(Busy::Gone) => self.refuse_rest(Refusal::Gone),
        }
    }

    fn refuse_rest(&mut self, reason: Refusal) -> Step {
        let rest = self.todo[self.next..].iter().map(|i| *i as usize);
        self.commits.refuse(rest, reason);
        self.next = self.todo.len();
        // Answers to what was posted may still come, or have come as `Gone`.
        self.commits.collect();
        if self.commits.under_way() == 0 && self.commits.pending() == 0 { Step::Done } else { Step::Waiting }
    }

    /// True if slots were refused for now only: the caller pauses before it asks again.
    fn take_refill(&mut self) -> bool {
        let Some(answer) = self.refill.and_then(|token| self.session.take(token)) else { return false };
        self.refill = None;
        match answer {
            // The magazine is as full as it may be, or a restarted daemon is still looking at what it has: slots come
            // back as commits are taken in, our own or those of other threads.
            Answer::Refused(Refusal::Limit | Refusal::NotReady) => {
                self.session.slots_ready(self.id, self.pool.slot_bytes()) == 0
            }
            Answer::Refused(reason) => {
                if self.session.slots_ready(self.id, self.pool.slot_bytes()) == 0 {
                    self.refuse_rest(reason);
                }
                false
            }
            _ => false,
        }
    }

    /// Asks for what the magazine is short of, before it is needed.
    fn ask_ahead(&mut self, left: Duration) -> Step {
        let missing = self.todo.len() - self.next - self.slots.len();
        let ready = self.session.slots_ready(self.id, self.pool.slot_bytes());
        if self.refill.is_some() || ready >= missing {
            return Step::Waiting;
        }
        let count = (missing - ready).min(self.session.magazine_slots(&self.pool));
        match self.submit_refill(count, left) {
            Ok(token) => {
                self.refill = Some(token);
                Step::Posted
            }
            Err(Busy::Full) => Step::Full,
            Err(Busy::Gone) if self.slots.is_empty() => self.refuse_rest(Refusal::Gone),
            Err(Busy::Gone) => Step::Waiting,
        }
    }

    fn submit_refill(&self, count: usize, left: Duration) -> Result<Token, Busy> {
        let (pool, slot_bytes) = (self.id, self.pool.slot_bytes());
        let (count, deadline_us) = (count as u32, daemons_share_us(left));
        self.session.submit(|token| Request::Refill { token, pool, slot_bytes, count, deadline_us })
    }

    fn is_mapped(&self, slot: SlotId) -> bool {
        let place = self.session.maps.extents.locate(slot, u64::from(self.pool.slot_bytes()));
        place.is_some_and(|(mapping, _)| mapping.is_writable())
    }

    /// Copies the next block into a slot, with its sum.
    fn fill(&mut self, slot: SlotId) {
        let i = self.todo[self.next] as usize;
        self.next += 1;
        let bytes = self.pool.block_bytes();
        let place = self.session.maps.extents.locate(slot, u64::from(self.pool.slot_bytes()));
        let Some((mapping, offset)) = place.filter(|(mapping, _)| mapping.is_writable()) else {
            // In an extent that is being announced: later puts will have it.
            tracing::debug!(slot = slot.0, "a slot outside of the extents mapped so far");
            self.session.give_back(&[slot]);
            return self.commits.set(i, PutResult::Refused(Refusal::NotReady));
        };
        let kernel = copy::Kernel::choose(bytes as usize, self.todo.len());
        let mut sum = BlockSum::new(&self.pool, &self.keys[i], bytes, 0);
        let mut at = offset;
        self.blocks.each_ref(i, |mut src| {
            while !src.is_empty() {
                let (part, run) = sum.run(src.len());
                copy::into_summed(mapping, at, &src[..run], kernel, part);
                sum.took(run);
                (src, at) = (&src[run..], at + run);
            }
        });
        let (whole, pieces) = sum.finish();
        write_sums(mapping, offset + sizes::tail_offset(bytes) as usize, &pieces);
        self.commits.push(i, self.keys, self.parent, slot, bytes as u32, whole);
    }
}

impl Drop for PutJob<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.refill.take() {
            self.session.abandon(token);
        }
        self.session.give_back(&self.slots);
    }
}

/// Writes the sums of pieces to the tail of a slot.
pub(super) fn write_sums(mapping: &lapis_arena::Mapping, offset: usize, sums: &[u64]) {
    if !sums.is_empty() {
        let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        mapping.copy_in(offset, &bytes);
    }
}

impl Session {
    /// Slots of this pool that the magazine may hold.
    fn magazine_slots(&self, pool: &Pool) -> usize {
        ((self.magazine_bytes_max / u64::from(pool.slot_bytes())) as usize).clamp(1, lapis_config::BATCH_KEYS_MAX)
    }

    fn slots_ready(&self, pool: PoolId, slot_bytes: u32) -> usize {
        self.calls().slots_ready(pool, slot_bytes)
    }

    fn take_slots(&self, pool: &Pool, id: PoolId, count: usize, slots: &mut Vec<SlotId>) {
        if self.here().is_ok() {
            self.calls().take_slots(id, pool.slot_bytes(), count, slots);
        }
    }

    /// The sum that a block of one piece has; for those who fill slots by themselves.
    pub fn sum_of(pool: &Pool, key: &Key, payload: &[u8]) -> u64 {
        Self::sum_of_runs(pool, key, payload.len() as u64, [payload])
    }

    /// The same of `bytes` that come in runs.
    pub(crate) fn sum_of_runs<'a>(pool: &Pool, key: &Key, bytes: u64, runs: impl IntoIterator<Item = &'a [u8]>) -> u64 {
        let mut block = BlockSum::new(pool, key, bytes, 0);
        for mut rest in runs {
            while !rest.is_empty() {
                let (part, run) = block.run(rest.len());
                sum::Sum::update(part, &rest[..run]);
                block.took(run);
                rest = &rest[run..];
            }
        }
        block.finish().0
    }
}
