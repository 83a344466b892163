//! A read-only check of one device: what is whole, what is torn and why. Reads through a closure, so it is at home on
//! files, devices and memory; decodes by what recovery decodes by, and judges more strictly.

mod payload;
mod told;

use std::{fmt, io};

use serde::Serialize;

use crate::{
    format::{CHUNK_PAGES, CONTENTS_START, FormatError, PAGE_BYTES, Page, PageIndex, SegmentId, Superblock},
    recover::{Chunk, Decoded, ScannedSegment, WhyFree},
};

const PAGE: u64 = PAGE_BYTES as u64;
/// Read at once: a header and the chunk behind it.
const FIRST_PAGES: u64 = 1 + CHUNK_PAGES as u64;

/// What a device turned out to hold. Numbers and texts only: fit for any output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub device_bytes: u64,
    pub superblocks: [SuperblockCheck; 2],
    /// Of the superblock in force; `None`: neither is whole, and no more was looked at.
    pub device: Option<DeviceCheck>,
    /// Segments that are in use, broken or unreadable.
    pub segments: Vec<SegmentCheck>,
    /// Never used, or wiped.
    pub segments_blank: u32,
    /// Of an earlier log or an earlier life of the device.
    pub segments_earlier: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SuperblockCheck {
    /// `None`: it is whole.
    pub why: Option<String>,
    pub write: u64,
    pub in_force: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceCheck {
    /// Hexadecimal, as the others are.
    pub log: String,
    pub host: String,
    pub instance: String,
    pub number: u8,
    pub devices: u16,
    pub boots: u64,
    pub segments: u32,
    pub segment_bytes: u64,
    pub formatted_s: u64,
    pub sequence_reserved: u64,
    /// By number.
    pub groups: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SegmentCheck {
    /// Index on the device.
    pub index: u32,
    /// Why its header is none, if it is none; then the rest is zero.
    pub why: Option<String>,
    pub group: u16,
    pub opened: u64,
    pub opened_s: u64,
    pub boots: u64,
    /// Pages of contents: whole, not written in this use, not given by the device.
    pub pages: u32,
    pub pages_blank: u32,
    pub pages_unreadable: u32,
    pub pages_bad: Vec<BadPlace>,
    pub pools: u32,
    /// Listed ones with bytes, whether or not later ones count in their stead.
    pub records: u32,
    pub removals: u32,
    pub payload_bytes: u64,
    pub records_without_pool: u32,
    pub records_misfit: u32,
    pub pools_contradicted: u32,
    /// Records that lie on another record or on contents: no writer does that.
    pub overlaps: Vec<BadPlace>,
    /// Payloads that have their sums, if it was asked.
    pub payloads: u32,
    pub payloads_bad: Vec<BadPlace>,
}

/// Where in the segment, in pages, and what is wrong there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BadPlace {
    pub page: u32,
    pub why: String,
}

/// Reads so many bytes from an offset on; both are multiples of a page, and lie on the device.
pub trait ReadAt: FnMut(u64, &mut [u8]) -> io::Result<()> {}
impl<F: FnMut(u64, &mut [u8]) -> io::Result<()>> ReadAt for F {}

/// Checks a device of `device_bytes`; `with_payload` reads all records as well and compares their sums.
pub fn check(device_bytes: u64, mut read: impl ReadAt, with_payload: bool) -> Checked {
    let mut checked = Checked { device_bytes, ..Checked::default() };
    let superblocks = [0, 1].map(|page| read_superblock(&mut read, page, device_bytes));
    let newest = superblocks.iter().flatten().map(|superblock| superblock.write).max();
    checked.superblocks = superblocks.each_ref().map(|found| match found {
        Ok(superblock) => {
            let write = superblock.write;
            SuperblockCheck { why: None, write, in_force: Some(write) == newest }
        }
        Err(why) => SuperblockCheck { why: Some(why.clone()), ..SuperblockCheck::default() },
    });
    let Some(superblock) = superblocks.into_iter().flatten().find(|superblock| Some(superblock.write) == newest) else {
        return checked;
    };
    checked.device = Some(DeviceCheck::of(&superblock));
    for index in 0..superblock.segments {
        match read_segment(&mut read, &superblock, SegmentId::new(superblock.device, index)) {
            Ok((segment, chunks)) => {
                let mut check = SegmentCheck::of(index, &segment);
                check.overlaps = overlaps(&segment, &chunks);
                if with_payload {
                    payload::check(&mut read, &superblock, &segment, &mut check);
                }
                checked.segments.push(check);
            }
            Err(WhyFree::Blank) => checked.segments_blank += 1,
            Err(WhyFree::EarlierLog) => checked.segments_earlier += 1,
            Err(WhyFree::Broken(error)) => checked.segments.push(SegmentCheck::broken(index, error.to_string())),
            Err(WhyFree::Unreadable) => checked.segments.push(SegmentCheck::broken(index, "unreadable".into())),
        }
    }
    checked
}

impl Checked {
    /// True if nothing is torn, broken or unreadable. A page that was never written is none of that.
    pub fn is_whole(&self) -> bool {
        self.superblocks.iter().all(|superblock| superblock.why.is_none())
            && self.segments.iter().all(SegmentCheck::is_whole)
    }
}

impl SegmentCheck {
    pub fn is_whole(&self) -> bool {
        let bad = self.pages_bad.len() + self.overlaps.len() + self.payloads_bad.len();
        let counts = self.pages_unreadable + self.records_without_pool + self.records_misfit + self.pools_contradicted;
        self.why.is_none() && bad == 0 && counts == 0
    }

    fn broken(index: u32, why: String) -> Self {
        Self { index, why: Some(why), ..Self::default() }
    }

    fn of(index: u32, segment: &ScannedSegment) -> Self {
        let ScannedSegment { used, boots, opened_s, pools, records, damage, pages, .. } = segment;
        let bad = |bad: &crate::recover::BadPage| BadPlace { page: bad.place.0, why: bad.error.to_string() };
        let removals = records.iter().filter(|record| record.removed).count();
        Self {
            index,
            why: None,
            group: used.group,
            opened: used.opened,
            opened_s: *opened_s,
            boots: *boots,
            pages: *pages,
            pages_blank: damage.blank,
            pages_unreadable: damage.unreadable,
            pages_bad: damage.bad.iter().map(bad).collect(),
            pools: pools.len() as u32,
            records: (records.len() - removals) as u32,
            removals: removals as u32,
            payload_bytes: records.iter().map(|record| u64::from(record.bytes)).sum(),
            records_without_pool: damage.records_without_pool,
            records_misfit: damage.records_misfit,
            pools_contradicted: damage.pools_contradicted,
            ..Self::default()
        }
    }
}

impl DeviceCheck {
    fn of(superblock: &Superblock) -> Self {
        let hex = |id: [u8; 16]| format!("{:032x}", u128::from_be_bytes(id));
        Self {
            log: hex(superblock.log.0),
            host: hex(superblock.host),
            instance: hex(superblock.instance),
            number: superblock.device,
            devices: superblock.devices,
            boots: superblock.boots,
            segments: superblock.segments,
            segment_bytes: superblock.segment_bytes,
            formatted_s: superblock.formatted_s,
            sequence_reserved: superblock.sequence_reserved,
            groups: superblock.groups.iter().map(|group| group.name.clone()).collect(),
        }
    }
}

fn read_superblock(read: &mut impl ReadAt, page: u64, device_bytes: u64) -> Result<Superblock, String> {
    let mut bytes: Box<Page> = Box::new([0; PAGE_BYTES]);
    if device_bytes < (page + 1) * PAGE {
        return Err(format!("the device has {device_bytes} bytes"));
    }
    read(page * PAGE, &mut *bytes).map_err(|error| format!("unreadable: {error}"))?;
    Superblock::decode(&bytes, page, device_bytes).map_err(|error| match error {
        FormatError::Foreign { found: 0, .. } => "blank".into(),
        error => error.to_string(),
    })
}

/// What a segment lists, and where its chunks of contents lie.
fn read_segment(
    read: &mut impl ReadAt,
    superblock: &Superblock,
    segment: SegmentId,
) -> Result<(ScannedSegment, Vec<PageIndex>), WhyFree> {
    let offset = superblock.offset_bytes(segment);
    let mut bytes = vec![0; (FIRST_PAGES * PAGE) as usize];
    read(offset, &mut bytes).map_err(|_| WhyFree::Unreadable)?;
    let mut decoded = Chunk::first(superblock, segment, bytes).decode();
    let mut chunks = vec![CONTENTS_START];
    loop {
        match decoded {
            Decoded::Free(_, why) => return Err(why),
            Decoded::Segment(segment, None) => return Ok((segment, chunks)),
            Decoded::Segment(mut so_far, Some(place)) => {
                chunks.push(place);
                let start = u64::from(place.0) * PAGE;
                let mut bytes = vec![0; (u64::from(CHUNK_PAGES) * PAGE).min(superblock.segment_bytes - start) as usize];
                if read(offset + start, &mut bytes).is_err() {
                    so_far.damage.unreadable += (bytes.len() / PAGE_BYTES) as u32;
                    return Ok((so_far, chunks));
                }
                decoded = Chunk::next(superblock, so_far, place, bytes).decode();
            }
        }
    }
}

/// Records that begin before what lies before them ends.
fn overlaps(segment: &ScannedSegment, chunks: &[PageIndex]) -> Vec<BadPlace> {
    let header = (0, 1, "header");
    let chunks = chunks.iter().map(|place| (place.0, CHUNK_PAGES, "contents"));
    let records = segment.records.iter().filter(|r| !r.removed).map(|r| (r.start.0, r.pages, "record"));
    let mut all: Vec<(u32, u32, &str)> = chunks.chain(records).chain([header]).collect();
    all.sort_unstable();
    let mut overlaps = Vec::new();
    let (mut end, mut last) = (0, "header");
    for (start, pages, what) in all {
        if start < end {
            overlaps.push(BadPlace { page: start, why: format!("{what} on {last} that ends at page {end}") });
        }
        if start + pages >= end {
            (end, last) = (start + pages, what);
        }
    }
    overlaps
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        told::tell(self, f)
    }
}

#[cfg(test)]
mod tests;
