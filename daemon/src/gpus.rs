//! GPUs of the HBM tier: found and opened when the daemon starts, their memory made or taken over from a former daemon, and a
//! thread for each that copies. The driver is looked for only here, and only where `hbm.bytes` is not 0.
//!
//! Invariant: a GPU that hangs or is lost holds up its own thread alone.

mod chosen;
mod error;
mod kept;
mod memory;
mod registrar;
mod shown;
mod turner;

use std::{
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use lapis_arena::{
    Mapping,
    hbm::{CHUNK_BYTES_MAX, Cuda, Device, DeviceInfo},
};
use lapis_config::Options;

use crate::topology::{self, SeenGpus};

#[cfg(test)]
pub(crate) use self::chosen::info;
pub use self::{
    chosen::{choose, described},
    error::GpusError,
    kept::{Kept, name_of},
    memory::{OpenGpu, give_back, take_kept},
    shown::{GpuShown, GpuState, SharedExtent, Way, Ways},
    turner::{FromGpu, GpuCopied, GpuJob, Place, ToGpu},
};
use self::{registrar::Registrar, turner::Turner};

/// A driver that was asleep takes some seconds for each GPU; one that hangs does not answer at all.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long the end of the daemon waits for all GPUs' threads together.
const END_MAX: Duration = Duration::from_secs(2);
/// No extent is larger. One call of the driver each; readers map each whole.
const EXTENT_BYTES_MAX: u64 = 16 << 30;

/// What the configuration says of them.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// Of each GPU, in whole steps of 2 MiB; more than 0.
    pub bytes: u64,
    /// Of an extent, in whole steps of 2 MiB.
    pub extent_bytes_max: u64,
    pub gpus: lapis_config::Gpus,
    /// `None`: as the loader finds it.
    pub library: Option<PathBuf>,
    /// How long a start waits for an answer of the driver.
    pub wait_max: Duration,
}

impl GpuOptions {
    /// `None`: no GPU is wanted.
    pub fn of(options: &Options) -> Option<Self> {
        (options.hbm_bytes > 0).then(|| Self {
            bytes: options.hbm_bytes,
            extent_bytes_max: EXTENT_BYTES_MAX,
            gpus: options.hbm_gpus.clone(),
            library: options.hbm_cuda_library.clone(),
            wait_max: WAIT_MAX,
        })
    }

    /// The sizes of a GPU's extents, in the order of its slots.
    pub fn extents_bytes(&self) -> Vec<u64> {
        let (whole, rest) = (self.bytes / self.extent_bytes_max, self.bytes % self.extent_bytes_max);
        let whole = (0..whole).map(|_| self.extent_bytes_max);
        whole.chain((rest > 0).then_some(rest)).collect()
    }
}

/// Extents that the configuration may make, where the number of GPUs is not known: as a rule no host has more.
pub fn extents_max(options: &Options) -> u64 {
    const GPUS: u64 = 16;
    let Some(wanted) = GpuOptions::of(options) else { return 0 };
    let gpus = match &wanted.gpus {
        lapis_config::Gpus::All => GPUS,
        lapis_config::Gpus::Named(names) => names.len() as u64,
    };
    gpus * wanted.extents_bytes().len() as u64
}

/// The GPUs that are wanted, open. Nothing on them is touched yet.
#[derive(Debug)]
pub struct Found {
    options: GpuOptions,
    seen: SeenGpus,
    /// In the order of `hbm.gpus`, or of the driver. An error: it is there, and lost.
    devices: Vec<(DeviceInfo, Result<Arc<Device>, String>)>,
}

impl Found {
    /// As they are shown, for where they lie.
    pub fn seen(&self) -> SeenGpus {
        self.seen.clone()
    }
}

/// Starts the driver, and opens the GPUs. Waits at most `wait_max`, also for a driver that hangs.
pub fn find(options: GpuOptions) -> Result<Found, GpusError> {
    within(options.wait_max, move || open_all(options))?
}

/// Starts the driver, and looks for the GPUs that are wanted; opens none. Waits as long as [`find`].
pub fn look(options: GpuOptions) -> Result<SeenGpus, GpusError> {
    within(options.wait_max, move || see(&*Cuda::load(options.library.as_deref())?, &options.gpus))?
}

/// What the driver is asked on a thread of its own, as it may never answer; the thread is left behind then, and the process is
/// about to end.
fn within<T: Send + 'static>(limit: Duration, ask: impl FnOnce() -> T + Send + 'static) -> Result<T, GpusError> {
    let (sender, receiver) = bounded(1);
    let ask = move || {
        // Too late, nobody listens.
        let _ = sender.send(ask());
    };
    thread::Builder::new().name("gpus".into()).spawn(ask).map_err(|source| GpusError::Thread { source })?;
    receiver.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => GpusError::Silent { waited: limit },
        RecvTimeoutError::Disconnected => GpusError::Panicked,
    })
}

fn see(cuda: &Cuda, wanted: &lapis_config::Gpus) -> Result<SeenGpus, GpusError> {
    let all = cuda.devices().map_err(|source| GpusError::Devices { source })?;
    let infos: Vec<DeviceInfo> = choose(wanted, &all)?.into_iter().cloned().collect();
    // One that does not say is one that is not reached.
    let link = |one: &DeviceInfo, other: &DeviceInfo| cuda.link(one.index, other.index).unwrap_or(None);
    let links = infos.iter().map(|one| infos.iter().map(|other| link(one, other)).collect()).collect();
    Ok(SeenGpus { infos, links })
}

fn open_all(options: GpuOptions) -> Result<Found, GpusError> {
    let cuda = Cuda::load(options.library.as_deref())?;
    let seen = see(&cuda, &options.gpus)?;
    let mut devices = Vec::new();
    for info in &seen.infos {
        let device = match Device::open(&cuda, info.index) {
            Ok(device) => Ok(device),
            // A card that is broken does not keep the others, nor memory of the host, from serving.
            Err(error) if error.is_lost() => Err(error.to_string()),
            Err(source) => return Err(GpusError::of(info, "make a context", source)),
        };
        devices.push((info.clone(), device));
    }
    let (version, batches) = (cuda.version(), cuda.has_batches());
    tracing::info!(gpus = devices.len(), version, batches, "the CUDA driver");
    Ok(Found { options, seen, devices })
}

/// All GPUs of the daemon, from the engine's side. Dropped, their threads end, or are left behind if they hang.
pub struct Gpus {
    threads: Vec<Sender<ToGpu>>,
    registrar: Option<Sender<registrar::Memory>>,
    shown: Vec<Arc<GpuShown>>,
    /// Hangs up when the last thread has ended.
    ended: Receiver<()>,
}

impl Gpus {
    /// Starts a thread for each, on these CPUs or on any; `report` is called by them, with the GPU's number.
    pub fn start(
        opened: Vec<OpenGpu>,
        cpus: &[Option<Vec<u32>>],
        report: Arc<dyn Fn(usize, FromGpu) + Send + Sync>,
    ) -> std::io::Result<Self> {
        let (alive, ended) = bounded(0);
        let shown: Vec<_> = opened.iter().map(|gpu| gpu.shown.clone()).collect();
        let devices: Vec<_> = opened.iter().filter_map(|gpu| gpu.memory.as_ref().map(|m| m.device.clone())).collect();
        let (mut threads, opened) = (Vec::new(), Arc::new(opened));
        for gpu in 0..opened.len() {
            let (sender, inbox) = unbounded();
            let (report, alive, opened) = (report.clone(), alive.clone(), opened.clone());
            let cpus = cpus[gpu].clone();
            thread::Builder::new().name(format!("gpu {gpu}")).spawn(move || {
                if let Some(cpus) = cpus {
                    topology::keep_on(&cpus);
                }
                // The driver is asked here already.
                let turner = Turner::new(gpu, &opened, inbox, move |from| report(gpu, from));
                drop(opened);
                turner.run();
                drop(alive);
            })?;
            threads.push(sender);
        }
        let (registrar, inbox) = unbounded();
        let registering =
            Registrar { inbox, devices, threads: threads.clone(), shown: shown.clone(), chunk_bytes: CHUNK_BYTES_MAX };
        thread::Builder::new().name("gpu memory".into()).spawn(move || {
            registering.run();
            drop(alive);
        })?;
        Ok(Self { threads, registrar: Some(registrar), shown, ended })
    }

    /// Begins copies; each is reported once.
    pub fn copy(&self, gpu: usize, jobs: Vec<GpuJob>) {
        self.shown[gpu].asked(jobs.len() as u64);
        self.tell(gpu, ToGpu::Copy(jobs));
    }

    /// Memory of the host, all there, that copies may go from and to once it is registered with the driver, which goes on
    /// behind. Until then they fail as not registered.
    pub fn register(&self, group: usize, extent: usize, mapping: Mapping) {
        if let Some(registrar) = &self.registrar {
            // It ends when `self` does.
            let _ = registrar.send(registrar::Memory { group, extent, mapping });
        }
    }

    /// What is known of each, without asking its thread.
    pub fn shown(&self) -> &[Arc<GpuShown>] {
        &self.shown
    }

    fn tell(&self, gpu: usize, message: ToGpu) {
        // The thread ends when `self` does, or when it panicked, which is said by the panic.
        let _ = self.threads[gpu].send(message);
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        self.threads.clear();
        self.registrar = None;
        let began = Instant::now();
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(END_MAX) {
            tracing::warn!(
                waited_ms = began.elapsed().as_millis() as u64,
                "the driver of a GPU does not answer: its thread is left behind"
            );
        }
    }
}

#[test]
fn extents_are_whole_but_for_the_last() {
    let options = |bytes, extent_bytes_max| {
        let (gpus, library, wait_max) = (lapis_config::Gpus::All, None, WAIT_MAX);
        GpuOptions { bytes, extent_bytes_max, gpus, library, wait_max }
    };
    assert_eq!(options(10, 4).extents_bytes(), [4, 4, 2]);
    assert_eq!(options(8, 4).extents_bytes(), [4, 4]);
    assert_eq!(options(3, 4).extents_bytes(), [3]);
    assert!(GpuOptions::of(&Options::default()).is_none(), "no GPU unless one is asked for");
}
