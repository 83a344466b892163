//! GPUs from the engine's side: which there are, memory of the host for them, the core's copies as jobs of their threads,
//! and what these say.
//!
//! Invariant: only the first group uses GPUs. Whoever maps an extent of a GPU maps all of it, and groups share nothing.

use std::sync::Arc;

use lapis_config::{GpuId, OpId, Time};
use lapis_tiering::{
    GpuCounts,
    face::{Outcome, Spot},
};
use lapis_transport::wire::Wire;

use super::{
    Engine,
    ssd::{CORE_BITS, wide},
};
use crate::{
    gpus::{FromGpu, GpuCopied, GpuJob, GpuShown, Place},
    kept::GpuHere,
    movers::Movers,
};

/// The group that uses GPUs.
pub(crate) const GROUP: usize = 0;

impl<W: Wire, M: Movers> Engine<W, M> {
    /// Memory of GPUs, by GPU and the memory's number, of which this daemon knows what lies in it. Other memory that was kept
    /// may be read and written by clients that nothing is known of, and must not be used.
    pub fn known_gpu_memory(&self) -> Vec<([u8; 16], u64)> {
        self.groups[GROUP].core.kept().known_memory()
    }

    /// The GPUs of the tier, whose threads the movers have: before the first turn. Memory that is there already is
    /// registered with them. `nodes`: of each its NUMA node, if that is known and counts.
    pub fn set_gpus(&mut self, now: Time, gpus: Vec<Arc<GpuShown>>, nodes: &[Option<u32>]) {
        // Asked once: a thread may lose its GPU at any time.
        let lost: Vec<bool> = gpus.iter().map(|gpu| gpu.is_lost()).collect();
        let here = |(gpu, lost): (&Arc<GpuShown>, &bool)| GpuHere {
            uuid: gpu.info.uuid,
            memory: if *lost { 0 } else { gpu.memory },
        };
        let here: Vec<GpuHere> = gpus.iter().zip(&lost).map(here).collect();
        let core = &mut self.groups[GROUP].core;
        let numbers = core.kept_mut().number_gpus(&here);
        for ((((id, slabs), gpu), lost), node) in numbers.into_iter().zip(&gpus).zip(lost).zip(nodes) {
            self.gpu_ids.push(id);
            if lost {
                continue;
            }
            let (bytes, uuid, slabs_kept) = (gpu.bytes, gpu.uuid(), slabs.len());
            assert!(
                core.gpu_added_at(now, id, bytes, *node),
                "there is memory for GPUs, and a GPU has a number of its own"
            );
            slabs.into_iter().for_each(|slab| core.adopt_gpu_slab(id, slab));
            tracing::info!(gpu = uuid, number = id.0, bytes, slabs_kept, node, "a GPU of the tier");
        }
        self.gpus = gpus;
        for index in 0..self.groups.len() {
            for extent in 0..self.groups[index].extents.len() {
                self.register_with_gpus(index, extent);
            }
        }
    }

    /// What a group took over on GPUs, for the log.
    pub(super) fn say_adopted_on_gpus(&self, index: usize) {
        for (id, gpu) in self.gpus_of(index) {
            let GpuCounts { blocks, slots_granted, slots_aside, .. } =
                self.groups[index].core.gpu_counts(id).unwrap_or_default();
            if blocks + slots_granted + slots_aside > 0 {
                let (gpu, aside, granted) = (gpu.uuid(), slots_aside, slots_granted);
                tracing::info!(gpu, blocks, aside, granted, "took over what the former daemon had on a GPU");
            }
        }
    }

    /// The GPUs that a group has memory on now, as its device table calls them.
    pub(crate) fn gpus_of(&self, index: usize) -> Vec<(GpuId, Arc<GpuShown>)> {
        let all = self.gpu_ids.iter().copied().zip(self.gpus.iter().cloned());
        all.filter(|(id, gpu)| index == GROUP && !gpu.is_lost() && self.groups[index].core.gpu_counts(*id).is_some())
            .collect()
    }

    /// What the core has on each GPU, in the order of `gpus`; `None`: nothing is used there.
    pub fn gpu_counts(&self, gpu: usize) -> Option<GpuCounts> {
        self.groups[GROUP].core.gpu_counts(*self.gpu_ids.get(gpu)?)
    }

    /// A copy of the core, to be submitted with the others of this turn.
    pub(super) fn copy_by_gpu(&mut self, index: usize, op: OpId, [from, to]: [Spot; 2], bytes: u32) {
        let id = match (to, from) {
            (Spot::Hbm(id, _), _) | (Spot::Dram(_), Spot::Hbm(id, _)) => id,
            (Spot::Dram(_), Spot::Dram(_)) => unreachable!("a copy has an end on a GPU"),
        };
        let [from, to] = [from, to].map(|spot| self.gpu_place(index, spot));
        let job = GpuJob { op: wide(index, op), from, to, bytes: bytes.into() };
        self.gpu_jobs.entry(self.gpu_of(id)).or_default().push(job);
    }

    /// Where the bytes of a spot begin.
    fn gpu_place(&self, index: usize, spot: Spot) -> Place {
        match spot {
            Spot::Dram(slot) => {
                let (extent, offset) = self.groups[index].extent_of(slot);
                Place::Dram { group: index, extent, offset }
            }
            Spot::Hbm(id, slot) => Place::Hbm { gpu: self.gpu_of(id), offset: slot.offset_bytes() },
        }
    }

    fn gpu_of(&self, id: GpuId) -> usize {
        self.gpu_ids.iter().position(|known| *known == id).expect("the core knows GPUs by what it was told")
    }

    pub(super) fn submit_copies(&mut self) {
        while let Some((gpu, jobs)) = self.gpu_jobs.pop_first() {
            self.movers.copy_by_gpu(gpu, jobs);
        }
    }

    /// Tells the core of GPUs that were lost; not while it takes over what a former daemon had on them.
    pub(super) fn bury_gpus(&mut self, now: Time, index: usize) {
        if index == GROUP {
            for id in std::mem::take(&mut self.gpus_lost) {
                let core = &mut self.groups[GROUP].core;
                // First: what clients have there is forgotten now.
                core.kept_mut().forget_gpu_memory(id);
                core.gpu_lost(now, id);
            }
        }
    }

    /// The GPUs of the tier, by number.
    pub fn gpus(&self) -> &[Arc<GpuShown>] {
        &self.gpus
    }

    /// An extent that has all its memory is one that GPUs may copy from and to.
    pub(super) fn register_with_gpus(&mut self, index: usize, extent: usize) {
        let memory = &self.groups[index].extents[extent];
        if !self.gpus.is_empty() && memory.populated_bytes == memory.bytes() {
            self.movers.register_with_gpus(index, extent, &memory.mapping);
        }
    }

    pub(super) fn gpu_said(&mut self, now: Time, gpu: usize, said: FromGpu) {
        match said {
            FromGpu::Copied(ended) => {
                for GpuCopied { op, outcome } in ended {
                    let (group, own) = (op.0 >> CORE_BITS, OpId(op.0 & ((1 << CORE_BITS) - 1)));
                    let outcome = match outcome {
                        Ok(()) => Outcome::Ok,
                        Err(error) => {
                            tracing::debug!(gpu, %error, "a copy failed");
                            Outcome::Failed
                        }
                    };
                    self.groups[group as usize].core.completed(now, own, outcome);
                }
            }
            FromGpu::Lost { reason } => {
                tracing::error!(
                    gpu = self.gpus.get(gpu).map(|gpu| gpu.uuid()),
                    reason,
                    "a GPU is lost with all that was on it, the daemon goes on without it: look at nvidia-smi, then restart the daemon"
                );
                self.gpus_lost.extend(self.gpu_ids.get(gpu));
            }
        }
    }
}
