//! Commits: a filled slot becomes a block that readers find.

use lapis_config::{ClientId, LineId, PoolId, PoolKind, Refusal, SlotId, Time, UNIT_BYTES};

use super::{Core, HELD, room::Patience};
use crate::{
    copies::Step,
    face::{Caller, CommitItem, Parent, Put},
    kept::{Kept, Live, Place, SlotState, Tier},
    policy::{Policy, Request, Shelf, Stored, Use},
};

/// How often room is made in a key's windows before its block is refused.
const TRIES: u32 = 4;
/// Most blocks that go with one victim of a full window.
const WINDOW_VICTIMS_MAX: usize = 8192;

impl<K: Kept, P: Policy> Core<K, P> {
    /// Publishes filled slots; `out` gets one result per item. After any result but `NotGranted` the slot is the
    /// client's no more: used, or free. What the client's magazine lost is made up for where that is cheap: a `Granted`
    /// with token 0.
    pub fn commit(&mut self, now: Time, id: ClientId, pool: PoolId, items: &[CommitItem], out: &mut Vec<Put>) {
        self.clock(now);
        if self.adopting.is_some() || !self.clients.contains_key(&id) {
            out.extend(items.iter().map(|_| Put::Refused(Refusal::NotReady)));
            return;
        }
        let (mut previous, mut spent) = (None, Vec::new());
        let mut request = Request::default();
        for (at, item) in items.iter().enumerate() {
            if at == 0 || item.parent != Parent::Previous {
                request = self.storing(pool, &items[at..]);
            }
            let put = self.commit_one(id, pool, item, &mut previous, &mut spent, request);
            match put {
                Put::Stored => self.counts.puts_stored += 1,
                Put::Exists => self.counts.puts_exists += 1,
                Put::Refused(_) => self.counts.puts_refused += 1,
            }
            out.push(put);
        }
        let client = self.clients.get_mut(&id).expect("looked up above");
        client.last_put = self.now;
        client.recalled.clear();
        if !spent.is_empty() && self.pools[&pool].def.kind == PoolKind::Chain {
            self.keep_tip(id, previous);
        }
        self.run();
        for (shelf, count) in spent {
            self.top_up(id, shelf, count);
        }
    }

    /// What the chain that begins with the first of some items is a part of.
    pub(super) fn storing(&self, pool: PoolId, items: &[CommitItem]) -> Request {
        let more = items[1..].iter().take_while(|item| item.parent == Parent::Previous).count();
        let above = match items[0].parent {
            Parent::Key(key) => self.kept.find(pool, &key),
            Parent::None | Parent::Previous => None,
        };
        self.policy.storing(&self.kept, above, pool, items[..=more].iter().map(|item| &item.key), self.now)
    }

    fn commit_one(
        &mut self,
        id: ClientId,
        pool: PoolId,
        item: &CommitItem,
        previous: &mut Option<(LineId, u64)>,
        spent: &mut Vec<(Shelf, u32)>,
        request: Request,
    ) -> Put {
        let before = previous.take();
        let Some((shelf, stride)) = self.granted(id, pool, item.slot) else { return Put::Refused(Refusal::NotGranted) };
        if self.end_grant(id, item.slot).named.is_none() {
            match spent.iter_mut().find(|(of, _)| *of == shelf) {
                Some((_, count)) => *count += 1,
                None => spent.push((shelf, 1)),
            }
        }
        let known = self.kept.find(pool, &item.key).and_then(|line| Some((line, self.kept.live(line)?)));
        if let Some((line, live)) = known {
            self.free(item.slot);
            self.adopt_parent(line, pool, item.parent, before);
            self.touch(line, &live, 1, Use::Again);
            *previous = Some((line, live.generation));
            return Put::Exists;
        }
        match self.publish(pool, item, stride, before, request) {
            Ok((line, generation)) => {
                *previous = Some((line, generation));
                self.woken.push((pool, item.key));
                Put::Stored
            }
            Err(reason) => {
                self.free(item.slot);
                Put::Refused(reason)
            }
        }
    }

    /// A block that lost its parent, or was found without it, has one again.
    pub(super) fn adopt_parent(&mut self, line: LineId, pool: PoolId, parent: Parent, before: Option<(LineId, u64)>) {
        if self.kept.entry(line).parent != LineId::NONE.0 {
            return;
        }
        let key = match parent {
            Parent::None => return,
            Parent::Previous => before.and_then(|(line, _)| self.kept.live(line)).map(|live| live.key),
            Parent::Key(key) => Some(key),
        };
        if let Some(key) = key {
            self.link(line, pool, &key);
        }
    }

    /// Shelf and stride of a slot that was granted to the client for this pool and not committed since.
    fn granted(&self, id: ClientId, pool: PoolId, slot: SlotId) -> Option<(Shelf, u32)> {
        self.clients[&id].grants.get(&slot)?;
        let (found, index) = self.memory.locate(slot).expect("a granted slot");
        assert!(
            self.kept.slot_state(&found.slab, index) == SlotState::Granted(id),
            "the kept state of a granted slot says so"
        );
        (found.slab.pool == pool).then_some((found.shelf, found.slab.stride))
    }

    fn publish(
        &mut self,
        pool: PoolId,
        item: &CommitItem,
        stride: u32,
        previous: Option<(LineId, u64)>,
        request: Request,
    ) -> Result<(LineId, u64), Refusal> {
        let def = self.pools[&pool].def;
        let room = match def.kind {
            PoolKind::Chain => def.block_bytes,
            PoolKind::Object => u64::from(stride) * UNIT_BYTES,
        };
        if u64::from(item.bytes) > room.min(u64::from(stride) * UNIT_BYTES) {
            return Err(Refusal::TooLarge);
        }
        let parent = self.parent_of(pool, item, previous)?;
        let place = Place { slot: item.slot, bytes: item.bytes, sum: item.sum, tier: Tier::Dram };
        let line = self.publish_line(pool, item, place, parent.map(|(line, _)| line))?;
        let (found, index) = self.memory.locate(item.slot).expect("a granted slot");
        let (slab, shelf) = (found.slab, found.shelf);
        self.kept.set_slot_state(&slab, index, SlotState::Used(line));
        self.memory.count_used(item.slot, 1);
        self.counts.slots_granted -= 1;
        self.count_block(pool, stride);
        self.kept.entry_mut(line).class = 0;
        self.enter(line, &[Step::Reserve, Step::Commit]);
        if let Some((parent, live)) = parent {
            self.tree.attach(&mut self.kept, parent, live.generation, line);
        }
        let full = u64::from(item.bytes) == def.block_bytes || def.kind == PoolKind::Object;
        let parent_line = parent.map(|(line, _)| line);
        let block = Stored { line, pool, key: &item.key, parent: parent_line, full };
        self.policy.stored(&mut self.kept, shelf, &block, request, self.now);
        if let Some((parent, live)) = parent {
            self.touch(parent, &live, u32::MAX, Use::Again);
        }
        Ok((line, self.kept.live(line).expect("just published").generation))
    }

    /// The block above an item, if it has one.
    pub(super) fn parent_of(
        &self,
        pool: PoolId,
        item: &CommitItem,
        previous: Option<(LineId, u64)>,
    ) -> Result<Option<(LineId, Live)>, Refusal> {
        Ok(match item.parent {
            Parent::None => None,
            // A line of this batch may have made room for a later one.
            Parent::Previous => {
                let (line, generation) = previous.ok_or(Refusal::NoParent)?;
                let live = self.kept.live(line).filter(|live| live.generation == generation);
                Some((line, live.ok_or(Refusal::NoParent)?))
            }
            Parent::Key(key) => {
                let line = self.kept.find(pool, &key).ok_or(Refusal::NoParent)?;
                Some((line, self.kept.live(line).expect("found")))
            }
        })
    }

    pub(super) fn count_block(&mut self, pool: PoolId, stride: u32) {
        self.counts.blocks += 1;
        self.counts.slots_used += 1;
        self.counts.bytes_used += u64::from(stride) * UNIT_BYTES;
        let pool = self.pools.get_mut(&pool).expect("a block's pool is known");
        pool.blocks += 1;
        pool.units_used += u64::from(stride);
    }

    /// Publishes; where both windows of the key are full, the coldest block in them makes room.
    pub(super) fn publish_line(
        &mut self,
        pool: PoolId,
        item: &CommitItem,
        place: Place,
        parent: Option<LineId>,
    ) -> Result<LineId, Refusal> {
        for _ in 0..TRIES {
            let candidates = match self.kept.publish(pool, &item.key, place) {
                Ok(line) => return Ok(line),
                Err(full) => full.candidates,
            };
            let held = parent.map(|line| self.hold(line));
            let made = self.make_line_room(candidates);
            if let Some(held) = held {
                self.unhold(held);
            }
            if !made {
                break;
            }
        }
        Err(Refusal::NoLine)
    }

    /// Drops one of some lines that may go, with all that hangs on it: the one with least on it, a leaf if there is one;
    /// among equals the least recently used. In long chains the coldest candidate alone would take thousands of blocks
    /// with it.
    fn make_line_room(&mut self, mut candidates: Vec<LineId>) -> bool {
        candidates.retain(|&line| self.kept.live(line).is_some());
        candidates.sort_by_key(|&line| (self.kept.entry(line).last_use, line));
        let mut lines = std::mem::take(&mut self.lines);
        let (mut victim, mut most) = (None, WINDOW_VICTIMS_MAX);
        for line in candidates {
            lines.clear();
            let fits = self.tree.subtree(&self.kept, line, most, &mut lines)
                && lines.iter().all(|&line| self.kept.entry(line).flags & HELD == 0);
            if fits {
                victim = Some(line);
                most = lines.len() - 1;
            }
            if most == 0 {
                break;
            }
        }
        self.lines = lines;
        let Some(victim) = victim else { return false };
        self.counts.evictions += self.drop_subtree(victim);
        self.settle();
        true
    }

    /// Makes up for what the client took from its magazine, unless others wait for slots or the daemon ends.
    fn top_up(&mut self, id: ClientId, shelf: Shelf, count: u32) {
        let count = count.min(self.magazine_room(id, shelf)).min(self.shared_room(id, shelf));
        if count == 0 || self.draining || self.puts.waits(shelf) || !self.clients[&id].connected {
            return;
        }
        let mut slots = Vec::with_capacity(count as usize);
        self.obtain(shelf, count, id, Patience::Long, None, &mut slots);
        if slots.is_empty() {
            return;
        }
        for &slot in &slots {
            self.record_grant(id, slot, None);
        }
        self.reply_granted(Caller { client: id, token: 0 }, shelf, slots);
    }
}
