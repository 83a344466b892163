//! The engine's side of the SSD tier: the core's actions as commands of drives, their reports, and
//! the care for devices that are not well.
//!
//! Invariant: a device is sent commands of the log only after its superblock of this start was written.

use lapis_config::{OpId, PoolId, SegmentId, SlotId, Time, UNIT_BYTES};
use lapis_ssd::{
    device::Memory,
    drive::{FromDrive, ToDrive},
    format::{Nonce, Record, SegmentUse},
    volume::{
        Command, Listing, Report,
        open::{Found, SEQUENCES_RESERVED},
        returned::plan_return,
    },
};
use lapis_tiering::{
    face::{Action, Listed, Outcome},
    health::{Care, DeviceState},
    segments::Given,
};
use lapis_transport::wire::Wire;

use super::Engine;
use crate::{
    movers::{Job, Movers},
    tier::{SILENCE_MAX, Tier},
};

/// Bits of an operation's number that are its core's; above them the group.
pub(super) const CORE_BITS: u32 = 48;
/// In place of a group: the tier's own operations.
const OWN: u64 = 0xffff;

impl<W: Wire, M: Movers> Engine<W, M> {
    pub fn tier(&self) -> Option<&Tier> {
        self.tier.as_ref()
    }

    pub(super) fn drive_said(&mut self, now: Time, device: usize, said: FromDrive) {
        if let Some(tier) = &mut self.tier {
            tier.drives[device].heard = now;
        }
        match said {
            FromDrive::Started { engine, why, bytes } => {
                let Some(tier) = &mut self.tier else { return };
                let drive = &mut tier.drives[device];
                (drive.engine, drive.engine_why, drive.bytes) = (Some(engine), why, bytes);
                drive.health.found(now);
            }
            FromDrive::Vanished => {
                tracing::error!(
                    device = self.device_name(device),
                    "a device is gone: another is looked for at its path"
                );
                let Some(tier) = &mut self.tier else { return };
                tier.drives[device].health.vanished(now);
            }
            FromDrive::Counted(counters) => {
                let Some(tier) = &mut self.tier else { return };
                tier.drives[device].counters = counters;
            }
            FromDrive::Scanning { .. } => {}
            FromDrive::Found(found) => self.device_found(now, device, found),
            FromDrive::Scanned(scan) => self.device_scanned(now, device, scan),
            FromDrive::Report(report) => self.reported(now, device, report),
            FromDrive::Failed(reason) => self.device_failed(now, device, reason),
        }
    }

    /// Memory that has been populated is named to every device: operations on it cost less. Not before the tier serves:
    /// the kernel looks at every page meanwhile (0.2 s a GiB), and a device that is being scanned would wait for it.
    pub(super) fn register(&mut self, index: usize, extent: usize) {
        let Some(tier) = self.tier.as_ref().filter(|tier| tier.serves()) else { return };
        let extent = &self.groups[index].extents[extent];
        if extent.populated_bytes < extent.bytes() {
            return;
        }
        for device in 0..tier.drives.len() {
            self.movers.submit(Job::Drive { device, to: ToDrive::Register(extent.mapping.clone()) });
        }
    }

    // ---- Commands ----

    /// The core's action as a command of a drive; false if it is none.
    pub(super) fn perform_ssd(&mut self, now: Time, index: usize, action: Action) {
        match action {
            Action::WriteSsd { op, at, slot, pages } => {
                let memory = self.slot_memory(index, slot, pages);
                self.command(now, at.segment().device(), Command::Write { op: wide(index, op), at, memory });
            }
            Action::ReadSsd { op, at, slot, pages } => {
                let memory = self.slot_memory(index, slot, pages);
                self.command(now, at.segment().device(), Command::Read { op: wide(index, op), at, memory });
            }
            Action::OpenSegment { op, segment, opened } => {
                let used = self.segment_use(index, segment, opened);
                self.command(now, segment.device(), Command::Open { op: wide(index, op), used });
            }
            Action::ListSsd { op, segment, opened, place, next, sequence, listed } => {
                let used = self.segment_use(index, segment, opened);
                let listing = self.listing(index, listed);
                let op = wide(index, op);
                let command = Command::List { op, used, place, next, sequence, listing };
                self.command(now, segment.device(), command);
            }
            Action::FlushSsd { op, device } => self.command(now, device, Command::Flush { op: wide(index, op) }),
            Action::FreeSegment { segment, leaves } => {
                let durable = self.tier.as_ref().is_some_and(|tier| tier.options.durable);
                self.command(now, segment.device(), Command::Discard { segment, durable });
                if leaves {
                    self.segment_freed(index, segment);
                }
            }
            Action::NeedSegment { device } => self.segment_wanted(index, device),
            other => unreachable!("{other:?} is no action of the SSD tier"),
        }
    }

    fn command(&mut self, now: Time, device: u8, command: Command) {
        let tier = self.tier.as_mut().expect("a core with a log has a tier");
        if let Some(op) = command.op() {
            tier.drives[usize::from(device)].began(now, op);
        }
        self.movers.submit(Job::Drive { device: usize::from(device), to: ToDrive::Command(command) });
    }

    fn slot_memory(&self, index: usize, slot: SlotId, pages: u32) -> Memory {
        let bytes = u64::from(pages) * UNIT_BYTES;
        let place = self.groups[index].space.locate(slot, bytes);
        let (mapping, offset) = place.expect("a slot lies in an extent");
        Memory::new(mapping, offset, bytes as usize)
    }

    fn segment_use(&self, index: usize, segment: SegmentId, opened: u64) -> SegmentUse {
        let plan = self.tier.as_ref().and_then(|tier| tier.plan.as_ref()).expect("a log was opened");
        SegmentUse { log: plan.log, segment, opened, group: plan.groups[index] }
    }

    fn listing(&self, index: usize, listed: Listed) -> Listing {
        match listed {
            Listed::Records(records) => Listing::Records(records.iter().map(record).collect()),
            Listed::Pools(pools) => {
                let shapes = &self.groups[index].shapes;
                let shaped = |(pool, before): (PoolId, u64)| (pool, shapes[&pool].0.clone(), before);
                Listing::Pools(pools.into_iter().map(shaped).collect())
            }
        }
    }

    fn segment_wanted(&mut self, index: usize, device: u8) {
        let tier = self.tier.as_mut().expect("a core with a log has a tier");
        match tier.segments.wanted(index, device) {
            Given::Segment(segment) => self.groups[index].core.segment_given(segment),
            Given::From(other) => {
                self.groups[index].core.segment_promised(device);
                self.groups[other].core.yield_segment(device);
            }
            Given::Over => self.groups[index].core.yield_segment(device),
            Given::Own => {}
        }
    }

    fn segment_freed(&mut self, index: usize, segment: SegmentId) {
        let tier = self.tier.as_mut().expect("a core with a log has a tier");
        if let Some(next) = tier.segments.freed(index, segment) {
            self.groups[next].core.segment_given(segment);
        }
    }

    // ---- Reports ----

    fn reported(&mut self, now: Time, device: usize, report: Report) {
        let Report { op, result, .. } = report;
        let Some(tier) = &mut self.tier else { return };
        let drive = &mut tier.drives[device];
        drive.ended(op);
        let (group, own) = (op.0 >> CORE_BITS, OpId(op.0 & ((1 << CORE_BITS) - 1)));
        if group == OWN {
            return self.own_reported(now, device, own, result.is_ok());
        }
        let outcome = match result {
            Ok(()) => Outcome::Ok,
            Err(error) => {
                drive.errors += 1;
                drive.health.erred(now);
                tracing::warn!(device = tier.options.names[device], %error, "an operation of a device failed");
                Outcome::Failed
            }
        };
        self.groups[group as usize].core.completed(now, own, outcome);
    }

    /// Numbers of the tier's own operations: even ones are probes.
    fn own_reported(&mut self, now: Time, device: usize, op: OpId, ok: bool) {
        let tier = self.tier.as_mut().expect("looked up by the caller");
        if op.0.is_multiple_of(2) {
            tier.drives[device].health.probed(now, ok);
            return;
        }
        let Some((end, left)) = &mut tier.reserving else { return };
        if !ok {
            // Tried again at the next look: nothing is used beyond what all devices know.
            tier.reserving = None;
            return;
        }
        *left -= 1;
        if *left == 0 {
            tier.reserved = *end;
            tier.reserving = None;
            for group in &mut self.groups {
                group.core.sequences_until(self.tier.as_ref().expect("looked up above").reserved);
            }
        }
    }

    fn own_op(&mut self, is_probe: bool) -> OpId {
        let tier = self.tier.as_mut().expect("looked up by the caller");
        tier.op_next += 1;
        OpId(OWN << CORE_BITS | tier.op_next << 1 | u64::from(!is_probe))
    }

    /// Sequences are reserved long before they are needed.
    pub(super) fn reserve_sequences(&mut self, now: Time) {
        let Some(tier) = self.tier.as_ref().filter(|tier| tier.serves() && tier.reserving.is_none()) else { return };
        let highest = self.groups.iter().map(|group| group.core.sequence()).max().unwrap_or(0);
        if highest + SEQUENCES_RESERVED / 2 < tier.reserved {
            return;
        }
        let end = tier.reserved + SEQUENCES_RESERVED;
        let well: Vec<u8> = (0..tier.drives.len() as u8)
            .filter(|&device| tier.drives[usize::from(device)].health.state() != DeviceState::Out)
            .collect();
        self.tier.as_mut().expect("looked up above").reserving = Some((end, well.len()));
        for device in well {
            let op = self.own_op(false);
            self.command(now, device, Command::Reserve { op, sequence_reserved: end });
        }
    }

    // ---- An orderly end ----

    /// What is only in DRAM goes to SSD, as far as the log holds it without giving up all that is there.
    pub(super) fn flush(&mut self) {
        let Some(tier) = self.tier.as_ref().filter(|tier| tier.serves()) else { return };
        let plan = tier.plan.as_ref().expect("a tier that serves was opened");
        let bytes = plan.superblocks.iter().map(|superblock| u64::from(superblock.segments) * superblock.segment_bytes);
        let bytes_max = bytes.sum::<u64>() / 4 * 3 / self.groups.len() as u64;
        let now = self.worked;
        self.groups.iter_mut().for_each(|group| group.core.flush(now, bytes_max));
        let blocks: u64 = self.groups.iter().map(|group| group.core.dirty_blocks()).sum();
        tracing::info!(blocks, "blocks that are only in DRAM are written to SSD, the hottest first");
    }

    /// Whether nothing that `drain` began to write is under way.
    pub fn is_flushed(&self) -> bool {
        let serves = self.tier.as_ref().is_some_and(Tier::serves);
        !serves || self.groups.iter().all(|group| group.core.is_flushed())
    }

    /// Blocks that are only in DRAM, where there is a tier to write them to.
    pub fn unflushed_blocks(&self) -> Option<u64> {
        let dirty = || self.groups.iter().map(|group| group.core.dirty_blocks()).sum();
        self.tier.as_ref().filter(|tier| tier.serves()).map(|_| dirty())
    }

    // ---- Care ----

    pub(super) fn device_name(&self, device: usize) -> &str {
        self.tier.as_ref().map_or("", |tier| &tier.options.names[device])
    }

    fn device_failed(&mut self, now: Time, device: usize, reason: String) {
        let name = self.device_name(device).to_owned();
        let Some(tier) = &mut self.tier else { return };
        if tier.is_coming() {
            // Errors of opening name the path themselves.
            let named = if reason.contains(&name) { reason } else { format!("{name}: {reason}") };
            return self.no_tier(now, named);
        }
        tracing::error!(device = name, reason, "a device failed");
        tier.drives[device].reopening = false;
        tier.drives[device].health.failed(now);
    }

    /// Looks after devices: who is not well is not written, who does not recover goes.
    pub(super) fn care(&mut self, now: Time) {
        let Some(tier) = &mut self.tier else { return };
        if let Some(device) = tier.hanging(now) {
            let silent = format!("{} has said nothing for {} s", self.device_name(device), SILENCE_MAX.as_secs());
            return self.no_tier(now, silent);
        }
        if !tier.serves() {
            return;
        }
        let devices = tier.drives.len();
        for device in 0..devices {
            loop {
                let tier = self.tier.as_mut().expect("looked at above");
                let drive = &mut tier.drives[device];
                if drive.reopening {
                    break;
                }
                let oldest = drive.oldest();
                let Some(care) = drive.health.poll(now, oldest) else { break };
                self.take_care(now, device, care);
            }
        }
    }

    fn take_care(&mut self, now: Time, device: usize, care: Care) {
        let name = self.device_name(device).to_owned();
        let number = device as u8;
        match care {
            Care::Degrade => {
                self.groups.iter_mut().for_each(|group| group.core.device_writable(now, number, false));
                tracing::warn!(device = name, "a device errs or stalls: it is not written until it is well");
            }
            Care::Restore => {
                self.groups.iter_mut().for_each(|group| group.core.device_writable(now, number, true));
                tracing::info!(device = name, "the device is well again");
            }
            Care::TakeOut => {
                self.groups.iter_mut().for_each(|group| group.core.device_lost(now, number));
                self.tier.as_mut().expect("a tier with devices").segments.drop_device(number);
                tracing::error!(device = name, "a device does not recover: what is on it is not served");
            }
            Care::Probe => {
                let op = self.own_op(true);
                self.command(now, number, Command::Probe { op });
            }
            Care::BringBack => {
                tracing::info!(device = name, "a device answers again: it is opened anew");
                self.tier.as_mut().expect("a tier with devices").drives[device].reopening = true;
                self.movers.submit(Job::Drive { device, to: ToDrive::Reopen });
            }
            Care::Renew => self.movers.submit(Job::Drive { device, to: ToDrive::Renew }),
        }
    }

    /// A device that was out is ours still, or another one is in its place: it goes on in the same log. What was removed
    /// meanwhile could come back from it, so it begins empty.
    pub(super) fn reopen(&mut self, now: Time, device: usize, found: &Found) {
        let sequence = self.groups.iter().map(|group| group.core.sequence()).max().unwrap_or(0) + 1;
        let tier = self.tier.as_mut().expect("looked up by the caller");
        let plan = tier.plan.as_ref().expect("it was opened before");
        match plan_return(found, &plan.superblocks[device], sequence, tier.reserved) {
            Ok(superblock) => self.movers.submit(Job::Drive { device, to: ToDrive::Open(Box::new(superblock)) }),
            Err(error) => {
                tracing::error!(device = tier.options.names[device], %error, "what came back in a device's place is not used");
                tier.drives[device].reopening = false;
                tier.drives[device].health.refused(now);
            }
        }
    }

    pub(super) fn tier_timeout(&self) -> Option<Time> {
        self.tier.as_ref().and_then(Tier::poll_timeout)
    }
}

/// An operation's name among all groups.
pub(super) fn wide(group: usize, op: OpId) -> OpId {
    assert!(op.0 < 1 << CORE_BITS, "fewer operations than a daemon lives to see");
    OpId((group as u64) << CORE_BITS | op.0)
}

fn record(record: &lapis_tiering::face::Record) -> Record {
    let lapis_tiering::face::Record { pool, key, parent, start, pages, bytes, sum, sequence, class, removed } = *record;
    Record { key, parent, pool, start, pages, bytes, sum, sequence, class, removed, nonce: Nonce::default() }
}
