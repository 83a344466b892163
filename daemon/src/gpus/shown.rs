//! What is known of a GPU without asking its thread, which may hang: counted by both sides, read by the status.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use lapis_arena::hbm::{DeviceInfo, Shared};
use lapis_config::{GpuName, Time};

use crate::{group::Start, serve};

/// A thread that gives no sign of life, or a copy that does not end, for so long.
const HANGS_US: u64 = 10_000_000;

/// How bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From memory of the host to the GPU.
    In,
    /// From the GPU to memory of the host.
    Out,
    /// Within the GPU, or from another one.
    Across,
}

/// Copies that ended well, by `Way`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    pub copies: [u64; 3],
    pub bytes: [u64; 3],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuState {
    Well,
    /// No sign of life from its driver; it may come back.
    Hangs,
    /// Gone with all that was on it, until the daemon is started again.
    Lost(String),
}

/// An extent as other processes get at it.
#[derive(Debug)]
pub struct SharedExtent {
    pub bytes: u64,
    pub shared: Shared,
}

#[derive(Debug)]
pub struct GpuShown {
    pub info: DeviceInfo,
    /// Of the tier.
    pub bytes: u64,
    pub start: Start,
    /// The number of its memory, which that alone has; 0: it has none.
    pub memory: u64,
    /// Whether its memory is of descriptors, which a keeper keeps over restarts.
    pub is_kept: bool,
    /// In the order of its slots.
    pub extents: Vec<SharedExtent>,
    copies: [AtomicU64; 3],
    copied_bytes: [AtomicU64; 3],
    errors: AtomicU64,
    in_flight: AtomicU64,
    registered_bytes: AtomicU64,
    /// When its thread went on last, and when a copy ended last or the first of many began.
    alive_us: AtomicU64,
    moved_us: AtomicU64,
    lost: OnceLock<String>,
}

impl GpuShown {
    pub(super) fn new(info: DeviceInfo, bytes: u64, start: Start, memory: u64, extents: Vec<SharedExtent>) -> Self {
        let (now, is_kept) = (AtomicU64::new(serve::now().0), memory != 0 && info.has_descriptors);
        Self {
            info,
            bytes,
            start,
            memory,
            is_kept,
            extents,
            copies: Default::default(),
            copied_bytes: Default::default(),
            errors: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            registered_bytes: AtomicU64::new(0),
            moved_us: AtomicU64::new(serve::now().0),
            alive_us: now,
            lost: OnceLock::new(),
        }
    }

    pub fn uuid(&self) -> String {
        GpuName::Uuid(self.info.uuid).to_string()
    }

    pub fn ways(&self) -> Ways {
        let read = |counts: &[AtomicU64; 3]| [0, 1, 2].map(|way: usize| counts[way].load(Relaxed));
        Ways { copies: read(&self.copies), bytes: read(&self.copied_bytes) }
    }

    /// Copies that failed, and those that ended with the GPU.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// Memory of the host that it copies from and to.
    pub fn registered_bytes(&self) -> u64 {
        self.registered_bytes.load(Relaxed)
    }

    pub fn state(&self, now: Time) -> GpuState {
        if let Some(reason) = self.lost.get() {
            return GpuState::Lost(reason.clone());
        }
        let silent = |at: &AtomicU64| now.0.saturating_sub(at.load(Relaxed)) >= HANGS_US;
        let hangs = silent(&self.alive_us) || self.in_flight() > 0 && silent(&self.moved_us);
        if hangs { GpuState::Hangs } else { GpuState::Well }
    }

    pub(super) fn asked(&self, jobs: u64) {
        if self.in_flight.fetch_add(jobs, Relaxed) == 0 {
            self.moved_us.store(serve::now().0, Relaxed);
        }
    }

    pub(super) fn ended(&self, way: Way, bytes: u64, ok: bool) {
        if ok {
            self.copies[way as usize].fetch_add(1, Relaxed);
            self.copied_bytes[way as usize].fetch_add(bytes, Relaxed);
        } else {
            self.errors.fetch_add(1, Relaxed);
        }
        self.moved_us.store(serve::now().0, Relaxed);
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(super) fn is_alive(&self) {
        self.alive_us.store(serve::now().0, Relaxed);
    }

    pub(super) fn registered(&self, bytes: u64) {
        self.registered_bytes.fetch_add(bytes, Relaxed);
    }

    /// True if it was not lost before.
    pub(super) fn lose(&self, reason: String) -> bool {
        self.lost.set(reason).is_ok()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> GpuShown {
        GpuShown::new(super::super::chosen::info(0), 2 << 20, Start::Fresh, 7, Vec::new())
    }

    #[test]
    fn a_gpu_hangs_while_its_copies_do_not_end_or_its_thread_does_not_go_on() {
        let gpu = shown();
        let late = |us: u64| Time(serve::now().0 + us);
        assert_eq!((gpu.state(late(0)), gpu.state(late(HANGS_US))), (GpuState::Well, GpuState::Hangs));
        gpu.alive_us.store(u64::MAX, Relaxed);
        assert_eq!(gpu.state(late(HANGS_US)), GpuState::Well, "nothing was asked of it");
        gpu.asked(2);
        assert_eq!(gpu.state(late(HANGS_US)), GpuState::Hangs);
        gpu.ended(Way::In, 4096, true);
        gpu.ended(Way::Across, 4096, false);
        assert_eq!(gpu.state(late(HANGS_US)), GpuState::Well);
        assert_eq!(gpu.ways(), Ways { copies: [1, 0, 0], bytes: [4096, 0, 0] });
        assert_eq!((gpu.errors(), gpu.in_flight()), (1, 0));
    }

    #[test]
    fn it_is_lost_once() {
        let gpu = shown();
        assert!(gpu.lose("off the bus".into()) && !gpu.lose("again".into()));
        assert_eq!(gpu.state(serve::now()), GpuState::Lost("off the bus".into()));
    }
}
