//! Load generator, limits, replay, demo.

pub mod bench;
pub mod demo;
pub mod host;
pub mod hosts;
pub mod limits;
pub mod load;
pub mod pattern;
pub mod plan;
pub mod replay;
pub mod samples;
pub mod stop;
pub mod trace;
