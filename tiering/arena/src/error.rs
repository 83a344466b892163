//! What can go wrong with shared memory, in the words of whoever has to act on it.

use std::io;

/// Why memory could not be made, mapped or believed.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The kernel refused.
    #[error("{op} of {bytes} bytes")]
    Io { op: &'static str, bytes: u64, source: io::Error },
    /// A received descriptor could shrink under its mapping (SIGBUS): refuse it.
    #[error("the descriptor is not sealed against shrinking")]
    NotSealed,
    #[error("the memory has {found} bytes, expected {expected}")]
    Size { expected: u64, found: u64 },
    /// Stop the other daemon first, or use another name.
    #[error("another daemon holds this memory")]
    Owned,
    #[error("no block table: magic {found:016x}")]
    NoTable { found: u64 },
    /// The table was made by another version: start cold.
    #[error("the block table has layout {}.{}, this build knows {}.x", found >> 16, found & 0xffff, expected >> 16)]
    TableVersion { expected: u32, found: u32 },
    /// The header promises more lines than the memory holds, or a count no table has.
    #[error("the block table has {lines} lines in {words} words of memory")]
    TableGeometry { lines: u64, words: u64 },
    /// It belongs to another block table, or was made by another version: make a new one.
    #[error("the device table has another {what}: {found}, expected {expected}")]
    DeviceTable { what: &'static str, found: u64, expected: u64 },
}

impl ArenaError {
    pub(crate) fn io(op: &'static str, bytes: u64, source: impl Into<io::Error>) -> Self {
        Self::Io { op, bytes, source: source.into() }
    }

    /// True if the same call may succeed later without anyone's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Owned)
    }
}
