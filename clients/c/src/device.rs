//! Copies of blocks to and from the memory of GPUs, on a stream of the caller's.

use std::{
    ffi::{c_char, c_int, c_ulonglong, c_void},
    mem::{ManuallyDrop, MaybeUninit},
    path::Path,
    time::Duration,
};

use lapis_client::{Birthplace, ClientError, DeviceGot, DevicePtr, DeviceStream};

use crate::{
    client::{self, lapis_client_t},
    error::CallError,
    get::{self, lapis_get_options_t},
    guard,
    names::lapis_key_t,
    pool::{self, lapis_pool_t},
    put::{self, lapis_put_options_t},
    raw,
};

/// The copies that a get put on a stream. Any thread may use it at any time.
pub struct lapis_device_got_t {
    got: ManuallyDrop<DeviceGot>,
    birthplace: Birthplace,
}

impl lapis_device_got_t {
    /// In a forked child nothing of the driver may be touched.
    fn got(&self) -> Result<&DeviceGot, CallError> {
        if self.birthplace.is_here() { Ok(&self.got) } else { Err(ClientError::Closed.into()) }
    }
}

impl Drop for lapis_device_got_t {
    fn drop(&mut self) {
        if self.birthplace.is_here() {
            // SAFETY: dropped here alone, and never used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.got) };
        }
    }
}

/// Takes CUDA's driver from a file, instead of libcuda.so or libcuda.so.1 as the loader finds it; before the first call
/// that needs it, and for the life of the process. Without this call the driver is looked for at the first call on a GPU;
/// this library is linked with none. LAPIS_E_GPU where it cannot be loaded, or another one is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_load_cuda(path: *const c_char) -> c_int {
    guard::status(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { raw::text(path, "path") }?;
        Ok(lapis_client::load_cuda(Path::new(path))?)
    })
}

/// Opens a GPU ahead of the first call there: maps what the daemon has on it (LAPIS_CONNECT_GPUS), and registers the daemon's
/// memory in DRAM with the driver. Returns when all of that is registered or `deadline_us` are over; 0 does not wait. The
/// opening itself is waited for at any rate. Of `bytes` so many are registered then, and the rest goes on behind; both may
/// be null. A GPU that is open already is only looked at.
///
/// Calls on a GPU do the same where nobody has before, within their own deadlines: what is not registered in time is a miss.
/// So does a client that connects to a daemon with other memory, as after a cold start. `device` is as lapis_get_device()
/// has it. LAPIS_E_GPU and LAPIS_E_GPU_BUSY, also where there is no driver or it refuses to register.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_open_gpu(
    client: Option<&lapis_client_t>,
    device: u32,
    deadline_us: u64,
    registered_bytes: Option<&mut MaybeUninit<u64>>,
    bytes: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    guard::status(|| {
        let opened = client::client(client)?.open_gpu(index_of(device)?, Duration::from_micros(deadline_us))?;
        raw::tell(registered_bytes, opened.registered_bytes);
        raw::tell(bytes, opened.bytes);
        Ok(())
    })
}

/// lapis_get_into() into the memory of a GPU, on the caller's stream: when this returns, all copies are on it, behind what
/// was there, so blocks are there for whatever is put on the stream afterwards. What the daemon has on that GPU, or on
/// another one that it reaches (peer to peer), is copied from there (LAPIS_CONNECT_GPUS), what is in DRAM from where it
/// lies; for the rest the daemon is asked, within the deadline.
///
/// `addresses` are those of CUdeviceptr: one for each key, or the same number for each, and each gets an equal part of what
/// is asked of a block. Each is memory of the stream's GPU with room for its part, which nobody frees, nor reads or writes
/// other than on this stream, before what is put on the stream has ended. `device` is the GPU as the driver counts them in
/// this process (CUdevice, cudaGetDevice()); `stream` is a CUstream or cudaStream_t of its primary context, null for the
/// default stream.
///
/// `hit_bytes` and `hits` are as lapis_get_into() has them. `got` tells of the copies; ask lapis_device_got_still_valid()
/// when they have ended and before the bytes are believed. Freed by lapis_device_got_free().
///
/// Sums are checked of what comes from DRAM, and were of what lies on a GPU when it came there; with LAPIS_VERIFY_ALWAYS
/// blocks come from DRAM. The first call opens the GPU and registers memory of the host with the driver, which may take
/// longer than a default deadline: blocks that are not registered by then are misses (lapis_open_gpu()). LAPIS_E_GPU and LAPIS_E_GPU_BUSY, also
/// where there is no driver: copies may be on the stream all the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_get_device(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    addresses: *const c_ulonglong,
    addresses_count: usize,
    device: u32,
    stream: *mut c_void,
    options: *const lapis_get_options_t,
    hit_bytes: *mut u32,
    hits: Option<&mut MaybeUninit<usize>>,
    got: Option<&mut MaybeUninit<*mut lapis_device_got_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(got, "got")?;
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let (keys, to) = unsafe { (raw::keys(keys, keys_count)?, device_ptrs(addresses, addresses_count)?) };
        // SAFETY: the caller's promise.
        let (options, stream) = unsafe { (get::get_options(options)?, device_stream(device, stream)?) };
        // SAFETY: the caller's promise.
        let hit_bytes = unsafe { raw::list_out(hit_bytes, keys_count, "hit_bytes") }?;
        // SAFETY: the caller's promise of addresses and stream.
        let found = unsafe { pool.client()?.get_device(&pool.pool, &keys, &to, &stream, &options) }?;
        get::answer(&found.got, hit_bytes, hits);
        raw::give(place, lapis_device_got_t { got: ManuallyDrop::new(found), birthplace: Birthplace::here() });
        Ok(())
    })
}

/// Whether all copies of a get have ended.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_device_got_is_over(
    got: Option<&lapis_device_got_t>,
    over: Option<&mut MaybeUninit<bool>>,
) -> c_int {
    guard::status(|| {
        let got = got.ok_or(CallError::Null { argument: "got" })?.got()?;
        raw::place(over, "over")?.write(got.is_over());
        Ok(())
    })
}

/// Whether what was copied is what was asked for; ask when the copies have ended. False once the GPU is lost, or the daemon
/// gave the client up or came back cold: then the bytes may be anything.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_device_got_still_valid(
    got: Option<&lapis_device_got_t>,
    valid: Option<&mut MaybeUninit<bool>>,
) -> c_int {
    guard::status(|| {
        let got = got.ok_or(CallError::Null { argument: "got" })?.got()?;
        raw::place(valid, "valid")?.write(got.still_valid());
        Ok(())
    })
}

/// Frees the handle, whether the copies have ended or not: they go on, and what they read stays pinned until then. Null is
/// no mistake.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_device_got_free(got: Option<Box<lapis_device_got_t>>) -> c_int {
    guard::status(|| {
        drop(got);
        Ok(())
    })
}

/// lapis_put_from() out of the memory of a GPU, on the caller's stream, behind what is on it: when this returns, the blocks
/// are read and stored. Into the daemon's memory on that GPU as far as there is room (LAPIS_CONNECT_GPUS), else to DRAM.
/// Arguments are as lapis_get_device() and lapis_put_from() have them; nobody frees the addresses' memory, or writes it other
/// than on this stream, before what is put on the stream has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_put_device(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    parent: *const lapis_key_t,
    addresses: *const c_ulonglong,
    addresses_count: usize,
    device: u32,
    stream: *mut c_void,
    options: *const lapis_put_options_t,
    results: *mut i32,
    stored: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let (keys, from) = unsafe { (raw::keys(keys, keys_count)?, device_ptrs(addresses, addresses_count)?) };
        // SAFETY: the caller's promise.
        let (options, stream) = unsafe { (put::put_options(options)?, device_stream(device, stream)?) };
        // SAFETY: the caller's promise.
        let (parent, results) = unsafe { (raw::key(parent), raw::list_out(results, keys_count, "results")?) };
        // SAFETY: the caller's promise of addresses and stream.
        let put = unsafe { pool.client()?.put_device(&pool.pool, &keys, parent, &from, &stream, &options) }?;
        put::answer(&put, results, stored);
        Ok(())
    })
}

/// # Safety
/// As for [`raw::list`].
pub unsafe fn device_ptrs(addresses: *const c_ulonglong, count: usize) -> Result<Vec<DevicePtr>, CallError> {
    // SAFETY: the caller's promise.
    let addresses = unsafe { raw::list(addresses, count, "addresses") }?;
    match addresses.iter().position(|address| *address == 0) {
        Some(index) => Err(CallError::NullAt { argument: "addresses", index }),
        None => Ok(addresses.iter().map(|address| DevicePtr(*address)).collect()),
    }
}

/// # Safety
/// As for [`DeviceStream::raw`].
pub unsafe fn device_stream(device: u32, stream: *mut c_void) -> Result<DeviceStream, CallError> {
    // SAFETY: the caller's promise.
    Ok(unsafe { DeviceStream::raw(index_of(device)?, stream) })
}

fn index_of(device: u32) -> Result<u16, CallError> {
    let expected = "a number of a GPU as the driver counts them";
    u16::try_from(device).map_err(|_| CallError::Value { argument: "device", found: device.into(), expected })
}
