//! A host among two peers of which each says what it likes, when it likes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lapis_config::{BATCH_KEYS_MAX, Key, PoolId, Time, Wait};
use lapis_transport::peers::{
    answerer::{Asked, CALLS_MAX},
    asker::{AskerOptions, LocateBy},
    digest::Digest,
    directory::PeerId,
    host::{Do, Host, Link},
    message::{Located, PeerMessage},
    name::{ShortName, pool_name},
};

use super::{encoded, hello, keys, next, shape};

const OWN_POOL: PoolId = PoolId(3);
const NAMES: [&str; 2] = ["host-b", "host-c"];
const BLOCKS_MAX: u64 = 100;
/// Messages that may wait for a guest which reads nothing: its answers, what changed since its digest, its digest.
const WAITING_MAX: usize = 4096 + 64 + 2;

// Steps of a script: one of these, and a byte. Those that say a message go on with it.
const TIME: u8 = 0;
const DIALLED: u8 = 1;
const LOST: u8 = 2;
const ANSWERED: u8 = 3;
const CONNECTED: u8 = 4;
const ASKED: u8 = 5;
const GONE: u8 = 6;
const WANT: u8 = 7;
const FILLED: u8 = 8;
const FOUND: u8 = 9;
const CHANGED: u8 = 10;
const OFFER: u8 = 11;
const MEMBERS: u8 = 12;
const READS: u8 = 13;
const EXPIRED: u8 = 14;
const REMOVED: u8 = 15;
const LOOKED: u8 = 16;
const STEPS: u8 = 17;

/// A script. Every want ends once and in time, reads are of wants, no guest has more calls than its window or more
/// messages waiting than their bound, and whoever is hung up on hears why.
pub fn host(bytes: &[u8]) {
    let (mut world, mut rest) = (World::new(), bytes);
    while let Some((&[step, with], after)) = rest.split_first_chunk() {
        rest = after;
        let step = step % STEPS;
        let message = if step == ANSWERED || step == ASKED {
            let Some((message, after)) = next(rest) else { continue };
            rest = after;
            message
        } else {
            None
        };
        world.step(step, with, message);
        world.carry_out();
    }
    world.end();
}

struct World {
    now: Time,
    host: Host,
    /// Whether the link to each peer is dialled, then made.
    links: BTreeMap<PeerId, bool>,
    guests: Vec<u64>,
    numbers: u64,
    wants: BTreeSet<u64>,
    offers: BTreeSet<u64>,
    reads: VecDeque<(PeerId, u64, Vec<usize>)>,
    /// Keys that are being looked up: of which peer and call.
    looks: VecDeque<(PeerId, u64)>,
    /// Calls of guests that are not answered, offers among them, and those whose answers are held.
    calls: VecDeque<(u64, u64, bool)>,
    held: BTreeSet<(u64, u64)>,
}

impl World {
    fn new() -> Self {
        let now = Time(0);
        // It asks as well, for what a look has not found.
        let options = AskerOptions { locate: LocateBy::OneSided, ..AskerOptions::default() };
        let mut host = Host::new(now, hello("host-a"), BLOCKS_MAX, 0, options);
        host.pool_opened(OWN_POOL, shape());
        NAMES.into_iter().zip(0..).for_each(|(name, peer)| host.join(now, PeerId(peer), name.into()));
        let (links, guests, numbers, wants, offers, reads, looks, calls, held) = Default::default();
        let mut world = Self { now, host, links, guests, numbers, wants, offers, reads, looks, calls, held };
        world.carry_out();
        world
    }

    fn step(&mut self, step: u8, with: u8, message: Option<PeerMessage>) {
        let (now, peer) = (self.now, PeerId(u32::from(with) % NAMES.len() as u32));
        let guest = self.guests.get(usize::from(with) % self.guests.len().max(1)).copied();
        match step {
            TIME => {
                self.now = Time(now.0 + u64::from(with) * 8_000);
                self.host.tick(self.now);
            }
            DIALLED => {
                if let Some(made) = self.links.get_mut(&peer).filter(|made| !**made) {
                    *made = true;
                    self.host.dialled(now, peer);
                }
            }
            LOST => {
                if self.links.remove(&peer).is_some() {
                    self.host.lost(now, peer);
                }
            }
            ANSWERED => {
                let is_made = self.links.get(&peer) == Some(&true);
                if let Some(message) = message.filter(|_| is_made) {
                    self.host.answered(now, peer, message);
                }
            }
            CONNECTED => {
                self.numbers += 1;
                self.guests.push(self.numbers);
                let certified = (with > 0).then(|| NAMES[usize::from(with) % NAMES.len()].to_owned());
                self.host.connected(self.numbers, certified, 9);
            }
            ASKED => {
                if let Some((link, message)) = guest.zip(message) {
                    self.host.asked(now, link, message);
                }
            }
            GONE => guest.into_iter().for_each(|link| self.gone(link)),
            WANT => self.want(with),
            FILLED => self.filled(usize::from(with)),
            FOUND => self.found(with),
            CHANGED => self.host.changed(now, OWN_POOL, &Key([u64::from(with / 2), 0, 0, 0]), with.is_multiple_of(2)),
            OFFER => {
                let (keys, until) = (keys(u64::from(with)), Time(now.0 + 100_000));
                self.offers.extend(self.host.offer(now, peer, OWN_POOL, &keys, until));
            }
            LOOKED => self.looked(with),
            REMOVED => self.host.tell_removed(now, OWN_POOL, &keys(u64::from(with % 4))),
            MEMBERS => {
                let name = NAMES[peer.0 as usize];
                self.host.leave(now, peer);
                self.carry_out();
                self.host.join(now, peer, name.into());
            }
            READS => {
                for _ in 0..with {
                    guest.and_then(|link| self.host.poll_send(link));
                }
            }
            EXPIRED => {
                if let Some((link, token)) = self.held.pop_first() {
                    self.host.expired(link, token);
                }
            }
            _ => unreachable!("a step of a script"),
        }
    }

    fn want(&mut self, with: u8) {
        self.numbers += 1;
        let (keys, until) = (keys(u64::from(with % 64) + 1), Time(self.now.0 + 100_000));
        let from = (with % 3 == 1).then_some((PeerId(u32::from(with) % 5), Wait::Absent));
        if self.host.want(self.now, self.numbers, OWN_POOL, with >= 128, keys, until, from) {
            self.wants.insert(self.numbers);
        }
    }

    /// A read ends, with so many of its blocks.
    fn filled(&mut self, count: usize) {
        if let Some((peer, call, keys)) = self.reads.pop_front() {
            self.host.filled(self.now, peer, call, &keys[..count.min(keys.len())]);
        }
    }

    fn found(&mut self, with: u8) {
        let Some((link, token, is_offer)) = self.calls.pop_front() else { return };
        if is_offer {
            return self.host.offered(link, token, with.into());
        }
        let block =
            |n: u8| Located { index: n.into(), follows: n > 0, line: 1, generation: 2, slot: 3, bytes: 4, sum: 5 };
        let blocks: Vec<Located> = (0..with % 4).map(block).collect();
        if !blocks.is_empty() {
            self.held.insert((link, token));
        }
        self.host.found(link, token, Key::default(), blocks);
    }

    /// A look ends, also one that is over.
    fn looked(&mut self, with: u8) {
        let Some((peer, call)) = self.looks.pop_front() else { return };
        let block =
            |n: u8| Located { index: n.into(), follows: n > 0, line: 1, generation: 2, slot: 3, bytes: 4, sum: 5 };
        self.host.looked(self.now, peer, call, Key::default(), (0..with % 4).map(block).collect());
    }

    fn gone(&mut self, link: u64) {
        self.guests.retain(|other| *other != link);
        self.host.gone(link);
    }

    fn carry_out(&mut self) {
        while let Some(todo) = self.host.poll() {
            match todo {
                Do::Dial(peer) => assert_ne!(self.links.insert(peer, false), Some(true), "one link at a time"),
                Do::Send(Link::To(peer), _) => assert_eq!(self.links.get(&peer), Some(&true), "on a link"),
                Do::Send(Link::From(_), _) => unreachable!("those are taken by `poll_send`"),
                Do::HangUp(Link::To(peer), reason) => {
                    assert!(!reason.is_empty());
                    self.links.remove(&peer);
                }
                Do::HangUp(Link::From(link), reason) => {
                    let last = std::iter::from_fn(|| self.host.poll_send(link)).last();
                    assert!(!reason.is_empty() && last == Some(PeerMessage::Refused { reason }), "{last:?}");
                    self.gone(link);
                }
                Do::Read { want, peer, call, blocks, .. } => {
                    assert!(self.wants.contains(&want) && !blocks.is_empty());
                    assert!(blocks.is_sorted_by(|(one, _), (other, _)| one < other), "{blocks:?}");
                    self.reads.push_back((peer, call, blocks.into_iter().map(|(key, _)| key).collect()));
                }
                Do::Look { want, peer, call, keys, .. } => {
                    assert!(self.wants.contains(&want) && !keys.is_empty());
                    self.looks.push_back((peer, call));
                }
                Do::Ended { want, .. } => assert!(self.wants.remove(&want), "a want ends once"),
                Do::Offered { offer, .. } => assert!(self.offers.remove(&offer), "an offer ends once"),
                Do::Asked(link, Asked::Locate { token, keys, .. }) => self.asked(link, token, keys.len(), false),
                Do::Asked(link, Asked::Offer { number, keys, .. }) => self.asked(link, number, keys.len(), true),
                Do::Asked(link, Asked::Release { token }) => {
                    self.calls.retain(|(of, call, _)| (*of, *call) != (link, token));
                    self.held.remove(&(link, token));
                }
                Do::Asked(_, asked) => assert!(!matches!(asked, Asked::Hello(_) | Asked::HangUp { .. })),
                Do::Gone(link) => {
                    self.calls.retain(|(of, ..)| *of != link);
                    self.held.retain(|(of, _)| *of != link);
                }
                Do::Up(..) | Do::Down(_) | Do::Path(..) | Do::Guest(..) => {}
            }
        }
    }

    fn asked(&mut self, link: u64, call: u64, keys: usize, is_offer: bool) {
        assert!((1..=BATCH_KEYS_MAX).contains(&keys), "{keys} keys");
        self.calls.push_back((link, call, is_offer));
        let unanswered = self.calls.iter().filter(|(of, ..)| *of == link).count();
        let held = self.held.iter().filter(|(of, _)| *of == link).count();
        assert!(unanswered + held <= CALLS_MAX as usize, "{unanswered} calls, {held} held");
    }

    /// Nothing more is said: reads end, and with their deadlines wants.
    fn end(mut self) {
        for link in std::mem::take(&mut self.guests) {
            let waiting = std::iter::from_fn(|| self.host.poll_send(link)).count();
            assert!(waiting <= WAITING_MAX, "{waiting} messages waited for one guest");
        }
        for _ in 0..40 {
            while !self.reads.is_empty() {
                self.filled(usize::MAX);
                self.carry_out();
            }
            self.now = Time(self.now.0 + 50_000);
            self.host.tick(self.now);
            self.carry_out();
        }
        assert!(self.wants.is_empty() && self.reads.is_empty(), "{:?} never ended", self.wants);
        assert!(self.offers.is_empty(), "{:?} never ended", self.offers);
    }
}

/// Writes scripts.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn step(mut self, step: u8, with: u8) -> Self {
        self.0.extend([step, with]);
        self
    }

    fn say(self, step: u8, with: u8, messages: impl IntoIterator<Item = PeerMessage>) -> Self {
        messages.into_iter().fold(self, |script, message| {
            let mut script = script.step(step, with);
            script.0.extend(encoded(&[message]));
            script
        })
    }
}

/// What a peer with so many leading blocks says first, then what changed.
fn told(name: &str, blocks: u64) -> Vec<PeerMessage> {
    let mut digest = Digest::new(BLOCKS_MAX, 0, 5);
    let pool = pool_name(&shape());
    let changed = |digest: &mut Digest, n: u64| digest.changed(ShortName::new(pool, &keys(n + 1)[n as usize]), true);
    (0..blocks).for_each(|n| changed(&mut digest, n));
    while digest.take_delta(usize::MAX).is_some() {}
    let (whole, parts) = digest.whole();
    changed(&mut digest, blocks);
    let delta = digest.take_delta(usize::MAX).expect("a change");
    let mut told = vec![
        PeerMessage::Hello(hello(name)),
        PeerMessage::Pool { pool: PoolId(8), shape: shape() },
        PeerMessage::Credit { calls: CALLS_MAX },
        PeerMessage::Whole(whole),
    ];
    told.extend(parts.map(PeerMessage::Part));
    told.push(PeerMessage::Delta(delta));
    told
}

/// One that asks two peers, one of which fails it; one that is asked; one whose peer's digest has a gap; two whose peer answers
/// another question.
pub fn sessions() -> Vec<Vec<u8>> {
    let block = |n: u16| Located { index: n, follows: n > 0, line: 1, generation: 2, slot: 3, bytes: 65536, sum: 5 };
    let found =
        |token, blocks| PeerMessage::Found { token, parent: Key::default(), blocks: (0..blocks).map(block).collect() };
    let locate = |token| PeerMessage::Locate {
        token,
        pool: OWN_POOL,
        each: false,
        wait: Wait::Present,
        deadline_us: 50_000,
        keys: keys(4),
    };
    let offer = PeerMessage::Offer { number: 9, pool: OWN_POOL, deadline_us: 50_000, keys: keys(5) };
    let up = || {
        let both = Script::default().step(DIALLED, 0).say(ANSWERED, 0, told(NAMES[0], 9));
        both.step(DIALLED, 1).say(ANSWERED, 1, told(NAMES[1], 20))
    };
    let asks = up()
        .step(WANT, 29)
        .say(ANSWERED, 1, [found(1, 12)])
        .step(FILLED, 8)
        .step(WANT, 7)
        .step(TIME, 30)
        .say(ANSWERED, 1, [PeerMessage::Leaving, found(2, 3)])
        .step(WANT, 140)
        .step(OFFER, 6)
        .say(ANSWERED, 0, [PeerMessage::Offered { number: 1 << 63, came: 4 }])
        .step(REMOVED, 2)
        .step(LOST, 0);
    let asked = Script::default()
        .step(CHANGED, 0)
        .step(CONNECTED, 0)
        .say(ASKED, 0, [PeerMessage::Hello(hello(NAMES[0]))])
        .step(TIME, 20)
        .step(READS, 9)
        .say(ASKED, 0, [locate(1), locate(2), PeerMessage::Ping { number: 4 }])
        .step(FOUND, 3)
        .step(FOUND, 0)
        .step(CHANGED, 1)
        .step(TIME, 20)
        .say(ASKED, 0, [PeerMessage::Release { token: 1 }, PeerMessage::WholeWanted])
        .step(READS, 40)
        .say(ASKED, 0, [offer, PeerMessage::Forget { pool: OWN_POOL, keys: keys(2) }])
        .step(FOUND, 2)
        .say(ASKED, 0, [locate(3), PeerMessage::Path { said: vec![1; 9] }, locate(3)]);
    let gap = up()
        .say(ANSWERED, 0, told(NAMES[0], 11).pop())
        .say(ANSWERED, 0, told(NAMES[0], 30).into_iter().skip(3))
        .step(MEMBERS, 1)
        .step(WANT, 20)
        .step(TIME, 255)
        .step(TIME, 255);
    let wrong = up().step(WANT, 28).say(ANSWERED, 1, [PeerMessage::Offered { number: 1, came: 3 }]).step(TIME, 255);
    let wrong_too = up().step(OFFER, 6).say(ANSWERED, 0, [found(1 << 63, 3)]).step(TIME, 255);
    [asks, asked, gap, wrong, wrong_too].map(|script| script.0).into()
}
