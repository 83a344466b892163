//! The memory of GPUs that the daemon has: taken over from a former daemon where that is what is wanted now, else new.

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
};
use crate::group::Start;

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
type Taken = Result<Vec<HbmExtent>, Start>;

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
    /// Takes the memory over that was kept, or makes it. What is kept and not wanted is given back first.
    pub fn open(self, kept: Vec<(String, OwnedFd)>, keeper: &mut dyn Keeper) -> Result<Vec<OpenGpu>, GpusError> {
        let (mut by_uuid, others) = self.sorted(kept, keeper)?;
        let mut forgot = !others.is_empty();
        let devices: Vec<Arc<Device>> = self.devices.iter().filter_map(|(_, device)| device.clone().ok()).collect();
        let mut opened: Vec<(DeviceInfo, Result<Arc<Device>, String>, Taken)> = Vec::new();
        for (info, device) in self.devices {
            let kept = by_uuid.remove(&info.uuid).unwrap_or_default();
            let names: Vec<String> = kept.iter().map(|(kept, _)| kept.to_string()).collect();
            let taken = match &device {
                Ok(_) if !kept.is_empty() && self.without_former => Err(Start::Cold(why_unknown(&self.options, &kept))),
                Ok(device) if !kept.is_empty() => take_over(&self.options, device, kept, &devices).map_err(Start::Cold),
                Ok(_) if !others.is_empty() => Err(Start::Cold(format!("what was kept is of {}", others.join(", ")))),
                Ok(_) => Err(Start::Fresh),
                Err(_) => Err(Start::Cold("the GPU is lost".into())),
            };
            if taken.is_err() {
                for name in &names {
                    forgot = true;
                    forget(keeper, name)?;
                }
            }
            opened.push((info, device, taken));
        }
        let patience = if forgot { FREED_WAIT } else { Duration::ZERO };
        let open = |(info, device, taken)| open_one(&self.options, info, device, taken, &devices, patience, keeper);
        opened.into_iter().map(open).collect()
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

/// Why nothing is known of what was kept: it is not what is wanted, as a rule.
fn why_unknown(options: &GpuOptions, kept: &KeptOfOne) -> String {
    let mut kept: Vec<Kept> = kept.iter().map(|(kept, _)| kept.clone()).collect();
    kept.sort();
    let fits = kept::fits(&kept, &options.extents_bytes());
    fits.err().unwrap_or_else(|| "nothing is known any more of what was kept".into())
}

/// The extents that were kept. An error says why they are not those that are wanted.
fn take_over(
    options: &GpuOptions,
    device: &Arc<Device>,
    mut kept: KeptOfOne,
    devices: &[Arc<Device>],
) -> Result<Vec<HbmExtent>, String> {
    if !device.info().has_descriptors {
        return Err("the driver takes no descriptors of memory now".into());
    }
    kept.sort_by(|(one, _), (other, _)| one.cmp(other));
    let (kept, fds): (Vec<Kept>, Vec<OwnedFd>) = kept.into_iter().unzip();
    kept::fits(&kept, &options.extents_bytes())?;
    let import = |(kept, fd): (&Kept, OwnedFd)| {
        let shared = Shared::Descriptor(fd);
        whatever_peers(device, || HbmExtent::import(device, &shared, kept.bytes, devices))
            .map_err(|error| format!("extent {} cannot be used: {error}", kept.index))
    };
    kept.iter().zip(fds).map(import).collect()
}

fn open_one(
    options: &GpuOptions,
    info: DeviceInfo,
    device: Result<Arc<Device>, String>,
    taken: Taken,
    devices: &[Arc<Device>],
    patience: Duration,
    keeper: &mut dyn Keeper,
) -> Result<OpenGpu, GpusError> {
    let gpu = described(&info);
    let device = match device {
        Ok(device) => device,
        Err(reason) => return Ok(lost(options, info, &gpu, reason)),
    };
    let (extents, start) = match taken {
        Ok(extents) => (extents, Start::Warm),
        Err(start) => match make(options, &device, devices, patience) {
            Ok(extents) => (extents, start),
            Err(GpusError::Gpu { source, .. }) if source.is_lost() => {
                return Ok(lost(options, info, &gpu, source.to_string()));
            }
            Err(error) => return Err(error),
        },
    };
    let mut shared = Vec::new();
    for (index, extent) in extents.iter().enumerate() {
        let handle = match extent.share() {
            Err(error) if error.is_lost() => return Ok(lost(options, info, &gpu, error.to_string())),
            handle => handle.map_err(|source| GpusError::of(&info, "share memory", source))?,
        };
        if let (Shared::Descriptor(fd), false) = (&handle, start == Start::Warm) {
            let name = kept::name_of(info.uuid, index, extent.bytes());
            keeper.keep(&name, fd.as_fd()).map_err(|source| GpusError::Keeper { op: "keep", source })?;
        }
        shared.push(SharedExtent { bytes: extent.bytes(), shared: handle });
    }
    let is_kept = info.has_descriptors;
    let start = match start {
        Start::Fresh if !is_kept => Start::Cold("its memory is shared by CUDA IPC, which no restart outlives".into()),
        start => start,
    };
    match &start {
        Start::Cold(_) => tracing::warn!(gpu, bytes = options.bytes, %start, "memory of a GPU: nothing in it is known"),
        _ => tracing::info!(gpu, bytes = options.bytes, %start, extents = extents.len(), "memory of a GPU"),
    }
    let shown = Arc::new(GpuShown::new(info, options.bytes, start, is_kept, shared));
    let extents = extents.into_iter().map(Arc::new).collect();
    Ok(OpenGpu { shown, memory: Some(Memory { device, extents }) })
}

fn make(
    options: &GpuOptions,
    device: &Arc<Device>,
    devices: &[Arc<Device>],
    patience: Duration,
) -> Result<Vec<HbmExtent>, GpusError> {
    let began = Instant::now();
    let sizes = options.extents_bytes();
    loop {
        let create = |&bytes: &u64| whatever_peers(device, || HbmExtent::create(device, bytes, devices));
        let made: Result<Vec<HbmExtent>, HbmError> = sizes.iter().map(create).collect();
        match made {
            Ok(extents) => return Ok(extents),
            Err(HbmError::Full { .. }) if began.elapsed() < patience => thread::sleep(FREED_PAUSE),
            Err(HbmError::Full { .. }) => {
                let (free, total) = device.memory().unwrap_or((0, device.info().bytes));
                let gpu = described(device.info());
                return Err(GpusError::Full { gpu, free, total, asked: options.bytes });
            }
            Err(source) => return Err(GpusError::of(device.info(), "make memory", source)),
        }
    }
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
    let shown = GpuShown::new(info, options.bytes, Start::Cold("the GPU is lost".into()), false, Vec::new());
    shown.lose(reason);
    OpenGpu { shown: Arc::new(shown), memory: None }
}

fn forget(keeper: &mut dyn Keeper, name: &str) -> Result<(), GpusError> {
    keeper.forget(name).map_err(|source| GpusError::Keeper { op: "drop", source })
}
