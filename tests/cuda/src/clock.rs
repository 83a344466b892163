//! Vector clocks: what is known to have happened. Pure.
//!
//! Each stream is an actor; all threads of the host together are one. Threads hand work to each other by means that a driver
//! does not see, so what one of them has waited for counts for all: a race between threads may be missed, none is made up.

use std::collections::BTreeMap;

/// Who acts: the host, or a stream.
pub type Actor = u32;
pub const HOST: Actor = 0;

/// How many acts of each actor are known to have happened.
#[derive(Clone, Debug, Default)]
pub struct Clock(BTreeMap<Actor, u64>);

impl Clock {
    /// One more act of `actor`; its number, counted from 1.
    pub fn tick(&mut self, actor: Actor) -> u64 {
        let acts = self.0.entry(actor).or_default();
        *acts += 1;
        *acts
    }

    /// Knows from now on what `other` knows.
    pub fn join(&mut self, other: &Clock) {
        for (actor, acts) in &other.0 {
            let known = self.0.entry(*actor).or_default();
            *known = (*known).max(*acts);
        }
    }

    pub fn knows(&self, actor: Actor, act: u64) -> bool {
        self.0.get(&actor).is_some_and(|known| *known >= act)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_joined_is_known_and_what_came_later_is_not() {
        let (mut one, mut other) = (Clock::default(), Clock::default());
        let first = one.tick(1);
        other.join(&one);
        let second = one.tick(1);
        assert!(other.knows(1, first) && !other.knows(1, second) && !other.knows(2, 1));
        other.tick(2);
        one.join(&other);
        assert!(one.knows(1, second) && one.knows(2, 1), "a join takes nothing away");
    }
}
