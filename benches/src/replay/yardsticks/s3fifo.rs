//! S3-FIFO (Yang et al., SOSP 2023) as published: a small queue that sorts out what is asked for once, a main queue
//! with second chances, and a ghost queue as long as both. Blocks of a request come deepest first.

use lapis_trace::Request;

use super::{super::cache::Cache, lists::Lists};

const SMALL: usize = 0;
const MAIN: usize = 1;
const GHOST: usize = 2;
/// The small queue has a tenth of the capacity.
const SMALL_PART: u64 = 10;
/// Uses are counted to three.
const USES_MAX: u8 = 3;
/// From the small queue to the main one goes what was used more than once since it came.
const USES_MAIN: u8 = 2;

pub struct S3Fifo {
    lists: Lists<3>,
    uses: Vec<u8>,
    capacity: u64,
    small: u64,
    evictions: u64,
}

impl S3Fifo {
    pub fn new(blocks: u64, capacity: u64) -> Self {
        let small = (capacity / SMALL_PART).max(1);
        Self { lists: Lists::new(blocks), uses: vec![0; blocks as usize], capacity, small, evictions: 0 }
    }

    fn touch(&mut self, id: u64) {
        if self.holds(id) {
            let uses = &mut self.uses[id as usize];
            *uses = (*uses + 1).min(USES_MAX);
            return;
        }
        while self.lists.len(SMALL) + self.lists.len(MAIN) >= self.capacity {
            self.evict();
        }
        let known = self.lists.find(id) == Some(GHOST);
        self.uses[id as usize] = 0;
        self.lists.put_first(if known { MAIN } else { SMALL }, id);
    }

    fn evict(&mut self) {
        if self.lists.len(SMALL) >= self.small || self.lists.len(MAIN) == 0 {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) {
        while let Some(id) = self.lists.pop_last(SMALL) {
            if self.uses[id as usize] < USES_MAIN {
                self.evictions += 1;
                self.lists.put_first(GHOST, id);
                if self.lists.len(GHOST) > self.capacity {
                    self.lists.pop_last(GHOST);
                }
                return;
            }
            self.uses[id as usize] = 0;
            self.lists.put_first(MAIN, id);
            if self.lists.len(MAIN) > self.capacity - self.small {
                self.evict_main();
            }
        }
    }

    fn evict_main(&mut self) {
        while let Some(id) = self.lists.pop_last(MAIN) {
            if self.uses[id as usize] == 0 {
                self.evictions += 1;
                return;
            }
            self.uses[id as usize] -= 1;
            self.lists.put_first(MAIN, id);
        }
    }

    #[cfg(test)]
    pub fn check(&self) {
        let [small, main, ghosts] = [SMALL, MAIN, GHOST].map(|list| self.lists.len(list));
        assert!(small + main <= self.capacity, "{small} and {main} blocks in {}", self.capacity);
        assert!(ghosts <= self.capacity, "{ghosts} ghosts of {}", self.capacity);
        assert!(self.uses.iter().all(|uses| *uses <= USES_MAX));
    }
}

impl Cache for S3Fifo {
    fn serve(&mut self, request: &Request) -> u64 {
        let hits = request.ids.iter().take_while(|id| self.holds(**id)).count();
        for id in request.ids.iter().rev() {
            self.touch(*id);
        }
        hits as u64
    }

    fn holds(&self, id: u64) -> bool {
        matches!(self.lists.find(id), Some(SMALL | MAIN))
    }

    fn evictions(&self) -> u64 {
        self.evictions
    }
}
