//! What can stop a daemon from starting or going on.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Arena(#[from] lapis_arena::ArenaError),
    #[error("{what}")]
    Os { what: &'static str, source: std::io::Error },
    #[error("{op} a descriptor in the keeper (systemd's descriptor store or `lapis hold`)")]
    Keeper { op: &'static str, source: std::io::Error },
    #[error("listen on {path}: {hint}")]
    Listen { path: PathBuf, hint: String, source: std::io::Error },
}

impl DaemonError {
    pub(crate) fn keeper(op: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Keeper { op, source }
    }
}
