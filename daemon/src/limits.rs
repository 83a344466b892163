//! What the kernel lets this process have.

use rustix::process::{Resource, getrlimit};

const CAP_IPC_LOCK: u64 = 1 << 14;

/// Bytes that this process may lock in memory; `None`: as many as there are.
pub fn lockable_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if capabilities & CAP_IPC_LOCK != 0 { None } else { getrlimit(Resource::Memlock).current }
}

/// Descriptors that this process may open once it has raised its limit; `None`: no limit.
pub fn descriptors() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}
