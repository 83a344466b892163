//! Puts at full speed while memory is full, and meanwhile hits in memory: what a hit pays for demotion behind it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lapis_client::{GetOptions, Pool, PutOptions};
use lapis_config::Key;

use super::{
    super::{
        Plan,
        report::{Figure, Report, rounded},
    },
    DEPTH, Ground, Rounds, WRITE_GOAL, at_least,
    raw::{Raw, Took},
    tier::{self, BATCH, PATIENCE, Tier},
    writes,
};
use crate::samples::Samples;

const LOG_BYTES: u64 = 3 << 30;
const HOT_BYTES: usize = 64 << 10;
const PUT_BYTES: usize = 1 << 20;
/// Gets of one turn without puts, and the time between two.
const HITS: usize = 2_000;
const BETWEEN_HITS: Duration = Duration::from_micros(200);

pub fn run(plan: &Plan, ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    let other = ground.file(".raw", writes::TURN_BYTES + (4 << 20))?;
    let mut raw = Raw::new(other.path(), DEPTH)?;
    let log = ground.file(".log", LOG_BYTES)?;
    let tier = Tier::start(plan, log.path(), LOG_BYTES)?;
    let (hot, pool) = (tier.pool(HOT_BYTES, 1)?, tier.pool(PUT_BYTES, 1)?);
    let mut next = 0;
    writes::puts(&tier, &pool, PUT_BYTES, 2 * tier::DRAM_BYTES, &mut next)?;
    let keys = tier::keys(HOT_BYTES as u64, 0);
    let options = PutOptions { deadline: Some(PATIENCE) };
    ensure!(tier.put(&hot, &keys, tier::noise(HOT_BYTES)?.run(0, BATCH), &options)? == BATCH, "hot blocks are stored");
    let (mut rounds, mut still, mut loaded) = (Rounds::default(), Samples::default(), Samples::default());
    for _ in 0..if plan.quick { 2 } else { 5 } {
        plan.stop.check()?;
        tier.rests()?;
        hits(&tier, &hot, &keys, &mut still, |count| count == HITS)?;
        let over = AtomicBool::new(false);
        let [before, sums_before] = tier.cpu()?;
        let wall = thread::scope(|scope| {
            let puts = scope.spawn(|| {
                let started = Instant::now();
                let put = writes::puts(&tier, &pool, PUT_BYTES, writes::TURN_BYTES, &mut next);
                over.store(true, Ordering::Relaxed);
                put.map(|()| started.elapsed())
            });
            hits(&tier, &hot, &keys, &mut loaded, |_| over.load(Ordering::Relaxed))?;
            puts.join().expect("puts do not panic")
        })?;
        tier.rests()?;
        let [after, sums_after] = tier.cpu()?;
        let ours = Took { bytes: writes::TURN_BYTES, wall, cpu: after - before };
        rounds.push(&ours, &writes::write_raw(&mut raw, PUT_BYTES)?, Some(sums_after - sums_before));
    }
    let mut figure = rounds.figure("demotion", "puts", PUT_BYTES);
    at_least(&mut figure, WRITE_GOAL, "raw");
    report.add(&figure)?;
    let without = still.median();
    for (case, mut times) in [("hits without puts", still), ("hits meanwhile", loaded)] {
        let ratio = rounded(times.median() / without);
        let mut figure = Figure::times("demotion", "us", &mut times);
        (figure.case, figure.block_bytes) = (Some(case), Some(HOT_BYTES as u64));
        (figure.limit, figure.limit_is) = (Some(rounded(without)), Some("without puts"));
        (figure.ratio, figure.ratio_min, figure.ratio_max) = (Some(ratio), Some(ratio), Some(ratio));
        report.add(&figure)?;
    }
    Ok(())
}

/// Single hits in memory until `over`, in microseconds.
fn hits(
    tier: &Tier,
    pool: &Pool,
    keys: &[Key],
    times: &mut Samples,
    over: impl Fn(usize) -> bool,
) -> anyhow::Result<()> {
    let (mut block, mut count, mut misses) = (vec![0; HOT_BYTES], 0, 0);
    let options = GetOptions { deadline: Some(Duration::from_millis(200)), ..GetOptions::default() };
    while !over(count) {
        let key = &keys[count % keys.len()];
        let started = Instant::now();
        let got = tier.client.get_into(pool, std::slice::from_ref(key), &mut block[..], &options).context("get")?;
        let took = started.elapsed();
        match got.hits {
            1 => times.push(took.as_secs_f64() * 1e6),
            _ => misses += 1,
        }
        count += 1;
        // An engine computes between two gets: a bare loop would keep a processor from the puts.
        thread::sleep(BETWEEN_HITS);
    }
    ensure!(misses * 100 <= count, "{misses} of {count} hot blocks were not there");
    Ok(())
}
