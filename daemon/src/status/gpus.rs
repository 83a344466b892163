//! GPUs of the HBM tier in a group's status.
//!
//! Invariant: with several groups on the host, nothing here tells of another: of GPUs only whether they are well.

use lapis_config::Time;
use lapis_tiering::{GpuCounts, face::Counts};
use lapis_transport::wire::Wire;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{Engine, GPU_GROUP},
    gpus::{GpuShown, GpuState, Way, Ways},
    movers::Movers,
};

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
    /// What lies there, of the group that uses GPUs; `None` of other groups, and of a GPU that is lost.
    #[serde(default)]
    pub held: Option<GpuHeld>,
}

/// Of one GPU, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuHeld {
    /// Blocks that readers find there, and the bytes of their slots.
    pub blocks: u64,
    pub used_bytes: u64,
    pub slots_free: u64,
    pub slots_granted: u64,
    pub slots_aside: u64,
}

/// Of all GPUs, since the table was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hbm {
    /// Copies of blocks that came to GPUs from DRAM, that clients put there, and that went to make room.
    pub promotions: u64,
    pub puts: u64,
    pub evictions: u64,
    /// Blocks that left DRAM and stayed on a GPU alone, and that came back to DRAM from one.
    pub demotions: u64,
    pub saved: u64,
    pub copy_failures: u64,
    /// Blocks that went with a GPU.
    pub lost_blocks: u64,
}

impl Hbm {
    pub(super) fn of(counts: &Counts) -> Self {
        Self {
            promotions: counts.hbm_promotions,
            puts: counts.hbm_puts,
            evictions: counts.hbm_evictions,
            demotions: counts.hbm_demotions,
            saved: counts.hbm_saved,
            copy_failures: counts.hbm_copies_failed,
            lost_blocks: counts.hbm_lost,
        }
    }
}

impl GpuHeld {
    fn of(counts: GpuCounts) -> Self {
        let GpuCounts { blocks, bytes_used, slots_free, slots_granted, slots_aside, .. } = counts;
        Self { blocks, used_bytes: bytes_used, slots_free, slots_granted, slots_aside }
    }
}

/// Slots of whatever state on all GPUs; `None` of a group that uses none.
pub(super) fn slots<W: Wire, M: Movers>(engine: &Engine<W, M>, index: usize) -> Option<u64> {
    engine.groups()[index].devices_fd.as_ref()?;
    let counts = (0..engine.gpus().len()).filter_map(|number| engine.gpu_counts(number));
    Some(counts.map(|of| of.blocks + of.slots_free + of.slots_granted + of.slots_busy + of.slots_aside).sum())
}

/// The GPUs as a group is shown them.
pub(super) fn of_group<W: Wire, M: Movers>(engine: &Engine<W, M>, now: Time, index: usize) -> Vec<Gpu> {
    let alone = engine.groups().len() == 1;
    let gpus = engine.gpus().iter().enumerate();
    gpus.map(|(number, gpu)| Gpu::of(gpu, now, alone).with(engine, number, index == GPU_GROUP)).collect()
}

/// All GPUs, with their load, for the metrics.
pub(super) fn totals<W: Wire, M: Movers>(engine: &Engine<W, M>, now: Time) -> Vec<Gpu> {
    let gpus = engine.gpus().iter().enumerate();
    gpus.map(|(number, gpu)| Gpu::of(gpu, now, true).with(engine, number, true)).collect()
}

/// Adds what a group's core counted of GPUs.
pub(super) fn add(sum: &mut Counts, core: &Counts) {
    sum.hbm_promotions += core.hbm_promotions;
    sum.hbm_puts += core.hbm_puts;
    sum.hbm_evictions += core.hbm_evictions;
    sum.hbm_demotions += core.hbm_demotions;
    sum.hbm_saved += core.hbm_saved;
    sum.hbm_copies_failed += core.hbm_copies_failed;
    sum.hbm_lost += core.hbm_lost;
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
    fn of(gpu: &GpuShown, now: Time, alone: bool) -> Self {
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
            held: None,
        }
    }

    fn with<W: Wire, M: Movers>(self, engine: &Engine<W, M>, number: usize, shows: bool) -> Self {
        let counts = engine.gpu_counts(number).filter(|_| shows);
        Self { held: counts.map(GpuHeld::of), ..self }
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
