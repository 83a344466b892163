//! From where a peer says that blocks lie into slots here. A remote read is a put by a client of the daemon's own (`FETCHER`):
//! reserve, fetch, check, commit. What fails is given back, and is a miss.
//!
//! Invariant: a slot that is being fetched into is committed or given back only after paths have ended the fetch.

use std::time::Duration;

use lapis_arena::StoredBlock;
use lapis_config::{Key, PoolKind, SlotId, Time, sizes};
use lapis_tiering::{
    face::{Caller, CommitItem, Parent, Put, Reply, Reserved},
    kept::Kept,
};
use lapis_transport::{
    peers::{
        directory::PeerId,
        message::Located,
        paths::{Came, Fetch, PathKind, ToPaths, Wanted},
    },
    wire::Wire,
};

use super::{
    super::Engine,
    guests::{fits, span},
};
use crate::{
    movers::{Job, Movers},
    peers::{FETCHER, FETCHER_AHEAD, Fill, FillAt, FillBlock},
};

/// What a peer has found, or was looked up in its table: for which want, and by which call.
pub(super) struct Answer {
    pub want: u64,
    pub peer: PeerId,
    pub call: u64,
    pub looked: bool,
    /// Of the first block.
    pub parent: Key,
}

impl<W: Wire, M: Movers> Engine<W, M> {
    pub(super) fn begin_fill(&mut self, now: Time, index: usize, answer: Answer, blocks: Vec<(usize, Located)>) {
        let Answer { want, peer, call, looked, parent } = answer;
        let peers = self.peers.as_mut().expect("a peer has answered");
        let number = peers.number();
        let own = &mut peers.groups[index];
        let (Some(wanted), Some(&link)) = (own.wants.get(&want), own.to.get(&peer)) else {
            return own.host.filled(now, peer, call, &[]);
        };
        let (pool, deadline) = (wanted.pool, wanted.deadline);
        let client = if wanted.parked.is_empty() { FETCHER_AHEAD } else { FETCHER };
        let shape = &self.groups[index].shapes[&pool].0;
        // A block of another length than its pool's blocks may have is a lie; of a chain, all below it are no use then.
        let blocks: Vec<FillBlock> = blocks
            .into_iter()
            .take_while(|(_, located)| fits(shape, located.bytes))
            .map(|(at, located)| FillBlock { index: at, key: wanted.keys[at], located, at: FillAt::Nowhere })
            .collect();
        let mut by_size: Vec<(u32, Vec<usize>)> = Vec::new();
        for (at, block) in blocks.iter().enumerate() {
            let size = slot_bytes(shape, block.located.bytes);
            match by_size.iter_mut().find(|(of, _)| *of == size) {
                Some((_, of)) => of.push(at),
                None => by_size.push((size, vec![at])),
            }
        }
        let awaited = by_size.len();
        let above = match self.groups[index].core.kept().find(pool, &parent) {
            Some(_) if parent != Key::default() => Parent::Key(parent),
            _ => Parent::None,
        };
        let keys_of = |of: &[usize]| -> Vec<Key> { of.iter().map(|&at| blocks[at].key).collect() };
        let calls: Vec<(u32, Vec<Key>, Vec<usize>)> =
            by_size.into_iter().map(|(size, of)| (size, keys_of(&of), of)).collect();
        own.fills
            .insert(number, Fill { peer, want, link, call, looked, client, pool, parent, blocks, awaited, deadline });
        if awaited == 0 {
            return self.finish_fill(now, index, number);
        }
        for (size, keys, of) in calls {
            let peers = self.peers.as_mut().expect("looked at above");
            let token = peers.number();
            peers.groups[index].reserving.insert(token, (number, of));
            let to = Caller { client, token };
            self.groups[index].core.reserve(now, to, pool, size, &keys, above, deadline);
        }
    }

    /// The core has answered the daemon's own client.
    pub(super) fn fetcher_answered(&mut self, now: Time, index: usize, token: u64, reply: Reply) {
        let own = self.group_peers(index);
        let Some((number, of)) = own.reserving.remove(&token) else { return };
        let fill = own.fills.get_mut(&number).expect("it waits for the core");
        match reply {
            Reply::Reserved { results } => {
                for (at, result) in of.into_iter().zip(results) {
                    fill.blocks[at].at = match result {
                        Reserved::Slot(slot) => FillAt::Slot(slot),
                        Reserved::Exists => FillAt::Here,
                        Reserved::Refused(_) => FillAt::Nowhere,
                    };
                }
            }
            Reply::Refused(reason) => tracing::debug!(%reason, "no room for blocks of a peer"),
            other => unreachable!("{other:?} answers no reserve"),
        }
        fill.awaited -= 1;
        if fill.awaited == 0 {
            self.fetch(now, index, number);
        }
    }

    /// What has a slot is fetched: a run of blocks that lie together in the answer is one fetch.
    fn fetch(&mut self, now: Time, index: usize, number: u64) {
        let group = &self.groups[index];
        let peers = self.peers.as_mut().expect("a fill of peers");
        let own = &mut peers.groups[index];
        let fill = own.fills.get_mut(&number).expect("looked up by the caller");
        let unwanted = cut(&mut fill.blocks);
        let (shape, seed) = &group.shapes[&fill.pool];
        let mut fetches: Vec<(usize, Vec<usize>, Vec<Wanted>)> = Vec::new();
        for (at, block) in fill.blocks.iter().enumerate() {
            let FillAt::Slot(slot) = block.at else { continue };
            let span = span(shape, block.located.bytes);
            let place = group.space.locate(slot, u64::from(span));
            let (mapping, offset) = place.expect("a granted slot lies in an extent");
            let into = StoredBlock {
                mapping: mapping.clone(),
                offset,
                key: block.key,
                bytes: block.located.bytes,
                pieces: shape.pieces,
                block_bytes: shape.block_bytes,
                pool_seed: *seed,
                sum: block.located.sum,
            };
            let wanted = Wanted { from: block.located, span, into };
            match fetches.last_mut() {
                Some((_, of, run)) if *of.last().expect("begun with one") + 1 == at => {
                    of.push(at);
                    run.push(wanted);
                }
                _ => fetches.push((at, vec![at], vec![wanted])),
            }
        }
        fill.awaited = fetches.len();
        let client = fill.client;
        let (link, token, within) = (fill.link, fill.call, Duration::from_micros(fill.deadline.since_us(now)));
        for (first, of, blocks) in fetches {
            let op = peers.number();
            peers.groups[index].fetching.insert(op, (number, of));
            let fetch = Fetch { op: wide(index, op), link, token, first: first as u32, blocks, within };
            self.movers.submit(Job::Paths(ToPaths::Fetch(fetch)));
        }
        if !unwanted.is_empty() {
            self.groups[index].core.abort(now, client, &unwanted);
        }
        if self.group_peers(index).fills[&number].awaited == 0 {
            self.finish_fill(now, index, number);
        }
    }

    pub(super) fn fetched(&mut self, now: Time, op: u64, came: &[Came], by: PathKind) {
        let (index, op) = narrow(op);
        let Some(own) = self.peers.as_mut().and_then(|peers| peers.groups.get_mut(index)) else { return };
        let Some((number, of)) = own.fetching.remove(&op) else { return };
        let fill = own.fills.get_mut(&number).expect("it waits for paths");
        assert_eq!(came.len(), of.len(), "an outcome for each block");
        for (&came, at) in came.iter().zip(of) {
            let block = &mut fill.blocks[at];
            match (came, block.at) {
                (Came::Whole, FillAt::Slot(slot)) => {
                    block.at = FillAt::Whole(slot);
                    own.counts.blocks_read += 1;
                    own.counts.blocks_looked_up += u64::from(fill.looked);
                    own.counts.bytes_read += u64::from(block.located.bytes);
                    if by == PathKind::Rdma {
                        own.counts.bytes_read_rdma += u64::from(block.located.bytes);
                    }
                }
                // Of what nobody held the slot may well be another block's by now.
                (Came::Corrupt, _) if !fill.looked => own.counts.blocks_corrupt += 1,
                _ => own.counts.blocks_failed += 1,
            }
        }
        fill.awaited -= 1;
        if fill.awaited == 0 {
            self.finish_fill(now, index, number);
        }
    }

    /// What came is published; what did not is given back, and with it what hangs on it.
    fn finish_fill(&mut self, now: Time, index: usize, number: u64) {
        let fill = self.group_peers(index).fills.remove(&number).expect("looked up by the caller");
        let peers = self.peers.as_ref().expect("a fill of peers");
        let want = peers.groups[index].wants.get(&fill.want);
        let is_removed = |key: &Key| want.is_some_and(|want| want.purged || want.removed.contains(key));
        let core = &mut self.groups[index].core;
        let (mut items, mut of, mut back): (Vec<CommitItem>, Vec<usize>, Vec<SlotId>) = Default::default();
        let mut came: Vec<usize> = Vec::new();
        let mut above: Option<Key> = None;
        for (at, block) in fill.blocks.iter().enumerate() {
            let parent = match (block.located.follows && at > 0, above) {
                (true, Some(key)) => Some(Parent::Key(key)),
                (true, None) => None,
                (false, _) if at == 0 && core.kept().find(fill.pool, &fill.parent).is_some() => {
                    Some(Parent::Key(fill.parent))
                }
                (false, _) => Some(Parent::None),
            };
            above = match (block.at, parent) {
                (FillAt::Whole(slot), Some(parent)) if !is_removed(&block.key) => {
                    let (bytes, sum) = (block.located.bytes, block.located.sum);
                    items.push(CommitItem { slot, key: block.key, parent, bytes, sum });
                    of.push(block.index);
                    Some(block.key)
                }
                (FillAt::Here, _) => {
                    came.push(block.index);
                    Some(block.key)
                }
                (FillAt::Slot(slot) | FillAt::Whole(slot), _) => {
                    back.push(slot);
                    None
                }
                (FillAt::Nowhere, _) => None,
            };
        }
        let mut puts = Vec::with_capacity(items.len());
        if !items.is_empty() {
            core.commit(now, fill.client, fill.pool, &items, &mut puts);
        }
        if !back.is_empty() {
            core.abort(now, fill.client, &back);
        }
        let stored = of.iter().zip(&puts).filter(|(_, put)| matches!(put, Put::Stored | Put::Exists));
        came.extend(stored.map(|(&index, _)| index));
        came.sort_unstable();
        self.group_peers(index).host.filled(now, fill.peer, fill.call, &came);
        self.pump_peers(now, index);
    }
}

/// Of a chain, what follows a block without a slot is not worth fetching: its slots go back.
fn cut(blocks: &mut [FillBlock]) -> Vec<SlotId> {
    let (mut unwanted, mut before) = (Vec::new(), true);
    for block in blocks {
        let is_wanted = before || !block.located.follows;
        if let FillAt::Slot(slot) = block.at
            && !is_wanted
        {
            unwanted.push(slot);
            block.at = FillAt::Nowhere;
        }
        before = block.at != FillAt::Nowhere;
    }
    unwanted
}

fn slot_bytes(shape: &lapis_config::PoolShape, bytes: u32) -> u32 {
    let bytes = match shape.kind {
        PoolKind::Chain => shape.block_bytes,
        PoolKind::Object => u64::from(bytes),
    };
    sizes::slot_bytes(shape, bytes) as u32
}

/// A fetch's name among all groups.
pub(super) fn wide(index: usize, op: u64) -> u64 {
    (index as u64) << 48 | op
}

pub(super) fn narrow(op: u64) -> (usize, u64) {
    ((op >> 48) as usize, op & ((1 << 48) - 1))
}
