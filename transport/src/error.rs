//! What can go wrong on the sockets of one host, in the words of whoever has to act on it.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use crate::hello::HelloError;

/// Why a socket could not be served, reached, or went quiet.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Stop the other one first, or choose another path.
    #[error("another process (pid {pid}) serves {path}")]
    Served { path: PathBuf, pid: u32 },
    /// Something of somebody else's lies there: not ours to replace.
    #[error("{path} exists and is no socket")]
    NotASocket { path: PathBuf },
    #[error("{op} {path}")]
    Path { op: &'static str, path: PathBuf, source: io::Error },
    /// Another process may have the port, or the address is not this host's.
    #[error("taking streams of blocks at {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("{op}")]
    Io { op: &'static str, source: io::Error },
    #[error("the other side hung up")]
    HungUp,
    #[error("no answer within {after:?}")]
    TimedOut { after: Duration },
    #[error(transparent)]
    Message(#[from] HelloError),
    /// The former owner of the kept descriptors has not ended.
    #[error("the descriptors are held by pid {pid}, which is alive")]
    Held { pid: u32 },
    #[error("the holder refused: {reason}")]
    Refused { reason: String },
}

impl TransportError {
    pub(crate) fn io(op: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { op, source: errno.into() }
    }

    /// True if the same call may succeed later without anyone's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::HungUp | Self::TimedOut { .. } | Self::Held { .. })
    }
}

impl From<TransportError> for io::Error {
    fn from(error: TransportError) -> Self {
        let kind = match &error {
            TransportError::Path { source, .. }
            | TransportError::Io { source, .. }
            | TransportError::Listen { source, .. } => source.kind(),
            TransportError::Served { .. } | TransportError::Held { .. } => io::ErrorKind::AddrInUse,
            TransportError::NotASocket { .. } => io::ErrorKind::AlreadyExists,
            TransportError::HungUp => io::ErrorKind::ConnectionReset,
            TransportError::TimedOut { .. } => io::ErrorKind::TimedOut,
            TransportError::Message(_) => io::ErrorKind::InvalidData,
            TransportError::Refused { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
