//! From what the segments of all devices list to the blocks that a log holds: of several records of a key the one with
//! the highest sequence, unless it says that the key was removed. Pure.
//!
//! A million records are sorted by a hash of shape and key (16 bytes each, in one go), not put into a map: only records
//! whose hashes are equal are looked at again. They stay where the scan put them: another hundred bytes each, in memory
//! that nothing used before, took longer than all the rest.

use std::collections::HashMap;

use lapis_config::{
    Key, PoolShape, SegmentId, SsdPlace,
    planted::{self, Bug},
};

use super::{
    decode::{Listed, ScannedSegment},
    scan::DeviceScan,
};
use crate::format::GroupRecord;

/// What the log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// By number, as in the superblock.
    pub groups: Vec<RecoveredGroup>,
    /// Of any page, record or opening seen, whether or not it counts: later ones are used from now on.
    pub sequence_highest: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    pub shapes: Vec<RecoveredShape>,
    /// Segments in use, in the order in which they were opened.
    pub segments: Vec<RecoveredSegment>,
    pub records: RecoveredRecords,
}

/// Records that count, in the order of their sequences.
#[derive(Clone, Debug, Default)]
pub struct RecoveredRecords {
    segments: Vec<MergedSegment>,
    order: Vec<(u64, At)>,
}

/// What one segment lists, whether or not it counts.
#[derive(Clone, Debug)]
struct MergedSegment {
    segment: SegmentId,
    /// Of the segment's pools, which of the group's shapes they are.
    pools: Vec<u32>,
    records: Vec<Listed>,
    /// Records of it in the order.
    left: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredShape {
    pub shape: PoolShape,
    /// To be listed again wherever the pool is.
    pub purged_before: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredSegment {
    pub segment: SegmentId,
    pub opened: u64,
    pub opened_s: u64,
    /// Records in it that count.
    pub records: u32,
}

/// A block on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredRecord {
    pub key: Key,
    /// Zeros for a root.
    pub parent: Key,
    pub sum: u64,
    pub sequence: u64,
    pub place: SsdPlace,
    pub pages: u32,
    pub bytes: u32,
    /// Index into the group's shapes.
    pub pool: u32,
    pub class: u8,
}

impl RecoveredRecords {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = RecoveredRecord> + ExactSizeIterator {
        self.order.iter().map(|(_, at)| self.record(*at))
    }

    /// Takes the latest records, as many as `count` if there are, the very last first. Segments of which all was taken
    /// give their memory back.
    pub fn take_last(&mut self, count: usize, mut take: impl FnMut(RecoveredRecord)) {
        for _ in 0..count {
            let Some((_, at)) = self.order.pop() else { return };
            take(self.record(at));
            let segment = &mut self.segments[at.segment as usize];
            segment.left -= 1;
            if segment.left == 0 {
                segment.records = Vec::new();
            }
        }
    }

    fn record(&self, at: At) -> RecoveredRecord {
        let segment = &self.segments[at.segment as usize];
        let listed = segment.records[at.record as usize];
        let Listed { key, parent, sum, sequence, start, pages, bytes, class, .. } = listed;
        let pool = segment.pools[usize::from(listed.pool)];
        let place = SsdPlace::new(segment.segment, start);
        RecoveredRecord { key, parent, sum, sequence, place, pages, bytes, pool, class }
    }
}

/// What was passed over on the way to the same records does not matter.
impl PartialEq for RecoveredRecords {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for RecoveredRecords {}

/// Merges the scans of all devices of a log; `groups` as the superblocks have them.
pub fn merge(scans: impl IntoIterator<Item = DeviceScan>, groups: &[GroupRecord]) -> Recovered {
    let mut by_group: Vec<Vec<ScannedSegment>> = groups.iter().map(|_| Vec::new()).collect();
    let mut sequence_highest = 0;
    for segment in scans.into_iter().flat_map(|scan| scan.segments) {
        sequence_highest = sequence_highest.max(segment.sequence_highest);
        // A header of a group that the superblock has not is refused, so this one has a place.
        by_group[usize::from(segment.used.group)].push(segment);
    }
    let merged = by_group.into_iter().zip(groups).map(|(segments, group)| merge_group(segments, group.purged_before));
    Recovered { groups: merged.collect(), sequence_highest }
}

fn merge_group(mut segments: Vec<ScannedSegment>, purged_before: u64) -> RecoveredGroup {
    segments.sort_unstable_by_key(|segment| (segment.used.opened, segment.used.segment));
    let (shapes, pools) = shapes(&segments, purged_before);
    let (lost, mut order) = losers(&segments, &shapes, &pools);
    let mut live = vec![0; segments.len()];
    // Nearly sorted: one device's segments follow each other, those of several are interleaved.
    order.clear();
    for ((segment, live), (number, first)) in segments.iter().zip(&mut live).zip(firsts(&segments)) {
        for (record, i) in segment.records.iter().zip(0..) {
            if !lost[first + i as usize] {
                order.push((record.sequence, At { segment: number, record: i }));
                *live += 1;
            }
        }
    }
    order.sort();
    let found = segments.iter().zip(&live).map(|(segment, &records)| RecoveredSegment {
        segment: segment.used.segment,
        opened: segment.used.opened,
        opened_s: segment.opened_s,
        records,
    });
    let found = found.collect();
    let merged = segments.into_iter().zip(pools).zip(live).map(|((segment, pools), left)| MergedSegment {
        segment: segment.used.segment,
        pools,
        records: if left > 0 { segment.records } else { Vec::new() },
        left,
    });
    RecoveredGroup { shapes, segments: found, records: RecoveredRecords { segments: merged.collect(), order } }
}

/// The shapes of all segments without repetition, and for each segment which of them its pools are.
fn shapes(segments: &[ScannedSegment], purged_before: u64) -> (Vec<RecoveredShape>, Vec<Vec<u32>>) {
    let mut shapes: Vec<RecoveredShape> = Vec::new();
    let mut known: HashMap<&PoolShape, u32> = HashMap::new();
    let mut pools = Vec::with_capacity(segments.len());
    for segment in segments {
        let numbers = segment.pools.iter().map(|pool| {
            let number = *known.entry(&pool.shape).or_insert_with(|| {
                shapes.push(RecoveredShape { shape: pool.shape.clone(), purged_before });
                (shapes.len() - 1) as u32
            });
            let shape = &mut shapes[number as usize];
            shape.purged_before = shape.purged_before.max(pool.purged_before);
            number
        });
        pools.push(numbers.collect());
    }
    (shapes, pools)
}

/// Where a record was listed: index of its segment among those of the group, and its own in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct At {
    segment: u32,
    record: u32,
}

impl At {
    fn listed<'a>(&self, segments: &'a [ScannedSegment]) -> &'a Listed {
        &segments[self.segment as usize].records[self.record as usize]
    }
}

/// The number of each segment, and how many records those before it have.
fn firsts(segments: &[ScannedSegment]) -> impl Iterator<Item = (u32, usize)> {
    (0..).zip(segments.iter().scan(0, |first, segment| {
        let this = *first;
        *first += segment.records.len();
        Some(this)
    }))
}

/// For every record of all segments in order, whether it does not count: purged, removed, a removal, or followed by a
/// later one of its key. With them memory for a pair each, whose content means nothing any more.
fn losers(segments: &[ScannedSegment], shapes: &[RecoveredShape], pools: &[Vec<u32>]) -> (Vec<bool>, Vec<(u64, At)>) {
    let records: usize = segments.iter().map(|segment| segment.records.len()).sum();
    let mut lost = vec![false; records];
    let mut hashed: Vec<(u64, At)> = Vec::with_capacity(records);
    let first: Vec<usize> = firsts(segments).map(|(_, first)| first).collect();
    let index = |at: At| first[at.segment as usize] + at.record as usize;
    for (segment, number) in segments.iter().zip(0..) {
        let pools = &pools[number as usize];
        for (listed, record) in segment.records.iter().zip(0..) {
            let (at, pool) = (At { segment: number, record }, pools[usize::from(listed.pool)]);
            if listed.sequence < shapes[pool as usize].purged_before {
                // Those that it would beat are purged, too.
                lost[index(at)] = true;
            } else {
                lost[index(at)] = listed.removed;
                hashed.push((hash(&listed.key, pool), at));
            }
        }
    }
    hashed.sort_unstable_by_key(|(hash, _)| *hash);
    for equal in hashed.chunk_by_mut(|a, b| a.0 == b.0).filter(|equal| equal.len() > 1) {
        let name = |at: &At| {
            let listed = at.listed(segments);
            (pools[at.segment as usize][usize::from(listed.pool)], listed.key)
        };
        // Of one key, the latest last; of those that claim one sequence, the one that was opened last.
        equal.sort_unstable_by_key(|(_, at)| (name(at), at.listed(segments).sequence, *at));
        for pair in equal.windows(2).filter(|pair| name(&pair[0].1) == name(&pair[1].1)) {
            lost[index(pair[usize::from(planted::is(Bug::OldestWins))].1)] = true;
        }
    }
    (lost, hashed)
}

/// Spreads keys, which may be random or mostly zeros. Who crafts keys of one hash makes a sort of his own records a bit
/// longer; what counts as equal is decided on the keys.
fn hash(key: &Key, pool: u32) -> u64 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let [a, b, c, d] = key.0;
    let halves = (fold(a ^ 0x9e37_79b9_7f4a_7c15, b ^ 0xd1b5_4a32_d192_ed03), fold(c ^ 0x8cb9_2ba7_2f3d_8dd7, d ^ !0));
    fold(halves.0 ^ u64::from(pool), halves.1.rotate_left(32) ^ 0xaef1_7502_108e_f2d9)
}
