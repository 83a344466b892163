//! Hosts that know of each other by digests: the protocol's own, over no wire. A tenth of a second of the trace passes before
//! the others hear what changed at one.

use lapis_config::Key;
use lapis_trace::Request;
use lapis_transport::peers::{
    digest::Digest,
    directory::{Directory, PeerId},
    name::ShortName,
};
use serde::Serialize;

use super::Cache;

/// Between two deltas of a host.
const DELTA_MS: u64 = 100;
/// Bytes of a name and whether it came or went, as they are sent.
const CHANGE_BYTES: u64 = 7;
/// Of one digest.
const DIGEST_BYTES_MAX: u64 = 16 << 30;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DigestsOutcome {
    /// At each host, for all its peers.
    pub digest_bytes: u64,
    /// What each host sent to each other one.
    pub delta_bytes: u64,
    /// Questions to peers.
    pub asked: u64,
    /// Of those, which found less than the digest had said.
    pub asked_in_vain: u64,
}

pub struct Digests {
    digests: Vec<Digest>,
    /// What all hosts know of all: each has the same of another, as no wire loses anything.
    known: Directory,
    told_ms: u64,
    changes: u64,
    draw: u64,
    asked: u64,
    asked_in_vain: u64,
}

impl Digests {
    pub fn new(hosts: usize, capacity: u64) -> Self {
        let mut known = Directory::default();
        let digests: Vec<Digest> = (0..hosts).map(|_| Digest::new(capacity, 0, 1)).collect();
        for (host, digest) in digests.iter().enumerate() {
            let peer = PeerId(host as u32);
            known.join(peer, DIGEST_BYTES_MAX);
            let (whole, parts) = digest.whole();
            let mirror = known.mirror_mut(peer).expect("it joined");
            mirror.begin(whole).expect("our own digest");
            parts.for_each(|part| mirror.part(&part).expect("our own digest"));
        }
        Self { digests, known, told_ms: 0, changes: 0, draw: 0, asked: 0, asked_in_vain: 0 }
    }

    /// How many leading blocks `host` has or gets. It asks the best peer, then goes on where that one's blocks end; who had
    /// less than was said is not asked again.
    pub fn reachable(&mut self, caches: &mut [Box<dyn Cache>], host: usize, request: &Request) -> u64 {
        self.tell(request.timestamp_ms);
        let names: Vec<ShortName> = request.ids.iter().map(|&id| name(id)).collect();
        let leading =
            |cache: &dyn Cache, from: usize| request.ids[from..].iter().take_while(|id| cache.holds(**id)).count();
        let (mut reached, mut out) = (0, vec![PeerId(host as u32)]);
        loop {
            reached += leading(&*caches[host], reached);
            self.draw = self.draw.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
            let Some(choice) = self.known.choose(&names[reached..], self.draw, |peer| out.contains(&peer)) else {
                break;
            };
            let peer = &mut caches[choice.peer.0 as usize];
            let found = leading(&**peer, reached);
            peer.read_by_peer(request, reached..reached + found);
            self.asked += 1;
            if found < choice.run {
                self.asked_in_vain += 1;
                out.push(choice.peer);
            }
            reached += found;
        }
        reached as u64
    }

    /// What came and went at a host.
    pub fn changed(&mut self, cache: &mut dyn Cache, host: usize) {
        let digest = &mut self.digests[host];
        cache.changes(&mut |id, came| digest.changed(name(id), came));
    }

    pub fn outcome(&self) -> DigestsOutcome {
        let hosts = self.digests.len() as u64;
        DigestsOutcome {
            digest_bytes: self.known.bytes() / hosts * (hosts - 1),
            delta_bytes: self.changes * CHANGE_BYTES / hosts,
            asked: self.asked,
            asked_in_vain: self.asked_in_vain,
        }
    }

    fn tell(&mut self, now_ms: u64) {
        if now_ms < self.told_ms + DELTA_MS {
            return;
        }
        self.told_ms = now_ms;
        for (host, digest) in self.digests.iter_mut().enumerate() {
            let mirror = self.known.mirror_mut(PeerId(host as u32)).expect("every host joined");
            if let Some(delta) = digest.take_delta(usize::MAX) {
                self.changes += delta.changes.len() as u64;
                if mirror.delta(&delta).is_err() {
                    let (whole, parts) = digest.whole();
                    mirror.begin(whole).expect("our own digest");
                    parts.for_each(|part| mirror.part(&part).expect("our own digest"));
                }
            }
        }
    }
}

fn name(id: u64) -> ShortName {
    ShortName::new(0, &Key([id, 0, 0, 0]))
}

#[cfg(test)]
mod tests {
    use lapis_config::PolicyName;
    use lapis_trace::{Generate, generate};

    use super::super::{
        hosts::{HostsPlan, Peers, Route},
        setting::Setting,
        words::Subject,
        workload::Workload,
    };

    #[test]
    fn digests_find_nearly_what_an_oracle_does() {
        let workload = Workload::of(generate(&Generate { seed: 5, requests: 2_000, span_s: 3_600 }));
        let hits = |peers| {
            let hosts = Some(HostsPlan { hosts: 6, route: Route::Rr, peers });
            Setting { hosts, ..Setting::default() }.replay(&workload, Subject::Core(PolicyName::Hazq), 400)
        };
        let [none, oracle, digest] = [Peers::None, Peers::Oracle, Peers::Digest].map(hits);
        assert!(digest.hit_blocks > none.hit_blocks && digest.hit_blocks * 100 >= oracle.hit_blocks * 98);
        let of = digest.hosts.expect("several hosts").digests.expect("digests");
        assert!(of.asked_in_vain * 20 < of.asked && of.delta_bytes > 0 && of.digest_bytes > 5 * 400, "{of:?}");
    }
}
