//! The offline optimum: Belady's rule with bypass. After each request those blocks stay that are asked for again
//! soonest; what never is, is not kept at all.
//!
//! Block by block this is the most that can be hit (Mattson's proof for MIN). It is so for prefixes too: whoever asks
//! for a block asks for all before it, so a block's next use never comes later than that of those that follow it, and
//! what stays is closed under prefixes. Uses within one request are told apart by depth, the root first.
//!
//! Invariant: a block is kept if and only if its `next` is not `NEVER`.

use std::collections::BinaryHeap;

use lapis_trace::Request;

use super::super::{cache::Cache, workload::Workload};

const NEVER: u32 = u32::MAX;

pub struct Opt {
    /// By reference, in order: when its block is used again.
    following: Vec<u32>,
    /// The reference that the next request begins with.
    at: usize,
    /// By block: when a kept one is used again.
    next: Vec<u32>,
    /// Kept blocks, the one used last on top. Entries whose block has a later `next` by now are void.
    by_use: BinaryHeap<(u32, u32)>,
    kept: u64,
    capacity: u64,
    evictions: u64,
}

impl Opt {
    pub fn new(workload: &Workload, capacity: u64) -> Self {
        assert!(workload.block_refs() < u64::from(NEVER), "references are counted in 32 bits");
        let mut last: Vec<u32> = vec![NEVER; workload.blocks as usize];
        let mut following = vec![NEVER; workload.block_refs() as usize];
        for (at, id) in workload.requests.iter().flat_map(|request| &request.ids).enumerate() {
            let before = std::mem::replace(&mut last[*id as usize], at as u32);
            if before != NEVER {
                following[before as usize] = at as u32;
            }
        }
        last.fill(NEVER);
        Self { following, at: 0, next: last, by_use: BinaryHeap::new(), kept: 0, capacity, evictions: 0 }
    }

    fn evict(&mut self) {
        while self.kept > self.capacity {
            let (use_at, block) = self.by_use.pop().expect("every kept block is in the heap");
            let next = &mut self.next[block as usize];
            if *next == use_at {
                *next = NEVER;
                self.kept -= 1;
                self.evictions += 1;
            }
        }
    }
}

impl Cache for Opt {
    /// The requests must be those of the workload, in its order.
    fn serve(&mut self, request: &Request) -> u64 {
        let hits = request.ids.iter().take_while(|id| self.holds(**id)).count();
        for (depth, id) in request.ids.iter().enumerate() {
            let next = self.following[self.at + depth];
            let before = std::mem::replace(&mut self.next[*id as usize], next);
            self.kept -= u64::from(before != NEVER);
            if next != NEVER {
                self.kept += 1;
                self.by_use.push((next, *id as u32));
            }
        }
        self.at += request.ids.len();
        self.evict();
        hits as u64
    }

    fn holds(&self, id: u64) -> bool {
        self.next[id as usize] != NEVER
    }

    fn evictions(&self) -> u64 {
        self.evictions
    }
}
