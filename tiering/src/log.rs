//! Where records lie in the SSD log, and what its pages of contents list: one group's segments, from the one that is
//! given to the oldest one that goes. Pure: it says what is to be written where, and hears what became of it.
//!
//! Invariant: every page of a segment is written once in one use of it; records do not overlap pages of contents.
//! Invariant: what was placed and is not listed always fits the pages of contents that are left in its segment.
//! Invariant: a record counts as stored only when its page and all pages before it in the segment are complete.
//! Invariant: segments leave in the order in which they were opened.

mod list;
mod near;
mod open;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lapis_config::{Key, LineId, PageIndex, PoolId, SegmentId, SsdPlace, Time, UNIT_BYTES};

pub(crate) use self::near::Near;
use self::open::Open;
use crate::face::{Listed, Record};

/// Records or pools in one page of contents.
pub const LISTED_MAX: usize = 31;
/// Pages of contents that lie together.
pub const CHUNK_PAGES: u32 = 16;
/// A segment's header and first chunk.
pub const HEAD_PAGES: u32 = 1 + CHUNK_PAGES;
/// Low bits of a sequence: the group's number, so that groups count without asking each other.
const GROUP_BITS: u32 = 6;
/// Most records of one segment that are placed and not listed: they fit a chunk, with a page to spare.
const UNLISTED_MAX: u32 = LISTED_MAX as u32 * (CHUNK_PAGES - 2);
/// Pages ready on a device ahead of need: what may be in flight, and at most one part in so many of the log.
const AHEAD_PAGES: u32 = (256 << 20) / UNIT_BYTES as u32;
const AHEAD_PART: u32 = 32;
/// What a device that is far from the memory seems to have to do more than it has: about a millisecond of an SSD's.
const FAR_PAGES: u64 = (8 << 20) / UNIT_BYTES;
/// So far a device may fall behind the others for being far.
const FAR_BEHIND_SEGMENTS: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The group's number in the superblock.
    pub group: u16,
    pub segment_pages: u32,
    /// Sequences of this start: from the first up to, not with, the end, which moves on by `sequences_until`.
    pub sequence_first: u64,
    pub sequence_end: u64,
    /// Longest time from a record's write to its listing, us.
    pub list_after_us: u64,
    /// Flush the device before and after each page of contents.
    pub durable: bool,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    /// Write the header of a new use.
    Open {
        segment: SegmentId,
        opened: u64,
    },
    List {
        segment: SegmentId,
        opened: u64,
        place: PageIndex,
        next: Option<PageIndex>,
        sequence: u64,
        listed: Listed,
    },
    Flush {
        segment: SegmentId,
    },
}

/// What an entry of a page is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// A written record of this line.
    Record { line: LineId, record: Record },
    /// A key's records are gone. It lies on the device of the last record, in its segment or one that was opened later:
    /// so it leaves after that one.
    Removal { device: u8, pool: PoolId, key: Key, sequence: u64 },
    /// All of the pool's records on the device are gone; whoever waits for it has the number.
    Purge { device: u8, pool: PoolId, ticket: u64 },
}

/// What follows from the end of a page or a flush.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub todo: Option<Todo>,
    pub stored: Vec<Pending>,
    pub failed: Vec<Pending>,
}

#[derive(Debug)]
struct Device {
    writable: bool,
    /// Something is to be written and no segment is open: a start alone costs no segment its blocks.
    wanted: bool,
    open: Option<SegmentId>,
    /// Opened ahead of need.
    next: Option<SegmentId>,
    spare: Vec<SegmentId>,
    /// Spare ones whose headers could not be written: tried again when the device is well again, or nothing else is left.
    suspect: Vec<SegmentId>,
    /// Pages of records being written.
    flight_pages: u64,
    /// Pages of records that were placed since the start.
    placed_pages: u64,
}

#[derive(Debug)]
pub(crate) struct Log {
    options: LogOptions,
    count: u64,
    devices: BTreeMap<u8, Device>,
    /// Segments that are not sealed yet.
    uses: BTreeMap<SegmentId, Open>,
    /// By the sequence at which they were opened.
    sealed: BTreeMap<u64, SegmentId>,
    /// Every segment of the group with the lines that were placed in it.
    lines: BTreeMap<SegmentId, Vec<LineId>>,
    /// Pools that had a record in this start: listed first in every segment.
    pools: BTreeSet<PoolId>,
    /// Records of a pool below the sequence are gone.
    purged: BTreeMap<PoolId, u64>,
    /// Removals and purges that no segment has taken yet.
    waiting: VecDeque<Pending>,
    /// Pages written beside records: headers and contents.
    overhead_pages: u64,
}

impl Log {
    pub fn new(options: LogOptions) -> Self {
        assert!(options.group < 1 << GROUP_BITS && options.segment_pages > 2 * HEAD_PAGES, "checked at the start");
        Self {
            options,
            count: (options.sequence_first >> GROUP_BITS) + 1,
            devices: BTreeMap::new(),
            uses: BTreeMap::new(),
            sealed: BTreeMap::new(),
            lines: BTreeMap::new(),
            pools: BTreeSet::new(),
            purged: BTreeMap::new(),
            waiting: VecDeque::new(),
            overhead_pages: 0,
        }
    }

    pub fn add_device(&mut self, device: u8) {
        self.devices.entry(device).or_insert(Device {
            writable: true,
            wanted: false,
            open: None,
            next: None,
            spare: Vec::new(),
            suspect: Vec::new(),
            flight_pages: 0,
            placed_pages: 0,
        });
    }

    pub fn has_device(&self, device: u8) -> bool {
        self.devices.contains_key(&device)
    }

    pub fn set_writable(&mut self, device: u8, writable: bool) {
        if let Some(device) = self.devices.get_mut(&device) {
            device.writable = writable;
        }
        if writable {
            self.try_suspects(device);
        }
    }

    /// Segments whose headers could not be written are tried once more, after all others: it may have been the device.
    pub fn try_suspects(&mut self, device: u8) {
        if let Some(device) = self.devices.get_mut(&device) {
            device.spare.splice(..0, device.suspect.drain(..));
        }
    }

    pub fn sequences_until(&mut self, end: u64) {
        self.options.sequence_end = self.options.sequence_end.max(end);
    }

    pub fn sequence(&self) -> u64 {
        self.count << GROUP_BITS | u64::from(self.options.group)
    }

    fn next_sequence(&mut self) -> u64 {
        let sequence = self.sequence();
        self.count += 1;
        sequence
    }

    fn has_sequences(&self) -> bool {
        self.sequence() < self.options.sequence_end
    }

    /// Most pages that one record may have: a segment holds it beside its head and one more chunk.
    pub fn record_pages_max(&self) -> u32 {
        self.options.segment_pages - HEAD_PAGES - CHUNK_PAGES
    }

    pub fn overhead_bytes(&self) -> u64 {
        self.overhead_pages * UNIT_BYTES
    }

    pub fn segments(&self) -> usize {
        self.lines.len()
    }

    pub fn is_writable(&self) -> bool {
        self.has_sequences() && self.devices.values().any(|device| device.writable)
    }

    // ---- Segments ----

    /// A segment of the group that a former start wrote; its lines are told next.
    pub fn found(&mut self, segment: SegmentId, opened: u64) {
        let other = self.sealed.insert(opened, segment);
        let former = self.lines.insert(segment, Vec::new());
        assert!(other.is_none() && former.is_none(), "a segment is found once, and has a use of its own");
    }

    /// A line of a segment that was found.
    pub fn found_line(&mut self, segment: SegmentId, line: LineId) {
        self.lines.get_mut(&segment).expect("a segment that was found").push(line);
    }

    pub fn knows(&self, segment: SegmentId) -> bool {
        self.lines.contains_key(&segment)
    }

    /// Whether a place is to be written by a new use of its segment, or may be at any time.
    pub fn is_given_anew(&self, at: SsdPlace, pages: u32) -> bool {
        let segment = at.segment();
        let of = self.devices.get(&segment.device());
        let is_spare = of.is_some_and(|of| of.spare.contains(&segment) || of.suspect.contains(&segment));
        is_spare || self.uses.get(&segment).is_some_and(|open| open.cursor < at.page().0 + pages)
    }

    /// Every segment with each of its lines.
    pub fn lines_by_segment(&self) -> impl Iterator<Item = (SegmentId, LineId)> + '_ {
        self.lines.iter().flat_map(|(&segment, lines)| lines.iter().map(move |&line| (segment, line)))
    }

    /// All lines that may have a record, those of one device or of all.
    pub fn all_lines(&self, device: Option<u8>) -> Vec<LineId> {
        let wanted = |segment: &SegmentId| device.is_none_or(|device| segment.device() == device);
        self.lines.iter().filter(|(segment, _)| wanted(segment)).flat_map(|(_, lines)| lines.iter().copied()).collect()
    }

    /// A segment that nothing uses is the group's to write.
    pub fn give(&mut self, segment: SegmentId) {
        if let Some(device) = self.devices.get_mut(&segment.device()) {
            device.spare.push(segment);
        }
    }

    /// A segment that was given and not used yet is not the group's any more.
    pub fn take_spare(&mut self, device: u8) -> Option<SegmentId> {
        self.devices.get_mut(&device)?.spare.pop()
    }

    /// A device that needs one more segment soon.
    pub fn wants(&self) -> Option<u8> {
        let short = |device: &Device| {
            // A start alone costs no segment its blocks.
            let used = device.open.is_some() || device.wanted;
            let ready = device.spare.len() + usize::from(device.next.is_some());
            let open = device.open.map_or(0, |open| self.options.segment_pages - self.uses[&open].cursor);
            let pages = ready as u32 * self.options.segment_pages + open;
            let short = ready == 0 && open <= self.options.segment_pages / 2 || pages < self.ahead_pages();
            device.writable && used && short
        };
        self.devices.iter().find(|(_, device)| short(device)).map(|(&number, _)| number)
    }

    /// Pages that a device has ready, so that writes in flight never wait for a segment; a small part of a small log.
    fn ahead_pages(&self) -> u32 {
        let all = self.options.segment_pages.saturating_mul(self.lines.len() as u32);
        AHEAD_PAGES.min(all / AHEAD_PART)
    }

    /// The segment that goes first: the oldest of those that nothing is written to, on that device if one is named.
    pub fn oldest(&self, device: Option<u8>) -> Option<SegmentId> {
        self.sealed.values().copied().find(|segment| device.is_none_or(|device| segment.device() == device))
    }

    /// The segment leaves the order, its header is to be wiped; its lines.
    pub fn retire(&mut self, segment: SegmentId) -> Vec<LineId> {
        self.overhead_pages += 1;
        self.sealed.retain(|_, other| *other != segment);
        self.lines.remove(&segment).unwrap_or_default()
    }

    /// Everything on the device is gone: what was under way for its segments, by line and ticket, comes back.
    pub fn drop_device(&mut self, device: u8) -> Vec<Pending> {
        let mut lost = Vec::new();
        let gone: Vec<SegmentId> = self.uses.keys().copied().filter(|segment| segment.device() == device).collect();
        for segment in gone {
            let mut open = self.uses.remove(&segment).expect("listed above");
            lost.extend(open.unconfirmed());
        }
        self.sealed.retain(|_, segment| segment.device() != device);
        self.lines.retain(|segment, _| segment.device() != device);
        self.devices.remove(&device);
        let of_device = |pending: &Pending| match pending {
            Pending::Removal { device: of, .. } | Pending::Purge { device: of, .. } => *of == device,
            Pending::Record { .. } => false,
        };
        let (gone, waiting) = std::mem::take(&mut self.waiting).into_iter().partition::<VecDeque<_>, _>(of_device);
        self.waiting = waiting;
        lost.extend(gone);
        lost
    }

    // ---- Records ----

    /// A place for a record of so many pages; `None` if no segment is ready for it now. `is_far`: from the record's memory.
    pub fn place(&mut self, pool: PoolId, line: LineId, pages: u32, is_far: impl Fn(u8) -> bool) -> Option<SsdPlace> {
        if pages > self.record_pages_max() || !self.has_sequences() {
            return None;
        }
        for number in self.order(is_far) {
            let Some(segment) = self.open_on(number, pages) else { continue };
            let open = self.uses.get_mut(&segment).expect("an open segment is in use");
            let page = PageIndex(open.cursor);
            open.cursor += pages;
            open.unlisted += 1;
            open.want_pool(pool);
            self.pools.insert(pool);
            let device = self.devices.get_mut(&number).expect("a known device");
            device.flight_pages += u64::from(pages);
            device.placed_pages += u64::from(pages);
            self.lines.get_mut(&segment).expect("made when it was opened").push(line);
            return Some(SsdPlace::new(segment, page));
        }
        None
    }

    /// Devices that can be written, the one with least to do first. A far one counts as if it had more to do, unless it has
    /// been given so much less than the near ones that its room would be of no use.
    fn order(&self, is_far: impl Fn(u8) -> bool) -> Vec<u8> {
        let writable = || self.devices.iter().filter(|(_, device)| device.writable);
        let near = writable().filter(|(number, _)| !is_far(**number));
        let placed_near = near.map(|(_, device)| device.placed_pages).max().unwrap_or(0);
        let behind = FAR_BEHIND_SEGMENTS * u64::from(self.options.segment_pages);
        let rank = |number: u8, device: &Device| {
            let (is_far, is_behind) = (is_far(number), device.placed_pages + behind < placed_near);
            let burden = device.flight_pages + if is_far && !is_behind { FAR_PAGES } else { 0 };
            // Of those with as much to do, one that must catch up comes first.
            (burden, !(is_far && is_behind), number)
        };
        let mut order: Vec<_> = writable().map(|(&number, device)| rank(number, device)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, _, number)| number).collect()
    }

    /// The open segment of a device if it has room for so many pages; what is full is closed.
    fn open_on(&mut self, number: u8, pages: u32) -> Option<SegmentId> {
        let most = self.options.segment_pages;
        for _ in 0..2 {
            let device = self.devices.get_mut(&number)?;
            let segment = device.open.or_else(|| device.next.take());
            device.wanted = segment.is_none();
            let segment = segment?;
            device.open = Some(segment);
            let open = self.uses.get_mut(&segment).expect("an open segment is in use");
            if !open.ready {
                return None;
            }
            if open.fits(pages, most) {
                return (open.unlisted < UNLISTED_MAX).then_some(segment);
            }
            open.full = true;
            device.open = None;
            self.seal(segment);
        }
        None
    }

    /// The record was written: it is listed next. False if its segment is gone.
    pub fn written(&mut self, now: Time, at: SsdPlace, line: LineId, record: Record) -> bool {
        self.landed(at, record.pages);
        let Some(open) = self.uses.get_mut(&at.segment()) else { return false };
        if open.is_broken() {
            open.unlisted -= 1;
            self.seal(at.segment());
            return false;
        }
        open.push(now, Pending::Record { line, record });
        true
    }

    /// The record was not written, or is not wanted any more and was not listed.
    pub fn abandoned(&mut self, at: SsdPlace, pages: u32) {
        self.landed(at, pages);
        if let Some(open) = self.uses.get_mut(&at.segment()) {
            open.unlisted -= 1;
        }
        self.seal(at.segment());
    }

    /// A written record that is not listed yet is not wanted any more. False if a page with it is being written.
    pub fn forget_pending(&mut self, at: SsdPlace) -> bool {
        let Some(open) = self.uses.get_mut(&at.segment()) else { return true };
        let found = open.forget(at.page());
        self.seal(at.segment());
        found
    }

    fn landed(&mut self, at: SsdPlace, pages: u32) {
        if let Some(device) = self.devices.get_mut(&at.segment().device()) {
            device.flight_pages -= u64::from(pages);
        }
    }

    /// The key's records up to now are gone; what is listed later is not. `device`: of the last record.
    pub fn remove(&mut self, device: u8, pool: PoolId, key: Key) {
        let sequence = self.next_sequence();
        self.waiting.push_back(Pending::Removal { device, pool, key, sequence });
    }

    /// All of the pool's records up to now are gone. Returns on how many devices that is to be listed.
    pub fn purge(&mut self, pool: PoolId, ticket: u64) -> u64 {
        let sequence = self.next_sequence();
        self.purged.insert(pool, sequence);
        self.waiting.extend(self.devices.keys().map(|&device| Pending::Purge { device, pool, ticket }));
        self.devices.len() as u64
    }

    /// The same once more, where it could not be listed.
    pub fn again(&mut self, pending: Pending) {
        self.waiting.push_back(pending);
    }

    pub fn pool_purged(&mut self, pool: PoolId, before: u64) {
        let floor = self.purged.entry(pool).or_insert(before);
        *floor = before.max(*floor);
    }
}
