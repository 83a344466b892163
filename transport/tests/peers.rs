//! Hosts over simulated links, by seed: latency, cut and half-open links, partitions, daemons that die and come back as
//! another process. `LAPIS_PEERS_SEED=7` runs one seed, `LAPIS_PEERS_SEEDS=5000` more of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use fastrand::Rng;
use lapis_config::{Fingerprint, Key, PoolId, PoolKind, PoolShape, Time};
use lapis_transport::peers::{
    answerer::Asked,
    asker::{AskerOptions, LocateBy},
    directory::PeerId,
    host::{Do, Host, Link},
    message::{HEAD_BYTES, Located, PeerHello, PeerMessage, head},
    name::{ShortName, pool_name},
};

const SEEDS: u64 = 30;
const SECOND: u64 = 1_000_000;
const CHAINS: u64 = 40;
const DEPTH: u64 = 12;
/// A read takes as long at most, whatever happens.
const READ_US_MAX: u64 = 20_000;
const POOL: PoolId = PoolId(3);

fn shape() -> PoolShape {
    let (namespace, kind) = (Fingerprint([9; 32]), PoolKind::Chain);
    PoolShape { namespace, label: "kv".into(), kind, block_bytes: 1 << 16, pieces: 1 }
}

fn key(chain: u64, depth: u64) -> Key {
    Key([chain, depth, 0, 0])
}

/// One connection as both ends see it; bytes arrive in order.
#[derive(Default)]
struct Wire {
    to_guest: VecDeque<(u64, Vec<u8>)>,
    to_asker: VecDeque<(u64, Vec<u8>)>,
    guest_link: u64,
    /// When each end hears that the other is gone; `None`: it never does, and has its own timers.
    asker_lost: Option<u64>,
    guest_lost: Option<u64>,
    asker_open: bool,
    guest_open: bool,
    /// Nothing comes through any more, and nobody is told.
    dead: bool,
}

/// Blocks that are read from a peer.
struct Reading {
    due: u64,
    peer: PeerId,
    /// The daemon whose answer this is: a connection lives no longer than it.
    boot: u64,
    call: u64,
    chain: u64,
    /// Depth of the first.
    first: usize,
    keys: Vec<usize>,
}

struct Machine {
    host: Host,
    boot: u64,
    /// Leading blocks of each chain.
    blocks: BTreeMap<u64, u64>,
    /// Answers that are held: by link and call, until when.
    held: BTreeMap<(u64, u64), u64>,
    wants: BTreeMap<u64, u64>,
    ended: BTreeSet<u64>,
    reads: Vec<Reading>,
    /// Keys that are being looked up: until when, in whose table, for which call.
    looks: Vec<(u64, PeerId, u64, Vec<Key>)>,
}

#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
struct Tally {
    wants: u64,
    asked: u64,
    came: u64,
    looked: u64,
    restarts: u64,
    cuts: u64,
}

struct World {
    rng: Rng,
    now: u64,
    machines: Vec<Machine>,
    /// By asking host and asked host.
    wires: BTreeMap<(u32, u32), Wire>,
    cut: BTreeSet<(u32, u32)>,
    number: u64,
    want_chain: BTreeMap<u64, u64>,
    tally: Tally,
}

fn name(host: u32) -> String {
    format!("host-{host}")
}

fn machine(now: u64, number: u32, hosts: u32, boot: u64) -> Machine {
    let own = PeerHello {
        host: name(number),
        group: "default".into(),
        boot,
        digest_bytes_max: 1 << 20,
        data_port: 1,
        data_word: boot,
    };
    // Every second one looks keys up before it asks.
    let locate = if number.is_multiple_of(2) { LocateBy::Asked } else { LocateBy::OneSided };
    let options = AskerOptions { locate, ..AskerOptions::default() };
    let mut host = Host::new(Time(now), own, CHAINS * DEPTH, 0, options);
    host.pool_opened(POOL, shape());
    for peer in (0..hosts).filter(|peer| *peer != number) {
        host.join(Time(now), PeerId(peer), name(peer));
    }
    let (blocks, held, wants, ended, reads, looks) = Default::default();
    Machine { host, boot, blocks, held, wants, ended, reads, looks }
}

impl Machine {
    /// The leading run of keys that is here.
    fn find(&self, keys: &[Key]) -> Vec<Located> {
        let have = self.blocks.get(&keys[0].0[0]).copied().unwrap_or(0);
        // So that whoever reads knows whose answer it is.
        let bytes = self.boot as u32;
        let located = |(index, key): (u16, &Key)| {
            let slot = key.0[1] as u32;
            Located { index, follows: true, line: 0, generation: 0, slot, bytes, sum: 0 }
        };
        (0..).zip(keys.iter().take_while(|key| key.0[1] < have)).map(located).collect()
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let hosts = rng.u32(2..6);
        let machines = (0..hosts).map(|number| machine(0, number, hosts, u64::from(number) + 1)).collect();
        let (wires, cut, want_chain, tally) = Default::default();
        Self { rng, now: 0, machines, wires, cut, number: 100, want_chain, tally }
    }

    fn hosts(&self) -> u32 {
        self.machines.len() as u32
    }

    fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn delay(&mut self) -> u64 {
        if self.rng.u8(..50) == 0 { self.rng.u64(1_000..30_000) } else { self.rng.u64(20..400) }
    }

    fn is_cut(&self, a: u32, b: u32) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// A millisecond of all hosts.
    fn step(&mut self, faults: bool) {
        self.now += 1_000;
        let now = Time(self.now);
        if faults {
            self.faults();
        }
        for at in 0..self.hosts() {
            self.work(at, faults);
            self.machines[at as usize].host.tick(now);
            self.carry_out(at);
        }
        self.deliver();
        for at in 0..self.hosts() {
            self.carry_out(at);
        }
    }

    fn faults(&mut self) {
        let hosts = self.hosts();
        let pair = |rng: &mut Rng, hosts: u32| {
            let a = rng.u32(..hosts);
            (a, (a + rng.u32(1..hosts)) % hosts)
        };
        match self.rng.u32(..4_000) {
            0..4 => {
                // A partition: nothing comes through, and no end is told.
                let (a, b) = pair(&mut self.rng, hosts);
                self.cut.insert((a.min(b), a.max(b)));
                for wire in [(a, b), (b, a)] {
                    if let Some(wire) = self.wires.get_mut(&wire) {
                        wire.dead = true;
                    }
                }
                self.tally.cuts += 1;
            }
            4..12 => self.cut.clear(),
            12..16 => {
                // A reset, of which one end may hear nothing.
                let wire = pair(&mut self.rng, hosts);
                let (at, tells) = (self.now + self.delay(), self.rng.u8(..3));
                if let Some(wire) = self.wires.get_mut(&wire) {
                    wire.dead = true;
                    wire.asker_lost = (tells != 1).then_some(at);
                    wire.guest_lost = (tells != 2).then_some(at);
                }
            }
            16..19 => {
                let host = self.rng.u32(..self.hosts());
                self.restart(host);
            }
            _ => {}
        }
    }

    /// The daemon of a host dies; another one answers at its address, with other blocks.
    fn restart(&mut self, host: u32) {
        self.tally.restarts += 1;
        let (now, boot, hosts) = (self.now, self.number(), self.hosts());
        for (&(asker, asked), wire) in &mut self.wires {
            if asker == host || asked == host {
                wire.dead = true;
                wire.asker_open &= asker != host;
                wire.guest_open &= asked != host;
                let tells = !self.cut.contains(&(asker.min(asked), asker.max(asked)));
                wire.asker_lost = tells.then_some(now);
                wire.guest_lost = tells.then_some(now);
            }
        }
        self.machines[host as usize] = machine(now, host, hosts, boot);
    }

    /// Clients of a host put, lose and want blocks; reads end.
    fn work(&mut self, at: u32, faults: bool) {
        let now = Time(self.now);
        let (chain, depth) = (self.rng.u64(..CHAINS), self.rng.u64(1..=DEPTH));
        match self.rng.u32(..30) {
            0 if faults => self.set_blocks(at, chain, depth),
            1 if faults => self.set_blocks(at, chain, 0),
            2 | 3 => {
                let want = self.number();
                let have = self.machines[at as usize].blocks.get(&chain).copied().unwrap_or(0);
                let keys: Vec<Key> = (have..DEPTH).map(|depth| key(chain, depth)).collect();
                let deadline = self.now + self.rng.u64(1_000..200_000);
                let machine = &mut self.machines[at as usize];
                self.tally.wants += 1;
                if machine.host.want(now, want, POOL, false, keys, Time(deadline), None) {
                    self.tally.asked += 1;
                    machine.wants.insert(want, deadline);
                    self.want_chain.insert(want, chain);
                }
            }
            _ => {}
        }
        let due: Vec<_> = {
            let reads = &mut self.machines[at as usize].reads;
            let (due, later) = std::mem::take(reads).into_iter().partition(|read| read.due <= self.now);
            *reads = later;
            due
        };
        for Reading { peer, boot, call, chain, first, keys, .. } in due {
            // What is there of the blocks still, if it is the same daemon and it can be reached.
            let owner = &self.machines[peer.0 as usize];
            let is_same = owner.boot == boot && !self.is_cut(at, peer.0);
            let have = owner.blocks.get(&chain).copied().unwrap_or(0) as usize;
            let came = if is_same { have.saturating_sub(first).min(keys.len()) } else { 0 };
            self.tally.came += came as u64;
            self.machines[at as usize].host.filled(now, peer, call, &keys[..came]);
        }
        self.look(at);
        let machine = &mut self.machines[at as usize];
        let expired: Vec<(u64, u64)> =
            machine.held.iter().filter(|(_, until)| **until <= self.now).map(|(&held, _)| held).collect();
        for (link, token) in expired {
            machine.held.remove(&(link, token));
            machine.host.expired(link, token);
        }
        for (want, deadline) in &machine.wants {
            let late = deadline + 2 * READ_US_MAX + 2_000;
            assert!(self.now <= late, "want {want} of host {at} was to end by {deadline}, it is {}", self.now);
        }
    }

    /// What is in a table when it is read, and can be.
    fn look(&mut self, at: u32) {
        let looks = std::mem::take(&mut self.machines[at as usize].looks);
        let (due, later): (Vec<_>, _) = looks.into_iter().partition(|look| look.0 <= self.now);
        self.machines[at as usize].looks = later;
        for (_, peer, call, keys) in due {
            let readable = !self.is_cut(at, peer.0) && self.rng.u8(..5) > 0;
            let owner = &self.machines[peer.0 as usize];
            let found = if readable { owner.find(&keys) } else { Vec::new() };
            self.tally.looked += found.len() as u64;
            self.machines[at as usize].host.looked(Time(self.now), peer, call, Key::default(), found);
        }
    }

    fn set_blocks(&mut self, at: u32, chain: u64, depth: u64) {
        let machine = &mut self.machines[at as usize];
        let before = machine.blocks.insert(chain, depth).unwrap_or(0);
        let (low, high) = (before.min(depth), before.max(depth));
        for at in low..high {
            machine.host.changed(Time(self.now), POOL, &key(chain, at), depth > before);
        }
    }

    fn carry_out(&mut self, at: u32) {
        while let Some(todo) = self.machines[at as usize].host.poll() {
            match todo {
                Do::Dial(peer) => self.dial(at, peer),
                Do::Send(Link::To(peer), message) => self.send(at, peer, &message),
                Do::Send(Link::From(_), _) => unreachable!("those are polled"),
                Do::HangUp(Link::To(peer), _) => {
                    if let Some(wire) = self.wires.get_mut(&(at, peer.0)) {
                        (wire.asker_open, wire.dead) = (false, true);
                        wire.guest_lost = Some(self.now);
                    }
                }
                Do::HangUp(Link::From(link), reason) => panic!("host {at} refused {link}: {reason}"),
                Do::Read { want, peer, call, blocks, .. } => {
                    let chain = self.want_chain[&want];
                    let offset = self.offset(at, chain);
                    let due = self.now + self.rng.u64(100..READ_US_MAX);
                    let boot = u64::from(blocks[0].1.bytes);
                    let keys: Vec<usize> = blocks.iter().map(|(key, _)| *key).collect();
                    let first = offset + keys[0];
                    let read = Reading { due, peer, boot, call, chain, first, keys };
                    self.machines[at as usize].reads.push(read);
                }
                Do::Look { want, peer, call, pool, keys, within } => {
                    assert!(pool == POOL && self.machines[at as usize].wants.contains_key(&want));
                    let due = self.now + self.rng.u64(..=within.as_micros() as u64 * 3 / 2);
                    self.machines[at as usize].looks.push((due, peer, call, keys));
                }
                Do::Ended { want, .. } => {
                    let machine = &mut self.machines[at as usize];
                    assert!(machine.wants.remove(&want).is_some() && machine.ended.insert(want), "{want} ends once");
                }
                Do::Up(..) | Do::Down(_) | Do::Path(..) | Do::Guest(..) | Do::Offered { .. } => {}
                Do::Asked(link, asked) => self.asked(at, link, asked),
                Do::Gone(link) => self.machines[at as usize].held.retain(|(of, _), _| *of != link),
            }
        }
    }

    /// Of a chain: the first key that a want of this host was about.
    fn offset(&self, at: u32, chain: u64) -> usize {
        self.machines[at as usize].blocks.get(&chain).copied().unwrap_or(0) as usize
    }

    fn dial(&mut self, at: u32, peer: PeerId) {
        let now = Time(self.now);
        if self.is_cut(at, peer.0) {
            // It may be told, or find out by its own time.
            if self.rng.bool() {
                self.machines[at as usize].host.lost(now, peer);
            }
            return;
        }
        let guest_link = self.number();
        if let Some(former) = self.wires.remove(&(at, peer.0)).filter(|wire| wire.guest_open) {
            self.machines[peer.0 as usize].host.gone(former.guest_link);
        }
        self.machines[peer.0 as usize].host.connected(guest_link, Some(name(at)), guest_link);
        let wire = Wire { guest_link, asker_open: true, guest_open: true, ..Wire::default() };
        self.wires.insert((at, peer.0), wire);
        self.machines[at as usize].host.dialled(now, peer);
    }

    fn send(&mut self, at: u32, peer: PeerId, message: &PeerMessage) {
        let due = self.now + self.delay();
        if let Some(wire) = self.wires.get_mut(&(at, peer.0)) {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            let due = due.max(wire.to_guest.back().map_or(0, |last| last.0));
            wire.to_guest.push_back((due, bytes));
        }
    }

    fn asked(&mut self, at: u32, link: u64, asked: Asked) {
        let now = self.now;
        let machine = &mut self.machines[at as usize];
        match asked {
            Asked::Locate { token, pool, deadline_us, keys, .. } => {
                assert_eq!(pool, POOL);
                let blocks = machine.find(&keys);
                if !blocks.is_empty() {
                    machine.held.insert((link, token), now + deadline_us);
                }
                machine.host.found(link, token, Key::default(), blocks);
            }
            Asked::Release { token } => {
                machine.held.remove(&(link, token));
            }
            other => panic!("{other:?}"),
        }
    }

    fn deliver(&mut self) {
        let now = Time(self.now);
        let pairs: Vec<(u32, u32)> = self.wires.keys().copied().collect();
        for pair in pairs {
            let (asker, asked) = pair;
            let wire = self.wires.get_mut(&pair).expect("listed");
            if wire.asker_lost.is_some_and(|at| at <= self.now) && std::mem::take(&mut wire.asker_open) {
                self.machines[asker as usize].host.lost(now, PeerId(asked));
            }
            let wire = self.wires.get_mut(&pair).expect("listed");
            if wire.guest_lost.is_some_and(|at| at <= self.now) && std::mem::take(&mut wire.guest_open) {
                let link = wire.guest_link;
                self.machines[asked as usize].host.gone(link);
            }
            let wire = self.wires.get_mut(&pair).expect("listed");
            if wire.dead {
                continue;
            }
            let link = wire.guest_link;
            let mut incoming = Vec::new();
            while wire.to_guest.front().is_some_and(|first| first.0 <= self.now) {
                incoming.push(wire.to_guest.pop_front().expect("looked at").1);
            }
            for bytes in incoming {
                self.machines[asked as usize].host.asked(now, link, parsed(&bytes));
            }
            self.carry_out(asked);
            // It is read as fast as it sends.
            for _ in 0..8 {
                let Some(message) = self.machines[asked as usize].host.poll_send(link) else { break };
                let due = self.now + self.delay();
                let mut bytes = Vec::new();
                message.encode(&mut bytes);
                let wire = self.wires.get_mut(&pair).expect("listed");
                let due = due.max(wire.to_asker.back().map_or(0, |last| last.0));
                wire.to_asker.push_back((due, bytes));
            }
            let wire = self.wires.get_mut(&pair).expect("listed");
            let mut incoming = Vec::new();
            while wire.asker_open && wire.to_asker.front().is_some_and(|first| first.0 <= self.now) {
                incoming.push(wire.to_asker.pop_front().expect("looked at").1);
            }
            for bytes in incoming {
                // What came before is carried out first: it may have hung up.
                if self.wires.get(&pair).is_some_and(|wire| wire.asker_open && wire.guest_link == link) {
                    self.machines[asker as usize].host.answered(now, PeerId(asked), parsed(&bytes));
                    self.carry_out(asker);
                }
            }
        }
    }

    /// Without faults and changes for long enough, everybody knows of everybody's blocks, all of them, and nothing is held.
    fn converges(&mut self) {
        self.cut.clear();
        for _ in 0..14_000 {
            self.step(false);
        }
        let pool = pool_name(&shape());
        for at in 0..self.hosts() {
            let machine = &self.machines[at as usize];
            assert_eq!(machine.host.up(), self.machines.len() - 1, "host {at}");
            for chain in 0..CHAINS {
                let names: Vec<ShortName> = (0..DEPTH).map(|depth| ShortName::new(pool, &key(chain, depth))).collect();
                let others = (0..self.hosts()).filter(|other| *other != at);
                let longest =
                    others.map(|other| self.machines[other as usize].blocks.get(&chain).copied().unwrap_or(0)).max();
                let known = machine.host.directory().choose(&names, 0, |_| false).map_or(0, |choice| choice.run as u64);
                // Names may be shared, seldom.
                assert!(
                    known >= longest.unwrap_or(0),
                    "host {at} knows of {known} blocks of chain {chain}: {longest:?}"
                );
            }
        }
    }
}

fn parsed(bytes: &[u8]) -> PeerMessage {
    let (kind, body) = head(bytes[..HEAD_BYTES].try_into().expect("a head")).expect("a head of ours");
    assert_eq!(body + HEAD_BYTES, bytes.len());
    PeerMessage::decode(kind, &bytes[HEAD_BYTES..]).expect("a message of ours")
}

fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..8 * SECOND / 1_000 {
        world.step(true);
    }
    world.converges();
    world.tally
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn wants_end_in_time_and_hosts_find_each_other_again_whatever_happens_to_links_and_daemons() {
    if let Some(seed) = number("LAPIS_PEERS_SEED") {
        println!("{:?}", run(seed));
        return;
    }
    let mut all = Tally::default();
    for seed in 0..number("LAPIS_PEERS_SEEDS").unwrap_or(SEEDS) {
        let tally = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("LAPIS_PEERS_SEED={seed}"));
        all.wants += tally.wants;
        all.asked += tally.asked;
        all.came += tally.came;
        all.looked += tally.looked;
        all.restarts += tally.restarts;
        all.cuts += tally.cuts;
    }
    println!("{all:?}");
    assert!(all.came > 0 && all.looked > 0 && all.restarts > 0 && all.cuts > 0 && all.asked < all.wants, "{all:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(run(3), run(3));
}

#[test]
fn a_host_that_nobody_named_is_refused_and_hears_why() {
    let mut one = machine(0, 0, 2, 1);
    for (host, group, certified, why) in [
        ("stranger", "default", None, "is not one of the peers of \"host-0\""),
        ("host-1", "other", None, "of group \"default\", not \"other\""),
        ("host-1", "default", Some("host-7"), "has shown the certificate of \"host-7\""),
    ] {
        let (own, link) = (machine(0, 1, 2, 2), 5);
        drop(own);
        one.host.connected(link, certified.map(str::to_owned), 1);
        let hello = PeerHello {
            host: host.into(),
            group: group.into(),
            boot: 1,
            digest_bytes_max: 1,
            data_port: 1,
            data_word: 1,
        };
        one.host.asked(Time(0), link, PeerMessage::Hello(hello));
        let told = one.host.poll_send(link);
        assert!(matches!(&told, Some(PeerMessage::Refused { reason }) if reason.contains(why)), "{told:?}");
        one.host.gone(link);
    }
    assert!(Duration::from_micros(READ_US_MAX) < Duration::from_secs(1));
}
