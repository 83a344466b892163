//! Who touched which bytes, and whether that was ordered. Pure.
//!
//! Invariant: an access leaves the list only when everyone who is still to come knows of it.

use std::collections::HashMap;

use crate::clock::{Actor, Clock};

/// Accesses kept of one object; of more, those that the host knows of go first.
const KEPT_MAX: usize = 4096;

/// The memory itself, whatever addresses it has: device and inode of a file, or (0, 0) for this process's own addresses.
pub type Key = (u64, u64);

/// Bytes `start..end` of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    pub key: Key,
    pub start: u64,
    pub end: u64,
}

impl Bytes {
    pub fn overlap(&self, other: &Bytes) -> bool {
        self.key == other.key && self.start < other.end && other.start < self.end
    }
}

/// One access that was made.
#[derive(Clone, Debug)]
pub struct Access {
    pub bytes: Bytes,
    pub writes: bool,
    pub actor: Actor,
    pub act: u64,
    /// The call that asked for it.
    pub call: &'static str,
}

#[derive(Debug, Default)]
pub struct History {
    objects: HashMap<Key, Vec<Access>>,
}

impl History {
    /// Adds an access by someone who knows `clock`; returns one that it races with: made without order between the two,
    /// on bytes of both, and one of them writes.
    pub fn touch(&mut self, access: Access, clock: &Clock) -> Option<Access> {
        let list = self.objects.entry(access.bytes.key).or_default();
        let races = |old: &Access| {
            old.bytes.overlap(&access.bytes) && (old.writes || access.writes) && !clock.knows(old.actor, old.act)
        };
        let found = list.iter().find(|old| races(old)).cloned();
        // An older one of the same kind and actor says nothing more about these bytes.
        list.retain(|old| {
            let within = access.bytes.start <= old.bytes.start && old.bytes.end <= access.bytes.end;
            !(within && old.actor == access.actor && old.writes == access.writes)
        });
        list.push(access);
        found
    }

    /// Forgets what is known to the host; to be called when nothing is queued that knows less.
    pub fn forget(&mut self, host: &Clock) {
        for list in self.objects.values_mut() {
            list.retain(|access| !host.knows(access.actor, access.act));
        }
        self.objects.retain(|_, list| !list.is_empty());
    }

    /// Bounds the lists also while queues never run empty.
    pub fn bound(&mut self, host: &Clock) {
        for list in self.objects.values_mut().filter(|list| list.len() > KEPT_MAX) {
            list.retain(|access| !host.knows(access.actor, access.act));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(actor: Actor, clock: &mut Clock, start: u64, end: u64, writes: bool) -> Access {
        let act = clock.tick(actor);
        Access { bytes: Bytes { key: (0, 1), start, end }, writes, actor, act, call: "test" }
    }

    #[test]
    fn two_that_overlap_race_if_one_writes_and_nothing_orders_them() {
        let (mut history, mut one, mut two) = (History::default(), Clock::default(), Clock::default());
        assert!(history.touch(access(1, &mut one, 0, 10, false), &one).is_none());
        assert!(history.touch(access(2, &mut two, 5, 15, false), &two).is_none(), "two readers");
        assert!(history.touch(access(2, &mut two, 10, 20, true), &two).is_none(), "other bytes than the first");
        let found = history.touch(access(1, &mut one, 12, 13, false), &one).expect("a race");
        assert_eq!((found.actor, found.writes), (2, true));
        one.join(&two);
        assert!(history.touch(access(1, &mut one, 12, 13, true), &one).is_none(), "ordered by the join");
    }

    #[test]
    fn what_the_host_knows_is_forgotten_and_nothing_else() {
        let (mut history, mut one, mut host) = (History::default(), Clock::default(), Clock::default());
        history.touch(access(1, &mut one, 0, 10, true), &one);
        host.join(&one);
        history.touch(access(1, &mut one, 20, 30, true), &one);
        history.forget(&host);
        let mut two = Clock::default();
        assert!(history.touch(access(2, &mut two, 0, 10, true), &two).is_none(), "forgotten");
        assert!(history.touch(access(2, &mut two, 20, 30, true), &two).is_some(), "not known to the host");
    }
}
