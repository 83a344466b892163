//! A ring of frames in words that the other side may scribble on: one producer, one consumer.
//!
//! Positions count words, never wrap back to 0 and lie on cache lines of their own. A frame is one word (payload bytes in
//! the low half, kind in the high half) and its payload, padded to whole words; it may run over the ring's end.
//! Invariant: each side believes only its own, private position; the other's is checked against it at every load.
//! Invariant: one call looks at one frame at most, whatever the words say.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use lapis_arena::Words;

/// Where the other side broke the protocol. The ring is then of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    #[error("a position of {theirs} words against {ours} of this side, in a ring of {words}")]
    Position { theirs: u64, ours: u64, words: u64 },
    #[error("a frame of {bytes} bytes where {words} words are filled")]
    Frame { bytes: u32, words: u64 },
}

/// Where a ring lies in its words: indices of words.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Written by the consumer: words taken so far.
    pub head: usize,
    /// Written by the producer: words filled so far.
    pub tail: usize,
    pub data: usize,
    /// Words of data, a power of two.
    pub count: usize,
}

impl Place {
    const fn check(self) -> Self {
        assert!(self.count.is_power_of_two() && self.count >= 2, "a ring's words are a power of two");
        self
    }

    fn at(&self, position: u64) -> usize {
        self.data + (position as usize & (self.count - 1))
    }
}

/// Words that a frame of so many payload bytes takes.
pub const fn frame_words(payload_bytes: usize) -> usize {
    1 + payload_bytes.div_ceil(8)
}

/// The filling end.
#[derive(Debug)]
pub struct Producer<W> {
    words: W,
    place: Place,
    tail: u64,
    /// The consumer's position when last looked at.
    head_seen: u64,
}

impl<W: Words> Producer<W> {
    /// The filling end of a ring that is empty at position 0.
    pub fn new(words: W, place: Place) -> Self {
        Self { words, place: place.check(), tail: 0, head_seen: 0 }
    }

    /// Appends a frame, or returns false when there is no room: the consumer must take something first.
    ///
    /// # Panics
    /// If the frame is larger than the whole ring.
    pub fn push(&mut self, kind: u32, payload: &[u8]) -> Result<bool, RingFault> {
        let need = frame_words(payload.len());
        assert!(need <= self.place.count, "a frame of {} bytes in a ring of {} words", payload.len(), self.place.count);
        if !self.has_room(need as u64)? {
            return Ok(false);
        }
        self.put(0, u64::from(kind) << 32 | payload.len() as u64);
        let (whole, last) = payload.as_chunks::<8>();
        for (i, word) in whole.iter().enumerate() {
            self.put(1 + i, u64::from_le_bytes(*word));
        }
        if !last.is_empty() {
            let mut word = [0; 8];
            word[..last.len()].copy_from_slice(last);
            self.put(1 + whole.len(), u64::from_le_bytes(word));
        }
        self.tail += need as u64;
        self.words.store(self.place.tail, self.tail, Release);
        Ok(true)
    }

    fn put(&self, ahead: usize, word: u64) {
        self.words.store(self.place.at(self.tail + ahead as u64), word, Relaxed);
    }

    fn has_room(&mut self, need: u64) -> Result<bool, RingFault> {
        let words = self.place.count as u64;
        if self.tail - self.head_seen + need <= words {
            return Ok(true);
        }
        // Acquire: the consumer has read what is overwritten next.
        let theirs = self.words.load(self.place.head, Acquire);
        if theirs > self.tail || theirs < self.head_seen {
            return Err(RingFault::Position { theirs, ours: self.tail, words });
        }
        self.head_seen = theirs;
        Ok(self.tail - theirs + need <= words)
    }
}

/// The emptying end.
#[derive(Debug)]
pub struct Consumer<W> {
    words: W,
    place: Place,
    head: u64,
}

impl<W: Words> Consumer<W> {
    /// The emptying end of a ring that is empty at position 0.
    pub fn new(words: W, place: Place) -> Self {
        Self { words, place: place.check(), head: 0 }
    }

    /// True if there is something to take, or something wrong. Costs one load.
    pub fn is_ready(&self) -> bool {
        self.words.load(self.place.tail, Acquire) != self.head
    }

    /// Replaces `payload` by a copy of the next frame's and returns its kind; `None` when the ring is empty.
    pub fn pop(&mut self, payload: &mut Vec<u8>) -> Result<Option<u32>, RingFault> {
        let (words, ours) = (self.place.count as u64, self.head);
        let theirs = self.words.load(self.place.tail, Acquire);
        let filled = theirs.checked_sub(ours).filter(|filled| *filled <= words);
        let filled = filled.ok_or(RingFault::Position { theirs, ours, words })?;
        if filled == 0 {
            return Ok(None);
        }
        // Read once: the producer may change it while we look.
        let first = self.words.load(self.place.at(ours), Relaxed);
        let (bytes, kind) = (first as u32, (first >> 32) as u32);
        let need = frame_words(bytes as usize) as u64;
        if need > filled {
            return Err(RingFault::Frame { bytes, words: filled });
        }
        payload.resize(8 * (need as usize - 1), 0);
        for (i, word) in payload.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = self.words.load(self.place.at(ours + 1 + i as u64), Relaxed).to_le_bytes();
        }
        payload.truncate(bytes as usize);
        self.head = ours + need;
        self.words.store(self.place.head, self.head, Release);
        Ok(Some(kind))
    }
}
