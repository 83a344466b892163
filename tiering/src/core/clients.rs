//! Who is connected and what each holds. Everything comes back when its client is gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::hash_map::Entry;
use lapis_config::{ClientId, GpuId, Key, PoolId, SlotId, Time};

use super::{Core, hold::Got};
use crate::{
    face::Action,
    hash::Map,
    kept::{Kept, SlotState},
    policy::{Policy, Shelf},
};

pub(super) struct Client {
    pub may_put: bool,
    /// What it puts comes from other hosts for somebody who waits: it is not declined.
    pub fetches: bool,
    /// False between the loss of its connection and its return: it gets nothing new.
    pub connected: bool,
    /// Slots that it may be writing, and what for.
    pub grants: Map<SlotId, Grant>,
    /// Slots on GPUs that it may be writing; `None`: of a former daemon.
    pub gpu_grants: BTreeMap<(GpuId, SlotId), Option<Named>>,
    /// Slots on GPUs that it says it is writing and does not have: of memory that a former daemon had. It gives them back by
    /// their numbers, so until then no slot on a GPU is granted to it, which could have one of these.
    pub gpu_ghosts: BTreeSet<(GpuId, SlotId)>,
    /// Of those, slots that no reserve named a key for: per shelf.
    pub magazine: BTreeMap<Shelf, u32>,
    pub magazine_units: u64,
    /// Of slots that it has by reserves, and of those that its reserves wait for.
    pub reserved_units: u64,
    pub last_put: Time,
    /// Pools whose magazine it was asked for since its last put or abort, and when.
    pub recalled: BTreeMap<PoolId, Time>,
    /// What it was answered and has not released, oldest first.
    pub gots: VecDeque<Got>,
}

/// What a granted slot is for: `None`, whatever its client likes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub named: Option<Named>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    pub pool: PoolId,
    pub key: Key,
    pub reservation: u64,
}

impl Client {
    pub fn new(may_put: bool, connected: bool, now: Time) -> Self {
        Self {
            may_put,
            fetches: false,
            connected,
            grants: Map::default(),
            gpu_grants: BTreeMap::new(),
            gpu_ghosts: BTreeSet::new(),
            magazine: BTreeMap::new(),
            magazine_units: 0,
            reserved_units: 0,
            last_put: now,
            recalled: BTreeMap::new(),
            gots: VecDeque::new(),
        }
    }
}

impl<K: Kept, P: Policy> Core<K, P> {
    pub fn client_added(&mut self, id: ClientId, may_put: bool) {
        let former = self.clients.insert(id, Client::new(may_put, true, self.now));
        assert!(former.is_none(), "numbers of clients are never used twice");
    }

    /// A client that puts what the daemon fetches from other hosts; with `is_awaited`, somebody waits for all that it puts.
    /// What a former one was filling is filled by nobody: its slots are free.
    pub fn fetcher_added(&mut self, id: ClientId, is_awaited: bool) {
        let client = Client { fetches: is_awaited, ..Client::new(true, true, self.now) };
        let former = self.clients.insert(id, client);
        assert!(former.is_none(), "numbers of clients are never used twice");
        if let Some(adopting) = &mut self.adopting {
            adopting.resumed.push((id, Vec::new()));
        }
    }

    /// Whether somebody is filling a slot for the key.
    pub fn is_filling(&self, pool: PoolId, key: &Key) -> bool {
        self.filling.contains_key(&(pool, *key))
    }

    /// The connection is lost: the client gets nothing new, its calls are not answered, what it was shown may go. Its
    /// granted slots stay its own.
    pub fn client_lost(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.connected = false;
        for got in std::mem::take(&mut client.gots) {
            self.end_hold(id, got);
        }
        self.cancel_gets(id);
        self.cancel_tickets(id);
        self.cancel_puts(id);
        self.run();
    }

    /// No process is left that could write into its slots: they are free.
    pub fn client_gone(&mut self, id: ClientId) {
        self.client_lost(id);
        let Some(client) = self.clients.get(&id) else { return };
        let mut slots: Vec<SlotId> = client.grants.keys().copied().collect();
        slots.sort_unstable();
        if let Some(adopting) = &mut self.adopting {
            adopting.gone.push(id);
            return;
        }
        for slot in slots {
            self.end_grant(id, slot);
            self.free(slot);
        }
        self.client_gone_from_gpus(id);
        self.clients.remove(&id);
        // Its pins ended with it: what waits for those does not wait for the next look.
        self.settle_all();
        self.look_aside_on_gpus();
        self.run();
    }

    /// The client is back and is still writing only these of its slots: its other ones are free.
    pub fn client_resumed(&mut self, id: ClientId, writing: &[SlotId]) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.connected = true;
        client.last_put = self.now;
        client.recalled.clear();
        if let Some(adopting) = &mut self.adopting {
            adopting.resumed.push((id, writing.to_vec()));
            return;
        }
        let writing: BTreeSet<SlotId> = writing.iter().copied().collect();
        let mut slots: Vec<SlotId> = client.grants.keys().copied().filter(|slot| !writing.contains(slot)).collect();
        slots.sort_unstable();
        for slot in slots {
            self.end_grant(id, slot);
            self.free(slot);
        }
        self.run();
    }

    /// Slots given back unfilled. Slots that are not the client's are left alone.
    pub fn abort(&mut self, now: Time, id: ClientId, slots: &[SlotId]) {
        self.clock(now);
        if self.adopting.is_some() {
            return;
        }
        for &slot in slots {
            if self.clients.get(&id).is_some_and(|client| client.grants.contains_key(&slot)) {
                self.end_grant(id, slot);
                self.free(slot);
            }
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.recalled.clear();
        }
        self.run();
    }

    /// The slot is the client's to fill. The kept memory said so before.
    pub(super) fn record_grant(&mut self, id: ClientId, slot: SlotId, named: Option<Named>) {
        let (found, _) = self.memory.locate(slot).expect("a granted slot");
        let (shelf, stride) = (found.shelf, found.slab.stride);
        let client = self.clients.get_mut(&id).expect("slots are granted to known clients");
        if let Some(named) = named {
            *self.filling.entry((named.pool, named.key)).or_insert(0) += 1;
        } else {
            *client.magazine.entry(shelf).or_insert(0) += 1;
            client.magazine_units += u64::from(stride);
            self.magazine_units += u64::from(stride);
        }
        let former = client.grants.insert(slot, Grant { named });
        assert!(former.is_none(), "a slot is granted once");
    }

    /// The client does not write into the slot any more. What becomes of the slot is the caller's next step. Returns
    /// what it was for.
    pub(super) fn end_grant(&mut self, id: ClientId, slot: SlotId) -> Grant {
        let client = self.clients.get_mut(&id).expect("slots are granted to known clients");
        let grant = client.grants.remove(&slot).expect("a grant ends once");
        match grant.named {
            Some(named) => {
                let (found, _) = self.memory.locate(slot).expect("a granted slot");
                client.reserved_units -= u64::from(found.slab.stride);
                self.end_named(named);
            }
            None => {
                let (found, _) = self.memory.locate(slot).expect("a granted slot");
                client.magazine_units -= u64::from(found.slab.stride);
                self.magazine_units -= u64::from(found.slab.stride);
                self.stirred |= self.puts.over_share();
                let count = client.magazine.get_mut(&found.shelf).expect("counted when it was granted");
                *count -= 1;
                if *count == 0 {
                    client.magazine.remove(&found.shelf);
                }
            }
        }
        grant
    }

    /// A slot is not being filled for its key any more.
    pub(super) fn end_named(&mut self, named: Named) {
        let Entry::Occupied(mut count) = self.filling.entry((named.pool, named.key)) else {
            panic!("counted when it was granted")
        };
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
            self.woken.push((named.pool, named.key));
        }
        self.end_reserved(named.reservation);
    }

    /// Takes a free slot for a client; its state is kept before anyone hears of it.
    pub(super) fn grant(&mut self, shelf: Shelf, id: ClientId) -> Option<SlotId> {
        let (slab, index) = self.memory.take(shelf)?;
        self.kept.set_slot_state(&slab, index, SlotState::Granted(id));
        self.counts.slots_free -= 1;
        self.counts.slots_granted += 1;
        Some(slab.slot(index))
    }

    /// A granted slot is free.
    pub(super) fn free(&mut self, slot: SlotId) {
        self.counts.slots_granted -= 1;
        self.give(slot);
    }

    /// A slot that nobody writes and nobody names is free.
    pub(super) fn give(&mut self, slot: SlotId) {
        let (found, index) = self.memory.locate(slot).expect("a slot of ours");
        let slab = found.slab;
        self.kept.set_slot_state(&slab, index, SlotState::Free);
        self.memory.give(slot);
        self.counts.slots_free += 1;
        self.stirred = true;
    }

    /// Asks for magazines: of clients that have been idle, or, if nothing else can make room, of all but `of`.
    pub(super) fn recall(&mut self, of: Option<ClientId>) {
        let wedged = of.is_some();
        if !wedged && self.now < self.recall_look {
            return;
        }
        self.recall_look = self.now.after(self.options.idle_recall / 8);
        let ids: Vec<ClientId> = self.clients.keys().copied().filter(|&id| of != Some(id)).collect();
        for id in ids {
            if wedged || self.now >= self.clients[&id].last_put.after(self.options.idle_recall) {
                self.recall_from(id);
            }
        }
    }

    /// Asks a client for all of its magazines, for each again only if it kept it for long.
    pub(super) fn recall_from(&mut self, id: ClientId) {
        let client = self.clients.get_mut(&id).expect("a known client");
        if !client.connected {
            return;
        }
        for &shelf in client.magazine.keys() {
            let pool = self.memory.of(shelf).pool;
            let asked = client.recalled.get(&pool);
            if asked.is_none_or(|asked| self.now >= asked.after(self.options.idle_recall)) {
                client.recalled.insert(pool, self.now);
                self.actions.push_back(Action::Recall { client: id, pool });
            }
        }
    }
}
