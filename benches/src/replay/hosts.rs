//! Several hosts with a cache each: who gets a request, and whether one may read what another has.

use serde::Serialize;

use super::Cache;
use crate::trace::Request;

/// Most hosts of a replay.
pub const HOSTS_MAX: u64 = 1024;
/// A host with more than this many times the mean load gets no credit for what it has.
const LOAD_MAX: f64 = 1.5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// One after the other.
    Rr,
    /// The host that has the longest prefix; one that would have more than 1.5 times the mean number of requests with
    /// this one counts as having none. Of equals the one with the fewest requests.
    Affinity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peers {
    /// A host has what it has.
    None,
    /// A host may read whatever any other has, and keeps a copy.
    Oracle,
}

/// How many, and how they work together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostsPlan {
    pub hosts: u64,
    pub route: Route,
    pub peers: Peers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HostsOutcome {
    pub hosts: u64,
    pub route: Route,
    pub peers: Peers,
    /// Of the blocks hit, those that the host itself did not have.
    pub remote_hit_blocks: u64,
}

/// All hosts, as one cache that is given whole requests.
pub struct Hosts {
    caches: Vec<Box<dyn Cache>>,
    /// Requests so far, by host.
    loads: Vec<u64>,
    served: u64,
    route: Route,
    peers: Peers,
    remote_hit_blocks: u64,
}

impl Hosts {
    /// # Panics
    /// If there is no host.
    pub fn new(caches: Vec<Box<dyn Cache>>, route: Route, peers: Peers) -> Self {
        assert!(!caches.is_empty(), "there is at least one host");
        Self { loads: vec![0; caches.len()], caches, served: 0, route, peers, remote_hit_blocks: 0 }
    }

    fn choose(&self, request: &Request) -> usize {
        match self.route {
            Route::Rr => (self.served % self.caches.len() as u64) as usize,
            Route::Affinity => {
                // This request counts: else a host that comes late never gets what all requests begin with.
                let most = LOAD_MAX * (self.served + 1) as f64 / self.caches.len() as f64;
                let worth = |host: &usize| {
                    let load = self.loads[*host];
                    let credit = if (load + 1) as f64 > most { 0 } else { self.leading(*host, &request.ids) };
                    (credit, std::cmp::Reverse(load), std::cmp::Reverse(*host))
                };
                (0..self.caches.len()).max_by_key(worth).expect("there is at least one host")
            }
        }
    }

    fn leading(&self, host: usize, ids: &[u64]) -> u64 {
        ids.iter().take_while(|id| self.caches[host].holds(**id)).count() as u64
    }
}

impl Cache for Hosts {
    fn serve(&mut self, request: &Request) -> u64 {
        let host = self.choose(request);
        // Before the host makes room: a peer's block is read while it is there.
        let reachable = match self.peers {
            Peers::None => 0,
            Peers::Oracle => request.ids.iter().take_while(|id| self.holds(**id)).count() as u64,
        };
        let own: Vec<bool> = request.ids[..reachable as usize].iter().map(|id| self.caches[host].holds(*id)).collect();
        self.remote_hit_blocks += own.iter().filter(|own| !**own).count() as u64;
        let hits = self.caches[host].serve(request);
        self.loads[host] += 1;
        self.served += 1;
        hits.max(reachable)
    }

    fn holds(&self, id: u64) -> bool {
        self.caches.iter().any(|cache| cache.holds(id))
    }

    fn evictions(&self) -> u64 {
        self.caches.iter().map(|cache| cache.evictions()).sum()
    }

    fn remote_hit_blocks(&self) -> u64 {
        self.remote_hit_blocks
    }
}

impl HostsPlan {
    /// The hosts, each with a cache that `cache` makes.
    pub fn build(&self, cache: impl Fn() -> Box<dyn Cache>) -> Hosts {
        Hosts::new((0..self.hosts).map(|_| cache()).collect(), self.route, self.peers)
    }

    pub fn outcome(&self, remote_hit_blocks: u64) -> HostsOutcome {
        HostsOutcome { hosts: self.hosts, route: self.route, peers: self.peers, remote_hit_blocks }
    }
}
