//! Retirement: the oldest segment is given up for a new one. What was hit since it was written, or has children, is
//! written anew within a budget: first what leads to a block in DRAM, then what is worth most. What leads to a block that
//! somebody holds or pinned is written anew in any case. The rest is forgotten, with all that is below it.
//!
//! Invariant: a segment is free only when nothing is read from it and all that is to stay is stored elsewhere.
//! Invariant: no block stays, in DRAM or on SSD, below one that was given up.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lapis_config::{
    LineId, SegmentId, SsdPlace, UNIT_BYTES,
    planted::{self, Bug},
};

use super::{AGAIN, Core, HIT, fetch::Fetch, ssd::Asked};
use crate::{
    copies::{Copy, Step, step_dram},
    face::Action,
    hash::Map,
    kept::{Kept, Live},
    log::Log,
    policy::Policy,
};

/// Per cent of the bytes admitted that may be written again: with headers and tables, devices write at most 110 %.
const READMIT_PERCENT: u64 = 8;

/// How long a segment that another group gives up is waited for, before one of our own goes.
const PROMISE: Duration = Duration::from_secs(1);

/// A segment on its way out.
#[derive(Default)]
pub(super) struct Retiring {
    /// Blocks that are being written elsewhere.
    left: BTreeMap<LineId, Left>,
    /// Sum of those bytes.
    left_bytes: u64,
    /// It is not known yet what is to stay.
    choosing: bool,
    /// It goes to another group.
    leaves: bool,
}

/// A block that is being written elsewhere.
struct Left {
    bytes: u64,
    /// It leads to one that was held or pinned when its segment was given up.
    needed: bool,
}

impl Retiring {
    pub fn lines(&self) -> impl Iterator<Item = LineId> + '_ {
        self.left.keys().copied()
    }
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// A segment that nothing uses is this group's.
    pub fn segment_given(&mut self, segment: SegmentId) {
        self.ssd.asked.remove(&segment.device());
        if let Some(log) = &mut self.ssd.log {
            log.give(segment);
            self.stirred = true;
        }
    }

    /// Another group is to have one of this one's segments on the device: `FreeSegment` follows.
    pub fn yield_segment(&mut self, device: u8) {
        *self.ssd.owed.entry(device).or_insert(0) += 1;
        self.retire_oldest(device);
    }

    /// Another group was told to give up a segment on the device for this one: `segment_given` follows when it has. Ours
    /// stay until then, or for so long that it must be stuck.
    pub fn segment_promised(&mut self, device: u8) {
        self.ssd.asked.insert(device, Asked::Promised { until: self.now.after(PROMISE) });
    }

    /// Sees to it that every device has a segment to go on with.
    pub(super) fn ask_for_segments(&mut self) {
        self.pay_owed();
        let now = self.now;
        for asked in self.ssd.asked.values_mut() {
            if matches!(asked, Asked::Promised { until } if *until <= now) {
                *asked = Asked::Own;
            }
        }
        let Some(device) = self.ssd.log.as_ref().and_then(Log::wants) else { return };
        match self.ssd.asked.get(&device) {
            None => {
                self.ssd.asked.insert(device, Asked::No);
                self.actions.push_back(Action::NeedSegment { device });
            }
            Some(Asked::No | Asked::Promised { .. }) => {}
            Some(Asked::Own) => self.retire_oldest(device),
        }
    }

    /// Gives up what other groups were promised, as soon as there is something to give.
    fn pay_owed(&mut self) {
        let owing: Vec<u8> = self.ssd.owed.iter().filter(|(_, count)| **count > 0).map(|(&device, _)| device).collect();
        owing.into_iter().for_each(|device| self.retire_oldest(device));
    }

    fn retire_oldest(&mut self, device: u8) {
        if self.ssd.retiring.keys().any(|segment| segment.device() == device) {
            return;
        }
        let owes = self.ssd.owed.get(&device).is_some_and(|owed| *owed > 0);
        if let Some(segment) = self.ssd.log.as_mut().filter(|_| owes).and_then(|log| log.take_spare(device)) {
            // One that nothing lies in is given up before any block is.
            *self.ssd.owed.get_mut(&device).expect("looked at above") -= 1;
            return self.actions.push_back(Action::FreeSegment { segment, leaves: true });
        }
        let Some(log) = &mut self.ssd.log else { return };
        let Some(segment) = log.oldest(Some(device)) else { return log.try_suspects(device) };
        let owed = self.ssd.owed.get_mut(&device).filter(|owed| **owed > 0);
        let leaves = owed.map(|owed| *owed -= 1).is_some();
        self.ssd.retiring.insert(segment, Retiring { choosing: true, leaves, ..Retiring::default() });
        self.retire(segment);
        self.ssd.retiring.get_mut(&segment).expect("it stays while it chooses").choosing = false;
        self.retired_segment(segment);
        self.settle();
    }

    fn retire(&mut self, segment: SegmentId) {
        let mut lines = self.ssd.log.as_mut().expect("it has the segment").retire(segment);
        let here = |line: &LineId| SsdPlace(self.kept.entry(*line).ssd).segment() == segment;
        lines.retain(|line| self.kept.entry(*line).ssd != 0 && here(line) && self.kept.live(*line).is_some());
        let needed = self.above_what_is_kept();
        let mut chosen = BTreeSet::new();
        for line in self.needed_first(lines, &needed) {
            // It may have gone with one above it.
            let entry = *self.kept.entry(line);
            if entry.ssd == 0 || SsdPlace(entry.ssd).segment() != segment {
                continue;
            }
            match Copy::of_dram(&entry) {
                Copy::Clean => self.lost_on_ssd(line),
                Copy::Filling => {
                    // What is being read stays, in DRAM alone.
                    self.kept.entry_mut(line).ssd = 0;
                    self.kept.entry_mut(line).flags |= AGAIN;
                    self.ssd.former.entry(line).or_default().push(SsdPlace(entry.ssd));
                    self.went_from_ssd(line);
                }
                // It stays, on a GPU alone.
                Copy::Absent if self.is_on_gpu(line) => self.lost_on_ssd(line),
                _ if chosen.contains(&line) => {}
                _ if self.is_worth_writing(line, segment, &chosen, &needed) => {
                    chosen.insert(line);
                    self.write_anew(line, segment, needed.contains(&line));
                }
                _ => self.drop_from_ssd(line),
            }
        }
        self.counts.segments_retired += 1;
    }

    /// Blocks that somebody holds or pinned, and all that lead to them: they stay in any case.
    fn above_what_is_kept(&self) -> BTreeSet<LineId> {
        let mut needed = BTreeSet::new();
        for line in self.holds.lines().chain(self.pins.lines()) {
            self.add_path(line, &mut needed);
        }
        needed
    }

    /// Adds a block and all above it; where one is among them already, so is the rest.
    fn add_path(&self, line: LineId, to: &mut BTreeSet<LineId>) {
        let mut at = line;
        while at.is_some() && to.insert(at) {
            at = LineId(self.kept.entry(at).parent);
        }
    }

    /// The lines: first those that are needed, then those that lead to a block in DRAM, which would go with them, then
    /// those that are worth most.
    fn needed_first(&self, lines: Vec<LineId>, needed: &BTreeSet<LineId>) -> Vec<LineId> {
        let mut above_dram = BTreeSet::new();
        for &line in lines.iter().filter(|&&line| !self.tree.is_dram_leaf(&self.kept, line)) {
            self.add_path(line, &mut above_dram);
        }
        let mut order = self.worthiest_first(lines);
        // Stable: among equals the order stays.
        order.sort_by_key(|line| (!needed.contains(line), !above_dram.contains(line)));
        order
    }

    /// The lines, those first that are worth most, and among equals the most recently used. A parent comes before its
    /// children: these count as worth no more than it.
    fn worthiest_first(&self, lines: Vec<LineId>) -> Vec<LineId> {
        // Written leaf first: a later record is nearer to the root.
        let mut order: Vec<(Reverse<u32>, Reverse<usize>, LineId)> = lines
            .into_iter()
            .enumerate()
            .map(|(at, line)| (Reverse(self.kept.entry(line).last_use), Reverse(at), line))
            .collect();
        order.sort_unstable();
        order.dedup_by_key(|entry| entry.2);
        let mut worths = Map::<LineId, u32>::default();
        for &(.., line) in &order {
            let own = self.policy.worth(&self.kept, line, self.now);
            let above = worths.get(&LineId(self.kept.entry(line).parent)).copied();
            worths.insert(line, above.map_or(own, |above| above.min(own)));
        }
        // Stable: among equals the order stays.
        order.sort_by_key(|entry| Reverse(worths[&entry.2]));
        order.into_iter().map(|(.., line)| line).collect()
    }

    /// Brings a block into DRAM, from where it is written elsewhere.
    fn write_anew(&mut self, line: LineId, segment: SegmentId, needed: bool) {
        let live = self.kept.live(line).expect("filtered by the caller");
        let bytes = u64::from(self.pages_of(&live)) * UNIT_BYTES;
        let retiring = self.ssd.retiring.get_mut(&segment).expect("inserted before");
        // First: the room for one block may be made by the end of another, or of this one.
        retiring.left.insert(line, Left { bytes, needed });
        retiring.left_bytes += bytes;
        if self.fetch(line) == Fetch::Not {
            self.retired_line(line);
        }
    }

    /// The block is in memory alone from now on.
    pub(super) fn lost_on_ssd(&mut self, line: LineId) {
        let entry = self.kept.entry_mut(line);
        if Copy::of_dram(entry) == Copy::Clean {
            step_dram(entry, Step::Lost);
        }
        let at = SsdPlace(std::mem::take(&mut entry.ssd));
        entry.flags |= AGAIN;
        self.policy.copied();
        self.ssd.former.entry(line).or_default().push(at);
        self.went_from_ssd(line);
    }

    fn is_worth_writing(
        &self,
        line: LineId,
        segment: SegmentId,
        chosen: &BTreeSet<LineId>,
        needed: &BTreeSet<LineId>,
    ) -> bool {
        if needed.contains(&line) {
            return true;
        }
        let entry = self.kept.entry(line);
        let parent = LineId(entry.parent);
        let above_stays = !parent.is_some()
            || chosen.contains(&parent)
            || self.in_dram(parent)
            || SsdPlace(self.kept.entry(parent).ssd).segment() != segment;
        let wanted = entry.flags & HIT != 0 || !self.tree.is_leaf(&self.kept, line);
        let live = self.kept.live(line).expect("filtered by the caller");
        above_stays && wanted && self.may_write_again(&live)
    }

    /// Whether the budget has room for one more write of a block that was on SSD before.
    pub(super) fn may_write_again(&self, live: &Live) -> bool {
        let bytes = u64::from(self.pages_of(live)) * UNIT_BYTES;
        let spent = self.counts.readmitted_bytes + self.readmitting_bytes();
        spent + bytes <= self.counts.admitted_bytes * READMIT_PERCENT / 100
    }

    fn readmitting_bytes(&self) -> u64 {
        self.ssd.retiring.values().map(|retiring| retiring.left_bytes).sum()
    }

    /// Forgets a block that is on SSD alone, and all below it, wherever that is: without it those serve nothing.
    fn drop_from_ssd(&mut self, root: LineId) {
        let mut lines = Vec::new();
        self.tree.subtree(&self.kept, root, usize::MAX, &mut lines);
        for line in lines.into_iter().rev() {
            // One may have gone with what waited for another.
            if self.kept.live(line).is_some() {
                let in_dram = self.in_dram(line);
                self.counts.ssd_evictions += 1;
                self.drop_line(line, in_dram);
            }
        }
    }

    pub(super) fn is_retiring(&self, line: LineId) -> bool {
        self.ssd.retiring.values().any(|retiring| retiring.left.contains_key(&line))
    }

    /// Whether the block is on its way out of a segment, and leads to one that is held or pinned.
    pub(super) fn must_stay(&self, line: LineId) -> bool {
        self.ssd.retiring.values().any(|retiring| retiring.left.get(&line).is_some_and(|left| left.needed))
    }

    /// The block is stored elsewhere, or is not to be any more. True if it was to be written anew.
    pub(super) fn retired_line(&mut self, line: LineId) -> bool {
        if self.ssd.retiring.is_empty() {
            return false;
        }
        let mut found = None;
        for (&segment, retiring) in &mut self.ssd.retiring {
            if let Some(Left { bytes, .. }) = retiring.left.remove(&line) {
                retiring.left_bytes -= bytes;
                found = Some(segment);
            }
        }
        let Some(segment) = found else { return false };
        let place = SsdPlace(self.kept.entry(line).ssd);
        if place.is_some() && place.segment() == segment {
            // It could not be read, or there was no room to.
            match Copy::of_dram(self.kept.entry(line)) {
                Copy::Clean => self.lost_on_ssd(line),
                Copy::Absent if self.is_on_gpu(line) => self.lost_on_ssd(line),
                Copy::Absent => {
                    // Also what somebody holds below it, as after any read that failed.
                    self.drop_from_ssd(line);
                    self.settle();
                }
                _ => {}
            }
        }
        self.retired_segment(segment);
        true
    }

    /// Frees the segment if nothing holds it up.
    pub(super) fn retired_segment(&mut self, segment: SegmentId) {
        let idle = !self.ssd.reads.contains_key(&segment) || planted::is(Bug::SegmentFreeDuringRead);
        let over = |retiring: &Retiring| retiring.left.is_empty() && !retiring.choosing && idle;
        if !self.ssd.retiring.get(&segment).is_some_and(over) {
            return;
        }
        let retiring = self.ssd.retiring.remove(&segment).expect("looked up above");
        // Wiped before anything else: what left is not found again by a start, whoever has the segment next.
        self.actions.push_back(Action::FreeSegment { segment, leaves: retiring.leaves });
        if !retiring.leaves {
            self.ssd.log.as_mut().expect("it had the segment").give(segment);
            self.ssd.asked.remove(&segment.device());
        }
        self.stirred = true;
    }
}
