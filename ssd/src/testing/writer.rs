//! The writer that recovery is tested against: lays segments out as a correct core does, through a real volume, and
//! remembers what the log must give back.

use std::collections::{BTreeMap, VecDeque};

use lapis_arena::{Mapping, Sum, sum};
use lapis_config::{Key, OpId, PageIndex, PoolId, PoolShape, SegmentId, SsdPlace, Time, sizes};

use super::{Sheet, open, shapes};
use crate::{
    device::Memory,
    format::{CHUNK_PAGES, CONTENTS_START, ENTRIES_MAX, Nonce, PAGE_BYTES, Record, SegmentUse},
    volume::{Command, Listing, Report, Volume, WallClock, open::SEQUENCES_RESERVED},
};

/// Something that happened to the log, for what it must give back.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    Opened(SegmentUse),
    /// A page of records is whole; which pool each is of, by number in `shapes`.
    Listed(SegmentUse, Vec<(usize, Record)>),
    /// By number of the group in the superblock and of the pool in `shapes`.
    Purged(SegmentUse, usize, u64),
    GroupPurged(u16, u64),
    Wiped(SegmentId),
}

/// The key of a block in the model: group, pool, key.
pub(crate) type Name = (u16, usize, Key);

pub(crate) struct Writer {
    pub volume: Volume<Sheet>,
    /// With how many events of the sheet there were once it was true.
    pub facts: Vec<(usize, Fact)>,
    pub sequence: u64,
    /// Events of the sheet until it was formatted.
    pub formatted: usize,
    open: BTreeMap<u16, Open>,
    in_use: VecDeque<SegmentId>,
    free: VecDeque<SegmentId>,
    purged: BTreeMap<(u16, usize), u64>,
    ops: u64,
}

/// The open segment of a group.
struct Open {
    used: SegmentUse,
    /// Where the next record or chunk would go.
    cursor: u32,
    /// The next page of contents, and the end of its chunk; `None` once the segment has no room for more.
    contents: Option<(u32, u32)>,
    /// Pools listed so far, by their numbers in `shapes`: their place is their number in this segment, turned around so
    /// that it differs from segment to segment.
    pools: Vec<usize>,
    pending: Vec<(usize, Record)>,
}

impl Writer {
    /// Of a blank device, which it formats.
    pub fn new(mut sheet: Sheet) -> Self {
        let superblock = open(&mut sheet).expect("a blank device");
        let free = (0..superblock.segments).map(|i| SegmentId::new(superblock.device, i)).collect();
        let sequence = superblock.sequence_reserved - SEQUENCES_RESERVED;
        let formatted = sheet.events.len();
        let volume = Volume::new(sheet, superblock, WallClock::default()).expect("memory");
        let (open, purged) = (BTreeMap::new(), BTreeMap::new());
        Self { volume, facts: Vec::new(), formatted, sequence, open, in_use: VecDeque::new(), free, purged, ops: 0 }
    }

    /// Writes a block; it is listed by a later call of `list`.
    pub fn put(&mut self, group: u16, pool: usize, key: Key, parent: Key, bytes: u32) {
        let shape = &shapes()[pool];
        let pages = (sizes::slot_bytes(shape, bytes.into()) / PAGE_BYTES as u64) as u32;
        if self.segment(group).is_none_or(|open| open.cursor + pages > open.pages()) {
            self.seal(group);
        }
        let sequence = self.next_sequence();
        let (memory, sum) = block(shape, &key, bytes, sequence);
        let open = self.open_segment(group);
        let start = PageIndex(open.cursor);
        open.cursor += pages;
        let nonce = Nonce::default();
        let record = Record {
            key,
            parent,
            pool: PoolId(0),
            start,
            pages,
            bytes,
            sum,
            sequence,
            class: pool as u8,
            removed: false,
            nonce,
        };
        open.pending.push((pool, record));
        let at = SsdPlace::new(open.used.segment, start);
        self.run(|op| Command::Write { op, at, memory });
    }

    pub fn remove(&mut self, group: u16, pool: usize, key: Key) {
        let sequence = self.next_sequence();
        let record = Record {
            key,
            parent: Key::default(),
            pool: PoolId(0),
            start: PageIndex(0),
            pages: 0,
            bytes: 0,
            sum: 0,
            sequence,
            class: 0,
            removed: true,
            nonce: Nonce::default(),
        };
        self.open_segment(group).pending.push((pool, record));
    }

    /// Leaves pages unused, so that segments fill.
    pub fn skip(&mut self, group: u16, pages: u32) {
        let open = self.open_segment(group);
        open.cursor = (open.cursor + pages).min(open.pages());
    }

    /// Lists all that was put and is not listed, while the segment has room to list it.
    pub fn list(&mut self, group: u16) {
        let Some(open) = self.open.get_mut(&group) else { return };
        let pending = std::mem::take(&mut open.pending);
        let mut unlisted: Vec<usize> =
            pending.iter().map(|(pool, _)| *pool).filter(|p| !open.pools.contains(p)).collect();
        unlisted.sort_unstable();
        unlisted.dedup();
        if !unlisted.is_empty() && !self.list_pools(group, &unlisted) {
            return;
        }
        for records in pending.chunks(ENTRIES_MAX) {
            let open = self.open_segment(group);
            let (used, numbered) = (open.used, records.iter().map(|(pool, r)| (*pool, open.numbered(*pool, r))));
            let numbered: Vec<(usize, Record)> = numbered.collect();
            let listing = Listing::Records(numbered.iter().map(|(_, record)| *record).collect());
            if !self.list_page(group, listing) {
                return;
            }
            self.fact(Fact::Listed(used, numbered));
        }
    }

    pub fn purge(&mut self, group: u16, pool: usize) {
        self.list(group);
        let before = self.next_sequence();
        self.purged.insert((group, pool), before);
        // Said only if there was room to say it.
        if !self.list_pools(group, &[pool]) {
            self.seal(group);
            self.list_pools(group, &[pool]);
        }
    }

    pub fn purge_group(&mut self, group: u16) {
        let purged_before = self.next_sequence();
        // It is not done before both superblocks say so, but a start believes the first.
        let first_written = self.volume.device().events.len() + 1;
        self.run(|op| Command::Purge { op, group, purged_before });
        self.facts.push((first_written, Fact::GroupPurged(group, purged_before)));
    }

    /// Gives up the segment that was opened first, unless it is the only one or open.
    pub fn retire(&mut self) {
        let Some(oldest) = self.in_use.front().copied() else { return };
        if self.open.values().any(|open| open.used.segment == oldest) {
            return;
        }
        self.in_use.pop_front();
        self.free.push_back(oldest);
        self.volume.submit(Time(0), Command::Discard { segment: oldest, durable: false });
        self.drain();
        self.fact(Fact::Wiped(oldest));
    }

    /// Killed and started again: what was not listed is forgotten, and what was open stays as it is.
    pub fn restart(&mut self) {
        let mut sheet = std::mem::replace(self.volume.device_mut(), Sheet::new(0));
        let superblock = open(&mut sheet).expect("ours");
        self.sequence = superblock.sequence_reserved - SEQUENCES_RESERVED;
        self.volume = Volume::new(sheet, superblock, WallClock::default()).expect("memory");
        self.open.clear();
    }

    /// No more goes to the group's segment.
    pub fn seal(&mut self, group: u16) {
        self.list(group);
        self.open.remove(&group);
    }

    /// What the log must give back after so many events: written as plainly as possible.
    pub fn expected(&self, events: usize) -> BTreeMap<Name, (SsdPlace, Record)> {
        let facts = || self.facts.iter().filter(move |(at, _)| *at <= events).map(|(_, fact)| fact);
        let mut live: BTreeMap<SegmentId, SegmentUse> = BTreeMap::new();
        for fact in facts() {
            match fact {
                Fact::Opened(used) => drop(live.insert(used.segment, *used)),
                Fact::Wiped(segment) => drop(live.remove(segment)),
                _ => {}
            }
        }
        let lives = |used: &SegmentUse| live.get(&used.segment) == Some(used);
        let mut winners: BTreeMap<Name, (SsdPlace, Record)> = BTreeMap::new();
        for fact in facts() {
            let Fact::Listed(used, records) = fact else { continue };
            for (pool, record) in records.iter().filter(|_| lives(used)) {
                let place = SsdPlace::new(used.segment, record.start);
                let winner = winners.entry((used.group, *pool, record.key)).or_insert((place, *record));
                if winner.1.sequence < record.sequence {
                    *winner = (place, *record);
                }
            }
        }
        for fact in facts() {
            match fact {
                Fact::Purged(used, pool, before) if lives(used) => {
                    winners.retain(|(group, p, _), (_, r)| (*group, p) != (used.group, pool) || r.sequence >= *before)
                }
                Fact::GroupPurged(group, before) => {
                    winners.retain(|(g, _, _), (_, record)| g != group || record.sequence >= *before);
                }
                _ => {}
            }
        }
        winners.retain(|_, (_, record)| !record.removed);
        winners
    }

    /// Everything that was ever listed: what may be found, however broken the log.
    pub fn ever_listed(&self) -> BTreeMap<(SsdPlace, u64), (Name, Record)> {
        let mut ever = BTreeMap::new();
        for (_, fact) in &self.facts {
            let Fact::Listed(used, records) = fact else { continue };
            for (pool, record) in records {
                let place = SsdPlace::new(used.segment, record.start);
                ever.insert((place, record.sequence), ((used.group, *pool, record.key), *record));
            }
        }
        ever
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn fact(&mut self, fact: Fact) {
        self.facts.push((self.volume.device().events.len(), fact));
    }

    fn segment(&self, group: u16) -> Option<&Open> {
        self.open.get(&group)
    }

    fn open_segment(&mut self, group: u16) -> &mut Open {
        if !self.open.contains_key(&group) {
            while self.free.is_empty() {
                // All are in use: the oldest goes, an open one sealed first.
                let oldest = self.in_use[0];
                let of = self.open.iter().find(|(_, open)| open.used.segment == oldest).map(|(group, _)| *group);
                of.into_iter().for_each(|group| self.seal(group));
                self.retire();
            }
            let segment = self.free.pop_front().expect("as seen above");
            let log = self.volume.superblock().log;
            let used = SegmentUse { log, segment, opened: self.next_sequence(), group };
            self.run(|op| Command::Open { op, used });
            self.fact(Fact::Opened(used));
            self.in_use.push_back(segment);
            let first = CONTENTS_START.0;
            let (contents, cursor) = (Some((first, first + CHUNK_PAGES)), first + CHUNK_PAGES);
            self.open.insert(group, Open { used, cursor, contents, pools: Vec::new(), pending: Vec::new() });
        }
        self.open.get_mut(&group).expect("open, or just opened")
    }

    fn list_pools(&mut self, group: u16, pools: &[usize]) -> bool {
        let purged = self.purged.clone();
        let before = |pool: usize| purged.get(&(group, pool)).copied().unwrap_or(0);
        let open = self.open_segment(group);
        let used = open.used;
        pools.iter().filter(|pool| !open.pools.contains(pool)).copied().collect::<Vec<_>>().into_iter().for_each(|p| {
            open.pools.push(p);
        });
        let entry = |pool: &usize| (open.number(*pool), shapes()[*pool].clone(), before(*pool));
        let listing = Listing::Pools(pools.iter().map(entry).collect());
        let listed = self.list_page(group, listing);
        if listed {
            pools.iter().for_each(|pool| self.fact(Fact::Purged(used, *pool, before(*pool))));
        }
        listed
    }

    /// False if the segment has no room for it.
    fn list_page(&mut self, group: u16, listing: Listing) -> bool {
        let sequence = self.next_sequence();
        let open = self.open_segment(group);
        let Some((place, end)) = open.contents else { return false };
        open.contents = if place + 1 < end {
            Some((place + 1, end))
        } else if open.cursor + CHUNK_PAGES <= open.pages() {
            let first = open.cursor;
            open.cursor += CHUNK_PAGES;
            Some((first, first + CHUNK_PAGES))
        } else {
            None
        };
        let (used, place) = (open.used, PageIndex(place));
        let next = open.contents.map(|(next, _)| PageIndex(next));
        self.run(|op| Command::List { op, used, place, next, sequence, listing });
        true
    }

    fn run(&mut self, command: impl FnOnce(OpId) -> Command) {
        self.ops += 1;
        self.volume.submit(Time(self.ops), command(OpId(self.ops)));
        let reports = self.drain();
        assert!(reports.len() == 1 && reports[0].op == OpId(self.ops) && reports[0].result.is_ok());
    }

    fn drain(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        self.volume.kick().expect("kicked");
        while self.volume.in_flight() + self.volume.waiting() > 0 {
            self.volume.poll(Time(self.ops), &mut reports).expect("polled");
        }
        reports
    }
}

impl Open {
    fn pages(&self) -> u32 {
        (64 << 20) / PAGE_BYTES as u32
    }

    fn number(&self, pool: usize) -> PoolId {
        let place = self.pools.iter().position(|p| *p == pool).expect("listed first");
        PoolId((place as u64 + self.used.opened) as u16 % 1000)
    }

    fn numbered(&self, pool: usize, record: &Record) -> Record {
        Record { pool: self.number(pool), ..*record }
    }
}

/// A slot with a block of `bytes` bytes, and the block's sum.
fn block(shape: &PoolShape, key: &Key, bytes: u32, fill: u64) -> (Memory, u64) {
    let payload: Vec<u8> = (0..u64::from(bytes)).map(|i| (i * 31 + fill * 7) as u8).collect();
    let slot_bytes = sizes::slot_bytes(shape, bytes.into());
    let mapping = Mapping::anonymous(slot_bytes).expect("memory");
    mapping.copy_in(0, &payload);
    let seed = sum::pool_seed(shape);
    let sum = if shape.pieces == 1 {
        sum::of_bytes(seed, key, &payload)
    } else {
        let piece_bytes = payload.len() / usize::from(shape.pieces);
        let piece = |(part, index): (&[u8], u16)| {
            let mut sum = Sum::piece(seed, key, bytes.into(), index, part.len() as u64);
            sum.update(part);
            sum.finish()
        };
        let sums: Vec<u64> = payload.chunks(piece_bytes).zip(0..).map(piece).collect();
        let tail: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        mapping.copy_in(sizes::tail_offset(bytes.into()) as usize, &tail);
        sum::combine(seed, key, bytes.into(), &sums)
    };
    (Memory::new(&mapping, 0, slot_bytes as usize), sum)
}
