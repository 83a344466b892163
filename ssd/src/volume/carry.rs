//! Carries out what the core wants of one device: encodes, places, hands to the device as it has room, reports. No
//! clock, no thread, and no call that waits.
//!
//! Invariant: page i of `pages` belongs to the operation in slot i until that completes.
//! Invariant: every command but a discard is reported once, unless the device hangs.

use std::io;

use lapis_arena::{ArenaError, Mapping};
use lapis_config::{OpId, PageIndex, SegmentId, SsdPlace, Time};

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
    /// An operation that the device gave back.
    refused: Option<Io>,
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
            refused: None,
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

    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    fn hand_over(&mut self) -> io::Result<()> {
        if let Some(io) = self.refused.take() {
            self.give(io);
        }
        while self.refused.is_none() && !self.slots_free.is_empty() && self.begin_next() {}
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
        let offset = self.offset(at, bytes);
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
            // It has less room than it said: again at the next call.
            Err(io) => self.refused = Some(io),
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
mod tests {
    use lapis_config::PoolId;

    use super::*;
    use crate::{
        format::LogId,
        testing::{self, Event, Sheet},
    };

    const SEGMENT: SegmentId = SegmentId(1);
    const USED: SegmentUse = SegmentUse { log: LogId([7; 16]), segment: SEGMENT, opened: 9, group: 1 };

    fn volume(change: impl FnOnce(&mut Sheet)) -> Volume<Sheet> {
        let mut sheet = Sheet::new((1 << 20) + (4 * 64 << 20));
        change(&mut sheet);
        let clock = WallClock { wall_s: 1000, at: Time(5_000_000) };
        Volume::new(sheet, testing::superblock(), clock).expect("memory")
    }

    /// Polls until nothing is left to do.
    fn run(volume: &mut Volume<Sheet>) -> Vec<Report> {
        let mut reports = Vec::new();
        volume.kick().expect("kicked");
        while volume.in_flight() + volume.waiting() > 0 {
            volume.poll(Time(0), &mut reports).expect("polled");
        }
        reports
    }

    fn at(page: u32) -> SsdPlace {
        SsdPlace::new(SEGMENT, PageIndex(page))
    }

    #[test]
    fn commands_go_where_they_belong_and_are_counted() {
        let mut volume = volume(|_| {});
        let now = Time(8_000_000);
        volume.submit(now, Command::Open { op: OpId(1), used: USED });
        volume.submit(now, Command::Write { op: OpId(2), at: at(17), memory: testing::memory(3, 5) });
        let pools = Listing::Pools(vec![(PoolId(0), testing::shapes()[0].clone(), 0)]);
        let (place, next) = (PageIndex(1), Some(PageIndex(2)));
        volume.submit(now, Command::List { op: OpId(3), used: USED, place, next, sequence: 12, listing: pools });
        volume.submit(now, Command::Flush { op: OpId(4) });
        volume.submit(now, Command::Probe { op: OpId(5) });
        assert_eq!((volume.waiting(), volume.oldest_in_flight()), (5, None));
        let reports = run(&mut volume);
        assert_eq!(
            reports.iter().map(|r| (r.op.0, r.bytes)).collect::<Vec<_>>(),
            [(1, PAGE), (2, 3 * PAGE), (3, PAGE), (4, 0), (5, PAGE)]
        );
        let start = (1 << 20) + (64 << 20);
        let page = |at: u64| volume.device().pages[&(start + at * PAGE)].clone();
        let header: Box<Page> = page(0).into_boxed_slice().try_into().expect("a page");
        let header = SegmentHeader::decode(&header, USED.log, SEGMENT, 64 << 20, 2).expect("a header");
        assert_eq!((header.opened_s, header.boots), (1003, 3), "three seconds after the clocks were read");
        assert_eq!((page(17), page(19)), (vec![5; PAGE_BYTES], vec![5; PAGE_BYTES]));
        let listed: Box<Page> = page(1).into_boxed_slice().try_into().expect("a page");
        assert!(ContentsPage::decode(&listed, &USED, place, 16384).is_ok());
        assert_eq!(
            *volume.counters(),
            Counters {
                records_written_bytes: 3 * PAGE,
                contents_written_bytes: PAGE,
                headers_written_bytes: PAGE,
                probes_read_bytes: PAGE,
                flushes: 1,
                ..Counters::default()
            }
        );
    }

    #[test]
    fn what_was_written_is_read_into_the_slot() {
        let mut volume = volume(|sheet| sheet.depth = 1);
        let slot = testing::memory(2, 0);
        volume.submit(Time(0), Command::Write { op: OpId(1), at: at(30), memory: testing::memory(2, 77) });
        run(&mut volume);
        volume.submit(Time(0), Command::Read { op: OpId(2), at: at(30), memory: slot.clone() });
        run(&mut volume);
        assert_eq!(slot.mapping.to_vec(0, 2 * PAGE_BYTES), vec![77; 2 * PAGE_BYTES]);
    }

    #[test]
    #[should_panic(expected = "in the segment")]
    fn nothing_is_written_past_a_segment() {
        let mut volume = volume(|_| {});
        volume.submit(Time(0), Command::Write { op: OpId(1), at: at(16383), memory: testing::memory(2, 1) });
        run(&mut volume);
    }

    #[test]
    fn a_superblock_goes_to_both_pages_in_turn_each_flushed() {
        let mut volume = volume(|_| {});
        volume.submit(Time(0), Command::Reserve { op: OpId(1), sequence_reserved: 99 << 32 });
        volume.submit(Time(0), Command::Purge { op: OpId(2), group: 1, purged_before: 55 });
        let reports = run(&mut volume);
        assert!(reports.len() == 2 && reports.iter().all(|r| r.result.is_ok() && r.bytes == 2 * PAGE));
        let order = volume.device().events.iter().map(|event| match event {
            Event::Page(offset, _) => Some(offset / PAGE),
            Event::Flush => None,
        });
        assert_eq!(order.collect::<Vec<_>>(), [Some(0), None, Some(1), None, Some(0), None, Some(1), None]);
        let superblock = volume.superblock();
        assert_eq!(
            (superblock.write, superblock.sequence_reserved, superblock.groups[1].purged_before),
            (9, 99 << 32, 55)
        );
    }

    #[test]
    fn a_superblock_that_failed_is_written_to_the_same_page_again() {
        let mut volume = volume(|sheet| sheet.fails = |io| io.kind == IoKind::Write);
        volume.submit(Time(0), Command::Reserve { op: OpId(1), sequence_reserved: 99 << 32 });
        let reports = run(&mut volume);
        assert!(reports[0].result.is_err() && reports[0].bytes == 0);
        assert_eq!((volume.superblock(), volume.counters().errors), (&testing::superblock(), 1));
        volume.device_mut().fails = |_| false;
        volume.submit(Time(0), Command::Reserve { op: OpId(1), sequence_reserved: 99 << 32 });
        run(&mut volume);
        assert!(matches!(volume.device().events[0], Event::Page(0, _)));
    }

    #[test]
    fn a_segment_is_opened_again_only_after_its_discard() {
        let mut volume = volume(|sheet| sheet.backwards = true);
        volume.submit(Time(0), Command::Write { op: OpId(1), at: at(20), memory: testing::memory(1, 1) });
        volume.submit(Time(0), Command::Discard { segment: SEGMENT });
        volume.submit(Time(0), Command::Open { op: OpId(2), used: USED });
        run(&mut volume);
        let pages = volume.device().events.iter().map(|event| match event {
            Event::Page(offset, page) => (offset / PAGE % 16384 - 256, page[0]),
            Event::Flush => panic!("no flush was asked for"),
        });
        assert_eq!(
            pages.collect::<Vec<_>>(),
            [(20, 1), (0, 0), (0, b'L')],
            "the record, the wiped header, the new one"
        );
        assert_eq!(volume.counters().discarded_bytes, 64 << 20);
    }

    #[test]
    fn a_stall_is_told_by_what_the_device_was_given_first() {
        let mut volume = volume(|sheet| (sheet.depth, sheet.hangs) = (2, true));
        for op in 1..5 {
            let now = Time(10_000_000 * op);
            volume.submit(now, Command::Probe { op: OpId(op) });
            volume.kick().expect("kicked");
        }
        assert_eq!((volume.in_flight(), volume.waiting()), (2, 2));
        assert_eq!(volume.oldest_in_flight(), Some(Time(10_000_000)));
        volume.device_mut().hangs = false;
        let mut reports = Vec::new();
        volume.poll(Time(70_000_000), &mut reports).expect("polled");
        assert_eq!(volume.oldest_in_flight(), Some(Time(70_000_000)), "what waited was not stalled");
    }
}
