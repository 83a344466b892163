//! What a log holds when a daemon starts: each device's segments are scanned ([`Scan`]), their pages of contents decoded
//! ([`Chunk::decode`], on whatever threads the caller likes), and what was found on all devices is merged ([`merge`]).
//!
//! Payloads are not read: their sums are checked at first use. Broken pages cost what they list, never more.

mod decode;
mod merge;
#[cfg(test)]
mod model;
mod scan;
#[cfg(test)]
mod speed;

pub use decode::{BadPage, Chunk, Damage, Decoded, Listed, ScannedSegment, SegmentPool, WhyFree, decode_chunk};
pub use merge::{
    Recovered, RecoveredGroup, RecoveredRecord, RecoveredRecords, RecoveredSegment, RecoveredShape, merge,
};
pub use scan::{DeviceScan, Scan};
