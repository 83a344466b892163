//! How well a device does: who errs or stalls is not written to any more and probed, who does not recover is taken out,
//! who answers again is brought back. One that is gone for good is let go of, and another looked for in its place. Pure.

use std::time::Duration;

use lapis_config::Time;

/// So many errors within this time, and the device is degraded.
const ERRORS_MAX: usize = 3;
const ERRORS_WITHIN: Duration = Duration::from_secs(10);
/// An operation that takes so long is a stall.
const STALL: Duration = Duration::from_secs(3);
/// Between two probes of a device that is not well.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// So many good probes in a row, and it is well again.
const PROBES_GOOD: u32 = 3;
/// Degraded for so long, it is taken out.
const OUT_AFTER: Duration = Duration::from_secs(15);
/// Between two looks for a device that is gone.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// Before a device that came back with something else on it is looked at again.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    Well,
    /// Read, but not written.
    Degraded {
        since: Time,
    },
    /// Neither.
    Out,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    Degrade,
    /// It is written again.
    Restore,
    TakeOut,
    Probe,
    /// It answers: what is on it is to be read anew.
    BringBack,
    /// It is gone: to be let go of, and whatever is in its place by now opened.
    Renew,
}

/// One device's. Ask `poll` until there is nothing after every other call, and at `poll_timeout`.
#[derive(Clone, Debug)]
pub struct DeviceHealth {
    state: DeviceState,
    /// The latest ones.
    errors: Vec<Time>,
    probe_at: Time,
    probing: bool,
    good: u32,
    /// It is gone, and nothing was found in its place yet; when that is looked for next.
    gone: bool,
    renew_at: Time,
}

impl Default for DeviceHealth {
    fn default() -> Self {
        Self {
            state: DeviceState::Well,
            errors: Vec::new(),
            probe_at: Time(0),
            probing: false,
            good: 0,
            gone: false,
            renew_at: Time(0),
        }
    }
}

impl DeviceHealth {
    pub fn state(&self) -> DeviceState {
        self.state
    }

    /// An operation ended with an error of the device.
    pub fn erred(&mut self, now: Time) {
        self.errors.retain(|at| now < at.after(ERRORS_WITHIN));
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(now);
        }
        self.good = 0;
    }

    /// It cannot be used at all.
    pub fn failed(&mut self, now: Time) {
        self.errors = vec![now; ERRORS_MAX];
        self.good = 0;
    }

    /// The kernel has it no more: whoever has it open can do nothing with it, now or later.
    pub fn vanished(&mut self, now: Time) {
        (self.gone, self.renew_at) = (true, now);
    }

    /// Something was found in the place of one that was gone.
    pub fn found(&mut self, now: Time) {
        self.gone = false;
        (self.good, self.probe_at) = (0, now);
    }

    /// What came back is not to be used.
    pub fn refused(&mut self, now: Time) {
        self.good = 0;
        self.probe_at = now.after(REFUSED_PAUSE);
    }

    pub fn probed(&mut self, now: Time, ok: bool) {
        self.probing = false;
        self.probe_at = now.after(PROBE_EVERY);
        self.good = if ok { self.good + 1 } else { 0 };
    }

    /// What is to be done next; `oldest`: since when the oldest operation is with the device.
    pub fn poll(&mut self, now: Time, oldest: Option<Time>) -> Option<Care> {
        let stalled = oldest.is_some_and(|at| now >= at.after(STALL));
        match self.state {
            DeviceState::Well if self.gone || stalled || self.errors.len() >= ERRORS_MAX => {
                (self.state, self.good) = (DeviceState::Degraded { since: now }, 0);
                self.errors.clear();
                self.probe_at = now;
                Some(Care::Degrade)
            }
            DeviceState::Degraded { .. } if self.good >= PROBES_GOOD && !stalled && !self.gone => {
                (self.state, self.good) = (DeviceState::Well, 0);
                self.errors.clear();
                Some(Care::Restore)
            }
            DeviceState::Degraded { since } if self.gone || now >= since.after(OUT_AFTER) => {
                (self.state, self.good) = (DeviceState::Out, 0);
                Some(Care::TakeOut)
            }
            DeviceState::Out if self.gone => {
                // What is under way ends first: whoever has the device open may not let go of it before.
                (oldest.is_none() && now >= self.renew_at).then(|| {
                    self.renew_at = now.after(RENEW_EVERY);
                    Care::Renew
                })
            }
            DeviceState::Out if self.good >= PROBES_GOOD && oldest.is_none() => {
                self.good = 0;
                self.errors.clear();
                self.probe_at = now.after(PROBE_EVERY);
                Some(Care::BringBack)
            }
            DeviceState::Degraded { .. } | DeviceState::Out if !self.probing && now >= self.probe_at => {
                self.probing = true;
                Some(Care::Probe)
            }
            _ => None,
        }
    }

    /// It was opened anew and serves.
    pub fn brought_back(&mut self) {
        // It may have gone meanwhile.
        *self = Self { gone: self.gone, renew_at: self.renew_at, ..Self::default() };
    }

    pub fn poll_timeout(&self, oldest: Option<Time>) -> Option<Time> {
        let probe = (!self.probing).then_some(self.probe_at);
        match self.state {
            DeviceState::Out if self.gone => oldest.is_none().then_some(self.renew_at),
            DeviceState::Well => oldest.map(|at| at.after(STALL)),
            DeviceState::Degraded { since } => Some(since.after(OUT_AFTER)).into_iter().chain(probe).min(),
            DeviceState::Out => probe,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(1_000_000 + ms * 1_000)
    }

    #[test]
    fn one_bad_sector_is_no_bad_device() {
        let mut health = DeviceHealth::default();
        for ms in [0, 11_000, 22_000, 23_000] {
            health.erred(at(ms));
            assert_eq!(health.poll(at(ms), None), None);
        }
        health.erred(at(24_000));
        assert_eq!(health.poll(at(24_000), None), Some(Care::Degrade));
    }

    #[test]
    fn a_device_that_stalls_and_answers_again_is_written_again() {
        let mut health = DeviceHealth::default();
        assert_eq!(health.poll(at(2_999), Some(at(0))), None);
        assert_eq!(health.poll_timeout(Some(at(0))), Some(at(3_000)));
        assert_eq!(health.poll(at(3_000), Some(at(0))), Some(Care::Degrade));
        for ms in [3_000, 4_100, 5_200] {
            assert_eq!(health.poll(at(ms), None), Some(Care::Probe));
            assert_eq!(health.poll(at(ms), None), None, "one probe at a time");
            health.probed(at(ms), true);
        }
        assert_eq!(health.poll(at(5_200), None), Some(Care::Restore));
    }

    #[test]
    fn a_device_that_does_not_recover_is_taken_out_and_brought_back_when_it_does() {
        let mut health = DeviceHealth::default();
        health.failed(at(0));
        assert_eq!(health.poll(at(0), None), Some(Care::Degrade));
        for ms in [0, 5_000] {
            assert_eq!(health.poll(at(ms), None), Some(Care::Probe));
            health.probed(at(ms), false);
        }
        assert_eq!(health.poll(at(15_000), None), Some(Care::TakeOut));
        for ms in [15_000, 16_000, 17_000] {
            assert_eq!(health.poll(at(ms), Some(at(0))), Some(Care::Probe), "{ms}");
            health.probed(at(ms), true);
        }
        assert_ne!(health.poll(at(17_000), Some(at(0))), Some(Care::BringBack), "something is still under way");
        assert_eq!(health.poll(at(17_000), None), Some(Care::BringBack));
        health.brought_back();
        assert_eq!((health.state(), health.poll(at(18_000), None)), (DeviceState::Well, None));
    }
    /// Until nothing is to be done.
    fn all(health: &mut DeviceHealth, now: Time, oldest: Option<Time>) -> Vec<Care> {
        std::iter::from_fn(|| health.poll(now, oldest)).collect()
    }

    #[test]
    fn a_device_that_is_gone_is_out_at_once_and_looked_for_until_there_is_another() {
        let mut health = DeviceHealth::default();
        health.vanished(at(0));
        assert_eq!(all(&mut health, at(0), Some(at(0))), [Care::Degrade, Care::TakeOut], "something is under way");
        assert_eq!(health.poll_timeout(Some(at(0))), None, "its end is waited for");
        assert_eq!(all(&mut health, at(100), None), [Care::Renew]);
        assert_eq!(health.poll_timeout(None), Some(at(2_100)));
        assert_eq!(all(&mut health, at(2_099), None), []);
        assert_eq!(all(&mut health, at(2_100), None), [Care::Renew]);
        health.found(at(2_200));
        for ms in [2_200, 3_200, 4_200] {
            assert_eq!(all(&mut health, at(ms), None), [Care::Probe], "{ms}");
            health.probed(at(ms), true);
        }
        assert_eq!(all(&mut health, at(4_200), None), [Care::BringBack]);
        health.brought_back();
        assert_eq!((health.state(), all(&mut health, at(4_300), None)), (DeviceState::Well, vec![]));
    }

    #[test]
    fn a_degraded_device_that_goes_is_not_waited_for() {
        let mut health = DeviceHealth::default();
        health.failed(at(0));
        assert_eq!(all(&mut health, at(0), None), [Care::Degrade, Care::Probe]);
        (0..PROBES_GOOD).for_each(|_| health.probed(at(10), true));
        health.vanished(at(20));
        assert_eq!(all(&mut health, at(20), None), [Care::TakeOut, Care::Renew], "its good probes do not count");
    }

    #[test]
    fn one_that_goes_while_it_is_brought_back_is_taken_out_again() {
        let mut health = DeviceHealth::default();
        health.vanished(at(0));
        health.brought_back();
        assert_eq!(all(&mut health, at(1), None), [Care::Degrade, Care::TakeOut, Care::Renew]);
    }

    #[test]
    fn what_is_refused_is_looked_at_again_after_a_while() {
        let mut health = DeviceHealth::default();
        health.failed(at(0));
        assert_eq!(all(&mut health, at(0), None), [Care::Degrade, Care::Probe]);
        health.probed(at(0), false);
        assert_eq!(all(&mut health, at(15_000), None), [Care::TakeOut, Care::Probe]);
        health.probed(at(15_000), true);
        health.refused(at(16_000));
        assert_eq!(all(&mut health, at(45_999), None), []);
        assert_eq!(all(&mut health, at(46_000), None), [Care::Probe]);
    }
}
