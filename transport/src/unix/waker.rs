//! Wakes the engine loop out of its wait, from any thread.

use std::{io, os::fd::OwnedFd, sync::Arc};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Waker {
    eventfd: Arc<OwnedFd>,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { eventfd: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?) })
    }

    pub(super) fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }

    /// Makes the wait return with `Event::Woken`, once for any number of calls before it.
    pub fn wake(&self) {
        // AGAIN is the only error that an eventfd of ours has, and means that it is rung already.
        match rustix::io::write(&*self.eventfd, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(errno) => tracing::error!(%errno, "the engine cannot be woken"),
        }
    }

    pub(super) fn rest(&self) {
        match rustix::io::read(&*self.eventfd, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(errno) => tracing::error!(%errno, "the engine cannot rest its waker"),
        }
    }
}
