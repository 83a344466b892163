//! The client's ends. Requests and completions are apart so that a caller's lock on one does not hold up the other.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use lapis_arena::{Hazards, MappedWords, Mapping, Words};

use super::{
    ASKED_AT, BYTES, CLIENT_SLEEPS_AT, COMPLETIONS, ControlError, Counters, HAZARDS_OFFSET, HIT_AT, HIT_BYTES_AT,
    HIT_HBM_AT, MAGIC, MAGIC_AT, REQUESTS, TOUCHES_AT, Touch, Touches, VERSION, VERSION_AT, WARNING_AT, WORD, Warning,
    falls_asleep, must_wake, words,
};
use crate::{
    control::ClientFault,
    frame::{Completion, Request},
    ring::{Consumer, Producer},
};

/// What any thread of the client may use at any time.
#[derive(Clone, Debug)]
pub struct ControlClient {
    mapping: Mapping,
    words: MappedWords,
    touches: Touches,
}

impl ControlClient {
    /// The client's side of a memory that the daemon made. Its two ring ends are made by [`Self::rings`].
    pub fn new(mapping: &Mapping) -> Result<Self, ControlError> {
        if mapping.len() as u64 != BYTES {
            return Err(ControlError::Size { found: mapping.len() });
        }
        let words = words(mapping);
        let (magic, version) = (words.load(MAGIC_AT, Acquire), words.load(VERSION_AT, Relaxed));
        if magic != MAGIC {
            return Err(ControlError::Magic { found: magic });
        }
        if version >> 16 != VERSION >> 16 {
            return Err(ControlError::Version { found: version });
        }
        Ok(Self { mapping: mapping.clone(), words, touches: Touches::new(mapping) })
    }

    /// The two ring ends, empty. Made once after each `Welcome`: the daemon has emptied the rings before it sent that,
    /// and ends of before must not be used any more.
    pub fn rings(&self) -> (Requests, Completions) {
        let requests = Producer::new(self.words.clone(), REQUESTS);
        let completions = Consumer::new(self.words.clone(), COMPLETIONS);
        (Requests { ring: requests, payload: Vec::new() }, Completions { ring: completions, payload: Vec::new() })
    }

    /// After pushes: true if the daemon sleeps and must be rung. `daemon_sleeps` reads the table's header.
    pub fn must_ring(&self, daemon_sleeps: impl FnOnce() -> bool) -> bool {
        must_wake(&self.words, daemon_sleeps)
    }

    /// Says that this client is about to sleep on its doorbell. False if `completions` has something: do not sleep.
    /// To be followed by [`Self::awake`] either way. One thread of the client at a time.
    pub fn falls_asleep(&self, completions: &Completions) -> bool {
        falls_asleep(&self.words, || self.words.store(CLIENT_SLEEPS_AT, 1, Relaxed), || completions.is_ready())
    }

    pub fn awake(&self) {
        self.words.store(CLIENT_SLEEPS_AT, 0, Relaxed);
    }

    /// Tells the daemon of hits, once a call.
    pub fn touch(&self, touch: Touch) {
        self.touches.touch(touch);
    }

    /// Adds to the counters of look-ups that this client answered by itself.
    pub fn count(&self, more: Counters) {
        for (at, more) in [(ASKED_AT, more.asked), (HIT_AT, more.hit), (HIT_BYTES_AT, more.bytes)] {
            self.mapping.fetch_add64(at * WORD, more, Relaxed);
        }
        if more.hit_hbm > 0 {
            self.mapping.fetch_add64(HIT_HBM_AT * WORD, more.hit_hbm, Relaxed);
        }
    }

    /// The page on which this client names the slots that it reads in place.
    pub fn hazards(&self) -> Hazards {
        Hazards::mapped(&self.mapping, HAZARDS_OFFSET)
    }

    pub fn warning(&self) -> Warning {
        match self.words.load(WARNING_AT, Acquire) {
            0 => Warning::None,
            1 => Warning::PinsOverLimit,
            _ => Warning::Expelled,
        }
    }

    /// Touches left so far, lost ones included.
    pub fn touches(&self) -> u64 {
        self.words.load(TOUCHES_AT, Relaxed)
    }
}

/// The client's end of the request ring. One thread at a time.
#[derive(Debug)]
pub struct Requests {
    ring: Producer<MappedWords>,
    payload: Vec<u8>,
}

impl Requests {
    /// Appends a request, or returns false when the ring is full. [`ControlClient::must_ring`] then says whether to ring.
    ///
    /// # Panics
    /// If a list of the request is beyond its limit.
    pub fn push(&mut self, request: &Request) -> Result<bool, ClientFault> {
        let kind = request.encode(&mut self.payload);
        self.ring.push(kind, &self.payload).map_err(ClientFault::Requests)
    }
}

/// The client's end of the completion ring. One thread at a time.
#[derive(Debug)]
pub struct Completions {
    ring: Consumer<MappedWords>,
    payload: Vec<u8>,
}

impl Completions {
    /// The next completion. An error means that this memory was overwritten: the client must connect anew.
    pub fn pop(&mut self) -> Result<Option<Completion>, ClientFault> {
        match self.ring.pop(&mut self.payload).map_err(ClientFault::Completions)? {
            Some(kind) => Ok(Some(Completion::decode(kind, &self.payload).map_err(ClientFault::of(kind))?)),
            None => Ok(None),
        }
    }

    /// True if there is something to take. Costs one load.
    pub fn is_ready(&self) -> bool {
        self.ring.is_ready()
    }
}
