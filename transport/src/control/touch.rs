//! The touch ring: what the policy should hear of hits that the daemon had no part in. One entry a call, lossy.
//!
//! An entry is two words: line and low half of its bind; hit, asked, the low 24 bits of its position + 1, and a GPU + 1 or 0.
//! Line and bind share a word, so that a torn entry still names one bond of key and slot.
//! Invariant: any word here may be a lie; what is wrong costs the liar's own group a little order.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::{TOUCHES, TOUCHES_AT, TOUCHES_OFFSET, WORD};
use lapis_arena::{MappedWords, Mapping, Words};
use lapis_config::GpuId;

/// One call's hits as its client tells them, unchecked: the number of the deepest line hit, the low half of that line's
/// bind, how many keys were hit and how many asked (at most 65535 each), and the GPU whose memory the bytes went into.
/// Clients of minor versions below 2 name none; what is found in its place of theirs is to be passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    pub line: u32,
    pub bind_low: u32,
    pub hit: u32,
    pub asked: u32,
    pub gpu: Option<GpuId>,
}

const SEQUENCE_BITS: u32 = 24;

fn sequence(position: u64) -> u64 {
    position.wrapping_add(1) & ((1 << SEQUENCE_BITS) - 1)
}

/// The client's end; any thread may use it.
#[derive(Clone, Debug)]
pub struct Touches {
    mapping: Mapping,
    entries: MappedWords,
}

impl Touches {
    pub(super) fn new(mapping: &Mapping) -> Self {
        Self { mapping: mapping.clone(), entries: entries(mapping) }
    }

    /// Leaves an entry, over the oldest one if the daemon is behind.
    pub fn touch(&self, touch: Touch) {
        let position = self.mapping.fetch_add64(TOUCHES_AT * WORD, 1, Relaxed);
        let at = entry(position);
        self.entries.store(at, u64::from(touch.line) | u64::from(touch.bind_low) << 32, Relaxed);
        let [hit, asked] = [touch.hit, touch.asked].map(|count| u64::from(count.min(u16::MAX.into())));
        let gpu = touch.gpu.and_then(|gpu| gpu.0.checked_add(1)).unwrap_or(0);
        let rest = hit | asked << 16 | sequence(position) << 32 | u64::from(gpu) << (32 + SEQUENCE_BITS);
        self.entries.store(at + 1, rest, Release);
    }
}

/// The daemon's end.
#[derive(Debug)]
pub(super) struct TouchDrain {
    mapping: Mapping,
    entries: MappedWords,
    seen: u64,
}

impl TouchDrain {
    /// Starts with what is left from now on.
    pub(super) fn new(mapping: &Mapping) -> Self {
        let seen = mapping.load64(TOUCHES_AT * WORD, Relaxed);
        Self { mapping: mapping.clone(), entries: entries(mapping), seen }
    }

    /// Hands out at most `max` entries, oldest first; returns how many were lost.
    pub(super) fn drain(&mut self, max: usize, touched: &mut impl FnMut(Touch)) -> u64 {
        let tail = self.mapping.load64(TOUCHES_AT * WORD, Relaxed);
        let waiting = tail.wrapping_sub(self.seen);
        let mut lost = waiting.saturating_sub(TOUCHES as u64);
        self.seen = self.seen.wrapping_add(lost);
        for _ in 0..max.min(waiting.min(TOUCHES as u64) as usize) {
            match self.take(self.seen) {
                Some(touch) => touched(touch),
                None => lost += 1,
            }
            self.seen = self.seen.wrapping_add(1);
        }
        lost
    }

    /// The entry of a position, unless it is overwritten already or not written yet.
    fn take(&self, position: u64) -> Option<Touch> {
        let at = entry(position);
        let rest = self.entries.load(at + 1, Acquire);
        let first = self.entries.load(at, Relaxed);
        let touch = Touch {
            line: first as u32,
            bind_low: (first >> 32) as u32,
            hit: u32::from(rest as u16),
            asked: u32::from((rest >> 16) as u16),
            gpu: ((rest >> (32 + SEQUENCE_BITS)) as u8).checked_sub(1).map(GpuId),
        };
        (rest >> 32 & ((1 << SEQUENCE_BITS) - 1) == sequence(position)).then_some(touch)
    }
}

fn entries(mapping: &Mapping) -> MappedWords {
    MappedWords::new(mapping, TOUCHES_OFFSET, TOUCHES * 2)
}

fn entry(position: u64) -> usize {
    position as usize % TOUCHES * 2
}
