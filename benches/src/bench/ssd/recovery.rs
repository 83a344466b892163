//! A log of a million small blocks, as a killed daemon leaves it, and how long the next one takes until its tier serves.
//! Payloads are not written: recovery does not read them.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use lapis_config::{Key, OpId, PageIndex, PoolId, SegmentId};
use lapis_ssd::{
    device::DeviceFile,
    engine::EngineChoice,
    format::{CHUNK_PAGES, ENTRIES_MAX, Nonce, Record, SegmentUse},
    volume::{Command, Listing},
};

use super::{
    super::{
        Plan,
        report::{Figure, Goal, Report},
    },
    DEPTH, Ground,
    device::Device,
    raw::cpu_of_process,
    tier,
};
use crate::{
    host::{Host, HostOptions},
    load, pattern,
    samples::Samples,
};

const BLOCK_BYTES: u64 = 4096;
const RECORDS: u64 = 1_000_000;
const RECORDS_QUICK: u64 = 200_000;
/// Blocks of a chain: written leaf first, as they leave memory.
const CHAIN: u64 = 32;
const SEED: u64 = 9;
/// Keys both of whose windows are full are passed over: one of a million in some starts, by the table's random words.
const PASSED_OVER_ONE_IN: u64 = 200_000;
const GOAL_MS: f64 = 500.0;
/// A segment's header and first chunk; and a chunk.
const HEAD_PAGES: u32 = 1 + CHUNK_PAGES;

pub fn run(plan: &Plan, ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    let records = if plan.quick { RECORDS_QUICK } else { RECORDS };
    // A page each, and as much again of contents as there are chunks, with some to spare.
    let log_bytes = (records * (BLOCK_BYTES + 136)).next_multiple_of(64 << 20) + (128 << 20);
    let log = ground.empty(".log");
    let mut options = HostOptions::here(tier::DRAM_BYTES)?;
    options.hold = false;
    options.flags = tier::flags(log.path(), log_bytes);
    options.flags.retain(|flag| !flag.starts_with("--ssd-queue-depth"));
    options.flags.push(format!("--index-entries-max={}", records * 5 / 4));
    // Once, to have the log made as a daemon makes it.
    let mut host = Host::start(options)?;
    tier::serves(plan, &mut host)?;
    host.kill_daemon()?;
    let_go(plan, &mut host, log.path())?;
    write_log(log.path(), log_bytes, records)?;
    let (mut times, mut cpu) = (Samples::default(), Samples::default());
    for _ in 0..if plan.quick { 3 } else { 7 } {
        plan.stop.check()?;
        // Its log alone: the one before said the same.
        fs::write(host.folder().join("daemon.log"), "").context("empty the daemon's log")?;
        host.start_daemon()?;
        times.push(tier::serves(plan, &mut host)?);
        cpu.push(cpu_of_process(host.daemon_pid())?.as_secs_f64() * 1e3);
        let found = found(&host)?;
        let right = (records - records / PASSED_OVER_ONE_IN..=records).contains(&found);
        ensure!(right, "{found} of {records} blocks were found\n{}", host.log_tail());
        host.kill_daemon()?;
        let_go(plan, &mut host, log.path())?;
    }
    let mut figure = Figure::times("recovery", "ms", &mut times);
    figure.case = Some("of small blocks");
    (figure.keys, figure.block_bytes) = (Some(records), Some(BLOCK_BYTES));
    let goal = if plan.quick { GOAL_MS * RECORDS_QUICK as f64 / RECORDS as f64 + 50.0 } else { GOAL_MS };
    figure.goal = Some(Goal::new(format!("<= {goal} ms"), figure.value <= goal));
    report.add(&figure)?;
    // Populating memory included: what a machine that does something else as well can compare.
    let mut figure = Figure::times("recovery", "ms", &mut cpu);
    figure.case = Some("processor time");
    (figure.keys, figure.block_bytes) = (Some(records), Some(BLOCK_BYTES));
    report.add(&figure)
}

/// Waits until the kernel has taken the killed daemon's hold on its device away: some 50 ms that are not recovery's.
fn let_go(plan: &Plan, host: &mut Host, log: &Path) -> anyhow::Result<()> {
    host.until("the log to be let go of", |_| {
        plan.stop.check()?;
        match DeviceFile::open(log, None) {
            Ok(_) => Ok(Some(())),
            Err(error) if error.is_transient() => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
}

/// How many blocks the daemon says it found.
fn found(host: &Host) -> anyhow::Result<u64> {
    let log = host.log_tail();
    let line = log.lines().rev().find(|line| line.contains("the SSD tier serves")).unwrap_or_default();
    let blocks = line.split("blocks=").nth(1).and_then(|text| text.split(' ').next()).unwrap_or_default();
    Ok(blocks.parse()?)
}

/// Fills segments with records, one after the other.
fn write_log(path: &Path, log_bytes: u64, records: u64) -> anyhow::Result<()> {
    let mut device = Device::open(path, log_bytes, EngineChoice::Auto, DEPTH)?;
    let log = device.superblock().log;
    let segment_pages = (device.superblock().segment_bytes / BLOCK_BYTES) as u32;
    let mut log = Writer {
        sequence: device.superblock().sequence_reserved - (1 << 31),
        records,
        written: 0,
        segment_pages,
        use_of: |segment, opened| SegmentUse { log, segment: SegmentId::new(0, segment), opened, group: 0 },
        commands: Vec::new(),
    };
    let mut segment = 0;
    while log.written < records {
        ensure!(segment < device.superblock().segments, "the log is full at {} records", log.written);
        log.segment(segment);
        segment += 1;
        // What is not the device's memory does not matter: no command here reads or writes a slot.
        let mut commands = std::mem::take(&mut log.commands).into_iter();
        device.carry_out(|op, _| commands.next().map(|command| named(command, op)))?;
    }
    Ok(())
}

fn named(command: Command, name: OpId) -> Command {
    match command {
        Command::Open { used, .. } => Command::Open { op: name, used },
        Command::List { used, place, next, sequence, listing, .. } => {
            Command::List { op: name, used, place, next, sequence, listing }
        }
        other => unreachable!("{other:?} is not written here"),
    }
}

struct Writer<F> {
    sequence: u64,
    records: u64,
    written: u64,
    segment_pages: u32,
    use_of: F,
    commands: Vec<Command>,
}

impl<F: Fn(u32, u64) -> SegmentUse> Writer<F> {
    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// One segment: pages of contents in chunks, each set aside when the one before is full, records between.
    fn segment(&mut self, number: u32) {
        let opened = self.next_sequence();
        let used = (self.use_of)(number, opened);
        let op = OpId(0);
        self.commands.push(Command::Open { op, used });
        let pools = Listing::Pools(vec![(PoolId(0), load::shape("bench recovery", BLOCK_BYTES), 0)]);
        let (mut place, mut left, mut cursor) = (1, CHUNK_PAGES, HEAD_PAGES);
        let mut listing = Some(pools);
        loop {
            let listing_now = match listing.take() {
                Some(pools) => pools,
                None => {
                    let room = self.segment_pages.saturating_sub(cursor + CHUNK_PAGES);
                    let count = u64::from(room).min(ENTRIES_MAX as u64).min(self.records - self.written);
                    if count == 0 {
                        return;
                    }
                    let records = (0..count as u32).map(|i| self.record(cursor + i)).collect();
                    cursor += count as u32;
                    Listing::Records(records)
                }
            };
            left -= 1;
            let next = if left > 0 { place + 1 } else { cursor };
            let sequence = self.next_sequence();
            let (place_now, next_page) = (PageIndex(place), Some(PageIndex(next)));
            self.commands.push(Command::List {
                op,
                used,
                place: place_now,
                next: next_page,
                sequence,
                listing: listing_now,
            });
            place = next;
            if left == 0 {
                (left, cursor) = (CHUNK_PAGES, cursor + CHUNK_PAGES);
            }
        }
    }

    /// The next block: of each chain, the last one first.
    fn record(&mut self, start: u32) -> Record {
        let (chain, depth) = (self.written / CHAIN, CHAIN - 1 - self.written % CHAIN);
        let key = |depth: u64| pattern::key(SEED, chain * CHAIN + depth);
        self.written += 1;
        Record {
            key: key(depth),
            parent: if depth == 0 { Key::default() } else { key(depth - 1) },
            pool: PoolId(0),
            start: PageIndex(start),
            pages: 1,
            bytes: BLOCK_BYTES as u32,
            sum: self.written,
            sequence: self.next_sequence(),
            class: 0,
            removed: false,
            nonce: Nonce::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use lapis_ssd::recover::merge;

    use super::*;

    #[test]
    fn the_log_that_is_written_is_found_whole() {
        const RECORDS: u64 = 20_000;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let bytes = 4 * (64 << 20);
        write_log(&path, bytes, RECORDS).expect("a log");
        let device = Device::open(&path, bytes, EngineChoice::Auto, DEPTH).expect("the same log");
        let found = merge([device.scan().clone()], &device.superblock().groups);
        assert_eq!(found.groups[0].records.len() as u64, RECORDS);
        assert!(device.scan().segments.iter().all(|segment| !segment.damage.any()));
    }
}
