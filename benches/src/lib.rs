//! Load generator, limits, replay, demo.

pub mod bench;
pub mod demo;
pub mod pattern;
pub mod trace;
