//! Model, simulation, crash and process tests of Lapis.

pub mod sim;
