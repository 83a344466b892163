//! What goes wrong: kills, crashes, forks, devices that go, power that fails.

use std::time::Duration;

use lapis_ssd::faulty::Faults;

use super::{
    super::{
        client::{Client, Manners},
        daemon::Phase,
        net::Pid,
        operator::Operator,
    },
    PIDS, World,
};

/// A number that no client has.
const OPERATOR: u32 = 50;

impl World {
    pub(super) fn chaos(&mut self) {
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
                    // Nobody catches a kill here.
                    self.daemon.fuse.light(0);
                    engine.drain();
                    // The loop goes on after it, as after any call of the daemon's own.
                    engine.set_sleeping(false);
                    self.daemon.phase = Phase::Awake { idle: 0 };
                    self.daemon.turn_at = self.now;
                    self.daemon.fuse.light(200);
                }
            }
            6 if self.plan.kills && self.plan.hosts > 0 && self.rng.u32(..4) == 0 => self.start_operator(),
            _ if self.clients.len() < self.plan.clients => self.start(),
            _ => {}
        }
    }

    fn chaos_of_devices(&mut self) {
        let Some(engine) = &mut self.daemon.engine else { return };
        let at = self.rng.usize(..self.plan.devices);
        if let Some(device) = engine.movers_mut().device(self.now, at).filter(|device| device.hung() > 0)
            && self.rng.u32(..4) == 0
        {
            device.release_hung();
            self.trace.note(self.now, format_args!("device {at}: what hung goes on"));
        }
        if !self.plan.vanish || self.rng.u32(..4) > 0 {
            return;
        }
        let gone = &mut self.daemon.gone[at];
        *gone = !*gone;
        self.trace.note(self.now, format_args!("device {at} is gone: {gone}"));
        // A link that is down, or a device that the kernel has no more.
        let (movers, pulled, blank) = (engine.movers_mut(), self.rng.bool(), self.rng.bool());
        if *gone && pulled {
            movers.pull(self.now, at);
        } else if *gone || !movers.plug(at, blank) {
            let Some(device) = movers.device(self.now, at) else { return };
            if *gone { device.vanish() } else { device.come_back() }
        }
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

    /// Blocks are handed over, maybe by two at once.
    fn start_operator(&mut self) {
        for _ in 0..self.rng.u32(1..3) {
            self.started += 1;
            let pid = Pid { pid: OPERATOR, start_time: self.started };
            let within = Duration::from_micros(self.rng.u64(..500_000));
            let (net, life) = (&mut self.net.borrow_mut(), self.daemon.lives);
            self.operators.extend(Operator::start(net, pid, within, self.now, life));
        }
        self.trace.note(self.now, format_args!("{} drain the host", self.operators.len()));
    }

    pub(super) fn turn_operator(&mut self, at: usize) -> Result<(), String> {
        let life = self.daemon.engine.is_some().then_some(self.daemon.lives);
        let Some(report) = self.operators[at].turn(&mut self.net.borrow_mut(), self.now, life)? else { return Ok(()) };
        self.trace.note(self.now, format_args!("the drain is over: {report:?}"));
        self.operators.swap_remove(at);
        if let Some(report) = report {
            self.tally.drains += 1;
            self.tally.drained += report.moved;
        }
        Ok(())
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
    pub(super) fn turn_ghost(&mut self, at: usize) {
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

    pub(super) fn killed(&mut self) {
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

    /// Devices do nothing wrong any more; some of those that hang go on doing so.
    pub(super) fn heal(&mut self) {
        self.daemon.faults = Faults { latency_us: 20..200, ..Faults::NONE };
        self.set_faults();
        let releases = self.rng.u32(..10) < 7;
        self.daemon.gone.fill(false);
        let Some(engine) = &mut self.daemon.engine else { return };
        for at in 0..self.plan.devices {
            if engine.movers_mut().plug(at, false) {
                continue;
            }
            let Some(device) = engine.movers_mut().device(self.now, at) else { continue };
            device.come_back();
            if releases {
                device.release_hung();
            }
        }
    }

    /// From now on devices do wrong what their plan says, and take as long.
    pub(super) fn set_faults(&mut self) {
        let Some(engine) = &mut self.daemon.engine else { return };
        engine.movers_mut().set_faults(self.now, &self.daemon.faults);
    }
}
