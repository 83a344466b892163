//! Bugs are planted in core, log and daemon, one at a time: the simulator finds each. `LAPIS_BUG=OldestWins` plants that
//! one alone; `LAPIS_PLANTED_SEEDS=100000` looks longer.

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use lapis_config::planted::{self, Bug};
use lapis_tests::sim::{self, Plan};

const SEEDS_MAX: u64 = 10_000;
const THREADS: usize = 2;

/// How many seeds it takes, and what the first failing one says.
fn seeds_until_found(most: u64) -> Option<(u64, String)> {
    let (next, found) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        let mut first = None;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= most.min(found.load(Ordering::Relaxed)) {
                return first;
            }
            if let Err(wrong) = sim::run(Plan::of(seed)) {
                found.fetch_min(seed, Ordering::Relaxed);
                first.get_or_insert((seed, wrong.lines().last().unwrap_or("").to_owned()));
            }
        }
    };
    let firsts: Vec<Option<(u64, String)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("panics of a run are caught")).collect()
    });
    firsts.into_iter().flatten().min()
}

#[test]
fn every_planted_bug_is_found() {
    // What a planted bug makes the daemon say is not read; what this thread says is.
    let hook = std::panic::take_hook();
    let own = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == own {
            hook(info);
        }
    }));
    let most = env::var("LAPIS_PLANTED_SEEDS").ok().map_or(SEEDS_MAX, |text| text.parse().expect("a number of seeds"));
    let only = env::var("LAPIS_BUG").ok();
    let mut missed = Vec::new();
    for bug in Bug::ALL.into_iter().filter(|bug| only.as_ref().is_none_or(|only| *only == format!("{bug:?}"))) {
        planted::plant(Some(bug));
        let started = Instant::now();
        match seeds_until_found(most) {
            Some((seed, wrong)) => {
                planted::plant(None);
                if let Err(own) = sim::run(Plan::of(seed)) {
                    panic!("seed {seed} fails without a planted bug: {}", own.lines().last().unwrap_or(""));
                }
                let (name, wrong) = (format!("{bug:?}"), wrong.chars().take(140).collect::<String>());
                println!("{name:<24} {:>5} seeds, {:>5.1} s: {wrong}", seed + 1, started.elapsed().as_secs_f64());
            }
            None => {
                println!("{bug:?}: not found in {most} seeds");
                missed.push(bug);
            }
        }
    }
    planted::plant(None);
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
