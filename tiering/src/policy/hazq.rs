//! Hazard queues: a list of blocks for each reuse class, least recently used last, and of the lists' tails the one that
//! is worth least goes first. What a block is worth is learned: how soon and how surely blocks of its class and age were
//! used again (`hazards`). A new block is compared too: what is worth less than all that could make room for it is not
//! let in, or is the first to go.
//!
//! The core tells what engines really give: the ordered keys of a request and whether a block is full. Turn and gap
//! follow from what is remembered of the deepest block that is known of a request, here or as a ghost.
//!
//! Invariant: a line's list is that of its class; every block that is known has one life, counted in one cohort.
//! Costs: a use is O(1), a victim O(classes), a refresh O(classes x (buckets + cohorts)) each time that a quarter of the
//! blocks are new. Memory: 8 bytes a line beside the entry, 16 a ghost, 100 KB of tables.

mod ages;
mod class;
mod cohorts;
mod ghosts;
mod hazards;
mod lists;
#[cfg(test)]
mod model;

use std::hash::{Hash, Hasher};

use lapis_config::{Hint, Key, LineId, PoolId, Time};

use self::{
    class::{CHILDREN_OWN, ENDED, PARTIAL, PRIORITY, PRIORITY_HIGH, SHARED, STRANGER, WILL_RETURN},
    ghosts::{Ghost, Ghosts},
    hazards::Hazards,
    lists::{Fresh, Lists, loss},
};
use super::{Policy, Request, Shelf, Stored, Use, list::listed, tenths};
use crate::{
    hash::Mix,
    kept::{Kept, Live},
};

/// Uses closer together, in tenths of a second, are one turn: a request is looked up, read and stored by several calls,
/// and by several ranks.
const SAME_TURN: u32 = 10;
/// And closer than this they are one use: what is shared is used by several requests within a second too.
const SAME_USE: u32 = 2;
/// New blocks between two refreshes: at least so many, and one part in so many of the blocks there are.
const REFRESH_MIN: u64 = 1000;
const REFRESH_PART: u64 = 4;
/// How many times as many lives that are over are remembered as lives that go on.
const MEMORY: u64 = 4;

/// What is remembered of a line's block, beside its entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Life {
    /// Time of the last use.
    since: u32,
    class: u8,
    turn: u8,
    /// Different blocks that ever followed it, up to 255.
    children: u8,
    known: bool,
}

/// Bytes of a line beside the public one: its entry, its siblings in the tree, its life.
const LINE_BYTES: usize = size_of::<lapis_config::Entry>() + size_of::<[u32; 2]>() + size_of::<Life>();
const _: () = assert!(LINE_BYTES == 48, "docs/policy.md names it, and 64 is the limit");

/// See the module's head.
#[derive(Debug)]
pub struct Hazq {
    shelves: Vec<Lists>,
    lives: Vec<Life>,
    ghosts: Ghosts,
    hazards: Hazards,
    /// Lives of lines.
    known: u64,
    listed: u64,
    /// Blocks that came, or wanted to, since the last refresh.
    fresh_lives: u64,
    /// Counts what changes the worth of blocks that nobody uses.
    epoch: u64,
}

impl Hazq {
    /// With as many ghosts as fit in so many bytes.
    pub fn new(ghost_bytes: u64) -> Self {
        Self {
            shelves: Vec::new(),
            lives: Vec::new(),
            ghosts: Ghosts::new(ghost_bytes),
            hazards: Hazards::default(),
            known: 0,
            listed: 0,
            fresh_lives: 0,
            epoch: 0,
        }
    }

    #[inline]
    fn life(&self, line: LineId) -> Life {
        self.lives.get(line.0 as usize).copied().unwrap_or_default()
    }

    // ---- Lives ----

    #[inline]
    fn begin<K: Kept>(&mut self, kept: &mut K, line: LineId, life: Life) {
        self.hazards.cohorts.begin(life.class, life.since);
        let entry = kept.entry_mut(line);
        (entry.class, entry.last_use) = (class::kept(life.class, life.turn), life.since);
        if line.0 as usize >= self.lives.len() {
            self.lives.resize(kept.lines() as usize, Life::default());
        }
        self.known += u64::from(!self.life(line).known);
        self.lives[line.0 as usize] = Life { known: true, ..life };
    }

    /// A block that a restart, or the SSD, brought back: its entry says what it was.
    fn know<K: Kept>(&mut self, kept: &mut K, line: LineId) {
        if self.life(line).known {
            return;
        }
        let entry = kept.entry(line);
        let ((class, turn), since) = (class::of_kept(entry.class), entry.last_use);
        let children = if class == SHARED { CHILDREN_OWN + 1 } else { 0 };
        self.begin(kept, line, Life { since, class, turn, children, known: false });
    }

    /// The class of one block of a request.
    #[inline]
    fn class_in(&self, life: Life, class: u8) -> u8 {
        match life.class {
            PARTIAL | PRIORITY | PRIORITY_HIGH => life.class,
            _ if life.children > CHILDREN_OWN => SHARED,
            _ => class,
        }
    }

    /// Of a request whose deepest known block has such a life.
    fn next_request(&self, turn: u8, class: u8, since: u32, now: u32) -> Request {
        let gap = now.saturating_sub(since);
        if class == SHARED {
            return Request { turn: 1, class: class::of_turn(1), shared: 0 };
        }
        if gap < SAME_TURN {
            return self.same_request(turn, class);
        }
        let turn = turn.saturating_add(1);
        Request { turn, class: class::of_request(turn, gap), shared: 0 }
    }

    fn same_request(&self, turn: u8, class: u8) -> Request {
        if class == SHARED {
            return Request { turn: 1, class: class::of_turn(1), shared: 0 };
        }
        Request { turn, class: if class::is_of_request(class) { class } else { class::of_turn(turn) }, shared: 0 }
    }

    /// One more block than those that are remembered follows this one.
    fn followed(&mut self, line: Option<LineId>) {
        if let Some(life) = line.and_then(|line| self.lives.get_mut(line.0 as usize)) {
            life.children = life.children.saturating_add(1);
        }
    }

    /// The same, of a block that is there, about to be stored, or declined just before.
    fn followed_key<K: Kept>(&mut self, kept: &K, pool: PoolId, key: Option<&Key>, request: Request, now: u32) {
        let Some(key) = key else { return };
        if let Some(line) = kept.find(pool, key) {
            return self.followed(Some(line));
        }
        let short = name(pool, key);
        let mut ghost = self.ghosts.take(short).unwrap_or_else(|| {
            self.hazards.cohorts.begin(request.class, now);
            Ghost::to_come(now, request.class, request.turn)
        });
        ghost.children = ghost.children.saturating_add(1);
        let forgotten = self.ghosts.insert(short, ghost);
        self.forgotten(forgotten, now);
    }

    #[inline]
    fn forgotten(&mut self, ghost: Option<Ghost>, now: u32) {
        if let Some(ghost) = ghost {
            self.hazards.end(ghost.class, ghost.since, now, false);
        }
    }

    fn refresh_if_due<K: Kept>(&mut self, kept: &mut K, now: u32) {
        let due = (self.listed / REFRESH_PART).max(REFRESH_MIN);
        if self.fresh_lives < due {
            return;
        }
        self.fresh_lives = 0;
        // The memory of lives that are over reaches back further than that of those that go on: what is rare is known too.
        let fade = MEMORY * (self.known + self.ghosts.capacity()) / due;
        self.hazards.refresh(now, fade.max(2));
        self.epoch += 1;
        if kept.keeps_learned() {
            let mut saved = Vec::with_capacity(hazards::SAVED_BYTES);
            self.hazards.save(&mut saved);
            kept.keep_learned(&saved);
        }
    }
}

/// The short name of a key. Never 0.
#[inline]
fn name(pool: PoolId, key: &Key) -> u64 {
    let mut mix = Mix::default();
    (pool, key).hash(&mut mix);
    mix.finish() | 1
}

impl Policy for Hazq {
    fn shelves(&mut self, shelves: usize) {
        self.shelves.resize_with(shelves, Lists::new);
    }

    fn asked<K: Kept>(&self, _kept: &K, deepest: LineId, now: Time) -> Request {
        let life = self.life(deepest);
        if !life.known {
            return Request { turn: 1, class: class::of_turn(1), shared: 0 };
        }
        self.next_request(life.turn, life.class, life.since, tenths(now))
    }

    fn storing<'a, K: Kept>(
        &self,
        _kept: &K,
        above: Option<LineId>,
        pool: PoolId,
        keys: impl DoubleEndedIterator<Item = &'a Key>,
        now: Time,
    ) -> Request {
        let (mut deepest, mut count, mut shared) = (None, 0, 0);
        for key in keys.rev() {
            count += 1;
            let ghost = self.ghosts.get(name(pool, key));
            if shared == 0 && ghost.is_some_and(|ghost| ghost.children > CHILDREN_OWN) {
                shared = count;
            }
            deepest = deepest.or(ghost);
        }
        if let Some(ghost) = deepest {
            // Counted from the deepest on.
            let shared = if shared > 0 { count - shared + 1 } else { 0 };
            return Request { shared, ..self.next_request(ghost.turn, ghost.class, ghost.since, tenths(now)) };
        }
        let above = above.map(|line| self.life(line)).filter(|life| life.known);
        above.map_or(Request { turn: 1, class: STRANGER, shared: 0 }, |life| self.same_request(life.turn, life.class))
    }

    #[inline]
    fn used<K: Kept>(&mut self, kept: &mut K, shelf: Option<Shelf>, line: LineId, by: Use, now: Time) {
        let (life, now) = (self.life(line), tenths(now));
        if let Some(shelf) = shelf {
            self.take_out(kept, shelf, line);
        }
        let mut next = Life { since: now, ..life };
        let again = now.saturating_sub(life.since) < SAME_USE;
        match by {
            Use::Asked(request) if !life.known || !again => {
                next.class = self.class_in(life, request.class);
                next.turn = request.turn;
            }
            _ if !life.known => (next.class, next.turn) = (class::of_turn(1), 1),
            Use::Asked(_) | Use::Again => {}
        }
        if life.known {
            match by {
                Use::Asked(_) if !again => self.hazards.end(life.class, life.since, now, true),
                Use::Asked(_) | Use::Again => self.hazards.cohorts.end(life.class, life.since),
            }
        }
        self.begin(kept, line, next);
        if let Some(shelf) = shelf {
            self.put_in(kept, shelf, line, true);
        }
    }

    fn stored<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, block: &Stored<'_>, request: Request, now: Time) {
        let (line, now) = (block.line, tenths(now));
        let ghost = self.ghosts.take(name(block.pool, block.key));
        if let Some(ghost) = ghost {
            let again = now.saturating_sub(ghost.since) < SAME_USE;
            if again || ghost.to_come {
                self.hazards.cohorts.end(ghost.class, ghost.since);
            } else {
                self.hazards.end(ghost.class, ghost.since, now, true);
            }
        }
        let children = ghost.map_or(0, |ghost| ghost.children);
        let class = match request.class {
            _ if !block.full => PARTIAL,
            _ if children > CHILDREN_OWN => SHARED,
            class => class,
        };
        self.begin(kept, line, Life { since: now, class, turn: request.turn, children, known: false });
        self.put_in(kept, shelf, line, true);
        let fresh = &mut self.shelves[shelf.0 as usize].fresh;
        let goes_on = block.parent.is_some_and(|parent| parent == fresh.deepest);
        *fresh = Fresh { deepest: line, count: if goes_on { fresh.count + 1 } else { 1 } };
        if ghost.is_none() {
            self.followed(block.parent);
        }
        self.fresh_lives += 1;
        self.refresh_if_due(kept, now);
    }

    fn enters<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, _now: Time) {
        self.know(kept, line);
        self.take_out(kept, shelf, line);
        self.put_in(kept, shelf, line, true);
    }

    fn gone<K: Kept>(&mut self, _kept: &K, line: LineId, live: &Live, now: Time) {
        let life = self.life(line);
        if !life.known {
            return;
        }
        self.lives[line.0 as usize] = Life::default();
        self.known -= 1;
        let ghost = Ghost::new(life.since, life.class, life.turn, life.children);
        let forgotten = self.ghosts.insert(name(live.pool, &live.key), ghost);
        self.forgotten(forgotten, tenths(now));
    }

    fn declined<K: Kept>(
        &mut self,
        kept: &mut K,
        above: Option<&Key>,
        pool: PoolId,
        key: &Key,
        request: Request,
        now: Time,
    ) {
        let (short, now) = (name(pool, key), tenths(now));
        let children = match self.ghosts.take(short) {
            Some(ghost) => {
                self.hazards.end(ghost.class, ghost.since, now, now.saturating_sub(ghost.since) >= SAME_USE);
                ghost.children
            }
            None => {
                self.followed_key(kept, pool, above, request, now);
                0
            }
        };
        self.hazards.cohorts.begin(request.class, now);
        self.fresh_lives += 1;
        let forgotten = self.ghosts.insert(short, Ghost::new(now, request.class, request.turn, children));
        self.forgotten(forgotten, now);
        self.refresh_if_due(kept, now);
    }

    fn cool<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId) {
        self.know(kept, line);
        self.take_out(kept, shelf, line);
        self.put_in(kept, shelf, line, false);
    }

    fn unlink<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId) {
        self.take_out(kept, shelf, line);
        let fresh = &mut self.shelves[shelf.0 as usize].fresh;
        if fresh.deepest == line {
            fresh.count -= 1;
            fresh.deepest = if fresh.count > 0 { LineId(kept.entry(line).parent) } else { LineId::NONE };
        }
    }

    fn coldest<K: Kept>(&mut self, kept: &K, shelf: Shelf, now: Time) -> Option<LineId> {
        let now = tenths(now);
        let (least, tail) = self.least(kept, shelf, now)?;
        let loss_of = |line| loss(kept.entry(line), self.worth_of_line(line, now));
        let fresh = self.fresh(kept, shelf).filter(|&line| loss_of(line) < least);
        Some(fresh.unwrap_or(tail))
    }

    fn copied(&mut self) {
        self.epoch += 1;
    }

    fn oldest<K: Kept>(&self, kept: &K, shelf: Shelf) -> Option<LineId> {
        let tails = self.shelves[shelf.0 as usize].of.iter().map(|list| list.oldest).filter(|line| line.is_some());
        tails.min_by_key(|&line| (kept.entry(line).last_use, line))
    }

    /// The next of its list; after the last one, the list whose tail is worth next more.
    fn after<K: Kept>(&self, kept: &K, shelf: Shelf, line: LineId, now: Time) -> Option<LineId> {
        let newer = LineId(kept.entry(line).newer);
        if newer.is_some() {
            return Some(newer);
        }
        let (class, now) = (self.life(line).class as usize, tenths(now));
        let list = &self.shelves[shelf.0 as usize].of[class];
        let own = self.tail(kept, list, class, now)?;
        self.tails(kept, shelf, now).filter(|tail| *tail > own).min().map(|(.., line)| line)
    }

    fn admits<K: Kept>(&self, _kept: &K, victim: LineId, request: Request, now: Time) -> bool {
        let now = tenths(now);
        let class = if request.shared > 0 { SHARED } else { request.class };
        self.worth_of(class, now, now) >= self.worth_of_line(victim, now)
    }

    fn worth<K: Kept>(&self, _kept: &K, line: LineId, now: Time) -> u32 {
        self.worth_of_line(line, tenths(now))
    }

    fn hinted<K: Kept>(&mut self, kept: &mut K, shelf: Shelf, line: LineId, hint: Hint, now: Time) {
        let now = tenths(now);
        let life = self.life(line);
        let class = match hint {
            Hint::Ended => ENDED,
            Hint::WillReturn => WILL_RETURN,
            Hint::Priority(0) => class::of_turn(life.turn),
            Hint::Priority(1..=127) => PRIORITY,
            Hint::Priority(_) => PRIORITY_HIGH,
            // The core keeps what is pinned.
            Hint::Pinned { .. } => life.class,
        };
        if matches!(hint, Hint::Priority(_) | Hint::WillReturn) {
            self.used_now(kept, line, now);
        }
        self.reclass(kept, shelf, line, class);
    }

    fn is_linked<K: Kept>(&self, kept: &K, line: LineId) -> bool {
        listed(kept.entry(line))
    }

    fn learned(&mut self, saved: &[u8], now: Time) {
        if self.hazards.load(saved) {
            self.hazards.refresh(tenths(now), u64::MAX);
            self.epoch += 1;
        }
    }

    fn audit<K: Kept>(&self, kept: &K, shelf: Shelf) -> Result<Vec<LineId>, String> {
        self.audit_tails(kept, shelf)?;
        let mut lines = Vec::new();
        for (class, list) in self.shelves[shelf.0 as usize].of.iter().enumerate() {
            for line in list.audit(kept)? {
                let life = self.life(line);
                if !life.known || life.class as usize != class || life.since != kept.entry(line).last_use {
                    return Err(format!("line {}: in the list of class {class} with {life:?}", line.0));
                }
                lines.push(line);
            }
        }
        Ok(lines)
    }
}

impl Hazq {
    #[inline]
    fn worth_of_line(&self, line: LineId, now: u32) -> u32 {
        let life = self.life(line);
        self.worth_of(life.class, life.since, now)
    }

    /// The life goes on from now on, without a hit.
    fn used_now<K: Kept>(&mut self, kept: &mut K, line: LineId, now: u32) {
        let life = self.life(line);
        if life.known {
            self.hazards.cohorts.end(life.class, life.since);
        }
        self.begin(kept, line, Life { since: now, ..life });
    }
}
