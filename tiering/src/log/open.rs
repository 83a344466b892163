//! One use of a segment, from its opening until all that it will hold is listed.
//!
//! Invariant: `unlisted` counts what was placed and is on no page: being written, or in `records`.
//! Invariant: whatever is unlisted fits the pages of contents that are left, a page for pools included.

use std::collections::{BTreeSet, VecDeque};

use lapis_config::{
    PageIndex, PoolId, Time,
    planted::{self, Bug},
};

use super::{CHUNK_PAGES, HEAD_PAGES, LISTED_MAX, LogOptions, Pending, Todo};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// The page waits for a flush of what it lists.
    FlushBefore(Todo),
    Listing,
    FlushAfter,
    Done,
}

/// A page of contents under way.
#[derive(Debug)]
struct Flight {
    place: PageIndex,
    entries: Vec<Pending>,
    stage: Stage,
}

#[derive(Debug)]
pub(super) struct Open {
    pub opened: u64,
    /// Its header is on the device.
    pub ready: bool,
    /// Nothing more is placed in it.
    pub full: bool,
    broken: bool,
    /// First page that nothing was placed in.
    pub cursor: u32,
    pub unlisted: u32,
    /// Where the next page of contents goes, and how many are left in its chunk, that one included.
    place: u32,
    chunk_left: u32,
    pools: BTreeSet<PoolId>,
    pools_wanted: BTreeSet<PoolId>,
    purges: Vec<Pending>,
    records: VecDeque<Pending>,
    /// Since when the oldest of `records` or `purges` waits.
    since: Option<Time>,
    flights: VecDeque<Flight>,
}

impl Open {
    pub fn new(opened: u64) -> Self {
        Self {
            opened,
            ready: false,
            full: false,
            broken: false,
            cursor: HEAD_PAGES,
            unlisted: 0,
            place: 1,
            chunk_left: CHUNK_PAGES,
            pools: BTreeSet::new(),
            pools_wanted: BTreeSet::new(),
            purges: Vec::new(),
            records: VecDeque::new(),
            since: None,
            flights: VecDeque::new(),
        }
    }

    /// Room for a record, and for one more chunk after it: so there is always a page to list it in.
    pub fn fits(&self, pages: u32, segment_pages: u32) -> bool {
        self.cursor + pages + CHUNK_PAGES <= segment_pages
    }

    pub fn want_pool(&mut self, pool: PoolId) {
        if !self.pools.contains(&pool) {
            self.pools_wanted.insert(pool);
        }
    }

    pub fn lists(&self, pool: PoolId) -> bool {
        self.pools.contains(&pool)
    }

    /// Something that has no place of its own.
    pub fn add(&mut self, now: Time, pending: Pending) {
        match &pending {
            Pending::Purge { .. } => {
                self.since.get_or_insert(now);
                self.purges.push(pending);
            }
            Pending::Removal { pool, .. } => {
                self.want_pool(*pool);
                self.unlisted += 1;
                self.push(now, pending);
            }
            Pending::Record { .. } => unreachable!("records have a place"),
        }
    }

    /// Of what was counted as unlisted before.
    pub fn push(&mut self, now: Time, pending: Pending) {
        self.since.get_or_insert(now);
        self.records.push_back(pending);
    }

    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The record at that page is not to be listed. False if it is on a page already.
    pub fn forget(&mut self, page: PageIndex) -> bool {
        let is_it = |pending: &Pending| matches!(pending, Pending::Record { record, .. } if record.start == page);
        let Some(at) = self.records.iter().position(is_it) else { return false };
        self.records.remove(at);
        self.unlisted -= 1;
        self.idle();
        true
    }

    fn idle(&mut self) {
        if self.records.is_empty() && self.purges.is_empty() {
            self.since = None;
        }
    }

    // ---- Pages ----

    pub fn pools_due(&self) -> bool {
        !self.purges.is_empty() || !self.pools_wanted.is_empty() && !planted::is(Bug::PoolNotListed)
    }

    /// Whether a page is to be written now. One that somebody waits for is, though it is not full, when no more is on its
    /// way to it: so a device that is never idle has full pages.
    pub fn due(&self, now: Time, urgent: bool, options: &LogOptions) -> bool {
        let Some(since) = self.since.filter(|_| self.may_list(options)) else { return false };
        let all = self.unlisted as usize == self.records.len();
        self.records.len() >= LISTED_MAX || now.0 >= since.0 + options.list_after_us || (urgent || self.full) && all
    }

    pub fn due_at(&self, options: &LogOptions) -> Option<Time> {
        let since = self.since.filter(|_| self.may_list(options))?;
        Some(Time(since.0 + options.list_after_us))
    }

    /// Whether a page may be written now. One that is not full only if what is unlisted then still fits.
    fn may_list(&self, options: &LogOptions) -> bool {
        if !self.ready || self.broken || options.durable && !self.flights.is_empty() {
            return false;
        }
        let own = self.records.len().min(LISTED_MAX) as u32;
        let more = if self.cursor + CHUNK_PAGES <= options.segment_pages { CHUNK_PAGES } else { 0 };
        let (left, rest) = (self.chunk_left - 1 + more, self.unlisted - own);
        let spared = if self.pools_due() { 2 } else { 1 };
        own as usize == LISTED_MAX || rest == 0 || left >= rest.div_ceil(LISTED_MAX as u32) + spared
    }

    pub fn take_pools(&mut self) -> (Vec<PoolId>, Vec<Pending>) {
        let purges = std::mem::take(&mut self.purges);
        let purged = purges.iter().filter_map(|pending| match pending {
            Pending::Purge { pool, .. } => Some(*pool),
            _ => None,
        });
        let mut pools: BTreeSet<PoolId> = std::mem::take(&mut self.pools_wanted);
        pools.extend(purged);
        let mut pools: Vec<PoolId> = pools.into_iter().collect();
        for late in pools.drain(LISTED_MAX.min(pools.len())..) {
            self.pools_wanted.insert(late);
        }
        self.idle();
        (pools, purges)
    }

    pub fn listed_pools(&mut self, pools: &[PoolId]) {
        self.pools.extend(pools.iter().copied());
    }

    pub fn take_records(&mut self) -> Vec<Pending> {
        let count = self.records.len().min(LISTED_MAX);
        self.unlisted -= count as u32;
        let taken = self.records.drain(..count).collect();
        self.idle();
        taken
    }

    /// The place of the next page, and where the one after it will be. The last of a chunk sets the next one aside.
    pub fn next_page(&mut self, segment_pages: u32) -> (PageIndex, Option<PageIndex>) {
        let place = PageIndex(self.place);
        assert!(self.chunk_left > 0, "a page for all that was placed");
        self.chunk_left -= 1;
        self.place += 1;
        if self.chunk_left > 0 {
            return (place, Some(PageIndex(self.place)));
        }
        if self.cursor + CHUNK_PAGES > segment_pages {
            self.full = true;
            return (place, None);
        }
        (self.place, self.chunk_left) = (self.cursor, CHUNK_PAGES);
        self.cursor += CHUNK_PAGES;
        (place, Some(PageIndex(self.place)))
    }

    /// A page is under way: what is to be done first.
    pub fn fly(&mut self, place: PageIndex, entries: Vec<Pending>, page: Todo, flush: Option<Todo>) -> Todo {
        let (stage, first) = match flush {
            Some(flush) => (Stage::FlushBefore(page), flush),
            None => (Stage::Listing, page),
        };
        self.flights.push_back(Flight { place, entries, stage });
        first
    }

    /// The page is on the device. True if a flush comes next.
    pub fn page_ended(&mut self, place: PageIndex, durable: bool) -> bool {
        let flight = self.flights.iter_mut().find(|flight| flight.place == place);
        if let Some(flight) = flight {
            flight.stage = if durable { Stage::FlushAfter } else { Stage::Done };
        }
        durable
    }

    /// The page that waited for the flush, if one did.
    pub fn flush_ended(&mut self) -> Option<Todo> {
        let flight = self.flights.front_mut()?;
        match std::mem::replace(&mut flight.stage, Stage::Done) {
            Stage::FlushBefore(page) => {
                flight.stage = Stage::Listing;
                Some(page)
            }
            _ => None,
        }
    }

    /// What counts as stored from now on.
    pub fn stored(&mut self) -> Vec<Pending> {
        let mut stored = Vec::new();
        while self.flights.front().is_some_and(|flight| flight.stage == Stage::Done) {
            stored.extend(self.flights.pop_front().expect("looked at").entries);
        }
        stored
    }

    /// Nothing more is listed here: what was not stored comes back.
    pub fn break_off(&mut self) -> Vec<Pending> {
        (self.full, self.broken) = (true, true);
        self.unlisted -= self.records.len() as u32;
        self.unconfirmed()
    }

    pub fn unconfirmed(&mut self) -> Vec<Pending> {
        self.since = None;
        let flights = std::mem::take(&mut self.flights);
        let mut failed: Vec<Pending> = flights.into_iter().flat_map(|flight| flight.entries).collect();
        failed.append(&mut self.purges);
        failed.extend(std::mem::take(&mut self.records));
        failed
    }

    pub fn has_ended(&self) -> bool {
        self.full && self.unlisted == 0 && self.records.is_empty() && self.purges.is_empty() && self.flights.is_empty()
    }
}
