//! What can go wrong in the client, in the words of whoever has to act on it. A miss and a refused put are values.

use std::{io, path::PathBuf, time::Duration};

use lapis_arena::ArenaError;
use lapis_config::{BATCH_KEYS_MAX, HAZARDS, OBJECT_NAME_BYTES_MAX};
use lapis_transport::{TransportError, control::ControlError};

use crate::keys::KEY_BYTES;

/// Why a call did nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Connect anew in this process: the rings belong to the parent.
    #[error("this client belongs to the process that this one was forked from")]
    Closed,
    #[error("{bytes} bytes of keys, expected a multiple of {KEY_BYTES}")]
    KeyBytes { bytes: usize },
    #[error("{keys} keys in one call, expected 1 to {BATCH_KEYS_MAX}")]
    KeyCount { keys: usize },
    #[error("a buffer of {found} bytes for {blocks} blocks, expected {expected}")]
    BufferBytes { blocks: usize, expected: u64, found: usize },
    #[error("{vectors} vectors for {blocks} blocks, expected the same number for each")]
    VectorCount { blocks: usize, vectors: usize },
    #[error("the vectors of block {block} hold {found} bytes, expected {expected}")]
    VectorBytes { block: usize, expected: u64, found: u64 },
    #[error("pieces {first} to {end} of a block that has {pieces}")]
    Pieces { first: u16, end: u16, pieces: u16 },
    #[error("a flag at {at:#x}, expected a multiple of four")]
    Flag { at: u64 },
    #[error("{bytes} bytes at {offset} of a block of {block_bytes}")]
    Range { offset: u64, bytes: usize, block_bytes: u64 },
    /// This call is for pools of the other kind.
    #[error("the pool {label:?} is no {expected} pool")]
    Kind { label: String, expected: &'static str },
    /// Open it with this one: a pool's handle is good for the client that gave it.
    #[error("the pool {label:?} was opened by another client")]
    ForeignPool { label: String },
    #[error("a name of {bytes} bytes, expected 1 to {OBJECT_NAME_BYTES_MAX}")]
    Name { bytes: usize },
    #[error("a pool label of {bytes} bytes, expected at most {max} of ASCII")]
    Label { bytes: usize, max: usize },
    /// Release some views first.
    #[error("{wanted} views asked of this client while it holds {held} of {HAZARDS}")]
    Views { wanted: usize, held: usize },
    /// The daemon said why; what was asked has to change.
    #[error("the daemon refused: {reason}")]
    Refused { reason: String },
    #[error("no answer of the daemon within {after:?}")]
    Late { after: Duration },
    /// The client reconnects by itself.
    #[error("the daemon is gone")]
    Gone,
    #[error("connecting to {path}")]
    Connect { path: PathBuf, source: TransportError },
    /// The daemon speaks another language than this build.
    #[error("the daemon answered with {what} where a welcome belongs")]
    Welcome { what: &'static str },
    #[error("the daemon's welcome came without {what}")]
    NoDescriptor { what: &'static str },
    #[error("mapping the daemon's memory")]
    Memory(#[from] ArenaError),
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Of a GPU or its driver; what to do is said. Only with the feature `cuda`.
    #[error("{op}: {reason}")]
    Gpu { op: &'static str, reason: String, is_transient: bool },
    #[error("{op}")]
    Io { op: &'static str, source: io::Error },
}

impl ClientError {
    pub(crate) fn io(op: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Io { op, source: source.into() }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn gpu(op: &'static str) -> impl Fn(lapis_arena::hbm::HbmError) -> Self {
        move |error| Self::Gpu { op, reason: error.to_string(), is_transient: error.is_transient() }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn no_cuda(error: lapis_arena::hbm::NoCuda) -> Self {
        Self::Gpu { op: "loading CUDA's driver", reason: error.to_string(), is_transient: false }
    }

    /// True if the same call may succeed later without a change of what is asked.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Views { .. } | Self::Late { .. } | Self::Gone => true,
            Self::Gpu { is_transient, .. } => *is_transient,
            // Nobody is there yet.
            Self::Connect { source: TransportError::Path { source, .. }, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Connect { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}
