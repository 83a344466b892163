//! Load generator, limits, replay, demo.

pub mod bench;
pub mod demo;
pub mod host;
pub mod limits;
pub mod pattern;
pub mod samples;
pub mod trace;
