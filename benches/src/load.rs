//! Requests played as an engine would: match the prefix, get what is there, put the rest. Every byte read is compared.

use std::time::{Duration, Instant};

use lapis_client::{Client, GetOptions, Namespace, Pool, PutOptions, PutResult};
use lapis_config::{BATCH_KEYS_MAX, HitPolicy, Key, PoolKind, PoolShape};

use crate::{
    limits::PrivateBlocks,
    pattern::{self, Pattern},
    samples::Samples,
    stop::Stop,
};

/// How long a client may take to be served by a new daemon.
const CONNECTED_WITHIN: Duration = Duration::from_secs(20);
/// Blocks of one get or put call.
const BATCH: usize = 32;

/// What was asked, found and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    /// Blocks that the requests named.
    pub blocks: u64,
    /// Of those, read: leading blocks of their request that were there.
    pub hits: u64,
    /// Matched, but gone when they were read: evicted in between, or not to be had while no daemon was there.
    pub lost: u64,
    pub stored: u64,
    /// Put by somebody else in between.
    pub existed: u64,
    pub refused: u64,
    pub wrong_bytes: u64,
}

/// A chain pool of blocks of this size, in a namespace of its own for each `purpose`.
pub fn shape(purpose: &str, block_bytes: u64) -> PoolShape {
    let namespace = Namespace::new("lapis").revision(purpose).tokens_per_block(512).fingerprint();
    PoolShape { namespace, label: String::new(), kind: PoolKind::Chain, block_bytes, pieces: 1 }
}

/// Plays requests through one client.
pub struct Load {
    client: Client,
    pool: Pool,
    seed: u64,
    keys: Vec<Key>,
    buffer: PrivateBlocks,
    counts: Counts,
    /// Time within the client's calls, one value a request, in microseconds.
    request_us: Samples,
    getting: Duration,
    putting: Duration,
}

impl Load {
    /// Keys and bytes follow from `seed` and the requests' ids.
    pub fn new(client: Client, pool: Pool, seed: u64) -> anyhow::Result<Self> {
        let block_bytes = pool.block_bytes() as usize;
        let buffer = PrivateBlocks::new(BATCH * block_bytes, block_bytes)?;
        Ok(Self {
            client,
            pool,
            seed,
            keys: Vec::new(),
            buffer,
            counts: Counts::default(),
            request_us: Samples::default(),
            getting: Duration::ZERO,
            putting: Duration::ZERO,
        })
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Times of the requests so far, in microseconds: look-up, gets and puts; not the making and comparing of bytes.
    pub fn request_us(&mut self) -> &mut Samples {
        &mut self.request_us
    }

    /// Bytes a second of the gets, and of the puts.
    pub fn rates(&self) -> [f64; 2] {
        let rate =
            |blocks: u64, time: Duration| (blocks * self.pool.block_bytes()) as f64 / time.as_secs_f64().max(1e-9);
        [rate(self.counts.hits, self.getting), rate(self.counts.stored, self.putting)]
    }

    /// Waits until the client's daemon, another one than before, serves it.
    pub fn until_connected(&self, stop: &Stop) -> anyhow::Result<()> {
        let until = Instant::now() + CONNECTED_WITHIN;
        while !self.client.is_connected() {
            stop.check()?;
            anyhow::ensure!(Instant::now() < until, "the client is not served again after {CONNECTED_WITHIN:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// One request for a chain of blocks.
    pub fn request(&mut self, ids: &[u64]) -> anyhow::Result<()> {
        self.keys.clear();
        self.keys.extend(ids.iter().map(|id| pattern::key(self.seed, *id)));
        let before = self.getting + self.putting;
        let hits = self.get_prefix()?;
        self.put_rest(hits)?;
        self.counts.requests += 1;
        self.counts.blocks += ids.len() as u64;
        self.counts.hits += hits as u64;
        self.request_us.push((self.getting + self.putting - before).as_secs_f64() * 1e6);
        Ok(())
    }

    /// Reads the leading blocks that are there; how many.
    fn get_prefix(&mut self) -> anyhow::Result<usize> {
        let mut hits = 0;
        for part in self.keys.chunks(BATCH_KEYS_MAX) {
            let started = Instant::now();
            let matched = self.client.fetch_prefix(&[(self.pool.clone(), HitPolicy::Prefix)], part, None)?;
            self.getting += started.elapsed();
            for keys in part[..matched].chunks(BATCH) {
                let buffer = self.buffer.run_mut(0, keys.len());
                let started = Instant::now();
                let got = self.client.get_into(&self.pool, keys, buffer, &GetOptions::default())?;
                self.getting += started.elapsed();
                for (i, (key, status)) in keys.iter().zip(&got.statuses).enumerate() {
                    if status.is_hit() {
                        self.counts.wrong_bytes += Pattern::of(key).wrong_bytes(self.buffer.block(i));
                    }
                }
                let prefix = got.prefix();
                hits += prefix;
                if prefix < keys.len() {
                    self.counts.lost += (keys.len() - prefix) as u64;
                    return Ok(hits);
                }
            }
            if matched < part.len() {
                break;
            }
        }
        Ok(hits)
    }

    /// Stores the blocks of the chain from `from` on.
    fn put_rest(&mut self, from: usize) -> anyhow::Result<()> {
        let mut parent = from.checked_sub(1).map(|last| self.keys[last]);
        for keys in self.keys[from..].chunks(BATCH) {
            let buffer = self.buffer.run_mut(0, keys.len());
            for (key, block) in keys.iter().zip(buffer.chunks_exact_mut(self.pool.block_bytes() as usize)) {
                Pattern::of(key).fill(block);
            }
            let started = Instant::now();
            let put = self.client.put_from(&self.pool, keys, parent, &*buffer, &PutOptions::default())?;
            self.putting += started.elapsed();
            for result in put.results {
                match result {
                    PutResult::Stored => self.counts.stored += 1,
                    PutResult::Exists => self.counts.existed += 1,
                    PutResult::Refused(_) => self.counts.refused += 1,
                }
            }
            parent = keys.last().copied();
        }
        Ok(())
    }
}
