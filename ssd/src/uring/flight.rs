//! One operation on its way through the kernel: what it is given, and what its answers mean. No call to the kernel.

use std::io;

use io_uring::{opcode, squeue, types};

use super::buffers::Buffers;
use crate::{
    device::{Io, IoId, IoKind, transfer::TRANSFER_BYTES_MAX},
    format::PAGE_BYTES,
};

/// An operation that the kernel gives back so often without a byte done is an error: a device that is busy for so long
/// is stuck, and trying for ever would keep the thread busy.
const TRIES_MAX: u32 = 64;

/// An operation under way; owns its memory.
pub(super) struct Flight {
    io: Io,
    done: usize,
    tries: u32,
}

pub(super) enum Step {
    Again,
    Ended(io::Result<()>),
}

impl Flight {
    pub(super) fn new(io: Io) -> Self {
        Self { io, done: 0, tries: 0 }
    }

    pub(super) fn id(&self) -> IoId {
        self.io.id
    }

    /// What the kernel is to do for it now.
    pub(super) fn entry(&self, fd: types::Fd, buffers: &Buffers) -> squeue::Entry {
        let is_read = match self.io.kind {
            IoKind::Flush => return opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            IoKind::Discard => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                return opcode::Fallocate::new(fd, self.io.bytes).offset(self.io.offset).mode(mode).build();
            }
            IoKind::Read => true,
            IoKind::Write => false,
        };
        let memory = self.io.memory.as_ref().expect("checked when it was submitted");
        let bytes = (memory.bytes() - self.done).min(TRANSFER_BYTES_MAX);
        let address = memory.address(self.done, bytes);
        let (offset, length) = (self.io.offset + self.done as u64, bytes as u32);
        match (is_read, buffers.find(address as usize, bytes)) {
            (true, Some(buffer)) => opcode::ReadFixed::new(fd, address, length, buffer).offset(offset).build(),
            (true, None) => opcode::Read::new(fd, address, length).offset(offset).build(),
            (false, Some(buffer)) => opcode::WriteFixed::new(fd, address, length, buffer).offset(offset).build(),
            (false, None) => opcode::Write::new(fd, address, length).offset(offset).build(),
        }
    }

    /// What the kernel's answer (bytes, or an error below zero) means for it.
    pub(super) fn step(&mut self, answer: i32) -> Step {
        let moves = self.io.memory.is_some();
        let error = match answer {
            1.. if moves => {
                let transferred = self.done + answer as usize;
                if transferred as u64 == self.io.bytes {
                    return Step::Ended(Ok(()));
                }
                // From the last whole page on: a rest that begins within a logical block would be refused.
                let pages = transferred / PAGE_BYTES * PAGE_BYTES;
                if pages > self.done {
                    (self.done, self.tries) = (pages, 0);
                    return Step::Again;
                }
                io::ErrorKind::UnexpectedEof.into()
            }
            0 if moves && self.io.kind == IoKind::Read => return Step::Ended(Err(io::ErrorKind::UnexpectedEof.into())),
            0 if moves => return Step::Ended(Err(io::ErrorKind::WriteZero.into())),
            0.. => return Step::Ended(Ok(())),
            _ => io::Error::from_raw_os_error(-answer),
        };
        let may_pass = !matches!(error.raw_os_error(), Some(code) if code != libc::EINTR && code != libc::EAGAIN);
        self.tries += 1;
        match self.io.kind {
            _ if may_pass && self.tries < TRIES_MAX => Step::Again,
            // A hint: a device that has no such command is none the worse.
            IoKind::Discard => Step::Ended(Ok(())),
            _ => Step::Ended(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use lapis_arena::Mapping;

    use super::*;
    use crate::device::Memory;

    fn flight(kind: IoKind, bytes: u64) -> Flight {
        let mapping = Mapping::anonymous(bytes.max(4096)).expect("memory");
        let memory = (bytes > 0).then(|| Memory::new(&mapping, 0, bytes as usize));
        Flight::new(Io { id: IoId(1), kind, offset: 0, bytes, memory })
    }

    fn error(step: Step) -> Option<io::Error> {
        match step {
            Step::Ended(result) => result.err(),
            Step::Again => None,
        }
    }

    #[test]
    fn a_short_transfer_is_gone_on_with_from_the_last_whole_page() {
        let mut read = flight(IoKind::Read, 5 * 4096);
        assert!(matches!(read.step(4096 + 512), Step::Again) && read.done == 4096);
        assert!(matches!(read.step(-libc::EINTR), Step::Again) && read.done == 4096);
        assert!(matches!(read.step(4 * 4096), Step::Ended(Ok(()))));
    }

    #[test]
    fn what_gets_nowhere_ends_in_an_error() {
        let mut read = flight(IoKind::Read, 2 * 4096);
        let again = (0..TRIES_MAX).filter(|_| matches!(read.step(-libc::EAGAIN), Step::Again)).count();
        assert_eq!(again, TRIES_MAX as usize - 1);
        assert_eq!(error(read.step(0)).map(|e| e.kind()), Some(io::ErrorKind::UnexpectedEof));
        assert_eq!(error(flight(IoKind::Write, 4096).step(0)).map(|e| e.kind()), Some(io::ErrorKind::WriteZero));
        assert_eq!(error(flight(IoKind::Write, 4096).step(-libc::EIO)).and_then(|e| e.raw_os_error()), Some(libc::EIO));
        assert_eq!(error(flight(IoKind::Flush, 0).step(-libc::EIO)).and_then(|e| e.raw_os_error()), Some(libc::EIO));
        assert!(matches!(flight(IoKind::Discard, 0).step(-libc::EOPNOTSUPP), Step::Ended(Ok(()))));
    }
}
