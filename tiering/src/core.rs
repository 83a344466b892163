//! The core of one trust group: what comes in changes the truth at once, what takes time goes out as an action.
//!
//! Invariant: a resident parent outlives its resident children: victims are leaves.
//! Invariant: every slot is free, granted, used by one line, or aside; the kept memory says so before its number leaves.
//! Invariant: a slot granted to a client is free again only by commit, by abort or by the client's end.
//! Invariant: an unpublished slot is free only after no reader named it.

mod adopt;
mod ahead;
mod audit;
mod budget;
mod clients;
mod coming;
mod commit;
mod evict;
mod fetch;
mod flush;
mod found;
mod get;
mod hbm;
mod hint;
mod hits;
mod hold;
mod hottest;
mod op;
mod options;
mod put;
mod removals;
mod retire;
mod room;
mod slabs;
mod ssd;
mod strays;
mod touch;
mod verify;
mod waits;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use lapis_config::{ClientId, Key, LineId, OpId, PoolId, SlotId, Time, UNIT_BYTES};

pub use self::{
    found::FoundRecord,
    hbm::GpuCounts,
    hottest::Piece,
    options::{CoreOptions, PoolCounts, PoolDef},
};

use self::op::Op;
use crate::{
    copies::{Step, step_dram},
    face::{Action, Caller, Counts, Outcome, Reply},
    hash::Map,
    kept::Kept,
    memory::Memory,
    policy::{Policy, Shelf},
    tree::Tree,
};

/// Most puts, and most gets, of one client that may wait at once.
const CLIENT_WAITS_MAX: usize = 64;

/// Bits of `Entry::flags` beside the copy's state and the policy's bit.
pub(crate) const HELD: u8 = 1 << 4;
pub(crate) const PINNED: u8 = 1 << 5;
/// Hit since it was written to SSD.
pub(crate) const HIT: u8 = 1 << 6;
/// Was on SSD, and its segment was given up: another write of it is no first one.
pub(crate) const AGAIN: u8 = 1 << 7;

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
    puts: waits::PutWaits,
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
    hbm: hbm::Hbm,
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
        let budget = options.ssd_write_bytes_a_day.map(budget::Budget::new);
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
            puts: waits::PutWaits::default(),
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
            ssd: ssd::Ssd { budget, ..ssd::Ssd::default() },
            hbm: hbm::Hbm::default(),
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
        self.extent_added_at(bytes, None);
    }

    /// The same of a NUMA node, if that is known: its blocks go to SSDs of that node rather.
    pub fn extent_added_at(&mut self, bytes: u64, node: Option<u32>) {
        let units = u32::try_from(bytes / UNIT_BYTES).expect("an extent has less than 16 TiB");
        self.memory.buddy.extend(units);
        self.ssd.near.extent(units, node);
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
        let budget_spent_bytes = self.ssd.budget.as_ref().map_or(0, budget::Budget::spent);
        Counts { ssd_table_bytes: self.ssd.table_bytes(), budget_spent_bytes, ..self.counts }
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
        self.pump_gpus();
        self.pump_log();
        // A segment on its way out may have asked for reads that cannot begin: what becomes of them is decided here, for
        // nothing else may happen that would be a reason to.
        while (self.stirred || self.gets.any_ready()) && self.adopting.is_none() {
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
        let times = [
            self.puts.wake(),
            self.gets.deadline(),
            self.holds.until(),
            aside,
            self.log_timeout(),
            self.hbm.aside_look(),
            self.hbm.save_from(),
        ];
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
        if self.hbm.aside_look().is_some_and(|at| now >= at) {
            self.look_aside_on_gpus();
        }
        self.hbm.end_pause(now);
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
            Some(op @ Op::CopyOut { .. }) => self.fill_ended(op, outcome),
            Some(op @ Op::CopyIn { .. }) => self.copy_in_ended(op, outcome),
            // Without a sum it is none.
            Some(Op::Sum { line, slot }) => self.came_in(line, slot, Outcome::Failed, None),
            Some(Op::Open(segment)) => self.opened(segment, outcome),
            Some(Op::List(segment, place)) => self.listed(segment, place, outcome),
            Some(Op::Flush(segment)) => self.flushed(segment, outcome),
        }
        self.run();
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
            self.answer_ready();
            if std::mem::take(&mut self.stirred) {
                self.hbm.stalled = false;
                self.pump_fetches();
                self.pump.extend(self.puts.shelves_waiting());
            }
            if let Some(shelf) = self.pump.pop_first() {
                self.pump(shelf);
            } else if !self.woken.is_empty() {
                self.wake_gets();
            } else if !self.stirred && !self.gets.any_ready() {
                break;
            }
        }
        self.write_ahead();
        self.settle_gpus();
    }

    fn clock(&mut self, now: Time) {
        self.now = self.now.max(now);
        let beside = self.ssd.table_bytes();
        if let Some(budget) = &mut self.ssd.budget {
            budget.spend_beside(beside);
            budget.clock(self.now);
        }
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
