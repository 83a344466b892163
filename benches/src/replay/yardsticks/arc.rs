//! ARC (Megiddo and Modha, FAST 2003) as published: two lists by recency and by frequency, a ghost list behind each,
//! and a target that hits on ghosts move. Blocks of a request come deepest first.
//! Invariant: both lists together hold at most the capacity, all four twice that; what is asked for once and its
//! ghosts, at most the capacity.

use lapis_trace::Request;

use super::{super::cache::Cache, lists::Lists};

/// Asked for once; more often; and the ghosts of each.
const ONCE: usize = 0;
const OFTEN: usize = 1;
const ONCE_GHOST: usize = 2;
const OFTEN_GHOST: usize = 3;

pub struct Arc {
    lists: Lists<4>,
    capacity: u64,
    /// What `ONCE` should have.
    target: f64,
    evictions: u64,
}

impl Arc {
    pub fn new(blocks: u64, capacity: u64) -> Self {
        Self { lists: Lists::new(blocks), capacity, target: 0.0, evictions: 0 }
    }

    fn touch(&mut self, id: u64) {
        let [once, often, once_ghosts, often_ghosts] =
            [ONCE, OFTEN, ONCE_GHOST, OFTEN_GHOST].map(|list| self.lists.len(list));
        match self.lists.find(id) {
            Some(ONCE | OFTEN) => self.lists.put_first(OFTEN, id),
            Some(ONCE_GHOST) => {
                let step = (often_ghosts as f64 / once_ghosts as f64).max(1.0);
                self.target = (self.target + step).min(self.capacity as f64);
                self.replace(false);
                self.lists.put_first(OFTEN, id);
            }
            Some(_) => {
                let step = (once_ghosts as f64 / often_ghosts as f64).max(1.0);
                self.target = (self.target - step).max(0.0);
                self.replace(true);
                self.lists.put_first(OFTEN, id);
            }
            None => {
                if once + once_ghosts == self.capacity {
                    if once < self.capacity {
                        self.lists.pop_last(ONCE_GHOST);
                        self.replace(false);
                    } else {
                        self.lists.pop_last(ONCE);
                        self.evictions += 1;
                    }
                } else if once + often + once_ghosts + often_ghosts >= self.capacity {
                    if once + often + once_ghosts + often_ghosts == 2 * self.capacity {
                        self.lists.pop_last(OFTEN_GHOST);
                    }
                    self.replace(false);
                }
                self.lists.put_first(ONCE, id);
            }
        }
    }

    /// Makes a block a ghost, if the cache is full.
    fn replace(&mut self, often_ghost_hit: bool) {
        let (once, often) = (self.lists.len(ONCE), self.lists.len(OFTEN));
        if once + often < self.capacity {
            return;
        }
        let over = once as f64 > self.target || (often_ghost_hit && once as f64 == self.target);
        let from_once = once > 0 && (over || often == 0);
        let (from, to) = if from_once { (ONCE, ONCE_GHOST) } else { (OFTEN, OFTEN_GHOST) };
        if let Some(id) = self.lists.last(from) {
            self.lists.put_first(to, id);
            self.evictions += 1;
        }
    }

    #[cfg(test)]
    pub fn check(&self) {
        let [once, often, once_ghosts, often_ghosts] =
            [ONCE, OFTEN, ONCE_GHOST, OFTEN_GHOST].map(|list| self.lists.len(list));
        let all = [once, often, once_ghosts, often_ghosts];
        assert!(once + often <= self.capacity && once + once_ghosts <= self.capacity, "{all:?} of {}", self.capacity);
        assert!(all.iter().sum::<u64>() <= 2 * self.capacity, "{all:?} of {}", self.capacity);
        assert!((0.0..=self.capacity as f64).contains(&self.target), "{}", self.target);
    }
}

impl Cache for Arc {
    fn serve(&mut self, request: &Request) -> u64 {
        let hits = request.ids.iter().take_while(|id| self.holds(**id)).count();
        for id in request.ids.iter().rev() {
            self.touch(*id);
        }
        hits as u64
    }

    fn holds(&self, id: u64) -> bool {
        matches!(self.lists.find(id), Some(ONCE | OFTEN))
    }

    fn evictions(&self) -> u64 {
        self.evictions
    }
}
