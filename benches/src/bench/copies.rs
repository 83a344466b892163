//! How fast bytes go out of the arena and into it: `get_into`, `put_from`, `get_one`, beside libc's memmove of private
//! blocks of the same size and number.
//!
//! All memory is touched beforehand: the client has written every slot once, so that its mapping is populated too.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lapis_client::{Client, GetOptions, Pool, PutOptions};
use lapis_config::Key;

use super::{
    Name, Plan,
    report::{Figure, Goal, Report},
};
use crate::{
    host::{Host, HostOptions},
    limits::{self, PrivateBlocks},
    load,
    pattern::{self, Pattern},
    samples::{Pairs, Samples},
};

/// Blocks of one call.
const BATCH: usize = 32;
/// Memory that is gone through at random, for each of: arena, private source, destination. Beyond any cache.
const WORKING_SET_BYTES: usize = 512 << 20;
/// Memory of the daemon: its default, so that the clients' magazine is the default too.
const ARENA_BYTES: u64 = 4 << 30;
/// What populating memory takes on a machine that does much else.
const POPULATED_WITHIN: Duration = Duration::from_secs(120);
/// Before the rounds of a block size, so many times the arena is put: all memory has moved to that size's pool, and
/// puts evict.
const WARM_UP: f64 = 3.0;
const WARM_UP_QUICK: f64 = 1.125;
/// So often a batch is put again of which some was refused.
const PUT_AGAIN_MAX: usize = 100;

/// A block size and the least ratios that are wanted of it.
struct Size {
    block_bytes: usize,
    get: f64,
    put: f64,
}

const SIZES: [Size; 4] = [
    Size { block_bytes: 64 << 10, get: 0.85, put: 0.8 },
    Size { block_bytes: 256 << 10, get: 1.0, put: 1.0 },
    Size { block_bytes: 1 << 20, get: 1.3, put: 1.3 },
    Size { block_bytes: 2 << 20, get: 1.3, put: 1.3 },
];

/// Most that a single get may take beyond the copy, microseconds.
const GET_ONE_EXTRA_US: f64 = 2.0;

/// Runs those of the three benches that are wanted, over one daemon.
pub fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    if ![Name::GetInto, Name::PutFrom, Name::GetOne].into_iter().any(|name| plan.wants(name)) {
        return Ok(());
    }
    let mut options = HostOptions::here(ARENA_BYTES)?;
    options.hold = false;
    let mut host = Host::start(options)?;
    let client = host.connect("bench copies")?;
    populated(plan, &mut host)?;
    let (mut source, mut destination) =
        (PrivateBlocks::new(WORKING_SET_BYTES, 4096)?, PrivateBlocks::new(WORKING_SET_BYTES, 4096)?);
    for size in &SIZES {
        let only_one = !plan.wants(Name::GetInto) && !plan.wants(Name::PutFrom);
        if only_one && size.block_bytes != SIZES[0].block_bytes {
            continue;
        }
        let mut copies = Copies::new(plan, &client, size.block_bytes, [&mut source, &mut destination])?;
        let flood = copies.warm_up()?;
        if plan.wants(Name::GetInto) {
            for cold in [false, true] {
                report.add(&copies.get_into(size, cold)?)?;
            }
        }
        if plan.wants(Name::GetOne) && size.block_bytes == SIZES[0].block_bytes {
            report.add(&copies.get_one()?)?;
        }
        if plan.wants(Name::PutFrom) {
            report.add(&flood)?;
            report.add(&copies.put_from(size)?)?;
        }
    }
    Ok(())
}

/// Waits until the daemon's memory is there: fresh memory comes at about 1 GB/s and would be all that is measured.
pub(super) fn populated(plan: &Plan, host: &mut Host) -> anyhow::Result<()> {
    host.within(POPULATED_WITHIN, "the daemon's memory to be populated", |host| {
        plan.stop.check()?;
        let status =
            lapis_client::status(host.socket(), Duration::from_secs(1)).context("ask for the daemon's status")?;
        let status: serde_json::Value = serde_json::from_str(&status).context("read the daemon's status")?;
        let [populated, bytes] = ["populated_bytes", "bytes"].map(|field| status["dram"][field].as_u64());
        Ok(populated.filter(|populated| bytes.is_some_and(|bytes| *populated >= bytes)).map(drop))
    })
}

/// One block size.
struct Copies<'a> {
    plan: &'a Plan,
    client: &'a Client,
    pool: Pool,
    block_bytes: usize,
    /// Keys put so far.
    put: u64,
    /// Of the last ones, those that are there; a policy may think less of some.
    working_set: Vec<Key>,
    source: &'a mut PrivateBlocks,
    destination: &'a mut PrivateBlocks,
    /// The next run of the destination that is in no cache.
    cold: usize,
    rng: fastrand::Rng,
}

impl<'a> Copies<'a> {
    fn new(
        plan: &'a Plan,
        client: &'a Client,
        block_bytes: usize,
        memory: [&'a mut PrivateBlocks; 2],
    ) -> anyhow::Result<Self> {
        let [source, destination] = memory;
        source.cut(block_bytes);
        destination.cut(block_bytes);
        Ok(Self {
            plan,
            client,
            pool: client.pool(&load::shape("bench", block_bytes as u64))?,
            block_bytes,
            put: 0,
            working_set: Vec::new(),
            source,
            destination,
            cold: 0,
            rng: fastrand::Rng::with_seed(1),
        })
    }

    /// So many rounds that each bench moves about the same number of bytes, within bounds.
    fn rounds(&self) -> usize {
        let bytes: usize = if self.plan.quick { 1 << 30 } else { 12 << 30 };
        (bytes / (BATCH * self.block_bytes)).clamp(20, if self.plan.quick { 300 } else { 2000 })
    }

    fn gigabytes_per_second(&self, elapsed: Duration) -> f64 {
        (BATCH * self.block_bytes) as f64 / elapsed.as_secs_f64() / 1e9
    }

    /// The next keys that nobody has put; a chain of their own.
    fn fresh_keys(&mut self) -> Vec<Key> {
        let first = self.put;
        self.put += BATCH as u64;
        (first..self.put).map(|id| pattern::key(self.block_bytes as u64, id)).collect()
    }

    /// Puts more than the arena holds, as fast as it goes; the last of it, with the bytes that belong to its keys, is
    /// the working set.
    fn warm_up(&mut self) -> anyhow::Result<Figure> {
        let (mut rates, mut refused) = (Samples::default(), 0);
        let times = if self.plan.quick { WARM_UP_QUICK } else { WARM_UP };
        for _ in 0..(times * ARENA_BYTES as f64) as usize / (BATCH * self.block_bytes) {
            self.plan.stop.check()?;
            let keys = self.fresh_keys();
            for (key, block) in keys.iter().zip(self.source.run_mut(0, BATCH).chunks_exact_mut(self.block_bytes)) {
                Pattern::of(key).fill(block);
            }
            let started = Instant::now();
            let late = self.put_batch(&keys, 0)?;
            rates.push(self.gigabytes_per_second(started.elapsed()));
            refused += late;
            self.put_late(&keys, 0, late)?;
        }
        self.find_working_set()?;
        let mut figure = Figure::rates("put_from", &mut rates);
        (figure.block_bytes, figure.batch) = (Some(self.block_bytes as u64), Some(BATCH as u64));
        figure.case = Some(if self.plan.quick { "1.125 x DRAM" } else { "3 x DRAM" });
        figure.goal = Some(Goal::new(format!("0 refused (is {refused})"), refused == 0));
        Ok(figure)
    }

    /// Of the last blocks put, as many as the working set's bytes, those that are there: nearly all.
    fn find_working_set(&mut self) -> anyhow::Result<()> {
        let blocks = (WORKING_SET_BYTES / self.block_bytes) as u64;
        let last: Vec<Key> =
            (self.put - blocks..self.put).map(|id| pattern::key(self.block_bytes as u64, id)).collect();
        self.working_set.clear();
        for keys in last.chunks(lapis_config::BATCH_KEYS_MAX) {
            let there = self.client.exists(&self.pool, keys)?;
            self.working_set.extend(keys.iter().enumerate().filter(|(i, _)| there.get(*i)).map(|(_, key)| key));
        }
        let there = self.working_set.len();
        ensure!(there as u64 > blocks / 2, "{there} of the last {blocks} blocks put are there");
        Ok(())
    }

    /// How many blocks were refused.
    fn put_batch(&self, keys: &[Key], first: usize) -> anyhow::Result<usize> {
        let source = self.source.run(first, BATCH);
        Ok(self.client.put_from(&self.pool, keys, None, source, &PutOptions::default())?.refused())
    }

    /// Puts again what came too late, as happens on a machine that does much else: the working set is to be whole.
    fn put_late(&self, keys: &[Key], first: usize, mut late: usize) -> anyhow::Result<()> {
        for _ in 0..PUT_AGAIN_MAX {
            if late == 0 {
                return Ok(());
            }
            late = self.put_batch(keys, first)?;
        }
        bail!("{late} of {BATCH} blocks were refused {PUT_AGAIN_MAX} times")
    }

    /// `count` random keys of the working set.
    fn random_keys(&mut self, count: usize) -> Vec<Key> {
        (0..count).map(|_| self.working_set[self.rng.usize(..self.working_set.len())]).collect()
    }

    /// Where the next batch goes: for cold destinations, memory that was not touched for 512 MiB.
    fn place(&mut self, cold: bool, reused: usize) -> usize {
        if !cold {
            return reused * BATCH;
        }
        self.cold = (self.cold + BATCH) % (self.destination.blocks() / BATCH * BATCH);
        self.cold
    }

    fn get_into(&mut self, size: &Size, cold: bool) -> anyhow::Result<Figure> {
        let mut pairs = Pairs::default();
        for round in 0..self.rounds() {
            self.plan.stop.check()?;
            let (mut ours, mut limit) = (Duration::ZERO, Duration::ZERO);
            for turn in 0..2 {
                // Each has a destination of its own: what one leaves in the caches must not serve the other.
                if (round + turn) % 2 == 0 {
                    let (keys, place) = (self.random_keys(BATCH), self.place(cold, 0));
                    let buffer = self.destination.run_mut(place, BATCH);
                    let started = Instant::now();
                    let got = self.client.get_into(&self.pool, &keys, buffer, &GetOptions::default())?;
                    ours = started.elapsed();
                    ensure!(got.hits == BATCH, "{} of {BATCH} blocks of the working set are there", got.hits);
                    if round % 16 == 0 {
                        self.compare(&keys, place)?;
                    }
                } else {
                    let place = self.place(cold, 1);
                    let from: Vec<usize> = (0..BATCH).map(|_| self.rng.usize(..self.source.blocks())).collect();
                    let started = Instant::now();
                    for (i, from) in from.into_iter().enumerate() {
                        limits::memmove(self.destination.run_mut(place + i, 1), self.source.block(from));
                    }
                    limit = started.elapsed();
                }
            }
            pairs.push(self.gigabytes_per_second(ours), self.gigabytes_per_second(limit));
        }
        let [ratio, ..] = pairs.ratio();
        let mut figure = Figure::throughput("get_into", pairs);
        figure.destination = Some(if cold { "cold" } else { "reused" });
        Ok(self.finish(figure, ratio, size.get))
    }

    fn compare(&self, keys: &[Key], place: usize) -> anyhow::Result<()> {
        for (i, key) in keys.iter().enumerate() {
            let wrong = Pattern::of(key).wrong_bytes(self.destination.block(place + i));
            ensure!(wrong == 0, "{wrong} wrong bytes in a block");
        }
        Ok(())
    }

    fn put_from(&mut self, size: &Size) -> anyhow::Result<Figure> {
        let mut pairs = Pairs::default();
        for round in 0..self.rounds() {
            self.plan.stop.check()?;
            let (mut ours, mut limit) = (Duration::ZERO, Duration::ZERO);
            for turn in 0..2 {
                let from = self.rng.usize(..=self.source.blocks() - BATCH);
                if (round + turn) % 2 == 0 {
                    let keys = self.fresh_keys();
                    let started = Instant::now();
                    let late = self.put_batch(&keys, from)?;
                    ours = started.elapsed();
                    self.put_late(&keys, from, late)?;
                } else {
                    let place = self.place(true, 1);
                    let started = Instant::now();
                    for i in 0..BATCH {
                        limits::memmove(self.destination.run_mut(place + i, 1), self.source.block(from + i));
                    }
                    limit = started.elapsed();
                }
            }
            pairs.push(self.gigabytes_per_second(ours), self.gigabytes_per_second(limit));
        }
        let [ratio, ..] = pairs.ratio();
        let figure = Figure::throughput("put_from", pairs);
        Ok(self.finish(figure, ratio, size.put))
    }

    fn finish(&self, mut figure: Figure, ratio: f64, wanted: f64) -> Figure {
        (figure.block_bytes, figure.batch) = (Some(self.block_bytes as u64), Some(BATCH as u64));
        figure.limit_is = Some("memmove");
        figure.goal = Some(Goal::new(format!(">= {wanted} x memmove"), ratio >= wanted));
        figure
    }

    fn get_one(&mut self) -> anyhow::Result<Figure> {
        let mut pairs = Pairs::default();
        let clock = limits::clock_cost();
        for round in 0..if self.plan.quick { 5_000 } else { 50_000 } {
            let (mut ours, mut limit) = (Duration::ZERO, Duration::ZERO);
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    let keys = self.random_keys(1);
                    let buffer = self.destination.run_mut(0, 1);
                    let started = Instant::now();
                    let got = self.client.get_into(&self.pool, &keys, buffer, &GetOptions::default())?;
                    ours = started.elapsed();
                    ensure!(got.hits == 1, "a block of the working set is gone");
                } else {
                    let from = self.rng.usize(..self.source.blocks());
                    let started = Instant::now();
                    limits::memmove(self.destination.run_mut(1, 1), self.source.block(from));
                    limit = started.elapsed();
                }
            }
            let us = |time: Duration| time.saturating_sub(clock).as_secs_f64() * 1e6;
            pairs.push(us(ours), us(limit).max(1e-3));
        }
        let extra = pairs.ours.median() - pairs.limit.median();
        let mut figure = Figure::latency("get_one", pairs);
        figure.block_bytes = Some(self.block_bytes as u64);
        figure.limit_is = Some("memmove");
        let goal = format!("<= memmove + {GET_ONE_EXTRA_US} us (is {extra:+.2})");
        figure.goal = Some(Goal::new(goal, extra <= GET_ONE_EXTRA_US));
        Ok(figure)
    }
}
