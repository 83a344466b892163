//! What a device can do for the log: reads and writes of whole pages, flushes, discards, many at a time. Behind it are
//! io_uring, a pool of threads, SPDK, and a faulty twin in memory.
//!
//! Invariant: memory that was handed over belongs to its operation until the completion, whoever has lost interest.
//! Invariant: every submitted operation completes once, in any order, unless the device hangs; then it never does, and
//! dropping the device does not wait for it.

mod open;
mod presence;
#[allow(unsafe_code, reason = "the kernel is handed addresses of shared memory, to which no reference may exist")]
pub(crate) mod transfer;

use std::{io, ops::Range, os::fd::BorrowedFd, time::Duration};

use lapis_arena::{ArenaError, Mapping};

use crate::format::PAGE_BYTES;

pub use open::{DeviceFile, FileKind};
pub use presence::Presence;

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
    pub result: Result<(), io::Error>,
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
    fn kick(&mut self) -> io::Result<()>;
    /// Appends what has ended.
    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()>;
    /// Memory that will be read from and written to often: operations on it may be cheaper from now on. A hint; what
    /// cannot be registered is used as any other memory.
    fn register(&mut self, _mapping: &Mapping) -> Result<(), ArenaError> {
        Ok(())
    }
}

/// A device whose thread sleeps while it works.
pub trait Waits {
    /// Sleeps until `poll` has something to give, `bell` is readable or `timeout` is over; now and then for no reason.
    /// Does not read the bell, which is always the same one: it may be watched from the first call on.
    fn wait(&mut self, bell: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()>;
}

impl Io {
    pub fn read(id: IoId, offset: u64, memory: Memory) -> Self {
        Self { id, kind: IoKind::Read, offset, bytes: memory.bytes() as u64, memory: Some(memory) }
    }

    pub fn write(id: IoId, offset: u64, memory: Memory) -> Self {
        Self { id, kind: IoKind::Write, offset, bytes: memory.bytes() as u64, memory: Some(memory) }
    }

    pub fn flush(id: IoId) -> Self {
        Self { id, kind: IoKind::Flush, offset: 0, bytes: 0, memory: None }
    }

    pub fn discard(id: IoId, offset: u64, bytes: u64) -> Self {
        Self { id, kind: IoKind::Discard, offset, bytes, memory: None }
    }

    /// Whether it lies on a device of `device_bytes`; one that does not completes with this error.
    ///
    /// # Panics
    /// If it is not made of pages, or its memory does not fit its kind: these are ours.
    pub(crate) fn check(&self, device_bytes: u64) -> io::Result<()> {
        let page = PAGE_BYTES as u64;
        assert!(self.offset.is_multiple_of(page) && self.bytes.is_multiple_of(page), "whole pages");
        let moves = matches!(self.kind, IoKind::Read | IoKind::Write);
        assert!(self.memory.as_ref().map(|memory| memory.bytes() as u64) == moves.then_some(self.bytes), "memory fits");
        self.memory.as_ref().inspect(|memory| memory.check());
        let writable = self.memory.as_ref().is_none_or(|memory| memory.mapping.is_writable());
        assert!(self.kind != IoKind::Read || writable, "a read into read-only memory");
        let fits = self.offset.checked_add(self.bytes).is_some_and(|end| end <= device_bytes);
        if fits { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the device")) }
    }
}

impl Memory {
    /// # Panics
    /// If the range leaves the mapping or is not made of pages: places are ours.
    pub fn new(mapping: &Mapping, offset: usize, bytes: usize) -> Self {
        let memory = Self { mapping: mapping.clone(), range: offset..offset.saturating_add(bytes) };
        memory.check();
        memory
    }

    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    fn check(&self) {
        let Range { start, end } = self.range;
        assert!(start.is_multiple_of(PAGE_BYTES) && end.is_multiple_of(PAGE_BYTES), "whole pages");
        assert!(start <= end && end <= self.mapping.len(), "{start}..{end} of {} bytes", self.mapping.len());
    }

    /// Where `bytes` bytes from its byte `done` on lie; all of them are mapped while the mapping is.
    pub(crate) fn address(&self, done: usize, bytes: usize) -> *mut u8 {
        self.check();
        assert!(done.checked_add(bytes).is_some_and(|end| end <= self.bytes()), "within the range");
        self.mapping.as_ptr(self.range.start + done)
    }
}
