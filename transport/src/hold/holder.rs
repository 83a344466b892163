//! The process that keeps descriptors and does nothing else.
//!
//! Invariant: descriptors are handed out only to the owner, and there is a new owner only when the former one's process
//! has ended. That its connection ended proves nothing.
//! Invariant: no connection, whatever it sends or fails to read, ends the holder or holds it up.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::SocketFlags,
    process::{Resource, Rlimit},
};

use super::message::{Answer, Ask};
use crate::{
    datagram::{self, Received},
    error::TransportError,
    hello::MESSAGE_FDS_MAX,
    listen::Listener,
    peer::{self, Process},
    wire::Peer,
};

/// Most descriptors kept.
pub const KEPT_MAX: usize = 8192;
const CLIENTS_MAX: usize = 16;
/// How often the stop flag is looked at.
const STOP_LOOK: Duration = Duration::from_millis(250);
/// Per connection and turn.
const MESSAGES_MAX: usize = 64;

#[derive(Debug)]
struct Client {
    id: u64,
    socket: OwnedFd,
    peer: Peer,
    process: Process,
    /// Token of a `Take` that waits for the owner's end.
    waits: Option<u32>,
}

/// The process that has the descriptors.
#[derive(Debug)]
struct Owner {
    client: u64,
    pid: u32,
    process: Process,
}

/// `lapis hold`.
#[derive(Debug)]
pub struct Holder {
    listener: Listener,
    clients: Vec<Client>,
    next: u64,
    owner: Option<Owner>,
    kept: BTreeMap<String, OwnedFd>,
    kept_max: usize,
    buffer: Vec<u8>,
    payload: Vec<u8>,
}

impl Holder {
    /// Serves `path` (mode 0600) until `stop` is set, which is noticed within a quarter of a second. What was kept is
    /// gone then.
    pub fn serve(path: &Path, stop: &AtomicBool) -> Result<(), TransportError> {
        Self::bind(path)?.run(stop)
    }

    pub fn bind(path: &Path) -> Result<Self, TransportError> {
        let files_max = raise_files_max();
        let room = usize::try_from(files_max).unwrap_or(usize::MAX).saturating_sub(4 * CLIENTS_MAX);
        Ok(Self {
            listener: Listener::bind(path, 0o600)?,
            clients: Vec::new(),
            next: 1,
            owner: None,
            kept: BTreeMap::new(),
            kept_max: room.min(KEPT_MAX),
            buffer: datagram::buffer(),
            payload: Vec::new(),
        })
    }

    pub fn run(&mut self, stop: &AtomicBool) -> Result<(), TransportError> {
        while !stop.load(Ordering::Relaxed) {
            let ready = self.wait()?;
            if ready.listener {
                self.accept();
            }
            for id in ready.clients {
                self.serve_client(id);
            }
            self.serve_waiting();
        }
        Ok(())
    }

    fn wait(&self) -> Result<Ready, TransportError> {
        let waiting = self.clients.iter().any(|client| client.waits.is_some());
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(self.clients.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN)));
        // The owner's end matters only to those who wait for it, and stays readable for ever.
        if let (true, Some(Owner { process: Process::Watched(pidfd), .. })) = (waiting, &self.owner) {
            fds.push(PollFd::new(pidfd, PollFlags::IN));
        }
        let timeout = Timespec::try_from(STOP_LOOK).expect("a quarter of a second");
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(TransportError::Io { op: "wait for connections", source: errno.into() }),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let clients = self.clients.iter().zip(&fds[1..]).filter(|(_, fd)| ready(fd)).map(|(client, _)| client.id);
        Ok(Ready { listener: ready(&fds[0]), clients: clients.collect() })
    }

    fn accept(&mut self) {
        let socket = match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(errno) => {
                tracing::warn!(%errno, "a connection cannot be accepted");
                // The backlog stays readable: without a pause this would be a busy loop.
                std::thread::sleep(Duration::from_millis(100));
                return;
            }
        };
        let known = peer::of(socket.as_fd()).and_then(|peer| Ok((peer, peer::process(socket.as_fd(), peer)?)));
        let (peer, process) = match known {
            Ok(known) => known,
            Err(error) => return tracing::warn!(%error, "a connection was dropped"),
        };
        if peer.uid != 0 && peer.uid != rustix::process::geteuid().as_raw() {
            return tracing::warn!(pid = peer.pid, uid = peer.uid, "a connection of another user was dropped");
        }
        if self.clients.len() == CLIENTS_MAX {
            return tracing::warn!(pid = peer.pid, "{CLIENTS_MAX} connections are open: one more was dropped");
        }
        self.clients.push(Client { id: self.next, socket, peer, process, waits: None });
        self.next += 1;
    }

    fn serve_client(&mut self, id: u64) {
        for _ in 0..MESSAGES_MAX {
            match self.serve_message(id) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::info!(%error, "a connection ended");
                    self.clients.retain(|client| client.id != id);
                    return;
                }
            }
        }
    }

    /// False if there is no message.
    fn serve_message(&mut self, id: u64) -> Result<bool, TransportError> {
        let Some(client) = self.clients.iter().find(|client| client.id == id) else { return Ok(false) };
        let mut fds = Vec::new();
        let received = datagram::receive_with(&client.socket, &mut self.buffer, &mut fds);
        let bytes = match received.map_err(TransportError::io("receive"))? {
            Received::Bytes(bytes) => bytes,
            Received::Nothing => return Ok(false),
            Received::HungUp => return Err(TransportError::HungUp),
        };
        match Ask::decode(&self.buffer[..bytes]) {
            Ok((token, ask)) => self.answer_ask(id, token, ask, fds)?,
            Err(error) => self.answer(id, 0, &Answer::Refused { reason: error.to_string() }, 0..0)?,
        }
        Ok(true)
    }

    fn answer_ask(&mut self, id: u64, token: u32, ask: Ask, mut fds: Vec<OwnedFd>) -> Result<(), TransportError> {
        let answer = match ask {
            Ask::Take { first } => return self.take(id, token, first),
            _ if !self.is_owner(id) => refused("take the descriptors first: only their owner keeps more"),
            Ask::Keep { name } => match (fds.pop(), fds.len()) {
                (Some(fd), 0) => self.keep(name, fd),
                _ => refused("one descriptor goes with each name"),
            },
            Ask::Forget { name } => {
                self.kept.remove(&name);
                Answer::Done
            }
        };
        self.answer(id, token, &answer, 0..0)
    }

    fn keep(&mut self, name: String, fd: OwnedFd) -> Answer {
        if self.kept.len() >= self.kept_max && !self.kept.contains_key(&name) {
            return refused(&format!("{} descriptors are kept, the limit", self.kept.len()));
        }
        self.kept.insert(name, fd);
        Answer::Done
    }

    fn is_owner(&self, id: u64) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.client == id)
    }

    fn take(&mut self, id: u64, token: u32, first: u32) -> Result<(), TransportError> {
        match self.owner_other_than(id) {
            Some(pid) => {
                self.client(id).waits = Some(token);
                self.answer(id, token, &Answer::Held { pid }, 0..0)
            }
            None => self.hand_out(id, token, first as usize),
        }
    }

    /// The pid of a living owner that is another process than this client.
    fn owner_other_than(&self, id: u64) -> Option<u32> {
        let owner = self.owner.as_ref()?;
        let client = self.clients.iter().find(|client| client.id == id)?;
        let lives = match &owner.process {
            Process::Watched(pidfd) => !peer::has_ended(pidfd.as_fd()),
            Process::Ended => false,
            // All that can be seen of it is its connection.
            Process::Hidden => self.clients.iter().any(|client| client.id == owner.client),
        };
        let same = owner.client == id || (owner.pid != 0 && owner.pid == client.peer.pid);
        (lives && !same).then_some(owner.pid)
    }

    fn hand_out(&mut self, id: u64, token: u32, first: usize) -> Result<(), TransportError> {
        if !self.is_owner(id) {
            let client = self.client(id);
            client.waits = None;
            let pid = client.peer.pid;
            let process = match &client.process {
                Process::Watched(fd) => {
                    Process::Watched(fd.try_clone().map_err(|source| TransportError::Io { op: "watch", source })?)
                }
                Process::Ended => Process::Ended,
                Process::Hidden => Process::Hidden,
            };
            tracing::info!(pid, kept = self.kept.len(), "a daemon takes the descriptors");
            self.owner = Some(Owner { client: id, pid, process });
        }
        let first = first.min(self.kept.len());
        let last = (first + MESSAGE_FDS_MAX).min(self.kept.len());
        let names = self.kept.keys().take(last).skip(first).cloned().collect();
        self.answer(id, token, &Answer::Batch { total: self.kept.len() as u32, names }, first..last)
    }

    fn serve_waiting(&mut self) {
        let waiting = self.clients.iter().find_map(|client| Some((client.id, client.waits?)));
        let Some((id, token)) = waiting else { return };
        if self.owner_other_than(id).is_none()
            && let Err(error) = self.hand_out(id, token, 0)
        {
            tracing::warn!(%error, "a daemon went before it had its descriptors");
            self.clients.retain(|client| client.id != id);
        }
    }

    /// Sends an answer, with the descriptors of this range of names. A daemon that does not read is given up.
    fn answer(
        &mut self,
        id: u64,
        token: u32,
        answer: &Answer,
        kept: std::ops::Range<usize>,
    ) -> Result<(), TransportError> {
        answer.encode(token, &mut self.payload);
        let fds: Vec<_> = self.kept.values().take(kept.end).skip(kept.start).map(AsFd::as_fd).collect();
        let client = self.clients.iter().find(|client| client.id == id).expect("it was found before");
        datagram::send(&client.socket, &self.payload, &fds).map_err(TransportError::io("answer"))
    }

    fn client(&mut self, id: u64) -> &mut Client {
        self.clients.iter_mut().find(|client| client.id == id).expect("it was found before")
    }
}

struct Ready {
    listener: bool,
    clients: Vec<u64>,
}

fn refused(reason: &str) -> Answer {
    Answer::Refused { reason: reason.to_owned() }
}

/// As many open files as the hard limit allows; returns how many that are.
fn raise_files_max() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(errno) => {
            tracing::warn!(%errno, "the limit of open files cannot be raised");
            limit.current.unwrap_or(u64::MAX)
        }
    }
}
