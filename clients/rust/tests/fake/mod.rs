//! A daemon made of the arena's and the transport's parts, and of nothing that decides: it publishes, grants and answers
//! just as it is told. Its own bookkeeping asserts what a client must never do.
#![allow(dead_code, reason = "each test crate uses its part")]

pub mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use lapis_arena::{
    Access, Extents, LineState, MappedWords, Mapping, TableWriter, hazard,
    memfd::{self, Huge},
    sum, table,
};
use lapis_client::{Fingerprint, Key, Pool, PoolKind, PoolShape, Pools, PutResult, Refusal, ReserveResult, Session};
use lapis_config::{ClientId, LineId, PoolId, SlotId, sizes};
use lapis_transport::{
    control::{self, ControlDaemon},
    frame::{CommitItem, Completion, ParentRef, Request},
    hello::{CallDefaults, Geometry},
};

pub use lapis_client::session::{Step, Welcome};

pub const LINES: u32 = 4096;
pub const EXTENT_BYTES: u64 = 16 << 20;
pub const BLOCK_BYTES: usize = 64 << 10;

/// One client as the fake knows it.
pub struct Known {
    pub id: ClientId,
    pub secret: u64,
    pub control_fd: OwnedFd,
    pub control: ControlDaemon,
    pub granted: BTreeSet<SlotId>,
    pub connected: bool,
}

pub struct Fake {
    pub writer: TableWriter,
    pub table_fd: OwnedFd,
    pub extent_fd: OwnedFd,
    pub extents: Extents,
    pub geometry: Geometry,
    pub pools: Vec<PoolShape>,
    pub clients: Vec<Known>,
    pub may_put: bool,
    pub magazine_bytes_max: u64,
    /// Answers nothing.
    pub is_silent: bool,
    /// Slots granted to one refill at most.
    pub grant_max: usize,
    /// All frames that came.
    pub frames: Vec<Request>,
    free: BTreeMap<u32, Vec<SlotId>>,
    next: u32,
    parents: BTreeMap<Key, ParentRef>,
    /// Gets without an answer.
    pub waiting: Vec<(usize, u64)>,
    /// What is on SSD alone: the bytes of whole slots.
    cold: BTreeMap<(PoolId, Key), Vec<u8>>,
    /// What each get brought from there, until its release.
    brought: BTreeMap<(usize, u64), Vec<(PoolId, Key)>>,
    /// The most blocks that were brought at one time.
    pub brought_max: usize,
    /// What welcomes say.
    pub defaults: CallDefaults,
    /// Who said `Bye`.
    pub byes: Vec<ClientId>,
}

/// The shape of the tests' chain pools.
pub fn shape(label: &str, block_bytes: usize, pieces: u16) -> PoolShape {
    let namespace = Fingerprint([7; 32]);
    PoolShape { namespace, label: label.into(), kind: PoolKind::Chain, block_bytes: block_bytes as u64, pieces }
}

pub fn key(n: u64) -> Key {
    Key([n, n.wrapping_mul(0x9e37_79b9_7f4a_7c15), 3, !n])
}

pub fn keys(range: std::ops::Range<u64>) -> Vec<Key> {
    range.map(key).collect()
}

/// Bytes that tell one key and round from any other.
pub fn payload(n: u64, round: u64, bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(n << 16 ^ round);
    let mut out = vec![0; bytes];
    rng.fill(&mut out);
    out
}

impl Fake {
    pub fn new() -> Self {
        let (table_fd, _) = memfd::create("table", table::bytes_for(LINES), Huge::Never).expect("a memfd");
        let (extent_fd, _) = memfd::create("extent", EXTENT_BYTES, Huge::Never).expect("a memfd");
        let bytes = table::bytes_for(LINES);
        let mapping = Mapping::shared(table_fd.as_fd(), bytes, Access::ReadWrite).expect("a mapping");
        let words = MappedWords::new(&mapping, 0, mapping.len() / 8);
        let table_id = fastrand::u64(1..);
        let writer = TableWriter::create(words, LINES, table_id, [1, 2, 3]).expect("a table");
        let extents = Extents::new();
        let extent = Mapping::shared(extent_fd.as_fd(), EXTENT_BYTES, Access::ReadWrite).expect("a mapping");
        extents.push(extent).expect("room for an extent");
        let instance = fastrand::u64(1..);
        writer.set_instance(instance);
        Self {
            writer,
            table_fd,
            extent_fd,
            extents,
            geometry: Geometry { table_id, instance, lines: LINES, extents_bytes: vec![EXTENT_BYTES] },
            pools: Vec::new(),
            clients: Vec::new(),
            may_put: true,
            magazine_bytes_max: 8 * BLOCK_BYTES as u64,
            is_silent: false,
            grant_max: usize::MAX,
            frames: Vec::new(),
            free: BTreeMap::new(),
            next: 0,
            parents: BTreeMap::new(),
            waiting: Vec::new(),
            cold: BTreeMap::new(),
            brought: BTreeMap::new(),
            brought_max: 0,
            defaults: CallDefaults::default(),
            byes: Vec::new(),
        }
    }

    /// As after a restart over kept memory.
    pub fn restart(&mut self) {
        self.geometry.instance += 1;
        self.writer.set_instance(self.geometry.instance);
        self.clients.iter_mut().for_each(|client| client.connected = false);
    }

    pub fn open_pool(&mut self, shape: &PoolShape) -> (PoolId, u32) {
        let known = self.pools.iter().position(|pool| pool == shape);
        let at = known.unwrap_or_else(|| {
            self.pools.push(shape.clone());
            self.pools.len() - 1
        });
        (PoolId(at as u16), sizes::slot_bytes(shape, shape.block_bytes) as u32)
    }

    /// Registers a client and returns what its welcome says.
    pub fn add_client(&mut self) -> Welcome {
        let (control_fd, _) = memfd::create("client", control::BYTES, Huge::Never).expect("a memfd");
        let mapping = Mapping::shared(control_fd.as_fd(), control::BYTES, Access::ReadWrite).expect("a mapping");
        let mut control = ControlDaemon::new(mapping);
        control.reset();
        let (id, secret) = (ClientId(self.clients.len() as u32 + 1), fastrand::u64(..));
        self.clients.push(Known { id, secret, control_fd, control, granted: BTreeSet::new(), connected: true });
        self.welcome(self.clients.len() - 1, false)
    }

    pub fn welcome(&self, client: usize, resumed: bool) -> Welcome {
        Welcome {
            client: self.clients[client].id,
            secret: self.clients[client].secret,
            geometry: self.geometry.clone(),
            may_put: self.may_put,
            resumed,
            magazine_bytes_max: self.magazine_bytes_max,
            defaults: self.defaults,
        }
    }

    /// A session of a new client, without a socket.
    pub fn session(&mut self) -> Arc<Session> {
        let welcome = self.add_client();
        let control = self.clients.last().expect("just added").control_fd.as_fd();
        let session = Session::open(&welcome, self.table_fd.as_fd(), control, None, None, None).expect("a session");
        let extent = self.extent_fd.try_clone().expect("a descriptor");
        session.add_extents(0, &[EXTENT_BYTES], &[extent]).expect("an extent");
        Arc::new(session)
    }

    /// Opens a pool for a session.
    pub fn pool(&mut self, session: &Session, shape: &PoolShape) -> Pool {
        let pool = Pools::default().add(shape).expect("a pool");
        let (id, slot_bytes) = self.open_pool(shape);
        session.pool_opened(&pool, id, slot_bytes);
        pool
    }

    /// A free slot, with everything that ever lay there still in it.
    pub fn take_slot(&mut self, slot_bytes: u32) -> Option<SlotId> {
        if let Some(slot) = self.free.get_mut(&slot_bytes).and_then(Vec::pop) {
            return Some(slot);
        }
        let units = slot_bytes / 4096;
        let slot = SlotId(self.next);
        (u64::from(self.next + units) * 4096 <= EXTENT_BYTES).then(|| {
            self.next += units;
            slot
        })
    }

    pub fn free_slot(&mut self, slot_bytes: u32, slot: SlotId) {
        self.free.entry(slot_bytes).or_default().push(slot);
    }

    pub fn write(&self, slot: SlotId, bytes: &[u8]) {
        let (mapping, offset) = self.extents.locate(slot, bytes.len() as u64).expect("a slot of the extent");
        mapping.copy_in(offset, bytes);
    }

    /// The sum that a payload has, with the sums of its pieces written to the tail of the slot.
    pub fn sum(&self, shape: &PoolShape, key: &Key, slot: SlotId, payload: &[u8]) -> u64 {
        let (seed, bytes) = (sum::pool_seed(shape), payload.len() as u64);
        if shape.pieces == 1 {
            return sum::of_bytes(seed, key, payload);
        }
        let piece_bytes = payload.len() / usize::from(shape.pieces);
        let pieces: Vec<u64> = payload
            .chunks(piece_bytes)
            .enumerate()
            .map(|(i, piece)| {
                let mut sum = lapis_arena::Sum::piece(seed, key, bytes, i as u16, piece_bytes as u64);
                sum.update(piece);
                sum.finish()
            })
            .collect();
        let tail: Vec<u8> = pieces.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let (mapping, offset) = self.extents.locate(slot, bytes).expect("a slot of the extent");
        mapping.copy_in(offset + sizes::tail_offset(bytes) as usize, &tail);
        sum::combine(seed, key, bytes, &pieces)
    }

    /// Publishes a block in a fresh slot.
    pub fn publish(&mut self, shape: &PoolShape, key: &Key, payload: &[u8], state: LineState) -> LineId {
        let (pool, slot_bytes) = self.open_pool(shape);
        let slot = self.take_slot(slot_bytes).expect("a free slot");
        self.write(slot, payload);
        let sum = self.sum(shape, key, slot, payload);
        self.writer.publish(pool, key, slot, payload.len() as u32, sum, state).expect("a free line")
    }

    pub fn has(&self, pool: PoolId, key: &Key) -> bool {
        self.writer.find(pool, key).is_some()
    }

    /// Unpublishes a block. Whether its slot may be reused: no client names it. Then it is free.
    pub fn drop_block(&mut self, pool: PoolId, key: &Key) -> bool {
        let found = self.writer.find(pool, key).expect("a published block");
        self.writer.unpublish(found.line);
        let pages: Vec<_> = self.clients.iter().map(|client| client.control.hazards()).collect();
        let mut named = false;
        hazard::scan(&pages, &mut |slot| named |= slot == found.slot);
        if !named {
            let slot_bytes = sizes::slot_bytes(&self.pools[usize::from(pool.0)], u64::from(found.bytes)) as u32;
            self.free_slot(slot_bytes, found.slot);
        }
        !named
    }

    /// A block leaves memory and stays on SSD.
    pub fn demote(&mut self, pool: PoolId, key: &Key) {
        let found = self.writer.find(pool, key).expect("a published block");
        let slot_bytes = sizes::slot_bytes(&self.pools[usize::from(pool.0)], u64::from(found.bytes));
        let (mapping, offset) = self.extents.locate(found.slot, slot_bytes).expect("a slot of the extent");
        self.cold.insert((pool, *key), mapping.to_vec(offset, slot_bytes as usize));
        self.writer.rebind(found.line, SlotId(0), found.bytes, found.sum, LineState::Elsewhere);
        self.free_slot(slot_bytes as u32, found.slot);
    }

    fn promote(&mut self, client: usize, token: u64, pool: PoolId, key: &Key) {
        let Some(bytes) = self.cold.remove(&(pool, *key)) else { return };
        let slot = self.take_slot(bytes.len() as u32).expect("no get asks for more than memory holds");
        self.write(slot, &bytes);
        let found = self.writer.find(pool, key).expect("a published block");
        self.writer.rebind(found.line, slot, found.bytes, found.sum, LineState::Unverified);
        self.brought.entry((client, token)).or_default().push((pool, *key));
        self.brought_max = self.brought_max.max(self.brought.values().map(Vec::len).sum());
    }

    /// Answers what there is in all rings; returns the clients that are to be rung.
    pub fn turn(&mut self) -> Vec<usize> {
        let mut ring = Vec::new();
        for at in 0..self.clients.len() {
            if !self.clients[at].connected || self.is_silent {
                continue;
            }
            let mut answered = false;
            while let Some(request) = self.clients[at].control.pop_request().expect("sound frames") {
                self.frames.push(request.clone());
                if let Some(completion) = self.answer(at, request) {
                    assert!(self.clients[at].control.push_completion(&completion), "room for an answer");
                    answered = true;
                }
            }
            if answered && self.clients[at].control.client_sleeping() {
                ring.push(at);
            }
        }
        ring
    }

    fn answer(&mut self, at: usize, request: Request) -> Option<Completion> {
        match request {
            Request::Commit { token, pool, items } => {
                let mut results = Vec::new();
                for i in 0..items.len() {
                    results.push(self.commit(at, pool, &items, i));
                }
                Some(Completion::Committed { token, results })
            }
            Request::Refill { token, pool, slot_bytes, count, .. } => {
                let bound = (self.magazine_bytes_max / u64::from(slot_bytes)) as usize;
                let room = bound.saturating_sub(self.clients[at].granted.len()).min(self.grant_max);
                if room == 0 {
                    return Some(Completion::Refused { token, reason: Refusal::Limit });
                }
                let slots: Vec<SlotId> =
                    (0..room.min(count as usize)).map_while(|_| self.take_slot(slot_bytes)).collect();
                if slots.is_empty() {
                    return Some(Completion::Refused { token, reason: Refusal::AllPinned });
                }
                self.grant(at, &slots);
                Some(Completion::Granted { token, pool, slot_bytes, slots })
            }
            Request::Reserve { token, pool, slot_bytes, keys, .. } => {
                let mut results = Vec::new();
                for key in keys {
                    results.push(match self.writer.find(pool, &key) {
                        Some(_) => ReserveResult::Exists,
                        None => match self.take_slot(slot_bytes) {
                            Some(slot) => {
                                self.grant(at, &[slot]);
                                ReserveResult::Slot(slot)
                            }
                            None => ReserveResult::Refused(Refusal::AllPinned),
                        },
                    });
                }
                Some(Completion::Reserved { token, results })
            }
            Request::Abort { slots } => {
                for slot in slots {
                    assert!(self.clients[at].granted.remove(&slot), "an abort of a slot that was not granted");
                    self.free_slot(BLOCK_BYTES as u32, slot);
                }
                None
            }
            Request::Get { token, asks, keys, .. } => {
                let there = keys.iter().filter(|key| self.writer.find(asks[0].0, key).is_some()).count();
                if there < keys.len() {
                    self.waiting.push((at, token));
                    return None;
                }
                keys.iter().for_each(|key| self.promote(at, token, asks[0].0, key));
                Some(Completion::Got { token, hit: there as u32 })
            }
            Request::Remove { token, pool, keys } => {
                let mut blocks = 0;
                for key in keys {
                    if self.writer.find(pool, &key).is_some() {
                        self.drop_block(pool, &key);
                        blocks += 1;
                    }
                }
                Some(Completion::Removed { token, blocks })
            }
            Request::GetFrom { token, .. } | Request::Offer { token, .. } => Some(Completion::Got { token, hit: 0 }),
            Request::Purge { token, .. } => Some(Completion::Removed { token, blocks: 0 }),
            Request::ReserveOnGpu { .. } | Request::CommitOnGpu { .. } | Request::AbortOnGpu { .. } => {
                panic!("a client that was told of no GPUs asked for {request:?}")
            }
            Request::Release { token } => {
                // As in a memory that is full of others' blocks.
                for (pool, key) in self.brought.remove(&(at, token)).unwrap_or_default() {
                    self.demote(pool, &key);
                }
                None
            }
            Request::Prefetch { .. } | Request::HintKeys { .. } => None,
        }
    }

    fn grant(&mut self, at: usize, slots: &[SlotId]) {
        for slot in slots {
            assert!(self.clients[at].granted.insert(*slot), "a slot is granted once");
        }
    }

    fn commit(&mut self, at: usize, pool: PoolId, items: &[CommitItem], i: usize) -> PutResult {
        let item = items[i];
        if !self.clients[at].granted.remove(&item.slot) {
            return PutResult::Refused(Refusal::NotGranted);
        }
        let slot_bytes = sizes::slot_bytes(&self.pools[usize::from(pool.0)], item.bytes.into()) as u32;
        let parent = match item.parent {
            ParentRef::Previous => ParentRef::Key(items[i - 1].key),
            parent => parent,
        };
        if let ParentRef::Key(key) = parent
            && self.writer.find(pool, &key).is_none()
        {
            self.free_slot(slot_bytes, item.slot);
            return PutResult::Refused(Refusal::NoParent);
        }
        if self.writer.find(pool, &item.key).is_some() {
            self.free_slot(slot_bytes, item.slot);
            return PutResult::Exists;
        }
        self.parents.insert(item.key, parent);
        let published = self.writer.publish(pool, &item.key, item.slot, item.bytes, item.sum, LineState::Dram);
        published.map_or(PutResult::Refused(Refusal::NoLine), |_| PutResult::Stored)
    }

    /// The parent under which a key was stored.
    pub fn parent(&self, key: &Key) -> Option<Key> {
        match self.parents[key] {
            ParentRef::Key(key) => Some(key),
            _ => None,
        }
    }

    /// Drives a job against this daemon until it is done. Panics if that takes more steps than any job should.
    pub fn drive(&mut self, session: &Session, mut step: impl FnMut(Duration) -> Step) {
        for _ in 0..10_000 {
            if step(Duration::from_secs(1)) == Step::Done {
                return;
            }
            self.turn();
            session.poll();
        }
        panic!("a job that does not end");
    }
}
