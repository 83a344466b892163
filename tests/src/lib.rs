//! Model, simulation, crash and process tests of Lapis.

pub mod gpus;
pub mod sim;
