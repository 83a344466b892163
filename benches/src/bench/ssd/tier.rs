//! A daemon with little memory over a file, and what its clients and its processor do.

use std::{path::Path, time::Duration};

use anyhow::Context;
use lapis_client::{Client, Pool, PutOptions, PutResult};
use lapis_config::{Key, PoolShape};

use super::{
    super::Plan,
    DEPTH,
    raw::{cpu_of_process, cpu_of_threads},
};
use crate::{
    host::{Host, HostOptions},
    limits::PrivateBlocks,
    load, pattern,
};

/// Memory of the daemon: small, so that blocks go to SSD.
pub const DRAM_BYTES: u64 = 512 << 20;
/// Blocks of one call.
pub const BATCH: usize = 32;
/// Longer than anything takes: a device of a shared machine may stall.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The daemon and a client.
pub struct Tier {
    pub host: Host,
    pub client: Client,
    pid: u32,
}

impl Tier {
    /// Starts a daemon over the file at `log`, and waits until its memory is there and its SSD tier serves.
    pub fn start(plan: &Plan, log: &Path, log_bytes: u64) -> anyhow::Result<Self> {
        let mut options = HostOptions::here(DRAM_BYTES)?;
        options.hold = false;
        options.flags = flags(log, log_bytes);
        let mut host = Host::start(options)?;
        let client = host.connect("bench ssd")?;
        let pid = host.daemon_pid().context("a daemon was started")?;
        super::super::copies::populated(plan, &mut host)?;
        serves(plan, &mut host)?;
        Ok(Self { host, client, pid })
    }

    /// A chain pool of blocks of this size; of `pieces` pieces.
    pub fn pool(&self, block_bytes: usize, pieces: u16) -> anyhow::Result<Pool> {
        let shape = PoolShape { pieces, ..load::shape("bench ssd", block_bytes as u64) };
        Ok(self.client.pool(&shape)?)
    }

    /// Processor time of the daemon so far: all but sums, and sums.
    pub fn cpu(&self) -> anyhow::Result<[Duration; 2]> {
        let sums = cpu_of_threads(self.pid, "verify").context("look at the daemon's threads")?;
        let all = cpu_of_process(Some(self.pid)).context("read the daemon's processor time")?;
        Ok([all.saturating_sub(sums), sums])
    }

    /// Waits until the daemon has nothing to do any more.
    pub fn rests(&self) -> anyhow::Result<()> {
        loop {
            let [all, sums] = self.cpu()?;
            std::thread::sleep(Duration::from_millis(20));
            let [all_then, sums_then] = self.cpu()?;
            if all_then + sums_then < all + sums + Duration::from_millis(1) {
                return Ok(());
            }
        }
    }

    /// How many of a batch are stored.
    pub fn put(&self, pool: &Pool, keys: &[Key], blocks: &[u8], options: &PutOptions) -> anyhow::Result<usize> {
        let put = self.client.put_from(pool, keys, None, blocks, options)?;
        Ok(put.results.iter().filter(|result| **result == PutResult::Stored).count())
    }
}

/// Options of a daemon with an SSD tier.
pub fn flags(log: &Path, log_bytes: u64) -> Vec<String> {
    vec![
        format!("--ssd-paths={}", log.display()),
        format!("--ssd-bytes={log_bytes}B"),
        format!("--ssd-queue-depth={DEPTH}"),
    ]
}

/// Waits until the SSD tier serves: how long that took from the daemon's own start, by its log, in milliseconds.
pub fn serves(plan: &Plan, host: &mut Host) -> anyhow::Result<f64> {
    host.until("the SSD tier to serve", |host| {
        plan.stop.check()?;
        let log = host.log_tail();
        let line = log.lines().rev().find(|line| line.contains("the SSD tier serves"));
        let us = line.and_then(|line| line.split("us=").nth(1)).and_then(|us| us.split(' ').next());
        Ok(us.and_then(|us| us.parse::<f64>().ok()).map(|us| us / 1e3))
    })
}

/// Memory that puts come from: bytes that no device makes less of.
pub fn noise(block_bytes: usize) -> anyhow::Result<PrivateBlocks> {
    let mut blocks = PrivateBlocks::new(BATCH * block_bytes, block_bytes)?;
    fastrand::Rng::with_seed(3).fill(blocks.run_mut(0, BATCH));
    Ok(blocks)
}

/// The keys of batch `number` of a pool.
pub fn keys(seed: u64, number: u64) -> Vec<Key> {
    let first = number * BATCH as u64;
    (first..first + BATCH as u64).map(|id| pattern::key(seed, id)).collect()
}
