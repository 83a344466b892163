//! What a former start left on SSD: segments and records are told, then the tier serves. And devices that are lost.

use lapis_config::{Key, LineId, PoolId, SegmentId, SsdPlace, Time};

use super::{
    Core,
    ssd::{Asked, State},
};
use crate::{
    copies::{Copy, Step, step_dram},
    face::Action,
    kept::{Kept, Place, Tier},
    policy::Policy,
};

/// A record as recovery found it: the last one of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundRecord {
    pub pool: PoolId,
    pub key: Key,
    /// Zeros for a root.
    pub parent: Key,
    pub bytes: u32,
    pub sum: u64,
    pub class: u8,
    pub at: SsdPlace,
    pub pages: u32,
}

/// So many records ahead the home of a key is fetched,
const HOME_AHEAD: usize = 16;
/// and so many the line where it will lie, with all that is kept of a line: nothing of a million records is in a cache.
const LINE_AHEAD: usize = 8;

impl<K: Kept, P: Policy> Core<K, P> {
    /// A segment of this group, in any order; its records are told next. A new use of it comes after all others.
    pub fn segment_found(&mut self, segment: SegmentId, opened: u64) {
        if let Some(log) = &mut self.ssd.log {
            log.found(segment, opened);
        }
    }

    /// The pool's records below the sequence are gone: every segment that lists the pool says so.
    pub fn pool_purged(&mut self, pool: PoolId, before: u64) {
        if let Some(log) = &mut self.ssd.log {
            log.pool_purged(pool, before);
        }
    }

    /// Several records, each as to `record_found`.
    pub fn records_found(&mut self, found: &[FoundRecord]) {
        for (at, record) in found.iter().enumerate() {
            if let Some(later) = found.get(at + HOME_AHEAD) {
                self.kept.prefetch(later.pool, &later.key);
            }
            if let Some(soon) = found.get(at + LINE_AHEAD)
                && let Some(line) = self.kept.prefetch_free(soon.pool, &soon.key)
            {
                self.tree.prefetch(&self.kept, line);
            }
            self.record_found(record);
        }
    }

    /// A record of a segment that was told, the youngest ones first: then most parents come before their children.
    /// What is in DRAM is believed; a record that fits it makes it clean.
    pub fn record_found(&mut self, found: &FoundRecord) {
        let fits = self.pools.get(&found.pool).is_some_and(|pool| pool.def.units_of(found.bytes) == found.pages);
        let known = self.ssd.log.as_ref().is_some_and(|log| log.knows(found.at.segment()));
        if !fits || !known {
            self.counts.ssd_passed_over += 1;
            return;
        }
        if self.ssd.removals.purged_early.contains_key(&found.pool) {
            self.counts.ssd_passed_over += 1;
            return;
        }
        if let Some(tickets) = self.ssd.removals.removed_early.get(&(found.pool, found.key)).cloned() {
            self.remove_durably(found.pool, found.key, found.at);
            for ticket in tickets {
                self.ssd.removals.ticket = ticket;
                self.wait_until_forgotten(found.pool, found.key);
            }
            self.ssd.removals.ticket = 0;
            return;
        }
        match self.kept.find(found.pool, &found.key) {
            Some(line) => self.found_again(line, found),
            None => self.publish_found(found),
        }
    }

    fn found_again(&mut self, line: LineId, found: &FoundRecord) {
        let live = self.kept.live(line).expect("found");
        let same = (live.place.sum, live.place.bytes) == (found.sum, found.bytes);
        let only_on_gpu = self.is_only_on_gpu(line);
        let entry = self.kept.entry_mut(line);
        if same && entry.ssd == 0 && (Copy::of_dram(entry) == Copy::Dirty || only_on_gpu) {
            if !only_on_gpu {
                step_dram(entry, Step::Found);
                self.policy.copied();
            }
            self.found_at(line, found);
        } else if !same {
            // Of an older block under this key: it must not come back when the new one has gone.
            self.remove_durably(found.pool, found.key, found.at);
        }
    }

    fn publish_found(&mut self, found: &FoundRecord) {
        let place = Place { slot: lapis_config::SlotId(0), bytes: found.bytes, sum: found.sum, tier: Tier::Elsewhere };
        let Ok(line) = self.kept.publish(found.pool, &found.key, place) else {
            // Both windows are full. It is found again at the next start, if it is still there.
            self.counts.ssd_passed_over += 1;
            return;
        };
        let entry = self.kept.entry_mut(line);
        (entry.class, entry.last_use) = (found.class, 0);
        self.enter(line, &[]);
        self.found_at(line, found);
        if found.parent != Key::default() && !self.link(line, found.pool, &found.parent) {
            self.ssd.orphans.push((line, found.pool, found.parent));
        }
        if self.gets.any_by_key() {
            self.woken.push((found.pool, found.key));
        }
    }

    fn found_at(&mut self, line: LineId, found: &FoundRecord) {
        self.kept.entry_mut(line).ssd = found.at.0;
        self.came_on_ssd(found.pages);
        self.counts.ssd_found += 1;
        let log = self.ssd.log.as_mut().expect("checked by the caller");
        log.found_line(found.at.segment(), line);
    }

    /// Links a block that has no parent to the one that it names, if that is there.
    pub(super) fn link(&mut self, line: LineId, pool: PoolId, parent: &Key) -> bool {
        let Some(above) = self.kept.find(pool, parent).filter(|above| *above != line) else { return false };
        if self.kept.entry(line).parent != LineId::NONE.0 || self.is_below(above, line) {
            return true;
        }
        let generation = self.kept.live(above).expect("found").generation;
        self.tree.attach(&mut self.kept, above, generation, line);
        true
    }

    /// Whether `line` hangs on `above`: only damage or an odd client makes a circle.
    fn is_below(&self, line: LineId, above: LineId) -> bool {
        if self.tree.is_leaf(&self.kept, above) {
            return false;
        }
        let parents = std::iter::successors(Some(line), |at| {
            let parent = LineId(self.kept.entry(*at).parent);
            parent.is_some().then_some(parent)
        });
        parents.into_iter().any(|at| at == above)
    }

    /// All was told: the tier serves, and is written.
    pub fn ssd_ready(&mut self, now: Time) {
        self.clock(now);
        for (line, pool, parent) in std::mem::take(&mut self.ssd.orphans) {
            if self.kept.live(line).is_some() {
                self.link(line, pool, &parent);
            }
        }
        self.ssd.state = State::On;
        self.settle_early();
        self.stirred = true;
        self.run();
    }

    /// Removals that came before anything was found are over as far as they hang on that.
    pub(super) fn settle_early(&mut self) {
        for (pool, tickets) in std::mem::take(&mut self.ssd.removals.purged_early) {
            for ticket in tickets {
                self.list_purge(pool, ticket);
                self.ticket_step(ticket);
            }
        }
        for ((pool, _), tickets) in std::mem::take(&mut self.ssd.removals.removed_early) {
            for ticket in tickets {
                self.ssd.removals.ticket = ticket;
                self.wait_until_purged(pool);
                self.ticket_step(ticket);
            }
        }
        self.ssd.removals.ticket = 0;
    }

    /// The device is out: what is only there is gone, what is also in DRAM is dirty.
    pub fn device_lost(&mut self, now: Time, device: u8) {
        self.clock(now);
        self.drop_device(device);
        self.run();
    }

    pub(super) fn drop_device(&mut self, device: u8) {
        let lines = self.lines_on_ssd(Some(device));
        let Some(log) = &mut self.ssd.log else { return };
        let pending = log.drop_device(device);
        self.lost(pending);
        self.ssd.asked.remove(&device);
        self.ssd.owed.remove(&device);
        self.ssd.retiring.retain(|segment, _| segment.device() != device);
        for line in lines {
            let entry = self.kept.entry_mut(line);
            let place = SsdPlace(entry.ssd);
            if !place.is_some() || place.segment().device() != device || self.kept.live(line).is_none() {
                continue;
            }
            match Copy::of_dram(self.kept.entry(line)) {
                Copy::Clean => self.lost_on_ssd(line),
                _ if self.is_on_gpu(line) => self.lost_on_ssd(line),
                // Also what is being read: a device that is out may never answer.
                _ => self.drop_lost(line),
            }
        }
        self.stray_device(device);
        self.ssd.forget_former(|at| at.segment().device() == device);
        self.settle();
        self.stirred = true;
    }

    /// Forgets a block that is nowhere any more. Its children stay where they are, without a parent.
    fn drop_lost(&mut self, line: LineId) {
        let children: Vec<LineId> = self.tree.children(&self.kept, line).collect();
        for child in children {
            self.tree.detach(&mut self.kept, child);
        }
        self.kept.entry_mut(line).ssd = 0;
        self.went_from_ssd(line);
        self.drop_line(line, false);
    }

    pub(super) fn need_segment_taken(&mut self, action: &Action) {
        if let Action::NeedSegment { device } = action {
            self.ssd.asked.insert(*device, Asked::Own);
        }
    }
}
