//! What the engine loop needs of the outside world's clients: connections, messages, deaths, doorbells. Implemented by
//! `unix::UnixWire` (epoll over real sockets) and by the simulator.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use crate::hello::{ToClient, ToDaemon};

/// One connection, or one watched process of a former one. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Who is at the other end, by SO_PEERCRED. `start_time` (field 22 of /proc/PID/stat) tells a reused pid apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
    pub start_time: u64,
}

#[derive(Debug)]
pub enum Event {
    /// `listener` is the index of the listening socket, one per group.
    Connected {
        conn: ConnId,
        listener: usize,
        peer: Peer,
    },
    Message {
        conn: ConnId,
        message: ToDaemon,
    },
    /// A message that is no message: the reason is for the peer and for the log. The connection is still open.
    Garbled {
        conn: ConnId,
        reason: String,
    },
    /// The socket hung up: every process that had it closed it.
    HungUp {
        conn: ConnId,
    },
    /// The process itself ended (pidfd).
    Exited {
        conn: ConnId,
    },
    /// Every process that inherited the lifeline ended or closed it.
    LifelineEnded {
        conn: ConnId,
    },
    /// The client rang: its request ring may have frames.
    Doorbell {
        conn: ConnId,
    },
    /// `Waker::wake` was called (a mover has completions, a signal came).
    Woken,
}

/// What a client needs to be woken and to wake, made by `open_doorbells`.
#[derive(Debug)]
pub struct Doorbells {
    /// Rung by the client: an eventfd, to which it writes a `1u64`. The daemon never reads it (it watches for edges): a
    /// client could make it blocking.
    pub to_daemon: OwnedFd,
    /// Rung by the daemon: a pipe's read end, from which the client takes 8 bytes a ring, and end-of-file when the
    /// daemon has hung up or died. No eventfd: a client could make that blocking, fill it, and so stop the daemon in its
    /// write; the two ends of a pipe have their flags apart.
    pub to_client: OwnedFd,
}

pub trait Wire {
    /// Appends what happened. Returns at once if something did, else after `timeout` at the latest (`None`: no limit).
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()>;
    /// Never blocks; a peer that does not read its socket is an error, and the caller hangs up.
    fn send(&mut self, conn: ConnId, message: &ToClient, fds: &[BorrowedFd<'_>]) -> io::Result<()>;
    /// Makes the two doorbells of a connection and watches the daemon's one. The returned ones go to the client.
    fn open_doorbells(&mut self, conn: ConnId) -> io::Result<Doorbells>;
    /// Wakes the client.
    fn ring(&mut self, conn: ConnId);
    /// Watches a lifeline's read end; its descriptor stays the caller's.
    fn watch_lifeline(&mut self, conn: ConnId, lifeline: BorrowedFd<'_>) -> io::Result<()>;
    /// Watches a former client's process and its lifeline after a daemon restart. `Exited` and `LifelineEnded` come as
    /// events, also if they are past already.
    fn watch_former(&mut self, pid: u32, start_time: u64, lifeline: BorrowedFd<'_>) -> io::Result<ConnId>;
    /// Closes the socket and the doorbells; process and lifeline stay watched until `forget`.
    fn hang_up(&mut self, conn: ConnId);
    fn forget(&mut self, conn: ConnId);
}
