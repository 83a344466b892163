//! `lapis replay --daemon`: a daemon keeps of a trace what the core alone keeps, and every byte of it is right.

use std::{fmt::Write, fs, process::Command};

use serde_json::Value;

use super::{alone, binary};

/// The least that a daemon can have.
const CAPACITY: u64 = 4096;
const SESSIONS: u64 = 24;
const TURNS: u64 = 6;
/// Blocks that every session begins with, and what it grows by with each turn.
const PROMPT_BLOCKS: u64 = 16;
const TURN_BLOCKS: u64 = 12;
/// Between two turns of a session: more is read once meanwhile than there is memory for.
const GAP_MS: u64 = 12_000;
const SESSION_EVERY_MS: u64 = 600;
const DOCUMENT_BLOCKS: u64 = 60;
const DOCUMENT_EVERY_MS: u64 = 150;
/// Over in eight seconds, and turns of a session are more than 0.8 s apart, which is hazq's youngest class of ages.
const SPEED: &str = "10";

/// Requests as (time, ids of blocks), in order of time.
fn requests() -> Vec<(u64, Vec<u64>)> {
    let mut random = fastrand::Rng::with_seed(1);
    let (mut requests, mut next_id) = (Vec::new(), PROMPT_BLOCKS);
    let mut fresh = |count: u64| {
        next_id += count;
        next_id - count..next_id
    };
    for session in 0..SESSIONS {
        let (mut at_ms, mut ids) = (session * SESSION_EVERY_MS, (0..PROMPT_BLOCKS).collect::<Vec<_>>());
        for _ in 0..TURNS {
            ids.extend(fresh(TURN_BLOCKS));
            requests.push((at_ms, ids.clone()));
            at_ms += GAP_MS + random.u64(0..GAP_MS / 8);
        }
    }
    let end_ms = requests.iter().map(|(at_ms, _)| *at_ms).max().expect("there are sessions");
    for at_ms in (0..end_ms).step_by(DOCUMENT_EVERY_MS as usize) {
        requests.push((at_ms, fresh(DOCUMENT_BLOCKS).collect()));
    }
    requests.sort_by_key(|(at_ms, _)| *at_ms);
    requests
}

/// In the form of published traces.
fn trace() -> String {
    let mut text = String::new();
    for (at_ms, ids) in requests() {
        let tokens = 512 * ids.len();
        writeln!(
            text,
            "{{\"timestamp\":{at_ms},\"input_length\":{tokens},\"output_length\":100,\"hash_ids\":{ids:?}}}"
        )
        .expect("in memory");
    }
    text
}

#[test]
fn a_daemon_hits_what_the_core_alone_hits_at_the_same_times() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sessions.jsonl");
    fs::write(&file, trace()).expect("our file");
    let mut command = Command::new(binary::lapis());
    command.arg("replay").arg(&file).args(["--policy", "hazq", "--daemon", "--speed", SPEED, "--json"]);
    command.args(["--capacity", &CAPACITY.to_string()]);
    let (code, said, errors) = binary::run(&mut command);
    // A wrong byte is an error.
    assert_eq!(code, Some(0), "{errors}");
    let row: Value = serde_json::from_str(&said).expect("one line for one capacity");
    println!("{row}");
    let at = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("no number {name}: {row}"));
    assert_eq!((at("daemon_refused"), at("daemon_lost")), (0.0, 0.0), "{row}");
    // Least recently used first, all turns would be gone, and with them half of the core's hits at least.
    let prompts = (PROMPT_BLOCKS * SESSIONS * TURNS) as f64;
    assert!(at("evictions") > CAPACITY as f64 / 4.0 && at("hit_blocks") > 2.0 * prompts, "it has to choose: {row}");
    // How busy the machine is moves both: by 3 % beside other runs on all cores.
    assert!((0.8..1.25).contains(&at("daemon_by_core")), "{row}");
}
