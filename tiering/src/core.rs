//! The core of one trust group: what comes in changes the truth at once, what takes time goes out as an action.
//!
//! Invariant: a resident parent outlives its resident children: victims are leaves.
//! Invariant: every slot is free, granted, used by one line, or aside; the kept memory says so before its number leaves.
//! Invariant: a slot granted to a client is free again only by commit, by abort or by the client's end.
//! Invariant: an unpublished slot is free only after no reader named it.

mod adopt;
mod ahead;
mod audit;
mod clients;
mod commit;
mod evict;
mod fetch;
mod flush;
mod found;
mod get;
mod hint;
mod hits;
mod hold;
mod put;
mod retire;
mod room;
mod slabs;
mod ssd;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use lapis_config::{
    ClientId, Fingerprint, Key, LineId, OpId, PageIndex, PoolId, PoolKind, SegmentId, SlotId, SsdPlace, Time,
    UNIT_BYTES, sizes,
};

pub use found::FoundRecord;

use crate::{
    copies::{Copy, Step, step_dram},
    face::{Action, Caller, Counts, Outcome, Reply},
    hash::Map,
    kept::{Kept, Live, Tier},
    memory::Memory,
    policy::{Policy, Shelf, tenths},
    tree::Tree,
};

/// Longest walk up the parents for one use: as long as a batch.
const TOUCHES_MAX: u32 = lapis_config::BATCH_KEYS_MAX as u32;

/// Most puts, and most gets, of one client that may wait at once.
const CLIENT_WAITS_MAX: usize = 64;

/// Bits of `Entry::flags` beside the copy's state and the policy's bit.
pub(crate) const HELD: u8 = 1 << 4;
pub(crate) const PINNED: u8 = 1 << 5;
/// Hit since it was written to SSD.
pub(crate) const HIT: u8 = 1 << 6;
/// Was on SSD, and its segment was given up: another write of it is no first one.
pub(crate) const AGAIN: u8 = 1 << 7;

/// A pool as the core sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolDef {
    pub namespace: Fingerprint,
    pub kind: PoolKind,
    /// Most payload bytes of a block.
    pub block_bytes: u64,
    /// 4 KiB units of the slot of the largest block; of every block in a chain pool.
    pub slot_units: u32,
    pub pieces: u16,
}

impl PoolDef {
    /// 4 KiB units of the slot of a block of so many payload bytes.
    pub fn units_of(&self, bytes: u32) -> u32 {
        match self.kind {
            PoolKind::Chain => self.slot_units,
            PoolKind::Object => {
                let units = sizes::slot_bytes_of(self.kind, self.pieces, u64::from(bytes)) / UNIT_BYTES;
                self.slot_units.min(u32::try_from(units).unwrap_or(u32::MAX))
            }
        }
    }
}

#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// Bytes of slots that one client may hold ahead of its puts; at most a sixteenth of the memory, at least one slot.
    /// All clients together: at most a quarter of the memory, and a slot for each that has none.
    pub magazine_bytes_max: u64,
    /// After this long without a put a client is asked for its magazine when slots are short; again after as long.
    pub idle_recall: Duration,
    /// No slab has fewer units.
    pub slab_units_min: u32,
    /// Most puts, and most gets, that may wait at once; of one client at most `CLIENT_WAITS_MAX`.
    pub waits_max: usize,
    /// One client's reserves hold at most one part in so many of the memory, and at least one slot.
    pub reserved_part: u32,
    /// Most blocks being verified at once: the next ones begin when all have ended.
    pub verifies_max: usize,
    /// Bytes of the blocks that go next which are on SSD before their room is asked for.
    pub write_back_ahead_bytes: u64,
}

impl Default for CoreOptions {
    fn default() -> Self {
        Self {
            magazine_bytes_max: 64 << 20,
            idle_recall: Duration::from_secs(10),
            slab_units_min: 16,
            waits_max: 4096,
            reserved_part: 2,
            verifies_max: 16,
            write_back_ahead_bytes: 0,
        }
    }
}

/// Of one pool, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    pub blocks: u64,
    pub slabs: u64,
    pub bytes_used: u64,
}

struct Pool {
    def: PoolDef,
    /// Other pools of its namespace.
    kin: Vec<PoolId>,
    blocks: u64,
    units_used: u64,
}

/// Whether the group may get one more extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    /// Ask when memory is short.
    Possible,
    /// `NeedMemory` is among the actions.
    Asked,
    /// It was taken; without an extent before the next action is asked for, there is none to be had.
    Taken,
    /// Asked again when memory is short from then on: another group may have given some back.
    Denied { until: Time },
}

/// How long no more memory is asked for after there was none.
const DENIED: Duration = Duration::from_secs(5);

/// Between two batches of checks while devices read.
const VERIFY_PAUSE: Duration = Duration::from_millis(5);

/// An operation under way: what is done when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Verify {
        line: LineId,
        generation: u64,
    },
    /// `None`: the line went meanwhile, the slot is the operation's.
    Write {
        line: Option<LineId>,
        at: SsdPlace,
        pages: u32,
        slot: SlotId,
    },
    Read {
        line: Option<LineId>,
        at: SsdPlace,
        pages: u32,
        slot: SlotId,
    },
    Open(SegmentId),
    List(SegmentId, PageIndex),
    Flush(SegmentId),
}

/// See the module's head. Methods that take `now` may give any time not before the last one.
pub struct Core<K: Kept, P: Policy> {
    kept: K,
    policy: P,
    options: CoreOptions,
    now: Time,
    memory: Memory,
    tree: Tree,
    pools: BTreeMap<PoolId, Pool>,
    clients: BTreeMap<ClientId, clients::Client>,
    /// Units of all clients' magazines.
    magazine_units: u64,
    growth: Growth,
    holds: hold::Holds,
    pins: hint::Pins,
    puts: put::PutWaits,
    gets: get::GetWaits,
    /// How many granted slots are being filled with a key that a reserve named.
    filling: Map<(PoolId, Key), u32>,
    reservations: BTreeMap<u64, put::Reservation>,
    reservation_next: u64,
    /// Parents of reservations that ended with this input.
    ended_parents: Vec<hold::Held>,
    /// Unpublished slots that readers were still naming at the last look.
    aside: VecDeque<SlotId>,
    /// When to look again.
    aside_look: Time,
    /// Nobody gets slots.
    draining: bool,
    /// Unpublished slots of the batch under way.
    limbo: Vec<SlotId>,
    named: Vec<bool>,
    lines: Vec<LineId>,
    moves: slabs::Moves,
    /// Shelves whose waiting puts may go on now; `stirred`: all.
    pump: BTreeSet<Shelf>,
    stirred: bool,
    /// Keys that came, or stopped being filled, since waiting gets were last looked at.
    woken: Vec<(PoolId, Key)>,
    recall_look: Time,
    adopting: Option<adopt::Adopting>,
    /// Lines still to verify: after a restart, hottest last, and those that came from SSD.
    unverified: Vec<LineId>,
    ssd: ssd::Ssd,
    ops: BTreeMap<OpId, Op>,
    op_next: u64,
    /// Of them, checks of blocks; and from when on more may begin while devices read.
    verifying: usize,
    verify_from: Time,
    counts: Counts,
    actions: VecDeque<Action>,
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// A core over kept memory that holds nothing yet.
    pub fn new(kept: K, policy: P, options: CoreOptions) -> Self {
        let tree = Tree::new(kept.lines());
        Self {
            kept,
            policy,
            options,
            now: Time(0),
            memory: Memory::default(),
            tree,
            pools: BTreeMap::new(),
            clients: BTreeMap::new(),
            magazine_units: 0,
            growth: Growth::Possible,
            holds: hold::Holds::default(),
            pins: hint::Pins::default(),
            puts: put::PutWaits::default(),
            gets: get::GetWaits::default(),
            filling: Map::default(),
            reservations: BTreeMap::new(),
            reservation_next: 0,
            ended_parents: Vec::new(),
            aside: VecDeque::new(),
            aside_look: Time::NEVER,
            draining: false,
            limbo: Vec::new(),
            named: Vec::new(),
            lines: Vec::new(),
            moves: slabs::Moves::default(),
            pump: BTreeSet::new(),
            stirred: false,
            woken: Vec::new(),
            recall_look: Time(0),
            adopting: None,
            unverified: Vec::new(),
            ssd: ssd::Ssd::default(),
            ops: BTreeMap::new(),
            op_next: 0,
            verifying: 0,
            verify_from: Time(0),
            counts: Counts::default(),
            actions: VecDeque::new(),
        }
    }

    pub fn kept(&self) -> &K {
        &self.kept
    }

    /// For what the core leaves to the daemon: hazard pages, records of clients and extents. Lines, entries and slot
    /// states are the core's alone.
    pub fn kept_mut(&mut self) -> &mut K {
        &mut self.kept
    }

    /// Ends the core; the kept memory stays, as after a daemon's death.
    pub fn into_kept(self) -> K {
        self.kept
    }

    /// A pool exists from now on. Knowing it again changes nothing.
    pub fn pool_added(&mut self, id: PoolId, def: PoolDef) {
        if self.pools.contains_key(&id) {
            return;
        }
        let mut kin = Vec::new();
        for (&other, pool) in &mut self.pools {
            if pool.def.namespace == def.namespace {
                pool.kin.push(id);
                kin.push(other);
            }
        }
        self.pools.insert(id, Pool { def, kin, blocks: 0, units_used: 0 });
    }

    /// One more extent, laid after the others; usable as far as it is `populated`.
    pub fn extent_added(&mut self, bytes: u64) {
        let units = u32::try_from(bytes / UNIT_BYTES).expect("an extent has less than 16 TiB");
        self.memory.buddy.extend(units);
        self.growth = Growth::Possible;
    }

    /// The first `bytes` of an extent have memory.
    pub fn populated(&mut self, extent: usize, bytes: u64) {
        let units = u32::try_from(bytes / UNIT_BYTES).expect("an extent has less than 16 TiB");
        if self.memory.buddy.populated(extent, units) {
            self.stirred = true;
            self.run();
        }
    }

    /// No memory is to be had for the rest of an extent: puts do not wait for it any longer.
    pub fn populate_failed(&mut self, extent: usize) {
        self.memory.buddy.ended(extent);
        self.stirred = true;
        self.run();
    }

    /// 4 KiB units of the slot that starts here; `None` if none does.
    pub fn slot_units(&self, slot: SlotId) -> Option<u32> {
        self.memory.locate(slot).map(|(found, _)| found.slab.stride)
    }

    /// While it drains, a core grants no slots: who waits for some, or asks, is refused `Draining`. What was granted
    /// before is committed as ever.
    pub fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
        if draining {
            self.drain_puts();
            self.run();
        }
    }

    pub fn counts(&self) -> Counts {
        Counts { ssd_table_bytes: self.ssd.table_bytes(), ..self.counts }
    }

    pub fn pool_counts(&self, id: PoolId) -> PoolCounts {
        let Some(pool) = self.pools.get(&id) else { return PoolCounts::default() };
        let slabs = self.memory.shelves().map(|shelf| self.memory.of(shelf)).filter(|own| own.pool == id);
        PoolCounts {
            blocks: pool.blocks,
            slabs: slabs.map(|own| own.slabs.len() as u64).sum(),
            bytes_used: pool.units_used * UNIT_BYTES,
        }
    }

    /// What is to be done next. Ask until there is nothing: `NeedMemory` is answered by `extent_added` before the next
    /// question, or not at all.
    pub fn poll_action(&mut self) -> Option<Action> {
        if self.growth == Growth::Taken {
            self.growth = Growth::Denied { until: self.now.after(DENIED) };
            self.stirred = true;
            self.run();
        }
        self.verify_more();
        self.pump_flush();
        self.pump_log();
        // A segment on its way out may have asked for reads that cannot begin: what becomes of them is decided here, for
        // nothing else may happen that would be a reason to.
        while self.stirred && self.adopting.is_none() {
            self.run();
            self.pump_log();
        }
        let action = self.actions.pop_front();
        if let Some(action) = &action {
            self.need_segment_taken(action);
        }
        if action == Some(Action::NeedMemory) && self.growth == Growth::Asked {
            self.growth = Growth::Taken;
        }
        action
    }

    /// Whether `poll_action` has something that was not taken yet.
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Slots whose reuse waits for readers. Others aside are those of a dead daemon's devices, which no reader holds up.
    pub fn slots_named(&self) -> usize {
        self.aside.len()
    }

    /// Operations whose end was not told yet, blocks on their way to or from SSD, and calls that wait for any of them;
    /// empty if there are none.
    pub fn unfinished(&self) -> String {
        let (ops, ssd) = (&self.ops, &self.ssd);
        let counts = [
            ("operations", ops.len()),
            ("writes", ssd.moving.len()),
            ("reads", ssd.fetching.len()),
            ("reads to come", ssd.queue.len()),
            ("segments on their way out", ssd.retiring.len()),
            ("calls that wait for removals", self.tickets()),
        ];
        let some = counts.into_iter().filter(|(_, count)| *count > 0);
        some.map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    }

    /// When to call `tick` if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Time> {
        let aside = (!self.aside.is_empty()).then_some(self.aside_look);
        let times = [self.puts.wake(), self.gets.deadline(), self.holds.until(), aside, self.log_timeout()];
        times.into_iter().flatten().min()
    }

    /// Time passed: deadlines end waits and holds, slots aside are looked at again.
    pub fn tick(&mut self, now: Time) {
        self.clock(now);
        if self.adopting.is_some() {
            return;
        }
        self.expire_holds();
        if now >= self.aside_look && !self.aside.is_empty() {
            self.settle_all();
        }
        self.expire_gets();
        self.run();
        self.expire_puts();
        self.run();
    }

    /// How an operation ended.
    pub fn completed(&mut self, now: Time, op: OpId, outcome: Outcome) {
        self.clock(now);
        match self.ops.remove(&op) {
            None => return,
            Some(Op::Verify { line, generation }) => {
                self.verifying -= 1;
                self.verify_ended(line, generation, outcome);
            }
            Some(Op::Write { line, at, pages, slot }) => self.write_ended(line, at, pages, slot, outcome),
            Some(Op::Read { line, at, pages, slot }) => self.read_ended(op, line, at, pages, slot, outcome),
            Some(Op::Open(segment)) => self.opened(segment, outcome),
            Some(Op::List(segment, place)) => self.listed(segment, place, outcome),
            Some(Op::Flush(segment)) => self.flushed(segment, outcome),
        }
        self.run();
    }

    fn verify_ended(&mut self, line: LineId, generation: u64, outcome: Outcome) {
        let Some(live) = self.kept.live(line).filter(|live| live.generation == generation) else { return };
        match outcome {
            Outcome::Ok => {
                if live.place.tier == Tier::DramUnverified {
                    self.kept.verified(line);
                }
                self.counts.verified += 1;
            }
            Outcome::Corrupt => {
                self.counts.corrupt += 1;
                self.counts.ssd_corrupt += u64::from(self.kept.entry(line).ssd != 0);
                self.drop_subtree(line);
                self.settle();
            }
            Outcome::Failed => {}
        }
    }

    /// A client hit a line: `hit` blocks up to it, of `asked`. `bind_low` is the low half of the line's bind word at that
    /// time (generation << 4 and the state): a line that changed since is left alone.
    pub fn touched(&mut self, now: Time, line: LineId, bind_low: u32, hit: u32, _asked: u32) {
        self.clock(now);
        if self.adopting.is_some() || line.0 >= self.kept.lines() {
            return;
        }
        let Some(live) = self.kept.live(line) else { return };
        if bind_low >> 4 == live.generation as u32 & (u32::MAX >> 4) {
            self.touch(line, &live, hit);
        }
    }

    /// Takes note that the block and up to `most - 1` above it were used; deepest first, so that the root is the most
    /// recent. What was used in the same tenth of a second was noted then, and all above it.
    fn touch(&mut self, line: LineId, live: &Live, most: u32) {
        let chain = self.pools[&live.pool].def.kind == PoolKind::Chain;
        let mut shelf = self.shelf_of(line, live);
        let (mut at, now) = (line, tenths(self.now));
        for _ in 0..most.min(TOUCHES_MAX) {
            let entry = self.kept.entry_mut(at);
            if entry.last_use == now {
                return;
            }
            let parent = LineId(entry.parent);
            if entry.ssd != 0 {
                entry.flags |= HIT;
            }
            if Copy::of_dram(entry).is_readable() {
                let shelf = *shelf.get_or_insert_with(|| self.shelf_of_line(at));
                self.policy.used(&mut self.kept, shelf, at, self.now);
            } else {
                entry.last_use = now;
            }
            if !parent.is_some() {
                return;
            }
            at = parent;
            if !chain {
                shelf = None;
            }
        }
    }

    /// The shelf of a published block; `None` if it is not in DRAM.
    fn shelf_of(&self, line: LineId, live: &Live) -> Option<Shelf> {
        let in_dram = Copy::of_dram(self.kept.entry(line)).is_readable();
        in_dram.then(|| self.memory.slab_around(live.place.slot.0).expect("a published slot lies in a slab").shelf)
    }

    /// The shelf of a block that is in DRAM.
    fn shelf_of_line(&self, line: LineId) -> Shelf {
        let live = self.kept.live(line).expect("a live line");
        self.memory.slab_around(live.place.slot.0).expect("a published slot lies in a slab").shelf
    }

    /// What followed from the last input: waiting puts and gets go on.
    fn run(&mut self) {
        if self.adopting.is_some() {
            return;
        }
        for held in std::mem::take(&mut self.ended_parents) {
            self.unhold(held);
        }
        loop {
            if std::mem::take(&mut self.stirred) {
                self.pump_fetches();
                self.pump.extend(self.puts.shelves_waiting());
            }
            if let Some(shelf) = self.pump.pop_first() {
                self.pump(shelf);
            } else if !self.woken.is_empty() {
                self.wake_gets();
            } else if !self.stirred {
                break;
            }
        }
        self.write_ahead();
    }

    fn clock(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    fn reply(&mut self, to: Caller, reply: Reply) {
        self.actions.push_back(Action::Reply { to, reply });
    }

    fn begin(&mut self, what: Op) -> OpId {
        let op = OpId(self.op_next);
        self.op_next += 1;
        self.ops.insert(op, what);
        op
    }

    /// Starts checks of blocks that a restart found or devices read, the hottest first, several at once: an end each would
    /// wake the engine for each. While devices read there are pauses: whoever asked for a block checks it himself, and
    /// most of what is read in a stream has gone again before anybody asks for it twice.
    fn verify_more(&mut self) {
        let paused = self.ssd.read_pages > 0 && self.now < self.verify_from;
        if self.verifying > 0 || self.unverified.is_empty() || paused {
            return;
        }
        self.verify_from = self.now.after(VERIFY_PAUSE);
        while self.verifying < self.options.verifies_max {
            let Some(line) = self.unverified.pop() else { return };
            let Some(live) = self.kept.live(line) else { continue };
            if live.place.tier != Tier::DramUnverified {
                continue;
            }
            let op = self.begin(Op::Verify { line, generation: live.generation });
            self.verifying += 1;
            let (pool, key, place) = (live.pool, live.key, live.place);
            let (slot, bytes, sum) = (place.slot, place.bytes, place.sum);
            self.actions.push_back(Action::Verify { op, line, pool, key, slot, bytes, sum });
        }
    }

    /// The block is to be verified when there is time.
    fn verify_later(&mut self, line: LineId) {
        if self.unverified.len() >= 2 * self.kept.lines() as usize {
            self.forget_verified();
        }
        self.unverified.push(line);
    }

    /// Drops what needs no check any more, and all but the last mention of a line.
    fn forget_verified(&mut self) {
        let mut seen = vec![false; self.kept.lines() as usize];
        let kept = &self.kept;
        let wanted = |line: &LineId| {
            let again = std::mem::replace(&mut seen[line.0 as usize], true);
            !again && kept.live(*line).is_some_and(|live| live.place.tier == Tier::DramUnverified)
        };
        self.unverified = std::mem::take(&mut self.unverified).into_iter().rev().filter(wanted).collect();
        self.unverified.reverse();
    }

    /// Makes the entry of a line that was just published or found.
    fn enter(&mut self, line: LineId, step: &[Step]) {
        self.counts.lines_used += 1;
        let entry = self.kept.entry_mut(line);
        let (class, last_use) = (entry.class, entry.last_use);
        *entry = lapis_config::Entry {
            newer: LineId::NONE.0,
            older: LineId::NONE.0,
            parent: LineId::NONE.0,
            first_child: LineId::NONE.0,
            class,
            last_use,
            ..Default::default()
        };
        for &step in step {
            step_dram(entry, step);
        }
    }
}
