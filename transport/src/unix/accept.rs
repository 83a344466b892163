//! Accepting: bounded per wait and per listener, and quiet for a while when descriptors run out.

use std::{
    fs, io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{event::epoll::EventFlags, io::Errno, net::SocketFlags};

use super::conn::{Part, Watch};
use crate::{datagram, hello::ToClient, listen::Listener, peer};

/// How long nothing is accepted after descriptors or memory ran out.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Door {
    listener: Listener,
    open: usize,
    open_max: usize,
}

/// All listeners.
#[derive(Debug)]
pub(super) struct Doors {
    doors: Vec<Door>,
    /// Given up for a moment to accept, and turn away, one connection when there is no descriptor left.
    spare: Option<OwnedFd>,
    paused_until: Option<Instant>,
    payload: Vec<u8>,
}

impl Doors {
    pub(super) fn new() -> Self {
        Self { doors: Vec::new(), spare: spare(), paused_until: None, payload: Vec::new() }
    }

    pub(super) fn add(&mut self, watch: &Watch, listener: Listener, open_max: usize) -> io::Result<usize> {
        let index = self.doors.len();
        watch.add(&listener, Part::Listener, index as u64, EventFlags::IN)?;
        self.doors.push(Door { listener, open: 0, open_max });
        Ok(index)
    }

    /// The next connection of a listener. One above the limit is told so and closed.
    pub(super) fn accept(&mut self, watch: &Watch, index: usize, now: Instant) -> Option<OwnedFd> {
        let door = &mut self.doors[index];
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&door.listener, flags) {
            Ok(socket) if door.open < door.open_max => {
                door.open += 1;
                Some(socket)
            }
            Ok(socket) => {
                let reason = format!("{} connections are open, the limit of this socket", door.open);
                ToClient::Refused { token: 0, reason }.encode(&mut self.payload);
                if let Err(errno) = datagram::send(&socket, &self.payload, &[]) {
                    tracing::debug!(%errno, "a connection above the limit was not told");
                }
                None
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => None,
            Err(errno) => {
                self.turn_away(index, &errno.into());
                self.pause(watch, now);
                None
            }
        }
    }

    /// A connection of this listener ended.
    pub(super) fn closed(&mut self, index: usize) {
        let door = &mut self.doors[index];
        door.open = door.open.checked_sub(1).expect("a connection that was accepted");
    }

    fn turn_away(&mut self, index: usize, error: &io::Error) {
        tracing::warn!(%error, "no connection can be accepted for a moment");
        if peer::is_shortage(error) && self.spare.take().is_some() {
            // Its client sees the hang-up at once instead of waiting in the backlog.
            drop(rustix::net::accept_with(&self.doors[index].listener, SocketFlags::CLOEXEC));
        }
        self.spare = self.spare.take().or_else(spare);
    }

    /// Nothing is accepted for a while: level-triggered events would otherwise keep the loop busy with nothing.
    pub(super) fn pause(&mut self, watch: &Watch, now: Instant) {
        self.paused_until = Some(now + SHORTAGE_PAUSE);
        self.listen(watch, EventFlags::empty());
    }

    /// When to call [`Self::resume`].
    pub(super) fn resume_at(&self) -> Option<Instant> {
        self.paused_until
    }

    pub(super) fn resume(&mut self, watch: &Watch, now: Instant) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.listen(watch, EventFlags::IN);
        }
    }

    fn listen(&self, watch: &Watch, flags: EventFlags) {
        for (index, door) in self.doors.iter().enumerate() {
            if let Err(error) = watch.change(&door.listener, Part::Listener, index as u64, flags) {
                tracing::error!(%error, index, "a listener cannot be paused or resumed");
            }
        }
    }
}

fn spare() -> Option<OwnedFd> {
    fs::File::open("/dev/null").ok().map(OwnedFd::from)
}
