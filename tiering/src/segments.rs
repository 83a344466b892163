//! Which group has which segments: free ones go to whoever needs one, and a group that has none gets one of the group that
//! has most. Pure.

use std::collections::BTreeMap;

use lapis_config::SegmentId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    Segment(SegmentId),
    /// None is free: this other group is to give one up for it.
    From(usize),
    /// None is free, and the group has some of its own to reuse.
    Own,
}

/// Of all devices.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    free: BTreeMap<u8, Vec<SegmentId>>,
    /// Segments of each group on each device.
    counts: BTreeMap<(u8, usize), u32>,
    /// Groups that wait for one, in order.
    waiting: BTreeMap<u8, Vec<usize>>,
}

impl Segments {
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
        if let Some(segment) = self.free.get_mut(&device).and_then(Vec::pop) {
            *self.counts.entry((device, group)).or_insert(0) += 1;
            return Given::Segment(segment);
        }
        let count = |of: usize| self.counts.get(&(device, of)).copied().unwrap_or(0);
        // Two: one is being written, the other may go.
        let others = self.counts.keys().filter(|(on, of)| *on == device && *of != group && count(*of) > 2);
        let most = others.map(|(_, of)| *of).max_by_key(|&of| (count(of), std::cmp::Reverse(of)));
        match most {
            Some(other) if count(group) < 2 => {
                let waiting = self.waiting.entry(device).or_default();
                if !waiting.contains(&group) {
                    waiting.push(group);
                    return Given::From(other);
                }
                Given::Own
            }
            _ => Given::Own,
        }
    }

    /// A group gave one up: whose it is now, if anybody waits.
    pub fn freed(&mut self, group: usize, segment: SegmentId) -> Option<usize> {
        let device = segment.device();
        let count = self.counts.get_mut(&(device, group)).expect("it had the segment");
        *count -= 1;
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
    }
}

#[test]
fn a_group_without_segments_gets_one_of_the_group_that_has_most() {
    let segment = |index| SegmentId::new(0, index);
    let mut segments = Segments::default();
    (0..6).for_each(|index| segments.add_free(segment(index)));
    for _ in 0..6 {
        assert!(matches!(segments.wanted(0, 0), Given::Segment(_)));
    }
    assert_eq!(segments.wanted(0, 0), Given::Own);
    assert_eq!(segments.wanted(1, 0), Given::From(0));
    assert_eq!(segments.wanted(1, 0), Given::Own, "it waits already");
    assert_eq!(segments.freed(0, segment(3)), Some(1));
    assert_eq!(segments.wanted(1, 0), Given::From(0), "one to write, one to go on with");
    assert_eq!(segments.freed(0, segment(4)), Some(1));
    assert_eq!(segments.wanted(1, 0), Given::Own);
    assert_eq!((segments.freed(0, segment(5)), segments.free()), (None, 1));
}
