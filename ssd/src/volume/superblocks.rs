//! Reading and writing a device's superblocks before there is a volume: state machines that are polled until ready.
//! Each has the device for itself until then; one that is given up leaves operations on it, so the device is dropped.

use std::{
    io,
    task::Poll::{self, Pending, Ready},
};

use lapis_arena::{ArenaError, Mapping};

use super::open::{Found, SEGMENTS_START};
use crate::{
    device::{Completion, Device, Io, IoId, IoKind, Memory},
    format::{FormatError, PAGE_BYTES, Page, Superblock},
};

/// One operation after the other.
struct Single {
    io: Option<Io>,
    under_way: bool,
}

impl Single {
    fn new(kind: IoKind, offset: u64, memory: Option<Memory>) -> Self {
        let bytes = memory.as_ref().map_or(0, |memory| memory.bytes() as u64);
        Self { io: Some(Io { id: IoId(0), kind, offset, bytes, memory }), under_way: false }
    }

    fn poll<D: Device>(&mut self, device: &mut D) -> Poll<io::Result<()>> {
        if let Some(io) = self.io.take() {
            match device.submit(io) {
                Ok(()) => self.under_way = true,
                Err(io) => self.io = Some(io),
            }
            device.kick()?;
        }
        let mut ended: Vec<Completion> = Vec::new();
        device.poll(&mut ended)?;
        match ended.pop() {
            Some(completion) => {
                assert!(self.under_way && ended.is_empty(), "the device is ours alone");
                Ready(completion.result)
            }
            None => Pending,
        }
    }
}

/// Reads what lies before the first segment.
pub struct Reader {
    memory: Memory,
    read: Single,
}

impl Reader {
    pub fn new<D: Device>(device: &D) -> Result<Self, ArenaError> {
        // A device of less than two pages is found to be too small, by what it has.
        let bytes = SEGMENTS_START.min(device.bytes()) as usize / PAGE_BYTES * PAGE_BYTES;
        let mapping = Mapping::anonymous(bytes.max(PAGE_BYTES) as u64)?;
        let memory = Memory::new(&mapping, 0, bytes);
        Ok(Self { read: Single::new(IoKind::Read, 0, Some(memory.clone())), memory })
    }

    /// What the device holds. An error is the device's.
    pub fn poll<D: Device>(&mut self, device: &mut D) -> Poll<io::Result<Found>> {
        if self.memory.bytes() < 2 * PAGE_BYTES {
            return Ready(Ok(Found::Blank { device_bytes: device.bytes() }));
        }
        if self.read.poll(device)?.is_pending() {
            return Pending;
        }
        let bytes = self.memory.mapping.to_vec(self.memory.range.start, self.memory.bytes());
        Ready(Ok(judge(&bytes, device.bytes())))
    }
}

/// What a device is whose first bytes are these.
fn judge(bytes: &[u8], device_bytes: u64) -> Found {
    let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
    let (a, b): (&Page, &Page) = (&pages[0], &pages[1]);
    let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    match Superblock::newest([a, b], device_bytes) {
        Ok(superblock) => Found::Formatted { device_bytes, superblock },
        Err(FormatError::Foreign { .. }) if zeros(bytes) => Found::Blank { device_bytes },
        Err(FormatError::Foreign { .. }) => Found::Other,
        // Formatting was cut off: it writes the other page first, and this one only when that is whole.
        Err(FormatError::Corrupt { .. }) if zeros(a) && zeros(&bytes[2 * PAGE_BYTES..]) => {
            Found::Blank { device_bytes }
        }
        Err(source) => Found::Broken { source },
    }
}

/// Writes a superblock to both pages, each flushed before the other is touched: one of them is whole at any time, and
/// in the end either alone is enough. Formatting needs the second as well, lest what lay in that page be taken for a
/// later write than the first.
pub struct Writer {
    superblock: Superblock,
    memory: Memory,
    step: Option<Single>,
    steps_done: u32,
}

impl Writer {
    /// Writes `superblock.write` and the one after.
    pub fn new(superblock: Superblock) -> Result<Self, ArenaError> {
        let mapping = Mapping::anonymous(PAGE_BYTES as u64)?;
        Ok(Self { superblock, memory: Memory::new(&mapping, 0, PAGE_BYTES), step: None, steps_done: 0 })
    }

    /// The superblock in force once both pages hold it.
    pub fn poll<D: Device>(&mut self, device: &mut D) -> Poll<io::Result<Superblock>> {
        loop {
            let (superblock, memory, flushes) = (&self.superblock, &self.memory, self.steps_done % 2 == 1);
            let step = self.step.get_or_insert_with(|| {
                if flushes {
                    return Single::new(IoKind::Flush, 0, None);
                }
                memory.mapping.copy_in(0, &*superblock.encode());
                Single::new(IoKind::Write, superblock.page() * PAGE_BYTES as u64, Some(memory.clone()))
            });
            if step.poll(device)?.is_pending() {
                return Pending;
            }
            self.step = None;
            self.steps_done += 1;
            match self.steps_done {
                2 => self.superblock.write += 1,
                4 => return Ready(Ok(self.superblock.clone())),
                _ => {}
            }
        }
    }
}
