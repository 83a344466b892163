//! A simulated process with the real session in it: it connects, comes back, puts, gets, views, reserves, sleeps on its
//! doorbell, stalls, and dies.

mod holdings;

use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use lapis_arena::{Access, Mapping};
use lapis_client::{Hint, Pool, Pools, Session, Verify, Wait, session::Welcome};
use lapis_config::{Key, Time};
use lapis_transport::{
    control,
    frame::Request,
    hello::{ToClient, ToDaemon},
    wire::ConnId,
};

use self::holdings::{Filling, Held};
use super::{
    evil,
    jobs::{After, Call, Job},
    model::Model,
    net::{Net, Pid, Received},
    plan::Plan,
    trace::Trace,
    world::Tally,
};

/// Head and hazards: what tells the daemon of this client.
const TOLD_BYTES: usize = control::HAZARDS_OFFSET + 4 * lapis_config::HAZARDS;
const JOBS_MAX: usize = 4;
/// Reservations that a fair client has.
const FILLING_MAX: usize = 2;

/// What a turn works with.
pub struct Context<'a> {
    pub now: Time,
    pub who: u32,
    pub rng: &'a mut Rng,
    pub net: &'a mut Net,
    pub model: &'a mut Model,
    pub trace: &'a mut Trace,
    pub tally: &'a mut Tally,
    pub plan: &'a Plan,
    /// Nothing new is begun.
    pub ending: bool,
}

impl Context<'_> {
    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.note(self.now, format_args!("{} {what}", self.who));
    }

    pub fn percent(&mut self, percent: u32) -> bool {
        self.rng.u32(..100) < percent
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    Good,
    /// Its socket does not let it put.
    Reads,
    /// Forgets about everything for a while.
    Stalls,
    Evil,
    /// Its uid is not among the group's.
    Foreign,
}

enum Link {
    Down {
        again: Time,
    },
    /// `pools`: so many are open, and so many asked for.
    Greeting {
        conn: ConnId,
        welcome: Option<Welcome>,
        fresh: Option<Arc<Session>>,
        pools: usize,
        asked: usize,
    },
    Up {
        conn: ConnId,
    },
}

pub struct Client {
    pub pid: Pid,
    pub manners: Manners,
    group: usize,
    link: Link,
    /// Of the connection, and of the time since it last stalled.
    epoch: u64,
    pub session: Option<Arc<Session>>,
    /// Its memory shared with the daemon, mapped once more.
    pub control: Option<Mapping>,
    list: Pools,
    pub pools: Vec<Pool>,
    jobs: Vec<Job>,
    views: Vec<Held>,
    filling: Vec<Filling>,
    gots: Vec<u64>,
    asleep: bool,
    stalled_until: Time,
    pub turn_at: Time,
}

impl Client {
    pub fn start(net: &mut Net, pid: Pid, manners: Manners, group: usize, now: Time) -> Self {
        net.start_process(pid);
        let list = Pools::default();
        let pools = Plan::shapes().iter().map(|shape| list.add(shape).expect("sound shapes")).collect();
        Self {
            pid,
            manners,
            group,
            link: Link::Down { again: now },
            epoch: 0,
            session: None,
            control: None,
            list,
            pools,
            jobs: Vec::new(),
            views: Vec::new(),
            filling: Vec::new(),
            gots: Vec::new(),
            asleep: false,
            stalled_until: Time(0),
            turn_at: now,
        }
    }

    pub fn conn(&self) -> Option<ConnId> {
        match &self.link {
            Link::Down { .. } => None,
            Link::Greeting { conn, .. } | Link::Up { conn } => Some(*conn),
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// When it is to have a turn.
    pub fn due(&self, net: &Net) -> Time {
        if self.stalled_until >= self.turn_at {
            return self.stalled_until;
        }
        self.conn().and_then(|conn| net.next_for(conn)).map_or(self.turn_at, |at| at.min(self.turn_at))
    }

    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.filling.is_empty()
    }

    pub fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        self.connect(cx);
        self.hear(cx)?;
        if self.is_up() {
            self.wake(cx)?;
        }
        self.step_jobs(cx)?;
        self.look_at_views(cx)?;
        self.fill(cx);
        if self.manners == Manners::Evil && self.is_up() {
            evil::act(self, cx);
        }
        if !cx.ending && self.jobs.len() < JOBS_MAX && self.session.is_some() && cx.percent(60) {
            self.begin(cx)?;
        }
        if let (Some(session), Link::Up { conn }) = (&self.session, &self.link)
            && session.must_ring()
        {
            cx.net.ring_daemon(*conn);
        }
        self.rest(cx);
        Ok(())
    }

    // ---- The connection ----

    fn connect(&mut self, cx: &mut Context<'_>) {
        let Link::Down { again } = self.link else { return };
        if cx.now < again {
            return;
        }
        let uid = if self.manners == Manners::Foreign { 4242 } else { 1000 };
        let Some(conn) = cx.net.connect(self.pid, uid, self.group) else {
            self.link = Link::Down { again: cx.now.after(Duration::from_micros(cx.rng.u64(1_000..50_000))) };
            return;
        };
        let resume = self.session.as_ref().and_then(|session| session.resume());
        cx.note(format_args!("hello, resumes {:?}", resume.as_ref().map(|r| (r.client, r.writing.len()))));
        let (may_put, writes_by_dma) = (self.manners != Manners::Reads, cx.percent(20));
        let name = format!("sim {}", self.pid.pid);
        cx.net.send(conn, &ToDaemon::Hello { resume, name, may_put, writes_by_dma, gpus: false });
        self.link = Link::Greeting { conn, welcome: None, fresh: None, pools: 0, asked: 0 };
    }

    fn hear(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        while let Some(conn) = self.conn() {
            match cx.net.receive(conn) {
                Received::Nothing => break,
                Received::Message(message, fds) => self.told(cx, message, fds)?,
                Received::HungUp => {
                    cx.note(format_args!("hears the hang-up"));
                    cx.net.close(conn);
                    self.lost(cx);
                }
            }
        }
        Ok(())
    }

    fn lost(&mut self, cx: &mut Context<'_>) {
        if let (Link::Up { .. }, Some(session)) = (&self.link, &self.session) {
            session.lost();
        }
        self.epoch += 1;
        self.gots.clear();
        self.asleep = false;
        // Somebody who is not let in does not ask all the time.
        let pause = if self.is_up() { cx.rng.u64(100..5_000) } else { cx.rng.u64(1_000..200_000) };
        self.link = Link::Down { again: cx.now.after(Duration::from_micros(pause)) };
    }

    fn told(&mut self, cx: &mut Context<'_>, message: ToClient, fds: Vec<OwnedFd>) -> Result<(), String> {
        if let ToClient::Refused { token, reason } = &message {
            cx.note(format_args!("refused: {reason}"));
            let well = matches!(self.manners, Manners::Good | Manners::Reads);
            let expelled = reason.contains("expelled") && !cx.plan.is_calm();
            // Clients of evil ones' host may meet full tables of clients.
            let crowded = reason.contains("limit");
            if well && *token == 0 && !expelled && !crowded {
                return Err(format!("a well-behaved client is refused: {reason}"));
            }
            if *token != 0 && self.manners != Manners::Evil {
                return Err(format!("a pool is refused: {reason}"));
            }
            return Ok(());
        }
        match &mut self.link {
            Link::Greeting { .. } => self.greeted(cx, message, fds),
            Link::Up { .. } => match message {
                ToClient::Extents { first, extents_bytes } => {
                    let session = self.session.as_ref().expect("up");
                    session.add_extents(first, &extents_bytes, &fds).map_err(|error| format!("extents: {error}"))
                }
                ToClient::Recall { pool } => {
                    self.session.as_ref().expect("up").recalled(pool);
                    Ok(())
                }
                // An evil client asks for pools at any time.
                ToClient::Pool { .. } if self.manners == Manners::Evil => Ok(()),
                message => Err(format!("a message that does not belong here: {message:?}")),
            },
            Link::Down { .. } => Ok(()),
        }
    }

    fn greeted(&mut self, cx: &mut Context<'_>, message: ToClient, fds: Vec<OwnedFd>) -> Result<(), String> {
        let Link::Greeting { conn, welcome, fresh, pools, asked } = &mut self.link else { return Ok(()) };
        let text = |error: lapis_client::ClientError| format!("in the handshake: {error}");
        match message {
            ToClient::Welcome { .. } => {
                if self.manners == Manners::Foreign {
                    return Err("a foreign uid is welcome".into());
                }
                let said = Welcome::of(message).expect("it is one");
                let same = self.session.as_ref().is_some_and(|former| said.resumed && said.client == former.client());
                cx.note(format_args!("welcome as {:?}, resumed {same}", said.client));
                if !same {
                    let mut fds = fds.into_iter();
                    let mut next = || fds.next().ok_or("a welcome without its descriptors");
                    let (table, shared, _, _, lifeline) = (next()?, next()?, next()?, next()?, next()?);
                    let mapping = Mapping::shared(shared.as_fd(), control::BYTES, Access::ReadWrite);
                    self.control = Some(mapping.map_err(|error| error.to_string())?);
                    let former = self.session.as_deref();
                    let (table, shared) = (table.as_fd(), shared.as_fd());
                    let opened = Session::open(&said, table, shared, Some(lifeline), Some(Verify::Crossings), former);
                    *fresh = Some(Arc::new(opened.map_err(text)?));
                }
                *welcome = Some(said);
            }
            ToClient::Extents { first, extents_bytes } => {
                let session = fresh.as_ref().or(self.session.as_ref()).ok_or("extents before the welcome")?;
                session.add_extents(first, &extents_bytes, &fds).map_err(text)?;
            }
            ToClient::Recall { pool } => {
                if let Some(session) = &self.session {
                    session.recalled(pool);
                }
                return Ok(());
            }
            // What an evil client asked in between.
            ToClient::Pool { token, .. } if token != *pools as u64 + 1 => return Ok(()),
            ToClient::Pool { pool, slot_bytes, .. } => {
                let session = fresh.as_ref().ok_or("a pool for a resumed client")?;
                session.pool_opened(&self.pools[*pools], pool, slot_bytes);
                *pools += 1;
            }
            message => return Err(format!("{message:?} in the handshake")),
        }
        let Some(said) = welcome.as_ref() else { return Ok(()) };
        let session = fresh.clone().or(self.session.clone()).expect("welcome");
        if session.extents() < said.geometry.extents_bytes.len() {
            return Ok(());
        }
        if fresh.is_some() && *pools < self.list.all().len() {
            if *asked == *pools {
                let shape = self.pools[*pools].shape().clone();
                *asked += 1;
                cx.net.send(*conn, &ToDaemon::OpenPool { token: *asked as u64, shape });
            }
            return Ok(());
        }
        let conn = *conn;
        if let Some(fresh) = fresh.take() {
            if let Some(former) = self.session.replace(fresh) {
                former.retire();
            }
        } else if !session.resumed(said) {
            return Err("a welcome as somebody else".into());
        }
        self.epoch += 1;
        self.link = Link::Up { conn };
        cx.note(format_args!("is up"));
        Ok(())
    }

    // ---- Work ----

    /// Takes answers in. Whoever sleeps and has one must have been rung.
    fn wake(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        let (Some(session), Link::Up { conn }) = (&self.session, &self.link) else { return Ok(()) };
        let rung = cx.net.has_bell(*conn) || cx.net.is_cut(*conn);
        cx.net.take_bell(*conn);
        let slept = std::mem::take(&mut self.asleep);
        if slept {
            session.awake();
        }
        let taken = session.poll();
        if slept && taken > 0 && !rung && self.manners != Manners::Evil {
            return Err(format!("client {} slept over {taken} answers: nobody rang", self.pid.pid));
        }
        Ok(())
    }

    fn step_jobs(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        let epoch = self.is_up().then_some(self.epoch).filter(|_| self.manners != Manners::Evil);
        for mut job in std::mem::take(&mut self.jobs) {
            match job.step(cx, epoch)? {
                None => self.jobs.push(job),
                Some(After::Nothing) => {}
                Some(After::Got(token)) => self.gots.push(token),
                Some(After::Reserved { reservation, keys, table, pool }) => {
                    self.hold_reservation(cx, reservation, keys, (table, pool));
                }
            }
        }
        if cx.percent(30)
            && let (Some(token), Some(session)) = (self.gots.pop(), &self.session)
        {
            session.post(Request::Release { token });
        }
        Ok(())
    }

    fn begin(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        let session = self.session.clone().expect("asked before");
        let pool = cx.rng.usize(..self.pools.len());
        let deadline = Duration::from_micros(match cx.rng.u32(..4) {
            0 => cx.rng.u64(2_000..20_000),
            1 => cx.rng.u64(20_000..200_000),
            _ => 1_000_000,
        });
        let handle = &self.pools[pool];
        let call = Call { session: &session, group: self.group, handle, pool, deadline, epoch: self.epoch };
        let keys = cx.plan.chain(cx.rng);
        let from = if cx.percent(30) { cx.rng.usize(..keys.len()) } else { 0 };
        let (keys, parent) = (keys[from..].to_vec(), from.checked_sub(1).map(|at| keys[at]));
        let objects = pool == 2;
        if cx.percent(cx.plan.removes) {
            let job = if cx.percent(5) { call.purge(cx) } else { call.remove(cx, keys) };
            return self.go_on(cx, job, deadline);
        }
        if cx.percent(cx.plan.holds) {
            let pools = if pool < 2 && cx.rng.bool() { &self.pools[..2] } else { &self.pools[pool..=pool] };
            let wait = if cx.rng.bool() { Wait::Absent } else { Wait::Filling };
            let job = call.wait(cx, pools, keys, wait);
            return self.go_on(cx, job, deadline);
        }
        if cx.plan.hosts > 0 && cx.percent(5) {
            let job = call.offer(cx, keys);
            return self.go_on(cx, job, deadline);
        }
        if !objects && self.may_put() && cx.percent(cx.plan.puts) {
            let job = call.put(cx, keys, parent);
            return self.go_on(cx, Some(job), deadline);
        }
        let job = match cx.rng.u32(..92) {
            0..30 if !objects => {
                let wait = [Wait::Present, Wait::Present, Wait::Filling, Wait::Absent][cx.rng.usize(..4)];
                Some(call.get(cx, keys, wait))
            }
            30..55 if !objects => self.may_put().then(|| call.put(cx, keys, parent)),
            0..70 if self.may_put() && self.is_fair(cx.plan) => {
                // Many classes of sizes share little memory badly.
                let any = objects && !cx.plan.is_calm();
                let bytes = if any { cx.rng.u64(16..=handle.block_bytes()) } else { handle.block_bytes() };
                // Objects have no parents, but by their order in a batch.
                let keys = if objects { keys[..1].to_vec() } else { keys };
                Some(call.reserve(cx, keys, parent.filter(|_| !objects), bytes))
            }
            70..88 => {
                self.view(cx, &session, pool, &keys)?;
                None
            }
            88..92 => {
                self.hint(cx, &session, pool, keys);
                None
            }
            _ => None,
        };
        self.go_on(cx, job, deadline)
    }

    fn go_on(&mut self, cx: &mut Context<'_>, job: Option<Job>, deadline: Duration) -> Result<(), String> {
        if let Some(mut job) = job {
            cx.note(format_args!("begins {} within {} us", job.name(), deadline.as_micros()));
            let stands = self.is_up().then_some(self.epoch).filter(|_| self.manners != Manners::Evil);
            match job.step(cx, stands)? {
                None => self.jobs.push(job),
                Some(After::Reserved { reservation, keys, table, pool }) => {
                    self.hold_reservation(cx, reservation, keys, (table, pool));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Who gives slots back that it still writes can hurt others of its group: no evil one puts in earnest.
    fn may_put(&self) -> bool {
        !matches!(self.manners, Manners::Reads | Manners::Evil)
    }

    /// Whether it may reserve: slots that nobody fills keep memory from all others, and fair ones fill what they have first.
    fn is_fair(&self, plan: &Plan) -> bool {
        !plan.is_calm() || self.filling.len() < FILLING_MAX
    }

    fn hint(&self, cx: &mut Context<'_>, session: &Session, pool: usize, keys: Vec<Key>) {
        let Some(pool) = session.pool_id(&self.pools[pool]) else { return };
        let hint = match cx.rng.u32(..4) {
            0 => Hint::Ended,
            1 => Hint::WillReturn,
            2 => Hint::Pinned { ttl_ms: cx.rng.u32(..100) },
            _ => Hint::Priority(cx.rng.u8(..)),
        };
        session.post(if cx.rng.bool() {
            Request::HintKeys { pool, hint, keys }
        } else {
            Request::Prefetch { pool, keys }
        });
    }

    // ---- Rest and death ----

    fn rest(&mut self, cx: &mut Context<'_>) {
        if self.manners == Manners::Stalls && cx.percent(2) && !cx.ending {
            self.stalled_until = cx.now.after(Duration::from_micros(cx.rng.u64(20_000..1_500_000)));
            self.epoch += 1;
            cx.note(format_args!("stalls"));
            return;
        }
        let pause = cx.plan.pace * if cx.percent(90) { cx.rng.u64(5..400) } else { cx.rng.u64(400..20_000) };
        self.turn_at = cx.now.after(Duration::from_micros(pause));
        let due = self.jobs.iter().map(|job| job.due(cx.now)).min();
        if let Some(due) = due {
            self.turn_at = self.turn_at.min(due);
        }
        if let (Some(session), true) = (&self.session, self.is_up() && cx.percent(50)) {
            if session.falls_asleep() {
                self.asleep = true;
                let nap = cx.now.after(Duration::from_micros(cx.rng.u64(100..50_000)));
                self.turn_at = due.map_or(nap, |due| due.min(nap));
            } else {
                session.awake();
            }
        }
        if let Link::Down { again } = self.link {
            self.turn_at = self.turn_at.min(again);
        }
    }

    /// Everything of it goes at once, as after SIGKILL: what it told the daemon in shared memory stays as it was.
    pub fn vanish(self) {
        let control = self.control.clone();
        let told = control.as_ref().map(|control| control.to_vec(0, TOLD_BYTES));
        drop(self);
        if let (Some(control), Some(told)) = (control, told) {
            control.copy_in(0, &told);
        }
    }

    /// An orderly end.
    pub fn leave(mut self, net: &mut Net) {
        let (pid, conn) = (self.pid, self.conn().filter(|_| self.is_up()));
        self.views.clear();
        self.jobs.clear();
        self.filling.clear();
        let ring = self.session.as_ref().is_some_and(|session| session.must_ring());
        drop(self);
        if let Some(conn) = conn {
            if ring {
                net.ring_daemon(conn);
            }
            net.send(conn, &ToDaemon::Bye);
        }
        net.end_process(pid, false);
    }
}
