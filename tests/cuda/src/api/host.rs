//! Host memory that devices reach.

use std::ffi::{c_uint, c_ulonglong, c_void};

use cudarc::driver::sys::{CU_MEMHOSTREGISTER_PORTABLE, CUdeviceptr, CUresult};

use super::put;
use crate::{
    memory::Memory,
    misuse::Kind,
    world::{enter_context, give_up, lock},
};

/// A page of the host: what is registered ends at one.
const PAGE: u64 = 4096;

/// Whether all of it is mapped in this process.
fn is_there(at: u64, bytes: u64) -> bool {
    let start = at / PAGE * PAGE;
    let pages = (at + bytes - start).div_ceil(PAGE);
    let mut seen = vec![0u8; pages as usize];
    let at = std::ptr::without_provenance_mut::<c_void>(start as usize);
    // SAFETY: asks the kernel about addresses, whatever they are; `seen` has a byte for each page.
    unsafe { libc::mincore(at, (pages * PAGE) as usize, seen.as_mut_ptr()) == 0 }
}

api! {
    fn cuMemHostRegister_v2(at: *mut c_void, bytes: usize, flags: c_uint) {
        let (held, context) = enter_context(CALL)?;
        let (at, bytes) = (at.addr() as u64, bytes as u64);
        if at == 0 || bytes == 0 || flags > 15 || at.checked_add(bytes).is_none() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let taken = |held: &crate::world::World| {
            held.memory.host(at).is_some() || held.memory.hosts.range(at..at + bytes).next().is_some()
        };
        if taken(&held) {
            held.misuse(Kind::Registration, CALL, format!("{at:#x} is registered already"));
            return Err(CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        }
        // Looking at a large range takes a while, as pinning does.
        let takes = held.options.register;
        drop(held);
        std::thread::sleep(takes);
        if !is_there(at, bytes) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let host = Memory::host_range(at, bytes, context, flags & CU_MEMHOSTREGISTER_PORTABLE != 0, false);
        let (mut held, _) = enter_context(CALL)?;
        held.memory.hosts.insert(at, host);
        Ok(())
    }

    fn cuMemHostUnregister(at: *mut c_void) {
        let (mut held, _) = enter_context(CALL)?;
        let at = at.addr() as u64;
        let Some(host) = held.memory.hosts.get(&at).filter(|host| !host.allocated).cloned() else {
            held.misuse(Kind::Registration, CALL, format!("{at:#x} is not registered"));
            return Err(CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
        };
        held = give_up(held, at, host.bytes, host.all(), CALL);
        held.memory.hosts.remove(&at);
        Ok(())
    }

    fn cuMemHostGetDevicePointer_v2(out: *mut CUdeviceptr, at: *mut c_void, flags: c_uint) {
        let (held, _) = enter_context(CALL)?;
        let at = at.addr() as u64;
        if flags != 0 || held.memory.host(at).is_none() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        put(out, at)
    }

    fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        let (mut held, context) = enter_context(CALL)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, kind, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        let host = Memory::host_range(at.addr() as u64, bytes as u64, context, true, true);
        held.memory.hosts.insert(at.addr() as u64, host);
        put(out, at)
    }

    fn cuMemFreeHost(at: *mut c_void) {
        let (mut held, _) = enter_context(CALL)?;
        let base = at.addr() as u64;
        let Some(host) = held.memory.hosts.get(&base).filter(|host| host.allocated).cloned() else {
            held.misuse(Kind::DoubleFree, CALL, format!("{base:#x} is not allocated"));
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        };
        held = give_up(held, base, host.bytes, host.all(), CALL);
        held.memory.hosts.remove(&base);
        // SAFETY: mapped by `cuMemHostAlloc`, of that size, and no stream uses it.
        unsafe { libc::munmap(at, host.bytes as usize) };
        Ok(())
    }
}

/// What a driver cannot see: the host itself reads (or writes) `bytes` of registered memory. A copy that touches them too, and
/// that nobody has waited for, is a race. Returns 1 if there is none, 0 if there is.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_cuda_host_touches(at: *const c_void, bytes: c_ulonglong, writes: c_uint) -> c_uint {
    const CALL: &str = "the host";
    let at = at.addr() as u64;
    let mut held = lock();
    let context = held.memory.host(at).map_or(0, |(_, host)| host.context);
    let Ok(spot) = held.memory.host_spot(at, bytes, context, true) else { return 1 };
    if let Some(user) = held.pending(at, bytes) {
        held.misuse(Kind::InUse, CALL, format!("{at:#x} is used by a {user} that has not ended"));
        return 0;
    }
    c_uint::from(held.host_touches(spot.bytes, writes != 0, CALL))
}
