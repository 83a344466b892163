//! The wires of Lapis. Here: rings in shared memory and the Unix socket of one host. They carry; they decide nothing.
//!
//! `frame` and `hello` are what is said, as bytes; `ring` and `control` the memory shared with one client; `listen` and
//! `unix` the daemon's end of all sockets, `socket` a client's; `hold` keeps descriptors over a daemon's death. `peers` is
//! the deciding half of the wire between hosts.

mod code;
pub mod control;
mod datagram;
pub mod error;
pub mod frame;
pub mod hello;
pub mod hold;
pub mod listen;
mod peer;
pub mod peers;
pub mod ring;
pub mod socket;
pub mod unix;
pub mod wire;

pub use error::TransportError;
