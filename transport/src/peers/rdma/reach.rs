//! What could be read by RDMA now, for whoever chooses between paths on another thread.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{PoisonError, RwLock},
};

use lapis_config::UNIT_BYTES;

use super::memory::{From, There};
use crate::peers::{
    links::LinkId,
    paths::{Fetch, Wanted},
};

/// What of this host's memory one NIC knows: ranges of mappings, by the address at which each mapping begins.
pub(super) type Spans = BTreeMap<usize, Vec<Range<usize>>>;

/// By link, a lane that is up each: what can be read there, and into where.
type Links = BTreeMap<LinkId, Vec<(There, Spans)>>;

#[derive(Default)]
pub(super) struct Reaches {
    links: RwLock<Links>,
}

impl Reaches {
    pub(super) fn set(&self, links: Links) {
        *self.links.write().unwrap_or_else(PoisonError::into_inner) = links;
    }

    /// Whether it is told of just these links with so many lanes each.
    pub(super) fn is_of(&self, links: impl Iterator<Item = (LinkId, usize)>) -> bool {
        let told = self.links.read().unwrap_or_else(PoisonError::into_inner);
        told.iter().map(|(link, lanes)| (*link, lanes.len())).eq(links)
    }

    /// How many lanes have the first byte of its first block.
    #[cfg(test)]
    pub(super) fn lanes_for(&self, fetch: &Fetch) -> usize {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        let Some(lanes) = links.get(&fetch.link) else { return 0 };
        lanes.iter().filter(|lane| one(lane, &fetch.blocks[0], 0)).count()
    }

    /// Whether a lane has a table.
    pub(super) fn looks(&self, link: LinkId) -> bool {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links.get(&link).is_some_and(|lanes| lanes.iter().any(|(there, _)| there.table().is_some()))
    }

    /// Whether every block has a lane for its first byte and one for its last.
    pub(super) fn takes(&self, fetch: &Fetch) -> bool {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        let Some(lanes) = links.get(&fetch.link).filter(|lanes| !lanes.is_empty()) else { return false };
        let all = |wanted: &Wanted| {
            let ends = [0, wanted.span.saturating_sub(1)];
            ends.into_iter().all(|at| lanes.iter().any(|lane| one(lane, wanted, at)))
        };
        fetch.blocks.iter().all(all)
    }
}

/// Whether a lane has that byte of a block.
fn one((there, here): &(There, Spans), wanted: &Wanted, at: u32) -> bool {
    let from = u64::from(wanted.from.slot) * UNIT_BYTES + u64::from(at);
    let spans = here.get(&(wanted.into.mapping.as_ptr(0) as usize));
    let into = wanted.into.offset + at as usize;
    there.at(From::Blocks(from)).is_some() && spans.is_some_and(|spans| spans.iter().any(|span| span.contains(&into)))
}
