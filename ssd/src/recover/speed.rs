//! How long recovery takes, reads apart: `cargo test --release -p lapis-ssd -- --ignored --nocapture a_million`.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use lapis_config::{Key, PageIndex, PoolId, SegmentId};

use super::{Chunk, Decoded, DeviceScan, merge};
use crate::{
    format::{CHUNK_PAGES, ContentsPage, ENTRIES_MAX, Entries, Nonce, Record, SegmentHeader, SegmentUse, Superblock},
    testing,
};

const RECORDS: u64 = 1 << 20;
const SEGMENTS: u32 = 1024;

/// The chunks of a segment with 1024 records of 64 KiB, of `keys` keys in all.
fn segment(superblock: &Superblock, index: u32, keys: u64) -> Vec<(PageIndex, Vec<u8>)> {
    let per_segment = RECORDS / u64::from(SEGMENTS);
    let first = u64::from(index) * per_segment;
    let used = SegmentUse {
        log: superblock.log,
        segment: SegmentId::new(0, index),
        opened: 1 + 2 * first,
        group: (index % 2) as u16,
    };
    let key = |i: u64| Key([0, 1, 2, 3].map(|j| ((i % keys) + j).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let record = |i: u64| Record {
        key: key(i),
        parent: key(i / 2),
        pool: PoolId(0),
        start: PageIndex(1000),
        pages: 16,
        bytes: 64 << 10,
        sum: i,
        sequence: 2 + 2 * i,
        class: 0,
        removed: false,
        nonce: Nonce::default(),
    };
    let shape = lapis_config::PoolShape { block_bytes: 64 << 10, ..testing::shapes()[0].clone() };
    let mut pages = vec![Entries::Pools(vec![(PoolId(0), shape, 0)])];
    let records: Vec<Record> = (first..first + per_segment).map(record).collect();
    pages.extend(records.chunks(ENTRIES_MAX).map(|records| Entries::Records(records.to_vec())));
    let header =
        SegmentHeader { used, segment_bytes: 64 << 20, boots: 1, opened_s: 2, key_id: 0, wrapped_key: [0; 64] };
    let mut chunks = vec![(PageIndex(0), header.encode().to_vec())];
    for (entries, i) in pages.into_iter().zip(0..) {
        // Chunks lie 100 pages apart.
        let place = |i: u32| PageIndex(1 + i / CHUNK_PAGES * 100 + i % CHUNK_PAGES);
        if i > 0 && i % CHUNK_PAGES == 0 {
            chunks.push((place(i), Vec::new()));
        }
        let page = ContentsPage { used, place: place(i), next: Some(place(i + 1)), sequence: 1, boots: 1, entries };
        chunks.last_mut().expect("the first").1.extend_from_slice(&*page.encode());
    }
    chunks
}

/// Nanoseconds that this thread ran: what else the machine does is not counted.
fn ran_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds")
}

fn decode(superblock: &Superblock, index: u32, chunks: Vec<(PageIndex, Vec<u8>)>) -> Decoded {
    let mut chunks = chunks.into_iter();
    let (_, first) = chunks.next().expect("a segment has a chunk");
    let decoded = Chunk::first(superblock, SegmentId::new(0, index), first);
    let mut decoded = decoded.decode();
    for (place, bytes) in chunks {
        let Decoded::Segment(so_far, next) = decoded else { panic!("in use") };
        assert_eq!(next, Some(place));
        decoded = Chunk::next(superblock, so_far, place, bytes).decode();
    }
    decoded
}

#[test]
#[ignore = "a measurement, for the release profile"]
fn a_million_records_are_recovered_in_half_a_second() {
    let superblock = Superblock { segments: SEGMENTS, ..testing::superblock() };
    for keys in [u64::MAX, RECORDS / 2] {
        for threads in [1, 2] {
            let segments: Vec<_> = (0..SEGMENTS).map(|i| (i, segment(&superblock, i, keys))).collect();
            let bytes: usize = segments.iter().flat_map(|(_, chunks)| chunks).map(|(_, bytes)| bytes.len()).sum();
            let (work, found) = (Mutex::new(segments.into_iter()), Mutex::new(DeviceScan::default()));
            let (start, decoding_ns) = (Instant::now(), AtomicU64::new(0));
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        loop {
                            let next = work.lock().expect("no panic").next();
                            let Some((index, chunks)) = next else { break };
                            match decode(&superblock, index, chunks) {
                                Decoded::Segment(segment, _) => found.lock().expect("no panic").segments.push(segment),
                                Decoded::Free(_, why) => panic!("{why:?}"),
                            }
                        }
                        decoding_ns.fetch_add(ran_ns(), Ordering::Relaxed);
                    });
                }
            });
            let decoded = start.elapsed();
            let scan = found.into_inner().expect("no panic");
            let (start, before_ns) = (Instant::now(), ran_ns());
            let recovered = merge([scan], &superblock.groups);
            let (merged, merging_ms) = (start.elapsed(), (ran_ns() - before_ns) / 1_000_000);
            let decoding_ms = decoding_ns.into_inner() / 1_000_000;
            let records: usize = recovered.groups.iter().map(|group| group.records.len()).sum();
            assert_eq!(records as u64, RECORDS.min(keys));
            println!("{RECORDS} records, {records} keys, {bytes} bytes, {threads} threads:");
            println!("decoded in {decoded:?} ({decoding_ms} ms of CPU), merged in {merged:?} ({merging_ms} ms of CPU)");
        }
    }
}
