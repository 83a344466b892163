//! A fetch under way, whose parts end on several threads.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Instant,
};

use super::{Events, lock};
use crate::peers::paths::{Came, Fetch, FromPaths, PathKind, Wanted};

pub(super) struct Fetching {
    fetch: Fetch,
    pub deadline: Instant,
    events: Arc<Events>,
    progress: Mutex<Progress>,
}

struct Progress {
    came: Vec<Came>,
    /// Blocks of which nothing was said yet.
    left: usize,
}

/// Blocks of a fetch that follow each other, asked for together.
#[derive(Clone)]
pub(super) struct Run {
    of: Arc<Fetching>,
    range: Range<usize>,
}

impl Fetching {
    pub fn new(fetch: Fetch, deadline: Instant, events: Arc<Events>) -> Arc<Self> {
        let progress = Mutex::new(Progress { came: vec![Came::Not; fetch.blocks.len()], left: fetch.blocks.len() });
        Arc::new(Self { fetch, deadline, events, progress })
    }
}

impl Run {
    pub fn new(of: &Arc<Fetching>, range: Range<usize>) -> Self {
        Self { of: Arc::clone(of), range }
    }

    pub fn blocks(&self) -> &[Wanted] {
        &self.of.fetch.blocks[self.range.clone()]
    }

    pub fn token(&self) -> u64 {
        self.of.fetch.token
    }

    /// Index of its first block among those of the token.
    pub fn first(&self) -> u32 {
        self.of.fetch.first + self.range.start as u32
    }

    pub fn bytes(&self) -> u64 {
        self.blocks().iter().map(|block| u64::from(block.span)).sum()
    }

    pub fn deadline(&self) -> Instant {
        self.of.deadline
    }

    /// What came of its first blocks; of the others nothing did. No slot of it is written any more. Reports the fetch if
    /// this is the last of it.
    pub fn end(&self, came: &[Came]) {
        let mut progress = lock(&self.of.progress);
        progress.came[self.range.clone()][..came.len()].copy_from_slice(came);
        progress.left = progress.left.checked_sub(self.range.len()).expect("each run ends once");
        if progress.left == 0 {
            let came = std::mem::take(&mut progress.came);
            drop(progress);
            self.of.events.push(FromPaths::Fetched { op: self.of.fetch.op, came, by: PathKind::Tcp });
        }
    }
}
