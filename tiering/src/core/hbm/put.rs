//! Puts into the memory of a GPU. A slot there is granted at once or not at all: who gets none puts by way of DRAM. A
//! block that was put is copied to DRAM at once, so that its slot may go at any time.
//!
//! Grants return as those in DRAM do: by commit, by abort, or with the last process that could write into them.

use lapis_config::{BATCH_KEYS_MAX, ClientId, GpuId, Key, LineId, PoolId, Refusal, SlotId, Time, UNIT_BYTES};

use super::{Core, GpuStep};
use crate::{
    core::clients::Named,
    face::{Caller, CommitItem, Parent, Put, Reply, Reserved},
    kept::{Kept, Place, SlotState, Tier},
    policy::{Policy, Request, Stored, Use},
};

impl<K: Kept, P: Policy> Core<K, P> {
    /// Wants a slot on a GPU for each key of a chain that is not there; answered by `Reserved` at once. Until the slots are
    /// committed or given back, the block before the first of them stays, and gets may wait for the keys.
    pub fn reserve_on_gpu(&mut self, now: Time, to: Caller, gpu: GpuId, pool: PoolId, keys: &[Key], parent: Parent) {
        self.clock(now);
        let stride = match self.may_put_on_gpu(to.client, gpu, pool) {
            Ok(_) if keys.len() > BATCH_KEYS_MAX => return self.reply(to, Reply::Refused(Refusal::Limit)),
            Ok(stride) => stride,
            Err(Refusal::Gone) => return,
            Err(reason) => return self.reply(to, Reply::Refused(reason)),
        };
        let shelf = self.gpu_shelf(gpu, pool, stride);
        let mut before = match parent {
            Parent::Key(key) => self.kept.find(pool, &key),
            Parent::None | Parent::Previous => None,
        };
        // Before room is made: that may take blocks of the batch away, but not the one that is held.
        let there: Vec<Option<LineId>> = keys.iter().map(|key| self.kept.find(pool, key)).collect();
        before = there.iter().map_while(|line| *line).last().or(before);
        let held = before.map(|line| self.hold(line));
        let missing = there.iter().filter(|line| line.is_none()).count() as u32;
        let room = self.reserve_room_on_gpu(to.client, gpu, stride);
        let (reservation, mut slots, mut results) = (self.next_reservation(), 0, Vec::with_capacity(keys.len()));
        for (&key, line) in keys.iter().zip(there) {
            if line.is_some() {
                results.push(Reserved::Exists);
                continue;
            }
            let taken = if slots < room { self.slot_on_gpu(gpu, shelf, missing - slots, None) } else { None };
            let Some((slab, index)) = taken else {
                let reason = if slots < room { Refusal::AllPinned } else { Refusal::Limit };
                results.push(Reserved::Refused(reason));
                continue;
            };
            // Before anyone hears of it.
            self.kept.set_device_slot_state(gpu, &slab, index, SlotState::Granted(to.client));
            let own = self.hbm.gpu(gpu);
            own.counts.slots_free -= 1;
            own.counts.slots_granted += 1;
            slots += 1;
            let named = Named { pool, key, reservation };
            self.grant_on_gpu(to.client, gpu, slab.slot(index), Some(named));
            results.push(Reserved::Slot(slab.slot(index)));
        }
        self.reserved(reservation, held, slots);
        self.reply(to, Reply::Reserved { results });
        self.run();
    }

    /// 4 KiB units of the slots, if the client may put there.
    fn may_put_on_gpu(&self, id: ClientId, gpu: GpuId, pool: PoolId) -> Result<u32, Refusal> {
        let client = self.clients.get(&id).filter(|client| client.connected).ok_or(Refusal::Gone)?;
        if !client.may_put {
            return Err(Refusal::ReadOnly);
        }
        if !client.gpu_ghosts.is_empty() {
            return Err(Refusal::NotReady);
        }
        if self.draining {
            return Err(Refusal::Draining);
        }
        let def = self.pools.get(&pool).ok_or(Refusal::NoPool)?.def;
        // Objects come from hosts.
        if def.kind != lapis_config::PoolKind::Chain || self.adopting.is_some() {
            return Err(Refusal::NotReady);
        }
        let own = self.hbm.gpus.get(&gpu).ok_or(Refusal::NotReady)?;
        if own.memory.fits(def.slot_units) { Ok(def.slot_units) } else { Err(Refusal::NoExtentFits) }
    }

    /// Slots that the client may still reserve on the GPU; one at least if it has none.
    fn reserve_room_on_gpu(&self, id: ClientId, gpu: GpuId, stride: u32) -> u32 {
        let own = self.clients[&id].gpu_grants.range((gpu, SlotId(0))..=(gpu, SlotId(u32::MAX)));
        let most = self.hbm.gpus[&gpu].memory.buddy.units() / self.options.reserved_part / stride;
        most.max(1).saturating_sub(own.count() as u32)
    }

    pub(super) fn grant_on_gpu(&mut self, id: ClientId, gpu: GpuId, slot: SlotId, named: Option<Named>) {
        if let Some(named) = named {
            *self.filling.entry((named.pool, named.key)).or_insert(0) += 1;
        }
        let client = self.clients.get_mut(&id).expect("slots are granted to known clients");
        let former = client.gpu_grants.insert((gpu, slot), named);
        assert!(former.is_none(), "a slot is granted once");
    }

    fn end_grant_on_gpu(&mut self, id: ClientId, gpu: GpuId, slot: SlotId) {
        let client = self.clients.get_mut(&id).expect("slots are granted to known clients");
        let named = client.gpu_grants.remove(&(gpu, slot)).expect("a grant ends once");
        if let Some(named) = named {
            self.end_named(named);
        }
        if let Some(own) = self.hbm.gpus.get_mut(&gpu) {
            own.counts.slots_granted -= 1;
        }
    }

    fn free_grant_on_gpu(&mut self, id: ClientId, gpu: GpuId, slot: SlotId) {
        self.end_grant_on_gpu(id, gpu, slot);
        self.give_on_gpu(gpu, slot);
    }

    /// Publishes slots on a GPU that a client filled; `out` gets one result per item. A sum of 0 says that the client
    /// made none: one is made when the block has come to DRAM, and until then it is found on its GPU alone. After any
    /// result but `NotGranted` the slot is the client's no more.
    pub fn commit_on_gpu(
        &mut self,
        now: Time,
        id: ClientId,
        gpu: GpuId,
        pool: PoolId,
        items: &[CommitItem],
        out: &mut Vec<Put>,
    ) {
        self.clock(now);
        if self.adopting.is_some() || !self.clients.contains_key(&id) {
            out.extend(items.iter().map(|_| Put::Refused(Refusal::NotReady)));
            return;
        }
        let (mut previous, mut request) = (None, Request::default());
        for (at, item) in items.iter().enumerate() {
            if at == 0 || item.parent != Parent::Previous {
                request = self.storing(pool, &items[at..]);
            }
            let put = self.commit_one_on_gpu(id, gpu, pool, item, &mut previous, request);
            match put {
                Put::Stored => self.counts.puts_stored += 1,
                Put::Exists => self.counts.puts_exists += 1,
                Put::Refused(_) => self.counts.puts_refused += 1,
            }
            out.push(put);
        }
        self.keep_tip(id, previous);
        self.settle();
        self.run();
    }

    fn commit_one_on_gpu(
        &mut self,
        id: ClientId,
        gpu: GpuId,
        pool: PoolId,
        item: &CommitItem,
        previous: &mut Option<(LineId, u64)>,
        request: Request,
    ) -> Put {
        let before = previous.take();
        let client = self.clients.get_mut(&id).expect("looked up above");
        client.gpu_ghosts.remove(&(gpu, item.slot));
        let granted = client.gpu_grants.contains_key(&(gpu, item.slot));
        let found = self.hbm.gpus.get(&gpu).and_then(|own| own.memory.locate(item.slot));
        let Some((slab, index)) = found.filter(|_| granted).map(|(found, index)| (found.slab, index)) else {
            return Put::Refused(Refusal::NotGranted);
        };
        if slab.pool != pool {
            return Put::Refused(Refusal::NotGranted);
        }
        let state = self.kept.device_slot_state(gpu, &slab, index);
        assert!(state == SlotState::Granted(id), "the kept state of a granted slot says so");
        self.end_grant_on_gpu(id, gpu, item.slot);
        let known = self.kept.find(pool, &item.key).and_then(|line| Some((line, self.kept.live(line)?)));
        if let Some((line, live)) = known {
            self.give_on_gpu(gpu, item.slot);
            self.adopt_parent(line, pool, item.parent, before);
            self.touch(line, &live, 1, Use::Again);
            *previous = Some((line, live.generation));
            return Put::Exists;
        }
        match self.publish_on_gpu(gpu, pool, item, slab.stride, before, request) {
            Ok(line) => {
                *previous = self.kept.live(line).map(|live| (line, live.generation));
                self.woken.push((pool, item.key));
                Put::Stored
            }
            Err(reason) => {
                self.give_on_gpu(gpu, item.slot);
                Put::Refused(reason)
            }
        }
    }

    fn publish_on_gpu(
        &mut self,
        gpu: GpuId,
        pool: PoolId,
        item: &CommitItem,
        stride: u32,
        previous: Option<(LineId, u64)>,
        request: Request,
    ) -> Result<LineId, Refusal> {
        let def = self.pools[&pool].def;
        if u64::from(item.bytes) > def.block_bytes.min(u64::from(stride) * UNIT_BYTES) {
            return Err(Refusal::TooLarge);
        }
        let parent = self.parent_of(pool, item, previous)?;
        let place = Place { slot: SlotId(0), bytes: item.bytes, sum: item.sum, tier: Tier::Hbm };
        let line = self.publish_line(pool, item, place, parent.map(|(line, _)| line))?;
        self.kept.entry_mut(line).class = 0;
        self.enter(line, &[]);
        if let Some((parent, live)) = parent {
            self.tree.attach(&mut self.kept, parent, live.generation, line);
        }
        let full = u64::from(item.bytes) == def.block_bytes;
        let block = Stored { line, pool, key: &item.key, parent: parent.map(|(line, _)| line), full };
        // The policy hears of it as of any that is stored; among those in DRAM it is when it has come there.
        let shelf = self.memory.shelf(pool, stride);
        self.policy.shelves(self.memory.shelves().count());
        self.policy.stored(&mut self.kept, shelf, &block, request, self.now);
        self.policy.unlink(&mut self.kept, shelf, line);
        self.copy_is_there(line, gpu, item.slot, GpuStep::Commit);
        self.save_later(line);
        self.counts.hbm_puts += 1;
        if let Some((parent, live)) = parent {
            self.touch(parent, &live, u32::MAX, Use::Again);
        }
        Ok(line)
    }

    /// Slots on a GPU given back unfilled. Slots that are not the client's are left alone.
    pub fn abort_on_gpu(&mut self, now: Time, id: ClientId, gpu: GpuId, slots: &[SlotId]) {
        self.clock(now);
        if self.adopting.is_some() {
            return;
        }
        for &slot in slots {
            let Some(client) = self.clients.get_mut(&id) else { break };
            client.gpu_ghosts.remove(&(gpu, slot));
            if client.gpu_grants.contains_key(&(gpu, slot)) {
                self.free_grant_on_gpu(id, gpu, slot);
            }
        }
        self.run();
    }

    /// The client is back and is still writing only these of its slots on GPUs: its other ones are free. Those that are not its
    /// own are of a GPU whose memory was not kept. Told beside `client_resumed`; a client that knows nothing of GPUs says none.
    pub fn client_resumed_on_gpus(&mut self, id: ClientId, writing: &[(GpuId, SlotId)]) {
        if let Some(adopting) = &mut self.adopting {
            adopting.resumed_on_gpus.push((id, writing.to_vec()));
            return;
        }
        for (gpu, slot) in self.grants_on_gpus(id) {
            if !writing.contains(&(gpu, slot)) {
                self.free_grant_on_gpu(id, gpu, slot);
            }
        }
        if let Some(client) = self.clients.get_mut(&id) {
            let ghosts = writing.iter().filter(|at| !client.gpu_grants.contains_key(at)).copied();
            client.gpu_ghosts = ghosts.collect();
        }
        self.run();
    }

    /// No process is left that could write there.
    pub(in crate::core) fn client_gone_from_gpus(&mut self, id: ClientId) {
        for (gpu, slot) in self.grants_on_gpus(id) {
            self.free_grant_on_gpu(id, gpu, slot);
        }
    }

    fn grants_on_gpus(&self, id: ClientId) -> Vec<(GpuId, SlotId)> {
        self.clients.get(&id).map_or_else(Vec::new, |client| client.gpu_grants.keys().copied().collect())
    }

    /// The GPU is gone, with what clients were writing there.
    pub(super) fn end_grants_on(&mut self, gpu: GpuId) {
        let ids: Vec<ClientId> = self.clients.keys().copied().collect();
        for id in ids {
            for (of, slot) in self.grants_on_gpus(id) {
                if of == gpu {
                    self.end_grant_on_gpu(id, gpu, slot);
                }
            }
        }
    }
}
