//! Puts into memory that is full: each makes room by the write of another block.

use std::time::Instant;

use anyhow::ensure;
use lapis_client::{Pool, PutOptions};

use super::{
    super::{Plan, report::Report},
    DEPTH, Ground, Rounds, SIZES, WRITE_GOAL, at_least,
    raw::{Raw, Took, Way},
    tier::{self, BATCH, PATIENCE, Tier},
};

const LOG_BYTES: u64 = 3 << 30;
/// Bytes of one turn: more than is written ahead while nobody puts.
pub const TURN_BYTES: u64 = 512 << 20;

pub fn run(plan: &Plan, ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    let other = ground.file(".raw", TURN_BYTES + (4 << 20))?;
    let mut raw = Raw::new(other.path(), DEPTH)?;
    for (block_bytes, counts) in SIZES {
        let log = ground.file(".log", LOG_BYTES)?;
        let tier = Tier::start(plan, log.path(), LOG_BYTES)?;
        let pool = tier.pool(block_bytes, 1)?;
        let mut next = 0;
        puts(&tier, &pool, block_bytes, 2 * tier::DRAM_BYTES, &mut next)?;
        let mut rounds = Rounds::default();
        for _ in 0..if plan.quick { 3 } else { 9 } {
            plan.stop.check()?;
            tier.rests()?;
            let [before, sums_before] = tier.cpu()?;
            let started = Instant::now();
            puts(&tier, &pool, block_bytes, TURN_BYTES, &mut next)?;
            let wall = started.elapsed();
            tier.rests()?;
            let [after, sums_after] = tier.cpu()?;
            let ours = Took { bytes: TURN_BYTES, wall, cpu: after - before };
            let limit = write_raw(&mut raw, block_bytes)?;
            rounds.push(&ours, &limit, Some(sums_after - sums_before));
        }
        let mut figure = rounds.figure("ssd_write", "client", block_bytes);
        figure.batch = Some(BATCH as u64);
        if counts {
            at_least(&mut figure, WRITE_GOAL, "raw");
        }
        report.add(&figure)?;
    }
    Ok(())
}

/// Puts so many bytes of new blocks.
pub fn puts(tier: &Tier, pool: &Pool, block_bytes: usize, bytes: u64, next: &mut u64) -> anyhow::Result<()> {
    let blocks = tier::noise(block_bytes)?;
    let options = PutOptions { deadline: Some(PATIENCE) };
    for _ in 0..bytes / (BATCH * block_bytes) as u64 {
        let keys = tier::keys(block_bytes as u64, *next);
        *next += 1;
        let stored = tier.put(pool, &keys, blocks.run(0, BATCH), &options)?;
        ensure!(stored == BATCH, "{stored} of {BATCH} blocks were stored\n{}", tier.host.log_tail());
    }
    Ok(())
}

/// The limit: as many bytes, one after the other.
pub fn write_raw(raw: &mut Raw, block_bytes: usize) -> anyhow::Result<Took> {
    let offsets: Vec<u64> = (0..TURN_BYTES).step_by(block_bytes).collect();
    Ok(raw.run(Way::Write, block_bytes, &offsets)?)
}
