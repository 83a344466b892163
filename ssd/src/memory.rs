//! A device in memory that does all at once and nothing wrong: for tests and simulation. Its faulty twin is
//! [`Faulty`](crate::faulty::Faulty).

use std::io;

use crate::{
    device::{Completion, Device, Io, IoKind},
    disk::Disk,
};

/// A device over a [`Disk`]: what was kicked is done, in order, at the next `poll`.
pub struct MemDevice {
    disk: Disk,
    depth: usize,
    staged: Vec<Io>,
    /// With the writes that a flush covers: those that had landed when it began.
    begun: Vec<(Io, u64)>,
}

impl MemDevice {
    pub fn new(disk: &Disk, depth: usize) -> Self {
        assert!(depth > 0, "a device that takes nothing");
        Self { disk: disk.clone(), depth, staged: Vec::new(), begun: Vec::new() }
    }
}

impl Device for MemDevice {
    fn bytes(&self) -> u64 {
        self.disk.bytes()
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, io: Io) -> Result<(), Io> {
        if self.staged.len() + self.begun.len() == self.depth {
            return Err(io);
        }
        self.staged.push(io);
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        let landed = self.disk.landed();
        self.begun.extend(self.staged.drain(..).map(|io| (io, landed)));
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        for (io, landed) in self.begun.drain(..) {
            let result = io.check(self.disk.bytes()).map(|()| carry_out(&self.disk, &io, landed));
            out.push(Completion { id: io.id, result });
        }
        Ok(())
    }
}

/// Does an operation as it should be done.
pub(crate) fn carry_out(disk: &Disk, io: &Io, landed: u64) {
    match (io.kind, &io.memory) {
        (IoKind::Read, Some(memory)) => memory.fill(0, &disk.read(io.offset, memory.bytes())),
        (IoKind::Write, Some(memory)) => disk.write(io.offset, &memory.bytes_now(0..memory.bytes())),
        (IoKind::Flush, _) => disk.flushed(landed),
        (IoKind::Discard, _) => disk.discard(io.offset, io.bytes as usize),
        (IoKind::Read | IoKind::Write, None) => unreachable!("checked before"),
    }
}
