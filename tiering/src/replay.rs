//! Drives the core alone through a request trace: no bytes move, a DRAM tier of so many blocks. What it counts is what
//! the daemon's clients would hit.
//!
//! Per request: `get` of all keys, a use of what was hit, `reserve` of the rest, `commit`, a use of the whole chain.

use lapis_config::{ClientId, Fingerprint, HitPolicy, Key, PoolId, PoolKind, SlotId, Time, UNIT_BYTES, Wait};

use crate::{
    PlainKept, Policy, PoolDef,
    core::{Core, CoreOptions},
    face::{Action, Caller, CommitItem, Parent, Put, Reply, Reserved},
    kept::Kept,
};

/// Tokens that one block stands for.
pub const BLOCK_TOKENS: u64 = 512;

const CLIENT: ClientId = ClientId(1);
const POOL: PoolId = PoolId(0);
const CALLER: Caller = Caller { client: CLIENT, token: 1 };
/// Between two requests, on the core's clock: entries tell tenths of a second apart, and the order is what counts.
const REQUEST_US: u64 = 100_000;

/// Sums over all requests so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayCounts {
    pub requests: u64,
    pub block_refs: u64,
    /// Leading blocks that were there.
    pub hit_blocks: u64,
    pub input_tokens: u64,
    /// Of those, in blocks hit.
    pub hit_tokens: u64,
    pub evictions: u64,
}

pub struct Replay<P: Policy> {
    core: Core<PlainKept, P>,
    counts: ReplayCounts,
    keys: Vec<Key>,
    items: Vec<CommitItem>,
    puts: Vec<Put>,
}

impl<P: Policy> Replay<P> {
    /// A tier of exactly `capacity_blocks` blocks; its table is never full.
    ///
    /// # Panics
    /// If the capacity is 0.
    pub fn new(capacity_blocks: u32, policy: P) -> Self {
        assert!(capacity_blocks > 0, "a tier has at least one block");
        let options = CoreOptions { slab_units_min: 1, reserved_part: 1, ..CoreOptions::default() };
        let mut core = Core::new(PlainKept::new(capacity_blocks), policy, options);
        let bytes = u64::from(capacity_blocks) * UNIT_BYTES;
        core.extent_added(bytes);
        core.populated(0, bytes);
        let (namespace, kind) = (Fingerprint::default(), PoolKind::Chain);
        core.pool_added(POOL, PoolDef { namespace, kind, block_bytes: UNIT_BYTES, slot_units: 1 });
        core.client_added(CLIENT, true);
        Self { core, counts: ReplayCounts::default(), keys: Vec::new(), items: Vec::new(), puts: Vec::new() }
    }

    /// One request: the ids of its blocks in order (the same id means the same block and all before it; bits above the
    /// trace's own may tell traces apart) and its length in tokens. Returns how many leading blocks were hit.
    pub fn request(&mut self, ids: &[u64], input_tokens: u64) -> u64 {
        self.counts.requests += 1;
        let now = Time(self.counts.requests * REQUEST_US);
        self.keys.clear();
        self.keys.extend(ids.iter().map(|&id| Key([id, 0, 0, 0])));
        let hit = self.get(now);
        self.touch(now, hit);
        self.put(now, hit);
        self.touch(now, self.keys.len());
        self.core.release(CALLER);

        let counts = &mut self.counts;
        counts.block_refs += ids.len() as u64;
        counts.hit_blocks += hit as u64;
        counts.input_tokens += input_tokens;
        counts.hit_tokens += (BLOCK_TOKENS * hit as u64).min(input_tokens);
        counts.evictions = self.core.counts().evictions;
        hit as u64
    }

    pub fn counts(&self) -> ReplayCounts {
        self.counts
    }

    pub fn core(&self) -> &Core<PlainKept, P> {
        &self.core
    }

    fn get(&mut self, now: Time) -> usize {
        self.core.get(now, CALLER, &[(POOL, HitPolicy::Prefix)], &self.keys, Wait::Present, now);
        match self.answer() {
            Reply::Got { hit } => hit as usize,
            other => panic!("a get is answered with its hits, not {other:?}"),
        }
    }

    /// Notes a use of the first `count` blocks, as far as they are there.
    fn touch(&mut self, now: Time, count: usize) {
        let kept = self.core.kept();
        let deepest = self.keys[..count].iter().rev().find_map(|key| kept.find(POOL, key));
        if let Some(line) = deepest {
            let bind = kept.live(line).expect("found").generation << 4;
            self.core.touched(now, line, bind as u32, count as u32, count as u32);
        }
    }

    fn put(&mut self, now: Time, hit: usize) {
        if hit == self.keys.len() {
            return;
        }
        let parent = hit.checked_sub(1).map_or(Parent::None, |above| Parent::Key(self.keys[above]));
        let new = &self.keys[hit..];
        self.core.reserve(now, CALLER, POOL, UNIT_BYTES as u32, new, parent, now);
        let Reply::Reserved { results } = self.answer() else { panic!("a reserve is answered with its slots") };
        self.items.clear();
        for (&key, result) in self.keys[hit..].iter().zip(&results) {
            let Reserved::Slot(slot) = *result else { break };
            let parent = if self.items.is_empty() { parent } else { Parent::Previous };
            self.items.push(CommitItem { slot, key, parent, bytes: UNIT_BYTES as u32, sum: 0 });
        }
        self.puts.clear();
        self.core.commit(now, CLIENT, POOL, &self.items, &mut self.puts);
        let unused: Vec<SlotId> = results[self.items.len()..].iter().filter_map(slot).collect();
        if !unused.is_empty() {
            self.core.abort(now, CLIENT, &unused);
        }
    }

    fn answer(&mut self) -> Reply {
        let mut answer = None;
        while let Some(action) = self.core.poll_action() {
            if let Action::Reply { reply, .. } = action {
                answer = Some(reply);
            }
        }
        answer.expect("nothing waits: the deadline is now")
    }
}

fn slot(result: &Reserved) -> Option<SlotId> {
    match result {
        Reserved::Slot(slot) => Some(*slot),
        Reserved::Exists | Reserved::Refused(_) => None,
    }
}
