//! The daemon's ends. Whatever the client writes, each call does a bounded piece of work and ends in a value.

use std::sync::atomic::Ordering::{Relaxed, Release};

use lapis_arena::{Hazards, MappedWords, Mapping, Words};

use super::{
    ASKED_AT, BYTES, BYTES_AT, CLIENT_SLEEPS_AT, COMPLETIONS, COMPLETIONS_HEAD_AT, COMPLETIONS_TAIL_AT, Counters,
    HAZARDS_OFFSET, HIT_AT, HIT_BYTES_AT, HIT_HBM_AT, MAGIC, MAGIC_AT, REQUESTS, REQUESTS_HEAD_AT, REQUESTS_TAIL_AT,
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
    /// Met in a push; told by the next pop.
    fault: Option<ClientFault>,
    payload: Vec<u8>,
}

impl ControlDaemon {
    /// The daemon's side of fresh memory, or of kept memory after a restart: then of hazards and counters at once, of
    /// the rings after [`Self::reset`], when the client has come back. What a kept memory's head says is not asked (the
    /// client can write there): the kept state tells the layout.
    ///
    /// # Panics
    /// If the mapping has not [`BYTES`].
    pub fn new(mapping: Mapping) -> Self {
        assert_eq!(mapping.len() as u64, BYTES, "a client's memory");
        let words = words(&mapping);
        words.store(VERSION_AT, VERSION, Relaxed);
        words.store(BYTES_AT, BYTES, Relaxed);
        words.store(MAGIC_AT, MAGIC, Release);
        Self {
            requests: Consumer::new(words.clone(), REQUESTS),
            completions: Producer::new(words.clone(), COMPLETIONS),
            touches: TouchDrain::new(&mapping),
            fault: None,
            payload: Vec::new(),
            words,
            mapping,
        }
    }

    /// Empties both rings and takes back the warning, before the `Welcome` of a client that resumes. Hazards, counters
    /// and touches stay.
    pub fn reset(&mut self) {
        for at in [REQUESTS_TAIL_AT, REQUESTS_HEAD_AT, COMPLETIONS_TAIL_AT, COMPLETIONS_HEAD_AT, CLIENT_SLEEPS_AT] {
            self.words.store(at, 0, Relaxed);
        }
        self.clear_warning();
        self.fault = None;
        self.requests = Consumer::new(self.words.clone(), REQUESTS);
        self.completions = Producer::new(self.words.clone(), COMPLETIONS);
    }

    /// The next request. After a fault the client is to be disconnected; no call before [`Self::reset`] says otherwise.
    pub fn pop_request(&mut self) -> Result<Option<Request>, ClientFault> {
        let popped = self.fault.map_or_else(|| self.pop(), Err);
        self.fault = popped.as_ref().err().copied();
        popped
    }

    fn pop(&mut self) -> Result<Option<Request>, ClientFault> {
        match self.requests.pop(&mut self.payload).map_err(ClientFault::Requests)? {
            Some(kind) => Ok(Some(Request::decode(kind, &self.payload).map_err(ClientFault::of(kind))?)),
            None => Ok(None),
        }
    }

    /// True if a request waits: the last look before the daemon sleeps. Touches wait for the next tick: nobody rings
    /// for them. Costs one load.
    pub fn has_requests(&self) -> bool {
        self.requests.is_ready()
    }

    /// Appends a completion, or returns false when there is no room: the client is slow, asleep for good, or has
    /// scribbled on its position (the next [`Self::pop_request`] tells).
    ///
    /// # Panics
    /// If a list of the completion is beyond its limit.
    pub fn push_completion(&mut self, completion: &Completion) -> bool {
        let kind = completion.encode(&mut self.payload);
        match self.completions.push(kind, &self.payload) {
            Ok(pushed) => pushed,
            Err(fault) => {
                self.fault = Some(ClientFault::Completions(fault));
                false
            }
        }
    }

    /// After pushes: true if the client sleeps and must be rung.
    pub fn client_sleeping(&self) -> bool {
        must_wake(&self.words, || self.words.load(CLIENT_SLEEPS_AT, Relaxed) != 0)
    }

    /// Hands out at most `max` touches, oldest first; returns how many were found lost.
    pub fn drain_touches(&mut self, max: usize, touched: &mut impl FnMut(Touch)) -> u64 {
        self.touches.drain(max, touched)
    }

    /// As the client reports them.
    pub fn counters(&self) -> Counters {
        let places = [ASKED_AT, HIT_AT, HIT_BYTES_AT, HIT_HBM_AT];
        let [asked, hit, bytes, hit_hbm] = places.map(|at| self.words.load(at, Relaxed));
        Counters { asked, hit, bytes, hit_hbm }
    }

    /// The page on which the client names the slots that it reads in place.
    pub fn hazards(&self) -> Hazards {
        Hazards::mapped(&self.mapping, HAZARDS_OFFSET)
    }

    /// Tells the client that it pins too much: views must go soon.
    pub fn set_warned(&self) {
        self.warn(Warning::PinsOverLimit);
    }

    /// Tells the client that its hazard page is ignored from here on: to be called before it is.
    pub fn set_expelled(&self) {
        self.warn(Warning::Expelled);
    }

    pub fn clear_warning(&self) {
        self.warn(Warning::None);
    }

    fn warn(&self, warning: Warning) {
        self.words.store(WARNING_AT, warning as u64, Release);
    }
}
