//! Descriptors that outlive the daemon, so that kill -9 keeps what is in DRAM.
//!
//! `lapis hold` runs a [`Holder`]: it maps nothing, reads nothing and decides one thing, who owns the descriptors. A
//! daemon takes them over only when the process that had them before has ended: a hung daemon is not a dead one.

mod client;
mod holder;
pub mod message;

use std::{io, os::fd::BorrowedFd};

pub use self::{
    client::HoldClient,
    holder::{Holder, KEPT_MAX},
    message::NAME_BYTES_MAX,
};

/// Keeps descriptors by name for the next start of the daemon.
pub trait Keeper: Send {
    /// Keeps a duplicate, in place of a former one of the same name.
    fn keep(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()>;
    /// A name that is not kept is no error.
    fn forget(&mut self, name: &str) -> io::Result<()>;
    /// Called now and then: the time to reach a keeper again that was lost.
    fn tick(&mut self) {}
}

/// Nothing outlives the daemon: every start is a cold one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl Keeper for Nothing {
    fn keep(&mut self, _name: &str, _fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }
    fn forget(&mut self, _name: &str) -> io::Result<()> {
        Ok(())
    }
}
