//! Reads of a controller that SPDK has, one after the other. SPDK takes it for this process alone: while a daemon has it, nobody
//! else looks.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use lapis_arena::Mapping;
use lapis_ssd::{
    device::{Completion, Device, Io, IoId, Memory, Waits},
    spdk::Spdk,
};
use rustix::event::{EventfdFlags, eventfd};

/// Read at once.
const STEP_BYTES: usize = 1 << 20;
/// How long an ended daemon's hold on it, which ends with its process, is waited for.
const TAKEN_WAIT: Duration = Duration::from_secs(1);
/// A read that takes so long is an error.
const LATE: Duration = Duration::from_secs(30);

pub(super) struct Reads {
    device: Spdk,
    memory: Mapping,
    bell: OwnedFd,
}

impl Reads {
    pub(super) fn open(path: &Path, library: Option<&Path>) -> anyhow::Result<Self> {
        let started = Instant::now();
        let device = loop {
            match Spdk::open(path, library, 1) {
                Err(error) if error.is_transient() && started.elapsed() < TAKEN_WAIT => {
                    std::thread::sleep(TAKEN_WAIT / 100);
                }
                opened => break opened.context("cannot be opened")?,
            }
        };
        let memory = Mapping::anonymous(STEP_BYTES as u64).context("no memory to read into")?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC).context("no event to wait by")?;
        Ok(Self { device, memory, bell })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.device.bytes()
    }

    /// Offset and length are multiples of a page.
    pub(super) fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        for (index, piece) in out.chunks_mut(STEP_BYTES).enumerate() {
            let offset = offset + (index * STEP_BYTES) as u64;
            self.one(Io::read(IoId(offset), offset, Memory::new(&self.memory, 0, piece.len())))?;
            piece.copy_from_slice(&self.memory.to_vec(0, piece.len()));
        }
        Ok(())
    }

    fn one(&mut self, io: Io) -> io::Result<()> {
        self.device.submit(io).map_err(|_| io::Error::other("it takes no operation"))?;
        let (started, mut ended) = (Instant::now(), Vec::<Completion>::new());
        loop {
            self.device.kick()?;
            self.device.wait(self.bell.as_fd(), Some(Duration::from_millis(100)))?;
            self.device.poll(&mut ended)?;
            match ended.pop() {
                Some(completion) => return completion.result,
                None if started.elapsed() > LATE => return Err(io::ErrorKind::TimedOut.into()),
                None => {}
            }
        }
    }
}
