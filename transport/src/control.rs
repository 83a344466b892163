//! The memory that one client shares with the daemon: a memfd of [`BYTES`], drawn in docs/formats.md.
//!
//! Page 0 holds single words, those of the client and those of the daemon on cache lines apart; then hazards, touches,
//! requests, completions. The client can write all of it: the daemon takes nothing from it unchecked, and what the
//! daemon itself wrote there it never reads back.

mod client;
mod daemon;
mod touch;

use std::sync::atomic::Ordering::SeqCst;

use lapis_arena::{MappedWords, Mapping, Words, hazard};

pub use client::{Completions, ControlClient, Requests};
pub use daemon::{ClientFault, ControlDaemon};
pub use touch::{Touch, Touches};

use crate::{
    hello::{LAYOUT_MAJOR, LAYOUT_MINOR},
    ring::Place,
};

const MAGIC: u64 = u64::from_le_bytes(*b"lapisctl");
const VERSION: u64 = (LAYOUT_MAJOR as u64) << 16 | LAYOUT_MINOR as u64;

const WORD: usize = 8;
/// Words of one cache line.
const LINE: usize = 8;

// Page 0, indices of words. Written by the daemon: the head, the warning, two positions. By the client: the rest.
const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 1;
const BYTES_AT: usize = 2;
const WARNING_AT: usize = LINE;
const CLIENT_SLEEPS_AT: usize = 2 * LINE;
const ASKED_AT: usize = 3 * LINE;
const HIT_AT: usize = 3 * LINE + 1;
const HIT_BYTES_AT: usize = 3 * LINE + 2;
const HIT_HBM_AT: usize = 3 * LINE + 3;
const REQUESTS_TAIL_AT: usize = 4 * LINE;
const REQUESTS_HEAD_AT: usize = 5 * LINE;
const COMPLETIONS_TAIL_AT: usize = 6 * LINE;
const COMPLETIONS_HEAD_AT: usize = 7 * LINE;
const TOUCHES_AT: usize = 8 * LINE;

/// Where the client's hazard page starts, bytes.
pub const HAZARDS_OFFSET: usize = 4096;
/// Entries of the touch ring.
pub const TOUCHES: usize = 4096;
const TOUCHES_OFFSET: usize = HAZARDS_OFFSET + hazard::BYTES;
/// Bytes of the request ring and of the completion ring.
pub const RING_BYTES: usize = 512 << 10;
const REQUESTS_OFFSET: usize = TOUCHES_OFFSET + TOUCHES * 16;
const COMPLETIONS_OFFSET: usize = REQUESTS_OFFSET + RING_BYTES;
/// Bytes of a client's memory.
pub const BYTES: u64 = (COMPLETIONS_OFFSET + RING_BYTES) as u64;

const _: () = assert!(hazard::BYTES == 32 << 10 && TOUCHES_OFFSET == 0x9000, "layout of shared memory");
const _: () = assert!(REQUESTS_OFFSET == 0x19000 && COMPLETIONS_OFFSET == 0x99000, "layout of shared memory");
const _: () = assert!(BYTES == 0x119000 && BYTES.is_multiple_of(4096), "layout of shared memory");

const REQUESTS: Place =
    Place { head: REQUESTS_HEAD_AT, tail: REQUESTS_TAIL_AT, data: REQUESTS_OFFSET / WORD, count: RING_BYTES / WORD };
const COMPLETIONS: Place = Place {
    head: COMPLETIONS_HEAD_AT,
    tail: COMPLETIONS_TAIL_AT,
    data: COMPLETIONS_OFFSET / WORD,
    count: RING_BYTES / WORD,
};

/// What the daemon tells a client that holds too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum Warning {
    #[default]
    None = 0,
    /// Over the limit of pinned bytes while others need them: views must go soon.
    PinsOverLimit = 1,
    /// The hazard page is ignored from here on: no view is safe any more.
    Expelled = 2,
}

/// What a client says it asked and found by itself, in keys and in bytes; monotonic, as reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub asked: u64,
    pub hit: u64,
    pub bytes: u64,
    /// Of `hit`: read in the memory of GPUs. Clients of minor versions below 2 say 0.
    pub hit_hbm: u64,
}

/// The client's memory is not what this build expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("client memory of {found} bytes, expected {BYTES}")]
    Size { found: usize },
    #[error("no client memory: magic {found:016x}")]
    Magic { found: u64 },
    #[error("client memory of layout {}.{}, this build knows {LAYOUT_MAJOR}.x", found >> 16, found & 0xffff)]
    Version { found: u64 },
}

fn words(mapping: &Mapping) -> MappedWords {
    MappedWords::new(mapping, 0, BYTES as usize / WORD)
}

/// The asking half of a wake-up: after a push, whether the other side must be woken. The other half is to say "I sleep"
/// and to look once more, with a fence between ([`falls_asleep`]): one of the two sees the other's store.
pub fn must_wake(words: &impl Words, sleeps: impl FnOnce() -> bool) -> bool {
    words.fence(SeqCst);
    sleeps()
}

/// The sleeping half: `say` stores "I sleep", `ready` looks. True if there is nothing to do, so that the caller may sleep.
pub fn falls_asleep(words: &impl Words, say: impl FnOnce(), ready: impl FnOnce() -> bool) -> bool {
    say();
    words.fence(SeqCst);
    !ready()
}
