//! One client and a core, without ceremony.

use lapis_config::{
    ClientId, Fingerprint, HitPolicy, Key, PolicyName, PoolId, PoolKind, Refusal, SlotId, Time, UNIT_BYTES, Wait,
};
use lapis_tiering::{
    Chosen, Core, CoreOptions, PlainKept, PoolDef,
    face::{Action, Caller, CommitItem, Parent, Put, Reply, Reserved},
    kept::Kept,
};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;

const GHOST_BYTES: u64 = 1 << 16;

pub struct Scene {
    pub core: Core<PlainKept, Chosen>,
    policy: PolicyName,
    pub now: Time,
    pub client: ClientId,
    client_next: u32,
    extents: Vec<u64>,
    pools: Vec<PoolDef>,
    pub magazine: Vec<SlotId>,
    /// Actions that are no answers.
    pub others: Vec<Action>,
    /// Of a block that is put.
    bytes: u32,
    /// How often more memory was asked for; there is none.
    pub growths_asked: u32,
    token: u64,
}

pub fn key(chain: u64, depth: u64) -> Key {
    Key([chain, depth, 0, 0])
}

/// The one client of most scenes stands for many: it may reserve all memory.
fn options() -> CoreOptions {
    CoreOptions { reserved_part: 1, ..CoreOptions::default() }
}

impl Scene {
    pub fn new(extents: &[u64]) -> Self {
        Self::with_lines(extents, 1 << 14)
    }

    /// Under either policy, with blocks of so many bytes.
    pub fn under(policy: PolicyName, extents: &[u64], bytes: u32) -> Self {
        let mut scene = Self::unpopulated_under(policy, extents, 1 << 14, options());
        scene.bytes = bytes;
        scene.populate();
        scene
    }

    pub fn with_lines(extents: &[u64], lines: u32) -> Self {
        Self::with_options(extents, lines, options())
    }

    /// With the limits that a daemon has.
    pub fn limited(extents: &[u64]) -> Self {
        Self::with_options(extents, 1 << 14, CoreOptions::default())
    }

    fn with_options(extents: &[u64], lines: u32, options: CoreOptions) -> Self {
        let mut scene = Self::unpopulated_with(extents, lines, options);
        scene.populate();
        scene
    }

    fn populate(&mut self) {
        for (at, &bytes) in self.extents.iter().enumerate() {
            self.core.populated(at, bytes);
        }
    }

    pub fn unpopulated(extents: &[u64]) -> Self {
        Self::unpopulated_with(extents, 1 << 14, options())
    }

    fn unpopulated_with(extents: &[u64], lines: u32, options: CoreOptions) -> Self {
        Self::unpopulated_under(PolicyName::Lru, extents, lines, options)
    }

    fn unpopulated_under(policy: PolicyName, extents: &[u64], lines: u32, options: CoreOptions) -> Self {
        let mut core = Core::new(PlainKept::new(lines), Chosen::new(policy, GHOST_BYTES), options);
        extents.iter().for_each(|&bytes| core.extent_added(bytes));
        let mut scene = Self {
            core,
            policy,
            now: Time(50_000_000),
            client: ClientId(0),
            client_next: 1,
            extents: extents.to_vec(),
            pools: Vec::new(),
            magazine: Vec::new(),
            others: Vec::new(),
            bytes: 100,
            growths_asked: 0,
            token: 0,
        };
        scene.core.tick(scene.now);
        scene.client = scene.connect();
        scene
    }

    pub fn connect(&mut self) -> ClientId {
        let id = ClientId(self.client_next);
        self.client_next += 1;
        self.core.client_added(id, true);
        id
    }

    pub fn pool(&mut self, kind: PoolKind, block_bytes: u64, namespace: u8) -> PoolId {
        self.pool_of_slots(kind, block_bytes, block_bytes.div_ceil(UNIT_BYTES) as u32, 1, namespace)
    }

    /// Blocks in several pieces, whose sums take a page behind each.
    pub fn pool_in_pieces(&mut self, block_bytes: u64, pieces: u16, namespace: u8) -> PoolId {
        let slot_units = block_bytes.div_ceil(UNIT_BYTES) as u32 + 1;
        self.pool_of_slots(PoolKind::Chain, block_bytes, slot_units, pieces, namespace)
    }

    fn pool_of_slots(
        &mut self,
        kind: PoolKind,
        block_bytes: u64,
        slot_units: u32,
        pieces: u16,
        namespace: u8,
    ) -> PoolId {
        let id = PoolId(self.pools.len() as u16);
        let def = PoolDef { namespace: Fingerprint([namespace; 32]), kind, block_bytes, slot_units, pieces };
        self.pools.push(def);
        self.core.pool_added(id, def);
        id
    }

    pub fn restart(&mut self) {
        self.restart_with(|_| {}, |_| {});
    }

    /// With something that happened to the kept memory as the daemon died, and GPUs that are told.
    pub fn restart_with(&mut self, died: impl FnOnce(&mut PlainKept), gpus: impl FnOnce(&mut Core<PlainKept, Chosen>)) {
        let policy = || Chosen::new(self.policy, GHOST_BYTES);
        let core = std::mem::replace(&mut self.core, Core::new(PlainKept::new(1), policy(), CoreOptions::default()));
        let mut kept = core.into_kept();
        kept.restart();
        died(&mut kept);
        let slabs: Vec<_> = kept.slabs().copied().collect();
        let mut core = Core::adopt(kept, policy(), options());
        for (id, def) in self.pools.iter().enumerate() {
            core.pool_added(PoolId(id as u16), *def);
        }
        self.extents.iter().for_each(|&bytes| core.extent_added(bytes));
        slabs.into_iter().for_each(|slab| core.adopt_slab(slab));
        gpus(&mut core);
        core.adopt_client(self.client, true);
        for line in (0..core.kept().lines()).map(lapis_config::LineId) {
            if let Some(live) = core.kept().live(line) {
                core.adopt_line(line, live);
            }
        }
        core.adopt_done(self.now);
        self.core = core;
    }

    fn caller(&mut self) -> Caller {
        self.token += 1;
        Caller { client: self.client, token: self.token }
    }

    /// What the client is answered now. Top-ups go to the magazine.
    pub fn answers(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Reply { to, reply: Reply::Granted { slots, .. } } if to.token == 0 => {
                    self.magazine.extend(slots);
                }
                Action::Reply { reply, .. } => replies.push(reply),
                Action::NeedMemory => self.growths_asked += 1,
                other => self.others.push(other),
            }
        }
        replies
    }

    pub fn ask_refill(&mut self, pool: PoolId, slot_bytes: u32, count: u32) {
        let (to, now) = (self.caller(), self.now);
        self.core.refill(now, to, pool, slot_bytes, count, Time(now.0 + 1_000_000));
    }

    pub fn refill(&mut self, pool: PoolId, slot_bytes: u32, count: u32) -> Vec<SlotId> {
        self.ask_refill(pool, slot_bytes, count);
        match &self.answers()[..] {
            [Reply::Granted { slots, .. }] => {
                self.magazine.extend(slots);
                slots.clone()
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn refused(&mut self, ask: impl FnOnce(&mut Self)) -> Refusal {
        ask(self);
        match self.answers()[..] {
            [Reply::Refused(reason)] => reason,
            ref other => panic!("{other:?}"),
        }
    }

    pub fn ask_reserve(&mut self, pool: PoolId, slot_bytes: u32, keys: &[Key], parent: Parent, wait_us: u64) {
        let (to, now) = (self.caller(), self.now);
        self.core.reserve(now, to, pool, slot_bytes, keys, parent, Time(now.0 + wait_us));
    }

    /// The slots of those keys that got one.
    pub fn reserve(&mut self, pool: PoolId, slot_bytes: u32, keys: &[Key]) -> Vec<SlotId> {
        self.ask_reserve(pool, slot_bytes, keys, Parent::None, 0);
        let answers = self.answers();
        let [Reply::Reserved { results }] = &answers[..] else { panic!("{answers:?}") };
        let slot = |result: &Reserved| if let Reserved::Slot(slot) = result { Some(*slot) } else { None };
        results.iter().filter_map(slot).collect()
    }

    /// For each key why it got no slot, if it did not.
    pub fn refusals(&mut self, pool: PoolId, slot_bytes: u32, keys: &[Key]) -> Vec<Option<Refusal>> {
        self.ask_reserve(pool, slot_bytes, keys, Parent::None, 0);
        let answers = self.answers();
        let [Reply::Reserved { results }] = &answers[..] else { panic!("{answers:?}") };
        let refusal = |result: &Reserved| if let Reserved::Refused(reason) = result { Some(*reason) } else { None };
        results.iter().map(refusal).collect()
    }

    /// Stores the root of a chain in a slot of the magazine: such a put is always taken.
    pub fn put_from_magazine(&mut self, pool: PoolId, chain: u64) {
        assert_eq!(self.put_next(pool, chain, 0), Put::Stored);
    }

    /// Puts one block of a chain in a slot of the magazine, as a put that comes in parts does.
    pub fn put_next(&mut self, pool: PoolId, chain: u64, depth: u64) -> Put {
        let slot = self.magazine.pop().unwrap_or_else(|| {
            let slot_bytes = self.pools[pool.0 as usize].slot_units * UNIT_BYTES as u32;
            self.refill(pool, slot_bytes, 1);
            self.magazine.pop().expect("just granted")
        });
        let puts = self.commit_chain(pool, chain, depth, &[slot]);
        assert_eq!(self.answers(), [], "a top-up at most");
        puts[0]
    }

    /// Commits slots as the blocks of a chain from `depth` on.
    pub fn commit_chain(&mut self, pool: PoolId, chain: u64, depth: u64, slots: &[SlotId]) -> Vec<Put> {
        let items: Vec<CommitItem> = (depth..)
            .zip(slots)
            .map(|(at, &slot)| {
                let parent = at.checked_sub(1).map_or(Parent::None, |above| Parent::Key(key(chain, above)));
                CommitItem { slot, key: key(chain, at), parent, bytes: self.bytes, sum: 1 }
            })
            .collect();
        let mut puts = Vec::new();
        self.core.commit(self.now, self.client, pool, &items, &mut puts);
        puts
    }

    /// Puts a whole chain and returns how many of its blocks were stored.
    pub fn put_chain(&mut self, pool: PoolId, chain: u64, blocks: u64) -> usize {
        let keys: Vec<Key> = (0..blocks).map(|depth| key(chain, depth)).collect();
        let there = keys.iter().take_while(|key| self.core.kept().find(pool, key).is_some()).count() as u64;
        let slot_bytes = self.pools[pool.0 as usize].slot_units * UNIT_BYTES as u32;
        let slots = self.reserve(pool, slot_bytes, &keys);
        let puts = self.commit_chain(pool, chain, there, &slots);
        puts.iter().filter(|put| **put == Put::Stored).count()
    }

    pub fn put_root(&mut self, pool: PoolId, key: Key) {
        self.put_under(pool, Parent::None, key);
    }

    pub fn put_after(&mut self, pool: PoolId, above: Key, key: Key) {
        self.put_under(pool, Parent::Key(above), key);
    }

    fn put_under(&mut self, pool: PoolId, parent: Parent, key: Key) {
        let slot_bytes = self.pools[pool.0 as usize].slot_units * UNIT_BYTES as u32;
        let slot = self.reserve(pool, slot_bytes, &[key])[0];
        let mut puts = Vec::new();
        let item = CommitItem { slot, key, parent, bytes: 100, sum: 1 };
        self.core.commit(self.now, self.client, pool, &[item], &mut puts);
        assert_eq!(puts, [Put::Stored]);
    }

    /// How many blocks went.
    pub fn remove(&mut self, pool: PoolId, keys: &[Key]) -> u64 {
        let (to, now, before) = (self.caller(), self.now, self.core.counts().blocks);
        self.core.remove(now, to, pool, keys);
        let removed = before - self.core.counts().blocks;
        let told = self.answers().into_iter().find_map(|reply| match reply {
            Reply::Removed { blocks } => Some(blocks),
            _ => None,
        });
        assert!(told.is_none_or(|told| told == removed), "{told:?} of {removed}");
        removed
    }

    pub fn slots_of(&self, pool: PoolId, keys: &[Key]) -> Vec<SlotId> {
        let kept = self.core.kept();
        keys.iter().map(|key| kept.live(kept.find(pool, key).unwrap()).unwrap().place.slot).collect()
    }

    pub fn get_held(&mut self, asks: &[(PoolId, HitPolicy)], keys: &[Key], hold_us: u64) -> (Caller, u32) {
        let (to, now) = (self.caller(), self.now);
        self.core.get(now, to, asks, keys, Wait::Present, Time(now.0 + hold_us));
        match self.answers()[..] {
            [Reply::Got { hit }] => (to, hit),
            ref other => panic!("{other:?}"),
        }
    }

    /// The answer if there is one at once, released again.
    pub fn get(&mut self, asks: &[(PoolId, HitPolicy)], keys: &[Key], wait: Wait, wait_us: u64) -> Option<u32> {
        let (to, now) = (self.caller(), self.now);
        self.core.get(now, to, asks, keys, wait, Time(now.0 + wait_us));
        match self.answers()[..] {
            [Reply::Got { hit }] => {
                self.core.release(to);
                Some(hit)
            }
            [] => None,
            ref other => panic!("{other:?}"),
        }
    }
}
