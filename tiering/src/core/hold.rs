//! Blocks that may not be evicted: those that a get was answered and whose client has not released them, parents whose
//! children are being filled, and for a moment the end of what was put from a magazine: the put may go on below it.

use std::{collections::BTreeSet, time::Duration};

use lapis_config::{
    ClientId, LineId, Time,
    planted::{self, Bug},
};

use super::{Core, HELD};
use crate::{face::Caller, hash::Map, kept::Kept, policy::Policy};

/// Answers that one client may leave unreleased: more, and its oldest end.
const GOTS_MAX: usize = 64;

/// Lines that one client's answers may hold: with more, its oldest answers end. An answer that has more by itself holds
/// nothing.
const HELD_MAX: usize = 8 * lapis_config::BATCH_KEYS_MAX;

/// The end of a client's last put from its magazine is held as an answer of this token, for so long at most. Such a put
/// comes in parts, and asks for room in between; a policy may think least of what has just come.
const TIP: u64 = u64::MAX;
const TIP_HOLD: Duration = Duration::from_millis(250);

/// One of a line's holders. `life` is that of all its holders together: it ends when the block goes in spite of them, and
/// goes on while the block moves between tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub line: LineId,
    pub life: u64,
}

#[derive(Clone, Copy, Debug)]
struct Holders {
    count: u32,
    life: u64,
}

/// One answered get.
pub(super) struct Got {
    pub token: u64,
    pub until: Time,
    pub held: Vec<Held>,
}

#[derive(Default)]
pub(super) struct Holds {
    counts: Map<LineId, Holders>,
    lives: u64,
    ends: BTreeSet<(Time, ClientId, u64)>,
}

impl Holds {
    pub fn until(&self) -> Option<Time> {
        self.ends.first().map(|&(until, ..)| until)
    }

    /// The line is unpublished, whoever holds it.
    pub fn forget(&mut self, line: LineId) {
        self.counts.remove(&line);
    }

    pub fn count(&self, line: LineId) -> u32 {
        self.counts.get(&line).map_or(0, |holders| holders.count)
    }

    /// Of the line's present holders, if it has any.
    pub fn life(&self, line: LineId) -> Option<u64> {
        self.counts.get(&line).map(|holders| holders.life)
    }

    /// Whether the holder still counts.
    pub fn counts(&self, held: Held) -> bool {
        self.life(held.line).is_some_and(|life| life == held.life || planted::is(Bug::HoldOfAnother))
    }

    pub fn lines(&self) -> impl Iterator<Item = LineId> + '_ {
        self.counts.keys().copied()
    }

    pub fn len(&self) -> usize {
        self.counts.len()
    }
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// Whatever the client was shown by this call may go again.
    pub fn release(&mut self, caller: Caller) {
        if self.end_answer(caller) {
            self.run();
        }
    }

    fn end_answer(&mut self, caller: Caller) -> bool {
        let Some(client) = self.clients.get_mut(&caller.client) else { return false };
        let Some(at) = client.gots.iter().position(|got| got.token == caller.token) else { return false };
        let got = client.gots.remove(at).expect("found above");
        self.end_hold(caller.client, got);
        true
    }

    /// The client put blocks down to this one; what it put before may go.
    pub(super) fn keep_tip(&mut self, client: ClientId, tip: Option<(LineId, u64)>) {
        let is_there = |&(line, generation): &(LineId, u64)| {
            self.kept.live(line).is_some_and(|live| live.generation == generation)
        };
        let held = tip.filter(is_there).map(|(line, _)| self.hold(line));
        let caller = Caller { client, token: TIP };
        self.end_answer(caller);
        if let Some(held) = held {
            self.keep_got(caller, self.now.after(TIP_HOLD), vec![held]);
        }
    }

    pub(super) fn hold(&mut self, line: LineId) -> Held {
        self.holds.lives += 1;
        let fresh = Holders { count: 0, life: self.holds.lives };
        let holders = self.holds.counts.entry(line).or_insert(fresh);
        holders.count += 1;
        self.kept.entry_mut(line).flags |= HELD;
        Held { line, life: holders.life }
    }

    pub(super) fn unhold(&mut self, held: Held) {
        if !self.holds.counts(held) {
            return;
        }
        let line = held.line;
        let holders = self.holds.counts.get_mut(&line).expect("it counts");
        holders.count -= 1;
        if holders.count == 0 {
            self.holds.counts.remove(&line);
            self.kept.entry_mut(line).flags &= !HELD;
            self.relink(line);
            self.stirred = true;
        }
    }

    /// Keeps what a get was answered until its release, or `until`.
    pub(super) fn keep_got(&mut self, to: Caller, until: Time, held: Vec<Held>) {
        if held.len() > HELD_MAX {
            return held.into_iter().for_each(|held| self.unhold(held));
        }
        let client = self.clients.get_mut(&to.client).expect("only known clients are answered");
        self.holds.ends.insert((until, to.client, to.token));
        client.gots.push_back(Got { token: to.token, until, held });
        let mut lines: usize = client.gots.iter().map(|got| got.held.len()).sum();
        while let Some(client) = self.clients.get_mut(&to.client)
            && (lines > HELD_MAX || client.gots.len() > GOTS_MAX)
        {
            let oldest = client.gots.pop_front().expect("more than one");
            lines -= oldest.held.len();
            self.end_hold(to.client, oldest);
        }
    }

    pub(super) fn end_hold(&mut self, client: ClientId, got: Got) {
        self.holds.ends.remove(&(got.until, client, got.token));
        for held in got.held {
            self.unhold(held);
        }
    }

    pub(super) fn expire_holds(&mut self) {
        while let Some(&(until, client, token)) = self.holds.ends.first() {
            if until > self.now {
                return;
            }
            self.holds.ends.pop_first();
            let Some(holder) = self.clients.get_mut(&client) else { continue };
            let at = holder.gots.iter().position(|got| got.token == token && got.until == until);
            if let Some(got) = at.and_then(|at| holder.gots.remove(at)) {
                self.end_hold(client, got);
            }
        }
    }
}
