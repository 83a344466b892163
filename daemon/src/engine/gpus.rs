//! GPUs from the engine's side: which there are, memory of the host for them, and what their threads say.

use std::sync::Arc;

use lapis_config::{OpId, Time};
use lapis_tiering::face::Outcome;
use lapis_transport::wire::Wire;

use super::{Engine, ssd::CORE_BITS};
use crate::{
    gpus::{FromGpu, GpuCopied, GpuShown},
    movers::Movers,
};

impl<W: Wire, M: Movers> Engine<W, M> {
    /// The GPUs of the tier, whose threads the movers have. Memory that is there already is registered with them.
    pub fn set_gpus(&mut self, gpus: Vec<Arc<GpuShown>>) {
        self.gpus = gpus;
        for index in 0..self.groups.len() {
            for extent in 0..self.groups[index].extents.len() {
                self.register_with_gpus(index, extent);
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
            FromGpu::Lost { reason } => tracing::error!(
                gpu = self.gpus.get(gpu).map(|gpu| gpu.uuid()),
                reason,
                "a GPU is lost with all that was on it, the daemon goes on without it: look at nvidia-smi, then restart the daemon"
            ),
        }
    }
}
