//! What the log wants of one device, and what became of it: the words between whoever decides (the core) and the
//! [`Volume`] that encodes, places and carries out.

mod carry;
mod change;
mod counters;
pub mod open;
mod queue;
pub mod returned;
pub mod superblocks;

use lapis_config::{OpId, PageIndex, PoolId, PoolShape, SegmentId, SsdPlace};

use crate::{
    device::Memory,
    format::{Record, SegmentUse},
};

pub use carry::{Volume, WallClock};
pub use counters::Counters;

/// What a page of contents is to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    Records(Vec<Record>),
    /// With the sequence below which the pool's records are gone.
    Pools(Vec<(PoolId, PoolShape, u64)>),
}

/// Work for one device. Everything is in the order in which the core wants it begun; nothing waits for what came
/// before it but what the core itself waits for. One exception: what comes after a [`Command::Discard`] of its segment
/// waits for that, whose end is not reported.
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
    /// The segment's bytes are not wanted any more: its header is wiped, so that no start finds them, and the device is
    /// told. Waits for whatever came before on this segment. With `durable` the wiping is flushed before anything else
    /// happens to the segment: a power cut brings no header back over what is written, or discarded, below it.
    Discard { segment: SegmentId, durable: bool },
    /// Writes the superblock with this in it. Sequences below `sequence_reserved` may be used once it is done.
    Reserve { op: OpId, sequence_reserved: u64 },
    /// Writes the superblock with this in it: what the group wrote before the sequence is gone once it is done.
    Purge { op: OpId, group: u16, purged_before: u64 },
    /// Reads a page, to see whether the device answers.
    Probe { op: OpId },
}

/// How a command ended.
#[derive(Debug)]
pub struct Report {
    pub op: OpId,
    pub result: Result<(), std::io::Error>,
    /// Bytes that went to or came from the device for it; 0 if it failed.
    pub bytes: u64,
}

impl Command {
    /// By what its report is known; `None` of a discard.
    pub fn op(&self) -> Option<OpId> {
        match self {
            Self::Open { op, .. } | Self::Write { op, .. } | Self::List { op, .. } | Self::Read { op, .. } => Some(*op),
            Self::Flush { op } | Self::Reserve { op, .. } | Self::Purge { op, .. } | Self::Probe { op } => Some(*op),
            Self::Discard { .. } => None,
        }
    }

    /// The segment whose bytes it is about, if any.
    fn segment(&self) -> Option<SegmentId> {
        match self {
            Self::Open { used, .. } | Self::List { used, .. } => Some(used.segment),
            Self::Write { at, .. } | Self::Read { at, .. } => Some(at.segment()),
            Self::Discard { segment, .. } => Some(*segment),
            Self::Flush { .. } | Self::Reserve { .. } | Self::Purge { .. } | Self::Probe { .. } => None,
        }
    }
}
