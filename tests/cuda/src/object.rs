//! Memory of a device: a memfd. It is shared by its descriptor, and lives as long as one of its descriptors or mappings does.

use std::{
    ffi::CString,
    fs,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use crate::history::Key;

const NAME: &str = "lapis-cuda-device-";

/// Mapped at an address that is not the device's address of it: the host cannot reach device memory by a device pointer.
#[derive(Debug)]
pub struct Object {
    pub key: Key,
    pub device: usize,
    pub bytes: u64,
    fd: OwnedFd,
    base: *mut u8,
}

// SAFETY: the mapping belongs to the object alone; what is read and written in it is ordered by the streams, or not at all,
// as on a device.
unsafe impl Send for Object {}
// SAFETY: as above; nothing in it is changed through `&self` but the mapped bytes.
unsafe impl Sync for Object {}

impl Object {
    /// New memory of a device, all zeros.
    pub fn create(device: usize, bytes: u64) -> Option<Self> {
        let name = CString::new(format!("{NAME}{device}")).expect("no zero within");
        // SAFETY: a name that ends with a zero; a descriptor or -1 comes back.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: just made, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a descriptor of ours.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), bytes.try_into().ok()?) } != 0 {
            return None;
        }
        Self::mapped(fd, device, bytes)
    }

    /// The memory behind a descriptor that another process, or this one before, exported. `None` if it is no such memory.
    pub fn import(fd: RawFd) -> Option<Self> {
        let link = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        let name = link.to_str()?.strip_prefix("/memfd:")?.strip_prefix(NAME)?;
        let device = name.split_whitespace().next()?.parse().ok()?;
        // SAFETY: duplicates a descriptor that was just seen to be open; -1 if it is no more.
        let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        if own < 0 {
            return None;
        }
        // SAFETY: just duplicated, and nobody else's.
        let own = unsafe { OwnedFd::from_raw_fd(own) };
        let bytes = stat(own.as_raw_fd())?.st_size as u64;
        Self::mapped(own, device, bytes)
    }

    fn mapped(fd: OwnedFd, device: usize, bytes: u64) -> Option<Self> {
        let stat = stat(fd.as_raw_fd())?;
        // SAFETY: a new shared mapping at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        (base != libc::MAP_FAILED).then(|| Self {
            key: (stat.st_dev, stat.st_ino),
            device,
            bytes,
            fd,
            base: base.cast(),
        })
    }

    /// Where the byte at `offset` really lies.
    pub fn at(&self, offset: u64) -> *mut u8 {
        assert!(offset <= self.bytes, "offset {offset} of {}", self.bytes);
        self.base.wrapping_add(offset as usize)
    }

    /// One more descriptor of it.
    pub fn export(&self) -> Option<RawFd> {
        // SAFETY: duplicates a descriptor of ours.
        let fd = unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
        (fd >= 0).then_some(fd)
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: mapped in `mapped`, of that size, and nobody has it any more: who copies holds the object.
        unsafe { libc::munmap(self.base.cast(), self.bytes as usize) };
    }
}

pub fn stat(fd: RawFd) -> Option<libc::stat> {
    // SAFETY: all zeros are a valid `stat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is written whole where it succeeds.
    (unsafe { libc::fstat(fd, &raw mut stat) } == 0).then_some(stat)
}

/// Addresses of a device: `bytes` of them that nobody can touch, at a multiple of `alignment` (a power of two). They are
/// never given out again, so that what uses them after their end is found.
pub fn reserve(bytes: u64, alignment: u64) -> Option<u64> {
    let room = bytes.checked_add(alignment)?;
    // SAFETY: a new mapping at an address that the kernel chooses; it is not accessible and takes no memory.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            room as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    (base != libc::MAP_FAILED).then(|| (base as u64).next_multiple_of(alignment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_again_by_its_descriptor_and_nothing_else_is() {
        let object = Object::create(3, 8192).expect("memory");
        // SAFETY: within the mapping, which nobody else uses.
        unsafe { *object.at(5) = 77 };
        let again = Object::import(object.export().expect("a descriptor")).expect("the same");
        assert_eq!((again.key, again.device, again.bytes), (object.key, 3, 8192));
        drop(object);
        // SAFETY: as above.
        assert_eq!(unsafe { *again.at(5) }, 77);
        let file = tempfile::tempfile().expect("a file");
        assert!(Object::import(file.as_raw_fd()).is_none() && Object::import(-1).is_none());
    }
}
