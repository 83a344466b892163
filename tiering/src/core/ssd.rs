//! The SSD tier: which blocks may be written, what is under way, what became of it.
//!
//! Invariant: a line is in `moving` while its copy is `Moving`, and in `fetching` while it is `Filling` from SSD.
//! Invariant: a slot that a device reads or writes is free again only after the operation has ended.

use std::collections::BTreeMap;

use lapis_config::{
    Entry, Key, LineId, OpId, PageIndex, PoolId, PoolKind, SegmentId, SsdPlace, Time, UNIT_BYTES,
    planted::{self, Bug},
};

use super::{
    AGAIN, Core, HELD, HIT, Op, PINNED, budget::Budget, coming::Coming, removals::Removals, retire::Retiring,
    strays::Strays,
};
use crate::{
    copies::{Step, step_dram},
    face::{Action, Outcome, Record},
    hash::Map,
    kept::{Kept, Live},
    log::{Ended, Log, LogOptions, Near, Pending, Todo},
    policy::{Policy, Shelf},
};

/// Bytes of blocks being written at once, and of blocks being read: at most, and at most one part in so many of the
/// memory. Enough for the depth of several devices.
const FLIGHT_BYTES_MAX: u64 = 256 << 20;
const FLIGHT_PART: u32 = 8;
/// Operations of blocks under way at once, of either kind.
const FLIGHTS_MAX: usize = 512;
/// Whether there is an SSD tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Off,
    /// It is being opened and recovered: what may go to it waits.
    Coming,
    On,
}

/// A block on its way to SSD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moving {
    pub at: SsdPlace,
    /// The write under way; `None` when it has ended and its listing has not.
    pub op: Option<OpId>,
    pub since: Time,
    /// It leaves DRAM next, for one that comes to this shelf.
    pub leaves: Option<Shelf>,
}

/// What became of a question for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nobody heard it yet.
    No,
    /// Nobody has one for us: the oldest of our own goes.
    Own,
    /// Another group gives one up; until then ours stay.
    Promised { until: Time },
}

#[derive(Default)]
pub(super) struct Ssd {
    pub state: State,
    /// There is to be a tier, also while it is not there.
    pub configured: bool,
    pub log: Option<Log>,
    pub near: Near,
    pub moving: Map<LineId, Moving>,
    pub fetching: Map<LineId, OpId>,
    pub strays: Strays,
    pub write_pages: u64,
    pub read_pages: u64,
    /// Reads of blocks under way, by segment.
    pub reads: BTreeMap<SegmentId, u32>,
    /// Blocks that are to be read, from GPUs too, as soon as there is a slot.
    pub queue: Coming,
    pub retiring: BTreeMap<SegmentId, Retiring>,
    /// Devices that were asked a segment for.
    pub asked: BTreeMap<u8, Asked>,
    /// Blocks of which records may be found that do not count: in segments that were given up and may not be wiped yet, and on
    /// pages of contents that failed, or were under way when another page of their segment did. A kill brings them back unless
    /// a removal says otherwise.
    pub former: BTreeMap<LineId, Vec<SsdPlace>>,
    /// Segments that others are to have, by device.
    pub owed: BTreeMap<u8, u32>,
    /// Blocks found on SSD whose parents have not been found yet.
    pub orphans: Vec<(LineId, PoolId, Key)>,
    /// Dirty blocks that a drain has yet to write; the next one last.
    pub flush: Vec<LineId>,
    pub removals: Removals,
    /// What may be written, if that is bounded.
    pub budget: Option<Budget>,
    /// Events since blocks to write back were last looked for.
    pub events: u32,
}

impl Ssd {
    pub fn table_bytes(&self) -> u64 {
        self.log.as_ref().map_or(0, Log::overhead_bytes)
    }

    /// Records there are found by nobody any more.
    pub fn forget_former(&mut self, there: impl Fn(SsdPlace) -> bool) {
        self.former.retain(|_, places| {
            places.retain(|at| !there(*at));
            !places.is_empty()
        });
    }
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// An SSD tier is being opened: until `ssd_ready` or `ssd_absent`, blocks that may go there wait.
    pub fn ssd_coming(&mut self) {
        (self.ssd.state, self.ssd.configured) = (State::Coming, true);
    }

    /// There is no SSD tier, or none any more: DRAM alone.
    pub fn ssd_absent(&mut self, now: Time) {
        self.clock(now);
        let devices: Vec<u8> = (0..=u8::MAX).filter(|&device| self.has_device(device)).collect();
        for device in devices {
            self.drop_device(device);
        }
        self.ssd.state = State::Off;
        self.ssd.log = None;
        self.settle_early();
        self.stirred = true;
        self.run();
    }

    /// The log is there; what it holds is told next, then `ssd_ready`.
    pub fn ssd_opened(&mut self, options: LogOptions) {
        self.ssd.log = Some(Log::new(options));
    }

    /// A device of the log may be written.
    pub fn device_added(&mut self, device: u8) {
        if let Some(log) = &mut self.ssd.log {
            log.add_device(device);
        }
    }

    /// The NUMA node of a device, if it is known.
    pub fn device_at(&mut self, device: u8, node: Option<u32>) {
        self.ssd.near.device(device, node);
    }

    fn has_device(&self, device: u8) -> bool {
        self.ssd.log.as_ref().is_some_and(|log| log.has_device(device))
    }

    /// Nothing new is written to the device, or it is again.
    pub fn device_writable(&mut self, now: Time, device: u8, writable: bool) {
        self.clock(now);
        if let Some(log) = &mut self.ssd.log {
            log.set_writable(device, writable);
            self.stirred = true;
            self.run();
        }
    }

    /// Sequences below this may be used.
    pub fn sequences_until(&mut self, end: u64) {
        if let Some(log) = &mut self.ssd.log {
            log.sequences_until(end);
        }
    }

    /// The sequence that comes next; 0 without a log.
    pub fn sequence(&self) -> u64 {
        self.ssd.log.as_ref().map_or(0, Log::sequence)
    }

    /// Segments that the group has, in use or ready.
    pub fn segments(&self) -> usize {
        self.ssd.log.as_ref().map_or(0, Log::segments)
    }

    // ---- What may be written ----

    /// Pages of a block's record: its slot's.
    pub(super) fn pages_of(&self, live: &Live) -> u32 {
        self.pools[&live.pool].def.units_of(live.place.bytes)
    }

    /// Whether the block is to be on SSD before it leaves DRAM. Partial blocks are not: nobody asks for them again once
    /// their chain has grown. Nor are those that were there before, beyond the budget for them.
    pub(super) fn wants_ssd(&self, line: LineId, live: &Live) -> bool {
        let may = match self.ssd.state {
            State::Off => false,
            State::Coming => true,
            State::On => self.can_write(),
        };
        let def = &self.pools[&live.pool].def;
        let full = def.kind == PoolKind::Object || u64::from(live.place.bytes) == def.block_bytes;
        let fits = self.ssd.log.as_ref().is_none_or(|log| self.pages_of(live) <= log.record_pages_max());
        let again = self.kept.entry(line).flags & AGAIN != 0;
        may && full && fits && (!again || self.may_write_again(live)) && self.is_within_budget(line)
    }

    /// Whether the budget has bytes for the block. While no segment was given up yet, for every one that it has bytes for; else
    /// for what is worth most. What lies above a block on SSD always goes there: without it that one serves nothing.
    fn is_within_budget(&self, line: LineId) -> bool {
        let Some(budget) = &self.ssd.budget else { return true };
        (budget.is_unspent() && self.counts.segments_retired == 0)
            || self.leads_to_ssd(line)
            || budget.accepts(self.policy.worth(&self.kept, line, self.now))
    }

    fn leads_to_ssd(&self, line: LineId) -> bool {
        self.tree.children(&self.kept, line).any(|child| self.kept.entry(child).ssd != 0)
    }

    /// The budget hears of a full block that is written, or leaves without.
    pub(super) fn offer_to_budget(&mut self, line: LineId, live: &Live, written: bool) {
        let def = &self.pools[&live.pool].def;
        if def.kind == PoolKind::Chain && u64::from(live.place.bytes) < def.block_bytes {
            return;
        }
        let bytes = u64::from(self.pages_of(live)) * UNIT_BYTES;
        let within = (!written && self.can_write()).then(|| self.is_within_budget(line));
        let Some(budget) = &mut self.ssd.budget else { return };
        budget.offered(self.policy.worth(&self.kept, line, self.now), bytes, written);
        if within == Some(false) {
            self.counts.ssd_declined += 1;
        }
    }

    /// What bounds the bytes written, if anything does: those of a day, and those that are left now.
    pub fn write_budget(&self) -> Option<(u64, i64)> {
        self.ssd.budget.as_ref().map(|budget| (budget.bytes_a_day(), budget.available()))
    }

    pub(super) fn can_write(&self) -> bool {
        self.ssd.state == State::On && self.ssd.log.as_ref().is_some_and(Log::is_writable)
    }

    pub(super) fn flight_pages_max(&self) -> u64 {
        (FLIGHT_BYTES_MAX / UNIT_BYTES).min(u64::from(self.memory.buddy.units() / FLIGHT_PART))
    }

    /// Begins to write a dirty block. False if the device has enough to do, or no segment is ready.
    pub(super) fn write(&mut self, line: LineId) -> bool {
        let Some(live) = self.kept.live(line) else { return false };
        let pages = self.pages_of(&live);
        let full = self.ssd.write_pages > 0 && self.ssd.write_pages + u64::from(pages) > self.flight_pages_max();
        if !self.can_write() || full || self.ssd.moving.len() >= FLIGHTS_MAX {
            return false;
        }
        let log = self.ssd.log.as_mut().expect("it can be written");
        let (near, node) = (&self.ssd.near, self.ssd.near.node_of(live.place.slot.0));
        let Some(at) = log.place(live.pool, line, pages, |device| near.is_far(device, node)) else { return false };
        step_dram(self.kept.entry_mut(line), Step::Write);
        let slot = live.place.slot;
        let op = self.begin(Op::Write { line: Some(line), at, pages, slot });
        // Whoever came up before as a victim goes as soon as it may.
        let came_up = !self.policy.is_linked(&self.kept, line) && self.kept.entry(line).flags & (HELD | PINNED) == 0;
        let leaves = came_up.then(|| self.shelf_of_line(line));
        self.ssd.moving.insert(line, Moving { at, op: Some(op), since: self.now, leaves });
        self.ssd.write_pages += u64::from(pages);
        self.offer_to_budget(line, &live, true);
        self.actions.push_back(Action::WriteSsd { op, at, slot, pages });
        if planted::is(Bug::ListedBeforeWritten) {
            self.written(line, at, pages);
        }
        true
    }

    // ---- What became of it ----

    pub(super) fn write_ended(
        &mut self,
        line: Option<LineId>,
        at: SsdPlace,
        pages: u32,
        slot: lapis_config::SlotId,
        outcome: Outcome,
    ) {
        self.ssd.write_pages -= u64::from(pages);
        let Some(line) = line else {
            // Dropped meanwhile: nobody is to find it. Of a device that was out the log has nothing left.
            if let Some(log) = self.ssd.log.as_mut().filter(|_| pages > 0) {
                log.abandoned(at, pages);
            }
            return self.stray_ended(slot);
        };
        if outcome != Outcome::Ok {
            self.counts.ssd_writes_failed += 1;
            if let Some(log) = &mut self.ssd.log {
                log.abandoned(at, pages);
            }
            return self.write_failed(line);
        }
        self.counts.ssd_record_bytes += u64::from(pages) * UNIT_BYTES;
        if !planted::is(Bug::ListedBeforeWritten) {
            self.written(line, at, pages);
        }
    }

    /// It is on the device, and listed next.
    fn written(&mut self, line: LineId, at: SsdPlace, pages: u32) {
        let record = self.record(line, at, pages);
        self.ssd.moving.get_mut(&line).expect("a line that is written").op = None;
        let now = self.now;
        if !self.ssd.log.as_mut().is_some_and(|log| log.written(now, at, line, record)) {
            self.write_failed(line);
        } else if planted::is(Bug::CleanBeforeListed) {
            self.stored(line, at, pages);
        }
    }

    fn record(&self, line: LineId, at: SsdPlace, pages: u32) -> Record {
        let live = self.kept.live(line).expect("a line that is written");
        let entry = self.kept.entry(line);
        let parent = Some(LineId(entry.parent)).filter(|parent| parent.is_some());
        let parent = parent.and_then(|parent| self.kept.live(parent)).map_or(Key::default(), |parent| parent.key);
        let (bytes, sum, class) = (live.place.bytes, live.place.sum, entry.class);
        let (pool, key, start) = (live.pool, live.key, at.page());
        Record { pool, key, parent, start, pages, bytes, sum, sequence: 0, class, removed: false }
    }

    /// The block is as it was before.
    pub(super) fn write_failed(&mut self, line: LineId) {
        self.ssd.moving.remove(&line).expect("a line that is written");
        step_dram(self.kept.entry_mut(line), Step::WriteFailed);
        self.retired_line(line);
        self.relink(line);
        self.stirred = true;
    }

    pub(super) fn opened(&mut self, segment: SegmentId, outcome: Outcome) {
        // A new use begins when the former one was wiped.
        if outcome == Outcome::Ok {
            self.ssd.forget_former(|at| at.segment() == segment);
        }
        if let Some(log) = &mut self.ssd.log {
            log.opened(segment, outcome == Outcome::Ok);
        }
        self.stirred = true;
    }

    pub(super) fn listed(&mut self, segment: SegmentId, place: PageIndex, outcome: Outcome) {
        let Some(log) = &mut self.ssd.log else { return };
        let ended = log.listed(segment, place, outcome == Outcome::Ok);
        self.page_ended(segment, ended);
    }

    pub(super) fn flushed(&mut self, segment: SegmentId, outcome: Outcome) {
        let Some(log) = &mut self.ssd.log else { return };
        let ended = log.flushed(segment, outcome == Outcome::Ok);
        self.page_ended(segment, ended);
    }

    fn page_ended(&mut self, segment: SegmentId, ended: Ended) {
        if let Some(todo) = ended.todo {
            self.carry_out(todo);
        }
        for pending in ended.stored {
            match pending {
                Pending::Record { line, record } => {
                    self.stored(line, SsdPlace::new(segment, record.start), record.pages)
                }
                Pending::Removal { pool, key, .. } => self.forgotten(pool, key),
                Pending::Purge { ticket, .. } => self.purged(ticket),
            }
        }
        self.lost(ended.failed);
    }

    /// What was to be listed was not: blocks are dirty again, removals go elsewhere.
    pub(super) fn lost(&mut self, failed: Vec<Pending>) {
        for pending in failed {
            match pending {
                Pending::Record { line, record } => {
                    let own = self.ssd.moving.get(&line);
                    if own.is_some_and(|moving| moving.op.is_none() && moving.at.page() == record.start) {
                        let at = own.expect("looked at").at;
                        self.write_failed(line);
                        // The page may be on the device all the same, or get there.
                        if self.has_device(at.segment().device()) {
                            self.ssd.former.entry(line).or_default().push(at);
                        }
                    }
                }
                // Whatever was on a device that is lost is not served any more.
                Pending::Removal { device, pool, key, .. } if !self.has_device(device) => self.forgotten(pool, key),
                Pending::Purge { device, ticket, .. } if !self.has_device(device) => self.purged(ticket),
                again => self.ssd.log.as_mut().expect("it has the device").again(again),
            }
        }
    }

    /// The block counts as on SSD.
    fn stored(&mut self, line: LineId, at: SsdPlace, pages: u32) {
        let own = self.ssd.moving.get(&line).copied();
        let Some(moving) = own.filter(|own| own.op.is_none() && own.at == at) else { return };
        self.ssd.moving.remove(&line);
        let entry = self.kept.entry_mut(line);
        step_dram(entry, Step::Written);
        entry.ssd = moving.at.0;
        let again = entry.flags & AGAIN != 0;
        entry.flags &= !(HIT | AGAIN);
        self.policy.copied();
        self.came_on_ssd(pages);
        let bytes = u64::from(pages) * UNIT_BYTES;
        self.retired_line(line);
        if again {
            self.counts.readmitted_bytes += bytes;
        } else {
            self.counts.admitted_bytes += bytes;
        }
        self.relink(line);
        self.stirred = true;
        self.climb(line);
    }

    pub(super) fn came_on_ssd(&mut self, pages: u32) {
        self.counts.ssd_blocks += 1;
        self.counts.ssd_bytes += u64::from(pages) * UNIT_BYTES;
    }

    pub(super) fn went_from_ssd(&mut self, line: LineId) {
        let live = self.kept.live(line).expect("a live line");
        self.counts.ssd_blocks -= 1;
        self.counts.ssd_bytes -= u64::from(self.pages_of(&live)) * UNIT_BYTES;
    }

    /// The copy on SSD is not the block's any more. With `durably`, nobody finds it again, after a restart either.
    pub(super) fn leave_ssd(&mut self, line: LineId, live: &Live, entry: &mut Entry, durably: bool) {
        let at = SsdPlace(std::mem::take(&mut entry.ssd));
        let former = self.ssd.former.remove(&line).and_then(|former| former.last().copied());
        if at.is_some() {
            self.counts.ssd_blocks -= 1;
            self.counts.ssd_bytes -= u64::from(self.pages_of(live)) * UNIT_BYTES;
        }
        let Some(at) = Some(at).filter(|at| at.is_some()).or(former) else { return };
        if durably && self.ssd.removals.purging != Some(live.pool) {
            self.remove_durably(live.pool, live.key, at);
        }
    }

    pub(super) fn is_coming(&self) -> bool {
        self.ssd.state == State::Coming
    }

    /// Lines that may be on SSD, on one device or on any.
    pub(super) fn lines_on_ssd(&self, device: Option<u8>) -> Vec<LineId> {
        let mut lines = self.ssd.log.as_ref().map_or_else(Vec::new, |log| log.all_lines(device));
        lines.extend(self.ssd.retiring.values().flat_map(Retiring::lines));
        lines
    }

    // ---- The log's own work ----

    /// Turns what the log wants into actions.
    pub(super) fn pump_log(&mut self) {
        if self.ssd.state != State::On {
            return;
        }
        let waited_for = !self.puts.is_empty() || !self.ssd.queue.is_empty() || self.tickets() > 0;
        let urgent = waited_for || self.draining;
        let now = self.now;
        while let Some(todo) = self.ssd.log.as_mut().and_then(|log| log.poll(now, urgent)) {
            self.carry_out(todo);
        }
        self.ask_for_segments();
    }

    fn carry_out(&mut self, todo: Todo) {
        let action = match todo {
            Todo::Open { segment, opened } => {
                let op = self.begin(Op::Open(segment));
                Action::OpenSegment { op, segment, opened }
            }
            Todo::List { segment, opened, place, next, sequence, listed } => {
                let op = self.begin(Op::List(segment, place));
                Action::ListSsd { op, segment, opened, place, next, sequence, listed }
            }
            Todo::Flush { segment } => {
                let op = self.begin(Op::Flush(segment));
                Action::FlushSsd { op, device: segment.device() }
            }
        };
        self.actions.push_back(action);
    }

    pub(super) fn log_timeout(&self) -> Option<Time> {
        if self.ssd.state != State::On {
            return None;
        }
        let promises = self.ssd.asked.values().filter_map(|asked| match asked {
            Asked::Promised { until } => Some(*until),
            _ => None,
        });
        promises.chain(self.ssd.log.as_ref()?.timeout()).min()
    }
}
