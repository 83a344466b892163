//! The thread that a ring belongs to: hands over what is queued, sleeps, watches a bell, takes what has ended. Knows
//! nothing of what the entries do.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use io_uring::{EnterFlags, IoUring, Submitter, cqueue, opcode, squeue, types};

use super::ring::Ring;

/// Names the watch of the bell; what else is named is far below.
const BELL: u64 = u64::MAX;

/// A ring at work. The thread that first calls `take`, `enter` or `wait` is its thread from then on: the kernel refuses
/// others.
pub(crate) struct Issuer<S = squeue::Entry, C = cqueue::Entry>
where
    S: squeue::EntryMarker,
    C: cqueue::EntryMarker,
{
    ring: IoUring<S, C>,
    enabled: bool,
    /// The bell that is being watched.
    bell: Option<RawFd>,
}

impl<S: squeue::EntryMarker, C: cqueue::EntryMarker> Issuer<S, C> {
    pub(crate) fn new(ring: Ring<S, C>) -> Self {
        Self { ring: ring.ring, enabled: ring.enabled, bell: None }
    }

    pub(crate) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    /// Entries that are queued and not handed over; at most one too few, while a bell is watched. `None`: nothing was
    /// ever handed over.
    pub(crate) fn queued(&mut self) -> Option<usize> {
        let bell = usize::from(self.bell.is_some());
        self.enabled.then(|| self.ring.submission().len().saturating_sub(bell))
    }

    /// Queues an entry, which is handed over by `enter` or `wait`. Its user data is below `u64::MAX`.
    ///
    /// # Safety
    /// What the entry names (addresses, descriptors, registered buffers) stays valid until its completion was taken, or
    /// for ever.
    ///
    /// # Panics
    /// If more entries are queued than the ring was set up for.
    pub(crate) unsafe fn push(&mut self, entry: &S) {
        // SAFETY: the caller's.
        unsafe { self.ring.submission().push(entry) }
            .expect("the queue has room for as many entries as it was set up for, and for the bell");
    }

    /// Makes the ring this thread's.
    pub(crate) fn take(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Hands over what is queued and lets the kernel post what has ended; no call if there is neither. A ring that is
    /// polled is told so by `asks`: its kernel looks for what has ended only when it is asked.
    pub(crate) fn enter(&mut self, asks: bool) -> io::Result<()> {
        self.take()?;
        let ring = &mut self.ring;
        let mut asked = false;
        loop {
            let queue = ring.submission();
            let pending = asks || queue.taskrun() || queue.cq_overflow();
            if queue.is_empty() && (asked || !pending) {
                return Ok(());
            }
            drop(queue);
            match ring.submit() {
                // Short of memory: what is queued stays, and the next call takes it.
                Ok(0) if asked => return Ok(()),
                Ok(_) => asked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Has the kernel post what has ended, and hands nothing over.
    pub(crate) fn post(&self) {
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed, nothing is submitted, nothing is waited for.
        let posted = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, flags, None) };
        if let Err(error) = posted {
            // Another thread than the ring's is refused.
            tracing::debug!(%error, "completions of a ring that is given up");
        }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Takes what the kernel has posted: user data, and bytes or an error below zero.
    pub(crate) fn reap(&mut self, mut ended: impl FnMut(u64, i32)) {
        for entry in self.ring.completion() {
            let entry: cqueue::Entry = entry.into();
            match entry.user_data() {
                BELL => self.bell = None,
                user_data => ended(user_data, entry.result()),
            }
        }
    }

    /// Hands over what is queued, then sleeps until something has ended, `bell` is readable or `timeout` is over.
    pub(crate) fn wait(&mut self, bell: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        self.take()?;
        if self.has_ended() {
            return Ok(());
        }
        if self.bell.is_none() {
            self.watch(bell.as_raw_fd());
        }
        assert_eq!(self.bell, Some(bell.as_raw_fd()), "one bell for life");
        let timeout = timeout.map(types::Timespec::from);
        let mut arguments = types::SubmitArgs::new();
        if let Some(timeout) = &timeout {
            arguments = arguments.timespec(timeout);
        }
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Hands over what is queued and sleeps until something has ended, without a bell: for whoever may wait.
    pub(crate) fn submit_and_wait(&mut self) -> io::Result<()> {
        self.take()?;
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn watch(&mut self, bell: RawFd) {
        let entry = opcode::PollAdd::new(types::Fd(bell), libc::POLLIN as u32).build().user_data(BELL);
        // SAFETY: a poll touches no memory of ours; the kernel holds the file that the descriptor is now.
        unsafe { self.push(&S::from(entry)) };
        self.bell = Some(bell);
    }
}
