//! A few hundred seeds of the simulated host. A failing one is printed with the line that runs it again:
//! `LAPIS_SEED=123 cargo test -p lapis-tests --test simulation one_seed`. More: `LAPIS_SIM_SEEDS=3000` and, to begin
//! elsewhere than at 0, `LAPIS_SIM_FIRST=123`; `LAPIS_SIM_PRINT=1` prints everything that happens.

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
};

use lapis_tests::sim::{self, Outcome, Plan};

const SEEDS: u64 = 400;
const THREADS: u64 = 2;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn run(seed: u64) -> Outcome {
    sim::run(Plan::of(seed)).unwrap_or_else(|wrong| {
        panic!("{wrong}\nseed {seed}: LAPIS_SEED={seed} cargo test -p lapis-tests --test simulation one_seed");
    })
}

/// The seeds of all threads, each taken once.
fn run_all(first: u64, seeds: u64) -> Vec<Outcome> {
    let next = AtomicU64::new(0);
    let work = || {
        let mine = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < seeds));
        mine.map(|n| run(first.wrapping_add(n))).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("the seed above failed")).collect()
    })
}

#[test]
fn no_seed_shows_a_wrong_byte_a_leak_or_a_hang() {
    let (first, seeds) = (number("LAPIS_SIM_FIRST").unwrap_or(0), number("LAPIS_SIM_SEEDS").unwrap_or(SEEDS));
    let outcomes = run_all(first, seeds);
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    println!(
        "{seeds} seeds from {first}: {} turns, {} s of virtual time, {} hits ({} owed), {} misses, {} views, {} stored, {} evicted, \
         {} kills, {} colds, {} crashes, {} forks, {} expelled, {} blocks judged where they lie",
        sum(|o| o.turns),
        sum(|o| o.virtual_us) / 1_000_000,
        sum(|o| o.tally.hits),
        sum(|o| o.tally.owed),
        sum(|o| o.tally.misses),
        sum(|o| o.tally.views),
        sum(|o| o.tally.stored),
        sum(|o| o.tally.evictions),
        sum(|o| o.tally.kills),
        sum(|o| o.tally.colds),
        sum(|o| o.tally.crashes),
        sum(|o| o.tally.forks),
        sum(|o| o.tally.expelled),
        sum(|o| o.tally.blocks_judged),
    );
    // A world in which nothing happens proves nothing.
    if seeds >= 100 {
        for (what, count) in [
            ("hits", sum(|o| o.tally.hits)),
            ("hits that are owed", sum(|o| o.tally.owed)),
            ("views", sum(|o| o.tally.views)),
            ("stored", sum(|o| o.tally.stored)),
            ("evictions", sum(|o| o.tally.evictions)),
            ("kills", sum(|o| o.tally.kills)),
            ("colds", sum(|o| o.tally.colds)),
            ("crashes", sum(|o| o.tally.crashes)),
            ("forks", sum(|o| o.tally.forks)),
        ] {
            assert!(count > 0, "no {what} in {seeds} seeds");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..12 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1).hash, run(2).hash);
}

#[test]
fn one_seed() {
    if let Some(seed) = number("LAPIS_SEED") {
        println!("{:#?}\n{:#?}", Plan::of(seed), run(seed));
    }
}
