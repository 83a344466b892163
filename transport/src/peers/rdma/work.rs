//! What takes time, done on other threads than the one that reads: memory made known to a NIC, pairs made and connected,
//! sums.

use std::{io, ops::Range, sync::Arc};

use lapis_arena::{Mapping, StoredBlock};

use super::{
    memory::{self, Part},
    provider::{Nic, Use},
    said::End,
};
use crate::peers::links::LinkId;

/// READs of one pair that are posted at once, at most.
pub(super) const DEPTH: u32 = 128;

/// A pair that is to be: whose, and which of the link's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Which {
    pub link: LinkId,
    pub lane: u8,
    pub session: u32,
}

pub(super) enum Work<N: Nic> {
    Register {
        group: usize,
        memory: usize,
        nic: usize,
        on: Arc<N>,
        domain: Arc<N::Domain>,
        mapping: Mapping,
        /// From there on.
        start: usize,
        what_for: Use,
    },
    /// A pair of who fetches.
    Make {
        which: Which,
        on: Arc<N>,
        domain: Arc<N::Domain>,
    },
    Connect {
        which: Which,
        pair: N::Pair,
        there: End,
    },
    /// A pair of the owner, connected at once.
    Accept {
        which: Which,
        on: Arc<N>,
        domain: Arc<N::Domain>,
        there: End,
    },
    /// A NIC that is not well takes a second or longer for this.
    Destroy {
        number: u64,
        pair: N::Pair,
    },
    Check {
        op: u64,
        block: u32,
        stored: StoredBlock,
    },
}

pub(super) enum Done<N: Nic> {
    Registered {
        group: usize,
        memory: usize,
        nic: usize,
        parts: io::Result<Vec<Part<N::Region>>>,
    },
    Made {
        which: Which,
        pair: io::Result<N::Pair>,
    },
    Connected {
        which: Which,
        pair: io::Result<N::Pair>,
    },
    Accepted {
        which: Which,
        pair: io::Result<N::Pair>,
    },
    /// Nothing of it reads or writes any more.
    Destroyed {
        number: u64,
    },
    Checked {
        op: u64,
        block: u32,
        sound: bool,
    },
    /// There is a NIC more than there were.
    Found {
        nic: Arc<N>,
    },
}

impl<N: Nic> Work<N> {
    pub(super) fn run(self) -> Done<N> {
        use super::provider::Pair;

        match self {
            Self::Register { group, memory, nic, on, domain, mapping, start, what_for } => {
                let parts = register(&*on, &domain, &mapping, start, what_for);
                Done::Registered { group, memory, nic, parts }
            }
            Self::Make { which, on, domain } => Done::Made { which, pair: on.pair(&domain, DEPTH) },
            Self::Connect { which, mut pair, there } => {
                let pair = pair.connect(&there).map(|()| pair);
                Done::Connected { which, pair }
            }
            Self::Accept { which, on, domain, there } => {
                let connected = |mut pair: N::Pair| pair.connect(&there).map(|()| pair);
                Done::Accepted { which, pair: on.pair(&domain, 0).and_then(connected) }
            }
            Self::Destroy { number, pair } => {
                drop(pair);
                Done::Destroyed { number }
            }
            Self::Check { op, block, stored } => {
                // What was not lent may be reused while it is read, and its tail be another block's.
                let sound = stored.is_sound() && stored.has_its_tail();
                Done::Checked { op, block, sound }
            }
        }
    }
}

fn register<N: Nic>(
    nic: &N,
    domain: &Arc<N::Domain>,
    mapping: &Mapping,
    start: usize,
    what_for: Use,
) -> io::Result<Vec<Part<N::Region>>> {
    let ranges = memory::cut(start..mapping.len(), nic.region_bytes_max());
    let part = |range: Range<usize>| {
        let region = nic.register(domain, mapping, range.clone(), what_for)?;
        Ok(Part { range, region })
    };
    ranges.into_iter().map(part).collect()
}
