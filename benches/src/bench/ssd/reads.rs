//! Blocks that are on SSD alone, read through a daemon: `client` copies whole blocks out, `slots` one piece of each, so
//! that what is measured is the way from the request ring to the bytes in slots.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context, ensure};
use lapis_client::{GetOptions, Pool, PutOptions};

use super::{
    super::{Plan, report::Report},
    DEPTH, Ground, READ_GOAL, Rounds, SIZES, at_least,
    raw::{Raw, Took, Way},
    tier::{self, BATCH, PATIENCE, Tier},
};

/// Four times the memory: what is read in turn is never there any more.
const DATA_BYTES: u64 = 4 * tier::DRAM_BYTES;
const LOG_BYTES: u64 = DATA_BYTES + (1 << 30);
/// Bytes of one turn.
const TURN_BYTES: u64 = 512 << 20;
/// Clients that read at once: one alone has nothing under way while it copies.
const READERS: usize = 2;
const PIECES: u16 = 16;

pub fn run(plan: &Plan, ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    for (block_bytes, counts) in SIZES {
        let log = ground.file(".log", LOG_BYTES)?;
        let mut raw = Raw::new(log.path(), DEPTH)?;
        for (case, pieces) in [("client", 1), ("slots", PIECES)] {
            let tier = Tier::start(plan, log.path(), LOG_BYTES)?;
            let pool = tier.pool(block_bytes, pieces)?;
            let reads = Reads { tier: &tier, pool, block_bytes, next: AtomicU64::new(0) };
            reads.fill(plan)?;
            let figure = reads.measure(plan, &mut raw)?;
            let mut figure = figure.figure("ssd_read", case, block_bytes);
            figure.batch = Some(BATCH as u64);
            if counts && case == "slots" {
                at_least(&mut figure, READ_GOAL, "raw");
            }
            report.add(&figure)?;
            // The next daemon begins with a blank log.
            drop(tier);
            std::fs::OpenOptions::new()
                .write(true)
                .open(log.path())
                .and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; 1 << 20], 0))?;
        }
    }
    Ok(())
}

struct Reads<'a> {
    tier: &'a Tier,
    pool: Pool,
    block_bytes: usize,
    /// The next batch to be read.
    next: AtomicU64,
}

impl Reads<'_> {
    fn batches(&self) -> u64 {
        DATA_BYTES / (BATCH * self.block_bytes) as u64
    }

    fn fill(&self, plan: &Plan) -> anyhow::Result<()> {
        let blocks = tier::noise(self.block_bytes)?;
        let options = PutOptions { deadline: Some(PATIENCE) };
        for number in 0..self.batches() {
            plan.stop.check()?;
            let keys = tier::keys(self.block_bytes as u64, number);
            let stored = self.tier.put(&self.pool, &keys, blocks.run(0, BATCH), &options)?;
            ensure!(stored == BATCH, "{stored} of {BATCH} blocks were stored\n{}", self.tier.host.log_tail());
        }
        self.tier.rests()
    }

    fn measure(&self, plan: &Plan, raw: &mut Raw) -> anyhow::Result<Rounds> {
        let mut rounds = Rounds::default();
        let slot_bytes = u64::from(self.pool.slot_bytes());
        let mut at = 0;
        for _ in 0..if plan.quick { 3 } else { 9 } {
            plan.stop.check()?;
            let [before, sums_before] = self.tier.cpu()?;
            let started = Instant::now();
            let blocks = self.turn()?;
            let wall = started.elapsed();
            self.tier.rests()?;
            let [after, sums_after] = self.tier.cpu()?;
            let ours = Took { bytes: blocks * slot_bytes, wall, cpu: after - before };
            // As many bytes of the same log, one after the other: chains lie in it as they are read.
            let next = |at: u64| (1 << 20) + at % (DATA_BYTES / slot_bytes) * slot_bytes;
            let offsets: Vec<u64> = (at..at + blocks).map(next).collect();
            at += blocks;
            let limit = raw.run(Way::Read, slot_bytes as usize, &offsets)?;
            rounds.push(&ours, &limit, Some(sums_after - sums_before));
        }
        Ok(rounds)
    }

    /// Reads some batches, each once, by several clients; how many blocks.
    fn turn(&self) -> anyhow::Result<u64> {
        let end = self.next.load(Ordering::Relaxed) + TURN_BYTES / (BATCH * self.block_bytes) as u64;
        let blocks = thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(|| self.read_until(end))).collect();
            readers
                .into_iter()
                .map(|reader| reader.join().expect("a reader does not panic"))
                .sum::<anyhow::Result<u64>>()
        })?;
        self.next.store(end, Ordering::Relaxed);
        Ok(blocks)
    }

    fn read_until(&self, end: u64) -> anyhow::Result<u64> {
        let pieces = (self.pool.pieces() > 1).then_some(0..1);
        let bytes = self.block_bytes / if pieces.is_some() { usize::from(PIECES) } else { 1 };
        let mut buffer = vec![0; BATCH * bytes];
        let options = GetOptions { pieces, deadline: Some(PATIENCE), ..GetOptions::default() };
        let mut blocks = 0;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= end {
                return Ok(blocks);
            }
            let keys = tier::keys(self.block_bytes as u64, number % self.batches());
            let got = self.tier.client.get_into(&self.pool, &keys, &mut buffer[..], &options).context("get a batch")?;
            ensure!(got.hits == BATCH, "{} of {BATCH} blocks were read\n{}", got.hits, self.tier.host.log_tail());
            blocks += got.hits as u64;
        }
    }
}
