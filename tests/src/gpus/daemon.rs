//! The daemon of the world of GPUs: carries out the core's actions, is killed and starts anew.

use lapis_arena::hbm::CopyJob;
use lapis_config::{Fingerprint, GpuId, LineId, OpId, PoolKind, SlotId, Time, UNIT_BYTES};
use lapis_tiering::{
    Chosen, Core, CoreOptions, PlainKept, PoolDef,
    face::{Action, Outcome, Spot},
    kept::{Kept, SlotState},
};

use super::{BLOCK_BYTES, BLOCK_UNITS, DRAM_BLOCKS, LIFE_SHIFT, POOL, Slice, World, sum};

const LINES: u32 = 256;
const GHOST_BYTES: u64 = 1024;

/// What the daemon's threads have yet to tell the core.
pub enum Soon {
    Verified(OpId, SlotId, u64),
    Summed(OpId, SlotId),
    /// A GPU was found to be lost.
    Lost(GpuId),
}

fn options() -> CoreOptions {
    CoreOptions { hbm_promote_bytes_max: 6 * u64::from(BLOCK_BYTES), slab_units_min: 8, ..CoreOptions::default() }
}

fn furnish(core: &mut Core<PlainKept, Chosen>) {
    let (namespace, block_bytes) = (Fingerprint::default(), u64::from(BLOCK_BYTES));
    let def = PoolDef { namespace, kind: PoolKind::Chain, block_bytes, slot_units: BLOCK_UNITS, pieces: 1 };
    core.pool_added(POOL, def);
    core.extent_added(DRAM_BLOCKS * block_bytes);
}

impl World {
    pub(super) fn start_cold(&mut self) {
        let mut core = Core::new(PlainKept::new(LINES), Chosen::new(self.policy, GHOST_BYTES), options());
        furnish(&mut core);
        core.populated(0, DRAM_BLOCKS * u64::from(BLOCK_BYTES));
        for (&gpu, slice) in &mut self.gpus {
            assert!(core.gpu_added(self.now, gpu, Self::gpu_bytes(gpu)), "it is not there yet");
            *slice = Slice::There;
        }
        self.core = Some(core);
        self.connect();
        self.connect();
    }

    /// Does what the core wants, and tells it what is known now.
    pub(super) fn turn_daemon(&mut self) -> Result<(), String> {
        let now = self.now;
        if self.core().poll_timeout().is_some_and(|at| at <= now) {
            self.core().tick(now);
        }
        self.perform()?;
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.soon).into_iter().partition(|(at, _)| *at <= now);
        self.soon = later;
        for (_, soon) in due {
            self.came(soon);
            self.perform()?;
        }
        Ok(())
    }

    fn came(&mut self, soon: Soon) {
        let now = self.now;
        match soon {
            Soon::Verified(op, slot, expected) => {
                let found = sum(&self.block_in_dram(slot));
                let outcome = if found == expected { Outcome::Ok } else { Outcome::Corrupt };
                self.core().completed(now, op, outcome);
            }
            Soon::Summed(op, slot) => {
                let found = (self.rng.u32(..20) > 0).then(|| sum(&self.block_in_dram(slot)));
                self.core().summed(now, op, found);
            }
            Soon::Lost(gpu) => {
                self.gpus.insert(gpu, Slice::Away);
                self.tally.losses += 1;
                self.core().gpu_lost(now, gpu);
            }
        }
    }

    fn block_in_dram(&self, slot: SlotId) -> Vec<u8> {
        self.dram.to_vec(slot.offset_bytes() as usize, BLOCK_BYTES as usize)
    }

    pub(super) fn perform(&mut self) -> Result<(), String> {
        while let Some(action) = self.core().poll_action() {
            let after = |world: &mut Self| Time(world.now.0 + world.rng.u64(..2_000));
            match action {
                Action::Reply { to, reply } => self.answered(to, reply)?,
                Action::Copy { op, from, to, bytes } => {
                    self.note(op.0 << 1);
                    let op = self.life << LIFE_SHIFT | op.0;
                    let (from, to) = (spot(from), spot(to));
                    self.submit(CopyJob { op, from, to, bytes: bytes.into() });
                }
                Action::Sum { op, slot, .. } => {
                    let at = after(self);
                    self.soon.push((at, Soon::Summed(op, slot)));
                }
                Action::Verify { op, slot, sum, .. } => {
                    let at = after(self);
                    self.soon.push((at, Soon::Verified(op, slot, sum)));
                }
                Action::NeedMemory | Action::Recall { .. } => {}
                other => return Err(format!("a core without devices wants {other:?}")),
            }
        }
        Ok(())
    }

    pub(super) fn copy_ended(&mut self, op: u64, ok: bool) {
        let now = self.now;
        self.core().completed(now, OpId(op), if ok { Outcome::Ok } else { Outcome::Failed });
    }

    // ---- GPUs that go and come ----

    /// Whoever finds a GPU lost tells the daemon, in a while.
    pub(super) fn is_dying(&mut self, gpu: GpuId) {
        if self.gpus.get(&gpu) == Some(&Slice::There) {
            self.gpus.insert(gpu, Slice::Dying);
            let at = Time(self.now.0 + self.rng.u64(..5_000));
            self.soon.push((at, Soon::Lost(gpu)));
        }
    }

    pub(super) fn lose_gpu(&mut self) {
        let gpu = GpuId(self.rng.u8(..2));
        if self.gpus.get(&gpu) == Some(&Slice::There) {
            self.copier.lose(gpu.0.into());
            self.is_dying(gpu);
        }
    }

    pub(super) fn bring_gpu_back(&mut self) {
        let away = self.gpus.iter().find(|(_, slice)| **slice == Slice::Away).map(|(&gpu, _)| gpu);
        // Who has it mapped finds out first: what is on its way there fails.
        let Some(gpu) = away.filter(|gpu| !self.is_in_use(*gpu)) else { return };
        self.copier.bring_back(gpu.0.into()).expect("memory for a test");
        let now = self.now;
        assert!(self.core().gpu_added(now, gpu, Self::gpu_bytes(gpu)), "it was lost before");
        self.gpus.insert(gpu, Slice::There);
        self.tally.returns += 1;
    }

    // ---- Death and a new start ----

    /// SIGKILL, and another daemon takes over. Copies of the dead one end or not, whenever; some GPUs' memory ends with it.
    pub(super) fn kill_daemon(&mut self) -> Result<(), String> {
        self.tally.kills += 1;
        self.life += 1;
        self.soon.clear();
        self.calls.clear();
        let core = self.core.take().expect("a daemon between two turns");
        let counts = core.counts();
        self.tell(&counts);
        let mut kept = core.into_kept();
        kept.restart();
        // What the dead daemon had not handed over yet never begins.
        self.queue.retain(|job| job.op >= super::CLIENTS_JOB);
        let gpus: Vec<GpuId> = self.gpus.keys().copied().collect();
        for gpu in gpus {
            match self.gpus[&gpu] {
                // Its memory could not be kept, or was found lost by nobody.
                Slice::Dying => drop(self.gpus.insert(gpu, Slice::Away)),
                Slice::There if self.rng.u32(..4) == 0 => {
                    self.copier.lose(gpu.0.into());
                    self.gpus.insert(gpu, Slice::Away);
                }
                _ => {}
            }
        }
        let (slabs, gpu_slabs): (Vec<_>, Vec<_>) =
            (kept.slabs().copied().collect(), kept.gpu_slabs().map(|(gpu, slab)| (gpu, *slab)).collect());
        let mut core = Core::adopt(kept, Chosen::new(self.policy, GHOST_BYTES), options());
        furnish(&mut core);
        slabs.into_iter().for_each(|slab| core.adopt_slab(slab));
        for (&gpu, _) in self.gpus.iter().filter(|(_, slice)| **slice == Slice::There) {
            assert!(core.gpu_added(self.now, gpu, Self::gpu_bytes(gpu)));
        }
        gpu_slabs.into_iter().for_each(|(gpu, slab)| core.adopt_gpu_slab(gpu, slab));
        self.processes.iter().for_each(|process| core.adopt_client(process.id, true));
        for line in (0..core.kept().lines()).map(LineId) {
            if let Some(live) = core.kept().live(line) {
                core.adopt_line(line, live);
            }
        }
        core.adopt_done(self.now);
        core.populated(0, DRAM_BLOCKS * u64::from(BLOCK_BYTES));
        self.core = Some(core);
        self.resume_all();
        self.core().audit()?;
        self.judge()
    }

    // ---- What a look at all slots finds ----

    pub(super) fn io_in_dram(&mut self) -> u64 {
        let kept = self.core().kept();
        let states = kept.slabs().flat_map(|slab| (0..slab.slots()).map(|index| kept.slot_state(slab, index)));
        states.filter(|&state| state == SlotState::IoIn).count() as u64
    }

    pub(super) fn io_in_on(&mut self, gpu: GpuId) -> u64 {
        let kept = self.core().kept();
        let slabs = kept.gpu_slabs().filter(|(of, _)| *of == gpu);
        let states =
            slabs.flat_map(|(_, slab)| (0..slab.slots()).map(|index| kept.device_slot_state(gpu, slab, index)));
        states.filter(|&state| state == SlotState::IoIn).count() as u64
    }
}

fn spot(spot: Spot) -> lapis_arena::hbm::Spot {
    match spot {
        Spot::Dram(slot) => World::dram_spot(slot),
        Spot::Hbm(gpu, slot) => World::gpu_spot(gpu, slot),
    }
}

const _: () = assert!(BLOCK_BYTES as u64 == BLOCK_UNITS as u64 * UNIT_BYTES);
