//! What the log wants of one device, and what became of it: the words between whoever decides (the core) and the
//! [`Volume`](self) that encodes, places and carries out.

use lapis_config::{OpId, PageIndex, PoolId, PoolShape, SegmentId, SsdPlace};

use crate::{
    device::Memory,
    format::{Record, SegmentUse},
};

/// What a page of contents is to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    Records(Vec<Record>),
    /// With the sequence below which the pool's records are gone.
    Pools(Vec<(PoolId, PoolShape, u64)>),
}

/// Work for one device. Everything is in the order in which the core wants it begun; nothing waits for what came
/// before it but what the core itself waits for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Writes the header of a new use of a segment.
    Open { op: OpId, used: SegmentUse },
    /// Writes a record: the pages of a slot as they stand in memory.
    Write { op: OpId, at: SsdPlace, memory: Memory },
    /// Writes a page of contents.
    List { op: OpId, used: SegmentUse, place: PageIndex, next: Option<PageIndex>, sequence: u64, listing: Listing },
    /// Reads a record into a slot.
    Read { op: OpId, at: SsdPlace, memory: Memory },
    /// All that was reported done before outlasts a power cut once this is done.
    Flush { op: OpId },
    /// The segment's bytes are not wanted any more.
    Discard { segment: SegmentId },
    /// Writes the superblock with this in it. Sequences below `sequence_reserved` may be used once it is done.
    Reserve { op: OpId, sequence_reserved: u64 },
    /// Reads a page, to see whether the device answers.
    Probe { op: OpId },
}

/// How a command ended.
#[derive(Debug)]
pub struct Report {
    pub op: OpId,
    pub result: Result<(), std::io::Error>,
    /// Bytes that went to or came from the device for it.
    pub bytes: u64,
}
