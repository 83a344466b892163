//! Extents of GPU memory: made, mapped for the devices that reach it, shared with other processes, kept over restarts.

use std::{
    ffi::{c_char, c_int, c_void},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::Arc,
};

use cudarc::driver::sys::{
    self, CUdeviceptr, CUipcMemHandle, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationGranularity_flags,
    CUmemAllocationHandleType, CUmemAllocationProp, CUmemAllocationProp_st__bindgen_ty_1, CUmemAllocationType,
    CUmemGenericAllocationHandle, CUmemLocation, CUmemLocationType, CUresult,
};

use super::{
    device::Device,
    error::{HbmError, is_fatal},
};

const DESCRIPTOR: CUmemAllocationHandleType = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`, the one flag that there is.
const IPC_LAZY: u32 = 1;

/// How another process gets at an extent.
#[derive(Debug)]
pub enum Shared {
    /// The memory lives as long as one of its descriptors or mappings does, whoever made it.
    Descriptor(OwnedFd),
    /// A handle of CUDA IPC: the memory lives as long as the process that made it.
    Ipc([u8; 64]),
}

#[derive(Debug)]
enum Kind {
    /// By the virtual-memory interface.
    Mapped {
        handle: CUmemGenericAllocationHandle,
        reserved: u64,
    },
    Allocated,
    /// Another process's, by CUDA IPC.
    Opened,
}

/// Memory of one device at one address in this process.
#[derive(Debug)]
pub struct HbmExtent {
    device: Arc<Device>,
    /// Other devices that reach it, by their indexes.
    peers: Vec<u16>,
    base: CUdeviceptr,
    bytes: u64,
    kind: Kind,
}

impl HbmExtent {
    /// New memory of a device, which `peers` reach too as far as they can. What is in it is anything.
    pub fn create(device: &Arc<Device>, bytes: u64, peers: &[Arc<Device>]) -> Result<Self, HbmError> {
        let _current = device.enter()?;
        if !device.info().has_descriptors {
            let mut base = 0;
            // SAFETY: `base` is written where it succeeds.
            let code = unsafe { sys::cuMemAlloc_v2(&raw mut base, bytes as usize) };
            full(device, bytes, "cuMemAlloc", code)?;
            return Self::of(device, base, bytes, Kind::Allocated).with(peers);
        }
        let properties = properties(device);
        let reserved = rounded(device, bytes, &properties)?;
        let mut handle = 0;
        // SAFETY: `properties` outlives the call; `handle` is written where it succeeds.
        let code = unsafe { sys::cuMemCreate(&raw mut handle, reserved as usize, &raw const properties, 0) };
        full(device, bytes, "cuMemCreate", code)?;
        Self::map(device, bytes, reserved, handle)?.with(peers)
    }

    /// The extent of `bytes` that another process, or this one before a restart, has shared; its bytes are what they were. The
    /// descriptor may be closed afterwards.
    pub fn import(device: &Arc<Device>, shared: &Shared, bytes: u64, peers: &[Arc<Device>]) -> Result<Self, HbmError> {
        let _current = device.enter()?;
        match shared {
            Shared::Descriptor(fd) => {
                if !device.info().has_descriptors {
                    return Err(HbmError::Function { function: "cuMemImportFromShareableHandle" });
                }
                let reserved = rounded(device, bytes, &properties(device))?;
                let mut handle = 0;
                // The driver takes the number of the descriptor in the place of a pointer.
                let number = std::ptr::without_provenance_mut::<c_void>(fd.as_fd().as_raw_fd() as usize);
                // SAFETY: the descriptor is open for the call; `handle` is written where it succeeds.
                let code = unsafe { sys::cuMemImportFromShareableHandle(&raw mut handle, number, DESCRIPTOR) };
                device.check("cuMemImportFromShareableHandle", code)?;
                if let Err(error) = belongs(device, handle, bytes) {
                    release(device, handle);
                    return Err(error);
                }
                let mapped = Self::map(device, bytes, reserved, handle);
                mapped.map_err(|error| foreign(device, bytes, error))?.with(peers)
            }
            Shared::Ipc(words) => {
                if !device.cuda.has_ipc {
                    return Err(HbmError::Function { function: "cuIpcOpenMemHandle" });
                }
                let handle = CUipcMemHandle { reserved: words.map(|byte| byte as c_char) };
                let mut base = 0;
                // SAFETY: any 64 bytes may be asked about; `base` is written where it succeeds.
                let code = unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut base, handle, IPC_LAZY) };
                device.check("cuIpcOpenMemHandle", code)?;
                // Who opens it reaches it, whichever device that is.
                Ok(Self::of(device, base, bytes, Kind::Opened))
            }
        }
    }

    /// For another process of the host: a new descriptor, or a handle of CUDA IPC where the driver has no descriptors.
    pub fn share(&self) -> Result<Shared, HbmError> {
        let _current = self.device.enter()?;
        match &self.kind {
            Kind::Mapped { handle, .. } => {
                let mut fd: c_int = -1;
                // SAFETY: writes an `int` for this kind of handle, which is ours.
                let code = unsafe { sys::cuMemExportToShareableHandle((&raw mut fd).cast(), *handle, DESCRIPTOR, 0) };
                self.device.check("cuMemExportToShareableHandle", code)?;
                if fd < 0 {
                    let code = CUresult::CUDA_ERROR_INVALID_VALUE;
                    return Err(HbmError::Driver {
                        device: self.device.index(),
                        op: "cuMemExportToShareableHandle",
                        code,
                    });
                }
                // SAFETY: just made for us, and nobody else's.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(|error| HbmError::System {
                    device: self.device.index(),
                    op: "close-on-exec",
                    reason: error.to_string(),
                })?;
                Ok(Shared::Descriptor(fd))
            }
            Kind::Allocated if self.device.cuda.has_ipc => {
                let mut handle = CUipcMemHandle { reserved: [0; 64] };
                // SAFETY: `handle` is there; the address is of memory that was allocated.
                let code = unsafe { sys::cuIpcGetMemHandle(&raw mut handle, self.base) };
                self.device.check("cuIpcGetMemHandle", code)?;
                Ok(Shared::Ipc(handle.reserved.map(|byte| byte.cast_unsigned())))
            }
            Kind::Allocated => Err(HbmError::Function { function: "cuIpcGetMemHandle" }),
            // A handle is given by who made the memory.
            Kind::Opened => Err(HbmError::Foreign { device: self.device.index(), bytes: self.bytes }),
        }
    }

    /// Its address for the devices that reach it, of this process alone.
    pub fn address(&self) -> u64 {
        self.base
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Whether that device reaches it.
    pub fn is_reached_by(&self, device: u16) -> bool {
        self.device.index() == device || self.peers.contains(&device)
    }

    /// Lets another device reach it, if it can; also one that was lost and is open again, which has lost that too.
    ///
    /// Not for what another process allocated (CUDA IPC): who opens that lets its own devices in.
    pub fn let_in(&mut self, peer: &Device) -> Result<(), HbmError> {
        if peer.index() == self.device.index() || peer.is_lost() || !peer.can_reach(&self.device)? {
            return Ok(());
        }
        self.peers.retain(|index| *index != peer.index());
        match self.kind {
            Kind::Mapped { reserved, .. } => {
                let _current = self.device.enter()?;
                self.grant(peer, reserved)?;
            }
            Kind::Allocated => {
                let _current = peer.enter()?;
                // SAFETY: both contexts are retained.
                match unsafe { sys::cuCtxEnablePeerAccess(self.device.context, 0) } {
                    CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {}
                    code => whose(peer, &self.device, code).check("cuCtxEnablePeerAccess", code)?,
                }
            }
            Kind::Opened => return Ok(()),
        }
        self.peers.push(peer.index());
        Ok(())
    }

    fn of(device: &Arc<Device>, base: CUdeviceptr, bytes: u64, kind: Kind) -> Self {
        Self { device: device.clone(), peers: Vec::new(), base, bytes, kind }
    }

    fn with(mut self, peers: &[Arc<Device>]) -> Result<Self, HbmError> {
        for peer in peers {
            self.let_in(peer)?;
        }
        Ok(self)
    }

    /// Maps memory of a handle, which is given back if that fails.
    fn map(
        device: &Arc<Device>,
        bytes: u64,
        reserved: u64,
        handle: CUmemGenericAllocationHandle,
    ) -> Result<Self, HbmError> {
        let size = reserved as usize;
        let mut base = 0;
        // SAFETY: `base` is written where it succeeds.
        let code = unsafe { sys::cuMemAddressReserve(&raw mut base, size, 0, 0, 0) };
        if let Err(error) = device.check("cuMemAddressReserve", code) {
            release(device, handle);
            return Err(error);
        }
        // SAFETY: the addresses were just reserved, and the handle is ours.
        let code = unsafe { sys::cuMemMap(base, size, 0, handle, 0) };
        if let Err(error) = device.check("cuMemMap", code) {
            // SAFETY: reserved above, of that size, and not mapped.
            let code = unsafe { sys::cuMemAddressFree(base, size) };
            said(device, "cuMemAddressFree", code);
            release(device, handle);
            return Err(error);
        }
        // From here on dropping it undoes all.
        let extent = Self::of(device, base, bytes, Kind::Mapped { handle, reserved });
        extent.grant(device, reserved)?;
        Ok(extent)
    }

    /// Lets a device read and write what is mapped.
    fn grant(&self, to: &Device, reserved: u64) -> Result<(), HbmError> {
        let access = access(to);
        // SAFETY: mapped, of that size; the description outlives the call.
        let code = unsafe { sys::cuMemSetAccess(self.base, reserved as usize, &raw const access, 1) };
        whose(&self.device, to, code).check("cuMemSetAccess", code)
    }
}

impl Drop for HbmExtent {
    fn drop(&mut self) {
        // What a lost device had goes with its context.
        let Ok(_current) = self.device.enter() else { return };
        let device = &self.device;
        match self.kind {
            // SAFETY: mapped in `map`, of that size; nothing copies it, for who does holds the extent. As memory it lives on
            // while others have it.
            Kind::Mapped { handle, reserved } => unsafe {
                said(device, "cuMemUnmap", sys::cuMemUnmap(self.base, reserved as usize));
                said(device, "cuMemAddressFree", sys::cuMemAddressFree(self.base, reserved as usize));
                release(device, handle);
            },
            // SAFETY: allocated in `create`, freed once.
            Kind::Allocated => said(device, "cuMemFree", unsafe { sys::cuMemFree_v2(self.base) }),
            // SAFETY: opened in `import`, closed once.
            Kind::Opened => said(device, "cuIpcCloseMemHandle", unsafe { sys::cuIpcCloseMemHandle(self.base) }),
        }
    }
}

/// Of two devices that a call is about, the one that an error tells of: a loss of the other one is none of the first.
fn whose<'a>(first: &'a Device, other: &'a Device, code: CUresult) -> &'a Device {
    if is_fatal(code) && other.index() != first.index() && !other.is_well() { other } else { first }
}

fn location(device: u16) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: c_int::from(device) }
}

fn access(device: &Device) -> CUmemAccessDesc {
    CUmemAccessDesc { location: location(device.index()), flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE }
}

fn properties(device: &Device) -> CUmemAllocationProp {
    CUmemAllocationProp {
        type_: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: DESCRIPTOR,
        location: location(device.index()),
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

/// `bytes` in whole units of the device's memory.
fn rounded(device: &Device, bytes: u64, properties: &CUmemAllocationProp) -> Result<u64, HbmError> {
    let mut unit = 0;
    let option = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    // SAFETY: `properties` outlives the call; `unit` is written where it succeeds.
    let code = unsafe { sys::cuMemGetAllocationGranularity(&raw mut unit, properties, option) };
    device.check("cuMemGetAllocationGranularity", code)?;
    bytes.max(1).checked_next_multiple_of(unit.max(1) as u64).ok_or(HbmError::Full { device: device.index(), bytes })
}

/// Shared memory is of this device.
fn belongs(device: &Device, handle: CUmemGenericAllocationHandle, bytes: u64) -> Result<(), HbmError> {
    let mut found = properties(device);
    // SAFETY: `found` is written where it succeeds; the handle is ours.
    let code = unsafe { sys::cuMemGetAllocationPropertiesFromHandle(&raw mut found, handle) };
    device.check("cuMemGetAllocationPropertiesFromHandle", code)?;
    let fits = found.location == location(device.index());
    if fits { Ok(()) } else { Err(HbmError::Foreign { device: device.index(), bytes }) }
}

fn full(device: &Device, bytes: u64, op: &'static str, code: CUresult) -> Result<(), HbmError> {
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(HbmError::Full { device: device.index(), bytes }),
        code => device.check(op, code),
    }
}

/// What the driver refuses to map is of another size.
fn foreign(device: &Device, bytes: u64, error: HbmError) -> HbmError {
    match error {
        HbmError::Driver { code: CUresult::CUDA_ERROR_INVALID_VALUE, .. } => {
            HbmError::Foreign { device: device.index(), bytes }
        }
        error => error,
    }
}

fn release(device: &Device, handle: CUmemGenericAllocationHandle) {
    // SAFETY: a handle of ours, given back once.
    said(device, "cuMemRelease", unsafe { sys::cuMemRelease(handle) });
}

/// On the way out there is nobody to tell but the log.
fn said(device: &Device, op: &'static str, code: CUresult) {
    if let Err(error) = device.check(op, code) {
        tracing::warn!(%error, "GPU memory not given back");
    }
}
