//! The device by io_uring: fixed file, registered buffers, a batch of operations in one call.
//!
//! Invariant: whatever the kernel may still touch (ring, file, memory under way, registered memory) is in [`Kernel`],
//! which is dropped only if nothing is under way and is leaked otherwise.
//! Invariant: each slot of `flights` is either in `free` or known to the kernel, to `again`, or to the submission queue.

pub(crate) mod buffers;
mod flight;
pub(crate) mod issuer;
pub(crate) mod ring;

use std::{
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use io_uring::{squeue, types};
use lapis_arena::{ArenaError, Mapping};

pub use self::ring::{DEPTH_MAX, Ring};
use self::{
    buffers::Buffers,
    flight::{Flight, Step},
    issuer::Issuer,
};
use crate::device::{Completion, Device, DeviceFile, Io, IoKind, Waits};

/// See the module's head. The thread that first calls `kick`, `poll` or `wait` is its thread from then on: the kernel
/// refuses others.
pub struct Uring {
    kernel: ManuallyDrop<Kernel>,
    bytes: u64,
    /// Slots of `flights`.
    free: Vec<u32>,
    /// To be handed to the kernel once more.
    again: Vec<u32>,
    ended: Vec<Completion>,
}

/// In the order in which they go: the ring first.
struct Kernel {
    issuer: Issuer,
    flights: Vec<Option<Flight>>,
    buffers: Buffers,
    file: DeviceFile,
    /// Whether the file is the ring's number 0.
    is_fixed: bool,
}

impl Uring {
    pub fn new(ring: Ring, file: DeviceFile) -> Self {
        let depth = ring.depth();
        let issuer = Issuer::new(ring);
        let is_fixed = match issuer.submitter().register_files(&[file.as_fd().as_raw_fd()]) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, path = %file.path().display(), "no fixed file; the descriptor serves as well");
                false
            }
        };
        let bytes = file.bytes();
        let flights = (0..depth).map(|_| None).collect();
        let kernel = ManuallyDrop::new(Kernel { issuer, flights, buffers: Buffers::default(), file, is_fixed });
        let free = (0..depth as u32).rev().collect();
        Self { kernel, bytes, free, again: Vec::new(), ended: Vec::new() }
    }

    /// Bytes of memory that the ring knows; operations on other memory cost the kernel a look-up of its pages each.
    pub fn registered_bytes(&self) -> usize {
        self.kernel.buffers.bytes()
    }

    /// Operations that the kernel has, or will be given.
    fn in_flight(&self) -> usize {
        self.kernel.flights.len() - self.free.len()
    }

    /// Of these, the ones that the kernel has; at most one too many, while a bell is watched.
    fn handed(&mut self) -> usize {
        let Some(queued) = self.kernel.issuer.queued() else { return 0 };
        self.in_flight() - self.again.len() - queued
    }

    /// Takes what the kernel has posted.
    fn reap(&mut self) {
        let Kernel { issuer, flights, .. } = &mut *self.kernel;
        issuer.reap(|slot, answer| {
            let slot = slot as u32;
            let place = &mut flights[slot as usize];
            let flight = place.as_mut().expect("the kernel completes what it was given, once");
            match flight.step(answer) {
                Step::Again => self.again.push(slot),
                Step::Ended(result) => {
                    self.ended.push(Completion { id: flight.id(), result });
                    *place = None;
                    self.free.push(slot);
                }
            }
        });
    }

    /// Queues a slot's operation, or what is left of it.
    fn push(&mut self, slot: u32) {
        let Kernel { issuer, flights, buffers, file, is_fixed } = &mut *self.kernel;
        let flight = flights[slot as usize].as_ref().expect("a slot under way");
        let (fd, flags) = match *is_fixed {
            true => (0, squeue::Flags::FIXED_FILE),
            false => (file.as_fd().as_raw_fd(), squeue::Flags::empty()),
        };
        let entry = flight.entry(types::Fd(fd), buffers).flags(flags).user_data(u64::from(slot));
        // SAFETY: the entry's addresses lie in the flight's memory, whose mapping `flights` keeps until the kernel has
        // completed it, or for ever (see `drop`); the file and the registered buffers live as long as the ring does.
        unsafe { issuer.push(&entry) };
    }

    fn push_again(&mut self) {
        while let Some(slot) = self.again.pop() {
            self.push(slot);
        }
    }
}

impl Kernel {
    /// Gives back what the ring holds. Closing it would do so too, but some 50 ms later, when the kernel takes it down
    /// behind: until then nobody else could claim the device.
    fn release(&self) {
        let submitter = self.issuer.submitter();
        let file = if self.is_fixed { submitter.unregister_files() } else { Ok(()) };
        let buffers = if self.buffers.bytes() > 0 { submitter.unregister_buffers() } else { Ok(()) };
        if let Err(error) = file.and(buffers) {
            // Another thread than the ring's is refused.
            tracing::debug!(%error, path = %self.file.path().display(), "a ring is taken down behind");
        }
    }
}

impl Device for Uring {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn depth(&self) -> usize {
        self.kernel.flights.len()
    }

    fn submit(&mut self, io: Io) -> Result<(), Io> {
        if self.in_flight() + self.ended.len() == self.depth() {
            return Err(io);
        }
        let nothing = io.kind == IoKind::Discard && !self.kernel.file.discards();
        let checked = io.check(self.bytes);
        if checked.is_err() || nothing || (io.bytes == 0 && io.kind != IoKind::Flush) {
            self.ended.push(Completion { id: io.id, result: checked });
            return Ok(());
        }
        let slot = self.free.pop().expect("fewer than `depth` are under way");
        self.kernel.flights[slot as usize] = Some(Flight::new(io));
        self.push(slot);
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        self.kernel.issuer.enter(false)
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let mut entered = self.kernel.issuer.enter(false);
        self.reap();
        if !self.again.is_empty() {
            self.push_again();
            entered = entered.and_then(|()| self.kernel.issuer.enter(false));
        }
        out.append(&mut self.ended);
        entered
    }

    fn register(&mut self, mapping: &Mapping) -> Result<(), ArenaError> {
        let kernel = &mut *self.kernel;
        kernel.buffers.register(&kernel.issuer.submitter(), mapping)
    }
}

impl Waits for Uring {
    fn wait(&mut self, bell: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        self.kernel.issuer.take()?;
        if !self.ended.is_empty() {
            return Ok(());
        }
        self.kernel.issuer.wait(bell, timeout)
    }
}

impl Drop for Uring {
    /// Never waits. The kernel may still write into memory of operations under way, and taking down a ring with one that
    /// hangs keeps a kernel worker and the descriptor's lock busy: then ring, file and memory stay as they are until the
    /// process ends. The lock stays with them, rightly: the device may still be written to.
    fn drop(&mut self) {
        if self.handed() > 0 {
            self.kernel.issuer.post();
            self.reap();
        }
        let operations = self.handed();
        if operations > 0 {
            let path = self.kernel.file.path().display();
            tracing::warn!(%path, operations, "a device was given up with operations under way");
            return;
        }
        self.kernel.release();
        // SAFETY: dropped once, here; nothing of it is used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.kernel) }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::OwnedFd, time::Instant};

    use lapis_arena::{Access, memfd};

    use super::*;
    use crate::device::{IoId, Memory};

    #[test]
    fn every_setup_that_this_kernel_knows_serves_the_same() {
        for (index, setup) in ring::SETUPS.into_iter().enumerate() {
            let ring = match Ring::set_up_as(4, &[setup], false) {
                Ok(ring) => ring,
                Err(error) => {
                    println!("skipped: setup {index}: {error:?}");
                    continue;
                }
            };
            let dir = tempfile::tempdir().expect("a directory");
            let file = DeviceFile::open(&dir.path().join("device"), Some(1 << 20)).expect("room");
            let mut device = Uring::new(ring, file);
            let mapping = Mapping::anonymous(8192).expect("memory");
            mapping.copy_in(0, &[index as u8 + 1; 4096]);
            let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("a descriptor");
            let mut out = Vec::new();
            for io in [Io::write(IoId(0), 4096, Memory::new(&mapping, 0, 4096)), Io::flush(IoId(1))]
                .into_iter()
                .chain([Io::read(IoId(2), 4096, Memory::new(&mapping, 4096, 4096))])
            {
                let count = out.len() + 1;
                device.submit(io).expect("room");
                device.kick().expect("a kick");
                while out.len() < count {
                    device.wait(bell.as_fd(), None).expect("a wait");
                    device.poll(&mut out).expect("a poll");
                }
            }
            assert!(out.iter().all(|ended| ended.result.is_ok()), "setup {index}: {out:?}");
            assert!(mapping.to_vec(4096, 4096) == [index as u8 + 1; 4096], "setup {index}");
        }
    }

    /// A pipe that nobody writes to answers no read, as a hung device does.
    #[test]
    fn a_hung_operation_is_left_behind_with_its_memory_and_nobody_waits() {
        let Ok(ring) = Ring::set_up(4).map_err(|error| println!("skipped: {error:?}")) else {
            return;
        };
        let (reader, _writer): (OwnedFd, OwnedFd) = rustix::pipe::pipe().expect("a pipe");
        let mut device = Uring::new(ring, DeviceFile::of_test(reader, 1 << 20));
        let mapping = named("hung");
        device.submit(Io::read(IoId(1), 0, Memory::new(&mapping, 0, 4096))).expect("room");
        device.kick().expect("a ring");
        let mut out = Vec::new();
        device.poll(&mut out).expect("a ring");
        assert!(out.is_empty() && device.in_flight() == 1);
        drop(mapping);
        let start = Instant::now();
        drop(device);
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
        assert!(is_mapped("hung"), "the device may still write there");
    }

    #[test]
    fn what_was_never_handed_over_is_given_up_without_a_trace() {
        let Ok(ring) = Ring::set_up(4).map_err(|error| println!("skipped: {error:?}")) else {
            return;
        };
        let (reader, _writer): (OwnedFd, OwnedFd) = rustix::pipe::pipe().expect("a pipe");
        let mut device = Uring::new(ring, DeviceFile::of_test(reader, 1 << 20));
        device.kick().expect("a ring");
        let mapping = named("queued");
        device.submit(Io::read(IoId(1), 0, Memory::new(&mapping, 0, 4096))).expect("room");
        assert_eq!(device.handed(), 0);
        drop(mapping);
        assert!(is_mapped("queued"));
        drop(device);
        assert!(!is_mapped("queued"));
    }

    /// Memory that can be told from all other in the list of this process's mappings.
    fn named(name: &str) -> Mapping {
        let (fd, _) = memfd::create(name, 4096, memfd::Huge::Never).expect("memory");
        Mapping::shared(fd.as_fd(), 4096, Access::ReadWrite).expect("address space")
    }

    fn is_mapped(name: &str) -> bool {
        std::fs::read_to_string("/proc/self/maps").expect("procfs").contains(&format!("/memfd:{name} "))
    }
}
