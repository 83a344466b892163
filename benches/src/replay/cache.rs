//! What a replay drives: anything that serves whole requests and counts by one rule. The hits of a request are its
//! longest resident run from the first block; then all its blocks are touched or stored, deepest first.

use lapis_config::{Key, PolicyName, PoolId};
use lapis_tiering::{Chosen, Policy, Replay, SsdTier, kept::Kept, replay::ghost_bytes};
use lapis_trace::Request;
use rustix::time::{ClockId, clock_gettime};

use super::{Outcome, outcome::SsdCounts, workload::Workload};

pub trait Cache {
    /// Serves a request; returns how many of its leading blocks were there.
    fn serve(&mut self, request: &Request) -> u64;
    fn holds(&self, id: u64) -> bool;
    fn evictions(&self) -> u64;

    /// What became of the tier on SSD, if there is one.
    fn ssd(&self) -> Option<SsdCounts> {
        None
    }

    /// Calls `visit` with each block that came (true) or went since the last call; the first call says nothing. False if the
    /// cache cannot tell.
    fn changes(&mut self, _visit: &mut dyn FnMut(u64, bool)) -> bool {
        false
    }

    /// Another host reads these blocks of a request, all of them there.
    fn read_by_peer(&mut self, _request: &Request, _blocks: std::ops::Range<usize>) {}

    /// Of the blocks hit, those that lay on another host.
    fn remote_hit_blocks(&self) -> u64 {
        0
    }
}

/// A tier below the core's memory, and how much of what leaves that may be written to it.
#[derive(Clone, Copy, Debug)]
pub struct Ssd {
    pub tier: SsdTier,
    pub write_bytes_a_day: Option<u64>,
}

/// The core with a policy of its own, chosen by name: here, and nowhere else in replays.
///
/// # Panics
/// If a capacity is 0 or does not fit: they are checked where they are read.
pub fn core(policy: PolicyName, capacity: u64, ssd: Option<Ssd>) -> Box<dyn Cache> {
    let policy = Chosen::new(policy, ghost_bytes(capacity));
    let capacity = u32::try_from(capacity).expect("capacities are checked where they are read");
    match ssd {
        Some(Ssd { tier, write_bytes_a_day }) => {
            Box::new(Replay::with_ssd_budget(capacity, tier, write_bytes_a_day, policy))
        }
        None => Box::new(Replay::new(capacity, policy)),
    }
}

/// The same without SSD, for requests that come as close together as to a daemon.
pub fn core_close_together(policy: PolicyName, capacity: u64) -> Box<dyn Cache> {
    let policy = Chosen::new(policy, ghost_bytes(capacity));
    let capacity = u32::try_from(capacity).expect("capacities are checked where they are read");
    Box::new(Replay::new(capacity, policy).close_together())
}

impl<P: Policy> Cache for Replay<P> {
    fn serve(&mut self, request: &Request) -> u64 {
        self.request_at(request.timestamp_ms, &request.ids, request.input_length)
    }

    fn holds(&self, id: u64) -> bool {
        // A replay has one pool.
        self.core().kept().find(PoolId(0), &Key([id, 0, 0, 0])).is_some()
    }

    fn evictions(&self) -> u64 {
        self.counts().evictions
    }

    fn read_by_peer(&mut self, request: &Request, blocks: std::ops::Range<usize>) {
        Replay::read_by_peer(self, request.timestamp_ms, &request.ids[blocks]);
    }

    fn changes(&mut self, visit: &mut dyn FnMut(u64, bool)) -> bool {
        let changes = self.kept_mut().take_changes();
        changes.into_iter().for_each(|change| visit(change.key.0[0], change.came));
        true
    }

    fn ssd(&self) -> Option<SsdCounts> {
        let counts = self.counts();
        Some(SsdCounts {
            hit_blocks: counts.ssd_hit_blocks,
            admitted_bytes: counts.admitted_bytes,
            readmitted_bytes: counts.readmitted_bytes,
            device_bytes: counts.device_bytes,
        })
    }
}

/// Serves all requests of `workload`.
pub fn drive(workload: &Workload, cache: &mut dyn Cache) -> Outcome {
    let mut outcome = Outcome::default();
    let start = processor_ns();
    for request in &workload.requests {
        let hits = cache.serve(request);
        let hit_tokens = request.tokens_of(hits as usize);
        outcome.block_refs += request.ids.len() as u64;
        outcome.hit_blocks += hits;
        outcome.input_tokens += request.input_length;
        outcome.hit_tokens += hit_tokens;
        if workload.is_real(request) {
            outcome.real.block_refs += request.ids.len() as u64;
            outcome.real.hit_blocks += hits;
            outcome.real.input_tokens += request.input_length;
            outcome.real.hit_tokens += hit_tokens;
        }
    }
    let ns = (processor_ns() - start) as f64;
    outcome.ns_per_block = (ns / outcome.block_refs.max(1) as f64 * 10.0).round() / 10.0;
    outcome.evictions = cache.evictions();
    outcome
}

/// Processor time of this thread: what else the machine does costs a replay nothing but its caches.
fn processor_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
