//! How many bytes a slot has, and where its tail starts. Pure; a format: slots outlive the processes that filled them.
//!
//! A slot holds the payload from its first byte on. A tail follows at the next multiple of 64 if the pool's blocks have
//! several pieces (their sums, 8 bytes each) or are objects (name and lengths).

use crate::words::{OBJECT_NAME_BYTES_MAX, PoolKind, PoolShape, UNIT_BYTES};

/// Bytes of an object's tail before its name: name_len u32, total_bytes u64, parts u32, without padding.
pub const OBJECT_TAIL_BYTES: u64 = 16;

/// Where the tail of a block of `bytes` payload bytes starts in its slot.
pub const fn tail_offset(bytes: u64) -> u64 {
    bytes.next_multiple_of(64)
}

/// Bytes of the tail of every block of a pool; 0 if it has none.
pub fn tail_bytes(shape: &PoolShape) -> u64 {
    tail_bytes_of(shape.kind, shape.pieces)
}

fn tail_bytes_of(kind: PoolKind, pieces: u16) -> u64 {
    let sums = if pieces > 1 { 8 * u64::from(pieces) } else { 0 };
    match kind {
        PoolKind::Chain => sums,
        PoolKind::Object => sums + OBJECT_TAIL_BYTES + OBJECT_NAME_BYTES_MAX as u64,
    }
}

/// Bytes of the slot that holds a block of `bytes` payload bytes. Chains waste less than 4 KiB; objects have size
/// classes a quarter of a power of two apart, so that few sizes share the memory.
pub fn slot_bytes(shape: &PoolShape, bytes: u64) -> u64 {
    slot_bytes_of(shape.kind, shape.pieces, bytes)
}

/// The same of a pool of which only kind and pieces are known: nothing else counts.
pub fn slot_bytes_of(kind: PoolKind, pieces: u16, bytes: u64) -> u64 {
    let tail = tail_bytes_of(kind, pieces);
    let needed = if tail == 0 { bytes } else { tail_offset(bytes) + tail };
    let step = match kind {
        PoolKind::Chain => UNIT_BYTES,
        PoolKind::Object => (1 << needed.max(1).ilog2() >> 2).max(UNIT_BYTES),
    };
    needed.max(1).next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{Fingerprint, OBJECT_PART_BYTES};

    fn shape(kind: PoolKind, pieces: u16) -> PoolShape {
        PoolShape { namespace: Fingerprint::default(), label: String::new(), kind, block_bytes: 1 << 20, pieces }
    }

    #[test]
    fn a_block_of_one_piece_fills_its_slot() {
        let chain = shape(PoolKind::Chain, 1);
        assert_eq!(slot_bytes(&chain, 64 << 10), 64 << 10);
        assert_eq!(slot_bytes(&chain, (64 << 10) + 1), 68 << 10);
    }

    #[test]
    fn the_sums_of_pieces_follow_the_payload() {
        let chain = shape(PoolKind::Chain, 32);
        assert_eq!(tail_offset(64 << 10), 64 << 10);
        assert_eq!(tail_offset(65), 128);
        assert_eq!(slot_bytes(&chain, 64 << 10), 68 << 10);
    }

    #[test]
    fn sizes_of_objects_are_few_and_waste_at_most_a_quarter() {
        let object = shape(PoolKind::Object, 1);
        let mut sizes: Vec<u64> = (1..=64 << 10).map(|kib| slot_bytes(&object, kib << 10)).collect();
        for (i, slot) in sizes.iter().enumerate() {
            let needed = ((i as u64 + 1) << 10) + tail_bytes(&object);
            assert!(*slot >= needed && *slot <= (needed + needed / 4).max(needed + UNIT_BYTES), "{needed} in {slot}");
        }
        sizes.dedup();
        assert!(sizes.len() <= 4 * 16, "{} classes", sizes.len());
    }

    #[test]
    fn a_part_that_leaves_a_page_for_its_tail_fills_a_slot_of_the_part_size() {
        let object = shape(PoolKind::Object, 1);
        assert_eq!(slot_bytes(&object, OBJECT_PART_BYTES - UNIT_BYTES), OBJECT_PART_BYTES);
    }
}
