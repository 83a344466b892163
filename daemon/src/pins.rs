//! Who pins more than it may. Pure: the engine says how much each client pins, this says whom to warn and whom to
//! expel.

use std::{collections::BTreeMap, time::Duration};

use lapis_config::{ClientId, Time};

/// Between two counts of pinned bytes: each walks all hazard pages.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub struct PinWatch {
    bytes_max: u64,
    age_max: Duration,
    /// Since when a client has been over its bound, and was warned.
    over_since: BTreeMap<(usize, ClientId), Time>,
    looked: Option<Time>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    pub warn: Vec<ClientId>,
    pub expel: Vec<ClientId>,
}

impl PinWatch {
    pub fn new(bytes_max: u64, age_max: Duration) -> Self {
        Self { bytes_max, age_max, over_since: BTreeMap::new(), looked: None }
    }

    pub fn due(&self, now: Time) -> bool {
        self.looked.is_none_or(|at| now >= at.after(LOOK_EVERY))
    }

    /// `pinned`: bytes per client of the group now; called only while slots wait for readers.
    pub fn judge(&mut self, now: Time, group: usize, pinned: &[(ClientId, u64)]) -> Verdicts {
        self.looked = Some(now);
        self.over_since.retain(|(g, id), _| *g != group || pinned.iter().any(|(other, _)| other == id));
        let mut verdicts = Verdicts::default();
        for &(id, bytes) in pinned {
            if bytes <= self.bytes_max {
                self.over_since.remove(&(group, id));
                continue;
            }
            match self.over_since.get(&(group, id)) {
                None => {
                    self.over_since.insert((group, id), now);
                    verdicts.warn.push(id);
                }
                Some(since) if now >= since.after(self.age_max) => {
                    self.over_since.remove(&(group, id));
                    verdicts.expel.push(id);
                }
                Some(_) => {}
            }
        }
        verdicts
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
        assert_eq!(pins.judge(t0, 0, &[(id, 101)]), Verdicts { warn: vec![id], expel: vec![] });
        let half = t0.after(Duration::from_millis(500));
        assert_eq!(pins.judge(half, 0, &[(id, 101)]), Verdicts::default());
        let end = t0.after(Duration::from_secs(1));
        assert_eq!(pins.judge(end, 0, &[(id, 101)]), Verdicts { warn: vec![], expel: vec![id] });
    }

    #[test]
    fn a_client_that_lets_go_in_time_starts_over() {
        let (t0, id) = (Time(1_000_000), ClientId(7));
        let mut pins = PinWatch::new(100, Duration::from_secs(1));
        pins.judge(t0, 0, &[(id, 200)]);
        pins.judge(t0.after(Duration::from_millis(200)), 0, &[(id, 100)]);
        let late = t0.after(Duration::from_secs(5));
        assert_eq!(pins.judge(late, 0, &[(id, 200)]), Verdicts { warn: vec![id], expel: vec![] });
        assert!(pins.poll_timeout().is_some());
    }
}
