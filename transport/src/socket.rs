//! A client's end of the socket.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
};

use crate::{
    datagram::{self, Received},
    error::TransportError,
    hello::{ToClient, ToDaemon},
};

/// How long a connect or a send may take: longer than any daemon that still serves anyone.
const PATIENCE: Duration = Duration::from_secs(1);

/// Connects to the daemon that serves `path`.
pub fn connect(path: &Path) -> Result<ClientSocket, TransportError> {
    Ok(ClientSocket { socket: connected(path)?, buffer: datagram::buffer(), payload: Vec::new() })
}

/// A connection to the daemon. It may be polled (`AsFd`): readable means a message or a hang-up.
#[derive(Debug)]
pub struct ClientSocket {
    socket: OwnedFd,
    buffer: Vec<u8>,
    payload: Vec<u8>,
}

impl ClientSocket {
    pub fn send(&mut self, message: &ToDaemon) -> Result<(), TransportError> {
        message.encode(&mut self.payload);
        send_patiently(&self.socket, &self.payload, &[])
    }

    /// The next message and its descriptors; `None` if there is none within `timeout`.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<(ToClient, Vec<OwnedFd>)>, TransportError> {
        let mut fds = Vec::new();
        match receive_by(&self.socket, Instant::now() + timeout, &mut self.buffer, &mut fds)? {
            Some(bytes) => Ok(Some((ToClient::decode(&self.buffer[..bytes])?, fds))),
            None => Ok(None),
        }
    }

    /// True if the daemon has closed the connection or died. What it sent before may still be received.
    pub fn has_hung_up(&self) -> bool {
        datagram::has_hung_up(&self.socket)
    }
}

impl AsFd for ClientSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A connected socket of ours. Waits at most [`PATIENCE`] for room in the other side's backlog.
pub(crate) fn connected(path: &Path) -> Result<OwnedFd, TransportError> {
    let failed = |op| move |errno: Errno| TransportError::Path { op, path: path.to_owned(), source: errno.into() };
    let address = SocketAddrUnix::new(path).map_err(failed("name a socket"))?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(TransportError::io("make a socket"))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))
        .map_err(TransportError::io("prepare a socket"))?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok(socket),
        Err(Errno::AGAIN) => Err(TransportError::TimedOut { after: PATIENCE }),
        Err(errno) => Err(failed("connect to")(errno)),
    }
}

/// Sends, waiting for room as long as is decent.
pub(crate) fn send_patiently(socket: &OwnedFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), TransportError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match datagram::send(socket, message, fds) {
            Ok(()) => return Ok(()),
            Err(Errno::PIPE) => return Err(TransportError::HungUp),
            Err(Errno::AGAIN) if wait_for(socket, PollFlags::OUT, deadline)? => {}
            Err(Errno::AGAIN) => return Err(TransportError::TimedOut { after: PATIENCE }),
            Err(errno) => return Err(TransportError::Io { op: "send", source: errno.into() }),
        }
    }
}

/// Receives one datagram; `None` if there is none by the deadline.
pub(crate) fn receive_by(
    socket: &OwnedFd,
    deadline: Instant,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Option<usize>, TransportError> {
    loop {
        match datagram::receive_with(socket, buffer, fds).map_err(TransportError::io("receive"))? {
            Received::Bytes(bytes) => return Ok(Some(bytes)),
            Received::HungUp => return Err(TransportError::HungUp),
            Received::Nothing if wait_for(socket, PollFlags::IN, deadline)? => {}
            Received::Nothing => return Ok(None),
        }
    }
}

/// False if the deadline came first.
fn wait_for(socket: &OwnedFd, flags: PollFlags, deadline: Instant) -> Result<bool, TransportError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match rustix::event::poll(&mut [PollFd::new(socket, flags)], timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(TransportError::Io { op: "wait for the other side", source: errno.into() }),
        }
    }
}
