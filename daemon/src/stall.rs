//! Sees that the engine loop stood still, and says by what: the host's processors, its disks, or the loop itself. Clients
//! that were not answered meanwhile went on without blocks; this tells why.

use lapis_config::Time;

/// A turn is at most a sleep of 250 ms and some milliseconds of work.
const STALL_US: u64 = 1_000_000;
/// What the kernel counted is read so often: it is known from shortly before a stall.
const READ_EVERY_US: u64 = 250_000;
const SCHEDSTAT: &str = "/proc/thread-self/schedstat";

/// What the kernel has counted of this thread since its start. Not what a hypervisor took: /proc/stat, which has that, takes
/// the kernel milliseconds where there are many processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    /// This thread ran.
    ran_us: u64,
    /// It was ready to run, and another thread had the processor.
    queued_us: u64,
    /// Pages of it that had to be read from a disk.
    major_faults: u64,
}

impl Counted {
    /// What cannot be read counts as 0: it is told, nothing is decided by it.
    fn read() -> Self {
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::of(&text(SCHEDSTAT), &text("/proc/thread-self/stat"))
    }

    fn of(schedstat: &str, stat: &str) -> Self {
        let number =
            |text: &str, at: usize| text.split_whitespace().nth(at).and_then(|word| word.parse().ok()).unwrap_or(0);
        // Behind the name, which may have any characters in it: the state, and 8 fields later the faults.
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        let [ran_us, queued_us] = [0, 1].map(|at| number(schedstat, at) / 1000);
        Self { ran_us, queued_us, major_faults: number(behind_name, 9) }
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            ran_us: self.ran_us.saturating_sub(earlier.ran_us),
            queued_us: self.queued_us.saturating_sub(earlier.queued_us),
            major_faults: self.major_faults.saturating_sub(earlier.major_faults),
        }
    }
}

/// Watches one loop; of the thread that it is called on.
#[derive(Debug)]
pub(crate) struct StallWatch {
    turned: Time,
    known: Counted,
    known_at: Time,
}

impl StallWatch {
    pub(crate) fn new(now: Time) -> Self {
        Self { turned: now, known: Counted::read(), known_at: now }
    }

    /// Once a turn. True if the loop stood still since the last one.
    pub(crate) fn turn(&mut self, now: Time) -> bool {
        let us = now.since_us(std::mem::replace(&mut self.turned, now));
        let stalled = us > STALL_US;
        if stalled || now.since_us(self.known_at) >= READ_EVERY_US {
            let counted = Counted::read();
            if stalled {
                let Counted { ran_us, queued_us, major_faults } = counted.since(self.known);
                tracing::warn!(
                    us,
                    ran_us,
                    queued_us,
                    major_faults,
                    "the engine loop stood still, and answered nobody meanwhile: it ran, waited for a processor (queued) or for \
                     pages from disk (major faults), or was stopped (none of them)"
                );
            }
            (self.known, self.known_at) = (counted, now);
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_of_more_than_a_second_is_a_stall_and_the_next_one_is_not() {
        let mut watch = StallWatch::new(Time(0));
        assert!(!watch.turn(Time(STALL_US)));
        assert!(watch.turn(Time(2 * STALL_US + 1)));
        assert!(!watch.turn(Time(2 * STALL_US + 2)));
    }

    #[test]
    fn what_the_kernel_counts_is_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 900 12 34 56 7 8 0 0 20 0 3 0 100 0 0";
        let counted = Counted::of("123456789 987654321 42\n", stat);
        assert_eq!(counted, Counted { ran_us: 123_456, queued_us: 987_654, major_faults: 34 });
        assert_eq!(Counted::of("", ""), Counted::default());
    }

    #[test]
    fn this_kernel_counts_what_this_thread_runs() {
        if !std::path::Path::new(SCHEDSTAT).exists() {
            println!("skipped: this kernel has no {SCHEDSTAT}");
            return;
        }
        let before = Counted::read();
        let until = std::time::Instant::now() + std::time::Duration::from_millis(50);
        while std::time::Instant::now() < until {}
        let ran_us = Counted::read().since(before).ran_us;
        assert!(ran_us > 0, "50 ms of a spin are counted as {ran_us} us");
    }
}
