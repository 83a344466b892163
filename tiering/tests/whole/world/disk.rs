//! What would be on devices if an engine carried out the core's actions: records by place, pages of contents, headers.
//! It refuses what no correct log does, and is read back after a restart as recovery reads.

use std::collections::{BTreeMap, BTreeSet};

use lapis_config::{Key, PageIndex, PoolId, SegmentId, SsdPlace};
use lapis_tiering::{
    FoundRecord, LogOptions,
    face::{Listed, Record},
};

pub const SEGMENT_PAGES: u32 = 160;
const CHUNK: u32 = 16;

struct Page {
    opened: u64,
    next: Option<PageIndex>,
    sequence: u64,
    listed: Listed,
}

#[derive(Default)]
pub struct Disk {
    pub free: Vec<SegmentId>,
    pub devices: u8,
    /// Sequences of later starts begin here.
    pub sequence: u64,
    /// Header of each segment.
    opened: BTreeMap<SegmentId, u64>,
    /// Segments whose headers are being wiped.
    wiping: Vec<SegmentId>,
    pages: BTreeMap<(SegmentId, PageIndex), Page>,
    /// Sum of the payload that lies there.
    payloads: BTreeMap<SsdPlace, u64>,
    /// Pages of a segment that something was to be written to in this use.
    claimed: BTreeMap<SegmentId, BTreeSet<u32>>,
    sequences: BTreeSet<u64>,
}

impl Disk {
    pub fn new(devices: u8, segments: u32) -> Self {
        let free = (0..devices).flat_map(|device| (0..segments).map(move |index| SegmentId::new(device, index)));
        Self { free: free.collect(), devices, sequence: 1 << 20, ..Self::default() }
    }

    pub fn options(&mut self) -> LogOptions {
        let first = self.sequence;
        self.sequence += 1 << 20;
        LogOptions {
            group: 3,
            segment_pages: SEGMENT_PAGES,
            sequence_first: first,
            sequence_end: self.sequence,
            list_after_us: 20_000,
            durable: false,
        }
    }

    pub fn take_free(&mut self, device: u8) -> Option<SegmentId> {
        let at = self.free.iter().position(|segment| segment.device() == device)?;
        Some(self.free.remove(at))
    }

    // ---- What is to be written ----

    pub fn opening(&mut self, segment: SegmentId, opened: u64) {
        assert!(self.sequences.insert(opened), "a use has a name of its own");
        self.claimed.insert(segment, (0..=CHUNK).collect());
    }

    pub fn claim(&mut self, at: SsdPlace, pages: u32) {
        let claimed = self.claimed.get_mut(&at.segment()).expect("a segment is opened before it is written");
        for page in at.page().0..at.page().0 + pages {
            assert!(page < SEGMENT_PAGES && claimed.insert(page), "page {page} of {:?} is written twice", at.segment());
        }
        assert!(self.opened.contains_key(&at.segment()), "the header is first");
    }

    pub fn listing(
        &mut self,
        segment: SegmentId,
        opened: u64,
        place: PageIndex,
        next: Option<PageIndex>,
        sequence: u64,
    ) {
        assert_eq!(self.opened.get(&segment), Some(&opened), "the header is first");
        assert!(self.sequences.insert(sequence), "a sequence is used once");
        assert!(self.pages.get(&(segment, place)).is_none_or(|page| page.opened != opened), "a page is written once");
        if let Some(next) = next.filter(|next| next.0 != place.0 + 1) {
            for page in 0..CHUNK {
                self.claim(SsdPlace::new(segment, PageIndex(next.0 + page)), 1);
            }
        }
    }

    /// Wiped before anything else is written there; a kill may come before.
    pub fn wiping(&mut self, segment: SegmentId) {
        self.wiping.push(segment);
    }

    // ---- What was written ----

    pub fn opened(&mut self, segment: SegmentId, opened: u64) {
        // Whatever is told of the segment first is done first.
        self.wiped(segment);
        self.opened.insert(segment, opened);
    }

    fn wiped(&mut self, segment: SegmentId) {
        if self.wiping.contains(&segment) {
            self.wiping.retain(|other| *other != segment);
            self.opened.remove(&segment);
        }
    }

    /// One of the headers that are being wiped is.
    pub fn wipe_one(&mut self) {
        if let Some(&segment) = self.wiping.first() {
            self.wiped(segment);
        }
    }

    /// The power of whoever wiped them is gone: a start finds those that are left.
    pub fn wipes_lost(&mut self) {
        self.wiping.clear();
    }

    pub fn written(&mut self, at: SsdPlace, sum: u64) {
        self.payloads.insert(at, sum);
    }

    pub fn payload(&self, at: SsdPlace) -> u64 {
        self.payloads.get(&at).copied().unwrap_or(0)
    }

    pub fn listed(
        &mut self,
        segment: SegmentId,
        opened: u64,
        place: PageIndex,
        next: Option<PageIndex>,
        sequence: u64,
        listed: Listed,
    ) {
        if let Listed::Records(records) = &listed {
            for record in records.iter().filter(|record| !record.removed) {
                let sum = self.payload(SsdPlace::new(segment, record.start));
                assert_eq!(sum, record.sum, "a page lists what is on the device already");
            }
        }
        self.pages.insert((segment, place), Page { opened, next, sequence, listed });
    }

    // ---- Recovery ----

    /// Segments in use, and the last record of each key, the youngest first.
    pub fn recover(&mut self) -> (Vec<(SegmentId, u64)>, Vec<FoundRecord>) {
        let mut last: BTreeMap<(PoolId, Key), (Record, SegmentId)> = BTreeMap::new();
        let mut purged: BTreeMap<PoolId, u64> = BTreeMap::new();
        for (&segment, &opened) in &self.opened {
            let (mut chunk, mut pools) = (1, BTreeSet::new());
            loop {
                let mut next = None;
                let mut before = 0;
                for place in chunk..chunk + CHUNK {
                    let Some(page) = self.pages.get(&(segment, PageIndex(place))) else { continue };
                    if page.opened != opened {
                        continue;
                    }
                    assert!(page.sequence > before, "pages are in the order of their sequences");
                    before = page.sequence;
                    match &page.listed {
                        Listed::Pools(listed) => {
                            for &(pool, sequence) in listed {
                                pools.insert(pool);
                                let floor = purged.entry(pool).or_insert(0);
                                *floor = sequence.max(*floor);
                            }
                        }
                        Listed::Records(records) => {
                            for record in records.iter().filter(|record| pools.contains(&record.pool)) {
                                let known = last.entry((record.pool, record.key)).or_insert((*record, segment));
                                if known.0.sequence < record.sequence {
                                    *known = (*record, segment);
                                }
                            }
                        }
                    }
                    next = page.next.filter(|_| place == chunk + CHUNK - 1);
                }
                match next {
                    Some(next) => chunk = next.0,
                    None => break,
                }
            }
        }
        let mut records: Vec<(Record, SegmentId)> = last
            .into_values()
            .filter(|(record, _)| !record.removed && purged.get(&record.pool).is_none_or(|at| record.sequence >= *at))
            .collect();
        records.sort_by_key(|(record, _)| std::cmp::Reverse(record.sequence));
        let found = records.into_iter().map(|(record, segment)| FoundRecord {
            pool: record.pool,
            key: record.key,
            parent: record.parent,
            bytes: record.bytes,
            sum: record.sum,
            class: record.class,
            at: SsdPlace::new(segment, record.start),
            pages: record.pages,
        });
        (self.opened.iter().map(|(&segment, &opened)| (segment, opened)).collect(), found.collect())
    }

    /// After a restart: what is not in use is free.
    pub fn restart(&mut self, segments: u32) {
        let all = (0..self.devices).flat_map(|device| (0..segments).map(move |index| SegmentId::new(device, index)));
        self.free = all.filter(|segment| !self.opened.contains_key(segment)).collect();
    }
}
