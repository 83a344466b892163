//! Paths by RDMA: whoever fetches a block READs it out of the owner's slot into its own, without a copy by either host.
//!
//! `mover` decides, over the NICs of the trait in `provider`: `asking` and its `lane`s fetch, `guest` lets itself be read,
//! `fetches` and `looks` say what has ended, `memory` where everything lies, `pace` which lane is soonest. `said` is what the
//! two sides say to each other. `verbs` are real NICs, found in `sysfs`, chosen in `rank`; here are the threads that turn it all.
//!
//! Invariant: nothing that a peer may do to this host's memory is ever granted but to read it.

mod asking;
#[cfg(test)]
mod fake;
mod fetches;
mod guest;
mod lane;
mod looks;
mod memory;
mod mover;
mod pace;
mod partner;
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

use std::{io, sync::Arc, time::Duration};

use crate::peers::{
    links::LinkId,
    paths::{Fetch, FromPaths, Paths, ToPaths},
};

use rank::{Candidate, Unused};
use said::LANES_MAX;
use threads::{Look, Threads};
use verbs::{Library, NoVerbs, VerbsNic};

/// So often ports are looked for that were down, or were not there.
const LOOK_EVERY: Duration = Duration::from_secs(10);

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
    #[error("threads cannot be made")]
    Threads { source: io::Error },
}

/// Blocks by RDMA. Dropped: nothing of it reads or writes any more.
pub struct RdmaPaths {
    threads: Threads,
}

impl RdmaPaths {
    /// Opens this host's NICs, as `rank` chooses them, now and later. `wake` is called when `poll` has something.
    pub fn start(options: &RdmaOptions, wake: Arc<dyn Fn() + Send + Sync>) -> Result<Self, NoRdma> {
        if sysfs::devices().is_ok_and(|devices| devices.is_empty()) {
            return Err(NoRdma::NoDevice);
        }
        let mut ports = Ports { named: options.devices.clone(), library: Library::get()?, open: Vec::new() };
        let (nics, reasons) = ports.look().map_err(|source| NoRdma::List { source })?;
        if nics.is_empty() {
            let (reasons, every_s) = (reasons.join("; "), LOOK_EVERY.as_secs());
            tracing::warn!(every_s, reasons, "no RDMA yet, blocks go by TCP: ports that come up are looked for");
        }
        let find = Box::new(move || match ports.look() {
            Ok((nics, _)) => nics,
            Err(error) => {
                tracing::debug!(%error, "the devices cannot be listed");
                Vec::new()
            }
        });
        let look = Some(Look { every: LOOK_EVERY, find });
        let threads = Threads::start(nics, look, wake).map_err(|source| NoRdma::Threads { source })?;
        Ok(Self { threads })
    }
}

/// This host's ports.
struct Ports {
    named: Vec<String>,
    library: Arc<Library>,
    open: Vec<(Candidate, Arc<VerbsNic>)>,
}

impl Ports {
    /// Opens those that can be used now and are not open yet; and why not the others.
    fn look(&mut self) -> io::Result<(Vec<Arc<VerbsNic>>, Vec<String>)> {
        self.open.retain(|(_, nic)| nic.is_there());
        let candidates = sysfs::candidates()?;
        let (mut nics, mut reasons) = (Vec::new(), Vec::new());
        for (candidate, verdict) in candidates.iter().zip(rank::choose(&candidates, &self.named, LANES_MAX)) {
            let Candidate { device, port, index, .. } = candidate;
            if self.open.iter().any(|(open, _)| (&open.device, open.port) == (device, *port)) {
                continue;
            }
            let verdict = verdict.and_then(|()| self.has_place(candidate)).map_err(|unused| unused.to_string());
            let opened = verdict.and_then(|()| {
                VerbsNic::open(&self.library, candidate).map_err(|error| format!("it cannot be opened: {error}"))
            });
            match opened {
                Ok(nic) => {
                    let (address, rank) = (candidate.address().to_string(), candidate.rank().to_string());
                    tracing::info!(device, port, index, address, rank, "a NIC for RDMA");
                    let nic = Arc::new(nic);
                    nics.push(nic.clone());
                    self.open.push((candidate.clone(), nic));
                }
                Err(reason) => {
                    tracing::debug!(device, port, index, reason, "not used for RDMA");
                    reasons.push(format!("{device} port {port} index {index}: {reason}"));
                }
            }
        }
        Ok((nics, reasons))
    }

    /// As `rank` chooses among ports that are up, also where those that are used are down for now.
    fn has_place(&self, candidate: &Candidate) -> Result<(), Unused> {
        if self.open.len() >= LANES_MAX {
            return Err(Unused::TooMany { max: LANES_MAX });
        }
        let better = self.open.iter().find(|(open, _)| self.named.is_empty() && open.rank() < candidate.rank());
        better.map_or(Ok(()), |(open, _)| Err(Unused::OtherPort { device: open.device.clone(), rank: open.rank() }))
    }
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

    fn looks(&self, link: LinkId) -> bool {
        self.threads.looks(link)
    }
}
