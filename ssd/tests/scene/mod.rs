//! SPDK's engine over a drive of the stand-in.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use lapis_arena::Mapping;
use lapis_ssd::{
    device::{Completion, Device, Io, Memory, Waits},
    spdk::Spdk,
};
use rustix::event::EventfdFlags;

use crate::standin::{DriveShape, Standin};

pub const PAGE: usize = 4096;
pub const MIB: usize = 1 << 20;
pub const DEVICE_BYTES: u64 = 16 << 20;
pub const STUCK: Duration = Duration::from_secs(60);

/// A drive of the stand-in and the engine over it.
pub struct Scene {
    pub standin: &'static Standin,
    pub address: String,
    pub device: Spdk,
    pub bell: OwnedFd,
}

impl Scene {
    /// `None` where there is no C compiler.
    pub fn new(sector: u32, depth: usize) -> Option<Self> {
        let standin = Standin::get()?;
        let address = Standin::address();
        standin.drive(&address, None, DriveShape::new(DEVICE_BYTES, sector));
        let device = standin.open(&address, depth);
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor");
        Some(Self { standin, address, device, bell })
    }

    pub fn plan(&self, plan: &str) {
        self.standin.plan(&self.address, plan);
    }

    pub fn submit(&mut self, io: Io) {
        self.device.submit(io).unwrap_or_else(|io| panic!("no room for {:?}", io.id));
    }

    pub fn ended(&mut self, count: usize) -> BTreeMap<u64, Result<(), (ErrorKind, String)>> {
        let (start, mut out): (Instant, Vec<Completion>) = (Instant::now(), Vec::new());
        self.device.kick().expect("a kick");
        while out.len() < count {
            self.device.wait(self.bell.as_fd(), Some(STUCK)).expect("a wait");
            self.device.poll(&mut out).expect("a poll");
            assert!(start.elapsed() < STUCK, "{} of {count}", out.len());
        }
        assert_eq!(out.len(), count, "something ended twice");
        let said = |error: std::io::Error| (error.kind(), error.to_string());
        let ended: BTreeMap<_, _> = out.into_iter().map(|c| (c.id.0, c.result.map_err(said))).collect();
        assert_eq!(ended.len(), count, "something ended twice");
        ended
    }

    pub fn all_well(&mut self, count: usize) {
        for (id, result) in self.ended(count) {
            assert_eq!(result, Ok(()), "{id}");
        }
    }

    /// At the end: nothing was called wrongly, and nothing is left.
    pub fn ends_clean(self) {
        let Self { standin, address, device, .. } = self;
        drop(device);
        let start = Instant::now();
        while standin.count(&address, "attached") + standin.count(&address, "qpairs") > 0 {
            assert!(start.elapsed() < STUCK, "the controller is never given up");
            std::thread::yield_now();
        }
        assert_eq!(standin.misuse(), None);
    }
}

pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| rng.u8(..)).collect()
}

pub fn filled(bytes: &[u8]) -> Memory {
    let mapping = Mapping::anonymous(bytes.len() as u64).expect("memory");
    mapping.copy_in(0, bytes);
    Memory::new(&mapping, 0, bytes.len())
}
