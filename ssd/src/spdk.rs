//! The device by SPDK: a controller that the kernel does not drive, its queue looked at by the thread that uses it.
//!
//! SPDK's libraries are loaded where they are wanted (`find`, `library`); `env` is what a process has of it, `queue` a
//! controller with its commands, `work` makes commands of operations, as `parts` cuts them, `nap` says how to wait. What did not run on real SPDK, and
//! how to build it: `docs/spdk.md`.
//!
//! Invariant: whatever the controller may still touch is in [`Work`], which goes only when its queue has been closed.

mod env;
pub mod find;
mod library;
mod nap;
mod parts;
mod queue;
mod status;
mod work;

use std::{
    io,
    mem::ManuallyDrop,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lapis_arena::{ArenaError, Mapping};
use lapis_config::Controller;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};

use self::{
    env::Env,
    nap::{ADMIN_EVERY, nap},
    queue::Queue,
    work::Work,
};
use crate::{
    SsdError,
    device::{Completion, Device, Io, Waits},
};

/// Looks at the controller between two at the bell, which cost a call to the kernel.
const LOOKS: u32 = 32;

/// Why SPDK is not to be had, or not for this controller.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NoSpdk {
    #[error(
        "libspdk_env_dpdk.so and libspdk_nvme.so are not in {looked} (ssd.spdk_library; docs/spdk.md says how to build them)"
    )]
    NotFound { looked: String },
    #[error(
        "{library} has version {found}; known are {first} to {last}, of SPDK {releases}",
        library = library.display(), releases = find::RELEASES
    )]
    Version { library: PathBuf, found: String, first: u32, last: u32 },
    #[error("{library} cannot be loaded ({reason})", library = library.display())]
    Load { library: PathBuf, reason: String },
    #[error("SPDK's libraries have no function {function}")]
    Function { function: &'static str },
    #[error("its environment does not start ({reason}): are there free huge pages?")]
    Start { reason: String },
    /// Of this daemon: it is given up behind, which ends soon.
    #[error("{address} is in use")]
    Taken { address: String },
    #[error(
        "no controller at {address} that SPDK can have: bind it to vfio-pci (scripts/setup.sh), and stop who else has it"
    )]
    Connect { address: String },
    #[error("{address} has no active namespace {namespace}")]
    Namespace { address: String, namespace: u32 },
    #[error("{address} has sectors of {found} bytes, which do not divide a page of {page}: format it with 512 or 4096")]
    Sector { address: String, page: u32, found: u32 },
    #[error("{address} has {bytes} bytes of metadata with each sector: format it without")]
    Metadata { address: String, bytes: u32 },
    #[error("{address} has zones or keys in place of sectors (command set {set})")]
    CommandSet { address: String, set: i32 },
    #[error("SPDK has no memory for devices: are there free huge pages?")]
    Memory,
}

impl NoSpdk {
    /// True if the same call may succeed soon without anyone's help: a process that was killed has its controllers for a
    /// moment yet.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Taken { .. } | Self::Connect { .. })
    }
}

/// Loads the libraries and looks at their versions; no environment is started, no device touched.
pub fn look(folder: Option<&Path>) -> Result<find::Libraries, NoSpdk> {
    let libraries = find::find(folder)?;
    library::Library::load(&libraries)?;
    Ok(libraries)
}

/// See the module's head. The thread that first calls `kick`, `poll` or `wait` is its thread from then on.
pub struct Spdk {
    work: ManuallyDrop<Box<Work>>,
    bytes: u64,
    /// When something was submitted or ended last, and when the controller was asked for its own news.
    moved: Instant,
    admin: Instant,
}

impl Spdk {
    /// Connects the controller of `path`, with the libraries in `folder` or where they usually are. Takes up to `depth`
    /// operations at once.
    pub fn open(path: &Path, folder: Option<&Path>, depth: usize) -> Result<Self, SsdError> {
        assert!(depth > 0, "a device that takes nothing");
        let failed = |source| SsdError::Spdk { path: path.to_owned(), source };
        let controller = Controller::of_path(path).ok_or_else(|| SsdError::NoDevice { path: path.to_owned() })?;
        let env = Env::get(folder).map_err(failed)?;
        let queue = Queue::connect(env, &controller).map_err(failed)?;
        let (shape, libraries) = (queue.shape, &env.libraries);
        let work = Work::new(env, controller, queue, depth).ok_or_else(|| failed(NoSpdk::Memory))?;
        let (env, nvme) = (&libraries.env_version, &libraries.nvme_version);
        tracing::info!(path = %path.display(), ?shape, env, nvme, "a controller is SPDK's");
        let (now, work) = (Instant::now(), ManuallyDrop::new(Box::new(work)));
        Ok(Self { work, bytes: shape.bytes(), moved: now, admin: now })
    }

    /// How long a command may have no answer, 30 s at first; then the controller is reset, and what it had ends in errors.
    pub fn set_patience(&mut self, patience: Duration) {
        self.work.patience = patience;
    }

    /// Bytes of memory that the controller reaches by itself; what else is used goes over a copy.
    pub fn registered_bytes(&self) -> usize {
        self.work.registered_bytes()
    }

    /// Orders what can be, takes what has ended.
    fn turn(&mut self) {
        let (now, before) = (Instant::now(), self.work.ended.len());
        let asks = now.duration_since(self.admin) >= ADMIN_EVERY;
        if asks {
            self.admin = now;
        }
        self.work.turn(now, asks);
        if self.work.ended.len() > before {
            self.moved = now;
        }
    }
}

impl Device for Spdk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn depth(&self) -> usize {
        self.work.depth()
    }

    fn submit(&mut self, io: Io) -> Result<(), Io> {
        if self.work.in_flight() == 0 {
            self.moved = Instant::now();
        }
        let checked = io.check(self.bytes);
        self.work.submit(io, checked)
    }

    fn kick(&mut self) -> io::Result<()> {
        self.turn();
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        self.turn();
        out.append(&mut self.work.ended);
        Ok(())
    }

    fn register(&mut self, mapping: &Mapping) -> Result<(), ArenaError> {
        self.work.register(mapping)
    }
}

impl Waits for Spdk {
    /// Looks at the controller without a pause while something is under way, as long as it answers.
    fn wait(&mut self, bell: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        let started = Instant::now();
        let most = timeout.unwrap_or(Duration::MAX);
        let mut looks = 0;
        loop {
            self.turn();
            let left = most.saturating_sub(started.elapsed());
            if !self.work.ended.is_empty() || left.is_zero() {
                return Ok(());
            }
            let is_working = self.work.in_flight() > 0;
            let pause = nap(is_working, self.moved.elapsed(), left);
            looks += 1;
            if pause.is_some() || looks % LOOKS == 0 {
                if is_rung(bell, pause.unwrap_or_default())? || !is_working {
                    return Ok(());
                }
                // Whoever else wants this processor: nothing has come for a while.
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

fn is_rung(bell: BorrowedFd<'_>, within: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(bell, PollFlags::IN)];
    let within = Timespec::try_from(within).unwrap_or_default();
    match rustix::event::poll(&mut fds, Some(&within)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Spdk {
    /// Never waits for the controller: one that has something under way is given up by a thread of its own, with the memory
    /// that it may still touch.
    fn drop(&mut self) {
        // SAFETY: taken once, here; nothing of it is used afterwards.
        let work = unsafe { ManuallyDrop::take(&mut self.work) };
        let operations = work.in_flight();
        if operations == 0 {
            return work.close();
        }
        let path = work.controller.to_string();
        tracing::warn!(path, operations, "a controller was given up with operations under way");
        // Without a thread it stays as it is until the process ends: the controller may still write.
        let work = ManuallyDrop::new(work);
        let end = move || ManuallyDrop::into_inner(work).close();
        let spawned = std::thread::Builder::new().name("spdk end".into()).spawn(end);
        if let Err(error) = spawned {
            tracing::error!(%error, path, "no thread to give a controller up");
        }
    }
}
