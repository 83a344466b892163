//! GPUs from a client's side: which it has open, where the daemon keeps blocks on them, and memory of the host that they copy
//! from and to. All is opened when it is needed first: an engine that never asks for a GPU touches no driver.
//!
//! Invariant: memory that a copy may read or write is held by a [`Flight`] until a mark behind the copy is over.

mod get;
mod objects;
mod open;
mod peers;
mod pieces;
mod put;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::c_void,
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use lapis_arena::{
    Access, DeviceHazards, DeviceTable, MappedWords, Mapping, OnDevice,
    device::{self, HAZARD_BYTES},
    hbm::{CHUNK_BYTES_MAX, Cuda, Device, HbmError, HbmExtent, HostExtent, Mark, Shared, Stream},
    memfd,
};
use lapis_config::{GpuId, SlotId, UNIT_BYTES};

pub(crate) use self::objects::keys_of;
use self::peers::Peers;
pub use self::{
    get::DeviceGetJob,
    objects::{DeviceObject, DeviceObjectStatus, DeviceRange},
    open::{GpuOpenJob, GpuOpened},
    pieces::{DeviceFlag, DevicePiece},
    put::DevicePutJob,
};
use super::{Session, lock, pins::Entries};
use crate::ClientError;

/// Between two looks at copies under way: the driver wakes nobody.
const POLL: Duration = Duration::from_micros(200);

/// An address in the memory of a GPU, of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePtr(pub u64);

/// A stream of the caller's: what a call copies is put behind what is on it.
#[derive(Clone, Copy, Debug)]
pub struct DeviceStream {
    device: u16,
    raw: *mut c_void,
}

// SAFETY: a handle; streams may be used from any thread.
unsafe impl Send for DeviceStream {}
// SAFETY: as above.
unsafe impl Sync for DeviceStream {}

impl DeviceStream {
    /// `device`: as the driver counts them in this process; `raw`: a `CUstream` or `cudaStream_t`, null for the default stream.
    ///
    /// # Safety
    /// The stream is one of the device's primary context, as all streams of CUDA's runtime are, and lives until all that is
    /// put on it has ended.
    pub unsafe fn raw(device: u16, raw: *mut c_void) -> Self {
        Self { device, raw }
    }

    /// Its GPU, as the driver counts them in this process.
    pub fn device(&self) -> u16 {
        self.device
    }
}

/// Loads CUDA's driver from a file, before it is looked for as the loader finds it. For the life of the process.
pub fn load_cuda(library: &Path) -> Result<(), ClientError> {
    Cuda::load(Some(library)).map_err(ClientError::no_cuda)?;
    Ok(())
}

/// A GPU that the daemon keeps blocks on, as it tells its clients.
#[derive(Debug)]
pub struct GpuOffer {
    /// As the device table calls it.
    pub id: GpuId,
    pub uuid: [u8; 16],
    /// Bytes of each extent, in the order of its slots, and how it is reached.
    pub extents: Vec<(u64, Shared)>,
}

/// What a daemon said of GPUs, with its descriptors.
#[derive(Debug)]
pub struct DevicesSaid {
    pub table: OwnedFd,
    /// On which the client names slots.
    pub page: OwnedFd,
    pub offers: Vec<GpuOffer>,
}

/// The page on which the client names slots on GPUs.
#[derive(Debug)]
struct Page {
    hazards: DeviceHazards,
    entries: Entries,
    /// Device and inode of its file: a daemon that starts anew gives the same one again.
    file: (u64, u64),
}

impl Page {
    fn open(fd: BorrowedFd<'_>, former: Option<&Arc<Self>>) -> Result<Arc<Self>, ClientError> {
        memfd::check(fd, HAZARD_BYTES as u64)?;
        let stat = rustix::fs::fstat(fd).map_err(|error| ClientError::io("looking at a descriptor", error))?;
        let file = (stat.st_dev, stat.st_ino);
        // What is named there is named still.
        if let Some(former) = former.filter(|former| former.file == file) {
            return Ok(former.clone());
        }
        let mapping = Mapping::shared(fd, HAZARD_BYTES as u64, Access::ReadWrite)?;
        Ok(Arc::new(Self { hazards: DeviceHazards::mapped(&mapping, 0), entries: Entries::new(), file }))
    }
}

/// What the daemon has on GPUs: good for its life, and for this session's.
#[derive(Debug)]
struct Devices {
    table: DeviceTable,
    page: Arc<Page>,
    offers: Vec<GpuOffer>,
}

/// Slots that are named on the client's page, until this is dropped.
#[derive(Debug)]
struct DevicePins {
    session: Arc<Session>,
    devices: Arc<Devices>,
    entries: Vec<u16>,
}

impl DevicePins {
    fn new(session: &Arc<Session>, devices: &Arc<Devices>) -> Self {
        Self { session: session.clone(), devices: devices.clone(), entries: Vec::new() }
    }

    /// Names a slot; false if no entry of the page is free.
    fn set(&mut self, at: &OnDevice) -> bool {
        let Some(entry) = self.devices.page.entries.take() else { return false };
        self.devices.page.hazards.set(usize::from(entry), at.at.gpu, at.at.slot);
        self.entries.push(entry);
        true
    }
}

impl Drop for DevicePins {
    fn drop(&mut self) {
        // In a forked child the page is the parent's.
        if self.session.here().is_ok() {
            for &entry in &self.entries {
                self.devices.page.hazards.clear(usize::from(entry));
                self.devices.page.entries.give(entry);
            }
        }
    }
}

/// Copies on their way, and what must not go before they have ended.
pub struct Flight {
    mark: Arc<Mark>,
    /// Other GPUs that are read.
    peers: Vec<Arc<Device>>,
    _held: Box<dyn Send>,
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flight({:?})", self.mark)
    }
}

impl Flight {
    fn new(mark: Arc<Mark>, held: impl Send + 'static) -> Self {
        Self::reading(mark, Vec::new(), held)
    }

    fn reading(mark: Arc<Mark>, peers: Vec<Arc<Device>>, held: impl Send + 'static) -> Self {
        Self { mark, peers, _held: Box::new(held) }
    }

    /// Whether it may be dropped.
    pub fn is_over(&self) -> bool {
        self.mark.is_over()
    }

    pub fn watch(&self) -> Watch {
        Watch { mark: self.mark.clone(), peers: self.peers.clone() }
    }
}

/// Tells of copies on their way and holds nothing up.
#[derive(Clone, Debug)]
pub struct Watch {
    mark: Arc<Mark>,
    peers: Vec<Arc<Device>>,
}

impl Watch {
    fn of(mark: &Arc<Mark>) -> Self {
        Self { mark: mark.clone(), peers: Vec::new() }
    }

    pub fn is_over(&self) -> bool {
        self.mark.is_over()
    }

    /// Whether their GPU was lost, or one that was read.
    pub fn has_failed(&self) -> bool {
        self.mark.failure().is_some() || self.peers.iter().any(|peer| !peer.is_well())
    }
}

/// Returns when all are over.
fn wait_for(flights: &[Flight]) {
    while flights.iter().any(|flight| !flight.is_over()) {
        std::thread::sleep(POLL);
    }
}

/// The memory of the daemon's tier on a GPU of this process.
#[derive(Debug)]
struct Slices {
    id: GpuId,
    extents: Vec<Arc<HbmExtent>>,
    /// Where each ends, counted from the start of the first.
    ends: Vec<u64>,
}

impl Slices {
    /// The extent that holds all `bytes` of a slot, and the offset in it.
    fn locate(&self, slot: SlotId, bytes: u64) -> Option<(&Arc<HbmExtent>, u64)> {
        let at = slot.offset_bytes();
        let index = self.ends.partition_point(|end| *end <= at);
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        let end = at.checked_add(bytes)?;
        (end <= *self.ends.get(index)?).then(|| (&self.extents[index], at - start))
    }
}

/// A GPU that is open in this process, and what the daemon has there.
#[derive(Debug)]
struct OpenGpu {
    device: Arc<Device>,
    /// What the daemon had said when this was opened.
    told: Option<Arc<Devices>>,
    /// What it has on this GPU.
    own: Option<Slices>,
    peers: Peers,
    /// Streams of ours that nothing uses.
    streams: Mutex<Vec<Stream>>,
}

impl OpenGpu {
    /// As the daemon calls it, if it keeps blocks there.
    fn id(&self) -> Option<GpuId> {
        self.own.as_ref().map(|slices| slices.id)
    }

    /// Whether what is known of the daemon's memory here is what the daemon said last.
    fn is_current(&self, session: &Session) -> bool {
        match (&self.told, session.gpus.told()) {
            (Some(then), Some(now)) => Arc::ptr_eq(then, &now),
            (then, now) => then.is_none() && now.is_none(),
        }
    }
}

/// What a session has of GPUs.
#[derive(Default)]
pub(super) struct Gpus {
    told: RwLock<Option<Arc<Devices>>>,
    /// The last page that there was: a daemon after one without GPUs may give it again, and copies may still be named there.
    page: Mutex<Option<Arc<Page>>>,
    opened: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    // Before the devices that they are registered through.
    /// By the address of the mapping.
    hosts: HashMap<usize, Arc<HostExtent>>,
    gpus: BTreeMap<u16, Arc<OpenGpu>>,
    devices: BTreeMap<u16, Arc<Device>>,
}

impl Opened {
    /// A GPU of this process.
    fn device(&mut self, index: u16) -> Result<Arc<Device>, ClientError> {
        if let Some(device) = self.devices.get(&index).filter(|device| !device.is_lost()) {
            return Ok(device.clone());
        }
        let cuda = Cuda::load(None).map_err(ClientError::no_cuda)?;
        let device = Device::open(&cuda, index).map_err(ClientError::gpu("opening a GPU"))?;
        self.devices.insert(index, device.clone());
        Ok(device)
    }
}

impl fmt::Debug for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpus({} open)", lock(&self.opened).devices.len())
    }
}

impl Gpus {
    /// Of a session that takes the place of this one's. With the same memory of the host: that can be registered once only,
    /// and stays so as long as a copy or a handle of the former session holds it.
    pub fn successor(&self, has_same_memory: bool) -> Self {
        let former = lock(&self.opened);
        let hosts = if has_same_memory { former.hosts.clone() } else { HashMap::new() };
        let opened = Mutex::new(Opened { hosts, devices: former.devices.clone(), gpus: BTreeMap::new() });
        Self { opened, ..Self::default() }
    }

    /// In a forked child nothing of the driver may be touched.
    pub fn forget(&mut self) {
        std::mem::forget(std::mem::take(self.opened.get_mut().unwrap_or_else(PoisonError::into_inner)));
    }

    fn told(&self) -> Option<Arc<Devices>> {
        self.told.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A GPU of this process, with what the daemon has there.
    fn open(&self, index: u16) -> Result<Arc<OpenGpu>, ClientError> {
        // Under the lock: whoever replaces it forgets then what was opened with the former one.
        let mut opened = lock(&self.opened);
        let told = self.told();
        if let Some(gpu) = opened.gpus.get(&index) {
            return Ok(gpu.clone());
        }
        let device = opened.device(index)?;
        let uuid = device.info().uuid;
        let mut own = None;
        if let Some(devices) = &told
            && let Some(offer) = devices.offers.iter().find(|offer| offer.uuid == uuid)
        {
            match import(&device, offer, &[]) {
                Ok(slices) => own = Some(slices),
                Err(error) if device.is_lost() => return Err(ClientError::gpu("mapping a GPU's memory")(error)),
                // All that is there is in DRAM too, or the daemon fetches it.
                Err(error) => tracing::error!(%error, "the daemon's memory on a GPU cannot be used: by way of DRAM"),
            }
        }
        let (peers, streams) = (Peers::default(), Mutex::default());
        let gpu = Arc::new(OpenGpu { device, told, own, peers, streams });
        opened.gpus.insert(index, gpu.clone());
        Ok(gpu)
    }

    /// Memory of the host for a GPU's copies; its registration begins where nobody has asked for it before, or where the GPU was
    /// lost by which it was to be registered.
    fn host(&self, device: &Arc<Device>, mapping: &Mapping) -> Result<Arc<HostExtent>, ClientError> {
        let mut opened = lock(&self.opened);
        let at = mapping.as_ptr(0).addr();
        let ended_with_its_gpu = |host: &HostExtent| {
            host.registered_bytes() == 0 && host.failure().is_some_and(HbmError::is_lost) && !device.is_lost()
        };
        if let Some(host) = opened.hosts.get(&at).filter(|host| !ended_with_its_gpu(host)) {
            return Ok(host.clone());
        }
        let host = HostExtent::register(device, mapping.clone(), CHUNK_BYTES_MAX)
            .map_err(ClientError::gpu("registering memory of the host"))?;
        opened.hosts.insert(at, host.clone());
        Ok(host)
    }
}

/// What the daemon has on a GPU, mapped through a device, for others too as far as they can reach it.
fn import(device: &Arc<Device>, offer: &GpuOffer, readers: &[Arc<Device>]) -> Result<Slices, HbmError> {
    let (mut extents, mut ends) = (Vec::new(), Vec::new());
    for (bytes, shared) in &offer.extents {
        extents.push(Arc::new(HbmExtent::import(device, shared, *bytes, readers)?));
        ends.push(ends.last().copied().unwrap_or(0) + bytes);
    }
    Ok(Slices { id: offer.id, extents, ends })
}

impl Session {
    /// What the daemon says of GPUs, in place of what was said before; before this session goes on with that daemon. Copies
    /// under way go on where they are.
    pub fn set_devices(&self, said: Option<DevicesSaid>) -> Result<(), ClientError> {
        let former = lock(&self.gpus.page).clone();
        let open = |said: DevicesSaid| -> Result<Arc<Devices>, ClientError> {
            let (lines, table_id) = (self.maps.table.lines(), self.maps.table.table_id());
            let bytes = device::bytes_for(lines).next_multiple_of(UNIT_BYTES);
            memfd::check(said.table.as_fd(), bytes)?;
            let mapping = Mapping::shared(said.table.as_fd(), bytes, Access::ReadOnly)?;
            let table = DeviceTable::open(MappedWords::new(&mapping, 0, mapping.len() / 8), lines, table_id)?;
            let page = Page::open(said.page.as_fd(), former.as_ref())?;
            Ok(Arc::new(Devices { table, page, offers: said.offers }))
        };
        let devices = said.map(open).transpose()?;
        if let Some(devices) = &devices {
            *lock(&self.gpus.page) = Some(devices.page.clone());
        }
        *self.gpus.told.write().unwrap_or_else(PoisonError::into_inner) = devices;
        lock(&self.gpus.opened).gpus.clear();
        Ok(())
    }

    /// Whether the daemon still heeds what was named: bytes that were copied meanwhile are the blocks'.
    pub fn pins_are_heeded(&self) -> bool {
        self.views_are_heeded()
    }

    /// A GPU that is open, and the caller's stream there.
    fn open_gpu(&self, stream: &DeviceStream) -> Result<(Arc<OpenGpu>, Stream), ClientError> {
        let gpu = self.gpus.open(stream.device)?;
        // SAFETY: the promise of who made the `DeviceStream`.
        let stream = unsafe { Stream::of(&gpu.device, stream.raw) };
        Ok((gpu, stream))
    }

    /// What is put on the caller's stream from now on waits for what a watch watches.
    pub fn wait_on(&self, stream: &DeviceStream, watch: &Watch) -> Result<(), ClientError> {
        let (_, stream) = self.open_gpu(stream)?;
        stream.wait_for(&watch.mark).map_err(ClientError::gpu("waiting for a piece"))
    }
}

/// Where blocks go to or come from: so many addresses each.
#[derive(Clone, Copy, Debug)]
struct Places<'a> {
    list: &'a [DevicePtr],
    per_block: usize,
    /// Bytes at each address.
    bytes: u64,
}

impl<'a> Places<'a> {
    fn new(list: &'a [DevicePtr], blocks: usize, block_bytes: u64) -> Result<Self, ClientError> {
        if list.is_empty() || !list.len().is_multiple_of(blocks) {
            return Err(ClientError::VectorCount { blocks, vectors: list.len() });
        }
        let per_block = list.len() / blocks;
        if !block_bytes.is_multiple_of(per_block as u64) {
            let found = block_bytes / per_block as u64 * per_block as u64;
            return Err(ClientError::VectorBytes { block: 0, expected: block_bytes, found });
        }
        Ok(Self { list, per_block, bytes: block_bytes / per_block as u64 })
    }

    /// The addresses of a block, each with how many of the block's bytes come before it.
    fn of(&self, block: usize) -> impl Iterator<Item = (u64, u64)> {
        let list = &self.list[block * self.per_block..(block + 1) * self.per_block];
        let bytes = self.bytes;
        list.iter().zip(0..).map(move |(at, n)| (at.0, n * bytes))
    }
}
