//! Whatever is a device, made and driven: by each engine over files, a namespace, SPDK's stand-in, and in memory.

use std::{
    io::Write,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lapis_arena::Mapping;
use lapis_ssd::{
    SsdError,
    device::{Completion, Device, DeviceFile, Io, Memory, Waits},
    disk::Disk,
    engine::{self, Engine, EngineChoice},
    faulty::{Faults, Faulty},
    memory::MemDevice,
    passthrough::block_beside,
    threads::THREADS_DEFAULT,
};
use rustix::event::EventfdFlags;
use tempfile::TempDir;

use crate::standin::{DriveShape, Standin};

pub const DEVICE_BYTES: u64 = 4 << 20;
pub const DEPTH: usize = 16;
/// Far beyond what anything here takes: a test that needs it is stuck.
pub const STUCK: Duration = Duration::from_secs(60);

/// A device, and how its time passes.
pub enum Driven {
    Real { engine: Engine, bell: OwnedFd },
    Memory(MemDevice),
    Faulty(Box<Faulty>),
}

pub struct Subject {
    pub name: String,
    pub driven: Driven,
    pub path: PathBuf,
    /// Keeps the file, of those that have one.
    pub dir: Option<TempDir>,
}

/// How to make one.
#[derive(Clone, Copy, Debug)]
pub enum Recipe {
    File {
        choice: EngineChoice,
        direct: bool,
    },
    Namespace(EngineChoice),
    /// Over the stand-in.
    Spdk {
        sector: u32,
        transfer_max: u32,
    },
    Memory,
    Faulty,
}

impl Subject {
    pub fn device(&mut self) -> &mut dyn Device {
        match &mut self.driven {
            Driven::Real { engine, .. } => engine,
            Driven::Memory(device) => device,
            Driven::Faulty(device) => &mut **device,
        }
    }

    /// Lets something end.
    pub fn pass(&mut self) {
        match &mut self.driven {
            Driven::Real { engine, bell } => engine.wait(bell.as_fd(), Some(STUCK)).expect("a wait"),
            Driven::Memory(_) => {}
            Driven::Faulty(device) => {
                if let Some(due) = device.next_due() {
                    device.advance(due);
                }
            }
        }
    }

    pub fn submit(&mut self, io: Io) {
        self.device().submit(io).unwrap_or_else(|io| panic!("no room for {:?}", io.id));
    }

    /// Until `count` operations have ended.
    pub fn ended(&mut self, count: usize) -> Vec<Completion> {
        let (start, mut out) = (Instant::now(), Vec::new());
        self.device().kick().expect("a kick");
        while out.len() < count {
            self.pass();
            self.device().poll(&mut out).expect("a poll");
            assert!(start.elapsed() < STUCK, "{}: {} of {count}", self.name, out.len());
        }
        assert_eq!(out.len(), count, "{}: something ended twice", self.name);
        if self.is_spdk() {
            assert_eq!(Standin::get().and_then(Standin::misuse), None, "{}", self.name);
        }
        out
    }

    pub fn all_well(&mut self, count: usize) {
        for Completion { id, result } in self.ended(count) {
            result.unwrap_or_else(|error| panic!("{}: {id:?}: {error}", self.name));
        }
    }

    pub fn is_spdk(&self) -> bool {
        matches!(self.driven, Driven::Real { engine: Engine::Spdk(_), .. })
    }
}

/// None where this host forbids the engine, and says so.
pub fn real(name: String, file: DeviceFile, choice: EngineChoice, dir: Option<TempDir>) -> Option<Subject> {
    let path = file.path().to_owned();
    match engine::start(file, choice, DEPTH, THREADS_DEFAULT) {
        Ok(started) => {
            let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor");
            Some(Subject { name, driven: Driven::Real { engine: started.engine, bell }, path, dir })
        }
        Err(error) => {
            println!("skipped: {name}: {error:?}");
            None
        }
    }
}

impl Recipe {
    pub fn make(self) -> Option<Subject> {
        let plain = |name: &str, driven| Some(Subject { name: name.into(), driven, path: PathBuf::new(), dir: None });
        match self {
            Self::File { choice, direct } => {
                let dir = tempfile::tempdir().expect("a directory");
                let open = if direct { DeviceFile::open } else { DeviceFile::open_buffered };
                let file = open(&dir.path().join("device"), Some(DEVICE_BYTES)).expect("a file");
                let name = format!("{choice:?}, {}", if file.is_direct() { "direct" } else { "buffered" });
                real(name, file, choice, Some(dir))
            }
            Self::Namespace(choice) => {
                let path = namespace()?;
                // Not by the engine: that would make it this thread's.
                let block = block_beside(&path).unwrap_or_else(|| path.clone());
                let mut blank = std::fs::File::options().write(true).open(block).expect("a block device");
                blank
                    .write_all(&vec![0; DEVICE_BYTES as usize])
                    .and_then(|()| blank.sync_all())
                    .expect("it takes zeros");
                drop(blank);
                let file = opened(&path).expect("a namespace that nobody has");
                let name = format!("{choice:?} over {}", path.display());
                real(name, file, choice, None)
            }
            Self::Spdk { sector, transfer_max } => {
                let (standin, address) = (Standin::get()?, Standin::address());
                let dir = tempfile::tempdir().expect("a directory");
                let shape = DriveShape { transfer_max, ..DriveShape::new(DEVICE_BYTES, sector) };
                let path = dir.path().join("device");
                standin.drive(&address, Some(&path), shape);
                let engine = Engine::Spdk(standin.open(&address, DEPTH));
                let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor");
                let name = format!("spdk, {sector}, {transfer_max}");
                Some(Subject { name, driven: Driven::Real { engine, bell }, path, dir: Some(dir) })
            }
            Self::Memory => plain("memory", Driven::Memory(MemDevice::new(&Disk::new(DEVICE_BYTES), DEPTH))),
            Self::Faulty => {
                let device = Faulty::new(&Disk::new(DEVICE_BYTES), DEPTH, Faults::NONE, 1);
                plain("faulty", Driven::Faulty(Box::new(device)))
            }
        }
    }
}

/// As the daemon opens a device: a claim that is only just given up is waited for.
pub fn opened(path: &Path) -> Result<DeviceFile, SsdError> {
    let start = Instant::now();
    loop {
        match DeviceFile::open(path, Some(DEVICE_BYTES)) {
            Err(error) if error.is_transient() && start.elapsed() < Duration::from_secs(5) => std::thread::yield_now(),
            opened => return opened,
        }
    }
}

pub fn namespace() -> Option<PathBuf> {
    let named = std::env::var_os("LAPIS_TEST_NAMESPACE");
    if named.is_none() {
        println!("skipped: LAPIS_TEST_NAMESPACE names no NVMe namespace (tests/testbed/nvme has one)");
    }
    named.map(PathBuf::from)
}

/// Each is made when the last one has gone: a namespace has one user.
pub fn made(recipes: impl IntoIterator<Item = Recipe>) -> impl Iterator<Item = Subject> {
    recipes.into_iter().filter_map(Recipe::make)
}

pub const COMMANDS: EngineChoice = EngineChoice::Passthrough { polled: false };

/// SPDK with sectors of both sizes, and a controller that takes a page at once.
pub const CONTROLLERS: [Recipe; 3] = [
    Recipe::Spdk { sector: 512, transfer_max: 128 << 10 },
    Recipe::Spdk { sector: 4096, transfer_max: 128 << 10 },
    Recipe::Spdk { sector: 512, transfer_max: 4096 },
];

pub fn files() -> Vec<Recipe> {
    let choices = [EngineChoice::Uring, EngineChoice::Threads];
    choices.into_iter().flat_map(|choice| [true, false].map(|direct| Recipe::File { choice, direct })).collect()
}

/// Of the kernel's devices.
pub fn real_subjects() -> impl Iterator<Item = Subject> {
    let polled = EngineChoice::Passthrough { polled: true };
    let choices = [COMMANDS, polled, EngineChoice::Uring, EngineChoice::Threads];
    made(files().into_iter().chain(choices.map(Recipe::Namespace)))
}

/// Those with a thread that sleeps.
pub fn engine_subjects() -> impl Iterator<Item = Subject> {
    real_subjects().chain(made(CONTROLLERS))
}

pub fn subjects() -> impl Iterator<Item = Subject> {
    engine_subjects().chain(made([Recipe::Memory, Recipe::Faulty]))
}

pub fn mapping(bytes: usize) -> Mapping {
    Mapping::anonymous(bytes as u64).expect("memory")
}

/// Bytes that differ from place to place and from seed to seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| rng.u8(..)).collect()
}

pub fn filled(bytes: &[u8]) -> Memory {
    let mapping = mapping(bytes.len());
    mapping.copy_in(0, bytes);
    Memory::new(&mapping, 0, bytes.len())
}
