//! Why a device cannot be driven by NVMe commands, and what to do about it.

use std::{io, path::PathBuf};

use rustix::io::Errno;

/// Why a path is not for this engine.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("it is no NVMe namespace")]
    NoNamespace,
    #[error("it is a partition, and commands reach the whole namespace")]
    Partition,
    #[error("the kernel gave the namespace no generic device {name}")]
    NoGeneric { name: String },
    #[error("{node} cannot be opened")]
    Node { node: PathBuf, source: io::Error },
    #[error("{node} is not the namespace's generic device")]
    OtherNode { node: PathBuf },
    #[error("{op}")]
    Io { op: &'static str, source: io::Error },
    #[error("it is formatted with {bytes} bytes of metadata a block")]
    Metadata { bytes: u16 },
    #[error("it is formatted with protection information, type {kind}")]
    Protection { kind: u8 },
    #[error("neither the device nor the kernel says whether it is formatted with metadata")]
    Unasked,
    #[error("it is zoned ({kind})")]
    Zoned { kind: String },
    #[error("its logical blocks have {} bytes", 1u64.checked_shl(*shift).unwrap_or(0))]
    LogicalBlock { shift: u32 },
    #[error("its logical blocks have {device} bytes, {kernel} by the kernel's account")]
    OtherBlocks { device: u32, kernel: u32 },
    #[error("its commands move less than a page")]
    NoTransfer,
    #[error("the namespace has {found} bytes, the block device {expected}")]
    OtherSize { expected: u64, found: u64 },
    #[error("commands read other bytes than the block device")]
    OtherBytes,
    /// Only where the choice is ours: over a network the block layer waits for connections to come back, and takes others.
    #[error("it is attached by {transport}")]
    Transport { transport: String },
    #[error("this kernel's io_uring takes no NVMe commands")]
    Ring(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the driver has no queues that are polled")]
    NoPolledQueues,
}

impl Refusal {
    /// Whether the engine was to be expected for this path: no file needs to be told that it is no namespace.
    pub fn is_of_namespace(&self) -> bool {
        !matches!(self, Self::NoNamespace | Self::Partition)
    }

    /// What to do, in a line.
    pub fn advice(&self) -> String {
        const URING: &str = "use ssd.engine = \"uring\", which does as well here";
        match self {
            Self::NoNamespace | Self::Partition => {
                "give it a whole namespace (/dev/nvmeXnY or /dev/ngXnY), or use ssd.engine = \"auto\"".into()
            }
            Self::NoGeneric { .. } => format!("Linux 5.13 or newer has them; or {URING}"),
            Self::Node { node, source } if is(source, &[Errno::ACCESS, Errno::PERM]) => format!(
                "let the daemon's user read and write {} (udev: SUBSYSTEM==\"nvme-generic\", GROUP=\"lapis\", MODE=\"0660\"; \
                 a container: --device)",
                node.display()
            ),
            Self::Node { node, .. } | Self::OtherNode { node } => {
                format!("let the container have {} too (--device), as the host has it", node.display())
            }
            Self::Io { source, .. } if is(source, &[Errno::ACCESS, Errno::PERM]) => {
                "run Linux 6.2 or newer, or give the daemon CAP_SYS_ADMIN".into()
            }
            Self::Ring(source) => {
                let why = source.downcast_ref::<io::Error>();
                match why {
                    Some(source) if is(source, &[Errno::PERM, Errno::ACCESS, Errno::NOSYS]) => {
                        "sysctl kernel.io_uring_disabled=0, and a seccomp profile that lets io_uring_setup, _enter and \
                         _register pass"
                            .into()
                    }
                    Some(source) if is(source, &[Errno::NOMEM]) => "raise the memlock limit".into(),
                    _ => format!("Linux 5.19 or newer does (6.1 with registered memory); or {URING}"),
                }
            }
            Self::Metadata { .. } | Self::Protection { .. } | Self::LogicalBlock { .. } => format!(
                "format it without metadata and with blocks of 512 B or 4 KiB (nvme format --lbaf, which erases it), or {URING}"
            ),
            Self::NoPolledQueues => {
                "load the driver with nvme.poll_queues=N, or use ssd.engine = \"passthrough\"".into()
            }
            Self::Io { .. }
            | Self::Unasked
            | Self::Zoned { .. }
            | Self::OtherBlocks { .. }
            | Self::NoTransfer
            | Self::OtherSize { .. }
            | Self::OtherBytes
            | Self::Transport { .. } => URING.into(),
        }
    }
}

fn is(error: &io::Error, errnos: &[Errno]) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| errnos.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_depends_on_why() {
        let node = |errno: Errno| Refusal::Node { node: "/dev/ng0n1".into(), source: errno.into() };
        assert!(node(Errno::ACCESS).advice().contains("udev"));
        assert!(node(Errno::NOENT).advice().contains("container"));
        let ring = |errno: Errno| Refusal::Ring(Box::new(io::Error::from(errno)));
        assert!(ring(Errno::PERM).advice().contains("io_uring_disabled"));
        assert!(ring(Errno::INVAL).advice().contains("5.19"));
        let command = Refusal::Io { op: "reading by a command", source: Errno::ACCESS.into() };
        assert!(command.advice().contains("6.2"));
        assert!(!Refusal::NoNamespace.is_of_namespace() && node(Errno::ACCESS).is_of_namespace());
    }
}
