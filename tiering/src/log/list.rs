//! What the log writes by itself: headers of segments, pages of contents, flushes, and what became of them.

use lapis_config::{
    PageIndex, PoolId, SegmentId, Time,
    planted::{self, Bug},
};

use super::{Device, Ended, LISTED_MAX, Log, Pending, Todo, open::Open};
use crate::face::{Listed, Record};

impl Log {
    /// The next thing to do. `urgent`: somebody waits for what is written.
    pub fn poll(&mut self, now: Time, urgent: bool) -> Option<Todo> {
        if !self.has_sequences() {
            return None;
        }
        if let Some(todo) = self.open_ahead() {
            return Some(todo);
        }
        if !self.waiting.is_empty() {
            self.take_waiting(now);
        }
        let due = |(&segment, open): (&SegmentId, &Open)| open.due(now, urgent, &self.options).then_some(segment);
        let segment = self.uses.iter().find_map(due)?;
        Some(self.list(segment))
    }

    fn open_ahead(&mut self) -> Option<Todo> {
        let (half, uses) = (self.options.segment_pages / 2, &self.uses);
        let wants = |device: &Device| {
            device.writable
                && device.next.is_none()
                && !device.spare.is_empty()
                && device.open.is_none_or(|open| uses[&open].cursor >= half)
        };
        let (_, device) = self.devices.iter_mut().find(|(_, device)| wants(device))?;
        let segment = device.spare.pop().expect("asked above");
        device.next = Some(segment);
        let opened = self.next_sequence();
        self.uses.insert(segment, Open::new(opened));
        self.lines.insert(segment, Vec::new());
        self.overhead_pages += 1;
        Some(Todo::Open { segment, opened })
    }

    /// Removals go into the open segment of their device.
    fn take_waiting(&mut self, now: Time) {
        for pending in std::mem::take(&mut self.waiting) {
            let (Pending::Removal { device, .. } | Pending::Purge { device, .. }) = pending else { continue };
            let writable = self.devices.get(&device).is_some_and(|device| device.writable);
            match self.open_on(device, 0).filter(|_| writable) {
                Some(segment) => {
                    self.uses.get_mut(&segment).expect("an open segment is in use").add(now, pending);
                }
                None => self.waiting.push_back(pending),
            }
        }
    }

    /// The next page of contents of a segment.
    fn list(&mut self, segment: SegmentId) -> Todo {
        let mut open = self.uses.remove(&segment).expect("a segment in use");
        let (listed, entries) = if open.pools_due() {
            let (mut pools, purges) = open.take_pools();
            // All that are in use: later records then need no page of their own for their pools.
            let others = self.pools.iter().filter(|pool| !open.lists(**pool) && !pools.contains(pool));
            pools.extend(others.copied().collect::<Vec<_>>());
            pools.truncate(LISTED_MAX);
            open.listed_pools(&pools);
            let purged = |pool: PoolId| self.purged.get(&pool).copied().unwrap_or(0);
            (Listed::Pools(pools.into_iter().map(|pool| (pool, purged(pool))).collect()), purges)
        } else {
            let mut entries = open.take_records();
            (Listed::Records(entries.iter_mut().map(|entry| self.sequenced(entry)).collect()), entries)
        };
        let sequence = self.next_sequence();
        self.overhead_pages += 1;
        let (place, next) = open.next_page(self.options.segment_pages);
        let todo = Todo::List { segment, opened: open.opened, place, next, sequence, listed };
        let todo = open.fly(place, entries, todo, self.options.durable.then_some(Todo::Flush { segment }));
        self.uses.insert(segment, open);
        todo
    }

    fn sequenced(&mut self, entry: &mut Pending) -> Record {
        match entry {
            Pending::Record { record, .. } => {
                record.sequence = self.next_sequence();
                *record
            }
            Pending::Removal { pool, key, sequence, .. } => Record::removal(*pool, *key, *sequence),
            Pending::Purge { .. } => unreachable!("purges are listed with pools"),
        }
    }

    // ---- What became of it ----

    /// The header is on the device, or it is not: then the segment is left alone as long as there are others.
    pub fn opened(&mut self, segment: SegmentId, ok: bool) {
        if ok {
            if let Some(open) = self.uses.get_mut(&segment) {
                open.ready = true;
            }
            return;
        }
        if let Some(device) = self.devices.get_mut(&segment.device()) {
            device.open = device.open.filter(|open| *open != segment);
            device.next = device.next.filter(|next| *next != segment);
            device.suspect.push(segment);
        }
        self.uses.remove(&segment);
        self.lines.remove(&segment);
    }

    /// A page of contents is on the device, or it is not: then nothing more is written to its segment, and all in it
    /// that is not stored yet has failed.
    pub fn listed(&mut self, segment: SegmentId, place: PageIndex, ok: bool) -> Ended {
        let durable = self.options.durable && !planted::is(Bug::FlushLost);
        self.page_step(segment, ok, |open| open.page_ended(place, durable).then_some(Todo::Flush { segment }))
    }

    /// A flush ended. There may be a page that waited for it.
    pub fn flushed(&mut self, segment: SegmentId, ok: bool) -> Ended {
        self.page_step(segment, ok, Open::flush_ended)
    }

    fn page_step(&mut self, segment: SegmentId, ok: bool, step: impl FnOnce(&mut Open) -> Option<Todo>) -> Ended {
        let mut ended = Ended::default();
        let Some(open) = self.uses.get_mut(&segment) else { return ended };
        if ok {
            ended.todo = step(open);
            ended.stored = open.stored();
        } else {
            ended.failed = open.break_off();
            if let Some(device) = self.devices.get_mut(&segment.device()) {
                device.open = device.open.filter(|open| *open != segment);
            }
        }
        self.seal(segment);
        ended
    }

    /// A full segment of which everything has ended joins those that may go.
    pub(super) fn seal(&mut self, segment: SegmentId) {
        if self.uses.get(&segment).is_some_and(Open::has_ended) {
            let open = self.uses.remove(&segment).expect("looked up");
            self.sealed.insert(open.opened, segment);
        }
    }

    /// When something is due though nothing happens.
    pub fn timeout(&self) -> Option<Time> {
        self.uses.values().filter_map(|open| open.due_at(&self.options)).min()
    }
}
