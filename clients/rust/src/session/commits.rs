//! Filled slots on their way to the daemon, and what it answers: shared by puts and reservations.
//!
//! Invariant: every key has at most one of: a result, a pending item, a place in a posted commit.

use std::sync::Arc;

use lapis_config::{Key, PoolId, Refusal, SlotId};
use lapis_transport::frame::{COMMIT_ITEMS_MAX, CommitItem, ParentRef, PutResult, Request};

use super::{Answer, Busy, Put, Session, Token};

pub(super) struct Commits {
    session: Arc<Session>,
    pool: PoolId,
    results: Vec<Option<PutResult>>,
    pending: Vec<CommitItem>,
    /// Index of the key of each pending item.
    pending_at: Vec<u32>,
    posted: Vec<(Token, Vec<u32>)>,
}

impl Commits {
    pub fn new(session: Arc<Session>, pool: PoolId, keys: usize) -> Self {
        Self {
            session,
            pool,
            results: vec![None; keys],
            pending: Vec::new(),
            pending_at: Vec::new(),
            posted: Vec::new(),
        }
    }

    /// What becomes of a key that no slot is filled for.
    pub fn set(&mut self, i: usize, result: PutResult) {
        self.results[i] = Some(result);
    }

    /// Gives everything that has neither a result nor an item this one.
    pub fn refuse(&mut self, indices: impl IntoIterator<Item = usize>, reason: Refusal) {
        for i in indices {
            self.results[i].get_or_insert(PutResult::Refused(reason));
        }
    }

    /// Whether a block was refused because the one before it, which was there, is there no more.
    pub fn lost_a_parent(&self) -> bool {
        let no_parent = Some(PutResult::Refused(Refusal::NoParent));
        self.results.windows(2).any(|pair| is_there(pair[0]) && pair[1] == no_parent)
    }

    /// Forgets the result of a block that may be put again: it was there, or had no parent.
    pub fn take_back(&mut self, i: usize) -> bool {
        let result = self.results[i];
        let again = is_there(result) || result == Some(PutResult::Refused(Refusal::NoParent));
        if again {
            self.results[i] = None;
        }
        again
    }

    /// A slot is filled: it goes with the next `post`.
    pub fn push(&mut self, i: usize, keys: &[Key], parent: Option<Key>, slot: SlotId, bytes: u32, sum: u64) {
        let before = i.checked_sub(1);
        let in_frame = self.pending_at.last().map(|at| *at as usize);
        let parent = match before {
            Some(before) if in_frame == Some(before) => ParentRef::Previous,
            Some(before) => ParentRef::Key(keys[before]),
            None => parent.map_or(ParentRef::None, ParentRef::Key),
        };
        self.pending.push(CommitItem { slot, key: keys[i], parent, bytes, sum });
        self.pending_at.push(i as u32);
    }

    /// The same of a block that does not follow the one before it in the batch.
    pub fn push_alone(&mut self, i: usize, key: Key, parent: Option<Key>, slot: SlotId, bytes: u32, sum: u64) {
        let parent = parent.map_or(ParentRef::None, ParentRef::Key);
        self.pending.push(CommitItem { slot, key, parent, bytes, sum });
        self.pending_at.push(i as u32);
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Commits posted and not answered.
    pub fn under_way(&self) -> usize {
        self.posted.len()
    }

    /// Posts what is pending, one frame. `Gone` refuses it.
    pub fn post(&mut self) -> Result<(), Busy> {
        debug_assert!(self.pending.len() <= COMMIT_ITEMS_MAX, "callers post often enough");
        if self.pending.is_empty() {
            return Ok(());
        }
        match self.session.submit_commit(self.pool, &self.pending) {
            Ok(token) => {
                self.pending.clear();
                self.posted.push((token, std::mem::take(&mut self.pending_at)));
                Ok(())
            }
            Err(Busy::Full) => Err(Busy::Full),
            Err(Busy::Gone) => {
                self.drop_pending(Refusal::Gone);
                Err(Busy::Gone)
            }
        }
    }

    fn drop_pending(&mut self, reason: Refusal) {
        let slots: Vec<SlotId> = self.pending.drain(..).map(|item| item.slot).collect();
        self.session.give_back(&slots);
        for i in std::mem::take(&mut self.pending_at) {
            self.results[i as usize] = Some(PutResult::Refused(reason));
        }
    }

    /// Takes the answers that have come.
    pub fn collect(&mut self) {
        let (session, results) = (&self.session, &mut self.results);
        self.posted.retain(|(token, indices)| {
            let Some(answer) = session.take(*token) else { return true };
            match answer {
                Answer::Committed(answers) if answers.len() == indices.len() => {
                    indices.iter().zip(answers).for_each(|(i, one)| results[*i as usize] = Some(one));
                }
                Answer::Refused(reason) => {
                    indices.iter().for_each(|i| results[*i as usize] = Some(PutResult::Refused(reason)));
                }
                other => {
                    tracing::error!(?other, "the daemon answered something else than was asked");
                    indices.iter().for_each(|i| results[*i as usize] = Some(PutResult::Refused(Refusal::Gone)));
                }
            }
            false
        });
    }

    /// All results; what has none yet is late.
    ///
    /// Pending slots are given back.
    pub fn finish(mut self) -> Put {
        self.collect();
        self.drop_pending(Refusal::Late);
        let late = PutResult::Refused(Refusal::Late);
        let results: Vec<PutResult> = self.results.iter().map(|result| result.unwrap_or(late)).collect();
        self.session.counts.put(&results);
        Put { results }
    }
}

fn is_there(result: Option<PutResult>) -> bool {
    matches!(result, Some(PutResult::Stored | PutResult::Exists))
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.drop_pending(Refusal::Late);
        for (token, _) in self.posted.drain(..) {
            self.session.abandon(token);
        }
    }
}

impl Session {
    /// Posts a commit; from then on nobody here writes its slots.
    fn submit_commit(&self, pool: PoolId, items: &[CommitItem]) -> Result<Token, Busy> {
        self.here()?;
        let mut calls = self.calls();
        let token = calls.submit(0, |token| Request::Commit { token, pool, items: items.to_vec() })?;
        calls.written(items.iter().map(|item| item.slot));
        Ok(token)
    }

    /// Nobody writes these slots any more, and they hold nothing.
    pub(super) fn give_back(&self, slots: &[SlotId]) {
        if !slots.is_empty() && self.here().is_ok() {
            self.calls().give_back(slots);
        }
    }
}
