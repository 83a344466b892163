//! Checks of blocks that a restart found or devices read: which ones, when, and what became of them.

use std::time::Duration;

use lapis_config::LineId;

use super::{Core, Op};
use crate::{
    face::{Action, Outcome},
    kept::{Kept, Tier},
    policy::Policy,
};

/// Between two batches of checks while devices read.
const VERIFY_PAUSE: Duration = Duration::from_millis(5);

impl<K: Kept, P: Policy> Core<K, P> {
    pub(super) fn verify_ended(&mut self, line: LineId, generation: u64, outcome: Outcome) {
        let Some(live) = self.kept.live(line).filter(|live| live.generation == generation) else { return };
        match outcome {
            Outcome::Ok => {
                if live.place.tier == Tier::DramUnverified {
                    self.kept.verified(line);
                }
                self.counts.verified += 1;
            }
            Outcome::Corrupt => {
                self.counts.corrupt += 1;
                self.counts.ssd_corrupt += u64::from(self.kept.entry(line).ssd != 0);
                self.drop_subtree(line);
                self.settle();
            }
            Outcome::Failed => {}
        }
    }

    /// Starts checks of blocks that a restart found or devices read, the hottest first, several at once: an end each would
    /// wake the engine for each. While devices read there are pauses: whoever asked for a block checks it himself, and
    /// most of what is read in a stream has gone again before anybody asks for it twice.
    pub(super) fn verify_more(&mut self) {
        let reads = self.ssd.read_pages > 0 || self.hbm.gpus.values().any(|own| own.in_pages > 0);
        let paused = reads && self.now < self.verify_from;
        if self.verifying > 0 || self.unverified.is_empty() || paused {
            return;
        }
        self.verify_from = self.now.after(VERIFY_PAUSE);
        while self.verifying < self.options.verifies_max {
            let Some(line) = self.unverified.pop() else { return };
            let Some(live) = self.kept.live(line) else { continue };
            if live.place.tier != Tier::DramUnverified {
                continue;
            }
            let op = self.begin(Op::Verify { line, generation: live.generation });
            self.verifying += 1;
            let (pool, key, place) = (live.pool, live.key, live.place);
            let (slot, bytes, sum) = (place.slot, place.bytes, place.sum);
            self.actions.push_back(Action::Verify { op, line, pool, key, slot, bytes, sum });
        }
    }

    /// The block is to be verified when there is time.
    pub(super) fn verify_later(&mut self, line: LineId) {
        if self.unverified.len() >= 2 * self.kept.lines() as usize {
            self.forget_verified();
        }
        self.unverified.push(line);
    }

    /// Drops what needs no check any more, and all but the last mention of a line.
    fn forget_verified(&mut self) {
        let mut seen = vec![false; self.kept.lines() as usize];
        let kept = &self.kept;
        let wanted = |line: &LineId| {
            let again = std::mem::replace(&mut seen[line.0 as usize], true);
            !again && kept.live(*line).is_some_and(|live| live.place.tier == Tier::DramUnverified)
        };
        self.unverified = std::mem::take(&mut self.unverified).into_iter().rev().filter(wanted).collect();
        self.unverified.reverse();
    }
}
