//! GPUs of the HBM tier in a group's status.
//!
//! Invariant: with several groups on the host, nothing here tells of another: of GPUs only whether they are well.

use lapis_config::Time;
use serde::{Deserialize, Serialize};

use crate::gpus::{GpuShown, GpuState, Way, Ways};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// As the driver counts them.
    pub index: u16,
    pub name: String,
    pub uuid: String,
    pub pci_bus_id: String,
    /// Of the tier, not of the GPU.
    pub bytes: u64,
    /// How its memory began: "fresh", "warm", or "cold: " and why.
    pub start: String,
    /// Whether its memory is of descriptors that can be kept over restarts.
    pub kept: bool,
    /// "well", "hangs" (its driver does not answer, or copies do not end) or "lost" (until the daemon is started again).
    pub state: String,
    pub why_lost: Option<String>,
    /// `None` where the host has several groups.
    pub load: Option<GpuLoad>,
}

/// Since the daemon's start. In: from memory of the host to the GPU; out: back; across: within it, or from another GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuLoad {
    pub copies_in: u64,
    pub bytes_in: u64,
    pub copies_out: u64,
    pub bytes_out: u64,
    pub copies_across: u64,
    pub bytes_across: u64,
    /// Copies that failed, or ended with the GPU.
    pub errors: u64,
    pub copies_in_flight: u64,
    /// Memory of the host that the GPU copies from and to.
    pub registered_bytes: u64,
}

impl Gpu {
    pub(super) fn of(gpu: &GpuShown, now: Time, alone: bool) -> Self {
        let (state, why_lost) = match gpu.state(now) {
            GpuState::Well => ("well", None),
            GpuState::Hangs => ("hangs", None),
            GpuState::Lost(reason) => ("lost", Some(reason)),
        };
        Self {
            index: gpu.info.index,
            name: gpu.info.name.clone(),
            uuid: gpu.uuid(),
            pci_bus_id: gpu.info.pci_bus_id.clone(),
            bytes: gpu.bytes,
            start: gpu.start.to_string(),
            kept: gpu.is_kept,
            state: state.into(),
            why_lost,
            load: alone.then(|| GpuLoad::of(gpu)),
        }
    }
}

impl GpuLoad {
    fn of(gpu: &GpuShown) -> Self {
        let Ways { copies, bytes } = gpu.ways();
        Self {
            copies_in: copies[Way::In as usize],
            bytes_in: bytes[Way::In as usize],
            copies_out: copies[Way::Out as usize],
            bytes_out: bytes[Way::Out as usize],
            copies_across: copies[Way::Across as usize],
            bytes_across: bytes[Way::Across as usize],
            errors: gpu.errors(),
            copies_in_flight: gpu.in_flight(),
            registered_bytes: gpu.registered_bytes(),
        }
    }
}

/// All GPUs, with their load, for the metrics.
pub(super) fn totals(gpus: &[std::sync::Arc<GpuShown>], now: Time) -> Vec<Gpu> {
    gpus.iter().map(|gpu| Gpu::of(gpu, now, true)).collect()
}
