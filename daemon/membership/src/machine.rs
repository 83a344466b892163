//! What to ask etcd next, so that this host is listed and all others are known. Pure: no socket, no clock, no thread.
//!
//! Two things go on side by side: this host's standing (a lease, kept alive, and its key under it) and the view (a list,
//! then a watch from its revision on). Both ask one endpoint; when it is away, both go on to the next one.
//!
//! Invariant: at most one request of each, and one watch, is under way.
//! Invariant: another's key is never overwritten: only an own one, known by its boot number, at the revision it was seen.
//! Invariant: members change by what etcd says alone, never because etcd says nothing.

mod standing;

use std::{collections::VecDeque, mem, time::Duration};

use lapis_config::{Member, Time};

use super::{
    KnownBy,
    view::{Entry, Listed, View},
    words::{Answer, Failure, Request, Watched},
};

/// Between two rounds of endpoints that were all away: doubled from round to round.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A watch that ends within it was not worth its opening.
const WATCH_SHORT_US: u64 = 1_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipOptions {
    /// This host, and where others reach it.
    pub host: String,
    pub address: String,
    /// Not 0, and another one in each life of the daemon.
    pub boot: u64,
    pub version: String,
    pub prefix: String,
    pub ttl: Duration,
    /// How many endpoints there are.
    pub endpoints: usize,
}

impl MembershipOptions {
    /// What is put under this host's key.
    pub fn value(&self) -> String {
        Entry { address: self.address.clone(), boot: self.boot, version: self.version.clone() }.json()
    }
}

/// What the driver is to do. What it has done it says with the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Answered or failed within the time, always.
    Call { number: u64, endpoint: usize, request: Request, within_us: u64 },
    /// Of what changes after that revision; opened or failed within the time, always.
    Watch { number: u64, endpoint: usize, revision: u64, within_us: u64 },
    /// Nothing more is wanted of this call or watch.
    End { number: u64 },
}

/// What people should know; said once for each change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// One of several endpoints; the next one is asked.
    EndpointAway {
        endpoint: usize,
        why: String,
    },
    Lost {
        why: String,
    },
    Back {
        away_us: u64,
    },
    Listed {
        address: String,
    },
    /// etcd has let go of this host's lease, or somebody has deleted its key.
    Unlisted {
        why: &'static str,
    },
    /// Another host has this one's name. `for_good`: under no lease, so it does not end by itself.
    Taken {
        by: String,
        for_good: bool,
    },
    /// A former daemon of this host is still listed, at the same address.
    Former,
    /// This host may not be listed; others are seen.
    Refused {
        why: String,
    },
    Foreign {
        key: String,
        why: String,
    },
    /// At the end: others think that this host is there until its lease ends.
    Unrevoked {
        why: String,
    },
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    id: i64,
    ttl_us: u64,
    keep_at: Time,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Claim {
    /// Not made, or not answered.
    Wanted { at: Time, over: Option<u64> },
    /// The key is there as of this revision.
    Made { revision: u64 },
}

/// A request about this host's standing.
#[derive(Clone, Debug)]
struct Call {
    number: u64,
    request: Request,
    sent: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seeing {
    Nothing,
    Listing { number: u64 },
    Opening { number: u64 },
    Watching { number: u64, since: Time, heard: Time },
}

#[derive(Debug)]
pub struct Membership {
    options: MembershipOptions,
    endpoint: usize,
    /// Endpoints that were away since one was not, in this round and rounds before.
    away: usize,
    rounds: u32,
    retry_at: Time,
    failing_since: Option<Time>,
    lost: Option<(Time, String)>,

    lease: Option<Lease>,
    claim: Claim,
    call: Option<Call>,
    /// Not before it, and how often in a row it failed.
    standing_at: Time,
    standing_failures: u32,
    refused: Option<String>,
    taken: Option<String>,

    seeing: Seeing,
    view: View,
    published: Option<Vec<Member>>,

    numbers: u64,
    random: u64,
    asks: VecDeque<Ask>,
    notes: VecDeque<Note>,
    stopping: bool,
}

impl Membership {
    pub fn new(now: Time, options: MembershipOptions) -> Self {
        assert!(options.endpoints > 0 && options.boot != 0, "an endpoint, and a boot number");
        let random = options.boot;
        Self {
            // Not all hosts at the first one.
            endpoint: (random % options.endpoints as u64) as usize,
            away: 0,
            rounds: 0,
            retry_at: now,
            failing_since: Some(now),
            lost: None,
            lease: None,
            claim: Claim::Wanted { at: now, over: None },
            call: None,
            standing_at: now,
            standing_failures: 0,
            refused: None,
            taken: None,
            seeing: Seeing::Nothing,
            view: View::new(&options.prefix, &options.host),
            published: None,
            numbers: 0,
            random,
            asks: VecDeque::new(),
            notes: VecDeque::new(),
            stopping: false,
            options,
        }
    }

    fn ttl_us(&self) -> u64 {
        self.options.ttl.as_micros() as u64
    }

    /// For one answer. A lease that is kept every third of its time is lost at the earliest when etcd is away for two
    /// thirds; every host has noticed by 1/3 + 1/5, and so holds on to the others.
    fn within_us(&self) -> u64 {
        (self.ttl_us() / 5).min(5_000_000)
    }

    /// A watch says nothing for so long: then it may be dead, and the list is asked for anew.
    fn silent_us(&self) -> u64 {
        (self.ttl_us() * 3).max(10_000_000)
    }

    /// Whoever comes back is heard of. While it is not so, nobody is let go.
    fn sees(&self) -> bool {
        self.away == 0 && matches!(self.seeing, Seeing::Watching { .. })
    }

    // ---- Asking ----

    /// What to do next; called until `None` after every input and at `poll_timeout`.
    pub fn poll_ask(&mut self, now: Time) -> Option<Ask> {
        if !self.stopping {
            if self.sees() {
                self.view.expire(now);
            }
            if let Seeing::Watching { number, heard, .. } = self.seeing
                && now.since_us(heard) >= self.silent_us()
            {
                self.asks.push_back(Ask::End { number });
                self.seeing = Seeing::Nothing;
            }
            if now >= self.retry_at {
                self.stand(now);
                self.see();
            }
        }
        self.asks.pop_front()
    }

    /// When to poll again if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.stopping {
            return None;
        }
        let standing = match (&self.call, self.lease, &self.claim) {
            (Some(_), ..) => None,
            (None, None, _) => Some(self.standing_at),
            (None, Some(lease), Claim::Made { .. }) => Some(lease.keep_at.max(self.standing_at)),
            (None, Some(lease), Claim::Wanted { at, .. }) => Some(lease.keep_at.min(*at).max(self.standing_at)),
        };
        let seeing = match self.seeing {
            Seeing::Nothing => Some(self.retry_at),
            Seeing::Watching { heard, .. } => Some(heard.after(Duration::from_micros(self.silent_us()))),
            _ => None,
        };
        let standing = standing.map(|at| at.max(self.retry_at));
        let held = self.view.timeout().filter(|_| self.sees());
        [standing, seeing, held].into_iter().flatten().min()
    }

    fn see(&mut self) {
        if self.seeing == Seeing::Nothing {
            let number = self.ask(Request::List);
            self.seeing = Seeing::Listing { number };
        }
    }

    fn ask(&mut self, request: Request) -> u64 {
        let (number, endpoint, within_us) = (self.number(), self.endpoint, self.within_us());
        self.asks.push_back(Ask::Call { number, endpoint, request, within_us });
        number
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    // ---- Answers ----

    pub fn answered(&mut self, now: Time, number: u64, answer: Result<Answer, Failure>) {
        if self.seeing == (Seeing::Listing { number }) {
            match answer {
                Ok(Answer::Listed { revision, listed }) => self.listed(now, revision, listed),
                Ok(other) => unreachable!("{other:?} is no answer to a list"),
                Err(failure) => self.trouble(now, failure.why),
            }
        } else if let Some(call) = self.call.take_if(|call| call.number == number) {
            match answer {
                Ok(answer) => self.stands(now, &call, answer),
                Err(failure) => self.does_not_stand(now, &call, failure),
            }
        }
    }

    fn listed(&mut self, now: Time, revision: u64, listed: Vec<Listed>) {
        // Leases may have ended while an endpoint was away: it may have been all of etcd, and need not have been said to be
        // lost yet. An etcd that counts anew has lost them too, however quickly it did. Hosts need time to come back.
        if self.away > 0 || revision < self.view.revision() {
            self.view.hold_until(now.after(self.options.ttl));
        }
        self.view.listed(now, revision, listed);
        self.looked(now);
        let (number, endpoint, within_us) = (self.number(), self.endpoint, self.within_us());
        self.asks.push_back(Ask::Watch { number, endpoint, revision, within_us });
        self.seeing = Seeing::Opening { number };
    }

    pub fn watched(&mut self, now: Time, number: u64, watched: Watched) {
        let since = match self.seeing {
            Seeing::Opening { number: current } if current == number => None,
            Seeing::Watching { number: current, since, .. } if current == number => Some(since),
            _ => return,
        };
        match watched {
            Watched::Opened => {
                self.seeing = Seeing::Watching { number, since: now, heard: now };
                self.well(now);
            }
            Watched::Changed(changes) => {
                self.seeing = Seeing::Watching { number, since: since.unwrap_or(now), heard: now };
                self.view.changed(now, changes);
                self.looked(now);
            }
            Watched::Compacted => {
                self.asks.push_back(Ask::End { number });
                self.seeing = Seeing::Nothing;
                self.retry_at = now.after(PAUSE);
            }
            // A stream that is cut now and then says nothing of etcd; the list that follows does.
            Watched::Failed(_) if since.is_some_and(|since| now.since_us(since) >= WATCH_SHORT_US) => {
                self.seeing = Seeing::Nothing;
            }
            Watched::Failed(failure) => self.trouble(now, failure.why),
        }
    }

    /// The view has changed, perhaps also what it says of this host.
    fn looked(&mut self, now: Time) {
        let foreign = self.view.take_foreign();
        self.notes.extend(foreign.into_iter().map(|(key, why)| Note::Foreign { key, why }));
        match (self.view.own_entry(), &self.claim) {
            // What was listed before the claim was made says nothing of it.
            (_, Claim::Made { revision }) if self.view.revision() < *revision => {}
            (None, Claim::Made { .. }) => {
                self.notes.push_back(Note::Unlisted { why: "its key has gone" });
                self.claim = Claim::Wanted { at: now, over: None };
            }
            // Whoever had the name is gone.
            (None, Claim::Wanted { .. }) => self.claim = Claim::Wanted { at: now, over: None },
            (Some(own), Claim::Made { .. }) if !self.is_as_put(own) => {
                self.notes.push_back(Note::Unlisted { why: "its key was overwritten" });
                self.claim = Claim::Wanted { at: now, over: None };
            }
            _ => {}
        }
    }

    // ---- Endpoints ----

    /// The list is there, and whatever changes will be heard of.
    fn well(&mut self, now: Time) {
        (self.away, self.rounds, self.failing_since) = (0, 0, None);
        if let Some((since, _)) = self.lost.take() {
            self.notes.push_back(Note::Back { away_us: now.since_us(since) });
        }
    }

    /// Nothing can be had of this endpoint now: on to the next one.
    fn trouble(&mut self, now: Time, why: String) {
        let under_way = match self.seeing {
            Seeing::Nothing => None,
            Seeing::Listing { number } | Seeing::Opening { number } | Seeing::Watching { number, .. } => Some(number),
        };
        let call = self.call.take().map(|call| call.number);
        self.asks.extend([under_way, call].into_iter().flatten().map(|number| Ask::End { number }));
        self.seeing = Seeing::Nothing;
        if let Some(lease) = &mut self.lease {
            // The next endpoint may know more of it.
            lease.keep_at = now;
        }
        let since = *self.failing_since.get_or_insert(now);
        self.away += 1;
        let next = (self.endpoint + 1) % self.options.endpoints;
        let former = mem::replace(&mut self.endpoint, next);
        if !self.away.is_multiple_of(self.options.endpoints) {
            self.retry_at = now;
            if self.lost.is_none() {
                self.notes.push_back(Note::EndpointAway { endpoint: former, why });
            }
            return;
        }
        self.retry_at = now.after(self.pause(self.rounds));
        self.rounds = self.rounds.saturating_add(1);
        match &mut self.lost {
            // The reason as it is now; it is said once for each time that etcd is lost.
            Some((_, last)) => *last = why,
            None => {
                self.notes.push_back(Note::Lost { why: why.clone() });
                self.lost = Some((since, why));
            }
        }
    }

    /// Not all hosts at once, when etcd comes back.
    fn pause(&mut self, times: u32) -> Duration {
        let longest = PAUSE_MAX.min(self.options.ttl / 4);
        let most = (PAUSE * (1 << times.min(10))).min(longest).as_micros() as u64;
        // Xorshift; it is not 0, as the boot number is not.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Duration::from_micros(most / 2 + self.random % (most / 2 + 1))
    }

    // ---- What comes out ----

    pub fn poll_note(&mut self) -> Option<Note> {
        self.notes.pop_front()
    }

    /// The other hosts, when they have changed.
    pub fn poll_members(&mut self) -> Option<Vec<Member>> {
        let members = self.view.members();
        let is_known = match &self.published {
            Some(published) => *published == members,
            // Before the first list nothing is known.
            None => self.view.revision() == 0,
        };
        if is_known {
            return None;
        }
        self.published = Some(members.clone());
        Some(members)
    }

    /// `name`: what an endpoint is called.
    pub fn known_by(&self, name: impl Fn(usize) -> String) -> KnownBy {
        let hosts = other_hosts(self.view.members().len());
        if let Some((since, why)) = &self.lost {
            let text = format!("etcd is lost: {why}; those seen last stay: {hosts}");
            return KnownBy { text, stale_since: Some(*since) };
        }
        if !matches!(self.seeing, Seeing::Watching { .. }) && self.published.is_none() {
            return KnownBy { text: "etcd has not answered yet".into(), stale_since: self.failing_since };
        }
        let standing = match (&self.refused, &self.taken, &self.claim) {
            (Some(why), ..) => format!("this host is not listed: {why}"),
            (None, Some(by), _) => format!("this host is not listed: its name is held by {by}"),
            (None, None, Claim::Made { .. }) => "this host is listed".into(),
            (None, None, Claim::Wanted { .. }) => "this host is about to be listed".into(),
        };
        let held = match self.view.held() {
            0 => String::new(),
            held => format!(", {held} of them not back since etcd was lost"),
        };
        KnownBy {
            text: format!("etcd at {}: {hosts}{held}; {standing}", name(self.endpoint)),
            stale_since: self.failing_since,
        }
    }

    // ---- The end ----

    /// The host is to be listed no more. What `poll_ask` still gives is to be done; then it is over.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.asks.clear();
        self.call = None;
        self.seeing = Seeing::Nothing;
        if let Some(lease) = self.lease.take() {
            let request = Request::Revoke { lease: lease.id };
            let number = self.ask(request.clone());
            self.call = Some(Call { number, request, sent: Time(0) });
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.stopping && self.call.is_none()
    }
}

/// "1 other host".
pub fn other_hosts(count: usize) -> String {
    match count {
        0 => "no other host".into(),
        1 => "1 other host".into(),
        count => format!("{count} other hosts"),
    }
}

#[cfg(test)]
mod tests;
