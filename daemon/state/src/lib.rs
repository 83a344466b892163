//! The *state* memfd of a group: what a restarted daemon must know before it can read the table: format, geometry,
//! pools, clients, slab map. Mapped by the daemon alone. Drawn in `docs/formats.md`.
//!
//! Invariant: a record is written before the word that makes it count, with a compiler fence between: SIGKILL keeps
//! every store that was made, in order.

mod learned;
pub mod slabs;

use std::sync::atomic::{Ordering, compiler_fence};

use lapis_arena::map::Private;
use lapis_config::{
    BLOCK_BYTES_MAX, ClientId, EXTENTS_MAX, Fingerprint, PIECES_MAX, POOLS_MAX, PoolId, PoolKind, PoolShape, UNIT_BYTES,
};
use lapis_tiering::kept::Slab;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use self::slabs::{SlabMap, SlabRecord};

/// "LAPISST" and a zero byte.
const MAGIC: u64 = u64::from_le_bytes(*b"LAPISST\0");
/// Changes whenever anything in the kept memfds changes its meaning: unlike versions start cold.
pub const STATE_VERSION: u32 = 2;
/// Client records; the bound of `server.clients_max`.
pub const CLIENT_RECORDS: usize = 4096;
const LABEL_BYTES: usize = 48;

const POOLS_AT: usize = 4096;
const CLIENTS_AT: usize = POOLS_AT + POOLS_MAX * size_of::<PoolRecord>();
const LEARNED_AT: usize = CLIENTS_AT + CLIENT_RECORDS * size_of::<ClientRecord>();
const LEARNED_BYTES: usize = 16 << 10;
const SLABS_AT: usize = LEARNED_AT + LEARNED_BYTES;

/// What the configuration makes of a group; kept memory of another geometry is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Geometry {
    pub lines: u64,
    pub dram_bytes: u64,
    pub floor_bytes: u64,
    pub ceiling_bytes: u64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: u64,
    version: u32,
    pools: u32,
    table_id: u64,
    /// Starts of a daemon on this table, this one included.
    boots: u64,
    geometry: Geometry,
    client_next: u32,
    extents: u32,
    /// Slab records that were ever used; free ones among them have 0 units.
    slabs: u64,
    extents_bytes: [u64; EXTENTS_MAX],
    /// How much of each has memory, from its start.
    extents_populated_mib: [u32; EXTENTS_MAX],
}
const _: () = assert!(size_of::<Header>() <= POOLS_AT, "the header is one page");

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PoolRecord {
    namespace: [u8; 32],
    label: [u8; LABEL_BYTES],
    label_bytes: u8,
    /// 1 chain, 2 object.
    kind: u8,
    pieces: u16,
    spare: u32,
    block_bytes: u64,
    spare2: [u64; 4],
}
const _: () = assert!(size_of::<PoolRecord>() == 128, "layout of kept memory");

pub const CLIENT_MAY_PUT: u32 = 1;
pub const CLIENT_WRITES_BY_DMA: u32 = 1 << 1;
pub const CLIENT_EXPELLED: u32 = 1 << 2;

/// A client as its daemon remembers it over a restart. `id` 0: no client.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ClientRecord {
    pub id: u32,
    pub pid: u32,
    pub start_time: u64,
    pub uid: u32,
    /// `CLIENT_*`.
    pub flags: u32,
    pub secret: u64,
    pub name: [u8; 32],
}
const _: () = assert!(size_of::<ClientRecord>() == 64, "layout of kept memory");

/// The mapped state of one group.
pub struct State {
    bytes: Private<u8>,
    slabs: SlabMap,
}

/// Why kept memory is not used, for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unlike {
    #[error("it is no state of a Lapis daemon")]
    Foreign,
    #[error("its format is {found}, this daemon's is {expected}")]
    Version { found: u32, expected: u32 },
    #[error("its geometry is {found:?}, the configuration asks for {expected:?}")]
    Geometry { found: Geometry, expected: Geometry },
    #[error("{what} is damaged")]
    Damaged { what: &'static str },
}

impl State {
    /// Bytes of the memfd for a group that may grow to `ceiling_bytes`; sparse, a few pages are touched.
    pub fn bytes_for(ceiling_bytes: u64) -> u64 {
        let slabs = slabs::records_for(ceiling_bytes);
        (SLABS_AT as u64 + slabs * size_of::<SlabRecord>() as u64).next_multiple_of(4096)
    }

    /// A fresh state over zeroed memory.
    pub fn create(bytes: Private<u8>, geometry: Geometry, table_id: u64) -> Self {
        let mut state = Self { bytes, slabs: SlabMap::default() };
        let header = state.header_mut();
        header.version = STATE_VERSION;
        header.table_id = table_id;
        header.boots = 1;
        header.geometry = geometry;
        header.client_next = 1;
        compiler_fence(Ordering::Release);
        header.magic = MAGIC;
        state
    }

    /// The state of a former daemon, if it is one that this daemon can go on with. Counts the start.
    pub fn adopt(bytes: Private<u8>, expected: Geometry) -> Result<Self, Unlike> {
        if (bytes.len() as u64) < Self::bytes_for(expected.ceiling_bytes) {
            return Err(Unlike::Damaged { what: "its length" });
        }
        let mut state = Self { bytes, slabs: SlabMap::default() };
        let header = state.header();
        if header.magic != MAGIC {
            return Err(Unlike::Foreign);
        }
        if header.version != STATE_VERSION {
            return Err(Unlike::Version { found: header.version, expected: STATE_VERSION });
        }
        if header.geometry != expected {
            return Err(Unlike::Geometry { found: header.geometry, expected });
        }
        if header.pools as usize > POOLS_MAX || header.extents as usize > EXTENTS_MAX {
            return Err(Unlike::Damaged { what: "its count of pools or extents" });
        }
        if (0..header.pools as usize).any(|i| state.pool_at(i).is_none()) {
            return Err(Unlike::Damaged { what: "a pool record" });
        }
        let damaged = |what| Err(Unlike::Damaged { what });
        let sums = state.extents_bytes().iter().try_fold(0u64, |sum, &bytes| {
            sum.checked_add(bytes).filter(|_| bytes > 0 && bytes.is_multiple_of(UNIT_BYTES))
        });
        if sums.is_none_or(|sum| sum > expected.ceiling_bytes) {
            return damaged("the bytes of an extent");
        }
        let next = state.header().client_next;
        if next == 0 || next == u32::MAX || state.clients().any(|client| client.id >= next) {
            return damaged("a number of a client");
        }
        let header = state.header_mut();
        header.boots = header.boots.saturating_add(1);
        Ok(state)
    }

    fn header(&self) -> &Header {
        Header::ref_from_prefix(&self.bytes).expect("the mapping is page-aligned and longer").0
    }

    fn header_mut(&mut self) -> &mut Header {
        Header::mut_from_prefix(&mut self.bytes).expect("the mapping is page-aligned and longer").0
    }

    pub fn table_id(&self) -> u64 {
        self.header().table_id
    }

    pub fn boots(&self) -> u64 {
        self.header().boots
    }

    pub fn extents_bytes(&self) -> &[u64] {
        let header = self.header();
        &header.extents_bytes[..header.extents as usize]
    }

    /// Records an extent; its memfd is kept already.
    pub fn add_extent(&mut self, bytes: u64) {
        let header = self.header_mut();
        let at = header.extents as usize;
        header.extents_bytes[at] = bytes;
        compiler_fence(Ordering::Release);
        header.extents += 1;
    }

    /// Bytes of an extent that a former daemon has populated.
    pub fn populated_bytes(&self, extent: usize) -> u64 {
        let bytes = u64::from(self.header().extents_populated_mib[extent]) << 20;
        bytes.min(self.header().extents_bytes[extent])
    }

    pub fn set_populated(&mut self, extent: usize, bytes: u64) {
        self.header_mut().extents_populated_mib[extent] = (bytes >> 20) as u32;
    }

    pub fn pools(&self) -> impl Iterator<Item = (PoolId, PoolShape)> + '_ {
        (0..self.header().pools as usize).map(|i| (PoolId(i as u16), self.pool_at(i).expect("checked by adopt")))
    }

    fn pool_at(&self, index: usize) -> Option<PoolShape> {
        let at = POOLS_AT + index * size_of::<PoolRecord>();
        let (record, _) = PoolRecord::ref_from_prefix(&self.bytes[at..]).ok()?;
        let kind = match record.kind {
            1 => PoolKind::Chain,
            2 => PoolKind::Object,
            _ => return None,
        };
        let label = record.label.get(..usize::from(record.label_bytes))?;
        let (bytes, pieces) = (record.block_bytes, record.pieces);
        // As a client's pool is checked: the rest of the daemon divides by them.
        if !(1..=BLOCK_BYTES_MAX).contains(&bytes)
            || !(1..=PIECES_MAX).contains(&pieces)
            || !bytes.is_multiple_of(pieces.into())
        {
            return None;
        }
        Some(PoolShape {
            namespace: Fingerprint(record.namespace),
            label: std::str::from_utf8(label).ok()?.to_owned(),
            kind,
            block_bytes: record.block_bytes,
            pieces: record.pieces,
        })
    }

    /// Records a pool and returns its number; `None` if there are `POOLS_MAX` already.
    ///
    /// # Panics
    /// If the label is longer than 48 bytes: checked where the shape came in.
    pub fn add_pool(&mut self, shape: &PoolShape) -> Option<PoolId> {
        let index = self.header().pools as usize;
        if index == POOLS_MAX {
            return None;
        }
        let mut record = PoolRecord::new_zeroed();
        record.namespace = shape.namespace.0;
        record.label[..shape.label.len()].copy_from_slice(shape.label.as_bytes());
        record.label_bytes = shape.label.len() as u8;
        record.kind = match shape.kind {
            PoolKind::Chain => 1,
            PoolKind::Object => 2,
        };
        record.pieces = shape.pieces;
        record.block_bytes = shape.block_bytes;
        let at = POOLS_AT + index * size_of::<PoolRecord>();
        self.bytes[at..at + size_of::<PoolRecord>()].copy_from_slice(record.as_bytes());
        compiler_fence(Ordering::Release);
        self.header_mut().pools += 1;
        Some(PoolId(index as u16))
    }

    /// A number that no client of this table had before.
    pub fn next_client(&mut self) -> ClientId {
        let header = self.header_mut();
        let id = header.client_next;
        header.client_next += 1;
        ClientId(id)
    }

    pub fn clients(&self) -> impl Iterator<Item = ClientRecord> + '_ {
        (0..CLIENT_RECORDS).map(|i| *self.client_at(i)).filter(|record| record.id != 0)
    }

    fn client_at(&self, index: usize) -> &ClientRecord {
        let at = CLIENTS_AT + index * size_of::<ClientRecord>();
        ClientRecord::ref_from_prefix(&self.bytes[at..]).expect("aligned and within").0
    }

    fn client_at_mut(&mut self, index: usize) -> &mut ClientRecord {
        let at = CLIENTS_AT + index * size_of::<ClientRecord>();
        ClientRecord::mut_from_prefix(&mut self.bytes[at..]).expect("aligned and within").0
    }

    /// Records a client; false if all records are taken.
    pub fn add_client(&mut self, record: ClientRecord) -> bool {
        let Some(free) = (0..CLIENT_RECORDS).find(|&i| self.client_at(i).id == 0) else { return false };
        let place = self.client_at_mut(free);
        *place = ClientRecord { id: 0, ..record };
        compiler_fence(Ordering::Release);
        place.id = record.id;
        true
    }

    pub fn remove_client(&mut self, id: ClientId) {
        if let Some(index) = self.client_index(id) {
            self.client_at_mut(index).id = 0;
        }
    }

    /// The client's hazard page does not count from here on, after a restart either: to be called before it does not.
    pub fn set_expelled(&mut self, id: ClientId) {
        if let Some(index) = self.client_index(id) {
            self.client_at_mut(index).flags |= CLIENT_EXPELLED;
            compiler_fence(Ordering::Release);
        }
    }

    fn client_index(&self, id: ClientId) -> Option<usize> {
        (0..CLIENT_RECORDS).find(|&i| self.client_at(i).id == id.0)
    }

    /// The slab map, its records, and the header, which counts those that were ever used.
    fn slab_parts(&mut self) -> (&mut SlabMap, &mut [SlabRecord], &mut Header) {
        let (head, records) = self.bytes.split_at_mut(SLABS_AT);
        let header = Header::mut_from_prefix(head).expect("the mapping is page-aligned and longer").0;
        let records = <[SlabRecord]>::mut_from_bytes(records).expect("whole records to the end of the last page");
        (&mut self.slabs, records, header)
    }

    pub fn set_slab(&mut self, slab: &Slab) {
        let (map, records, header) = self.slab_parts();
        map.set(records, &mut header.slabs, slab);
    }

    pub fn forget_slab(&mut self, slab: &Slab) {
        let (map, records, _) = self.slab_parts();
        map.forget(records, slab);
    }

    /// Reads the slab map of a former daemon: the slabs within the first `units` of memory, in order of place. An
    /// impossible or overlapping record is left out, and its memory counts as empty.
    pub fn adopt_slabs(&mut self, units: u64) -> Vec<Slab> {
        let (map, records, header) = self.slab_parts();
        let pools = header.pools;
        map.adopt(records, &mut header.slabs, pools, units)
    }
}

#[cfg(test)]
mod tests;
