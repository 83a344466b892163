//! Memory of the daemon on other GPUs of the host, which a GPU reads by itself. Looked for when a block is found there first:
//! it takes a context on that GPU, for as long as the client lives, so that it is asked whether it still answers. What is
//! far, and in DRAM too, is not worth that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
};

use lapis_arena::hbm::{Cuda, Device, DeviceInfo, HbmError, Shared};
use lapis_config::{
    GpuId,
    topology::{Distance, Topology, place::reads_peer},
};

use super::{GpuOffer, Gpus, OpenGpu, Slices, import};
use crate::{ClientError, session::lock};

/// What is reached of another GPU.
#[derive(Debug)]
pub(super) struct Peer {
    pub device: Arc<Device>,
    pub slices: Slices,
}

/// By the daemon's name of the GPU.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// `None` where it was tried and cannot be.
    reached: Mutex<BTreeMap<GpuId, Option<Arc<Peer>>>>,
    /// Whether blocks that are in DRAM too are read from there.
    near: Mutex<BTreeMap<GpuId, bool>>,
}

impl OpenGpu {
    /// Whether a block that lies on another GPU and in DRAM is read from that GPU. Opens nothing.
    pub(super) fn reads_from(&self, id: GpuId) -> bool {
        let Some(offer) = self.told.as_ref().and_then(|told| told.offers.iter().find(|offer| offer.id == id)) else {
            return false;
        };
        let near = || {
            self.is_near(offer).unwrap_or_else(|error| {
                tracing::debug!(%error, "the way to another GPU is not known: blocks come from DRAM");
                false
            })
        };
        *lock(&self.peers.near).entry(id).or_insert_with(near)
    }

    fn is_near(&self, offer: &GpuOffer) -> Result<bool, ClientError> {
        let cuda = Cuda::load(None).map_err(ClientError::no_cuda)?;
        let failed = |error: HbmError| ClientError::gpu("looking for the way to another GPU")(error);
        let Some(other) = seen(&cuda, offer).map_err(failed)? else { return Ok(false) };
        let link = cuda.link(self.device.index(), other.index).map_err(failed)?;
        Ok(link.is_some_and(|link| reads_peer(link, distance(self.device.info(), &other))))
    }

    /// Whether `peer` would open nothing.
    pub(super) fn has_reached(&self, id: GpuId) -> bool {
        lock(&self.peers.reached).contains_key(&id)
    }

    /// Another GPU whose memory this one reads, if it can and while that one lives.
    pub(super) fn peer(&self, gpus: &Gpus, id: GpuId) -> Option<Arc<Peer>> {
        let offer = self.told.as_ref()?.offers.iter().find(|offer| offer.id == id)?;
        let mut known = lock(&self.peers.reached);
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
        let Some(other) = seen(&cuda, offer).map_err(failed)? else { return Ok(None) };
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

/// `None`: the process does not see it, as where it was shown its own alone.
fn seen(cuda: &Cuda, offer: &GpuOffer) -> Result<Option<DeviceInfo>, HbmError> {
    Ok(cuda.devices()?.into_iter().find(|info| info.uuid == offer.uuid))
}

/// By the host's PCI devices, which are read once: they lie where they lie.
fn distance(one: &DeviceInfo, other: &DeviceInfo) -> Distance {
    static HERE: OnceLock<Topology> = OnceLock::new();
    let here = HERE.get_or_init(Topology::here);
    match (here.gpu(&one.pci_bus_id), here.gpu(&other.pci_bus_id)) {
        (Some(one), Some(other)) => here.distance(one, other),
        _ => Distance::Unknown,
    }
}
