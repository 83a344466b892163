//! How the groups share the segments of the SSD log: each has a floor that is its own, a ceiling that it does not grow
//! beyond, and takes what lies between while there is any. Pure.
//!
//! Unlike memory a segment can change hands at any time: floors hold no free segment back. A group below its floor gets
//! one of the group that is furthest above its own; a group at its ceiling gives up its own oldest.
//!
//! Invariant: every segment is free, or one group's; a group owes no more segments than it has above two of a device.

use std::{cmp::Reverse, collections::BTreeMap};

use lapis_config::SegmentId;

/// With fewer on a device a group cannot go on there: one is being written, the other may go.
const LEAST: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    Segment(SegmentId),
    /// None is free: this other group is to give one up for it, soon.
    From(usize),
    /// The group reuses its own.
    Own,
    /// It has more than it may: one of its own goes first, to nobody.
    Over,
}

/// Of one group, in segments of all devices together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLimits {
    pub floor: u32,
    pub ceiling: u32,
}

const UNLIMITED: SegmentLimits = SegmentLimits { floor: 0, ceiling: u32::MAX };

impl SegmentLimits {
    /// Of bytes: a floor is rounded up, a ceiling down; a ceiling of 0 is none.
    pub fn of_bytes(floor_bytes: u64, ceiling_bytes: u64, segment_bytes: u64) -> Self {
        let segments = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let ceiling = if ceiling_bytes == 0 { u32::MAX } else { segments(ceiling_bytes / segment_bytes) };
        let floor = segments(floor_bytes.div_ceil(segment_bytes)).min(ceiling);
        Self { floor, ceiling }
    }
}

/// Of all devices.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    limits: Vec<SegmentLimits>,
    free: BTreeMap<u8, Vec<SegmentId>>,
    /// Segments of each group on each device, and how many of them it was told to give up.
    counts: BTreeMap<(u8, usize), u32>,
    owed: BTreeMap<(u8, usize), u32>,
    /// Groups that wait for one, in order.
    waiting: BTreeMap<u8, Vec<usize>>,
}

impl Segments {
    /// By group; those that are not named have none.
    pub fn limit(&mut self, limits: Vec<SegmentLimits>) {
        self.limits = limits;
    }

    /// A segment that nothing uses.
    pub fn add_free(&mut self, segment: SegmentId) {
        self.free.entry(segment.device()).or_default().push(segment);
    }

    /// A segment of a former start is the group's.
    pub fn found(&mut self, group: usize, segment: SegmentId) {
        *self.counts.entry((segment.device(), group)).or_insert(0) += 1;
    }

    pub fn free(&self) -> usize {
        self.free.values().map(Vec::len).sum()
    }

    /// Of one device.
    pub fn free_on(&self, device: u8) -> usize {
        self.free.get(&device).map_or(0, Vec::len)
    }

    /// A group needs one more on that device.
    pub fn wanted(&mut self, group: usize, device: u8) -> Given {
        let (all, here) = (self.all_of(group), self.stays_on(device, group));
        let limits = self.limits_of(group);
        // Whatever the limits say, it has to go on.
        let starves = here < LEAST;
        if all > limits.ceiling && here > LEAST {
            *self.owed.entry((device, group)).or_insert(0) += 1;
            return Given::Over;
        }
        if all >= limits.ceiling && !starves {
            return Given::Own;
        }
        if let Some(segment) = self.free.get_mut(&device).and_then(Vec::pop) {
            *self.counts.entry((device, group)).or_insert(0) += 1;
            return Given::Segment(segment);
        }
        let waits = self.waiting.get(&device).is_some_and(|waiting| waiting.contains(&group));
        if waits || !starves && all >= limits.floor {
            return Given::Own;
        }
        let Some(other) = self.giver(group, device, starves) else { return Given::Own };
        self.waiting.entry(device).or_default().push(group);
        *self.owed.entry((device, other)).or_insert(0) += 1;
        Given::From(other)
    }

    /// Who is furthest above its floor; of groups that are not, who has most, and only for one that starves.
    fn giver(&self, group: usize, device: u8, starves: bool) -> Option<usize> {
        let others = self.counts.keys().filter(|&&(on, of)| on == device && of != group).map(|&(_, of)| of);
        let can = others.filter(|&of| self.stays_on(device, of) > LEAST);
        let ranked = can.map(|of| (self.all_of(of).saturating_sub(self.limits_of(of).floor), of));
        let most = ranked.max_by_key(|&(over, of)| (over, self.stays_on(device, of), Reverse(of)))?;
        (starves || most.0 > 0).then_some(most.1)
    }

    /// A group gave one up: whose it is now, if anybody waits.
    pub fn freed(&mut self, group: usize, segment: SegmentId) -> Option<usize> {
        let device = segment.device();
        *self.counts.get_mut(&(device, group)).expect("it had the segment") -= 1;
        if let Some(owed) = self.owed.get_mut(&(device, group)) {
            *owed = owed.saturating_sub(1);
        }
        let waiting = self.waiting.entry(device).or_default();
        if waiting.is_empty() {
            self.add_free(segment);
            return None;
        }
        let next = waiting.remove(0);
        *self.counts.entry((device, next)).or_insert(0) += 1;
        Some(next)
    }

    /// The device is gone, with all that was on it.
    pub fn drop_device(&mut self, device: u8) {
        self.free.remove(&device);
        self.waiting.remove(&device);
        self.counts.retain(|(on, _), _| *on != device);
        self.owed.retain(|(on, _), _| *on != device);
    }

    fn limits_of(&self, group: usize) -> SegmentLimits {
        self.limits.get(group).copied().unwrap_or(UNLIMITED)
    }

    /// Segments that stay the group's on a device.
    fn stays_on(&self, device: u8, group: usize) -> u32 {
        let of = |counts: &BTreeMap<(u8, usize), u32>| counts.get(&(device, group)).copied().unwrap_or(0);
        of(&self.counts) - of(&self.owed).min(of(&self.counts))
    }

    /// And on all.
    fn all_of(&self, group: usize) -> u32 {
        let devices = self.counts.keys().filter(|(_, of)| *of == group).map(|(device, _)| *device);
        devices.map(|device| self.stays_on(device, group)).sum()
    }
}
