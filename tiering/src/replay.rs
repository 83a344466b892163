//! Drives the core alone through a request trace: no bytes move, a DRAM tier of so many blocks, and an SSD tier of so
//! many if one is asked for. What it counts is what the daemon's clients would hit.
//!
//! Per request: `get` of all keys, a use of what was hit, `reserve` of the rest, `commit`, a use of the whole chain.
//! Without an SSD tier nothing waits. With one, gets come in windows, as a client's do, and the core's clock goes on
//! while something waits.

mod devices;

use lapis_config::{ClientId, Fingerprint, HitPolicy, Key, PoolId, PoolKind, SlotId, Time, UNIT_BYTES, Wait};

use crate::{
    PlainKept, Policy, PoolDef,
    core::{Core, CoreOptions},
    face::{Action, Caller, CommitItem, Parent, Put, Reply, Reserved},
    kept::{Kept, Tier},
};

use devices::Devices;
pub use devices::SsdTier;

/// Tokens that one block stands for.
pub const BLOCK_TOKENS: u64 = 512;

const CLIENT: ClientId = ClientId(1);
const POOL: PoolId = PoolId(0);
const CALLER: Caller = Caller { client: CLIENT, token: 1 };
/// At least between two requests, on the core's clock: entries tell tenths of a second apart, and the order counts too.
const REQUEST_US: u64 = 100_000;
/// How long a call waits for devices, us. They are done at once: it is never over before.
const PATIENCE_US: u64 = 10_000_000;
/// A client asks for at most one part in so many of the memory at once.
const WINDOW_PART: usize = 16;

/// What a replay gives a policy for blocks that are gone: four for each that the memory holds, and 50,000 at least.
pub fn ghost_bytes(capacity_blocks: u64) -> u64 {
    const GHOST_BYTES: u64 = 16;
    (4 * capacity_blocks).max(50_000) * GHOST_BYTES
}

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
    /// Of the blocks hit, those that were on SSD alone.
    pub ssd_hit_blocks: u64,
    /// First writes of blocks to SSD, in pages.
    pub admitted_bytes: u64,
    /// Blocks that were written again when their segment was given up, or after.
    pub readmitted_bytes: u64,
    /// All that was written: records, headers, tables of contents.
    pub device_bytes: u64,
}

impl ReplayCounts {
    /// Device bytes per admitted byte; 0 if nothing was admitted.
    pub fn write_amplification(&self) -> f64 {
        if self.admitted_bytes == 0 { 0.0 } else { self.device_bytes as f64 / self.admitted_bytes as f64 }
    }
}

pub struct Replay<P: Policy> {
    core: Core<PlainKept, P>,
    capacity_blocks: u32,
    block_bytes: u64,
    devices: Option<Devices>,
    clock: Time,
    apart_us: u64,
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
        Self::over(capacity_blocks, capacity_blocks, UNIT_BYTES, None, policy)
    }

    /// The memory of `capacity_blocks` blocks over an SSD tier. It is cut as a daemon cuts it: where a block's pages are
    /// no power of two, a few blocks fewer fit.
    ///
    /// # Panics
    /// If a capacity or the size of a block is 0, or the memory has 16 TiB or more.
    pub fn with_ssd(capacity_blocks: u32, tier: SsdTier, policy: P) -> Self {
        Self::with_ssd_budget(capacity_blocks, tier, None, policy)
    }

    /// The same, with so many bytes of blocks a day that may be written to SSD.
    ///
    /// # Panics
    /// As [`Self::with_ssd`].
    pub fn with_ssd_budget(capacity_blocks: u32, tier: SsdTier, write_bytes_a_day: Option<u64>, policy: P) -> Self {
        assert!(tier.blocks > 0 && tier.block_bytes > 0, "a tier has at least one block");
        let lines = capacity_blocks.checked_add(tier.lines()).expect("lines are counted in 32 bits");
        let mut replay = Self::over(capacity_blocks, lines, tier.block_bytes, write_bytes_a_day, policy);
        replay.devices = Some(Devices::open(&mut replay.core, &tier));
        replay
    }

    fn over(capacity_blocks: u32, lines: u32, block_bytes: u64, write_bytes_a_day: Option<u64>, policy: P) -> Self {
        assert!(capacity_blocks > 0, "a tier has at least one block");
        let slot_units = u32::try_from(block_bytes.div_ceil(UNIT_BYTES)).expect("a block has less than 16 TiB");
        let bytes = u64::from(capacity_blocks) * u64::from(slot_units) * UNIT_BYTES;
        // As much is clean ahead of need as the daemon has by default.
        let options = CoreOptions {
            slab_units_min: 1,
            reserved_part: 1,
            write_back_ahead_bytes: bytes / 16,
            ssd_write_bytes_a_day: write_bytes_a_day,
            ..CoreOptions::default()
        };
        let mut core = Core::new(PlainKept::new(lines), policy, options);
        core.extent_added(bytes);
        core.populated(0, bytes);
        let (namespace, kind) = (Fingerprint::default(), PoolKind::Chain);
        core.pool_added(POOL, PoolDef { namespace, kind, block_bytes, slot_units, pieces: 1 });
        core.client_added(CLIENT, true);
        Self {
            core,
            capacity_blocks,
            block_bytes,
            devices: None,
            clock: Time(0),
            apart_us: REQUEST_US,
            counts: ReplayCounts::default(),
            keys: Vec::new(),
            items: Vec::new(),
            puts: Vec::new(),
        }
    }

    /// Requests are as close together as their times say, as they may be to a daemon.
    pub fn close_together(self) -> Self {
        Self { apart_us: 1, ..self }
    }

    /// One request, a moment after the one before.
    pub fn request(&mut self, ids: &[u64], input_tokens: u64) -> u64 {
        self.request_at(0, ids, input_tokens)
    }

    /// One request: its time from the trace's start, the ids of its blocks in order (the same id means the same block and
    /// all before it; bits above the trace's own may tell traces apart) and its length in tokens. Returns how many leading
    /// blocks were hit.
    pub fn request_at(&mut self, at_ms: u64, ids: &[u64], input_tokens: u64) -> u64 {
        self.counts.requests += 1;
        self.clock = Time((self.clock.0 + self.apart_us).max(at_ms.saturating_mul(1000)));
        self.keys.clear();
        self.keys.extend(ids.iter().map(|&id| Key([id, 0, 0, 0])));
        if self.devices.is_some() {
            self.pass_time();
            self.counts.ssd_hit_blocks += self.leading_on_ssd();
        }
        let hit = self.get();
        self.touch(hit);
        self.put(hit, input_tokens);
        self.touch(self.keys.len());
        self.core.release(CALLER);

        let counts = &mut self.counts;
        counts.block_refs += ids.len() as u64;
        counts.hit_blocks += hit as u64;
        counts.input_tokens += input_tokens;
        counts.hit_tokens += (BLOCK_TOKENS * hit as u64).min(input_tokens);
        let of_core = self.core.counts();
        counts.evictions = of_core.evictions;
        (counts.admitted_bytes, counts.readmitted_bytes) = (of_core.admitted_bytes, of_core.readmitted_bytes);
        counts.device_bytes = of_core.ssd_record_bytes + of_core.ssd_table_bytes;
        hit as u64
    }

    pub fn counts(&self) -> ReplayCounts {
        self.counts
    }

    pub fn core(&self) -> &Core<PlainKept, P> {
        &self.core
    }

    /// Another host reads so many blocks of a request, from one on: they are hits here.
    pub fn read_by_peer(&mut self, at_ms: u64, ids: &[u64]) {
        self.clock = Time((self.clock.0 + self.apart_us).max(at_ms.saturating_mul(1000)));
        self.keys.clear();
        self.keys.extend(ids.iter().map(|&id| Key([id, 0, 0, 0])));
        self.touch(ids.len());
    }

    /// For what came and went.
    pub fn kept_mut(&mut self) -> &mut PlainKept {
        self.core.kept_mut()
    }

    /// How many leading keys are hits. From SSD they come a window at a time: each is copied before the next is asked
    /// for.
    fn get(&mut self) -> usize {
        let mut window = self.keys.len();
        if self.devices.is_some() {
            window = (self.capacity_blocks as usize / WINDOW_PART).max(1);
        }
        let mut hit = 0;
        while hit < self.keys.len() {
            let keys = &self.keys[hit..self.keys.len().min(hit + window)];
            let asked = keys.len();
            self.core.release(CALLER);
            let deadline = self.deadline();
            self.core.get(self.clock, CALLER, &[(POOL, HitPolicy::Prefix)], keys, Wait::Present, deadline);
            let more = match self.answer() {
                Reply::Got { hit } => hit as usize,
                other => panic!("a get is answered with its hits, not {other:?}"),
            };
            hit += more;
            if more < asked {
                break;
            }
        }
        hit
    }

    /// Notes a use of the first `count` blocks, as far as they are there.
    fn touch(&mut self, count: usize) {
        let kept = self.core.kept();
        let deepest = self.keys[..count].iter().rev().find_map(|key| kept.find(POOL, key));
        if let Some(line) = deepest {
            let bind = kept.live(line).expect("found").generation << 4;
            self.core.touched(self.clock, line, bind as u32, count as u32, count as u32);
        }
    }

    fn put(&mut self, hit: usize, input_tokens: u64) {
        if hit == self.keys.len() {
            return;
        }
        let parent = hit.checked_sub(1).map_or(Parent::None, |above| Parent::Key(self.keys[above]));
        let slot_bytes = u32::try_from(self.block_bytes).expect("checked by the caller");
        let deadline = self.deadline();
        self.core.reserve(self.clock, CALLER, POOL, slot_bytes, &self.keys[hit..], parent, deadline);
        let Reply::Reserved { results } = self.answer() else { panic!("a reserve is answered with its slots") };
        self.items.clear();
        let mut parent = parent;
        let mut at = hit;
        for result in &results {
            let key = self.keys[at];
            match *result {
                Reserved::Slot(slot) => {
                    let bytes = self.bytes_of(at, input_tokens);
                    self.items.push(CommitItem { slot, key, parent, bytes, sum: 0 });
                    parent = Parent::Previous;
                }
                // It outlived a block before it.
                Reserved::Exists => parent = Parent::Key(key),
                Reserved::Refused(_) => break,
            }
            at += 1;
        }
        self.puts.clear();
        self.core.commit(self.clock, CLIENT, POOL, &self.items, &mut self.puts);
        let unused: Vec<SlotId> = results[at - hit..].iter().filter_map(slot).collect();
        if !unused.is_empty() {
            self.core.abort(self.clock, CLIENT, &unused);
        }
    }

    /// The last block of a request may have fewer tokens than others, and fewer bytes by as much.
    fn bytes_of(&self, index: usize, input_tokens: u64) -> u32 {
        let tokens = input_tokens.saturating_sub(index as u64 * BLOCK_TOKENS).clamp(1, BLOCK_TOKENS);
        (u128::from(self.block_bytes) * u128::from(tokens)).div_ceil(u128::from(BLOCK_TOKENS)) as u32
    }

    fn deadline(&self) -> Time {
        if self.devices.is_some() { Time(self.clock.0 + PATIENCE_US) } else { self.clock }
    }

    /// What the core does by time alone, since the last request.
    fn pass_time(&mut self) {
        self.core.tick(self.clock);
        let devices = self.devices.as_mut().expect("asked by the caller");
        devices.work(&mut self.core, self.clock);
    }

    /// Of the leading keys that are there, those that are not in memory.
    fn leading_on_ssd(&self) -> u64 {
        let kept = self.core.kept();
        let lives = self.keys.iter().map_while(|key| kept.live(kept.find(POOL, key)?));
        lives.filter(|live| live.place.tier == Tier::Elsewhere).count() as u64
    }

    fn answer(&mut self) -> Reply {
        loop {
            let answer = match &mut self.devices {
                Some(devices) => devices.work(&mut self.core, self.clock),
                None => self.answer_at_once(),
            };
            if let Some(answer) = answer {
                return answer;
            }
            let next = self.core.poll_timeout().filter(|_| self.devices.is_some());
            self.clock = self.clock.max(next.expect("what waits has a deadline; without devices nothing waits"));
            self.core.tick(self.clock);
        }
    }

    fn answer_at_once(&mut self) -> Option<Reply> {
        let mut answer = None;
        while let Some(action) = self.core.poll_action() {
            if let Action::Reply { reply, .. } = action {
                answer = Some(reply);
            }
        }
        answer
    }
}

fn slot(result: &Reserved) -> Option<SlotId> {
    match result {
        Reserved::Slot(slot) => Some(*slot),
        Reserved::Exists | Reserved::Refused(_) => None,
    }
}
