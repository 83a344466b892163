//! A GPU that is lost takes its copies out, and nothing else: a block that was nowhere else goes with what hangs on it.

use lapis_config::{GpuId, LineId, Time};

use super::Core;
use crate::{
    core::fetch::Came,
    kept::{Kept, Place, Tier},
    policy::Policy,
};

impl<K: Kept, P: Policy> Core<K, P> {
    /// The GPU is gone, or what was in its memory: copies of blocks, slots of clients. It may be added again.
    pub fn gpu_lost(&mut self, now: Time, gpu: GpuId) {
        self.clock(now);
        let Some(own) = self.hbm.gpus.remove(&gpu) else { return };
        own.memory.slabs().for_each(|found| self.kept.forget_device_slab(gpu, &found.slab));
        own.wanted.iter().for_each(|wanted| self.hbm.unqueue(wanted));
        let copies = self.hbm.copies.iter().filter(|(_, copy)| copy.gpu == gpu);
        let mut lines: Vec<LineId> = copies.map(|(&line, _)| line).collect();
        lines.sort_unstable();
        let mut gone = Vec::new();
        for &line in &lines {
            let was_readable = self.is_on_gpu(line);
            // Also one that is being filled: its operation is nobody's.
            self.leave_gpu(line);
            if was_readable && !self.in_dram(line) {
                gone.push(line);
            }
        }
        if self.hbm.gpus.is_empty() {
            self.hbm.read.clear();
        }
        self.end_grants_on(gpu);
        for (op, line) in self.coming_from(gpu) {
            if self.ssd.fetching.get(&line) == Some(&op) {
                self.orphan_fetch(line);
                self.fetch_ended(line, Came::Not);
                // Its copy may have gone before, and what was on SSD since.
                gone.push(line);
            }
        }
        for line in gone {
            // It may have gone with one that it hung on. What waits in DRAM for its sum goes too: no restart would find it.
            let Some(live) = self.kept.live(line).filter(|_| !self.in_dram(line) && !self.is_on_gpu(line)) else {
                continue;
            };
            if self.kept.entry(line).ssd == 0 {
                self.counts.hbm_lost += self.drop_subtree(line);
            } else if live.place.tier == Tier::Hbm {
                self.rebind(line, Place { tier: Tier::Elsewhere, ..live.place });
            }
        }
        self.settle();
        self.stirred = true;
        self.run();
    }
}
