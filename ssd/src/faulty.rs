//! The faulty twin of a device: everything that disks do wrong, by a seed, in virtual time. No clock, no thread.
//!
//! Invariant: the same seed, plan and calls give the same completions and the same bytes.
//! Invariant: a write reads its memory when it lands, a read fills its memory when it ends: memory that is used again
//! too early shows. So does memory that two operations have at once, a place, or a name.
//! Dropping it is what a kill is: writes under way land, land in part or do not, by the seed; then the disk is still.

mod plan;

use std::{collections::BTreeMap, io, ops::Range};

use fastrand::Rng;
use lapis_config::Time;

pub use plan::{Fault, Faults, Injected, PER};

use crate::{
    device::{Completion, Device, Io, IoKind, Memory},
    disk::{Disk, SECTOR_BYTES},
    format::PAGE_BYTES,
    memory::carry_out,
};

/// What an operation may suffer beside being late: at most one of these.
const WRONGS: [Fault; 8] =
    [Fault::Eio, Fault::Short, Fault::Torn, Fault::BitFlip, Fault::Misdirected, Fault::Lost, Fault::Stale, Fault::Full];

/// A device over a [`Disk`]; see the module's head.
pub struct Faulty {
    disk: Disk,
    depth: usize,
    faults: Faults,
    rng: Rng,
    now: Time,
    staged: Vec<Io>,
    /// By the time at which they are due, then by the order in which they began.
    under_way: BTreeMap<(Time, u64), Op>,
    hung: Vec<Op>,
    ended: Vec<Completion>,
    /// When the last operation that keeps its place is due.
    last_due: Time,
    begun: u64,
    is_gone: bool,
    places_apart: bool,
    injected: Injected,
}

struct Op {
    io: Io,
    wrong: Option<Fault>,
    /// Writes that a flush covers.
    landed: u64,
    /// Bytes that a short transfer has done already.
    done: usize,
}

impl Faulty {
    /// Opens a disk at time 0; `advance` says what time it is.
    pub fn new(disk: &Disk, depth: usize, faults: Faults, seed: u64) -> Self {
        assert!(depth > 0, "a device that takes nothing");
        Self {
            disk: disk.clone(),
            depth,
            faults,
            rng: Rng::with_seed(seed),
            now: Time(0),
            staged: Vec::new(),
            under_way: BTreeMap::new(),
            hung: Vec::new(),
            ended: Vec::new(),
            last_due: Time(0),
            begun: 0,
            is_gone: false,
            places_apart: false,
            injected: Injected::default(),
        }
    }

    /// It is `now`: what is due ends, for the next `poll`.
    pub fn advance(&mut self, now: Time) {
        assert!(now >= self.now, "time goes on");
        self.now = now;
        while let Some(first) = self.under_way.first_entry()
            && first.key().0 <= now
        {
            let op = first.remove();
            self.finish(op);
        }
    }

    /// When the next operation ends, if one does by itself.
    pub fn next_due(&self) -> Option<Time> {
        if !self.ended.is_empty() {
            return Some(self.now);
        }
        self.under_way.first_key_value().map(|((due, _), _)| *due)
    }

    /// From now on no operation may change a place where another is under way: a log never does so.
    pub fn keep_places_apart(&mut self) {
        self.places_apart = true;
    }

    /// Another plan from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// The device is pulled: all that is under way fails, hung or not, and all that comes until `come_back`.
    pub fn vanish(&mut self) {
        self.is_gone = true;
        let under_way = std::mem::take(&mut self.under_way);
        let hung = std::mem::take(&mut self.hung);
        for op in under_way.into_values().chain(hung) {
            self.injected.count(Fault::Gone);
            self.settle(&op);
            self.end(&op, Err(gone()));
        }
    }

    pub fn come_back(&mut self) {
        self.is_gone = false;
    }

    /// What hangs goes on: it is due now.
    pub fn release_hung(&mut self) {
        for op in std::mem::take(&mut self.hung) {
            self.enqueue(self.now, op);
        }
    }

    /// Operations that hang.
    pub fn hung(&self) -> usize {
        self.hung.len()
    }

    pub fn injected(&self) -> Injected {
        self.injected
    }

    /// Ends the process that has it open; see the module's head.
    pub fn kill(self) -> Injected {
        self.injected
    }

    /// What every submitter promises: a name of its own, and memory that nothing else is at; from some also a place
    /// that does not change under others.
    fn expect_own(&self, io: &Io) {
        let ops = self.under_way.values().chain(&self.hung).map(|op| &op.io);
        for other in self.staged.iter().chain(ops) {
            assert!(other.id != io.id, "{:?} is under way", io.id);
            let reads = [io.kind, other.kind].contains(&IoKind::Read);
            if let (Some(memory), Some(used), true) = (&io.memory, &other.memory, reads) {
                let [memory, used] = [memory, used].map(|memory| {
                    let start = memory.address(0, memory.bytes()) as usize;
                    start..start + memory.bytes()
                });
                let apart = memory.end <= used.start || used.end <= memory.start;
                assert!(apart, "{:?} is at the memory of {:?}, and one of them reads", io.id, other.id);
            }
        }
        if !self.places_apart {
            return;
        }
        // Whoever opens a device again does not know what still hangs.
        for other in self.staged.iter().chain(self.under_way.values().map(|op| &op.io)) {
            let changes = [io.kind, other.kind].iter().any(|kind| *kind != IoKind::Read);
            let apart = io.offset + io.bytes <= other.offset || other.offset + other.bytes <= io.offset;
            assert!(!changes || apart, "{:?} is where {:?} is under way, and one of them writes", io.id, other.id);
        }
    }

    fn begin(&mut self, io: Io) {
        let landed = self.disk.landed();
        let mut op = Op { io, wrong: None, landed, done: 0 };
        if self.is_gone {
            self.injected.count(Fault::Gone);
            return self.end(&op, Err(gone()));
        }
        if let Err(error) = op.io.check(self.disk.bytes()) {
            return self.end(&op, Err(error));
        }
        op.wrong = self.draw(op.io.kind);
        if self.happens(Fault::Hang) {
            return self.hung.push(op);
        }
        let latency = self.latency_us();
        let in_order = Time(self.now.0 + latency).max(self.last_due);
        let due = if self.happens(Fault::Delay) {
            let delay_us = u64::try_from(self.faults.delay_max.as_micros()).unwrap_or(u64::MAX);
            Time(in_order.0.saturating_add(self.rng.u64(0..=delay_us)))
        } else if self.happens(Fault::Reorder) {
            Time(self.now.0 + self.rng.u64(0..=4 * latency))
        } else {
            self.last_due = in_order;
            in_order
        };
        self.enqueue(due, op);
    }

    fn enqueue(&mut self, due: Time, op: Op) {
        self.begun += 1;
        self.under_way.insert((due, self.begun), op);
    }

    fn latency_us(&mut self) -> u64 {
        let Range { start, end } = self.faults.latency_us;
        self.rng.u64(start..end.max(start + 1))
    }

    fn happens(&mut self, fault: Fault) -> bool {
        let happens = self.rng.u32(..PER) < self.faults.rate(fault);
        if happens {
            self.injected.count(fault);
        }
        happens
    }

    /// Draws at most one fault that can befall such an operation.
    fn draw(&mut self, kind: IoKind) -> Option<Fault> {
        let mut drawn = self.rng.u32(..PER);
        for fault in WRONGS.into_iter().filter(|fault| befalls(*fault, kind)) {
            let rate = self.faults.rate(fault);
            if drawn < rate {
                self.injected.count(fault);
                return Some(fault);
            }
            drawn -= rate;
        }
        None
    }

    fn end(&mut self, op: &Op, result: io::Result<()>) {
        self.ended.push(Completion { id: op.io.id, result });
    }

    /// An operation is due.
    fn finish(&mut self, mut op: Op) {
        if op.wrong == Some(Fault::Short) {
            return self.shorten(op);
        }
        let result = match (&op.io.memory, op.io.kind, op.wrong) {
            (Some(memory), IoKind::Read, wrong) => self.read(&op, memory, wrong),
            (Some(memory), _, wrong) => self.write(&op, memory, wrong),
            (None, _, Some(_)) => Err(eio()),
            // A hint: taken or not.
            (None, IoKind::Discard, None) if self.rng.bool() => Ok(()),
            (None, _, None) => {
                carry_out(&self.disk, &op.io, op.landed);
                Ok(())
            }
        };
        op.wrong = None;
        self.end(&op, result);
    }

    /// A part is done now: whole pages, as the kernel reports them. Then the rest, or an error.
    fn shorten(&mut self, mut op: Op) {
        op.wrong = None;
        let pages = op.io.bytes as usize / PAGE_BYTES;
        op.done = self.rng.usize(0..pages.max(1)) * PAGE_BYTES;
        self.transfer(&op, 0..op.done);
        if self.rng.bool() {
            return self.end(&op, Err(eio()));
        }
        let due = Time(self.now.0 + self.latency_us());
        self.enqueue(due, op);
    }

    fn read(&mut self, op: &Op, memory: &Memory, wrong: Option<Fault>) -> io::Result<()> {
        let (offset, bytes) = (op.io.offset, memory.bytes());
        match wrong {
            None => self.transfer(op, op.done..bytes),
            Some(Fault::Eio) => {
                self.transfer_some(op);
                return Err(eio());
            }
            Some(Fault::BitFlip) => {
                let mut came = self.disk.read(offset, bytes);
                self.flip(&mut came);
                memory.fill(0, &came);
            }
            Some(Fault::Misdirected) => {
                let elsewhere = self.elsewhere(offset, bytes);
                memory.fill(0, &self.disk.read(elsewhere, bytes));
            }
            Some(Fault::Stale) => memory.fill(0, &self.disk.read_stale(offset, bytes)),
            Some(other) => unreachable!("{other:?} befalls no read"),
        }
        Ok(())
    }

    fn write(&mut self, op: &Op, memory: &Memory, wrong: Option<Fault>) -> io::Result<()> {
        let (offset, bytes) = (op.io.offset, memory.bytes());
        match wrong {
            None => self.transfer(op, op.done..bytes),
            Some(Fault::Eio) => {
                self.transfer_some(op);
                return Err(eio());
            }
            Some(Fault::Full) => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Some(Fault::Torn) => self.transfer_some(op),
            Some(Fault::BitFlip) => {
                let mut goes = memory.bytes_now(0..bytes);
                self.flip(&mut goes);
                self.disk.write(offset, &goes);
            }
            Some(Fault::Misdirected) => {
                let elsewhere = self.elsewhere(offset, bytes);
                self.disk.write(elsewhere, &memory.bytes_now(0..bytes));
            }
            Some(Fault::Lost) => {}
            Some(other) => unreachable!("{other:?} befalls no write"),
        }
        Ok(())
    }

    /// Moves some bytes of an operation as they should be moved.
    fn transfer(&self, op: &Op, range: Range<usize>) {
        let Some(memory) = op.io.memory.as_ref().filter(|_| !range.is_empty()) else { return };
        let offset = op.io.offset + range.start as u64;
        match op.io.kind {
            IoKind::Read => memory.fill(range.start, &self.disk.read(offset, range.len())),
            _ => self.disk.write(offset, &memory.bytes_now(range)),
        }
    }

    /// Moves some sectors of an operation, never all of them: a leading part, or any.
    fn transfer_some(&mut self, op: &Op) {
        let sectors = op.io.bytes as usize / SECTOR_BYTES;
        let missing = self.rng.usize(0..sectors.max(1));
        let leading = self.rng.bool();
        for sector in (0..sectors).filter(|sector| *sector != missing) {
            let moves = if leading { sector < missing } else { self.rng.bool() };
            if moves {
                self.transfer(op, sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES);
            }
        }
    }

    /// What becomes of an operation that nobody waits for any more.
    fn settle(&mut self, op: &Op) {
        match self.rng.u8(0..3) {
            0 => self.transfer(op, 0..op.io.memory.as_ref().map_or(0, Memory::bytes)),
            1 => self.transfer_some(op),
            _ => {}
        }
    }

    fn flip(&mut self, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            let at = self.rng.usize(..bytes.len());
            bytes[at] ^= 1 << self.rng.u8(..8);
        }
    }

    /// Another place for as many bytes, if the device has one.
    fn elsewhere(&mut self, offset: u64, bytes: usize) -> u64 {
        let page = PAGE_BYTES as u64;
        let places = (self.disk.bytes() - bytes as u64) / page + 1;
        let away = self.rng.u64(1..places.max(2));
        (offset / page + away) % places * page
    }
}

impl Device for Faulty {
    fn bytes(&self) -> u64 {
        self.disk.bytes()
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, io: Io) -> Result<(), Io> {
        let taken = self.staged.len() + self.under_way.len() + self.hung.len() + self.ended.len();
        if taken == self.depth {
            return Err(io);
        }
        self.expect_own(&io);
        self.staged.push(io);
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        for io in std::mem::take(&mut self.staged) {
            self.begin(io);
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        out.append(&mut self.ended);
        Ok(())
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let under_way = std::mem::take(&mut self.under_way);
        let hung = std::mem::take(&mut self.hung);
        for op in under_way.into_values().chain(hung) {
            self.settle(&op);
        }
    }
}

fn befalls(fault: Fault, kind: IoKind) -> bool {
    match fault {
        Fault::Eio | Fault::Delay | Fault::Hang | Fault::Reorder | Fault::Gone => true,
        Fault::Short | Fault::BitFlip | Fault::Misdirected => matches!(kind, IoKind::Read | IoKind::Write),
        Fault::Torn | Fault::Lost | Fault::Full => kind == IoKind::Write,
        Fault::Stale => kind == IoKind::Read,
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

#[cfg(test)]
mod tests;
