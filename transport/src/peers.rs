//! The wire between hosts, its deciding half: what a host tells others of its blocks, what it knows of theirs, and whom it
//! asks. Pure: no socket, no clock, no thread.
//!
//! `host` is the whole of it for one trust group, made of an `asker` for each peer, an `answerer` for each that asks, a
//! `directory` of their `digest`s (a `filter` of short `name`s each), and the `wants` of this host. `links` says what it
//! needs of the connections between hosts, `paths` how blocks move; `streams` moves them over TCP, with sockets and threads.

pub mod answerer;
pub mod asker;
pub mod digest;
pub mod directory;
pub mod filter;
pub mod host;
pub mod links;
pub mod message;
pub mod name;
pub mod paths;
pub mod rdma;
pub mod streams;
pub mod tcp;
pub mod tls;
pub mod wants;
