//! What can be read and written: this host's memory as its NICs know it, and a peer's as it said.

use std::{collections::BTreeMap, io, ops::Range, sync::Arc};

use lapis_arena::Mapping;
use lapis_config::{SlotId, UNIT_BYTES};

use super::{
    provider::{Nic, Region},
    reach::Spans,
    said::RegionSaid,
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

struct Memory<N: Nic> {
    first: SlotId,
    mapping: Mapping,
    /// By NIC, in order of their offsets; none until it is registered.
    parts: Vec<Vec<Part<N::Region>>>,
}

impl<N: Nic> Memory<N> {
    fn said(&self, nic: usize) -> impl Iterator<Item = RegionSaid> {
        self.parts[nic].iter().map(|part| RegionSaid {
            first: self.first.0 + (part.range.start as u64 / UNIT_BYTES) as u32,
            units: (part.range.len() as u64 / UNIT_BYTES) as u32,
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
        let region = nic.register(&domain, &mapping, 0..mapping.len())?;
        let scratch = Stretch { address: mapping.as_ptr(0) as u64, key: region.local_key(), bytes: SCRATCH_BYTES };
        self.domains[index] = Some(Own { domain: domain.clone(), scratch, _scratch: region });
        Ok(domain)
    }

    /// Where a NIC may write at any time.
    pub(super) fn scratch(&self, nic: usize) -> Option<Stretch> {
        self.domains[nic].as_ref().map(|own| own.scratch)
    }

    /// There is a NIC more: all memory is to be made known to it, in this order.
    pub(super) fn add_nic(&mut self) -> Vec<Mapping> {
        self.domains.push(None);
        self.memories.iter_mut().for_each(|memory| memory.parts.push(Vec::new()));
        self.memories.iter().map(|memory| memory.mapping.clone()).collect()
    }

    /// Which one it is now.
    pub(super) fn add(&mut self, first: SlotId, mapping: Mapping) -> usize {
        let parts = self.domains.iter().map(|_| Vec::new()).collect();
        self.by_address.insert(mapping.as_ptr(0) as usize, self.memories.len());
        self.memories.push(Memory { first, mapping, parts });
        self.memories.len() - 1
    }

    /// A NIC knows a memory now; what its peers are to be told.
    pub(super) fn registered(&mut self, memory: usize, nic: usize, parts: Vec<Part<N::Region>>) -> Vec<RegionSaid> {
        self.memories[memory].parts[nic] = parts;
        self.memories[memory].said(nic).collect()
    }

    /// All that the NIC knows.
    pub(super) fn said(&self, nic: usize) -> Vec<RegionSaid> {
        self.memories.iter().flat_map(|memory| memory.said(nic)).collect()
    }

    /// What a NIC knows, by mapping.
    pub(super) fn spans(&self, nic: usize) -> Spans {
        let of = |memory: &Memory<N>| memory.parts[nic].iter().map(|part| part.range.clone()).collect();
        self.by_address.iter().map(|(address, index)| (*address, of(&self.memories[*index]))).collect()
    }

    /// Where a NIC can write what belongs at `offset` of a mapping.
    pub(super) fn here(&self, nic: usize, mapping: &Mapping, offset: usize) -> Option<Stretch> {
        let memory = &self.memories[*self.by_address.get(&(mapping.as_ptr(0) as usize))?];
        let part = memory.parts[nic].iter().find(|part| part.range.contains(&offset))?;
        let bytes = (part.range.end - offset) as u64;
        Some(Stretch { address: memory.mapping.as_ptr(offset) as u64, key: part.region.local_key(), bytes })
    }
}

/// Cuts a mapping into ranges of at most `most` bytes, each of whole units. None if not even one unit fits.
pub(super) fn cut(bytes: usize, most: u64) -> Vec<Range<usize>> {
    let step = usize::try_from(most.min(1 << 40) / UNIT_BYTES * UNIT_BYTES).expect("40 bits fit");
    if step == 0 {
        return Vec::new();
    }
    (0..bytes).step_by(step).map(|start| start..bytes.min(start + step)).collect()
}

/// What an owner said that can be read on one lane. Nothing that it says is believed further than that its NIC will be
/// asked for it.
#[derive(Clone, Debug, Default)]
pub(super) struct There {
    /// By first unit.
    regions: BTreeMap<u32, RegionSaid>,
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
        self.at(u64::from(*first) * UNIT_BYTES)
    }

    /// Where what lies `offset` bytes from the start of the owner's memory can be read.
    pub(super) fn at(&self, offset: u64) -> Option<Stretch> {
        let unit = u32::try_from(offset / UNIT_BYTES).ok()?;
        let (_, region) = self.regions.range(..=unit).next_back()?;
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
        let found = |offset| there.at(offset).map(|s| (s.address, s.bytes));
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
        assert_eq!(cut(3 * 4096, u64::MAX), vec![0..3 * 4096]);
        assert_eq!(cut(5 * 4096, 2 * 4096 + 7), vec![0..2 * 4096, 2 * 4096..4 * 4096, 4 * 4096..5 * 4096]);
        assert_eq!(cut(4096, 4095), Vec::<Range<usize>>::new());
    }
}
