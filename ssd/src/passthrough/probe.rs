//! A read by a command and the same read of the block device: shows that commands are allowed, and that they reach the
//! same bytes. Waits for the device, as opening it does.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use io_uring::{opcode::UringCmd80, types};
use lapis_arena::Mapping;

use super::{NVME_COMMAND, Namespace, Refusal, Ring, is_known, status::Status};
use crate::{
    device::{Memory, transfer},
    format::PAGE_BYTES,
    uring::{issuer::Issuer, ring::Setup},
};

/// Where superblocks lie.
const PAGES: [u64; 2] = [0, PAGE_BYTES as u64];

/// Compares the first pages of both; `block` is the block device, open for direct reads.
pub(super) fn probe(namespace: &Namespace, block: BorrowedFd<'_>, polled: bool) -> Result<(), Refusal> {
    // A ring that serves whoever makes it: the device's own belongs to the thread that will drive it.
    let ring =
        Ring::set_up_as(1, &[Setup::Cooperative, Setup::Plain], polled).map_err(|e| Refusal::Ring(Box::new(e)))?;
    is_known(&ring)?;
    let mut issuer = Issuer::new(ring);
    let memory = Mapping::anonymous(2 * PAGE_BYTES as u64)
        .map_err(|e| Refusal::Io { op: "memory for a page", source: io::Error::other(e) })?;
    let [by_command, by_block] = [0, PAGE_BYTES].map(|offset| Memory::new(&memory, offset, PAGE_BYTES));
    for offset in PAGES {
        let answer = read(&mut issuer, namespace, offset, &by_command, polled);
        // Cut off in the middle, the command still owns the memory.
        let answer = answer.inspect_err(|_| std::mem::forget(memory.clone()))?;
        let failed = match answer {
            0 => None,
            1.. => Some(io::Error::other(Status::of(answer as u16))),
            _ => Some(io::Error::from_raw_os_error(-answer)),
        };
        match (failed, transfer::read(block, offset, &by_block)) {
            (None, Ok(())) if memory.to_vec(0, PAGE_BYTES) == memory.to_vec(PAGE_BYTES, PAGE_BYTES) => {}
            (None, Ok(())) => return Err(Refusal::OtherBytes),
            // A page that neither can read is no reason: the log has a second superblock.
            (Some(error), Err(_)) if error.raw_os_error().is_none() => {
                tracing::warn!(%error, node = %namespace.node().display(), offset, "a page cannot be read");
            }
            (Some(source), _) => return Err(Refusal::Io { op: "reading by a command", source }),
            (None, Err(source)) => return Err(Refusal::Io { op: "reading the block device", source }),
        }
    }
    Ok(())
}

/// The kernel's answer to one read.
fn read(
    issuer: &mut Issuer<io_uring::squeue::Entry128, io_uring::cqueue::Entry32>,
    namespace: &Namespace,
    offset: u64,
    memory: &Memory,
    polled: bool,
) -> Result<i32, Refusal> {
    let failed = |source| Refusal::Io { op: "handing over a command", source };
    let bytes = memory.bytes();
    let command = namespace.blocks.transfer(true, offset, bytes as u64, memory.address(0, bytes) as u64);
    let fd = types::Fd(namespace.fd.as_fd().as_raw_fd());
    let entry = UringCmd80::new(fd, NVME_COMMAND).cmd(command.entry_bytes()).build().user_data(0);
    // SAFETY: the address lies in `memory`, which the caller keeps until the answer has come, or for ever if there is none.
    unsafe { issuer.push(&entry) };
    let mut answer = None;
    while answer.is_none() {
        if polled {
            issuer.enter(true).map_err(failed)?;
        } else {
            issuer.submit_and_wait().map_err(failed)?;
        }
        issuer.reap(|_, result| answer = Some(result));
    }
    Ok(answer.expect("the loop ended"))
}
