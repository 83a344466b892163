//! Blocks of another host, read through two daemons on loopback: from a client's get to the bytes in its memory, and with
//! one piece of each block, so that what is measured is the way into slots. Beside one raw TCP stream in the same rounds.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lapis_client::{Client, GetOptions, HitPolicy, Pool, PutOptions};
use lapis_config::{Key, PoolShape};

use super::{
    Name, Plan,
    report::{Figure, Goal, Report, rounded},
    ssd::cpu_of_process,
    streams::{OwnerProcess, raw::RawClient, raw::Way},
};
use crate::{
    host::HostOptions,
    hosts::Hosts,
    limits::PrivateBlocks,
    load, pattern,
    samples::{Pairs, Samples},
};

/// Blocks of one get.
const BATCH: usize = 32;
/// Block sizes, and the least share of a raw stream's speed.
const SIZES: [(u64, f64); 4] = [(64 << 10, 0.7), (256 << 10, 0.9), (1 << 20, 0.9), (4 << 20, 0.9)];
/// Memory of the host that reads; the other has this many times as much, all of it full of blocks: what is read in turn is
/// never here any more.
const DRAM_BYTES: u64 = 512 << 20;
const TIMES: u64 = 4;
/// Bytes of a round.
const ROUND_BYTES: u64 = 512 << 20;
/// Clients that read at once: one alone has nothing under way while it copies.
const READERS: usize = 2;
const PIECES: u16 = 16;
const PATIENCE: Duration = Duration::from_secs(20);
const SEED: u64 = 77;

pub fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    if !plan.wants_any(&[Name::RemoteGet]) {
        return Ok(());
    }
    let owner = OwnerProcess::start()?;
    for (block_bytes, wanted) in SIZES {
        for (case, pieces) in [("client", 1), ("slots", PIECES)] {
            let mut reads = Reads::start(plan, block_bytes, pieces)?;
            report.add(&reads.measure(plan, &owner, case, wanted)?)?;
        }
    }
    Ok(())
}

struct Reads {
    hosts: Hosts,
    client: Client,
    pool: Pool,
    block_bytes: u64,
    /// The next batch to be read.
    next: AtomicU64,
}

impl Reads {
    /// Two hosts, of which the first has more blocks than the second has memory.
    fn start(plan: &Plan, block_bytes: u64, pieces: u16) -> anyhow::Result<Self> {
        let options = HostOptions { hold: false, ..HostOptions::here(DRAM_BYTES)? };
        let mut hosts = Hosts::start_each(2, |at| {
            let dram_bytes = if at == 0 { DRAM_BYTES * (TIMES + 1) } else { DRAM_BYTES };
            HostOptions { dram_bytes, ..options.clone() }
        })?;
        let clients = [0, 1].map(|at| hosts.get_mut(at).connect("bench"));
        let [owner, client] = clients;
        let (owner, client) = (owner?, client?);
        let shape = PoolShape { pieces, ..load::shape("bench peers", block_bytes) };
        let (there, pool) = (owner.pool(&shape)?, client.pool(&shape)?);
        hosts.until_all_up()?;
        let reads = Self { hosts, client, pool, block_bytes, next: AtomicU64::new(0) };
        let blocks = PrivateBlocks::new(BATCH * block_bytes as usize, block_bytes as usize)?;
        for number in 0..reads.batches() {
            plan.stop.check()?;
            let options = PutOptions { deadline: Some(PATIENCE) };
            let put = owner.put_from(&there, &reads.keys(number), None, blocks.run(0, BATCH), &options)?;
            ensure!(put.stored() == BATCH, "not all blocks were stored\n{}", reads.hosts.get(0).log_tail());
        }
        let (last, pools) = (reads.keys(reads.batches() - 1), [(reads.pool.clone(), HitPolicy::Prefix)]);
        let until = Instant::now() + PATIENCE;
        while reads.client.fetch_prefix(&pools, &last, Some(PATIENCE))? < BATCH {
            ensure!(Instant::now() < until, "the second host does not know of the first one's blocks");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(reads)
    }

    fn batches(&self) -> u64 {
        DRAM_BYTES * TIMES / (BATCH as u64 * self.block_bytes)
    }

    fn keys(&self, number: u64) -> Vec<Key> {
        (0..BATCH as u64).map(|at| pattern::key(SEED ^ self.block_bytes, number * BATCH as u64 + at)).collect()
    }

    fn measure(
        &mut self,
        plan: &Plan,
        owner: &OwnerProcess,
        case: &'static str,
        wanted: f64,
    ) -> anyhow::Result<Figure> {
        let mut raw = RawClient::connect(owner.raw, Way::Plain)?;
        let part = (self.block_bytes / u64::from(self.pool.pieces())) as usize;
        let mut buffers: Vec<_> =
            (0..READERS).map(|_| PrivateBlocks::new(BATCH * part, part)).collect::<Result<_, _>>()?;
        let mut pairs = Pairs::default();
        let [mut cpu, mut owner_cpu, mut limit_cpu, mut limit_owner_cpu] = [(); 4].map(|()| Samples::default());
        // Once unmeasured: memory is touched, and connections have found their pace.
        self.round(&mut buffers)?;
        for _ in 0..if plan.quick { 3 } else { 15 } {
            plan.stop.check()?;
            let before = self.cpu()?;
            let started = Instant::now();
            let bytes = self.round(&mut buffers)?;
            let wall = started.elapsed();
            let after = self.cpu()?;
            let limit = owner.measured(|| raw.receive(ROUND_BYTES as usize))?;
            let gigabytes = bytes as f64 / 1e9;
            pairs.push(gigabytes / wall.as_secs_f64(), limit.gigabytes_per_second());
            let per_gigabyte = |at: usize| (after[at] - before[at]).as_secs_f64() * 1e6 / gigabytes;
            cpu.push(per_gigabyte(1));
            owner_cpu.push(per_gigabyte(0));
            limit_cpu.push(limit.per_gigabyte(limit.cpu));
            limit_owner_cpu.push(limit.per_gigabyte(limit.owner_cpu));
        }
        let [ratio, ..] = pairs.ratio();
        let mut figure = Figure::throughput("remote_get", pairs);
        figure.case = Some(case);
        (figure.block_bytes, figure.batch) = (Some(self.block_bytes), Some(BATCH as u64));
        figure.limit_is = Some("raw TCP stream");
        figure.cpu_us_per_gb = Some(rounded(cpu.median()));
        figure.owner_cpu_us_per_gb = Some(rounded(owner_cpu.median()));
        figure.limit_cpu_us_per_gb = Some(rounded(limit_cpu.median()));
        figure.limit_owner_cpu_us_per_gb = Some(rounded(limit_owner_cpu.median()));
        if case == "slots" {
            figure.goal = Some(Goal::new(format!(">= {wanted} x raw TCP stream"), ratio >= wanted));
        }
        Ok(figure)
    }

    /// Processor time of both daemons so far.
    fn cpu(&self) -> anyhow::Result<[Duration; 2]> {
        let of = |at: usize| -> anyhow::Result<Duration> {
            let pid = self.hosts.get(at).daemon_pid().context("a daemon")?;
            Ok(cpu_of_process(Some(pid))?)
        };
        Ok([of(0)?, of(1)?])
    }

    /// Reads what comes next, by several clients at once; the bytes of the blocks.
    fn round(&self, buffers: &mut [PrivateBlocks]) -> anyhow::Result<u64> {
        let batches = (ROUND_BYTES / (BATCH as u64 * self.block_bytes)).max(2);
        let (left, pieces) = (AtomicU64::new(batches), self.pool.pieces());
        thread::scope(|scope| {
            let left = &left;
            let readers: Vec<_> =
                buffers.iter_mut().map(|buffer| scope.spawn(move || self.read(left, pieces, buffer))).collect();
            readers.into_iter().try_for_each(|reader| reader.join().expect("no panic"))
        })?;
        Ok(batches * BATCH as u64 * self.block_bytes)
    }

    fn read(&self, left: &AtomicU64, pieces: u16, buffer: &mut PrivateBlocks) -> anyhow::Result<()> {
        let pieces = (pieces > 1).then_some(0..1);
        let options = GetOptions { pieces, deadline: Some(PATIENCE), ..GetOptions::default() };
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let number = self.next.fetch_add(1, Ordering::Relaxed) % self.batches();
            let got = self.client.get_into(&self.pool, &self.keys(number), buffer.run_mut(0, BATCH), &options)?;
            ensure!(got.hits == BATCH, "{} of {BATCH} blocks came\n{}", got.hits, self.hosts.get(1).log_tail());
        }
        Ok(())
    }
}
