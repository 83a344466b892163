//! The wires of Lapis. Here: rings in shared memory and the Unix socket of one host. They carry; they decide nothing.
//!
//! `frame` and `hello` are what is said, as bytes; `ring` and `control` the memory shared with one client; `unix` the
//! daemon's end of all sockets, `socket` a client's; `hold` keeps descriptors over a daemon's death.

mod code;
pub mod control;
pub mod frame;
pub mod hello;
pub mod ring;
pub mod wire;
