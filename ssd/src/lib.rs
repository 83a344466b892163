//! The log of blocks on devices.
#![deny(unsafe_code)]

pub mod device;
pub mod format;
pub mod fsck;
pub mod recover;
pub mod volume;

#[cfg(test)]
mod testing;
