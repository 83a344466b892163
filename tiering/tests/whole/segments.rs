//! Groups share the segments of the SSD log: against a plain list of who has what.

use std::collections::{BTreeMap, VecDeque};

use lapis_config::SegmentId;
use lapis_tiering::segments::{Given, SegmentLimits, Segments};

const DEVICE: u8 = 0;

fn segment(index: u32) -> SegmentId {
    SegmentId::new(DEVICE, index)
}

/// Groups that write all the time: each has a queue of its own segments, the oldest first.
struct Model {
    segments: Segments,
    limits: Vec<(u32, u32)>,
    own: Vec<VecDeque<SegmentId>>,
    total: usize,
    /// Told to give one up, and not done yet.
    owing: VecDeque<usize>,
}

impl Model {
    fn new(total: u32, limits: &[(u32, u32)]) -> Self {
        let mut segments = Segments::default();
        segments.limit(limits.iter().map(|&(floor, ceiling)| SegmentLimits { floor, ceiling }).collect());
        (0..total).for_each(|index| segments.add_free(segment(index)));
        let (own, limits) = (vec![VecDeque::new(); limits.len()], limits.to_vec());
        Self { segments, limits, own, total: total as usize, owing: VecDeque::new() }
    }

    fn has(&self, group: usize) -> u32 {
        self.own[group].len() as u32
    }

    /// One more segment is written by the group; its own oldest goes if it gets none.
    fn write(&mut self, group: usize) {
        let before: Vec<u32> = (0..self.own.len()).map(|of| self.has(of)).collect();
        match self.segments.wanted(group, DEVICE) {
            Given::Segment(segment) => self.own[group].push_back(segment),
            Given::From(other) => {
                let (floor, owes) = (self.limits[other].0, self.owing.iter().filter(|of| **of == other).count() as u32);
                let starves = before[group] < 2;
                assert!(before[other] - owes > floor || starves, "{other} is left below its floor for {group}");
                assert!(before[other] - owes > 2, "{other} cannot go on");
                self.owing.push_back(other);
            }
            Given::Over => self.owing.push_back(group),
            // Its own oldest is written anew.
            Given::Own if self.own[group].is_empty() => {}
            Given::Own => self.own[group].rotate_left(1),
        }
    }

    /// A group that owes one gives up its oldest.
    fn give(&mut self) {
        let Some(group) = self.owing.pop_front() else { return };
        let oldest = self.own[group].pop_front().expect("it was asked because it has some");
        if let Some(next) = self.segments.freed(group, oldest) {
            self.own[next].push_back(oldest);
        }
    }

    fn check(&self) {
        let mut all: Vec<SegmentId> = self.own.iter().flatten().copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "a segment has one owner");
        assert_eq!(count + self.segments.free(), self.total, "none is lost");
        for (group, &(_, ceiling)) in self.limits.iter().enumerate() {
            assert!(self.has(group) <= ceiling.max(2), "{group} is beyond its ceiling");
        }
    }
}

#[test]
fn under_random_demand_no_segment_is_lost_and_no_limit_passed() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let groups = random.usize(2..5);
        let limits: Vec<(u32, u32)> = (0..groups)
            .map(|_| {
                let floor = random.u32(0..8);
                (floor, [u32::MAX, floor.max(2) + random.u32(0..6)][random.usize(..2)])
            })
            .collect();
        let floors: u32 = limits.iter().map(|(floor, _)| floor.max(&2)).sum();
        let mut model = Model::new(floors + random.u32(0..10), &limits);
        for _ in 0..400 {
            if random.bool() {
                model.write(random.usize(..groups));
            } else {
                model.give();
            }
            model.check();
        }
        // Who goes on writing reaches its floor, whatever the others did before.
        for (group, &(floor, _)) in limits.iter().enumerate() {
            for _ in 0..model.total * 2 {
                model.write(group);
                while !model.owing.is_empty() {
                    model.give();
                }
                model.check();
            }
            assert!(model.has(group) >= floor, "seed {seed}: group {group} has {} of {floor}", model.has(group));
        }
    }
}

#[test]
fn a_group_without_segments_gets_one_of_the_group_that_has_most() {
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

#[test]
fn a_group_below_its_floor_takes_from_the_one_furthest_above_its_own() {
    let limit = |floor, ceiling| SegmentLimits { floor, ceiling };
    let mut segments = Segments::default();
    segments.limit(vec![limit(4, u32::MAX), limit(8, u32::MAX), limit(2, u32::MAX)]);
    (0..8).for_each(|index| segments.found(1, segment(index)));
    (8..14).for_each(|index| segments.found(2, segment(index)));
    assert_eq!(segments.wanted(0, 0), Given::From(2), "it has fewer, but more above its floor");
    assert_eq!(segments.freed(2, segment(8)), Some(0));
    assert_eq!(segments.wanted(2, 0), Given::Own, "it is above its floor: its own oldest goes");
    assert_eq!(segments.wanted(1, 0), Given::Own);
}

#[test]
fn a_group_below_its_floor_takes_none_of_one_that_is_not_above_its_own() {
    let limit = SegmentLimits { floor: 6, ceiling: u32::MAX };
    let mut segments = Segments::default();
    segments.limit(vec![limit, limit]);
    // As when a device with some of the segments is out.
    (0..3).for_each(|index| segments.found(0, segment(index)));
    (3..9).for_each(|index| segments.found(1, segment(index)));
    assert_eq!(segments.wanted(0, 0), Given::Own);
}

#[test]
fn a_group_beyond_its_ceiling_shrinks_to_it_and_stays_there() {
    let mut segments = Segments::default();
    segments.limit(vec![SegmentLimits::of_bytes(0, 350, 100)]);
    (0..5).for_each(|index| segments.found(0, segment(index)));
    segments.add_free(segment(9));
    assert_eq!(segments.wanted(0, 0), Given::Over);
    assert_eq!((segments.freed(0, segment(0)), segments.wanted(0, 0)), (None, Given::Over));
    assert_eq!((segments.freed(0, segment(1)), segments.wanted(0, 0)), (None, Given::Own));
}

#[test]
fn limits_in_bytes_are_whole_segments_within_the_bounds() {
    let limits = SegmentLimits::of_bytes(101, 399, 100);
    assert_eq!((limits.floor, limits.ceiling), (2, 3));
    assert_eq!(SegmentLimits::of_bytes(0, 0, 100).ceiling, u32::MAX);
    let counts: BTreeMap<u64, u32> = [(1, 1), (100, 1), (101, 2)].into();
    assert!(counts.iter().all(|(&bytes, &count)| SegmentLimits::of_bytes(bytes, 0, 100).floor == count));
}
