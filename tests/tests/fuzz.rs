//! The fuzz targets where cargo-fuzz is not: over what is kept in `fuzz/corpus`, over what honest encoders make, over
//! the same with a few bytes changed, and over noise. `LAPIS_FUZZ_ROUNDS` says how often; `LAPIS_BLESS=1` writes the
//! honest ones to the corpus.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::{fs, path::PathBuf};

use targets::{TARGETS, Target};

const SEED: u64 = 0x1a_9150;
const ROUNDS: usize = 10_000;

fn corpus(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target.name)
}

/// Changes, cuts or lengthens.
fn damaged(random: &mut fastrand::Rng, whole: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..random.usize(..4) {
        let Some(at) = bytes.len().checked_sub(1).map(|last| random.usize(..=last)) else { break };
        match random.u8(..4) {
            0 => bytes[at] = random.u8(..),
            1 => bytes[at] ^= 1 << random.u8(..8),
            2 => bytes.truncate(at),
            _ => bytes.push(random.u8(..)),
        }
    }
    bytes
}

fn noise(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = vec![0; random.usize(..400)];
    random.fill(&mut bytes);
    bytes
}

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let rounds = std::env::var("LAPIS_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    let mut random = fastrand::Rng::with_seed(SEED);
    let honest = (target.honest)();
    if std::env::var_os("LAPIS_BLESS").is_some() {
        fs::create_dir_all(corpus(target)).expect("a folder");
        for (i, bytes) in honest.iter().enumerate() {
            fs::write(corpus(target).join(format!("honest-{i:02}")), bytes).expect("a file");
        }
    }
    honest.iter().for_each(|bytes| (target.run)(bytes));
    for entry in fs::read_dir(corpus(target)).expect("a kept corpus") {
        (target.run)(&fs::read(entry.expect("an entry").path()).expect("a readable file"));
    }
    for _ in 0..rounds {
        match random.choice(&honest).filter(|_| random.u8(..) < 200) {
            Some(whole) => (target.run)(&damaged(&mut random, whole)),
            None => (target.run)(&noise(&mut random)),
        }
    }
}

#[test]
fn a_damaged_configuration_is_accepted_or_refused_in_lines() {
    run("config");
}

#[test]
fn damaged_frames_are_refused_or_mean_something() {
    run("frame");
}

#[test]
fn damaged_messages_are_refused_or_mean_something() {
    run("hello");
    run("hold");
    run("rdma");
}

#[test]
fn what_other_hosts_say_is_refused_or_means_one_thing() {
    run("peer_message");
    run("peer_stream");
}

#[test]
fn another_hosts_digest_fits_or_is_wanted_anew() {
    run("peer_digest");
}

#[test]
fn whatever_other_hosts_say_each_want_ends_once() {
    run("peer_host");
}

#[test]
fn whatever_etcd_answers_other_hosts_have_names_and_it_goes_on() {
    run("etcd");
}

#[test]
fn a_ring_keeps_its_frames_or_finds_the_fault() {
    run("ring");
}

#[test]
fn damaged_pages_of_the_log_are_refused_or_mean_something() {
    run("superblock");
    run("segment");
    run("contents");
}

#[test]
fn a_damaged_state_is_refused_or_can_be_gone_on_with() {
    run("state");
}

#[test]
fn a_damaged_trace_ends_in_an_error_or_in_order() {
    run("trace");
}

#[test]
fn every_target_has_a_program_and_a_test() {
    let (here, manifest) = (include_str!("fuzz.rs"), include_str!("../../fuzz/Cargo.toml"));
    for target in TARGETS {
        assert!(here.contains(&format!("run(\"{}\")", target.name)), "{}", target.name);
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
}
