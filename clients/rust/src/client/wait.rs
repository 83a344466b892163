//! Waiting for completions. One thread leads: it spins a little, then sleeps on the doorbell and takes in whatever comes;
//! all others wait for it. While tickets are out and nobody leads, the watcher does.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec},
    io::Errno,
};

use super::link::Link;
use crate::{ClientError, Session, session};

/// A wake-up between two processors costs about 50 us; a daemon that is awake, or just being woken, answers sooner.
const SPIN: Duration = Duration::from_micros(80);
/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 64;

/// An eventfd of our own.
#[derive(Debug)]
pub(crate) struct Signal(OwnedFd);

impl Signal {
    pub fn new() -> Result<Self, ClientError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags).map_err(|e| ClientError::io("making an eventfd", e))?))
    }

    pub fn raise(&self) {
        // AGAIN: it is raised as high as it goes.
        if let Err(error) = rustix::io::write(&self.0, &1u64.to_ne_bytes())
            && error != Errno::AGAIN
        {
            tracing::error!(%error, "an eventfd of our own cannot be written");
        }
    }

    pub fn lower(&self) {
        let mut count = [0u8; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "an eventfd of our own cannot be read"),
        }
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sleeps until one of the descriptors is readable, hung up, or the time is over. Says which are.
pub(crate) fn sleep<const N: usize>(fds: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> [bool; N] {
    let mut polled = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(_) => polled.map(|fd| !fd.revents().is_empty()),
        Err(_) => [false; N],
    }
}

#[derive(Debug)]
pub(crate) struct Waiters {
    led: Mutex<bool>,
    changed: Condvar,
    /// Wakes the leader.
    kick: Signal,
    /// Wakes the watcher.
    pub nudge: Signal,
    /// For callers that hold tickets.
    pub ready: Signal,
    tickets: AtomicUsize,
}

impl Waiters {
    pub fn new() -> Result<Self, ClientError> {
        Ok(Self {
            led: Mutex::new(false),
            changed: Condvar::new(),
            kick: Signal::new()?,
            nudge: Signal::new()?,
            ready: Signal::new()?,
            tickets: AtomicUsize::new(0),
        })
    }

    /// Returns when something was taken in since the session's event counter read `seen`, or at `until`. Whoever waits for an
    /// answer reads the counter before it looks for that answer.
    pub fn wait(&self, session: &Session, link: &Link, seen: u64, until: Instant) {
        while session.events() == seen {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let mut led = session::lock(&self.led);
            if *led {
                // The leader takes this lock after events rose: what rises after this look is told after we sleep.
                if session.events() == seen {
                    drop(self.changed.wait_timeout(led, left));
                }
                continue;
            }
            *led = true;
            drop(led);
            let taken = self.lead(session, link, seen, left);
            self.step_down(taken);
            if self.tickets.load(Ordering::SeqCst) > 0 {
                self.nudge.raise();
            }
        }
    }

    /// Returns how many completions it took in.
    fn lead(&self, session: &Session, link: &Link, seen: u64, left: Duration) -> usize {
        let Some(mut completions) = session.try_completions() else {
            std::thread::yield_now();
            return 0;
        };
        // Until here others could take completions in, ours or those of threads that sleep because we lead; from here on
        // nobody can.
        if session.events() != seen {
            return 0;
        }
        let spun = Instant::now();
        while spun.elapsed() < SPIN.min(left) {
            for _ in 0..LOOKS {
                if completions.is_ready() || !session.is_connected() {
                    return session.drain(&mut completions);
                }
                std::hint::spin_loop();
            }
            // The daemon may be waiting for this very processor.
            std::thread::yield_now();
        }
        if session.control().falls_asleep(&completions) {
            let [rung, kicked] = sleep([link.doorbell(), self.kick.as_fd()], Some(left));
            if kicked {
                self.kick.lower();
            }
            if rung {
                link.quieten();
            }
        }
        session.control().awake();
        let taken = session.drain(&mut completions);
        if taken == 0 {
            // A false alarm, or the daemon is gone and the watcher is about to say so.
            drop(completions);
            std::thread::yield_now();
        }
        taken
    }

    /// Takes the lead for the watcher, if tickets are out and nobody has it. Says what the session's event counter read
    /// before: what was taken in since then may be what others sleep for, who saw that somebody leads.
    pub fn try_lead(&self, session: &Session) -> Option<u64> {
        let mut led = session::lock(&self.led);
        let take = self.tickets.load(Ordering::SeqCst) > 0 && !*led;
        let seen = session.events();
        *led |= take;
        take.then_some(seen)
    }

    /// Gives up the lead, and tells everybody of what was taken in.
    pub fn step_down(&self, taken: usize) {
        *session::lock(&self.led) = false;
        self.changed.notify_all();
        self.taken_in(taken > 0);
    }

    /// The connection is gone: nobody sleeps on its doorbell any more.
    pub fn alarm(&self) {
        self.kick.raise();
        // The event was counted before: who looked before that sleeps by now, or has not looked yet.
        drop(session::lock(&self.led));
        self.changed.notify_all();
        if self.tickets.load(Ordering::SeqCst) > 0 {
            self.ready.raise();
        }
    }

    /// Somebody took completions in, perhaps others' too: holders of tickets look.
    #[inline]
    pub fn taken_in(&self, any: bool) {
        if any && self.tickets.load(Ordering::SeqCst) > 0 {
            self.ready.raise();
        }
    }

    pub fn ticket_out(&self) {
        if self.tickets.fetch_add(1, Ordering::SeqCst) == 0 {
            self.nudge.raise();
        }
    }

    pub fn ticket_back(&self) {
        if self.tickets.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.nudge.raise();
        }
    }
}
