//! A session's connection: its frames, and its life from one daemon to the next.

use std::sync::{Arc, MutexGuard, TryLockError, atomic::Ordering};

use lapis_transport::{
    control::{Completions, ControlClient, Warning},
    frame::{Completion, Request},
    hello::Resume,
};

use super::{Answer, Busy, Session, Token, Welcome, calls::Calls, lock, maps::Maps};
use crate::Stats;

impl Session {
    /// Begins a call; `request` makes its frame from the token's number. For calls without slots in their answer.
    pub fn submit(&self, request: impl FnOnce(u64) -> Request) -> Result<Token, Busy> {
        self.here()?;
        self.calls().submit(0, request)
    }

    /// Sends a frame that has no answer.
    pub fn post(&self, request: Request) {
        if self.birthplace.is_here() {
            self.calls().post(request);
        }
    }

    /// Takes in the completions that are there and returns how many they were. 0 if another thread is about it.
    pub fn poll(&self) -> usize {
        if !self.birthplace.is_here() || !self.is_connected() {
            return 0;
        }
        let mut completions = match self.completions.try_lock() {
            Ok(completions) => completions,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return 0,
        };
        self.drain(&mut completions)
    }

    /// Takes in the completions that are there, by the thread that has their ring.
    pub(crate) fn drain(&self, completions: &mut Completions) -> usize {
        let mut taken = 0;
        while let Some(completion) = self.pop(completions) {
            self.calls().dispatch(completion);
            taken += 1;
        }
        if taken > 0 {
            self.events.fetch_add(taken as u64, Ordering::Release);
        }
        taken
    }

    fn pop(&self, completions: &mut Completions) -> Option<Completion> {
        if !self.is_connected() {
            return None;
        }
        match completions.pop() {
            Ok(completion) => completion,
            Err(fault) => {
                let mut calls = self.calls();
                if !calls.broken {
                    tracing::error!(%fault, "the completion ring was overwritten: this process has a wild write");
                    calls.broken = true;
                }
                None
            }
        }
    }

    /// The answer of a call, if it has come.
    pub fn take(&self, token: Token) -> Option<Answer> {
        self.here().ok()?;
        self.calls().take(token)
    }

    /// The daemon is short of memory: gives back what was granted ahead for this pool. Ring it afterwards.
    pub fn recalled(&self, pool: lapis_config::PoolId) {
        if self.birthplace.is_here() {
            self.calls().recalled(pool);
        }
    }

    /// Nobody will take this answer.
    pub fn abandon(&self, token: Token) {
        if self.birthplace.is_here() {
            self.calls().abandon(token);
        }
    }

    /// True if frames were pushed since the last call and the daemon sleeps: it must be rung.
    pub fn must_ring(&self) -> bool {
        let pushed = std::mem::take(&mut self.calls().pushed);
        pushed && self.control.must_ring(|| self.maps.table.daemon_sleeping())
    }

    /// Says that this client is about to sleep on its doorbell. False if an answer is there: do not sleep. To be
    /// followed by [`Self::awake`] either way; one thread at a time.
    pub fn falls_asleep(&self) -> bool {
        self.control.falls_asleep(&self.completions())
    }

    pub fn awake(&self) {
        self.control.awake();
    }

    /// Rises with every completion taken in and when the connection is lost: if it did not rise, nobody's answer came.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Acquire)
    }

    /// True if a ring was overwritten: the connection is of no use any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.calls().broken
    }

    pub(crate) fn completions(&self) -> MutexGuard<'_, Completions> {
        lock(&self.completions)
    }

    pub(crate) fn try_completions(&self) -> Option<MutexGuard<'_, Completions>> {
        match self.completions.try_lock() {
            Ok(completions) => Some(completions),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn control(&self) -> &ControlClient {
        &self.control
    }

    pub(crate) fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    /// What this client counted, over all its sessions.
    pub fn stats(&self) -> Stats {
        self.counts.read()
    }

    pub(super) fn calls(&self) -> MutexGuard<'_, Calls> {
        lock(&self.calls)
    }
}

impl Session {
    /// The daemon hung up. Calls under way are answered `Gone`; hits in memory go on.
    pub fn lost(&self) {
        // In this order: nobody drains a ring that is being emptied for the next connection.
        self.connected.store(false, Ordering::SeqCst);
        self.calls().lost();
        self.events.fetch_add(1, Ordering::Release);
    }

    /// What to say when reconnecting; `None` if this client cannot come back as the same.
    pub fn resume(&self) -> Option<Resume> {
        if self.retired.load(Ordering::Acquire) || self.control.warning() == Warning::Expelled {
            return None;
        }
        let (writing, writing_on_gpus) = self.calls().resume()?;
        let (table_id, client, secret) = (self.table_id(), self.client, self.secret);
        Some(Resume { table_id, client, secret, writing, writing_on_gpus })
    }

    /// The daemon took the client back: same table, same numbers, fresh rings. False, and nothing done, if the welcome
    /// is for somebody else: then a new session is needed.
    pub fn resumed(&self, welcome: &Welcome) -> bool {
        let same = welcome.resumed && welcome.client == self.client && self.maps.serve(welcome);
        if same {
            let mut completions = self.completions();
            let (requests, fresh) = self.control.rings();
            *completions = fresh;
            self.calls().resumed(requests);
            self.instance.store(welcome.geometry.instance, Ordering::Release);
            self.connected.store(true, Ordering::SeqCst);
        }
        same
    }

    /// Another session takes over. Views of this one say that they are not valid any more.
    pub fn retire(&self) {
        self.lost();
        self.retired.store(true, Ordering::Release);
    }

    /// Whether views may be given: the daemon is the one that knows our hazards, and heeds them.
    #[inline]
    pub(super) fn views_are_safe(&self) -> bool {
        self.maps.table.instance() == self.instance.load(Ordering::Acquire)
            && !self.retired.load(Ordering::Acquire)
            && self.control.warning() != Warning::Expelled
    }

    /// Whether views may be given again, when the daemon knows us anew.
    #[cfg(feature = "cuda")]
    pub(super) fn may_come_back(&self) -> bool {
        !self.retired.load(Ordering::Acquire) && self.control.warning() != Warning::Expelled
    }

    /// What the daemon thinks of the views held.
    pub fn warning(&self) -> Warning {
        self.control.warning()
    }

    /// Fails in a forked child, before any lock or ring is touched.
    #[inline]
    pub(crate) fn here(&self) -> Result<(), Busy> {
        if self.birthplace.is_here() { Ok(()) } else { Err(Busy::Gone) }
    }
}
