//! One device from its first read to its service: superblocks are read, written as planned, segments scanned, commands
//! carried out. Driven by messages; no clock, no thread, and no call that waits: a thread of the daemon turns it, or the
//! simulator.

use std::{io, task::Poll};

use lapis_arena::Mapping;
use lapis_config::Time;

use crate::{
    device::Device,
    format::{PAGE_BYTES, Superblock},
    recover::{DeviceScan, Scan},
    volume::{
        Command, Counters, Report, Volume, WallClock,
        open::Found,
        superblocks::{Reader, Writer},
    },
};

/// What a drive is told.
#[derive(Debug)]
pub enum ToDrive {
    /// Answers `Found`: write this, then scan and serve.
    Open(Box<Superblock>),
    /// Begin again: read the superblocks. Only while nothing is under way.
    Reopen,
    /// The device is gone: let go of it, once nothing is under way. Whoever turns the drive then looks for another at the same
    /// path, and gives it with `renew`; what it holds is said as `Found`.
    Renew,
    Command(Command),
    /// Memory that commands will name often.
    Register(Mapping),
}

/// What a drive says.
#[derive(Debug)]
pub enum FromDrive {
    /// Of whoever turns it: the device is open, at the start or after `Renew`; by what it is driven, and why not by something
    /// faster.
    Started {
        engine: &'static str,
        why: Option<String>,
        bytes: u64,
    },
    /// Of whoever turns it: the kernel has the device no more. `Renew` helps when all that was under way has ended.
    Vanished,
    /// What went to the device and came from it so far; said when that changed, before the reports that made it so.
    Counted(Counters),
    Found(Found),
    /// So many segments were looked at; while that goes on, every now and then. A device that hangs says nothing.
    Scanning {
        segments: usize,
    },
    /// The segments of a former start.
    Scanned(DeviceScan),
    /// Of a command.
    Report(Report),
    /// It cannot go on: what it said last, or nothing, stands. Only `Reopen` helps.
    Failed(String),
}

enum Stage<D> {
    Reading(D, Reader),
    /// For `Open`.
    Waiting(D),
    Writing(D, Writer),
    Scanning(D, Box<Scan>, Box<Superblock>),
    Serving(Box<Volume<D>>),
    Failed(D),
    /// The device was let go of.
    Vacant,
    /// Between two of them.
    Moving,
}

pub struct Drive<D> {
    stage: Stage<D>,
    clock: WallClock,
    reports: Vec<Report>,
    /// Of all that went before the volume there is now.
    counters: Counters,
    /// As they were said last.
    counted: Counters,
    /// How far the scan was when that was said last, and when.
    scanning: (usize, Time),
    /// What was registered: another device is to know it too.
    registered: Vec<Mapping>,
}

/// How often a scan says that it goes on.
const SCANNING_EVERY_US: u64 = 1_000_000;

impl<D: Device> Drive<D> {
    pub fn new(device: D, clock: WallClock) -> Self {
        let mut drive = Self {
            stage: Stage::Moving,
            clock,
            reports: Vec::new(),
            counters: Counters::default(),
            counted: Counters::default(),
            scanning: (0, clock.at),
            registered: Vec::new(),
        };
        drive.stage = Self::read(device);
        drive
    }

    fn read(device: D) -> Stage<D> {
        match Reader::new(&device) {
            Ok(reader) => Stage::Reading(device, reader),
            // Without memory for two pages, nothing will go well.
            Err(error) => {
                tracing::error!(%error, "no memory to read superblocks into");
                Stage::Failed(device)
            }
        }
    }

    /// # Panics
    /// If it was let go of.
    pub fn device_mut(&mut self) -> &mut D {
        match &mut self.stage {
            Stage::Reading(device, _) | Stage::Waiting(device) | Stage::Writing(device, _) => device,
            Stage::Scanning(device, ..) | Stage::Failed(device) => device,
            Stage::Serving(volume) => volume.device_mut(),
            Stage::Vacant => panic!("the device was let go of"),
            Stage::Moving => unreachable!("a stage follows at once"),
        }
    }

    /// Whether the device was let go of, and there is no other yet.
    pub fn is_vacant(&self) -> bool {
        matches!(self.stage, Stage::Vacant)
    }

    /// Another device, in place of the one that was let go of.
    ///
    /// # Panics
    /// If it was not.
    pub fn renew(&mut self, mut device: D) {
        assert!(self.is_vacant(), "one device at a time");
        for mapping in &self.registered {
            register(&mut device, mapping);
        }
        self.stage = Self::read(device);
    }

    pub fn tell(&mut self, now: Time, message: ToDrive) {
        match message {
            ToDrive::Register(mapping) => {
                if !self.is_vacant() {
                    register(self.device_mut(), &mapping);
                }
                self.registered.push(mapping);
            }
            ToDrive::Command(command) => match &mut self.stage {
                Stage::Serving(volume) => volume.submit(now, command),
                _ => self.refuse(command),
            },
            ToDrive::Open(superblock) => self.open(*superblock),
            ToDrive::Reopen => self.reopen(),
            ToDrive::Renew => self.let_go(),
        }
    }

    /// What comes while nothing is served fails: the core hears so. A device that could not be opened, or waits to be told
    /// what to write, is probed by opening it once more: a probe of it says no more than that this may be tried.
    fn refuse(&mut self, command: Command) {
        if let Some(op) = command.op() {
            let may_reopen = matches!(self.stage, Stage::Failed(_) | Stage::Waiting(_));
            let tries_again = matches!(command, Command::Probe { .. }) && may_reopen;
            let result = if tries_again { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) };
            self.reports.push(Report { op, result, bytes: 0 });
        }
    }

    fn open(&mut self, superblock: Superblock) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Moving) {
            Stage::Waiting(device) => match Writer::new(superblock) {
                Ok(writer) => Stage::Writing(device, writer),
                Err(_) => Stage::Failed(device),
            },
            other => other,
        };
    }

    fn reopen(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Moving) {
            Stage::Serving(volume) if volume.in_flight() + volume.waiting() == 0 => {
                self.counters = self.counters.plus(volume.counters());
                Self::read(volume.into_device())
            }
            Stage::Failed(device) | Stage::Waiting(device) => Self::read(device),
            other => other,
        };
    }

    /// What is being opened fails first.
    fn let_go(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Moving) {
            Stage::Serving(volume) if volume.in_flight() + volume.waiting() == 0 => {
                self.counters = self.counters.plus(volume.counters());
                Stage::Vacant
            }
            Stage::Failed(_) | Stage::Waiting(_) => Stage::Vacant,
            other => other,
        };
    }

    /// Begins what was told since the last call.
    pub fn kick(&mut self) {
        if let Stage::Serving(volume) = &mut self.stage
            && let Err(error) = volume.kick()
        {
            tracing::error!(%error, "a device does not take operations");
        }
    }

    /// Commands that were taken and have not ended.
    pub fn under_way(&self) -> usize {
        if let Stage::Serving(volume) = &self.stage { volume.in_flight() + volume.waiting() } else { 0 }
    }

    /// Goes on as far as possible; appends what is to be said. True if anything happened.
    pub fn poll(&mut self, now: Time, out: &mut Vec<FromDrive>) -> bool {
        let before = out.len();
        let stage = std::mem::replace(&mut self.stage, Stage::Moving);
        let (stage, moved) = self.step(now, stage, out);
        self.stage = stage;
        self.count(out);
        out.extend(self.reports.drain(..).map(FromDrive::Report));
        moved || out.len() > before
    }

    fn count(&mut self, out: &mut Vec<FromDrive>) {
        let counters = match &self.stage {
            Stage::Serving(volume) => self.counters.plus(volume.counters()),
            _ => self.counters,
        };
        if counters == self.counted {
            return;
        }
        self.counted = counters;
        // What was not told yet is told once, as it is now.
        match out.iter_mut().find(|said| matches!(said, FromDrive::Counted(_))) {
            Some(untold) => *untold = FromDrive::Counted(counters),
            None => out.push(FromDrive::Counted(counters)),
        }
    }

    fn step(&mut self, now: Time, stage: Stage<D>, out: &mut Vec<FromDrive>) -> (Stage<D>, bool) {
        let failed = |device: D, what: &str, error: String, out: &mut Vec<FromDrive>| {
            out.push(FromDrive::Failed(format!("{what}: {error}")));
            (Stage::Failed(device), true)
        };
        match stage {
            Stage::Reading(mut device, mut reader) => match reader.poll(&mut device) {
                Poll::Pending => (Stage::Reading(device, reader), false),
                Poll::Ready(Ok(found)) => {
                    out.push(FromDrive::Found(found));
                    (Stage::Waiting(device), true)
                }
                Poll::Ready(Err(error)) => failed(device, "read the superblocks", error.to_string(), out),
            },
            Stage::Writing(mut device, mut writer) => match writer.poll(&mut device) {
                Poll::Pending => (Stage::Writing(device, writer), false),
                Poll::Ready(Ok(superblock)) => {
                    self.counters.superblocks_written_bytes += 2 * PAGE_BYTES as u64;
                    self.counters.flushes += 2;
                    match Scan::new(&superblock, device.depth()) {
                        Ok(scan) => (Stage::Scanning(device, Box::new(scan), Box::new(superblock)), true),
                        Err(error) => failed(device, "scan the segments", error.to_string(), out),
                    }
                }
                Poll::Ready(Err(error)) => failed(device, "write the superblocks", error.to_string(), out),
            },
            Stage::Scanning(mut device, mut scan, superblock) => match scan.poll_inline(&mut device) {
                Ok(false) => {
                    let (segments, _) = scan.progress();
                    let (said, at) = self.scanning;
                    if segments != said && now.since_us(at) >= SCANNING_EVERY_US {
                        self.scanning = (segments, now);
                        out.push(FromDrive::Scanning { segments });
                    }
                    (Stage::Scanning(device, scan, superblock), false)
                }
                Ok(true) => {
                    out.push(FromDrive::Scanned(scan.finish()));
                    let clock = WallClock { at: now, ..self.clock };
                    match Volume::new(device, *superblock, clock) {
                        Ok(volume) => (Stage::Serving(Box::new(volume)), true),
                        // The device went with it: there is no memory for a page an operation.
                        Err(error) => {
                            out.push(FromDrive::Failed(format!("serve: {error}")));
                            (Stage::Moving, true)
                        }
                    }
                }
                Err(error) => failed(device, "scan the segments", error.to_string(), out),
            },
            Stage::Serving(mut volume) => {
                if let Err(error) = volume.poll(now, &mut self.reports) {
                    tracing::error!(%error, "a device tells nothing of its operations");
                }
                (Stage::Serving(volume), false)
            }
            stage => (stage, false),
        }
    }
}

fn register<D: Device>(device: &mut D, mapping: &Mapping) {
    if let Err(error) = device.register(mapping) {
        tracing::warn!(%error, "memory is not registered with a device: its operations cost more");
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::OpId;

    use super::*;
    use crate::testing::Sheet;

    #[test]
    fn a_device_that_failed_while_it_was_opened_can_be_opened_again() {
        let mut sheet = Sheet::new(194 << 20);
        sheet.fails = |_| true;
        let mut drive = Drive::new(sheet, WallClock::default());
        let mut said = Vec::new();
        let mut until = |drive: &mut Drive<Sheet>, is_it: fn(&FromDrive) -> bool| {
            said.clear();
            while !said.iter().any(is_it) {
                drive.poll(Time(0), &mut said);
            }
        };
        until(&mut drive, |said| matches!(said, FromDrive::Failed(_)));
        drive.tell(Time(0), ToDrive::Command(Command::Flush { op: OpId(1) }));
        until(&mut drive, |said| matches!(said, FromDrive::Report(Report { op: OpId(1), result: Err(_), .. })));
        drive.tell(Time(0), ToDrive::Command(Command::Probe { op: OpId(2) }));
        until(&mut drive, |said| matches!(said, FromDrive::Report(Report { op: OpId(2), result: Ok(()), .. })));
        drive.device_mut().fails = |_| false;
        drive.tell(Time(0), ToDrive::Reopen);
        until(&mut drive, |said| matches!(said, FromDrive::Found(Found::Blank { .. })));
    }

    #[test]
    fn a_device_that_is_gone_is_let_go_of_and_another_one_takes_its_place() {
        let mut drive = Drive::new(Sheet::new(194 << 20), WallClock::default());
        let mut said = Vec::new();
        let mut until = |drive: &mut Drive<Sheet>, is_it: fn(&FromDrive) -> bool| {
            said.clear();
            while !said.iter().any(is_it) {
                drive.kick();
                drive.poll(Time(0), &mut said);
            }
            said.iter().position(is_it).map(|at| said.swap_remove(at)).expect("just seen")
        };
        let FromDrive::Found(found) = until(&mut drive, |said| matches!(said, FromDrive::Found(_))) else {
            unreachable!("it was looked for");
        };
        let plan = crate::volume::open::plan_open(&[found], &crate::testing::wanted()).expect("blank");
        drive.tell(Time(0), ToDrive::Open(Box::new(plan.superblocks[0].clone())));
        until(&mut drive, |said| matches!(said, FromDrive::Scanned(_)));
        drive.tell(Time(0), ToDrive::Command(Command::Flush { op: OpId(1) }));
        drive.kick();
        drive.tell(Time(0), ToDrive::Renew);
        assert!(!drive.is_vacant(), "a flush is under way");
        until(&mut drive, |said| matches!(said, FromDrive::Report(Report { op: OpId(1), .. })));
        let before = drive.counted;
        drive.tell(Time(0), ToDrive::Renew);
        assert!(drive.is_vacant());
        drive.tell(Time(0), ToDrive::Register(Mapping::anonymous(PAGE_BYTES as u64).expect("memory")));
        drive.tell(Time(0), ToDrive::Reopen);
        assert!(drive.is_vacant(), "there is nothing to open");
        for (op, command) in [(OpId(2), Command::Probe { op: OpId(2) }), (OpId(3), Command::Flush { op: OpId(3) })] {
            drive.tell(Time(0), ToDrive::Command(command));
            let said = until(&mut drive, |said| matches!(said, FromDrive::Report(_)));
            assert!(matches!(said, FromDrive::Report(Report { op: of, result: Err(_), .. }) if of == op), "{said:?}");
        }
        drive.renew(Sheet::new(194 << 20));
        until(&mut drive, |said| matches!(said, FromDrive::Found(Found::Blank { .. })));
        assert_eq!(drive.counters, before, "what the former one did counts on");
        // It answers; the engine looks at it a second time.
        drive.tell(Time(0), ToDrive::Command(Command::Probe { op: OpId(4) }));
        until(&mut drive, |said| matches!(said, FromDrive::Report(Report { op: OpId(4), result: Ok(()), .. })));
        drive.tell(Time(0), ToDrive::Reopen);
        until(&mut drive, |said| matches!(said, FromDrive::Found(Found::Blank { .. })));
    }

    #[test]
    fn a_scan_that_goes_on_says_so_once_a_second_and_no_more_often() {
        let scanned = |step_us: u64| {
            let mut drive = Drive::new(Sheet::new(40 * (64 << 20)), WallClock::default());
            let (mut said, mut now, mut signs) = (Vec::new(), Time(0), 0);
            loop {
                now.0 += step_us;
                drive.kick();
                drive.poll(now, &mut said);
                for said in std::mem::take(&mut said) {
                    match said {
                        FromDrive::Found(found) => {
                            let wanted = crate::testing::wanted();
                            let plan = crate::volume::open::plan_open(&[found], &wanted).expect("blank");
                            drive.tell(now, ToDrive::Open(Box::new(plan.superblocks[0].clone())));
                        }
                        FromDrive::Scanning { .. } => signs += 1,
                        FromDrive::Scanned(_) => return signs,
                        FromDrive::Counted(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
        };
        assert_eq!(scanned(1), 0, "it took no second");
        assert!(scanned(2 * SCANNING_EVERY_US) > 0, "nobody would know that it goes on");
    }
}
