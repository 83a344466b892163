//! Host extents that devices copy from and to by DMA: registered with CUDA in the background, in chunks.

use std::{
    ffi::c_void,
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use cudarc::driver::sys::{self, CU_MEMHOSTREGISTER_PORTABLE, CU_MEMHOSTREGISTER_READ_ONLY};

use super::{device::Device, error::HbmError};
use crate::Mapping;

/// The most that is registered by one call: it pins all pages before it returns, and holds locks of the driver meanwhile.
pub const CHUNK_BYTES_MAX: u64 = 64 << 30;

/// A mapping whose registration has begun. It is registered for all devices, through one of them: as long as this lives, that
/// one's context does, also when the device is lost, so that the others go on. To open a lost device anew, let the copiers
/// end, drop this, and register with another.
#[derive(Debug)]
pub struct HostExtent {
    shared: Arc<Registration>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Registration {
    mapping: Mapping,
    device: Arc<Device>,
    chunk_bytes: u64,
    registered_bytes: AtomicU64,
    failed: OnceLock<HbmError>,
    stop: AtomicBool,
}

impl HostExtent {
    /// Begins to register a mapping, in chunks of `chunk_bytes`, [`CHUNK_BYTES_MAX`] at most. Returns at once.
    pub fn register(device: &Arc<Device>, mapping: Mapping, chunk_bytes: u64) -> Result<Arc<Self>, HbmError> {
        let shared = Arc::new(Registration {
            mapping,
            device: device.clone(),
            chunk_bytes: chunk_bytes.clamp(1, CHUNK_BYTES_MAX),
            registered_bytes: AtomicU64::new(0),
            failed: OnceLock::new(),
            stop: AtomicBool::new(false),
        });
        let task = shared.clone();
        let thread = thread::Builder::new().name("cuda-register".to_owned()).spawn(move || task.run());
        let thread = thread.map_err(|error| HbmError::System {
            device: device.index(),
            op: "a thread to register host memory",
            reason: error.to_string(),
        })?;
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// How much from the start on is registered by now.
    pub fn registered_bytes(&self) -> u64 {
        self.shared.registered_bytes()
    }

    /// Why registration ended before the end, if it did.
    pub fn failure(&self) -> Option<&HbmError> {
        self.shared.failed.get()
    }

    pub fn mapping(&self) -> &Mapping {
        &self.shared.mapping
    }

    /// Waits until registration has ended, well or not.
    pub fn wait(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that registers host memory panicked");
        }
    }

    /// The parts of a range that lie in one chunk each: a copy must not cross from one registration into the next.
    pub(super) fn parts(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let chunk = self.shared.chunk_bytes;
        let mut at = range.start;
        std::iter::from_fn(move || {
            let end = range.end.min((at / chunk + 1) * chunk);
            let part = (at < range.end).then_some(at..end);
            at = end;
            part
        })
    }
}

impl Drop for HostExtent {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wait();
        self.shared.undo();
    }
}

impl Registration {
    fn chunks(&self, bytes: u64) -> impl Iterator<Item = Range<u64>> {
        let chunk = self.chunk_bytes;
        (0..bytes.div_ceil(chunk)).map(move |index| index * chunk..bytes.min((index + 1) * chunk))
    }

    fn registered_bytes(&self) -> u64 {
        self.registered_bytes.load(Ordering::Acquire)
    }

    fn run(&self) {
        for chunk in self.chunks(self.mapping.len() as u64) {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = self.add(&chunk) {
                tracing::warn!(%error, at = chunk.start, "host memory is not registered with CUDA");
                let _ = self.failed.set(error);
                return;
            }
            self.registered_bytes.store(chunk.end, Ordering::Release);
        }
    }

    fn add(&self, chunk: &Range<u64>) -> Result<(), HbmError> {
        let _current = self.device.enter()?;
        let at = self.mapping.as_ptr(chunk.start as usize).cast::<c_void>();
        let bytes = (chunk.end - chunk.start) as usize;
        let reads = if self.mapping.is_writable() { 0 } else { CU_MEMHOSTREGISTER_READ_ONLY };
        // SAFETY: bytes of the mapping, which `self` keeps mapped until they are given back.
        let code = unsafe { sys::cuMemHostRegister_v2(at, bytes, CU_MEMHOSTREGISTER_PORTABLE | reads) };
        self.device.check("cuMemHostRegister", code)
    }

    fn undo(&self) {
        // What a lost device has registered goes with its context, which others may hold. Until then no other memory may come to
        // these addresses: they stay mapped.
        let Ok(_current) = self.device.enter() else {
            return if self.registered_bytes() > 0 {
                std::mem::forget(self.mapping.clone());
            };
        };
        for chunk in self.chunks(self.registered_bytes()) {
            let at = self.mapping.as_ptr(chunk.start as usize).cast::<c_void>();
            // SAFETY: registered in `add`, given back once; nothing copies it, for who does holds the extent.
            let code = unsafe { sys::cuMemHostUnregister(at) };
            if let Err(error) = self.device.check("cuMemHostUnregister", code) {
                tracing::warn!(%error, "host memory stays registered with CUDA");
            }
        }
    }
}
