//! Policies in the core: what neither may ever do, whatever it learned.

use lapis_config::{Key, PoolId};
use lapis_tiering::{Hazq, Lru, PlainKept, Policy, Replay, SsdTier, kept::Kept};

const GHOST_BYTES: u64 = 1 << 16;

/// Sessions that go on after human or machine pauses, branch off shared prompts, end in a partial block, and scans.
fn trace(seed: u64, requests: usize) -> Vec<(u64, Vec<u64>, u64)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut chains, mut next, mut now): (Vec<Vec<u64>>, u64, u64) = (vec![vec![0, 1, 2]], 3, 0);
    let mut trace = Vec::new();
    for _ in 0..requests {
        now += [10, 200, 3_000, 40_000][random.usize(..4)];
        let mut chain = chains[random.usize(..chains.len())].clone();
        if random.u8(..) < 100 {
            chain.truncate(random.usize(1..=chain.len()));
        }
        for _ in 0..random.usize(..12) {
            chain.push(next);
            next += 1;
        }
        if random.u8(..) < 200 {
            chains.push(chain.clone());
        }
        if chains.len() > 60 {
            chains.remove(random.usize(1..chains.len()));
        }
        let tokens = 512 * chain.len() as u64 - random.u64(0..512);
        trace.push((now, chain, tokens));
    }
    trace
}

/// Of every chain: once a block is nowhere, all after it are. One that is there is in DRAM or on SSD: while a chain longer
/// than the memory is read in parts, a parent may be on SSD alone and its child in DRAM.
fn chains_are_whole(kept: &PlainKept, chain: &[u64]) -> Result<(), String> {
    let mut gone = false;
    for (depth, &id) in chain.iter().enumerate() {
        let is_there = kept.find(PoolId(0), &Key([id, 0, 0, 0])).is_some();
        if is_there && gone {
            return Err(format!("block {depth} of {chain:?} stayed, the one above it did not"));
        }
        gone |= !is_there;
    }
    Ok(())
}

fn run(seed: u64, mut replay: Replay<impl Policy>) -> Vec<u64> {
    let trace = trace(seed, 600);
    let mut hits = Vec::new();
    for (at, (now, ids, tokens)) in trace.iter().enumerate() {
        hits.push(replay.request_at(*now, ids, *tokens));
        if at % 20 == 0 {
            replay.core().audit().unwrap_or_else(|wrong| panic!("seed {seed}, request {at}: {wrong}"));
            for (_, chain, _) in &trace[..=at] {
                chains_are_whole(replay.core().kept(), chain)
                    .unwrap_or_else(|wrong| panic!("seed {seed}, request {at}: {wrong}"));
            }
        }
    }
    hits
}

#[test]
fn no_child_stays_without_its_parent() {
    for seed in 0..8 {
        for capacity in [1, 7, 50, 333] {
            run(seed, Replay::new(capacity, Hazq::new(GHOST_BYTES)));
            run(seed, Replay::new(capacity, Lru::default()));
        }
    }
}

#[test]
fn no_child_stays_without_its_parent_in_dram_or_on_ssd() {
    for seed in 0..6 {
        for (capacity, blocks) in [(16, 120), (16, 400), (60, 400)] {
            let tier = SsdTier { blocks, block_bytes: 65_536 };
            run(seed, Replay::with_ssd(capacity, tier, Hazq::new(GHOST_BYTES)));
            run(seed, Replay::with_ssd(capacity, tier, Lru::default()));
        }
    }
}

#[test]
fn the_same_trace_gives_the_same_hits() {
    let hits = || run(3, Replay::new(50, Hazq::new(GHOST_BYTES)));
    assert_eq!(hits(), hits());
}
