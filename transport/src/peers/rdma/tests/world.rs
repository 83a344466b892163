//! Two hosts, their NICs and the wire between them, turned step by step.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use lapis_arena::Mapping;
use lapis_config::{Key, SlotId, Time, UNIT_BYTES};

use super::super::{
    fake::{Fabric, FakeNic, Faults},
    lane::DRAIN,
    mover::Mover,
    provider::Nic,
    reach::Reaches,
    said::{GidKind, Said},
    work::{Done, Work},
};
pub(super) use super::blocks::{Blocks, POOL, TAIL_BYTES, Table};
use crate::peers::{
    directory::PeerId,
    links::LinkId,
    message::Located,
    paths::{Came, Fetch, FromPaths, Look, ToPaths, Wanted},
};

pub(super) const LINK: LinkId = LinkId(1);
pub(super) const SECOND_US: u64 = 1_000_000;
/// A step takes up to this.
pub(super) const STEP_US: u64 = 100;
/// A fetch may end so much after its deadline: by then its pair is destroyed, on a thread that has other work.
pub(super) const LATE_US: u64 = 100 * STEP_US;
/// Chunks that move in a step, at most.
const MOVES: usize = 64;

pub(super) struct Options {
    pub seed: u64,
    pub faults: Faults,
    pub nics: usize,
    pub slots: u32,
    pub block_units: u32,
    pub region_bytes_max: u64,
    pub memory_later: bool,
    /// Of the asker's memory.
    pub node: Option<u32>,
    pub owner_kind: GidKind,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            faults: Faults::default(),
            nics: 1,
            slots: 32,
            block_units: 1,
            region_bytes_max: u64::MAX,
            memory_later: false,
            node: None,
            owner_kind: GidKind::RoceV2Ip4,
        }
    }
}

pub(super) fn peer() -> ToPaths {
    let nowhere = "127.0.0.1:1".parse().expect("an address");
    ToPaths::Peer {
        group: 0,
        peer: PeerId(1),
        link: LINK,
        host: "owner".into(),
        local: nowhere,
        address: nowhere,
        word: 0,
    }
}

/// One host's paths.
pub(super) struct Side {
    pub mover: Mover<FakeNic>,
    pub reaches: Arc<Reaches>,
    pub nics: Vec<Arc<FakeNic>>,
    work: Vec<Work<FakeNic>>,
    /// Its clock shows so much more.
    pub skew_us: u64,
}

impl Side {
    fn new(nics: Vec<Arc<FakeNic>>, skew_us: u64) -> Self {
        let reaches = Arc::new(Reaches::default());
        Self { mover: Mover::new(nics.clone(), reaches.clone()), reaches, nics, work: Vec::new(), skew_us }
    }

    pub(super) fn tell(&mut self, now: u64, job: ToPaths) {
        self.mover.tell(Time(now + self.skew_us), job);
    }

    /// Some of the work ends, in any order.
    fn turn(&mut self, now: u64, random: &mut fastrand::Rng) {
        let now = Time(now + self.skew_us);
        self.work.extend(std::iter::from_fn(|| self.mover.poll_work()));
        while !self.work.is_empty() && random.u8(..4) > 0 {
            let work = self.work.swap_remove(random.usize(..self.work.len()));
            self.mover.done(now, work.run());
        }
        self.mover.turn(now);
        self.work.extend(std::iter::from_fn(|| self.mover.poll_work()));
    }
}

pub(super) struct World {
    pub fabric: Fabric,
    pub owner: Side,
    pub asker: Side,
    pub blocks: Blocks,
    pub now: u64,
    /// On the wire: to the owner or from it.
    wire: VecDeque<(bool, LinkId, Vec<u8>)>,
    /// All that was.
    pub said: Vec<Said>,
    pub owner_is_deaf: bool,
    /// Slots here of fetches under way, and when they must have ended.
    under_way: BTreeMap<u64, (Vec<u32>, u64)>,
    ended: BTreeMap<u64, Vec<Came>>,
    pub looked: BTreeMap<u64, Option<Vec<Located>>>,
    pub op: u64,
    pub random: fastrand::Rng,
    memory_later: bool,
    node: Option<u32>,
}

impl World {
    pub(super) fn new(options: Options) -> Self {
        let fabric = Fabric::new(options.seed, options.faults);
        let mut random = fastrand::Rng::with_seed(options.seed ^ 0xabcd);
        let mut side = |kind| {
            let nic = |n| fabric.nic(&format!("nic{n}"), kind).with_small_regions(options.region_bytes_max);
            Side::new((0..options.nics).map(nic).collect(), random.u64(..1 << 50))
        };
        let (mut owner, mut asker) = (side(options.owner_kind), side(GidKind::RoceV2Ip4));
        let blocks = Blocks::new(options.slots, options.block_units);
        owner.tell(0, ToPaths::Guest { group: 0, link: LINK, word: 0 });
        asker.tell(0, peer());
        let mut world = Self {
            fabric,
            owner,
            asker,
            blocks,
            now: 0,
            wire: VecDeque::new(),
            said: Vec::new(),
            owner_is_deaf: false,
            under_way: BTreeMap::new(),
            ended: BTreeMap::new(),
            looked: BTreeMap::new(),
            op: 0,
            random,
            memory_later: options.memory_later,
            node: options.node,
        };
        if !options.memory_later {
            world.add_memory();
        }
        world
    }

    pub(super) fn add_memory(&mut self) {
        let memory = |mapping: &Mapping, node| {
            let (first, mapping) = (SlotId(0), mapping.clone());
            ToPaths::Memory { group: 0, first, mapping, node }
        };
        self.owner.tell(self.now, memory(&self.blocks.there, None));
        self.asker.tell(self.now, memory(&self.blocks.here, self.node));
        self.memory_later = false;
    }

    /// Both hosts find another NIC.
    pub(super) fn add_nics(&mut self) {
        for side in [&mut self.owner, &mut self.asker] {
            let nic = self.fabric.nic(&format!("nic{}", side.nics.len()), GidKind::RoceV2Ip4);
            side.nics.push(nic.clone());
            side.mover.done(Time(self.now + side.skew_us), Done::Found { nic });
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn slots(&self) -> u32 {
        self.blocks.slots()
    }

    // ---- Looks ----

    /// Both hosts show a table; the owner's has all its blocks.
    pub(super) fn add_table(&mut self, lines: u32) -> Table {
        let mut table = Table::new(lines);
        (0..self.slots()).for_each(|slot| table.publish(&self.blocks, slot));
        self.owner.tell(self.now, table.shown(0));
        self.asker.tell(self.now, Table::new(lines).shown(0));
        table
    }

    pub(super) fn look(&mut self, keys: Vec<Key>, within: Duration) -> u64 {
        self.op += 1;
        let (op, link, pool) = (self.op, LINK, POOL);
        self.asker.tell(self.now, ToPaths::Look(Look { op, link, pool, keys, within }));
        op
    }

    pub(super) fn until_looked(&mut self, op: u64) -> Option<Vec<Located>> {
        for _ in 0..1_000_000 {
            if let Some(found) = self.looked.remove(&op) {
                return found;
            }
            self.turn();
            if !self.looked.contains_key(&op) {
                self.step();
            }
        }
        panic!("look {op} never ended");
    }

    pub(super) fn until_table(&mut self) {
        let end = self.now + 200 * SECOND_US;
        while !self.asker.reaches.looks(LINK) {
            assert!(self.now < end, "no table");
            self.run(STEP_US * 10);
        }
    }

    /// What a NIC never tells of again is waited for, before the pair is destroyed with it.
    fn late_us(&self) -> u64 {
        let is_told_all = self.fabric.lock().faults.absent == 0;
        if is_told_all { LATE_US } else { DRAIN.as_micros() as u64 + LATE_US }
    }

    // ---- Steps ----

    /// Bytes move, time passes, both hosts turn.
    pub(super) fn step(&mut self) {
        for _ in 0..self.random.usize(..MOVES) {
            if !self.fabric.step() {
                break;
            }
        }
        let us = self.random.u64(1..=STEP_US);
        self.pass(us);
        self.turn();
    }

    /// Time goes on, not past what a host has to do.
    fn pass(&mut self, us: u64) {
        let due = [&self.owner, &self.asker].map(|side| side.mover.next_at().map(|at| at.0 - side.skew_us));
        let due = due.into_iter().flatten().min().unwrap_or(u64::MAX);
        self.now = due.clamp(self.now + 1, self.now + us);
    }

    pub(super) fn turn(&mut self) {
        while let Some((to_owner, link, said)) = self.wire.pop_front() {
            let side = if to_owner { &mut self.owner } else { &mut self.asker };
            if !(to_owner && self.owner_is_deaf) {
                side.tell(self.now, ToPaths::Heard { link, said });
            }
        }
        self.owner.turn(self.now, &mut self.random);
        self.asker.turn(self.now, &mut self.random);
        self.take();
    }

    fn take(&mut self) {
        while let Some(FromPaths::Say { link, said }) = self.owner.mover.poll() {
            self.said.extend(Said::decode(&said));
            self.wire.push_back((false, link, said));
        }
        while let Some(from) = self.asker.mover.poll() {
            match from {
                FromPaths::Say { link, said } => {
                    self.said.extend(Said::decode(&said));
                    self.wire.push_back((true, link, said));
                }
                FromPaths::Looked { op, found } => drop(self.looked.insert(op, found)),
                FromPaths::Fetched { op, came, .. } => {
                    let (slots, deadline) = self.under_way.remove(&op).expect("one that was begun, once");
                    assert!(self.now <= deadline + self.late_us(), "fetch {op} ended {} us late", self.now - deadline);
                    slots.iter().for_each(|slot| self.fabric.unlend(self.blocks.address(*slot)));
                    self.ended.insert(op, came);
                }
            }
        }
    }

    /// Nothing but timers, the wire, what failed, and lanes that are tried, for so long.
    pub(super) fn run(&mut self, us: u64) {
        let end = self.now + us;
        while self.now < end {
            if self.under_way.is_empty() {
                while self.fabric.step() {}
            }
            self.fabric.flush();
            self.pass(STEP_US * 10);
            self.turn();
        }
    }

    pub(super) fn lanes_up(&self) -> usize {
        let fetch = self.blocks.fetch(0, LINK, &[0], Duration::ZERO);
        self.asker.reaches.lanes_for(&fetch)
    }

    /// All lanes are up, with all memory.
    pub(super) fn until_up(&mut self) {
        let end = self.now + 200 * SECOND_US;
        while self.lanes_up() < self.asker.nics.len() {
            assert!(self.now < end, "not up");
            self.run(STEP_US * 10);
        }
    }

    pub(super) fn until_connected(&mut self) {
        let end = self.now + 20 * SECOND_US;
        while self.fabric.pairs_in_use() < 2 * self.asker.nics.len() {
            assert!(self.now < end, "not connected");
            self.run(STEP_US * 10);
        }
    }

    // ---- Fetches ----

    pub(super) fn begin(&mut self, link: LinkId, wanted: Vec<Wanted>, into: Vec<u32>, within: Duration) -> u64 {
        self.op += 1;
        let span = self.blocks.bytes() + TAIL_BYTES;
        into.iter().for_each(|slot| self.fabric.lend(self.blocks.address(*slot), span.into()));
        self.under_way.insert(self.op, (into, self.now + within.as_micros() as u64));
        let fetch = Fetch { op: self.op, link, token: 0, first: 0, blocks: wanted, within };
        self.asker.tell(self.now, ToPaths::Fetch(fetch));
        self.op
    }

    /// Slots here that no fetch has.
    pub(super) fn free_slots(&mut self, count: usize) -> Option<Vec<u32>> {
        let used: Vec<u32> = self.under_way.values().flat_map(|(slots, _)| slots.iter().copied()).collect();
        let mut free: Vec<u32> = (0..self.slots()).filter(|slot| !used.contains(slot)).collect();
        self.random.shuffle(&mut free);
        (free.len() >= count).then(|| free.split_off(free.len() - count))
    }

    pub(super) fn fetch(&mut self, slots: &[u32], within: Duration) -> u64 {
        self.fetch_on(LINK, slots, within)
    }

    pub(super) fn fetch_on(&mut self, link: LinkId, slots: &[u32], within: Duration) -> u64 {
        // Where several fetches are under way they share slots' numbers, not slots.
        let into = match self.free_slots(slots.len()) {
            Some(into) => into,
            None => panic!("more slots than there are"),
        };
        let wanted = slots.iter().zip(&into);
        let wanted = wanted.map(|(slot, into)| self.blocks.wanted(*slot, *into, self.blocks.version(*slot))).collect();
        self.begin(link, wanted, into, within)
    }

    /// Of a block that a peer says to be at that unit.
    pub(super) fn fetch_at(&mut self, unit: u32, within: Duration) -> u64 {
        let into = self.free_slots(1).expect("a free slot");
        let mut wanted = self.blocks.wanted(0, into[0], 1);
        wanted.from.slot = unit;
        self.begin(LINK, vec![wanted], into, within)
    }

    /// What is wanted reaches the NICs; no byte has moved.
    pub(super) fn post(&mut self) {
        self.asker.turn(self.now, &mut self.random);
        self.take();
    }

    pub(super) fn until_fetched(&mut self, op: u64) -> Vec<Came> {
        for _ in 0..1_000_000 {
            self.take();
            if let Some(came) = self.ended.remove(&op) {
                return came;
            }
            // What ends without any time passing is seen so.
            self.turn();
            if !self.ended.contains_key(&op) {
                self.step();
            }
        }
        panic!("fetch {op} never ended");
    }

    pub(super) fn ended(&mut self) -> Option<(u64, Vec<Came>)> {
        self.ended.pop_first()
    }

    pub(super) fn fail_a_lane(&mut self) {
        self.fabric.fail_one();
    }

    // ---- For liars ----

    /// Address and remote key of memory of another trust group of the owner.
    pub(super) fn another_groups_memory(&mut self) -> (u64, u32) {
        let mapping = Mapping::anonymous(4 * UNIT_BYTES).expect("memory");
        let (nic, address) = (self.owner.nics[0].clone(), mapping.as_ptr(0) as u64);
        self.owner.tell(self.now, ToPaths::Memory { group: 1, first: SlotId(0), mapping, node: None });
        self.run(SECOND_US / 10);
        (address, nic.key_of(address))
    }

    pub(super) fn some_address(&self, random: &mut fastrand::Rng) -> u64 {
        let memory = if random.bool() { &self.blocks.there } else { &self.blocks.here };
        memory.as_ptr(random.usize(..memory.len())) as u64
    }
}

impl Drop for World {
    /// Whatever happened: no fetch is forgotten.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.run(SECOND_US * 2);
            assert!(self.under_way.is_empty(), "{:?} never ended", self.under_way.keys());
            assert!(self.asker.nics.iter().all(|nic| !nic.name().is_empty()));
        }
    }
}
