//! One device as the daemon's thread for it drives it, without a daemon: `Drive` and `Volume` over an engine, records
//! read into and written from memory that is registered.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use lapis_arena::Mapping;
use lapis_config::{OpId, PageIndex, SegmentId, SsdPlace, Time, UNIT_BYTES};
use lapis_ssd::{
    device::{DeviceFile, Memory, Waits},
    drive::{Drive, FromDrive, ToDrive},
    engine::{self, Engine, EngineChoice},
    format::{CHUNK_PAGES, CONTENTS_START, LogId, Superblock},
    volume::{
        Command, Report, WallClock,
        open::{Found, Identity, Wanted, plan_open},
    },
};
use rustix::event::{EventfdFlags, eventfd};

use super::raw::{BYTES_MAX, Took, Way, cpu_of_process, shared};

/// A drive and what its thread has.
struct Turner {
    drive: Drive<Engine>,
    bell: OwnedFd,
    said: Vec<FromDrive>,
    started: Instant,
}

impl Turner {
    fn now(&self) -> Time {
        Time(self.started.elapsed().as_micros() as u64)
    }

    /// One turn of the thread of a device.
    fn turn(&mut self) -> io::Result<()> {
        let now = self.now();
        self.drive.kick();
        if !self.drive.poll(now, &mut self.said) && self.said.is_empty() {
            self.drive.device_mut().wait(self.bell.as_fd(), Some(Duration::from_millis(100)))?;
        }
        Ok(())
    }

    /// What the drive says next, while it is opened.
    fn next(&mut self) -> anyhow::Result<FromDrive> {
        loop {
            match self.said.pop() {
                Some(FromDrive::Failed(reason)) => bail!("the bench's device failed: {reason}"),
                Some(said) => return Ok(said),
                None => self.turn()?,
            }
        }
    }

    fn tell(&mut self, message: ToDrive) {
        self.drive.tell(self.now(), message);
    }
}

/// A drive that serves.
pub struct Device {
    turner: Turner,
    superblock: Superblock,
    /// What was on it.
    #[cfg(test)]
    scan: lapis_ssd::recover::DeviceScan,
    slots: Mapping,
    depth: usize,
    op: u64,
}

impl Device {
    /// Opens the file at `path`, which is blank or holds a log, as a daemon would.
    pub fn open(path: &Path, bytes: u64, choice: EngineChoice, depth: usize) -> anyhow::Result<Self> {
        Self::open_over(path, bytes, choice, depth, shared(depth)?)
    }

    /// The same with this memory for its operations.
    pub fn open_over(
        path: &Path,
        bytes: u64,
        choice: EngineChoice,
        depth: usize,
        slots: Mapping,
    ) -> anyhow::Result<Self> {
        let file = DeviceFile::open(path, Some(bytes))?;
        let engine = engine::start(file, choice, depth, depth)?.engine;
        let drive = Drive::new(engine, WallClock::default());
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut turner = Turner { drive, bell, said: Vec::new(), started: Instant::now() };
        let FromDrive::Found(found) = turner.next()? else { bail!("a device says first what it holds") };
        let plan = plan_open(std::slice::from_ref(&found), &wanted(&found)).context("open the bench's device")?;
        let superblock = plan.superblocks[0].clone();
        turner.tell(ToDrive::Open(Box::new(superblock.clone())));
        #[cfg_attr(not(test), expect(unused_variables))]
        let scan = loop {
            match turner.next()? {
                FromDrive::Scanned(scan) => break scan,
                FromDrive::Started { .. } | FromDrive::Counted(_) | FromDrive::Scanning { .. } => {}
                other => bail!("a device is scanned before it serves, and says {other:?}"),
            }
        };
        turner.tell(ToDrive::Register(slots.clone()));
        Ok(Self {
            turner,
            superblock,
            #[cfg(test)]
            scan,
            slots,
            depth,
            op: 0,
        })
    }

    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// What was on it when it was opened.
    #[cfg(test)]
    pub fn scan(&self) -> &lapis_ssd::recover::DeviceScan {
        &self.scan
    }

    /// Gives the drive commands, `depth` at a time, until `next` has no more and all have ended.
    pub fn carry_out(&mut self, mut next: impl FnMut(OpId, Memory) -> Option<Command>) -> anyhow::Result<u64> {
        let mut free: Vec<usize> = (0..self.depth).collect();
        let mut owner = vec![0; self.depth];
        let (mut over, mut bytes) = (false, 0);
        while !over || free.len() < self.depth {
            while !over && let Some(slot) = free.last().copied() {
                self.op += 1;
                let memory = Memory::new(&self.slots, slot * BYTES_MAX, BYTES_MAX);
                let Some(command) = next(OpId(self.op), memory) else {
                    over = true;
                    break;
                };
                owner[slot] = self.op;
                free.pop();
                self.turner.tell(ToDrive::Command(command));
            }
            self.turner.turn()?;
            for said in self.turner.said.drain(..) {
                let Report { op, result, bytes: moved } = match said {
                    FromDrive::Report(report) => report,
                    FromDrive::Counted(_) => continue,
                    other => bail!("a device failed: {other:?}"),
                };
                result.context("an operation of the bench's device")?;
                let slot = owner.iter().position(|owner| *owner == op.0).expect("an operation that was begun");
                (owner[slot], bytes) = (0, bytes + moved);
                free.push(slot);
            }
        }
        Ok(bytes)
    }

    /// Moves a record of `bytes` at each place.
    pub fn run(&mut self, way: Way, bytes: usize, places: &[SsdPlace]) -> anyhow::Result<Took> {
        let (cpu, started) = (cpu_of_process(None)?, Instant::now());
        let mut places = places.iter();
        let moved = self.carry_out(|op, memory| {
            let at = *places.next()?;
            let memory = Memory::new(&memory.mapping, memory.range.start, bytes);
            Some(match way {
                Way::Read => Command::Read { op, at, memory },
                Way::Write => Command::Write { op, at, memory },
            })
        })?;
        Ok(Took { bytes: moved, wall: started.elapsed(), cpu: cpu_of_process(None)? - cpu })
    }

    /// Places of records of so many bytes, one after the other through all segments.
    pub fn places(&self, bytes: usize) -> Vec<SsdPlace> {
        let pages = (bytes as u64 / UNIT_BYTES) as u32;
        let first = CONTENTS_START.0 + CHUNK_PAGES;
        let end = (self.superblock.segment_bytes / UNIT_BYTES) as u32;
        let in_segment = move |index| {
            let segment = SegmentId::new(0, index);
            (first..=end - pages).step_by(pages as usize).map(move |page| SsdPlace::new(segment, PageIndex(page)))
        };
        (0..self.superblock.segments).flat_map(in_segment).collect()
    }

    /// Where a place lies in the file.
    pub fn offset(&self, at: SsdPlace) -> u64 {
        self.superblock.offset_bytes(at.segment()) + u64::from(at.page().0) * UNIT_BYTES
    }
}

/// As the log is, if there is one.
fn wanted(found: &Found) -> Wanted {
    let (log, log_fresh, adopt, wall_s) = (None, LogId([7; 16]), false, 0);
    match found {
        Found::Formatted { superblock, .. } => Wanted {
            identity: Identity { host: superblock.host, instance: superblock.instance },
            segment_bytes: superblock.segment_bytes,
            groups: superblock.groups.iter().map(|group| group.name.clone()).collect(),
            adopt,
            log,
            log_fresh,
            wall_s,
        },
        _ => Wanted {
            identity: Identity::default(),
            segment_bytes: 64 << 20,
            groups: vec![String::from("bench")],
            adopt,
            log,
            log_fresh,
            wall_s,
        },
    }
}
