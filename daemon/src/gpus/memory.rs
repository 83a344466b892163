//! The memory of GPUs that the daemon has: taken over from a former daemon where that is what is wanted now, else new.
//!
//! Invariant: memory is taken over only if its number is the one that the group's kept memory has for the GPU. New memory has
//! another number, so that a daemon that ends before it said there what became of the former one leaves nothing that is believed.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lapis_arena::hbm::{Device, DeviceInfo, HbmError, HbmExtent, Shared};
use lapis_config::{GPUS_MAX, GpuName};
use lapis_transport::hold::Keeper;

use super::{
    Found, GpuOptions, described,
    error::GpusError,
    kept::{self, Kept},
    shown::{GpuShown, SharedExtent},
    within,
};
use crate::{group::Start, serve};

/// How long memory that was given back is waited for: systemd closes descriptors when it comes to it.
const FREED_WAIT: Duration = Duration::from_secs(5);
const FREED_PAUSE: Duration = Duration::from_millis(20);

/// What a GPU that is there has.
#[derive(Debug)]
pub struct Memory {
    pub device: Arc<Device>,
    /// In the order of its slots.
    pub extents: Vec<Arc<HbmExtent>>,
}

/// A GPU of the tier.
#[derive(Debug)]
pub struct OpenGpu {
    pub shown: Arc<GpuShown>,
    /// `None`: it was lost before it began.
    pub memory: Option<Memory>,
}

type KeptOfOne = Vec<(Kept, OwnedFd)>;
type KeptByUuid = BTreeMap<[u8; 16], KeptOfOne>;

/// All extents of a GPU, each with how others get at it.
struct Extents {
    /// The number of this memory.
    memory: u64,
    all: Vec<(HbmExtent, Shared)>,
}

/// A GPU on the way to its memory.
struct Opening {
    info: DeviceInfo,
    /// An error: it is lost.
    device: Result<Arc<Device>, String>,
    /// Names under which memory of it was kept.
    names: Vec<String>,
    /// What was taken over; else new memory is to be made, and why.
    taken: Result<Extents, Start>,
}

/// A GPU with its memory, or lost.
struct Opened {
    info: DeviceInfo,
    has: Result<(Arc<Device>, Extents, Start), String>,
}

/// Takes what is of GPUs out of what the keeper had.
pub fn take_kept(found: &mut Vec<(String, OwnedFd)>) -> Vec<(String, OwnedFd)> {
    found.extract_if(.., |(name, _)| kept::is_ours(name)).collect()
}

/// Gives all back that was kept: no GPU is used any more.
pub fn give_back(kept: Vec<(String, OwnedFd)>, keeper: &mut dyn Keeper) -> Result<(), GpusError> {
    for (name, _) in kept {
        tracing::warn!(name, "GPU memory of a former daemon is given back: hbm.bytes is 0");
        forget(keeper, &name)?;
    }
    Ok(())
}

impl Found {
    /// Takes the memory over that was kept, or makes it. `known`: by GPU, the number of the memory of which is known what lies
    /// in it; no other is taken over. What is kept and not wanted is given back first. Waits for the driver twice, each time as
    /// long as `find` does.
    pub fn open(
        self,
        kept: Vec<(String, OwnedFd)>,
        known: &[([u8; 16], u64)],
        keeper: &mut dyn Keeper,
    ) -> Result<Vec<OpenGpu>, GpusError> {
        let (by_uuid, others) = self.sorted(kept, keeper)?;
        let peers: Vec<Arc<Device>> = self.devices.iter().filter_map(|(_, device)| device.clone().ok()).collect();
        let (mut forgot, options) = (!others.is_empty(), self.options.clone());
        let take = {
            let (peers, known) = (peers.clone(), known.to_vec());
            move || take_all(self, by_uuid, &others, &known, &peers)
        };
        let openings = within(options.wait_max, take)?;
        for opening in openings.iter().filter(|opening| opening.taken.is_err()) {
            for name in &opening.names {
                forgot = true;
                forget(keeper, name)?;
            }
        }
        let patience = if forgot { FREED_WAIT } else { Duration::ZERO };
        let wait_max = options.wait_max + patience * openings.len() as u32;
        let make = {
            let options = options.clone();
            move || {
                let of = |opening| complete(&options, opening, &peers, patience);
                openings.into_iter().map(of).collect::<Result<Vec<Opened>, GpusError>>()
            }
        };
        let opened = within(wait_max, make)??;
        opened.into_iter().map(|opened| keep(&options, opened, keeper)).collect()
    }

    /// What was kept by GPU, and the names of GPUs that are not used now: theirs is given back.
    fn sorted(
        &self,
        kept: Vec<(String, OwnedFd)>,
        keeper: &mut dyn Keeper,
    ) -> Result<(KeptByUuid, Vec<String>), GpusError> {
        let (mut by_uuid, mut others): (BTreeMap<_, KeptOfOne>, Vec<String>) = (BTreeMap::new(), Vec::new());
        for (name, fd) in kept {
            match kept::parse(&name) {
                Some(kept) if self.devices.iter().any(|(info, _)| info.uuid == kept.uuid) => {
                    by_uuid.entry(kept.uuid).or_default().push((kept, fd));
                }
                kept => {
                    let of = kept.map_or_else(|| name.clone(), |kept| GpuName::Uuid(kept.uuid).to_string());
                    tracing::warn!(name, "GPU memory of a former daemon is given back: that GPU is not used now");
                    forget(keeper, &name)?;
                    if !others.contains(&of) {
                        others.push(of);
                    }
                }
            }
        }
        Ok((by_uuid, others))
    }
}

/// Takes over what can be, of each GPU.
fn take_all(
    found: Found,
    mut by_uuid: KeptByUuid,
    others: &[String],
    known: &[([u8; 16], u64)],
    peers: &[Arc<Device>],
) -> Vec<Opening> {
    let Found { options, devices, seen: _ } = found;
    let of = |(info, device): (DeviceInfo, Result<Arc<Device>, String>)| {
        let kept = by_uuid.remove(&info.uuid).unwrap_or_default();
        let names: Vec<String> = kept.iter().map(|(kept, _)| kept.to_string()).collect();
        let memory = known.iter().find(|(uuid, _)| *uuid == info.uuid).map(|(_, memory)| *memory);
        let taken = match &device {
            Ok(device) if !kept.is_empty() => take_over(&options, device, kept, memory, peers).map_err(Start::Cold),
            Ok(_) if !others.is_empty() => Err(Start::Cold(format!("what was kept is of {}", others.join(", ")))),
            Ok(_) => Err(Start::Fresh),
            Err(_) => Err(Start::Cold("the GPU is lost".into())),
        };
        Opening { info, device, names, taken }
    };
    devices.into_iter().map(of).collect()
}

/// The extents that were kept. An error says why they are not those that are wanted.
fn take_over(
    options: &GpuOptions,
    device: &Arc<Device>,
    mut kept: KeptOfOne,
    known: Option<u64>,
    peers: &[Arc<Device>],
) -> Result<Extents, String> {
    if !device.info().has_descriptors {
        return Err("the driver takes no descriptors of memory now".into());
    }
    kept.sort_by(|(one, _), (other, _)| one.cmp(other));
    let (kept, fds): (Vec<Kept>, Vec<OwnedFd>) = kept.into_iter().unzip();
    kept::fits(&kept, &options.extents_bytes())?;
    let memory = kept::is_known(&kept, known)?;
    let import = |(kept, fd): (&Kept, OwnedFd)| {
        let shared = Shared::Descriptor(fd);
        let extent = whatever_peers(device, || HbmExtent::import(device, &shared, kept.bytes, peers))
            .map_err(|error| format!("extent {} cannot be used: {error}", kept.index))?;
        Ok((extent, shared))
    };
    let all: Result<Vec<_>, String> = kept.iter().zip(fds).map(import).collect();
    Ok(Extents { memory, all: all? })
}

/// Makes memory where none was taken over.
fn complete(
    options: &GpuOptions,
    opening: Opening,
    peers: &[Arc<Device>],
    patience: Duration,
) -> Result<Opened, GpusError> {
    let Opening { info, device, taken, .. } = opening;
    let device = match device {
        Ok(device) => device,
        Err(reason) => return Ok(Opened { info, has: Err(reason) }),
    };
    let has = match taken {
        Ok(extents) => Ok((device, extents, Start::Warm)),
        Err(start) => match make(options, &device, peers, patience) {
            Ok(extents) => Ok((device, extents, start)),
            Err(GpusError::Gpu { source, .. }) if source.is_lost() => Err(source.to_string()),
            Err(error) => return Err(error),
        },
    };
    Ok(Opened { info, has })
}

fn make(
    options: &GpuOptions,
    device: &Arc<Device>,
    peers: &[Arc<Device>],
    patience: Duration,
) -> Result<Extents, GpusError> {
    let began = Instant::now();
    let sizes = options.extents_bytes();
    let extents = loop {
        let create = |&bytes: &u64| whatever_peers(device, || HbmExtent::create(device, bytes, peers));
        let made: Result<Vec<HbmExtent>, HbmError> = sizes.iter().map(create).collect();
        match made {
            Ok(extents) => break extents,
            Err(HbmError::Full { .. }) if began.elapsed() < patience => thread::sleep(FREED_PAUSE),
            Err(HbmError::Full { .. }) => {
                let (free, total) = device.memory().unwrap_or((0, device.info().bytes));
                let gpu = described(device.info());
                return Err(GpusError::Full { gpu, free, total, asked: options.bytes });
            }
            Err(source) => return Err(GpusError::of(device.info(), "make memory", source)),
        }
    };
    let share = |extent: HbmExtent| {
        let shared = extent.share().map_err(|source| GpusError::of(device.info(), "share memory", source))?;
        Ok((extent, shared))
    };
    let all: Result<Vec<_>, GpusError> = extents.into_iter().map(share).collect();
    Ok(Extents { memory: serve::entropy(), all: all? })
}

/// Gives new memory to the keeper, and says how the GPU began.
fn keep(options: &GpuOptions, opened: Opened, keeper: &mut dyn Keeper) -> Result<OpenGpu, GpusError> {
    let Opened { info, has } = opened;
    let gpu = described(&info);
    let (device, Extents { memory, all }, start) = match has {
        Ok(has) => has,
        Err(reason) => return Ok(lost(options, info, &gpu, reason)),
    };
    for (index, (extent, shared)) in all.iter().enumerate() {
        if let (Shared::Descriptor(fd), false) = (shared, start == Start::Warm) {
            let name = kept::name_of(info.uuid, index, extent.bytes(), memory);
            keeper.keep(&name, fd.as_fd()).map_err(|source| GpusError::Keeper { op: "keep", source })?;
        }
    }
    let start = match start {
        Start::Fresh if !info.has_descriptors => {
            Start::Cold("its memory is shared by CUDA IPC, which no restart outlives".into())
        }
        start => start,
    };
    match &start {
        Start::Cold(_) => tracing::warn!(gpu, bytes = options.bytes, %start, "memory of a GPU: nothing in it is known"),
        _ => tracing::info!(gpu, bytes = options.bytes, %start, extents = all.len(), "memory of a GPU"),
    }
    let (mut extents, mut ways) = (Vec::new(), Vec::new());
    for (extent, shared) in all {
        ways.push(SharedExtent { bytes: extent.bytes(), shared });
        extents.push(Arc::new(extent));
    }
    let shown = Arc::new(GpuShown::new(info, options.bytes, start, memory, ways));
    Ok(OpenGpu { shown, memory: Some(Memory { device, extents }) })
}

/// Tries again when another GPU turned out to be lost, which is then passed over.
fn whatever_peers<T>(device: &Device, mut attempt: impl FnMut() -> Result<T, HbmError>) -> Result<T, HbmError> {
    let mut tries = GPUS_MAX;
    loop {
        match attempt() {
            Err(error) if error.is_lost() && !device.is_lost() && tries > 0 => tries -= 1,
            done => return done,
        }
    }
}

/// It stays in the list, without memory.
fn lost(options: &GpuOptions, info: DeviceInfo, gpu: &str, reason: String) -> OpenGpu {
    tracing::error!(
        gpu,
        reason,
        "a GPU is lost, the daemon goes on without it: look at nvidia-smi, then start it again"
    );
    let shown = GpuShown::new(info, options.bytes, Start::Cold("the GPU is lost".into()), 0, Vec::new());
    shown.lose(reason);
    OpenGpu { shown: Arc::new(shown), memory: None }
}

fn forget(keeper: &mut dyn Keeper, name: &str) -> Result<(), GpusError> {
    keeper.forget(name).map_err(|source| GpusError::Keeper { op: "drop", source })
}
