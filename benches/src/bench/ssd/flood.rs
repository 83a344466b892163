//! Three times the memory, put as fast as it goes into a tier that holds it all; then all of it is read and compared.

use std::time::Instant;

use lapis_client::{GetOptions, PutOptions};

use super::{
    super::{
        Plan,
        report::{Figure, Goal, Report},
    },
    DEPTH, Ground,
    raw::Raw,
    tier::{self, BATCH, DRAM_BYTES, PATIENCE, Tier},
    writes,
};
use crate::{limits::PrivateBlocks, pattern::Pattern, samples::Pairs};

const DATA_BYTES: u64 = 3 * DRAM_BYTES;
const LOG_BYTES: u64 = DATA_BYTES + (1 << 30);
const SIZES: [usize; 2] = [64 << 10, 1 << 20];

pub fn run(plan: &Plan, ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    let other = ground.file(".raw", writes::TURN_BYTES + (4 << 20))?;
    let mut raw = Raw::new(other.path(), DEPTH)?;
    for block_bytes in SIZES {
        let (mut pairs, mut refused, mut lost) = (Pairs::default(), 0, 0);
        for _ in 0..if plan.quick { 1 } else { 3 } {
            let log = ground.file(".log", LOG_BYTES)?;
            let tier = Tier::start(plan, log.path(), LOG_BYTES)?;
            let flood = Flood { plan, tier: &tier, block_bytes };
            let (seconds, refused_now) = flood.put_all()?;
            lost += flood.lost()? - refused_now;
            refused += refused_now;
            tier.rests()?;
            let limit = writes::write_raw(&mut raw, block_bytes)?.gigabytes_per_second();
            pairs.push(DATA_BYTES as f64 / seconds / 1e9, limit);
        }
        let mut figure = Figure::throughput("put_from", pairs);
        figure.case = Some("3 x DRAM to SSD");
        (figure.block_bytes, figure.batch) = (Some(block_bytes as u64), Some(BATCH as u64));
        figure.limit_is = Some("raw io_uring");
        (figure.refused, figure.lost) = (Some(refused), Some(lost));
        let told = format!("0 refused, 0 lost (is {refused}, {lost})");
        figure.goal = Some(Goal::new(told, refused + lost == 0));
        report.add(&figure)?;
    }
    Ok(())
}

struct Flood<'a> {
    plan: &'a Plan,
    tier: &'a Tier,
    block_bytes: usize,
}

impl Flood<'_> {
    fn batches(&self) -> u64 {
        DATA_BYTES / (BATCH * self.block_bytes) as u64
    }

    /// Seconds, and how many blocks were not stored, with deadlines as they are for everybody.
    fn put_all(&self) -> anyhow::Result<(f64, u64)> {
        let pool = self.tier.pool(self.block_bytes, 1)?;
        let mut blocks = PrivateBlocks::new(BATCH * self.block_bytes, self.block_bytes)?;
        let (mut refused, started) = (0, Instant::now());
        for number in 0..self.batches() {
            self.plan.stop.check()?;
            let keys = tier::keys(self.block_bytes as u64, number);
            for (key, block) in keys.iter().zip(blocks.run_mut(0, BATCH).chunks_exact_mut(self.block_bytes)) {
                Pattern::of(key).fill(block);
            }
            refused += BATCH - self.tier.put(&pool, &keys, blocks.run(0, BATCH), &PutOptions::default())?;
        }
        Ok((started.elapsed().as_secs_f64(), refused as u64))
    }

    /// How many blocks are not there, the first ones first. A wrong byte is an error.
    fn lost(&self) -> anyhow::Result<u64> {
        let pool = self.tier.pool(self.block_bytes, 1)?;
        let mut blocks = PrivateBlocks::new(BATCH * self.block_bytes, self.block_bytes)?;
        let options = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
        let mut lost = 0;
        for number in 0..self.batches() {
            self.plan.stop.check()?;
            let keys = tier::keys(self.block_bytes as u64, number);
            let got = self.tier.client.get_into(&pool, &keys, blocks.run_mut(0, BATCH), &options)?;
            lost += (BATCH - got.hits) as u64;
            for (i, key) in keys.iter().enumerate().filter(|(i, _)| got.statuses[*i].is_hit()) {
                let wrong = Pattern::of(key).wrong_bytes(blocks.block(i));
                anyhow::ensure!(wrong == 0, "{wrong} wrong bytes in a block from SSD");
            }
        }
        Ok(lost)
    }
}
