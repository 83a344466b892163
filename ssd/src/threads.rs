//! The device by pread and pwrite in threads: for hosts that forbid io_uring.
//!
//! Invariant: what a thread is at, memory and file included, is owned by that thread: a call that never returns keeps
//! them, and nobody waits for it.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec},
    fs::FallocateFlags,
    io::Errno,
};

use crate::{
    SsdError,
    device::{Completion, Device, DeviceFile, Io, IoKind, Waits, transfer},
};

/// Threads of one device, unless said otherwise. A thread is an operation under way: 32 of 1 MiB keep an NVMe device
/// busy.
pub const THREADS_DEFAULT: usize = 32;

/// See the module's head.
pub struct Threads {
    shared: Arc<Shared>,
    bytes: u64,
    depth: usize,
    threads: usize,
    /// Submitted since the last kick.
    staged: Vec<Io>,
    under_way: usize,
}

struct Shared {
    file: DeviceFile,
    work: Mutex<Work>,
    arrived: Condvar,
    ended: Mutex<Vec<Completion>>,
    /// Readable while `ended` may hold something.
    any_ended: OwnedFd,
}

#[derive(Default)]
struct Work {
    queue: VecDeque<Io>,
    /// Threads that are at an operation.
    busy: usize,
    closed: bool,
}

/// What a thread does with an operation; another one in tests.
type CarryOut = dyn Fn(&DeviceFile, &Io) -> io::Result<()> + Send + Sync;

impl Threads {
    /// Starts up to `threads` threads of a device that takes `depth` operations at once.
    pub fn start(file: DeviceFile, depth: usize, threads: usize) -> Result<Self, SsdError> {
        Self::start_with(file, depth, threads, Arc::new(carry_out))
    }

    fn start_with(file: DeviceFile, depth: usize, threads: usize, carry_out: Arc<CarryOut>) -> Result<Self, SsdError> {
        assert!(depth > 0 && threads > 0, "a device that takes nothing");
        let (path, bytes) = (file.path().to_owned(), file.bytes());
        let failed = |source| SsdError::Thread { path: path.clone(), source };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let any_ended = rustix::event::eventfd(0, flags).map_err(|e| failed(e.into()))?;
        let (work, arrived, ended) = Default::default();
        let shared = Arc::new(Shared { file, work, arrived, ended, any_ended });
        // Made first: if a thread cannot be started, dropping it ends the others.
        let threads = threads.min(depth);
        let device = Self { shared, bytes, depth, threads, staged: Vec::with_capacity(depth), under_way: 0 };
        for index in 0..threads {
            let (shared, carry_out) = (Arc::clone(&device.shared), Arc::clone(&carry_out));
            let thread = thread::Builder::new().name(format!("lapis-io-{index}"));
            thread.spawn(move || serve(&shared, &*carry_out)).map_err(failed)?;
        }
        Ok(device)
    }
}

impl Device for Threads {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, io: Io) -> Result<(), Io> {
        if self.under_way == self.depth {
            return Err(io);
        }
        self.under_way += 1;
        match io.check(self.bytes) {
            Ok(()) => self.staged.push(io),
            Err(error) => self.shared.end(Completion { id: io.id, result: Err(error) }),
        }
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        let count = self.staged.len();
        if count > 0 {
            locked(&self.shared.work).queue.extend(self.staged.drain(..));
            (0..count.min(self.threads)).for_each(|_| self.shared.arrived.notify_one());
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let mut ended = locked(&self.shared.ended);
        if ended.is_empty() {
            return Ok(());
        }
        self.under_way -= ended.len();
        out.append(&mut ended);
        // With the lock held: what ends from now on makes it readable again.
        match rustix::io::read(&self.shared.any_ended, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Waits for Threads {
    fn wait(&mut self, bell: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let ended = self.shared.any_ended.as_fd();
        let mut fds = [ended, bell].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Threads {
    /// What has not begun never does. What has begun goes on, and keeps the lock until its end.
    fn drop(&mut self) {
        let mut work = locked(&self.shared.work);
        work.closed = true;
        work.queue.clear();
        if work.busy == 0 {
            self.shared.file.unlock();
        }
        drop(work);
        self.shared.arrived.notify_all();
    }
}

impl Shared {
    fn end(&self, completion: Completion) {
        let mut ended = locked(&self.ended);
        ended.push(completion);
        if ended.len() == 1
            && let Err(error) = rustix::io::write(&self.any_ended, &1u64.to_ne_bytes())
        {
            // Only a counter that is full refuses, and that one is readable.
            tracing::debug!(%error, "signalling a completion");
        }
    }
}

/// A thread's life.
fn serve(shared: &Shared, carry_out: &CarryOut) {
    let mut work = locked(&shared.work);
    loop {
        if let Some(io) = work.queue.pop_front() {
            work.busy += 1;
            drop(work);
            let result = carry_out(&shared.file, &io);
            let id = io.id;
            // The memory is the submitter's again before it hears of it.
            drop(io);
            work = locked(&shared.work);
            work.busy -= 1;
            if work.closed && work.busy == 0 {
                shared.file.unlock();
            }
            drop(work);
            shared.end(Completion { id, result });
            work = locked(&shared.work);
        } else if work.closed {
            return;
        } else {
            work = shared.arrived.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn carry_out(file: &DeviceFile, io: &Io) -> io::Result<()> {
    match (io.kind, &io.memory) {
        (IoKind::Read, Some(memory)) => transfer::read(file.as_fd(), io.offset, memory),
        (IoKind::Write, Some(memory)) => transfer::write(file.as_fd(), io.offset, memory),
        (IoKind::Flush, _) => rustix::fs::fdatasync(file).map_err(io::Error::from),
        (IoKind::Discard, _) if file.discards() => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A hint: a device that has no such command is none the worse.
            if let Err(error) = rustix::fs::fallocate(file, flags, io.offset, io.bytes) {
                tracing::debug!(%error, path = %file.path().display(), "a discard was refused");
            }
            Ok(())
        }
        (IoKind::Discard, _) => Ok(()),
        (IoKind::Read | IoKind::Write, None) => unreachable!("checked when it was submitted"),
    }
}

/// No panic happens with a lock held; if one ever does, queue and results are still whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use lapis_arena::Mapping;

    use super::*;
    use crate::device::{IoId, Memory};

    #[test]
    fn a_hung_operation_keeps_its_memory_and_the_lock_and_nobody_waits() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let (begun, begins) = mpsc::channel();
        let (answer, hung) = mpsc::channel::<()>();
        let hung = Mutex::new(hung);
        let hang: Arc<CarryOut> = Arc::new(move |_: &DeviceFile, io: &Io| {
            begun.send(io.memory.clone()).expect("the test listens");
            locked(&hung).recv().map_err(io::Error::other)
        });
        let file = DeviceFile::open(&path, Some(1 << 20)).expect("room");
        let mut device = Threads::start_with(file, 1, THREADS_DEFAULT, hang).expect("threads");
        let mapping = Mapping::anonymous(4096).expect("memory");
        device.submit(Io::read(IoId(1), 0, Memory::new(&mapping, 0, 4096))).expect("room for one");
        device.kick().expect("threads");
        begins.recv().expect("it begins").expect("a read has memory");
        let shared = Arc::downgrade(&device.shared);
        drop(device);
        assert!(matches!(DeviceFile::open(&path, Some(1 << 20)), Err(SsdError::Locked { .. })));
        answer.send(()).expect("it waits");
        while shared.strong_count() > 0 {
            thread::yield_now();
        }
        DeviceFile::open(&path, Some(1 << 20)).expect("the last operation has ended");
    }
}
