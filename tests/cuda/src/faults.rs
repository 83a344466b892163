//! Which calls to a device fail, by seed. Pure.

use fastrand::Rng;

use crate::options::{Chance, Fault};

/// The faults of one device: the same seed and the same calls in the same order give the same faults.
#[derive(Debug)]
pub struct Faults {
    rng: Rng,
    left: Vec<Chance>,
}

impl Faults {
    pub fn new(seed: u64, device: usize, chances: &[Chance]) -> Self {
        let left = chances.iter().filter(|chance| chance.device.is_none_or(|given| given == device)).copied().collect();
        Self { rng: Rng::with_seed(seed ^ (device as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)), left }
    }

    /// Whether it strikes now.
    pub fn strike(&mut self, what: Fault) -> bool {
        let Some(chance) = self.left.iter_mut().find(|chance| chance.what == what && chance.times > 0) else {
            return false;
        };
        let strikes = self.rng.u64(..chance.one_in) == 0;
        chance.times -= u64::from(strikes);
        strikes
    }

    /// A number below `end`, for faults that have a place.
    pub fn below(&mut self, end: usize) -> usize {
        self.rng.usize(..end.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_by_seed_at_their_rate_and_no_more_than_asked() {
        let every = |one_in, times| [Chance { device: Some(1), what: Fault::Copy, one_in, times }];
        let run = |seed, device| {
            let mut faults = Faults::new(seed, device, &every(10, u64::MAX));
            (0..1000).filter(|_| faults.strike(Fault::Copy)).collect::<Vec<_>>()
        };
        assert_eq!(run(7, 1), run(7, 1));
        assert_ne!(run(7, 1), run(8, 1));
        assert!((50..200).contains(&run(7, 1).len()), "one in ten");
        assert!(run(7, 0).is_empty(), "of another device");
        let mut faults = Faults::new(7, 1, &every(1, 3));
        assert_eq!((0..10).filter(|_| faults.strike(Fault::Copy)).count(), 3);
        assert!(!faults.strike(Fault::Memory));
    }
}
