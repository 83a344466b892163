//! How fast a lane is, and so when it would have read something more. Pure.

use lapis_config::Time;

/// Of a lane that has read nothing yet, where no other lane of the link tells better: bytes a second.
const UNKNOWN: u64 = 1_000_000_000;
/// Shorter stretches are not measured, as completions come in batches; nor are fewer bytes: they show how little was wanted.
const STRETCH_US: u64 = 200;
const STRETCH_BYTES: u64 = 128 << 10;
/// How much longer a lane near the memory may take than the soonest of all: so much longer than a slice that it waits for.
const NEAR_FOR: u64 = 2;
/// Weight of what was measured last, against all before: one in so many.
const WEIGHT: u64 = 4;

/// An average of what a lane reads in a second while it has something to read, and what it has been given.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// `None`: not measured yet.
    bytes_s: Option<u64>,
    under_way: u64,
    /// Since when it has had something to read without a pause, or since it was measured last; and what came since.
    since: Time,
    came: u64,
}

impl Pace {
    pub fn under_way(&self) -> u64 {
        self.under_way
    }

    #[cfg(test)]
    fn bytes_s(&self) -> Option<u64> {
        self.bytes_s
    }

    pub fn given(&mut self, now: Time, bytes: u64) {
        if self.under_way == 0 {
            (self.since, self.came) = (now, 0);
        }
        self.under_way += bytes;
    }

    /// Read.
    pub fn came(&mut self, bytes: u64) {
        self.left(bytes);
        self.came += bytes;
    }

    /// After all that came at once.
    pub fn measure(&mut self, now: Time) {
        let stretch_us = now.since_us(self.since);
        let is_long = stretch_us >= STRETCH_US || (self.under_way == 0 && stretch_us > 0);
        if !is_long || self.came < STRETCH_BYTES {
            return;
        }
        let measured = (self.came.saturating_mul(1_000_000) / stretch_us).max(1);
        self.bytes_s = Some(match self.bytes_s {
            Some(before) => (before / WEIGHT * (WEIGHT - 1) + measured / WEIGHT).max(1),
            None => measured,
        });
        (self.since, self.came) = (now, 0);
    }

    /// Not read, and no longer to be.
    pub fn left(&mut self, bytes: u64) {
        assert!(bytes <= self.under_way, "{bytes} bytes of {} under way", self.under_way);
        self.under_way -= bytes;
    }

    /// Microseconds until `bytes` more would be there. `unknown`: bytes a second, if nothing was measured.
    pub fn finish_us(&self, bytes: u64, unknown: Option<u64>) -> u64 {
        let bytes_s = self.bytes_s.or(unknown).unwrap_or(UNKNOWN).max(1);
        (self.under_way + bytes).saturating_mul(1_000_000) / bytes_s
    }
}

/// The index of the lane that would be done first with `bytes` more, of lanes with their index and whether they are near the
/// memory. Lanes that were not measured are taken for as fast as the fastest, so that each is tried. A near one has it if it
/// takes no more than `NEAR_FOR` times as long: what crosses nodes slows all that does, and both are full where all is wanted.
pub fn soonest<'a>(lanes: impl Iterator<Item = (usize, bool, &'a Pace)> + Clone, bytes: u64) -> Option<usize> {
    let fastest = lanes.clone().filter_map(|(_, _, pace)| pace.bytes_s).max();
    let done_us = |pace: &Pace| pace.finish_us(bytes, fastest);
    let first = |lanes: &mut dyn Iterator<Item = (usize, bool, &'a Pace)>| {
        lanes.map(|(index, _, pace)| (done_us(pace), index)).min()
    };
    let (any_us, any) = first(&mut lanes.clone())?;
    let near = first(&mut lanes.filter(|(_, is_near, _)| *is_near));
    Some(near.filter(|(near_us, _)| *near_us <= any_us.saturating_mul(NEAR_FOR)).map_or(any, |(_, near)| near))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(bytes_s: u64) -> Pace {
        Pace { bytes_s: Some(bytes_s), ..Pace::default() }
    }

    /// Gives slices to lanes of these speeds, each working on one at a time, and says how many each got. Some are near.
    fn shares_with(near: &[usize], speeds: &[u64], slices: usize) -> Vec<usize> {
        const SLICE: u64 = 1 << 20;
        const WINDOW: u64 = 8 * SLICE;
        let mut paces = vec![Pace::default(); speeds.len()];
        // When the slices that each lane has will be there.
        let mut lanes: Vec<std::collections::VecDeque<u64>> = vec![Default::default(); speeds.len()];
        let (mut got, mut now) = (vec![0; speeds.len()], 0);
        for _ in 0..slices {
            loop {
                let paced = paces.iter().enumerate().map(|(index, pace)| (index, near.contains(&index), pace));
                let roomy = paced.filter(|(_, _, pace)| pace.under_way() < WINDOW);
                if let Some(lane) = soonest(roomy, SLICE) {
                    let start = lanes[lane].back().copied().unwrap_or(0).max(now);
                    lanes[lane].push_back(start + SLICE * 1_000_000 / speeds[lane]);
                    paces[lane].given(Time(now), SLICE);
                    got[lane] += 1;
                    break;
                }
                let next = (0..speeds.len()).min_by_key(|&lane| lanes[lane].front().copied().unwrap_or(u64::MAX));
                let lane = next.expect("lanes");
                now = lanes[lane].pop_front().expect("one is full");
                paces[lane].came(SLICE);
                paces[lane].measure(Time(now));
            }
        }
        got
    }

    fn shares(speeds: &[u64], slices: usize) -> Vec<usize> {
        shares_with(&[], speeds, slices)
    }

    #[test]
    fn a_near_lane_is_preferred_and_no_lane_is_left_idle_for_it() {
        let (idle, other) = (measured(10_000), measured(10_000));
        assert_eq!(soonest([(0, false, &idle), (1, true, &other)].into_iter(), 1000), Some(1));
        let mut busy = measured(10_000);
        busy.given(Time(0), 1000);
        assert_eq!(soonest([(0, false, &idle), (1, true, &busy)].into_iter(), 1000), Some(1), "it waits for one");
        busy.given(Time(0), 1000);
        assert_eq!(soonest([(0, false, &idle), (1, true, &busy)].into_iter(), 1000), Some(0), "not for two");
        let got = shares_with(&[1], &[12_000_000_000, 12_000_000_000], 2000);
        assert!(got[0].abs_diff(got[1]) < 100, "where all is wanted both are full: {got:?}");
        let got = shares_with(&[1], &[12_000_000_000, 12_000_000], 2000);
        assert!((1..=20).contains(&got[1]), "a near one that crawls is left alone: {got:?}");
    }

    #[test]
    fn lanes_get_slices_as_they_are_fast() {
        let got = shares(&[12_000_000_000, 12_000_000_000], 2000);
        assert!(got[0].abs_diff(got[1]) < 100, "{got:?}");
        let got = shares(&[12_000_000_000, 3_000_000_000], 2000);
        assert!((350..=450).contains(&got[1]), "a fifth: {got:?}");
        let got = shares(&[12_000_000_000, 12_000_000], 2000);
        assert!((1..=20).contains(&got[1]), "what crawls is tried and left alone: {got:?}");
    }

    #[test]
    fn a_lane_is_measured_over_the_time_that_it_had_something_to_read() {
        let mut pace = Pace::default();
        let came = |pace: &mut Pace, now, times| {
            (0..times).for_each(|_| pace.came(1_000_000));
            pace.measure(Time(now));
            pace.bytes_s()
        };
        pace.given(Time(1_000), 4_000_000);
        assert_eq!(came(&mut pace, 1_050, 1), None, "too short a stretch");
        assert_eq!(came(&mut pace, 2_000, 1), Some(2_000_000_000));
        assert_eq!(came(&mut pace, 3_000, 2), Some(2_000_000_000), "two that came at once");
        assert_eq!(pace.under_way(), 0);
        pace.given(Time(9_000_000), 1_000_000);
        assert_eq!(came(&mut pace, 9_000_500, 1), Some(2_000_000_000), "idle time does not count");
        pace.given(Time(10_000_000), 4096);
        pace.came(4096);
        pace.measure(Time(10_001_000));
        assert_eq!(pace.bytes_s(), Some(2_000_000_000), "a small block is no measure");
    }

    #[test]
    fn what_was_not_measured_is_taken_for_as_fast_as_the_fastest() {
        let (fast, slow, new) = (measured(10_000), measured(100), Pace::default());
        let lanes = [(0, false, &slow), (1, false, &new), (2, false, &fast)];
        assert_eq!(soonest(lanes.into_iter(), 1000), Some(1));
        assert_eq!(new.finish_us(1000, Some(10_000)), 100_000);
        assert_eq!(new.finish_us(1000, None), 1);
        assert_eq!(soonest([].into_iter(), 1), None);
    }

    #[test]
    fn what_a_lane_loses_is_no_measure_of_it() {
        let mut pace = measured(1_000_000);
        pace.given(Time(0), 500);
        pace.left(500);
        assert_eq!((pace.under_way(), pace.bytes_s()), (0, Some(1_000_000)));
    }
}
