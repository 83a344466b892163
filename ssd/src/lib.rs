//! The log of blocks on devices.
