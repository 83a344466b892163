//! Whether io_uring can be had: the kernel is asked for a small ring.

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

const ENTRIES: u32 = 4;
/// `struct io_uring_params` is 120 bytes.
type Params = [u64; 15];

/// Makes a ring and drops it.
pub(super) fn attempt() -> Result<(), Errno> {
    let mut params: Params = [0; 15];
    // SAFETY: `params` is as long and as aligned as the kernel's struct and outlives the call; all zeros ask for the
    // defaults.
    let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, params.as_mut_ptr()) };
    if made < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    // SAFETY: the kernel made the descriptor for this call; nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(made as i32) });
    Ok(())
}
