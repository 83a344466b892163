//! A few hundred seeds of the simulated host. A failing one is printed with the line that runs it again:
//! `LAPIS_SEED=123 cargo test -p lapis-tests --test simulation one_seed`. More: `LAPIS_SIM_SEEDS=3000` and, to begin
//! elsewhere than at 0, `LAPIS_SIM_FIRST=123`; `LAPIS_SIM_GO_ON=1` goes on after failures and names each;
//! `LAPIS_SIM_PRINT=1` prints everything that happens. A failing seed is shrunk: the line to run again then says in
//! `LAPIS_SIM_SHRUNK` which knobs of its plan are turned, and how.

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use lapis_tests::sim::{self, Outcome, Plan};

const SEEDS: u64 = 300;
const THREADS: u64 = 2;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn run(seed: u64) -> Outcome {
    sim::run(Plan::of(seed)).unwrap_or_else(|wrong| fails(seed, wrong))
}

/// Prints the smallest plan that fails too, and the line that runs it.
fn fails(seed: u64, wrong: String) -> ! {
    eprintln!("seed {seed} fails, shrinking: {}", last_line(&wrong));
    let (plan, wrong) = sim::shrink(&Plan::of(seed), wrong);
    panic!(
        "{wrong}\nseed {seed}: LAPIS_SEED={seed} LAPIS_SIM_SHRUNK='{}' cargo test -p lapis-tests --test simulation one_seed",
        sim::difference(&plan)
    );
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or("")
}

/// The seeds of all threads, each taken once, until one fails; with `LAPIS_SIM_GO_ON` all, and each failure is a line.
fn run_all(first: u64, seeds: u64) -> Vec<Outcome> {
    let goes_on = env::var_os("LAPIS_SIM_GO_ON").is_some();
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        let mut outcomes = Vec::new();
        while goes_on || failed.load(Ordering::Relaxed) == u64::MAX {
            let seed = first.wrapping_add(next.fetch_add(1, Ordering::Relaxed));
            if seed.wrapping_sub(first) >= seeds {
                break;
            }
            match sim::run(Plan::of(seed)) {
                Ok(outcome) => outcomes.push(outcome),
                Err(wrong) => {
                    eprintln!("seed {seed}: {}", last_line(&wrong));
                    failed.fetch_min(seed, Ordering::Relaxed);
                }
            }
        }
        outcomes
    };
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("panics of a run are caught")).collect()
    });
    let seed = failed.into_inner();
    if seed != u64::MAX {
        run(seed);
    }
    outcomes
}

#[test]
fn no_seed_shows_a_wrong_byte_a_leak_or_a_hang() {
    let (first, seeds) = (number("LAPIS_SIM_FIRST").unwrap_or(0), number("LAPIS_SIM_SEEDS").unwrap_or(SEEDS));
    let started = Instant::now();
    let outcomes = run_all(first, seeds);
    println!("{:.0} seeds a second", seeds as f64 / started.elapsed().as_secs_f64());
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    println!(
        "{seeds} seeds from {first}: {} turns, {} s of virtual time, {} hits ({} owed), {} misses, {} views, {} stored, {} evicted, \
         {} kills, {} colds, {} crashes, {} forks, {} expelled, {} blocks judged where they lie; SSD: {} demoted, {} promoted, \
         {} segments retired, {} bytes written anew, {} power cuts, {} owed and found after kills, {} found, {} corrupt; \
         hosts: {} blocks fetched, {} not, {} read here, {} of them stale, {} links failed, {} drains, {} blocks moved by them, \
         {} blocks looked up there, {} here",
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
        sum(|o| o.tally.demotions),
        sum(|o| o.tally.promotions),
        sum(|o| o.tally.segments_retired),
        sum(|o| o.tally.readmitted_bytes),
        sum(|o| o.tally.power_cuts),
        sum(|o| o.tally.recovered),
        sum(|o| o.tally.ssd_found),
        sum(|o| o.tally.corrupt),
        sum(|o| o.tally.fetched),
        sum(|o| o.tally.fetch_faults),
        sum(|o| o.tally.lent_read),
        sum(|o| o.tally.lent_stale),
        sum(|o| o.tally.cuts),
        sum(|o| o.tally.drains),
        sum(|o| o.tally.drained),
        sum(|o| o.tally.looked),
        sum(|o| o.tally.lent_looked),
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
            ("power cuts", sum(|o| o.tally.power_cuts)),
            ("demotions", sum(|o| o.tally.demotions)),
            ("promotions", sum(|o| o.tally.promotions)),
            ("segments retired", sum(|o| o.tally.segments_retired)),
            ("blocks that a restart owes", sum(|o| o.tally.recovered)),
            ("blocks that do not fit their sums", sum(|o| o.tally.corrupt)),
            ("blocks fetched from other hosts", sum(|o| o.tally.fetched)),
            ("blocks that did not come from there", sum(|o| o.tally.fetch_faults)),
            ("blocks that other hosts read", sum(|o| o.tally.lent_read)),
            ("stale reads of other hosts", sum(|o| o.tally.lent_stale)),
            ("blocks that are looked up in others' tables", sum(|o| o.tally.looked)),
            ("blocks that others look up", sum(|o| o.tally.lent_looked)),
            ("links that fail", sum(|o| o.tally.cuts)),
            ("blocks that a drain moves", sum(|o| o.tally.drained)),
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

/// Each showed a bug once; `docs/track-record.md` says which.
#[test]
fn seeds_that_showed_bugs_show_none() {
    let recent = [1_795_656_927, 1_795_706_320, 1_795_750_915, 1_795_760_364, 1_795_811_102, 1_798_069_843];
    let older = [85_115, 85_433, 1_795_649_167_733_157, 1_795_679_769_265_040, 1_795_695_562_293_871];
    for seed in older.into_iter().chain(recent) {
        // There were no other hosts then.
        sim::run(Plan::of(seed).alone()).unwrap_or_else(|wrong| fails(seed, wrong));
    }
    let among_others = [1_795_730_860_190_219];
    for seed in among_others {
        sim::run(Plan::of(seed)).unwrap_or_else(|wrong| fails(seed, wrong));
    }
}

#[test]
fn one_seed() {
    let Some(seed) = number("LAPIS_SEED") else { return };
    let difference = env::var("LAPIS_SIM_SHRUNK").ok();
    let plan = sim::turned(seed, difference.as_deref().unwrap_or("")).unwrap_or_else(|wrong| panic!("{wrong}"));
    match sim::run(plan.clone()) {
        Ok(outcome) => println!("{plan:#?}\n{outcome:#?}"),
        Err(wrong) if difference.is_some() => panic!("{wrong}"),
        Err(wrong) => fails(seed, wrong),
    }
}
