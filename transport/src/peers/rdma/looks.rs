//! Looks that have not ended: which of their keys were found, and which windows of the owner's table are being read, each into
//! a place of its own in scratch memory. Keys wait where there is none. Pure.
//!
//! Invariant: a place is given to another window only when no NIC has a READ into it any more.
//! Invariant: a look ends once, and by its deadline, whatever NICs still have of it.

use std::collections::{BTreeMap, VecDeque};

use lapis_arena::{
    Mapping,
    table::{Claim, Seen, TableShape, WINDOW_BYTES},
};
use lapis_config::{Key, PoolId, Time, UNIT_BYTES};

use super::{
    fetches::{Piece, Place},
    memory::From,
};
use crate::peers::{links::LinkId, message::Located, paths::Look};

/// Windows that are read at once for one group, over all links.
const WINDOWS: u32 = 256;
/// Of one group.
pub(super) const SCRATCH_BYTES: u64 = (WINDOWS as u64 * WINDOW_BYTES as u64).next_multiple_of(UNIT_BYTES);

struct Looking {
    link: LinkId,
    group: usize,
    shape: TableShape,
    pool: PoolId,
    keys: Vec<Key>,
    found: Vec<Option<Located>>,
    /// All before this one were found.
    run: usize,
    /// The first of which it is known that it is not there.
    end: usize,
    deadline: Time,
}

/// A window of a key's home: being read, or to be.
struct Window {
    group: usize,
    place: u32,
    /// Bytes from the first line on.
    home: u64,
    is_first: bool,
    left: u32,
    /// READs that a NIC has.
    with_nic: u32,
    /// Nobody wants to know any more.
    is_over: bool,
}

struct Scratch {
    mapping: Mapping,
    free: Vec<u32>,
    /// Keys without a place: of which look, its index, whether its first home is next.
    waiting: VecDeque<(u64, u32, bool)>,
}

#[derive(Default)]
pub(super) struct Looks {
    under_way: BTreeMap<u64, Looking>,
    /// By look and index of the key.
    windows: BTreeMap<(u64, u32), Window>,
    scratch: BTreeMap<usize, Scratch>,
    ended: VecDeque<(u64, Option<Vec<Located>>)>,
}

impl Looks {
    /// `mapping`: of [`SCRATCH_BYTES`].
    pub(super) fn add_scratch(&mut self, group: usize, mapping: Mapping) {
        self.scratch.insert(group, Scratch { mapping, free: (0..WINDOWS).collect(), waiting: VecDeque::new() });
    }

    pub(super) fn has_scratch(&self, group: usize) -> bool {
        self.scratch.contains_key(&group)
    }

    /// Looks keys up in a table; without one it has ended.
    pub(super) fn begin(&mut self, now: Time, group: usize, look: Look, table: Option<TableShape>) {
        let Look { op, link, pool, mut keys, within } = look;
        let (Some(shape), Some(scratch)) = (table, self.scratch.get_mut(&group)) else {
            return self.ended.push_back((op, None));
        };
        keys.truncate(usize::from(u16::MAX));
        scratch.waiting.extend((0..keys.len() as u32).map(|key| (op, key, true)));
        let (found, end, deadline) = (vec![None; keys.len()], keys.len(), now.after(within));
        let former =
            self.under_way.insert(op, Looking { link, group, shape, pool, keys, found, run: 0, end, deadline });
        assert!(former.is_none(), "look {op} was begun twice");
        self.settle(op);
    }

    /// What is to be read now, in order.
    pub(super) fn assign(&mut self) -> Vec<(LinkId, Piece)> {
        let mut pieces = Vec::new();
        for scratch in self.scratch.values_mut() {
            while let Some((op, key, is_first)) = scratch.waiting.pop_front() {
                let wanted = self.under_way.get(&op).filter(|looking| (key as usize) < looking.end);
                let Some(looking) = wanted else { continue };
                let Some(place) = scratch.free.pop() else {
                    scratch.waiting.push_front((op, key, is_first));
                    break;
                };
                let [first, second] = looking.shape.homes(looking.pool, &looking.keys[key as usize]);
                let home = if is_first { first } else { second };
                let (group, left) = (looking.group, WINDOW_BYTES);
                let window = Window { group, place, home, is_first, left, with_nic: 0, is_over: false };
                let former = self.windows.insert((op, key), window);
                assert!(former.is_none(), "a key has one window at a time");
                // The first line follows the last one.
                let straight = (looking.shape.lines_bytes() - home).min(WINDOW_BYTES.into()) as u32;
                for (at, bytes) in [(0, straight), (straight, WINDOW_BYTES - straight)] {
                    if bytes > 0 {
                        pieces.push((looking.link, Piece { op, block: key, at, bytes, tries: 0 }));
                    }
                }
            }
        }
        pieces
    }

    /// Whether it is of a window that has a place.
    pub(super) fn has(&self, piece: &Piece) -> bool {
        self.windows.contains_key(&(piece.op, piece.block))
    }

    /// `None`: nobody waits for it any more.
    pub(super) fn place(&self, piece: &Piece) -> Option<Place<'_>> {
        let window = self.windows.get(&(piece.op, piece.block)).filter(|window| !window.is_over)?;
        let looking = self.under_way.get(&piece.op)?;
        let from = (window.home + u64::from(piece.at)) % looking.shape.lines_bytes();
        Some(Place {
            from: From::Table(looking.shape, from),
            mapping: &self.scratch[&window.group].mapping,
            offset: (window.place * WINDOW_BYTES + piece.at) as usize,
            deadline: looking.deadline,
        })
    }

    pub(super) fn link(&self, op: u64) -> Option<LinkId> {
        self.under_way.get(&op).map(|looking| looking.link)
    }

    pub(super) fn given(&mut self, piece: &Piece) {
        self.get(piece).with_nic += 1;
    }

    /// A NIC has read it.
    pub(super) fn read(&mut self, piece: &Piece) {
        self.get(piece).left -= piece.bytes;
        self.back(piece);
    }

    /// A NIC has it no more.
    pub(super) fn back(&mut self, piece: &Piece) {
        let window = self.get(piece);
        window.with_nic -= 1;
        if window.with_nic == 0 && window.left == 0 && !window.is_over {
            self.judge(piece.op, piece.block);
        }
        self.release(piece.op, piece.block);
    }

    /// It is not read.
    pub(super) fn lost(&mut self, piece: &Piece) {
        if self.has(piece) {
            self.get(piece).is_over = true;
            self.absent(piece.op, piece.block);
            self.release(piece.op, piece.block);
        }
    }

    /// What was read is copied out of scratch, and looked at.
    fn judge(&mut self, op: u64, key: u32) {
        let window = self.windows.get_mut(&(op, key)).expect("looked up by the caller");
        window.is_over = true;
        let scratch = self.scratch.get_mut(&window.group).expect("it has a place there");
        let copy = scratch.mapping.to_vec((window.place * WINDOW_BYTES) as usize, WINDOW_BYTES as usize);
        let Some(looking) = self.under_way.get_mut(&op) else { return };
        match looking.shape.judge(&copy, window.is_first, looking.pool, &looking.keys[key as usize]) {
            Seen::There(claim) => {
                looking.found[key as usize] = Some(located(key, claim));
                self.settle(op);
            }
            Seen::MayBeSecond => scratch.waiting.push_front((op, key, false)),
            Seen::Absent => self.absent(op, key),
        }
    }

    fn absent(&mut self, op: u64, key: u32) {
        if let Some(looking) = self.under_way.get_mut(&op) {
            looking.end = looking.end.min(key as usize);
            self.settle(op);
        }
    }

    /// Ends a look of which all is known.
    fn settle(&mut self, op: u64) {
        let looking = self.under_way.get_mut(&op).expect("looked up by the caller");
        while looking.found.get(looking.run).is_some_and(Option::is_some) {
            looking.run += 1;
        }
        if looking.run >= looking.end {
            self.end(op, true);
        }
    }

    /// `is_answer`: what was found counts.
    fn end(&mut self, op: u64, is_answer: bool) {
        let Some(looking) = self.under_way.remove(&op) else { return };
        let run = looking.run.min(looking.end);
        let found = is_answer.then(|| looking.found.into_iter().take(run).flatten().collect());
        self.ended.push_back((op, found));
        let of: Vec<u32> = self.windows.range((op, 0)..=(op, u32::MAX)).map(|((_, key), _)| *key).collect();
        for key in of {
            self.windows.get_mut(&(op, key)).expect("listed").is_over = true;
            self.release(op, key);
        }
    }

    /// Gives a place back that nobody wants and no NIC writes to.
    fn release(&mut self, op: u64, key: u32) {
        let done = |window: &&Window| window.is_over && window.with_nic == 0;
        if self.windows.get(&(op, key)).filter(done).is_some() {
            let window = self.windows.remove(&(op, key)).expect("just seen");
            self.scratch.get_mut(&window.group).expect("it has a place there").free.push(window.place);
        }
    }

    /// Those whose time is up.
    pub(super) fn expire(&mut self, now: Time) {
        let late: Vec<u64> = self.under_way.iter().filter(|(_, l)| l.deadline <= now).map(|(op, _)| *op).collect();
        late.into_iter().for_each(|op| self.end(op, true));
    }

    pub(super) fn fail_all(&mut self, link: LinkId) {
        let of: Vec<u64> = self.under_way.iter().filter(|(_, l)| l.link == link).map(|(op, _)| *op).collect();
        of.into_iter().for_each(|op| self.end(op, false));
    }

    pub(super) fn ended(&mut self) -> Option<(u64, Option<Vec<Located>>)> {
        self.ended.pop_front()
    }

    pub(super) fn next_at(&self) -> Option<Time> {
        self.under_way.values().map(|looking| looking.deadline).min()
    }

    fn get(&mut self, piece: &Piece) -> &mut Window {
        self.windows.get_mut(&(piece.op, piece.block)).expect("a window stays while a NIC has something of it")
    }

    /// Places of a group that no window has.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let all = |scratch: &Scratch| scratch.free.len() == WINDOWS as usize;
        self.under_way.is_empty() && self.windows.is_empty() && self.scratch.values().all(all)
    }
}

fn located(key: u32, claim: Claim) -> Located {
    let Claim { line, generation, slot, bytes, sum } = claim;
    Located { index: key as u16, follows: false, line: line.0, generation, slot: slot.0, bytes, sum }
}
