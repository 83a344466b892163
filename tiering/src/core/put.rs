//! Slots for puts: magazines, reserves, and those that wait for room, first come first served per shelf.

use lapis_config::{BATCH_KEYS_MAX, ClientId, Key, PoolId, PoolKind, Refusal, SlotId, Time, UNIT_BYTES};

use super::{
    Core, Growth,
    clients::Named,
    hold::Held,
    room::{Patience, Room},
    waits::{Ask, Waiter},
};
use crate::{
    face::{Caller, Parent, Reply, Reserved},
    kept::Kept,
    policy::{Policy, Shelf},
};

/// Magazines that a refill waits for are looked at no more often, us.
const RECALL_US_MIN: u64 = 1_000;

/// The parent of a batch that is being filled: held until the batch is committed.
pub(super) struct Reservation {
    parent: Option<Held>,
    slots_left: u32,
}

impl Reservation {
    pub fn held(&self) -> Option<Held> {
        self.parent
    }

    pub fn slots_left(&self) -> u32 {
        self.slots_left
    }
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// Wants up to `count` slots of `slot_bytes` for the client's magazine; answered by `Granted` with at least one, or
    /// `Refused`. Where the magazines of all are full, it waits until slots come back.
    pub fn refill(&mut self, now: Time, to: Caller, pool: PoolId, slot_bytes: u32, count: u32, deadline: Time) {
        self.clock(now);
        let shelf = match self.shelf_for(to.client, pool, slot_bytes) {
            Ok(shelf) => shelf,
            Err(reason) => return self.refuse(to, reason),
        };
        let room = self.magazine_room(to.client, shelf);
        if room == 0 {
            // No refused put: the client has slots, and asks again when it is short of them.
            return self.reply(to, Reply::Refused(Refusal::Limit));
        }
        self.wait_for_slots(to, shelf, count.clamp(1, room), deadline, Ask::Refill);
    }

    /// Wants a slot of `slot_bytes` for each key that is not there. Until the slots are committed or given back, the
    /// block before the first of them stays, and gets may wait for the keys. At the deadline the first keys have the
    /// slots that there are, the others are refused; keys beyond what one client may reserve are refused `Limit`.
    #[allow(clippy::too_many_arguments, reason = "the request has so many parts")]
    pub fn reserve(
        &mut self,
        now: Time,
        to: Caller,
        pool: PoolId,
        slot_bytes: u32,
        keys: &[Key],
        parent: Parent,
        deadline: Time,
    ) {
        self.clock(now);
        let shelf = match self.shelf_for(to.client, pool, slot_bytes) {
            Ok(_) if keys.len() > BATCH_KEYS_MAX => return self.refuse(to, Refusal::Limit),
            Ok(shelf) => shelf,
            Err(reason) => return self.refuse(to, reason),
        };
        let mut before = match parent {
            Parent::Key(key) => self.kept.find(pool, &key),
            Parent::None | Parent::Previous => None,
        };
        let (mut there, mut need) = (Vec::with_capacity(keys.len()), 0);
        for key in keys {
            let line = self.kept.find(pool, key);
            if need == 0 && line.is_some() {
                before = line;
            }
            need += u32::from(line.is_none());
            there.push(line.is_some());
        }
        let missing = keys.iter().zip(&there).filter(|(_, there)| !**there).map(|(key, _)| key);
        let request = self.policy.storing(&self.kept, before, pool, missing, self.now);
        need = need.min(self.reserve_room(to.client, shelf));
        let client = self.clients.get_mut(&to.client).expect("looked up for the shelf");
        client.reserved_units += u64::from(need) * u64::from(self.memory.of(shelf).stride);
        let parent = before.filter(|_| need > 0).map(|line| self.hold(line));
        self.wait_for_slots(
            to,
            shelf,
            need,
            deadline,
            Ask::Reserve { pool, keys: keys.to_vec(), there, parent, request },
        );
    }

    /// Whether a client may put such a block, and where its slot comes from.
    fn shelf_for(&mut self, id: ClientId, pool: PoolId, slot_bytes: u32) -> Result<Shelf, Refusal> {
        let client = self.clients.get(&id).filter(|client| client.connected).ok_or(Refusal::Gone)?;
        if !client.may_put {
            return Err(Refusal::ReadOnly);
        }
        if self.draining {
            return Err(Refusal::Draining);
        }
        let def = self.pools.get(&pool).ok_or(Refusal::NoPool)?.def;
        let asked = slot_bytes.div_ceil(UNIT_BYTES as u32).max(1);
        if asked > def.slot_units {
            return Err(Refusal::TooLarge);
        }
        let stride = match def.kind {
            PoolKind::Chain => def.slot_units,
            // The classes of `sizes::slot_bytes`: a client that asks for another size gets the next one.
            PoolKind::Object => asked.next_multiple_of(((1 << asked.ilog2()) >> 2).max(1)).min(def.slot_units),
        };
        if self.adopting.is_some() {
            return Err(Refusal::NotReady);
        }
        let shelf = self.memory.shelf(pool, stride);
        self.policy.shelves(self.memory.shelves().count());
        Ok(shelf)
    }

    /// Slots that the client may still reserve; one at least if it has none. All, as long as there is no memory to
    /// compare with.
    fn reserve_room(&self, id: ClientId, shelf: Shelf) -> u32 {
        let units = self.memory.buddy.units();
        if units == 0 {
            return u32::MAX;
        }
        let reserved = self.clients[&id].reserved_units;
        let most = u64::from(units / self.options.reserved_part);
        let room = most.saturating_sub(reserved) / u64::from(self.memory.of(shelf).stride);
        room.max(u64::from(reserved == 0)) as u32
    }

    /// Answers a call with a refusal; a client that is gone hears nothing.
    fn refuse(&mut self, to: Caller, reason: Refusal) {
        if reason != Refusal::Gone {
            self.counts.puts_refused += 1;
            self.reply(to, Reply::Refused(reason));
        }
    }

    fn wait_for_slots(&mut self, to: Caller, shelf: Shelf, need: u32, deadline: Time, ask: Ask) {
        let patience = deadline.since_us(self.now) / 2;
        let evict_from = Time(self.now.0 + patience);
        let force_from = Time(deadline.0 - patience / 4);
        let slots = Vec::with_capacity(need as usize);
        let waiter = Waiter { to, shelf, need, slots, evict_from, force_from, deadline, ask };
        if self.puts.is_full(to.client, self.options.waits_max) {
            return self.finish(waiter, Refusal::Limit);
        }
        self.puts.push(waiter);
        self.pump.insert(shelf);
        self.run();
        // Also while others of the shelf are before it: its deadline may come first.
        if self.puts.waits(shelf) {
            self.puts.wakes.insert((deadline, shelf));
            if self.can_write() || self.is_coming() {
                self.puts.wakes.insert((force_from, shelf));
            }
        }
    }

    /// Gives slots to the calls that wait for some of this shelf, in the order in which they came. Only refills beyond
    /// what magazines may hold are passed over.
    pub(super) fn pump(&mut self, shelf: Shelf) {
        let mut passed = Vec::new();
        while let Some(mut waiter) = self.puts.pop(shelf) {
            let (client, mut need) = (waiter.to.client, waiter.need);
            if matches!(waiter.ask, Ask::Refill) {
                let own = self.magazine_room(client, shelf);
                need = need.min(own).min(self.shared_room(client, shelf));
                if need == 0 && (own == 0 || self.now >= waiter.deadline) {
                    self.reply(waiter.to, Reply::Refused(Refusal::Limit));
                    continue;
                } else if need == 0 {
                    self.wait_for_magazines(&waiter);
                    passed.push(waiter);
                    continue;
                }
            }
            // Nobody behind it gets anything before it does: it waits no longer than any of them can.
            let behind = self.puts.force_from(shelf).unwrap_or(Time::NEVER);
            let patience = match self.now {
                now if now < waiter.evict_from.min(behind) => Patience::Long,
                now if now < waiter.force_from.min(behind) => Patience::Short,
                _ => Patience::None,
            };
            let request = match waiter.ask {
                // What somebody waits for is not declined, whatever it is worth later.
                Ask::Reserve { request, .. } => Some(request).filter(|_| !self.clients[&client].fetches),
                Ask::Refill => None,
            };
            let room = self.obtain(shelf, need, client, patience, request, &mut waiter.slots);
            let some = matches!(waiter.ask, Ask::Refill) && !waiter.slots.is_empty();
            if room == Room::Enough || some {
                self.finish(waiter, Refusal::AllPinned);
            } else if room == Room::Declined {
                self.finish(waiter, Refusal::Cold);
            } else if room != Room::Asked && (self.now >= waiter.deadline || self.never_fits(shelf)) {
                let reason = self.why(room, shelf);
                self.finish(waiter, reason);
            } else {
                self.wait_for_room(room, waiter);
                break;
            }
        }
        passed.into_iter().rev().for_each(|waiter| self.puts.push_front(waiter));
    }

    /// The call goes on when slots come free, or at its time.
    fn wait_for_room(&mut self, room: Room, waiter: Waiter) {
        let (shelf, client) = (waiter.shelf, waiter.to.client);
        self.puts.wakes.insert((waiter.deadline, shelf));
        let again = match room {
            Room::Growing => Some(waiter.evict_from),
            Room::Writing => Some(waiter.force_from),
            _ => None,
        };
        if let Some(at) = again.filter(|&at| at > self.now) {
            self.puts.wakes.insert((at, shelf));
        }
        self.puts.push_front(waiter);
        if room == Room::Wedged {
            if let Growth::Denied { until } = self.growth {
                self.puts.wakes.insert((until, shelf));
            }
            self.recall(Some(client));
            self.look_aside_later();
        }
    }

    /// A refill waits until slots of magazines are used or given back: idle clients are asked for theirs, also those
    /// that become idle meanwhile, and its own client for what it has for other blocks.
    fn wait_for_magazines(&mut self, waiter: &Waiter) {
        let (shelf, client) = (waiter.shelf, waiter.to.client);
        self.puts.over_share = true;
        self.recall(None);
        if !self.clients[&client].magazine.contains_key(&shelf) {
            self.recall_from(client);
        }
        let again = self.recall_look.max(Time(self.now.0 + RECALL_US_MIN));
        self.puts.wakes.insert((again.min(waiter.deadline), shelf));
    }

    /// Whether no extent, and none to come, holds one slot of the shelf.
    fn never_fits(&self, shelf: Shelf) -> bool {
        matches!(self.growth, Growth::Denied { .. })
            && self.memory.buddy.units() > 0
            && !self.memory.fits(self.memory.of(shelf).stride)
    }

    fn why(&self, room: Room, shelf: Shelf) -> Refusal {
        if self.never_fits(shelf) {
            Refusal::NoExtentFits
        } else if room == Room::Growing || self.memory.buddy.growing() || self.memory.buddy.units() == 0 {
            Refusal::NotReady
        } else {
            Refusal::AllPinned
        }
    }

    /// Ends the waits whose time has come; what they got so far is theirs.
    pub(super) fn expire_puts(&mut self) {
        while let Some(&(at, shelf)) = self.puts.wakes.first() {
            if at > self.now {
                return;
            }
            self.puts.wakes.pop_first();
            self.pump(shelf);
            let now = self.now;
            for waiter in self.puts.take_if(shelf, |waiter| waiter.deadline <= now) {
                let reason = self.why(Room::Wedged, shelf);
                self.finish(waiter, reason);
            }
        }
    }

    /// Ends all waits; what each call got so far is its client's.
    pub(super) fn drain_puts(&mut self) {
        for shelf in self.memory.shelves() {
            for waiter in self.puts.take_if(shelf, |_| true) {
                self.finish(waiter, Refusal::Draining);
            }
        }
        self.puts.wakes.clear();
    }

    /// Answers a call with the slots that it got; keys beyond them are refused.
    fn finish(&mut self, waiter: Waiter, reason: Refusal) {
        let Waiter { to, shelf, need, slots, ask, .. } = waiter;
        match ask {
            Ask::Refill if slots.is_empty() => self.refuse(to, reason),
            Ask::Refill => {
                for &slot in &slots {
                    self.record_grant(to.client, slot, None);
                }
                self.reply_granted(to, shelf, slots);
            }
            Ask::Reserve { pool, keys, there, parent, request } => {
                let mut short = need - slots.len() as u32;
                self.unreserve(to.client, shelf, short);
                let mut above = parent.and_then(|held| self.kept.live(held.line)).map(|live| live.key);
                let reservation = self.next_reservation();
                self.reserved(reservation, parent, slots.len() as u32);
                let (mut slots, mut results) = (slots.into_iter(), Vec::with_capacity(keys.len()));
                for (&key, there) in keys.iter().zip(there) {
                    results.push(if there {
                        Reserved::Exists
                    } else if let Some(slot) = slots.next() {
                        self.record_grant(to.client, slot, Some(Named { pool, key, reservation }));
                        Reserved::Slot(slot)
                    } else {
                        self.counts.puts_refused += 1;
                        let reason = if short > 0 { reason } else { Refusal::Limit };
                        if reason == Refusal::Cold {
                            self.policy.declined(&mut self.kept, above.as_ref(), pool, &key, request, self.now);
                        }
                        short = short.saturating_sub(1);
                        Reserved::Refused(reason)
                    });
                    above = Some(key);
                }
                self.reply(to, Reply::Reserved { results });
            }
        }
    }

    pub(super) fn next_reservation(&mut self) -> u64 {
        self.reservation_next += 1;
        self.reservation_next - 1
    }

    /// So many slots are being filled below a block, which stays as long.
    pub(super) fn reserved(&mut self, reservation: u64, parent: Option<Held>, slots: u32) {
        if slots == 0 {
            parent.into_iter().for_each(|held| self.unhold(held));
        } else {
            self.reservations.insert(reservation, Reservation { parent, slots_left: slots });
        }
    }

    /// The client does not wait for so many slots any more.
    fn unreserve(&mut self, id: ClientId, shelf: Shelf, count: u32) {
        let client = self.clients.get_mut(&id).expect("only known clients wait");
        client.reserved_units -= u64::from(count) * u64::from(self.memory.of(shelf).stride);
    }

    pub(super) fn reply_granted(&mut self, to: Caller, shelf: Shelf, slots: Vec<SlotId>) {
        let own = self.memory.of(shelf);
        let (pool, slot_bytes) = (own.pool, own.stride * UNIT_BYTES as u32);
        self.reply(to, Reply::Granted { pool, slot_bytes, slots });
    }

    /// One slot of a reservation is not being filled any more.
    pub(super) fn end_reserved(&mut self, reservation: u64) {
        let left = self.reservations.get_mut(&reservation).expect("it has slots left");
        left.slots_left -= 1;
        if left.slots_left == 0 {
            let ended = self.reservations.remove(&reservation).expect("looked up above");
            self.ended_parents.extend(ended.parent);
        }
    }

    /// Nobody hears the answers any more: slots whose numbers never left are free.
    pub(super) fn cancel_puts(&mut self, id: ClientId) {
        let shelves: Vec<Shelf> = self.puts.shelves_waiting().collect();
        for shelf in shelves {
            for waiter in self.puts.take_if(shelf, |waiter| waiter.to.client == id) {
                for slot in waiter.slots {
                    self.free(slot);
                }
                if let Ask::Reserve { parent, .. } = waiter.ask {
                    self.unreserve(id, shelf, waiter.need);
                    parent.into_iter().for_each(|held| self.unhold(held));
                }
                self.stirred = true;
            }
        }
    }
}
