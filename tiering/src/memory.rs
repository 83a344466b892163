//! Memory as slabs and slots: which slab belongs to which shelf, which slots of it are free. In units of 4 KiB.
//!
//! Invariant: a slab belongs to one shelf, and all of its slots have one stride.
//! Invariant: a slot handed out by `take` is handed out again only after `give`.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use lapis_config::{PoolId, SlotId, UNIT_BYTES};

use crate::{buddy::Buddy, kept::Slab, policy::Shelf};

/// Least units of a slab where memory is plenty: 64 MiB.
const SLAB_UNITS: u32 = (64 << 20) / UNIT_BYTES as u32;
/// A slab may waste one part in so many.
const WASTE: u32 = 32;

/// Blocks of one pool and one stride.
#[derive(Debug)]
pub(crate) struct ShelfMemory {
    pub pool: PoolId,
    pub stride: u32,
    /// Bases of its slabs.
    pub slabs: BTreeSet<u32>,
    /// Slots that `take` can give.
    pub free: u32,
    /// Of its slabs, the ones with a free slot that may be used.
    open: BTreeSet<u32>,
}

#[derive(Debug)]
pub(crate) struct SlabMemory {
    pub slab: Slab,
    pub shelf: Shelf,
    pub free: u32,
    /// Slots that hold a published block.
    pub used: u32,
    /// Being emptied for another shelf: nothing is taken from it.
    pub leaving: bool,
    /// A bit per slot, set = free.
    bits: Vec<u64>,
    /// No word before this has a free slot.
    first: usize,
}

impl SlabMemory {
    pub fn is_free(&self, index: u32) -> bool {
        self.bits[index as usize / 64] >> (index % 64) & 1 != 0
    }
}

#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub buddy: Buddy,
    /// In order of place: a binary search finds one in fewer cache lines than a tree, and slabs come and go rarely.
    slabs: Vec<SlabMemory>,
    /// Where the slab is that was last asked for.
    last: Cell<usize>,
    shelves: Vec<ShelfMemory>,
    by_kind: BTreeMap<(PoolId, u32), Shelf>,
    /// Slabs of which every slot is free.
    empty: BTreeSet<u32>,
}

impl Memory {
    pub fn shelf(&mut self, pool: PoolId, stride: u32) -> Shelf {
        let next = Shelf(self.shelves.len() as u32);
        let shelf = *self.by_kind.entry((pool, stride)).or_insert(next);
        if shelf == next {
            self.shelves.push(ShelfMemory { pool, stride, slabs: BTreeSet::new(), free: 0, open: BTreeSet::new() });
        }
        shelf
    }

    pub fn shelves(&self) -> impl Iterator<Item = Shelf> + use<> {
        (0..self.shelves.len() as u32).map(Shelf)
    }

    pub fn of(&self, shelf: Shelf) -> &ShelfMemory {
        &self.shelves[shelf.0 as usize]
    }

    pub fn slabs(&self) -> impl Iterator<Item = &SlabMemory> {
        self.slabs.iter()
    }

    pub fn slab(&self, base: u32) -> &SlabMemory {
        &self.slabs[self.position(base)]
    }

    /// Where the last slab is that begins at a place or before it. Places come in runs of one slab.
    #[inline]
    fn at(&self, place: u32) -> Option<usize> {
        let last = self.last.get();
        if self.slabs.get(last).is_some_and(|found| place.wrapping_sub(found.slab.base.0) < found.slab.units) {
            return Some(last);
        }
        let at = self.slabs.partition_point(|found| found.slab.base.0 <= place).checked_sub(1)?;
        self.last.set(at);
        Some(at)
    }

    /// Where the slab is that begins there.
    fn position(&self, base: u32) -> usize {
        self.slabs.binary_search_by_key(&base, |found| found.slab.base.0).expect("a slab that is there")
    }

    /// The slab that a place lies in.
    #[inline]
    pub fn slab_around(&self, place: u32) -> Option<&SlabMemory> {
        let found = &self.slabs[self.at(place)?];
        (place - found.slab.base.0 < found.slab.units).then_some(found)
    }

    /// The slabs that overlap a range.
    pub fn slabs_in(&self, start: u32, units: u32) -> impl Iterator<Item = &SlabMemory> {
        let first = self.slab_around(start).map_or(start, |slab| slab.slab.base.0);
        let from = self.slabs.partition_point(|found| found.slab.base.0 < first);
        self.slabs[from..].iter().take_while(move |found| found.slab.base.0 < start + units)
    }

    /// The slab and index of a slot; `None` if no slot starts there.
    #[inline]
    pub fn locate(&self, slot: SlotId) -> Option<(&SlabMemory, u32)> {
        let found = self.slab_around(slot.0)?;
        let offset = slot.0 - found.slab.base.0;
        let index = offset / found.slab.stride;
        (offset.is_multiple_of(found.slab.stride) && index < found.slab.slots()).then_some((found, index))
    }

    /// Takes a free slot.
    #[inline]
    pub fn take(&mut self, shelf: Shelf) -> Option<(Slab, u32)> {
        let base = *self.of(shelf).open.first()?;
        Some(self.take_of(shelf, base))
    }

    /// The same of a slab in one of some extents.
    pub fn take_in(&mut self, shelf: Shelf, mut extents: impl Iterator<Item = Range<u32>>) -> Option<(Slab, u32)> {
        let open = &self.of(shelf).open;
        let base = extents.find_map(|extent| open.range(extent).next().copied())?;
        Some(self.take_of(shelf, base))
    }

    /// A free slot of an open slab.
    #[inline]
    fn take_of(&mut self, shelf: Shelf, base: u32) -> (Slab, u32) {
        let at = self.at(base).expect("an open slab is there");
        let own = &mut self.shelves[shelf.0 as usize];
        let found = &mut self.slabs[at];
        assert!(found.slab.base.0 == base, "an open slab is there");
        let word =
            (found.first..found.bits.len()).find(|&at| found.bits[at] != 0).expect("an open slab has a free slot");
        found.first = word;
        let index = (word * 64) as u32 + found.bits[word].trailing_zeros();
        found.bits[word] &= found.bits[word] - 1;
        if found.free == found.slab.slots() {
            self.empty.remove(&base);
        }
        found.free -= 1;
        own.free -= 1;
        if found.free == 0 {
            own.open.remove(&base);
        }
        (found.slab, index)
    }

    /// Counts a taken slot as holding a block (`1`), or not any more (`-1`).
    #[inline]
    pub fn count_used(&mut self, slot: SlotId, change: i32) {
        let at = self.at(slot.0).expect("a slot lies in a slab");
        let found = &mut self.slabs[at];
        found.used = found.used.checked_add_signed(change).expect("a block leaves once");
    }

    /// Takes a certain slot, which is free.
    pub fn take_at(&mut self, base: u32, index: u32) {
        let at = self.position(base);
        let found = &mut self.slabs[at];
        assert!(found.is_free(index), "a slot is taken once");
        found.bits[index as usize / 64] &= !(1 << (index % 64));
        self.empty.remove(&base);
        found.free -= 1;
        let own = &mut self.shelves[found.shelf.0 as usize];
        own.free -= 1;
        if found.free == 0 {
            own.open.remove(&base);
        }
    }

    /// A slot is free again.
    #[inline]
    pub fn give(&mut self, slot: SlotId) {
        let at = self.at(slot.0).expect("a slot lies in a slab");
        let found = &mut self.slabs[at];
        let index = (slot.0 - found.slab.base.0) / found.slab.stride;
        assert!(!found.is_free(index), "a slot is given back once");
        let word = index as usize / 64;
        found.bits[word] |= 1 << (index % 64);
        found.first = found.first.min(word);
        found.free += 1;
        let base = found.slab.base.0;
        if !found.leaving {
            let own = &mut self.shelves[found.shelf.0 as usize];
            own.free += 1;
            if found.free == 1 {
                own.open.insert(base);
            }
        }
        if found.free == found.slab.slots() {
            self.empty.insert(base);
        }
    }

    /// A slab without a used slot, of another shelf than `not` or already leaving.
    pub fn empty_slab(&self, not: Shelf) -> Option<Slab> {
        let found = self.empty.iter().map(|&base| self.slab(base));
        found.filter(|found| found.shelf != not || found.leaving).map(|found| found.slab).next()
    }

    /// From now on nothing is taken from the slab.
    pub fn leave(&mut self, base: u32) {
        let at = self.position(base);
        let found = &mut self.slabs[at];
        assert!(!found.leaving, "a slab leaves once");
        found.leaving = true;
        let own = &mut self.shelves[found.shelf.0 as usize];
        own.free -= found.free;
        own.open.remove(&base);
    }

    /// Gives a slab's memory back; all of its slots are free.
    pub fn release(&mut self, base: u32) {
        let found = self.slabs.remove(self.position(base));
        assert_eq!(found.free, found.slab.slots(), "only an empty slab is given back");
        let own = &mut self.shelves[found.shelf.0 as usize];
        own.slabs.remove(&base);
        if own.open.remove(&base) {
            own.free -= found.free;
        }
        self.empty.remove(&base);
        self.buddy.give(base, found.slab.units.ilog2());
    }

    /// Makes a slab of free memory. `units_min`: no smaller ones. `any`: however much of it is wasted.
    pub fn grow(&mut self, shelf: Shelf, units_min: u32, any: bool) -> Option<Slab> {
        let stride = self.of(shelf).stride;
        let wanted = self.slab_order(stride, units_min)?;
        let order = match self.buddy.order_free()? {
            free if free >= wanted => wanted,
            free if 1 << free >= stride.max(units_min) && (any || wastes_little(1 << free, stride)) => free,
            _ => return None,
        };
        let base = self.buddy.take(order).expect("a piece of that order or more is free");
        Some(self.add(shelf, base, order))
    }

    /// Makes a slab of the wanted size in one of some extents.
    pub fn grow_in(
        &mut self,
        shelf: Shelf,
        units_min: u32,
        extents: impl Iterator<Item = Range<u32>> + Clone,
    ) -> Option<Slab> {
        let order = self.slab_order(self.of(shelf).stride, units_min)?;
        let base = self.buddy.take_in(order, extents)?;
        Some(self.add(shelf, base, order))
    }

    fn add(&mut self, shelf: Shelf, base: u32, order: u32) -> Slab {
        let (pool, stride) = (self.of(shelf).pool, self.of(shelf).stride);
        let slab = Slab { base: SlotId(base), units: 1 << order, pool, stride };
        self.insert(shelf, slab);
        slab
    }

    /// Takes over a slab of a former daemon; false if its memory is not there or is another's.
    pub fn adopt(&mut self, slab: Slab) -> bool {
        if slab.stride == 0 || slab.stride > slab.units || !self.buddy.adopt(slab.base.0, slab.units) {
            return false;
        }
        let shelf = self.shelf(slab.pool, slab.stride);
        self.insert(shelf, slab);
        true
    }

    fn insert(&mut self, shelf: Shelf, slab: Slab) {
        let (base, slots) = (slab.base.0, slab.slots());
        let mut bits = vec![u64::MAX; slots.div_ceil(64) as usize];
        if slots % 64 != 0 {
            *bits.last_mut().expect("a slab has a slot") = (1 << (slots % 64)) - 1;
        }
        let at = self.slabs.partition_point(|found| found.slab.base.0 < base);
        self.slabs.insert(at, SlabMemory { slab, shelf, free: slots, used: 0, leaving: false, bits, first: 0 });
        let own = &mut self.shelves[shelf.0 as usize];
        own.slabs.insert(base);
        own.free += slots;
        own.open.insert(base);
        self.empty.insert(base);
    }

    /// Whether any extent can ever hold such a slot.
    pub fn fits(&self, stride: u32) -> bool {
        self.buddy.order_max().is_some_and(|most| stride <= 1 << most)
    }

    /// The order of a slab for slots of `stride`: the smallest from 64 MiB on that wastes at most 3 %; in small arenas
    /// an eighth of the memory, or what wastes least. `None` if no extent holds one slot.
    pub fn slab_order(&self, stride: u32, units_min: u32) -> Option<u32> {
        let most = self.buddy.order_max()?;
        let least = stride.max(units_min).next_power_of_two().ilog2();
        if least > most {
            return None;
        }
        let eighth = (self.buddy.units() / 8).max(1).ilog2().clamp(least, most);
        let from = SLAB_UNITS.ilog2().clamp(least, eighth);
        if let Some(order) = (from..=eighth).find(|&order| wastes_little(1 << order, stride)) {
            return Some(order);
        }
        let half = (self.buddy.units() / 2).max(1).ilog2().clamp(eighth, most);
        (from..=half).min_by_key(|&order| {
            // Wasted units per 2^18 units of slabs of that order.
            u64::from((1 << order) % stride) << (crate::buddy::ORDER_MAX - order)
        })
    }

    /// Every unit is free, not populated, or in one slab.
    pub fn audit(&self) -> Result<(), String> {
        let mut ranges: Vec<(u32, u32)> = self.buddy.pieces().collect();
        ranges.extend(self.slabs.iter().map(|found| (found.slab.base.0, found.slab.units)));
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return Err(format!("memory at {:?} and {:?} overlaps", pair[0], pair[1]));
        }
        for found in &self.slabs {
            let base = &found.slab.base.0;
            let free: u32 = found.bits.iter().map(|word| word.count_ones()).sum();
            let own = self.of(found.shelf);
            if free != found.free
                || own.open.contains(base) != (free > 0 && !found.leaving)
                || self.empty.contains(base) != (free == found.slab.slots())
                || !own.slabs.contains(base)
                || found.bits[..found.first].iter().any(|&word| word != 0)
            {
                return Err(format!("slab at {base}: its free slots are counted wrongly"));
            }
        }
        for own in &self.shelves {
            let free: u32 = own.open.iter().map(|&base| self.slab(base).free).sum();
            if free != own.free {
                return Err(format!(
                    "pool {} stride {}: {free} slots free, {} counted",
                    own.pool.0, own.stride, own.free
                ));
            }
        }
        let listed: usize = self.shelves.iter().map(|own| own.slabs.len()).sum();
        if listed != self.slabs.len() || !self.slabs.is_sorted_by_key(|found| found.slab.base.0) {
            return Err(format!("{listed} slabs on shelves, {} in all, or out of order", self.slabs.len()));
        }
        Ok(())
    }
}

fn wastes_little(units: u32, stride: u32) -> bool {
    units % stride <= units / WASTE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(units: u32) -> Memory {
        let mut memory = Memory::default();
        memory.buddy.extend(units);
        memory.buddy.populated(0, units);
        memory
    }

    const MIB: u32 = 256;

    #[test]
    fn slabs_are_the_smallest_from_64_mib_on_that_waste_little() {
        let large = memory(1 << 24);
        assert_eq!(large.slab_order(16, 16), Some(14));
        assert_eq!(large.slab_order(5 * MIB, 16), Some(15));
        assert_eq!(large.slab_order(256 * MIB, 16), Some(16));
        assert_eq!(large.slab_order(200 * MIB, 16), Some(18));
    }

    #[test]
    fn slabs_of_a_small_arena_are_small() {
        assert_eq!(memory(16 * MIB).slab_order(16, 16), Some(9));
        assert_eq!(memory(16 * MIB).slab_order(4 * MIB, 16), Some(10));
        assert_eq!(memory(16 * MIB).slab_order(257, 16), Some(11), "2 MiB would waste half");
        assert_eq!(memory(16 * MIB).slab_order(17 * MIB, 16), None);
    }

    #[test]
    fn all_slots_of_a_slab_are_taken_once_and_given_back() {
        let mut memory = memory(1000);
        let shelf = memory.shelf(PoolId(0), 3);
        let mut taken = Vec::new();
        loop {
            match memory.take(shelf) {
                Some((slab, index)) => taken.push(slab.slot(index)),
                None if memory.grow(shelf, 1, true).is_some() => {}
                None => break,
            }
        }
        assert!(taken.len() > 320, "{}", taken.len());
        memory.audit().unwrap();
        let mut unique = taken.clone();
        unique.dedup();
        assert_eq!(unique.len(), taken.len());
        for slot in taken {
            assert_eq!(memory.locate(slot).unwrap().0.shelf, shelf);
            memory.give(slot);
        }
        memory.audit().unwrap();
        while let Some(slab) = memory.empty_slab(Shelf(9)) {
            memory.release(slab.base.0);
        }
        assert_eq!(memory.buddy.pieces().map(|(_, units)| units).sum::<u32>(), 1000);
    }
}
