//! One connection as the daemon holds it, and what of it is watched.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::event::epoll::{self, EventData, EventFlags};

use crate::peer::Process;

/// What an event of the epoll belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Part {
    Socket,
    Process,
    Doorbell,
    Lifeline,
    Listener,
    Waker,
}

const PARTS: [Part; 6] = [Part::Socket, Part::Process, Part::Doorbell, Part::Lifeline, Part::Listener, Part::Waker];

/// Of the connection, or of the listener, with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) part: Part,
    pub(super) id: u64,
}

impl Source {
    fn data(self) -> EventData {
        EventData::new_u64(self.id << 3 | self.part as u64)
    }

    pub(super) fn of(event: &epoll::Event) -> Self {
        let data = event.data.u64();
        Self { part: PARTS[(data & 7) as usize], id: data >> 3 }
    }
}

/// The set of what is watched.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: OwnedFd,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    pub(super) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    pub(super) fn add(&self, fd: impl AsFd, part: Part, id: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, Source { part, id }.data(), flags)?)
    }

    pub(super) fn change(&self, fd: impl AsFd, part: Part, id: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, Source { part, id }.data(), flags)?)
    }

    /// Ends the watch and closes. Closing alone would not do: a client that has the same eventfd would keep it watched.
    pub(super) fn close(&self, fd: Option<OwnedFd>) {
        let Some(fd) = fd else { return };
        if let Err(errno) = epoll::delete(&self.epoll, &fd) {
            tracing::error!(%errno, "a descriptor was not watched");
        }
    }
}

/// Invariant: every descriptor here but `ring` is in the epoll.
#[derive(Debug, Default)]
pub(super) struct Conn {
    /// Which listener it came from; none for a former client's process.
    pub(super) listener: Option<usize>,
    pub(super) socket: Option<OwnedFd>,
    /// The client has said something, or was told that it has not.
    pub(super) spoke: bool,
    pub(super) to_daemon: Option<OwnedFd>,
    /// Write end of the pipe that wakes the client.
    pub(super) ring: Option<OwnedFd>,
    pub(super) process: Option<OwnedFd>,
    pub(super) lifeline: Option<OwnedFd>,
    /// The process cannot be watched: the end of its lifeline, or of its socket if it has none, stands in for it.
    pub(super) hidden: bool,
}

impl Conn {
    /// Begins the watch of a process. True if it has ended already.
    pub(super) fn watch_process(&mut self, watch: &Watch, id: u64, process: Process) -> io::Result<bool> {
        match process {
            Process::Watched(fd) => {
                watch.add(&fd, Part::Process, id, EventFlags::IN)?;
                self.process = Some(fd);
            }
            Process::Ended => return Ok(true),
            Process::Hidden => self.hidden = true,
        }
        Ok(false)
    }

    pub(super) fn watch_lifeline(&mut self, watch: &Watch, id: u64, lifeline: OwnedFd) -> io::Result<()> {
        // No flags: only the hang-up is told. A client that writes into its lifeline wakes nobody.
        watch.add(&lifeline, Part::Lifeline, id, EventFlags::empty())?;
        watch.close(self.lifeline.replace(lifeline));
        Ok(())
    }

    pub(super) fn close_wires(&mut self, watch: &Watch) {
        watch.close(self.socket.take());
        watch.close(self.to_daemon.take());
        self.ring = None;
    }

    pub(super) fn close(mut self, watch: &Watch) {
        self.close_wires(watch);
        watch.close(self.process.take());
        watch.close(self.lifeline.take());
    }
}
