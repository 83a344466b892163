//! Promotion: blocks come from SSD, or from GPUs, into slots in DRAM, for gets that wait for them, ahead along a chain, or to be written anew.

use lapis_config::{
    LineId, OpId, SlotId, SsdPlace, Time, UNIT_BYTES,
    planted::{self, Bug},
};

use super::{Core, Growth, Op, coming::Source, slabs::Handed, ssd::State};
use crate::{
    copies::{Copy, Step, step_dram},
    face::{Action, Outcome},
    kept::{Kept, Live, Place, SlotState, Tier},
    policy::{Policy, Shelf},
};

/// Blocks read ahead along a chain when the last block of a call came from SSD: at most, and at most so many bytes.
const AHEAD_BLOCKS: usize = 32;
const AHEAD_BYTES: u64 = 32 << 20;
/// Room that is made at once where a device is to write a slot: the readers' pages are scanned once for all of it, which
/// takes 8 us a client.
const ROOM_BYTES: u64 = 1 << 20;

/// Whether a block that is on SSD comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetch {
    /// It is being read, or will be.
    Coming,
    Not,
}

/// Whether a block came, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    FromSsd,
    FromGpu,
    Not,
}

/// What may go for a block that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Nobody waits for it: clean blocks of its shelf, and of clearly colder ones.
    Ahead,
    /// Other shelves' warm blocks too.
    Asked,
    /// It leads to one that is held or pinned, and nothing else makes room: blocks that are nowhere else too.
    Needed,
}

impl<K: Kept, P: Policy> Core<K, P> {
    pub(super) fn in_dram(&self, line: LineId) -> bool {
        Copy::of_dram(self.kept.entry(line)).is_readable()
    }

    /// Sees to it that a block comes into DRAM. Equal fetches join.
    pub(super) fn fetch(&mut self, line: LineId) -> Fetch {
        if self.ssd.fetching.contains_key(&line) {
            return Fetch::Coming;
        }
        let entry = self.kept.entry(line);
        if (entry.ssd == 0 || self.ssd.state != State::On) && !self.is_on_gpu(line) {
            return Fetch::Not;
        }
        let generation = self.kept.live(line).expect("a live line is fetched").generation;
        if self.ssd.queue.has(line, generation) {
            return Fetch::Coming;
        }
        let source = self.gpu_of(line);
        if self.ssd.queue.is_empty_of(source) && self.begin_fetch(line, Want::Asked) {
            let began = self.ssd.fetching.contains_key(&line);
            return if began { Fetch::Coming } else { Fetch::Not };
        }
        if !self.ssd.queue.push(source, line, generation) {
            return Fetch::Not;
        }
        // Those before it may be wanted by nobody any more.
        self.stirred = true;
        Fetch::Coming
    }

    /// Reads a block that nobody waits for. False if there is no slot for it now.
    pub(super) fn fetch_unasked(&mut self, line: LineId) -> bool {
        let may = self.ssd.state == State::On && self.ssd.queue.is_empty_of(None);
        let entry = self.kept.entry(line);
        let absent = Copy::of_dram(entry) == Copy::Absent && entry.ssd != 0 && !self.is_on_gpu(line);
        may && (!absent || self.begin_fetch(line, Want::Ahead))
    }

    /// Goes on with what waits for a slot.
    pub(super) fn pump_fetches(&mut self) {
        for source in self.ssd.queue.take_turns() {
            self.pump_fetches_from(source);
        }
    }

    fn pump_fetches_from(&mut self, source: Source) {
        while let Some((line, generation)) = self.ssd.queue.front(source) {
            let same = self.kept.live(line).is_some_and(|live| live.generation == generation);
            let somewhere = same && (self.kept.entry(line).ssd != 0 || self.is_on_gpu(line));
            let wanted = somewhere && !self.ssd.fetching.contains_key(&line);
            let asked = self.gets.waits_for(line);
            let mut wanted = wanted && (asked || self.is_retiring(line));
            if wanted && !self.begin_fetch(line, Want::Asked) {
                // Room comes from blocks that are written first; these may wait for the very segment that this read
                // holds up. If nothing is under way at devices that could make room, the block is given up; one that leads to
                // a block that is held or pinned is not, for those go last.
                if asked || !self.ssd.moving.is_empty() || self.ssd.read_pages > 0 {
                    break;
                }
                wanted = self.must_stay(line) && self.begin_fetch(line, Want::Needed);
            }
            self.ssd.queue.pop(source);
            if !self.ssd.fetching.contains_key(&line) {
                self.fetch_ended(line, Came::Not);
            }
        }
    }

    /// Reads a block into a slot. False if there is none for it now. Making room may have ended the block itself: then
    /// nothing begins.
    pub(super) fn begin_fetch(&mut self, line: LineId, want: Want) -> bool {
        let live = self.kept.live(line).expect("a live line is fetched");
        let pages = self.pages_of(&live);
        let (coming, most) = self.pages_coming(line);
        if coming > 0 && coming + u64::from(pages) > most {
            return false;
        }
        let shelf = self.memory.shelf(live.pool, pages);
        self.policy.shelves(self.memory.shelves().count());
        let node = self.node_of_copy(line);
        let Some(slot) = self.slot_for_device(shelf, want, node) else { return false };
        let same = self.kept.live(line).is_some_and(|now| now.generation == live.generation);
        if same && self.begin_copy_in(line, slot, pages) {
            return true;
        }
        if !same || self.kept.entry(line).ssd == 0 || self.ssd.state != State::On {
            self.counts.slots_busy -= 1;
            self.give(slot);
            return true;
        }
        let at = SsdPlace(self.kept.entry(line).ssd);
        step_dram(self.kept.entry_mut(line), Step::Fetch);
        let op = self.begin(Op::Read { line: Some(line), at, pages, slot });
        self.ssd.fetching.insert(line, op);
        self.ssd.read_pages += u64::from(pages);
        *self.ssd.reads.entry(at.segment()).or_insert(0) += 1;
        self.actions.push_back(Action::ReadSsd { op, at, slot, pages });
        true
    }

    /// Pages that are under way from where the block comes, and how many may be at once: GPUs together have as many as
    /// devices, and each has its part.
    fn pages_coming(&self, line: LineId) -> (u64, u64) {
        let most = self.flight_pages_max();
        match self.gpu_of(line) {
            None => (self.ssd.read_pages, most),
            Some(gpu) => (self.hbm.gpus[&gpu].in_pages, most / self.hbm.gpus.len() as u64),
        }
    }

    /// A slot that a device will write, of memory of its node rather. Clean blocks make room; dirty ones are written first,
    /// unless it is needed at once.
    fn slot_for_device(&mut self, shelf: Shelf, want: Want, node: Option<u32>) -> Option<SlotId> {
        let room = (ROOM_BYTES / UNIT_BYTES) as u32 / self.memory.of(shelf).stride;
        loop {
            let near = node.and_then(|node| self.take_near(shelf, node));
            if let Some((slab, index)) = near.or_else(|| self.memory.take(shelf)) {
                // Before the device hears of it: a restart must know.
                if !planted::is(Bug::SlotOfReadForgotten) {
                    self.kept.set_slot_state(&slab, index, SlotState::IoIn);
                }
                self.counts.slots_free -= 1;
                self.counts.slots_busy += 1;
                return Some(slab.slot(index));
            }
            if self.grow(shelf) {
                continue;
            }
            if self.growth == Growth::Possible {
                self.growth = Growth::Asked;
                self.actions.push_back(Action::NeedMemory);
                return None;
            }
            let (room, force) = if want == Want::Needed { (1, true) } else { (room.max(1), false) };
            if self.make_room(shelf, room, force, want != Want::Ahead, None) != Handed::Over {
                return None;
            }
        }
    }

    pub(super) fn read_ended(
        &mut self,
        op: OpId,
        line: Option<LineId>,
        at: SsdPlace,
        pages: u32,
        slot: SlotId,
        outcome: Outcome,
    ) {
        self.ssd.read_pages -= u64::from(pages);
        self.counts.slots_busy -= 1;
        let reads = self.ssd.reads.get_mut(&at.segment()).expect("counted when it began");
        *reads -= 1;
        if *reads == 0 {
            self.ssd.reads.remove(&at.segment());
        }
        match line {
            // Its key was dropped meanwhile.
            None => self.give(slot),
            Some(line) => {
                assert_eq!(self.ssd.fetching.remove(&line), Some(op), "one fetch of a block at a time");
                if outcome == Outcome::Ok {
                    self.counts.promotions += 1;
                    self.fetched(line, slot, pages, None);
                } else {
                    self.give(slot);
                    self.counts.ssd_reads_failed += 1;
                    step_dram(self.kept.entry_mut(line), Step::FetchFailed);
                    if self.kept.entry(line).ssd == 0 && !self.is_on_gpu(line) {
                        // Its segment was given up under the read.
                        self.drop_subtree(line);
                        self.settle();
                    }
                }
                // The segment may have been given up under the read, and the copy on a GPU been the only one since.
                self.save_ended(line, outcome == Outcome::Ok);
                self.fetch_ended(line, if outcome == Outcome::Ok { Came::FromSsd } else { Came::Not });
            }
        }
        self.retired_segment(at.segment());
        self.stirred = true;
    }

    /// The bytes are in the slot. Whether they are the block's own is checked by whoever reads them first, and behind; with
    /// `sum`, which was made of them just now, there is nothing to check.
    pub(super) fn fetched(&mut self, line: LineId, slot: SlotId, pages: u32, sum: Option<u64>) {
        let Live { pool, place, .. } = self.kept.live(line).expect("a fetched line is live");
        let (found, index) = self.memory.locate(slot).expect("a slot of ours");
        let (slab, shelf) = (found.slab, found.shelf);
        self.kept.set_slot_state(&slab, index, SlotState::Used(line));
        let believed = sum.is_some() || planted::is(Bug::ReadBelieved);
        let tier = if believed { Tier::Dram } else { Tier::DramUnverified };
        self.rebind(line, Place { slot, tier, sum: sum.unwrap_or(place.sum), ..place });
        self.memory.count_used(slot, 1);
        self.count_block(pool, pages);
        let entry = self.kept.entry_mut(line);
        step_dram(entry, Step::Fetched);
        if entry.ssd == 0 {
            step_dram(entry, Step::Lost);
        } else if self.is_retiring(line) {
            self.lost_on_ssd(line);
        }
        self.tree.moved(&mut self.kept, line);
        self.renew_links(line);
        if self.is_retiring(line) {
            self.policy.cool(&mut self.kept, shelf, line);
        } else {
            // Its use is told by whoever reads it, and with it that of all above: until then it was not used again.
            self.policy.enters(&mut self.kept, shelf, line, self.now);
        }
        if !believed {
            self.verify_later(line);
        }
        if self.is_retiring(line) && !self.write(line) {
            self.retired_line(line);
        }
    }

    /// A restart believes a link to a parent if its generation fits: it changed as the block moved.
    pub(super) fn renew_links(&mut self, line: LineId) {
        let parent = LineId(self.kept.entry(line).parent);
        if parent.is_some() {
            let above = self.kept.live(parent).expect("a parent is resident");
            self.kept.entry_mut(line).parent_generation = above.generation as u16;
        }
        let generation = self.kept.live(line).expect("a fetched line is live").generation;
        let memory = |&child: &LineId| self.in_dram(child) || !self.hbm.gpus.is_empty();
        let children: Vec<LineId> = self.tree.children(&self.kept, line).take_while(memory).collect();
        for child in children {
            self.kept.entry_mut(child).parent_generation = generation as u16;
        }
    }

    /// Whoever waited for the block goes on.
    pub(super) fn fetch_ended(&mut self, line: LineId, came: Came) {
        let ok = came != Came::Not;
        for number in self.gets.fetched(line) {
            if ok {
                let hits = if came == Came::FromGpu { &mut self.counts.hbm_hits } else { &mut self.counts.ssd_hits };
                *hits += 1;
                let held = self.hold(line);
                self.gets.holds(number, held);
            }
            self.get_fetched(number);
        }
        if !ok {
            self.retired_line(line);
        }
    }

    /// A line that is being fetched goes: the operation keeps the slot. True if there was one: `fetch_ended` is due.
    pub(super) fn orphan_fetch(&mut self, line: LineId) -> bool {
        let Some(op) = self.ssd.fetching.remove(&line) else { return false };
        if let Some(Op::Read { line: of, .. } | Op::CopyIn { line: of, .. } | Op::Sum { line: of, .. }) =
            self.ops.get_mut(&op)
        {
            *of = None;
        }
        step_dram(self.kept.entry_mut(line), Step::FetchFailed);
        true
    }

    /// The chain goes on below the last block that was asked for: its only successors are read too, before anyone asks.
    pub(super) fn read_ahead(&mut self, line: LineId) {
        let (mut at, mut bytes) = (line, 0);
        for _ in 0..AHEAD_BLOCKS {
            if !self.tree.has_one_child(&self.kept, at) || bytes >= AHEAD_BYTES {
                return;
            }
            at = LineId(self.kept.entry(at).first_child);
            let live = self.kept.live(at).expect("a child is resident");
            bytes += u64::from(live.place.bytes);
            if !self.fetch_unasked(at) {
                return;
            }
        }
    }

    /// Whether a get may wait so long: a device that hangs is not waited for beyond the deadline.
    pub(super) fn may_fetch(&self, deadline: Time) -> bool {
        (self.ssd.state == State::On || !self.hbm.gpus.is_empty()) && self.now < deadline
    }
}
