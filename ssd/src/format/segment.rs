//! The first page of a segment, written when it is opened, before anything else in it.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{FormatError, Head, LogId, PAGE_BYTES, Page, PageKind, SegmentId, SegmentUse};
use super::{expect, expect_log, seal, unseal};

/// "LAPISSEG".
const MAGIC: u64 = u64::from_le_bytes(*b"LAPISSEG");
const KIND: PageKind = PageKind::SegmentHeader;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub used: SegmentUse,
    pub segment_bytes: u64,
    /// Start of the daemon that opened it, and wall-clock seconds then: the age of what is in it.
    pub boots: u64,
    pub opened_s: u64,
    /// Which key its payloads are encrypted with; 0 = none. The key itself, wrapped by the one that the key id names.
    pub key_id: u32,
    pub wrapped_key: [u8; 64],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Layout {
    head: Head,
    opened: U64,
    segment_bytes: U64,
    boots: U64,
    opened_s: U64,
    segment: U32,
    key_id: U32,
    group: U16,
    spare: [u8; 6],
    wrapped_key: [u8; 64],
    spare2: [u8; 3944],
}

const _: () = assert!(size_of::<Layout>() == PAGE_BYTES, "on-disk layout");

impl SegmentHeader {
    pub fn encode(&self) -> Box<Page> {
        let SegmentUse { log, segment, opened, group } = self.used;
        let layout = Layout {
            head: Head::new(MAGIC, log),
            opened: U64::new(opened),
            segment_bytes: U64::new(self.segment_bytes),
            boots: U64::new(self.boots),
            opened_s: U64::new(self.opened_s),
            segment: U32::new(segment.0),
            key_id: U32::new(self.key_id),
            group: U16::new(group),
            spare: [0; 6],
            wrapped_key: self.wrapped_key,
            spare2: [0; 3944],
        };
        seal(MAGIC, &layout)
    }

    /// Reads the header of `segment`, `groups` being the number of groups in the superblock.
    pub fn decode(
        page: &Page,
        log: LogId,
        segment: SegmentId,
        segment_bytes: u64,
        groups: u16,
    ) -> Result<Self, FormatError> {
        let layout: &Layout = unseal(KIND, MAGIC, page)?;
        expect_log(KIND, log, LogId(layout.head.log))?;
        expect(KIND, "segment", segment.0.into(), layout.segment.get().into())?;
        expect(KIND, "segment_bytes", segment_bytes, layout.segment_bytes.get())?;
        let group = layout.group.get();
        if group >= groups {
            let (found, most) = (group.into(), u64::from(groups).saturating_sub(1));
            return Err(FormatError::TooLarge { kind: KIND, field: "group", found, most });
        }
        Ok(Self {
            used: SegmentUse { log, segment, opened: layout.opened.get(), group },
            segment_bytes,
            boots: layout.boots.get(),
            opened_s: layout.opened_s.get(),
            key_id: layout.key_id.get(),
            wrapped_key: layout.wrapped_key,
        })
    }
}

#[test]
fn a_header_is_read_back_and_refused_at_another_segment() {
    let used = SegmentUse { log: LogId([9; 16]), segment: SegmentId::new(2, 77), opened: 1 << 40, group: 1 };
    let (segment_bytes, wrapped_key) = (64 << 20, [3; 64]);
    let header = SegmentHeader { used, segment_bytes, boots: 4, opened_s: 5, key_id: 6, wrapped_key };
    let page = header.encode();
    let decode = |log, segment, groups| SegmentHeader::decode(&page, log, segment, segment_bytes, groups);
    assert_eq!(decode(used.log, used.segment, 2), Ok(header.clone()));
    let error = decode(used.log, SegmentId::new(2, 78), 2).expect_err("another segment");
    assert_eq!(error.to_string(), "SegmentHeader: expected segment 33554510, found 33554509");
    assert!(matches!(decode(LogId([8; 16]), used.segment, 2), Err(FormatError::OtherLog { .. })));
    assert!(matches!(decode(used.log, used.segment, 1), Err(FormatError::TooLarge { .. })));
}
