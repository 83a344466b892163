//! What finding a block costs: `exists`, `match_prefix`, `view`, in a table of a million lines that is full, beside
//! random lines of the same mapping; and `index_bytes`, what the index takes for each block.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lapis_client::{Client, Pool, PutOptions, PutResult};
use lapis_config::{BATCH_KEYS_MAX, HitPolicy, Key};

use super::{
    Name, Plan,
    report::{Figure, Goal, Report},
};
use crate::{
    host::{Host, HostOptions},
    limits::{self, PrivateBlocks, TableLines},
    load, pattern,
    samples::{Pairs, Samples},
};

/// Entries that make 2^20 lines at the table's load of 0.8.
const ENTRIES: u64 = (1 << 20) * 4 / 5;
/// Blocks put: the table is as full as it gets, short of what is evicted for want of an entry.
const BLOCKS: u64 = ENTRIES - 1024;
/// The smallest blocks there are: only their number counts here.
const BLOCK_BYTES: u64 = 4096;
/// Room for the blocks and for what clients hold in advance.
const ARENA_BYTES: u64 = BLOCKS * BLOCK_BYTES * 9 / 8 / (2 << 20) * (2 << 20);
/// Blocks of a chain, and of a put: a request of 32,768 tokens.
const CHAIN: usize = 64;
const SEED: u64 = 2;
/// Single calls of one round; the round counts by its median.
const CALLS: usize = 101;
/// Blocks of a batch of views.
const VIEWS: usize = 32;

/// Runs those of the benches that are wanted, over one daemon.
pub fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let names = [Name::Exists, Name::MatchPrefix, Name::View, Name::IndexBytes];
    if !names.into_iter().any(|name| plan.wants(name)) {
        return Ok(());
    }
    let mut options = HostOptions::here(ARENA_BYTES)?;
    options.hold = false;
    options.flags = vec!["--index-entries-max".into(), ENTRIES.to_string()];
    let mut host = Host::start(options)?;
    let client = host.connect("bench look-ups")?;
    let pool = client.pool(&load::shape("bench", BLOCK_BYTES))?;
    let heap_before = daemon_heap_bytes(&host)?;
    fill(plan, &client, &pool)?;
    // SAFETY: `table` is used no longer than `client`, which maps it.
    let table = unsafe { TableLines::of_this_process(|name| name.contains(".table")) }.context("find the table")?;
    ensure!(table.lines() >= 1 << 20, "a table of {} lines", table.lines());
    let mut lookups = Lookups { plan, client: &client, pool, table, rng: fastrand::Rng::with_seed(1) };
    if plan.wants(Name::Exists) {
        report.add(&lookups.exists(true)?)?;
        report.add(&lookups.exists(false)?)?;
    }
    if plan.wants(Name::MatchPrefix) {
        for keys in [256, 1024, 8192] {
            report.add(&lookups.match_prefix(keys, keys)?)?;
        }
        report.add(&lookups.match_prefix(8192, 4096)?)?;
    }
    if plan.wants(Name::View) {
        report.add(&lookups.view(1)?)?;
        report.add(&lookups.view(VIEWS)?)?;
    }
    if plan.wants(Name::IndexBytes) {
        let there = lookups.count()?;
        report.add(&index_bytes(&host, there, daemon_heap_bytes(&host)?.saturating_sub(heap_before))?)?;
    }
    Ok(())
}

fn fill(plan: &Plan, client: &Client, pool: &Pool) -> anyhow::Result<()> {
    let blocks = PrivateBlocks::new(CHAIN * BLOCK_BYTES as usize, BLOCK_BYTES as usize)?;
    let options = PutOptions { deadline: Some(Duration::from_secs(30)) };
    for first in (0..BLOCKS).step_by(CHAIN) {
        plan.stop.check()?;
        let keys: Vec<Key> = (first..BLOCKS.min(first + CHAIN as u64)).map(|id| pattern::key(SEED, id)).collect();
        let put = client.put_from(pool, &keys, None, blocks.run(0, keys.len()), &options)?;
        let stored = put.results.iter().filter(|result| **result == PutResult::Stored).count();
        ensure!(stored == keys.len(), "{stored} of {} blocks were stored", keys.len());
    }
    Ok(())
}

struct Lookups<'a> {
    plan: &'a Plan,
    client: &'a Client,
    pool: Pool,
    table: TableLines,
    rng: fastrand::Rng,
}

impl Lookups<'_> {
    fn rounds(&self) -> usize {
        if self.plan.quick { 200 } else { 2000 }
    }

    /// Keys that were put, or that never were.
    fn keys(&mut self, count: usize, there: bool) -> Vec<Key> {
        let apart = if there { 0 } else { 1 << 40 };
        (0..count).map(|_| pattern::key(SEED, apart + self.rng.u64(..BLOCKS))).collect()
    }

    fn lines(&mut self, count: usize) -> Vec<u32> {
        let lines = self.table.lines() as u32;
        (0..count).map(|_| self.rng.u32(..lines)).collect()
    }

    /// How many of all blocks are there.
    fn count(&self) -> anyhow::Result<u64> {
        let mut count = 0;
        for first in (0..BLOCKS).step_by(BATCH_KEYS_MAX) {
            let ids = first..BLOCKS.min(first + BATCH_KEYS_MAX as u64);
            let keys: Vec<Key> = ids.map(|id| pattern::key(SEED, id)).collect();
            count += self.client.exists(&self.pool, &keys)?.count() as u64;
        }
        Ok(count)
    }

    /// Single calls beside single loads. `ours` of a round is the median of its calls.
    fn single(
        &mut self,
        there: bool,
        mut call: impl FnMut(&Self, &Key) -> anyhow::Result<()>,
    ) -> anyhow::Result<Singles> {
        let clock = limits::clock_cost();
        let us = |time: Duration| time.saturating_sub(clock).as_secs_f64() * 1e6;
        let mut singles = Singles::default();
        for _ in 0..self.rounds() {
            self.plan.stop.check()?;
            let (keys, lines) = (self.keys(CALLS, there), self.lines(CALLS));
            let (mut ours, mut limit) = (Samples::default(), Samples::default());
            for (key, line) in keys.iter().zip(lines) {
                let started = Instant::now();
                call(self, key)?;
                let time = us(started.elapsed());
                ours.push(time);
                singles.calls.push(time);
                let started = Instant::now();
                std::hint::black_box(self.table.read(&[line]));
                limit.push(us(started.elapsed()));
            }
            singles.pairs.push(ours.median(), limit.median().max(1e-3));
        }
        Ok(singles)
    }

    fn exists(&mut self, there: bool) -> anyhow::Result<Figure> {
        let pool = self.pool.clone();
        let mut found = 0;
        let singles = self.single(there, |lookups, key| {
            found += lookups.client.exists(&pool, std::slice::from_ref(key))?.count();
            Ok(())
        })?;
        let calls = singles.calls.len();
        // A few blocks may have been evicted for want of a line in their windows.
        ensure!(if there { found * 100 >= calls * 99 } else { found == 0 }, "{found} of {calls} keys found");
        let mut figure = singles.figure("exists");
        figure.case = Some(if there { "present" } else { "absent" });
        figure.keys = Some(1);
        figure.lines = Some(self.table.lines() as u64);
        figure.goal = Some(Goal::new("<= 1 us", figure.value <= 1.0));
        Ok(figure)
    }

    /// `keys` keys of which the first `there` are present.
    fn match_prefix(&mut self, keys: usize, there: usize) -> anyhow::Result<Figure> {
        let mut pairs = Pairs::default();
        let pools = [(self.pool.clone(), HitPolicy::Prefix)];
        for round in 0..self.rounds() {
            self.plan.stop.check()?;
            let mut asked = self.present_keys(there)?;
            asked.extend(self.keys(keys - there, false));
            let lines = self.lines(keys);
            let (mut ours, mut limit) = (Duration::ZERO, Duration::ZERO);
            for turn in 0..2 {
                let started = Instant::now();
                if (round + turn) % 2 == 0 {
                    let matched = self.client.match_prefix(&pools, &asked)?;
                    ours = started.elapsed();
                    ensure!(matched == there, "{matched} of {there} keys matched");
                } else {
                    std::hint::black_box(self.table.read(&lines));
                    limit = started.elapsed();
                }
            }
            pairs.push(ours.as_secs_f64() * 1e6, limit.as_secs_f64() * 1e6);
        }
        let [ratio, ..] = pairs.ratio();
        let mut figure = Figure::latency("match_prefix", pairs);
        figure.case = (there < keys).then_some("half present");
        figure.keys = Some(keys as u64);
        figure.lines = Some(self.table.lines() as u64);
        figure.limit_is = Some("random lines");
        if keys == BATCH_KEYS_MAX && there == keys {
            let met = figure.value <= 800.0 && ratio <= 4.0;
            figure.goal = Some(Goal::new("<= 800 us and <= 4 x limit", met));
        }
        Ok(figure)
    }

    /// Random keys that are there: the few that were evicted are passed over.
    fn present_keys(&mut self, count: usize) -> anyhow::Result<Vec<Key>> {
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let keys = self.keys(count - found.len(), true);
            let present = self.client.exists(&self.pool, &keys)?;
            found.extend(keys.iter().enumerate().filter(|(i, _)| present.get(*i)).map(|(_, key)| *key));
        }
        // What was just looked up is in the caches: go elsewhere first.
        let lines = self.lines(2 * BATCH_KEYS_MAX);
        std::hint::black_box(self.table.read(&lines));
        Ok(found)
    }

    /// Views of `batch` blocks, given and released, per block.
    fn view(&mut self, batch: usize) -> anyhow::Result<Figure> {
        let clock = limits::clock_cost();
        let pool = self.pool.clone();
        let mut singles = Singles::default();
        for _ in 0..self.rounds() {
            self.plan.stop.check()?;
            let (mut ours, mut limit) = (Samples::default(), Samples::default());
            for _ in 0..CALLS / 4 {
                let (keys, lines) = (self.keys(batch, true), self.lines(batch));
                let per_block = |time: Duration| time.saturating_sub(clock).as_secs_f64() * 1e6 / batch as f64;
                let started = Instant::now();
                drop(std::hint::black_box(self.client.view(&pool, &keys)?));
                let time = per_block(started.elapsed());
                ours.push(time);
                singles.calls.push(time);
                let started = Instant::now();
                std::hint::black_box(self.table.read(&lines));
                limit.push(per_block(started.elapsed()));
            }
            singles.pairs.push(ours.median(), limit.median().max(1e-3));
        }
        let mut figure = singles.figure("view");
        figure.batch = Some(batch as u64);
        figure.case = Some("a block");
        figure.limit_is = Some(if batch == 1 { "random line" } else { "random lines" });
        figure.lines = Some(self.table.lines() as u64);
        figure.goal = Some(Goal::new("<= 1 us a block", figure.value <= 1.0));
        Ok(figure)
    }
}

/// Single calls: all of them for the percentiles, medians of rounds for the ratio.
#[derive(Default)]
struct Singles {
    calls: Samples,
    pairs: Pairs,
}

impl Singles {
    fn figure(mut self, bench: &'static str) -> Figure {
        let times = Figure::times(bench, "us", &mut self.calls);
        let mut figure = Figure::latency(bench, self.pairs);
        (figure.value, figure.p50, figure.p99) = (times.value, times.p50, times.p99);
        figure.limit_is = Some("random line");
        figure
    }
}

/// Memory of table, entries and slot states that is there, and what the daemon's heap grew by, for each block.
fn index_bytes(host: &Host, blocks: u64, heap_bytes: u64) -> anyhow::Result<Figure> {
    let shared = daemon_memfd_bytes(host, &[".table", ".entries", ".slots", ".state"])?;
    let mut figure = Figure::new("index_bytes", "B");
    figure.value = (((shared + heap_bytes) as f64 / blocks as f64) * 10.0).round() / 10.0;
    figure.keys = Some(blocks);
    figure.rounds = 1;
    figure.goal = Some(Goal::new("<= 144 B a block", figure.value <= 144.0));
    Ok(figure)
}

fn daemon_folder(host: &Host) -> anyhow::Result<String> {
    Ok(format!("/proc/{}", host.daemon_pid().context("the daemon runs")?))
}

/// Bytes in use of the daemon's memfds whose names end like these, each memfd once.
fn daemon_memfd_bytes(host: &Host, endings: &[&str]) -> anyhow::Result<u64> {
    let mut found = std::collections::HashMap::new();
    for entry in fs::read_dir(format!("{}/fd", daemon_folder(host)?))? {
        let path = entry?.path();
        let (Ok(target), Ok(metadata)) = (fs::read_link(&path), fs::metadata(&path)) else { continue };
        let name = target.to_string_lossy().trim_end_matches(" (deleted)").to_string();
        if name.starts_with("/memfd:") && endings.iter().any(|ending| name.ends_with(ending)) {
            found.insert((metadata.dev(), metadata.ino()), metadata.blocks() * 512);
        }
    }
    ensure!(!found.is_empty(), "the daemon has no memfd of its index");
    Ok(found.values().sum())
}

/// Anonymous memory of the daemon.
fn daemon_heap_bytes(host: &Host) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("{}/status", daemon_folder(host)?))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or_else(|| io::Error::other("no RssAnon"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib << 10)
}
