//! Transfers that block: pread and pwrite between a descriptor and memory of a mapping, gone on with until whole.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::Memory;

/// Bytes asked for at once: less than what the kernel cuts a call to (2 GiB less a page).
pub const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// Fills `memory` from `offset` on. The end of the file before that is an error.
pub fn read(fd: BorrowedFd<'_>, offset: u64, memory: &Memory) -> io::Result<()> {
    assert!(memory.mapping.is_writable(), "a read into read-only memory");
    whole(memory.bytes(), io::ErrorKind::UnexpectedEof, |done, bytes| {
        let to = memory.address(done, bytes);
        // SAFETY: `bytes` bytes from `to` on are mapped, as `address` checked, and `memory` keeps them so until this
        // returns. Others may map them too: no reference is formed.
        unsafe { libc::pread(fd.as_raw_fd(), to.cast(), bytes, offset_of(offset, done)) }
    })
}

/// Writes all of `memory` from `offset` on.
pub fn write(fd: BorrowedFd<'_>, offset: u64, memory: &Memory) -> io::Result<()> {
    whole(memory.bytes(), io::ErrorKind::WriteZero, |done, bytes| {
        let from = memory.address(done, bytes);
        // SAFETY: as for `read`; the kernel only reads them, and what somebody changes meanwhile fails its sum later.
        unsafe { libc::pwrite(fd.as_raw_fd(), from.cast(), bytes, offset_of(offset, done)) }
    })
}

fn offset_of(offset: u64, done: usize) -> libc::off_t {
    // Beyond the largest file the kernel answers EINVAL, as it does for a negative offset.
    libc::off_t::try_from(offset.saturating_add(done as u64)).unwrap_or(-1)
}

/// Calls `step(done, bytes left)` until all is done; nothing done is `at_end`.
fn whole(bytes: usize, at_end: io::ErrorKind, step: impl Fn(usize, usize) -> isize) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        match step(done, (bytes - done).min(TRANSFER_BYTES_MAX)) {
            0 => return Err(at_end.into()),
            transferred @ 1.. => done += transferred as usize,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
