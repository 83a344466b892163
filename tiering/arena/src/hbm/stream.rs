//! A stream of somebody else's, as engines have them, or one of our own: copies are put on it, behind what is there, and in
//! front of what comes. Nothing here waits: whoever must know that copies have ended asks a [`Mark`] that was put behind them.

use std::{ffi::c_void, fmt, sync::Arc};

use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUresult, CUstream, CUstream_flags, CUstreamWaitValue_flags};

use super::{device::Device, error::HbmError, extent::HbmExtent, host::HostExtent};

/// A stream of one device.
pub struct Stream {
    device: Arc<Device>,
    raw: CUstream,
    /// Ends with this; what is on it then runs on all the same.
    is_ours: bool,
}

// SAFETY: a stream may be used from any thread whose current context is its own, which each call sees to.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver orders calls of several threads.
unsafe impl Sync for Stream {}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:?} of device {})", self.raw, self.device.index())
    }
}

impl Stream {
    /// # Safety
    /// `raw` is a stream of the device's primary context, or null for its default stream, and lives as long as this does.
    pub unsafe fn of(device: &Arc<Device>, raw: *mut c_void) -> Self {
        Self { device: device.clone(), raw: raw.cast(), is_ours: false }
    }

    /// A new stream, which neither waits for the default stream nor is waited for by it.
    pub fn create(device: &Arc<Device>) -> Result<Self, HbmError> {
        let _current = device.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is written where it succeeds.
        let code = unsafe { sys::cuStreamCreate(&raw mut raw, CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
        device.check("cuStreamCreate", code)?;
        Ok(Self { device: device.clone(), raw, is_ours: true })
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Begins to copy out of an extent of the stream's own device, or of one that it reaches, to an address of its own.
    ///
    /// # Safety
    /// `to` is memory of the device, `bytes` long, that nobody frees, reads or writes until what the stream has by now has
    /// ended, but what is put on the stream afterwards. The extent lives as long.
    ///
    /// # Panics
    /// If the bytes do not lie in the extent, or it is out of the device's reach.
    pub unsafe fn copy_from(&self, from: &HbmExtent, offset: u64, to: u64, bytes: u64) -> Result<(), HbmError> {
        assert!(from.is_reached_by(self.device.index()), "an extent that the stream's device reaches");
        let (at, len) = (address(from, offset, bytes), bytes as usize);
        if from.device().index() == self.device.index() {
            // SAFETY: a range of the extent, as just checked, and one that the caller answers for.
            return self.enqueue("a copy on a device", || unsafe { sys::cuMemcpyDtoDAsync_v2(to, at, len, self.raw) });
        }
        let (here, there) = (self.device.context, from.device().context);
        // SAFETY: as above; both contexts are retained by their devices.
        self.enqueue("a copy between devices", || unsafe { sys::cuMemcpyPeerAsync(to, here, at, there, len, self.raw) })
    }

    /// Begins to copy from an address of the device into an extent of it.
    ///
    /// # Safety
    /// `from` is memory of the device, `bytes` long, that nobody frees or writes until what the stream has by now has ended.
    /// Nobody else reads or writes the part of the extent meanwhile, and the extent lives as long.
    ///
    /// # Panics
    /// If the bytes do not lie in the extent, or it is another device's.
    pub unsafe fn copy_to(&self, from: u64, to: &HbmExtent, offset: u64, bytes: u64) -> Result<(), HbmError> {
        assert!(to.device().index() == self.device.index(), "an extent of the stream's device");
        let to = address(to, offset, bytes);
        // SAFETY: as in `copy_from`.
        self.enqueue("a copy on a device", || unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.raw) })
    }

    /// Begins to copy memory of the host to an address of the device.
    ///
    /// # Safety
    /// As of `copy_from`; nobody writes the host's bytes meanwhile.
    ///
    /// # Panics
    /// If the bytes are not registered: see [`HostExtent::registered_bytes`].
    pub unsafe fn copy_in(&self, from: &HostExtent, offset: u64, to: u64, bytes: u64) -> Result<(), HbmError> {
        self.each_part(from, offset, bytes, |at, done, bytes| {
            // SAFETY: registered bytes of a mapping, and a range that the caller answers for.
            unsafe { sys::cuMemcpyHtoDAsync_v2(to + done, at.cast_const(), bytes as usize, self.raw) }
        })
    }

    /// Begins to copy from an address of the device to memory of the host.
    ///
    /// # Safety
    /// As of `copy_to`; the host's bytes are writable, and nobody else reads or writes them meanwhile.
    ///
    /// # Panics
    /// If the bytes are not registered: see [`HostExtent::registered_bytes`].
    pub unsafe fn copy_out(&self, from: u64, to: &HostExtent, offset: u64, bytes: u64) -> Result<(), HbmError> {
        self.each_part(to, offset, bytes, |at, done, bytes| {
            // SAFETY: as in `copy_in`; the caller answers for the mapping being writable.
            unsafe { sys::cuMemcpyDtoHAsync_v2(at, from + done, bytes as usize, self.raw) }
        })
    }

    /// Writes a word when all that is on the stream now has ended, for whoever waits for it: all of that is seen by who sees
    /// the word.
    ///
    /// # Safety
    /// `at` is memory of the device, or of the host and registered, that nobody frees before the stream has come there.
    pub unsafe fn write_word(&self, at: u64, value: u32) -> Result<(), HbmError> {
        self.has_words("cuStreamWriteValue32")?;
        // SAFETY: the caller answers for the address; the function is there, as just seen.
        self.enqueue("a word for a stream", || unsafe { sys::cuStreamWriteValue32_v2(self.raw, at, value, 0) })
    }

    /// What is put on the stream from now on waits until the word at `at` is `value` or more; the numbers go round, so that 0
    /// comes after `u32::MAX`.
    ///
    /// # Safety
    /// As of `write_word`. Somebody writes the word, else the stream waits for ever.
    pub unsafe fn wait_word(&self, at: u64, value: u32) -> Result<(), HbmError> {
        self.has_words("cuStreamWaitValue32")?;
        let until = CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
        // SAFETY: as above.
        self.enqueue("a stream that waits for a word", || unsafe {
            sys::cuStreamWaitValue32_v2(self.raw, at, value, until)
        })
    }

    /// Whether words can be written and waited for, which old drivers have not.
    pub fn has_words(&self, function: &'static str) -> Result<(), HbmError> {
        if self.device.cuda.has_words { Ok(()) } else { Err(HbmError::Function { function }) }
    }

    /// What is put on the stream from now on waits for what is in front of a mark, of this stream's device or of another.
    pub fn wait_for(&self, mark: &Mark) -> Result<(), HbmError> {
        if let Some(error) = mark.failure() {
            return Err(error);
        }
        let Some(event) = mark.event.filter(|_| !mark.was_over) else { return Ok(()) };
        // SAFETY: an event that was recorded, and that `mark` keeps.
        self.enqueue("a stream that waits for a mark", || unsafe { sys::cuStreamWaitEvent(self.raw, event, 0) })
    }

    /// A mark behind all that is on the stream now. Where the driver makes none this waits for the stream instead.
    pub fn mark(&self) -> Mark {
        let mut mark = Mark { device: self.device.clone(), event: None, was_over: false };
        let Ok(_current) = self.device.enter() else { return mark };
        let mut event = std::ptr::null_mut();
        // SAFETY: `event` is written where it succeeds.
        let code = unsafe { sys::cuEventCreate(&raw mut event, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32) };
        if self.device.check("cuEventCreate", code).is_ok() {
            mark.event = Some(event);
            // SAFETY: both are of the context that is current.
            let code = unsafe { sys::cuEventRecord(event, self.raw) };
            if self.device.check("cuEventRecord", code).is_ok() {
                return mark;
            }
        }
        // SAFETY: a stream of the context that is current.
        match unsafe { sys::cuStreamSynchronize(self.raw) } {
            CUresult::CUDA_SUCCESS => mark.was_over = true,
            // Nobody can tell any more what moves.
            code => self.device.give_up("cuStreamSynchronize", code),
        }
        mark
    }

    /// Calls `copy` with the address of each part that lies in one registration, what came before it, and its bytes.
    fn each_part(
        &self,
        host: &HostExtent,
        offset: u64,
        bytes: u64,
        copy: impl Fn(*mut c_void, u64, u64) -> CUresult,
    ) -> Result<(), HbmError> {
        let end = offset.checked_add(bytes).expect("offset fits");
        assert!(end <= host.registered_bytes(), "{bytes} bytes at {offset} of {}", host.registered_bytes());
        for part in host.parts(offset..end) {
            let at = host.mapping().as_ptr(part.start as usize).cast::<c_void>();
            self.enqueue("a copy between host and device", || copy(at, part.start - offset, part.end - part.start))?;
        }
        Ok(())
    }

    fn enqueue(&self, op: &'static str, copy: impl FnOnce() -> CUresult) -> Result<(), HbmError> {
        let _current = self.device.enter()?;
        self.device.check(op, copy())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        let Ok(_current) = self.device.enter() else { return };
        // SAFETY: a stream of ours, destroyed once; the driver lets it end what it has.
        let code = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        if let Err(error) = self.device.check("cuStreamDestroy", code) {
            tracing::warn!(%error, "a stream did not end well");
        }
    }
}

fn address(extent: &HbmExtent, offset: u64, bytes: u64) -> u64 {
    let end = offset.checked_add(bytes).expect("offset fits");
    assert!(end <= extent.bytes(), "{bytes} bytes at {offset} of {}", extent.bytes());
    extent.address() + offset
}

/// Behind what a stream had when it was made.
pub struct Mark {
    device: Arc<Device>,
    event: Option<CUevent>,
    /// When it was made.
    was_over: bool,
}

// SAFETY: an event may be asked from any thread whose current context is its own, which each call sees to.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mark(device {}, over: {})", self.device.index(), self.is_over())
    }
}

impl Mark {
    /// Whether all in front of it has ended; that is so too when the device is lost: then nothing runs there any more. False
    /// where it cannot be known, and for ever if it never can.
    pub fn is_over(&self) -> bool {
        if self.was_over || self.device.runs_nothing() {
            return true;
        }
        let (Some(event), Ok(_current)) = (self.event, self.device.enter()) else { return false };
        // SAFETY: an event of ours, of the context that is current.
        match unsafe { sys::cuEventQuery(event) } {
            CUresult::CUDA_SUCCESS => true,
            CUresult::CUDA_ERROR_NOT_READY => false,
            // Any other error may pass, and what is in front of this runs on: while somebody captures a graph, say.
            code => self.device.check("cuEventQuery", code).is_err() && self.device.runs_nothing(),
        }
    }

    /// Why bytes may be anything: the device was lost, before or after what was in front of this had ended.
    pub fn failure(&self) -> Option<HbmError> {
        self.device.enter().err()
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let (Some(event), Ok(_current)) = (self.event, self.device.enter()) else { return };
        // SAFETY: an event of ours, destroyed once; the driver keeps it until it has fired.
        let code = unsafe { sys::cuEventDestroy_v2(event) };
        if let Err(error) = self.device.check("cuEventDestroy", code) {
            tracing::warn!(%error, "an event did not end well");
        }
    }
}
