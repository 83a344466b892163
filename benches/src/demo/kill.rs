//! The moment the demo is about: the daemon is killed while somebody reads, and started again.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::ensure;
use lapis_client::{Client, GetOptions, Pool, PutOptions, PutResult};
use lapis_config::{BATCH_KEYS_MAX, Key};

use super::ssd::{self, Sample, Tiers};
use crate::{
    host::Host,
    limits::PrivateBlocks,
    pattern::{self, Pattern},
    stop::Stop,
};

/// Blocks that the reader reads over and over.
pub(super) const READER_BLOCKS: usize = 8;
/// Its ids: no trace has such.
const READER_IDS: u64 = 1 << 63;
/// Calls of the reader before the kill, while no daemon is there, and after the restart, at least.
const READER_CALLS: u64 = 1000;

/// What the kill did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Killed {
    /// Blocks that were there before, and those of them that are there when the new daemon has taken over.
    pub blocks_before: u64,
    pub blocks_after: u64,
    /// From the new daemon's exec to the first compared hit of a client that connected anew.
    pub first_hit: Duration,
    /// From the kill until the old client was served by the new daemon.
    pub reconnected: Duration,
    /// Blocks that the reader read from before the kill to after the restart, and how many were misses.
    pub reads: u64,
    pub read_misses: u64,
    /// Its longest call.
    pub read_longest: Duration,
    pub wrong_bytes: u64,
    /// What the first daemon counted.
    pub tiers: Tiers,
    /// Blocks on SSD before, and of those found by the new daemon; how long that took it from its start.
    pub ssd_before: u64,
    pub ssd_found: u64,
    pub ssd_recovery_s: f64,
    pub sample: Sample,
}

/// Kills the daemon of `host` and starts it again. `keys` is whatever may be there.
pub fn kill(
    host: &mut Host,
    client: &Client,
    pool: &Pool,
    seed: u64,
    keys: &[Key],
    stop: &Stop,
) -> anyhow::Result<Killed> {
    let own: Vec<Key> = (0..READER_BLOCKS as u64).map(|i| pattern::key(seed, READER_IDS | i)).collect();
    put_own(client, pool, &own)?;
    let reader_client = host.connect("demo reader")?;
    let reader_pool = reader_client.pool(pool.shape())?;
    let reader = Reader::default();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| reader.run(&reader_client, &reader_pool, &own));
        // Whatever happens, the reader ends, so that the scope does.
        let _end = EndReader(&reader);
        let mut killed = Killed::default();

        reader.more_calls(host, stop)?;
        let mut there = present(client, pool, keys)?;
        killed.blocks_before = there.len() as u64;
        let before = ssd::status(host)?;
        killed.tiers = Tiers::of(&before);
        killed.ssd_before = before["ssd"]["blocks"].as_u64().unwrap_or(0);
        let killed_at = Instant::now();
        host.kill_daemon()?;
        reader.more_calls(host, stop)?;
        let started = host.start_daemon()?;

        let (first_hit, wrong) = first_hit(host, pool, &own[0], started)?;
        (killed.first_hit, killed.wrong_bytes) = (first_hit, wrong);
        host.until("the client to be served again", |_| {
            stop.check()?;
            Ok(client.is_connected().then_some(()))
        })?;
        killed.reconnected = killed_at.elapsed();
        let after = host.until("the new daemon to take over all blocks", |host| {
            stop.check()?;
            // Asked again: a busy machine may not let it answer in time.
            let Ok(status) = ssd::status(host) else { return Ok(None) };
            Ok((status["adopting"] == false && status["ssd"]["state"] != "coming").then_some(status))
        })?;
        killed.ssd_found = after["ssd"]["recovered_blocks"].as_u64().unwrap_or(0);
        killed.ssd_recovery_s = after["ssd"]["recovery_s"].as_f64().unwrap_or(0.0);
        there = present(client, pool, &there)?;
        killed.blocks_after = there.len() as u64;
        killed.sample = ssd::sample(client, pool, &there, seed, stop)?;
        killed.wrong_bytes += killed.sample.wrong_bytes;
        killed.sample.hits_ssd = Tiers::now(host)?.hits_ssd;
        reader.more_calls(host, stop)?;

        reader.stop.store(true, Ordering::Relaxed);
        let (wrong_bytes, longest) = reading.join().expect("the reader does not panic")?;
        killed.wrong_bytes += wrong_bytes;
        killed.read_longest = longest;
        killed.reads = reader.calls.load(Ordering::Relaxed) * READER_BLOCKS as u64;
        killed.read_misses = reader.misses.load(Ordering::Relaxed);
        Ok(killed)
    })
}

fn put_own(client: &Client, pool: &Pool, own: &[Key]) -> anyhow::Result<()> {
    let mut bytes = vec![0; own.len() * pool.block_bytes() as usize];
    for (key, block) in own.iter().zip(bytes.chunks_exact_mut(pool.block_bytes() as usize)) {
        Pattern::of(key).fill(block);
    }
    let put = client.put_from(pool, own, None, &bytes, &PutOptions::default())?;
    let stored = put.results.iter().all(|result| !matches!(result, PutResult::Refused(_)));
    ensure!(stored, "the reader's blocks were refused: {put:?}");
    Ok(())
}

/// Those of `keys` that are there.
fn present(client: &Client, pool: &Pool, keys: &[Key]) -> anyhow::Result<Vec<Key>> {
    let mut there = Vec::with_capacity(keys.len());
    for keys in keys.chunks(BATCH_KEYS_MAX) {
        let present = client.exists(pool, keys)?;
        there.extend(keys.iter().enumerate().filter(|(i, _)| present.get(*i)).map(|(_, key)| *key));
    }
    Ok(there)
}

/// A client that has never been here connects and reads a block.
fn first_hit(host: &mut Host, pool: &Pool, key: &Key, started: Instant) -> anyhow::Result<(Duration, u64)> {
    let client = host.connect("demo first hit")?;
    let pool = client.pool(pool.shape())?;
    let mut block = vec![0; pool.block_bytes() as usize];
    host.until("the first hit after the kill", |_| {
        let got = client.get_into(&pool, &[*key], &mut block, &GetOptions::default())?;
        Ok(got.statuses[0].is_hit().then(|| (started.elapsed(), Pattern::of(key).wrong_bytes(&block))))
    })
}

/// Reads the same blocks in a loop, on its own connection.
#[derive(Default)]
struct Reader {
    calls: AtomicU64,
    misses: AtomicU64,
    stop: AtomicBool,
}

impl Reader {
    /// Until told to stop; the wrong bytes and the longest call.
    fn run(&self, client: &Client, pool: &Pool, keys: &[Key]) -> anyhow::Result<(u64, Duration)> {
        let block_bytes = pool.block_bytes() as usize;
        let mut buffer = PrivateBlocks::new(keys.len() * block_bytes, block_bytes)?;
        let (mut wrong, mut longest) = (0, Duration::ZERO);
        while !self.stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            let got = client.get_into(pool, keys, buffer.run_mut(0, keys.len()), &GetOptions::default())?;
            longest = longest.max(started.elapsed());
            for (i, (key, status)) in keys.iter().zip(&got.statuses).enumerate() {
                if status.is_hit() {
                    wrong += Pattern::of(key).wrong_bytes(buffer.block(i));
                }
            }
            self.misses.fetch_add((keys.len() - got.hits) as u64, Ordering::Relaxed);
            self.calls.fetch_add(1, Ordering::Relaxed);
        }
        Ok((wrong, longest))
    }

    /// Waits until the reader has made some more calls.
    fn more_calls(&self, host: &mut Host, stop: &Stop) -> anyhow::Result<()> {
        let wanted = self.calls.load(Ordering::Relaxed) + READER_CALLS;
        host.until("the reader", |_| {
            stop.check()?;
            Ok((self.calls.load(Ordering::Relaxed) >= wanted).then_some(()))
        })
    }
}

struct EndReader<'a>(&'a Reader);

impl Drop for EndReader<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}
