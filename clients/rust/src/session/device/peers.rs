//! Memory of the daemon on other GPUs of the host, which a GPU reads by itself. Looked for when a block is found there first:
//! it takes a context on that GPU, for as long as the client lives, so that it is asked whether it still answers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use lapis_arena::hbm::{Cuda, Device, HbmError, Shared};
use lapis_config::GpuId;

use super::{GpuOffer, Gpus, OpenGpu, Slices, import};
use crate::{ClientError, session::lock};

/// What is reached of another GPU.
#[derive(Debug)]
pub(super) struct Peer {
    pub device: Arc<Device>,
    pub slices: Slices,
}

/// By the daemon's name of the GPU; `None` where it was tried and cannot be.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<BTreeMap<GpuId, Option<Arc<Peer>>>>);

impl OpenGpu {
    /// Another GPU whose memory this one reads, if it can and while that one lives.
    pub(super) fn peer(&self, gpus: &Gpus, id: GpuId) -> Option<Arc<Peer>> {
        let offer = self.told.as_ref()?.offers.iter().find(|offer| offer.id == id)?;
        let mut known = lock(&self.peers.0);
        let peer = known.entry(id).or_insert_with(|| {
            self.reach(gpus, offer).unwrap_or_else(|error| {
                tracing::warn!(%error, "blocks on another GPU come by way of DRAM");
                None
            })
        });
        peer.clone().filter(|peer| !peer.device.is_lost())
    }

    fn reach(&self, gpus: &Gpus, offer: &GpuOffer) -> Result<Option<Arc<Peer>>, ClientError> {
        let cuda = Cuda::load(None).map_err(ClientError::no_cuda)?;
        let failed = |error: HbmError| ClientError::gpu("reaching another GPU")(error);
        // One that the process does not see, as where it was shown its own alone.
        let all = cuda.devices().map_err(failed)?;
        let Some(other) = all.iter().find(|info| info.uuid == offer.uuid) else { return Ok(None) };
        let own = &self.device;
        if other.index == own.index() || !cuda.can_reach(own.index(), other.index).map_err(failed)? {
            return Ok(None);
        }
        let device = lock(&gpus.opened).device(other.index)?;
        // By CUDA IPC memory is opened by who reads it; else it is mapped by its own device, which lets the reader in.
        let by_ipc = offer.extents.iter().any(|(_, shared)| matches!(shared, Shared::Ipc(_)));
        let slices = if by_ipc { import(own, offer, &[]) } else { import(&device, offer, std::slice::from_ref(own)) };
        let slices = slices.map_err(failed)?;
        let is_reached = slices.extents.iter().all(|extent| extent.is_reached_by(own.index()));
        Ok(is_reached.then(|| Arc::new(Peer { device, slices })))
    }
}
