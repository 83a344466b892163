//! Movers that work when the world lets them: memory comes in pieces, checks end in any order.

use std::{cell::Cell, collections::VecDeque, os::fd::AsFd, rc::Rc};

use fastrand::Rng;
use lapis::movers::{self, Done, Job, Movers};
use lapis_arena::memfd;

use super::kill::Fuse;

/// Pieces in which an extent gets its memory.
const PIECES: u64 = 4;

pub struct SimMovers {
    rng: Rng,
    fuse: Fuse,
    /// With how much of it is done.
    waiting: Vec<(Job, u64)>,
    /// How many those are, for whoever turns the world.
    count: Rc<Cell<usize>>,
    done: VecDeque<Done>,
}

impl SimMovers {
    pub fn new(rng: Rng, fuse: Fuse, count: Rc<Cell<usize>>) -> Self {
        count.set(0);
        Self { rng, fuse, waiting: Vec::new(), count, done: VecDeque::new() }
    }

    /// Does a piece of any job. What it came to is found by the engine's next turn.
    pub fn work(&mut self) -> Option<&Done> {
        if self.waiting.is_empty() {
            return None;
        }
        let at = self.rng.usize(..self.waiting.len());
        let (job, progress) = &mut self.waiting[at];
        let (done, over) = match job {
            Job::Populate { group, extent, memory } => {
                *progress += 1;
                let (had, bytes) = (memory.populated_bytes, memory.mapping.len() as u64);
                let upto = |pieces: u64| had + (bytes - had) * pieces / PIECES / 4096 * 4096;
                // As the real one does: whatever lay there is gone.
                let cleared = memfd::clear(memory.fd.as_fd(), upto(*progress - 1)..upto(*progress));
                cleared.expect("memory for a test");
                (Done::Populated { group: *group, extent: *extent, bytes: upto(*progress) }, *progress == PIECES)
            }
            Job::Verify { group, op, block } => {
                (Done::Verified { group: *group, op: *op, outcome: movers::check(block) }, true)
            }
        };
        if over {
            self.waiting.swap_remove(at);
            self.count.set(self.waiting.len());
        }
        self.done.push_back(done);
        self.done.back()
    }
}

impl Movers for SimMovers {
    fn submit(&mut self, job: Job) {
        self.fuse.burn();
        self.waiting.push((job, 0));
        self.count.set(self.waiting.len());
    }

    fn poll(&mut self) -> Option<Done> {
        self.fuse.burn();
        self.done.pop_front()
    }
}
