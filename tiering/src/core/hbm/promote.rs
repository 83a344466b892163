//! Promotion to a GPU: blocks that are read into its memory again and again get a copy there.
//!
//! A block is wanted when a client reads it into a GPU from DRAM and one did so before, in another tenth of a second: what
//! is read once stays where it is. It comes only into a free slot or that of a colder copy.
//!
//! Each GPU has a queue and a bound of its own: one that hangs holds no other up.

use lapis_config::{GpuId, LineId, OpId, SlotId, Time};

use super::{GpuCopy, Hbm, room::Warmth};
use crate::{
    core::{Core, Op},
    face::{Action, Outcome, Spot},
    hbm::GpuStep,
    kept::{Kept, SlotState, Tier},
    policy::{Policy, Shelf, tenths},
};

/// Blocks that may wait to be copied to a GPU; more are not.
const WANTED_MAX: usize = 16 * 1024;

/// A block that is to be copied to a GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    line: LineId,
    generation: u64,
}

impl Hbm {
    /// The block does not wait to be copied any more.
    pub(super) fn unqueue(&mut self, wanted: &Wanted) {
        self.queued.remove(&wanted.line);
    }
}

/// The tenth of a second as `Hbm::read` has it. It recurs after 25 s: two reads of one stamp count as one then, which
/// delays a promotion.
fn stamp(now: Time) -> u8 {
    (tenths(now) % 255) as u8 + 1
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// As `touched`, and the bytes went to the memory of a GPU: `hit` blocks up to the line.
    pub fn read_into(&mut self, now: Time, gpu: GpuId, line: LineId, bind_low: u32, hit: u32) {
        self.clock(now);
        if self.adopting.is_none() && self.hbm.gpus.contains_key(&gpu) && self.is_still(line, bind_low) {
            self.note_reads(gpu, line, hit);
        }
        self.touched(now, line, bind_low, hit, hit);
    }

    /// These blocks are to have copies on the GPU, the first one first. What has one, or is not in DRAM, is left out.
    pub fn hbm_wanted(&mut self, now: Time, gpu: GpuId, lines: &[LineId]) {
        self.clock(now);
        if self.adopting.is_none() && self.hbm.gpus.contains_key(&gpu) {
            lines.iter().for_each(|&line| self.want(gpu, line));
        }
    }

    /// What was read into a GPU in this tenth of a second was noted then, and all above it.
    fn note_reads(&mut self, gpu: GpuId, line: LineId, hit: u32) {
        let (mut at, mut again, now) = (line, Vec::new(), stamp(self.now));
        for _ in 0..hit.min(lapis_config::BATCH_KEYS_MAX as u32) {
            let before = std::mem::replace(&mut self.hbm.read[at.0 as usize], now);
            if before == now {
                break;
            }
            if before != 0 {
                again.push(at);
            }
            at = LineId(self.kept.entry(at).parent);
            if !at.is_some() {
                break;
            }
        }
        // The root first: a chain without its beginning serves nothing.
        again.into_iter().rev().for_each(|line| self.want(gpu, line));
    }

    fn want(&mut self, gpu: GpuId, line: LineId) {
        let Some(live) = Some(line).filter(|line| line.0 < self.kept.lines()).and_then(|line| self.kept.live(line))
        else {
            return;
        };
        // Nobody on the GPU checks sums: what was not verified yet does not come there.
        let may = live.place.tier == Tier::Dram && !self.hbm.copies.contains_key(&line);
        let full = self.hbm.gpu(gpu).wanted.len() >= WANTED_MAX;
        if may && !full && self.hbm.queued.insert(line, ()).is_none() {
            self.hbm.gpu(gpu).wanted.push_back(Wanted { line, generation: live.generation });
        }
    }

    /// Begins copies to and from GPUs, as far as there is room and not too many are under way.
    pub(in crate::core) fn pump_gpus(&mut self) {
        if self.hbm.gpus.is_empty() || self.adopting.is_some() {
            return;
        }
        self.save_puts();
        let waiting = self.hbm.gpus.iter().filter(|(_, own)| !own.wanted.is_empty());
        let gpus: Vec<GpuId> = waiting.map(|(&gpu, _)| gpu).collect();
        gpus.into_iter().for_each(|gpu| self.pump_wanted(gpu));
        self.settle_gpus();
    }

    fn pump_wanted(&mut self, gpu: GpuId) {
        // The warmest of each size that found no room: for a colder one there is none either.
        let mut full: Vec<(Shelf, Warmth)> = Vec::new();
        while let Some(&wanted) = self.hbm.gpu(gpu).wanted.front() {
            let Wanted { line, generation } = wanted;
            let live = self.kept.live(line).filter(|live| live.generation == generation);
            let may = !self.draining && !self.hbm.copies.contains_key(&line);
            if let Some(live) = live.filter(|live| may && live.place.tier == Tier::Dram) {
                let bytes = u64::from(self.copied_bytes(&live));
                let out = self.hbm.gpu(gpu).out_bytes;
                if out > 0 && out + bytes > self.options.hbm_promote_bytes_max {
                    break;
                }
                let (shelf, warmth) = (self.gpu_shelf(gpu, live.pool, self.pages_of(&live)), self.warmth(line));
                let in_vain = full.iter().any(|&(of, than)| of == shelf && warmth <= than);
                if !in_vain && !self.promote(line, gpu, shelf) {
                    full.push((shelf, warmth));
                }
            }
            self.hbm.gpu(gpu).wanted.pop_front();
            self.hbm.unqueue(&wanted);
        }
    }

    /// Begins to copy a block to a GPU, if there is a slot or a colder copy; false if there is neither.
    fn promote(&mut self, line: LineId, gpu: GpuId, shelf: Shelf) -> bool {
        let live = self.kept.live(line).expect("looked up by the caller");
        let bytes = self.copied_bytes(&live);
        let count = self.hbm.gpu(gpu).wanted.len() as u32;
        let Some((slab, index)) = self.slot_on_gpu(gpu, shelf, count, Some(line)) else { return false };
        // What was copied back to make room took room in DRAM: perhaps this block's.
        if self.kept.live(line).is_none_or(|now| now.generation != live.generation) {
            self.hbm.gpu(gpu).memory.give(slab.slot(index));
            return true;
        }
        self.kept.set_device_slot_state(gpu, &slab, index, SlotState::IoIn);
        let (from, slot) = (live.place.slot, slab.slot(index));
        let mut copy = GpuCopy { has_tail: true, ..GpuCopy::new(gpu, slot, self.hbm.next_id()) };
        copy.state.step(GpuStep::Fill);
        self.hbm.copies.insert(line, copy);
        let own = self.hbm.gpu(gpu);
        own.counts.slots_free -= 1;
        own.counts.slots_busy += 1;
        own.out_bytes += u64::from(bytes);
        let life = own.life;
        *self.hbm.sources.entry(from).or_insert(0) += 1;
        let op = self.begin(Op::CopyOut { line: Some(line), gpu, life, from, slot, bytes, is_stray: false });
        self.actions.push_back(Action::Copy { op, from: Spot::Dram(from), to: Spot::Hbm(gpu, slot), bytes });
        true
    }

    /// A block leaves its slot in DRAM, from which copies to GPUs may be under way: the slot is theirs until they end.
    pub(in crate::core) fn stray_fills(&mut self, from: SlotId) {
        if !self.hbm.sources.contains_key(&from) {
            return;
        }
        let mut count = 0;
        for op in self.ops.values_mut() {
            if let Op::CopyOut { from: of, is_stray, .. } = op
                && *of == from
                && !std::mem::replace(is_stray, true)
            {
                count += 1;
            }
        }
        self.ssd.strays.entry(from).or_default().writes += count;
    }

    pub(in crate::core) fn fill_ended(&mut self, op: Op, outcome: Outcome) {
        let Op::CopyOut { line, gpu, life, from, slot, bytes, is_stray } = op else { unreachable!("called for one") };
        let reads = self.hbm.sources.get_mut(&from).expect("counted when it began");
        *reads -= 1;
        if *reads == 0 {
            self.hbm.sources.remove(&from);
        }
        if is_stray {
            self.stray_ended(from);
        }
        let Some(own) = self.hbm.same_gpu(gpu, life) else { return };
        own.out_bytes -= u64::from(bytes);
        own.counts.slots_busy -= 1;
        let Some(line) = line else { return self.give_on_gpu(gpu, slot) };
        if outcome != Outcome::Ok {
            self.counts.hbm_copies_failed += 1;
            self.hbm.copies.remove(&line).expect("it was being filled").state.step(GpuStep::FillFailed);
            return self.give_on_gpu(gpu, slot);
        }
        self.counts.hbm_promotions += 1;
        self.copy_is_there(line, gpu, slot, GpuStep::Filled);
        if !self.in_dram(line) {
            // It left DRAM meanwhile, and is on SSD.
            let place = self.kept.live(line).expect("a copy's line is live").place;
            self.rebind(line, crate::kept::Place { tier: Tier::Hbm, ..place });
        }
    }

    /// Blocks that are being copied from a GPU.
    pub(super) fn coming_from(&self, gpu: GpuId) -> Vec<(OpId, LineId)> {
        let coming = |(&op, what): (&OpId, &Op)| match *what {
            Op::CopyIn { gpu: of, line: Some(line), .. } if of == gpu => Some((op, line)),
            _ => None,
        };
        self.ops.iter().filter_map(coming).collect()
    }
}
