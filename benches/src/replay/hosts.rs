//! Several hosts with a cache each: who gets a request, and whether one may read what another has.

use lapis_trace::Request;
use serde::Serialize;

use super::{
    Cache,
    digests::{Digests, DigestsOutcome},
};

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
    /// A host may read whatever any other has, and keeps a copy. To the owner it is a use.
    Oracle,
    /// The same, and the owner does not notice.
    Unseen,
    /// A host reads from others as the peer protocol has it: it asks whom their digests name, and keeps a copy.
    Digest,
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
    /// With digests: what they took and cost.
    #[serde(flatten)]
    pub digests: Option<DigestsOutcome>,
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
    digests: Option<Digests>,
}

impl Hosts {
    /// # Panics
    /// If there is no host.
    pub fn new(mut caches: Vec<Box<dyn Cache>>, route: Route, peers: Peers, capacity: u64) -> Self {
        assert!(!caches.is_empty(), "there is at least one host");
        if peers == Peers::Digest {
            let tell = |cache: &mut Box<dyn Cache>| cache.changes(&mut |_, _| {});
            assert!(caches.iter_mut().all(tell), "settings are checked before a trace is read");
        }
        let digests = (peers == Peers::Digest).then(|| Digests::new(caches.len(), capacity));
        Self { loads: vec![0; caches.len()], caches, served: 0, route, peers, remote_hit_blocks: 0, digests }
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

    /// How many leading blocks the host has or reads from others.
    fn reach(&mut self, host: usize, request: &Request) -> u64 {
        let mut reached = 0;
        while reached < request.ids.len() {
            let run = |cache: &dyn Cache| request.ids[reached..].iter().take_while(|id| cache.holds(**id)).count();
            let own = run(&*self.caches[host]);
            if own > 0 {
                reached += own;
                continue;
            }
            let longest = (0..self.caches.len()).max_by_key(|&peer| run(&*self.caches[peer])).expect("there is a host");
            let found = run(&*self.caches[longest]);
            if found == 0 {
                break;
            }
            if self.peers == Peers::Oracle {
                self.caches[longest].read_by_peer(request, reached..reached + found);
            }
            reached += found;
        }
        reached as u64
    }

    fn leading(&self, host: usize, ids: &[u64]) -> u64 {
        ids.iter().take_while(|id| self.caches[host].holds(**id)).count() as u64
    }
}

impl Cache for Hosts {
    fn serve(&mut self, request: &Request) -> u64 {
        let host = self.choose(request);
        // Before the host makes room: a peer's block is read while it is there.
        let reachable = match (self.peers, &mut self.digests) {
            (Peers::Digest, Some(digests)) => digests.reachable(&mut self.caches, host, request),
            (Peers::Oracle | Peers::Unseen, _) => self.reach(host, request),
            _ => 0,
        };
        let own: Vec<bool> = request.ids[..reachable as usize].iter().map(|id| self.caches[host].holds(*id)).collect();
        self.remote_hit_blocks += own.iter().filter(|own| !**own).count() as u64;
        let hits = self.caches[host].serve(request);
        if let Some(digests) = &mut self.digests {
            digests.changed(&mut *self.caches[host], host);
        }
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
    pub fn build(&self, capacity: u64, cache: impl Fn() -> Box<dyn Cache>) -> Hosts {
        Hosts::new((0..self.hosts).map(|_| cache()).collect(), self.route, self.peers, capacity)
    }

    pub fn outcome(&self, of: &Hosts) -> HostsOutcome {
        let digests = of.digests.as_ref().map(Digests::outcome);
        HostsOutcome {
            hosts: self.hosts,
            route: self.route,
            peers: self.peers,
            remote_hit_blocks: of.remote_hit_blocks,
            digests,
        }
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::PolicyName;
    use lapis_trace::{BLOCK_TOKENS, Generate, generate};

    use super::{
        super::{
            cache::{core, drive},
            workload::Workload,
        },
        *,
    };

    fn workload(requests: &[&[u64]]) -> Workload {
        let request = |ids: &&[u64]| Request {
            input_length: ids.len() as u64 * BLOCK_TOKENS,
            ids: ids.to_vec(),
            ..Request::default()
        };
        Workload::of(requests.iter().map(request).collect())
    }

    fn hosts(hosts: u64, route: Route, peers: Peers, capacity: u64) -> Hosts {
        HostsPlan { hosts, route, peers }.build(capacity, || core(PolicyName::Lru, capacity, None))
    }

    fn hits(workload: &Workload, hosts: &mut Hosts) -> Vec<u64> {
        workload.requests.iter().map(|request| hosts.serve(request)).collect()
    }

    #[test]
    fn one_after_the_other_each_host_knows_its_own() {
        let workload = workload(&[&[1, 2], &[1, 2], &[1, 2, 3], &[1, 2, 3]]);
        let mut apart = hosts(2, Route::Rr, Peers::None, 10);
        assert_eq!(hits(&workload, &mut apart), [0, 0, 2, 2]);
        assert_eq!((apart.loads.clone(), apart.remote_hit_blocks()), (vec![2, 2], 0));
    }

    #[test]
    fn a_peers_block_is_read_once_and_kept() {
        let workload = workload(&[&[1, 2], &[1, 2], &[1, 2], &[1, 2]]);
        let mut together = hosts(2, Route::Rr, Peers::Oracle, 10);
        assert_eq!(hits(&workload, &mut together), [0, 2, 2, 2]);
        assert_eq!(together.remote_hit_blocks(), 2, "the second request's: after it both have a copy");
    }

    #[test]
    fn affinity_follows_the_longest_prefix_up_to_a_load() {
        let workload = workload(&[&[1], &[2], &[1, 3], &[2, 4], &[1, 3, 5], &[1, 3, 6], &[1, 3, 7]]);
        let mut hosts = hosts(2, Route::Affinity, Peers::None, 10);
        // The last but one would be the fourth of six with the first host, and may be: the limit is 4.5.
        assert_eq!(hits(&workload, &mut hosts), [0, 0, 1, 1, 2, 2, 2]);
        assert_eq!(hosts.loads, [5, 2]);
    }

    #[test]
    fn affinity_leaves_no_host_without_work() {
        let trace = generate(&Generate { seed: 8, requests: 600, span_s: 900 });
        let workload = Workload::of(trace);
        let mut hosts = hosts(4, Route::Affinity, Peers::None, 400);
        drive(&workload, &mut hosts);
        let (least, most) = (hosts.loads.iter().min().copied(), hosts.loads.iter().max().copied());
        assert!(least > Some(0) && most <= Some(600 * 3 / 8 + 1), "{:?}", hosts.loads);
    }

    #[test]
    fn one_host_is_the_cache_itself() {
        let workload = Workload::of(generate(&Generate { seed: 9, requests: 300, span_s: 900 }));
        let alone = drive(&workload, &mut *core(PolicyName::Lru, 300, None));
        for (route, peers) in [(Route::Rr, Peers::None), (Route::Affinity, Peers::Oracle)] {
            let mut one = hosts(1, route, peers, 300);
            assert_eq!(drive(&workload, &mut one).hit_tokens, alone.hit_tokens);
            assert_eq!(one.remote_hit_blocks(), 0);
        }
    }
}
