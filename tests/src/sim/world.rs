//! Everybody on the host, turn by turn, in the order of virtual time.

mod chaos;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Once, time::Duration};

use fastrand::Rng;
use lapis_config::Time;
use lapis_tiering::face::Counts;

use super::{
    client::{Client, Context},
    daemon::{Daemon, Phase},
    model::Model,
    net::Net,
    operator::Operator,
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
    /// Blocks that came whole from other hosts, and that did not; blocks that other hosts read here, and that were others'
    /// by then; links that failed.
    pub fetched: u64,
    pub fetch_faults: u64,
    pub lent_read: u64,
    pub lent_stale: u64,
    /// Blocks that were found in tables without asking: here in others', by others here.
    pub looked: u64,
    pub lent_looked: u64,
    pub cuts: u64,
    /// Drains that came to their end, and blocks that they moved to other hosts.
    pub drains: u64,
    pub drained: u64,
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
    /// Those who drain the host.
    operators: Vec<Operator>,
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
        // Other hosts remove what they like.
        model.forgetful = plan.evil || plan.link_faults;
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
            operators: Vec::new(),
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
        self.daemon.end_hosts();
        self.net.borrow_mut().wake_daemon();
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
            Who::Operator(at) => self.turn_operator(at)?,
            Who::Chaos => self.chaos(),
            Who::Hosts => self.turn_hosts()?,
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
        for (at, operator) in self.operators.iter().enumerate() {
            consider(operator.due(&net), Who::Operator(at));
        }
        if !self.ending {
            consider(self.chaos_at, Who::Chaos);
        }
        consider(self.daemon.hosts.borrow().next_due(), Who::Hosts);
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

    fn turn_hosts(&mut self) -> Result<(), String> {
        let mut hosts = self.daemon.hosts.borrow_mut();
        if hosts.turn(self.now) {
            self.net.borrow_mut().wake_daemon();
        }
        let tally = hosts.tally;
        (self.tally.fetched, self.tally.fetch_faults, self.tally.cuts) =
            (tally.fetched, tally.fetch_faults, tally.cuts);
        (self.tally.lent_read, self.tally.lent_stale) = (tally.read, tally.stale);
        (self.tally.looked, self.tally.lent_looked) = (tally.looked, tally.lent_looked);
        for (pool, key, number) in std::mem::take(&mut hosts.reads) {
            self.model.read_by_host((0, pool, key), number)?;
        }
        Ok(())
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
            if self.plan.is_kept() && !self.plan.evil && !self.plan.link_faults {
                self.tally.recovered += self.daemon.judge_recovery(&self.model)?;
            }
            self.daemon.forget_owed();
            self.judge()?;
        }
        self.note_counts()
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
        quiet && clean && self.ghosts.is_empty() && self.operators.is_empty() && !self.movers_wait()
    }
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Daemon,
    Movers,
    Drive(usize),
    Client(usize),
    Ghost(usize),
    Operator(usize),
    Chaos,
    Hosts,
}
