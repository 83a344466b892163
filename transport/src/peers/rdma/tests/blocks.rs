//! Memory of two hosts, the blocks in the owner's, and a block table.

use std::time::Duration;

use lapis_arena::{
    LineState, MappedWords, Mapping, StoredBlock, TableWriter, sum,
    table::{TableShape, bytes_for},
};
use lapis_config::{Key, PoolId, SlotId, UNIT_BYTES};

use crate::peers::{
    links::LinkId,
    message::Located,
    paths::{Fetch, ToPaths, Wanted},
};

const SEED: u64 = 5;

/// A little less than the units hold, so that the last chunk is a short one.
pub(super) fn block_bytes(units: u32) -> u32 {
    units * UNIT_BYTES as u32 - TAIL_BYTES
}

/// What a slot holds after its block, and goes with it.
pub(super) const TAIL_BYTES: u32 = 100;

/// Memory of both hosts, and what lies in the owner's.
pub(super) struct Blocks {
    pub there: Mapping,
    pub here: Mapping,
    pub units: u32,
    versions: Vec<u64>,
}

impl Blocks {
    pub(super) fn new(slots: u32, units: u32) -> Self {
        let bytes = u64::from(slots * units) * UNIT_BYTES;
        let memory = || Mapping::anonymous(bytes).expect("memory");
        let (there, here, versions) = (memory(), memory(), vec![1; slots as usize]);
        let blocks = Self { there, here, units, versions };
        (0..slots).for_each(|slot| blocks.there.copy_in(blocks.offset(slot), &blocks.payload(slot, 1)));
        blocks
    }

    pub(super) fn slots(&self) -> u32 {
        self.versions.len() as u32
    }

    pub(super) fn bytes(&self) -> u32 {
        block_bytes(self.units)
    }

    fn offset(&self, slot: u32) -> usize {
        (u64::from(slot * self.units) * UNIT_BYTES) as usize
    }

    pub(super) fn address(&self, slot: u32) -> u64 {
        self.here.as_ptr(self.offset(slot)) as u64
    }

    /// What a slot holds in a version; any 512 bytes of two versions differ.
    pub(super) fn payload(&self, slot: u32, version: u64) -> Vec<u8> {
        let word = |n: u64| ((u64::from(slot) << 40) ^ (version << 20) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let words = (0..u64::from(self.bytes()).div_ceil(8)).flat_map(|n| word(n).to_le_bytes());
        words.take(self.bytes() as usize).collect()
    }

    pub(super) fn key(slot: u32, version: u64) -> Key {
        Key([slot.into(), version, 3, 4])
    }

    pub(super) fn version(&self, slot: u32) -> u64 {
        self.versions[slot as usize]
    }

    /// The owner puts another block there, up to a place in it: what is located from now on is that.
    pub(super) fn begin_write(&mut self, slot: u32) -> Vec<u8> {
        self.versions[slot as usize] += 1;
        self.payload(slot, self.version(slot))
    }

    pub(super) fn write(&self, slot: u32, at: usize, bytes: &[u8]) {
        self.there.copy_in(self.offset(slot) + at, bytes);
    }

    pub(super) fn write_tail(&self, slot: u32, bytes: &[u8; TAIL_BYTES as usize]) {
        self.there.copy_in(self.offset(slot) + self.bytes() as usize, bytes);
    }

    /// Of what is here.
    pub(super) fn tail(&self, into: u32) -> Vec<u8> {
        self.here.to_vec(self.offset(into) + self.bytes() as usize, TAIL_BYTES as usize)
    }

    pub(super) fn wanted(&self, slot: u32, into: u32, version: u64) -> Wanted {
        let (index, follows, bytes, sum) = (0, false, self.bytes(), self.sum(slot, version));
        let from = Located { index, follows, line: slot, generation: version, slot: slot * self.units, bytes, sum };
        self.wanted_from(from, Self::key(slot, version), into)
    }

    pub(super) fn sum(&self, slot: u32, version: u64) -> u64 {
        sum::of_bytes(SEED, &Self::key(slot, version), &self.payload(slot, version))
    }

    /// As somebody said where it is.
    pub(super) fn wanted_from(&self, from: Located, key: Key, into: u32) -> Wanted {
        let Located { bytes, sum, .. } = from;
        let into = StoredBlock {
            mapping: self.here.clone(),
            offset: self.offset(into),
            key,
            bytes,
            pieces: 1,
            block_bytes: bytes.into(),
            pool_seed: SEED,
            sum,
        };
        Wanted { from, span: bytes + TAIL_BYTES, into }
    }

    /// Each into the slot of its index.
    pub(super) fn fetch(&self, op: u64, link: LinkId, slots: &[u32], within: Duration) -> Fetch {
        let one = |(into, slot): (usize, &u32)| self.wanted(*slot, into as u32, self.version(*slot));
        let blocks = slots.iter().enumerate().map(one).collect();
        Fetch { op, link, token: op, first: 0, blocks, within }
    }

    /// Whether what is in a slot here is just that version of the owner's block.
    pub(super) fn is(&self, into: u32, slot: u32, version: u64) -> bool {
        self.here.to_vec(self.offset(into), self.bytes() as usize) == self.payload(slot, version)
    }
}

pub(super) const POOL: PoolId = PoolId(3);

/// A block table.
pub(super) struct Table {
    pub writer: TableWriter,
    pub mapping: Mapping,
    pub shape: TableShape,
}

impl Table {
    pub(super) fn new(lines: u32) -> Self {
        let mapping = Mapping::anonymous(bytes_for(lines)).expect("memory");
        let words = MappedWords::new(&mapping, 0, mapping.len() / 8);
        let writer =
            TableWriter::create(words, lines, 7, [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0])
                .expect("a table");
        let shape = TableShape::of(writer.table());
        Self { writer, mapping, shape }
    }

    pub(super) fn shown(&self, group: usize) -> ToPaths {
        ToPaths::Table { group, mapping: self.mapping.clone(), shape: self.shape }
    }

    pub(super) fn publish(&mut self, blocks: &Blocks, slot: u32) {
        let (version, at) = (blocks.version(slot), SlotId(slot * blocks.units));
        let (key, sum) = (Blocks::key(slot, version), blocks.sum(slot, version));
        self.writer.publish(POOL, &key, at, blocks.bytes(), sum, LineState::Dram).expect("room");
    }

    pub(super) fn unpublish(&mut self, blocks: &Blocks, slot: u32) {
        let found = self.writer.find(POOL, &Blocks::key(slot, blocks.version(slot))).expect("published");
        self.writer.unpublish(found.line);
    }
}
