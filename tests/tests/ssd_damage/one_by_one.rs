//! One damage at a time, very many of them: each must be noticed, and cost what it hit and no more.

use std::{collections::BTreeSet, env};

use fastrand::Rng;
use lapis_ssd::{
    disk::{Disk, SECTOR_BYTES},
    format::{CHUNK_PAGES, CONTENTS_START, PAGE_BYTES, PageIndex, SegmentId, Superblock},
    recover::{Chunk, Decoded, ScannedSegment},
};

use super::log::{ListedPage, Log, sum_of};

/// Of so many damages one hits a page of the log's own, the others payloads.
const PAGES_ONE_IN: u64 = 8;

fn damages() -> u64 {
    env::var("LAPIS_SSD_DAMAGES").ok().map_or(20_000, |text| text.parse().expect("a number"))
}

/// Flips a bit, or puts some sectors of `other` into it: a write that was torn over what lay there before. False if that
/// changed nothing.
fn damage(random: &mut Rng, bytes: &mut [u8], other: &[u8]) -> bool {
    if random.bool() {
        let bit = random.usize(..bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        return true;
    }
    let sectors = bytes.len() / SECTOR_BYTES;
    let first = random.usize(..sectors);
    let last = random.usize(first..sectors);
    let range = first * SECTOR_BYTES..(last + 1) * SECTOR_BYTES;
    // All of it is a lost write, which no sum of a page can tell: that is another test's.
    if range.len() == bytes.len() || bytes[range.clone()] == other[range.clone()] {
        return false;
    }
    bytes[range.clone()].copy_from_slice(&other[range]);
    true
}

fn page_at(log: &Log, disk: &Disk, segment: SegmentId, place: PageIndex, pages: usize) -> Vec<u8> {
    let offset = log.superblock.offset_bytes(segment) + u64::from(place.0) * PAGE_BYTES as u64;
    disk.read(offset, pages * PAGE_BYTES)
}

#[test]
fn every_flip_and_every_torn_write_is_noticed_and_costs_only_what_it_hit() {
    let log = Log::write();
    let mut random = Rng::with_seed(0xf11b);
    let slots: Vec<Vec<u8>> = log
        .records
        .iter()
        .map(|r| page_at(&log, &log.disk, r.place.segment(), r.place.page(), r.bytes as usize / PAGE_BYTES))
        .collect();
    let scans = Scans::of(&log);
    let (mut done, mut payloads, mut pages) = (0, 0, 0);
    while done < damages() {
        let noticed = if random.u64(..PAGES_ONE_IN) == 0 {
            pages += 1;
            scans.damaged(&log, &mut random)
        } else {
            payloads += 1;
            let (at, other) = (random.usize(..slots.len()), random.usize(..slots.len()));
            let mut slot = slots[at].clone();
            let mut before = slots[other].clone();
            before.resize(slot.len(), 0);
            let changed = damage(&mut random, &mut slot, &before);
            let record = &log.records[at];
            changed.then(|| sum_of(record.pool, &record.key, &slot) != record.sum)
        };
        match noticed {
            Some(true) => done += 1,
            Some(false) => panic!("damage {done} was not noticed"),
            None => {}
        }
    }
    println!("{done} damages, all noticed; {payloads} were tried on payloads, {pages} on pages of the log");
}

/// What the contents of each segment list, page by page as read from the device.
struct Scans {
    superblocks: [Vec<u8>; 2],
    segments: Vec<SegmentScan>,
}

struct SegmentScan {
    segment: SegmentId,
    header: Vec<u8>,
    /// Places and bytes of its chunks, in order.
    chunks: Vec<(PageIndex, Vec<u8>)>,
    listed: BTreeSet<u64>,
}

impl Scans {
    fn of(log: &Log) -> Self {
        let used: BTreeSet<SegmentId> = log.pages.iter().map(|page| page.segment).collect();
        let segments = used.into_iter().map(|segment| {
            let of_it = || log.pages.iter().filter(move |page| page.segment == segment);
            let firsts: Vec<PageIndex> = of_it().step_by(CHUNK_PAGES as usize).map(|page| page.place).collect();
            let chunk = |place: &PageIndex| (*place, page_at(log, &log.disk, segment, *place, CHUNK_PAGES as usize));
            SegmentScan {
                segment,
                header: page_at(log, &log.disk, segment, PageIndex(0), 1),
                chunks: firsts.iter().map(chunk).collect(),
                listed: of_it().flat_map(|page| page.sequences.clone()).collect(),
            }
        });
        let superblocks = [0, 1].map(|page| log.disk.read(page * PAGE_BYTES as u64, PAGE_BYTES));
        Self { superblocks, segments: segments.collect() }
    }

    /// Damages one page and reads its segment; whether exactly what it listed is gone, `None` if nothing was changed.
    fn damaged(&self, log: &Log, random: &mut Rng) -> Option<bool> {
        let scan = &self.segments[random.usize(..self.segments.len())];
        let zeros = vec![0; PAGE_BYTES];
        match random.u8(..16) {
            0 => {
                let which = random.usize(..2);
                let mut page = self.superblocks[which].clone();
                damage(random, &mut page, &zeros).then(|| {
                    let page = page.as_slice().try_into().expect("a page");
                    Superblock::decode(page, which as u64, log.disk.bytes()).is_err()
                })
            }
            1 => {
                let mut header = scan.header.clone();
                damage(random, &mut header, &zeros).then(|| scan.read(log, &header, &scan.chunks).is_none())
            }
            _ => {
                let pages: Vec<&ListedPage> = log.pages.iter().filter(|page| page.segment == scan.segment).collect();
                let at = random.usize(..pages.len());
                let (chunk, within) = (at / CHUNK_PAGES as usize, at % CHUNK_PAGES as usize * PAGE_BYTES);
                let mut chunks = scan.chunks.clone();
                let other = chunks[random.usize(..chunks.len())].1[..PAGE_BYTES].to_vec();
                let other = if random.bool() { &other } else { &zeros };
                let page = &mut chunks[chunk].1[within..within + PAGE_BYTES];
                damage(random, page, other).then(|| {
                    let found = scan.read(log, &scan.header, &chunks).expect("the header is whole");
                    let found: BTreeSet<u64> = found.records.iter().map(|record| record.sequence).collect();
                    found == scan.left_without(&pages, at)
                })
            }
        }
    }
}

impl SegmentScan {
    /// What recovery reads of the segment.
    fn read(&self, log: &Log, header: &[u8], chunks: &[(PageIndex, Vec<u8>)]) -> Option<ScannedSegment> {
        assert_eq!(chunks[0].0, CONTENTS_START);
        let first = [header, &chunks[0].1].concat();
        let mut decoded = Chunk::first(&log.superblock, self.segment, first).decode();
        loop {
            match decoded {
                Decoded::Free(..) => return None,
                Decoded::Segment(found, next) => {
                    let chunk = next.and_then(|next| chunks.iter().find(|(place, _)| *place == next));
                    let Some((place, bytes)) = chunk else { return Some(found) };
                    decoded = Chunk::next(&log.superblock, found, *place, bytes.clone()).decode();
                }
            }
        }
    }

    /// What must still be listed when this page is lost: a page of pools takes their records along, the last one of a
    /// chunk what follows.
    fn left_without(&self, pages: &[&ListedPage], lost: usize) -> BTreeSet<u64> {
        if pages[lost].sequences.is_empty() {
            return BTreeSet::new();
        }
        let ends = lost % CHUNK_PAGES as usize == CHUNK_PAGES as usize - 1;
        let gone = if ends { &pages[lost..] } else { &pages[lost..=lost] };
        let gone: BTreeSet<u64> = gone.iter().flat_map(|page| page.sequences.clone()).collect();
        self.listed.difference(&gone).copied().collect()
    }
}
