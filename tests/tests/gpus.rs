//! A few hundred seeds of the world of GPUs: no wrong byte, no leak, no hang. A failing one is printed with the line that
//! runs it again: `LAPIS_SEED=123 cargo test -p lapis-tests --test gpus one_seed`. As for the simulated host: more are
//! `LAPIS_SIM_SEEDS=2000` and, to begin elsewhere than at 0, `LAPIS_SIM_FIRST=123`; `LAPIS_SIM_GO_ON=1` goes on after
//! failures and names each.

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use lapis_tests::gpus::{self, Tally};

const SEEDS: u64 = 150;
const THREADS: u64 = 2;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn run(seed: u64) -> Tally {
    gpus::run(seed).unwrap_or_else(|wrong| fails(seed, &wrong))
}

fn fails(seed: u64, wrong: &str) -> ! {
    panic!("{wrong}\nseed {seed}: LAPIS_SEED={seed} cargo test -p lapis-tests --test gpus one_seed");
}

/// What the seeds of all threads, each taken once, came to; until one fails, or with `LAPIS_SIM_GO_ON` all of them.
fn run_all(first: u64, seeds: u64) -> Tally {
    let goes_on = env::var_os("LAPIS_SIM_GO_ON").is_some();
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        let mut tally = Tally::default();
        while goes_on || failed.load(Ordering::Relaxed) == u64::MAX {
            let seed = first.wrapping_add(next.fetch_add(1, Ordering::Relaxed));
            if seed.wrapping_sub(first) >= seeds {
                break;
            }
            match gpus::run(seed) {
                Ok(own) => tally.add(&own),
                Err(wrong) => {
                    eprintln!("seed {seed}: {wrong}");
                    failed.fetch_min(seed, Ordering::Relaxed);
                }
            }
        }
        tally
    };
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().for_each(|thread| all.add(&thread.join().expect("panics of a run are caught")));
    });
    let seed = failed.into_inner();
    if seed != u64::MAX {
        run(seed);
    }
    all
}

#[test]
fn no_seed_shows_a_wrong_byte_a_leak_or_a_hang_on_gpus() {
    let (first, seeds) = (number("LAPIS_SIM_FIRST").unwrap_or(0), number("LAPIS_SIM_SEEDS").unwrap_or(SEEDS));
    let started = Instant::now();
    let all = run_all(first, seeds);
    println!("{:.0} seeds a second", seeds as f64 / started.elapsed().as_secs_f64());
    println!("{seeds} seeds from {first}: {all:?}");
    // A world in which nothing happens proves nothing.
    if seeds >= 100 {
        for (what, count) in all.named() {
            assert!(count >= seeds / 4, "{count} {what} in {seeds} seeds");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..6 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(3).hash, run(4).hash);
}

#[test]
fn one_seed() {
    let Some(seed) = number("LAPIS_SEED") else { return };
    println!("{:#?}", run(seed));
}
