//! The daemon's life: the real engine, turned as `lapis serve` turns it, and its deaths.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use fastrand::Rng;
use lapis::{
    engine::{Engine, EngineOptions},
    group::GroupOptions,
    state::Geometry,
};
use lapis_arena::memfd::Huge;
use lapis_config::{LineId, Time};
use lapis_tiering::{CoreOptions, kept::Kept};
use lapis_transport::hello::CallDefaults;

use super::{
    keeper::{SimKeeper, Store},
    kill::{Fuse, survive},
    model::Model,
    movers::SimMovers,
    net::{Net, SimWire},
    plan::{self, EXTENT_BYTES, Plan},
};

/// Turns in a row in which the engine says that it is busy though nothing came from outside.
const BUSY_MAX: u32 = 20_000;

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
    net: Rc<RefCell<Net>>,
    options: EngineOptions,
    /// Jobs that wait for the movers.
    pub jobs: Rc<Cell<usize>>,
    busy: u32,
    pub lives: u32,
}

/// What the configuration of such a host would mean.
fn options(plan: &Plan, rng: &mut Rng) -> EngineOptions {
    let dram_bytes = plan.extents * EXTENT_BYTES;
    let magazine_bytes_max = [64 << 10, 256 << 10, 4 << 20][rng.usize(..3)];
    let heavy = !plan.is_calm();
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
        pin_bytes_max: if heavy { 256 << 10 } else { u64::MAX },
        pin_age_max: Duration::from_millis(300),
        core: CoreOptions { magazine_bytes_max, idle_recall: Duration::from_millis(50), ..CoreOptions::default() },
    };
    EngineOptions {
        groups: (0..plan.groups).map(group).collect(),
        clients_max: 16,
        dram_bytes,
        extent_bytes_max: EXTENT_BYTES,
        magazine_bytes_max,
        call_defaults: CallDefaults::default(),
    }
}

impl Daemon {
    pub fn new(plan: &Plan, rng: &mut Rng, net: Rc<RefCell<Net>>) -> Self {
        Self {
            engine: None,
            phase: Phase::Down,
            turn_at: Time(0),
            fuse: Fuse::default(),
            store: Store::default(),
            net,
            options: options(plan, rng),
            jobs: Rc::default(),
            busy: 0,
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
    pub fn turn(&mut self, now: Time, rng: &mut Rng) -> Result<bool, String> {
        let soon =
            now.after(Duration::from_micros(if rng.u32(..50) == 0 { rng.u64(100..3_000) } else { rng.u64(1..60) }));
        self.turn_at = soon;
        if self.phase == Phase::Down {
            return self.open(now, rng);
        }
        let Some(engine) = &mut self.engine else { return Ok(false) };
        let Some(next) = survive(|| match self.phase {
            Phase::Awake { idle } => {
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
            self.die();
            return Ok(false);
        };
        self.phase = next;
        if self.phase == Phase::Asleep {
            self.turn_at = engine.next_timeout().map_or(Time::NEVER, |at| at.max(soon));
        }
        if self.busy > BUSY_MAX {
            return Err("the engine is busy without end".into());
        }
        Ok(true)
    }

    fn open(&mut self, now: Time, rng: &mut Rng) -> Result<bool, String> {
        self.lives += 1;
        let wire = SimWire { net: self.net.clone(), fuse: self.fuse.clone() };
        let movers = SimMovers::new(rng.fork(), self.fuse.clone(), self.jobs.clone());
        let keeper = Box::new(SimKeeper { store: self.store.clone(), fuse: self.fuse.clone() });
        let (mut numbers, fuse) = (rng.fork(), self.fuse.clone());
        let entropy = Box::new(move || {
            fuse.burn();
            numbers.u64(1..)
        });
        let (found, options) = (self.store.take_all(), self.options.clone());
        self.net.borrow_mut().daemon_starts();
        match survive(|| Engine::open(now, options, wire, movers, keeper, found, entropy)) {
            None => {
                self.die();
                Ok(false)
            }
            Some(Err(error)) => Err(format!("the daemon does not start: {error}")),
            Some(Ok(engine)) => {
                self.engine = Some(engine);
                self.phase = Phase::Awake { idle: 0 };
                Ok(true)
            }
        }
    }

    /// SIGKILL. The caller says when the next one starts.
    pub fn die(&mut self) {
        self.fuse.light(0);
        self.engine = None;
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

    /// Every published block is one that was put, in all its bytes.
    pub fn judge_blocks(&self, model: &Model) -> Result<u64, String> {
        let mut blocks = 0;
        for group in self.engine.iter().flat_map(|engine| engine.groups()) {
            let kept = group.core.kept();
            for line in 0..kept.lines() {
                let Some(live) = kept.live(LineId(line)) else { continue };
                let (shape, _) = &group.shapes[&live.pool];
                let pool = Plan::shapes().iter().position(|known| known == shape);
                let Some(pool) = pool.filter(|_| !plan::is_evil(&live.key)) else { continue };
                let place = group.space.locate(live.place.slot, live.place.bytes.into());
                let Some((mapping, offset)) = place else { return Err(format!("{live:?} lies nowhere")) };
                let bytes = mapping.to_vec(offset, live.place.bytes as usize);
                model
                    .read((group.table_id, pool, live.key), &bytes)
                    .map_err(|wrong| format!("published at line {line} of {}: {wrong}", group.options.name))?;
                blocks += 1;
            }
        }
        Ok(blocks)
    }
}
