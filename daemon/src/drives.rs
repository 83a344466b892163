//! One thread a device: it turns the device's drive, sleeps in it, and wakes the engine when it has something to say. The
//! engine's messages wake it by a bell, which is rung only if it sleeps.
//!
//! A device that hangs does not hold up the daemon's end: such a thread is left behind.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::PathBuf,
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
    device::{Device, DeviceFile, Waits},
    drive::{Drive, FromDrive, ToDrive},
    engine::{self, EngineChoice},
    spdk::{self, Spdk},
    volume::WallClock,
};
use rustix::event::{EventfdFlags, eventfd};

use crate::{movers::Done, serve, topology};

/// How long a former daemon's hold on a device is waited for: the kernel lets go of a killed process's files a little
/// later than of its pid (25 ms after kill -9 on a file, 50 ms on a block device).
const LOCKED_WAIT: Duration = Duration::from_secs(5);
const LOCKED_PAUSE: Duration = Duration::from_millis(5);
/// While so many operations are under way the engine, which has nothing to add, is woken for so many reports at once, and
/// not later than so long after the last ones: a wake-up each took more processor time than all the rest.
const REPORTS_AT_ONCE: usize = 8;
const REPORTS_LATE: Duration = Duration::from_micros(200);
/// A drive that has nothing to do looks after itself so often.
const SLEEP_MAX: Duration = Duration::from_millis(250);

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
        };
        std::thread::Builder::new().name(format!("ssd {device}")).spawn(move || turner.run(&options))?;
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
}

impl Turner {
    fn run(&mut self, options: &DriveOptions) {
        // Before the device's own threads are made: they are kept there too.
        if let Some(cpus) = &options.cpus {
            topology::keep_on(cpus);
        }
        match open(options) {
            Ok(started) => {
                let (why, device) = (started.why(), started.engine);
                self.said.push(FromDrive::Started { engine: device.name(), why, bytes: device.bytes() });
                self.turn(device);
            }
            Err(error) => {
                self.said.push(FromDrive::Failed(chain(&error)));
                self.say(serve::now());
            }
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
                        drive.tell(now, message);
                    }
                    Err(TryRecvError::Empty) => break,
                    // The engine is gone, and so will be the process.
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            drive.kick();
            any |= drive.poll(now, &mut self.said);
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
            drive.device_mut().wait(self.bell.as_fd(), Some(most))
        } else {
            Ok(())
        };
        self.sleeps.store(false, Ordering::Relaxed);
        let mut rung = [0; 8];
        let _ = rustix::io::read(&self.bell, &mut rung);
        waited.inspect_err(|error| tracing::error!(%error, "a device cannot be waited for"))
    }
}

fn open(options: &DriveOptions) -> Result<engine::Started, SsdError> {
    if options.is_controller() {
        let (path, folder) = (&options.path, options.spdk_library.as_deref());
        let device = patiently(|| Spdk::open(path, folder, options.depth))?;
        return Ok(engine::Started { engine: engine::Engine::Spdk(device), refused: Vec::new() });
    }
    let file = patiently(|| open_file(options))?;
    let direct = file.is_direct();
    let started = engine::start(file, options.engine, options.depth, options.threads)?;
    if !direct {
        tracing::warn!(path = %options.path.display(), "the file system has no O_DIRECT: the page cache is used");
    }
    let (path, engine) = (options.path.display(), started.engine.name());
    match started.why() {
        Some(why) => tracing::warn!(%path, engine, why, "a device of the SSD tier, driven by less than there is"),
        None => tracing::info!(%path, engine, "a device of the SSD tier"),
    }
    Ok(started)
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
    let is_device =
        |found: std::fs::Metadata| found.file_type().is_block_device() || found.file_type().is_char_device();
    let whole = std::fs::metadata(&options.path).is_ok_and(is_device);
    DeviceFile::open(&options.path, (!whole).then_some(options.bytes))
}

/// An error with its causes, in a line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
