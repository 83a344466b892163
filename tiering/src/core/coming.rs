//! Blocks that wait for a slot to be read into: first come first served among those of one source.
//!
//! Invariant: what waits for a GPU that hangs holds up nothing that comes from elsewhere.

use std::collections::{BTreeMap, VecDeque};

use lapis_config::{GpuId, LineId};

use crate::hash::Map;

/// Blocks that may wait for one source.
const WAITING_MAX: usize = 16 * 1024;

/// From where a block comes: a GPU, or SSD.
pub(super) type Source = Option<GpuId>;

#[derive(Default)]
pub(super) struct Coming {
    /// None is empty.
    queues: BTreeMap<Source, VecDeque<(LineId, u64)>>,
    /// Of the lines that wait, the generations under which they do.
    generations: Map<LineId, u64>,
    /// Which source is looked at first: there is not always room for all.
    turn: usize,
}

impl Coming {
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub fn is_empty_of(&self, source: Source) -> bool {
        !self.queues.contains_key(&source)
    }

    pub fn len(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }

    /// Whether the block waits.
    pub fn has(&self, line: LineId, generation: u64) -> bool {
        self.generations.get(&line) == Some(&generation)
    }

    /// False if too many wait.
    pub fn push(&mut self, source: Source, line: LineId, generation: u64) -> bool {
        let queue = self.queues.entry(source).or_default();
        if queue.len() >= WAITING_MAX {
            return false;
        }
        queue.push_back((line, generation));
        self.generations.insert(line, generation);
        true
    }

    pub fn front(&self, source: Source) -> Option<(LineId, u64)> {
        self.queues.get(&source)?.front().copied()
    }

    pub fn pop(&mut self, source: Source) {
        let Some(queue) = self.queues.get_mut(&source) else { return };
        if let Some((line, _)) = queue.pop_front() {
            self.generations.remove(&line);
        }
        if queue.is_empty() {
            self.queues.remove(&source);
        }
    }

    /// The sources that are waited for, each first in its turn.
    pub fn take_turns(&mut self) -> Vec<Source> {
        let mut sources: Vec<Source> = self.queues.keys().copied().collect();
        if !sources.is_empty() {
            let first = self.turn % sources.len();
            self.turn = first + 1;
            sources.rotate_left(first);
        }
        sources
    }

    /// A line that may wait has another generation now.
    pub fn rebound(&mut self, line: LineId, generation: u64) {
        let Some(known) = self.generations.get_mut(&line) else { return };
        *known = generation;
        for waiting in self.queues.values_mut().flatten().filter(|waiting| waiting.0 == line) {
            waiting.1 = generation;
        }
    }
}
