//! What can be read and written: this host's memory as its NICs know it, and a peer's as it said.

use std::{collections::BTreeMap, io, ops::Range, sync::Arc};

use lapis_arena::{
    Mapping,
    table::{LINES_AT, TableShape},
};
use lapis_config::{SlotId, UNIT_BYTES};

use super::{
    provider::{Nic, Region, Use},
    reach::Spans,
    said::{REGIONS_MAX, RegionSaid},
};

/// Most regions of one lane that are kept: a peer that says more is not believed.
const SAID_MAX: usize = 4096;

/// Bytes of memory into which lanes are tried: as many as the largest packet has.
pub(super) const SCRATCH_BYTES: u64 = UNIT_BYTES;

/// Bytes at an address, under a key of a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub address: u64,
    pub key: u32,
    /// From the address on.
    pub bytes: u64,
}

/// A region and what part of a mapping it is.
pub struct Part<R> {
    pub range: Range<usize>,
    pub region: R,
}

/// What a memory is to its group.
#[derive(Clone, Copy, Debug)]
pub(super) enum Holds {
    /// Slots, from this one on.
    Blocks(SlotId),
    Table(TableShape),
    Scratch,
}

impl Holds {
    pub(super) fn what_for(self) -> Use {
        match self {
            Self::Blocks(_) => Use::Blocks,
            Self::Table(_) => Use::Table,
            Self::Scratch => Use::Scratch,
        }
    }

    /// Where what NICs are told of begins.
    pub(super) fn start(self) -> usize {
        if let Self::Table(_) = self { LINES_AT } else { 0 }
    }
}

/// What peers are told of a memory.
pub(super) enum Shown {
    Nothing,
    Blocks(Vec<RegionSaid>),
    Table(TableShape, Vec<RegionSaid>),
}

struct Memory<N: Nic> {
    holds: Holds,
    mapping: Mapping,
    /// The NUMA node that it is of, where that is followed.
    node: Option<u32>,
    /// By NIC, in order of their offsets; none until it is registered.
    parts: Vec<Vec<Part<N::Region>>>,
}

impl<N: Nic> Memory<N> {
    fn shown(&self, nic: usize) -> Shown {
        match self.holds {
            Holds::Blocks(first) => Shown::Blocks(self.said(nic, first).collect()),
            // One that is cut in more pieces than can be said at once is not shown.
            Holds::Table(shape) if !self.parts[nic].is_empty() && self.parts[nic].len() <= REGIONS_MAX => {
                Shown::Table(shape, self.said(nic, SlotId(0)).collect())
            }
            Holds::Table(_) | Holds::Scratch => Shown::Nothing,
        }
    }

    /// Lines of a table need not fill the last unit: what is beyond them is not asked for.
    fn said(&self, nic: usize, first: SlotId) -> impl Iterator<Item = RegionSaid> {
        let start = self.holds.start();
        self.parts[nic].iter().map(move |part| RegionSaid {
            first: first.0 + ((part.range.start - start) as u64 / UNIT_BYTES) as u32,
            units: (part.range.len() as u64).div_ceil(UNIT_BYTES) as u32,
            address: self.mapping.as_ptr(part.range.start) as u64,
            key: part.region.remote_key(),
        })
    }
}

/// The memory of one trust group. A NIC has a domain for each, so that no peer of one group can read another's.
pub(super) struct Group<N: Nic> {
    memories: Vec<Memory<N>>,
    /// By the address at which a mapping begins.
    by_address: BTreeMap<usize, usize>,
    domains: Vec<Option<Own<N>>>,
}

/// What a group has with a NIC, whatever memory it has.
struct Own<N: Nic> {
    domain: Arc<N::Domain>,
    /// Memory of no fetch, which nobody looks at, and where it is.
    scratch: Stretch,
    _scratch: N::Region,
}

impl<N: Nic> Group<N> {
    pub(super) fn new(nics: usize) -> Self {
        Self { memories: Vec::new(), by_address: BTreeMap::new(), domains: (0..nics).map(|_| None).collect() }
    }

    pub(super) fn domain(&mut self, index: usize, nic: &N) -> io::Result<Arc<N::Domain>> {
        if let Some(own) = &self.domains[index] {
            return Ok(own.domain.clone());
        }
        let domain = Arc::new(nic.domain()?);
        let mapping = Mapping::anonymous(SCRATCH_BYTES).map_err(io::Error::other)?;
        let region = nic.register(&domain, &mapping, 0..mapping.len(), Use::Scratch)?;
        let scratch = Stretch { address: mapping.as_ptr(0) as u64, key: region.local_key(), bytes: SCRATCH_BYTES };
        self.domains[index] = Some(Own { domain: domain.clone(), scratch, _scratch: region });
        Ok(domain)
    }

    /// Where a NIC may write at any time.
    pub(super) fn scratch(&self, nic: usize) -> Option<Stretch> {
        self.domains[nic].as_ref().map(|own| own.scratch)
    }

    /// There is a NIC more: all memory is to be made known to it, in this order.
    pub(super) fn add_nic(&mut self) -> Vec<(Holds, Mapping)> {
        self.domains.push(None);
        self.memories.iter_mut().for_each(|memory| memory.parts.push(Vec::new()));
        self.memories.iter().map(|memory| (memory.holds, memory.mapping.clone())).collect()
    }

    /// Which one it is now.
    pub(super) fn add(&mut self, holds: Holds, mapping: Mapping, node: Option<u32>) -> usize {
        if let Holds::Table(_) = holds {
            self.forget_table();
        }
        let parts = self.domains.iter().map(|_| Vec::new()).collect();
        self.by_address.insert(mapping.as_ptr(0) as usize, self.memories.len());
        self.memories.push(Memory { holds, mapping, node, parts });
        self.memories.len() - 1
    }

    /// A former table is read no more.
    fn forget_table(&mut self) {
        for memory in self.memories.iter_mut().filter(|memory| matches!(memory.holds, Holds::Table(_))) {
            memory.holds = Holds::Scratch;
            memory.parts.iter_mut().for_each(Vec::clear);
            self.by_address.remove(&(memory.mapping.as_ptr(0) as usize));
        }
    }

    /// A NIC knows a memory now; what its peers are to be told.
    pub(super) fn registered(&mut self, memory: usize, nic: usize, parts: Vec<Part<N::Region>>) -> Shown {
        let memory = &mut self.memories[memory];
        // A table may have been forgotten meanwhile.
        if self.by_address.contains_key(&(memory.mapping.as_ptr(0) as usize)) {
            memory.parts[nic] = parts;
        }
        memory.shown(nic)
    }

    /// All that the NIC knows.
    pub(super) fn shown(&self, nic: usize) -> impl Iterator<Item = Shown> {
        self.memories.iter().map(move |memory| memory.shown(nic))
    }

    /// What a NIC knows, by mapping.
    pub(super) fn spans(&self, nic: usize) -> Spans {
        let of = |memory: &Memory<N>| memory.parts[nic].iter().map(|part| part.range.clone()).collect();
        self.by_address.iter().map(|(address, index)| (*address, of(&self.memories[*index]))).collect()
    }

    /// The NUMA node of a mapping's memory.
    pub(super) fn node_of(&self, mapping: &Mapping) -> Option<u32> {
        self.memories[*self.by_address.get(&(mapping.as_ptr(0) as usize))?].node
    }

    /// Where a NIC can write what belongs at `offset` of a mapping.
    pub(super) fn here(&self, nic: usize, mapping: &Mapping, offset: usize) -> Option<Stretch> {
        let memory = &self.memories[*self.by_address.get(&(mapping.as_ptr(0) as usize))?];
        let part = memory.parts[nic].iter().find(|part| part.range.contains(&offset))?;
        let bytes = (part.range.end - offset) as u64;
        Some(Stretch { address: memory.mapping.as_ptr(offset) as u64, key: part.region.local_key(), bytes })
    }
}

/// Cuts some of a mapping into ranges of at most `most` bytes, each of whole units but the last. None if not even one unit fits.
pub(super) fn cut(of: Range<usize>, most: u64) -> Vec<Range<usize>> {
    let step = usize::try_from(most.min(1 << 40) / UNIT_BYTES * UNIT_BYTES).expect("40 bits fit");
    if step == 0 {
        return Vec::new();
    }
    of.clone().step_by(step).map(|start| start..of.end.min(start + step)).collect()
}

/// What is read at an owner.
#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    /// Bytes from the start of its memory.
    Blocks(u64),
    /// Bytes from the first line of its table, as long as that is the one.
    Table(TableShape, u64),
}

/// By first unit.
type Regions = BTreeMap<u32, RegionSaid>;

/// What an owner said that can be read on one lane. Nothing that it says is believed further than that its NIC will be
/// asked for it.
#[derive(Clone, Debug, Default)]
pub(super) struct There {
    regions: Regions,
    table: Option<(TableShape, Regions)>,
}

impl There {
    /// False if it says too much.
    pub(super) fn add(&mut self, said: &[RegionSaid]) -> bool {
        for region in said.iter().filter(|region| region.units > 0) {
            self.regions.insert(region.first, *region);
        }
        self.regions.len() <= SAID_MAX
    }

    /// Any bytes that can be read.
    pub(super) fn any(&self) -> Option<Stretch> {
        let (first, _) = self.regions.first_key_value()?;
        self.at(From::Blocks(u64::from(*first) * UNIT_BYTES))
    }

    /// The table is this one from now on.
    pub(super) fn set_table(&mut self, shape: TableShape, said: &[RegionSaid]) {
        self.table = Some((shape, said.iter().map(|region| (region.first, *region)).collect()));
    }

    pub(super) fn table(&self) -> Option<TableShape> {
        self.table.as_ref().map(|(shape, _)| *shape)
    }

    /// Where it can be read, and how much from there on.
    pub(super) fn at(&self, from: From) -> Option<Stretch> {
        let (regions, offset) = match (from, &self.table) {
            (From::Blocks(offset), _) => (&self.regions, offset),
            (From::Table(of, offset), Some((shape, regions))) if of == *shape => (regions, offset),
            (From::Table(..), _) => return None,
        };
        let unit = u32::try_from(offset / UNIT_BYTES).ok()?;
        let (_, region) = regions.range(..=unit).next_back()?;
        let inside = offset - u64::from(region.first) * UNIT_BYTES;
        let bytes = (u64::from(region.units) * UNIT_BYTES).checked_sub(inside).filter(|bytes| *bytes > 0)?;
        Some(Stretch { address: region.address.checked_add(inside)?, key: region.key, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(first: u32, units: u32, address: u64) -> RegionSaid {
        RegionSaid { first, units, address, key: first }
    }

    #[test]
    fn an_offset_is_found_in_the_region_that_holds_it_and_nowhere_else() {
        let mut there = There::default();
        assert!(there.add(&[said(0, 4, 0x10_0000), said(100, 2, 0x90_0000), said(50, 0, 1)]));
        let found = |offset| there.at(From::Blocks(offset)).map(|s| (s.address, s.bytes));
        assert_eq!(found(0), Some((0x10_0000, 4 * 4096)));
        assert_eq!(found(4 * 4096 - 1), Some((0x10_0000 + 4 * 4096 - 1, 1)));
        assert_eq!(found(4 * 4096), None);
        assert_eq!(found(50 * 4096), None, "an empty one");
        assert_eq!(found(101 * 4096), Some((0x90_1000, 4096)));
        assert_eq!(found(102 * 4096), None);
        assert_eq!(found(u64::MAX), None);
    }

    #[test]
    fn a_peer_that_says_too_many_regions_is_seen() {
        let mut there = There::default();
        let many: Vec<RegionSaid> = (0..SAID_MAX as u32).map(|first| said(first, 1, 0)).collect();
        assert!(there.add(&many) && there.add(&many), "the same again");
        assert!(!there.add(&[said(SAID_MAX as u32, 1, 0)]));
    }

    #[test]
    fn a_mapping_is_cut_into_what_a_region_may_have() {
        let whole = |range: Range<usize>| assert_eq!(cut(range.clone(), u64::MAX), vec![range]);
        whole(0..3 * 4096);
        whole(4096..2 * 4096 + 64);
        assert_eq!(cut(0..5 * 4096, 2 * 4096 + 7), [0..2 * 4096, 2 * 4096..4 * 4096, 4 * 4096..5 * 4096]);
        assert_eq!(cut(0..4096, 4095), Vec::<Range<usize>>::new());
    }
}
