//! Blocks from slot to slot over TCP on loopback: whole, cut, late, changed, and told by a liar.

#[path = "../certificates/mod.rs"]
mod certificates;
mod harms;
mod liars;
mod owners;
mod proxy;
mod sealed;
mod wholes;
mod world;
