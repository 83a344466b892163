use lapis_config::PoolId;

use super::*;
use crate::{
    format::LogId,
    testing::{self, Event, Sheet},
};

const SEGMENT: SegmentId = SegmentId(1);
const USED: SegmentUse = SegmentUse { log: LogId([7; 16]), segment: SEGMENT, opened: 9, group: 1 };

fn volume(change: impl FnOnce(&mut Sheet)) -> Volume<Sheet> {
    let mut sheet = Sheet::new(257 << 20);
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
    assert_eq!((superblock.write, superblock.sequence_reserved, superblock.groups[1].purged_before), (9, 99 << 32, 55));
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
    volume.submit(Time(0), Command::Discard { segment: SEGMENT, durable: false });
    volume.submit(Time(0), Command::Open { op: OpId(2), used: USED });
    run(&mut volume);
    let pages = volume.device().events.iter().map(|event| match event {
        Event::Page(offset, page) => (offset / PAGE % 16384 - 256, page[0]),
        Event::Flush => panic!("no flush was asked for"),
    });
    assert_eq!(pages.collect::<Vec<_>>(), [(20, 1), (0, 0), (0, b'L')], "the record, the wiped header, the new one");
    assert_eq!(volume.counters().discarded_bytes, 64 << 20);
}

#[test]
fn a_wiped_header_that_is_to_last_is_flushed_before_anything_else_happens_to_its_segment() {
    let mut volume = volume(|sheet| sheet.backwards = true);
    volume.submit(Time(0), Command::Discard { segment: SEGMENT, durable: true });
    volume.submit(Time(0), Command::Open { op: OpId(2), used: USED });
    run(&mut volume);
    let events = volume.device().events.iter().map(|event| match event {
        Event::Page(offset, page) => (offset / PAGE % 16384 - 256, page[0]),
        Event::Flush => (0, b'F'),
    });
    assert_eq!(events.collect::<Vec<_>>(), [(0, 0), (0, b'F'), (0, b'L')], "wiped, flushed, opened");
    assert_eq!((volume.counters().flushes, volume.counters().discarded_bytes), (1, 64 << 20));
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

#[test]
fn what_the_device_gives_back_is_offered_again() {
    /// Takes one operation at a time, whatever it says.
    struct Narrow(Sheet, usize);

    impl Device for Narrow {
        fn bytes(&self) -> u64 {
            self.0.bytes()
        }
        fn depth(&self) -> usize {
            8
        }
        fn submit(&mut self, io: Io) -> Result<(), Io> {
            if self.1 == 1 {
                return Err(io);
            }
            self.1 += 1;
            self.0.submit(io)
        }
        fn kick(&mut self) -> io::Result<()> {
            self.0.kick()
        }
        fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
            self.1 = 0;
            self.0.poll(out)
        }
    }

    let narrow = Narrow(Sheet::new(257 << 20), 0);
    let mut volume = Volume::new(narrow, testing::superblock(), WallClock::default()).expect("memory");
    volume.submit(Time(0), Command::Discard { segment: SEGMENT, durable: false });
    (1..5).for_each(|op| volume.submit(Time(0), Command::Probe { op: OpId(op) }));
    let mut reports = Vec::new();
    for _ in 0..12 {
        volume.poll(Time(0), &mut reports).expect("polled");
    }
    assert_eq!((reports.len(), volume.in_flight(), volume.waiting()), (4, 0, 0));
    assert_eq!(volume.counters().discarded_bytes, 64 << 20);
}
