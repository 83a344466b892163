//! How blocks move between the engine and other hosts here: at once and whole, or late, in part, damaged, not at all, or as
//! another block that took its place at the owner.

use std::time::Duration;

use lapis_arena::StoredBlock;
use lapis_config::{PoolShape, sizes};
use lapis_transport::peers::{
    links::LinkId,
    paths::{Came, Fetch, FromPaths, PathKind, ToPaths, Wanted},
};

use super::{Event, Hosts};
use crate::sim::{
    model::{self, Model},
    plan::Plan,
};

impl Hosts {
    pub fn path_job(&mut self, job: ToPaths) {
        match job {
            ToPaths::Fetch(fetch) => self.fetch_begins(fetch),
            ToPaths::Look(look) => self.look_begins(look),
            ToPaths::Table { group: 0, mapping, shape } => self.table = Some((mapping, shape)),
            ToPaths::Memory { group: 0, first, mapping, .. } => drop(self.memory.insert(first.0, mapping)),
            ToPaths::PeerGone { link } => {
                self.end_fetches(link);
                self.end_looks(link);
            }
            ToPaths::Lend { link, token, blocks } => drop(self.lent.insert((link, token), blocks)),
            ToPaths::Unlend { link, token } => drop(self.lent.remove(&(link, token))),
            ToPaths::GuestGone { link } => self.lent.retain(|(of, _), _| *of != link),
            ToPaths::Memory { .. } | ToPaths::Table { .. } => {}
            ToPaths::Guest { .. } | ToPaths::Peer { .. } | ToPaths::Heard { .. } => {}
        }
    }

    pub fn path_said(&mut self) -> Option<FromPaths> {
        self.said.pop_front()
    }

    fn fetch_begins(&mut self, fetch: Fetch) {
        let slow = self.plan.link_faults && self.rng.u8(..20) == 0;
        let takes = Duration::from_micros(if slow { self.rng.u64(..100_000) } else { self.rng.u64(20..2_000) });
        let cut = self.links.get(&fetch.link).is_none_or(|own| own.dead || !own.stub_open);
        let due = self.now.after(if cut { fetch.within } else { takes.min(fetch.within) });
        let (op, late) = (fetch.op, takes > fetch.within);
        self.fetches.insert(op, fetch);
        if late && !cut {
            // It is given up at its deadline, with some of it written.
            let fetch = &self.fetches[&op];
            fetch.blocks.iter().take(1).for_each(|wanted| write(wanted, wanted.span as usize / 2, model::REMOTE));
        }
        self.at(due, Event::Fetched(op));
    }

    /// At its end. What was written before is all that ever will be.
    pub(super) fn fetch_ends(&mut self, op: u64) {
        let Some(fetch) = self.fetches.remove(&op) else { return };
        let blocks = fetch.blocks.iter().map(|wanted| self.moves(fetch.link, wanted)).collect::<Vec<Came>>();
        self.said.push_back(FromPaths::Fetched { op, came: blocks, by: PathKind::Tcp });
    }

    fn moves(&mut self, link: LinkId, wanted: &Wanted) -> Came {
        let Some(own) = self.links.get(&link).filter(|own| !own.dead && own.stub_open) else { return Came::Not };
        let stub = &self.stubs[own.stub];
        let same = stub.boot == own.boot && stub.has(&wanted.into.key);
        let fault = if self.plan.link_faults { self.rng.u8(..100) } else { 100 };
        let span = wanted.span as usize;
        match fault {
            0..4 => {
                write(wanted, self.rng.usize(..span), model::REMOTE);
                self.tally.fetch_faults += 1;
                return Came::Not;
            }
            4..8 => {
                write(wanted, span, model::REMOTE);
                let at = wanted.into.offset + self.rng.usize(..wanted.into.bytes as usize);
                let byte = wanted.into.mapping.to_vec(at, 1)[0];
                wanted.into.mapping.copy_in(at, &[byte ^ 1 << self.rng.u8(..8)]);
                self.tally.fetch_faults += 1;
            }
            // Its slot has another block by now.
            _ if !same => write(wanted, span, model::REMOTE + 1),
            _ => write(wanted, span, model::REMOTE),
        }
        let sound = wanted.into.is_sound();
        self.tally.fetched += u64::from(sound);
        assert!(!sound || same, "a block that is not there any more came whole");
        if sound { Came::Whole } else { Came::Corrupt }
    }

    fn end_fetches(&mut self, link: LinkId) {
        let ops: Vec<u64> = self.fetches.iter().filter(|(_, fetch)| fetch.link == link).map(|(&op, _)| op).collect();
        for op in ops {
            let fetch = self.fetches.remove(&op).expect("listed");
            let came = vec![Came::Not; fetch.blocks.len()];
            self.said.push_back(FromPaths::Fetched { op, came, by: PathKind::Tcp });
        }
    }
}

/// The first bytes of what a slot of a put would hold.
fn write(wanted: &Wanted, bytes: usize, number: u64) {
    let slot = slot(&wanted.into, number);
    wanted.into.mapping.copy_in(wanted.into.offset, &slot[..bytes.min(slot.len())]);
}

fn slot(block: &StoredBlock, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; block.bytes as usize];
    Model::fill(&block.key, number, &mut bytes);
    let (_, tail) = sums(&bytes, block);
    bytes.resize(sizes::tail_offset(bytes.len() as u64) as usize, 0);
    bytes.extend(tail.iter().flat_map(|sum| sum.to_le_bytes()));
    bytes
}

/// The block's sum, and those of its pieces if it has several.
fn sums(payload: &[u8], block: &StoredBlock) -> (u64, Vec<u64>) {
    use lapis_arena::{Sum, sum};
    if block.pieces == 1 {
        return (sum::of_bytes(block.pool_seed, &block.key, payload), Vec::new());
    }
    let piece_bytes = (block.block_bytes / u64::from(block.pieces)) as usize;
    let pieces: Vec<u64> = payload
        .chunks(piece_bytes)
        .enumerate()
        .map(|(index, piece)| {
            let (all, own) = (payload.len() as u64, piece.len() as u64);
            let mut sum = Sum::piece(block.pool_seed, &block.key, all, index as u16, own);
            sum.update(piece);
            sum.finish()
        })
        .collect();
    (sum::combine(block.pool_seed, &block.key, payload.len() as u64, &pieces), pieces)
}

/// What the owner says of a block of its own.
pub(super) fn sum_of(shape: &PoolShape, key: &lapis_config::Key) -> u64 {
    let mut payload = vec![0; shape.block_bytes as usize];
    Model::fill(key, model::REMOTE, &mut payload);
    let block = StoredBlock {
        mapping: lapis_arena::Mapping::anonymous(4096).expect("a page"),
        offset: 0,
        key: *key,
        bytes: shape.block_bytes as u32,
        pieces: shape.pieces,
        block_bytes: shape.block_bytes,
        pool_seed: lapis_arena::sum::pool_seed(shape),
        sum: 0,
    };
    sums(&payload, &block).0
}

/// The pool's index in [`Plan::shapes`], by another host's number of it.
pub(super) fn shape_of(index: usize) -> PoolShape {
    Plan::shapes()[index].clone()
}
