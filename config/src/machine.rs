//! What the configuration must know of the machine it is for.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::quantity::{GIB, MIB};

/// Folder of the default socket.
pub const RUNTIME_FOLDER: &str = "/run/lapis";

/// Facts about a machine. `default()` knows nothing and so forbids nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Memory that this process may use: `MemTotal`, or the limit of its control group if less; `None` = not known.
    pub memory_bytes: Option<u64>,
    /// Whether [`RUNTIME_FOLDER`] is there or can be made; `None` = not known.
    pub runtime_folder: Option<bool>,
    /// `XDG_RUNTIME_DIR`, where every user may have sockets.
    pub user_runtime_folder: Option<PathBuf>,
    /// What the machine calls itself.
    pub host_name: Option<String>,
}

impl Machine {
    /// This machine, as far as /proc and /sys tell.
    pub fn here() -> Self {
        let uid = std::fs::metadata("/proc/self").ok().map(|m| m.uid());
        let user_folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
        Self {
            memory_bytes: memory_total().map(|total| total.min(memory_limit().unwrap_or(u64::MAX))),
            runtime_folder: Some(uid == Some(0) || Path::new(RUNTIME_FOLDER).is_dir()),
            user_runtime_folder: user_folder,
            host_name: std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().into()),
        }
    }

    /// Bytes of memory left to everything that is not the cache: a sixteenth, at least 1 GiB (or a half, if that is
    /// less).
    pub fn reserve_bytes(memory_bytes: u64) -> u64 {
        (memory_bytes / 16).max(GIB).min(memory_bytes / 2)
    }

    /// Default memory of the DRAM tier here, given what it would be on a large machine.
    pub(crate) fn dram_bytes_default(&self, wanted: u64) -> u64 {
        self.memory_bytes.map_or(wanted, |memory| wanted.min((memory / 4).max(16 * MIB)))
    }
}

fn memory_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least `memory.max` of the control groups (version 2) above this process.
fn memory_limit() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let limit =
        |folder: &Path| -> Option<u64> { std::fs::read_to_string(folder.join("memory.max")).ok()?.trim().parse().ok() };
    root.join(path).ancestors().take_while(|folder| folder.starts_with(root)).filter_map(limit).min()
}
