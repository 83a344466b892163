//! Questions to an NVMe device by ioctl. They wait for its answer: only before it serves.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use rustix::ioctl::{Opcode, opcode};

use super::{
    command::{About, Command},
    identify::IDENTIFY_BYTES,
    status::Status,
};

const ID: Opcode = opcode::none(b'N', 0x40);
const ADMIN_COMMAND: Opcode = opcode::read_write::<Command>(b'N', 0x41);

pub(super) enum Answer {
    Data(Box<[u8; IDENTIFY_BYTES]>),
    Failed(Status),
}

/// The number by which commands name the namespace.
pub(super) fn namespace_id(fd: impl AsFd) -> io::Result<u32> {
    // SAFETY: this request has no argument.
    let id = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), ID as _) };
    match id {
        1.. => Ok(id as u32),
        0 => Err(io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(super) fn identify(fd: impl AsFd, about: About, namespace: u32) -> io::Result<Answer> {
    let mut data = Box::new([0; IDENTIFY_BYTES]);
    let mut command = Command::identify(about, namespace, data.as_mut_ptr() as u64);
    // SAFETY: the command has the layout that the request names; the kernel writes 4096 bytes, which `data` has, and the
    // command's own last word, before it returns. Both outlive the call.
    let answer = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), ADMIN_COMMAND as _, &raw mut command) };
    match answer {
        0 => Ok(Answer::Data(data)),
        1.. => Ok(Answer::Failed(Status::of(answer as u16))),
        _ => Err(io::Error::last_os_error()),
    }
}
