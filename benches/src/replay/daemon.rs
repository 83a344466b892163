//! The same requests through a real daemon over shared memory, and through the core alone at the times at which the
//! daemon had them: like is compared with like.
//!
//! Per request a real client matches the prefix, gets what is there and compares every byte, reserves the rest, fills it
//! and commits it, as the core's replay does without bytes. Blocks are scaled to 4 KiB. A client's blocks are all of one
//! length, so the last block of a request is full here, for the daemon and for the core beside it.

use std::{
    env,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lapis_client::{Client, GetOptions, Pool, PutOptions, PutResult, Refusal};
use lapis_config::{BATCH_KEYS_MAX, Bytes, DRAM_BYTES_MIN, DRAM_STEP_BYTES, HitPolicy, Key};
use lapis_tiering::replay::ghost_bytes;
use lapis_trace::{BLOCK_TOKENS, Request};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::Value;

use super::{
    Outcome,
    cache::{core_close_together, drive},
    outcome::rounded,
    words::Subject,
    workload::Workload,
};
use crate::{
    host::{Host, HostOptions},
    limits::PrivateBlocks,
    load::shape,
    pattern::{self, Pattern},
    stop::Stop,
};

/// What a block of the trace is scaled to: one slot of the arena is a page.
const BLOCK_BYTES: u64 = 4096;
const SEED: u64 = 1;
/// However busy the machine is: a put that is late would be missed later.
const DEADLINE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A daemon, and how much faster than the trace it lives.
#[derive(Clone, Debug)]
pub struct DaemonPlan {
    /// The `lapis` binary.
    pub binary: PathBuf,
    /// Seconds of the trace in one second.
    pub speed: u32,
}

/// What the daemon's client had, beside the core's own figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DaemonOutcome {
    pub speed: u32,
    pub daemon_hit_blocks: u64,
    /// The daemon's hit blocks by those of the core.
    pub daemon_by_core: f64,
    /// Blocks that the daemon would not have, for what would make room for them is worth more.
    pub daemon_cold: u64,
    /// Blocks that it would not have for any other reason, such as no room in time.
    pub daemon_refused: u64,
    /// Matched, and gone when it was read.
    pub daemon_lost: u64,
    /// The longest that a request began after its time, ms.
    pub late_ms_max: u64,
}

impl DaemonPlan {
    /// Of this very binary.
    pub fn here(speed: u32) -> anyhow::Result<Self> {
        Ok(Self { binary: env::current_exe().context("find this program's own file")?, speed })
    }

    /// Whether a daemon has such a policy and can have exactly so many blocks: an error says what it can.
    pub fn check(subject: Subject, capacity: u64) -> anyhow::Result<()> {
        let word = subject.word();
        ensure!(
            matches!(subject, Subject::Core(_)),
            "--policy {word} is no policy of a daemon: leave out --daemon, or take one such as lru"
        );
        let (step, least) = (DRAM_STEP_BYTES / BLOCK_BYTES, DRAM_BYTES_MIN / BLOCK_BYTES);
        ensure!(
            capacity >= least && capacity.is_multiple_of(step),
            "--daemon: {capacity} blocks of {} are no memory that a daemon can have: give --capacity {least} or more, in \
             steps of {step}, such as {}",
            Bytes(BLOCK_BYTES),
            capacity.next_multiple_of(step).max(least)
        );
        Ok(())
    }

    /// The core's outcome, with the daemon's in it. The workload's requests must be shorter than a batch has keys.
    pub fn replay(&self, workload: &Workload, subject: Subject, capacity: u64) -> anyhow::Result<Outcome> {
        Self::check(subject, capacity)?;
        let Subject::Core(policy) = subject else { unreachable!("checked") };
        let ids = workload.requests.iter().map(|request| request.ids.len()).max().unwrap_or(0);
        ensure!(ids <= BATCH_KEYS_MAX, "a request of {ids} blocks, a client's call has {BATCH_KEYS_MAX} at most");
        let mut through = Through::start(self, subject.word(), capacity, ids)?;
        let (mut requests, mut hit_blocks, mut late_ms_max) = (Vec::with_capacity(workload.requests.len()), 0, 0);
        let (stop, started) = (Stop::on_signals()?, Instant::now());
        let first_ms = workload.requests.first().map_or(0, |request| request.timestamp_ms);
        for request in &workload.requests {
            stop.check()?;
            let due = Duration::from_millis(request.timestamp_ms - first_ms) / self.speed;
            thread::sleep(due.saturating_sub(started.elapsed()));
            late_ms_max = late_ms_max.max(started.elapsed().saturating_sub(due).as_millis() as u64);
            let tokens = request.ids.len() as u64 * BLOCK_TOKENS;
            requests.push(Request { timestamp_ms: boot_ms(), input_length: tokens, ..request.clone() });
            let asked = through.request(&request.ids);
            hit_blocks += asked.with_context(|| format!("the daemon said: {}", through.host.log_tail()))?;
        }
        let Through { cold, refused, lost, wrong_bytes, .. } = through;
        ensure!(wrong_bytes == 0, "{wrong_bytes} bytes were not those that were put under their keys");

        let mut core = core_close_together(policy, capacity);
        let outcome = drive(&Workload { requests, ..*workload }, &mut *core);
        let daemon = DaemonOutcome {
            speed: self.speed,
            daemon_hit_blocks: hit_blocks,
            daemon_by_core: rounded(hit_blocks as f64 / outcome.hit_blocks.max(1) as f64),
            daemon_cold: cold,
            daemon_refused: refused,
            daemon_lost: lost,
            late_ms_max,
        };
        Ok(Outcome { daemon: Some(daemon), ..outcome })
    }
}

/// A client of a daemon of its own. Clients go before daemons.
struct Through {
    client: Client,
    pool: Pool,
    host: Host,
    keys: Vec<Key>,
    buffer: PrivateBlocks,
    cold: u64,
    refused: u64,
    lost: u64,
    wrong_bytes: u64,
}

impl Through {
    /// Returns when all memory is there: what is still being populated holds fewer blocks.
    fn start(plan: &DaemonPlan, policy: &str, capacity: u64, longest: usize) -> anyhow::Result<Self> {
        let flags = [
            "--policy-name".into(),
            policy.into(),
            // A table without full windows, as the core's own is.
            "--index-entries-max".into(),
            (4 * capacity).to_string(),
            "--index-ghost-bytes".into(),
            format!("{}B", ghost_bytes(capacity)),
        ];
        let dram_bytes = capacity * BLOCK_BYTES;
        let binary = plan.binary.clone();
        let mut host =
            Host::start(HostOptions { binary, dram_bytes, ssd_bytes: None, hold: false, flags: flags.into() })?;
        let client = host.connect("replay")?;
        let pool = client.pool(&shape("replay", BLOCK_BYTES))?;
        host.until("memory to be populated", |host| {
            thread::sleep(LOOK_EVERY);
            let status: Value = serde_json::from_str(&lapis_client::status(host.socket(), DEADLINE)?)?;
            let populated = status.pointer("/dram/populated_bytes").and_then(Value::as_u64);
            Ok((populated >= Some(dram_bytes)).then_some(()))
        })?;
        let block_bytes = BLOCK_BYTES as usize;
        let buffer = PrivateBlocks::new(longest * block_bytes, block_bytes)?;
        Ok(Self { host, client, pool, keys: Vec::new(), buffer, cold: 0, refused: 0, lost: 0, wrong_bytes: 0 })
    }

    /// How many leading blocks were there.
    fn request(&mut self, ids: &[u64]) -> anyhow::Result<u64> {
        self.keys.clear();
        self.keys.extend(ids.iter().map(|id| pattern::key(SEED, *id)));
        let hits = self.get()?;
        self.put(hits)?;
        Ok(hits as u64)
    }

    fn get(&mut self) -> anyhow::Result<usize> {
        let matched = self.client.match_prefix(&[(self.pool.clone(), HitPolicy::Prefix)], &self.keys)?;
        if matched == 0 {
            return Ok(0);
        }
        let options = GetOptions { deadline: Some(DEADLINE), ..GetOptions::default() };
        let got = self.client.get_into(&self.pool, &self.keys[..matched], self.buffer.run_mut(0, matched), &options)?;
        let hits = got.prefix();
        self.lost += (matched - hits) as u64;
        let wrong = |(i, key): (usize, &Key)| Pattern::of(key).wrong_bytes(self.buffer.block(i));
        self.wrong_bytes += self.keys[..hits].iter().enumerate().map(wrong).sum::<u64>();
        Ok(hits)
    }

    fn put(&mut self, hits: usize) -> anyhow::Result<()> {
        let keys = &self.keys[hits..];
        if keys.is_empty() {
            return Ok(());
        }
        let parent = hits.checked_sub(1).map(|above| self.keys[above]);
        let options = PutOptions { deadline: Some(DEADLINE) };
        let mut reservation = self.client.reserve(&self.pool, keys, parent, &options)?;
        let block = self.buffer.run_mut(0, 1);
        for (i, key) in keys.iter().enumerate() {
            if reservation.as_mut_ptr(i).is_some() {
                Pattern::of(key).fill(block);
                reservation.write_at(i, 0, block)?;
            }
        }
        let put = self.client.commit(reservation, None, &options)?;
        for result in &put.results {
            match result {
                PutResult::Refused(Refusal::Cold) => self.cold += 1,
                PutResult::Refused(_) => self.refused += 1,
                _ => {}
            }
        }
        Ok(())
    }
}

/// On the daemon's clock.
fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_that_no_daemon_can_have_is_an_error_with_one_that_it_can() {
        let lru = Subject::Core(lapis_config::PolicyName::Lru);
        let said = |capacity| DaemonPlan::check(lru, capacity).expect_err("no memory").to_string();
        assert!(said(10_000).ends_with("such as 10240"), "{}", said(10_000));
        assert!(said(1).ends_with("such as 4096"), "{}", said(1));
        assert!(DaemonPlan::check(lru, 10_240).is_ok());
    }
}
