//! The log of blocks on devices.
#![forbid(unsafe_code)]

pub mod format;
