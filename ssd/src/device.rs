//! What a device can do for the log: reads and writes of whole pages, flushes, discards, many at a time. Behind it are
//! io_uring, a pool of threads, and a faulty twin in memory.
//!
//! Invariant: memory that was handed over belongs to its operation until the completion, whoever has lost interest.
//! Invariant: every submitted operation completes once, in any order, unless the device hangs; then it never does, and
//! dropping the device does not wait for it.

use std::ops::Range;

use lapis_arena::{ArenaError, Mapping};

use crate::format::PAGE_BYTES;

/// Names one operation on one device; chosen by the submitter, who may not use it twice while it is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IoId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoKind {
    /// Of the device, into memory.
    Read,
    /// From memory, onto the device.
    Write,
    /// Whatever was completed before it was submitted outlasts a power cut once it is complete. `memory` is empty.
    Flush,
    /// The bytes are not wanted any more; a hint. `memory` is empty.
    Discard,
}

/// A range of a mapping: a slot of an arena, or pages of the log's own. Offsets and lengths are multiples of a page.
#[derive(Clone, Debug)]
pub struct Memory {
    pub mapping: Mapping,
    pub range: Range<usize>,
}

/// One operation. `bytes` bytes from `offset` on, both multiples of a page.
#[derive(Clone, Debug)]
pub struct Io {
    pub id: IoId,
    pub kind: IoKind,
    pub offset: u64,
    pub bytes: u64,
    /// `None` for flushes and discards; else as long as `bytes`.
    pub memory: Option<Memory>,
}

/// How an operation ended. A short transfer is gone on with by the device; what cannot be completed is an error.
#[derive(Debug)]
pub struct Completion {
    pub id: IoId,
    pub result: Result<(), std::io::Error>,
}

/// See the module's head. All calls return at once.
pub trait Device {
    /// Bytes of the device; a multiple of a page.
    fn bytes(&self) -> u64;
    /// Operations that it takes at once.
    fn depth(&self) -> usize;
    /// Takes an operation, or gives it back if `depth` operations are under way. It may begin only at `kick`.
    fn submit(&mut self, io: Io) -> Result<(), Io>;
    /// Begins what was submitted since the last call.
    fn kick(&mut self) -> std::io::Result<()>;
    /// Appends what has ended.
    fn poll(&mut self, out: &mut Vec<Completion>) -> std::io::Result<()>;
    /// Memory that will be read from and written to often: operations on it may be cheaper from now on. A hint; what
    /// cannot be registered is used as any other memory.
    fn register(&mut self, _mapping: &Mapping) -> Result<(), ArenaError> {
        Ok(())
    }
}

impl Memory {
    /// # Panics
    /// If the range leaves the mapping or is not made of pages: places are ours.
    pub fn new(mapping: &Mapping, offset: usize, bytes: usize) -> Self {
        assert!(offset.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES), "whole pages");
        assert!(offset + bytes <= mapping.len(), "{bytes} bytes at {offset} of {}", mapping.len());
        Self { mapping: mapping.clone(), range: offset..offset + bytes }
    }

    pub fn bytes(&self) -> usize {
        self.range.len()
    }
}
