//! Recovery against a plain model: what a correct core did to a device, cut, torn, reordered or spoilt, and opened again.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

use lapis_config::{Key, PageIndex, PoolId, SegmentId, SsdPlace};
use proptest::prelude::*;

use super::{Damage, DeviceScan, Listed, Recovered, Scan, ScannedSegment, SegmentPool, WhyFree, merge};
use crate::{
    device::IoKind,
    format::{GroupRecord, LogId, PAGE_BYTES, Record, SegmentUse, Superblock},
    testing::{
        Event, Sheet, open, shapes,
        writer::{Name, Writer},
    },
};

/// Four segments, so that they are used again and again.
const BYTES: u64 = 257 << 20;

#[derive(Clone, Debug)]
enum Step {
    Put { group: u16, pool: usize, key: u64, kib: u32 },
    Remove { group: u16, pool: usize, key: u64 },
    Skip { group: u16, pages: u32 },
    List { group: u16 },
    Seal { group: u16 },
    Purge { group: u16, pool: usize },
    PurgeGroup { group: u16 },
    Retire,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let (group, pool, key) = (|| 0..2u16, || 0..3usize, || 0..12u64);
    prop_oneof![
        12 => (group(), pool(), key(), 1..64u32).prop_map(|(group, pool, key, kib)| Step::Put { group, pool, key, kib }),
        3 => (group(), pool(), key()).prop_map(|(group, pool, key)| Step::Remove { group, pool, key }),
        2 => (group(), prop_oneof![Just(20u32), Just(9000)]).prop_map(|(group, pages)| Step::Skip { group, pages }),
        8 => group().prop_map(|group| Step::List { group }),
        1 => group().prop_map(|group| Step::Seal { group }),
        1 => (group(), pool()).prop_map(|(group, pool)| Step::Purge { group, pool }),
        1 => group().prop_map(|group| Step::PurgeGroup { group }),
        1 => Just(Step::Retire),
        1 => Just(Step::Restart),
    ]
}

fn key(i: u64) -> Key {
    Key([i, 0, 0, i / 3])
}

fn write(steps: &[Step]) -> Writer {
    let mut writer = Writer::new(Sheet::new(BYTES));
    for step in steps {
        match *step {
            Step::Put { group, pool, key: k, kib } => {
                let shape = &shapes()[pool];
                let bytes = if pool == 2 { kib << 10 } else { shape.block_bytes as u32 };
                writer.put(group, pool, key(k), key(k / 2), bytes);
            }
            Step::Remove { group, pool, key: k } => writer.remove(group, pool, key(k)),
            Step::Skip { group, pages } => writer.skip(group, pages),
            Step::List { group } => writer.list(group),
            Step::Seal { group } => writer.seal(group),
            Step::Purge { group, pool } => writer.purge(group, pool),
            Step::PurgeGroup { group } => writer.purge_group(group),
            Step::Retire => writer.retire(),
            Step::Restart => writer.restart(),
        }
    }
    writer
}

fn scan(sheet: &mut Sheet, superblock: &Superblock) -> DeviceScan {
    let mut scan = Scan::new(superblock, 3).expect("memory");
    while !scan.poll_inline(sheet).expect("polled") {}
    scan.finish()
}

/// What a start finds; `None` if it refuses the device.
fn recover(pages: BTreeMap<u64, Vec<u8>>) -> Option<Recovered> {
    let mut sheet = Sheet::of_pages(BYTES, pages);
    let superblock = open(&mut sheet)?;
    let scan = scan(&mut sheet, &superblock);
    Some(merge([scan], &superblock.groups))
}

fn found(recovered: &Recovered) -> BTreeMap<Name, (SsdPlace, Record)> {
    let mut found = BTreeMap::new();
    for (group, number) in recovered.groups.iter().zip(0..) {
        assert!(group.records.iter().is_sorted_by_key(|record| record.sequence));
        assert!(group.segments.is_sorted_by_key(|segment| segment.opened));
        let live: usize = group.segments.iter().map(|segment| segment.records as usize).sum();
        assert_eq!(live, group.records.len());
        for r in group.records.iter() {
            let shape = &group.shapes[r.pool as usize].shape;
            let pool = shapes().iter().position(|s| s == shape).expect("one of ours");
            let record = Record {
                key: r.key,
                parent: r.parent,
                pool: Default::default(),
                start: r.place.page(),
                pages: r.pages,
                bytes: r.bytes,
                sum: r.sum,
                sequence: r.sequence,
                class: r.class,
                removed: false,
                nonce: Default::default(),
            };
            let twice = found.insert((number, pool, r.key), (r.place, record));
            assert!(twice.is_none(), "one block per key");
            assert!(r.sequence <= recovered.sequence_highest);
        }
    }
    found
}

/// The numbers of pools differ from segment to segment: they are not what is compared.
fn plain(mut expected: BTreeMap<Name, (SsdPlace, Record)>) -> BTreeMap<Name, (SsdPlace, Record)> {
    expected.values_mut().for_each(|(_, record)| record.pool = Default::default());
    expected
}

/// Every block that a spoilt log gives back was listed so, at this place and with this sum.
fn nothing_is_made_up(writer: &Writer, recovered: &Recovered) {
    let ever = writer.ever_listed();
    for (name, (place, record)) in found(recovered) {
        let (listed, as_listed) = &ever[&(place, record.sequence)];
        assert_eq!(*listed, name);
        assert_eq!(Record { pool: Default::default(), ..*as_listed }, record);
    }
}

/// What lies on a new device after the first `count` of these events.
fn pages_after(events: &[Event], count: usize) -> BTreeMap<u64, Vec<u8>> {
    let mut pages = BTreeMap::new();
    for event in &events[..count] {
        if let Event::Page(offset, page) = event {
            pages.insert(*offset, page.clone());
        }
    }
    pages
}

/// All pages but payloads, which may be spoilt as one likes, recovery does not look.
fn pages_of_ours(pages: &BTreeMap<u64, Vec<u8>>) -> Vec<u64> {
    let ours = |(offset, page): (&u64, &Vec<u8>)| page.starts_with(b"LAPIS").then_some(*offset);
    pages.iter().filter_map(ours).collect()
}

#[derive(Clone, Copy, Debug)]
enum Spoil {
    Flip {
        page: usize,
        byte: usize,
        bits: u8,
    },
    Zero {
        page: usize,
        sector: usize,
    },
    /// A sector of another page of ours, at its place or another.
    Mix {
        page: usize,
        sector: usize,
        from: usize,
        from_sector: usize,
    },
    Swap {
        page: usize,
        with: usize,
    },
    Lose {
        page: usize,
    },
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let (page, sector) = (|| 0..4096usize, || 0..8usize);
    prop_oneof![
        (page(), 0..PAGE_BYTES, 1u8..).prop_map(|(page, byte, bits)| Spoil::Flip { page, byte, bits }),
        (page(), sector()).prop_map(|(page, sector)| Spoil::Zero { page, sector }),
        (page(), sector(), page(), sector()).prop_map(|(page, sector, from, from_sector)| Spoil::Mix {
            page,
            sector,
            from,
            from_sector
        }),
        (page(), page()).prop_map(|(page, with)| Spoil::Swap { page, with }),
        page().prop_map(|page| Spoil::Lose { page }),
    ]
}

fn apply(pages: &mut BTreeMap<u64, Vec<u8>>, spoil: Spoil) {
    let ours = pages_of_ours(pages);
    if ours.is_empty() {
        return;
    }
    let at = |i: usize| ours[i % ours.len()];
    let sector = |i: usize| 512 * i..512 * (i + 1);
    match spoil {
        Spoil::Flip { page, byte, bits } => pages.get_mut(&at(page)).expect("one of them")[byte] ^= bits,
        Spoil::Zero { page, sector: s } => pages.get_mut(&at(page)).expect("one of them")[sector(s)].fill(0),
        Spoil::Mix { page, sector: to, from, from_sector } => {
            let bytes = pages[&at(from)][sector(from_sector)].to_vec();
            pages.get_mut(&at(page)).expect("one of them")[sector(to)].copy_from_slice(&bytes);
        }
        Spoil::Swap { page, with } => {
            let (a, b) = (pages[&at(page)].clone(), pages[&at(with)].clone());
            pages.insert(at(page), b);
            pages.insert(at(with), a);
        }
        Spoil::Lose { page } => drop(pages.remove(&at(page))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_was_listed_is_found_and_what_was_removed_or_purged_is_not(steps in prop::collection::vec(step(), 0..90)) {
        let writer = write(&steps);
        let recovered = recover(writer.volume.device().pages.clone()).expect("whole");
        prop_assert_eq!(found(&recovered), plain(writer.expected(usize::MAX)));
        prop_assert!(recovered.sequence_highest <= writer.sequence);
        let purged = recovered.groups.iter().flat_map(|group| &group.shapes).map(|shape| shape.purged_before).max();
        prop_assert!(purged.unwrap_or(0) <= writer.sequence);
    }

    #[test]
    fn after_a_kill_at_any_write_what_was_listed_before_is_found(steps in prop::collection::vec(step(), 0..40)) {
        let writer = write(&steps);
        let events = &writer.volume.device().events;
        // Payload in between changes nothing that a scan sees: cut where pages of ours were written.
        let ours = |event: &Event| matches!(event, Event::Page(_, page) if page.starts_with(b"LAPIS") || page.iter().all(|b| *b == 0));
        let cuts = (0..events.len()).filter(|at| ours(&events[*at])).chain([events.len()]);
        for cut in cuts.filter(|cut| *cut >= writer.formatted) {
            let recovered = recover(pages_after(events, cut)).expect("whole");
            prop_assert_eq!(found(&recovered), plain(writer.expected(cut)), "cut at {}", cut);
        }
    }

    #[test]
    fn a_power_cut_that_reorders_what_was_not_flushed_makes_nothing_up(
        steps in prop::collection::vec(step(), 0..40),
        cut in any::<prop::sample::Index>(),
        kept in any::<u64>(),
        torn in 0..8usize,
    ) {
        let writer = write(&steps);
        let events = &writer.volume.device().events;
        let cut = writer.formatted + cut.index(events.len() - writer.formatted + 1);
        let flushed = events[..cut].iter().rposition(|event| matches!(event, Event::Flush)).map_or(0, |at| at + 1);
        let mut pages = pages_after(events, flushed);
        for (event, i) in events[flushed..cut].iter().zip(0..) {
            let Event::Page(offset, page) = event else { continue };
            match kept.rotate_right(2 * i) % 4 {
                0 => {}
                1 => {
                    let old = pages.entry(*offset).or_insert_with(|| vec![0; PAGE_BYTES]);
                    old[..512 * torn].copy_from_slice(&page[..512 * torn]);
                }
                _ => drop(pages.insert(*offset, page.clone())),
            }
        }
        let recovered = recover(pages).expect("a superblock is whole at any time");
        nothing_is_made_up(&writer, &recovered);
    }

    #[test]
    fn whatever_is_spoilt_nothing_is_made_up(
        steps in prop::collection::vec(step(), 0..60),
        spoils in prop::collection::vec(spoil(), 1..6),
    ) {
        let writer = write(&steps);
        let mut pages = writer.volume.device().pages.clone();
        spoils.into_iter().for_each(|spoil| apply(&mut pages, spoil));
        if let Some(recovered) = recover(pages) {
            nothing_is_made_up(&writer, &recovered);
        }
    }
}

/// Ten blocks listed in one page: a small log to be spoilt in every way.
fn small() -> Writer {
    let put = |key| Step::Put { group: 0, pool: 0, key, kib: 4 };
    let steps: Vec<Step> = (0..10).map(put).chain([Step::List { group: 0 }]).collect();
    write(&steps)
}

#[test]
fn any_byte_of_any_page_may_be_wrong() {
    let writer = small();
    let pages = writer.volume.device().pages.clone();
    let ours = pages_of_ours(&pages);
    assert_eq!(ours.len(), 5, "two superblocks, a header, pools, records");
    for (offset, stride) in ours.into_iter().zip([61, 61, 1, 1, 1]) {
        for byte in (0..PAGE_BYTES).step_by(stride) {
            let mut spoilt = pages.clone();
            spoilt.get_mut(&offset).expect("one of them")[byte] ^= 0x40;
            let recovered = recover(spoilt).expect("the other superblock is whole");
            nothing_is_made_up(&writer, &recovered);
            let left = if offset < 8192 { 10 } else { 0 };
            assert_eq!(recovered.groups[0].records.len(), left, "byte {byte} of the page at {offset}");
        }
    }
}

#[test]
fn a_device_that_ends_early_is_refused_and_one_that_grew_is_read() {
    let writer = small();
    let pages = writer.volume.device().pages.clone();
    for bytes in [0, 4096, 8192, 1 << 20, BYTES - 4096] {
        let kept = pages.range(..bytes).map(|(at, page)| (*at, page.clone())).collect();
        assert_eq!(open(&mut Sheet::of_pages(bytes, kept)), None, "{bytes} bytes");
    }
    assert!(open(&mut Sheet::of_pages(BYTES + 4096, pages)).is_some());
}

#[test]
fn what_a_device_held_before_it_was_formatted_anew_does_not_count() {
    let writer = small();
    let mut sheet = Sheet::of_pages(BYTES, writer.volume.device().pages.clone());
    let superblock = open(&mut sheet).expect("ours");
    assert_eq!(scan(&mut sheet, &superblock).segments.len(), 1);
    let formatted = Superblock { sequence_formatted: superblock.sequence_reserved, ..superblock };
    let scan = scan(&mut sheet, &formatted);
    assert_eq!((scan.segments.len(), &scan.free[0].1), (0, &WhyFree::EarlierLog));
}

#[test]
fn a_segment_that_cannot_be_read_is_free_and_the_rest_is_found() {
    let writer = small();
    let mut sheet = writer.volume.device().clone();
    sheet.fails = |io| io.kind == IoKind::Read && io.offset == (1 << 20) + (64 << 20);
    let scan = scan(&mut sheet, writer.volume.superblock());
    let why: Vec<&WhyFree> = scan.free.iter().map(|(_, why)| why).collect();
    assert_eq!((scan.segments.len(), why), (1, vec![&WhyFree::Unreadable, &WhyFree::Blank, &WhyFree::Blank]));
}

#[test]
fn a_read_that_fails_twice_costs_nothing() {
    static FAILED: AtomicU32 = AtomicU32::new(0);
    let writer = small();
    let mut sheet = writer.volume.device().clone();
    let whole = scan(&mut sheet, writer.volume.superblock());
    sheet.fails = |io| io.kind == IoKind::Read && FAILED.fetch_add(1, Ordering::Relaxed) < 2;
    assert_eq!(scan(&mut sheet, writer.volume.superblock()), whole);
    assert!(FAILED.load(Ordering::Relaxed) > 2, "nothing was read again");
}

/// A segment of several chunks: each listing is a page, and the 9000 pages that are skipped keep the chunks apart.
fn long() -> Writer {
    let page = |key| [Step::Put { group: 0, pool: 0, key, kib: 4 }, Step::List { group: 0 }];
    let steps =
        (0..60).flat_map(|i| page(i).into_iter().chain((i == 20).then_some(Step::Skip { group: 0, pages: 9000 })));
    write(&steps.collect::<Vec<_>>())
}

#[test]
fn a_segment_is_followed_from_chunk_to_chunk_and_ends_where_the_way_is_broken() {
    let writer = long();
    let pages = writer.volume.device().pages.clone();
    let recovered = recover(pages.clone()).expect("whole");
    assert_eq!((recovered.groups[0].records.len(), recovered.groups[0].segments.len()), (60, 1));
    // The first page lists the pool, so 15 blocks are in the first chunk, 16 in each of the next.
    let contents: Vec<u64> = pages.iter().filter(|(_, p)| p.starts_with(b"LAPISTOC")).map(|(at, _)| *at).collect();
    for (broken, left) in [(15, 14), (14, 59), (31, 30), (32, 59)] {
        let mut spoilt = pages.clone();
        spoilt.get_mut(&contents[broken]).expect("one of them")[2000] ^= 1;
        let recovered = recover(spoilt).expect("whole superblocks");
        assert_eq!(recovered.groups[0].records.len(), left, "page {broken} of contents");
        nothing_is_made_up(&writer, &recovered);
    }
}

#[test]
fn of_several_devices_the_highest_sequence_wins_and_a_purge_on_one_counts_on_all() {
    let key = |i: u64| Key([i; 4]);
    let listed = |key, sequence, start, removed| Listed {
        key,
        parent: Key::default(),
        sum: sequence,
        sequence,
        start: PageIndex(start),
        pages: 1,
        bytes: 4096,
        pool: 0,
        class: 0,
        removed,
    };
    let segment = |device, opened, id, purged_before, records: Vec<Listed>| ScannedSegment {
        used: SegmentUse { log: LogId([3; 16]), segment: SegmentId::new(device, 5), opened, group: 1 },
        boots: 1,
        opened_s: 7,
        pools: vec![SegmentPool { id: PoolId(id), shape: shapes()[0].clone(), purged_before }],
        sequence_highest: records.iter().map(|record| record.sequence).max().unwrap_or(opened),
        records,
        damage: Damage::default(),
        pages: 2,
    };
    let first = vec![listed(key(1), 20, 17, false), listed(key(2), 30, 18, false), listed(key(3), 41, 19, false)];
    let second = vec![listed(key(1), 25, 17, true), listed(key(2), 29, 17, false), listed(key(4), 40, 18, false)];
    let scans = |purged_before| {
        [(0, 10, 3, 0, first.clone()), (1, 11, 9, purged_before, second.clone())].map(
            |(device, opened, id, p, records)| DeviceScan {
                segments: vec![segment(device, opened, id, p, records)],
                free: Vec::new(),
            },
        )
    };
    let group = |purged_before| GroupRecord { name: "g".into(), purged_before };
    let sequences = |recovered: &Recovered| recovered.groups[1].records.iter().map(|r| r.sequence).collect::<Vec<_>>();
    let all = merge(scans(0), &[group(0), group(0)]);
    assert_eq!((sequences(&all), all.sequence_highest, all.groups[1].shapes.len()), (vec![30, 40, 41], 41, 1));
    assert_eq!(
        all.groups[1].records.iter().nth(1).map(|record| record.place),
        Some(SsdPlace::new(SegmentId::new(1, 5), PageIndex(18)))
    );
    let purged = merge(scans(31), &[group(0), group(0)]);
    assert_eq!((sequences(&purged), purged.groups[1].shapes[0].purged_before), (vec![40, 41], 31));
    let group_purged = merge(scans(31), &[group(0), group(41)]);
    assert_eq!((sequences(&group_purged), group_purged.groups[1].segments[1].records), (vec![41], 0));
}

#[test]
fn a_scan_deeper_than_its_device_and_decoded_in_any_order_finds_the_same() {
    let writer = long();
    let mut sheet = writer.volume.device().clone();
    let superblock = writer.volume.superblock();
    let plain = scan(&mut sheet, superblock);
    sheet.depth = 1;
    let mut deep = Scan::new(superblock, 3).expect("memory");
    let mut chunks = Vec::new();
    while !deep.poll(&mut sheet, &mut chunks).expect("polled") {
        // As threads would: later, and the latest first.
        if chunks.len() > 1 || deep.progress().0 == 3 {
            while let Some(chunk) = chunks.pop() {
                deep.decoded(chunk.decode());
            }
        }
        if chunks.len() == 1 && sheet.is_idle() {
            deep.decoded(chunks.remove(0).decode());
        }
    }
    assert_eq!(deep.progress(), (4, 4));
    assert_eq!(deep.finish(), plain);
}

#[test]
fn a_scan_that_is_not_done_has_reads_under_way() {
    let writer = long();
    let superblock = writer.volume.superblock();
    for depth in 1..9 {
        let mut sheet = writer.volume.device().clone();
        let mut scan = Scan::new(superblock, depth).expect("memory");
        while !scan.poll_inline(&mut sheet).expect("polled") {
            assert!(!sheet.is_idle(), "of depth {depth}: nothing will ever end, and {:?} is read", scan.progress());
        }
    }
}
