//! A core with clients around it that remember what they were told, and an engine that carries out its actions. After
//! every step the core is audited and compared with what the clients know.

mod disk;
mod engine;
mod gpus;

use std::collections::{BTreeMap, BTreeSet};

use lapis_config::{
    ClientId, Fingerprint, Hint, HitPolicy, Key, OpId, PageIndex, PolicyName, PoolId, PoolKind, SegmentId, SlotId,
    SsdPlace, Time, UNIT_BYTES, Wait,
};
use lapis_tiering::{
    Chosen, Core, CoreOptions, PlainKept, PoolDef,
    face::{Caller, CommitItem, Listed, Outcome, Parent, Put, Spot},
    kept::{Kept, SlotState, Tier},
};

use disk::Disk;

/// Chains of two pools that are kin, one of large blocks, and objects.
pub const POOLS: [(PoolKind, u32, u8); 4] =
    [(PoolKind::Chain, 4, 0), (PoolKind::Chain, 8, 0), (PoolKind::Chain, 64, 1), (PoolKind::Object, 40, 2)];
const SEGMENTS: u32 = 6;
const EXTENTS: [u64; 2] = [512 * UNIT_BYTES, 768 * UNIT_BYTES];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    pub client: ClientId,
    pub pool: PoolId,
    pub units: u32,
    pub key: Option<Key>,
}

/// Something that a device does for the core.
#[derive(Clone, Debug)]
enum Io {
    Verify,
    Write { at: SsdPlace, slot: SlotId, sum: u64 },
    Read { at: SsdPlace, slot: SlotId },
    Open { segment: SegmentId, opened: u64 },
    Copy { from: Spot, to: Spot, sum: u64 },
    Sum { slot: SlotId },
    List { segment: SegmentId, opened: u64, place: PageIndex, next: Option<PageIndex>, sequence: u64, listed: Listed },
}

/// Few: they are forgotten too.
const GHOST_BYTES: u64 = 1024;

/// A block, and the sum of what was stored under its key.
type Payload = ((PoolId, Key), u64);

pub struct World {
    pub core: Option<Core<PlainKept, Chosen>>,
    policy: PolicyName,
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
    ops: Vec<(OpId, Io)>,
    /// The SSD tier, if there is one.
    disk: Option<Disk>,
    /// A former start's log was not told yet.
    coming: bool,
    pub gpus: gpus::Gpus,
    /// What lies in each slot: the sum of its payload.
    contents: BTreeMap<SlotId, u64>,
    /// Removals under way, with the sums that they end; and sums that may never be seen again.
    removals: BTreeMap<Caller, Vec<Payload>>,
    dead: BTreeSet<Payload>,
    ever: BTreeSet<Payload>,
    /// What was stored below a parent that is known for sure to be the core's too.
    linked: BTreeSet<(PoolId, Key)>,
    pub demoted: u64,
    pub extents: usize,
    pub populated: [u64; 2],
    pub recalls: u64,
}

pub fn key(chain: u32, depth: u32) -> Key {
    Key([u64::from(chain), u64::from(depth), 7, 0])
}

fn options() -> CoreOptions {
    CoreOptions {
        magazine_bytes_max: 16 * UNIT_BYTES * 4,
        waits_max: 24,
        verifies_max: 3,
        write_back_ahead_bytes: 64 * UNIT_BYTES,
        ..CoreOptions::default()
    }
}

fn pools(core: &mut Core<PlainKept, Chosen>) {
    for (id, (kind, slot_units, namespace)) in POOLS.into_iter().enumerate() {
        let block_bytes = u64::from(slot_units) * UNIT_BYTES;
        let namespace = Fingerprint([namespace; 32]);
        let def = PoolDef { namespace, kind, block_bytes, slot_units, pieces: 1 };
        core.pool_added(PoolId(id as u16), def);
    }
}

impl World {
    /// `lines`: room in the table; few make it full.
    pub fn new(policy: PolicyName, lines: u32) -> Self {
        let mut core = Core::new(PlainKept::new(lines), Chosen::new(policy, GHOST_BYTES), options());
        pools(&mut core);
        core.extent_added(EXTENTS[0]);
        let mut world = Self {
            core: Some(core),
            policy,
            now: Time(1_000_000),
            clients: BTreeMap::new(),
            client_next: 1,
            owned: BTreeMap::new(),
            stored: BTreeMap::new(),
            named: BTreeSet::new(),
            calls: BTreeMap::new(),
            token_next: 1,
            ops: Vec::new(),
            disk: None,
            coming: false,
            gpus: gpus::Gpus::default(),
            contents: BTreeMap::new(),
            removals: BTreeMap::new(),
            dead: BTreeSet::new(),
            ever: BTreeSet::new(),
            linked: BTreeSet::new(),
            demoted: 0,
            extents: 1,
            populated: [0; 2],
            recalls: 0,
        };
        world.connect();
        world.connect();
        world
    }

    /// With an SSD tier of so many devices.
    pub fn with_ssd(policy: PolicyName, lines: u32, devices: u8) -> Self {
        let mut world = Self::new(policy, lines);
        world.disk = Some(Disk::new(devices, SEGMENTS));
        world.coming = true;
        world.core().ssd_coming();
        world
    }

    pub fn core(&mut self) -> &mut Core<PlainKept, Chosen> {
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
            // On SSD go full blocks only.
            let short = if self.disk.is_none() { at } else { usize::from(at % 5 == 4) };
            let bytes = owned.units * UNIT_BYTES as u32 - if is_object { 2048 } else { short as u32 };
            items.push(CommitItem { slot: *slot, key, parent, bytes, sum: self.token_next + at as u64 });
        }
        let (now, mut puts) = (self.now, Vec::new());
        self.token_next += items.len() as u64;
        self.core().commit(now, client, pool, &items, &mut puts);
        assert_eq!(puts.len(), items.len());
        for (item, put) in items.iter().zip(puts) {
            assert_ne!(put, Put::Refused(lapis_config::Refusal::NotGranted), "the client owns the slot");
            self.owned.remove(&item.slot);
            self.contents.insert(item.slot, item.sum);
            if put == Put::Stored {
                self.stored.insert((pool, item.key), (item.slot, item.bytes, item.sum));
                self.ever.insert(((pool, item.key), item.sum));
                if item.parent != Parent::None {
                    self.linked.insert((pool, item.key));
                }
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
        self.removals.retain(|caller, _| caller.client != client);
        self.core().client_lost(client);
    }

    pub fn gone(&mut self, client: ClientId) {
        self.lose(client);
        self.owned.retain(|_, owned| owned.client != client);
        self.gone_from_gpus(client);
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
        self.resume_on_gpus(client);
    }

    pub fn touch(&mut self, pool: u16, chain: u32, depth: u32) {
        let now = self.now;
        let Some(line) = self.core().kept().find(PoolId(pool), &key(chain, depth)) else { return };
        let bind = self.core().kept().live(line).unwrap().generation << 4 | 2;
        self.core().touched(now, line, bind as u32, depth + 1, depth + 1);
    }

    pub fn name(&mut self, pool: u16, chain: u32, depth: u32) {
        let Some(line) = self.core().kept().find(PoolId(pool), &key(chain, depth)) else { return };
        let place = self.core().kept().live(line).unwrap().place;
        if !matches!(place.tier, Tier::Dram | Tier::DramUnverified) {
            return;
        }
        let slot = place.slot;
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

    pub fn remove(&mut self, client: ClientId, pool: u16, chain: u32, depth: u32) {
        let key = key(chain, depth);
        let to = self.caller(client, Vec::new());
        let now = self.now;
        self.core().remove(now, to, PoolId(pool), &[key]);
        assert_eq!(self.core().kept().find(PoolId(pool), &key), None);
        let sum = self.stored.get(&(PoolId(pool), key)).map(|stored| ((PoolId(pool), key), stored.2));
        if self.clients[&client] {
            self.removals.insert(to, sum.into_iter().collect());
        }
    }

    pub fn purge(&mut self, client: ClientId, pool: u16) {
        let to = self.caller(client, Vec::new());
        let now = self.now;
        self.core().purge(now, to, PoolId(pool));
        assert_eq!(self.core().pool_counts(PoolId(pool)).blocks, 0);
        let own = self.stored.iter().filter(|((of, _), _)| *of == PoolId(pool));
        let sums = own.map(|(&key, stored)| (key, stored.2)).collect();
        if self.clients[&client] {
            self.removals.insert(to, sums);
        }
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

    /// What must hold between two steps.
    pub fn check(&mut self) {
        self.perform();
        self.core().audit().unwrap();
        let core = self.core.as_ref().unwrap();
        let mut used: BTreeMap<SlotId, u32> = BTreeMap::new();
        for (&(pool, key), &stored) in &self.stored {
            let Some(line) = core.kept().find(pool, &key) else { continue };
            let place = core.kept().live(line).unwrap().place;
            let right = place.bytes == stored.1 && self.is_sum_right((pool, key), place.tier, place.sum, stored.2);
            assert!(right, "{key:?} leads to {place:?}, and its client stored {stored:?}");
            if self.linked.contains(&(pool, key)) {
                let above = Key([key.0[0], key.0[1] - 1, 7, 0]);
                assert!(core.kept().find(pool, &above).is_some(), "{key:?} is there without its parent");
            }
            if place.tier == Tier::Hbm {
                continue;
            }
            if place.tier == Tier::Elsewhere {
                // What is being read may have lost its place with its segment.
                let at = Some(SsdPlace(core.kept().entry(line).ssd)).filter(|at| at.is_some());
                let lies = at.map(|at| self.disk.as_ref().expect("a tier").payload(at));
                assert!(lies.is_none_or(|sum| sum == place.sum), "{key:?} is not what lies on SSD");
                continue;
            }
            assert_eq!(self.contents[&place.slot], place.sum, "{key:?} is not what lies in its slot");
            assert!(!self.owned.contains_key(&place.slot), "slot {} is published and written", place.slot.0);
            used.insert(place.slot, core.slot_units(place.slot).unwrap());
        }
        assert_eq!(used.len() as u64, core.counts().blocks, "every block is somebody's");
        self.check_gpus();
        for (slot, owned) in &self.owned {
            let slab = core.kept().slabs().filter(|slab| slab.base.0 <= slot.0).last().unwrap();
            let index = (slot.0 - slab.base.0) / slab.stride;
            assert_eq!(core.kept().slot_state(slab, index), SlotState::Granted(owned.client));
        }
    }

    /// Everybody leaves: everything comes back, every call was answered.
    pub fn end(mut self) {
        self.recover();
        self.perform();
        for _ in 0..10_000 {
            if self.ops.is_empty() {
                break;
            }
            self.complete(0, Outcome::Ok);
            self.wait(1_000);
        }
        self.check();
        self.wait(10_000_000);
        self.finish_ops();
        self.check();
        assert!(self.calls.is_empty(), "not answered by their deadlines: {:?}", self.calls);
        while !self.named.is_empty() {
            self.unname(0);
        }
        for client in self.clients.keys().copied().collect::<Vec<_>>() {
            self.gone(client);
        }
        self.wait(1_000_000);
        self.finish_ops();
        self.check();
        let counts = self.core().counts();
        self.end_gpus(false);
        // Slots that a dead daemon's device may write stay aside.
        let leftover = self.io_in();
        assert_eq!((counts.slots_granted, counts.slots_aside), (0, leftover), "{counts:?}");
        self.connect();
        let client = *self.clients.keys().next().expect("just connected");
        for pool in 0..POOLS.len() as u16 {
            self.purge(client, pool);
        }
        self.check();
        self.finish_ops();
        self.check();
        assert!(self.removals.is_empty(), "purges are answered");
        let counts = self.core().counts();
        assert_eq!((counts.slots_used, counts.ssd_blocks, counts.slots_busy), (0, 0, 0));
        self.end_gpus(true);
        self.demoted = counts.demotions;
    }
}
