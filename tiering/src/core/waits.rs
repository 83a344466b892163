//! Calls that wait for slots, first come first served per shelf.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lapis_config::{ClientId, Key, PoolId, SlotId, Time};

use super::{CLIENT_WAITS_MAX, hold::Held};
use crate::{
    face::Caller,
    policy::{Request, Shelf},
};

/// A call that wants slots.
pub(super) struct Waiter {
    pub to: Caller,
    pub shelf: Shelf,
    pub need: u32,
    pub slots: Vec<SlotId>,
    /// From then on nothing waits for memory that is being populated: blocks are evicted.
    pub evict_from: Time,
    /// From then on blocks that should go to SSD first are dropped: a put is not refused while a colder block is there.
    pub force_from: Time,
    pub deadline: Time,
    pub ask: Ask,
}

pub(super) enum Ask {
    Refill,
    Reserve {
        pool: PoolId,
        keys: Vec<Key>,
        /// Which keys were there already.
        there: Vec<bool>,
        parent: Option<Held>,
        /// What the keys that are not there are a part of.
        request: Request,
    },
}

#[derive(Default)]
pub(super) struct PutWaits {
    pub queues: BTreeMap<Shelf, VecDeque<Waiter>>,
    pub count: usize,
    /// Of each client that has some.
    pub by_client: BTreeMap<ClientId, usize>,
    /// Whether a refill was passed over because all clients' magazines together were full.
    pub over_share: bool,
    /// When a waiting call is to be looked at. An entry may outlive its call.
    pub wakes: BTreeSet<(Time, Shelf)>,
}

impl PutWaits {
    pub fn wake(&self) -> Option<Time> {
        self.wakes.first().map(|&(at, _)| at)
    }

    pub fn shelves_waiting(&self) -> impl Iterator<Item = Shelf> + '_ {
        self.queues.keys().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True once after a refill was passed over: it may have its turn now.
    pub fn over_share(&mut self) -> bool {
        std::mem::take(&mut self.over_share)
    }

    pub fn waits(&self, shelf: Shelf) -> bool {
        self.queues.contains_key(&shelf)
    }

    /// Slots that waiting calls have got so far.
    pub fn slots(&self) -> impl Iterator<Item = (SlotId, ClientId)> + '_ {
        self.queues.values().flatten().flat_map(|waiter| waiter.slots.iter().map(|&slot| (slot, waiter.to.client)))
    }

    /// Parents that waiting calls hold.
    pub fn held(&self) -> impl Iterator<Item = Held> + '_ {
        self.queues.values().flatten().filter_map(|waiter| match waiter.ask {
            Ask::Reserve { parent, .. } => parent,
            Ask::Refill => None,
        })
    }

    /// Units that waiting reserves of each client are short of.
    pub fn units_short(&self, stride: impl Fn(Shelf) -> u64) -> BTreeMap<ClientId, u64> {
        let mut short = BTreeMap::new();
        for waiter in self.queues.values().flatten().filter(|waiter| !matches!(waiter.ask, Ask::Refill)) {
            *short.entry(waiter.to.client).or_insert(0) += u64::from(waiter.need) * stride(waiter.shelf);
        }
        short
    }

    /// When the first of those that wait for the shelf has no time left to wait for devices.
    pub fn force_from(&self, shelf: Shelf) -> Option<Time> {
        self.queues.get(&shelf)?.iter().map(|waiter| waiter.force_from).min()
    }

    pub fn is_full(&self, id: ClientId, most: usize) -> bool {
        self.count >= most || self.by_client.get(&id).is_some_and(|&count| count >= CLIENT_WAITS_MAX)
    }

    pub fn push(&mut self, waiter: Waiter) {
        self.entered(waiter.to.client);
        self.queues.entry(waiter.shelf).or_default().push_back(waiter);
    }

    pub fn push_front(&mut self, waiter: Waiter) {
        self.entered(waiter.to.client);
        self.queues.entry(waiter.shelf).or_default().push_front(waiter);
    }

    pub fn entered(&mut self, id: ClientId) {
        self.count += 1;
        *self.by_client.entry(id).or_insert(0) += 1;
    }

    pub fn left(&mut self, id: ClientId) {
        self.count -= 1;
        let count = self.by_client.get_mut(&id).expect("counted when it entered");
        *count -= 1;
        if *count == 0 {
            self.by_client.remove(&id);
        }
    }

    pub fn pop(&mut self, shelf: Shelf) -> Option<Waiter> {
        let queue = self.queues.get_mut(&shelf)?;
        let waiter = queue.pop_front().expect("an empty queue is removed");
        if queue.is_empty() {
            self.queues.remove(&shelf);
        }
        self.left(waiter.to.client);
        Some(waiter)
    }

    pub fn take_if(&mut self, shelf: Shelf, which: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        let Some(queue) = self.queues.get_mut(&shelf) else { return Vec::new() };
        let (taken, left) = std::mem::take(queue).into_iter().partition::<VecDeque<_>, _>(which);
        *queue = left;
        if queue.is_empty() {
            self.queues.remove(&shelf);
        }
        taken.iter().for_each(|waiter| self.left(waiter.to.client));
        taken.into()
    }
}
