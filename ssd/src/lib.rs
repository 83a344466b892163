//! The log of blocks on devices.
#![deny(unsafe_code)]

pub mod device;
mod error;
pub mod format;
pub mod volume;

pub use error::SsdError;
