//! What the checks of the host look at.

use std::{fs, str::FromStr};

use rustix::io::Errno;

use super::uring;
use crate::limits;

const HUGE_FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// This host, as far as the files of the kernel tell.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// `None`: no limit.
    pub lockable_bytes: Option<u64>,
    pub descriptors: Option<u64>,
    /// Reserved huge pages of 2 MiB, and those of them that nobody has.
    pub huge_pages: u64,
    pub huge_pages_free: u64,
    /// /sys/kernel/mm/transparent_hugepage/shmem_enabled.
    pub shmem_enabled: String,
    /// /proc/sys/kernel/io_uring_disabled, where the kernel has it.
    pub uring_disabled: Option<u8>,
    pub uring: Result<(), Errno>,
    /// MemAvailable; `None`: not known.
    pub available_bytes: Option<u64>,
    /// /etc/machine-id.
    pub machine_id: Option<String>,
}

impl Facts {
    pub(super) fn here() -> Self {
        Self {
            lockable_bytes: limits::lockable_bytes(),
            descriptors: limits::descriptors(),
            huge_pages: number(&format!("{HUGE_FOLDER}/nr_hugepages")).unwrap_or(0),
            huge_pages_free: number(&format!("{HUGE_FOLDER}/free_hugepages")).unwrap_or(0),
            shmem_enabled: text("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default(),
            uring_disabled: number("/proc/sys/kernel/io_uring_disabled"),
            uring: uring::attempt(),
            available_bytes: available_bytes(),
            machine_id: text("/etc/machine-id"),
        }
    }
}

fn text(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number<T: FromStr>(path: &str) -> Option<T> {
    text(path)?.parse().ok()
}

fn available_bytes() -> Option<u64> {
    let text = text("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
