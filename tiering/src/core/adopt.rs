//! Taking over what a former daemon left: slabs and lines are told one by one, then everything else is rebuilt. Until
//! `adopt_done` the core serves nothing; hits do not need it.
//!
//! What is believed: a line that readers find, if its slot fits; a parent link, if its generation fits; class and last
//! use. What may still be written (granted, device reads) stays aside.

use std::cmp::Reverse;

use lapis_config::{ClientId, GpuId, LineId, SlotId, Time};

use super::{Core, CoreOptions, clients::Client};
use crate::{
    copies::Step,
    kept::{Kept, Live, Slab, SlotState, Tier},
    policy::{Policy, tenths},
};

/// Slots asked about at once.
const BATCH: usize = 8192;

#[derive(Default)]
pub(super) struct Adopting {
    lines: Vec<LineId>,
    /// Clients that came back, or were proven gone, before all was adopted.
    pub resumed: Vec<(ClientId, Vec<SlotId>)>,
    pub resumed_on_gpus: Vec<(ClientId, Vec<(GpuId, SlotId)>)>,
    pub gone: Vec<ClientId>,
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// A core over the kept memory of a former one. Pools, extents, slabs, clients and lines are told next, in this
    /// order, then `adopt_done`.
    pub fn adopt(kept: K, policy: P, options: CoreOptions) -> Self {
        let mut core = Self::new(kept, policy, options);
        core.adopting = Some(Adopting::default());
        core
    }

    /// A slab of the former daemon. One that does not fit the memory or names no pool is forgotten: its blocks go as
    /// their lines are told.
    pub fn adopt_slab(&mut self, slab: Slab) {
        let known = self.pools.get(&slab.pool).is_some_and(|pool| slab.stride <= pool.def.slot_units);
        if known && self.memory.adopt(slab) {
            self.policy.shelves(self.memory.shelves().count());
            self.counts.slots_free += u64::from(slab.slots());
        } else {
            self.kept.forget_slab(&slab);
        }
    }

    /// A client of the former daemon: its grants stay its own until it resumes or is gone.
    pub fn adopt_client(&mut self, id: ClientId, may_put: bool) {
        self.clients.insert(id, Client::new(may_put, false, self.now));
    }

    /// A live line. One whose slot fits no slab of its pool, or is another line's, and that no GPU has, is unpublished.
    pub fn adopt_line(&mut self, line: LineId, live: Live) {
        let in_dram = matches!(live.place.tier, Tier::Dram | Tier::DramUnverified);
        let found = self.memory.locate(live.place.slot).filter(|(found, index)| {
            in_dram
                && found.slab.pool == live.pool
                && found.is_free(*index)
                && u64::from(live.place.bytes) <= u64::from(found.slab.stride) * lapis_config::UNIT_BYTES
        });
        let slab = found.map(|(found, index)| (found.slab, index));
        let on_gpu = (slab.is_some() || live.place.tier == Tier::Hbm) && self.adopt_copy(line, &live);
        let Some((slab, index)) = slab else {
            if on_gpu {
                self.adopting.as_mut().expect("lines are told while adopting").lines.push(line);
            } else {
                self.forget_line(line);
            }
            return;
        };
        self.memory.take_at(slab.base.0, index);
        self.memory.count_used(live.place.slot, 1);
        self.kept.set_slot_state(&slab, index, SlotState::Used(line));
        self.counts.slots_free -= 1;
        self.count_block(live.pool, slab.stride);
        self.adopting.as_mut().expect("lines are told while adopting").lines.push(line);
    }

    /// All was told: rebuilds links and lists, frees what nobody holds.
    pub fn adopt_done(&mut self, now: Time) {
        self.clock(now);
        let adopting = self.adopting.take().expect("adopted once");
        let mut order = self.adopt_links(adopting.lines);
        order.sort_unstable();
        for &(last_use, _, line) in &order {
            let live = self.kept.live(line).expect("adopted");
            if live.place.tier == Tier::Hbm {
                continue;
            }
            let shelf = self.shelf_of_line(line);
            let used = Time(u64::from(last_use) * 100_000);
            self.policy.enters(&mut self.kept, shelf, line, used);
            if live.place.tier == Tier::DramUnverified {
                self.unverified.push(line);
            }
        }
        if let Some(saved) = self.kept.learned() {
            self.policy.learned(&saved, now);
        }
        self.adopt_slots();
        self.adopt_slots_on_gpus();
        for (id, writing) in adopting.resumed {
            self.client_resumed(id, &writing);
        }
        self.resume_on_gpus(adopting.resumed_on_gpus);
        for id in adopting.gone {
            self.client_gone(id);
        }
        self.run();
    }

    /// Links every line to its parent where that can be believed. Returns the lines as lists want them: by last use,
    /// and the deepest first among equals.
    fn adopt_links(&mut self, lines: Vec<LineId>) -> Vec<(u32, Reverse<u32>, LineId)> {
        let now = tenths(self.now);
        for &line in &lines {
            let believed = self.believed_parent(line);
            self.kept.entry_mut(line).parent = believed.0;
        }
        let depths = self.depths(&lines);
        let parents: Vec<LineId> = lines.iter().map(|&line| LineId(self.kept.entry(line).parent)).collect();
        for &line in &lines {
            let in_dram = self.kept.live(line).expect("adopted").place.tier != Tier::Hbm;
            self.enter(line, if in_dram { &[Step::Adopt] } else { &[] });
            // A clock that a former life was ahead of must not keep a block for ever.
            let entry = self.kept.entry_mut(line);
            entry.last_use = entry.last_use.min(now);
        }
        for (&line, &parent) in lines.iter().zip(&parents) {
            if parent.is_some() {
                let generation = self.kept.live(parent).expect("believed above").generation;
                self.tree.attach(&mut self.kept, parent, generation, line);
            }
        }
        let order = |&line: &LineId| (self.kept.entry(line).last_use, Reverse(depths[line.0 as usize]), line);
        lines.iter().map(order).collect()
    }

    fn believed_parent(&self, line: LineId) -> LineId {
        let entry = self.kept.entry(line);
        let parent = LineId(entry.parent);
        if parent.0 >= self.kept.lines() {
            return LineId::NONE;
        }
        let pool = self.kept.live(line).expect("adopted").pool;
        let fits = |above: &Live| above.pool == pool && above.generation as u16 == entry.parent_generation;
        self.kept.live(parent).filter(fits).map_or(LineId::NONE, |_| parent)
    }

    /// The depth of each line, 1 for roots, by line number. Cuts cycles, which only damage can make.
    fn depths(&mut self, lines: &[LineId]) -> Vec<u32> {
        const UNDER_WAY: u32 = u32::MAX;
        let mut depths = vec![0; self.kept.lines() as usize];
        let mut path = Vec::new();
        for &line in lines {
            let (mut at, mut depth) = (line, 0);
            while at.is_some() {
                match depths[at.0 as usize] {
                    0 => {
                        depths[at.0 as usize] = UNDER_WAY;
                        path.push(at);
                        at = LineId(self.kept.entry(at).parent);
                    }
                    UNDER_WAY => {
                        let last = path.last().expect("it leads here");
                        self.kept.entry_mut(*last).parent = LineId::NONE.0;
                        break;
                    }
                    known => {
                        depth = known;
                        break;
                    }
                }
            }
            for at in path.drain(..).rev() {
                depth += 1;
                depths[at.0 as usize] = depth;
            }
        }
        depths
    }

    /// Slots in no line: granted ones stay with their clients, ones that a device may write stay aside, others are free
    /// once no reader names them.
    fn adopt_slots(&mut self) {
        let slabs: Vec<Slab> = self.memory.slabs().map(|found| found.slab).collect();
        for slab in slabs {
            for index in 0..slab.slots() {
                if self.memory.slab(slab.base.0).is_free(index) {
                    self.adopt_slot(&slab, index);
                }
            }
        }
        while !self.limbo.is_empty() {
            self.settle();
        }
    }

    fn adopt_slot(&mut self, slab: &Slab, index: u32) {
        let (state, slot) = (self.kept.slot_state(slab, index), slab.slot(index));
        if state == SlotState::Free {
            return;
        }
        self.memory.take_at(slab.base.0, index);
        self.counts.slots_free -= 1;
        match state {
            SlotState::Granted(id) => {
                let now = self.now;
                // Of a client that nobody can prove gone, it stays until a cold start.
                self.clients.entry(id).or_insert_with(|| Client::new(false, false, now));
                self.counts.slots_granted += 1;
                self.record_grant(id, slot, None);
            }
            SlotState::IoIn => self.counts.slots_aside += 1,
            SlotState::Used(_) | SlotState::Aside | SlotState::Free => {
                self.limbo.push(slot);
                if self.limbo.len() == BATCH {
                    self.settle();
                }
            }
        }
    }
}
