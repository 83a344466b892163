use lapis_config::Key;

use super::*;
use crate::testing::{Sheet, shapes, writer::Writer};

const BYTES: u64 = 257 << 20;
const SEGMENT_START: u64 = 1 << 20;

/// Blocks of all pools, and a removal, in the first segment.
fn log() -> Sheet {
    let mut writer = Writer::new(Sheet::new(BYTES));
    for i in 0..6 {
        let shape = &shapes()[i % 3];
        let bytes = (shape.block_bytes as u32).min(20_000);
        writer.put(1, i % 3, Key([i as u64; 4]), Key::default(), bytes);
    }
    writer.remove(1, 0, Key([0; 4]));
    writer.list(1);
    writer.volume.device().clone()
}

fn checked(sheet: &Sheet) -> Checked {
    let read = |offset: u64, out: &mut [u8]| {
        sheet.read(offset, out);
        Ok(())
    };
    check(BYTES, read, true)
}

fn flip(sheet: &mut Sheet, page: u64, byte: usize) {
    sheet.pages.get_mut(&(SEGMENT_START + page * PAGE)).expect("written")[byte] ^= 1;
}

#[test]
fn a_whole_log_is_whole_and_its_summary_says_what_is_in_it() {
    let checked = checked(&log());
    assert!(checked.is_whole(), "{checked}");
    let segment = &checked.segments[0];
    assert_eq!((segment.records, segment.removals, segment.payloads, segment.pools), (6, 1, 6, 3));
    assert_eq!((segment.pages, segment.pages_blank, checked.segments_blank), (2, 14, 3));
    let log = "03".repeat(16);
    let (host, instance) = ("01".repeat(16), "02".repeat(16));
    assert_eq!(
        checked.to_string(),
        format!(
            "superblock 0: whole, write 2, in force\nsuperblock 1: whole, write 1\n\
            device 0 of 1, log {log}, 1 starts\nhost {host}, installation {instance}\n\
            4 segments of 67108864 bytes: 1 in use, 3 blank, 0 of an earlier log, 0 broken\n\
            6 records of 64576 bytes, 1 removals, in 2 whole pages of contents\n6 payloads have their sums\n"
        )
    );
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_reason() {
    let mut sheet = log();
    sheet.pages.get_mut(&0).expect("written")[700] ^= 1;
    // The first record is a plain block, the second has four pieces of 2 KiB, the third is an object.
    flip(&mut sheet, 17, 5);
    flip(&mut sheet, 18, 2048);
    let told = checked(&sheet).to_string();
    for line in [
        "superblock 0: Superblock: expected checksum",
        "superblock 1: whole, write 1, in force",
        "segment 0, page 17: payload: expected sum",
        "segment 0, page 18: payload: piece 1: its sum differs",
        "4 payloads have their sums",
    ] {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    let mut sheet = log();
    flip(&mut sheet, 20, 0);
    let told = checked(&sheet).to_string();
    assert!(told.contains("page 18: payload: the payload is whole, the sum kept of piece 0 is not"), "{told}");
}

#[test]
fn a_broken_page_of_pools_leaves_records_without_a_pool() {
    let mut sheet = log();
    flip(&mut sheet, 1, 300);
    let checked = checked(&sheet);
    let segment = &checked.segments[0];
    assert_eq!((segment.records, segment.records_without_pool, segment.pages_bad[0].page), (0, 7, 1));
    assert!(
        !checked.is_whole() && checked.to_string().contains("segment 0, page 1: contents: Contents: expected checksum")
    );
    let mut sheet = log();
    flip(&mut sheet, 0, 300);
    let told = super::tests::checked(&sheet).to_string();
    assert!(told.contains("segment 0: SegmentHeader: expected checksum"), "{told}");
}

#[test]
fn what_cannot_be_read_is_said_and_the_rest_is_checked() {
    let sheet = log();
    let read = |offset: u64, out: &mut [u8]| {
        if offset == SEGMENT_START + 17 * PAGE || offset == SEGMENT_START + (64 << 20) {
            return Err(io::Error::from_raw_os_error(5));
        }
        sheet.read(offset, out);
        Ok(())
    };
    let checked = check(BYTES, read, true);
    assert_eq!((checked.segments[0].payloads, checked.segments[0].payloads_bad[0].page), (5, 17));
    assert_eq!((checked.segments[1].why.as_deref(), checked.segments_blank), (Some("unreadable"), 2));
    let nothing = check(4096, |_, _: &mut [u8]| Ok(()), true);
    assert!(nothing.device.is_none() && !nothing.is_whole());
    assert!(nothing.to_string().starts_with("superblock 0: blank\nsuperblock 1: the device has 4096 bytes\n"));
}

#[test]
fn records_that_lie_on_each_other_are_found() {
    let mut sheet = log();
    let superblock = crate::testing::open(&mut sheet).expect("ours");
    let read = |offset: u64, out: &mut [u8]| {
        sheet.read(offset, out);
        Ok(())
    };
    let (mut segment, chunks) =
        read_segment(&mut { read }, &superblock, SegmentId::new(0, 0)).expect("the first is in use");
    assert_eq!(overlaps(&segment, &chunks), []);
    segment.records[1].start = PageIndex(16);
    let found = overlaps(&segment, &chunks);
    assert_eq!(found.iter().map(|bad| bad.page).collect::<Vec<_>>(), [16, 17]);
    assert_eq!(found[0].why, "record on contents that ends at page 17");
}
