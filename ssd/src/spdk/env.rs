//! SPDK's environment: one a process, made at the first use and never taken down. What it has of memory and of controllers.
//!
//! Invariant: memory that is registered stays mapped: the register holds its mapping.
//! Invariant: a controller has one user in this process; other processes SPDK keeps off itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CString, c_void},
    io,
    path::Path,
    ptr::NonNull,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lapis_arena::{ArenaError, Mapping};
use rustix::thread::CpuSet;

use super::{
    NoSpdk,
    find::{self, Libraries},
    library::{ANY_NODE, EnvOptions, FOR_DEVICES, Library, NO_ADDRESS},
    parts::{inner, reach},
};

pub(super) struct Env {
    pub library: Library,
    pub libraries: Libraries,
    /// By address.
    memory: Mutex<BTreeMap<usize, Registered>>,
    taken: Mutex<BTreeSet<String>>,
}

struct Registered {
    bytes: usize,
    users: usize,
    _mapping: Mapping,
}

/// A controller that is this one's until it is dropped.
pub(super) struct Claim {
    env: &'static Env,
    address: String,
}

/// Memory that every controller reaches, to copy by.
pub(super) struct DmaMemory {
    env: &'static Env,
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is memory, used through `&mut self` and by commands that are ended before it is dropped; `spdk_free` may be
// called by any thread.
unsafe impl Send for DmaMemory {}

impl Env {
    /// The environment, with the libraries in `folder` if it is not made yet. A failed start is the answer from then on: DPDK
    /// does not start twice in a process.
    pub(super) fn get(folder: Option<&Path>) -> Result<&'static Self, NoSpdk> {
        static MADE: Mutex<Option<Result<&'static Env, NoSpdk>>> = Mutex::new(None);
        let mut made = locked(&MADE);
        if let Some(made) = &*made {
            return made.clone();
        }
        let libraries = find::find(folder)?;
        let library = Library::load(&libraries)?;
        let started = start(&library).map(|()| {
            let env = Self { library, libraries, memory: Mutex::default(), taken: Mutex::default() };
            &*Box::leak(Box::new(env))
        });
        *made = Some(started.clone());
        started
    }

    pub(super) fn claim(&'static self, address: &str) -> Result<Claim, NoSpdk> {
        match locked(&self.taken).insert(address.to_owned()) {
            true => Ok(Claim { env: self, address: address.to_owned() }),
            false => Err(NoSpdk::Taken { address: address.to_owned() }),
        }
    }

    /// Lets controllers reach the huge pages within a mapping; address and bytes of what they reach, `None` if it has none.
    /// To be given back by `unregister`. What SPDK does not find, or would find somewhere else later, is refused.
    pub(super) fn register(&self, mapping: &Mapping) -> Result<Option<(usize, usize)>, ArenaError> {
        if mapping.is_empty() {
            return Ok(None);
        }
        let Some((address, bytes)) = inner(mapping.as_ptr(0) as usize, mapping.len()) else { return Ok(None) };
        let mut memory = locked(&self.memory);
        if let Some(known) = memory.get_mut(&address).filter(|known| known.bytes == bytes) {
            known.users += 1;
            return Ok(Some((address, bytes)));
        }
        // SAFETY: the range lies in the mapping, which `memory` keeps until it is unregistered; others may map it too, and no
        // reference is formed.
        let rc = unsafe { (self.library.mem_register)(address as *mut c_void, bytes) };
        let refused = |source| ArenaError::Io { op: "registering memory with SPDK", bytes: bytes as u64, source };
        if rc != 0 {
            return Err(refused(io::Error::from_raw_os_error(rc.saturating_neg())));
        }
        // From 25.09 on it says 0 whatever came of it.
        if let Err(error) = reach((address, bytes), mapping.is_hugetlb(), |at, bytes| self.translate(at, bytes)) {
            // SAFETY: registered as this range just now; no command has been given any of it.
            let rc = unsafe { (self.library.mem_unregister)(address as *mut c_void, bytes) };
            if rc != 0 {
                tracing::debug!(rc, bytes, "memory that SPDK half knows stays mapped");
                std::mem::forget(mapping.clone());
            }
            return Err(refused(io::Error::other(error)));
        }
        memory.insert(address, Registered { bytes, users: 1, _mapping: mapping.clone() });
        Ok(Some((address, bytes)))
    }

    /// The address that devices have for this one, and how many bytes from there on lie in one piece.
    fn translate(&self, address: usize, bytes: usize) -> Option<(u64, usize)> {
        let mut run = bytes as u64;
        // SAFETY: the address is looked up in SPDK's tables, not followed; `run` outlives the call.
        let to = unsafe { (self.library.vtophys)(address as *const c_void, &mut run) };
        (to != NO_ADDRESS).then_some((to, run as usize))
    }

    /// Of a controller that has no command with it under way.
    pub(super) fn unregister(&self, address: usize) {
        let mut memory = locked(&self.memory);
        let Some(known) = memory.get_mut(&address) else { return };
        known.users -= 1;
        if known.users > 0 {
            return;
        }
        let bytes = known.bytes;
        // SAFETY: registered as this range, and none of its users has a command under way.
        let rc = unsafe { (self.library.mem_unregister)(address as *mut c_void, bytes) };
        if rc == 0 {
            memory.remove(&address);
        } else {
            tracing::warn!(rc, bytes, "memory stays registered with SPDK, and so stays mapped");
        }
    }

    pub(super) fn allocate(&'static self, bytes: usize) -> Option<DmaMemory> {
        // SAFETY: the alignment is a power of two, and the argument that must be null is.
        let at = unsafe { (self.library.zmalloc)(bytes, 4096, std::ptr::null_mut(), ANY_NODE, FOR_DEVICES) };
        Some(DmaMemory { env: self, at: NonNull::new(at.cast())?, bytes })
    }
}

fn start(library: &Library) -> Result<(), NoSpdk> {
    // DPDK has its first thread on a CPU of a list: one that this process may use. Its thread is the one that calls, which
    // is ours and goes back to where it ran.
    let before = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    let cpu = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).unwrap_or(0);
    let core = CString::new(format!("[{cpu}]")).expect("digits");
    // SAFETY: pointers that are null, numbers and bools that are 0 are valid values of all of its fields.
    let mut options: EnvOptions = unsafe { std::mem::zeroed() };
    options.opts_size = size_of::<EnvOptions>();
    // SAFETY: the struct is as large as it says.
    unsafe { (library.env_opts_init)(&mut options) };
    options.name = c"lapis".as_ptr();
    options.core_mask = core.as_ptr();
    // Else the huge pages of a daemon that was killed stay taken.
    options.unlink_hugepage = true;
    // SAFETY: the struct was filled by the library; its texts outlive the call, which copies them.
    let rc = unsafe { (library.env_init)(&options) };
    if let Err(error) = rustix::thread::sched_setaffinity(None, &before) {
        tracing::warn!(%error, cpu, "the thread that started SPDK stays on one CPU");
    }
    if rc == 0 {
        Ok(())
    } else {
        Err(NoSpdk::Start { reason: io::Error::from_raw_os_error(rc.saturating_neg()).to_string() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        locked(&self.env.taken).remove(&self.address);
    }
}

impl DmaMemory {
    pub(super) fn address(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes, "within the memory");
        // SAFETY: within what was allocated, as just checked.
        unsafe { self.at.as_ptr().add(offset) }
    }

    /// Bytes that no command has.
    pub(super) fn bytes_mut(&mut self, offset: usize, bytes: usize) -> &mut [u8] {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "within the memory");
        // SAFETY: allocated, zeroed when it was, and ours alone: the caller has ended the command that had them, and
        // `&mut self` keeps other references out.
        unsafe { std::slice::from_raw_parts_mut(self.address(offset), bytes) }
    }
}

impl Drop for DmaMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `zmalloc`, and freed once.
        unsafe { (self.env.library.free)(self.at.as_ptr().cast()) }
    }
}

/// No panic happens with a lock held; if one ever does, what it guards is still whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
