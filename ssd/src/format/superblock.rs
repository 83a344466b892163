//! The first two pages of a device: whose it is, how it is divided, which trust groups it holds. Written in turn, the
//! higher write counts: a torn one leaves the one before.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{FormatError, HEAD_BYTES, Head, LogId, PAGE_BYTES, Page, PageKind, SegmentId};
use super::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, at_least, at_most, expect, padded, seal, text, unseal};

/// "LAPISSB1".
const MAGIC: u64 = u64::from_le_bytes(*b"LAPISSB1");
const KIND: PageKind = PageKind::Superblock;
/// Trust groups that a log may have held in its life.
pub const GROUPS_MAX: usize = 64;
/// Where segments may start at the earliest, bytes from the device's start: both superblocks, and room to align.
const SEGMENTS_START_MIN: u64 = 2 * PAGE_BYTES as u64;

/// Whether a page says that it is a superblock, whole or not.
pub(crate) fn is_claimed(page: &[u8]) -> bool {
    page.starts_with(&MAGIC.to_le_bytes())
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub log: LogId,
    /// Counts the superblocks written to this device; odd ones lie in page 1, even ones in page 0.
    pub write: u64,
    /// /etc/machine-id of the host that formatted it, and an id of the daemon's installation: a device of another is
    /// refused unless its owner says otherwise.
    pub host: [u8; 16],
    pub instance: [u8; 16],
    /// Starts of the daemon on this log.
    pub boots: u64,
    /// This device's number among the log's devices.
    pub device: u8,
    pub devices: u16,
    pub segment_bytes: u64,
    /// Segments on this device, and where the first starts, bytes.
    pub segments: u32,
    pub segments_start: u64,
    /// Sequences below this may be in use: a start begins here, after it reserved more. So none is used twice, and
    /// neither is a nonce made of one.
    pub sequence_reserved: u64,
    /// Wall-clock seconds of the formatting.
    pub formatted_s: u64,
    /// The first sequence of the start that formatted the device: what was opened before is of an earlier life of it,
    /// even if it names this log.
    pub sequence_formatted: u64,
    /// In the order of their numbers, which stay; a group that left the configuration keeps its place.
    pub groups: Vec<GroupRecord>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupRecord {
    pub name: String,
    /// What the group wrote before this sequence is gone.
    pub purged_before: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Layout {
    head: Head,
    write: U64,
    host: [u8; 16],
    instance: [u8; 16],
    boots: U64,
    segment_bytes: U64,
    segments_start: U64,
    sequence_reserved: U64,
    formatted_s: U64,
    segments: U32,
    devices: U16,
    groups: U16,
    device: u8,
    spare: [u8; 7],
    sequence_formatted: U64,
    spare1: [u8; 112],
    group: [GroupLayout; GROUPS_MAX],
    spare2: [u8; 768],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct GroupLayout {
    name: [u8; 32],
    purged_before: U64,
    spare: [u8; 8],
}

const _: () = assert!(HEAD_BYTES == 40 && size_of::<Layout>() == PAGE_BYTES && size_of::<GroupLayout>() == 48);

impl Superblock {
    /// The page of the device in which this one lies.
    pub fn page(&self) -> u64 {
        self.write % 2
    }

    pub fn encode(&self) -> Box<Page> {
        assert!(self.groups.len() <= GROUPS_MAX, "the configuration allows no more groups");
        let mut group = [GroupLayout { name: [0; 32], purged_before: U64::new(0), spare: [0; 8] }; GROUPS_MAX];
        for (layout, record) in group.iter_mut().zip(&self.groups) {
            layout.name = padded(&record.name);
            layout.purged_before = U64::new(record.purged_before);
        }
        let layout = Layout {
            head: Head::new(MAGIC, self.log),
            write: U64::new(self.write),
            host: self.host,
            instance: self.instance,
            boots: U64::new(self.boots),
            segment_bytes: U64::new(self.segment_bytes),
            segments_start: U64::new(self.segments_start),
            sequence_reserved: U64::new(self.sequence_reserved),
            formatted_s: U64::new(self.formatted_s),
            segments: U32::new(self.segments),
            devices: U16::new(self.devices),
            groups: U16::new(self.groups.len() as u16),
            device: self.device,
            spare: [0; 7],
            sequence_formatted: U64::new(self.sequence_formatted),
            spare1: [0; 112],
            group,
            spare2: [0; 768],
        };
        seal(MAGIC, &layout)
    }

    /// Reads the superblock in page `place` (0 or 1) of a device of `device_bytes`.
    pub fn decode(page: &Page, place: u64, device_bytes: u64) -> Result<Self, FormatError> {
        let layout: &Layout = unseal(KIND, MAGIC, page)?;
        let segment_bytes = layout.segment_bytes.get();
        let (segments, start) = (layout.segments.get(), layout.segments_start.get());
        let (groups, devices) = (layout.groups.get(), layout.devices.get());
        expect(KIND, "page", place, layout.write.get() % 2)?;
        at_least(KIND, "segment_bytes", segment_bytes, SEGMENT_BYTES_MIN)?;
        at_most(KIND, "segment_bytes", segment_bytes, SEGMENT_BYTES_MAX)?;
        expect(KIND, "segment_bytes past a page", 0, segment_bytes % PAGE_BYTES as u64)?;
        at_least(KIND, "segments_start", start, SEGMENTS_START_MIN)?;
        expect(KIND, "segments_start past a page", 0, start % PAGE_BYTES as u64)?;
        at_most(KIND, "segments", segments.into(), SegmentId::ON_DEVICE_MAX.into())?;
        at_most(KIND, "segments_start", start, device_bytes)?;
        // 2^24 segments of 16 GiB are 2^58 bytes: no overflow.
        at_most(KIND, "bytes of all segments", u64::from(segments) * segment_bytes, device_bytes - start)?;
        at_most(KIND, "devices", devices.into(), 256)?;
        at_least(KIND, "devices", devices.into(), u64::from(layout.device) + 1)?;
        at_most(KIND, "groups", groups.into(), GROUPS_MAX as u64)?;
        let group = |g: &GroupLayout| {
            let name = text(KIND, "group name", &g.name)?;
            Ok(GroupRecord { name, purged_before: g.purged_before.get() })
        };
        Ok(Self {
            log: LogId(layout.head.log),
            write: layout.write.get(),
            host: layout.host,
            instance: layout.instance,
            boots: layout.boots.get(),
            device: layout.device,
            devices,
            segment_bytes,
            segments,
            segments_start: start,
            sequence_reserved: layout.sequence_reserved.get(),
            formatted_s: layout.formatted_s.get(),
            sequence_formatted: layout.sequence_formatted.get(),
            groups: layout.group[..usize::from(groups)].iter().map(group).collect::<Result<_, _>>()?,
        })
    }

    /// The one in force of the two pages of a device, or why neither is: the error of the page that looks most like
    /// one of ours. What a newer version has written is not passed over for what an older one wrote before.
    pub fn newest(pages: [&Page; 2], device_bytes: u64) -> Result<Self, FormatError> {
        let [a, b] = [0, 1].map(|i| Self::decode(pages[i], i as u64, device_bytes));
        match (a, b) {
            (Ok(a), Ok(b)) => Ok(if a.write > b.write { a } else { b }),
            (Err(newer @ FormatError::Version { .. }), _) | (_, Err(newer @ FormatError::Version { .. })) => Err(newer),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(FormatError::Foreign { .. }), Err(error)) => Err(error),
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// Where a segment of this device starts, bytes.
    pub fn offset_bytes(&self, segment: SegmentId) -> u64 {
        assert!(segment.device() == self.device && segment.index() < self.segments, "a segment of this device");
        self.segments_start + u64::from(segment.index()) * self.segment_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::MAJOR;

    const DEVICE_BYTES: u64 = 1 << 40;

    fn superblock() -> Superblock {
        let group = |name: &str| GroupRecord { name: name.into(), purged_before: 17 };
        Superblock {
            log: LogId([7; 16]),
            write: 5,
            host: [1; 16],
            instance: [2; 16],
            boots: 3,
            device: 1,
            devices: 4,
            segment_bytes: 64 << 20,
            segments: 1000,
            segments_start: 1 << 20,
            sequence_reserved: 1 << 32,
            formatted_s: 1_700_000_000,
            sequence_formatted: 1 << 20,
            groups: vec![group("default"), group("chat")],
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let page = superblock().encode();
        assert_eq!(Superblock::decode(&page, 1, DEVICE_BYTES), Ok(superblock()));
        assert_eq!(superblock().offset_bytes(SegmentId::new(1, 3)), (1 << 20) + 3 * (64 << 20));
    }

    #[test]
    fn a_superblock_that_fits_no_device_is_refused_with_both_values() {
        let page = superblock().encode();
        let error = Superblock::decode(&page, 1, 1 << 30).expect_err("a small device");
        assert_eq!(error.to_string(), "Superblock: bytes of all segments is 67108864000, at most 1072693248");
        assert!(matches!(Superblock::decode(&page, 0, DEVICE_BYTES), Err(FormatError::Misplaced { .. })));
        let lonely = Superblock { devices: 1, ..superblock() }.encode();
        assert!(matches!(Superblock::decode(&lonely, 1, DEVICE_BYTES), Err(FormatError::TooSmall { .. })));
    }

    #[test]
    fn a_newer_major_version_is_refused_and_a_newer_minor_is_read() {
        let mut page = superblock().encode();
        let reseal = |page: &mut Page| {
            let sum = crate::format::checksum(MAGIC, page);
            page[8..16].copy_from_slice(&sum.to_le_bytes());
        };
        page[18] = 9;
        reseal(&mut page);
        assert_eq!(Superblock::decode(&page, 1, DEVICE_BYTES), Ok(superblock()));
        page[16] = MAJOR as u8 + 1;
        reseal(&mut page);
        let error = Superblock::decode(&page, 1, DEVICE_BYTES).expect_err("from the future");
        assert_eq!(error.to_string(), "Superblock: format 2.9, this version reads 1.0");
    }

    #[test]
    fn what_a_newer_version_wrote_beside_ours_is_not_passed_over() {
        let (ours, mut newer) = (superblock().encode(), Superblock { write: 6, ..superblock() }.encode());
        newer[16] = MAJOR as u8 + 1;
        let sum = crate::format::checksum(MAGIC, &newer);
        newer[8..16].copy_from_slice(&sum.to_le_bytes());
        let error = Superblock::newest([&newer, &ours], DEVICE_BYTES).expect_err("from the future");
        assert!(matches!(error, FormatError::Version { .. }), "{error}");
        newer[4000] ^= 1;
        assert_eq!(Superblock::newest([&newer, &ours], DEVICE_BYTES), Ok(superblock()), "torn, whoever wrote it");
    }

    #[test]
    fn every_byte_is_guarded() {
        let page = superblock().encode();
        for at in 0..PAGE_BYTES {
            let mut flipped = page.clone();
            flipped[at] ^= 0x10;
            assert!(Superblock::decode(&flipped, 1, DEVICE_BYTES).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_later_write_is_in_force_and_a_torn_one_leaves_the_one_before() {
        let (before, after) = (superblock(), Superblock { write: 6, boots: 4, ..superblock() });
        let (odd, mut even) = (before.encode(), after.encode());
        assert_eq!(Superblock::newest([&even, &odd], DEVICE_BYTES), Ok(after));
        even[256..].fill(0);
        assert_eq!(Superblock::newest([&even, &odd], DEVICE_BYTES), Ok(before));
        let (blank, mut torn) = (Box::new([0; PAGE_BYTES]), odd);
        torn[4000] ^= 1;
        let error = Superblock::newest([&blank, &torn], DEVICE_BYTES).expect_err("none");
        assert!(matches!(error, FormatError::Corrupt { .. }), "the error of the page that was ours");
    }
}
