//! GPUs by seed: no wrong byte, no leak, no hang. `LAPIS_GPU_SEEDS=20000` for more seeds, `LAPIS_GPU_SEED=7` for one.

use std::{
    env,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use lapis_tests::gpus::{self, Tally};

const SEEDS: u64 = 2_000;
const THREADS: usize = 2;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn no_wrong_byte_no_leak_and_no_hang_on_gpus() {
    if let Some(seed) = number("LAPIS_GPU_SEED") {
        println!("{:?}", gpus::run(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}")));
        return;
    }
    let (next, all) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    let most = number("LAPIS_GPU_SEEDS").unwrap_or(SEEDS);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= most {
                        return;
                    }
                    let tally = gpus::run(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
                    all.lock().expect("no thread failed").add(&tally);
                }
            });
        }
    });
    let all = all.into_inner().expect("no thread failed");
    println!("{all:?}");
    let Tally {
        reads_on_gpu,
        puts_on_gpu,
        host_hits,
        promotions,
        saved,
        evictions,
        losses,
        kills,
        deaths_mid_copy,
        judged,
        ..
    } = all;
    let counts =
        [reads_on_gpu, puts_on_gpu, host_hits, promotions, saved, evictions, losses, kills, deaths_mid_copy, judged];
    assert!(most < SEEDS || counts.iter().all(|count| *count >= most / 4), "all of it happens: {counts:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(gpus::run(3), gpus::run(3));
    assert_ne!(gpus::run(3), gpus::run(4));
}
