//! Carries out what the core wants of one device: encodes, places, hands to the device as it has room, reports. No
//! clock, no thread, and no call that waits.
//!
//! Invariant: page i of `pages` belongs to the operation in slot i until that completes.
//! Invariant: every command but a discard is reported once, unless the device hangs.

use std::{collections::VecDeque, io};

use lapis_arena::{ArenaError, Mapping};
use lapis_config::{
    OpId, PageIndex, SegmentId, SsdPlace, Time,
    planted::{self, Bug},
};

use super::{
    Command, Counters, Listing, Report,
    change::{Changes, Next},
    queue::Queue,
};
use crate::{
    device::{Completion, Device, Io, IoId, IoKind, Memory},
    format::{ContentsPage, Entries, PAGE_BYTES, Page, SegmentHeader, SegmentUse, Superblock},
};

const PAGE: u64 = PAGE_BYTES as u64;

/// What the wall clock said at a time of the clock that never goes back: later times tell the date without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallClock {
    pub wall_s: u64,
    pub at: Time,
}

impl WallClock {
    pub fn seconds(&self, now: Time) -> u64 {
        self.wall_s + now.since_us(self.at) / 1_000_000
    }
}

/// One opened device. See the module's head.
pub struct Volume<D> {
    device: D,
    superblock: Superblock,
    clock: WallClock,
    /// The latest time that the caller told.
    now: Time,
    queue: Queue,
    changes: Changes,
    pages: Mapping,
    slots: Vec<Option<Job>>,
    slots_free: Vec<usize>,
    /// Operations so far: makes their names unique.
    issued: u64,
    /// Operations that the device gave back: it had less room than it said.
    refused: VecDeque<Io>,
    /// The device took something since it was kicked.
    given: bool,
    counters: Counters,
    completions: Vec<Completion>,
}

/// What an operation on the device is for.
struct Job {
    op: Option<OpId>,
    kind: JobKind,
    segment: Option<SegmentId>,
    bytes: u64,
    begun: Time,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum JobKind {
    ReadRecord,
    WriteRecord,
    Contents,
    Header,
    Probe,
    Flush,
    Superblock,
    Wipe,
    Discard,
}

impl<D: Device> Volume<D> {
    /// Of a device whose superblock, as given, was written by [`super::superblocks::Writer`].
    pub fn new(device: D, superblock: Superblock, clock: WallClock) -> Result<Self, ArenaError> {
        let depth = device.depth();
        assert!(depth > 0, "a device takes an operation");
        Ok(Self {
            pages: Mapping::anonymous(depth as u64 * PAGE)?,
            slots: (0..depth).map(|_| None).collect(),
            slots_free: (0..depth).rev().collect(),
            device,
            superblock,
            clock,
            now: clock.at,
            queue: Queue::default(),
            changes: Changes::default(),
            issued: 0,
            refused: VecDeque::new(),
            given: false,
            counters: Counters::default(),
            completions: Vec::with_capacity(depth),
        })
    }

    /// Takes a command. It begins at the next `kick` or `poll` at which the device has room.
    pub fn submit(&mut self, now: Time, command: Command) {
        self.now = self.now.max(now);
        match command {
            Command::Reserve { .. } | Command::Purge { .. } => self.changes.push(command),
            command => self.queue.push(command),
        }
    }

    /// Begins what the device has room for.
    pub fn kick(&mut self) -> io::Result<()> {
        self.hand_over()
    }

    /// Appends what has ended, and begins what waited for it.
    pub fn poll(&mut self, now: Time, out: &mut Vec<Report>) -> io::Result<()> {
        self.now = self.now.max(now);
        let mut completions = std::mem::take(&mut self.completions);
        let polled = self.device.poll(&mut completions);
        completions.drain(..).for_each(|completion| out.extend(self.completed(completion)));
        self.completions = completions;
        polled?;
        self.hand_over()
    }

    /// Operations that the device has.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.slots_free.len()
    }

    /// Commands that wait for room.
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.changes.len()
    }

    /// When the device was given the oldest of the operations that it has: long ago, and it is stalled. As exact as the
    /// times that the caller tells.
    pub fn oldest_in_flight(&self) -> Option<Time> {
        self.slots.iter().flatten().map(|job| job.begun).min()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The one in force.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device back, for a new start. Nothing may be under way.
    pub fn into_device(self) -> D {
        assert!(self.in_flight() == 0, "operations own their memory until they end");
        self.device
    }

    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    fn hand_over(&mut self) -> io::Result<()> {
        for _ in 0..self.refused.len() {
            let io = self.refused.pop_front().expect("counted");
            self.give(io);
        }
        while self.refused.is_empty() && !self.slots_free.is_empty() && self.begin_next() {}
        if std::mem::take(&mut self.given) { self.device.kick() } else { Ok(()) }
    }

    /// Begins one thing, if any may begin.
    fn begin_next(&mut self) -> bool {
        if self.begin_change() {
            return true;
        }
        let slots = &self.slots;
        let under_way = |segment| slots.iter().flatten().any(|job| job.segment == Some(segment));
        if let Some(segment) = self.queue.next_discard(under_way) {
            let offset = self.superblock.offset_bytes(segment);
            self.write_page(None, JobKind::Wipe, Some(segment), offset, &[0; PAGE_BYTES]);
            return true;
        }
        let Some(command) = self.queue.next() else { return false };
        self.begin(command);
        true
    }

    fn begin(&mut self, command: Command) {
        match command {
            Command::Open { op, used } => self.open(op, used),
            Command::Write { op, at, memory } => self.record(op, JobKind::WriteRecord, at, memory),
            Command::Read { op, at, memory } => self.record(op, JobKind::ReadRecord, at, memory),
            Command::List { op, used, place, next, sequence, listing } => {
                assert!(next.is_none_or(|next| next > place), "later pages of contents lie later");
                let entries = match listing {
                    Listing::Records(records) => Entries::Records(records),
                    Listing::Pools(pools) => Entries::Pools(pools),
                };
                let page = ContentsPage { used, place, next, sequence, boots: self.superblock.boots, entries }.encode();
                let offset = self.offset(SsdPlace::new(used.segment, place), PAGE);
                self.write_page(Some(op), JobKind::Contents, Some(used.segment), offset, &page);
            }
            Command::Flush { op } => self.issue(Some(op), JobKind::Flush, None, 0, 0, None),
            Command::Probe { op } => {
                let memory = self.own_page();
                self.issue(Some(op), JobKind::Probe, None, self.superblock.page() * PAGE, PAGE, Some(memory));
            }
            Command::Discard { .. } | Command::Reserve { .. } | Command::Purge { .. } => {
                unreachable!("kept apart from what the queue gives")
            }
        }
    }

    fn open(&mut self, op: OpId, used: SegmentUse) {
        assert!(used.log == self.superblock.log, "a segment of this log");
        assert!(usize::from(used.group) < self.superblock.groups.len(), "a group of the superblock");
        let header = SegmentHeader {
            used,
            segment_bytes: self.superblock.segment_bytes,
            boots: self.superblock.boots,
            opened_s: self.clock.seconds(self.now),
            key_id: 0,
            wrapped_key: [0; 64],
        };
        let offset = self.superblock.offset_bytes(used.segment);
        self.write_page(Some(op), JobKind::Header, Some(used.segment), offset, &header.encode());
    }

    fn record(&mut self, op: OpId, kind: JobKind, at: SsdPlace, memory: Memory) {
        let bytes = memory.bytes() as u64;
        let astray = planted::is(Bug::RecordMisplaced) && kind == JobKind::WriteRecord && at.page().0.is_multiple_of(8);
        let offset = self.offset(at, bytes) + if astray { PAGE } else { 0 };
        self.issue(Some(op), kind, Some(at.segment()), offset, bytes, Some(memory));
    }

    /// Where `bytes` at a place lie on the device.
    fn offset(&self, at: SsdPlace, bytes: u64) -> u64 {
        let start = u64::from(at.page().0) * PAGE;
        assert!(at.page() > PageIndex(0), "page 0 is the header's");
        assert!(bytes > 0 && start + bytes <= self.superblock.segment_bytes, "{bytes} bytes at {at:?} in the segment");
        self.superblock.offset_bytes(at.segment()) + start
    }

    /// Begins the next step of a change of the superblock, if there is one that waits for nothing.
    fn begin_change(&mut self) -> bool {
        match self.changes.next(&self.superblock) {
            Some(Next::Write(superblock)) => {
                let (page, offset) = (superblock.encode(), superblock.page() * PAGE);
                self.write_page(None, JobKind::Superblock, None, offset, &page);
            }
            Some(Next::Flush) => self.issue(None, JobKind::Superblock, None, 0, 0, None),
            None => return false,
        }
        true
    }

    /// The page of the slot that `issue` will take.
    fn own_page(&self) -> Memory {
        let slot = *self.slots_free.last().expect("room was seen");
        Memory::new(&self.pages, slot * PAGE_BYTES, PAGE_BYTES)
    }

    fn write_page(&mut self, op: Option<OpId>, kind: JobKind, of: Option<SegmentId>, offset: u64, page: &Page) {
        let memory = self.own_page();
        memory.mapping.copy_in(memory.range.start, page);
        self.issue(op, kind, of, offset, PAGE, Some(memory));
    }

    fn issue(
        &mut self,
        op: Option<OpId>,
        kind: JobKind,
        segment: Option<SegmentId>,
        offset: u64,
        bytes: u64,
        memory: Option<Memory>,
    ) {
        let slot = self.slots_free.pop().expect("room was seen");
        let id = IoId(self.issued * self.slots.len() as u64 + slot as u64);
        self.issued += 1;
        self.slots[slot] = Some(Job { op, kind, segment, bytes, begun: self.now });
        let io_kind = match kind {
            JobKind::ReadRecord | JobKind::Probe => IoKind::Read,
            JobKind::Discard => IoKind::Discard,
            JobKind::WriteRecord | JobKind::Contents | JobKind::Header | JobKind::Wipe => IoKind::Write,
            JobKind::Flush => IoKind::Flush,
            JobKind::Superblock => {
                if memory.is_some() {
                    IoKind::Write
                } else {
                    IoKind::Flush
                }
            }
        };
        self.give(Io { id, kind: io_kind, offset, bytes, memory });
    }

    fn give(&mut self, io: Io) {
        match self.device.submit(io) {
            Ok(()) => self.given = true,
            // Again at the next call.
            Err(io) => self.refused.push_back(io),
        }
    }

    fn completed(&mut self, completion: Completion) -> Option<Report> {
        let slot = (completion.id.0 % self.slots.len() as u64) as usize;
        let job = self.slots[slot].take().expect("an operation completes once");
        self.slots_free.push(slot);
        let result = completion.result;
        match &result {
            Ok(()) => self.count(job.kind, job.bytes),
            Err(_) => self.counters.errors += 1,
        }
        match job.kind {
            JobKind::Superblock => return self.changes.went(result, &mut self.superblock),
            JobKind::Wipe => {
                let segment = job.segment.expect("a wiped header is a segment's");
                let (offset, bytes) = (self.superblock.offset_bytes(segment), self.superblock.segment_bytes);
                // In the slot that was just freed. If the wiping failed, so much the more is the device told.
                self.issue(None, JobKind::Discard, Some(segment), offset, bytes, None);
            }
            JobKind::Discard => self.queue.discarded(job.segment.expect("a discard is a segment's")),
            _ => {}
        }
        let bytes = if result.is_ok() { job.bytes } else { 0 };
        job.op.map(|op| Report { op, result, bytes })
    }

    fn count(&mut self, kind: JobKind, bytes: u64) {
        let counters = &mut self.counters;
        match kind {
            JobKind::ReadRecord => counters.records_read_bytes += bytes,
            JobKind::WriteRecord => counters.records_written_bytes += bytes,
            JobKind::Contents => counters.contents_written_bytes += bytes,
            JobKind::Header | JobKind::Wipe => counters.headers_written_bytes += bytes,
            JobKind::Probe => counters.probes_read_bytes += bytes,
            JobKind::Superblock if bytes > 0 => counters.superblocks_written_bytes += bytes,
            JobKind::Flush | JobKind::Superblock => counters.flushes += 1,
            JobKind::Discard => counters.discarded_bytes += bytes,
        }
    }
}

#[cfg(test)]
mod tests;
