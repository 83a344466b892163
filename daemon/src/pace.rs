//! When the loop looks at sockets and when it gives up spinning. Pure: time comes in as an argument.

use lapis_config::Time;

/// After the last frame of a put, the loop looks at the rings so long before it sleeps: longer than a client takes to
/// copy and sum a block of 2 MiB (about 200 us here), so that a batch of puts pays one wake-up, not one a block. A woken
/// daemon may also be put on its client's CPU: one switch a doorbell was seen. An idle daemon takes no CPU.
///
/// Nothing else makes it spin: who asked for blocks waits for us, and devices wake us by themselves. Spinning behind
/// each of their reports took four times the processor time of all the rest (`lapis bench ssd_read`).
const SPIN_US: u64 = 300;
/// Between two looks at sockets while rings keep the loop busy. By the clock, not by turns: where more threads want to
/// run than there are processors, each turn's yield takes a slice of 4 ms. 64 turns were 100 ms there, and a client is
/// served after three looks: its connection, its `Hello`, its pool.
const LISTEN_EVERY_US: u64 = 200;

/// What the loop did last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    busy_at: Time,
    /// When the last frame of a put came.
    fed_at: Option<Time>,
    listened_at: Time,
}

impl Pace {
    pub(crate) fn new(now: Time) -> Self {
        Self { busy_at: now, fed_at: None, listened_at: now }
    }

    /// There was something to do.
    pub(crate) fn busy(&mut self, at: Time) {
        self.busy_at = at;
    }

    /// Frames of puts came: more follow.
    pub(crate) fn fed(&mut self, at: Time) {
        self.fed_at = Some(at);
    }

    /// Sockets were looked at.
    pub(crate) fn listened(&mut self, at: Time) {
        self.listened_at = at;
    }

    /// Whether sockets have waited long enough for a look.
    pub(crate) fn listens(&self, at: Time) -> bool {
        at.since_us(self.listened_at) >= LISTEN_EVERY_US
    }

    /// Whether more is expected so soon that sleeping would cost more.
    pub(crate) fn spins(&self, at: Time) -> bool {
        self.fed_at.is_some_and(|fed| at.since_us(fed) < SPIN_US)
    }

    /// Since there was something to do.
    pub(crate) fn idle_us(&self, at: Time) -> u64 {
        at.since_us(self.busy_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns of a loop that rings keep busy for a second: how many looks at sockets, and the longest time without one.
    fn second_of_turns(turn_us: u64) -> (u64, u64) {
        let mut pace = Pace::new(Time(0));
        let (mut looks, mut heard_at, mut longest_us) = (0, 0, 0);
        for at in (0..1_000_000).step_by(turn_us as usize) {
            pace.busy(Time(at));
            pace.fed(Time(at));
            if pace.listens(Time(at)) {
                pace.listened(Time(at));
                longest_us = longest_us.max(at - heard_at);
                (looks, heard_at) = (looks + 1, at);
            }
            assert!(pace.spins(Time(at)), "it has just been busy");
        }
        (looks, longest_us)
    }

    #[test]
    fn a_busy_loop_hears_sockets_in_time_however_long_a_turn_takes() {
        for turn_us in [1, 10, 150, 4_000, 20_000] {
            let (_, longest_us) = second_of_turns(turn_us);
            assert!(longest_us <= LISTEN_EVERY_US + turn_us, "turns of {turn_us} us: {longest_us} us without a look");
        }
    }

    #[test]
    fn short_turns_do_not_each_pay_for_a_look_at_sockets() {
        let (looks, _) = second_of_turns(1);
        assert!(looks <= 1_000_000 / LISTEN_EVERY_US, "{looks} looks a second");
    }

    #[test]
    fn a_loop_spins_for_the_next_frame_of_a_put_and_for_nothing_else() {
        let mut pace = Pace::new(Time(0));
        pace.busy(Time(1_000));
        assert!(!pace.spins(Time(1_001)), "a device reported, or a get came");
        pace.fed(Time(1_000));
        assert!(pace.spins(Time(1_000 + SPIN_US - 1)));
        assert!(!pace.spins(Time(1_000 + SPIN_US)));
    }
}
