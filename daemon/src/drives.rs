//! One thread a device: it turns the device's drive, sleeps in it, and wakes the engine when it has something to say. The
//! engine's messages wake it by a bell, which is rung only if it sleeps.
//!
//! A device that hangs does not hold up the daemon's end: such a thread is left behind. One that was pulled out is let go of
//! when the engine says so, and what is at its path by then is opened in its place.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender, TryRecvError, unbounded};
use lapis_config::{Controller, Time};
use lapis_ssd::{
    SsdError,
    device::{Device, DeviceFile, Presence, Waits},
    drive::{Drive, FromDrive, ToDrive},
    engine::{self, EngineChoice},
    spdk::{self, Spdk},
    volume::WallClock,
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

use crate::{movers::Done, serve, topology};

/// How long a former daemon's hold on a device is waited for: the kernel lets go of a killed process's files a little
/// later than of its pid (25 ms after kill -9 on a file, 50 ms on a block device).
const LOCKED_WAIT: Duration = Duration::from_secs(5);
const LOCKED_PAUSE: Duration = Duration::from_millis(5);
/// While so many operations are under way the engine, which has nothing to add, is woken for so many reports at once, and
/// not later than so long after the last ones: a wake-up each took more processor time than all the rest.
const REPORTS_AT_ONCE: usize = 8;
const REPORTS_LATE: Duration = Duration::from_micros(200);
/// A drive that has nothing to do looks after itself so often; so often it is looked whether its device is still there.
const SLEEP_MAX: Duration = Duration::from_millis(250);
const PRESENT_EVERY: Duration = Duration::from_millis(250);

/// What one device is to be opened with.
#[derive(Clone, Debug)]
pub struct DriveOptions {
    pub path: PathBuf,
    /// Of a file.
    pub bytes: u64,
    pub engine: EngineChoice,
    pub depth: usize,
    pub threads: usize,
    /// Where SPDK's libraries are, for a controller; `None`: where they usually are.
    pub spdk_library: Option<PathBuf>,
    /// CPUs near the device, which its threads are kept on; `None`: any.
    pub cpus: Option<Vec<u32>>,
}

impl DriveOptions {
    /// Whether SPDK drives it.
    fn is_controller(&self) -> bool {
        Controller::is_meant(&self.path)
    }
}

/// The engine's end of one drive.
pub struct DriveHandle {
    messages: Sender<ToDrive>,
    bell: Arc<OwnedFd>,
    sleeps: Arc<AtomicBool>,
}

impl DriveHandle {
    /// Opens the device on a thread of its own. `report` hears of it, then `wake` is called.
    pub fn start(
        device: usize,
        options: DriveOptions,
        report: Sender<Done>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> std::io::Result<Self> {
        let (messages, inbox) = unbounded();
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let sleeps = Arc::new(AtomicBool::new(false));
        let mut turner = Turner {
            device,
            inbox,
            bell: bell.clone(),
            sleeps: sleeps.clone(),
            report,
            wake,
            said: Vec::new(),
            said_at: Time(0),
            options,
            presence: Presence::default(),
            present_at: Time(0),
            vanished: false,
        };
        std::thread::Builder::new().name(format!("ssd {device}")).spawn(move || turner.run())?;
        Ok(Self { messages, bell, sleeps })
    }

    pub fn tell(&self, message: ToDrive) {
        // The thread ended only if its device could not be opened, and said so.
        let _ = self.messages.send(message);
        fence(Ordering::SeqCst);
        if self.sleeps.load(Ordering::Relaxed) {
            // A full eventfd is rung already.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }
}

struct Turner {
    device: usize,
    inbox: Receiver<ToDrive>,
    bell: Arc<OwnedFd>,
    sleeps: Arc<AtomicBool>,
    report: Sender<Done>,
    wake: Arc<dyn Fn() + Send + Sync>,
    said: Vec<FromDrive>,
    /// When the engine heard of some last.
    said_at: Time,
    options: DriveOptions,
    /// Of the device there is, when that was looked at last, and whether the engine was told that it is gone.
    presence: Presence,
    present_at: Time,
    vanished: bool,
}

/// A device at work, and how it is known whether it is still there.
struct Opened {
    started: engine::Started,
    presence: Presence,
}

impl Turner {
    fn run(&mut self) {
        // Before the device's own threads are made: they are kept there too.
        if let Some(cpus) = &self.options.cpus {
            topology::keep_on(cpus);
        }
        match open(&self.options) {
            Ok(opened) => {
                let device = self.started(opened);
                self.turn(device);
            }
            Err(error) => {
                self.said.push(FromDrive::Failed(chain(&error)));
                self.say(serve::now());
            }
        }
    }

    fn started(&mut self, opened: Opened) -> engine::Engine {
        let Opened { started, presence } = opened;
        (self.presence, self.vanished) = (presence, false);
        let (why, device) = (started.why(), started.engine);
        self.said.push(FromDrive::Started { engine: device.name(), why, bytes: device.bytes() });
        device
    }

    /// Opens the device at the path of one that was let go of, if there is any.
    fn renew(&mut self, drive: &mut Drive<engine::Engine>) {
        if !is_device(&self.options.path) {
            return;
        }
        match open(&self.options) {
            Ok(opened) => drive.renew(self.started(opened)),
            Err(error) => {
                let (path, error) = (self.options.path.display(), chain(&error));
                tracing::warn!(%path, error, "what is in a device's place cannot be opened");
            }
        }
    }

    /// Tells the engine once if the device was pulled out.
    fn look(&mut self, now: Time) {
        if self.vanished || now.since_us(self.present_at) < PRESENT_EVERY.as_micros() as u64 {
            return;
        }
        self.present_at = now;
        self.vanished = self.presence.is_gone();
        if self.vanished {
            self.said.push(FromDrive::Vanished);
        }
    }

    fn turn(&mut self, device: engine::Engine) {
        let wall_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |at| at.as_secs());
        let mut drive = Drive::new(device, WallClock { wall_s, at: serve::now() });
        loop {
            let now = serve::now();
            let mut any = false;
            loop {
                match self.inbox.try_recv() {
                    Ok(message) => {
                        any = true;
                        let renews = matches!(message, ToDrive::Renew);
                        drive.tell(now, message);
                        if renews && drive.is_vacant() {
                            self.renew(&mut drive);
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    // The engine is gone, and so will be the process.
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            drive.kick();
            any |= drive.poll(now, &mut self.said);
            self.look(now);
            if !self.said.is_empty() && (self.is_due(now) || drive.under_way() < REPORTS_AT_ONCE) {
                self.say(now);
            }
            if !any && self.sleep(&mut drive).is_err() {
                return;
            }
        }
    }

    /// Whether nothing is gained by waiting for one more report: there are enough, they are late, or they come so
    /// seldom that they would be.
    fn is_due(&self, now: Time) -> bool {
        self.said.len() > REPORTS_AT_ONCE || now.since_us(self.said_at) >= REPORTS_LATE.as_micros() as u64
    }

    fn say(&mut self, now: Time) {
        self.said_at = now;
        for from in self.said.drain(..) {
            // The engine ended first if this fails: nobody is left to tell.
            let _ = self.report.send(Done::Drive { device: self.device, from });
        }
        (self.wake)();
    }

    /// Until an operation ends or a message comes.
    fn sleep(&mut self, drive: &mut Drive<engine::Engine>) -> std::io::Result<()> {
        self.sleeps.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let waited = if self.inbox.is_empty() {
            let most = if self.said.is_empty() { SLEEP_MAX } else { REPORTS_LATE };
            match drive.is_vacant() {
                true => self.wait_for_bell(most),
                false => drive.device_mut().wait(self.bell.as_fd(), Some(most)),
            }
        } else {
            Ok(())
        };
        self.sleeps.store(false, Ordering::Relaxed);
        let mut rung = [0; 8];
        let _ = rustix::io::read(&self.bell, &mut rung);
        waited.inspect_err(|error| tracing::error!(%error, "a device cannot be waited for"))
    }

    fn wait_for_bell(&self, most: Duration) -> std::io::Result<()> {
        let mut bell = [PollFd::new(&self.bell, PollFlags::IN)];
        match poll(&mut bell, Timespec::try_from(most).ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn open(options: &DriveOptions) -> Result<Opened, SsdError> {
    if options.is_controller() {
        let (path, folder) = (&options.path, options.spdk_library.as_deref());
        let device = patiently(|| Spdk::open(path, folder, options.depth))?;
        let started = engine::Started { engine: engine::Engine::Spdk(device), refused: Vec::new() };
        // A controller that went is looked for by its engine itself.
        return Ok(Opened { started, presence: Presence::default() });
    }
    let file = patiently(|| open_file(options))?;
    let (direct, presence) = (file.is_direct(), Presence::of(&file));
    let started = engine::start(file, options.engine, options.depth, options.threads)?;
    if !direct {
        tracing::warn!(path = %options.path.display(), "the file system has no O_DIRECT: the page cache is used");
    }
    let (path, engine) = (options.path.display(), started.engine.name());
    match started.why() {
        Some(why) => tracing::warn!(%path, engine, why, "a device of the SSD tier, driven by less than there is"),
        None => tracing::info!(%path, engine, "a device of the SSD tier"),
    }
    Ok(Opened { started, presence })
}

/// Waits for what a former daemon has yet.
fn patiently<T>(mut open: impl FnMut() -> Result<T, SsdError>) -> Result<T, SsdError> {
    let started = Instant::now();
    loop {
        match open() {
            Err(error) if error.is_transient() && started.elapsed() < LOCKED_WAIT => std::thread::sleep(LOCKED_PAUSE),
            opened => return opened,
        }
    }
}

/// What can be seen of a device before the daemon says that it is ready: of a controller, whether SPDK is there.
pub fn may_open(options: &DriveOptions) -> Result<(), SsdError> {
    if options.is_controller() {
        let failed = |source| SsdError::Spdk { path: options.path.clone(), source };
        return spdk::look(options.spdk_library.as_deref()).map(drop).map_err(failed);
    }
    open_file(options).map(drop)
}

/// Opens, or makes and allocates, what the tier is to use: all of a device.
fn open_file(options: &DriveOptions) -> Result<DeviceFile, SsdError> {
    DeviceFile::open(&options.path, (!is_device(&options.path)).then_some(options.bytes))
}

/// Whether there is a device at the path, of blocks or of characters.
fn is_device(path: &Path) -> bool {
    let is_device = |found: std::fs::FileType| found.is_block_device() || found.is_char_device();
    std::fs::metadata(path).is_ok_and(|found| is_device(found.file_type()))
}

/// An error with its causes, in a line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
