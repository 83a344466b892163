//! Memory with a descriptor: made sealed and private to its owner, checked when received, locked by one daemon.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use crate::{ArenaError, map::Mapping};

/// Bytes of a huge page of the size asked for (x86-64, and aarch64 with 4 KiB pages).
const HUGE_BYTES: u64 = 2 << 20;

/// Written to make memory; fits the second-level cache.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Whether huge pages are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Huge {
    Never,
    /// hugetlb if reserved, else transparent ones if the kernel permits, else 4 KiB.
    Try,
}

/// What pages a memfd got; for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Reserved 2 MiB pages: the whole memfd is sure to have them.
    Hugetlb,
    /// The kernel may use 2 MiB pages where the mapping asked ([`Mapping::advise_huge`]).
    Transparent,
    Small,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hugetlb => "2 MiB pages (hugetlb)",
            Self::Transparent => "transparent huge pages",
            Self::Small => "4 KiB pages",
        })
    }
}

/// A memfd of `bytes` zero bytes: mode 0600, sealed against shrink, growth and further seals. No memory is used yet
/// (with [`Pages::Hugetlb`] it is reserved).
pub fn create(name: &str, bytes: u64, huge: Huge) -> Result<(OwnedFd, Pages), ArenaError> {
    if huge == Huge::Try && bytes > 0 && bytes.is_multiple_of(HUGE_BYTES) {
        let made = open(name, bytes, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
        // Only a mapping reserves the pages; one that fails says that there are not enough.
        if let Some(fd) = made.ok().filter(|fd| Mapping::shared(fd.as_fd(), bytes, crate::Access::ReadWrite).is_ok()) {
            return Ok((fd, Pages::Hugetlb));
        }
    }
    let fd = open(name, bytes, MemfdFlags::empty())?;
    let pages = if huge == Huge::Try && transparent_permitted() { Pages::Transparent } else { Pages::Small };
    Ok((fd, pages))
}

fn open(name: &str, bytes: u64, extra: MemfdFlags) -> Result<OwnedFd, ArenaError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | extra;
    let failed = |op| move |e: rustix::io::Errno| ArenaError::io(op, bytes, e);
    // NOEXEC_SEAL is demanded where vm.memfd_noexec = 2 and unknown before Linux 6.3.
    let fd = rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create(name, flags))
        .map_err(failed("memfd_create"))?;
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(failed("fchmod of a memfd"))?;
    rustix::fs::ftruncate(&fd, bytes).map_err(failed("ftruncate of a memfd"))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(failed("sealing of a memfd"))?;
    Ok(fd)
}

/// Whether `MADV_HUGEPAGE` on shared memory does anything.
pub fn transparent_permitted() -> bool {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|on| setting.contains(on))
}

/// The same memory by a descriptor that cannot be written or mapped writable. Needs `/proc`.
pub fn read_only(fd: BorrowedFd<'_>) -> Result<OwnedFd, ArenaError> {
    reopen(fd, OFlags::RDONLY)
}

fn reopen(fd: BorrowedFd<'_>, access: OFlags) -> Result<OwnedFd, ArenaError> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| ArenaError::io("re-opening a memfd", 0, e))
}

/// Checks a received descriptor before it is mapped: exactly `bytes` long, and it stays so.
pub fn check(fd: BorrowedFd<'_>, bytes: u64) -> Result<(), ArenaError> {
    let seals =
        rustix::fs::fcntl_get_seals(fd).map_err(|e| ArenaError::io("reading the seals of a memfd", bytes, e))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(ArenaError::NotSealed);
    }
    let found = size(fd)?;
    if found == bytes { Ok(()) } else { Err(ArenaError::Size { expected: bytes, found }) }
}

/// Gives the range cleared memory, through no mapping: beside it, mapping and unmapping in the same process go on. What
/// was there is gone. With [`Pages::Transparent`] the pages would be small ones: populate a mapping then.
pub fn clear(fd: BorrowedFd<'_>, range: std::ops::Range<u64>) -> Result<(), ArenaError> {
    let bytes = range.end.saturating_sub(range.start);
    let failed = |e| ArenaError::io("populating memory", bytes, e);
    let stat = rustix::fs::fstat(fd).map_err(failed)?;
    if stat.st_blksize as u64 >= HUGE_BYTES {
        // hugetlb: cannot be written, and its fallocate clears.
        return rustix::fs::fallocate(fd, rustix::fs::FallocateFlags::empty(), range.start, bytes).map_err(failed);
    }
    // Not fallocate: its pages are only cleared when somebody first touches them, and that would be an engine's put (at
    // 2.4 in place of 15 GB/s).
    let mut at = range.start;
    while at < range.end {
        let part = ((range.end - at) as usize).min(ZEROS.len());
        at += rustix::io::pwrite(fd, &ZEROS[..part], at).map_err(failed)? as u64;
    }
    Ok(())
}

/// Bytes of the memory behind a descriptor.
pub fn size(fd: BorrowedFd<'_>) -> Result<u64, ArenaError> {
    let stat = rustix::fs::fstat(fd).map_err(|e| ArenaError::io("fstat of a memfd", 0, e))?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

/// Makes the caller the one owner of this memory, until the returned descriptor is closed (the end of the process
/// included). The lock sits on an open file of its own: whoever keeps `fd` for us over a restart does not keep the lock.
pub fn lock_owner(fd: BorrowedFd<'_>) -> Result<OwnedFd, ArenaError> {
    let own = reopen(fd, OFlags::RDWR)?;
    // SAFETY: all zero is a valid `flock`: whole file, from its start, pid 0 as OFD locks demand.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: `own` is open, `lock` outlives the call, which reads it only.
    let result = unsafe { libc::fcntl(own.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if result == 0 {
        return Ok(own);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(ArenaError::Owned),
        _ => Err(ArenaError::io("locking a memfd", 0, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;

    #[test]
    fn made_memory_is_sealed_private_and_zero() {
        let (fd, pages) = create("test", 8192, Huge::Never).expect("memory");
        assert_eq!(pages.to_string(), "4 KiB pages");
        check(fd.as_fd(), 8192).expect("our own");
        assert!(matches!(check(fd.as_fd(), 4096), Err(ArenaError::Size { expected: 4096, found: 8192 })));
        for bytes in [4096, 16384] {
            assert_eq!(rustix::fs::ftruncate(&fd, bytes), Err(rustix::io::Errno::PERM));
        }
        assert!(rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE).is_err(), "no more seals");
        assert_eq!(rustix::fs::fstat(&fd).expect("open").st_mode & 0o777, 0o600);
        let mapping = Mapping::shared(fd.as_fd(), 8192, Access::ReadOnly).expect("address space");
        assert!(mapping.to_vec(0, 8192).iter().all(|b| *b == 0));
    }

    #[test]
    fn memory_that_could_shrink_is_refused() {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).expect("memory");
        rustix::fs::ftruncate(&fd, 4096).expect("memory");
        assert!(matches!(check(fd.as_fd(), 4096), Err(ArenaError::NotSealed)));
        let file = tempfile();
        assert!(matches!(check(file.as_fd(), 4096), Err(ArenaError::Io { .. })), "no memfd at all");
    }

    /// A file that is no memfd.
    fn tempfile() -> OwnedFd {
        rustix::fs::open("/proc/self/status", OFlags::RDONLY, Mode::empty()).expect("proc")
    }

    #[test]
    fn a_read_only_descriptor_cannot_be_mapped_writable() {
        let (fd, _) = create("test", 4096, Huge::Never).expect("memory");
        let read_only = read_only(fd.as_fd()).expect("proc");
        check(read_only.as_fd(), 4096).expect("the same memory");
        let map = |access| Mapping::shared(read_only.as_fd(), 4096, access);
        assert!(matches!(map(Access::ReadWrite), Err(ArenaError::Io { op: "mmap", .. })));
        let mapping = map(Access::ReadOnly).expect("address space");
        // SAFETY: the mapping is ours; making it writable is what must fail.
        let writable = unsafe { libc::mprotect(mapping.as_ptr(0).cast(), 4096, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(writable, -1);
        assert!(rustix::io::write(&read_only, b"x").is_err());
    }

    #[test]
    fn memory_has_one_owner_until_its_lock_is_closed() {
        let (fd, _) = create("test", 4096, Huge::Never).expect("memory");
        let owner = lock_owner(fd.as_fd()).expect("nobody has it");
        let kept = fd.try_clone().expect("a descriptor");
        let refused = lock_owner(kept.as_fd()).expect_err("it is owned");
        assert!(refused.is_transient() && matches!(refused, ArenaError::Owned));
        drop(owner);
        lock_owner(kept.as_fd()).expect("whoever keeps the descriptor does not keep the lock");
    }

    #[test]
    fn huge_pages_fall_back_to_what_there_is() {
        let (fd, pages) = create("test", 4 << 20, Huge::Try).expect("memory");
        check(fd.as_fd(), 4 << 20).expect("our own");
        let mapping = Mapping::shared(fd.as_fd(), 4 << 20, Access::ReadWrite).expect("address space");
        mapping.advise_huge();
        mapping.populate_write(0..mapping.len()).expect("what was promised");
        assert!(pages != Pages::Transparent || transparent_permitted());
        // No multiple of a huge page.
        let (_, pages) = create("test", 4096 * 3, Huge::Try).expect("memory");
        assert_ne!(pages, Pages::Hugetlb);
    }
}
