//! Memory with a descriptor: made sealed and private to its owner, checked when received, locked by one daemon.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use crate::{ArenaError, map::Mapping};

/// Bytes of a huge page of the size asked for (x86-64, and aarch64 with 4 KiB pages).
const HUGE_BYTES: u64 = 2 << 20;

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
fn transparent_permitted() -> bool {
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
