//! From pages of a segment to what it lists. Pure: a function of bytes, fit for any thread.
//!
//! Numbers of pools mean something only within one use of a segment, whose own pages of pools say what: so a segment is
//! understood alone, and no damage elsewhere can give its records another shape.

use lapis_config::{Key, POOLS_MAX, PageIndex, PoolId, PoolShape, SegmentId};

use crate::format::{CHUNK_PAGES, CONTENTS_START, FormatError, LogId, PAGE_BYTES, Page, PageKind, Superblock};
use crate::format::{ContentsPage, Entries, Record, SegmentHeader, SegmentUse};

/// A record as a scan keeps it; there may be hundreds of millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub key: Key,
    pub parent: Key,
    pub sum: u64,
    pub sequence: u64,
    pub start: PageIndex,
    pub pages: u32,
    pub bytes: u32,
    /// Index into the segment's `pools`.
    pub pool: u16,
    pub class: u8,
    pub removed: bool,
}

const _: () = assert!(size_of::<Listed>() == 96, "two keys and four words");

/// A pool as one use of a segment numbers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentPool {
    pub id: PoolId,
    pub shape: PoolShape,
    pub purged_before: u64,
}

/// One segment in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedSegment {
    pub used: SegmentUse,
    pub boots: u64,
    pub opened_s: u64,
    pub pools: Vec<SegmentPool>,
    /// In the order of the pages that list them.
    pub records: Vec<Listed>,
    pub damage: Damage,
    /// Pages of contents that are whole.
    pub pages: u32,
    /// Of anything in it.
    pub sequence_highest: u64,
}

/// What there was in the place of pages of contents, and records that were passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Pages not written in this use: a segment that was not filled has some.
    pub blank: u32,
    pub bad: Vec<BadPage>,
    /// Pages that the device did not give.
    pub unreadable: u32,
    /// Records whose pool no page before them lists.
    pub records_without_pool: u32,
    /// Records whose pages are not their pool's slot.
    pub records_misfit: u32,
    /// Pools listed a second time in another shape.
    pub pools_contradicted: u32,
}

/// A page of contents that was to be one, and why it is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPage {
    pub place: PageIndex,
    pub error: FormatError,
}

/// Why a segment holds nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyFree {
    /// Never opened, or wiped.
    Blank,
    /// Opened in another log, or in an earlier life of this device.
    EarlierLog,
    Broken(FormatError),
    Unreadable,
}

/// Pages of one segment that were read and are to be decoded.
#[derive(Debug)]
pub struct Chunk {
    pub(super) segment: SegmentId,
    /// What the chunks before gave; `None` in the first, which begins with the header.
    pub(super) so_far: Option<ScannedSegment>,
    /// Of the first page in `bytes`.
    pub(super) place: PageIndex,
    pub(super) bytes: Vec<u8>,
    pub(super) device: DeviceWords,
}

/// What every page of a device is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceWords {
    pub log: LogId,
    pub segment_bytes: u64,
    pub groups: u16,
    pub sequence_formatted: u64,
}

/// What a chunk gave.
#[derive(Debug)]
pub enum Decoded {
    Free(SegmentId, WhyFree),
    /// With the place of the next chunk, if there is one.
    Segment(ScannedSegment, Option<PageIndex>),
}

impl Chunk {
    /// The first pages of a segment: header and first chunk.
    pub fn first(superblock: &Superblock, segment: SegmentId, bytes: Vec<u8>) -> Self {
        let device = DeviceWords::of(superblock);
        Self { segment, so_far: None, place: PageIndex(0), bytes, device }
    }

    /// The chunk at `place`, which what was found before named.
    pub fn next(superblock: &Superblock, so_far: ScannedSegment, place: PageIndex, bytes: Vec<u8>) -> Self {
        let device = DeviceWords::of(superblock);
        Self { segment: so_far.used.segment, so_far: Some(so_far), place, bytes, device }
    }

    pub fn decode(self) -> Decoded {
        let (so_far, bytes) = match self.so_far {
            Some(so_far) => (Ok((so_far, self.place)), &self.bytes[..]),
            None => {
                let (header, rest) = self.bytes.split_first_chunk().expect("a first chunk begins with the header");
                (self.device.header(header, self.segment).map(|header| (header, CONTENTS_START)), rest)
            }
        };
        match so_far {
            Ok((mut segment, place)) => {
                let next = decode_chunk(&mut segment, place, bytes, self.device.segment_pages());
                Decoded::Segment(segment, next)
            }
            Err(why) => Decoded::Free(self.segment, why),
        }
    }
}

impl DeviceWords {
    pub fn of(superblock: &Superblock) -> Self {
        Self {
            log: superblock.log,
            segment_bytes: superblock.segment_bytes,
            groups: superblock.groups.len() as u16,
            sequence_formatted: superblock.sequence_formatted,
        }
    }

    pub fn segment_pages(&self) -> u32 {
        (self.segment_bytes / PAGE_BYTES as u64) as u32
    }

    /// Pages of the chunk at `place`; fewer than others have if the segment ends before.
    pub fn chunk_pages(&self, place: PageIndex) -> u32 {
        CHUNK_PAGES.min(self.segment_pages().saturating_sub(place.0))
    }

    fn header(&self, page: &Page, segment: SegmentId) -> Result<ScannedSegment, WhyFree> {
        let header = SegmentHeader::decode(page, self.log, segment, self.segment_bytes, self.groups);
        let SegmentHeader { used, boots, opened_s, .. } = header.map_err(|error| match error {
            FormatError::Foreign { found: 0, .. } => WhyFree::Blank,
            // Where segments of another size began elsewhere, anything may lie.
            FormatError::Foreign { .. } | FormatError::OtherLog { .. } => WhyFree::EarlierLog,
            error => WhyFree::Broken(error),
        })?;
        if used.opened < self.sequence_formatted {
            return Err(WhyFree::EarlierLog);
        }
        Ok(ScannedSegment {
            used,
            boots,
            opened_s,
            pools: Vec::new(),
            records: Vec::new(),
            damage: Damage::default(),
            pages: 0,
            sequence_highest: used.opened,
        })
    }
}

/// Adds what the pages of a chunk list, each judged for itself, to what those before listed. The place of the next
/// chunk, if the last page is whole and names one. `bytes` are whole pages, the first of them at `place`.
pub fn decode_chunk(
    segment: &mut ScannedSegment,
    place: PageIndex,
    bytes: &[u8],
    segment_pages: u32,
) -> Option<PageIndex> {
    let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
    let mut numbers = PoolNumbers::of(segment);
    let mut next = None;
    for (page, place) in pages.iter().zip(place.0..) {
        let place = PageIndex(place);
        next = None;
        match ContentsPage::decode(page, &segment.used, place, segment_pages) {
            Ok(page) => {
                next = page.next;
                segment.pages += 1;
                segment.sequence_highest = segment.sequence_highest.max(page.sequence);
                match page.entries {
                    Entries::Pools(pools) => pools.into_iter().for_each(|pool| numbers.add(segment, pool)),
                    Entries::Records(records) => take(segment, &numbers, &records),
                }
            }
            Err(error) if is_blank(&error) => segment.damage.blank += 1,
            Err(error) => segment.damage.bad.push(BadPage { place, error }),
        }
    }
    // A chunk that is shorter than it should be has no last page.
    next.filter(|_| pages.len() == CHUNK_PAGES as usize)
}

fn take(segment: &mut ScannedSegment, numbers: &PoolNumbers, records: &[Record]) {
    segment.records.reserve(records.len());
    for record in records {
        segment.sequence_highest = segment.sequence_highest.max(record.sequence);
        let Some(pool) = numbers.index(record.pool) else {
            segment.damage.records_without_pool += 1;
            continue;
        };
        if !record.fits(&segment.pools[usize::from(pool)].shape) {
            segment.damage.records_misfit += 1;
            continue;
        }
        let Record { key, parent, sum, sequence, start, pages, bytes, class, removed, .. } = *record;
        segment.records.push(Listed { key, parent, sum, sequence, start, pages, bytes, pool, class, removed });
    }
}

/// Whether a page was just not written in this use of its segment.
fn is_blank(error: &FormatError) -> bool {
    match error {
        FormatError::Foreign { .. } | FormatError::OtherLog { .. } => true,
        FormatError::Misplaced { kind: PageKind::Contents, field, .. } => *field == "use",
        _ => false,
    }
}

/// From the numbers of pools to their places in `ScannedSegment::pools`.
struct PoolNumbers([u16; POOLS_MAX]);

impl PoolNumbers {
    const NONE: u16 = u16::MAX;

    fn of(segment: &ScannedSegment) -> Self {
        let mut numbers = Self([Self::NONE; POOLS_MAX]);
        for (pool, index) in segment.pools.iter().zip(0..) {
            numbers.0[usize::from(pool.id.0)] = index;
        }
        numbers
    }

    fn index(&self, id: PoolId) -> Option<u16> {
        self.0.get(usize::from(id.0)).copied().filter(|index| *index != Self::NONE)
    }

    fn add(&mut self, segment: &mut ScannedSegment, (id, shape, purged_before): (PoolId, PoolShape, u64)) {
        match self.index(id).map(|index| &mut segment.pools[usize::from(index)]) {
            None => {
                self.0[usize::from(id.0)] = segment.pools.len() as u16;
                segment.pools.push(SegmentPool { id, shape, purged_before });
            }
            // Purged while the segment was open.
            Some(pool) if pool.shape == shape => pool.purged_before = pool.purged_before.max(purged_before),
            Some(_) => segment.damage.pools_contradicted += 1,
        }
    }
}

impl Damage {
    /// True if anything is not as its writer left it.
    pub fn any(&self) -> bool {
        let records = self.records_without_pool + self.records_misfit + self.pools_contradicted;
        !self.bad.is_empty() || self.unreadable + records > 0
    }
}
