//! Everybody on the host, turn by turn, in the order of virtual time.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Once, time::Duration};

use fastrand::Rng;
use lapis_config::Time;
use lapis_ssd::faulty::Faults;
use lapis_tiering::face::Counts;

use super::{
    client::{Client, Context, Manners},
    daemon::{Daemon, Phase},
    model::Model,
    net::{Net, Pid},
    plan::Plan,
    trace::Trace,
};

/// Between two looks at every list and at every published byte, turns.
const AUDIT_EVERY: u32 = 64;
const JUDGE_EVERY: u32 = 512;
/// How long everything may take to come to rest once nobody wants anything any more.
const REST_MAX: Duration = Duration::from_secs(20);
/// With devices that stall: they are taken out first, or come back.
const REST_MAX_FAULTY: Duration = Duration::from_secs(240);
/// Process numbers: few, so that they are used again.
const PIDS: u32 = 12;

/// How often what happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub hits: u64,
    /// Of them, those that the model says must be hits.
    pub owed: u64,
    pub misses: u64,
    pub views: u64,
    pub stored: u64,
    pub existed: u64,
    /// By refusal code.
    pub refused: BTreeMap<u8, u64>,
    pub kills: u64,
    pub colds: u64,
    pub crashes: u64,
    pub forks: u64,
    pub evictions: u64,
    pub expelled: u64,
    pub blocks_judged: u64,
    pub power_cuts: u64,
    pub demotions: u64,
    pub promotions: u64,
    pub segments_retired: u64,
    pub readmitted_bytes: u64,
    /// Blocks that a restart owed, of those that counted as on SSD.
    pub recovered: u64,
    pub ssd_found: u64,
    pub corrupt: u64,
}

/// What a run was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of all events, actions and answers.
    pub hash: u64,
    pub turns: u64,
    pub virtual_us: u64,
    pub tally: Tally,
}

struct World {
    plan: Plan,
    rng: Rng,
    now: Time,
    turns: u32,
    net: Rc<RefCell<Net>>,
    daemon: Daemon,
    clients: Vec<Client>,
    /// Dead processes whose forked child lives: when it does something next, and until when.
    ghosts: Vec<(Time, Time, Client)>,
    model: Model,
    trace: Trace,
    tally: Tally,
    started: u64,
    movers_at: Time,
    chaos_at: Time,
    ending: bool,
    /// Of every group, with how many clients it knows.
    counts_last: Vec<(Counts, usize)>,
    /// Of this daemon, what was tallied already.
    counted: [u64; 7],
}

/// Runs one seed to its end. The error says what was wrong, with the last things that happened.
pub fn run(plan: Plan) -> Result<Outcome, String> {
    keep_memory();
    let mut world = World::new(plan);
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.live()));
    let lived = lived.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("a panic: {}", text.unwrap_or("without words")))
    });
    match lived {
        Ok(()) => Ok(Outcome {
            hash: world.trace.hash(),
            turns: world.turns.into(),
            virtual_us: world.now.0,
            tally: world.tally,
        }),
        Err(wrong) => Err(format!("{}{:#?}\n{wrong}", world.trace.last(), world.plan)),
    }
}

/// Payloads come and go all the time: what is freed stays with the process, and the kernel need not clear it again.
fn keep_memory() {
    const KEPT_BYTES: libc::c_int = 32 << 20;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for option in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
            // SAFETY: it sets a number of the allocator, behind its own lock.
            unsafe { libc::mallopt(option, KEPT_BYTES) };
        }
    });
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut rng = Rng::with_seed(plan.seed ^ 0x5eed);
        let net = Rc::new(RefCell::new(Net::new(rng.fork())));
        let daemon = Daemon::new(&plan, &mut rng, net.clone());
        let mut model = Model::default();
        model.forgetful = plan.evil;
        model.has_ssd = plan.has_ssd();
        model.removals_fade = !plan.is_kept();
        Self {
            plan,
            rng,
            // Not the beginning of time: a daemon starts on a host that has been up.
            now: Time(1_000_000),
            turns: 0,
            net,
            daemon,
            clients: Vec::new(),
            ghosts: Vec::new(),
            model,
            trace: Trace::new(),
            tally: Tally::default(),
            started: 0,
            movers_at: Time(0),
            chaos_at: Time(0),
            ending: false,
            counts_last: Vec::new(),
            counted: [0; 7],
        }
    }

    fn live(&mut self) -> Result<(), String> {
        while self.turns < self.plan.turns {
            self.turn()?;
        }
        self.ending = true;
        self.heal();
        let until = self.now.after(self.rest_max());
        while !(self.clients.iter().all(Client::is_idle) && self.daemon.serves()) {
            self.turn()?;
            self.before(until, "calls are not over")?;
        }
        self.part()?;
        self.come_to_rest()
    }

    fn before(&self, until: Time, what: &str) -> Result<(), String> {
        if self.now <= until { Ok(()) } else { Err(format!("{what} after {:?}", self.rest_max())) }
    }

    fn rest_max(&self) -> Duration {
        if self.plan.is_honest() { REST_MAX } else { REST_MAX_FAULTY }
    }

    /// Devices do nothing wrong any more; some of those that hang go on doing so.
    fn heal(&mut self) {
        self.daemon.faults = Faults { latency_us: 20..200, ..Faults::NONE };
        self.set_faults();
        let releases = self.rng.u32(..10) < 7;
        self.daemon.gone.fill(false);
        let Some(engine) = &mut self.daemon.engine else { return };
        for at in 0..self.plan.devices {
            let device = engine.movers_mut().device(self.now, at);
            device.come_back();
            if releases {
                device.release_hung();
            }
        }
    }

    /// From now on devices do wrong what their plan says, and take as long.
    fn set_faults(&mut self) {
        let Some(engine) = &mut self.daemon.engine else { return };
        for at in 0..self.plan.devices {
            engine.movers_mut().device(self.now, at).set_faults(self.daemon.faults.clone());
        }
    }

    // ---- Turns ----

    fn turn(&mut self) -> Result<(), String> {
        self.turns += 1;
        let (due, who) = self.next();
        if due == Time::NEVER {
            return Err(format!("nothing will ever happen again: {:?}{}", self.counts_last, self.left()));
        }
        self.now = self.now.max(due);
        self.net.borrow_mut().now = self.now;
        match who {
            Who::Daemon => self.turn_daemon()?,
            Who::Movers => self.turn_movers(),
            Who::Drive(at) => self.turn_drive(at),
            Who::Client(at) => self.turn_client(at)?,
            Who::Ghost(at) => self.turn_ghost(at),
            Who::Chaos => self.chaos(),
        }
        if self.turns.is_multiple_of(AUDIT_EVERY) {
            self.daemon.audit()?;
        }
        if self.turns.is_multiple_of(JUDGE_EVERY) {
            self.judge()?;
        }
        Ok(())
    }

    fn judge(&mut self) -> Result<(), String> {
        self.tally.blocks_judged += self.daemon.judge_blocks(&self.model, self.plan.is_kept())?;
        if !self.plan.power_cuts {
            // Nobody will ask what was not flushed.
            self.daemon.disks.iter().for_each(|disk| disk.flushed(disk.landed()));
        }
        Ok(())
    }

    fn next(&mut self) -> (Time, Who) {
        let drive = self.daemon.engine.as_mut().and_then(|engine| engine.movers_mut().drive_due());
        let net = self.net.borrow();
        let mut next = (self.daemon.due(&net), Who::Daemon);
        let mut consider = |due: Time, who: Who| {
            if due < next.0 {
                next = (due, who);
            }
        };
        if self.movers_wait() {
            consider(self.movers_at, Who::Movers);
        }
        if let Some((due, at)) = drive {
            consider(due, Who::Drive(at));
        }
        for (at, client) in self.clients.iter().enumerate() {
            consider(client.due(&net), Who::Client(at));
        }
        for (at, (due, ..)) in self.ghosts.iter().enumerate() {
            consider(*due, Who::Ghost(at));
        }
        if !self.ending {
            consider(self.chaos_at, Who::Chaos);
        }
        next
    }

    fn movers_wait(&self) -> bool {
        self.daemon.jobs.get() > 0
    }

    fn turn_drive(&mut self, at: usize) {
        let Some(engine) = &mut self.daemon.engine else { return };
        let told = engine.movers_mut().turn_drive(self.now, at);
        for line in &told {
            self.trace.note(self.now, format_args!("{line}"));
        }
        if !told.is_empty() {
            self.net.borrow_mut().wake_daemon();
        }
    }

    fn turn_daemon(&mut self) -> Result<(), String> {
        let was_down = self.daemon.phase == Phase::Down;
        let alive = self.daemon.turn(self.now, &mut self.rng, &self.model)?;
        self.net.borrow_mut().look_at_lifelines();
        if self.daemon.phase == Phase::Asleep {
            self.trace.note(self.now, format_args!("daemon sleeps until {}", self.daemon.turn_at.0));
        }
        if !alive {
            self.killed();
            return Ok(());
        }
        if was_down {
            self.trace.note(self.now, format_args!("daemon starts, life {}", self.daemon.lives));
            (self.counted, self.movers_at) = ([0; 7], self.now);
            self.counts_last.clear();
            let tables = self.daemon.engine.iter().flat_map(|engine| engine.groups()).map(|group| group.table_id);
            tables.for_each(|table| self.model.table_starts(table));
            self.judge()?;
        }
        if self.daemon.begins_to_serve() {
            self.set_faults();
            self.model.ssd_serves();
            if self.plan.is_kept() && !self.plan.evil {
                self.tally.recovered += self.daemon.judge_recovery(&self.model)?;
            }
            self.daemon.forget_owed();
            self.judge()?;
        }
        self.note_counts()
    }

    fn killed(&mut self) {
        self.tally.kills += 1;
        self.model.forgetful |= self.daemon.forgot;
        self.trace.note(self.now, format_args!("daemon is dead"));
        let away = if self.rng.bool() { self.rng.u64(500..5_000) } else { self.rng.u64(5_000..200_000) };
        self.daemon.turn_at = self.now.after(Duration::from_micros(away));
        if self.plan.power_cuts && self.rng.u32(..3) == 0 {
            self.tally.power_cuts += 1;
            self.daemon.store.clear();
            for disk in &self.daemon.disks {
                let changed = disk.power_cut(self.rng.u64(..));
                self.trace.note(self.now, format_args!("the power fails: {changed} pages changed"));
            }
            return;
        }
        if self.plan.colds && self.rng.u32(..4) == 0 {
            self.tally.colds += 1;
            match self.rng.u32(..3) {
                // The keeper went with the daemon.
                0 => self.daemon.store.clear(),
                _ => self.daemon.change_geometry(&mut self.rng),
            }
        }
    }

    fn note_counts(&mut self) -> Result<(), String> {
        let Some(engine) = &self.daemon.engine else { return Ok(()) };
        self.tally.expelled = self.tally.expelled.max(engine.counts().clients_expelled);
        let now = engine.groups().iter().map(|group| (group.core.counts(), group.clients.len()));
        if now.clone().eq(self.counts_last.iter().copied()) {
            return Ok(());
        }
        self.counts_last = now.collect();
        let mut sums = [0; 7];
        for (counts, _) in &self.counts_last {
            let own = [
                counts.evictions,
                counts.corrupt,
                counts.demotions,
                counts.promotions,
                counts.segments_retired,
                counts.readmitted_bytes,
                counts.ssd_found,
            ];
            sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        let tally = &mut self.tally;
        let tallied = [
            &mut tally.evictions,
            &mut tally.corrupt,
            &mut tally.demotions,
            &mut tally.promotions,
            &mut tally.segments_retired,
            &mut tally.readmitted_bytes,
            &mut tally.ssd_found,
        ];
        for ((tally, now), before) in tallied.into_iter().zip(sums).zip(self.counted) {
            *tally += now.saturating_sub(before);
        }
        self.counted = sums;
        let [evictions, corrupt, ..] = sums;
        self.model.forgetful |= evictions + corrupt > 0;
        self.trace.note(self.now, format_args!("{:?}", self.counts_last));
        let rots = self.plan.lies() || self.plan.power_cuts && !self.plan.durable;
        if corrupt > 0 && !self.plan.evil && !rots {
            return Err(format!("{corrupt} blocks do not fit their sums"));
        }
        Ok(())
    }

    fn turn_movers(&mut self) {
        let Some(engine) = &mut self.daemon.engine else { return };
        if let Some(done) = engine.movers_mut().work() {
            self.trace.note(self.now, format_args!("{done:?}"));
            self.net.borrow_mut().wake_daemon();
        }
        self.movers_at = self.now.after(Duration::from_micros(self.rng.u64(10..3_000)));
    }

    fn turn_client(&mut self, at: usize) -> Result<(), String> {
        let client = &mut self.clients[at];
        let mut cx = Context {
            now: self.now,
            who: client.pid.pid,
            rng: &mut self.rng,
            net: &mut self.net.borrow_mut(),
            model: &mut self.model,
            trace: &mut self.trace,
            tally: &mut self.tally,
            plan: &self.plan,
            ending: self.ending,
        };
        let turned = client.turn(&mut cx);
        cx.net.look_at_lifelines();
        turned
    }

    // ---- What goes wrong ----

    fn chaos(&mut self) {
        self.chaos_at = self.now.after(Duration::from_micros(self.plan.pace * self.rng.u64(100..20_000)));
        if self.plan.has_ssd() && self.rng.u32(..3) == 0 {
            self.chaos_of_devices();
        }
        match self.rng.u32(..10) {
            0..2 if self.plan.kills && self.daemon.engine.is_some() => self.kill_daemon(),
            2..4 if self.plan.crashes && !self.clients.is_empty() => self.crash(),
            4 if self.clients.len() > 1 => {
                let client = self.clients.swap_remove(self.rng.usize(..self.clients.len()));
                self.trace.note(self.now, format_args!("{} leaves", client.pid.pid));
                client.leave(&mut self.net.borrow_mut());
            }
            5 if self.plan.kills && self.rng.u32(..4) == 0 => {
                if let Some(engine) = &mut self.daemon.engine {
                    self.trace.note(self.now, format_args!("daemon drains"));
                    engine.drain();
                    // The loop goes on after it, as after any call of the daemon's own.
                    engine.set_sleeping(false);
                    self.daemon.phase = Phase::Awake { idle: 0 };
                    self.daemon.turn_at = self.now;
                    self.daemon.fuse.light(200);
                }
            }
            _ if self.clients.len() < self.plan.clients => self.start(),
            _ => {}
        }
    }

    fn chaos_of_devices(&mut self) {
        let Some(engine) = &mut self.daemon.engine else { return };
        let at = self.rng.usize(..self.plan.devices);
        if self.plan.hang > 0 && engine.movers_mut().device(self.now, at).hung() > 0 && self.rng.u32(..4) == 0 {
            engine.movers_mut().device(self.now, at).release_hung();
            self.trace.note(self.now, format_args!("device {at}: what hung goes on"));
        }
        if !self.plan.vanish || self.rng.u32(..4) > 0 {
            return;
        }
        let gone = &mut self.daemon.gone[at];
        *gone = !*gone;
        self.trace.note(self.now, format_args!("device {at} is gone: {gone}"));
        let device = engine.movers_mut().device(self.now, at);
        if *gone { device.vanish() } else { device.come_back() }
    }

    fn kill_daemon(&mut self) {
        if self.rng.bool() {
            // In the middle of a later turn.
            let calls = self.rng.u32(1..60);
            self.daemon.fuse.light(calls);
        } else {
            self.daemon.die(&self.model);
            self.killed();
        }
    }

    fn start(&mut self) {
        let taken = |pid: u32| {
            self.clients.iter().map(|c| c.pid.pid).chain(self.ghosts.iter().map(|(.., c)| c.pid.pid)).any(|p| p == pid)
        };
        let Some(pid) = (100..100 + PIDS).find(|pid| !taken(*pid)) else { return };
        self.started += 1;
        let pid = Pid { pid, start_time: self.started };
        let manners = match self.rng.u32(..100) {
            0..8 => Manners::Reads,
            8..12 => Manners::Foreign,
            12..50 if self.plan.evil => Manners::Evil,
            12..60 if self.plan.stalls => Manners::Stalls,
            _ => Manners::Good,
        };
        let group = self.rng.usize(..self.plan.groups);
        self.trace.note(self.now, format_args!("{pid:?} starts, {manners:?}, group {group}"));
        let client = Client::start(&mut self.net.borrow_mut(), pid, manners, group, self.now);
        self.clients.push(client);
    }

    fn crash(&mut self) {
        let client = self.clients.swap_remove(self.rng.usize(..self.clients.len()));
        let forked = self.plan.forks && (client.fills_slots() || self.rng.u32(..4) == 0);
        self.trace.note(self.now, format_args!("{} is killed, forked {forked}", client.pid.pid));
        self.tally.crashes += 1;
        let pid = client.pid;
        if forked {
            self.tally.forks += 1;
            self.net.borrow_mut().end_process(pid, true);
            let life = Duration::from_micros(self.rng.u64(1_000..200_000));
            self.ghosts.push((self.now, self.now.after(life), client));
        } else {
            client.vanish();
            self.net.borrow_mut().end_process(pid, false);
        }
    }

    /// A child goes on writing into what its parent was filling, until its own end.
    fn turn_ghost(&mut self, at: usize) {
        let (due, until, ghost) = &mut self.ghosts[at];
        ghost.haunt(&mut self.rng);
        if self.now < *until {
            *due = (*until).min(self.now.after(Duration::from_micros(self.rng.u64(100..10_000))));
            return;
        }
        let (.., ghost) = self.ghosts.swap_remove(at);
        self.trace.note(self.now, format_args!("the child of {} ends", ghost.pid.pid));
        let pid = ghost.pid;
        ghost.vanish();
        self.net.borrow_mut().end_child(pid);
    }

    // ---- The end ----

    /// Everybody goes, one way or another.
    fn part(&mut self) -> Result<(), String> {
        self.daemon.fuse.light(0);
        for client in std::mem::take(&mut self.clients) {
            if self.rng.bool() {
                client.leave(&mut self.net.borrow_mut());
            } else {
                let pid = client.pid;
                client.vanish();
                self.net.borrow_mut().end_process(pid, false);
            }
        }
        self.daemon.audit()
    }

    /// With nobody left, nothing is granted, nothing aside, nobody remembered, and every byte is still right.
    fn come_to_rest(&mut self) -> Result<(), String> {
        let until = self.now.after(self.rest_max());
        while !self.at_rest() {
            self.turn()?;
            self.before(until, &format!("not at rest: {:?}{}", self.counts_last, self.left()))?;
        }
        self.daemon.audit()?;
        self.judge()?;
        let watched = self.net.borrow().watched();
        if watched > 0 {
            return Err(format!("{watched} connections of nobody are still watched"));
        }
        let names = self.daemon.store.names();
        if let Some(name) = names.iter().find(|name| name.contains(".client.") || name.contains(".life.")) {
            return Err(format!("{name} of a client that is gone is still kept"));
        }
        Ok(())
    }

    /// Who is still known to the daemon, and why.
    fn left(&self) -> String {
        let groups = self.daemon.engine.iter().flat_map(|engine| engine.groups());
        let clients = groups.flat_map(|group| group.clients.values()).map(|client| {
            let ended = (client.exited, client.lifeline_ended);
            format!("{} of {:?}: connected {}, ended {ended:?}; ", client.name, client.conn, client.connected)
        });
        let engine = self.daemon.engine.iter();
        let unfinished = engine.flat_map(|engine| engine.groups()).map(|group| group.core.unfinished());
        clients.chain(unfinished).collect()
    }

    fn at_rest(&mut self) -> bool {
        let Some(engine) = &mut self.daemon.engine else { return false };
        let hung = engine.movers_mut().hung() > 0;
        if !hung && !engine.movers_mut().is_idle() || engine.tier().is_some_and(|tier| tier.is_coming() && !hung) {
            return false;
        }
        let quiet = self.daemon.phase == Phase::Asleep && self.net.borrow().next_event().is_none();
        let clean = engine.groups().iter().all(|group| {
            let counts = group.core.counts();
            let over = counts.slots_busy == 0 && group.core.unfinished().is_empty() || hung;
            group.clients.is_empty() && counts.slots_granted == 0 && group.core.slots_named() == 0 && over
        });
        quiet && clean && self.ghosts.is_empty() && !self.movers_wait()
    }
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Daemon,
    Movers,
    Drive(usize),
    Client(usize),
    Ghost(usize),
    Chaos,
}
