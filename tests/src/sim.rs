//! The daemon's real engine loop in a world that a seed makes: virtual time, a wire that delays, clients that crash,
//! fork, stall and lie, a daemon that is killed between any two of its steps and in the middle of them, devices that err,
//! hang, go, come back and say that they did what they did not, and power that fails.
//!
//! What is real: [`lapis::engine::Engine`] with core, table, arena and rings in memfds, the drives of its devices, and [`lapis_client::Session`] in
//! every client. What is made: sockets, doorbells, processes, the keeper, the bytes of devices, time. A model of every put judges every byte
//! that is read and every block that is published.
//!
//! Invariant: nothing here asks the machine for time, chance or threads: one seed, one run, byte for byte.

mod client;
mod daemon;
mod evil;
mod hosts;
mod jobs;
mod keeper;
mod kill;
mod model;
mod movers;
mod net;
mod operator;
mod plan;
mod shrink;
mod trace;
mod world;

pub use plan::Plan;
pub use shrink::{difference, shrink, turned};
pub use world::{Outcome, run};
