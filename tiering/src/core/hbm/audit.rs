//! What must hold of copies on GPUs between two calls.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use lapis_config::{ClientId, GpuId, LineId, SlotId, UNIT_BYTES};

use super::{Core, Gpu, GpuCounts, OnGpu, Op};
use crate::{
    kept::{DevicePlace, Kept, SlotState, Tier},
    policy::Policy,
};

impl<K: Kept, P: Policy> Core<K, P> {
    /// Slots, copies, the device table and operations agree; the first thing found wrong.
    pub(in crate::core) fn audit_gpus(&self) -> Result<(), String> {
        for (&gpu, own) in &self.hbm.gpus {
            own.memory.audit().map_err(|wrong| format!("GPU {}: {wrong}", gpu.0))?;
            self.audit_gpu_slots(gpu, own)?;
            self.audit_gpu_order(gpu, own)?;
        }
        for line in (0..self.kept.lines()).map(LineId) {
            self.audit_copy(line)?;
        }
        self.audit_queues()?;
        self.audit_copies_under_way()
    }

    /// What waits to be copied to a GPU, or to DRAM, waits once, and nothing waits of what is gone.
    fn audit_queues(&self) -> Result<(), String> {
        let queued: usize = self.hbm.gpus.values().map(|own| own.wanted.len()).sum();
        let own = |(turn, line): (&u64, &LineId)| self.hbm.copies.get(line).is_some_and(|copy| copy.turn == *turn);
        let with_turn = self.hbm.copies.values().filter(|copy| copy.turn != 0).count();
        if queued != self.hbm.queued.len() || with_turn != self.hbm.unsaved.len() || !self.hbm.unsaved.iter().all(own) {
            return Err(format!("{queued} blocks wanted on GPUs and {with_turn} to be saved are queued wrongly"));
        }
        Ok(())
    }

    /// Every slot in exactly one state, and counted.
    fn audit_gpu_slots(&self, gpu: GpuId, own: &Gpu) -> Result<(), String> {
        let granted: BTreeMap<SlotId, ClientId> = self
            .clients
            .iter()
            .flat_map(|(&id, client)| client.gpu_grants.keys().map(move |&at| (at, id)))
            .filter(|((of, _), _)| *of == gpu)
            .map(|((_, slot), id)| (slot, id))
            .collect();
        let filling: BTreeSet<SlotId> = self
            .ops
            .values()
            .filter_map(|op| match *op {
                Op::CopyOut { gpu: of, life, slot, .. } if of == gpu && life == own.life => Some(slot),
                _ => None,
            })
            .collect();
        let (mut counts, mut left) = (GpuCounts::default(), 0);
        for found in own.memory.slabs() {
            let mut used = 0;
            for index in 0..found.slab.slots() {
                let (slot, state) = (found.slab.slot(index), self.kept.device_slot_state(gpu, &found.slab, index));
                let count = match state {
                    SlotState::Free => &mut counts.slots_free,
                    SlotState::Used(_) => &mut counts.blocks,
                    SlotState::Granted(_) => &mut counts.slots_granted,
                    SlotState::IoIn if filling.contains(&slot) => &mut counts.slots_busy,
                    SlotState::Aside if own.left.contains(&slot) => &mut counts.slots_busy,
                    SlotState::IoIn | SlotState::Aside => &mut counts.slots_aside,
                };
                *count += 1;
                left += usize::from(own.left.contains(&slot));
                let right = match state {
                    SlotState::Free | SlotState::IoIn => true,
                    SlotState::Used(line) => {
                        used += 1;
                        let live = self.kept.live(line);
                        self.hbm.readable(line).is_some_and(|copy| (copy.gpu, copy.slot) == (gpu, slot))
                            && live.is_some_and(|live| live.pool == found.slab.pool)
                    }
                    SlotState::Granted(id) => granted.get(&slot) == Some(&id),
                    SlotState::Aside => own.left.contains(&slot) || own.aside.contains(&slot),
                };
                if !right || (state == SlotState::Free) != found.is_free(index) {
                    return Err(format!("slot {} of GPU {} is {state:?}, which nothing agrees with", slot.0, gpu.0));
                }
            }
            if used != found.used {
                return Err(format!("GPU {}: slab at {}: {used} slots used", gpu.0, found.slab.base.0));
            }
            counts.bytes_used += u64::from(used * found.slab.stride) * UNIT_BYTES;
        }
        let whole = own.limbo.is_empty() && left == own.left.len() && granted.len() as u64 == counts.slots_granted;
        if counts != own.counts || !whole {
            return Err(format!("GPU {}: counted {:?}, found {counts:?}", gpu.0, own.counts));
        }
        Ok(())
    }

    /// Readable copies are in the order of their shelf, and nothing else is.
    fn audit_gpu_order(&self, gpu: GpuId, own: &Gpu) -> Result<(), String> {
        let listed: usize = own.order.iter().map(BTreeSet::len).sum();
        let readable = self.hbm.copies.values().filter(|copy| copy.gpu == gpu && copy.state.is_readable()).count();
        for (shelf, order) in own.memory.shelves().zip(&own.order) {
            for &(last_use, Reverse(id), line) in order {
                let copy = self.hbm.readable(line).filter(|copy| (copy.last_use, copy.id) == (last_use, id));
                let here = copy.filter(|copy| copy.gpu == gpu).and_then(|copy| own.memory.locate(copy.slot));
                if here.is_none_or(|(found, _)| found.shelf != shelf) {
                    return Err(format!("line {} is in an order of GPU {} that is not its own", line.0, gpu.0));
                }
            }
        }
        if listed != readable {
            return Err(format!("GPU {}: {readable} copies, {listed} in order", gpu.0));
        }
        Ok(())
    }

    /// What the device table says of a line, and the line of the tier.
    fn audit_copy(&self, line: LineId) -> Result<(), String> {
        let (live, shown, copy) = (self.kept.live(line), self.kept.device(line), self.hbm.copies.get(&line));
        let expected = self.hbm.readable(line).map(|copy| {
            let units = self.gpu_slot_units(copy.gpu, copy.slot).unwrap_or(0);
            DevicePlace { gpu: copy.gpu, slot: copy.slot, units }
        });
        let says = live.is_some_and(|live| live.place.tier == Tier::Hbm);
        let is_there = live.is_some() && expected.is_some() && !self.in_dram(line);
        if shown != expected || says != is_there || (live.is_none() && copy.is_some()) {
            return Err(format!("line {}: {live:?} has {copy:?}, and the device table says {shown:?}", line.0));
        }
        // Only what is being copied back for it.
        if copy.is_some_and(|copy| copy.state == OnGpu::Leaving) && !self.ssd.fetching.contains_key(&line) {
            return Err(format!("line {}: its copy leaves, and is not copied back", line.0));
        }
        Ok(())
    }

    /// Operations are counted where what they read is to stay.
    fn audit_copies_under_way(&self) -> Result<(), String> {
        let (mut reads, mut sources) = (BTreeMap::new(), BTreeMap::new());
        let (mut flights, mut filling) = (BTreeMap::<GpuId, (u64, u64)>::new(), BTreeSet::new());
        let here = |gpu: GpuId, life: u32| self.hbm.gpus.get(&gpu).is_some_and(|own| own.life == life);
        for op in self.ops.values() {
            match *op {
                Op::CopyOut { line, gpu, life, from, bytes, .. } => {
                    *sources.entry(from).or_insert(0) += 1;
                    filling.extend(line);
                    if here(gpu, life) {
                        flights.entry(gpu).or_default().0 += u64::from(bytes);
                    }
                }
                Op::CopyIn { gpu, life, from, pages, .. } if here(gpu, life) => {
                    *reads.entry((gpu, from)).or_insert(0) += 1;
                    flights.entry(gpu).or_default().1 += u64::from(pages);
                }
                _ => {}
            }
        }
        let under_way =
            |(gpu, own): (&GpuId, &Gpu)| (own.out_bytes, own.in_pages) == flights.get(gpu).copied().unwrap_or_default();
        if !self.hbm.gpus.iter().all(under_way) {
            return Err("bytes under way to or from a GPU are counted wrongly".into());
        }
        let counted: BTreeMap<(GpuId, SlotId), u32> = self
            .hbm
            .gpus
            .iter()
            .flat_map(|(&gpu, own)| own.reads.iter().map(move |(&slot, &count)| ((gpu, slot), count)))
            .collect();
        let states = self.hbm.copies.iter().filter(|(_, copy)| copy.state == OnGpu::Filling);
        let marked: BTreeSet<LineId> = states.map(|(&line, _)| line).collect();
        if (reads, sources, filling) != (counted, self.hbm.sources.clone(), marked) {
            return Err("copies under way to or from GPUs are counted wrongly".into());
        }
        let free = |(gpu, slot): (&GpuId, &SlotId)| {
            let own = &self.hbm.gpus[gpu];
            own.memory.locate(*slot).is_none_or(|(found, index)| found.is_free(index))
        };
        let read = self.hbm.gpus.iter().flat_map(|(gpu, own)| own.reads.keys().map(move |slot| (gpu, slot)));
        match read.into_iter().find(|&at| free(at)) {
            Some((gpu, slot)) => Err(format!("slot {} of GPU {} is free while it is read", slot.0, gpu.0)),
            None => Ok(()),
        }
    }
}
