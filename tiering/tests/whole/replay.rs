//! Replay against the counting rule said as plainly as it can be said: one list, everything of a request moves to its
//! recent end deepest first, what does not fit falls off the other end.

use lapis_tiering::{Lru, Replay};

struct Naive {
    capacity: usize,
    /// The most recent first.
    list: Vec<u64>,
}

impl Naive {
    fn request(&mut self, ids: &[u64]) -> u64 {
        let hit = ids.iter().take_while(|id| self.list.contains(id)).count() as u64;
        for id in ids.iter().rev() {
            self.list.retain(|other| other != id);
            self.list.insert(0, *id);
        }
        self.list.truncate(self.capacity);
        hit
    }
}

/// Requests of sessions that go on, fork, repeat a shorter prefix or begin anew: every id has one parent.
fn trace(seed: u64, requests: usize) -> Vec<Vec<u64>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut chains, mut next): (Vec<Vec<u64>>, u64) = (vec![vec![0, 1, 2]], 3);
    let mut trace = Vec::new();
    for _ in 0..requests {
        let mut chain = chains[random.usize(..chains.len())].clone();
        chain.truncate(random.usize(1..=chain.len()));
        for _ in 0..random.usize(..12) {
            chain.push(next);
            next += 1;
        }
        if random.u8(..) < 200 {
            chains.push(chain.clone());
        }
        if chains.len() > 40 {
            chains.remove(random.usize(1..chains.len()));
        }
        trace.push(chain);
    }
    trace
}

#[test]
fn replay_counts_what_the_plain_rule_counts() {
    for seed in 0..40 {
        let trace = trace(seed, 300);
        for capacity in [1, 2, 7, 50, 333, 1000] {
            let mut naive = Naive { capacity: capacity as usize, list: Vec::new() };
            let mut replay = Replay::new(capacity, Lru::default());
            for (at, ids) in trace.iter().enumerate() {
                let hit = replay.request(ids, 512 * ids.len() as u64);
                assert_eq!(hit, naive.request(ids), "seed {seed} capacity {capacity} request {at}");
            }
            replay.core().audit().unwrap();
            assert_eq!(replay.core().counts().blocks, naive.list.len() as u64);
        }
    }
}

#[test]
fn a_partial_tail_is_hit_for_the_tokens_that_it_has() {
    let mut replay = Replay::new(10, Lru::default());
    for _ in 0..2 {
        replay.request(&[1, 2], 700);
    }
    let counts = replay.counts();
    assert_eq!((counts.block_refs, counts.hit_blocks, counts.hit_tokens), (4, 2, 700));
}
