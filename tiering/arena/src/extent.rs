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

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(units: u64) -> Mapping {
        Mapping::anonymous(units * UNIT_BYTES).expect("memory")
    }

    #[test]
    fn a_slot_is_found_in_the_extent_that_holds_all_of_it() {
        let extents = Extents::new();
        assert!(extents.locate(SlotId(0), 0).is_none() && extents.is_empty());
        for (index, units) in [4, 1, 7].into_iter().enumerate() {
            assert_eq!(extents.push(mapping(units)), Some(index));
        }
        assert_eq!((extents.len(), extents.bytes()), (3, 12 * UNIT_BYTES));
        let place = |slot, bytes| {
            let (found, offset) = extents.locate(SlotId(slot), bytes)?;
            let index = (0..3).find(|i| extents.get(*i).is_some_and(|m| m.as_ptr(0) == found.as_ptr(0)));
            Some((index.expect("one of ours"), offset as u64 / UNIT_BYTES))
        };
        assert_eq!(place(0, 4 * UNIT_BYTES), Some((0, 0)));
        assert_eq!(place(3, UNIT_BYTES), Some((0, 3)));
        assert_eq!(place(3, UNIT_BYTES + 1), None, "across two extents");
        assert_eq!(place(4, UNIT_BYTES), Some((1, 0)));
        assert_eq!(place(5, 7 * UNIT_BYTES), Some((2, 0)));
        assert_eq!(place(11, UNIT_BYTES), Some((2, 6)));
        assert_eq!(place(12, 1), None);
        assert_eq!(place(u32::MAX, u64::MAX), None, "a foreign number");
    }

    #[test]
    fn there_is_a_bound_on_extents() {
        let extents = Extents::new();
        let one = mapping(1);
        assert!((0..EXTENTS_MAX).all(|i| extents.push(one.clone()) == Some(i)));
        assert_eq!(extents.push(one), None);
        assert_eq!(extents.locate(SlotId(EXTENTS_MAX as u32 - 1), 4096).map(|(_, at)| at), Some(0));
        let odd = Mapping::anonymous(5000).expect("memory");
        assert_eq!(Extents::new().push(odd), None);
    }

    #[test]
    fn populating_stops_when_asked_and_goes_on_where_it_was() {
        let mapping = Mapping::anonymous(3 * POPULATE_BYTES as u64).expect("memory");
        mapping.copy_in(5, b"stays");
        let calls = std::cell::Cell::new(0);
        let stop = || calls.replace(calls.get() + 1) == 1;
        let at = populate(&mapping, 0, mapping.len(), stop).expect("memory");
        assert_eq!(at, POPULATE_BYTES);
        assert_eq!(populate(&mapping, at, usize::MAX, || false).expect("memory"), mapping.len());
        assert_eq!(mapping.to_vec(5, 5), b"stays");
    }
}
