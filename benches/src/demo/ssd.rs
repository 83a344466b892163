//! The demo's SSD tier: how large its file may be, what the daemon says of it, and blocks that are only there, read back.

use std::{
    env,
    fs::File,
    io::{Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use anyhow::{Context, ensure};
use lapis_client::{Client, GetOptions, Pool, session::Session};
use lapis_config::{Bytes, Key, SSD_BYTES_MIN};
use lapis_ssd::passthrough::block_beside;
use serde_json::Value;

use super::DemoArgs;
use crate::{host::Host, limits::PrivateBlocks, pattern::Pattern, stop::Stop};

/// Of the file where there is room.
const BYTES_DEFAULT: u64 = 4 << 30;
/// Left free on the disk beside it.
const SLACK_BYTES: u64 = 1 << 30;
const STEP_BYTES: u64 = 64 << 20;
/// File systems in memory, by their magic numbers: tmpfs, ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// On however busy a machine.
const STATUS_WITHIN: Duration = Duration::from_secs(10);

/// Blocks that are read back after the kill; each call asks for a few that lie anywhere.
const SAMPLE: u64 = 2000;
const SAMPLE_BATCH: usize = 8;
const SAMPLE_DEADLINE: Duration = Duration::from_secs(5);

/// `--ssd`: a size, or 0.
pub fn size(text: &str) -> Result<u64, String> {
    match text {
        "0" => Ok(0),
        text => lapis_config::size(text).map_err(|mistake| mistake.to_string()),
    }
}

/// What the demo's daemon is given.
#[derive(Debug)]
pub struct Tier {
    /// Of a file of its own.
    pub bytes: Option<u64>,
    /// Of the daemon.
    pub flags: Vec<String>,
    /// `None`: there is no tier.
    pub name: Option<String>,
    pub note: Option<String>,
}

/// The tier that is asked for: a file, or devices. Those get a log of the demo's own: a daemon's is refused.
pub fn tier(args: &DemoArgs) -> anyhow::Result<Tier> {
    let mut flags = vec!["--ssd-engine".into(), args.ssd_engine.clone()];
    if args.ssd_paths.is_empty() {
        let (bytes, note) = bytes(args.ssd)?;
        let name = bytes.map(|bytes| format!("{} on SSD", Bytes(bytes)));
        return Ok(Tier { bytes, flags, name, note });
    }
    let paths: Vec<String> = args.ssd_paths.iter().map(|path| path.display().to_string()).collect();
    flags.extend(["--ssd-paths".into(), paths.join(","), "--ssd-instance".into(), "demo".into()]);
    // The daemon's index is made for so much on each; all of a device is used in any case.
    if let Some(bytes) = args.ssd_paths.iter().filter_map(|path| device_bytes(path)).max() {
        flags.extend(["--ssd-bytes".into(), Bytes(bytes.max(SSD_BYTES_MIN)).to_string()]);
    }
    let name = Some(format!("{} by {}", paths.join(", "), args.ssd_engine));
    Ok(Tier { bytes: None, flags, name, note: None })
}

fn device_bytes(path: &Path) -> Option<u64> {
    let block = block_beside(path);
    File::open(block.as_deref().unwrap_or(path)).and_then(|mut device| device.seek(SeekFrom::End(0))).ok()
}

/// Bytes of the file, `None` for none, and what is to be said of that.
pub fn bytes(asked: Option<u64>) -> anyhow::Result<(Option<u64>, Option<String>)> {
    let folder = env::temp_dir();
    let name = folder.display();
    let disk = rustix::fs::statfs(&folder).with_context(|| format!("ask for the room in {name}"))?;
    let free = disk.f_bavail.saturating_mul(disk.f_bsize as u64);
    match asked {
        Some(0) => return Ok((None, None)),
        Some(bytes) => {
            ensure!(
                bytes >= SSD_BYTES_MIN,
                "{} on SSD, the least is {} (0: no SSD tier)",
                Bytes(bytes),
                Bytes(SSD_BYTES_MIN)
            );
            ensure!(bytes <= free, "{} on SSD, but {name} has only {} MiB free", Bytes(bytes), free >> 20);
            return Ok((Some(bytes), None));
        }
        None => {}
    }
    if IN_MEMORY.contains(&(disk.f_type as u64)) {
        return Ok((None, Some(format!("{name} is memory, not a disk: no SSD tier (TMPDIR names another folder)"))));
    }
    let bytes = BYTES_DEFAULT.min(free.saturating_sub(SLACK_BYTES) / STEP_BYTES * STEP_BYTES);
    let note = format!("{name} has only {} MiB free", free >> 20);
    Ok(match bytes {
        BYTES_DEFAULT => (Some(bytes), None),
        bytes if bytes < SSD_BYTES_MIN => (None, Some(format!("{note}: no SSD tier (TMPDIR names another folder)"))),
        bytes => (Some(bytes), Some(format!("{note}: the SSD tier has {}", Bytes(bytes)))),
    })
}

/// The same for each of several hosts; a file for all of them is divided.
pub fn bytes_for(asked: Option<u64>, hosts: usize) -> anyhow::Result<(Option<u64>, Option<String>)> {
    let (bytes, note) = bytes(asked.map(|bytes| bytes.saturating_mul(hosts as u64)))?;
    let each = bytes.map(|bytes| bytes / hosts as u64 / STEP_BYTES * STEP_BYTES);
    Ok((each.filter(|bytes| *bytes >= SSD_BYTES_MIN), note))
}

/// What a daemon counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tiers {
    /// Blocks that somebody waited for and that came from SSD.
    pub hits_ssd: u64,
    pub admitted_bytes: u64,
    pub written_bytes: u64,
    pub demotions: u64,
    pub promotions: u64,
    pub checksum_failures: u64,
}

impl Tiers {
    pub fn now(host: &Host) -> anyhow::Result<Self> {
        Ok(Self::of(&status(host)?))
    }

    pub fn of(status: &Value) -> Self {
        let number = |path: &str| status.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        Self {
            hits_ssd: number("/hits/keys_hit_ssd"),
            admitted_bytes: number("/ssd/admitted_bytes"),
            written_bytes: number("/ssd/device_written_bytes"),
            demotions: number("/ssd/demotions"),
            promotions: number("/ssd/promotions"),
            checksum_failures: number("/dram/checksum_failures"),
        }
    }

    /// Of two daemons, one after the other.
    pub fn through(&self, later: &Self) -> Self {
        Self {
            hits_ssd: self.hits_ssd + later.hits_ssd,
            admitted_bytes: self.admitted_bytes + later.admitted_bytes,
            written_bytes: self.written_bytes + later.written_bytes,
            demotions: self.demotions + later.demotions,
            promotions: self.promotions + later.promotions,
            checksum_failures: self.checksum_failures + later.checksum_failures,
        }
    }
}

/// What the daemon says of itself.
pub fn status(host: &Host) -> anyhow::Result<Value> {
    let text = lapis_client::status(host.socket(), STATUS_WITHIN).context("ask for the daemon's status")?;
    serde_json::from_str(&text).context("read the daemon's status")
}

/// Blocks that were on SSD alone and were read back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    pub verified: u64,
    pub missed: u64,
    /// What the new daemon had counted when it was over: no hits of the trace.
    pub hits_ssd: u64,
    pub wrong_bytes: u64,
}

/// Reads some of the blocks that are on SSD and not in DRAM, from anywhere among `keys`.
pub fn sample(client: &Client, pool: &Pool, keys: &[Key], seed: u64, stop: &Stop) -> anyhow::Result<Sample> {
    // Of the session that there is now: a client that was away for a moment has another one.
    let only_on_ssd =
        |session: &Session, key: &Key| session.find(pool, key).is_some_and(|found| !found.state.is_readable());
    let session = client.session()?;
    let mut only_there: Vec<Key> = keys.iter().copied().filter(|key| only_on_ssd(&session, key)).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut only_there);
    let block_bytes = pool.block_bytes() as usize;
    let mut buffer = PrivateBlocks::new(SAMPLE_BATCH * block_bytes, block_bytes)?;
    let options = GetOptions { deadline: Some(SAMPLE_DEADLINE), ..GetOptions::default() };
    let mut sample = Sample::default();
    for keys in only_there.chunks(SAMPLE_BATCH) {
        if sample.verified + sample.missed >= SAMPLE {
            break;
        }
        stop.check()?;
        // What came into DRAM meanwhile, read ahead, is none of them any more.
        let session = client.session()?;
        let keys: Vec<Key> = keys.iter().copied().filter(|key| only_on_ssd(&session, key)).collect();
        if keys.is_empty() {
            continue;
        }
        let got = client.get_into(pool, &keys, buffer.run_mut(0, keys.len()), &options)?;
        for (i, (key, status)) in keys.iter().zip(&got.statuses).enumerate() {
            if status.is_hit() {
                sample.verified += 1;
                sample.wrong_bytes += Pattern::of(key).wrong_bytes(buffer.block(i));
            } else {
                sample.missed += 1;
            }
        }
    }
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_a_least_size_and_must_fit_the_disk() {
        assert_eq!((size("0"), size("1GiB")), (Ok(0), Ok(1 << 30)));
        assert!(size("much").is_err());
        let error = |asked| bytes(Some(asked)).expect_err("refused").to_string();
        assert_eq!(error(1 << 20), "1MiB on SSD, the least is 512MiB (0: no SSD tier)");
        assert!(error(1 << 60).contains("MiB free"));
        assert_eq!(bytes(Some(0)).expect("none"), (None, None));
        let (by_default, _) = bytes(None).expect("the folder is there");
        assert!(by_default.is_none_or(|bytes| (SSD_BYTES_MIN..=BYTES_DEFAULT).contains(&bytes)));
    }
}
