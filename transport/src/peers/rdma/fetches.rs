//! Fetches that have not ended: what of each block is there, and what is still with a NIC. Pure.
//!
//! Invariant: a fetch ends only when no NIC has a READ of it any more: nothing is written into its slots afterwards. Where a
//! NIC takes long to let go of what it has, that is after the deadline; whoever waits for the blocks has a deadline of its own.

use std::{collections::BTreeMap, time::Duration};

use lapis_arena::{Mapping, StoredBlock};
use lapis_config::{Time, UNIT_BYTES};

use super::memory::From;
use crate::peers::{
    links::LinkId,
    paths::{Came, Fetch},
};

/// So long before its deadline, at most, what a fetch has with a NIC is taken back, so that it ends in time.
const MARGIN: Duration = Duration::from_millis(10);

/// Some bytes of a block of a fetch, or of a window of a look: by its key's index then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub op: u64,
    pub block: u32,
    pub at: u32,
    pub bytes: u32,
    /// How often it was tried in vain.
    pub tries: u8,
}

struct Block {
    /// Bytes from the start of the owner's memory.
    from: u64,
    into: StoredBlock,
    left: u32,
    came: Option<Came>,
}

struct Fetching {
    link: LinkId,
    /// When its READs are taken back, and when it ends if the NIC hands them back in time.
    give_up: Time,
    deadline: Time,
    gave_up: bool,
    blocks: Vec<Block>,
    /// Blocks without a verdict.
    open: usize,
    /// READs that a NIC has.
    with_nic: usize,
}

impl Fetching {
    fn decide(&mut self, block: u32, came: Came) {
        let block = &mut self.blocks[block as usize];
        if block.came.is_none() {
            block.came = Some(came);
            self.open -= 1;
        }
    }
}

/// Where a piece comes from and goes to.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub from: From,
    pub mapping: &'a Mapping,
    /// In the mapping.
    pub offset: usize,
    pub deadline: Time,
}

#[derive(Default)]
pub(super) struct Fetches {
    under_way: BTreeMap<u64, Fetching>,
}

impl Fetches {
    /// Its pieces, a block each; a block without bytes is complete already.
    pub(super) fn begin(&mut self, now: Time, fetch: Fetch) -> Vec<Piece> {
        let margin = MARGIN.min(fetch.within / 8);
        let blocks: Vec<Block> = fetch
            .blocks
            .into_iter()
            .map(|wanted| Block {
                from: u64::from(wanted.from.slot) * UNIT_BYTES,
                left: wanted.span,
                into: wanted.into,
                came: None,
            })
            .collect();
        let whole = |(index, block): (usize, &Block)| {
            let (block, bytes) = (index as u32, block.left);
            Piece { op: fetch.op, block, at: 0, bytes, tries: 0 }
        };
        let pieces = blocks.iter().enumerate().map(whole).collect();
        let fetching = Fetching {
            link: fetch.link,
            give_up: now.after(fetch.within.saturating_sub(margin)),
            deadline: now.after(fetch.within),
            gave_up: false,
            open: blocks.len(),
            blocks,
            with_nic: 0,
        };
        let former = self.under_way.insert(fetch.op, fetching);
        assert!(former.is_none(), "fetch {} was begun twice", fetch.op);
        pieces
    }

    /// `None`: nobody waits for it any more.
    pub(super) fn place(&self, piece: &Piece) -> Option<Place<'_>> {
        let fetching = self.under_way.get(&piece.op)?;
        let block = fetching.blocks.get(piece.block as usize).filter(|block| block.came.is_none())?;
        let (from, offset) = (block.from + u64::from(piece.at), block.into.offset + piece.at as usize);
        let (from, mapping) = (From::Blocks(from), &block.into.mapping);
        Some(Place { from, mapping, offset, deadline: fetching.deadline })
    }

    pub(super) fn link(&self, op: u64) -> Option<LinkId> {
        self.under_way.get(&op).map(|fetching| fetching.link)
    }

    pub(super) fn given(&mut self, piece: &Piece) {
        self.get(piece).with_nic += 1;
    }

    /// A NIC has a READ no more: of a piece, or one that had no bytes of its own. What is to be checked now.
    pub(super) fn taken(&mut self, piece: &Piece, whole: bool) -> Option<StoredBlock> {
        let fetching = self.get(piece);
        fetching.with_nic -= 1;
        let block = &mut fetching.blocks[piece.block as usize];
        if !whole || block.came.is_some() || piece.bytes == 0 {
            return None;
        }
        block.left -= piece.bytes;
        (block.left == 0).then(|| block.into.clone())
    }

    /// A block that has no bytes at all.
    pub(super) fn empty(&self, piece: &Piece) -> Option<StoredBlock> {
        let block = self.under_way.get(&piece.op)?.blocks.get(piece.block as usize)?;
        (piece.bytes == 0 && block.came.is_none()).then(|| block.into.clone())
    }

    pub(super) fn decide(&mut self, op: u64, block: u32, came: Came) {
        // One that gave up has ended without waiting for its sums.
        if let Some(fetching) = self.under_way.get_mut(&op) {
            fetching.decide(block, came);
        }
    }

    /// Those whose time is up, each with its link, once: blocks that are not there yet are no blocks.
    pub(super) fn give_up(&mut self, now: Time) -> Vec<(u64, LinkId)> {
        let late = self.under_way.iter_mut().filter(|(_, f)| f.give_up <= now && !f.gave_up);
        let late = late.map(|(op, fetching)| {
            fetching.gave_up = true;
            (0..fetching.blocks.len() as u32).for_each(|block| fetching.decide(block, Came::Not));
            (*op, fetching.link)
        });
        late.collect()
    }

    /// All blocks of a link that are not there yet are none.
    pub(super) fn fail_all(&mut self, link: LinkId) {
        for fetching in self.under_way.values_mut().filter(|fetching| fetching.link == link) {
            (0..fetching.blocks.len() as u32).for_each(|block| fetching.decide(block, Came::Not));
        }
    }

    /// Those of which nothing is open and no NIC has anything.
    pub(super) fn ended(&mut self) -> Vec<(u64, Vec<Came>)> {
        let is_over = |fetching: &Fetching| fetching.open == 0 && fetching.with_nic == 0;
        let over: Vec<u64> = self.under_way.iter().filter(|(_, f)| is_over(f)).map(|(op, _)| *op).collect();
        let verdict = |block: &Block| block.came.expect("none is open");
        let end = |op| {
            let fetching = self.under_way.remove(&op).expect("found above");
            (op, fetching.blocks.iter().map(verdict).collect())
        };
        over.into_iter().map(end).collect()
    }

    pub(super) fn next_at(&self) -> Option<Time> {
        self.under_way.values().filter(|fetching| !fetching.gave_up).map(|fetching| fetching.give_up).min()
    }

    fn get(&mut self, piece: &Piece) -> &mut Fetching {
        self.under_way.get_mut(&piece.op).expect("a fetch stays while a NIC has something of it")
    }
}
