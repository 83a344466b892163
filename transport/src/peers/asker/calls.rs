//! What is under way with one peer: calls that it has not answered, and answers that it holds for us. Pure.
//!
//! Invariant: a call that counts no more here counts no more there by the time the peer hears of the next one, so that who
//! keeps to the window here is never refused for passing it there.

use std::collections::{BTreeMap, BTreeSet};

use lapis_config::Time;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Locate,
    /// Nobody: it is looked up.
    Look,
    Offer,
}

#[derive(Debug)]
struct Call {
    kind: Kind,
    deadline: Time,
}

/// What an answer is to this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Awaited,
    /// Its call is over.
    Late,
    /// Its call was another question.
    Wrong,
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    unanswered: BTreeMap<u64, Call>,
    /// Answered with blocks, and not released.
    held: BTreeSet<u64>,
}

impl Calls {
    /// As many as count against the peer's window.
    pub(super) fn len(&self) -> usize {
        self.unanswered.len() + self.held.len()
    }

    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// # Panics
    /// If the name was used before.
    pub(super) fn begin(&mut self, call: u64, kind: Kind, deadline: Time) {
        let former = self.unanswered.insert(call, Call { kind, deadline });
        assert!(former.is_none() && !self.held.contains(&call), "a call's name is used once");
    }

    /// An answer came; the peer holds something for it, or not.
    pub(super) fn answer(&mut self, call: u64, kind: Kind, holds: bool) -> Fit {
        match self.unanswered.remove(&call) {
            Some(asked) if asked.kind != kind => {
                self.unanswered.insert(call, asked);
                Fit::Wrong
            }
            Some(_) => {
                if holds {
                    self.held.insert(call);
                }
                Fit::Awaited
            }
            None => Fit::Late,
        }
    }

    /// False if the peer holds nothing for it.
    pub(super) fn release(&mut self, call: u64) -> bool {
        self.held.remove(&call)
    }

    // Calls are few: as many as a peer allows.

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.unanswered.values().map(|call| call.deadline).min()
    }

    /// Those whose time is over: they count no more.
    pub(super) fn take_late(&mut self, now: Time) -> Vec<(u64, Kind)> {
        let late = |(call, of): (&u64, &Call)| (of.deadline <= now).then_some((*call, of.kind));
        let late: Vec<(u64, Kind)> = self.unanswered.iter().filter_map(late).collect();
        for (call, _) in &late {
            self.unanswered.remove(call);
        }
        late
    }

    /// All that are not answered, as the connection is over; what was held is not any more.
    pub(super) fn take_all(&mut self) -> Vec<u64> {
        self.held.clear();
        std::mem::take(&mut self.unanswered).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_counts_until_its_answer_holds_nothing_any_more() {
        let mut calls = Calls::default();
        (1..=3).for_each(|call| calls.begin(call, Kind::Locate, Time(call * 10)));
        calls.begin(4, Kind::Offer, Time(5));
        assert_eq!((calls.len(), calls.next_deadline()), (4, Some(Time(5))));
        assert_eq!(calls.answer(1, Kind::Locate, true), Fit::Awaited);
        assert_eq!(calls.answer(2, Kind::Locate, false), Fit::Awaited);
        assert_eq!((calls.len(), calls.unanswered()), (3, 2));
        assert_eq!(calls.answer(4, Kind::Locate, true), Fit::Wrong);
        assert_eq!(calls.answer(2, Kind::Locate, true), Fit::Late, "twice");
        assert!(calls.release(1) && !calls.release(1) && !calls.release(3));
        assert_eq!(calls.take_late(Time(5)), [(4, Kind::Offer)]);
        assert_eq!((calls.take_all(), calls.len()), (vec![3], 0));
    }
}
