//! The Lapis daemon: the engine loop, the local server, what a restart keeps, metrics. `main.rs` is its command line.

pub mod admin;
pub mod client;
pub mod doctor;
pub mod drives;
pub mod engine;
pub mod error;
pub mod gpus;
pub mod group;
pub mod keeper;
pub mod kept;
pub mod limits;
pub mod membership;
pub mod metrics;
pub mod movers;
mod pace;
pub mod peers;
pub mod pins;
pub mod serve;
pub mod server;
mod stall;
pub mod status;
pub mod tier;
pub mod topology;
