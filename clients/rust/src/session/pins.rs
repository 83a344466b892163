//! Which entries of the client's hazard page are in use. Lock-free; any thread.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lapis_arena::Hazards;
use lapis_config::{HAZARDS, SlotId};

/// Entries of a page, handed out and taken back.
#[derive(Debug)]
pub(super) struct Entries {
    /// One bit an entry, set while it is handed out.
    used: [AtomicU64; HAZARDS / 64],
    held: AtomicUsize,
    /// Where the last search ended.
    next: AtomicUsize,
}

impl Entries {
    pub fn new() -> Self {
        Self { used: [const { AtomicU64::new(0) }; HAZARDS / 64], held: AtomicUsize::new(0), next: AtomicUsize::new(0) }
    }

    /// Handed out now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// A free entry; `None` if there is none.
    #[inline]
    pub fn take(&self) -> Option<u16> {
        let from = self.next.load(Ordering::Relaxed);
        for step in 0..self.used.len() {
            let at = (from + step) % self.used.len();
            if let Some(bit) = self.take_of(at) {
                if step > 0 {
                    self.next.store(at, Ordering::Relaxed);
                }
                self.held.fetch_add(1, Ordering::Relaxed);
                return Some((at * 64 + bit as usize) as u16);
            }
        }
        None
    }

    #[inline]
    fn take_of(&self, at: usize) -> Option<u32> {
        let mut now = self.used[at].load(Ordering::Relaxed);
        while now != u64::MAX {
            let bit = now.trailing_ones();
            // Acquire: the entry's last owner cleared it before it gave it back.
            now = self.used[at].fetch_or(1 << bit, Ordering::Acquire);
            if now >> bit & 1 == 0 {
                return Some(bit);
            }
        }
        None
    }

    /// Takes an entry back, which its owner has cleared.
    #[inline]
    pub fn give(&self, entry: u16) {
        let entry = usize::from(entry);
        self.used[entry / 64].fetch_and(!(1 << (entry % 64)), Ordering::Release);
        self.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The page on which views name their slots.
#[derive(Debug)]
pub(super) struct Pins {
    page: Hazards,
    entries: Entries,
}

impl Pins {
    pub fn new(page: Hazards) -> Self {
        Self { page, entries: Entries::new() }
    }

    /// Entries handed out now.
    pub fn held(&self) -> usize {
        self.entries.held()
    }

    /// Names a slot by a free entry; `None` if there is none.
    #[inline]
    pub fn set(&self, slot: SlotId) -> Option<u16> {
        let entry = self.entries.take()?;
        self.page.set(usize::from(entry), slot);
        Some(entry)
    }

    /// Orders all `set` before it with the checks of lines after it.
    #[inline]
    pub fn fence(&self) {
        self.page.fence();
    }

    /// Ends the reading of what an entry names.
    #[inline]
    pub fn clear(&self, entry: u16) {
        self.page.clear(usize::from(entry));
        self.entries.give(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapis_arena::{Mapping, hazard};

    #[test]
    fn every_entry_is_handed_out_once_and_again_after_it_came_back() {
        let mapping = Mapping::anonymous(hazard::BYTES as u64).expect("memory");
        let pins = Pins::new(Hazards::mapped(&mapping, 0));
        let mut entries: Vec<u16> = (0..HAZARDS as u32).map(|i| pins.set(SlotId(i)).expect("a free entry")).collect();
        assert_eq!((pins.set(SlotId(0)), pins.held()), (None, HAZARDS));
        entries.sort_unstable();
        assert!(entries.windows(2).all(|pair| pair[0] < pair[1]), "an entry was handed out twice");
        pins.clear(4711);
        assert_eq!(pins.set(SlotId(9)), Some(4711));
    }
}
