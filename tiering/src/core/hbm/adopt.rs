//! What a former daemon left on GPUs whose memory was kept: slabs are told after their GPU and before all lines. A copy is
//! believed if the device table names it with its line's generation and its slot fits; others are forgotten.

use lapis_config::{ClientId, GpuId, LineId, SlotId};

use super::{Core, GpuStep};
use crate::{
    core::clients::Client,
    kept::{Kept, Live, Slab, SlotState},
    policy::Policy,
};

impl<K: Kept, P: Policy> Core<K, P> {
    /// A slab of the former daemon on a GPU that was added. One that does not fit is forgotten.
    pub fn adopt_gpu_slab(&mut self, gpu: GpuId, slab: Slab) {
        let known = self.pools.get(&slab.pool).is_some_and(|pool| slab.stride <= pool.def.slot_units);
        let fits = |own: &mut super::Gpu| known && own.memory.adopt(slab);
        if !self.hbm.gpus.get_mut(&gpu).is_some_and(fits) {
            self.kept.forget_device_slab(gpu, &slab);
            return;
        }
        self.gpu_shelf(gpu, slab.pool, slab.stride);
        self.hbm.gpu(gpu).counts.slots_free += u64::from(slab.slots());
    }

    /// Takes over the copy that the device table names for a line. False if there is none that is believed.
    pub(in crate::core) fn adopt_copy(&mut self, line: LineId, live: &Live) -> bool {
        let Some(place) = self.kept.device(line) else { return false };
        let found = self.hbm.gpus.get(&place.gpu).and_then(|own| own.memory.locate(place.slot));
        let fits = found.filter(|(found, index)| {
            found.slab.pool == live.pool
                && found.is_free(*index)
                && self.pages_of(live) == found.slab.stride
                && self.kept.device_slot_state(place.gpu, &found.slab, *index) == SlotState::Used(line)
        });
        let Some((slab, index)) = fits.map(|(found, index)| (found.slab, index)) else {
            self.kept.set_device(line, None);
            return false;
        };
        let own = self.hbm.gpu(place.gpu);
        own.memory.take_at(slab.base.0, index);
        own.counts.slots_free -= 1;
        self.copy_is_there(line, place.gpu, place.slot, GpuStep::Adopt);
        true
    }

    /// A line that nobody took over goes, with its place in the device table.
    pub(in crate::core) fn forget_line(&mut self, line: LineId) {
        if self.kept.keeps_devices() {
            self.kept.set_device(line, None);
        }
        self.kept.unpublish(line);
    }

    /// Slots on GPUs in no line: granted ones stay with their clients, ones that a copy may write stay aside, others are
    /// free once no reader names them. What was put and has no sum yet is to get one.
    pub(in crate::core) fn adopt_slots_on_gpus(&mut self) {
        let gpus: Vec<GpuId> = self.hbm.gpus.keys().copied().collect();
        for gpu in gpus {
            // What no slab was adopted in is free from now on.
            let own = self.hbm.gpu(gpu);
            own.memory.buddy.populated(0, own.units);
            let slabs: Vec<Slab> = self.hbm.gpus[&gpu].memory.slabs().map(|found| found.slab).collect();
            for slab in slabs {
                for index in 0..slab.slots() {
                    if self.hbm.gpus[&gpu].memory.slab(slab.base.0).is_free(index) {
                        self.adopt_slot_on_gpu(gpu, &slab, index);
                    }
                }
            }
            self.settle_gpu(gpu);
        }
        for line in self.lines_on_gpus() {
            if self.is_only_on_gpu(line) && self.kept.live(line).is_some_and(|live| live.place.sum == 0) {
                self.save_later(line);
            }
        }
    }

    fn adopt_slot_on_gpu(&mut self, gpu: GpuId, slab: &Slab, index: u32) {
        let (state, slot) = (self.kept.device_slot_state(gpu, slab, index), slab.slot(index));
        if state == SlotState::Free {
            return;
        }
        let now = self.now;
        let own = self.hbm.gpu(gpu);
        own.memory.take_at(slab.base.0, index);
        own.counts.slots_free -= 1;
        match state {
            SlotState::Granted(id) => {
                own.counts.slots_granted += 1;
                self.clients.entry(id).or_insert_with(|| Client::new(false, false, now));
                self.grant_on_gpu(id, gpu, slot, None);
            }
            SlotState::IoIn => own.counts.slots_aside += 1,
            SlotState::Used(_) | SlotState::Aside | SlotState::Free => own.limbo.push(slot),
        }
    }

    /// Clients that came back while lines were told.
    pub(in crate::core) fn resume_on_gpus(&mut self, resumed: Vec<(ClientId, Vec<(GpuId, SlotId)>)>) {
        for (id, writing) in resumed {
            self.client_resumed_on_gpus(id, &writing);
        }
    }
}
