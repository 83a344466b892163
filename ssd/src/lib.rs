//! The log of blocks on devices.
#![deny(unsafe_code)]

pub mod device;
pub mod disk;
pub mod drive;
pub mod engine;
mod error;
pub mod faulty;
pub mod format;
pub mod fsck;
pub mod memory;
#[allow(unsafe_code, reason = "the kernel is handed descriptors and addresses; their owners outlive its use of them")]
pub mod passthrough;
pub mod recover;
#[allow(
    unsafe_code,
    reason = "a library's functions are called by hand-written declarations, with addresses of shared memory"
)]
pub mod spdk;
#[cfg(test)]
mod testing;
pub mod threads;
#[allow(unsafe_code, reason = "the kernel is handed descriptors and addresses; their owners outlive its use of them")]
pub mod uring;
pub mod volume;

pub use error::SsdError;
