//! One peer, as this host asks it: when it is dialled, what is under way with it, and when it counts as gone. Pure: calls come
//! with the time, what is to be done is taken with `poll`.
//!
//! Each host dials every other one and asks over its own connection; the other side of that one only answers. So no two
//! connections have to agree on anything, and a link that is dead one way is dead for one asker.
//!
//! Invariant: every call that was taken ends once: by an answer, at its deadline, or with its connection.
//! Invariant: an answer is believed only on the connection on which its call went out, and as an answer to what was asked.
//! Invariant: a peer makes this host keep no more than `POOLS_MAX` pools and what `Calls` bounds.

mod calls;
mod options;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use calls::{Calls, Fit, Kind};
use lapis_config::{Key, POOLS_MAX, PoolId, PoolShape, Time, Wait};
pub use options::{AskerOptions, LocateBy};

use super::{
    digest::{Delta, Part, Whole},
    message::{Located, PeerHello, PeerMessage},
};

/// What the asker wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Make a connection; `dialled` or `lost` says what came of it.
    Dial,
    Send(PeerMessage),
    /// End the connection: nothing of it is reported any more.
    HangUp {
        reason: String,
    },
    /// Look these keys up in the peer's table, in `pool` by its number; `looked` says what came of it.
    Look {
        call: u64,
        pool: PoolId,
        keys: Vec<Key>,
        within: Duration,
    },
    Tell(News),
}

/// What happened with the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It is there, and may be another process than before: what was known of its blocks is not.
    Up(PeerHello),
    /// Its connection ended. Its digest, and what it had found, count no more.
    Down,
    /// Of its digest.
    Whole(Whole),
    Part(Part),
    Delta(Delta),
    /// For what moves the blocks.
    Path(Vec<u8>),
    /// The answer to a call, or what a look found.
    Found {
        call: u64,
        parent: Key,
        blocks: Vec<Located>,
    },
    /// The answer to an offer.
    Offered {
        call: u64,
        came: u32,
    },
    /// No answer came, or will.
    Failed {
        call: u64,
    },
}

/// Why a call was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// There is no connection, or it is left alone for a while.
    Away,
    /// It has no such pool.
    NoPool,
    /// As much is under way as it allows.
    Busy,
    /// It is asked, and nothing is looked up.
    Asked,
}

/// A look takes so much of the time that there is: one part of so many.
const LOOK_PART: u64 = 4;

#[derive(Debug)]
enum Link {
    /// Dialled again at that time.
    Down {
        dial_at: Time,
    },
    Dialling {
        until: Time,
    },
    Greeting {
        until: Time,
    },
    Up(Up),
}

#[derive(Debug)]
struct Up {
    /// Its numbers of pools, which are the same ones only if all that makes them is.
    pools: HashMap<PoolShape, PoolId>,
    credit: u32,
    heard: Time,
    /// The sign that was asked for, and when.
    pinged: Option<(u64, Time)>,
    leaving: bool,
    /// Its digest was asked for and has not begun.
    whole_wanted: bool,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    /// The peer said what may not be, or wants none of us: dialled at once it would do the same.
    Peer,
    /// The way there, or nobody.
    Nobody,
}

#[derive(Debug)]
pub struct Asker {
    own: PeerHello,
    /// The host that must answer.
    name: String,
    options: AskerOptions,
    link: Link,
    /// Before the next dialling.
    pause: Duration,
    /// Whether the last connection ended by the peer's fault.
    blamed: bool,
    failures: u32,
    /// For how long the peer is left alone next, and until when it is.
    rest: Duration,
    left_alone_until: Time,
    calls: Calls,
    pings: u64,
    todo: VecDeque<Todo>,
}

impl Asker {
    /// Dials at once.
    pub fn new(now: Time, own: PeerHello, name: String, options: AskerOptions) -> Self {
        Self {
            own,
            name,
            link: Link::Down { dial_at: now },
            pause: options.pause_min,
            blamed: false,
            failures: 0,
            rest: options.pause_min,
            left_alone_until: Time(0),
            calls: Calls::default(),
            pings: 0,
            todo: VecDeque::new(),
            options,
        }
    }

    pub fn poll(&mut self) -> Option<Todo> {
        self.todo.pop_front()
    }

    /// When `tick` is due next.
    pub fn poll_timeout(&self) -> Option<Time> {
        let link = match &self.link {
            Link::Down { dial_at } => *dial_at,
            Link::Dialling { until } | Link::Greeting { until } => *until,
            Link::Up(up) => match up.pinged {
                Some((_, at)) => at.after(self.options.patience),
                None => up.heard.after(self.options.quiet),
            },
        };
        Some(self.calls.next_deadline().map_or(link, |call| call.min(link)))
    }

    pub fn tick(&mut self, now: Time) {
        self.end_late_calls(now);
        match &mut self.link {
            Link::Down { dial_at } if *dial_at <= now => {
                self.link = Link::Dialling { until: now.after(self.options.greeting) };
                self.todo.push_back(Todo::Dial);
            }
            Link::Dialling { until } | Link::Greeting { until } if *until <= now => {
                self.end(now, Blame::Nobody, "it did not answer in time");
            }
            Link::Up(Up { pinged: Some((_, at)), .. }) if at.after(self.options.patience) <= now => {
                self.end(now, Blame::Nobody, "no sign of it for too long");
            }
            Link::Up(up) if up.pinged.is_none() && up.heard.after(self.options.quiet) <= now => {
                self.pings += 1;
                up.pinged = Some((self.pings, now));
                self.todo.push_back(Todo::Send(PeerMessage::Ping { number: self.pings }));
            }
            _ => {}
        }
    }

    /// The peer has shown a sign of life elsewhere: it is dialled at once, if it waits for that and did not err when it was
    /// dialled last.
    pub fn nudge(&mut self, now: Time) {
        if let Link::Down { dial_at } = &mut self.link
            && !self.blamed
        {
            (*dial_at, self.pause) = ((*dial_at).min(now), self.options.pause_min);
            self.tick(now);
        }
    }

    /// The connection is made.
    pub fn dialled(&mut self, now: Time) {
        if let Link::Dialling { .. } = self.link {
            self.link = Link::Greeting { until: now.after(self.options.greeting) };
            self.todo.push_back(Todo::Send(PeerMessage::Hello(self.own.clone())));
        }
    }

    /// The connection ended, or was not made.
    pub fn lost(&mut self, now: Time) {
        if !matches!(self.link, Link::Down { .. }) {
            self.down(now, Blame::Nobody);
        }
    }

    /// A message came. What may not come now ends the connection.
    pub fn message(&mut self, now: Time, message: PeerMessage) {
        match (&mut self.link, message) {
            (Link::Greeting { .. }, PeerMessage::Hello(hello)) => self.greeted(now, hello),
            (Link::Greeting { .. } | Link::Up(_), PeerMessage::Refused { reason }) => {
                self.end(now, Blame::Peer, &format!("it refused us: {reason}"));
            }
            (Link::Up(up), message) => {
                up.heard = now;
                up.pinged = None;
                self.heard(now, message);
            }
            _ => self.end(now, Blame::Peer, "it spoke out of turn"),
        }
    }

    /// Asks where blocks are. `call` is the caller's name for it, never used before.
    #[allow(clippy::too_many_arguments, reason = "the request has so many parts")]
    pub fn locate(
        &mut self,
        now: Time,
        call: u64,
        pool: &PoolShape,
        each: bool,
        wait: Wait,
        keys: &[Key],
        deadline: Time,
    ) -> Result<(), NotNow> {
        let pool = self.begin_call(now, call, Kind::Locate, pool, deadline)?;
        let (keys, deadline_us) = (keys.to_vec(), deadline.since_us(now));
        self.todo.push_back(Todo::Send(PeerMessage::Locate { token: call, pool, each, wait, deadline_us, keys }));
        Ok(())
    }

    /// Looks the leading run of keys up in the peer's table, without asking it. `call` as in `locate`. It takes a part of the
    /// time, so that the peer can be asked still.
    pub fn look(&mut self, now: Time, call: u64, pool: &PoolShape, keys: &[Key], deadline: Time) -> Result<(), NotNow> {
        if self.options.locate == LocateBy::Asked {
            return Err(NotNow::Asked);
        }
        let within = Duration::from_micros(deadline.since_us(now) / LOOK_PART);
        let pool = self.begin_call(now, call, Kind::Look, pool, now.after(within))?;
        self.todo.push_back(Todo::Look { call, pool, keys: keys.to_vec(), within });
        Ok(())
    }

    /// A look ended: what was found, if anything.
    pub fn looked(&mut self, call: u64, parent: Key, blocks: Vec<Located>) {
        // Its daemon may be dead all the same: that it was read says nothing of its health.
        if self.calls.answer(call, Kind::Look, false) == Fit::Awaited {
            self.todo.push_back(Todo::Tell(News::Found { call, parent, blocks }));
        }
    }

    /// Offers blocks of this host. `call` as in `locate`.
    pub fn offer(
        &mut self,
        now: Time,
        call: u64,
        pool: &PoolShape,
        keys: &[Key],
        deadline: Time,
    ) -> Result<(), NotNow> {
        let pool = self.begin_call(now, call, Kind::Offer, pool, deadline)?;
        let (keys, deadline_us) = (keys.to_vec(), deadline.since_us(now));
        self.todo.push_back(Todo::Send(PeerMessage::Offer { number: call, pool, deadline_us, keys }));
        Ok(())
    }

    /// Tells that blocks were removed here. Whoever is away does not hear it.
    pub fn forget(&mut self, pool: &PoolShape, keys: &[Key]) {
        if let Link::Up(up) = &self.link
            && let Some(&pool) = up.pools.get(pool)
        {
            self.todo.push_back(Todo::Send(PeerMessage::Forget { pool, keys: keys.to_vec() }));
        }
    }

    /// What a call found is needed no more.
    pub fn release(&mut self, call: u64) {
        if self.calls.release(call) {
            self.todo.push_back(Todo::Send(PeerMessage::Release { token: call }));
        }
    }

    /// What moves the blocks has to say.
    pub fn say(&mut self, said: Vec<u8>) {
        if let Link::Up(_) = self.link {
            self.todo.push_back(Todo::Send(PeerMessage::Path { said }));
        }
    }

    /// The peer's digest does not go on from what is known of it. Asked for once, until it begins.
    pub fn want_whole(&mut self) {
        if let Link::Up(up) = &mut self.link
            && !std::mem::replace(&mut up.whole_wanted, true)
        {
            self.todo.push_back(Todo::Send(PeerMessage::WholeWanted));
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(&self.link, Link::Up(up) if !up.leaving)
    }

    /// Calls that are not answered.
    pub fn under_way(&self) -> usize {
        self.calls.unanswered()
    }

    /// Ends the connection, as the peer is wrong or no peer any more. It is dialled again after a pause.
    pub fn close(&mut self, now: Time, reason: &str) {
        if !matches!(self.link, Link::Down { .. }) {
            self.end(now, Blame::Peer, reason);
        }
    }

    /// The peer's number of the pool, once the call counts as under way.
    fn begin_call(
        &mut self,
        now: Time,
        call: u64,
        kind: Kind,
        pool: &PoolShape,
        deadline: Time,
    ) -> Result<PoolId, NotNow> {
        let may_ask = self.left_alone_until <= now;
        let Link::Up(up) = &self.link else { return Err(NotNow::Away) };
        if !may_ask || up.leaving || deadline <= now {
            return Err(NotNow::Away);
        }
        let &pool = up.pools.get(pool).ok_or(NotNow::NoPool)?;
        if self.calls.len() >= up.credit.min(self.options.calls_max) as usize {
            return Err(NotNow::Busy);
        }
        self.calls.begin(call, kind, deadline);
        Ok(pool)
    }

    fn greeted(&mut self, now: Time, hello: PeerHello) {
        if hello.host != self.name {
            return self.end(now, Blame::Peer, "another host answered at its address");
        }
        if hello.group != self.own.group {
            return self.end(now, Blame::Peer, "it answered for another group");
        }
        let (pools, pinged, leaving, whole_wanted) = (HashMap::new(), None, false, false);
        self.link = Link::Up(Up { pools, credit: 0, heard: now, pinged, leaving, whole_wanted });
        self.failures = 0;
        self.todo.push_back(Todo::Tell(News::Up(hello)));
    }

    fn heard(&mut self, now: Time, message: PeerMessage) {
        let Link::Up(up) = &mut self.link else { unreachable!("asked by the caller") };
        match message {
            PeerMessage::Pool { pool, shape } => {
                up.pools.insert(shape, pool);
                if up.pools.len() > POOLS_MAX {
                    self.end(now, Blame::Peer, &format!("it has more than {POOLS_MAX} pools, the most of a group"));
                }
            }
            PeerMessage::Credit { calls } => up.credit = calls,
            PeerMessage::Whole(whole) => {
                up.whole_wanted = false;
                self.todo.push_back(Todo::Tell(News::Whole(whole)));
            }
            PeerMessage::Part(part) => self.todo.push_back(Todo::Tell(News::Part(part))),
            PeerMessage::Delta(delta) => self.todo.push_back(Todo::Tell(News::Delta(delta))),
            PeerMessage::Found { token, parent, blocks } => {
                match self.calls.answer(token, Kind::Locate, !blocks.is_empty()) {
                    Fit::Awaited => self.answered(News::Found { call: token, parent, blocks }),
                    // Nobody waits, and what it holds is to go.
                    Fit::Late if blocks.is_empty() => {}
                    Fit::Late => self.todo.push_back(Todo::Send(PeerMessage::Release { token })),
                    Fit::Wrong => self.end(now, Blame::Peer, "it told of blocks that it was not asked for"),
                }
            }
            PeerMessage::Offered { number, came } => match self.calls.answer(number, Kind::Offer, false) {
                Fit::Awaited => self.answered(News::Offered { call: number, came }),
                Fit::Late => {}
                Fit::Wrong => self.end(now, Blame::Peer, "it was asked for blocks and answered an offer"),
            },
            PeerMessage::Path { said } => self.todo.push_back(Todo::Tell(News::Path(said))),
            PeerMessage::Pong { .. } => {}
            PeerMessage::Leaving => up.leaving = true,
            _ => self.end(now, Blame::Peer, "it asked on a connection on which it is asked"),
        }
    }

    fn answered(&mut self, news: News) {
        (self.failures, self.rest) = (0, self.options.pause_min);
        self.todo.push_back(Todo::Tell(news));
    }

    fn end_late_calls(&mut self, now: Time) {
        for (call, kind) in self.calls.take_late(now) {
            if kind != Kind::Look {
                // It counts no more there either.
                self.todo.push_back(Todo::Send(PeerMessage::Release { token: call }));
            }
            self.todo.push_back(Todo::Tell(News::Failed { call }));
            if kind == Kind::Look {
                // The peer knows nothing of it.
                continue;
            }
            self.failures += 1;
            if self.failures >= self.options.failures_max {
                self.left_alone_until = now.after(self.rest);
                self.rest = (self.rest * 2).min(self.options.pause_max);
                self.failures = 0;
            }
        }
    }

    /// Ends the connection from this side.
    fn end(&mut self, now: Time, blame: Blame, reason: &str) {
        self.todo.push_back(Todo::HangUp { reason: reason.to_owned() });
        self.down(now, blame);
    }

    fn down(&mut self, now: Time, blame: Blame) {
        let was_up = matches!(self.link, Link::Up(_));
        self.blamed = blame == Blame::Peer;
        if was_up && !self.blamed {
            self.pause = self.options.pause_min;
        }
        self.link = Link::Down { dial_at: now.after(self.pause) };
        self.pause = (self.pause * 2).min(self.options.pause_max);
        for call in self.calls.take_all() {
            self.todo.push_back(Todo::Tell(News::Failed { call }));
        }
        if was_up {
            self.todo.push_back(Todo::Tell(News::Down));
        }
    }
}
