//! Whether the payload of every record has the sum that the log says.

use lapis_arena::{Sum, sum};
use lapis_config::{PoolShape, sizes};

use super::{BadPlace, PAGE, ReadAt, SegmentCheck};
use crate::{
    format::{PAGE_BYTES, Superblock},
    recover::{Listed, ScannedSegment},
};

/// Reads all records of a segment, and adds to `check` how many are whole, and which are not.
pub(super) fn check(
    read: &mut impl ReadAt,
    superblock: &Superblock,
    segment: &ScannedSegment,
    check: &mut SegmentCheck,
) {
    let offset = superblock.offset_bytes(segment.used.segment);
    let seeds: Vec<u64> = segment.pools.iter().map(|pool| sum::pool_seed(&pool.shape)).collect();
    let mut slot = Vec::new();
    for record in segment.records.iter().filter(|record| !record.removed) {
        slot.resize(record.pages as usize * PAGE_BYTES, 0);
        let pool = usize::from(record.pool);
        let read = read(offset + u64::from(record.start.0) * PAGE, &mut slot);
        let why = match read {
            Ok(()) => judge(&segment.pools[pool].shape, seeds[pool], record, &slot),
            Err(error) => Some(format!("unreadable: {error}")),
        };
        match why {
            None => check.payloads += 1,
            Some(why) => check.payloads_bad.push(BadPlace { page: record.start.0, why }),
        }
    }
}

/// What is wrong with a slot as it lies on the device, if anything is. That the payload is in the slot, and the sums of
/// its pieces behind it, was checked when the record was taken.
fn judge(shape: &PoolShape, seed: u64, record: &Listed, slot: &[u8]) -> Option<String> {
    let payload = &slot[..record.bytes as usize];
    if shape.pieces == 1 {
        let found = sum::of_bytes(seed, &record.key, payload);
        return (found != record.sum).then(|| format!("expected sum {:016x}, found {found:016x}", record.sum));
    }
    let bytes = u64::from(record.bytes);
    let piece_bytes = (shape.block_bytes / u64::from(shape.pieces)) as usize;
    if piece_bytes == 0 {
        return Some(format!("{} bytes in {} pieces", shape.block_bytes, shape.pieces));
    }
    let piece = |(part, index): (&[u8], u16)| {
        let mut sum = Sum::piece(seed, &record.key, bytes, index, part.len() as u64);
        sum.update(part);
        sum.finish()
    };
    let sums: Vec<u64> = payload.chunks(piece_bytes).zip(0..).map(piece).collect();
    let tail = &slot[sizes::tail_offset(bytes) as usize..][..8 * usize::from(shape.pieces)];
    let (listed, _) = tail.as_chunks::<8>();
    let differs = sums.iter().zip(listed).position(|(found, listed)| *found != u64::from_le_bytes(*listed));
    let found = sum::combine(seed, &record.key, bytes, &sums);
    match differs {
        // The block's sum tells whether the payload or what stands behind it is wrong.
        Some(piece) if found == record.sum => {
            Some(format!("the payload is whole, the sum kept of piece {piece} is not"))
        }
        Some(piece) => Some(format!("piece {piece}: its sum differs")),
        None if found != record.sum => Some(format!("expected sum {:016x}, found {found:016x}", record.sum)),
        None => None,
    }
}
