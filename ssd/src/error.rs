//! What can go wrong with a device before it serves, in the words of whoever has to act on it. What goes wrong later is
//! the result of an operation.

use std::{io, path::PathBuf};

use crate::{passthrough::Refusal, spdk::NoSpdk};

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SsdError {
    /// The kernel refused.
    #[error("{op} {path}")]
    Io { op: &'static str, path: PathBuf, source: io::Error },
    /// Another daemon has it, or the last one's operations have not ended yet: wait, or stop it.
    #[error("{path} is locked: another process uses it as a device of its log")]
    Locked { path: PathBuf },
    /// A block device that is mounted, part of an array, or swap: it holds somebody's data. Or the ring of a process that
    /// has ended is still being taken down: that takes less than a second.
    #[error("{path} is mounted or held by the kernel")]
    Busy { path: PathBuf },
    #[error("{path} is neither a regular file nor a block device, nor the generic device of an NVMe namespace")]
    NoDevice { path: PathBuf },
    /// Let the daemon have both: the claim on the block device is what keeps two users off one namespace.
    #[error("{path} is an NVMe namespace whose block device {block} is not there, and only that can be claimed")]
    NoBlock { path: PathBuf, block: PathBuf },
    /// Ask for less, or make room.
    #[error("{path} needs {} MiB more, its file system has {} MiB free (ssd.bytes)", needed.div_ceil(1 << 20), free >> 20)]
    NoRoom { path: PathBuf, needed: u64, free: u64 },
    /// Choose another file, or empty this one.
    #[error("{path} holds data that is not a log's; wipe it or choose another file")]
    NotBlank { path: PathBuf },
    #[error("{path} has {found} bytes, expected at least {expected}")]
    TooSmall { path: PathBuf, expected: u64, found: u64 },
    #[error("{path} has logical blocks of {found} bytes, which do not divide a page of {page}")]
    LogicalBlock { path: PathBuf, page: u32, found: u32 },
    /// This host forbids io_uring, or its kernel is too old: use the engine `threads`.
    #[error("io_uring cannot be used: {op}")]
    Uring { op: &'static str, source: io::Error },
    /// Do what the refusal advises, or use the engine `uring`.
    #[error("{path} cannot be driven by NVMe commands")]
    Passthrough { path: PathBuf, source: Refusal },
    /// SPDK is missing, or does not have the controller.
    #[error("SPDK cannot be used for {path}")]
    Spdk { path: PathBuf, source: NoSpdk },
    #[error("starting a thread for {path}")]
    Thread { path: PathBuf, source: io::Error },
}

impl SsdError {
    /// True if the same call may succeed later without anyone's help: a process that was killed keeps lock and claim
    /// until the device has answered for its last operations, and for some 50 ms more.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Locked { .. } | Self::Busy { .. } => true,
            Self::Spdk { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}
