//! One other host: the pure half of its daemon, with blocks of shared chains that come and go, and clients that want blocks
//! of this host's.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use lapis_arena::{StoredBlock, sum};
use lapis_config::{Key, PoolId, Time, Wait};
use lapis_transport::peers::{
    answerer::Asked,
    asker::AskerOptions,
    directory::PeerId,
    host::{Do, Host, Link},
    links::{LinkEvent, LinkId},
    message::{Located, PeerHello, PeerMessage},
    paths::Lent,
};

use super::{
    Event, Hosts, OWN,
    paths::{shape_of, sum_of},
};
use crate::sim::{
    model::Model,
    plan::{SHARED, SHARED_CHAINS, key},
};

/// Its numbers of pools are others than this host's.
pub(super) const POOL_FIRST: u16 = 10;
/// Pools that it has: the chains'.
const POOLS: usize = 2;
pub(super) const PEER: PeerId = PeerId(0);

pub fn name(at: usize) -> String {
    format!("host-{}", at + 1)
}

/// Blocks of this host on their way to the other one.
pub struct Reading {
    stub: usize,
    boot: u64,
    link: LinkId,
    call: u64,
    pool: usize,
    blocks: Vec<(usize, Located)>,
    keys: Vec<Key>,
    /// As they were lent when the reading began: it may go on after that is over.
    lent: Option<Vec<Lent>>,
    looked: bool,
}

pub struct Stub {
    pub host: Host,
    pub boot: u64,
    at: usize,
    /// On which it asks.
    pub(super) to: Option<LinkId>,
    /// Leading blocks of shared chains, in both pools.
    blocks: BTreeMap<u64, u64>,
    wants: BTreeMap<u64, (usize, Vec<Key>)>,
    /// Wants of what was offered: by whom, and the offer's number.
    offers: BTreeMap<u64, (u64, u64)>,
    number: u64,
}

impl Stub {
    pub fn new(at: usize, boot: u64, asker: AskerOptions, rng: &mut Rng) -> Self {
        let own = PeerHello {
            host: name(at),
            group: "g0".into(),
            boot,
            digest_bytes_max: 1 << 20,
            data_port: 1,
            data_word: boot,
        };
        let mut host = Host::new(Time(0), own, 4_096, 0, asker);
        for pool in 0..POOLS {
            host.pool_opened(PoolId(POOL_FIRST + pool as u16), shape_of(pool));
        }
        host.join(Time(0), PEER, OWN.into());
        let (blocks, wants, offers) = Default::default();
        let mut stub = Self { host, boot, at, to: None, blocks, wants, offers, number: 0 };
        for chain in 0..SHARED_CHAINS {
            stub.set_blocks(Time(0), SHARED + chain, rng.u64(..8));
        }
        stub
    }

    pub fn has(&self, key: &Key) -> bool {
        key.0[3] < self.blocks.get(&key.0[2]).copied().unwrap_or(0)
    }

    fn set_blocks(&mut self, now: Time, chain: u64, depth: u64) {
        let before = self.blocks.insert(chain, depth).unwrap_or(0);
        for at in before.min(depth)..before.max(depth) {
            for pool in 0..POOLS {
                self.host.changed(now, PoolId(POOL_FIRST + pool as u16), &key(chain, at), depth > before);
            }
        }
    }

    pub fn dialled(&mut self, now: Time, link: LinkId) {
        if self.to == Some(link) {
            self.host.dialled(now, PEER);
        }
    }

    pub fn lost(&mut self, now: Time, link: LinkId, by_engine: bool) {
        if by_engine {
            self.host.gone(link.0);
        } else if self.to == Some(link) {
            self.to = None;
            self.host.lost(now, PEER);
        }
    }

    pub fn hears(&mut self, now: Time, link: LinkId, by_engine: bool, message: PeerMessage) {
        if by_engine {
            self.host.asked(now, link.0, message);
        } else if self.to == Some(link) {
            self.host.answered(now, PEER, message);
        }
    }

    /// The leading blocks of a call that are here; sometimes not quite the truth.
    pub(super) fn find(&self, pool: usize, keys: &[Key], lies: bool, rng: &mut Rng) -> (Key, Vec<Located>) {
        let shape = shape_of(pool);
        let parent = match keys[0].0[3] {
            0 => Key::default(),
            depth => key(keys[0].0[2], depth - 1),
        };
        let found = keys.iter().take_while(|key| self.has(key));
        let blocks = found.enumerate().map(|(at, key)| {
            let follows = at > 0 && keys[at - 1].0[2] == key.0[2] && keys[at - 1].0[3] + 1 == key.0[3];
            let mut block = Located {
                index: at as u16,
                follows,
                line: at as u32,
                generation: 1,
                slot: at as u32,
                bytes: shape.block_bytes as u32,
                sum: sum_of(&shape, key),
            };
            if lies && rng.u8(..30) == 0 {
                match rng.u8(..4) {
                    0 => block.sum ^= 1 << rng.u8(..64),
                    1 => block.bytes = rng.u32(..),
                    2 => block.index = rng.u16(..),
                    _ => block.follows ^= true,
                }
            }
            block
        });
        (parent, blocks.collect())
    }
}

impl Hosts {
    pub(super) fn turn_stub(&mut self, at: usize) {
        if self.ended {
            return;
        }
        let now = self.now;
        if self.stubs[at].host.poll_timeout().is_some_and(|due| due <= now) {
            self.stubs[at].host.tick(now);
        }
        while let Some(todo) = self.stubs[at].host.poll() {
            self.stub_does(at, todo);
        }
        for link in self.stubs[at].host.guests() {
            while let Some(message) = self.stubs[at].host.poll_send(link) {
                self.send(LinkId(link), true, &message);
            }
        }
    }

    fn stub_does(&mut self, at: usize, todo: Do) {
        match todo {
            Do::Dial(_) => self.stub_dials(at),
            Do::Send(Link::To(_), message) => {
                if let Some(link) = self.stubs[at].to {
                    self.send(link, true, &message);
                }
            }
            Do::Send(Link::From(_), _) => unreachable!("those are polled"),
            Do::HangUp(Link::To(_), _) => {
                if let Some(link) = self.stubs[at].to.take() {
                    self.stub_closes(link);
                }
            }
            Do::HangUp(Link::From(link), _) => {
                while let Some(message) = self.stubs[at].host.poll_send(link) {
                    self.send(LinkId(link), true, &message);
                }
                self.stubs[at].host.gone(link);
                self.stub_closes(LinkId(link));
            }
            Do::Asked(link, Asked::Locate { token, pool, keys, .. }) => {
                let lies = self.plan.link_faults;
                let pool = usize::from(pool.0 - POOL_FIRST);
                let (parent, blocks) = self.stubs[at].find(pool, &keys, lies, &mut self.rng);
                self.stubs[at].host.found(link, token, parent, blocks);
            }
            Do::Read { want, call, looked, blocks, .. } => self.stub_begins_to_read(at, want, call, looked, blocks),
            Do::Look { call, pool, keys, within, .. } => self.stub_looks(at, call, pool, keys, within),
            Do::Ended { want, came } => {
                let stub = &mut self.stubs[at];
                stub.wants.remove(&want);
                if let Some((link, number)) = stub.offers.remove(&want) {
                    stub.host.offered(link, number, came as u32);
                }
            }
            Do::Asked(link, Asked::Offer { number, pool, deadline_us, keys }) => {
                self.stub_is_offered(at, (link, number), pool, deadline_us, keys);
            }
            Do::Asked(..)
            | Do::Offered { .. }
            | Do::Up(..)
            | Do::Down(_)
            | Do::Path(..)
            | Do::Guest(..)
            | Do::Gone(_) => {}
        }
    }

    fn stub_dials(&mut self, at: usize) {
        if self.is_away(at) || !self.engine_up {
            let now = self.now;
            return self.stubs[at].host.lost(now, PEER);
        }
        let link = self.connect(at, false);
        self.stubs[at].to = Some(link);
        let accepted = LinkEvent::Accepted { link, certified: Some(name(at)), remote: super::address() };
        self.soon(link, true, Event::ToEngine(accepted));
        self.soon(link, false, Event::StubDialled(link));
    }

    /// Clients of another host put, lose and want blocks.
    pub(super) fn stub_works(&mut self, at: usize) {
        let now = self.now;
        let pause = Duration::from_micros(self.rng.u64(1_000..30_000));
        self.at(now.after(pause), Event::StubWork(at));
        let chain = SHARED + self.rng.u64(..SHARED_CHAINS);
        let stub = &mut self.stubs[at];
        match self.rng.u8(..7) {
            0 => stub.set_blocks(now, chain, self.rng.u64(..8)),
            // What it has is offered, or what is removed there is to go here too: of any chain.
            4 => {
                let offers = self.rng.bool();
                let chain = if offers { chain } else { self.rng.u64(..self.plan.chains) };
                let keys: Vec<Key> = (0..self.rng.u64(1..8)).map(|depth| key(chain, depth)).collect();
                let pool = PoolId(POOL_FIRST + self.rng.u16(..POOLS as u16));
                if offers {
                    stub.host.offer(now, PEER, pool, &keys, now.after(Duration::from_millis(self.rng.u64(1..80))));
                } else if self.plan.link_faults {
                    stub.host.tell_removed(now, pool, if self.rng.u8(..20) == 0 { &[] } else { &keys });
                }
            }
            1..4 => {
                let local = self.rng.u8(..4) > 0;
                let chain = if local { self.rng.u64(..self.plan.chains) } else { chain };
                let first = self.rng.u64(..2);
                let keys: Vec<Key> = (first..first + self.rng.u64(1..8)).map(|depth| key(chain, depth)).collect();
                let (pool, deadline) = (self.rng.usize(..POOLS), now.after(Duration::from_millis(self.rng.u64(1..80))));
                stub.number += 1;
                let want = stub.number;
                if stub.host.want(now, want, PoolId(POOL_FIRST + pool as u16), false, keys.clone(), deadline, None) {
                    stub.wants.insert(want, (pool, keys));
                }
            }
            _ => {}
        }
    }

    /// It takes what is offered, or does not, or forgets to answer.
    fn stub_is_offered(&mut self, at: usize, offer: (u64, u64), pool: PoolId, deadline_us: u64, keys: Vec<Key>) {
        let (now, stub) = (self.now, &mut self.stubs[at]);
        let takes = self.rng.u8(..8);
        let is_known = (POOL_FIRST..POOL_FIRST + POOLS as u16).contains(&pool.0);
        if takes > 1 && is_known {
            stub.number += 1;
            let (want, until) = (stub.number, now.after(Duration::from_micros(deadline_us)));
            if stub.host.want(now, want, pool, false, keys.clone(), until, Some((PEER, Wait::Present))) {
                stub.wants.insert(want, (usize::from(pool.0 - POOL_FIRST), keys));
                stub.offers.insert(want, offer);
                return;
            }
        }
        if takes > 0 {
            stub.host.offered(offer.0, offer.1, 0);
        }
    }

    fn stub_begins_to_read(&mut self, at: usize, want: u64, call: u64, looked: bool, blocks: Vec<(usize, Located)>) {
        let stub = &self.stubs[at];
        let (Some(link), Some((pool, keys))) = (stub.to, stub.wants.get(&want)) else { return };
        let late = self.rng.u8(..5) == 0;
        let takes = Duration::from_micros(if late { self.rng.u64(..300_000) } else { self.rng.u64(20..2_000) });
        let lent = self.lent.get(&(link, call)).cloned();
        let (stub, boot, pool, keys) = (stub.at, stub.boot, *pool, keys.clone());
        let reading = Reading { stub, boot, link, call, pool, blocks, keys, lent, looked };
        self.at(self.now.after(takes), Event::StubRead(reading));
    }

    /// Reads what lies there now, be it what was lent or not. What does not fit its sum is dropped.
    pub(super) fn stub_reads(&mut self, reading: Reading) {
        let now = self.now;
        let is_same = self.stubs[reading.stub].boot == reading.boot;
        let reachable = self.links.get(&reading.link).is_some_and(|own| own.engine_open && !own.dead);
        let places = reading.looked.then(|| self.places(&reading.blocks));
        let lent = self.lent.get(&(reading.link, reading.call)).or(reading.lent.as_ref());
        let lent = places.as_ref().or(lent).filter(|_| self.engine_up);
        let shape = shape_of(reading.pool);
        let mut came = Vec::new();
        if let Some(lent) = lent.filter(|_| reachable) {
            for ((index, located), lent) in reading.blocks.iter().zip(lent) {
                let key = reading.keys[*index];
                let block = StoredBlock {
                    mapping: lent.mapping.clone(),
                    offset: lent.offset,
                    key,
                    bytes: located.bytes,
                    pieces: shape.pieces,
                    block_bytes: shape.block_bytes,
                    pool_seed: sum::pool_seed(&shape),
                    sum: located.sum,
                };
                if !block.is_sound() {
                    self.tally.stale += 1;
                    break;
                }
                let bytes = lent.mapping.to_vec(lent.offset, located.bytes as usize);
                let number = Model::number(&key, &bytes).unwrap_or_else(|wrong| panic!("read by a host: {wrong}"));
                self.tally.read += 1;
                self.reads.push((reading.pool, key, number));
                came.push(*index);
            }
        }
        if is_same {
            self.stubs[reading.stub].host.filled(now, PEER, reading.call, &came);
        }
    }
}
