//! Which engine drives a device: io_uring where this host has it for us, else threads. Controllers are [`Spdk`]'s, which opens
//! them itself.

use std::{io, os::fd::BorrowedFd, time::Duration};

use lapis_arena::{ArenaError, Mapping};

use crate::{
    SsdError,
    device::{Completion, Device, DeviceFile, Io, Waits},
    spdk::Spdk,
    threads::Threads,
    uring::{Ring, Uring},
};

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring, or threads where that is refused.
    #[default]
    Auto,
    Uring,
    Threads,
}

/// A device at work.
pub enum Engine {
    Uring(Box<Uring>),
    Threads(Threads),
    Spdk(Spdk),
}

/// An engine, and why it is not the better one; for the log.
pub struct Started {
    pub engine: Engine,
    pub refused: Option<SsdError>,
}

/// Starts an engine that takes up to `depth` operations at once; by up to `threads` threads, if by threads.
pub fn start(file: DeviceFile, choice: EngineChoice, depth: usize, threads: usize) -> Result<Started, SsdError> {
    let refused = match choice {
        EngineChoice::Threads => None,
        EngineChoice::Auto | EngineChoice::Uring => match Ring::set_up(depth) {
            Ok(ring) => {
                return Ok(Started { engine: Engine::Uring(Box::new(Uring::new(ring, file))), refused: None });
            }
            Err(refused) if choice == EngineChoice::Auto => Some(refused),
            Err(refused) => return Err(refused),
        },
    };
    Ok(Started { engine: Engine::Threads(Threads::start(file, depth, threads)?), refused })
}

impl Engine {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uring(_) => "uring",
            Self::Threads(_) => "threads",
            Self::Spdk(_) => "spdk",
        }
    }

    fn device(&mut self) -> &mut dyn Device {
        match self {
            Self::Uring(device) => &mut **device,
            Self::Threads(device) => device,
            Self::Spdk(device) => device,
        }
    }
}

impl Device for Engine {
    fn bytes(&self) -> u64 {
        match self {
            Self::Uring(device) => device.bytes(),
            Self::Threads(device) => device.bytes(),
            Self::Spdk(device) => device.bytes(),
        }
    }

    fn depth(&self) -> usize {
        match self {
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
            Self::Uring(device) => device.wait(bell, timeout),
            Self::Threads(device) => device.wait(bell, timeout),
            Self::Spdk(device) => device.wait(bell, timeout),
        }
    }
}
