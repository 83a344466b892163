//! The core of Lapis: what is kept where. Pure: no I/O, no clock, no thread; time comes in as an argument.
//!
//! [`Core`] owns the truth of one trust group. Calls come in by its methods ([`face`] has their words), what is to be
//! done goes out by [`Core::poll_action`], and what a restart must find is written through the trait [`kept::Kept`].
#![forbid(unsafe_code)]

mod buddy;
pub mod copies;
mod core;
pub mod face;
mod groups;
mod hash;
pub mod hbm;
pub mod health;
pub mod kept;
mod log;
mod memory;
mod plain;
mod policy;
pub mod replay;
pub mod segments;
mod tree;

pub use crate::{
    core::{Core, CoreOptions, FoundRecord, GpuCounts, Piece, PoolCounts, PoolDef},
    groups::Shares,
    log::LogOptions,
    plain::PlainKept,
    policy::{Chosen, Hazq, Lru, Policy, Request, Shelf, Stored, Use},
    replay::{Replay, SsdTier},
};
