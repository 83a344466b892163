//! Other hosts, in virtual time: each is the pure half of a daemon (`peers::host`) with made-up blocks, at the end of links
//! that are slow, are cut, die at one end, and lie. The engine sees them by its `Links` and its paths.
//!
//! Blocks of shared chains are at other hosts, with bytes of their own (`model::REMOTE`); local clients get and put those
//! too. What other hosts read of this one is judged like any read.

mod looks;
mod paths;
mod stub;

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use fastrand::Rng;
use lapis_arena::{Mapping, table::TableShape};
use lapis_config::{Key, Time};
use lapis_transport::peers::{
    asker::{AskerOptions, LocateBy},
    links::{LinkEvent, LinkId, Links},
    message::{HEAD_BYTES, PeerMessage, head},
    paths::{Fetch, FromPaths, Lent, Look},
};

use self::stub::Stub;
use super::{kill::Fuse, plan::Plan};

/// How this host is called by the others.
pub const OWN: &str = "host-0";

/// What happens at some time.
enum Event {
    ToEngine(LinkEvent),
    /// Bytes of a message for the engine, or for the host at the other end.
    Message(LinkId, bool, Vec<u8>),
    /// A connection of the engine's comes in at the other host, or goes.
    Connected(LinkId),
    StubDialled(LinkId),
    StubClosed(LinkId),
    Fetched(u64),
    StubRead(stub::Reading),
    Looked(u64),
    StubLooked(looks::Looking),
    StubWork(usize),
}

struct SimLink {
    stub: usize,
    boot: u64,
    /// Who asks on it.
    by_engine: bool,
    engine_open: bool,
    stub_open: bool,
    /// Nothing comes through any more, and nobody is told.
    dead: bool,
    /// When the last message comes in, each way: they keep their order.
    last: [Time; 2],
}

/// A block that another host read here: the pool's index, its key, and whose bytes they were.
pub type Read = (usize, Key, u64);

#[derive(Clone, Copy, Debug, Default)]
pub struct HostsTally {
    pub fetched: u64,
    pub fetch_faults: u64,
    pub read: u64,
    pub stale: u64,
    /// Blocks that were found in tables: by the engine in others', by others in its.
    pub looked: u64,
    pub lent_looked: u64,
    pub cuts: u64,
}

pub struct Hosts {
    rng: Rng,
    now: Time,
    plan: Plan,
    stubs: Vec<Stub>,
    links: BTreeMap<LinkId, SimLink>,
    numbers: u64,
    events: BTreeMap<(Time, u64), Event>,
    inbox: VecDeque<LinkEvent>,
    said: VecDeque<FromPaths>,
    fetches: BTreeMap<u64, Fetch>,
    lent: BTreeMap<(LinkId, u64), Vec<Lent>>,
    looks: BTreeMap<u64, Look>,
    /// Of the engine's first group, as it has shown them: its table, and its memory by the first unit.
    table: Option<(Mapping, TableShape)>,
    memory: BTreeMap<u32, Mapping>,
    /// No connection to that host is made until then.
    away_until: Vec<Time>,
    pub reads: Vec<Read>,
    pub tally: HostsTally,
    engine_up: bool,
    ended: bool,
}

impl Hosts {
    pub fn new(plan: &Plan, mut rng: Rng) -> Self {
        let stubs = (0..plan.hosts).map(|at| Stub::new(at, 1, asker_options(plan), &mut rng)).collect();
        let mut hosts = Self {
            rng,
            now: Time(0),
            plan: plan.clone(),
            stubs,
            links: BTreeMap::new(),
            numbers: 0,
            events: BTreeMap::new(),
            inbox: VecDeque::new(),
            said: VecDeque::new(),
            fetches: BTreeMap::new(),
            lent: BTreeMap::new(),
            looks: BTreeMap::new(),
            table: None,
            memory: BTreeMap::new(),
            away_until: vec![Time(0); plan.hosts],
            reads: Vec::new(),
            tally: HostsTally::default(),
            engine_up: false,
            ended: false,
        };
        for at in 0..plan.hosts {
            hosts.at(Time(1_000_000), Event::StubWork(at));
        }
        hosts
    }

    pub fn names(&self) -> Vec<String> {
        if self.ended { Vec::new() } else { (0..self.stubs.len()).map(stub::name).collect() }
    }

    pub fn asker_options(&self) -> AskerOptions {
        asker_options(&self.plan)
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn at(&mut self, time: Time, event: Event) {
        let number = self.number();
        self.events.insert((time, number), event);
    }

    fn delay(&mut self) -> Duration {
        let us = if self.rng.u8(..40) == 0 { self.rng.u64(1_000..30_000) } else { self.rng.u64(10..300) };
        Duration::from_micros(us)
    }

    /// After what was sent before it on this link, that way.
    fn soon(&mut self, link: LinkId, to_engine: bool, event: Event) {
        let due = self.now.after(self.delay());
        let last = self.links.get_mut(&link).map(|link| &mut link.last[usize::from(to_engine)]);
        let due = last.map_or(due, |last| {
            *last = due.max(*last);
            *last
        });
        self.at(due, event);
    }

    // ---- For whoever turns the world ----

    pub fn next_due(&self) -> Time {
        let stubs = self.stubs.iter().filter_map(|stub| stub.host.poll_timeout()).min();
        let event = self.events.first_key_value().map(|((at, _), _)| *at);
        let stubs = stubs.filter(|_| !self.ended);
        event.into_iter().chain(stubs).min().unwrap_or(Time::NEVER)
    }

    /// What is due happens. True if there is something for the engine.
    pub fn turn(&mut self, now: Time) -> bool {
        self.now = now;
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= now) {
            let event = entry.remove();
            self.happens(event);
        }
        if self.plan.link_faults && !self.ended && self.rng.u32(..300) == 0 {
            self.fault();
        }
        for at in 0..self.stubs.len() {
            self.turn_stub(at);
        }
        !self.inbox.is_empty() || !self.said.is_empty()
    }

    /// The engine's process is gone, and with it all its connections; nothing is written any more.
    pub fn daemon_died(&mut self) {
        self.engine_up = false;
        (self.inbox, self.said, self.fetches, self.lent) = Default::default();
        (self.looks, self.table, self.memory) = Default::default();
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.engine_closes(link);
        }
    }

    /// A daemon runs: connections to it can be made.
    pub fn daemon_runs(&mut self, now: Time) {
        (self.engine_up, self.now) = (true, now);
    }

    /// There are no other hosts any more.
    pub fn end(&mut self) {
        self.ended = true;
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.stub_closes(link);
        }
        let over = |event: &Event| matches!(event, Event::StubWork(_) | Event::StubRead(_) | Event::StubLooked(_));
        self.events.retain(|_, event| !over(event));
    }

    // ---- Links ----

    fn happens(&mut self, event: Event) {
        match event {
            Event::ToEngine(event) => {
                let link = match &event {
                    LinkEvent::Dialled { link, .. }
                    | LinkEvent::Accepted { link, .. }
                    | LinkEvent::Message { link, .. }
                    | LinkEvent::Room { link }
                    | LinkEvent::Closed { link, .. } => *link,
                };
                let closed = matches!(event, LinkEvent::Closed { .. });
                if self.links.get(&link).is_none_or(|link| link.engine_open && (closed || !link.dead)) && self.engine_up
                {
                    self.inbox.push_back(event);
                    if closed {
                        self.links.remove(&link);
                    }
                }
            }
            Event::Message(link, to_engine, bytes) => self.message(link, to_engine, &bytes),
            Event::Connected(link) => {
                if let Some(own) = self.links.get(&link).filter(|own| own.stub_open && !own.dead) {
                    let word = link.0;
                    self.stubs[own.stub].host.connected(link.0, Some(OWN.into()), word);
                }
            }
            Event::StubDialled(link) => {
                if let Some(own) = self.links.get(&link).filter(|own| own.stub_open && !own.dead) {
                    self.stubs[own.stub].dialled(self.now, link);
                }
            }
            Event::StubClosed(link) => {
                if let Some(own) = self.links.get_mut(&link).filter(|own| own.stub_open) {
                    own.stub_open = false;
                    let (stub, by_engine) = (own.stub, own.by_engine);
                    self.stubs[stub].lost(self.now, link, by_engine);
                }
            }
            Event::Fetched(op) => self.fetch_ends(op),
            Event::StubRead(reading) => self.stub_reads(reading),
            Event::Looked(op) => self.look_ends(op),
            Event::StubLooked(looking) => self.stub_looked(looking),
            Event::StubWork(at) => self.stub_works(at),
        }
    }

    fn message(&mut self, link: LinkId, to_engine: bool, bytes: &[u8]) {
        let Some(own) = self.links.get(&link).filter(|own| !own.dead) else { return };
        let (kind, _) = head(bytes[..HEAD_BYTES].try_into().expect("a head")).expect("a message of ours");
        let message = PeerMessage::decode(kind, &bytes[HEAD_BYTES..]).expect("a message of ours");
        if to_engine {
            if own.engine_open && self.engine_up {
                self.inbox.push_back(LinkEvent::Message { link, message });
            }
        } else if own.stub_open {
            let (stub, by_engine) = (own.stub, own.by_engine);
            self.stubs[stub].hears(self.now, link, by_engine, message);
        }
    }

    fn send(&mut self, link: LinkId, to_engine: bool, message: &PeerMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.soon(link, to_engine, Event::Message(link, to_engine, bytes));
    }

    fn engine_closes(&mut self, link: LinkId) {
        let half_open = self.plan.link_faults && self.rng.u8(..4) == 0;
        let Some(own) = self.links.get_mut(&link) else { return };
        own.engine_open = false;
        if own.stub_open && !half_open && !own.dead {
            self.soon(link, false, Event::StubClosed(link));
        }
    }

    fn stub_closes(&mut self, link: LinkId) {
        let half_open = self.plan.link_faults && self.rng.u8(..4) == 0 && !self.ended;
        let Some(own) = self.links.get_mut(&link) else { return };
        own.stub_open = false;
        if own.engine_open && !half_open && !own.dead {
            let reason = "the other host closed it".into();
            self.soon(link, true, Event::ToEngine(LinkEvent::Closed { link, reason }));
        }
    }

    fn fault(&mut self) {
        self.tally.cuts += 1;
        let stub = self.rng.usize(..self.stubs.len());
        let links: Vec<LinkId> = self.links.iter().filter(|(_, own)| own.stub == stub).map(|(&link, _)| link).collect();
        match self.rng.u8(..3) {
            // A partition: nothing comes through, and no end is told.
            0 => {
                for link in links {
                    self.links.get_mut(&link).expect("listed").dead = true;
                }
                self.away_until[stub] = self.now.after(Duration::from_millis(self.rng.u64(1..3_000)));
            }
            // A reset of one connection, of which both ends hear.
            1 => {
                if let Some(&link) = links.first() {
                    let reason = "reset".into();
                    self.soon(link, true, Event::ToEngine(LinkEvent::Closed { link, reason }));
                    self.soon(link, false, Event::StubClosed(link));
                }
            }
            // Another process answers there from now on.
            _ => {
                links.into_iter().for_each(|link| self.stub_closes(link));
                let boot = self.stubs[stub].boot + 1;
                self.stubs[stub] = Stub::new(stub, boot, self.asker_options(), &mut self.rng);
            }
        }
    }

    /// A new connection, which the host at the other end has or has not asked for.
    fn connect(&mut self, stub: usize, by_engine: bool) -> LinkId {
        let link = LinkId(self.number());
        let boot = self.stubs[stub].boot;
        let last = [self.now; 2];
        self.links
            .insert(link, SimLink { stub, boot, by_engine, engine_open: true, stub_open: true, dead: false, last });
        link
    }

    fn is_away(&self, stub: usize) -> bool {
        self.ended || self.away_until[stub] > self.now
    }
}

/// As all hosts have them.
fn asker_options(plan: &Plan) -> AskerOptions {
    let locate = if plan.looks { LocateBy::OneSided } else { LocateBy::Asked };
    AskerOptions { locate, ..AskerOptions::default() }
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7450))
}

/// The engine's connections.
pub struct SimLinks {
    pub hosts: Rc<RefCell<Hosts>>,
    pub fuse: Fuse,
}

impl Links for SimLinks {
    fn dial(&mut self, name: &str, _address: &str) -> LinkId {
        self.fuse.burn();
        let hosts = &mut *self.hosts.borrow_mut();
        let stub = (0..hosts.stubs.len()).find(|at| stub::name(*at) == name).expect("a member of ours");
        if hosts.is_away(stub) {
            let link = LinkId(hosts.number());
            let wait = if hosts.rng.bool() { 100 } else { 2_000_000 };
            let closed = LinkEvent::Closed { link, reason: "no way there".into() };
            hosts.at(hosts.now.after(Duration::from_micros(wait)), Event::ToEngine(closed));
            return link;
        }
        let link = hosts.connect(stub, true);
        hosts.soon(link, false, Event::Connected(link));
        let (certified, local, remote) = (Some(name.to_owned()), address(), address());
        hosts.soon(link, true, Event::ToEngine(LinkEvent::Dialled { link, certified, local, remote }));
        link
    }

    fn send(&mut self, link: LinkId, message: PeerMessage) {
        self.fuse.burn();
        let hosts = &mut *self.hosts.borrow_mut();
        if hosts.links.get(&link).is_some_and(|own| own.engine_open) {
            hosts.send(link, false, &message);
        }
    }

    fn has_room(&mut self, link: LinkId) -> bool {
        let hosts = &mut *self.hosts.borrow_mut();
        let full = hosts.rng.u8(..50) == 0;
        if full {
            hosts.soon(link, true, Event::ToEngine(LinkEvent::Room { link }));
        }
        !full
    }

    fn hang_up(&mut self, link: LinkId) {
        self.fuse.burn();
        self.hosts.borrow_mut().engine_closes(link);
    }

    fn poll(&mut self) -> Option<LinkEvent> {
        self.fuse.burn();
        self.hosts.borrow_mut().inbox.pop_front()
    }
}
