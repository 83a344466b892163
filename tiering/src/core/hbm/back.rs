//! From a GPU to DRAM: for gets of hosts, for what clients put on a GPU, and before the only copy goes.

use lapis_config::{GpuId, LineId, OpId, SlotId, Time};

use super::{Core, OnGpu};
use crate::{
    copies::{Step, step_dram},
    core::{
        Op,
        fetch::{Came, Want},
    },
    face::{Action, Outcome, Spot},
    hbm::GpuStep,
    kept::Kept,
    policy::Policy,
};

/// How long nothing is copied back unasked after one such copy failed, us: as long as memory of the host is not registered
/// with the driver all of them fail at once.
const SAVE_PAUSE_US: u64 = 10_000;

impl<K: Kept, P: Policy> Core<K, P> {
    /// Copies a block that is not in DRAM into this slot there, from its copy on a GPU, if it has one. False if not.
    pub(in crate::core) fn begin_copy_in(&mut self, line: LineId, slot: SlotId, pages: u32) -> bool {
        let Some(&copy) = self.hbm.readable(line) else { return false };
        let (gpu, from) = (copy.gpu, copy.slot);
        let live = self.kept.live(line).expect("a copy's line is live");
        let bytes = self.copied_bytes(&live);
        let is_bare = !copy.has_tail && self.pools[&live.pool].def.pieces > 1;
        let own = self.hbm.gpu(gpu);
        *own.reads.entry(from).or_insert(0) += 1;
        own.in_pages += u64::from(pages);
        let life = own.life;
        step_dram(self.kept.entry_mut(line), Step::Fetch);
        let op = self.begin(Op::CopyIn { line: Some(line), gpu, life, from, slot, pages, is_bare });
        self.ssd.fetching.insert(line, op);
        self.actions.push_back(Action::Copy { op, from: Spot::Hbm(gpu, from), to: Spot::Dram(slot), bytes });
        true
    }

    /// Begins to copy a block back that nobody asked for. False if there is no room for it in DRAM now.
    pub(super) fn copy_back(&mut self, line: LineId) -> bool {
        if self.ssd.fetching.contains_key(&line) {
            return true;
        }
        // Those that somebody waits for are first, but for those of other GPUs, which may hang.
        let waits = |source| !self.ssd.queue.is_empty_of(source);
        let first = waits(None) || waits(self.gpu_of(line));
        !first && self.begin_fetch(line, Want::Asked) && self.ssd.fetching.contains_key(&line)
    }

    /// The block is to be in DRAM too as soon as there is room, after those that are to be there already.
    pub(super) fn save_later(&mut self, line: LineId) {
        let turn = self.hbm.next_id();
        let copy = self.hbm.copies.get_mut(&line).expect("it has a copy on a GPU");
        copy.is_unsaved = true;
        self.hbm.unsaved.remove(&copy.turn);
        copy.turn = turn;
        self.hbm.unsaved.insert(turn, line);
    }

    /// What clients put on GPUs is copied to DRAM at once, so that its slot may go at any time.
    pub(super) fn save_puts(&mut self) {
        if self.hbm.save_from.is_some() {
            return;
        }
        while let Some((&turn, &line)) = self.hbm.unsaved.first_key_value().filter(|_| !self.hbm.stalled) {
            if self.is_only_on_gpu(line) && !self.copy_back(line) {
                self.hbm.stalled = true;
                return;
            }
            self.hbm.unsaved.remove(&turn);
            // Room for it may have been made of the block itself.
            if let Some(copy) = self.hbm.copies.get_mut(&line).filter(|copy| copy.turn == turn) {
                copy.turn = 0;
            }
        }
    }

    pub(in crate::core) fn copy_in_ended(&mut self, op: Op, outcome: Outcome) {
        let Op::CopyIn { line, gpu, life, from, slot, pages, is_bare } = op else { unreachable!("called for one") };
        self.read_ended_on_gpu(gpu, life, from, pages);
        let live = line.and_then(|line| self.kept.live(line));
        let unsummed = live.filter(|live| is_bare || live.place.sum == 0);
        if let Some(live) = unsummed.filter(|_| outcome == Outcome::Ok) {
            let (pool, key, bytes) = (live.pool, live.key, live.place.bytes);
            let op = self.begin(Op::Sum { line, slot });
            self.ssd.fetching.insert(line.expect("looked up by it"), op);
            self.actions.push_back(Action::Sum { op, pool, key, slot, bytes });
            return;
        }
        self.came_in(line, slot, outcome, None);
    }

    /// The sum of a block that came from a GPU, made with those of its pieces, which lie behind it in its slot now; `None` if
    /// it could not be made. It is the block's own if that has none, and else tells whether the bytes are the block's.
    pub fn summed(&mut self, now: Time, op: OpId, sum: Option<u64>) {
        self.clock(now);
        let Some(Op::Sum { line, slot }) = self.ops.remove(&op) else { return };
        let known = line.and_then(|line| self.kept.live(line)).map(|live| live.place.sum).filter(|&known| known != 0);
        let outcome = match (sum, known) {
            (None, _) => Outcome::Failed,
            (Some(sum), Some(known)) if sum != known => Outcome::Corrupt,
            (Some(_), _) => Outcome::Ok,
        };
        self.came_in(line, slot, outcome, sum);
        self.run();
    }

    /// The bytes of a line are in the slot, or did not come.
    pub(in crate::core) fn came_in(&mut self, line: Option<LineId>, slot: SlotId, outcome: Outcome, sum: Option<u64>) {
        self.counts.slots_busy -= 1;
        self.stirred = true;
        // Its block went meanwhile.
        let Some(line) = line else { return self.give(slot) };
        self.ssd.fetching.remove(&line).expect("it was coming");
        let came = outcome == Outcome::Ok;
        if came {
            let pages = self.pages_of(&self.kept.live(line).expect("what comes is live"));
            self.fetched(line, slot, pages, sum);
            self.counts.hbm_saved += 1;
        } else {
            self.give(slot);
            step_dram(self.kept.entry_mut(line), Step::FetchFailed);
            self.came_not(line, outcome);
        }
        let unsaved = self.hbm.copies.get_mut(&line).filter(|copy| copy.is_unsaved);
        match unsaved {
            Some(copy) if came => {
                copy.is_unsaved = false;
                self.hbm.unsaved.remove(&std::mem::take(&mut copy.turn));
            }
            Some(_) => {
                // Once more, in a while.
                self.save_later(line);
                self.hbm.save_from = Some(Time(self.now.0 + SAVE_PAUSE_US));
            }
            None => {}
        }
        self.save_ended(line, came);
        self.fetch_ended(line, if came { Came::FromGpu } else { Came::Not });
    }

    fn came_not(&mut self, line: LineId, outcome: Outcome) {
        let is_corrupt = outcome == Outcome::Corrupt;
        if is_corrupt {
            self.counts.corrupt += 1;
        } else {
            self.counts.hbm_copies_failed += 1;
        }
        // Or it left the GPU as it was on SSD too, and then its segment was given up.
        if is_corrupt || self.kept.entry(line).ssd == 0 && !self.is_on_gpu(line) {
            self.drop_subtree(line);
            self.settle();
        }
    }

    /// A fetch of a block has ended, from wherever it was: the copy that was to go after it goes, or stays.
    pub(in crate::core) fn save_ended(&mut self, line: LineId, came: bool) {
        match self.hbm.copies.get_mut(&line).filter(|copy| copy.state == OnGpu::Leaving) {
            Some(copy) if !came => copy.state.step(GpuStep::SaveFailed),
            Some(_) => {
                self.leave_gpu(line);
                self.counts.hbm_evictions += 1;
            }
            None => {}
        }
    }

    /// Nothing of the copy's slot is read by this operation any more.
    fn read_ended_on_gpu(&mut self, gpu: GpuId, life: u32, from: SlotId, pages: u32) {
        let Some(own) = self.hbm.same_gpu(gpu, life) else { return };
        own.in_pages -= u64::from(pages);
        let reads = own.reads.get_mut(&from).expect("counted when it began");
        *reads -= 1;
        if *reads == 0 {
            own.reads.remove(&from);
            if own.left.remove(&from) {
                own.counts.slots_busy -= 1;
                own.limbo.push(from);
            }
        }
    }
}
