//! Everybody on the host, turn by turn, in the order of virtual time.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use fastrand::Rng;
use lapis_config::Time;

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
    counts_last: String,
    evictions_last: u64,
}

/// Runs one seed to its end. The error says what was wrong, with the last things that happened.
pub fn run(plan: Plan) -> Result<Outcome, String> {
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

impl World {
    fn new(plan: Plan) -> Self {
        let mut rng = Rng::with_seed(plan.seed ^ 0x5eed);
        let net = Rc::new(RefCell::new(Net::new(rng.fork())));
        let daemon = Daemon::new(&plan, &mut rng, net.clone());
        let mut model = Model::default();
        model.forgetful = plan.evil;
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
            counts_last: String::new(),
            evictions_last: 0,
        }
    }

    fn live(&mut self) -> Result<(), String> {
        while self.turns < self.plan.turns {
            self.turn()?;
        }
        self.ending = true;
        let until = self.now.after(REST_MAX);
        while !(self.clients.iter().all(Client::is_idle) && self.daemon.serves()) {
            self.turn()?;
            self.before(until, "calls are not over")?;
        }
        self.part()?;
        self.come_to_rest()
    }

    fn before(&self, until: Time, what: &str) -> Result<(), String> {
        if self.now <= until { Ok(()) } else { Err(format!("{what} after {REST_MAX:?}")) }
    }

    // ---- Turns ----

    fn turn(&mut self) -> Result<(), String> {
        self.turns += 1;
        let (due, who) = self.next();
        if due == Time::NEVER {
            return Err(format!("nothing will ever happen again: {}{}", self.counts_last, self.left()));
        }
        self.now = self.now.max(due);
        self.net.borrow_mut().now = self.now;
        match who {
            Who::Daemon => self.turn_daemon()?,
            Who::Movers => self.turn_movers(),
            Who::Client(at) => self.turn_client(at)?,
            Who::Ghost(at) => self.turn_ghost(at),
            Who::Chaos => self.chaos(),
        }
        if self.turns.is_multiple_of(AUDIT_EVERY) {
            self.daemon.audit()?;
        }
        if self.turns.is_multiple_of(JUDGE_EVERY) {
            self.tally.blocks_judged += self.daemon.judge_blocks(&self.model)?;
        }
        Ok(())
    }

    fn next(&self) -> (Time, Who) {
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

    fn turn_daemon(&mut self) -> Result<(), String> {
        let was_down = self.daemon.phase == Phase::Down;
        let alive = self.daemon.turn(self.now, &mut self.rng)?;
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
            (self.evictions_last, self.movers_at) = (0, self.now);
            self.tally.blocks_judged += self.daemon.judge_blocks(&self.model)?;
        }
        self.note_counts()
    }

    fn killed(&mut self) {
        self.tally.kills += 1;
        self.trace.note(self.now, format_args!("daemon is dead"));
        let away = if self.rng.bool() { self.rng.u64(500..5_000) } else { self.rng.u64(5_000..200_000) };
        self.daemon.turn_at = self.now.after(Duration::from_micros(away));
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
        use std::fmt::Write;
        let Some(engine) = &self.daemon.engine else { return Ok(()) };
        let (mut text, mut evictions, mut corrupt) = (String::new(), 0, 0);
        for group in engine.groups() {
            let counts = group.core.counts();
            evictions += counts.evictions;
            corrupt += counts.corrupt;
            write!(text, "{counts:?} {} clients; ", group.clients.len()).expect("a string takes all");
        }
        self.tally.expelled = self.tally.expelled.max(engine.counts().clients_expelled);
        self.tally.evictions += evictions.saturating_sub(self.evictions_last);
        self.evictions_last = evictions;
        self.model.forgetful |= evictions > 0;
        if text != self.counts_last {
            self.trace.note(self.now, format_args!("{text}"));
            self.counts_last = text;
        }
        if corrupt > 0 && !self.plan.evil {
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
        self.chaos_at = self.now.after(Duration::from_micros(self.rng.u64(100..20_000)));
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
                    self.daemon.fuse.light(200);
                }
            }
            _ if self.clients.len() < self.plan.clients => self.start(),
            _ => {}
        }
    }

    fn kill_daemon(&mut self) {
        if self.rng.bool() {
            // In the middle of a later turn.
            let calls = self.rng.u32(1..60);
            self.daemon.fuse.light(calls);
        } else {
            self.daemon.die();
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
        let until = self.now.after(REST_MAX);
        while !self.at_rest() {
            self.turn()?;
            self.before(until, &format!("not at rest: {}{}", self.counts_last, self.left()))?;
        }
        self.daemon.audit()?;
        self.tally.blocks_judged += self.daemon.judge_blocks(&self.model)?;
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
        clients.collect()
    }

    fn at_rest(&self) -> bool {
        let Some(engine) = &self.daemon.engine else { return false };
        let quiet = self.daemon.phase == Phase::Asleep && self.net.borrow().next_event().is_none();
        let clean = engine.groups().iter().all(|group| {
            let counts = group.core.counts();
            group.clients.is_empty() && counts.slots_granted == 0 && counts.slots_aside == 0
        });
        quiet && clean && self.ghosts.is_empty() && !self.movers_wait()
    }
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Daemon,
    Movers,
    Client(usize),
    Ghost(usize),
    Chaos,
}
