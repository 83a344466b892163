//! The SSD tier's start: what devices hold is judged together, scanned, merged, and told to cores in turns.

use lapis_config::{
    PoolId, SegmentId, Time, UNIT_BYTES,
    planted::{self, Bug},
};
use lapis_ssd::{
    drive::ToDrive,
    recover::{Damage, DeviceScan, Recovered, WhyFree},
    volume::open::{Found, SEQUENCES_RESERVED, Wanted, plan_open},
};
use lapis_tiering::{FoundRecord, LogOptions, segments::SegmentLimits};
use lapis_transport::wire::Wire;

use super::Engine;
use crate::{
    group::GroupOptions,
    movers::{Job, Movers},
    tier::{Phase, Telling, Tier, segment_bytes},
};

/// Records told to cores in one turn: under 2 ms.
const RECORDS_PER_TURN: usize = 4096;

impl<W: Wire, M: Movers> Engine<W, M> {
    pub(super) fn device_found(&mut self, now: Time, device: usize, found: Found) {
        let Some(tier) = &mut self.tier else { return };
        if tier.drives[device].reopening {
            return self.reopen(now, device, &found);
        }
        let Phase::Reading(all) = &mut tier.phase else { return };
        all[device] = Some(found);
        if all.iter().any(Option::is_none) {
            return;
        }
        let all: Vec<Found> = all.iter_mut().filter_map(Option::take).collect();
        let wanted = self.wanted(&all);
        match plan_open(&all, &wanted) {
            Ok(plan) => {
                if all.iter().any(|found| matches!(found, Found::Formatted { .. })) {
                    // Keys of a log lie all over the table. While segments are read, there is time to map it.
                    let pages = self.groups.iter().flat_map(|group| group.core.kept().pages_of_lines()).collect();
                    self.movers.submit(Job::MapIn { pages });
                }
                let tier = self.tier.as_mut().expect("looked at above");
                tier.phase = Phase::Scanning(plan.superblocks.iter().map(|_| None).collect());
                tier.reserved = plan.sequence_first + SEQUENCES_RESERVED;
                for (device, superblock) in plan.superblocks.iter().enumerate() {
                    (tier.drives[device].segments, tier.drives[device].heard) = (superblock.segments, now);
                    self.movers.submit(Job::Drive { device, to: ToDrive::Open(Box::new(superblock.clone())) });
                }
                tier.plan = Some(plan);
            }
            Err(error) => {
                let text = error.to_string();
                let names = &self.tier.as_ref().expect("looked at above").options.names;
                let named = names.iter().enumerate().fold(text, |text, (number, name)| {
                    text.replacen(&format!("device {number}:"), &format!("{name}:"), 1)
                });
                self.no_tier(now, named);
            }
        }
    }

    pub(super) fn wanted(&self, found: &[Found]) -> Wanted {
        let tier = self.tier.as_ref().expect("a tier is being opened");
        Wanted {
            identity: tier.options.identity,
            adopt: false,
            log: tier.plan.as_ref().map(|plan| plan.log),
            log_fresh: tier.log_fresh,
            segment_bytes: segment_bytes(found, tier.options.segment_bytes_min),
            groups: self.groups.iter().map(|group| group.options.name.clone()).collect(),
            wall_s: tier.options.wall_s,
        }
    }

    pub(super) fn device_scanned(&mut self, now: Time, device: usize, scan: DeviceScan) {
        let Some(tier) = &mut self.tier else { return };
        let Some(plan) = &tier.plan else { return };
        tell_damage(&tier.options.names[device], &scan);
        let groups = plan.superblocks[device].groups.clone();
        if tier.drives[device].reopening {
            self.movers.submit(Job::Merge { scans: vec![scan], groups, device: Some(device) });
            return;
        }
        let Phase::Scanning(all) = &mut tier.phase else { return };
        all[device] = Some(scan);
        if all.iter().all(Option::is_some) {
            let scans = all.iter_mut().filter_map(Option::take).collect();
            tier.scanned = now;
            tier.phase = Phase::Merging;
            self.movers.submit(Job::Merge { scans, groups, device: None });
        }
    }

    /// What the log holds is known: pools get their numbers, cores a log, and the telling begins. `device`: of one that
    /// came back.
    pub(super) fn merged(&mut self, now: Time, mut recovered: Recovered, device: Option<usize>) {
        let Some(tier) = &mut self.tier else { return };
        let Some(plan) = tier.plan.clone() else { return };
        let first = plan.sequence_first.max(recovered.sequence_highest + 1);
        let first = if planted::is(Bug::SequencesReused) { 1 } else { first };
        let mut used = std::collections::BTreeSet::new();
        let mut telling = Vec::new();
        for (index, &number) in plan.groups.iter().enumerate() {
            let found = recovered.groups.get_mut(usize::from(number)).map(std::mem::take).unwrap_or_default();
            let mut tell = Telling {
                segments: found.segments.iter().map(|segment| (segment.segment, segment.opened)).collect(),
                records: found.records,
                ..Telling::default()
            };
            for shape in found.shapes {
                let id = self.groups[index].pool_of(&shape.shape).unwrap_or(PoolId(u16::MAX));
                tell.purged.push((id, shape.purged_before));
                tell.pools.push(id);
            }
            used.extend(tell.segments.iter().map(|(segment, _)| *segment));
            telling.push(tell);
        }
        let tier = self.tier.as_mut().expect("looked at above");
        for (number, superblock) in plan.superblocks.iter().enumerate() {
            if device.is_some_and(|device| device != number) {
                continue;
            }
            let all = (0..superblock.segments).rev().map(|index| SegmentId::new(number as u8, index));
            all.filter(|segment| !used.contains(segment)).for_each(|segment| tier.segments.add_free(segment));
        }
        let segment_bytes = plan.superblocks[0].segment_bytes;
        let limits = self.groups.iter().map(|group| {
            let GroupOptions { ssd_floor_bytes, ssd_ceiling_bytes, .. } = group.options;
            SegmentLimits::of_bytes(ssd_floor_bytes, ssd_ceiling_bytes, segment_bytes)
        });
        tier.segments.limit(limits.collect());
        let (list_after_us, durable) = (tier.options.list_after_us, tier.options.durable);
        let sequence_end = tier.reserved;
        for (index, tell) in telling.iter().enumerate() {
            for (segment, _) in &tell.segments {
                tier.segments.found(index, *segment);
            }
            let core = &mut self.groups[index].core;
            if device.is_none() {
                core.ssd_opened(LogOptions {
                    group: plan.groups[index],
                    segment_pages: (segment_bytes / UNIT_BYTES) as u32,
                    sequence_first: first,
                    sequence_end,
                    list_after_us,
                    durable,
                });
            }
            for number in 0..plan.superblocks.len() {
                if device.is_none_or(|device| device == number) {
                    core.device_added(number as u8);
                    core.device_at(number as u8, tier.options.nodes.get(number).copied().flatten());
                }
            }
            for &(segment, opened) in &tell.segments {
                core.segment_found(segment, opened);
            }
            for &(pool, before) in &tell.purged {
                core.pool_purged(pool, before);
            }
        }
        match device {
            None => {
                tier.merged = now;
                tier.phase = Phase::Telling(telling);
            }
            Some(device) => {
                // A device's worth in one go: it was out, and nobody waits for it.
                let drive = &mut tier.drives[device];
                drive.reopening = false;
                drive.health.brought_back();
                for (index, mut tell) in telling.into_iter().enumerate() {
                    while !tell.records.is_empty() {
                        self.tell_some(index, &mut tell, usize::MAX);
                    }
                    self.groups[index].core.ssd_ready(now);
                }
                tracing::info!(device = self.device_name(device), "the device serves again");
            }
        }
    }

    /// Tells cores of some more records; when all are told, the tier serves. True if there was anything to do.
    pub(super) fn tell(&mut self, now: Time) -> bool {
        if !self.adopted() {
            return false;
        }
        let Some(Tier { phase: Phase::Telling(telling), .. }) = &mut self.tier else { return false };
        let mut telling = std::mem::take(telling);
        let mut left = RECORDS_PER_TURN;
        for (index, tell) in telling.iter_mut().enumerate() {
            let count = tell.records.len().min(left);
            self.tell_some(index, tell, count);
            left -= count;
        }
        let over = telling.iter().all(|tell| tell.records.is_empty());
        let tier = self.tier.as_mut().expect("looked at above");
        if !over {
            tier.phase = Phase::Telling(telling);
            return true;
        }
        tier.phase = Phase::Serving;
        tier.served = Some(now);
        for group in &mut self.groups {
            group.core.ssd_ready(now);
        }
        for index in 0..self.groups.len() {
            for extent in 0..self.groups[index].extents.len() {
                self.register(index, extent);
            }
        }
        let blocks: u64 = self.groups.iter().map(|group| group.core.counts().ssd_blocks).sum();
        let tier = self.tier.as_mut().expect("looked at above");
        tier.recovered = blocks;
        let (scan_us, merge_us) = (tier.scanned.since_us(tier.began), tier.merged.since_us(tier.scanned));
        let tell_us = now.since_us(tier.merged);
        tracing::info!(blocks, us = now.since_us(tier.began), scan_us, merge_us, tell_us, "the SSD tier serves");
        true
    }

    pub(super) fn tell_some(&mut self, index: usize, tell: &mut Telling, count: usize) {
        let mut found = Vec::with_capacity(count.min(tell.records.len()));
        tell.records.take_last(count, |record| {
            found.push(FoundRecord {
                pool: tell.pools[record.pool as usize],
                key: record.key,
                parent: record.parent,
                bytes: record.bytes,
                sum: record.sum,
                class: record.class,
                at: record.place,
                pages: record.pages,
            });
        });
        self.groups[index].core.records_found(&found);
    }

    /// There is no SSD tier.
    pub(super) fn no_tier(&mut self, now: Time, reason: String) {
        let Some(tier) = &mut self.tier else { return };
        if tier.options.required {
            tier.fatal.get_or_insert(format!(
                "the SSD tier cannot be opened: {reason} (ssd.required = false serves DRAM alone)"
            ));
        } else {
            tracing::error!(reason, "the SSD tier cannot be opened: DRAM alone");
        }
        tier.phase = Phase::Off(reason);
        for group in &mut self.groups {
            group.core.ssd_absent(now);
        }
    }
}

/// What a start could not read of a device: blocks that were there and are not found.
fn tell_damage(device: &str, scan: &DeviceScan) {
    let sum = |of: fn(&Damage) -> u32| scan.segments.iter().map(|segment| of(&segment.damage)).sum::<u32>();
    let (bad, unreadable) = (sum(|damage| damage.bad.len() as u32), sum(|damage| damage.unreadable));
    let records = sum(|damage| damage.records_without_pool + damage.records_misfit + damage.pools_contradicted);
    let headers = scan.free.iter().filter(|(_, why)| matches!(why, WhyFree::Broken(_) | WhyFree::Unreadable)).count();
    if bad + unreadable + records > 0 || headers > 0 {
        tracing::warn!(device, headers, bad, unreadable, records, "damage: what was listed there is forgotten");
    }
}
