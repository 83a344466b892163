//! Events: points in the work of a stream that others wait for, in this process or, where asked for, in another.

use std::{
    ffi::CString,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::{clock::Clock, world::Mark};

/// What was so when a stream came to the point.
#[derive(Debug)]
pub struct Point {
    pub clock: Clock,
    pub at: Instant,
}

/// Empty until the stream has come there.
pub type Reached = OnceLock<Point>;

#[derive(Debug)]
pub struct Event {
    pub context: u64,
    pub timed: bool,
    /// The last record.
    pub mark: Option<Mark>,
    /// Of an event that other processes know.
    pub shared: Option<Arc<Shared>>,
}

/// Counters in memory that processes share: how often it was recorded, and which of these was reached.
#[derive(Debug)]
pub struct Shared {
    fd: OwnedFd,
    base: *mut AtomicU64,
}

// SAFETY: the mapping is its own and holds two atomic words alone.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

const BYTES: usize = 4096;

impl Shared {
    pub fn create() -> Option<Self> {
        let name = CString::new("lapis-cuda-event").expect("no zero within");
        // SAFETY: a name that ends with a zero; a descriptor or -1 comes back.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: just made, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a descriptor of ours.
        (unsafe { libc::ftruncate(fd.as_raw_fd(), BYTES as libc::off_t) } == 0).then_some(())?;
        Self::open(fd)
    }

    /// Maps one that was created, here or in another process.
    pub fn open(fd: OwnedFd) -> Option<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping at an address that the kernel chooses.
        let base = unsafe { libc::mmap(ptr::null_mut(), BYTES, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        (base != libc::MAP_FAILED).then(|| Self { fd, base: base.cast() })
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: two words at the start of a page that stays mapped while `self` lives; all access is atomic.
        unsafe { &*self.base.add(index) }
    }

    /// A new record; its number.
    pub fn record(&self) -> u64 {
        self.word(0).fetch_add(1, Ordering::AcqRel) + 1
    }

    pub fn recorded(&self) -> u64 {
        self.word(0).load(Ordering::Acquire)
    }

    pub fn reach(&self, number: u64) {
        self.word(1).fetch_max(number, Ordering::AcqRel);
    }

    pub fn has_reached(&self, number: u64) -> bool {
        self.word(1).load(Ordering::Acquire) >= number
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped in `open`, of that size, and nobody else's.
        unsafe { libc::munmap(self.base.cast(), BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_event_is_reached_for_all_who_opened_it() {
        let one = Shared::create().expect("memory");
        let other = Shared::open(one.fd.try_clone().expect("a descriptor")).expect("the same");
        let (first, second) = (one.record(), one.record());
        assert!(other.has_reached(0) && !other.has_reached(first) && other.recorded() == second);
        other.reach(first);
        assert!(one.has_reached(first) && !one.has_reached(second));
    }
}
