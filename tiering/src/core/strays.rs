//! Operations that outlive what they were for: of a block that went meanwhile, or at a device that is out and may never
//! answer.
//!
//! Invariant: a slot that such a write reads is free again only when the last of them has ended.
//! Invariant: what is under way at a device that is out holds nothing else up: no block, no segment of another device, and
//! none of what may be under way at once.

use std::collections::BTreeMap;

use lapis_config::{
    OpId, SlotId,
    planted::{self, Bug},
};

use super::{Core, Op, fetch::Came};
use crate::{
    kept::{Kept, SlotState},
    policy::Policy,
};

/// Writes of a slot that are nobody's any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stray {
    pub writes: u32,
    /// No block lies in the slot any more.
    pub left: bool,
}

pub(super) type Strays = BTreeMap<SlotId, Stray>;

impl<K: Kept, P: Policy> Core<K, P> {
    /// The write under way is its line's no more. The device reads the slot on.
    pub(super) fn stray_write(&mut self, op: OpId) {
        let Some(Op::Write { line, slot, .. }) = self.ops.get_mut(&op) else { return };
        *line = None;
        self.ssd.strays.entry(*slot).or_default().writes += 1;
    }

    /// A block leaves its slot. True if a device still reads that: then it is free when the last write has ended. A restart
    /// may reuse it: what a dead daemon's device reads is listed nowhere.
    pub(super) fn is_kept_for_devices(&mut self, slot: SlotId) -> bool {
        let Some(stray) = self.ssd.strays.get_mut(&slot) else { return false };
        if planted::is(Bug::SlotFreeDuringWrite) {
            return false;
        }
        stray.left = true;
        self.counts.slots_busy += 1;
        let (found, index) = self.memory.locate(slot).expect("a slot of ours");
        let slab = found.slab;
        self.kept.set_slot_state(&slab, index, SlotState::Aside);
        true
    }

    /// A write that was nobody's has ended.
    pub(super) fn stray_ended(&mut self, slot: SlotId) {
        let stray = self.ssd.strays.get_mut(&slot).expect("counted when it became nobody's");
        stray.writes -= 1;
        if stray.writes > 0 {
            return;
        }
        let left = self.ssd.strays.remove(&slot).expect("looked up above").left;
        if left {
            self.counts.slots_busy -= 1;
            self.limbo.push(slot);
            self.settle();
        }
    }

    /// The device is out, its blocks are gone: nothing waits for what is under way there.
    pub(super) fn stray_device(&mut self, device: u8) {
        let (mut writing, mut reading) = (Vec::new(), Vec::new());
        for (&op, what) in &mut self.ops {
            match what {
                Op::Write { line, at, pages, .. } if at.segment().device() == device => {
                    self.ssd.write_pages -= u64::from(std::mem::take(pages));
                    writing.extend(line.map(|line| (op, line)));
                }
                Op::Read { line, at, pages, .. } if at.segment().device() == device => {
                    self.ssd.read_pages -= u64::from(std::mem::take(pages));
                    reading.extend(line.map(|line| (op, line)));
                }
                _ => {}
            }
        }
        for (op, line) in writing {
            if self.ssd.moving.get(&line).is_some_and(|moving| moving.op == Some(op)) {
                self.stray_write(op);
                self.counts.ssd_writes_failed += 1;
                self.write_failed(line);
                // Another device may take it before the end.
                self.ssd.flush.extend(self.draining.then_some(line));
            }
        }
        for (op, line) in reading {
            if self.ssd.fetching.get(&line) == Some(&op) {
                if self.is_on_gpu(line) {
                    self.orphan_fetch(line);
                    self.save_ended(line, false);
                    self.fetch_ended(line, Came::Not);
                } else {
                    // Its segment was given up under the read: it is nowhere any more.
                    self.drop_subtree(line);
                }
            }
        }
    }
}
