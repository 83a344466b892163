//! Movers that work when the world lets them: memory comes in pieces, checks end in any order, devices are faulty twins.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    os::fd::AsFd,
    rc::Rc,
};

use fastrand::Rng;
use lapis::movers::{self, Done, Job, Movers};
use lapis_arena::memfd;
use lapis_config::Time;
use lapis_ssd::{
    disk::Disk,
    drive::{Drive, FromDrive, ToDrive},
    faulty::{Faults, Faulty},
    recover,
    volume::WallClock,
};

use super::{hosts::Hosts, kill::Fuse};

/// Pieces in which an extent gets its memory.
const PIECES: u64 = 4;

/// What a daemon's movers are made of.
pub struct Hardware<'a> {
    pub disks: &'a [Disk],
    /// Devices that do not answer: pulled.
    pub gone: &'a [bool],
    pub queue: usize,
    pub faults: Faults,
    pub hosts: Rc<RefCell<Hosts>>,
}

struct SimDrive {
    drive: Drive<Faulty>,
    inbox: VecDeque<ToDrive>,
    disk: Disk,
    slot: Slot,
    /// When its thread looks at the inbox.
    looks: Time,
    /// It had its first turn, and reads what is on the device.
    began: bool,
}

/// What is where a device was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// The device, answering or not.
    Device,
    /// Nothing: it was pulled, and whoever has it open has a dead one for ever.
    Empty,
    /// It again, or a blank one, to be opened anew.
    Other { blank: bool },
}

pub struct SimMovers {
    rng: Rng,
    queue: usize,
    faults: Faults,
    fuse: Fuse,
    now: Time,
    /// With how much of it is done.
    waiting: Vec<(Job, u64)>,
    /// How many those are, for whoever turns the world.
    count: Rc<Cell<usize>>,
    drives: Vec<SimDrive>,
    done: VecDeque<Done>,
    hosts: Rc<RefCell<Hosts>>,
}

impl SimMovers {
    pub fn new(now: Time, mut rng: Rng, fuse: Fuse, count: Rc<Cell<usize>>, hardware: &Hardware<'_>) -> Self {
        count.set(0);
        let drives = hardware.disks.iter().zip(hardware.gone).map(|(disk, gone)| {
            let mut device = Faulty::new(disk, hardware.queue, hardware.faults.clone(), rng.u64(..));
            device.keep_places_apart();
            device.advance(now);
            if *gone {
                device.vanish();
            }
            let drive = Drive::new(device, WallClock { wall_s: 1_700_000_000, at: now });
            let (inbox, disk) = (VecDeque::new(), disk.clone());
            SimDrive { drive, inbox, disk, slot: Slot::Device, looks: now, began: false }
        });
        let drives = drives.collect();
        let (hosts, queue, faults) = (hardware.hosts.clone(), hardware.queue, hardware.faults.clone());
        Self { rng, queue, faults, fuse, now, waiting: Vec::new(), count, drives, done: VecDeque::new(), hosts }
    }

    /// Does a piece of any job. What it came to is found by the engine's next turn.
    pub fn work(&mut self) -> Option<&Done> {
        if self.waiting.is_empty() {
            return None;
        }
        let at = self.rng.usize(..self.waiting.len());
        let (job, progress) = &mut self.waiting[at];
        let (done, over) = match job {
            Job::Populate { group, extent, memory } => {
                *progress += 1;
                let (had, bytes) = (memory.populated_bytes, memory.mapping.len() as u64);
                let upto = |pieces: u64| had + (bytes - had) * pieces / PIECES / 4096 * 4096;
                // As the real one does: whatever lay there is gone.
                let cleared = memfd::clear(memory.fd.as_fd(), upto(*progress - 1)..upto(*progress));
                cleared.expect("memory for a test");
                (Done::Populated { group: *group, extent: *extent, bytes: upto(*progress) }, *progress == PIECES)
            }
            Job::Verify { group, op, block } => {
                (Done::Verified { group: *group, op: *op, outcome: movers::check(block) }, true)
            }
            Job::Sum { group, op, block } => (Done::Summed { group: *group, op: *op, sum: block.make_sums() }, true),
            Job::Merge { scans, groups, device } => {
                (Done::Merged { recovered: recover::merge(std::mem::take(scans), groups), device: *device }, true)
            }
            Job::MapIn { .. } | Job::Drive { .. } | Job::Paths(_) => {
                unreachable!("drives have inboxes of their own, hints change nothing")
            }
        };
        if over {
            self.waiting.swap_remove(at);
            self.count.set(self.waiting.len());
        }
        self.done.push_back(done);
        self.done.back()
    }

    // ---- Devices ----

    /// When a drive has something to do, and which; hung ones never do.
    pub fn drive_due(&mut self) -> Option<(Time, usize)> {
        let due = |(at, own): (usize, &mut SimDrive)| {
            let device = if own.drive.is_vacant() { None } else { own.drive.device_mut().next_due() };
            let wants = !own.began || !own.inbox.is_empty() || own.looks > self.now;
            let looks = wants.then_some(own.looks);
            device.into_iter().chain(looks).min().map(|due| (due, at))
        };
        self.drives.iter_mut().enumerate().filter_map(due).min()
    }

    /// A drive's thread has a turn; what it says is found by the engine's next one. How much that is, and a digest.
    pub fn turn_drive(&mut self, now: Time, at: usize) -> Vec<String> {
        self.now = now;
        let own = &mut self.drives[at];
        own.began = true;
        if !own.drive.is_vacant() {
            own.drive.device_mut().advance(now);
        }
        let mut said = Vec::new();
        for message in own.inbox.drain(..) {
            let renews = matches!(message, ToDrive::Renew);
            own.drive.tell(now, message);
            if let (true, true, Slot::Other { blank }) = (renews, own.drive.is_vacant(), own.slot) {
                if blank {
                    own.disk.discard(0, own.disk.bytes() as usize);
                    own.disk.flushed(own.disk.landed());
                }
                let mut device = Faulty::new(&own.disk, self.queue, self.faults.clone(), self.rng.u64(..));
                device.keep_places_apart();
                device.advance(now);
                said.push(FromDrive::Started { engine: "faulty", why: None, bytes: own.disk.bytes() });
                own.drive.renew(device);
                own.slot = Slot::Device;
            }
        }
        own.drive.kick();
        while own.drive.poll(now, &mut said) {}
        own.looks = now;
        let told = said.iter().map(|from| told(at, from)).collect();
        self.done.extend(said.into_iter().map(|from| Done::Drive { device: at, from }));
        told
    }

    /// `None`: the daemon has let go of it.
    pub fn device(&mut self, now: Time, at: usize) -> Option<&mut Faulty> {
        self.now = now;
        let own = &mut self.drives[at];
        if own.drive.is_vacant() {
            return None;
        }
        own.looks = now.after(std::time::Duration::from_micros(1));
        let device = own.drive.device_mut();
        device.advance(now);
        Some(device)
    }

    /// The device is pulled, and the kernel says so.
    pub fn pull(&mut self, now: Time, at: usize) {
        if let Some(device) = self.device(now, at) {
            device.vanish();
        }
        self.drives[at].slot = Slot::Empty;
        self.done.push_back(Done::Drive { device: at, from: FromDrive::Vanished });
    }

    /// It, or a blank one, is there again; false if it was not pulled.
    pub fn plug(&mut self, at: usize, blank: bool) -> bool {
        let own = &mut self.drives[at];
        if own.slot == Slot::Empty {
            own.slot = Slot::Other { blank };
        }
        own.slot != Slot::Device
    }

    /// From now on devices do this wrong.
    pub fn set_faults(&mut self, now: Time, faults: &Faults) {
        self.faults = faults.clone();
        for at in 0..self.drives.len() {
            if let Some(device) = self.device(now, at) {
                device.set_faults(faults.clone());
            }
        }
    }

    pub fn hung(&mut self) -> usize {
        let open = self.drives.iter_mut().filter(|own| !own.drive.is_vacant());
        open.map(|own| own.drive.device_mut().hung()).sum()
    }

    /// Nothing is with any device, and nothing waits for it.
    pub fn is_idle(&mut self) -> bool {
        self.done.is_empty() && self.drives.iter_mut().all(|own| own.inbox.is_empty()) && self.drive_due().is_none()
    }
}

/// A line of the trace.
fn told(device: usize, from: &FromDrive) -> String {
    match from {
        FromDrive::Scanned(scan) => {
            let records = scan.segments.iter().map(|segment| segment.records.len()).sum::<usize>();
            let damaged = scan.segments.iter().filter(|segment| segment.damage.any()).count();
            let (used, free) = (scan.segments.len(), scan.free.len());
            format!(
                "device {device}: {used} segments in use, {damaged} damaged, {records} records, {free} segments free"
            )
        }
        FromDrive::Report(report) => {
            let result = report.result.as_ref().map_err(|error| error.kind());
            format!("device {device}: {:x} {result:?} {} bytes", report.op.0, report.bytes)
        }
        FromDrive::Found(found) => format!("device {device}: {found:?}"),
        FromDrive::Failed(reason) => format!("device {device}: failed: {reason}"),
        FromDrive::Started { .. } | FromDrive::Vanished | FromDrive::Counted(_) | FromDrive::Scanning { .. } => {
            format!("device {device}: {from:?}")
        }
    }
}

impl Movers for SimMovers {
    fn submit(&mut self, job: Job) {
        self.fuse.burn();
        match job {
            Job::Drive { device, to } => {
                let own = &mut self.drives[device];
                if own.inbox.is_empty() {
                    own.looks = self.now.after(std::time::Duration::from_micros(self.rng.u64(1..40)));
                }
                own.inbox.push_back(to);
            }
            Job::MapIn { .. } => {}
            Job::Paths(job) => self.hosts.borrow_mut().path_job(job),
            job => {
                self.waiting.push((job, 0));
                self.count.set(self.waiting.len());
            }
        }
    }

    fn poll(&mut self) -> Option<Done> {
        self.fuse.burn();
        let of_paths = || self.hosts.borrow_mut().path_said().map(Done::Paths);
        self.done.pop_front().or_else(of_paths)
    }
}
