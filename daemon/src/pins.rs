//! Who pins more than it may. Pure: the engine says how much each client pins, this says whom to warn and whom to
//! expel.

use std::{collections::BTreeMap, time::Duration};

use lapis_config::{ClientId, GpuId, Time};

/// Between two counts of pinned bytes: each walks all hazard pages.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where slots wait for readers: in DRAM, and on which GPUs. What is pinned elsewhere is in nobody's way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub dram: bool,
    pub gpus: Vec<GpuId>,
}

impl Waiting {
    pub fn is_anywhere(&self) -> bool {
        self.dram || !self.gpus.is_empty()
    }
}

/// Of one group.
pub struct PinWatch {
    bytes_max: u64,
    age_max: Duration,
    /// Since when a client has been over its bound, and was warned.
    over_since: BTreeMap<ClientId, Time>,
    looked: Option<Time>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    pub warn: Vec<ClientId>,
    /// Was warned, and is within its bound again.
    pub pardon: Vec<ClientId>,
    pub expel: Vec<ClientId>,
}

impl PinWatch {
    pub fn new(bytes_max: u64, age_max: Duration) -> Self {
        Self { bytes_max, age_max, over_since: BTreeMap::new(), looked: None }
    }

    pub fn due(&self, now: Time) -> bool {
        self.looked.is_none_or(|at| now >= at.after(LOOK_EVERY))
    }

    /// `pinned`: bytes per client of the group now, of all memories where slots wait for readers together; nobody's while
    /// none does.
    pub fn judge(&mut self, now: Time, pinned: &[(ClientId, u64)]) -> Verdicts {
        self.looked = Some(now);
        let over: BTreeMap<ClientId, u64> =
            pinned.iter().copied().filter(|(_, bytes)| *bytes > self.bytes_max).collect();
        let mut verdicts = Verdicts::default();
        verdicts.pardon.extend(self.over_since.keys().filter(|id| !over.contains_key(id)));
        self.over_since.retain(|id, _| over.contains_key(id));
        for &id in over.keys() {
            match self.over_since.get(&id) {
                None => {
                    self.over_since.insert(id, now);
                    verdicts.warn.push(id);
                }
                Some(since) if now >= since.after(self.age_max) => {
                    self.over_since.remove(&id);
                    verdicts.expel.push(id);
                }
                Some(_) => {}
            }
        }
        verdicts
    }

    /// Whether anybody is over: then `judge` is due though no slot waits any more.
    pub fn is_watching(&self) -> bool {
        !self.over_since.is_empty()
    }

    /// When to look again, if anybody is over.
    pub fn poll_timeout(&self) -> Option<Time> {
        (!self.over_since.is_empty()).then(|| self.looked.map_or(Time(0), |at| at.after(LOOK_EVERY)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_over_its_bound_is_warned_once_and_expelled_after_its_grace() {
        let (t0, id) = (Time(1_000_000), ClientId(7));
        let mut pins = PinWatch::new(100, Duration::from_secs(1));
        assert!(pins.due(t0));
        assert_eq!(pins.judge(t0, &[(id, 101)]), Verdicts { warn: vec![id], ..Verdicts::default() });
        let half = t0.after(Duration::from_millis(500));
        assert_eq!(pins.judge(half, &[(id, 101)]), Verdicts::default());
        let end = t0.after(Duration::from_secs(1));
        assert_eq!(pins.judge(end, &[(id, 101)]), Verdicts { expel: vec![id], ..Verdicts::default() });
    }

    #[test]
    fn a_client_that_lets_go_in_time_starts_over() {
        let (t0, id) = (Time(1_000_000), ClientId(7));
        let mut pins = PinWatch::new(100, Duration::from_secs(1));
        pins.judge(t0, &[(id, 200)]);
        let better = pins.judge(t0.after(Duration::from_millis(200)), &[(id, 100)]);
        assert_eq!(better, Verdicts { pardon: vec![id], ..Verdicts::default() });
        assert!(!pins.is_watching() && pins.poll_timeout().is_none());
        let late = t0.after(Duration::from_secs(5));
        assert_eq!(pins.judge(late, &[(id, 200)]), Verdicts { warn: vec![id], ..Verdicts::default() });
        assert!(pins.poll_timeout().is_some());
    }

    #[test]
    fn a_client_that_went_while_over_is_watched_no_more() {
        let (t0, id) = (Time(1_000_000), ClientId(7));
        let mut pins = PinWatch::new(100, Duration::from_secs(1));
        pins.judge(t0, &[(id, 200)]);
        assert!(pins.is_watching());
        pins.judge(t0.after(Duration::from_millis(100)), &[]);
        assert!(!pins.is_watching() && pins.poll_timeout().is_none());
    }
}
