//! Which engine drives a device: NVMe commands where the path is a namespace that takes them from us, else io_uring where
//! this host has it for us, else threads. Controllers are [`Spdk`]'s, which opens them itself.

use std::{io, os::fd::BorrowedFd, time::Duration};

use lapis_arena::{ArenaError, Mapping};

use crate::{
    SsdError,
    device::{Completion, Device, DeviceFile, Io, Waits},
    passthrough::{Found, Passthrough, Refusal},
    spdk::Spdk,
    threads::Threads,
    uring::{Ring, Uring},
};

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The first of passthrough, io_uring and threads that can be had for the device.
    #[default]
    Auto,
    /// NVMe commands; `polled`: a processor looks for their ends as long as any are under way.
    Passthrough {
        polled: bool,
    },
    Uring,
    Threads,
}

/// A device at work.
pub enum Engine {
    Passthrough(Box<Passthrough>),
    Uring(Box<Uring>),
    Threads(Threads),
    Spdk(Spdk),
}

/// An engine, and why it is not a faster one: for the log and the status.
pub struct Started {
    pub engine: Engine,
    pub refused: Vec<SsdError>,
}

/// Starts an engine that takes up to `depth` operations at once; by up to `threads` threads, if by threads.
pub fn start(file: DeviceFile, choice: EngineChoice, depth: usize, threads: usize) -> Result<Started, SsdError> {
    let mut refused = Vec::new();
    if let EngineChoice::Auto | EngineChoice::Passthrough { .. } = choice {
        match commanded(&file, choice, depth) {
            Ok(found) => {
                return Ok(Started { engine: Engine::Passthrough(Box::new(Passthrough::new(found, file))), refused });
            }
            Err(source) if choice != EngineChoice::Auto => {
                return Err(SsdError::Passthrough { path: file.path().into(), source });
            }
            Err(source) if source.is_of_namespace() => {
                refused.push(SsdError::Passthrough { path: file.path().into(), source });
            }
            Err(_) => {}
        }
    }
    if let EngineChoice::Auto | EngineChoice::Uring = choice {
        match Ring::set_up(depth) {
            Ok(ring) => return Ok(Started { engine: Engine::Uring(Box::new(Uring::new(ring, file))), refused }),
            Err(refusal) if choice == EngineChoice::Auto => refused.push(refusal),
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(Started { engine: Engine::Threads(Threads::start(file, depth, threads)?), refused })
}

/// What drives the device by NVMe commands, if that can be done, and is best where we choose.
fn commanded(file: &DeviceFile, choice: EngineChoice, depth: usize) -> Result<Found, Refusal> {
    let found = Found::of(file, choice == EngineChoice::Passthrough { polled: true }, depth)?;
    if choice == EngineChoice::Auto {
        found.is_best()?;
    }
    let (node, limits) = (found.namespace().node().display(), found.namespace().limits());
    if let Some(error) = found.namespace().unasked() {
        tracing::info!(%node, %error, "the device does not say what it can do: what sysfs says of it counts");
    }
    tracing::debug!(%node, ?limits, "NVMe commands");
    Ok(found)
}

impl Started {
    /// Why the engine is no faster one, in a line; `None` if it is what was asked for or the fastest.
    pub fn why(&self) -> Option<String> {
        let reasons: Vec<String> = self.refused.iter().map(|refused| chain(refused)).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// An error with its causes, in a line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Engine {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Passthrough(device) => device.name(),
            Self::Uring(_) => "uring",
            Self::Threads(_) => "threads",
            Self::Spdk(_) => "spdk",
        }
    }

    fn device(&mut self) -> &mut dyn Device {
        match self {
            Self::Passthrough(device) => &mut **device,
            Self::Uring(device) => &mut **device,
            Self::Threads(device) => device,
            Self::Spdk(device) => device,
        }
    }
}

impl Device for Engine {
    fn bytes(&self) -> u64 {
        match self {
            Self::Passthrough(device) => device.bytes(),
            Self::Uring(device) => device.bytes(),
            Self::Threads(device) => device.bytes(),
            Self::Spdk(device) => device.bytes(),
        }
    }

    fn depth(&self) -> usize {
        match self {
            Self::Passthrough(device) => device.depth(),
            Self::Uring(device) => device.depth(),
            Self::Threads(device) => device.depth(),
            Self::Spdk(device) => device.depth(),
        }
    }

    fn submit(&mut self, io: Io) -> Result<(), Io> {
        self.device().submit(io)
    }

    fn kick(&mut self) -> io::Result<()> {
        self.device().kick()
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        self.device().poll(out)
    }

    fn register(&mut self, mapping: &Mapping) -> Result<(), ArenaError> {
        self.device().register(mapping)
    }
}

impl Waits for Engine {
    fn wait(&mut self, bell: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Passthrough(device) => device.wait(bell, timeout),
            Self::Uring(device) => device.wait(bell, timeout),
            Self::Threads(device) => device.wait(bell, timeout),
            Self::Spdk(device) => device.wait(bell, timeout),
        }
    }
}
