//! Objects: any bytes under a name. A long one is a chain of parts, each in a slot of its own.
//!
//! The key of the first part is that of the name. The key of each next part depends on the part before it, its sum
//! included: so parts that are found one after the other are of one and the same object, whatever was put and evicted
//! under its name in between.
//!
//! A tail follows the payload of every part, at the next multiple of 64:
//! ```text
//!  0  name_len  u32
//!  4  total     u64  bytes of the whole object
//! 12  parts     u32
//! 16  name
//! ```

use std::ops::Range;

use lapis_arena::{copy, sum};
use lapis_config::{Key, OBJECT_NAME_BYTES_MAX, sizes};
use lapis_transport::frame::Request;

use super::Session;
use crate::{ClientError, Pool};

/// What is known of a part that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub total: u64,
    pub parts: u32,
    pub sum: u64,
    pub bytes: usize,
}

/// What reading a part gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Part(Part),
    Miss,
    /// Not in memory: the daemon can fetch it.
    Elsewhere,
}

/// The tail of a part.
pub(crate) fn tail(name: &[u8], total: u64, parts: u32) -> Vec<u8> {
    let mut tail = Vec::with_capacity(sizes::OBJECT_TAIL_BYTES as usize + name.len());
    tail.extend((name.len() as u32).to_le_bytes());
    tail.extend(total.to_le_bytes());
    tail.extend(parts.to_le_bytes());
    tail.extend(name);
    tail
}

/// The key of the part that follows one of that key and sum.
pub(crate) fn next_key(key: &Key, sum: u64, total: u64) -> Key {
    let mut hasher = blake3::Hasher::new_derive_key("lapis 2026 next part of an object");
    hasher.update(&key.to_bytes());
    hasher.update(&sum.to_le_bytes());
    hasher.update(&total.to_le_bytes());
    Key::from_bytes(*hasher.finalize().as_bytes())
}

/// The key of an object's first part.
pub(crate) fn first_key(name: &[u8]) -> Result<Key, ClientError> {
    if !(1..=OBJECT_NAME_BYTES_MAX).contains(&name.len()) {
        return Err(ClientError::Name { bytes: name.len() });
    }
    Ok(Key::new(name))
}

/// The bytes of `range` of vectors that are laid end to end.
pub(crate) fn section<'a>(vectors: &'a [&'a [u8]], range: Range<u64>) -> impl Iterator<Item = &'a [u8]> {
    let mut start = 0;
    vectors.iter().filter_map(move |vector| {
        let (from, end) = (range.start.saturating_sub(start), range.end.saturating_sub(start));
        start += vector.len() as u64;
        let (from, end) = (from.min(vector.len() as u64), end.min(vector.len() as u64));
        (from < end).then(|| &vector[from as usize..end as usize])
    })
}

impl Session {
    /// While this part is read, the next one comes from SSD: if this one is in the table, its sum tells the next key.
    pub(crate) fn fetch_after(&self, pool: &Pool, key: &Key, total: u64) {
        let next = self.find(pool, key).map(|found| next_key(key, found.sum, total));
        let Some(next) = next.filter(|_| self.is_connected()) else { return };
        let elsewhere = self.find(pool, &next).is_some_and(|found| !found.state.is_readable());
        if let Some(pool) = self.pool_id(pool).filter(|_| elsewhere) {
            self.post(Request::Prefetch { pool, keys: vec![next] });
        }
    }

    /// Appends the bytes of one part to `to`, if it is there and has that name; looks twice.
    pub(crate) fn read_part(&self, pool: &Pool, key: &Key, name: &[u8], to: &mut Vec<u8>) -> Read {
        for _ in 0..2 {
            let Some(found) = self.find(pool, key) else { return Read::Miss };
            if !found.state.is_readable() {
                return Read::Elsewhere;
            }
            let bytes = u64::from(found.bytes);
            let place = self.maps.extents.locate(found.slot, sizes::slot_bytes(pool.shape(), bytes));
            let Some((mapping, offset)) = place.filter(|_| !self.is_corrupt(&found)) else { return Read::Miss };
            let before = to.len();
            to.reserve_exact(bytes as usize);
            let copied = copy::out(
                mapping,
                offset,
                &mut to.spare_capacity_mut()[..bytes as usize],
                copy::Kernel::choose(bytes as usize, 1),
            );
            let fits = !self.must_check(&found, None) || sum::of_bytes(pool.seed(), key, copied) == found.sum;
            let head = mapping
                .to_vec(offset + sizes::tail_offset(bytes) as usize, sizes::OBJECT_TAIL_BYTES as usize + name.len());
            copy::sfence();
            if !self.maps.table.still(&found) {
                self.counts.retried();
                continue;
            }
            if !fits {
                self.remember_corrupt(&found);
                return Read::Miss;
            }
            let (total, parts) = lengths(&head);
            if head != tail(name, total, parts) {
                return Read::Miss;
            }
            // SAFETY: `out` initialised these bytes.
            unsafe { to.set_len(before + bytes as usize) };
            self.report(Some(found), 1, 1, bytes);
            return Read::Part(Part { total, parts, sum: found.sum, bytes: bytes as usize });
        }
        Read::Miss
    }
}

pub(super) fn lengths(tail: &[u8]) -> (u64, u32) {
    let total = tail[4..12].try_into().map_or(0, u64::from_le_bytes);
    (total, tail[12..16].try_into().map_or(0, u32::from_le_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_the_same_however_the_bytes_are_cut() {
        let bytes: Vec<u8> = (0..100).collect();
        for cut in [0, 1, 37, 99, 100] {
            let vectors = [&bytes[..cut], &[], &bytes[cut..]];
            for (from, end) in [(0, 100), (0, 0), (36, 38), (37, 100), (100, 100), (5, 6)] {
                let section: Vec<u8> = section(&vectors, from as u64..end as u64).flatten().copied().collect();
                assert_eq!(section, bytes[from..end], "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_tail_says_its_lengths() {
        assert_eq!(lengths(&tail(b"name", 1 << 40, 77)), (1 << 40, 77));
    }

    #[test]
    fn the_next_part_depends_on_the_sum_of_the_one_before() {
        let key = first_key(b"name").expect("a name");
        assert_ne!(next_key(&key, 1, 100), next_key(&key, 2, 100));
        assert_ne!(next_key(&key, 1, 100), next_key(&key, 1, 101));
        assert!(first_key(b"").is_err() && first_key(&[0; 1025]).is_err());
    }
}
