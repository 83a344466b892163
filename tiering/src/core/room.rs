//! Where slots come from when a shelf is short: free slots, free memory, slabs that nobody uses, memory to come, and at
//! last what is coldest.

use lapis_config::{BATCH_KEYS_MAX, ClientId, SlotId, Time, UNIT_BYTES};

use super::{Core, DENIED, Growth, slabs::Handed};
use crate::{
    face::Action,
    kept::{Kept, Slab},
    policy::{Policy, Request, Shelf},
};

/// All clients' magazines are together at most one part in so many of the memory.
const MAGAZINES_PART: u64 = 4;

/// How soon slots aside are looked at again while a put waits, and otherwise, us.
const LOOK_SOON_US: u64 = 1_000;
const LOOK_LATER_US: u64 = 100_000;

/// What is waited for rather than done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Memory that is being populated, and writes to SSD.
    Long,
    /// Writes to SSD: what belongs there is not dropped.
    Short,
    None,
}

/// How a search for slots ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// More memory was asked for; the answer comes at once.
    Asked,
    /// Memory is being populated.
    Growing,
    /// Blocks are being written to SSD, and make room then.
    Writing,
    /// Nothing that may go is left.
    Wedged,
    /// What may go is worth more than what comes.
    Declined,
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// Takes slots for a client until there are `need`: for blocks of that request, or whatever comes.
    pub(super) fn obtain(
        &mut self,
        shelf: Shelf,
        need: u32,
        client: ClientId,
        patience: Patience,
        request: Option<Request>,
        slots: &mut Vec<SlotId>,
    ) -> Room {
        loop {
            while slots.len() < need as usize {
                match self.grant(shelf, client) {
                    Some(slot) => slots.push(slot),
                    None => break,
                }
            }
            let (mut short, mut request) = (need - slots.len() as u32, request);
            if short == 0 {
                return Room::Enough;
            }
            if let Some(request) = &mut request {
                request.shared = request.shared.saturating_sub(slots.len() as u32);
                short = if request.shared > 0 { short.min(request.shared) } else { short };
            }
            if self.grow(shelf) {
                continue;
            }
            match self.growth {
                Growth::Possible => {
                    self.growth = Growth::Asked;
                    self.actions.push_back(Action::NeedMemory);
                    return Room::Asked;
                }
                Growth::Asked | Growth::Taken => return Room::Asked,
                // What there is serves meanwhile, as it did before.
                Growth::Denied { until } if self.now >= until => {
                    self.growth = Growth::Denied { until: self.now.after(DENIED) };
                    self.actions.push_back(Action::NeedMemory);
                }
                Growth::Denied { .. } => {}
            }
            if patience == Patience::Long && self.memory.buddy.growing() {
                return Room::Growing;
            }
            self.recall(None);
            match self.make_room(shelf, short, patience == Patience::None, true, request) {
                Handed::Over => {}
                Handed::Writing => return Room::Writing,
                Handed::Nothing => return Room::Wedged,
                Handed::Declined => return Room::Declined,
            }
        }
    }

    /// Makes room of what is coldest: slabs of shelves that are clearly colder, blocks of this one, and with `any`, if
    /// there are none, slabs of others, however warm.
    pub(super) fn make_room(
        &mut self,
        shelf: Shelf,
        count: u32,
        force: bool,
        any: bool,
        request: Option<Request>,
    ) -> Handed {
        let colder = self.take_colder(shelf, force);
        if colder == Handed::Over {
            return Handed::Over;
        }
        let evicted = self.evict(shelf, count, force, request);
        if evicted.freed > 0 {
            return Handed::Over;
        }
        if evicted.declined {
            return Handed::Declined;
        }
        let writing = evicted.writing || colder == Handed::Writing;
        // With `force` nothing is waited for: a write that hangs, of another shelf's block, would hold this one up.
        let taken = if any && (force || !writing) { self.take_any(shelf, force) } else { Handed::Nothing };
        if taken == Handed::Nothing && writing { Handed::Writing } else { taken }
    }

    /// A new slab for the shelf, of free memory or of slabs that hold nothing.
    pub(super) fn grow(&mut self, shelf: Shelf) -> bool {
        let least = self.options.slab_units_min;
        loop {
            if let Some(slab) = self.memory.grow(shelf, least, !self.memory.buddy.growing()) {
                self.kept.set_slab(&slab);
                self.counts.slots_free += u64::from(slab.slots());
                return true;
            }
            let Some(slab) = self.memory.empty_slab(shelf) else { return false };
            self.release_slab(slab.base.0);
        }
    }

    /// A free slot in memory of a node, or of a new slab there, if there is either.
    pub(super) fn take_near(&mut self, shelf: Shelf, node: u32) -> Option<(Slab, u32)> {
        if let Some(taken) = self.memory.take_in(shelf, self.ssd.near.of_node(node)) {
            return Some(taken);
        }
        let slab = self.memory.grow_in(shelf, self.options.slab_units_min, self.ssd.near.of_node(node))?;
        self.kept.set_slab(&slab);
        self.counts.slots_free += u64::from(slab.slots());
        self.memory.take_in(shelf, std::iter::once(slab.base.0..slab.base.0 + 1))
    }

    /// Gives the memory of an empty slab back.
    pub(super) fn release_slab(&mut self, base: u32) {
        let slab = self.memory.slab(base).slab;
        self.kept.forget_slab(&slab);
        self.memory.release(base);
        self.counts.slots_free -= u64::from(slab.slots());
    }

    /// Sees to it that slots aside are looked at again: soon, if a put waits.
    pub(super) fn look_aside_later(&mut self) {
        if !self.aside.is_empty() {
            let wait = if self.puts.is_empty() { LOOK_LATER_US } else { LOOK_SOON_US };
            self.aside_look = self.aside_look.min(Time(self.now.0 + wait));
        }
    }

    /// Slots that the client's magazine may still get; one at least for an empty one.
    pub(super) fn magazine_room(&self, id: ClientId, shelf: Shelf) -> u32 {
        let client = &self.clients[&id];
        let stride = u64::from(self.memory.of(shelf).stride);
        let most = (self.options.magazine_bytes_max / UNIT_BYTES).min(u64::from(self.memory.buddy.units()) / 16);
        let room = most.saturating_sub(client.magazine_units) / stride;
        let least = u64::from(!client.magazine.contains_key(&shelf));
        room.max(least).min(BATCH_KEYS_MAX as u64) as u32
    }

    /// Slots by which the magazines of all clients may still grow; one at least for a client that has none.
    pub(super) fn shared_room(&self, id: ClientId, shelf: Shelf) -> u32 {
        let stride = u64::from(self.memory.of(shelf).stride);
        let most = u64::from(self.memory.buddy.units()) / MAGAZINES_PART;
        let least = u64::from(self.clients[&id].magazine.is_empty());
        (most.saturating_sub(self.magazine_units) / stride).max(least).min(BATCH_KEYS_MAX as u64) as u32
    }
}
