//! The SSD tier of a host: its devices from their first read to their service, and which group has which segments. What
//! the engine does with it is in `engine/ssd.rs`.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use lapis_config::{OpId, PoolId, SegmentId, Time};
use lapis_ssd::{
    format::{LogId, SEGMENT_BYTES_MIN},
    recover::{DeviceScan, RecoveredRecords},
    volume::{
        Counters,
        open::{Found, Identity, Plan},
    },
};
use lapis_tiering::{health::DeviceHealth, segments::Segments};

/// What the configuration says of it.
#[derive(Clone, Debug)]
pub struct TierOptions {
    /// How the devices are called in logs and in the status.
    pub names: Vec<String>,
    /// The NUMA node of each, where it is known and followed.
    pub nodes: Vec<Option<u32>>,
    pub identity: Identity,
    /// Least bytes of a segment of a log that is made.
    pub segment_bytes_min: u64,
    pub list_after_us: u64,
    pub durable: bool,
    /// Without the tier the daemon does not go on.
    pub required: bool,
    /// Wall clock at the start.
    pub wall_s: u64,
}

/// Where its opening stands.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Superblocks are being read.
    Reading(Vec<Option<Found>>),
    /// They are being written, then segments scanned.
    Scanning(Vec<Option<DeviceScan>>),
    /// What was found on all devices is being merged.
    Merging,
    /// Cores are told of records, a few in each turn.
    Telling(Vec<Telling>),
    Serving,
    /// There is none, and why.
    Off(String),
}

/// What one group's core has not been told yet.
#[derive(Debug, Default)]
pub(crate) struct Telling {
    pub segments: Vec<(SegmentId, u64)>,
    /// Told from the end.
    pub records: RecoveredRecords,
    /// Numbers of the group's pools by the records' own.
    pub pools: Vec<PoolId>,
    /// Sequences below which a pool's records are gone.
    pub purged: Vec<(PoolId, u64)>,
}

#[derive(Debug)]
pub(crate) struct DriveState {
    pub health: DeviceHealth,
    /// Operations that the drive has, by when it got them.
    pub under_way: BTreeMap<OpId, Time>,
    pub order: VecDeque<(Time, OpId)>,
    /// What drives it, why nothing faster does, and its size, once it is open.
    pub engine: Option<&'static str>,
    pub engine_why: Option<String>,
    pub bytes: u64,
    pub segments: u32,
    /// What went to it and came from it since the start, as counted beside the device.
    pub counters: Counters,
    /// Operations that failed, probes not counted.
    pub errors: u64,
    /// It is being opened anew, alone, after it was out.
    pub reopening: bool,
    /// When it said something last.
    pub heard: Time,
}

pub struct Tier {
    pub(crate) options: TierOptions,
    pub(crate) phase: Phase,
    pub(crate) plan: Option<Plan>,
    pub(crate) drives: Vec<DriveState>,
    pub(crate) segments: Segments,
    /// Sequences below this are reserved on every device; and what is being reserved, by how many devices still.
    pub(crate) reserved: u64,
    pub(crate) reserving: Option<(u64, usize)>,
    pub(crate) op_next: u64,
    /// Set once: the daemon is to end with this.
    pub(crate) fatal: Option<String>,
    /// When the opening began, and when the tier served.
    pub(crate) began: Time,
    /// When segments were scanned, and when what they held was merged.
    pub(crate) scanned: Time,
    pub(crate) merged: Time,
    pub(crate) served: Option<Time>,
    pub(crate) recovered: u64,
    pub(crate) log_fresh: LogId,
}

/// Segments of a log that is made: a 64th of the smallest device, as a power of two, of at most so many bytes.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const SEGMENTS: u64 = 64;

/// How long a device may say nothing while it is opened. A scan of tens of gigabytes of contents takes longer and says
/// how far it is; a device that hangs does not.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A daemon that looks so much later than it would was stopped, with its devices' threads, or its host slept.
const LATE_US: u64 = 1_000_000;

/// The size of segments: that of the log if there is one, else what fits the devices.
pub(crate) fn segment_bytes(found: &[Found], least: u64) -> u64 {
    let known = found.iter().find_map(|found| match found {
        Found::Formatted { superblock, .. } => Some(superblock.segment_bytes),
        _ => None,
    });
    let bytes = found.iter().filter_map(|found| match found {
        Found::Blank { device_bytes } => Some(*device_bytes),
        _ => None,
    });
    let fits = bytes.min().map_or(0, |least| least / SEGMENTS).max(1);
    known.unwrap_or((1 << fits.ilog2()).clamp(least.max(SEGMENT_BYTES_MIN), SEGMENT_BYTES_MAX))
}

impl DriveState {
    pub fn new(now: Time) -> Self {
        Self {
            health: DeviceHealth::default(),
            under_way: BTreeMap::new(),
            order: VecDeque::new(),
            engine: None,
            engine_why: None,
            bytes: 0,
            segments: 0,
            counters: Counters::default(),
            errors: 0,
            reopening: false,
            heard: now,
        }
    }

    pub fn began(&mut self, now: Time, op: OpId) {
        self.under_way.insert(op, now);
        self.order.push_back((now, op));
    }

    pub fn ended(&mut self, op: OpId) {
        self.under_way.remove(&op);
        while self.order.front().is_some_and(|(_, op)| !self.under_way.contains_key(op)) {
            self.order.pop_front();
        }
    }

    pub fn oldest(&self) -> Option<Time> {
        self.order.front().map(|(at, _)| *at)
    }
}

impl Tier {
    pub fn new(options: TierOptions, now: Time, log_fresh: LogId) -> Self {
        let drives = options.names.len();
        Self {
            phase: Phase::Reading((0..drives).map(|_| None).collect()),
            plan: None,
            drives: (0..drives).map(|_| DriveState::new(now)).collect(),
            segments: Segments::default(),
            reserved: 0,
            reserving: None,
            op_next: 0,
            fatal: None,
            began: now,
            scanned: now,
            merged: now,
            served: None,
            recovered: 0,
            log_fresh,
            options,
        }
    }

    /// Whether it is still being opened.
    pub fn is_coming(&self) -> bool {
        !matches!(self.phase, Phase::Serving | Phase::Off(_))
    }

    pub fn serves(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    /// Whether nothing is left that could refuse the start: its superblocks were accepted, or the daemon goes on without.
    pub fn lets_start(&self) -> bool {
        self.plan.is_some() || !self.options.required
    }

    /// Why the daemon cannot go on.
    pub fn fatal(&self) -> Option<&str> {
        self.fatal.as_deref()
    }

    /// When a tier that is being opened is given up, and for which device: it hangs.
    pub(crate) fn opens_until(&self) -> Option<(Time, usize)> {
        let silent: Vec<bool> = match &self.phase {
            Phase::Reading(all) => all.iter().map(Option::is_none).collect(),
            Phase::Scanning(all) => all.iter().map(Option::is_none).collect(),
            _ => return None,
        };
        let awaited = self.drives.iter().enumerate().zip(silent).filter(|(_, silent)| *silent);
        awaited.map(|((device, drive), _)| (drive.heard.after(SILENCE_MAX), device)).min()
    }

    /// The device that hangs while the tier is opened. Who was stopped itself cannot tell who was silent: all begin anew.
    pub(crate) fn hanging(&mut self, now: Time) -> Option<usize> {
        let (until, device) = self.opens_until().filter(|(until, _)| now >= *until)?;
        if now.since_us(until) <= LATE_US {
            return Some(device);
        }
        self.drives.iter_mut().for_each(|drive| drive.heard = now);
        None
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        if !self.serves() {
            return self.opens_until().map(|(until, _)| until);
        }
        self.drives.iter().filter_map(|drive| drive.health.poll_timeout(drive.oldest())).min()
    }

    /// From when the tier was opened until it served, us.
    pub fn recovery_us(&self) -> Option<u64> {
        self.served.map(|at| at.since_us(self.began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_silent_only_to_a_daemon_that_listened() {
        let options = TierOptions {
            names: vec!["a".into(), "b".into()],
            nodes: vec![None; 2],
            identity: Identity { host: [0; 16], instance: [0; 16] },
            segment_bytes_min: 64 << 20,
            list_after_us: 100_000,
            durable: false,
            required: true,
            wall_s: 0,
        };
        let start = Time(5_000_000);
        let mut tier = Tier::new(options, start, LogId::default());
        let until = start.after(SILENCE_MAX);
        tier.drives[0].heard = start.after(Duration::from_secs(1));
        assert_eq!(tier.hanging(Time(until.0 - 1)), None);
        assert_eq!(tier.hanging(until), Some(1));
        // Stopped for a minute: nobody was heard, nobody is to blame.
        let back = start.after(2 * SILENCE_MAX);
        assert_eq!(tier.hanging(back), None);
        assert_eq!(tier.hanging(Time(back.after(SILENCE_MAX).0 - 1)), None);
        assert_eq!(tier.hanging(back.after(SILENCE_MAX)), Some(0));
    }
}
