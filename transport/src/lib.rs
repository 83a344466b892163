//! The wires of Lapis. Here: rings in shared memory and the Unix socket of one host. They carry; they decide nothing.

pub mod frame;
pub mod hello;
pub mod wire;
