//! Checks everything that must hold between two calls. For tests and simulation: it walks all memory.

use std::collections::{BTreeMap, BTreeSet};

use lapis_config::{ClientId, LineId, PoolId, SegmentId, SlotId, SsdPlace, UNIT_BYTES};

use super::{Core, HELD, Op, PINNED, PoolCounts};
use crate::{
    copies::Copy,
    face::Counts,
    kept::{Kept, SlotState, Tier},
    policy::Policy,
};

impl<K: Kept, P: Policy> Core<K, P> {
    /// Conservation of slots, links, lists, counts; the first thing found wrong.
    pub fn audit(&self) -> Result<(), String> {
        if self.adopting.is_some() {
            return Ok(());
        }
        self.memory.audit()?;
        let lines = self.audit_slots()?;
        self.audit_flights()?;
        for &line in lines.values() {
            self.audit_line(line)?;
        }
        self.audit_ssd()?;
        self.audit_gpus()?;
        self.audit_lists(&lines)?;
        self.audit_holds()?;
        self.audit_clients()
    }

    /// Every slot of every slab in exactly one state. Returns the line of each used slot.
    fn audit_slots(&self) -> Result<BTreeMap<SlotId, LineId>, String> {
        let aside: BTreeSet<SlotId> = self.aside.iter().copied().collect();
        let granted = self.granted_slots();
        let (reading, dropped) = self.busy_slots();
        let (mut lines, mut counts) = (BTreeMap::new(), Counts::default());
        let mut pools: BTreeMap<PoolId, PoolCounts> = BTreeMap::new();
        for found in self.memory.slabs() {
            let mut used = 0;
            let pool = pools.entry(found.slab.pool).or_default();
            for index in 0..found.slab.slots() {
                let (slot, state) = (found.slab.slot(index), self.kept.slot_state(&found.slab, index));
                let right = match state {
                    SlotState::Free => {
                        counts.slots_free += 1;
                        true
                    }
                    SlotState::Used(line) => {
                        used += 1;
                        lines.insert(slot, line);
                        self.kept.live(line).is_some_and(|live| {
                            live.place.slot == slot
                                && live.pool == found.slab.pool
                                && self.kept.find(live.pool, &live.key) == Some(line)
                        })
                    }
                    SlotState::Granted(id) => {
                        counts.slots_granted += 1;
                        granted.get(&slot) == Some(&id)
                    }
                    SlotState::IoIn if reading.contains(&slot) => {
                        counts.slots_busy += 1;
                        true
                    }
                    SlotState::IoIn => {
                        counts.slots_aside += 1;
                        true
                    }
                    SlotState::Aside if dropped.contains(&slot) => {
                        counts.slots_busy += 1;
                        true
                    }
                    SlotState::Aside => {
                        counts.slots_aside += 1;
                        aside.contains(&slot)
                    }
                };
                if !right || (state == SlotState::Free) != found.is_free(index) {
                    return Err(format!("slot {} is {state:?}, which nothing else agrees with", slot.0));
                }
            }
            if used != found.used {
                return Err(format!("slab at {}: {used} slots used, {} counted", found.slab.base.0, found.used));
            }
            pool.slabs += 1;
            pool.blocks += u64::from(used);
            pool.bytes_used += u64::from(used * found.slab.stride) * UNIT_BYTES;
            counts.slots_used += u64::from(used);
            counts.bytes_used += u64::from(used * found.slab.stride) * UNIT_BYTES;
        }
        let has = self.counts;
        let now = |c: &Counts| (c.slots_free, c.slots_granted, c.slots_aside, c.slots_busy, c.slots_used, c.bytes_used);
        if now(&has) != now(&counts) || has.blocks != lines.len() as u64 || !self.limbo.is_empty() {
            return Err(format!("counted {has:?}, found {counts:?} and {} blocks", lines.len()));
        }
        for &id in self.pools.keys() {
            if self.pool_counts(id) != pools.get(&id).copied().unwrap_or_default() {
                return Err(format!("pool {}: counted {:?}", id.0, self.pool_counts(id)));
            }
        }
        if aside.len() != self.aside.len() || granted.len() as u64 != counts.slots_granted {
            return Err("a slot is aside or granted twice".into());
        }
        Ok(lines)
    }

    /// Slots that devices write, and slots of dropped blocks that devices still read.
    fn busy_slots(&self) -> (BTreeSet<SlotId>, BTreeSet<SlotId>) {
        let (mut reading, mut dropped) = (BTreeSet::new(), BTreeSet::new());
        for op in self.ops.values() {
            match *op {
                Op::Read { slot, .. } | Op::CopyIn { slot, .. } | Op::Sum { slot, .. } => drop(reading.insert(slot)),
                Op::CopyOut { from, is_stray: true, .. } if self.ssd.strays.get(&from).is_some_and(|of| of.left) => {
                    dropped.insert(from);
                }
                Op::Write { line: None, slot, .. } if self.ssd.strays.get(&slot).is_some_and(|of| of.left) => {
                    dropped.insert(slot);
                }
                _ => {}
            }
        }
        (reading, dropped)
    }

    /// What devices are at is nobody else's: neither the memory of an operation nor what it reads.
    fn audit_flights(&self) -> Result<(), String> {
        let mut strays: BTreeMap<SlotId, u32> = BTreeMap::new();
        for (id, op) in &self.ops {
            let (slot, used_by) = match *op {
                Op::Write { line: Some(line), slot, .. } => (slot, Some(line)),
                Op::Write { line: None, slot, .. } => {
                    *strays.entry(slot).or_insert(0) += 1;
                    (slot, None)
                }
                Op::Read { slot, .. } | Op::CopyIn { slot, .. } | Op::Sum { slot, .. } => (slot, None),
                Op::CopyOut { from, is_stray, .. } => {
                    if is_stray {
                        *strays.entry(from).or_insert(0) += 1;
                    }
                    (from, None)
                }
                _ => continue,
            };
            let state = self.memory.locate(slot).map(|(found, index)| self.kept.slot_state(&found.slab, index));
            let left = self.ssd.strays.get(&slot).is_some_and(|stray| stray.left);
            let right = match (op, state) {
                (Op::Read { .. } | Op::CopyIn { .. } | Op::Sum { .. }, state) => state == Some(SlotState::IoIn),
                (Op::CopyOut { is_stray: false, .. }, state) => matches!(state, Some(SlotState::Used(_))) && !left,
                (_, Some(SlotState::Used(line))) => used_by.is_none_or(|by| by == line) && !left,
                (_, state) => used_by.is_none() && left && state == Some(SlotState::Aside),
            };
            if !right {
                return Err(format!("slot {} is {state:?} while {op:?} is under way as {}", slot.0, id.0));
            }
            // What is read for nobody may be of a device that was out and came back.
            if let Op::Read { line: Some(_), at, pages, .. } = *op
                && self.ssd.log.as_ref().is_some_and(|log| log.is_given_anew(at, pages))
            {
                return Err(format!("segment {:x} is given to new records while {op:?} is under way", at.segment().0));
            }
        }
        let counted: BTreeMap<SlotId, u32> =
            self.ssd.strays.iter().map(|(&slot, stray)| (slot, stray.writes)).collect();
        if strays != counted {
            return Err(format!("writes that are nobody's: {strays:?}, counted {counted:?}"));
        }
        Ok(())
    }

    /// What every line says of its copy on SSD, against the log.
    fn audit_ssd(&self) -> Result<(), String> {
        let on_ssd: BTreeSet<(SegmentId, LineId)> =
            self.ssd.log.iter().flat_map(|log| log.lines_by_segment()).collect();
        let (mut all, mut blocks, mut bytes) = (0, 0, 0);
        for line in (0..self.kept.lines()).map(LineId) {
            let Some(live) = self.kept.live(line) else { continue };
            let entry = self.kept.entry(line);
            let (copy, place) = (Copy::of_dram(entry), SsdPlace(entry.ssd));
            all += 1;
            if place.is_some() {
                blocks += 1;
                bytes += u64::from(self.pages_of(&live)) * UNIT_BYTES;
            }
            let is_dram = matches!(live.place.tier, Tier::Dram | Tier::DramUnverified);
            let right = match copy {
                Copy::Absent => (place.is_some() || self.is_on_gpu(line)) && !is_dram,
                Copy::Filling => !is_dram && self.ssd.fetching.contains_key(&line),
                Copy::Clean => place.is_some() && is_dram,
                Copy::Dirty => !place.is_some() && is_dram,
                Copy::Moving => !place.is_some() && self.ssd.moving.contains_key(&line),
            };
            if !right {
                return Err(format!("line {}: its copy is {copy:?}, its place {:x}, {live:?}", line.0, entry.ssd));
            }
            let leaving = self.ssd.retiring.contains_key(&place.segment());
            if place.is_some() && !leaving && !on_ssd.contains(&(place.segment(), line)) {
                return Err(format!("line {}: its segment {:x} does not know it", line.0, place.segment().0));
            }
            if !copy.is_readable() {
                self.tree.audit(&self.kept, line)?;
                let held = (entry.flags & HELD != 0) == (self.holds.count(line) > 0);
                if self.policy.is_linked(&self.kept, line) || entry.flags & PINNED != 0 || !held {
                    return Err(format!("line {}: it is on SSD alone, and in a list", line.0));
                }
            }
        }
        let counted = (self.counts.lines_used, self.counts.ssd_blocks, self.counts.ssd_bytes);
        if (all, blocks, bytes) != counted {
            return Err(format!("{all} lines, {blocks} blocks on SSD, {bytes} bytes: {counted:?} counted"));
        }
        let writing = self.ops.values().filter(|op| matches!(op, Op::Write { line: Some(_), .. })).count();
        let moving = self.ssd.moving.values().filter(|moving| moving.op.is_some()).count();
        let is_reading = |op: &&Op| {
            matches!(
                op,
                Op::Read { line: Some(_), .. } | Op::CopyIn { line: Some(_), .. } | Op::Sum { line: Some(_), .. }
            )
        };
        let reading = self.ops.values().filter(is_reading).count();
        if writing != moving || reading != self.ssd.fetching.len() {
            return Err("blocks under way to or from SSD are counted wrongly".into());
        }
        Ok(())
    }

    fn granted_slots(&self) -> BTreeMap<SlotId, ClientId> {
        let of_clients =
            self.clients.iter().flat_map(|(&id, client)| client.grants.keys().map(move |&slot| (slot, id)));
        of_clients.chain(self.puts.slots()).collect()
    }

    fn audit_line(&self, line: LineId) -> Result<(), String> {
        self.tree.audit(&self.kept, line)?;
        let entry = self.kept.entry(line);
        let copy = Copy::of_dram(entry);
        if !copy.is_readable() {
            return Err(format!("line {}: its copy is {copy:?}", line.0));
        }
        if (entry.flags & HELD != 0) != (self.holds.count(line) > 0) {
            return Err(format!("line {}: held by {}", line.0, self.holds.count(line)));
        }
        if (entry.flags & PINNED != 0) != self.pins.end(line).is_some() {
            return Err(format!("line {}: its pin ends at {:?}", line.0, self.pins.end(line)));
        }
        let may_go = entry.flags & (HELD | PINNED) == 0 && self.tree.is_dram_leaf(&self.kept, line);
        if may_go && copy != Copy::Moving && !self.policy.is_linked(&self.kept, line) {
            return Err(format!("line {}: it may go and nothing will ever choose it", line.0));
        }
        Ok(())
    }

    fn audit_lists(&self, lines: &BTreeMap<SlotId, LineId>) -> Result<(), String> {
        let mut linked = BTreeSet::new();
        for shelf in self.memory.shelves() {
            for line in self.policy.audit(&self.kept, shelf)? {
                let live = self.kept.live(line).ok_or(format!("line {} is in a list and free", line.0))?;
                if self.shelf_of(line, &live) != Some(shelf) || !linked.insert(line) {
                    return Err(format!("line {} is in a list that is not its own", line.0));
                }
            }
        }
        let marked = lines.values().filter(|&&line| self.policy.is_linked(&self.kept, line)).count();
        if marked != linked.len() {
            return Err(format!("{marked} lines marked as listed, {} in lists", linked.len()));
        }
        Ok(())
    }

    /// Every hold has a holder.
    fn audit_holds(&self) -> Result<(), String> {
        let mut counts: BTreeMap<LineId, u32> = BTreeMap::new();
        let of_gots =
            self.clients.values().flat_map(|client| client.gots.iter().flat_map(|got| got.held.iter().copied()));
        let of_reservations = self.reservations.values().filter_map(|reservation| reservation.held());
        for held in of_gots.chain(of_reservations).chain(self.puts.held()).chain(self.gets.held()) {
            if self.holds.life(held.line) == Some(held.life) {
                *counts.entry(held.line).or_insert(0) += 1;
            }
        }
        match counts.iter().find(|&(&line, &count)| self.holds.count(line) != count) {
            Some((line, count)) => {
                Err(format!("line {}: {count} holders, {} counted", line.0, self.holds.count(*line)))
            }
            None if counts.len() != self.holds.len() => Err("a line is held by nobody".into()),
            None => Ok(()),
        }
    }

    fn audit_clients(&self) -> Result<(), String> {
        let (mut filling, mut reserved) = (BTreeMap::new(), BTreeMap::new());
        let in_magazines: u64 = self.clients.values().map(|client| client.magazine_units).sum();
        if in_magazines != self.magazine_units {
            return Err(format!("{in_magazines} units in magazines, {} counted", self.magazine_units));
        }
        let mut short = self.puts.units_short(|shelf| u64::from(self.memory.of(shelf).stride));
        for named in self.clients.values().flat_map(|client| client.gpu_grants.values().flatten()) {
            *filling.entry((named.pool, named.key)).or_insert(0) += 1;
            *reserved.entry(named.reservation).or_insert(0) += 1;
        }
        for (id, client) in &self.clients {
            let (mut units, mut units_reserved) = (0, short.remove(id).unwrap_or(0));
            for (&slot, grant) in &client.grants {
                match grant.named {
                    Some(named) => {
                        *filling.entry((named.pool, named.key)).or_insert(0) += 1;
                        *reserved.entry(named.reservation).or_insert(0) += 1;
                        units_reserved += u64::from(self.slot_units(slot).unwrap_or(0));
                    }
                    None => units += u64::from(self.slot_units(slot).unwrap_or(0)),
                }
            }
            if (units, units_reserved) != (client.magazine_units, client.reserved_units) {
                return Err(format!(
                    "client {}: {units} units in its magazine, {units_reserved} reserved, counted {} and {}",
                    id.0, client.magazine_units, client.reserved_units
                ));
            }
        }
        let counted: BTreeMap<_, _> = self.filling.iter().map(|(&key, &count)| (key, count)).collect();
        let left: BTreeMap<u64, u32> = self.reservations.iter().map(|(&id, of)| (id, of.slots_left())).collect();
        if counted != filling || left != reserved || self.pins.len() > self.counts.blocks as usize {
            return Err("reserved keys are counted wrongly".into());
        }
        Ok(())
    }
}
