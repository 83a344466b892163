//! What a replay says of the SSD tier: how much is written for what is kept, and that nothing that fits is lost.

use lapis_benches::replay::{Outcome, SsdOutcome, replay, replay_ssd};
use lapis_config::PolicyName;
use lapis_tiering::{Lru, Replay, SsdTier};
use lapis_trace::{Generate, Request, generate};

/// Device bytes by admitted bytes: what is written again, headers and tables of contents are at most a tenth.
const WRITE_AMPLIFICATION_MAX: f64 = 1.10;

fn made(seed: u64) -> Vec<Request> {
    generate(&Generate { seed, requests: 1_200, span_s: 3_537 })
}

fn with_ssd(trace: &[Request], dram: u64, blocks: u64, block_bytes: u64) -> (Outcome, SsdOutcome) {
    let outcome = replay_ssd(trace, PolicyName::Lru, dram, blocks, block_bytes);
    (Outcome { ns_per_block: 0.0, ..outcome }, outcome.ssd.expect("a replay with an SSD tier tells of it"))
}

#[test]
fn devices_write_at_most_a_tenth_more_than_is_admitted() {
    for (seed, block_bytes) in [(1, 64 << 10), (2, 1 << 20), (3, 80 << 10)] {
        let trace = made(seed);
        for (dram, blocks) in [(400, 2_000), (1_500, 6_000), (1_500, 100_000)] {
            let (_, ssd) = with_ssd(&trace, dram, blocks, block_bytes);
            let case = format!("seed {seed}, {dram} and {blocks} blocks of {block_bytes} B: {ssd:?}");
            assert!(ssd.write_amplification <= WRITE_AMPLIFICATION_MAX, "{case}");
            assert!(ssd.device_bytes >= ssd.admitted_bytes + ssd.readmitted_bytes, "{case}");
            assert!(ssd.admitted_bytes > 0 && ssd.write_amplification > 1.0, "{case}");
        }
    }
}

#[test]
fn an_ssd_tier_adds_hits() {
    for seed in [4, 5] {
        let trace = made(seed);
        for dram in [400, 1_500] {
            let without = replay(&trace, PolicyName::Lru, dram);
            let mut before = without.hit_blocks;
            for blocks in [1_000, 4_000, 16_000] {
                let (with, _) = with_ssd(&trace, dram, blocks, 64 << 10);
                assert!(
                    with.hit_blocks >= before,
                    "seed {seed}, {dram} and {blocks} blocks: {with:?}, {before} with less"
                );
                before = with.hit_blocks;
            }
            assert!(before > without.hit_blocks, "seed {seed}, {dram} blocks");
        }
    }
}

#[test]
fn the_same_replay_gives_the_same_figures() {
    let trace = made(6);
    let once = with_ssd(&trace, 500, 3_000, 64 << 10);
    assert_eq!(once, with_ssd(&trace, 500, 3_000, 64 << 10));
}

#[test]
fn what_fits_the_ssd_is_hit_ever_after_if_it_is_full() {
    let trace = made(7);
    let longest = trace.iter().map(|request| request.ids.len()).max().expect("some requests");
    let tier = SsdTier { blocks: 100_000, block_bytes: 64 << 10 };
    let mut core = Replay::with_ssd(2 * longest as u32, tier, Lru::default());
    for request in &trace {
        core.request(&request.ids, request.input_length);
    }
    for (at, request) in trace.iter().enumerate() {
        let hit = core.request(&request.ids, request.input_length);
        assert!(hit >= request.full_ids().len() as u64, "request {at}: {hit} of {} full", request.full_ids().len());
    }
    core.core().audit().expect("a sound core");
    assert_eq!(core.counts().readmitted_bytes, 0, "no segment was given up");
}

#[test]
fn a_block_that_is_not_full_is_never_written() {
    let tier = SsdTier { blocks: 1_000, block_bytes: 64 << 10 };
    let mut core = Replay::with_ssd(4, tier, Lru::default());
    for session in 0..200 {
        core.request(&[2 * session, 2 * session + 1], 512 + 100);
    }
    let counts = core.core().counts();
    assert!(counts.ssd_blocks > 100, "the full ones are there: {counts:?}");
    assert_eq!(counts.ssd_record_bytes, counts.ssd_blocks * (64 << 10), "and nothing else: {counts:?}");
}
