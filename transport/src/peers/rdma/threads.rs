//! The threads of RDMA paths: one that turns the mover and sleeps on the NICs, and those that do what takes long.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
use lapis_config::Time;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{
    mover::Mover,
    provider::Nic,
    reach::Reaches,
    work::{Done, Work},
};
use crate::peers::{
    links::LinkId,
    paths::{Fetch, FromPaths, ToPaths},
};

/// Threads that make and connect pairs: each may wait a second for an address that nobody answers to.
const CONNECTORS: usize = 2;
/// Threads that destroy pairs: each may take as long.
const CLOSERS: usize = 2;
/// Threads that check sums; each does some GB a second.
const CHECKERS_MAX: usize = 4;
/// The thread looks after itself so often.
const SLEEP_MAX: Duration = Duration::from_millis(250);

/// Wakes the thread that turns the mover, if it sleeps.
#[derive(Clone)]
struct Bell {
    fd: Arc<OwnedFd>,
    sleeps: Arc<AtomicBool>,
}

impl Bell {
    fn new() -> io::Result<Self> {
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Self { fd, sleeps: Arc::default() })
    }

    /// After a message was left: whoever is about to sleep sees either the message or this.
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleeps.load(Ordering::Relaxed) {
            // A full eventfd is rung already.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }
}

/// Looks for NICs that were not there before.
pub(super) struct Look<N> {
    pub every: Duration,
    pub find: Box<dyn FnMut() -> Vec<Arc<N>> + Send>,
}

pub(super) struct Threads {
    jobs: Option<Sender<ToPaths>>,
    out: Receiver<FromPaths>,
    bell: Bell,
    reaches: Arc<Reaches>,
    turner: Option<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn start<N: Nic>(
        nics: Vec<Arc<N>>,
        look: Option<Look<N>>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let (jobs, inbox) = unbounded();
        let (report, out) = unbounded();
        let (done, ended) = unbounded();
        let (bell, reaches) = (Bell::new()?, Arc::new(Reaches::default()));
        let checkers = thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(4)).min(CHECKERS_MAX);
        let pool = |name: &str, count: usize| {
            let (hand, take) = unbounded();
            for _ in 0..count {
                let (take, done, bell) = (take.clone(), done.clone(), bell.clone());
                thread::Builder::new().name(name.into()).spawn(move || work(&take, &done, &bell))?;
            }
            Ok::<_, io::Error>(hand)
        };
        let pools = Pools {
            register: pool("rdma memory", 1)?,
            connect: pool("rdma connect", CONNECTORS)?,
            close: pool("rdma close", CLOSERS)?,
            check: pool("rdma check", checkers)?,
        };
        let (turns, stop) = bounded(0);
        if let Some(look) = look {
            let (done, bell) = (done.clone(), bell.clone());
            thread::Builder::new().name("rdma look".into()).spawn(move || look.run(&stop, &done, &bell))?;
        }
        let (told, rung) = (reaches.clone(), bell.clone());
        let turner = thread::Builder::new().name("rdma".into()).spawn(move || {
            // However it ends: nothing can be read then, and nobody looks any more.
            let (_turns, _forgets): (Sender<()>, _) = (turns, Forgets(told.clone()));
            let (mover, started) = (Mover::new(nics, told), Instant::now());
            Turner { mover, inbox, ended, pools, report, wake, bell: rung, started }.run();
        })?;
        Ok(Self { jobs: Some(jobs), out, bell, reaches, turner: Some(turner) })
    }

    pub(super) fn submit(&self, job: ToPaths) {
        let jobs = self.jobs.as_ref().expect("open until dropped");
        // The thread ends only after this channel, unless it panicked: then nothing more comes, and deadlines are the
        // caller's.
        if jobs.send(job).is_err() {
            tracing::error!("the thread of RDMA is gone");
        }
        self.bell.ring();
    }

    pub(super) fn poll(&self) -> Option<FromPaths> {
        self.out.try_recv().ok()
    }

    #[cfg(test)]
    pub(super) fn is_over(&self) -> bool {
        self.turner.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub(super) fn takes(&self, fetch: &Fetch) -> bool {
        self.reaches.takes(fetch)
    }

    pub(super) fn looks(&self, link: LinkId) -> bool {
        self.reaches.looks(link)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.jobs = None;
        self.bell.ring();
        if let Some(turner) = self.turner.take() {
            // A panic there was shown when it happened.
            let _ = turner.join();
        }
    }
}

/// Has fetches go another way once the thread is gone that would do them.
struct Forgets(Arc<Reaches>);

impl Drop for Forgets {
    fn drop(&mut self) {
        self.0.set(Default::default());
    }
}

impl<N: Nic> Look<N> {
    fn run(mut self, stop: &Receiver<()>, done: &Sender<Done<N>>, bell: &Bell) {
        while stop.recv_timeout(self.every) == Err(RecvTimeoutError::Timeout) {
            for nic in (self.find)() {
                // Fails only when the mover is gone.
                let _ = done.send(Done::Found { nic });
                bell.ring();
            }
        }
    }
}

struct Pools<N: Nic> {
    register: Sender<Work<N>>,
    connect: Sender<Work<N>>,
    close: Sender<Work<N>>,
    check: Sender<Work<N>>,
}

impl<N: Nic> Pools<N> {
    fn hand(&self, work: Work<N>) {
        let pool = match &work {
            Work::Register { .. } => &self.register,
            Work::Make { .. } | Work::Connect { .. } | Work::Accept { .. } => &self.connect,
            Work::Destroy { .. } => &self.close,
            Work::Check { .. } => &self.check,
        };
        // Its threads live as long as this end.
        let _ = pool.send(work);
    }
}

fn work<N: Nic>(take: &Receiver<Work<N>>, done: &Sender<Done<N>>, bell: &Bell) {
    while let Ok(work) = take.recv() {
        // Fails only when the mover is gone, with which what was made goes too.
        let _ = done.send(work.run());
        bell.ring();
    }
}

struct Turner<N: Nic> {
    mover: Mover<N>,
    inbox: Receiver<ToPaths>,
    ended: Receiver<Done<N>>,
    pools: Pools<N>,
    report: Sender<FromPaths>,
    wake: Arc<dyn Fn() + Send + Sync>,
    bell: Bell,
    started: Instant,
}

impl<N: Nic> Turner<N> {
    fn run(mut self) {
        loop {
            let mut any = false;
            loop {
                match self.inbox.try_recv() {
                    Ok(job) => {
                        any = true;
                        self.mover.tell(self.now(), job);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            while let Ok(done) = self.ended.try_recv() {
                any = true;
                self.mover.done(self.now(), done);
            }
            any |= self.turn();
            if any {
                continue;
            }
            if let Err(error) = self.sleep() {
                tracing::error!(%error, "NICs cannot be waited for");
                return;
            }
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Whether anything came of it.
    fn turn(&mut self) -> bool {
        let completed = self.mover.turn(self.now());
        while let Some(work) = self.mover.poll_work() {
            self.pools.hand(work);
        }
        let mut said = false;
        while let Some(from) = self.mover.poll() {
            said = true;
            // Nobody is left to tell when this fails.
            let _ = self.report.send(from);
        }
        if said {
            (self.wake)();
        }
        completed || said
    }

    /// Until something completes, is said, or is due.
    fn sleep(&mut self) -> io::Result<()> {
        self.bell.sleeps.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let slept = self.wait();
        self.bell.sleeps.store(false, Ordering::Relaxed);
        let mut rung = [0; 8];
        let _ = rustix::io::read(&self.bell.fd, &mut rung);
        slept
    }

    fn wait(&mut self) -> io::Result<()> {
        if !self.inbox.is_empty() || !self.ended.is_empty() {
            return Ok(());
        }
        self.mover.arm(self.now());
        // What completed before it was armed is not told.
        if self.turn() {
            return Ok(());
        }
        let due = self.mover.next_at().map(|at| Duration::from_micros(at.since_us(self.now())));
        let most = due.unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        let timeout = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: most.subsec_nanos().into() };
        let bell = PollFd::from_borrowed_fd(self.bell.fd.as_fd(), PollFlags::IN);
        let (nics, events): (Vec<usize>, Vec<_>) = self.mover.events().unzip();
        let events = events.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> = events.chain([bell]).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // What the kernel says of a device that was taken away, and says at once each time it is asked.
        let is_gone = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        let gone: Vec<usize> = nics.into_iter().zip(&fds).filter(|(_, fd)| is_gone(fd)).map(|(nic, _)| nic).collect();
        gone.into_iter().for_each(|nic| self.mover.lose(self.now(), nic));
        Ok(())
    }
}
