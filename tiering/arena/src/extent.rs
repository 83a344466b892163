//! The extents of a group's arena, laid end to end: where slot numbers become addresses.

use std::sync::{
    Mutex, OnceLock, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use lapis_config::{EXTENTS_MAX, SlotId, UNIT_BYTES};

use crate::{ArenaError, Mapping};

/// Bytes populated at a time, so that the populating thread can be asked to stop in between.
pub const POPULATE_BYTES: usize = 16 << 20;

#[derive(Debug)]
struct Extent {
    /// First byte, counted from the start of the first extent.
    start: u64,
    mapping: Mapping,
}

/// Append-only: a slot that was found once stays where it is. Looked up without a lock while another thread appends.
#[derive(Debug)]
pub struct Extents {
    list: Box<[OnceLock<Extent>]>,
    count: AtomicUsize,
    append: Mutex<()>,
}

impl Default for Extents {
    fn default() -> Self {
        Self::new()
    }
}

impl Extents {
    pub fn new() -> Self {
        let list = (0..EXTENTS_MAX).map(|_| OnceLock::new()).collect();
        Self { list, count: AtomicUsize::new(0), append: Mutex::new(()) }
    }

    /// Appends an extent and says which one it is, or `None` if there are `EXTENTS_MAX` already, or its size is not
    /// a multiple of 4 KiB.
    pub fn push(&self, mapping: Mapping) -> Option<usize> {
        let _alone = self.append.lock().unwrap_or_else(PoisonError::into_inner);
        let index = self.count.load(Ordering::Relaxed);
        if index == EXTENTS_MAX || !(mapping.len() as u64).is_multiple_of(UNIT_BYTES) {
            return None;
        }
        let start = self.bytes();
        let pushed = self.list[index].set(Extent { start, mapping });
        assert!(pushed.is_ok(), "extent {index} was set before it was counted");
        self.count.store(index + 1, Ordering::Release);
        Some(index)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all extents together.
    pub fn bytes(&self) -> u64 {
        self.len().checked_sub(1).and_then(|last| self.extent(last)).map_or(0, |e| e.start + e.mapping.len() as u64)
    }

    /// The extent of that index.
    pub fn get(&self, index: usize) -> Option<&Mapping> {
        self.extent(index).map(|e| &e.mapping)
    }

    fn extent(&self, index: usize) -> Option<&Extent> {
        self.list.get(index)?.get()
    }

    /// The mapping that holds all `bytes` of a slot, and the offset in it. `None` for a place outside of the arena, or
    /// across two extents: numbers from elsewhere may be passed as they are.
    #[inline]
    pub fn locate(&self, slot: SlotId, bytes: u64) -> Option<(&Mapping, usize)> {
        let at = slot.offset_bytes();
        let (mut low, mut high) = (0, self.len());
        while high - low > 1 {
            let middle = (low + high) / 2;
            if self.extent(middle)?.start <= at { low = middle } else { high = middle }
        }
        let extent = self.extent(low)?;
        let offset = at - extent.start;
        let end = offset.checked_add(bytes)?;
        (end <= extent.mapping.len() as u64).then_some((&extent.mapping, offset as usize))
    }
}

/// Populates bytes `from..to` of an extent for writing, in chunks; stops early, between chunks, once `stop` says so.
/// Returns how far it came.
pub fn populate(mapping: &Mapping, from: usize, to: usize, stop: impl Fn() -> bool) -> Result<usize, ArenaError> {
    let to = to.min(mapping.len());
    let mut at = from;
    while at < to && !stop() {
        let end = to.min(at + POPULATE_BYTES);
        mapping.populate_write(at..end)?;
        at = end;
    }
    Ok(at.max(from))
}
