//! The extents of a group's arena: memfds that are mapped one after the other, each filled with memory behind.
//!
//! Invariant: a slot's offset counts over all extents in their order, which the core knows too.

use std::os::fd::{AsFd, OwnedFd};

use lapis_arena::{
    Access, Mapping,
    memfd::{self, Huge},
};
use lapis_config::{SlotId, UNIT_BYTES};
use lapis_transport::hold::Keeper;

use super::Group;
use crate::{error::DaemonError, movers::Populate};

/// One memfd of the arena.
pub struct Extent {
    pub fd: OwnedFd,
    pub mapping: Mapping,
    /// So much of it, from its start, has memory.
    pub populated_bytes: u64,
    /// The NUMA node that its memory is of, where memory is spread and that is known.
    pub node: Option<u32>,
}

impl Extent {
    pub fn bytes(&self) -> u64 {
        self.mapping.len() as u64
    }
}

impl Group {
    /// Makes one more extent, of memory of its node where memory is spread. It is usable as far as it gets populated.
    pub fn add_extent(&mut self, bytes: u64, keeper: &mut dyn Keeper) -> Result<memfd::Pages, DaemonError> {
        let name = format!("{}.arena.{}", self.options.name, self.extents.len());
        let (fd, pages) = memfd::create(&name, bytes, self.options.huge)?;
        let mapping = Mapping::shared(fd.as_fd(), bytes, Access::ReadWrite)?;
        if let Some(node) = self.options.spread.node_of(self.extents.len())
            && let Err(error) = mapping.prefer_node(node)
        {
            // As in a container that may not say: then it comes from where it is touched first.
            tracing::warn!(%error, node, name, "an extent is not placed at its node");
        }
        keeper.keep(&name, fd.as_fd()).map_err(DaemonError::keeper("keep"))?;
        if pages == memfd::Pages::Transparent {
            mapping.advise_huge();
        }
        self.core.kept_mut().state.add_extent(bytes);
        self.add_mapped(Extent { fd, mapping, populated_bytes: 0, node: None });
        Ok(pages)
    }

    /// The extent that a slot lies in, and where in it.
    ///
    /// # Panics
    /// If it lies in none: slots are the core's, never a client's unchecked word.
    pub fn extent_of(&self, slot: SlotId) -> (usize, u64) {
        let mut at = slot.offset_bytes();
        for (extent, memory) in self.extents.iter().enumerate() {
            if at < memory.bytes() {
                return (extent, at);
            }
            at -= memory.bytes();
        }
        panic!("{slot:?} lies in no extent")
    }

    pub(super) fn is_populated(&self, base: SlotId, units: u32) -> bool {
        let (mut start, from) = (0, base.offset_bytes());
        let to = from + u64::from(units) * UNIT_BYTES;
        for extent in &self.extents {
            if (start..start + extent.bytes()).contains(&from) {
                return to <= start + extent.populated_bytes;
            }
            start += extent.bytes();
        }
        false
    }

    /// What a mover needs to give an extent the rest of its memory.
    pub fn to_populate(&self, extent: usize) -> Result<Populate, DaemonError> {
        let Extent { fd, mapping, populated_bytes, .. } = &self.extents[extent];
        let fd = fd
            .try_clone()
            .map_err(|source| DaemonError::Os { what: "duplicate the descriptor of an extent", source })?;
        let touch = self.options.huge == Huge::Try && memfd::transparent_permitted();
        let (mapping, lock) = (mapping.clone(), self.options.lock);
        Ok(Populate { mapping, fd, populated_bytes: *populated_bytes, touch, lock })
    }

    pub(super) fn add_mapped(&mut self, mut extent: Extent) {
        self.space.push(extent.mapping.clone()).expect("at most EXTENTS_MAX extents: `Shares` gives no more");
        // As the kernel has it: what was kept may have been placed by another configuration.
        let is_spread = self.options.spread.node_of(self.extents.len()).is_some();
        extent.node = extent.mapping.preferred_node().filter(|_| is_spread);
        self.core.extent_added_at(extent.bytes(), extent.node);
        self.extents.push(extent);
    }
}
