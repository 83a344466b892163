//! The daemon's life: the real engine, turned as `lapis serve` turns it, and its deaths.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use fastrand::Rng;
use lapis::{
    engine::{Engine, EngineOptions},
    error::DaemonError,
    group::{Group, GroupOptions},
    peers::{Member, PeersOptions},
    tier::TierOptions,
};
use lapis_arena::memfd::Huge;
use lapis_config::{LineId, PolicyName, PoolId, SsdPlace, Time, UNIT_BYTES};
use lapis_ssd::{
    disk::Disk,
    faulty::Faults,
    volume::open::{Identity, SEGMENTS_START},
};
use lapis_state::Geometry;
use lapis_tiering::{
    CoreOptions,
    kept::{Kept, Tier},
};
use lapis_transport::hello::CallDefaults;

use super::{
    hosts::{Hosts, OWN, SimLinks},
    keeper::{SimKeeper, Store},
    kill::{Fuse, survive},
    model::{Model, Place},
    movers::{Hardware, SimMovers},
    net::{Net, SimWire},
    plan::{self, EXTENT_BYTES, Plan},
};

/// Turns in a row in which the engine says that it is busy though nothing came from outside.
const BUSY_MAX: u32 = 20_000;
/// Of a write budget, in runs that have one.
const BUDGET_BYTES_A_SECOND: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Down,
    Awake {
        idle: u32,
    },
    /// It has said that it sleeps, and will look once more.
    Drowsy,
    Asleep,
}

pub struct Daemon {
    pub engine: Option<Engine<SimWire, SimMovers>>,
    pub phase: Phase,
    pub turn_at: Time,
    pub fuse: Fuse,
    pub store: Store,
    pub hosts: Rc<RefCell<Hosts>>,
    /// The bytes of its devices, and which of those are pulled.
    pub disks: Vec<Disk>,
    pub gone: Vec<bool>,
    pub faults: Faults,
    queue: usize,
    start_latency_us: u64,
    segment_bytes: u64,
    /// Whether this life has told that it serves what is on SSD.
    served: bool,
    /// What a dead daemon counted as on SSD, with the model's time of its death; of one whose tier served.
    owed: Option<(u64, Vec<(Place, u64)>)>,
    /// A daemon that died had let blocks go, maybe in its last turn.
    pub forgot: bool,
    net: Rc<RefCell<Net>>,
    options: EngineOptions,
    /// Jobs that wait for the movers.
    pub jobs: Rc<Cell<usize>>,
    busy: u32,
    pub lives: u32,
    has_hosts: bool,
    /// The engine is told in its next turn who the other hosts are.
    members_change: bool,
}

/// What the configuration of such a host would mean.
fn options(plan: &Plan, rng: &mut Rng) -> EngineOptions {
    let dram_bytes = plan.extents * EXTENT_BYTES;
    let magazine_bytes_max = [64 << 10, 256 << 10, 4 << 20][rng.usize(..3)];
    let heavy = !plan.is_calm();
    let limited = plan.groups > 1 && plan.turns.is_multiple_of(2);
    let share = plan.segments * plan.devices as u64 * plan.segment_bytes / plan.groups as u64;
    let group = |index: usize| GroupOptions {
        name: format!("g{index}"),
        uids: vec![1000],
        may_put: true,
        geometry: Geometry {
            lines: plan.lines,
            dram_bytes,
            floor_bytes: if plan.groups > 1 { EXTENT_BYTES } else { 0 },
            ceiling_bytes: dram_bytes,
        },
        huge: Huge::Never,
        lock: false,
        spread: Default::default(),
        pin_bytes_max: if heavy { 256 << 10 } else { u64::MAX },
        pin_age_max: Duration::from_millis(300),
        core: CoreOptions {
            magazine_bytes_max,
            idle_recall: Duration::from_millis(50),
            write_back_ahead_bytes: dram_bytes / plan.ahead_part,
            // About what is written in some seconds, so that it binds.
            ssd_write_bytes_a_day: (plan.turns.is_multiple_of(3)).then_some(BUDGET_BYTES_A_SECOND * 86_400),
            ..CoreOptions::default()
        },
        // The first of several is promised more than its share, and the others no more than theirs, or they share freely.
        ssd_floor_bytes: if limited && index == 0 { share + plan.segment_bytes } else { 0 },
        ssd_ceiling_bytes: if limited && index > 0 { share } else { 0 },
        // Ghosts are few: they are forgotten too.
        hbm_bytes: 0,
        policy: if plan.lines.is_multiple_of(2) { PolicyName::Hazq } else { PolicyName::Lru },
        ghost_bytes: 1024,
    };
    EngineOptions {
        groups: (0..plan.groups).map(group).collect(),
        clients_max: 16,
        dram_bytes,
        extent_bytes_max: EXTENT_BYTES,
        magazine_bytes_max,
        tier: plan.has_ssd().then(|| TierOptions {
            names: (0..plan.devices).map(|device| format!("disk {device}")).collect(),
            nodes: Vec::new(),
            identity: Identity::default(),
            segment_bytes_min: plan.segment_bytes,
            list_after_us: plan.list_after_us,
            durable: plan.durable,
            required: false,
            wall_s: 1_700_000_000,
        }),
        call_defaults: CallDefaults::default(),
    }
}

impl Daemon {
    pub fn new(plan: &Plan, rng: &mut Rng, net: Rc<RefCell<Net>>) -> Self {
        // Drawn apart: without other hosts the world is the same as before there were any.
        let rng_of_hosts = Rng::with_seed(plan.seed ^ 0x0705);
        Self {
            engine: None,
            phase: Phase::Down,
            turn_at: Time(0),
            fuse: Fuse::default(),
            store: Store::default(),
            disks: (0..plan.devices).map(|_| Disk::new(SEGMENTS_START + plan.segments * plan.segment_bytes)).collect(),
            gone: vec![false; plan.devices],
            faults: plan.faults(),
            queue: plan.queue,
            start_latency_us: plan.start_latency_us,
            segment_bytes: plan.segment_bytes,
            served: false,
            owed: None,
            forgot: false,
            net,
            options: options(plan, rng),
            jobs: Rc::default(),
            busy: 0,
            has_hosts: plan.hosts > 0,
            members_change: false,
            hosts: Rc::new(RefCell::new(Hosts::new(plan, rng_of_hosts))),
            lives: 0,
        }
    }

    /// Another size of table: what was kept is of no use to the next daemon.
    pub fn change_geometry(&mut self, rng: &mut Rng) {
        let lines = rng.u64(512..2_048);
        for group in &mut self.options.groups {
            group.geometry.lines = lines;
        }
    }

    pub fn due(&self, net: &Net) -> Time {
        match self.phase {
            Phase::Asleep => net.next_event().map_or(self.turn_at, |at| at.min(self.turn_at)),
            _ => self.turn_at,
        }
    }

    /// False if it died in this turn.
    pub fn turn(&mut self, now: Time, rng: &mut Rng, model: &Model) -> Result<bool, String> {
        let soon =
            now.after(Duration::from_micros(if rng.u32(..50) == 0 { rng.u64(100..3_000) } else { rng.u64(1..60) }));
        self.turn_at = soon;
        if self.phase == Phase::Down {
            return self.open(now, rng, model);
        }
        let Some(engine) = &mut self.engine else { return Ok(false) };
        let members = (self.members_change && matches!(self.phase, Phase::Awake { .. })).then(|| members(&self.hosts));
        self.members_change &= members.is_none();
        let Some(next) = survive(|| match self.phase {
            Phase::Awake { idle } => {
                members.into_iter().for_each(|members| engine.set_members(now, members));
                let mut busy = engine.work(now);
                if rng.u32(..4) == 0 {
                    busy |= engine.listen(now, Some(Duration::ZERO)).expect("the wire has no errors");
                }
                self.busy = if busy { self.busy + 1 } else { 0 };
                if busy {
                    Phase::Awake { idle: 0 }
                } else if idle < rng.u32(..4) {
                    Phase::Awake { idle: idle + 1 }
                } else {
                    engine.set_sleeping(true);
                    Phase::Drowsy
                }
            }
            Phase::Drowsy if engine.rings_waiting() => {
                engine.set_sleeping(false);
                Phase::Awake { idle: 0 }
            }
            Phase::Drowsy => Phase::Asleep,
            Phase::Asleep | Phase::Down => {
                engine.listen(now, Some(Duration::ZERO)).expect("the wire has no errors");
                engine.set_sleeping(false);
                Phase::Awake { idle: 0 }
            }
        }) else {
            self.die(model);
            return Ok(false);
        };
        self.phase = next;
        if self.phase == Phase::Asleep {
            if !engine.is_at_rest() {
                return Err("the engine sleeps on actions that nobody will wake it for".into());
            }
            self.turn_at = engine.next_timeout().map_or(Time::NEVER, |at| at.max(soon));
        }
        if self.busy > BUSY_MAX {
            return Err("the engine is busy without end".into());
        }
        Ok(true)
    }

    fn open(&mut self, now: Time, rng: &mut Rng, model: &Model) -> Result<bool, String> {
        self.lives += 1;
        let wire = SimWire { net: self.net.clone(), fuse: self.fuse.clone() };
        let Self { disks, gone, queue, faults, start_latency_us, .. } = &*self;
        let faults = Faults {
            latency_us: faults.latency_us.start..faults.latency_us.end.max(*start_latency_us),
            ..faults.clone()
        };
        let hardware = Hardware { disks, gone, queue: *queue, faults, hosts: self.hosts.clone() };
        let movers = SimMovers::new(now, rng.fork(), self.fuse.clone(), self.jobs.clone(), &hardware);
        self.served = false;
        let keeper = Box::new(SimKeeper { store: self.store.clone(), fuse: self.fuse.clone() });
        let (mut numbers, fuse) = (rng.fork(), self.fuse.clone());
        let entropy = Box::new(move || {
            fuse.burn();
            numbers.u64(1..)
        });
        let (found, options) = (self.store.take_all(), self.options.clone());
        self.net.borrow_mut().daemon_starts();
        let peers = self.peers();
        self.hosts.borrow_mut().daemon_runs(now);
        let open = || {
            let mut engine = Engine::open(now, options, wire, movers, keeper, found, entropy)?;
            if let Some((options, links)) = peers {
                engine.join_peers(now, options, Box::new(links));
            }
            Ok(engine)
        };
        match survive(open) {
            None => {
                self.die(model);
                Ok(false)
            }
            Some::<Result<_, DaemonError>>(Err(error)) => Err(format!("the daemon does not start: {error}")),
            Some(Ok(engine)) => {
                self.engine = Some(engine);
                self.phase = Phase::Awake { idle: 0 };
                Ok(true)
            }
        }
    }

    /// The other hosts, if the plan has any.
    fn peers(&self) -> Option<(PeersOptions, SimLinks)> {
        let members = members(&self.hosts);
        let options = PeersOptions {
            host: OWN.into(),
            may_ask: vec![Vec::new(); self.options.groups.len()],
            members,
            hosts_are_found: false,
            data_port: 7451,
            asker: self.hosts.borrow().asker_options(),
        };
        self.has_hosts.then(|| (options, SimLinks { hosts: self.hosts.clone(), fuse: self.fuse.clone() }))
    }

    /// There are no other hosts from now on.
    pub fn end_hosts(&mut self) {
        self.hosts.borrow_mut().end();
        self.members_change = true;
    }

    /// SIGKILL. The caller says when the next one starts.
    pub fn die(&mut self, model: &Model) {
        self.fuse.light(0);
        self.remember(model);
        self.engine = None;
        self.hosts.borrow_mut().daemon_died();
        self.jobs.set(0);
        self.phase = Phase::Down;
        self.net.borrow_mut().daemon_died();
    }

    /// Whether every group serves.
    pub fn serves(&self) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.adopted())
    }

    /// Slots, links, lists and counts of every core.
    pub fn audit(&self) -> Result<(), String> {
        let Some(engine) = &self.engine else { return Ok(()) };
        for group in engine.groups() {
            group.core.audit().map_err(|wrong| format!("audit of {}: {wrong}", group.options.name))?;
        }
        Ok(())
    }

    /// Every published block is one that was put, in all its bytes. `whole`: on SSD too, and as it came from there: else
    /// whoever reads it first is to notice.
    pub fn judge_blocks(&self, model: &Model, whole: bool) -> Result<u64, String> {
        let mut blocks = 0;
        for (index, group) in self.engine.iter().flat_map(|engine| engine.groups()).enumerate() {
            let kept = group.core.kept();
            for line in (0..kept.lines()).map(LineId) {
                let Some(live) = kept.live(line) else { continue };
                let Some(pool) = pool_index(group, live.pool).filter(|_| !plan::is_evil(&live.key)) else { continue };
                let (place, bytes) = ((index, pool, live.key), live.place.bytes as usize);
                let judge = |bytes: &[u8], what: &str| {
                    let read = model.read(place, group.table_id, bytes);
                    read.map_err(|wrong| format!("{what} at line {} of {}: {wrong}", line.0, group.options.name))
                };
                if live.place.tier == Tier::Dram || live.place.tier == Tier::DramUnverified && whole {
                    let at = group.space.locate(live.place.slot, live.place.bytes.into());
                    let Some((mapping, offset)) = at else { return Err(format!("{live:?} lies nowhere")) };
                    judge(&mapping.to_vec(offset, bytes), "published")?;
                    blocks += 1;
                }
                let at = SsdPlace(kept.entry(line).ssd);
                if whole && at.is_some() && self.served {
                    judge(&self.on_disk(at, bytes), "on SSD")?;
                    blocks += 1;
                }
            }
        }
        Ok(blocks)
    }

    fn on_disk(&self, at: SsdPlace, bytes: usize) -> Vec<u8> {
        let segment = at.segment();
        let start = SEGMENTS_START + u64::from(segment.index()) * self.segment_bytes;
        self.disks[usize::from(segment.device())].read(start + u64::from(at.page().0) * UNIT_BYTES, bytes)
    }

    // ---- What must be there after a restart ----

    fn remember(&mut self, model: &Model) {
        let forgets = |group: &Group| group.core.counts().evictions + group.core.counts().corrupt > 0;
        self.forgot |= self.engine.iter().flat_map(|engine| engine.groups()).any(forgets);
        let Some(engine) = self.engine.as_ref().filter(|engine| engine.tier().is_some_and(|tier| tier.serves())) else {
            return;
        };
        let mut owed = Vec::new();
        for (index, group) in engine.groups().iter().enumerate() {
            let kept = group.core.kept();
            for line in (0..kept.lines()).map(LineId).filter(|line| kept.entry(*line).ssd != 0) {
                let Some(live) = kept.live(line) else { continue };
                if let Some(pool) = pool_index(group, live.pool) {
                    owed.push(((index, pool, live.key), live.place.sum));
                }
            }
        }
        self.owed = Some((model.now(), owed));
    }

    pub fn forget_owed(&mut self) {
        self.owed = None;
    }

    /// True once, when the tier serves or there is none.
    pub fn begins_to_serve(&mut self) -> bool {
        let coming = self.engine.as_ref().and_then(|engine| engine.tier()).is_none_or(|tier| tier.is_coming());
        let begins = !self.served && !coming;
        self.served |= begins;
        begins
    }

    /// What counted as on SSD is found by whoever starts next, unless it was removed.
    pub fn judge_recovery(&mut self, model: &Model) -> Result<u64, String> {
        let Some(engine) = &self.engine else { return Ok(0) };
        if engine.groups().iter().any(|group| group.core.counts().ssd_passed_over > 0) {
            // No room in the table.
            self.owed = None;
        }
        let Some((since, owed)) = self.owed.take() else { return Ok(0) };
        // Some left with their segment in the same turn: a group that has no free one retires its oldest at once. What was
        // in memory too may have been evicted then, if the budget has no bytes to write it anew.
        let counts = engine.groups().iter().map(|group| group.core.counts());
        let mut left: u64 = counts.map(|counts| counts.ssd_evictions + counts.evictions).sum();
        for (place, sum) in &owed {
            let group = &engine.groups()[place.0];
            let pools = group.shapes.keys().filter(|pool| pool_index(group, **pool) == Some(place.1));
            let mut lines = pools.filter_map(|pool| group.core.kept().find(*pool, &place.2));
            if lines.next().is_none() && !model.is_touched(*place, since) {
                if left > 0 {
                    left -= 1;
                    continue;
                }
                return Err(format!("{place:x?} of sum {sum:x} counted as on SSD, and is lost"));
            }
        }
        Ok(owed.len() as u64)
    }
}

fn members(hosts: &RefCell<Hosts>) -> Vec<Member> {
    let member = |name: String| Member { address: format!("{name}:7450"), name };
    hosts.borrow().names().into_iter().map(member).collect()
}

/// Of a group's pool in [`Plan::shapes`].
fn pool_index(group: &Group, pool: PoolId) -> Option<usize> {
    let (shape, _) = group.shapes.get(&pool)?;
    Plan::shapes().iter().position(|known| known == shape)
}
