//! A core with clients around it that remember what they were told, and an engine that carries out its actions. After
//! every step the core is audited and compared with what the clients know.

use std::collections::{BTreeMap, BTreeSet};

use lapis_config::{
    ClientId, Fingerprint, Hint, HitPolicy, Key, OpId, PoolId, PoolKind, SlotId, Time, UNIT_BYTES, Wait,
};
use lapis_tiering::{
    Core, CoreOptions, Lru, PlainKept, PoolDef,
    face::{Action, Caller, CommitItem, Outcome, Parent, Put, Reply, Reserved},
    kept::{Kept, SlotState},
};

/// Chains of two pools that are kin, one of large blocks, and objects.
pub const POOLS: [(PoolKind, u32, u8); 4] =
    [(PoolKind::Chain, 4, 0), (PoolKind::Chain, 8, 0), (PoolKind::Chain, 64, 1), (PoolKind::Object, 40, 2)];
const EXTENTS: [u64; 2] = [512 * UNIT_BYTES, 768 * UNIT_BYTES];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    pub client: ClientId,
    pub pool: PoolId,
    pub units: u32,
    pub key: Option<Key>,
}

pub struct World {
    pub core: Option<Core<PlainKept, Lru>>,
    pub now: Time,
    pub clients: BTreeMap<ClientId, bool>,
    pub client_next: u32,
    /// Slots that clients may write into.
    pub owned: BTreeMap<SlotId, Owned>,
    /// What was published last under each key: slot, bytes, sum.
    pub stored: BTreeMap<(PoolId, Key), (SlotId, u32, u64)>,
    /// Slots that readers name.
    pub named: BTreeSet<SlotId>,
    /// Calls without an answer yet: what each asked for.
    pub calls: BTreeMap<Caller, Vec<Key>>,
    pub token_next: u64,
    pub ops: Vec<OpId>,
    pub extents: usize,
    pub populated: [u64; 2],
    pub recalls: u64,
}

pub fn key(chain: u32, depth: u32) -> Key {
    Key([u64::from(chain), u64::from(depth), 7, 0])
}

fn options() -> CoreOptions {
    CoreOptions { magazine_bytes_max: 16 * UNIT_BYTES * 4, waits_max: 24, verifies_max: 3, ..CoreOptions::default() }
}

fn pools(core: &mut Core<PlainKept, Lru>) {
    for (id, (kind, slot_units, namespace)) in POOLS.into_iter().enumerate() {
        let block_bytes = u64::from(slot_units) * UNIT_BYTES;
        let namespace = Fingerprint([namespace; 32]);
        core.pool_added(PoolId(id as u16), PoolDef { namespace, kind, block_bytes, slot_units });
    }
}

impl World {
    /// `lines`: room in the table; few make it full.
    pub fn new(lines: u32) -> Self {
        let mut core = Core::new(PlainKept::new(lines), Lru::default(), options());
        pools(&mut core);
        core.extent_added(EXTENTS[0]);
        let mut world = Self {
            core: Some(core),
            now: Time(1_000_000),
            clients: BTreeMap::new(),
            client_next: 1,
            owned: BTreeMap::new(),
            stored: BTreeMap::new(),
            named: BTreeSet::new(),
            calls: BTreeMap::new(),
            token_next: 1,
            ops: Vec::new(),
            extents: 1,
            populated: [0; 2],
            recalls: 0,
        };
        world.connect();
        world.connect();
        world
    }

    pub fn core(&mut self) -> &mut Core<PlainKept, Lru> {
        self.core.as_mut().expect("a core between two steps")
    }

    pub fn connect(&mut self) {
        let id = ClientId(self.client_next);
        self.client_next += 1;
        self.core().client_added(id, true);
        self.clients.insert(id, true);
    }

    pub fn populate(&mut self, extent: usize, units: u64) {
        if extent < self.extents {
            let bytes = (self.populated[extent] + units * UNIT_BYTES).min(EXTENTS[extent]);
            self.populated[extent] = bytes;
            self.core().populated(extent, bytes);
        }
    }

    fn caller(&mut self, client: ClientId, keys: Vec<Key>) -> Caller {
        let caller = Caller { client, token: self.token_next };
        self.token_next += 1;
        if self.clients[&client] {
            self.calls.insert(caller, keys);
        }
        caller
    }

    pub fn refill(&mut self, client: ClientId, pool: u16, units: u32, count: u32, wait_us: u64) {
        let to = self.caller(client, Vec::new());
        let (now, deadline) = (self.now, Time(self.now.0 + wait_us));
        self.core().refill(now, to, PoolId(pool), units * UNIT_BYTES as u32, count, deadline);
    }

    pub fn reserve(&mut self, client: ClientId, pool: u16, units: u32, keys: Vec<Key>, parent: Parent, wait_us: u64) {
        let to = self.caller(client, keys.clone());
        let (now, deadline) = (self.now, Time(self.now.0 + wait_us));
        self.core().reserve(now, to, PoolId(pool), units * UNIT_BYTES as u32, &keys, parent, deadline);
    }

    pub fn get(&mut self, client: ClientId, asks: &[(PoolId, HitPolicy)], keys: Vec<Key>, wait: Wait, wait_us: u64) {
        let to = self.caller(client, keys.clone());
        let (now, deadline) = (self.now, Time(self.now.0 + wait_us));
        self.core().get(now, to, asks, &keys, wait, deadline);
    }

    /// Commits up to `count` slots that the client owns in a pool: under the keys that they were reserved for, or along
    /// a chain from `depth` on.
    pub fn commit(&mut self, client: ClientId, pool: u16, count: usize, chain: u32, depth: u32) {
        let pool = PoolId(pool);
        let mut own: Vec<(SlotId, Owned)> = self
            .owned
            .iter()
            .filter(|(_, owned)| owned.client == client && owned.pool == pool)
            .map(|(&slot, &owned)| (slot, owned))
            .take(count)
            .collect();
        own.sort_by_key(|(_, owned)| owned.key);
        let is_object = POOLS[pool.0 as usize].0 == PoolKind::Object;
        let mut items: Vec<CommitItem> = Vec::new();
        for (at, (slot, owned)) in own.iter().enumerate() {
            let key = owned.key.unwrap_or(key(chain, depth + at as u32));
            let parent = match key.0[1] {
                _ if is_object => Parent::None,
                0 => Parent::None,
                depth => {
                    let above = Key([key.0[0], depth - 1, 7, 0]);
                    let follows = items.last().is_some_and(|last| last.key == above);
                    if follows { Parent::Previous } else { Parent::Key(above) }
                }
            };
            let bytes = owned.units * UNIT_BYTES as u32 - at as u32;
            items.push(CommitItem { slot: *slot, key, parent, bytes, sum: self.token_next + at as u64 });
        }
        let (now, mut puts) = (self.now, Vec::new());
        self.token_next += items.len() as u64;
        self.core().commit(now, client, pool, &items, &mut puts);
        assert_eq!(puts.len(), items.len());
        for (item, put) in items.iter().zip(puts) {
            assert_ne!(put, Put::Refused(lapis_config::Refusal::NotGranted), "the client owns the slot");
            self.owned.remove(&item.slot);
            if put == Put::Stored {
                self.stored.insert((pool, item.key), (item.slot, item.bytes, item.sum));
            }
        }
    }

    pub fn abort(&mut self, client: ClientId, count: usize) {
        let slots: Vec<SlotId> =
            self.owned.iter().filter(|(_, owned)| owned.client == client).map(|(&slot, _)| slot).take(count).collect();
        for slot in &slots {
            self.owned.remove(slot);
        }
        let now = self.now;
        self.core().abort(now, client, &slots);
    }

    pub fn lose(&mut self, client: ClientId) {
        self.clients.insert(client, false);
        self.calls.retain(|caller, _| caller.client != client);
        self.core().client_lost(client);
    }

    pub fn gone(&mut self, client: ClientId) {
        self.lose(client);
        self.owned.retain(|_, owned| owned.client != client);
        self.clients.remove(&client);
        self.core().client_gone(client);
    }

    /// The client comes back and goes on with every second of its slots.
    pub fn resume(&mut self, client: ClientId) {
        self.lose(client);
        let own: Vec<SlotId> =
            self.owned.iter().filter(|(_, owned)| owned.client == client).map(|(&slot, _)| slot).collect();
        let writing: Vec<SlotId> = own.iter().copied().step_by(2).collect();
        for slot in own.iter().filter(|slot| !writing.contains(slot)) {
            self.owned.remove(slot);
        }
        self.clients.insert(client, true);
        self.core().client_resumed(client, &writing);
    }

    pub fn touch(&mut self, pool: u16, chain: u32, depth: u32) {
        let now = self.now;
        let Some(line) = self.core().kept().find(PoolId(pool), &key(chain, depth)) else { return };
        let bind = self.core().kept().live(line).unwrap().generation << 4 | 2;
        self.core().touched(now, line, bind as u32, depth + 1, depth + 1);
    }

    pub fn name(&mut self, pool: u16, chain: u32, depth: u32) {
        let Some(line) = self.core().kept().find(PoolId(pool), &key(chain, depth)) else { return };
        let slot = self.core().kept().live(line).unwrap().place.slot;
        self.named.insert(slot);
        self.core().kept_mut().name(slot, true);
    }

    pub fn unname(&mut self, at: usize) {
        if let Some(&slot) = self.named.iter().nth(at % self.named.len().max(1)) {
            self.named.remove(&slot);
            self.core().kept_mut().name(slot, false);
        }
    }

    pub fn hint(&mut self, pool: u16, chain: u32, depth: u32, hint: Hint) {
        let (now, keys) = (self.now, (0..depth).map(|d| key(chain, d)).collect::<Vec<_>>());
        self.core().hint(now, PoolId(pool), &keys, hint);
    }

    pub fn remove(&mut self, pool: u16, chain: u32, depth: u32) {
        let now = self.now;
        self.core().remove(now, PoolId(pool), &[key(chain, depth)]);
        assert_eq!(self.core().kept().find(PoolId(pool), &key(chain, depth)), None);
    }

    pub fn purge(&mut self, pool: u16) {
        let now = self.now;
        self.core().purge(now, PoolId(pool));
        assert_eq!(self.core().pool_counts(PoolId(pool)).blocks, 0);
    }

    pub fn tick(&mut self, us: u64) {
        self.now.0 += us;
        let now = self.now;
        self.core().tick(now);
    }

    /// Time passes as an engine lets it: the core is called when it asked to be.
    pub fn wait(&mut self, us: u64) {
        let end = Time(self.now.0 + us);
        let mut calls = 0;
        while let Some(at) = self.core().poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            let now = self.now;
            self.core().tick(now);
            self.perform();
            calls += 1;
            assert!(calls < 100_000, "the core asks to be called and does nothing");
        }
        self.now = end;
    }

    pub fn complete(&mut self, outcome: Outcome) {
        if !self.ops.is_empty() {
            let (op, now) = (self.ops.remove(0), self.now);
            self.core().completed(now, op, outcome);
        }
    }

    /// The daemon dies and a new one takes over; clients find out later.
    pub fn restart(&mut self) {
        let mut kept = self.core.take().unwrap().into_kept();
        kept.restart();
        let slabs: Vec<_> = kept.slabs().copied().collect();
        let mut core = Core::adopt(kept, Lru::default(), options());
        pools(&mut core);
        for bytes in &EXTENTS[..self.extents] {
            core.extent_added(*bytes);
        }
        slabs.into_iter().for_each(|slab| core.adopt_slab(slab));
        for (&id, connected) in &mut self.clients {
            core.adopt_client(id, true);
            *connected = false;
        }
        for line in 0..core.kept().lines() {
            let line = lapis_config::LineId(line);
            if let Some(live) = core.kept().live(line) {
                core.adopt_line(line, live);
            }
        }
        let before = core.counts().blocks;
        // One client is faster than the adoption.
        let early = self.clients.keys().next().copied();
        self.calls.clear();
        self.ops.clear();
        self.core = Some(core);
        if let Some(id) = early {
            self.resume(id);
        }
        let now = self.now;
        self.core().adopt_done(now);
        assert_eq!(self.core().counts().blocks, before, "no block is lost to a restart");
        if let Some(id) = early {
            let own = self.owned.values().filter(|owned| owned.client == id).count();
            assert_eq!(self.granted_to(id), own, "who came back keeps what it writes and nothing else");
        }
        for (extent, &bytes) in self.populated.clone().iter().enumerate().take(self.extents) {
            self.core().populated(extent, bytes);
        }
    }

    fn granted_to(&mut self, id: ClientId) -> usize {
        let kept = self.core().kept();
        let states = kept.slabs().flat_map(|slab| (0..slab.slots()).map(|index| kept.slot_state(slab, index)));
        states.filter(|&state| state == SlotState::Granted(id)).count()
    }

    /// Carries out the core's actions.
    pub fn perform(&mut self) {
        while let Some(action) = self.core().poll_action() {
            match action {
                Action::Reply { to, reply } => self.answered(to, reply),
                Action::Recall { .. } => self.recalls += 1,
                Action::Verify { op, line, pool, key, slot, bytes, sum } => {
                    assert_eq!(self.stored[&(pool, key)], (slot, bytes, sum), "line {}", line.0);
                    self.ops.push(op);
                }
                Action::NeedMemory => {
                    if self.extents < EXTENTS.len() && self.now.0 > 3_000_000 {
                        let bytes = EXTENTS[self.extents];
                        self.extents += 1;
                        self.core().extent_added(bytes);
                    }
                }
                other => panic!("a core with DRAM alone wants {other:?}"),
            }
        }
    }

    fn answered(&mut self, to: Caller, reply: Reply) {
        let keys = if to.token == 0 { Some(Vec::new()) } else { self.calls.remove(&to) };
        let keys = keys.unwrap_or_else(|| panic!("{to:?} asked nothing, and is answered {reply:?}"));
        match reply {
            Reply::Granted { pool, slot_bytes, slots } => {
                assert!(!slots.is_empty());
                for slot in slots {
                    self.own(slot, to.client, pool, slot_bytes / UNIT_BYTES as u32, None);
                }
            }
            Reply::Reserved { results } => {
                assert_eq!(results.len(), keys.len());
                for (key, result) in keys.into_iter().zip(results) {
                    if let Reserved::Slot(slot) = result {
                        let units = self.core().slot_units(slot).expect("a slot");
                        let pool = self.pool_of(slot);
                        self.own(slot, to.client, pool, units, Some(key));
                    }
                }
            }
            Reply::Got { hit } => assert!(hit as usize <= keys.len()),
            Reply::Refused(_) => {}
            other => panic!("nobody asked for {other:?}"),
        }
    }

    fn pool_of(&mut self, slot: SlotId) -> PoolId {
        let slabs = self.core().kept().slabs();
        slabs.filter(|slab| slab.base.0 <= slot.0).last().expect("a slot lies in a slab").pool
    }

    fn own(&mut self, slot: SlotId, client: ClientId, pool: PoolId, units: u32, key: Option<Key>) {
        assert!(!self.named.contains(&slot), "slot {} is granted while a reader names it", slot.0);
        let former = self.owned.insert(slot, Owned { client, pool, units, key });
        assert_eq!(former, None, "slot {} is granted twice", slot.0);
        let overlaps = self.owned.range(..slot).next_back().is_some_and(|(s, o)| s.0 + o.units > slot.0)
            || self.owned.range(SlotId(slot.0 + 1)..).next().is_some_and(|(s, _)| slot.0 + units > s.0);
        assert!(!overlaps, "slot {} overlaps another's", slot.0);
    }

    /// What must hold between two steps.
    pub fn check(&mut self) {
        self.perform();
        self.core().audit().unwrap();
        let core = self.core.as_ref().unwrap();
        let mut used: BTreeMap<SlotId, u32> = BTreeMap::new();
        for (&(pool, key), &stored) in &self.stored {
            let Some(line) = core.kept().find(pool, &key) else { continue };
            let place = core.kept().live(line).unwrap().place;
            assert_eq!((place.slot, place.bytes, place.sum), stored, "{key:?} leads to what its client stored");
            assert!(!self.owned.contains_key(&place.slot), "slot {} is published and written", place.slot.0);
            used.insert(place.slot, core.slot_units(place.slot).unwrap());
            if key.0[1] > 0 && POOLS[pool.0 as usize].0 == PoolKind::Chain {
                let above = Key([key.0[0], key.0[1] - 1, 7, 0]);
                assert!(core.kept().find(pool, &above).is_some(), "{key:?} is there without its parent");
            }
        }
        assert_eq!(used.len() as u64, core.counts().blocks, "every block is somebody's");
        for (slot, owned) in &self.owned {
            let slab = core.kept().slabs().filter(|slab| slab.base.0 <= slot.0).last().unwrap();
            let index = (slot.0 - slab.base.0) / slab.stride;
            assert_eq!(core.kept().slot_state(slab, index), SlotState::Granted(owned.client));
        }
    }

    /// Everybody leaves: everything comes back, every call was answered.
    pub fn end(mut self) {
        self.wait(10_000_000);
        self.check();
        assert!(self.calls.is_empty(), "not answered by their deadlines: {:?}", self.calls);
        while !self.named.is_empty() {
            self.unname(0);
        }
        for client in self.clients.keys().copied().collect::<Vec<_>>() {
            self.gone(client);
        }
        self.wait(1_000_000);
        self.check();
        let counts = self.core().counts();
        assert_eq!((counts.slots_granted, counts.slots_aside), (0, 0), "{counts:?}");
        for pool in 0..POOLS.len() as u16 {
            self.purge(pool);
        }
        self.check();
        assert_eq!(self.core().counts().slots_used, 0);
    }
}
