//! One connection on which another host asks: what it may say, what it is told unasked, and how much waits for it. Pure.
//!
//! Invariant: a peer makes this host keep no more than its window: calls beyond it, or a reader that stands still, end the
//! connection.
//! Invariant: a delta goes out only after all parts of the whole that it goes on from.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use lapis_config::{BATCH_KEYS_MAX, Key, PoolId, PoolShape, Wait};

use super::{
    digest::{Delta, Parts, Whole},
    message::{Located, PeerHello, PeerMessage},
};

/// Calls that a peer may have under way, held answers among them.
pub const CALLS_MAX: u32 = 64;
/// Longest time for which an answer is held, us.
pub const DEADLINE_US_MAX: u64 = 60_000_000;
/// Deltas that wait behind a whole digest; with more it begins anew.
const DELTAS_MAX: usize = 64;
/// Messages that wait until the peer has read those before: with more it stands still.
const WAITING_MAX: usize = 4096;
/// Answers among them, which are longer: those of calls that it gave up count no more against its window.
const ANSWERS_MAX: usize = 4 * CALLS_MAX as usize;

const DEAF: &str = "it does not read what it asked for";

/// What a peer asks of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It said who it is: `accept` or `refuse`.
    Hello(PeerHello),
    /// Answered by `found`.
    Locate {
        token: u64,
        pool: PoolId,
        each: bool,
        wait: Wait,
        deadline_us: u64,
        keys: Vec<Key>,
    },
    /// For what moves the blocks.
    Path {
        said: Vec<u8>,
    },
    Release {
        token: u64,
    },
    /// Answered by `offered`.
    Offer {
        number: u64,
        pool: PoolId,
        deadline_us: u64,
        keys: Vec<Key>,
    },
    /// No keys: all of the pool.
    Forget {
        pool: PoolId,
        keys: Vec<Key>,
    },
    /// The connection is to be ended, after what `poll_send` still gives.
    HangUp {
        reason: String,
    },
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// The first message is awaited, or judged.
    New,
    Judged,
    Open,
    Ended,
}

pub struct Answerer {
    own: PeerHello,
    state: State,
    asked: VecDeque<Asked>,
    sends: VecDeque<PeerMessage>,
    /// Among `sends`.
    answers: usize,
    /// Calls that are not released.
    calls: BTreeSet<u64>,
    /// Of the digest: its parts that are not sent, and what follows.
    parts: Option<Parts>,
    deltas: VecDeque<Arc<Delta>>,
    wants_whole: bool,
}

impl Answerer {
    pub fn new(own: PeerHello) -> Self {
        Self {
            own,
            state: State::New,
            asked: VecDeque::new(),
            sends: VecDeque::new(),
            answers: 0,
            calls: BTreeSet::new(),
            parts: None,
            deltas: VecDeque::new(),
            wants_whole: false,
        }
    }

    pub fn poll(&mut self) -> Option<Asked> {
        self.asked.pop_front()
    }

    /// The next message to send. Called as fast as the peer reads: parts of a digest are made as they are taken.
    pub fn poll_send(&mut self) -> Option<PeerMessage> {
        if let Some(message) = self.sends.pop_front() {
            self.answers -= usize::from(matches!(message, PeerMessage::Found { .. }));
            return Some(message);
        }
        if let Some(parts) = &mut self.parts {
            if let Some(part) = parts.next() {
                return Some(PeerMessage::Part(part));
            }
            self.parts = None;
        }
        self.deltas.pop_front().map(|delta| PeerMessage::Delta(Arc::unwrap_or_clone(delta)))
    }

    /// A message came. What may not come ends the connection, with a reason that the peer hears.
    pub fn message(&mut self, message: PeerMessage) {
        match (&self.state, message) {
            (State::New, PeerMessage::Hello(hello)) => {
                self.state = State::Judged;
                self.asked.push_back(Asked::Hello(hello));
            }
            (State::Open, message) => self.open(message),
            (State::Ended, _) => {}
            (State::New | State::Judged, _) => self.refuse("it asked before it was greeted".into()),
        }
    }

    /// Whoever said hello may ask. It hears of the pools, and its window.
    pub fn accept(&mut self, pools: impl Iterator<Item = (PoolId, PoolShape)>) {
        assert_eq!(self.state, State::Judged, "a hello is judged once");
        self.state = State::Open;
        self.sends.push_back(PeerMessage::Hello(self.own.clone()));
        pools.for_each(|(pool, shape)| self.sends.push_back(PeerMessage::Pool { pool, shape }));
        self.sends.push_back(PeerMessage::Credit { calls: CALLS_MAX });
        self.wants_whole = true;
    }

    /// The connection ends, and the peer hears why.
    pub fn refuse(&mut self, reason: String) {
        if self.state != State::Ended {
            self.state = State::Ended;
            (self.parts, self.wants_whole) = (None, false);
            self.deltas.clear();
            self.sends.clear();
            self.answers = 0;
            self.sends.push_back(PeerMessage::Refused { reason: reason.clone() });
            self.asked.push_back(Asked::HangUp { reason });
        }
    }

    pub fn pool_opened(&mut self, pool: PoolId, shape: &PoolShape) {
        self.send(PeerMessage::Pool { pool, shape: shape.clone() });
    }

    /// The leading blocks of a call that are here. None: nothing is held for it.
    pub fn found(&mut self, token: u64, parent: Key, blocks: Vec<Located>) {
        if blocks.is_empty() {
            self.calls.remove(&token);
        }
        if self.answers >= ANSWERS_MAX {
            return self.refuse(DEAF.into());
        }
        self.answers += usize::from(self.state == State::Open);
        self.send(PeerMessage::Found { token, parent, blocks });
    }

    /// What was found for a call is held no more, as its deadline is over.
    pub fn expired(&mut self, token: u64) {
        self.calls.remove(&token);
    }

    /// So many of the blocks of an offer are here now.
    pub fn offered(&mut self, number: u64, came: u32) {
        if self.calls.remove(&number) {
            self.send(PeerMessage::Offered { number, came });
        }
    }

    /// Whether the whole digest is to be given by `whole` now.
    pub fn wants_whole(&self) -> bool {
        self.wants_whole
    }

    pub fn whole(&mut self, whole: Whole, parts: Parts) {
        self.wants_whole = false;
        self.deltas.clear();
        self.sends.push_back(PeerMessage::Whole(whole));
        self.parts = Some(parts);
    }

    /// What changed here since the delta before.
    pub fn delta(&mut self, delta: &Arc<Delta>) {
        if self.state != State::Open || self.wants_whole {
            return;
        }
        if self.deltas.len() == DELTAS_MAX {
            self.deltas.clear();
            self.parts = None;
            self.wants_whole = true;
        } else {
            self.deltas.push_back(delta.clone());
        }
    }

    /// What moves the blocks has to say.
    pub fn say(&mut self, said: Vec<u8>) {
        self.send(PeerMessage::Path { said });
    }

    /// This host goes away.
    pub fn leave(&mut self) {
        self.send(PeerMessage::Leaving);
    }

    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    fn open(&mut self, message: PeerMessage) {
        match message {
            PeerMessage::Locate { token, pool, each, wait, deadline_us, keys } => {
                if self.begins(token, &keys) {
                    let deadline_us = deadline_us.min(DEADLINE_US_MAX);
                    self.asked.push_back(Asked::Locate { token, pool, each, wait, deadline_us, keys });
                }
            }
            PeerMessage::Path { said } => self.asked.push_back(Asked::Path { said }),
            PeerMessage::Release { token } => {
                if self.calls.remove(&token) {
                    self.asked.push_back(Asked::Release { token });
                }
            }
            PeerMessage::Offer { number, pool, deadline_us, keys } => {
                if self.begins(number, &keys) {
                    let deadline_us = deadline_us.min(DEADLINE_US_MAX);
                    self.asked.push_back(Asked::Offer { number, pool, deadline_us, keys });
                }
            }
            PeerMessage::Forget { pool, keys } => self.asked.push_back(Asked::Forget { pool, keys }),
            // One that is under way is newer than what was missed.
            PeerMessage::WholeWanted => self.wants_whole |= self.parts.is_none(),
            PeerMessage::Ping { number } => self.send(PeerMessage::Pong { number }),
            PeerMessage::Leaving | PeerMessage::Pong { .. } => {}
            _ => self.refuse("it answered on a connection on which it asks".into()),
        }
    }

    /// One more call is under way; false if that may not be.
    fn begins(&mut self, call: u64, keys: &[Key]) -> bool {
        if keys.is_empty() || keys.len() > BATCH_KEYS_MAX {
            self.refuse(format!("a call has 1 to {BATCH_KEYS_MAX} keys, not {}", keys.len()));
            return false;
        }
        if self.calls.len() >= CALLS_MAX as usize {
            self.refuse(format!("more than {CALLS_MAX} calls under way"));
            return false;
        }
        let is_new = self.calls.insert(call);
        if !is_new {
            self.refuse(format!("call {call} is under way already"));
        }
        is_new
    }

    fn send(&mut self, message: PeerMessage) {
        if self.state != State::Open {
            return;
        }
        if self.sends.len() >= WAITING_MAX {
            return self.refuse(DEAF.into());
        }
        self.sends.push_back(message);
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::{Fingerprint, PoolKind};

    use super::{
        super::{
            digest::{Digest, Mirror},
            name::ShortName,
        },
        *,
    };

    fn hello(host: &str) -> PeerHello {
        let (host, group) = (host.into(), "default".into());
        PeerHello { host, group, boot: 1, digest_bytes_max: 1 << 20, data_port: 1, data_word: 2 }
    }

    fn asked(answerer: &mut Answerer) -> Vec<Asked> {
        std::iter::from_fn(|| answerer.poll()).collect()
    }

    fn sent(answerer: &mut Answerer) -> Vec<PeerMessage> {
        std::iter::from_fn(|| answerer.poll_send()).collect()
    }

    fn locate(token: u64) -> PeerMessage {
        let (pool, keys) = (PoolId(1), vec![Key::default()]);
        PeerMessage::Locate { token, pool, each: false, wait: Wait::Present, deadline_us: 9, keys }
    }

    fn open() -> Answerer {
        let mut answerer = Answerer::new(hello("a"));
        answerer.message(PeerMessage::Hello(hello("b")));
        assert_eq!(asked(&mut answerer), [Asked::Hello(hello("b"))]);
        let (namespace, kind) = (Fingerprint([1; 32]), PoolKind::Chain);
        let shape = PoolShape { namespace, label: "kv".into(), kind, block_bytes: 4096, pieces: 1 };
        answerer.accept([(PoolId(1), shape)].into_iter());
        assert_eq!(sent(&mut answerer).len(), 3);
        answerer
    }

    fn is_refused(answerer: &mut Answerer, why: &str) {
        let ends = |asked: &Asked| matches!(asked, Asked::HangUp { reason } if reason.contains(why));
        assert!(asked(answerer).iter().any(ends), "{why}");
        let told = sent(answerer);
        assert!(matches!(&told[..], [PeerMessage::Refused { reason }] if reason.contains(why)), "{told:?}");
        answerer.message(locate(77));
        assert!(asked(answerer).is_empty(), "nothing more is heard of it");
    }

    #[test]
    fn a_call_is_asked_answered_and_released() {
        let mut answerer = open();
        answerer.message(locate(5));
        assert!(matches!(asked(&mut answerer)[..], [Asked::Locate { token: 5, .. }]));
        let block = Located { index: 0, follows: false, line: 1, generation: 2, slot: 3, bytes: 4, sum: 5 };
        let parent = Key([9, 9, 9, 9]);
        answerer.found(5, parent, vec![block]);
        assert_eq!(sent(&mut answerer), [PeerMessage::Found { token: 5, parent, blocks: vec![block] }]);
        answerer.message(PeerMessage::Path { said: vec![7] });
        assert_eq!(asked(&mut answerer), [Asked::Path { said: vec![7] }]);
        answerer.say(vec![8]);
        assert_eq!(sent(&mut answerer), [PeerMessage::Path { said: vec![8] }]);
        answerer.message(PeerMessage::Release { token: 5 });
        answerer.message(PeerMessage::Release { token: 5 });
        assert_eq!(asked(&mut answerer), [Asked::Release { token: 5 }], "once");
    }

    #[test]
    fn whoever_asks_too_much_or_what_cannot_be_is_refused_and_hears_why() {
        let mut before = Answerer::new(hello("a"));
        before.message(locate(1));
        is_refused(&mut before, "before it was greeted");
        let mut judged = Answerer::new(hello("a"));
        judged.message(PeerMessage::Hello(hello("b")));
        judged.refuse("host b is not one of the peers".into());
        is_refused(&mut judged, "not one of the peers");
        let mut many = open();
        (0..=u64::from(CALLS_MAX)).for_each(|token| many.message(locate(token)));
        is_refused(&mut many, "more than 64 calls");
        let mut twice = open();
        twice.message(locate(3));
        twice.message(locate(3));
        is_refused(&mut twice, "under way already");
        let mut empty = open();
        empty.message(PeerMessage::Locate {
            token: 1,
            pool: PoolId(1),
            each: false,
            wait: Wait::Present,
            deadline_us: 1,
            keys: vec![],
        });
        is_refused(&mut empty, "keys, not 0");
        let mut answers = open();
        answers.message(PeerMessage::Credit { calls: 9 });
        is_refused(&mut answers, "on which it asks");
        let mut offers = open();
        offers.message(PeerMessage::Offer { number: 1, pool: PoolId(1), deadline_us: 1, keys: vec![] });
        is_refused(&mut offers, "keys, not 0");
        let mut deaf = open();
        (0..=WAITING_MAX as u64).for_each(|number| deaf.message(PeerMessage::Ping { number }));
        is_refused(&mut deaf, "does not read");
        let mut gives_up = open();
        for token in 0..=ANSWERS_MAX as u64 {
            gives_up.message(locate(token));
            gives_up.message(PeerMessage::Release { token });
            gives_up.found(token, Key::default(), vec![]);
        }
        is_refused(&mut gives_up, "does not read");
    }

    #[test]
    fn answers_that_are_read_are_never_too_many() {
        let mut answerer = open();
        for token in 0..3 * ANSWERS_MAX as u64 {
            answerer.message(locate(token));
            answerer.found(token, Key::default(), vec![]);
            assert_eq!(sent(&mut answerer).len(), 1);
        }
        assert!(answerer.is_open());
    }

    #[test]
    fn a_whole_that_is_wanted_while_one_is_under_way_is_not_begun_anew() {
        let (mut answerer, digest) = (open(), Digest::new(100_000, 0, 1));
        let give = |answerer: &mut Answerer| {
            let (whole, parts) = digest.whole();
            answerer.whole(whole, parts);
        };
        give(&mut answerer);
        assert!(matches!(answerer.poll_send(), Some(PeerMessage::Whole(_))));
        answerer.message(PeerMessage::WholeWanted);
        assert!(!answerer.wants_whole());
        assert_eq!(sent(&mut answerer).len(), 4, "its parts");
        answerer.message(PeerMessage::WholeWanted);
        assert!(answerer.wants_whole());
    }

    #[test]
    fn a_digest_comes_whole_and_then_by_its_changes_also_those_of_meanwhile() {
        let name = |n| ShortName::new(1, &Key([n, 0, 0, 0]));
        let mut digest = Digest::new(200_000, 0, 1);
        (0..1_000).for_each(|n| digest.changed(name(n), true));
        let first = Arc::new(digest.take_delta(usize::MAX).expect("changes"));
        let mut answerer = open();
        answerer.delta(&first);
        assert!(answerer.wants_whole() && answerer.poll_send().is_none(), "nothing to add it to");
        let (whole, parts) = digest.whole();
        answerer.whole(whole, parts);
        let mut mirror = Mirror::new(1 << 20);
        let mut told = vec![answerer.poll_send().expect("the whole"), answerer.poll_send().expect("its first part")];
        digest.changed(name(5_000), true);
        answerer.delta(&Arc::new(digest.take_delta(usize::MAX).expect("a change")));
        told.extend(sent(&mut answerer));
        for message in told {
            match message {
                PeerMessage::Whole(whole) => mirror.begin(whole),
                PeerMessage::Part(part) => mirror.part(&part),
                PeerMessage::Delta(delta) => mirror.delta(&delta),
                other => panic!("{other:?}"),
            }
            .expect("in order");
        }
        assert_eq!((mirror.leading(&[name(5_000)]), mirror.leading(&[name(999), name(1_000)])), (1, 1));
    }

    #[test]
    fn one_who_reads_too_slowly_for_the_changes_gets_the_whole_again() {
        let mut answerer = open();
        let mut digest = Digest::new(100, 0, 1);
        let (whole, parts) = digest.whole();
        answerer.whole(whole, parts);
        for n in 0..=DELTAS_MAX as u64 {
            assert!(!answerer.wants_whole());
            digest.changed(ShortName::new(1, &Key([n, 0, 0, 0])), true);
            answerer.delta(&Arc::new(digest.take_delta(usize::MAX).expect("a change")));
        }
        assert!(answerer.wants_whole());
    }
}
