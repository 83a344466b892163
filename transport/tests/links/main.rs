//! Connections between hosts over real sockets of the loopback device, with certificates made here.

#[path = "../certificates/mod.rs"]
mod certificates;
mod flood;
mod flow;
mod harness;
mod meeting;
mod refusing;
mod wrong;
