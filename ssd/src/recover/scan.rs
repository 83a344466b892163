//! Reads the contents of all segments of one device, many at a time. A state machine: polled until it is done; what it
//! read is decoded by whoever polls it, where he likes.
//!
//! Invariant: buffer i belongs to the read in slot i until that completes.
//! Invariant: chunks that are being read, decoded or wait for their next read are at most twice the depth.

use std::{collections::VecDeque, io};

use lapis_arena::{ArenaError, Mapping};
use lapis_config::{PageIndex, SegmentId};

use super::decode::{Chunk, Decoded, DeviceWords, ScannedSegment, WhyFree};
use crate::{
    device::{Completion, Device, Io, IoId, IoKind, Memory},
    format::{CHUNK_PAGES, CONTENTS_START, PAGE_BYTES, Superblock},
};

/// The header and the chunk behind it.
const READ_BYTES_MAX: usize = (CONTENTS_START.0 + CHUNK_PAGES) as usize * PAGE_BYTES;
/// A read that failed so often costs what it was to read; errors that pass cost nothing.
const FAILURES_MAX: u32 = 3;

/// See the module's head.
pub struct Scan {
    superblock: Superblock,
    device: DeviceWords,
    /// The first segment that was not looked at.
    next: u32,
    /// Segments whose next chunk is known and not read: they go first, to be out of the way.
    named: VecDeque<(ScannedSegment, PageIndex)>,
    /// Reads that the device had no room for, or that failed: before all others.
    again: Vec<Reading>,
    buffers: Mapping,
    slots: Vec<Option<Reading>>,
    slots_free: Vec<usize>,
    /// Chunks that the caller is decoding.
    out: usize,
    completions: Vec<Completion>,
    found: DeviceScan,
}

struct Reading {
    segment: SegmentId,
    so_far: Option<ScannedSegment>,
    place: PageIndex,
    bytes: usize,
    /// How often it failed.
    failures: u32,
}

/// What one device holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceScan {
    /// Segments in use, by number.
    pub segments: Vec<ScannedSegment>,
    /// All others, by number, and why.
    pub free: Vec<(SegmentId, WhyFree)>,
}

impl Scan {
    /// Of the device with this superblock; `depth` reads of 68 KiB at a time.
    pub fn new(superblock: &Superblock, depth: usize) -> Result<Self, ArenaError> {
        assert!(depth > 0, "a scan reads");
        Ok(Self {
            device: DeviceWords::of(superblock),
            superblock: superblock.clone(),
            next: 0,
            named: VecDeque::new(),
            again: Vec::new(),
            buffers: Mapping::anonymous((depth * READ_BYTES_MAX) as u64)?,
            slots: (0..depth).map(|_| None).collect(),
            slots_free: (0..depth).rev().collect(),
            out: 0,
            completions: Vec::with_capacity(depth),
            found: DeviceScan::default(),
        })
    }

    /// Begins reads and takes what ended: appends the chunks to be decoded, whose outcome [`Scan::decoded`] wants. True
    /// once nothing is left to read or to decode. An error is the whole device's; a read that fails again and again costs
    /// its segment.
    pub fn poll<D: Device>(&mut self, device: &mut D, out: &mut Vec<Chunk>) -> io::Result<bool> {
        let mut completions = std::mem::take(&mut self.completions);
        let polled = device.poll(&mut completions);
        for Completion { id, result } in completions.drain(..) {
            let slot = id.0 as usize;
            let reading = self.slots[slot].take().expect("a read completes once");
            self.slots_free.push(slot);
            match result {
                Ok(()) => out.push(self.read(slot, reading)),
                Err(_) => self.failed(reading),
            }
        }
        self.completions = completions;
        polled?;
        if self.begin_reads(device) {
            device.kick()?;
        }
        Ok(self.is_done())
    }

    /// What became of a chunk that `poll` gave.
    pub fn decoded(&mut self, decoded: Decoded) {
        self.out = self.out.checked_sub(1).expect("a chunk was given out");
        match decoded {
            Decoded::Free(segment, why) => self.found.free.push((segment, why)),
            Decoded::Segment(segment, Some(next)) => self.named.push_back((segment, next)),
            Decoded::Segment(segment, None) => self.found.segments.push(segment),
        }
    }

    /// For callers without threads to decode on: `poll`, and decodes here. Until it is done, reads are under way that
    /// the caller may wait for.
    pub fn poll_inline<D: Device>(&mut self, device: &mut D) -> io::Result<bool> {
        let mut chunks = Vec::new();
        self.poll(device, &mut chunks)?;
        chunks.into_iter().for_each(|chunk| self.decoded(chunk.decode()));
        // The chunks that those just named: nothing else may be under way that would wake the caller.
        if self.begin_reads(device) {
            device.kick()?;
        }
        Ok(self.is_done())
    }

    /// # Panics
    /// If it is not done.
    pub fn finish(mut self) -> DeviceScan {
        assert!(self.is_done(), "a scan is taken when it is done");
        self.found.segments.sort_unstable_by_key(|segment| segment.used.segment);
        self.found.free.sort_unstable_by_key(|(segment, _)| *segment);
        self.found
    }

    /// Segments that were looked at, of how many.
    pub fn progress(&self) -> (usize, u32) {
        (self.found.segments.len() + self.found.free.len(), self.superblock.segments)
    }

    fn is_done(&self) -> bool {
        let idle = self.slots_free.len() == self.slots.len() && self.out == 0;
        idle && self.named.is_empty() && self.again.is_empty() && self.next == self.superblock.segments
    }

    fn begin_reads<D: Device>(&mut self, device: &mut D) -> bool {
        let mut begun = false;
        while let Some(slot) = self.slots_free.last().copied() {
            let Some(reading) = self.next_reading() else { break };
            let offset = self.superblock.offset_bytes(reading.segment) + u64::from(reading.place.0) * PAGE_BYTES as u64;
            let bytes = reading.bytes as u64;
            let memory = Some(Memory::new(&self.buffers, slot * READ_BYTES_MAX, reading.bytes));
            let read = Io { id: IoId(slot as u64), kind: IoKind::Read, offset, bytes, memory };
            if device.submit(read).is_err() {
                self.again.push(reading);
                break;
            }
            begun = true;
            self.slots[slot] = Some(reading);
            self.slots_free.pop();
        }
        begun
    }

    fn next_reading(&mut self) -> Option<Reading> {
        if let Some(reading) = self.again.pop() {
            return Some(reading);
        }
        if let Some((so_far, place)) = self.named.pop_front() {
            let bytes = self.device.chunk_pages(place) as usize * PAGE_BYTES;
            return Some(Reading { segment: so_far.used.segment, so_far: Some(so_far), place, bytes, failures: 0 });
        }
        let in_flight = self.slots.len() - self.slots_free.len();
        if self.next == self.superblock.segments || in_flight + self.out >= 2 * self.slots.len() {
            return None;
        }
        let segment = SegmentId::new(self.superblock.device, self.next);
        self.next += 1;
        Some(Reading { segment, so_far: None, place: PageIndex(0), bytes: READ_BYTES_MAX, failures: 0 })
    }

    fn read(&mut self, slot: usize, reading: Reading) -> Chunk {
        let Reading { segment, so_far, place, bytes, .. } = reading;
        self.out += 1;
        let bytes = self.buffers.to_vec(slot * READ_BYTES_MAX, bytes);
        Chunk { segment, so_far, place, bytes, device: self.device }
    }

    fn failed(&mut self, mut reading: Reading) {
        reading.failures += 1;
        if reading.failures < FAILURES_MAX {
            return self.again.push(reading);
        }
        match reading.so_far {
            Some(mut segment) => {
                segment.damage.unreadable += (reading.bytes / PAGE_BYTES) as u32;
                self.found.segments.push(segment);
            }
            None => self.found.free.push((reading.segment, WhyFree::Unreadable)),
        }
    }
}
