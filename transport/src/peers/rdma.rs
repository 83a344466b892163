//! Paths by RDMA: whoever fetches a block READs it out of the owner's slot into its own, without a copy by either host.
//!
//! `mover` decides, over the NICs of the trait in `provider`: `asking` and its `lane`s fetch, `guest` lets itself be read,
//! `fetches` says what has ended, `memory` where everything lies, `pace` which lane is soonest. `said` is what the two sides
//! say to each other. `verbs` are real NICs, found in `sysfs`, chosen in `rank`; here are the threads that turn it all.
//!
//! Invariant: nothing that a peer may do to this host's memory is ever granted but to read it.

mod asking;
#[cfg(test)]
mod fake;
mod fetches;
mod guest;
mod lane;
mod memory;
mod mover;
mod pace;
pub mod provider;
pub mod rank;
mod reach;
pub mod said;
pub mod survey;
pub mod sysfs;
#[cfg(test)]
mod tests;
mod threads;
pub mod verbs;
mod work;

use std::{io, sync::Arc};

use crate::peers::paths::{Fetch, FromPaths, Paths, ToPaths};

use rank::Candidate;
use said::LANES_MAX;
use threads::Threads;
use verbs::{Library, NoVerbs, VerbsNic};

#[derive(Clone, Debug, Default)]
pub struct RdmaOptions {
    /// Names of the devices to be used; none: all that are fit.
    pub devices: Vec<String>,
}

/// Why there is no RDMA on this host.
#[derive(Debug, thiserror::Error)]
pub enum NoRdma {
    #[error("no device in /sys/class/infiniband")]
    NoDevice,
    #[error("the devices cannot be listed")]
    List { source: io::Error },
    #[error(transparent)]
    Verbs(#[from] NoVerbs),
    #[error("no device is fit: {}", reasons.join("; "))]
    Unfit { reasons: Vec<String> },
    #[error("threads cannot be made")]
    Threads { source: io::Error },
}

/// Blocks by RDMA. Dropped: nothing of it reads or writes any more.
pub struct RdmaPaths {
    threads: Threads,
}

impl RdmaPaths {
    /// Opens this host's NICs, as `rank` chooses them. `wake` is called when `poll` has something.
    pub fn start(options: &RdmaOptions, wake: Arc<dyn Fn() + Send + Sync>) -> Result<Self, NoRdma> {
        let nics = open(options)?;
        let threads = Threads::start(nics, wake).map_err(|source| NoRdma::Threads { source })?;
        Ok(Self { threads })
    }
}

fn open(options: &RdmaOptions) -> Result<Vec<Arc<VerbsNic>>, NoRdma> {
    let candidates = sysfs::candidates().map_err(|source| NoRdma::List { source })?;
    if candidates.is_empty() && sysfs::devices().is_ok_and(|devices| devices.is_empty()) {
        return Err(NoRdma::NoDevice);
    }
    let library = Library::get()?;
    let (mut nics, mut reasons) = (Vec::new(), Vec::new());
    for (candidate, verdict) in candidates.iter().zip(rank::choose(&candidates, &options.devices, LANES_MAX)) {
        let Candidate { device, port, index, .. } = candidate;
        let opened = verdict.map_err(|unused| unused.to_string()).and_then(|()| {
            VerbsNic::open(&library, candidate).map_err(|error| format!("it cannot be opened: {error}"))
        });
        match opened {
            Ok(nic) => {
                let (address, rank) = (candidate.address().to_string(), candidate.rank().to_string());
                tracing::info!(device, port, index, address, rank, "a NIC for RDMA");
                nics.push(Arc::new(nic));
            }
            Err(reason) => {
                tracing::debug!(device, port, index, reason, "not used for RDMA");
                reasons.push(format!("{device} port {port} index {index}: {reason}"));
            }
        }
    }
    if nics.is_empty() { Err(NoRdma::Unfit { reasons }) } else { Ok(nics) }
}

impl Paths for RdmaPaths {
    fn submit(&mut self, job: ToPaths) {
        self.threads.submit(job);
    }

    fn poll(&mut self) -> Option<FromPaths> {
        self.threads.poll()
    }

    fn data_port(&self) -> u16 {
        0
    }
}

impl super::paths::both::Fast for RdmaPaths {
    fn takes(&self, fetch: &Fetch) -> bool {
        self.threads.takes(fetch)
    }
}
