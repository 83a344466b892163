//! GPUs: what there are, and one that is open.

use std::{
    ffi::{CStr, c_char, c_int},
    fmt,
    marker::PhantomData,
    mem::MaybeUninit,
    sync::{Arc, OnceLock},
};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_P2PAttribute as P2p, CUdevice_attribute as Attribute, CUresult,
    CUstreamCaptureMode as Mode,
};
use lapis_config::topology::Link;

use super::{
    error::{HbmError, is_fatal},
    library::Cuda,
};

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// As the driver counts them in this process; not stable over reboots, which `uuid` is.
    pub index: u16,
    pub name: String,
    pub uuid: [u8; 16],
    /// `domain:bus:device.function`.
    pub pci_bus_id: String,
    pub bytes: u64,
    /// Memory by handles that are shared as descriptors, and outlive this process; else by CUDA IPC, and they do not.
    pub has_descriptors: bool,
}

impl Cuda {
    /// All GPUs that the driver shows to this process.
    pub fn devices(&self) -> Result<Vec<DeviceInfo>, HbmError> {
        let mut count = 0;
        // SAFETY: `count` is written where it succeeds.
        match unsafe { sys::cuDeviceGetCount(&raw mut count) } {
            CUresult::CUDA_SUCCESS => {}
            // What a driver without a device answers to all.
            CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_NOT_INITIALIZED => return Ok(Vec::new()),
            code => return Err(HbmError::Driver { device: 0, op: "cuDeviceGetCount", code }),
        }
        (0..u16::try_from(count).unwrap_or(0)).map(|index| self.info(index)).collect()
    }

    /// Whether one device can reach the memory of another. Opens neither.
    pub fn can_reach(&self, from: u16, to: u16) -> Result<bool, HbmError> {
        let (one, other, mut can) = (ordinal(from)?, ordinal(to)?, 0);
        // SAFETY: `can` is written where it succeeds; both devices are the driver's.
        checked(from, "cuDeviceCanAccessPeer", unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, one, other) })?;
        Ok(can != 0)
    }

    /// The way from a device to another that it reaches; `None` if it does not. Opens neither.
    pub fn link(&self, from: u16, to: u16) -> Result<Option<Link>, HbmError> {
        if from == to || !self.can_reach(from, to)? {
            return Ok(None);
        }
        let (one, other) = (ordinal(from)?, ordinal(to)?);
        let says = |attribute| {
            let mut value = 0;
            // SAFETY: the function is there, `value` is written where it succeeds, and both devices are the driver's.
            let code = unsafe { sys::cuDeviceGetP2PAttribute(&raw mut value, attribute, one, other) };
            (code == CUresult::CUDA_SUCCESS).then_some(value)
        };
        let says = |attribute| if self.has_links { says(attribute) } else { None };
        Ok(Some(Link {
            rank: says(P2p::CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK).and_then(|rank| u32::try_from(rank).ok()),
            has_atomics: says(P2p::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED).is_some_and(|value| value != 0),
        }))
    }

    fn info(&self, index: u16) -> Result<DeviceInfo, HbmError> {
        let device = ordinal(index)?;
        let check = |op, code| checked(index, op, code);
        let (mut name, mut bus): ([c_char; 128], [c_char; 32]) = ([0; 128], [0; 32]);
        let mut uuid = MaybeUninit::uninit();
        let mut bytes = 0;
        // SAFETY: each writes no more than it is told, into memory that is there, and `uuid` whole where it succeeds; the
        // device is one of the driver's.
        let uuid = unsafe {
            check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), 127, device))?;
            check("cuDeviceGetPCIBusId", sys::cuDeviceGetPCIBusId(bus.as_mut_ptr(), 31, device))?;
            check("cuDeviceTotalMem", sys::cuDeviceTotalMem_v2(&raw mut bytes, device))?;
            check("cuDeviceGetUuid", sys::cuDeviceGetUuid(uuid.as_mut_ptr(), device))?;
            uuid.assume_init()
        };
        let has = |attribute| {
            let mut value = 0;
            // SAFETY: `value` is written where it succeeds. An attribute that an old driver does not know is an error.
            let code = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) };
            code == CUresult::CUDA_SUCCESS && value != 0
        };
        Ok(DeviceInfo {
            index,
            name: text(&name),
            uuid: uuid.bytes.map(|byte| byte.cast_unsigned()),
            pci_bus_id: text(&bus),
            bytes: bytes as u64,
            has_descriptors: self.has_vmm
                && has(Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED)
                && has(Attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED),
        })
    }
}

fn ordinal(index: u16) -> Result<CUdevice, HbmError> {
    let mut device = 0;
    // SAFETY: `device` is written where it succeeds.
    checked(index, "cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, c_int::from(index)) })?;
    Ok(device)
}

fn checked(device: u16, op: &'static str, code: CUresult) -> Result<(), HbmError> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code if is_fatal(code) => Err(HbmError::Lost { device, op, code }),
        code => Err(HbmError::Driver { device, op, code }),
    }
}

/// A text that the driver ended with a zero.
fn text(letters: &[c_char]) -> String {
    let bytes: Vec<u8> = letters.iter().map(|letter| letter.cast_unsigned()).collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
}

/// A GPU with its primary context, for all threads. Once lost it stays so: whoever holds it lets go, and opens it anew when
/// nobody does any more, which is when the driver resets its context.
pub struct Device {
    pub(super) cuda: Arc<Cuda>,
    info: DeviceInfo,
    ordinal: CUdevice,
    pub(super) context: CUcontext,
    lost: OnceLock<(&'static str, CUresult)>,
}

// SAFETY: a context may be made current in any thread, in several at once.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {}, lost: {})", self.info.index, self.info.pci_bus_id, self.is_lost())
    }
}

/// The device's context is current in this thread until this is dropped; then what was current before. Meanwhile no capture of a
/// graph forbids this thread anything, nor is ended by what it does: nothing here has to do with what an engine captures.
pub(super) struct Current<'a> {
    device: &'a Device,
    former_mode: Mode,
    /// It is this thread's.
    _here: PhantomData<*const ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        self.device.exchange(self.former_mode);
        let mut context = std::ptr::null_mut();
        // SAFETY: pops what `enter` pushed; a context that is gone is popped all the same, and there is nothing to do about
        // an error.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut context) };
    }
}

impl Device {
    /// Opens a device by its index.
    pub fn open(cuda: &Arc<Cuda>, index: u16) -> Result<Arc<Self>, HbmError> {
        let info = cuda.info(index)?;
        let ordinal = ordinal(index)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` is written where it succeeds.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, ordinal) };
        checked(index, "cuDevicePrimaryCtxRetain", code)?;
        Ok(Arc::new(Self { cuda: cuda.clone(), info, ordinal, context, lost: OnceLock::new() }))
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    pub fn index(&self) -> u16 {
        self.info.index
    }

    pub fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// Whether it is known that it moves no bytes any more: it was lost by an error that no context survives.
    pub(super) fn runs_nothing(&self) -> bool {
        self.lost.get().is_some_and(|(_, code)| is_fatal(*code))
    }

    /// Bytes that are free, and bytes in all.
    pub fn memory(&self) -> Result<(u64, u64), HbmError> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are written where it succeeds.
        self.check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// Asks the driver whether the device still answers: a copy out of memory of a device that went away meanwhile may end
    /// well, and have moved anything.
    pub fn is_well(&self) -> bool {
        let Ok(_current) = self.enter() else { return false };
        // SAFETY: the context's own default stream.
        match unsafe { sys::cuStreamQuery(std::ptr::null_mut()) } {
            CUresult::CUDA_ERROR_NOT_READY => true,
            code => self.check("cuStreamQuery", code).is_ok(),
        }
    }

    /// Whether this device can reach the other's memory.
    pub fn can_reach(&self, other: &Device) -> Result<bool, HbmError> {
        let mut can = 0;
        // SAFETY: `can` is written where it succeeds; both devices are the driver's.
        let code = unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, self.ordinal, other.ordinal) };
        self.check("cuDeviceCanAccessPeer", code)?;
        Ok(can != 0)
    }

    /// Makes its context current.
    pub(super) fn enter(&self) -> Result<Current<'_>, HbmError> {
        if let Some((op, code)) = self.lost.get() {
            return Err(HbmError::Lost { device: self.index(), op, code: *code });
        }
        // SAFETY: the context is retained while `self` lives.
        self.check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(self.context) })?;
        let former_mode = self.exchange(Mode::CU_STREAM_CAPTURE_MODE_RELAXED);
        Ok(Current { device: self, former_mode, _here: PhantomData })
    }

    /// How this thread heeds captures of graphs from now on; how it did before.
    fn exchange(&self, mut mode: Mode) -> Mode {
        if self.cuda.has_captures {
            // SAFETY: the function is there; `mode` is read, and written where it succeeds. An error leaves the thread as it is:
            // then what is forbidden is answered as an error by the call itself.
            let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
        }
        mode
    }

    /// An answer of the driver; one that no context survives makes the device lost.
    pub(super) fn check(&self, op: &'static str, code: CUresult) -> Result<(), HbmError> {
        let answer = checked(self.index(), op, code);
        if matches!(answer, Err(HbmError::Lost { .. })) {
            self.give_up(op, code);
        }
        answer
    }

    /// Lost from now on: whether it still moves bytes cannot be known.
    pub(super) fn give_up(&self, op: &'static str, code: CUresult) {
        if self.lost.set((op, code)).is_ok() {
            tracing::warn!(device = self.index(), op, ?code, "GPU lost");
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained in `open`, released once; all that needs it holds the device.
        let code = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.ordinal) };
        if code != CUresult::CUDA_SUCCESS && !self.is_lost() {
            tracing::warn!(device = self.index(), ?code, "GPU context not released");
        }
    }
}
