//! Pages of the log on devices, as they are found and with their checksums made right: else nothing but checksums
//! would be tried.

use lapis_config::{Fingerprint, Key, PoolId, PoolKind, PoolShape};
use lapis_ssd::format::{
    ContentsPage, ENTRIES_MAX, Entries, GroupRecord, LogId, Nonce, PAGE_BYTES, Page, PageIndex, Record, SegmentHeader,
    SegmentId, SegmentUse, Superblock,
};
use twox_hash::XxHash3_64;

const DEVICE_BYTES: u64 = 1 << 46;
const SEGMENT_PAGES: u32 = 16384;

/// A superblock, in either page of a device.
pub fn superblock(bytes: &[u8]) {
    let page = page(bytes);
    for page in [page, sealed(page, b"LAPISSB1")] {
        for place in [0, 1] {
            let Ok(found) = Superblock::decode(&page, place, DEVICE_BYTES) else { continue };
            if let Some(last) = found.segments.checked_sub(1) {
                let last = found.offset_bytes(SegmentId::new(found.device, last));
                assert!(last >= 2 * PAGE_BYTES as u64 && last + found.segment_bytes <= DEVICE_BYTES);
            }
            assert_eq!(found.page(), place);
            assert_eq!(Superblock::decode(&found.encode(), place, DEVICE_BYTES), Ok(found.clone()));
            assert!(Superblock::newest([&page, &page], DEVICE_BYTES).is_ok());
        }
    }
}

/// The header of the segment that it names, in the log that it names.
pub fn segment(bytes: &[u8]) {
    let page = page(bytes);
    for page in [page, sealed(page, b"LAPISSEG")] {
        let (log, segment, segment_bytes) = (log_of(&page), SegmentId(u32_at(&page, 72)), u64_at(&page, 48));
        for groups in [0, 1, 64] {
            let Ok(found) = SegmentHeader::decode(&page, log, segment, segment_bytes, groups) else { continue };
            assert!(found.used.group < groups && found.used.segment == segment);
            assert_eq!(SegmentHeader::decode(&found.encode(), log, segment, segment_bytes, groups), Ok(found));
        }
    }
}

/// A page of contents of the use and at the place that it names.
pub fn contents(bytes: &[u8]) {
    let page = page(bytes);
    for page in [page, sealed(page, b"LAPISTOC")] {
        let (log, segment, opened) = (log_of(&page), SegmentId(u32_at(&page, 64)), u64_at(&page, 40));
        let used = SegmentUse { log, segment, opened, group: u16_at(&page, 76) };
        let place = PageIndex(u32_at(&page, 68));
        let Ok(found) = ContentsPage::decode(&page, &used, place, SEGMENT_PAGES) else { continue };
        assert!(found.next.is_none_or(|next| next > place && next.0 < SEGMENT_PAGES));
        let entries = match &found.entries {
            Entries::Records(records) => {
                records.iter().for_each(check_record);
                records.len()
            }
            Entries::Pools(pools) => {
                pools.iter().for_each(|(_, shape, _)| check_shape(shape));
                pools.len()
            }
        };
        // No page without an entry is ever written.
        if entries > 0 {
            assert_eq!(ContentsPage::decode(&found.encode(), &used, place, SEGMENT_PAGES), Ok(found));
        }
    }
}

fn check_record(record: &Record) {
    if record.removed {
        return assert_eq!((record.pages, record.bytes), (0, 0));
    }
    assert!(record.start.0 > 0 && u64::from(record.start.0) + u64::from(record.pages) <= SEGMENT_PAGES.into());
    assert!(record.bytes > 0 && u64::from(record.bytes) <= u64::from(record.pages) * PAGE_BYTES as u64);
    for kind in [PoolKind::Chain, PoolKind::Object] {
        record.fits(&PoolShape { kind, ..shape() });
    }
}

/// What the rest of Lapis divides by and multiplies.
fn check_shape(shape: &PoolShape) {
    assert!(shape.pieces > 0 && shape.block_bytes > 0 && shape.label.len() <= 48);
    if shape.kind == PoolKind::Chain {
        assert!(shape.block_bytes.is_multiple_of(shape.pieces.into()), "a block of equal pieces");
        assert!(lapis_config::sizes::slot_bytes(shape, shape.block_bytes) >= shape.block_bytes);
    }
}

/// The bytes as the start of a page.
fn page(bytes: &[u8]) -> Page {
    let (mut page, bytes) = ([0; PAGE_BYTES], &bytes[..bytes.len().min(PAGE_BYTES)]);
    page[..bytes.len()].copy_from_slice(bytes);
    page
}

/// The page with its magic, version and checksum made right.
fn sealed(mut page: Page, magic: &[u8; 8]) -> Page {
    page[..8].copy_from_slice(magic);
    page[16..18].copy_from_slice(&1u16.to_le_bytes());
    let sum = XxHash3_64::oneshot_with_seed(u64::from_le_bytes(*magic), &page[16..]);
    page[8..16].copy_from_slice(&sum.to_le_bytes());
    page
}

fn log_of(page: &Page) -> LogId {
    LogId(page[24..40].try_into().expect("16 bytes"))
}

fn u16_at(page: &Page, at: usize) -> u16 {
    u16::from_le_bytes(page[at..at + 2].try_into().expect("2 bytes"))
}

fn u32_at(page: &Page, at: usize) -> u32 {
    u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(page: &Page, at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().expect("8 bytes"))
}

pub fn superblocks() -> Vec<Vec<u8>> {
    let group = |name: &str| GroupRecord { name: name.into(), purged_before: 17 };
    let one = Superblock {
        log: LogId([7; 16]),
        write: 4,
        host: [1; 16],
        instance: [2; 16],
        boots: 3,
        device: 0,
        devices: 1,
        segment_bytes: 64 << 20,
        segments: 1000,
        segments_start: 1 << 20,
        sequence_reserved: 1 << 32,
        formatted_s: 1_700_000_000,
        sequence_formatted: 9,
        groups: vec![group("default")],
    };
    let many = (0..64).map(|i| group(&format!("group-{i}"))).collect();
    let other = Superblock { write: 5, device: 3, devices: 4, segment_bytes: 16 << 30, groups: many, ..one.clone() };
    let empty = Superblock { segments: 0, groups: Vec::new(), ..one.clone() };
    short(&[one.encode(), other.encode(), empty.encode()])
}

pub fn segments() -> Vec<Vec<u8>> {
    let one =
        SegmentHeader { used: used(), segment_bytes: 64 << 20, boots: 4, opened_s: 5, key_id: 0, wrapped_key: [0; 64] };
    let sealed = SegmentHeader { key_id: 6, wrapped_key: [3; 64], ..one.clone() };
    short(&[one.encode(), sealed.encode()])
}

pub fn contents_pages() -> Vec<Vec<u8>> {
    let record = Record {
        key: Key::new(b"block"),
        parent: Key::new(b"parent"),
        pool: PoolId(3),
        start: PageIndex(17),
        pages: 16,
        bytes: 65536,
        sum: 5,
        sequence: 1 << 33,
        class: 2,
        removed: false,
        nonce: Nonce::default(),
    };
    let none = Record { start: PageIndex(0), pages: 0, bytes: 0, sum: 0, removed: true, ..record };
    let object = PoolShape { kind: PoolKind::Object, block_bytes: 1 << 40, pieces: 1, ..shape() };
    let page = |place, next: u32, entries| ContentsPage {
        used: used(),
        place: PageIndex(place),
        next: (next > 0).then_some(PageIndex(next)),
        sequence: 1 << 34,
        boots: 4,
        entries,
    };
    short(&[
        page(1, 2, Entries::Pools(vec![(PoolId(3), shape(), 0), (PoolId(4), object, 1 << 32)])).encode(),
        page(2, 3, Entries::Records(vec![record, none])).encode(),
        page(16, 0, Entries::Records(vec![record; ENTRIES_MAX])).encode(),
    ])
}

fn used() -> SegmentUse {
    SegmentUse { log: LogId([9; 16]), segment: SegmentId::new(2, 77), opened: 1 << 40, group: 1 }
}

fn shape() -> PoolShape {
    let (namespace, label) = (Fingerprint([7; 32]), "k/rank0".to_owned());
    PoolShape { namespace, label, kind: PoolKind::Chain, block_bytes: 65536, pieces: 4 }
}

/// Without the zeros at their ends: [`page`] puts them back.
fn short(pages: &[Box<Page>]) -> Vec<Vec<u8>> {
    let length = |page: &Page| page.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    pages.iter().map(|page| page[..length(page)].to_vec()).collect()
}
