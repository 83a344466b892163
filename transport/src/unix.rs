//! The daemon's end of all its sockets: one epoll over listeners, connections, processes, doorbells and lifelines.
//!
//! Invariant: no call here blocks on a client, whatever it does to a descriptor that it shares with us: every send and
//! receive says "don't wait" itself, an eventfd that a client has is neither read nor written.
//! Invariant: one wait does a bounded piece of work per connection.

mod accept;
mod conn;
mod waker;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{
        EventfdFlags, Timespec,
        epoll::{self, EventFlags},
        eventfd,
    },
    io::Errno,
    pipe::PipeFlags,
};

pub use self::waker::Waker;
use self::{
    accept::Doors,
    conn::{Conn, Part, Source, Watch},
};
use crate::{
    datagram::{self, Received},
    hello::{ToClient, ToDaemon},
    listen::Listener,
    peer,
    wire::{ConnId, Doorbells, Event, Wire},
};

/// A connection that has said nothing by then is garbled.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(1);
/// Per connection, or per listener, and wait.
const MESSAGES_MAX: usize = 16;
const ACCEPTS_MAX: usize = 16;
/// Per wait.
const EVENTS_MAX: usize = 256;
/// One page: 512 rings that nobody has answered.
const RING_BYTES: usize = 4096;
/// The kernel's clock of a wait ends somewhere; the engine's loop comes round anyway.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// The real [`Wire`].
pub struct UnixWire {
    watch: Watch,
    doors: Doors,
    waker: Waker,
    conns: BTreeMap<u64, Conn>,
    next: u64,
    /// Those that had said nothing when last looked at, oldest first.
    silent: VecDeque<(Instant, u64)>,
    /// Told by the next wait.
    pending: Vec<Event>,
    ready: Vec<epoll::Event>,
    buffer: Vec<u8>,
    payload: Vec<u8>,
}

impl UnixWire {
    pub fn new() -> io::Result<Self> {
        let (watch, waker) = (Watch::new()?, Waker::new()?);
        watch.add(waker.eventfd(), Part::Waker, 0, EventFlags::IN)?;
        Ok(Self {
            watch,
            doors: Doors::new(),
            waker,
            conns: BTreeMap::new(),
            next: 1,
            silent: VecDeque::new(),
            pending: Vec::new(),
            ready: Vec::with_capacity(EVENTS_MAX),
            buffer: datagram::buffer(),
            payload: Vec::new(),
        })
    }

    /// Serves one more socket, with at most `connections_max` open at once. Returns its index in `Event::Connected`.
    pub fn listen(&mut self, listener: Listener, connections_max: usize) -> io::Result<usize> {
        self.doors.add(&self.watch, listener, connections_max)
    }

    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn dispatch(&mut self, event: epoll::Event, now: Instant, events: &mut Vec<Event>) {
        let Source { part, id } = Source::of(&event);
        let conn = ConnId(id);
        match part {
            Part::Listener => self.accept(id as usize, now, events),
            Part::Waker => {
                self.waker.rest();
                events.push(Event::Woken);
            }
            Part::Socket => self.receive(id, events),
            Part::Doorbell if self.conns.get(&id).is_some_and(|conn| conn.to_daemon.is_some()) => {
                events.push(Event::Doorbell { conn });
            }
            Part::Process => {
                if let Some(fd) = self.conns.get_mut(&id).and_then(|conn| conn.process.take()) {
                    self.watch.close(Some(fd));
                    events.push(Event::Exited { conn });
                }
            }
            Part::Lifeline => {
                let Some(watched) = self.conns.get_mut(&id) else { return };
                let Some(fd) = watched.lifeline.take() else { return };
                let hidden = std::mem::take(&mut watched.hidden);
                self.watch.close(Some(fd));
                events.push(Event::LifelineEnded { conn });
                events.extend(hidden.then_some(Event::Exited { conn }));
            }
            Part::Doorbell => {}
        }
    }

    fn accept(&mut self, index: usize, now: Instant, events: &mut Vec<Event>) {
        for _ in 0..ACCEPTS_MAX {
            let Some(socket) = self.doors.accept(&self.watch, index, now) else { return };
            if let Err(error) = self.connected(index, socket, now, events) {
                tracing::warn!(%error, "a connection was dropped");
                self.doors.closed(index);
                self.doors.pause(&self.watch, now);
                return;
            }
        }
    }

    fn connected(&mut self, index: usize, socket: OwnedFd, now: Instant, events: &mut Vec<Event>) -> io::Result<()> {
        let id = self.next;
        let peer = peer::of(socket.as_fd())?;
        let process = peer::process(socket.as_fd(), peer)?;
        let mut conn = Conn { listener: Some(index), ..Conn::default() };
        self.watch.add(&socket, Part::Socket, id, EventFlags::IN | EventFlags::RDHUP)?;
        conn.socket = Some(socket);
        let ended = match conn.watch_process(&self.watch, id, process) {
            Ok(ended) => ended,
            Err(error) => {
                conn.close(&self.watch);
                return Err(error);
            }
        };
        self.next += 1;
        self.conns.insert(id, conn);
        self.silent.push_back((now + HANDSHAKE_MAX, id));
        events.push(Event::Connected { conn: ConnId(id), listener: index, peer });
        if ended {
            self.pending.push(Event::Exited { conn: ConnId(id) });
        }
        Ok(())
    }

    fn receive(&mut self, id: u64, events: &mut Vec<Event>) {
        let conn = ConnId(id);
        for _ in 0..MESSAGES_MAX {
            let Some(open) = self.conns.get_mut(&id) else { return };
            let Some(socket) = &open.socket else { return };
            match datagram::receive(socket, &mut self.buffer) {
                Ok(Received::Bytes(bytes)) => {
                    open.spoke = true;
                    events.push(match ToDaemon::decode(&self.buffer[..bytes]) {
                        Ok(message) => Event::Message { conn, message },
                        Err(error) => Event::Garbled { conn, reason: reason(&error) },
                    });
                }
                Ok(Received::Nothing) => return,
                Ok(Received::HungUp) => return self.hung_up(id, events),
                Err(errno) => {
                    tracing::warn!(%errno, id, "a socket failed: taken for a hang-up");
                    return self.hung_up(id, events);
                }
            }
        }
    }

    fn hung_up(&mut self, id: u64, events: &mut Vec<Event>) {
        events.push(Event::HungUp { conn: ConnId(id) });
        self.close_wires(id, events);
    }

    fn close_wires(&mut self, id: u64, events: &mut Vec<Event>) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if let (true, Some(listener)) = (conn.socket.is_some(), conn.listener) {
            self.doors.closed(listener);
        }
        conn.close_wires(&self.watch);
        if conn.lifeline.is_none() && std::mem::take(&mut conn.hidden) {
            events.push(Event::Exited { conn: ConnId(id) });
        }
    }

    /// Tells of connections that said nothing for too long, and forgets those that need not be watched for it.
    fn end_silence(&mut self, now: Instant, events: &mut Vec<Event>) {
        while let Some((deadline, id)) = self.silent.front().copied() {
            let waits = self.conns.get_mut(&id).filter(|conn| !conn.spoke && conn.socket.is_some());
            if deadline > now && waits.is_some() {
                return;
            }
            if let Some(conn) = waits {
                conn.spoke = true;
                let reason = format!("nothing said within {HANDSHAKE_MAX:?} of connecting");
                events.push(Event::Garbled { conn: ConnId(id), reason });
            }
            self.silent.pop_front();
        }
    }

    /// How long the kernel may wait: until the caller's limit or our own next deadline.
    fn wait_max(&self, timeout: Option<Duration>, now: Instant) -> Duration {
        let deadlines = [self.silent.front().map(|(deadline, _)| *deadline), self.doors.resume_at()];
        let next = deadlines.into_iter().flatten().min().map(|at| at.saturating_duration_since(now));
        timeout.unwrap_or(WAIT_MAX).min(next.unwrap_or(WAIT_MAX)).min(WAIT_MAX)
    }

    fn open(&mut self, conn: ConnId) -> io::Result<&mut Conn> {
        let open = self.conns.get_mut(&conn.0).filter(|open| open.socket.is_some());
        open.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection is closed"))
    }
}

/// An error with its causes, in one line.
fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Wire for UnixWire {
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout = if self.pending.is_empty() { timeout } else { Some(Duration::ZERO) };
        events.append(&mut self.pending);
        let wait = self.wait_max(timeout, Instant::now());
        let wait = Timespec::try_from(wait).expect("at most an hour");
        self.ready.clear();
        match epoll::wait(self.watch.epoll(), rustix::buffer::spare_capacity(&mut self.ready), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let (now, ready) = (Instant::now(), std::mem::take(&mut self.ready));
        for event in &ready {
            self.dispatch(*event, now, events);
        }
        self.ready = ready;
        self.end_silence(now, events);
        self.doors.resume(&self.watch, now);
        events.append(&mut self.pending);
        Ok(())
    }

    fn send(&mut self, conn: ConnId, message: &ToClient, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut payload = std::mem::take(&mut self.payload);
        message.encode(&mut payload);
        let sent = self.open(conn).and_then(|open| {
            let socket = open.socket.as_ref().expect("`open` looked");
            datagram::send(socket, &payload, fds).map_err(io::Error::from)
        });
        self.payload = payload;
        sent
    }

    fn open_doorbells(&mut self, conn: ConnId) -> io::Result<Doorbells> {
        self.open(conn)?;
        let to_daemon = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (to_client, ring) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        rustix::pipe::fcntl_setpipe_size(&ring, RING_BYTES)?;
        let theirs = to_daemon.try_clone()?;
        // Edges: each write of the client is one, and nothing has to be read for the next.
        self.watch.add(&to_daemon, Part::Doorbell, conn.0, EventFlags::IN | EventFlags::ET)?;
        let open = self.conns.get_mut(&conn.0).expect("`open` looked");
        open.ring = Some(ring);
        self.watch.close(open.to_daemon.replace(to_daemon));
        Ok(Doorbells { to_daemon: theirs, to_client })
    }

    fn ring(&mut self, conn: ConnId) {
        let Some(ring) = self.conns.get(&conn.0).and_then(|conn| conn.ring.as_ref()) else { return };
        match rustix::io::write(ring, &1u64.to_ne_bytes()) {
            // AGAIN: full of rings, so the client is awake. PIPE: it is going; its other ends will tell.
            Ok(_) | Err(Errno::AGAIN | Errno::PIPE | Errno::INTR) => {}
            Err(errno) => tracing::warn!(%errno, conn = conn.0, "a client cannot be rung"),
        }
    }

    fn watch_lifeline(&mut self, conn: ConnId, lifeline: BorrowedFd<'_>) -> io::Result<()> {
        let watched = self.conns.get_mut(&conn.0);
        let watched = watched.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "no such connection"))?;
        watched.watch_lifeline(&self.watch, conn.0, lifeline.try_clone_to_owned()?)
    }

    fn watch_former(&mut self, pid: u32, start_time: u64, lifeline: BorrowedFd<'_>) -> io::Result<ConnId> {
        let id = self.next;
        let lifeline = lifeline.try_clone_to_owned()?;
        let mut conn = Conn { spoke: true, ..Conn::default() };
        let watched = peer::former(pid, start_time)
            .and_then(|process| conn.watch_process(&self.watch, id, process))
            .and_then(|ended| conn.watch_lifeline(&self.watch, id, lifeline).map(|()| ended));
        match watched {
            Ok(ended) => {
                self.next += 1;
                self.conns.insert(id, conn);
                self.pending.extend(ended.then_some(Event::Exited { conn: ConnId(id) }));
                Ok(ConnId(id))
            }
            Err(error) => {
                conn.close(&self.watch);
                Err(error)
            }
        }
    }

    fn hang_up(&mut self, conn: ConnId) {
        let mut events = std::mem::take(&mut self.pending);
        self.close_wires(conn.0, &mut events);
        self.pending = events;
    }

    fn forget(&mut self, conn: ConnId) {
        self.hang_up(conn);
        if let Some(forgotten) = self.conns.remove(&conn.0) {
            forgotten.close(&self.watch);
        }
        self.pending.retain(|event| !matches!(event, Event::Exited { conn: of } if *of == conn));
    }
}
