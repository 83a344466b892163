//! How soon the daemon is there: `ready`, from exec until a client is connected, cold and over kept memory; `adopt`,
//! from exec after a SIGKILL to the first compared hit of a client that connects anew.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lapis_client::{GetOptions, PutOptions, PutResult};
use lapis_config::Key;

use super::{
    Name, Plan,
    report::{Figure, Goal, Report},
};
use crate::{
    host::{Host, HostOptions},
    limits::PrivateBlocks,
    load,
    pattern::{self, Pattern},
    samples::Pairs,
};

const ARENA_BYTES: u64 = 8 << 30;
const BLOCK_BYTES: u64 = 64 << 10;
/// Blocks that the killed daemon held: half the arena in the full form.
const BLOCKS: u64 = 65_536;
const BLOCKS_QUICK: u64 = 16_384;
const BATCH: usize = 32;
const SEED: u64 = 3;
const READY_MS: f64 = 50.0;
const ADOPT_MS: f64 = 100.0;

/// Runs those of the two that are wanted.
pub fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    if plan.wants(Name::Ready) {
        report.add(&cold(plan)?)?;
    }
    if plan.wants(Name::Ready) || plan.wants(Name::Adopt) {
        let [ready, adopt] = kept(plan)?;
        for figure in [ready, adopt] {
            let name = if figure.bench == "ready" { Name::Ready } else { Name::Adopt };
            if plan.wants(name) {
                report.add(&figure)?;
            }
        }
    }
    Ok(())
}

/// What an exec of this binary costs that does nothing: the least that a start can take.
fn exec() -> anyhow::Result<Duration> {
    let binary = std::env::current_exe().context("find this program's own file")?;
    let started = Instant::now();
    let status = Command::new(binary).arg("--version").stdout(Stdio::null()).status()?;
    ensure!(status.success(), "--version ended with {status}");
    Ok(started.elapsed())
}

fn cold(plan: &Plan) -> anyhow::Result<Figure> {
    let mut pairs = Pairs::default();
    for _ in 0..if plan.quick { 5 } else { 20 } {
        plan.stop.check()?;
        let limit = exec()?;
        let mut options = HostOptions::here(ARENA_BYTES)?;
        options.hold = false;
        let mut host = Host::start(options)?;
        let started = host.started();
        let client = host.connect("bench ready")?;
        pairs.push(milliseconds(started.elapsed()), milliseconds(limit));
        drop((client, host));
    }
    Ok(figure("ready", "cold", pairs, READY_MS))
}

/// `ready` over a kept table, and `adopt`, of the same starts.
fn kept(plan: &Plan) -> anyhow::Result<[Figure; 2]> {
    let blocks = if plan.quick { BLOCKS_QUICK } else { BLOCKS };
    let mut host = Host::start(HostOptions::here(ARENA_BYTES)?)?;
    fill(plan, &mut host, blocks)?;
    let (mut ready, mut adopt) = (Pairs::default(), Pairs::default());
    let mut rng = fastrand::Rng::with_seed(1);
    let mut block = vec![0; BLOCK_BYTES as usize];
    for _ in 0..if plan.quick { 5 } else { 20 } {
        plan.stop.check()?;
        host.kill_daemon()?;
        let limit = milliseconds(exec()?);
        let started = host.start_daemon()?;
        let client = host.connect("bench adopt")?;
        ready.push(milliseconds(started.elapsed()), limit);
        let pool = client.pool(&load::shape("bench", BLOCK_BYTES))?;
        let key = pattern::key(SEED, rng.u64(..blocks));
        let elapsed = host.until("the first hit", |_| {
            let got = client.get_into(&pool, &[key], &mut block, &GetOptions::default())?;
            Ok(got.statuses[0].is_hit().then(|| started.elapsed()))
        })?;
        ensure!(Pattern::of(&key).wrong_bytes(&block) == 0, "the first hit had wrong bytes");
        adopt.push(milliseconds(elapsed), limit);
    }
    Ok([figure("ready", "kept", ready, READY_MS), figure("adopt", "first hit", adopt, ADOPT_MS)])
}

fn fill(plan: &Plan, host: &mut Host, blocks: u64) -> anyhow::Result<()> {
    let client = host.connect("bench fill")?;
    let pool = client.pool(&load::shape("bench", BLOCK_BYTES))?;
    let mut buffer = PrivateBlocks::new(BATCH * BLOCK_BYTES as usize, BLOCK_BYTES as usize)?;
    let options = PutOptions { deadline: Some(Duration::from_secs(30)) };
    for first in (0..blocks).step_by(BATCH) {
        plan.stop.check()?;
        let keys: Vec<Key> = (first..first + BATCH as u64).map(|id| pattern::key(SEED, id)).collect();
        for (key, block) in keys.iter().zip(buffer.run_mut(0, BATCH).chunks_exact_mut(BLOCK_BYTES as usize)) {
            Pattern::of(key).fill(block);
        }
        let put = client.put_from(&pool, &keys, None, buffer.run(0, BATCH), &options)?;
        let stored = put.results.iter().all(|result| *result == PutResult::Stored);
        ensure!(stored, "a put was not stored: {put:?}");
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn figure(bench: &'static str, case: &'static str, pairs: Pairs, goal_ms: f64) -> Figure {
    let mut figure = Figure::latency(bench, pairs);
    figure.unit = "ms";
    figure.case = Some(case);
    figure.arena_bytes = Some(ARENA_BYTES);
    figure.limit_is = Some("exec alone");
    figure.goal = Some(Goal::new(format!("<= {goal_ms} ms"), figure.value <= goal_ms));
    figure
}
