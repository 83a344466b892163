//! What a tenant that reads much and never returns costs the others.

use lapis_config::PolicyName;
use lapis_tiering::{Chosen, Replay, replay::ghost_bytes};

const CAPACITY: u32 = 1_000;
/// The block that all sessions begin with.
const ROOT: u64 = 0;
/// Blocks that a turn adds.
const TURN_BLOCKS: u64 = 4;
const SCAN_BLOCKS: u64 = 50;

/// Sessions of one system prompt, one new each second; half of them end with the first turn, the others have three, 40
/// seconds apart. After each second request a scan of other prompts, if there is one: hits of the sessions.
fn hits(scan: bool) -> u64 {
    let mut replay = Replay::new(CAPACITY, Chosen::new(PolicyName::Hazq, ghost_bytes(u64::from(CAPACITY))));
    let mut requests = Vec::new();
    for session in 0..3_000u64 {
        let turns = if session * 7 % 2 == 0 { 1 } else { 3 };
        for turn in 0..turns {
            requests.push((session * 1_000 + turn * 40_000, session, turn));
        }
    }
    requests.sort_unstable();
    let (mut hits, mut scanned) = (0, 1 << 40);
    for (at, (at_ms, session, turn)) in requests.into_iter().enumerate() {
        let own = (1 << 20) + session * 100;
        let ids: Vec<u64> = std::iter::once(ROOT).chain(own..own + (turn + 1) * TURN_BLOCKS).collect();
        hits += replay.request_at(at_ms, &ids, 512 * ids.len() as u64);
        if scan && at % 2 == 0 {
            let ids: Vec<u64> = (scanned..scanned + SCAN_BLOCKS).collect();
            replay.request_at(at_ms, &ids, 512 * SCAN_BLOCKS);
            scanned += SCAN_BLOCKS;
        }
    }
    hits
}

#[test]
fn a_scan_of_other_prompts_costs_sessions_with_a_common_one_little() {
    let (alone, beside) = (hits(false), hits(true));
    assert!(beside * 100 >= alone * 95, "{alone} blocks hit, {beside} beside a scan");
}
