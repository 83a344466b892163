//! The daemon's ends. Whatever the client writes, each call does a bounded piece of work and ends in a value.

use std::sync::atomic::Ordering::{Relaxed, Release};

use lapis_arena::{Hazards, MappedWords, Mapping, Words};

use super::{
    ASKED_AT, BYTES, BYTES_AT, CLIENT_SLEEPS_AT, COMPLETIONS, COMPLETIONS_HEAD_AT, COMPLETIONS_TAIL_AT, ControlError,
    Counters, HAZARDS_OFFSET, HIT_AT, HIT_BYTES_AT, MAGIC, MAGIC_AT, REQUESTS, REQUESTS_HEAD_AT, REQUESTS_TAIL_AT,
    Touch, VERSION, VERSION_AT, WARNING_AT, Warning, must_wake, touch::TouchDrain, words,
};
use crate::{
    code::CodeError,
    frame::{Completion, Request},
    ring::{Consumer, Producer, RingFault},
};

/// How a client broke the protocol: it is disconnected, and told why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientFault {
    #[error("request ring: {0}")]
    Requests(RingFault),
    #[error("completion ring: {0}")]
    Completions(RingFault),
    #[error("frame of kind {kind}: {source}")]
    Frame { kind: u32, source: CodeError },
}

impl ClientFault {
    pub(super) fn of(kind: u32) -> impl FnOnce(CodeError) -> Self {
        move |source| Self::Frame { kind, source }
    }
}

/// The daemon's side of one client's memory.
#[derive(Debug)]
pub struct ControlDaemon {
    mapping: Mapping,
    words: MappedWords,
    requests: Consumer<MappedWords>,
    completions: Producer<MappedWords>,
    touches: TouchDrain,
    payload: Vec<u8>,
}

impl ControlDaemon {
    /// Prepares fresh (zero) memory for a new client.
    pub fn create(mapping: &Mapping) -> Result<Self, ControlError> {
        let control = Self::over(mapping)?;
        control.words.store(VERSION_AT, VERSION, Relaxed);
        control.words.store(BYTES_AT, BYTES as u64, Relaxed);
        control.words.store(MAGIC_AT, MAGIC, Release);
        Ok(control)
    }

    /// Takes over kept memory after a daemon restart: for its hazards and counters at once, for its rings after
    /// [`Self::reset`], when its client has come back. What the head says is not asked: the client can write there; the
    /// kept state tells the layout.
    pub fn adopt(mapping: &Mapping) -> Result<Self, ControlError> {
        Self::create(mapping)
    }

    fn over(mapping: &Mapping) -> Result<Self, ControlError> {
        if mapping.len() != BYTES {
            return Err(ControlError::Size { found: mapping.len() });
        }
        let words = words(mapping);
        Ok(Self {
            mapping: mapping.clone(),
            requests: Consumer::new(words.clone(), REQUESTS),
            completions: Producer::new(words.clone(), COMPLETIONS),
            touches: TouchDrain::new(mapping),
            words,
            payload: Vec::new(),
        })
    }

    /// Empties both rings and takes back the warning, before the `Welcome` of a client that resumes. Hazards, counters
    /// and touches stay.
    pub fn reset(&mut self) {
        for at in [REQUESTS_TAIL_AT, REQUESTS_HEAD_AT, COMPLETIONS_TAIL_AT, COMPLETIONS_HEAD_AT, CLIENT_SLEEPS_AT] {
            self.words.store(at, 0, Relaxed);
        }
        self.warn(Warning::None);
        self.requests = Consumer::new(self.words.clone(), REQUESTS);
        self.completions = Producer::new(self.words.clone(), COMPLETIONS);
    }

    /// The next request.
    pub fn pop_request(&mut self) -> Result<Option<Request>, ClientFault> {
        match self.requests.pop(&mut self.payload).map_err(ClientFault::Requests)? {
            Some(kind) => Ok(Some(Request::decode(kind, &self.payload).map_err(ClientFault::of(kind))?)),
            None => Ok(None),
        }
    }

    /// True if a request waits: the last look before the daemon sleeps. Touches wait for the next tick: nobody rings
    /// for them. Costs one load.
    pub fn is_ready(&self) -> bool {
        self.requests.is_ready()
    }

    /// Appends a completion, or returns false when the ring is full: the client is slow, or asleep for good.
    ///
    /// # Panics
    /// If a list of the completion is beyond its limit.
    pub fn push_completion(&mut self, completion: &Completion) -> Result<bool, ClientFault> {
        let kind = completion.encode(&mut self.payload);
        self.completions.push(kind, &self.payload).map_err(ClientFault::Completions)
    }

    /// After pushes: true if the client sleeps and must be rung.
    pub fn client_sleeps(&self) -> bool {
        must_wake(&self.words, || self.words.load(CLIENT_SLEEPS_AT, Relaxed) != 0)
    }

    /// Hands out at most `max` touches, oldest first; returns how many were found lost.
    pub fn drain_touches(&mut self, max: usize, mut touched: impl FnMut(Touch)) -> u64 {
        self.touches.drain(max, &mut touched)
    }

    /// As the client reports them.
    pub fn counters(&self) -> Counters {
        let [asked, hit, hit_bytes] = [ASKED_AT, HIT_AT, HIT_BYTES_AT].map(|at| self.words.load(at, Relaxed));
        Counters { asked, hit, hit_bytes }
    }

    /// The page on which the client names the slots that it reads in place.
    pub fn hazards(&self) -> Hazards {
        Hazards::mapped(&self.mapping, HAZARDS_OFFSET)
    }

    pub fn warn(&self, warning: Warning) {
        self.words.store(WARNING_AT, warning as u64, Release);
    }
}
