//! Puts of objects, each in a slot of its own size: one reserve for each size, copies fused with their sums, commits posted
//! every few objects so that the daemon works while we copy.
//!
//! Invariant: an index is in at most one of: `todo` from `asked` on, a reserve under way, `ready`, the commits.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use lapis_arena::copy;
use lapis_config::{BATCH_KEYS_MAX, Key, PoolId, Refusal, SlotId, sizes};
use lapis_transport::frame::{COMMIT_ITEMS_MAX, ParentRef, PutResult, Request, ReserveResult};

use super::{
    Answer, Busy, Session, Step, Token,
    commits::Commits,
    object::section,
    put::{COMMIT_BYTES, daemons_share_us},
};
use crate::{ClientError, Pool, keys, sums::BlockSum};

/// Bytes of slots that one reserve asks for, and reserves under way: the first objects are copied while others wait for room.
const RESERVE_BYTES: u64 = 8 << 20;
const RESERVES_MAX: usize = 2;

/// An object, or a part of one, about to be put.
pub(crate) struct NewPart<'a> {
    pub key: Key,
    /// The key of the part before it.
    pub parent: Option<Key>,
    pub vectors: &'a [&'a [u8]],
    /// Its bytes, counted from the start of the first vector.
    pub range: Range<u64>,
    pub tail: Vec<u8>,
}

impl NewPart<'_> {
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn parent_ref(&self) -> ParentRef {
        self.parent.map_or(ParentRef::None, ParentRef::Key)
    }
}

struct Ask {
    token: Token,
    /// Of `todo`.
    range: Range<usize>,
}

/// A put of objects under way.
pub(crate) struct ObjectPutJob<'a> {
    session: Arc<Session>,
    pool: Pool,
    id: PoolId,
    parts: &'a [NewPart<'a>],
    keys: Vec<Key>,
    /// Indices of what is not there, by the size of their slots; the first `asked` of them were asked for.
    todo: Vec<u32>,
    asked: usize,
    asks: Vec<Ask>,
    /// Slots to be filled.
    ready: VecDeque<(u32, SlotId)>,
    commits: Commits,
    sums: Vec<Option<u64>>,
}

impl<'a> ObjectPutJob<'a> {
    /// Looks which of them are there already; copies nothing yet.
    pub fn new(session: Arc<Session>, pool: &Pool, parts: &'a [NewPart<'a>]) -> Result<Self, ClientError> {
        if session.here().is_err() {
            return Err(ClientError::Closed);
        }
        keys::check(parts.len())?;
        let keys: Vec<Key> = parts.iter().map(|part| part.key).collect();
        let id = session.pool_id(pool);
        let mut commits = Commits::new(session.clone(), id.unwrap_or_default(), parts.len());
        let mut todo: Vec<u32> = Vec::new();
        match id {
            Some(id) => session.maps.table.find_many(id, &keys, |i, found| match found {
                Some(_) => commits.set(i, PutResult::Exists),
                None => todo.push(i as u32),
            }),
            None => commits.refuse(0..parts.len(), Refusal::Gone),
        }
        if !session.may_put {
            commits.refuse(todo.drain(..).map(|i| i as usize), Refusal::ReadOnly);
        }
        todo.sort_by_key(|&i| slot_bytes(pool, &parts[i as usize]));
        Ok(Self {
            session,
            pool: pool.clone(),
            id: id.unwrap_or_default(),
            sums: vec![None; parts.len()],
            parts,
            keys,
            todo,
            asked: 0,
            asks: Vec::new(),
            ready: VecDeque::new(),
            commits,
        })
    }

    /// Bytes that are to be copied; what the default deadline depends on.
    pub fn bytes(&self) -> u64 {
        self.todo.iter().map(|&i| self.parts[i as usize].bytes()).sum()
    }

    /// Goes on as far as possible without waiting. `left`: until the caller's deadline.
    pub fn step(&mut self, left: Duration) -> Step {
        self.session.poll();
        self.commits.collect();
        let mut next = self.take_reserved();
        while self.asks.len() < RESERVES_MAX && self.asked < self.todo.len() && next != Step::Full {
            next = self.reserve(left);
        }
        self.fill_some();
        if self.commits.pending() > 0 {
            copy::sfence();
            return match self.commits.post() {
                Ok(()) | Err(Busy::Gone) => Step::Posted,
                Err(Busy::Full) => Step::Full,
            };
        }
        let is_done = self.asked == self.todo.len() && self.asks.is_empty() && self.commits.under_way() == 0;
        if is_done { Step::Done } else { next }
    }

    /// All results, and the sums of those that were filled; what has no result yet is late.
    pub fn finish(mut self) -> (Vec<PutResult>, Vec<Option<u64>>) {
        self.give_up();
        let none = Commits::new(self.session.clone(), self.id, 0);
        (std::mem::replace(&mut self.commits, none).finish().results, std::mem::take(&mut self.sums))
    }

    fn give_up(&mut self) {
        self.asks.drain(..).for_each(|ask| self.session.abandon(ask.token));
        let slots: Vec<SlotId> = self.ready.drain(..).map(|(_, slot)| slot).collect();
        self.session.give_back(&slots);
    }

    /// Asks for the slots of the next objects of one size.
    fn reserve(&mut self, left: Duration) -> Step {
        let first = &self.parts[self.todo[self.asked] as usize];
        let bytes = slot_bytes(&self.pool, first);
        let most = ((RESERVE_BYTES / bytes) as usize).clamp(1, BATCH_KEYS_MAX);
        let same = self.todo[self.asked..].iter().take(most);
        let same = same.take_while(|&&i| slot_bytes(&self.pool, &self.parts[i as usize]) == bytes).count();
        let range = self.asked..self.asked + same;
        let keys = self.todo[range.clone()].iter().map(|&i| self.keys[i as usize]).collect();
        let (pool, slot_bytes, parent) = (self.id, u32::try_from(bytes).unwrap_or(u32::MAX), first.parent_ref());
        let deadline_us = daemons_share_us(left);
        let asked =
            self.session.submit(|token| Request::Reserve { token, pool, slot_bytes, parent, deadline_us, keys });
        match asked {
            Ok(token) => {
                self.asked = range.end;
                self.asks.push(Ask { token, range });
                Step::Posted
            }
            Err(Busy::Full) => Step::Full,
            Err(Busy::Gone) => {
                self.refuse(self.asked..self.todo.len(), Refusal::Gone);
                self.asked = self.todo.len();
                Step::Waiting
            }
        }
    }

    /// Takes the slots that came. `Full` if there were none now, and may be a little later.
    fn take_reserved(&mut self) -> Step {
        let mut next = Step::Waiting;
        for at in (0..self.asks.len()).rev() {
            let Some(answer) = self.session.take(self.asks[at].token) else { continue };
            let range = self.asks.remove(at).range;
            match answer {
                Answer::Reserved(results) if results.len() == range.len() => {
                    let before = self.ready.len();
                    let limited = self.settle(range, &results);
                    if limited && self.ready.len() == before && self.commits.under_way() == 0 {
                        next = Step::Full;
                    }
                }
                Answer::Refused(Refusal::Limit) => {
                    self.again(range);
                    next = Step::Full;
                }
                Answer::Refused(reason) => self.refuse(range, reason),
                other => {
                    tracing::error!(?other, "the daemon answered something else than was asked");
                    self.refuse(range, Refusal::Gone);
                }
            }
        }
        next
    }

    /// What was answered for objects of one reserve. True if some are to be asked for again: a client may reserve only so
    /// much at a time, and what was reserved is about to be committed.
    fn settle(&mut self, range: Range<usize>, results: &[ReserveResult]) -> bool {
        let mut unmapped = Vec::new();
        let mut limited = false;
        for (at, result) in range.zip(results) {
            let i = self.todo[at];
            match *result {
                ReserveResult::Slot(slot) if self.is_mapped(slot, i) => self.ready.push_back((i, slot)),
                // In an extent that is being announced.
                ReserveResult::Slot(slot) => {
                    unmapped.push(slot);
                    self.commits.set(i as usize, PutResult::Refused(Refusal::NotReady));
                }
                ReserveResult::Exists => self.commits.set(i as usize, PutResult::Exists),
                ReserveResult::Refused(Refusal::Limit) => {
                    limited = true;
                    self.todo.push(i);
                }
                ReserveResult::Refused(reason) => self.commits.set(i as usize, PutResult::Refused(reason)),
            }
        }
        self.session.give_back(&unmapped);
        limited
    }

    fn again(&mut self, range: Range<usize>) {
        self.todo.extend_from_within(range);
    }

    fn refuse(&mut self, range: Range<usize>, reason: Refusal) {
        let indices = self.todo[range].iter().map(|&i| i as usize);
        self.commits.refuse(indices, reason);
    }

    fn is_mapped(&self, slot: SlotId, i: u32) -> bool {
        let bytes = slot_bytes(&self.pool, &self.parts[i as usize]);
        self.session.maps.extents.locate(slot, bytes).is_some_and(|(mapping, _)| mapping.is_writable())
    }

    /// Fills slots of as many bytes as go with one commit.
    fn fill_some(&mut self) {
        let mut bytes = 0;
        while bytes < COMMIT_BYTES && self.commits.pending() < COMMIT_ITEMS_MAX {
            let Some((i, slot)) = self.ready.pop_front() else { return };
            bytes += self.parts[i as usize].bytes();
            self.fill(i as usize, slot);
        }
    }

    /// Copies an object into its slot, with its sum.
    fn fill(&mut self, i: usize, slot: SlotId) {
        let part = &self.parts[i];
        let bytes = part.bytes();
        let place = self.session.maps.extents.locate(slot, slot_bytes(&self.pool, part));
        let (mapping, offset) = place.expect("an extent that is mapped stays so");
        let kernel = copy::Kernel::choose(bytes as usize, self.todo.len());
        let mut sum = BlockSum::new(&self.pool, &part.key, bytes, 0);
        let mut at = offset;
        for mut src in section(part.vectors, part.range.clone()) {
            while !src.is_empty() {
                let (to_sum, run) = sum.run(src.len());
                copy::into_summed(mapping, at, &src[..run], kernel, to_sum);
                sum.took(run);
                (src, at) = (&src[run..], at + run);
            }
        }
        let sum = sum.finish().0;
        mapping.copy_in(offset + sizes::tail_offset(bytes) as usize, &part.tail);
        self.sums[i] = Some(sum);
        self.commits.push_alone(i, part.key, part.parent, slot, bytes as u32, sum);
    }
}

impl Drop for ObjectPutJob<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

fn slot_bytes(pool: &Pool, part: &NewPart<'_>) -> u64 {
    sizes::slot_bytes(pool.shape(), part.bytes())
}
