//! What is in memory, the hottest first, each after what it hangs on: for a host that goes away and hands it over.

use std::{cmp::Reverse, collections::HashSet};

use lapis_config::{Key, LineId, PoolId, UNIT_BYTES};

use super::Core;
use crate::{
    kept::{Kept, SlotState},
    policy::Policy,
};

/// A run of a chain from above to below, or a single block that hangs on nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub pool: PoolId,
    /// Of the chain's first block: pieces of one chain have the same.
    pub root: Key,
    pub keys: Vec<Key>,
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// The blocks in DRAM, at most so many bytes of them, in pieces of at most `keys_max`.
    pub fn hottest(&self, bytes_max: u64, keys_max: usize) -> Vec<Piece> {
        if self.adopting.is_some() {
            return Vec::new();
        }
        let mut lines: Vec<LineId> = Vec::new();
        for found in self.memory.slabs() {
            let slots = (0..found.slab.slots()).map(|index| self.kept.slot_state(&found.slab, index));
            lines.extend(slots.filter_map(|state| match state {
                SlotState::Used(line) => Some(line),
                _ => None,
            }));
        }
        // Deepest first among equals: a chain that was used as a whole is one piece.
        lines.sort_by_cached_key(|&line| (Reverse(self.kept.entry(line).last_use), Reverse(self.depth(line)), line));
        let (mut pieces, mut seen, mut left) = (Vec::new(), HashSet::new(), bytes_max / UNIT_BYTES);
        for line in lines {
            let mut path = Vec::new();
            let mut at = line;
            while at.is_some() && self.in_dram(at) && seen.insert(at) {
                path.push(at);
                at = LineId(self.kept.entry(at).parent);
            }
            path.reverse();
            for part in path.chunks(keys_max.max(1)) {
                let mut keys = Vec::with_capacity(part.len());
                for &line in part {
                    let live = self.kept.live(line).expect("a used slot's line is live");
                    let pages = u64::from(self.pages_of(&live));
                    if pages > left {
                        break;
                    }
                    left -= pages;
                    keys.push(live.key);
                }
                if let Some(live) = self.kept.live(part[0]).filter(|_| !keys.is_empty()) {
                    pieces.push(Piece { pool: live.pool, root: self.root(part[0]), keys });
                }
            }
        }
        pieces
    }

    fn depth(&self, line: LineId) -> u32 {
        let (mut at, mut depth) = (line, 0);
        while at.is_some() && depth < self.kept.lines() {
            depth += 1;
            at = LineId(self.kept.entry(at).parent);
        }
        depth
    }

    fn root(&self, line: LineId) -> Key {
        let mut at = line;
        while LineId(self.kept.entry(at).parent).is_some() {
            at = LineId(self.kept.entry(at).parent);
        }
        self.kept.live(at).expect("a parent is live").key
    }
}
