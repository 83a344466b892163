//! What an engine around the core does: carries out its actions, ends operations in any order, dies and starts anew.

use std::collections::BTreeMap;

use lapis_config::{ClientId, Key, LineId, PoolId, SlotId, UNIT_BYTES};
use lapis_tiering::{
    Chosen, Core, PlainKept,
    face::{Action, Caller, Outcome, Reply, Reserved},
    kept::{Kept, SlotState},
};

use super::{EXTENTS, GHOST_BYTES, Io, Owned, SEGMENTS, World, options, pools};

impl World {
    /// Operations under way.
    pub fn ops(&self) -> usize {
        self.ops.len()
    }

    /// An operation ends, in any order.
    pub fn complete(&mut self, at: usize, outcome: Outcome) {
        if self.ops.is_empty() {
            return;
        }
        let (op, io) = self.ops.remove(at % self.ops.len());
        let now = self.now;
        if let Some(disk) = self.disk.as_mut().filter(|_| at.is_multiple_of(4)) {
            disk.wipe_one();
        }
        let outcome = match outcome {
            Outcome::Corrupt if !matches!(io, Io::Verify) => Outcome::Ok,
            outcome => outcome,
        };
        if self.complete_on_gpus(op, &io, outcome) {
            return;
        }
        if outcome == Outcome::Ok {
            self.landed(io);
        }
        self.core().completed(now, op, outcome);
    }

    /// Of two pages of contents of a segment that are under way the second is said to have failed; both are on the device.
    /// False if there are none such.
    pub fn fail_second_page(&mut self) -> bool {
        let segment_of = |io: &Io| if let Io::List { segment, .. } = io { Some(*segment) } else { None };
        let pages =
            |at: usize| self.ops[..at].iter().filter(|(_, io)| segment_of(io) == segment_of(&self.ops[at].1)).count();
        let second = (0..self.ops.len()).find(|&at| segment_of(&self.ops[at].1).is_some() && pages(at) == 1);
        let Some(second) = second else { return false };
        let segment = segment_of(&self.ops[second].1);
        let first = self.ops.iter().find(|(_, io)| segment_of(io) == segment).expect("counted above").1.clone();
        let (op, io) = self.ops.remove(second);
        self.landed(first);
        self.landed(io);
        let now = self.now;
        self.core().completed(now, op, Outcome::Failed);
        true
    }

    /// All that is under way but pages of contents ends well.
    pub fn complete_all_but_pages(&mut self) {
        while let Some(at) = self.ops.iter().position(|(_, io)| !matches!(io, Io::List { .. })) {
            let (op, io) = self.ops.remove(at);
            self.landed(io);
            let now = self.now;
            self.core().completed(now, op, Outcome::Ok);
        }
    }

    /// Everything ends but what begins a new use of a segment.
    pub fn complete_all_but_opens(&mut self) {
        for _ in 0..1_000 {
            self.tick(1_000);
            self.perform();
            let Some(at) = self.ops.iter().position(|(_, io)| !matches!(io, Io::Open { .. })) else { continue };
            let (op, io) = self.ops.remove(at);
            self.landed(io);
            let now = self.now;
            self.core().completed(now, op, Outcome::Ok);
        }
    }

    /// What an operation did to memory and devices.
    fn landed(&mut self, io: Io) {
        self.landed_on_gpus(&io);
        let Some(disk) = &mut self.disk else { return };
        match io {
            Io::Verify | Io::Copy { .. } | Io::Sum { .. } => {}
            Io::Write { at, slot, sum } => {
                assert_eq!(self.contents[&slot], sum, "slot {} changed while a device read it", slot.0);
                disk.written(at, sum);
            }
            Io::Read { at, slot } => drop(self.contents.insert(slot, disk.payload(at))),
            Io::Open { segment, opened } => disk.opened(segment, opened),
            Io::List { segment, opened, place, next, sequence, listed } => {
                disk.listed(segment, opened, place, next, sequence, listed);
            }
        }
    }

    /// The log of a former start is told: what counted as on SSD is there, what was removed is not.
    pub fn recover(&mut self) {
        let Some(disk) = self.disk.as_mut().filter(|_| self.coming) else { return };
        self.coming = false;
        // A record that is found may be of a block whose parent was never written.
        self.linked.clear();
        let (options, devices) = (disk.options(), disk.devices);
        let (segments, records) = disk.recover();
        for record in &records {
            let sum = ((record.pool, record.key), record.sum);
            assert!(!self.dead.contains(&sum), "{record:?} was removed, and is found again");
        }
        let now = self.now;
        let core = self.core();
        core.ssd_opened(options);
        (0..devices).for_each(|device| core.device_added(device));
        segments.iter().for_each(|&(segment, opened)| core.segment_found(segment, opened));
        records.iter().for_each(|record| core.record_found(record));
        core.ssd_ready(now);
        for record in records {
            let key = (record.pool, record.key);
            let line = self.core().kept().find(record.pool, &record.key);
            let place = line.map(|line| self.core().kept().live(line).unwrap().place);
            if place.is_some_and(|place| place.sum == record.sum) {
                // Of several puts of a key of which none was removed, a start may find any: keys say what the bytes are.
                assert!(self.ever.contains(&(key, record.sum)), "{record:?} was never stored");
                let slot = self.stored.get(&key).map_or(SlotId(0), |stored| stored.0);
                self.stored.insert(key, (slot, record.bytes, record.sum));
            }
        }
    }

    /// The daemon dies and a new one takes over; clients find out later.
    pub fn restart(&mut self) {
        let mut kept = self.core.take().unwrap().into_kept();
        self.crash(&kept);
        let lost = self.lose_gpus_with_daemon(&mut kept);
        kept.restart();
        let slabs: Vec<_> = kept.slabs().copied().collect();
        let mut core = Core::adopt(kept, Chosen::new(self.policy, GHOST_BYTES), options());
        pools(&mut core);
        for bytes in &EXTENTS[..self.extents] {
            core.extent_added(*bytes);
        }
        slabs.into_iter().for_each(|slab| core.adopt_slab(slab));
        self.adopt_gpus(&mut core);
        for (&id, connected) in &mut self.clients {
            core.adopt_client(id, true);
            *connected = false;
        }
        for line in 0..core.kept().lines() {
            let line = lapis_config::LineId(line);
            if let Some(live) = core.kept().live(line) {
                core.adopt_line(line, live);
            }
        }
        let before = core.counts().blocks;
        if self.disk.is_some() {
            core.ssd_coming();
            // What a parent on SSD leads to is found again without it.
            self.linked.clear();
        }
        if lost {
            self.linked.clear();
        }
        // One client is faster than the adoption.
        let early = self.clients.keys().next().copied();
        self.calls.clear();
        self.removals.clear();
        self.core = Some(core);
        if let Some(id) = early {
            self.resume(id);
        }
        let now = self.now;
        self.core().adopt_done(now);
        assert_eq!(self.core().counts().blocks, before, "no block is lost to a restart");
        if let Some(id) = early {
            let own = self.owned.values().filter(|owned| owned.client == id).count();
            assert_eq!(self.granted_to(id), own, "who came back keeps what it writes and nothing else");
        }
        for (extent, &bytes) in self.populated.clone().iter().enumerate().take(self.extents) {
            self.core().populated(extent, bytes);
        }
    }

    /// Operations under way land or do not. What counted as on SSD must be found there.
    fn crash(&mut self, kept: &PlainKept) {
        for (at, (op, io)) in std::mem::take(&mut self.ops).into_iter().enumerate() {
            // A dead daemon's device may still write into its slots, not into others'.
            if at % 3 != 0 && !self.gpus.is_doomed(op) {
                self.landed(io);
            }
        }
        let Some(disk) = &mut self.disk else { return };
        disk.wipes_lost();
        let coming = std::mem::replace(&mut self.coming, true);
        disk.restart(SEGMENTS);
        let (_, records) = disk.recover();
        let found: BTreeMap<(PoolId, Key), u64> =
            records.iter().map(|record| ((record.pool, record.key), record.sum)).collect();
        for line in (0..kept.lines()).map(LineId).filter(|_| !coming) {
            let Some(live) = kept.live(line) else { continue };
            let on_ssd = kept.entry(line).ssd != 0;
            if on_ssd {
                let sum = found.get(&(live.pool, live.key));
                assert_eq!(sum, Some(&live.place.sum), "{:?} counted as on SSD and is lost", live.key);
            }
        }
    }

    pub(super) fn granted_to(&mut self, id: ClientId) -> usize {
        let kept = self.core().kept();
        let states = kept.slabs().flat_map(|slab| (0..slab.slots()).map(|index| kept.slot_state(slab, index)));
        states.filter(|&state| state == SlotState::Granted(id)).count()
    }

    /// Carries out the core's actions.
    pub fn perform(&mut self) {
        while let Some(action) = self.core().poll_action() {
            match action {
                Action::Reply { to, reply } => self.answered(to, reply),
                Action::Recall { .. } => self.recalls += 1,
                Action::Verify { op, line, pool, key, slot, bytes, sum } => {
                    let stored = self.stored[&(pool, key)];
                    assert_eq!((stored.1, stored.2), (bytes, sum), "line {}", line.0);
                    assert_eq!(self.contents[&slot], sum, "line {}", line.0);
                    self.ops.push((op, Io::Verify));
                }
                Action::WriteSsd { op, at, slot, pages } => {
                    self.disk.as_mut().expect("a tier").claim(at, pages);
                    let sum = self.contents[&slot];
                    self.ops.push((op, Io::Write { at, slot, sum }));
                }
                Action::ReadSsd { op, at, slot, .. } => {
                    assert!(!self.named.contains(&slot), "slot {} is written by a device while it is named", slot.0);
                    self.ops.push((op, Io::Read { at, slot }));
                }
                Action::OpenSegment { op, segment, opened } => {
                    self.disk.as_mut().expect("a tier").opening(segment, opened);
                    self.ops.push((op, Io::Open { segment, opened }));
                }
                Action::ListSsd { op, segment, opened, place, next, sequence, listed } => {
                    self.disk.as_mut().expect("a tier").listing(segment, opened, place, next, sequence);
                    self.ops.push((op, Io::List { segment, opened, place, next, sequence, listed }));
                }
                Action::FreeSegment { segment, leaves } => {
                    let disk = self.disk.as_mut().expect("a tier");
                    disk.wiping(segment);
                    assert!(!leaves, "nobody else wants one");
                }
                Action::NeedSegment { device } => {
                    if let Some(segment) = self.disk.as_mut().expect("a tier").take_free(device) {
                        self.core().segment_given(segment);
                    }
                }
                Action::NeedMemory => {
                    if self.extents < EXTENTS.len() && self.now.0 > 3_000_000 {
                        let bytes = EXTENTS[self.extents];
                        self.extents += 1;
                        self.core().extent_added(bytes);
                    }
                }
                other => self.perform_on_gpus(other),
            }
        }
    }

    pub(super) fn answered(&mut self, to: Caller, reply: Reply) {
        let keys = if to.token == 0 { Some(Vec::new()) } else { self.calls.remove(&to) };
        let keys = keys.unwrap_or_else(|| panic!("{to:?} asked nothing, and is answered {reply:?}"));
        match reply {
            Reply::Granted { pool, slot_bytes, slots } => {
                assert!(!slots.is_empty());
                for slot in slots {
                    self.own(slot, to.client, pool, slot_bytes / UNIT_BYTES as u32, None);
                }
            }
            Reply::Reserved { results } if self.reserved_on_gpu(to, &keys, &results) => {}
            Reply::Reserved { results } => {
                assert_eq!(results.len(), keys.len());
                for (key, result) in keys.into_iter().zip(results) {
                    if let Reserved::Slot(slot) = result {
                        let units = self.core().slot_units(slot).expect("a slot");
                        let pool = self.pool_of(slot);
                        self.own(slot, to.client, pool, units, Some(key));
                    }
                }
            }
            Reply::Got { hit } => assert!(hit as usize <= keys.len()),
            Reply::Refused(_) => self.gpus.refused(to),
            Reply::Removed { .. } => {
                let sums = self.removals.remove(&to).expect("a removal is answered once");
                self.dead.extend(sums);
            }
            other => panic!("nobody asked for {other:?}"),
        }
    }

    pub(super) fn pool_of(&mut self, slot: SlotId) -> PoolId {
        let slabs = self.core().kept().slabs();
        slabs.filter(|slab| slab.base.0 <= slot.0).last().expect("a slot lies in a slab").pool
    }

    pub(super) fn own(&mut self, slot: SlotId, client: ClientId, pool: PoolId, units: u32, key: Option<Key>) {
        assert!(!self.named.contains(&slot), "slot {} is granted while a reader names it", slot.0);
        let former = self.owned.insert(slot, Owned { client, pool, units, key });
        assert_eq!(former, None, "slot {} is granted twice", slot.0);
        let overlaps = self.owned.range(..slot).next_back().is_some_and(|(s, o)| s.0 + o.units > slot.0)
            || self.owned.range(SlotId(slot.0 + 1)..).next().is_some_and(|(s, _)| slot.0 + units > s.0);
        assert!(!overlaps, "slot {} overlaps another's", slot.0);
    }

    pub(super) fn io_in(&mut self) -> u64 {
        let kept = self.core().kept();
        let states = kept.slabs().flat_map(|slab| (0..slab.slots()).map(|index| kept.slot_state(slab, index)));
        states.filter(|&state| state == SlotState::IoIn).count() as u64
    }

    pub(super) fn finish_ops(&mut self) {
        for _ in 0..10_000 {
            self.wait(30_000);
            self.perform();
            if self.ops.is_empty() {
                return;
            }
            while !self.ops.is_empty() {
                self.complete(0, Outcome::Ok);
            }
            self.check();
        }
        panic!("operations beget operations for ever");
    }
}
