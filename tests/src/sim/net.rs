//! Sockets, doorbells, lifelines and processes of the simulated host. Messages and events take a seeded while; those of
//! one connection keep their order.
//!
//! Lifelines are real pipes: whoever holds the write end decides, as in life.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use fastrand::Rng;
use lapis_config::Time;
use lapis_transport::{
    hello::{ToClient, ToDaemon},
    wire::{ConnId, Doorbells, Event, Peer, Wire},
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::kill::Fuse;

/// Messages that a client may leave unread; then its socket is full.
const INBOX_MAX: usize = 12;

/// A simulated process: its number, and when it started, for numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pid {
    pub pid: u32,
    pub start_time: u64,
}

/// What a client finds on its socket.
pub enum Received {
    Nothing,
    Message(ToClient, Vec<OwnedFd>),
    HungUp,
}

/// A message and its descriptors.
type Datagram = (ToClient, Vec<OwnedFd>);

#[derive(Default)]
struct Wired {
    owner: Option<Pid>,
    client_open: bool,
    daemon_open: bool,
    watches_process: bool,
    lifeline: Option<OwnedFd>,
    /// When the daemon accepts it: it hears of nothing before.
    accepted: u64,
    /// When the last thing sent arrives, at either end: nothing overtakes it.
    last_to_daemon: u64,
    last_to_client: u64,
    /// `None` is the hang-up.
    inbox: VecDeque<(u64, Option<Datagram>)>,
    bell: Option<u64>,
}

pub struct Net {
    rng: Rng,
    pub now: Time,
    number: u64,
    listening: bool,
    to_daemon: BTreeMap<(u64, u64), Event>,
    conns: BTreeMap<ConnId, Wired>,
    /// Whether a process, and one that it forked, live.
    processes: BTreeMap<Pid, (bool, bool)>,
    doorbell: OwnedFd,
}

impl Net {
    pub fn new(rng: Rng) -> Self {
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
        Self {
            rng,
            now: Time(0),
            number: 0,
            listening: false,
            to_daemon: BTreeMap::new(),
            conns: BTreeMap::new(),
            processes: BTreeMap::new(),
            doorbell,
        }
    }

    /// Mostly what a wake-up costs, sometimes what a loaded machine makes of it.
    fn delay_us(&mut self) -> u64 {
        match self.rng.u32(..100) {
            0..80 => self.rng.u64(1..100),
            80..98 => self.rng.u64(100..2_000),
            _ => self.rng.u64(2_000..20_000),
        }
    }

    fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn tell_daemon(&mut self, event: Event) {
        let accepted = match &event {
            Event::Exited { conn } => self.conns.get(conn).map_or(0, |wired| wired.accepted),
            _ => 0,
        };
        let due = (self.now.0 + self.delay_us()).max(accepted);
        let number = self.number();
        self.to_daemon.insert((due, number), event);
    }

    /// Like `tell_daemon`, after all that was sent on the connection before.
    fn tell_in_order(&mut self, conn: ConnId, event: Event) {
        let delay = self.delay_us();
        let number = self.number();
        let wired = self.conns.get_mut(&conn).expect("a connection that was made");
        let due = (self.now.0 + delay).max(wired.last_to_daemon);
        wired.last_to_daemon = due;
        self.to_daemon.insert((due, number), event);
    }

    fn tell_client(&mut self, conn: ConnId, what: Option<Datagram>) {
        let delay = self.delay_us();
        let wired = self.conns.get_mut(&conn).expect("a connection that was made");
        let due = (self.now.0 + delay).max(wired.last_to_client);
        wired.last_to_client = due;
        wired.inbox.push_back((due, what));
    }

    // ---- The daemon's life ----

    pub fn daemon_starts(&mut self) {
        self.listening = true;
    }

    pub fn daemon_died(&mut self) {
        self.listening = false;
        self.to_daemon.clear();
        let open: Vec<ConnId> = self.conns.iter().filter(|(_, w)| w.daemon_open).map(|(conn, _)| *conn).collect();
        for conn in open {
            self.tell_client(conn, None);
        }
        for wired in self.conns.values_mut() {
            (wired.daemon_open, wired.watches_process, wired.lifeline) = (false, false, None);
        }
        self.conns.retain(|_, wired| wired.client_open);
    }

    /// When the daemon hears of something, at the earliest.
    pub fn next_event(&self) -> Option<Time> {
        self.to_daemon.first_key_value().map(|((due, _), _)| Time(*due))
    }

    /// A mover is done.
    pub fn wake_daemon(&mut self) {
        self.tell_daemon(Event::Woken);
    }

    // ---- Processes ----

    pub fn start_process(&mut self, pid: Pid) {
        self.processes.insert(pid, (true, false));
    }

    /// The process ends by SIGKILL; `child`: one that it had forked lives on with all its descriptors.
    pub fn end_process(&mut self, pid: Pid, child: bool) {
        self.processes.insert(pid, (false, child));
        let watched = self.of(pid, |wired| std::mem::take(&mut wired.watches_process));
        for conn in watched {
            self.tell_daemon(Event::Exited { conn });
        }
        if !child {
            self.close_all(pid);
        }
    }

    pub fn end_child(&mut self, pid: Pid) {
        self.processes.insert(pid, (false, false));
        self.close_all(pid);
    }

    fn close_all(&mut self, pid: Pid) {
        for conn in self.of(pid, |wired| wired.client_open) {
            self.close(conn);
        }
        self.look_at_lifelines();
    }

    fn of(&mut self, pid: Pid, mut which: impl FnMut(&mut Wired) -> bool) -> Vec<ConnId> {
        let of_pid = self.conns.iter_mut().filter(|(_, wired)| wired.owner == Some(pid));
        of_pid.filter_map(|(conn, wired)| which(wired).then_some(*conn)).collect()
    }

    /// To be called when write ends may have been closed.
    pub fn look_at_lifelines(&mut self) {
        let mut ended = Vec::new();
        for (conn, wired) in &mut self.conns {
            let hung = wired.lifeline.as_ref().is_some_and(|fd| {
                let mut fds = [PollFd::new(fd, PollFlags::IN)];
                poll(&mut fds, Some(&Default::default())).expect("poll of a pipe");
                fds[0].revents().contains(PollFlags::HUP)
            });
            if hung {
                wired.lifeline = None;
                ended.push(*conn);
            }
        }
        for conn in ended {
            self.tell_daemon(Event::LifelineEnded { conn });
        }
    }

    // ---- The client's ends ----

    /// A new connection; `None` if nobody listens.
    pub fn connect(&mut self, owner: Pid, uid: u32, listener: usize) -> Option<ConnId> {
        if !self.listening {
            return None;
        }
        let conn = ConnId(self.number());
        let wired = Wired {
            owner: Some(owner),
            client_open: true,
            daemon_open: true,
            watches_process: true,
            ..Wired::default()
        };
        self.conns.insert(conn, wired);
        let peer = Peer { pid: owner.pid, uid, gid: uid, start_time: owner.start_time };
        self.tell_in_order(conn, Event::Connected { conn, listener, peer });
        let wired = self.conns.get_mut(&conn).expect("just made");
        wired.accepted = wired.last_to_daemon;
        Some(conn)
    }

    pub fn send(&mut self, conn: ConnId, message: &ToDaemon) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.send_bytes(conn, &bytes);
    }

    pub fn send_bytes(&mut self, conn: ConnId, bytes: &[u8]) {
        if !self.conns.get(&conn).is_some_and(|wired| wired.daemon_open) {
            return;
        }
        let event = match ToDaemon::decode(bytes) {
            Ok(message) => Event::Message { conn, message },
            Err(error) => Event::Garbled { conn, reason: error.to_string() },
        };
        self.tell_in_order(conn, event);
    }

    pub fn receive(&mut self, conn: ConnId) -> Received {
        let now = self.now.0;
        let Some(wired) = self.conns.get_mut(&conn) else { return Received::HungUp };
        match wired.inbox.front() {
            Some((due, _)) if *due <= now => match wired.inbox.pop_front().expect("looked at above").1 {
                Some((message, fds)) => Received::Message(message, fds),
                None => Received::HungUp,
            },
            _ => Received::Nothing,
        }
    }

    /// When the client hears of something on its socket or doorbell.
    pub fn next_for(&self, conn: ConnId) -> Option<Time> {
        let wired = self.conns.get(&conn)?;
        let message = wired.inbox.front().map(|(due, _)| *due);
        message.into_iter().chain(wired.bell).min().map(Time)
    }

    pub fn close(&mut self, conn: ConnId) {
        let Some(wired) = self.conns.get_mut(&conn) else { return };
        wired.client_open = false;
        wired.inbox.clear();
        if wired.daemon_open {
            self.tell_in_order(conn, Event::HungUp { conn });
        } else if !wired.watches_process && wired.lifeline.is_none() {
            self.conns.remove(&conn);
        }
    }

    pub fn ring_daemon(&mut self, conn: ConnId) {
        if self.conns.get(&conn).is_some_and(|wired| wired.daemon_open) {
            self.tell_daemon(Event::Doorbell { conn });
        }
    }

    /// Whether the daemon has rung; quiet afterwards.
    pub fn take_bell(&mut self, conn: ConnId) -> bool {
        let now = self.now.0;
        let Some(wired) = self.conns.get_mut(&conn) else { return false };
        wired.bell.take_if(|due| *due <= now).is_some()
    }

    /// Whether the daemon's end is closed, also if that is still on its way: the doorbell tells of it, too.
    pub fn is_cut(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_none_or(|wired| !wired.daemon_open)
    }

    /// Whether the daemon has rung, also if that is still on its way.
    pub fn has_bell(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|wired| wired.bell.is_some())
    }

    // ---- The daemon's ends ----

    fn hang_up(&mut self, conn: ConnId) {
        let Some(wired) = self.conns.get_mut(&conn) else { return };
        if !std::mem::take(&mut wired.daemon_open) {
            return;
        }
        let client_open = wired.client_open;
        self.to_daemon.retain(|_, event| match event {
            Event::Message { conn: of, .. }
            | Event::Garbled { conn: of, .. }
            | Event::HungUp { conn: of }
            | Event::Doorbell { conn: of } => *of != conn,
            _ => true,
        });
        if client_open {
            self.tell_client(conn, None);
        }
    }

    fn forget(&mut self, conn: ConnId) {
        self.hang_up(conn);
        let about = |event: &Event| match event {
            Event::Exited { conn } | Event::LifelineEnded { conn } => Some(*conn),
            _ => None,
        };
        self.to_daemon.retain(|_, event| about(event) != Some(conn));
        if let Some(wired) = self.conns.get_mut(&conn) {
            (wired.watches_process, wired.lifeline) = (false, None);
            if !wired.client_open {
                self.conns.remove(&conn);
            }
        }
    }

    /// Connections that the daemon still watches in any way.
    pub fn watched(&self) -> usize {
        self.conns.values().filter(|w| w.daemon_open || w.watches_process || w.lifeline.is_some()).count()
    }
}

/// The engine's end of the host.
pub struct SimWire {
    pub net: Rc<RefCell<Net>>,
    pub fuse: Fuse,
}

impl SimWire {
    fn watch_lifeline_of(&self, conn: ConnId, lifeline: BorrowedFd<'_>) -> io::Result<()> {
        let mut net = self.net.borrow_mut();
        let wired = net.conns.get_mut(&conn).ok_or(io::ErrorKind::NotConnected)?;
        wired.lifeline = Some(lifeline.try_clone_to_owned()?);
        net.look_at_lifelines();
        Ok(())
    }
}

impl Wire for SimWire {
    fn wait(&mut self, _timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.fuse.burn();
        let mut net = self.net.borrow_mut();
        let after = (net.now.0 + 1, 0);
        let later = net.to_daemon.split_off(&after);
        let due = std::mem::replace(&mut net.to_daemon, later);
        events.extend(due.into_values());
        Ok(())
    }

    fn send(&mut self, conn: ConnId, message: &ToClient, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.fuse.burn();
        let mut net = self.net.borrow_mut();
        let wired = net.conns.get(&conn).filter(|wired| wired.daemon_open).ok_or(io::ErrorKind::NotConnected)?;
        if !wired.client_open {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if wired.inbox.len() >= INBOX_MAX {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let fds = fds.iter().map(|fd| fd.try_clone_to_owned()).collect::<io::Result<_>>()?;
        net.tell_client(conn, Some((message.clone(), fds)));
        drop(net);
        self.fuse.burn();
        Ok(())
    }

    fn open_doorbells(&mut self, conn: ConnId) -> io::Result<Doorbells> {
        self.fuse.burn();
        let net = self.net.borrow();
        net.conns.get(&conn).filter(|wired| wired.daemon_open).ok_or(io::ErrorKind::NotConnected)?;
        let copy = || net.doorbell.as_fd().try_clone_to_owned();
        Ok(Doorbells { to_daemon: copy()?, to_client: copy()? })
    }

    fn ring(&mut self, conn: ConnId) {
        self.fuse.burn();
        let mut net = self.net.borrow_mut();
        let due = net.now.0 + net.delay_us();
        if let Some(wired) = net.conns.get_mut(&conn) {
            wired.bell = Some(wired.bell.map_or(due, |earlier| earlier.min(due)));
        }
    }

    fn watch_lifeline(&mut self, conn: ConnId, lifeline: BorrowedFd<'_>) -> io::Result<()> {
        self.fuse.burn();
        self.watch_lifeline_of(conn, lifeline)
    }

    fn watch_former(&mut self, pid: u32, start_time: u64, lifeline: BorrowedFd<'_>) -> io::Result<ConnId> {
        self.fuse.burn();
        let owner = Pid { pid, start_time };
        let conn = {
            let mut net = self.net.borrow_mut();
            let conn = ConnId(net.number());
            let alive = net.processes.get(&owner).is_some_and(|(alive, _)| *alive);
            let wired = Wired { owner: Some(owner), watches_process: alive, ..Wired::default() };
            net.conns.insert(conn, wired);
            if !alive {
                net.tell_daemon(Event::Exited { conn });
            }
            conn
        };
        self.watch_lifeline_of(conn, lifeline)?;
        Ok(conn)
    }

    fn hang_up(&mut self, conn: ConnId) {
        self.fuse.burn();
        self.net.borrow_mut().hang_up(conn);
    }

    fn forget(&mut self, conn: ConnId) {
        self.fuse.burn();
        self.net.borrow_mut().forget(conn);
    }
}
