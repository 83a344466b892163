//! Which memory no slab has: a buddy allocator over the extents, which are laid end to end. In units of 4 KiB.
//!
//! Invariant: every unit is populated and free here, in exactly one slab, or not populated yet.
//! Invariant: a piece is a power of two, aligned within its extent, and at most 1 GiB: so no slab straddles a border of
//! extents or of registered memory.

use std::{collections::BTreeSet, ops::Range};

use lapis_config::{REGISTER_BYTES, UNIT_BYTES};

/// Pieces have 1 to 2^18 units (1 GiB).
pub(crate) const ORDER_MAX: u32 = (REGISTER_BYTES / UNIT_BYTES).trailing_zeros();

#[derive(Clone, Copy, Debug)]
struct Extent {
    base: u32,
    units: u32,
    /// The first so many units have memory.
    populated: u32,
    /// No more of it will ever have.
    ended: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Buddy {
    /// Per order, where free pieces start.
    free: [BTreeSet<u32>; ORDER_MAX as usize + 1],
    extents: Vec<Extent>,
    /// Taken by slabs before their extents were populated in this life: base and units.
    adopted: Vec<(u32, u32)>,
}

impl Buddy {
    /// One more extent after the others; nothing of it is usable yet.
    pub fn extend(&mut self, units: u32) {
        let base = self.units();
        assert!(base.checked_add(units).is_some(), "a group's memory has at most 2^32 units");
        self.extents.push(Extent { base, units, populated: 0, ended: false });
    }

    /// Units of all extents.
    pub fn units(&self) -> u32 {
        self.extents.last().map_or(0, |last| last.base + last.units)
    }

    /// Whether memory will become usable without anyone's help.
    pub fn growing(&self) -> bool {
        self.extents.iter().any(|extent| !extent.ended && extent.populated < extent.units)
    }

    /// The order of the largest piece that some extent can hold when it is empty.
    pub fn order_max(&self) -> Option<u32> {
        self.extents.iter().filter(|extent| extent.units > 0).map(|extent| extent.units.ilog2().min(ORDER_MAX)).max()
    }

    /// The first `units` of an extent have memory. Returns true if that is news.
    pub fn populated(&mut self, extent: usize, units: u32) -> bool {
        let at = &mut self.extents[extent];
        let (from, to) = (at.populated, units.min(at.units));
        if to <= from {
            return false;
        }
        at.populated = to;
        let (base, mut from) = (at.base, at.base + from);
        let to = base + to;
        // The pieces between slabs of a former daemon, in order of place.
        let taken: Vec<(u32, u32)> =
            self.adopted.iter().copied().filter(|&(start, units)| start < to && start + units > from).collect();
        for (start, units) in taken {
            self.give_range(base, from, start.max(from));
            from = start + units;
        }
        self.give_range(base, from.min(to), to);
        true
    }

    /// The rest of an extent will never have memory.
    pub fn ended(&mut self, extent: usize) {
        self.extents[extent].ended = true;
    }

    /// A slab of a former daemon, found before anything was populated. False if it overlaps another, or lies where no
    /// slab can.
    pub fn adopt(&mut self, base: u32, units: u32) -> bool {
        let Some(extent) = self.extent_of(base) else { return false };
        let fits = units.is_power_of_two()
            && units.ilog2() <= ORDER_MAX
            && (base - extent.base).is_multiple_of(units)
            && u64::from(base - extent.base) + u64::from(units) <= u64::from(extent.units);
        let at = self.adopted.partition_point(|&(start, _)| start < base);
        let clear = (at == 0 || self.adopted[at - 1].0 + self.adopted[at - 1].1 <= base)
            && self.adopted.get(at).is_none_or(|&(start, _)| base + units <= start);
        if fits && clear {
            self.adopted.insert(at, (base, units));
        }
        fits && clear
    }

    /// Takes a piece of 2^order units.
    pub fn take(&mut self, order: u32) -> Option<u32> {
        let from = (order..=ORDER_MAX).find(|&order| !self.free[order as usize].is_empty())?;
        let start = self.free[from as usize].pop_first().expect("found not empty");
        self.split(start, from, order);
        Some(start)
    }

    /// The same within one of some extents.
    pub fn take_in(&mut self, order: u32, extents: impl Iterator<Item = Range<u32>> + Clone) -> Option<u32> {
        let first = |order: u32, extent| self.free[order as usize].range(extent).next().map(|&start| (order, start));
        let (from, start) =
            (order..=ORDER_MAX).find_map(|order| extents.clone().find_map(|extent| first(order, extent)))?;
        self.free[from as usize].remove(&start);
        self.split(start, from, order);
        Some(start)
    }

    /// Of a piece that was taken what is more than 2^order units is free.
    fn split(&mut self, start: u32, from: u32, order: u32) {
        for order in (order..from).rev() {
            self.free[order as usize].insert(start + (1 << order));
        }
    }

    /// The largest order of which a piece is free.
    pub fn order_free(&self) -> Option<u32> {
        (0..=ORDER_MAX).rev().find(|&order| !self.free[order as usize].is_empty())
    }

    pub fn give(&mut self, start: u32, order: u32) {
        let extent = *self.extent_of(start).expect("a piece lies in an extent");
        let (mut start, mut order) = (start, order);
        while order < ORDER_MAX {
            let buddy = extent.base + ((start - extent.base) ^ (1 << order));
            let within = u64::from(buddy - extent.base) + (1 << order) <= u64::from(extent.units);
            if !within || !self.free[order as usize].remove(&buddy) {
                break;
            }
            start = start.min(buddy);
            order += 1;
        }
        assert!(self.free[order as usize].insert(start), "a piece is given back once");
    }

    /// The aligned range of 2^order units around a place, if its extent has all of it and it is populated.
    pub fn around(&self, place: u32, order: u32) -> Option<(u32, u32)> {
        let extent = self.extent_of(place)?;
        let start = (place - extent.base) >> order << order;
        let end = u64::from(start) + (1 << order);
        (end <= u64::from(extent.populated)).then_some((extent.base + start, 1 << order))
    }

    /// Where free pieces start, with their lengths.
    pub fn pieces(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.free.iter().enumerate().flat_map(|(order, pieces)| pieces.iter().map(move |&start| (start, 1 << order)))
    }

    fn extent_of(&self, place: u32) -> Option<&Extent> {
        let at = self.extents.partition_point(|extent| extent.base <= place);
        at.checked_sub(1).map(|at| &self.extents[at]).filter(|extent| place - extent.base < extent.units)
    }

    /// Gives a range piece by piece, the largest aligned ones that it holds.
    fn give_range(&mut self, base: u32, mut from: u32, to: u32) {
        while from < to {
            let aligned = (from - base).trailing_zeros().min(ORDER_MAX);
            let order = aligned.min((to - from).ilog2());
            self.give(from, order);
            from += 1 << order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(buddy: &Buddy) -> u32 {
        buddy.pieces().map(|(_, units)| units).sum()
    }

    fn whole(units: &[u32]) -> Buddy {
        let mut buddy = Buddy::default();
        for (i, &units) in units.iter().enumerate() {
            buddy.extend(units);
            buddy.populated(i, units);
        }
        buddy
    }

    #[test]
    fn every_unit_of_an_odd_extent_can_be_taken_one_by_one() {
        let mut buddy = whole(&[1000]);
        let mut taken: Vec<u32> = std::iter::from_fn(|| buddy.take(0)).collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn pieces_that_come_back_are_whole_again() {
        let mut buddy = whole(&[1 << 10, 1 << 10]);
        let taken: Vec<u32> = std::iter::from_fn(|| buddy.take(3)).collect();
        assert_eq!(taken.len(), 256);
        for start in taken.into_iter().rev() {
            buddy.give(start, 3);
        }
        assert_eq!((buddy.order_free(), free(&buddy)), (Some(10), 2 << 10));
    }

    #[test]
    fn pieces_of_an_extent_are_taken_as_long_as_there_are_any() {
        let mut buddy = whole(&[1 << 10, 1 << 10, 1 << 10]);
        let extent = || std::iter::once(1024..2048);
        let taken: Vec<u32> = std::iter::from_fn(|| buddy.take_in(8, extent())).collect();
        assert_eq!(taken, [1024, 1280, 1536, 1792]);
        assert_eq!((free(&buddy), buddy.take(10)), (2 << 10, Some(0)), "of the others nothing was taken");
        taken.into_iter().for_each(|start| buddy.give(start, 8));
        let both = || [2048..3072, 1024..2048].into_iter();
        assert_eq!((buddy.take_in(10, both()), buddy.take_in(10, both())), (Some(2048), Some(1024)));
        assert_eq!((buddy.take_in(0, both()), free(&buddy)), (None, 0));
    }

    #[test]
    fn memory_is_usable_as_far_as_it_is_populated() {
        let mut buddy = Buddy::default();
        buddy.extend(512);
        assert_eq!(buddy.take(0), None);
        assert!(buddy.populated(0, 100) && !buddy.populated(0, 100) && buddy.growing());
        assert_eq!((free(&buddy), buddy.order_free()), (100, Some(6)));
        buddy.populated(0, 512);
        assert_eq!((free(&buddy), buddy.order_free(), buddy.growing()), (512, Some(9), false));
    }

    #[test]
    fn slabs_of_a_former_daemon_are_not_given_again() {
        let mut buddy = Buddy::default();
        buddy.extend(512);
        assert!(buddy.adopt(64, 64) && !buddy.adopt(96, 32) && !buddy.adopt(0, 128) && !buddy.adopt(65, 64));
        buddy.give(64, 6);
        buddy.populated(0, 96);
        buddy.populated(0, 512);
        assert_eq!((free(&buddy), buddy.order_free()), (512, Some(9)));
    }

    #[test]
    fn no_piece_crosses_a_border_of_extents() {
        let mut buddy = whole(&[512 + 256, 512]);
        assert_eq!(buddy.take(9), Some(0));
        assert_eq!(buddy.take(9), Some(768));
        assert_eq!((buddy.take(9), buddy.take(8)), (None, Some(512)));
    }
}
