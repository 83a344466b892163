//! Who is at the other end of a socket, and when that process ends.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    process::{Pid, PidfdFlags},
};

use crate::wire::Peer;

/// A descriptor of the connected process itself, which no reuse of its pid can turn into another (Linux 6.5).
const SO_PEERPIDFD: libc::c_int = 77;

/// A process to watch.
#[derive(Debug)]
pub(crate) enum Process {
    /// Readable when the process has ended.
    Watched(OwnedFd),
    Ended,
    /// No descriptor of it is to be had: it lives in a pid namespace that we cannot see.
    Hidden,
}

/// Credentials of the process that connected. A pid of 0 is one of a pid namespace that we cannot see.
pub(crate) fn of(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let mut cred = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    option(socket, libc::SO_PEERCRED, &mut cred)?;
    let pid = u32::try_from(cred.pid).unwrap_or(0);
    Ok(Peer { pid, uid: cred.uid, gid: cred.gid, start_time: start_time(pid).unwrap_or(0) })
}

/// The process that connected.
pub(crate) fn process(socket: BorrowedFd<'_>, peer: Peer) -> io::Result<Process> {
    let mut raw: RawFd = -1;
    match option(socket, SO_PEERPIDFD, &mut raw) {
        // SAFETY: the kernel made this descriptor for us just now; nobody else knows it.
        Ok(()) if raw >= 0 => Ok(Process::Watched(unsafe { OwnedFd::from_raw_fd(raw) })),
        Ok(()) => former(peer.pid, peer.start_time),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Process::Ended),
        Err(error) if is_shortage(&error) => Err(error),
        Err(_) => former(peer.pid, peer.start_time),
    }
}

/// The process that had this pid and started then. One whose start cannot be compared (it or its former self was not
/// shown by /proc: another user's, in a unit with ProtectProc) counts as hidden, never as ended.
pub(crate) fn former(pid: u32, started: u64) -> io::Result<Process> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(Process::Hidden) };
    let fd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(fd) => fd,
        Err(Errno::SRCH) => return Ok(Process::Ended),
        Err(errno) => return Err(errno.into()),
    };
    // The descriptor first, the start time second: if that is the right one, so is the descriptor.
    match start_time(pid.as_raw_nonzero().get() as u32) {
        Some(found) if found == started => Ok(Process::Watched(fd)),
        Some(_) if started != 0 => Ok(Process::Ended),
        None if has_ended(fd.as_fd()) => Ok(Process::Ended),
        _ => Ok(Process::Hidden),
    }
}

/// Field 22 of /proc/PID/stat: clock ticks from boot to the start of the process. None if it has ended, or if /proc
/// does not show it.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, is in parentheses and may contain anything.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// True if a process descriptor says that its process has ended.
pub(crate) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    matches!(rustix::event::poll(&mut fds, Some(&Default::default())), Ok(1..))
}

/// True if descriptors or memory are short for a while.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}

fn option<T>(socket: BorrowedFd<'_>, name: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes to `value`, which is that long; both callers' types are plain
    // integers, valid whatever is written.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            std::ptr::from_mut(value).cast(),
            &mut bytes,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
