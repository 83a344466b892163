//! What a put pays for its sum: whole puts, beside the same puts less what the fused copy takes over the bare one, all
//! of the same round. A put without a sum exists nowhere: such a block would be a miss at its first crossing.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::ensure;
use lapis_arena::{Access, Mapping, Sum, copy, memfd};
use lapis_client::{PutOptions, PutResult};
use lapis_config::Key;

use super::{
    Name, Plan,
    report::{Figure, Goal, Report},
};
use crate::{
    host::{Host, HostOptions},
    limits::PrivateBlocks,
    load, pattern,
    samples::Pairs,
};

const BATCH: usize = 32;
const ARENA_BYTES: u64 = 2 << 30;
/// Beyond any cache.
const WORKING_SET_BYTES: usize = 256 << 20;
/// Block sizes, and the least share of the speed without sums.
const SIZES: [(usize, f64); 4] = [(64 << 10, 0.75), (256 << 10, 0.85), (1 << 20, 0.85), (2 << 20, 0.85)];

pub fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    if !plan.wants(Name::Sums) {
        return Ok(());
    }
    let mut options = HostOptions::here(ARENA_BYTES)?;
    options.hold = false;
    let mut host = Host::start(options)?;
    let client = host.connect("bench sums")?;
    let mut source = PrivateBlocks::new(WORKING_SET_BYTES, SIZES[0].0)?;
    let (fd, _) = memfd::create("bench.slots", WORKING_SET_BYTES as u64, memfd::Huge::Try)?;
    memfd::clear(fd.as_fd(), 0..WORKING_SET_BYTES as u64)?;
    let slots = Mapping::shared(fd.as_fd(), WORKING_SET_BYTES as u64, Access::ReadWrite)?;
    for (block_bytes, wanted) in SIZES {
        source.cut(block_bytes);
        let pool = client.pool(&load::shape("sums", block_bytes as u64))?;
        let copies = Copies { slots: &slots, source: &source, block_bytes };
        let (mut pairs, mut put) = (Pairs::default(), 0);
        let mut rng = fastrand::Rng::with_seed(1);
        // All memory goes to this size first.
        let warm = (ARENA_BYTES as f64 * 1.5) as usize / (BATCH * block_bytes);
        let rounds = if plan.quick { 30 } else { 200 };
        for round in 0..warm + rounds {
            plan.stop.check()?;
            let keys: Vec<Key> = (put..put + BATCH as u64).map(|id| pattern::key(block_bytes as u64, id)).collect();
            put += BATCH as u64;
            let from = rng.usize(..=source.blocks() - BATCH);
            let started = Instant::now();
            let stored = client.put_from(&pool, &keys, None, source.run(from, BATCH), &PutOptions::default())?;
            let whole = started.elapsed().as_secs_f64();
            ensure!(stored.results.iter().all(|result| *result == PutResult::Stored), "a put was not stored");
            if round < warm {
                continue;
            }
            // Each of other blocks, in turns: what one leaves in the caches must not serve the other.
            let [here, there] = [(); 2].map(|()| [(); 2].map(|()| rng.usize(..=source.blocks() - BATCH)));
            let (summed, bare) = if round % 2 == 0 {
                let summed = copies.batch(&keys, here, true);
                (summed, copies.batch(&keys, there, false))
            } else {
                let bare = copies.batch(&keys, there, false);
                (copies.batch(&keys, here, true), bare)
            };
            let sums = (summed.as_secs_f64() - bare.as_secs_f64()).max(0.0);
            let rate = |seconds: f64| (BATCH * block_bytes) as f64 / seconds.max(1e-9) / 1e9;
            pairs.push(rate(whole), rate((whole - sums).max(whole / 10.0)));
        }
        let [ratio, ..] = pairs.ratio();
        let mut figure = Figure::throughput("sums", pairs);
        (figure.block_bytes, figure.batch) = (Some(block_bytes as u64), Some(BATCH as u64));
        figure.case = Some("put_from");
        figure.limit_is = Some("put without sums");
        figure.goal = Some(Goal::new(format!(">= {wanted} x put without sums"), ratio >= wanted));
        report.add(&figure)?;
    }
    Ok(())
}

struct Copies<'a> {
    slots: &'a Mapping,
    source: &'a PrivateBlocks,
    block_bytes: usize,
}

impl Copies<'_> {
    /// Copies a batch into slots, as a put does; from the first place, to the second.
    fn batch(&self, keys: &[Key], [from, to]: [usize; 2], summed: bool) -> Duration {
        let kernel = copy::Kernel::choose(self.block_bytes, BATCH);
        // Of this thread alone: what else the machine does would outweigh the sums.
        let started = cpu_of_thread();
        for (i, key) in keys.iter().enumerate() {
            let (offset, block) = ((to + i) * self.block_bytes, self.source.block(from + i));
            if summed {
                let mut sum = Sum::new(1, key, self.block_bytes as u64);
                copy::into_summed(self.slots, offset, block, kernel, &mut sum);
                std::hint::black_box(sum.finish());
            } else {
                copy::into(self.slots, offset, block, kernel);
            }
        }
        copy::sfence();
        cpu_of_thread() - started
    }
}

/// Processor time that this thread has used so far.
fn cpu_of_thread() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
