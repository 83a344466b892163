//! A log in memory, as a correct core would lay it out: segments that were used before, several chunks of contents, pools
//! of one piece and of several, blocks put twice and removed ones. And what must be known to judge what is found.

use std::{collections::BTreeMap, task::Poll};

use lapis_arena::{Mapping, Sum, sum};
use lapis_benches::pattern::{self, Pattern};
use lapis_config::{Fingerprint, Key, OpId, PageIndex, PoolId, PoolKind, PoolShape, SegmentId, SsdPlace, Time, sizes};
use lapis_ssd::{
    device::Memory,
    disk::Disk,
    format::{CHUNK_PAGES, CONTENTS_START, LogId, Nonce, PAGE_BYTES, Record, SegmentUse, Superblock},
    memory::MemDevice,
    recover::{Recovered, Scan, merge},
    volume::{
        Command, Listing, Report, Volume, WallClock,
        open::{Found, Identity, SEGMENTS_START, Wanted, plan_open},
        superblocks::{Reader, Writer},
    },
};

/// As the daemon's smallest.
const SEGMENT_BYTES: u64 = 64 << 20;
const DISK_BYTES: u64 = SEGMENTS_START + 3 * SEGMENT_BYTES;
const DEPTH: usize = 32;
/// Records in a page of contents: few, so that there are several chunks.
const LISTED: usize = 6;
const SEED: u64 = 0xda3a6e;

pub struct Log {
    pub disk: Disk,
    pub superblock: Superblock,
    /// Pages that were written, by offset.
    pub written: Vec<u64>,
    /// Every record with bytes that a start may find, in the order of their sequences.
    pub records: Vec<Written>,
    /// Pages of contents of the uses that count.
    pub pages: Vec<ListedPage>,
}

/// A record on the disk.
#[derive(Clone, Debug)]
pub struct Written {
    pub key: Key,
    pub pool: usize,
    pub place: SsdPlace,
    pub bytes: u32,
    pub sum: u64,
    pub sequence: u64,
    /// Another one of its key counts in its stead.
    pub superseded: bool,
}

#[derive(Clone, Debug)]
pub struct ListedPage {
    pub segment: SegmentId,
    pub place: PageIndex,
    /// Sequences of the records on it; none: of pools.
    pub sequences: Vec<u64>,
}

/// What a start would find.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    pub right: usize,
    pub misses: usize,
}

pub fn shapes() -> [PoolShape; 2] {
    let shape = |label: &str, block_bytes, pieces| PoolShape {
        namespace: Fingerprint([5; 32]),
        label: label.into(),
        kind: PoolKind::Chain,
        block_bytes,
        pieces,
    };
    [shape("plain", 4096, 1), shape("pieces", 16384, 4)]
}

fn wanted() -> Wanted {
    Wanted {
        identity: Identity { host: [1; 16], instance: [2; 16] },
        adopt: false,
        log: None,
        log_fresh: LogId([3; 16]),
        segment_bytes: SEGMENT_BYTES,
        groups: vec!["default".into()],
        wall_s: 1,
    }
}

/// The slot of a block as it lies in memory, and the block's sum.
pub fn slot(pool: usize, key: &Key) -> (Vec<u8>, u64) {
    let (shape, bytes) = (&shapes()[pool], shapes()[pool].block_bytes);
    let mut slot = vec![0; sizes::slot_bytes(shape, bytes) as usize];
    Pattern::of(key).fill(&mut slot[..bytes as usize]);
    let sums = piece_sums(pool, key, &slot);
    if shape.pieces > 1 {
        let tail: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let at = sizes::tail_offset(bytes) as usize;
        slot[at..at + tail.len()].copy_from_slice(&tail);
    }
    let sum = sum_of(pool, key, &slot);
    (slot, sum)
}

fn piece_sums(pool: usize, key: &Key, slot: &[u8]) -> Vec<u64> {
    let shape = &shapes()[pool];
    let (seed, piece_bytes) = (sum::pool_seed(shape), (shape.block_bytes / u64::from(shape.pieces)) as usize);
    let pieces = slot[..shape.block_bytes as usize].chunks(piece_bytes).zip(0..);
    let one = |(part, index): (&[u8], u16)| {
        let mut sum = Sum::piece(seed, key, shape.block_bytes, index, part.len() as u64);
        sum.update(part);
        sum.finish()
    };
    pieces.map(one).collect()
}

/// As a reader computes it.
pub fn sum_of(pool: usize, key: &Key, slot: &[u8]) -> u64 {
    let shape = &shapes()[pool];
    let seed = sum::pool_seed(shape);
    match shape.pieces {
        1 => sum::of_bytes(seed, key, &slot[..shape.block_bytes as usize]),
        _ => sum::combine(seed, key, shape.block_bytes, &piece_sums(pool, key, slot)),
    }
}

/// Opens a disk as a start does and gives what is to stand in its superblock; `None` if it is refused.
fn open(disk: &Disk) -> Option<Superblock> {
    let mut device = MemDevice::new(disk, DEPTH);
    let mut reader = Reader::new(&device).expect("memory");
    let found = loop {
        if let Poll::Ready(found) = reader.poll(&mut device) {
            break found.ok()?;
        }
    };
    // Small leftovers of a device are refused for what they lack.
    if matches!(&found, Found::Blank { device_bytes } if *device_bytes < SEGMENTS_START + SEGMENT_BYTES) {
        return None;
    }
    Some(plan_open(&[found], &wanted()).ok()?.superblocks.remove(0))
}

/// What a start finds.
pub fn recover(disk: &Disk) -> Option<Recovered> {
    let superblock = open(disk)?;
    let mut device = MemDevice::new(disk, DEPTH);
    let mut scan = Scan::new(&superblock, DEPTH).expect("memory");
    while !scan.poll_inline(&mut device).expect("memory reads") {}
    Some(merge([scan.finish()], &superblock.groups))
}

/// Reads every block that a start finds, as the first get of it would.
///
/// # Panics
/// If a block has its sum and not its bytes, or nobody ever put it.
pub fn judge(log: &Log, disk: &Disk) -> Judged {
    let (mut judged, Some(recovered)) = (Judged::default(), recover(disk)) else { return Judged::default() };
    let known: BTreeMap<(Key, usize), ()> = log.records.iter().map(|r| ((r.key, r.pool), ())).collect();
    for group in recovered.groups {
        for record in group.records.iter() {
            let shape = &group.shapes[record.pool as usize].shape;
            let pool = shapes().iter().position(|known| known == shape).expect("a pool that was never listed");
            assert!(known.contains_key(&(record.key, pool)), "{record:?} was never put");
            let offset = log.superblock.offset_bytes(record.place.segment())
                + u64::from(record.place.page().0) * PAGE_BYTES as u64;
            let bytes = record.pages as usize * PAGE_BYTES;
            // A cut-off device gives an error: a miss.
            let fits = offset + bytes as u64 <= disk.bytes();
            let slot = if fits { disk.read(offset, bytes) } else { vec![0; bytes] };
            if sum_of(pool, &record.key, &slot) != record.sum {
                judged.misses += 1;
                continue;
            }
            assert_eq!(Pattern::of(&record.key).wrong_bytes(&slot[..record.bytes as usize]), 0, "wrong bytes");
            judged.right += 1;
        }
    }
    judged
}

impl Log {
    pub fn write() -> Self {
        let disk = Disk::new(DISK_BYTES);
        let mut device = MemDevice::new(&disk, DEPTH);
        let mut writer = Writer::new(open(&disk).expect("a blank disk")).expect("memory");
        let superblock = loop {
            if let Poll::Ready(written) = writer.poll(&mut device) {
                break written.expect("memory takes writes");
            }
        };
        let volume = Volume::new(device, superblock.clone(), WallClock::default()).expect("memory");
        let mut maker = Maker { volume, sequence: 1, ops: 0, records: Vec::new(), pages: Vec::new() };
        // A first life, of which only stale pages are left.
        maker.segment(0, 0..300);
        maker.run_free(SegmentId::new(0, 0));
        (maker.records, maker.pages) = (Vec::new(), Vec::new());
        maker.segment(1, 400..700);
        maker.segment(0, 600..780);
        let Maker { mut records, pages, .. } = maker;
        let latest: BTreeMap<(Key, usize), u64> = records.iter().map(|r| ((r.key, r.pool), r.sequence)).collect();
        records.iter_mut().for_each(|r| r.superseded = latest[&(r.key, r.pool)] != r.sequence);
        let written = (0..DISK_BYTES / PAGE_BYTES as u64)
            .map(|page| page * PAGE_BYTES as u64)
            .filter(|offset| disk.read(*offset, PAGE_BYTES).iter().any(|byte| *byte != 0))
            .collect();
        Self { disk, superblock, written, records, pages }
    }

    /// Blocks that a start must find.
    pub fn winners(&self) -> usize {
        self.records.iter().filter(|record| !record.superseded).count()
    }

    pub fn superseded(&self) -> usize {
        self.records.len() - self.winners()
    }
}

struct Maker {
    volume: Volume<MemDevice>,
    sequence: u64,
    ops: u64,
    records: Vec<Written>,
    pages: Vec<ListedPage>,
}

impl Maker {
    /// Opens the segment and writes these blocks to it, those of both pools in turns.
    fn segment(&mut self, index: u32, ids: std::ops::Range<u64>) {
        let segment = SegmentId::new(0, index);
        let used = SegmentUse { log: self.volume.superblock().log, segment, opened: self.next_sequence(), group: 0 };
        self.run(|op| Command::Open { op, used });
        let first = CONTENTS_START.0;
        let mut contents = first;
        let mut cursor = first + CHUNK_PAGES;
        let pools = shapes().into_iter().zip(0..).map(|(shape, number)| (PoolId(number), shape, 0)).collect();
        self.list(used, &mut contents, &mut cursor, Listing::Pools(pools), Vec::new());
        let ids: Vec<u64> = ids.collect();
        for ids in ids.chunks(LISTED) {
            let mut listed = Vec::new();
            for id in ids {
                listed.push(self.put(segment, &mut cursor, *id));
            }
            let sequences = listed.iter().map(|record| record.sequence).collect();
            self.list(used, &mut contents, &mut cursor, Listing::Records(listed), sequences);
        }
    }

    fn put(&mut self, segment: SegmentId, cursor: &mut u32, id: u64) -> Record {
        let (key, pool) = (pattern::key(SEED, id), usize::from(id.is_multiple_of(3)));
        let (slot, sum) = slot(pool, &key);
        let pages = (slot.len() / PAGE_BYTES) as u32;
        let (at, bytes, sequence) =
            (SsdPlace::new(segment, PageIndex(*cursor)), shapes()[pool].block_bytes as u32, self.next_sequence());
        *cursor += pages;
        let mapping = Mapping::anonymous(slot.len() as u64).expect("memory");
        mapping.copy_in(0, &slot);
        let memory = Memory::new(&mapping, 0, slot.len());
        self.run(|op| Command::Write { op, at, memory });
        self.records.push(Written { key, pool, place: at, bytes, sum, sequence, superseded: false });
        Record {
            key,
            parent: Key::default(),
            pool: PoolId(pool as u16),
            start: at.page(),
            pages,
            bytes,
            sum,
            sequence,
            class: 0,
            removed: false,
            nonce: Nonce::default(),
        }
    }

    /// Writes the next page of contents; the last one of a chunk names the next chunk.
    fn list(&mut self, used: SegmentUse, contents: &mut u32, cursor: &mut u32, listing: Listing, sequences: Vec<u64>) {
        let place = PageIndex(*contents);
        let chunk_ends = self.pages.iter().filter(|page| page.segment == used.segment).count() as u32 % CHUNK_PAGES
            == CHUNK_PAGES - 1;
        *contents = if chunk_ends {
            let next = *cursor;
            *cursor += CHUNK_PAGES;
            next
        } else {
            *contents + 1
        };
        let (next, sequence) = (Some(PageIndex(*contents)), self.next_sequence());
        self.pages.push(ListedPage { segment: used.segment, place, sequences });
        self.run(|op| Command::List { op, used, place, next, sequence, listing });
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn run(&mut self, command: impl FnOnce(OpId) -> Command) {
        self.ops += 1;
        let reports = self.carry_out(command(OpId(self.ops)));
        assert!(matches!(&reports[..], [Report { result: Ok(()), .. }]), "{reports:?}");
    }

    fn run_free(&mut self, segment: SegmentId) {
        self.carry_out(Command::Discard { segment, durable: false });
    }

    fn carry_out(&mut self, command: Command) -> Vec<Report> {
        let mut reports = Vec::new();
        self.volume.submit(Time(self.ops), command);
        self.volume.kick().expect("memory");
        while self.volume.in_flight() + self.volume.waiting() > 0 {
            self.volume.poll(Time(self.ops), &mut reports).expect("memory");
        }
        reports
    }
}
