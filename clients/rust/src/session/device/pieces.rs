//! Where a get into a GPU puts bytes: whole blocks, or what is wanted of objects, on the caller's stream; or pieces of blocks on a
//! stream of our own, one piece of all blocks after the other, each with a flag and a mark behind it.
//!
//! Invariant: once `end` was called, the flag of every piece was asked of the driver, whatever became of the blocks.
//! Invariant: a flag is behind all copies of its piece, on the same stream.

use std::{
    fmt,
    mem::ManuallyDrop,
    ops::Deref,
    sync::{Arc, PoisonError},
};

use lapis_arena::hbm::{Mark, Stream};

use super::{DeviceObject, DevicePtr, OpenGpu, Places};
use crate::{ClientError, session::lock};

use super::get::Source;

/// A word in memory that the GPU reaches: 4 bytes of its own memory, or of the host's that is registered with the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFlag {
    /// A multiple of four.
    pub at: DevicePtr,
    /// What is written there when the piece is over.
    pub value: u32,
}

/// A part of every block that goes to a place of its own, such as a layer's.
#[derive(Clone, Copy, Debug)]
pub struct DevicePiece<'a> {
    /// Bytes of a block before it.
    pub offset: u64,
    pub bytes: u64,
    /// One address for each key, or the same number for each, of equal parts; those of the first key come first.
    pub to: &'a [DevicePtr],
    pub flag: Option<DeviceFlag>,
}

/// A piece that was checked.
struct Target<'a> {
    offset: u64,
    to: Places<'a>,
    flag: Option<DeviceFlag>,
}

/// A stream of ours, given back when this is dropped, which is when all that was put on it is over: what it waits for, the
/// next one to use it would wait for too.
pub(super) struct Lent {
    gpu: Arc<OpenGpu>,
    stream: ManuallyDrop<Stream>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: taken once, and not used afterwards.
        let stream = unsafe { ManuallyDrop::take(&mut self.stream) };
        self.gpu.streams.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }
}

enum On {
    /// The caller's.
    Theirs(Stream),
    Ours(Arc<Lent>),
}

impl Deref for On {
    type Target = Stream;
    fn deref(&self) -> &Stream {
        match self {
            Self::Theirs(stream) => stream,
            Self::Ours(lent) => &lent.stream,
        }
    }
}

pub(super) struct Targets<'a> {
    list: Vec<Target<'a>>,
    /// Instead of the list: for each object.
    objects: &'a [DeviceObject],
    on: On,
    /// Behind each piece, where pieces are told of.
    marks: Vec<Arc<Mark>>,
    has_ended: bool,
}

impl fmt::Debug for Targets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Targets({} pieces on {:?})", self.list.len(), *self.on)
    }
}

impl<'a> Targets<'a> {
    /// One piece, on the caller's stream.
    pub fn whole(offset: u64, to: Places<'a>, stream: Stream) -> Self {
        let list = vec![Target { offset, to, flag: None }];
        Self { list, objects: &[], on: On::Theirs(stream), marks: Vec::new(), has_ended: true }
    }

    /// What is wanted of objects, on the caller's stream.
    pub fn objects(objects: &'a [DeviceObject], stream: Stream) -> Self {
        Self { list: Vec::new(), objects, on: On::Theirs(stream), marks: Vec::new(), has_ended: true }
    }

    /// In pieces, on a stream of ours behind what is on the caller's now.
    pub fn in_pieces(
        pieces: &[DevicePiece<'a>],
        blocks: usize,
        block_bytes: u64,
        gpu: &Arc<OpenGpu>,
        behind: &Stream,
    ) -> Result<Self, ClientError> {
        let mut list = Vec::with_capacity(pieces.len());
        for &DevicePiece { offset, bytes, to, flag } in pieces {
            let inside = offset.checked_add(bytes).is_some_and(|end| end <= block_bytes);
            if !inside || bytes == 0 {
                return Err(ClientError::Range { offset, bytes: bytes as usize, block_bytes });
            }
            if let Some(flag) = flag {
                behind.has_words("cuStreamWriteValue32").map_err(ClientError::gpu("a flag behind a piece"))?;
                if !flag.at.0.is_multiple_of(4) {
                    return Err(ClientError::Flag { at: flag.at.0 });
                }
            }
            list.push(Target { offset, to: Places::new(to, blocks, bytes)?, flag });
        }
        if list.is_empty() {
            return Err(ClientError::Pieces { first: 0, end: 0, pieces: 0 });
        }
        let spare = lock(&gpu.streams).pop();
        let stream = match spare {
            Some(stream) => stream,
            None => Stream::create(&gpu.device).map_err(ClientError::gpu("making a stream"))?,
        };
        let lent = Arc::new(Lent { gpu: gpu.clone(), stream: ManuallyDrop::new(stream) });
        lent.stream.wait_for(&behind.mark()).map_err(ClientError::gpu("waiting for the caller's stream"))?;
        let marks = Vec::with_capacity(list.len());
        Ok(Self { list, objects: &[], on: On::Ours(lent), marks, has_ended: false })
    }

    /// Bytes of a block that are copied.
    pub fn bytes(&self) -> u64 {
        self.list.iter().map(|target| target.to.bytes * target.to.per_block as u64).sum()
    }

    pub fn device(&self) -> u16 {
        self.on.device().index()
    }

    pub fn mark(&self) -> Mark {
        self.on.mark()
    }

    /// Puts the copies of blocks on the stream, a piece after the other. With `is_last` each piece is told of when the
    /// copies of all blocks up to now have ended, also where there are none, or some failed.
    ///
    /// # Safety
    /// What is read is pinned until a mark behind this is over; the addresses are the promise of who named them.
    pub unsafe fn copy(&mut self, blocks: &[(usize, &Source)], is_last: bool) -> Result<(), ClientError> {
        let is_last = is_last && !self.has_ended;
        self.has_ended |= is_last;
        let mut copied = match self.objects {
            [] => Ok(()),
            // SAFETY: the caller's promise.
            objects => blocks.iter().try_for_each(|&(i, source)| unsafe { self.copy_object(&objects[i], source) }),
        };
        for target in &self.list {
            if copied.is_ok() {
                // SAFETY: the caller's promise.
                copied = blocks.iter().try_for_each(|&(block, source)| unsafe { self.copy_one(target, block, source) });
            }
            if !is_last {
                continue;
            }
            if let Some(DeviceFlag { at, value }) = target.flag {
                // SAFETY: as of the addresses.
                let told = unsafe { self.on.write_word(at.0, value) };
                copied = copied.and(told.map_err(ClientError::gpu("writing a flag")));
            }
            self.marks.push(Arc::new(self.on.mark()));
        }
        copied
    }

    unsafe fn copy_one(&self, target: &Target<'_>, block: usize, source: &Source) -> Result<(), ClientError> {
        for (to, before) in target.to.of(block) {
            // SAFETY: the caller's promise.
            unsafe { self.copy_run(source, target.offset + before, to, target.to.bytes)? };
        }
        Ok(())
    }

    unsafe fn copy_object(&self, object: &DeviceObject, source: &Source) -> Result<(), ClientError> {
        for run in object.runs(source.bytes()) {
            // SAFETY: the caller's promise; runs end where the object does.
            unsafe { self.copy_run(source, run.offset, run.to.0, run.bytes)? };
        }
        Ok(())
    }

    unsafe fn copy_run(&self, source: &Source, first: u64, to: u64, bytes: u64) -> Result<(), ClientError> {
        // SAFETY: the caller's promise.
        let copied = unsafe {
            match source {
                Source::Gpu { extent, offset, .. } => self.on.copy_from(extent, offset + first, to, bytes),
                Source::Dram { host, offset, .. } => self.on.copy_in(host, offset + first, to, bytes),
            }
        };
        copied.map_err(ClientError::gpu("copying blocks to a GPU"))
    }

    /// Behind each piece, if all were told of.
    pub fn take_marks(&mut self) -> Vec<Arc<Mark>> {
        std::mem::take(&mut self.marks)
    }

    /// The stream, if it is ours: to be held until all on it is over.
    pub fn lent(&self) -> Option<Arc<Lent>> {
        match &self.on {
            On::Theirs(_) => None,
            On::Ours(lent) => Some(lent.clone()),
        }
    }
}
