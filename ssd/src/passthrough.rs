//! The device by NVMe commands: io_uring carries them to the driver past the block layer (IORING_OP_URING_CMD on the
//! generic device `/dev/ngXnY`). One ring a device: the driver has a queue for each processor, and takes that of the
//! processor on which the ring's thread runs.
//!
//! Invariant: whatever the kernel may still touch (ring, devices, memory under way, registered memory, ranges) is in
//! [`Kernel`], which is dropped only if nothing is under way and is leaked otherwise.
//! Invariant: a tag that the ledger counts as sent is known to the kernel or in the submission queue.
//! Invariant: the block device beside it stays claimed (O_EXCL) and locked as long as commands may reach the namespace.

mod admin;
mod command;
mod flight;
mod identify;
mod ledger;
mod limits;
mod namespace;
mod probe;
mod refusal;
mod status;

use std::{
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::{Duration, Instant},
};

use io_uring::{cqueue, opcode::UringCmd80, squeue, types};
use lapis_arena::{ArenaError, Mapping};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{SeekFrom, fstat},
    io::Errno,
    ioctl::opcode,
};
use zerocopy::IntoBytes;

use self::{
    command::{Command, RANGES_BYTES, Range},
    ledger::Ledger,
};
pub use self::{
    limits::Limits,
    namespace::{Namespace, block_beside},
    refusal::Refusal,
};
use crate::{
    device::{Completion, Device, DeviceFile, FileKind, Io, IoKind, Waits},
    format::PAGE_BYTES,
    uring::{buffers::Buffers, issuer::Issuer, ring, ring::Setup},
};

type Ring = ring::Ring<squeue::Entry128, cqueue::Entry32>;

/// `NVME_URING_CMD_IO`.
const NVME_COMMAND: u32 = opcode::read_write::<Command>(b'N', 0x80) as u32;
/// As many commands at once for each operation at once: with fewer, large operations would have theirs one after the other.
const COMMANDS_EACH: usize = 4;
/// A thread that polls looks at its bell each so many times.
const LOOKS_A_BELL: u32 = 16;

/// See the module's head. The thread that first calls `kick`, `poll` or `wait` is its thread from then on: the kernel
/// refuses others.
pub struct Passthrough {
    kernel: ManuallyDrop<Kernel>,
    bytes: u64,
    limits: Limits,
    polled: bool,
    ended: Vec<Completion>,
}

/// In the order in which they go: the ring first.
struct Kernel {
    issuer: Issuer<squeue::Entry128, cqueue::Entry32>,
    ledger: Ledger,
    /// What ranges are given up: one for each tag, and as many bytes behind the last as a command has.
    ranges: Mapping,
    buffers: Buffers,
    /// Whether this kernel takes registered memory in commands.
    has_buffers: bool,
    namespace: Namespace,
    file: DeviceFile,
    /// Whether the generic device is the ring's file number 0.
    is_fixed: bool,
}

/// A device that takes commands from us: to be made an engine of, or to be told about.
pub struct Found {
    namespace: Namespace,
    ring: Ring,
    ranges: Mapping,
    depth: usize,
    polled: bool,
}

impl Found {
    /// Asks the namespace of an open device whether it can be driven so, `depth` operations at once. Waits for its
    /// answers.
    pub fn of(file: &DeviceFile, polled: bool, depth: usize) -> Result<Self, Refusal> {
        if !matches!(file.kind(), FileKind::Block { .. }) {
            return Err(Refusal::NoNamespace);
        }
        Self::of_block(file.as_fd(), polled, depth)
    }

    /// The same of a block device that is open for direct reads, whoever has it.
    pub fn of_block(block: BorrowedFd<'_>, polled: bool, depth: usize) -> Result<Self, Refusal> {
        let failed = |e: Errno| Refusal::Io { op: "looking at the block device", source: e.into() };
        let number = fstat(block).map_err(failed)?.st_rdev;
        let bytes = rustix::fs::seek(block, SeekFrom::End(0)).map_err(failed)?;
        let namespace = Namespace::of(number, bytes)?;
        if polled && !namespace.limits.can_poll {
            return Err(Refusal::NoPolledQueues);
        }
        probe::probe(&namespace, block, polled)?;
        let commands = (depth * COMMANDS_EACH).min(namespace.limits.commands_max);
        let ring = Ring::set_up_as(commands, &ring::SETUPS, polled).map_err(|error| Refusal::Ring(Box::new(error)))?;
        let bytes = (ring.depth() * size_of::<Range>() + RANGES_BYTES).next_multiple_of(PAGE_BYTES);
        let ranges = Mapping::anonymous(bytes as u64)
            .map_err(|e| Refusal::Io { op: "memory for ranges", source: io::Error::other(e) })?;
        Ok(Self { namespace, ring, ranges, depth, polled })
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Whether it is to be preferred to the block layer where nobody has chosen.
    pub fn is_best(&self) -> Result<(), Refusal> {
        match self.namespace.transport() {
            "pcie" => Ok(()),
            transport => Err(Refusal::Transport { transport: transport.into() }),
        }
    }
}

/// Whether the kernel of this ring knows the operation at all.
fn is_known(ring: &Ring) -> Result<(), Refusal> {
    let mut known = io_uring::Probe::new();
    let asked = ring.submitter().register_probe(&mut known);
    asked.map_err(|error| Refusal::Ring(Box::new(error)))?;
    match known.is_supported(UringCmd80::CODE) {
        true => Ok(()),
        false => Err(Refusal::Ring(Box::new(io::Error::from(Errno::OPNOTSUPP)))),
    }
}

impl Passthrough {
    /// `found` is of this very file.
    pub fn new(found: Found, file: DeviceFile) -> Self {
        let Found { namespace, ring, ranges, depth, polled } = found;
        let (limits, commands) = (namespace.limits, ring.depth());
        // Both came with Linux 6.1; on an older one an entry with registered memory is refused.
        let has_buffers = ring.setup() == Setup::Deferred;
        let issuer = Issuer::new(ring);
        let is_fixed = match issuer.submitter().register_files(&[namespace.fd.as_raw_fd()]) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, node = %namespace.node().display(), "no fixed file; the descriptor serves as well");
                false
            }
        };
        let bytes = file.bytes();
        let kernel = ManuallyDrop::new(Kernel {
            issuer,
            ledger: Ledger::new(depth, commands, namespace.has_paths()),
            ranges,
            buffers: Buffers::default(),
            has_buffers,
            namespace,
            file,
            is_fixed,
        });
        Self { kernel, bytes, limits, polled, ended: Vec::new() }
    }

    pub fn name(&self) -> &'static str {
        if self.polled { "passthrough-polled" } else { "passthrough" }
    }

    /// Bytes of memory that the ring knows; operations on other memory cost the kernel a look-up of its pages each.
    pub fn registered_bytes(&self) -> usize {
        self.kernel.buffers.bytes()
    }

    /// Commands that the kernel has; at most one too many, while a bell is watched.
    fn handed(&mut self) -> usize {
        let Some(queued) = self.kernel.issuer.queued() else { return 0 };
        self.kernel.ledger.sent() - queued
    }

    /// Queues what is to be begun, as far as there is room.
    fn begin(&mut self) {
        while let Some(tag) = self.kernel.ledger.next(&self.limits) {
            self.kernel.push(tag);
        }
    }

    /// Hands over what is queued, and what was paused for long enough.
    fn enter(&mut self) -> io::Result<()> {
        if self.kernel.ledger.due().is_some() {
            let now = Instant::now();
            while let Some(tag) = self.kernel.ledger.next_due(now) {
                self.kernel.push(tag);
            }
        }
        let asks = self.polled && self.handed() > 0;
        self.kernel.issuer.enter(asks)
    }

    /// Takes what the kernel has posted.
    fn reap(&mut self) {
        let Kernel { issuer, ledger, .. } = &mut *self.kernel;
        let now = Instant::now();
        issuer.reap(|tag, answer| self.ended.extend(ledger.answered(now, tag as u32, answer)));
    }

    /// Asks the device again and again, as long as something is under way; else sleeps.
    fn wait_polled(&mut self, bell: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        for look in 0u32.. {
            let is_busy = self.handed() > 0 || self.kernel.issuer.queued().is_none_or(|queued| queued > 0);
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if is_busy {
                self.kernel.issuer.enter(true)?;
                if self.kernel.issuer.has_ended() || left.is_some_and(|left| left.is_zero()) {
                    return Ok(());
                }
                if !look.is_multiple_of(LOOKS_A_BELL) {
                    std::hint::spin_loop();
                    continue;
                }
            }
            let timeout = if is_busy { Some(Duration::ZERO) } else { left };
            let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
            let mut fds = [PollFd::from_borrowed_fd(bell, PollFlags::IN)];
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(0) if is_busy => {}
                Ok(_) | Err(Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Kernel {
    /// Queues a tag's command.
    fn push(&mut self, tag: u32) {
        let (flight, part) = self.ledger.command(tag);
        let (offset, bytes) = (flight.offset(part), part.bytes.end - part.bytes.start);
        let blocks = self.namespace.blocks;
        let (command, buffer) = match (flight.kind(), flight.memory()) {
            (kind @ (IoKind::Read | IoKind::Write), Some(memory)) => {
                let address = memory.address(part.bytes.start as usize, bytes as usize) as usize;
                let buffer = self.buffers.find(address, bytes as usize).filter(|_| self.has_buffers);
                (blocks.transfer(kind == IoKind::Read, offset, bytes, address as u64), buffer)
            }
            (IoKind::Discard, _) => {
                let at = tag as usize * size_of::<Range>();
                assert!(at + RANGES_BYTES <= self.ranges.len(), "as many bytes as the command says");
                self.ranges.copy_in(at, blocks.range(offset, bytes).as_bytes());
                (blocks.deallocate(self.ranges.as_ptr(at) as u64), None)
            }
            (IoKind::Flush, _) => (blocks.flush(), None),
            (IoKind::Read | IoKind::Write, None) => unreachable!("checked when it was submitted"),
        };
        let entry = match self.is_fixed {
            true => UringCmd80::new(types::Fixed(0), NVME_COMMAND),
            false => UringCmd80::new(types::Fd(self.namespace.fd.as_raw_fd()), NVME_COMMAND),
        };
        let entry = entry.buf_index(buffer).cmd(command.entry_bytes()).build().user_data(tag.into());
        // SAFETY: the command's address lies in the flight's memory, whose mapping the ledger keeps until the command has
        // ended, or in `ranges`, where each tag has its own place; both, the generic device and the registered memory live
        // as long as the ring does, or for ever (see `drop`).
        unsafe { self.issuer.push(&entry) };
    }

    /// Gives back what the ring holds. Closing it would do so too, but later, when the kernel takes it down behind: until
    /// then a removed device would not go.
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

impl Device for Passthrough {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn depth(&self) -> usize {
        self.kernel.ledger.depth()
    }

    fn submit(&mut self, io: Io) -> Result<(), Io> {
        if self.kernel.ledger.in_flight() + self.ended.len() == self.depth() {
            return Err(io);
        }
        let checked = io.check(self.bytes);
        let nothing = match io.kind {
            IoKind::Discard => self.limits.discard_bytes_max == 0 || io.bytes == 0,
            // What was completed lasts already.
            IoKind::Flush => !self.limits.volatile_cache,
            IoKind::Read | IoKind::Write => io.bytes == 0,
        };
        if checked.is_err() || nothing {
            self.ended.push(Completion { id: io.id, result: checked });
            return Ok(());
        }
        self.kernel.ledger.begin(io);
        self.begin();
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        self.enter()
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let entered = self.enter();
        self.reap();
        self.begin();
        out.append(&mut self.ended);
        entered.and_then(|()| self.kernel.issuer.enter(false))
    }

    fn register(&mut self, mapping: &Mapping) -> Result<(), ArenaError> {
        let kernel = &mut *self.kernel;
        if !kernel.has_buffers {
            return Ok(());
        }
        kernel.buffers.register(&kernel.issuer.submitter(), mapping)
    }
}

impl Waits for Passthrough {
    fn wait(&mut self, bell: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        self.kernel.issuer.take()?;
        if !self.ended.is_empty() || self.kernel.issuer.has_ended() {
            return Ok(());
        }
        let due = self.kernel.ledger.due().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = due.into_iter().chain(timeout).min();
        if self.polled { self.wait_polled(bell, timeout) } else { self.kernel.issuer.wait(bell, timeout) }
    }
}

impl Drop for Passthrough {
    /// Never waits. The device may still write into memory of commands under way: then ring, devices and memory stay as
    /// they are until the process ends, the claim and the lock with them.
    fn drop(&mut self) {
        if self.handed() > 0 {
            self.kernel.issuer.post();
            self.reap();
        }
        let commands = self.handed();
        if commands > 0 {
            let path = self.kernel.file.path().display();
            tracing::warn!(%path, commands, "a device was given up with commands under way");
            return;
        }
        self.kernel.release();
        // SAFETY: dropped once, here; nothing of it is used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.kernel) }
    }
}

#[test]
fn the_kernel_knows_the_request_by_its_number() {
    if cfg!(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")) {
        assert_eq!(NVME_COMMAND, 0xc048_4e80);
    }
}
