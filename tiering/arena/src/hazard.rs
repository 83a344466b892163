//! Hazard pages: a client names the slots that it reads in place, the daemon looks there before it reuses a slot.
//!
//! Client: `set` all of a batch, `fence` once, check each line again (and the daemon's instance); `clear` to release.
//! Daemon: unpublish all of a batch, then [`scan`] once. Between the two fences one side sees the other's store.
//! Invariant: an entry is slot + 1; 0 names nothing. Only the page's client stores into it.

use std::sync::atomic::Ordering;

use lapis_config::{HAZARDS, SlotId};

use crate::{MappedHalves, Mapping, Words};

/// Bytes of one hazard page.
pub const BYTES: usize = HAZARDS * size_of::<u32>();

/// One client's page.
#[derive(Clone, Debug)]
pub struct Hazards<W = MappedHalves> {
    words: W,
}

impl Hazards<MappedHalves> {
    /// The page that starts at `offset` of a client's memory.
    ///
    /// # Panics
    /// If [`BYTES`] from there leave the mapping.
    pub fn mapped(mapping: &Mapping, offset: usize) -> Self {
        Self::new(MappedHalves::new(mapping, offset, HAZARDS))
    }
}

impl<W: Words<u32>> Hazards<W> {
    pub fn new(words: W) -> Self {
        Self { words }
    }

    /// How many slots can be named at once.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Names a slot. It is safe from reuse only if its line is still the same after a [`Self::fence`].
    #[inline]
    pub fn set(&self, entry: usize, slot: SlotId) {
        let named = slot.0.checked_add(1).expect("the last unit of 16 TiB is no slot");
        self.words.store(entry, named, Ordering::Relaxed);
    }

    /// Orders all `set` before it with the checks of lines after it.
    #[inline]
    pub fn fence(&self) {
        self.words.fence(Ordering::SeqCst);
    }

    /// Ends the reading of the slot that `entry` names.
    #[inline]
    pub fn clear(&self, entry: usize) {
        self.words.store(entry, 0, Ordering::Release);
    }

    /// What an entry names.
    #[inline]
    pub fn get(&self, entry: usize) -> Option<SlotId> {
        // Acquire: what the reader did before `clear` is over before the slot is reused.
        self.words.load(entry, Ordering::Acquire).checked_sub(1).map(SlotId)
    }

    /// Calls `named` for every slot on this page, without a fence: for counting pins.
    pub fn each(&self, named: &mut impl FnMut(SlotId)) {
        for entry in 0..self.len() {
            if let Some(slot) = self.get(entry) {
                named(slot);
            }
        }
    }
}

/// Fences, then calls `named` for every slot on every page. Slots that were unpublished before and are not named can be
/// reused. A number that is no slot of ours may come up: clients write here.
pub fn scan<'a, W: Words<u32> + 'a>(pages: impl IntoIterator<Item = &'a Hazards<W>>, named: &mut impl FnMut(SlotId)) {
    let mut pages = pages.into_iter().peekable();
    if let Some(first) = pages.peek() {
        first.fence();
    }
    for page in pages {
        page.each(named);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_names_what_is_set_on_any_page() {
        let memory = Mapping::anonymous(2 * BYTES as u64).expect("memory");
        let pages = [Hazards::mapped(&memory, 0), Hazards::mapped(&memory, BYTES)];
        let named = || {
            let mut slots = Vec::new();
            scan(&pages, &mut |slot| slots.push(slot.0));
            slots
        };
        assert!(named().is_empty());
        pages[0].set(0, SlotId(0));
        pages[0].set(HAZARDS - 1, SlotId(7));
        pages[1].set(3, SlotId(u32::MAX - 1));
        assert_eq!(named(), [0, 7, u32::MAX - 1]);
        pages[0].clear(0);
        assert_eq!((named(), pages[0].get(0)), (vec![7, u32::MAX - 1], None));
    }
}
