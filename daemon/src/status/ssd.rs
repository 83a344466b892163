//! The SSD tier in a group's status, and its sums for the metrics.
//!
//! Invariant: with several groups on the host, nothing here tells of another: of devices only whether they are well.

use lapis_ssd::volume::Counters;
use lapis_tiering::{face::Counts, health::DeviceState};
use lapis_transport::wire::Wire;
use serde::{Deserialize, Serialize};

use crate::{
    engine::Engine,
    movers::Movers,
    tier::{DriveState, Phase, Tier},
};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ssd {
    /// "none" (not configured), "coming" (being opened and recovered), "serving" or "off" (it could not be opened).
    pub state: String,
    pub why_off: Option<String>,
    pub devices: Vec<Device>,
    /// Blocks on SSD, in DRAM too or not; and of all blocks of the group, those only here, in both, only in DRAM.
    pub blocks: u64,
    pub blocks_ssd_only: u64,
    pub blocks_both: u64,
    pub blocks_dram_only: u64,
    /// Of their records.
    pub used_bytes: u64,
    /// Bytes of blocks that came to SSD, and of blocks that were written anew because their segment went.
    pub admitted_bytes: u64,
    pub readmitted_bytes: u64,
    /// All that was written for it: records, tables of contents, headers, superblocks. Counted beside the devices; with
    /// several groups it is this group's own records, tables and headers, as the core counts them.
    pub device_written_bytes: u64,
    /// `device_written_bytes / admitted_bytes`, 0 if nothing was admitted.
    pub write_amplification: f64,
    /// Blocks that left DRAM and stayed on SSD, that came back, and that left SSD for ever.
    pub demotions: u64,
    pub promotions: u64,
    pub evictions: u64,
    pub segments_retired: u64,
    /// `None`: as many bytes as there are to write (`ssd.write_budget`).
    pub write_budget: Option<WriteBudget>,
    pub read_failures: u64,
    pub write_failures: u64,
    /// Of `dram.checksum_failures`: blocks that lay on SSD too.
    pub checksum_failures: u64,
    /// Blocks of former starts that were found on SSD, and records that were not taken over.
    pub recovered_blocks: u64,
    pub passed_over: u64,
    /// From the start until all was found; `None` before that, and where the host has several groups: it tells how much
    /// they have.
    pub recovery_s: Option<f64>,
}

/// The group's own share of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteBudget {
    pub bytes_a_day: u64,
    /// Records, contents and headers since the daemon's start.
    pub spent_bytes: u64,
    /// Saved and not spent, a day's bytes at most; negative when more was written.
    pub available_bytes: i64,
    /// Full blocks that left memory without being on SSD, for want of budget.
    pub declined_blocks: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Device {
    pub path: String,
    /// "passthrough", "passthrough-polled", "uring" or "threads"; `None` until it is open.
    pub engine: Option<String>,
    /// Why it is not a faster one, where "auto" passed over some.
    #[serde(default)]
    pub engine_why: Option<String>,
    pub bytes: u64,
    /// "well", "degraded" (erring or stalling: not written) or "out" (neither read nor written).
    pub state: String,
    /// `None` where the host has several groups.
    pub load: Option<Load>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Load {
    pub operations_in_flight: u64,
    /// Operations that failed.
    pub errors: u64,
    pub segments_used: u64,
    pub segments_free: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Of them, payloads; the rest is tables, headers, superblocks.
    pub record_bytes: u64,
    pub flushes: u64,
}

impl Ssd {
    pub(super) fn of<W: Wire, M: Movers>(engine: &Engine<W, M>, index: usize) -> Self {
        let counts = engine.groups()[index].core.counts();
        let alone = engine.groups().len() == 1;
        let tier = engine.tier();
        let devices = tier.map_or(0, |tier| tier.drives.len());
        let written = match tier {
            Some(tier) if alone => tier.drives.iter().map(|drive| drive.counters.written_bytes()).sum(),
            _ => counts.ssd_record_bytes + counts.ssd_table_bytes,
        };
        let both = (counts.blocks + counts.ssd_blocks).saturating_sub(counts.lines_used);
        Self {
            state: state(tier).into(),
            why_off: tier.and_then(why_off),
            devices: (0..devices).filter_map(|device| Some(Device::of(tier?, device, alone))).collect(),
            blocks: counts.ssd_blocks,
            blocks_ssd_only: counts.ssd_blocks.saturating_sub(both),
            blocks_both: both,
            blocks_dram_only: counts.lines_used - counts.ssd_blocks.min(counts.lines_used),
            used_bytes: counts.ssd_bytes,
            admitted_bytes: counts.admitted_bytes,
            readmitted_bytes: counts.readmitted_bytes,
            device_written_bytes: written,
            write_amplification: amplification(written, counts.admitted_bytes),
            demotions: counts.demotions,
            promotions: counts.promotions,
            evictions: counts.ssd_evictions,
            segments_retired: counts.segments_retired,
            write_budget: engine.groups()[index].core.write_budget().map(|(bytes_a_day, available_bytes)| {
                WriteBudget {
                    bytes_a_day,
                    spent_bytes: counts.budget_spent_bytes,
                    available_bytes,
                    declined_blocks: counts.ssd_declined,
                }
            }),
            read_failures: counts.ssd_reads_failed,
            write_failures: counts.ssd_writes_failed,
            checksum_failures: counts.ssd_corrupt,
            recovered_blocks: counts.ssd_found,
            passed_over: counts.ssd_passed_over,
            recovery_s: tier.filter(|_| alone).and_then(Tier::recovery_us).map(|us| us as f64 / 1e6),
        }
    }
}

impl Device {
    fn of(tier: &Tier, device: usize, alone: bool) -> Self {
        let drive = &tier.drives[device];
        Self {
            path: tier.options.names[device].clone(),
            engine: drive.engine.map(Into::into),
            engine_why: drive.engine_why.clone(),
            bytes: drive.bytes,
            state: state_of(drive).into(),
            load: alone.then(|| Load::of(tier, device)),
        }
    }
}

impl Load {
    pub(crate) fn of(tier: &Tier, device: usize) -> Self {
        let drive = &tier.drives[device];
        let counters: &Counters = &drive.counters;
        let free = (tier.segments.free_on(device as u8) as u64).min(drive.segments.into());
        Self {
            operations_in_flight: drive.under_way.len() as u64,
            errors: drive.errors,
            // Before all was found, nothing is known of them.
            segments_used: if tier.serves() { u64::from(drive.segments) - free } else { 0 },
            segments_free: free,
            read_bytes: counters.read_bytes(),
            written_bytes: counters.written_bytes(),
            record_bytes: counters.records_written_bytes,
            flushes: counters.flushes,
        }
    }
}

fn state(tier: Option<&Tier>) -> &'static str {
    match tier.map(|tier| &tier.phase) {
        None => "none",
        Some(Phase::Serving) => "serving",
        Some(Phase::Off(_)) => "off",
        Some(_) => "coming",
    }
}

fn why_off(tier: &Tier) -> Option<String> {
    match &tier.phase {
        Phase::Off(reason) => Some(reason.clone()),
        _ => None,
    }
}

fn state_of(drive: &DriveState) -> &'static str {
    match drive.health.state() {
        DeviceState::Well => "well",
        DeviceState::Degraded { .. } => "degraded",
        DeviceState::Out => "out",
    }
}

fn amplification(written: u64, admitted: u64) -> f64 {
    if admitted == 0 { 0.0 } else { written as f64 / admitted as f64 }
}

/// One device, for the metrics.
#[derive(Clone, Debug)]
pub struct DeviceTotals {
    pub path: String,
    pub bytes: u64,
    /// 2 well, 1 degraded, 0 out.
    pub health: u8,
    pub errors: u64,
    pub load: Load,
    /// Bytes written beside the records': tables, headers, superblocks.
    pub overhead_bytes: u64,
}

/// The tier over all groups.
#[derive(Clone, Debug, Default)]
pub struct SsdTotals {
    pub serves: bool,
    pub recovery_us: u64,
    /// Of all groups; 0 without a write budget.
    pub budget_bytes_a_day: u64,
    pub budget_available_bytes: i64,
    pub devices: Vec<DeviceTotals>,
}

impl SsdTotals {
    pub(super) fn of<W: Wire, M: Movers>(engine: &Engine<W, M>) -> Self {
        let Some(tier) = engine.tier() else { return Self::default() };
        let budgets = engine.groups().iter().filter_map(|group| group.core.write_budget());
        let device = |(number, drive): (usize, &DriveState)| DeviceTotals {
            path: tier.options.names[number].clone(),
            bytes: drive.bytes,
            health: match drive.health.state() {
                DeviceState::Well => 2,
                DeviceState::Degraded { .. } => 1,
                DeviceState::Out => 0,
            },
            errors: drive.errors,
            load: Load::of(tier, number),
            overhead_bytes: drive.counters.written_bytes() - drive.counters.records_written_bytes,
        };
        Self {
            serves: tier.serves(),
            recovery_us: tier.recovery_us().unwrap_or(0),
            budget_bytes_a_day: budgets.clone().map(|(bytes_a_day, _)| bytes_a_day).sum(),
            budget_available_bytes: budgets.map(|(_, available)| available).sum(),
            devices: tier.drives.iter().enumerate().map(device).collect(),
        }
    }
}

/// Adds one core's counts of the tier.
pub(super) fn add(sum: &mut Counts, core: &Counts) {
    sum.lines_used += core.lines_used;
    sum.ssd_blocks += core.ssd_blocks;
    sum.ssd_bytes += core.ssd_bytes;
    sum.ssd_hits += core.ssd_hits;
    sum.ssd_corrupt += core.ssd_corrupt;
    sum.demotions += core.demotions;
    sum.promotions += core.promotions;
    sum.ssd_evictions += core.ssd_evictions;
    sum.ssd_found += core.ssd_found;
    sum.ssd_passed_over += core.ssd_passed_over;
    sum.ssd_writes_failed += core.ssd_writes_failed;
    sum.ssd_reads_failed += core.ssd_reads_failed;
    sum.admitted_bytes += core.admitted_bytes;
    sum.readmitted_bytes += core.readmitted_bytes;
    sum.ssd_record_bytes += core.ssd_record_bytes;
    sum.ssd_table_bytes += core.ssd_table_bytes;
    sum.segments_retired += core.segments_retired;
    sum.budget_spent_bytes += core.budget_spent_bytes;
    sum.ssd_declined += core.ssd_declined;
}
