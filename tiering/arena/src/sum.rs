//! Sums: what tells a block's bytes from any other bytes. 64-bit, keyed by what makes the pool (not by its number), by
//! the key and by the length; not by generation or place, so that a sum goes with its block from tier to tier.
//!
//! This is a format: sums lie in tables, in slots and on devices. The tests hold known values.

use std::mem::MaybeUninit;

use lapis_config::{Key, PoolKind, PoolShape};
use twox_hash::xxhash3_64::Hasher;

use crate::{Mapping, copy};

/// Bytes hashed at a time where memory is shared: copied first, small enough to stay in the first-level cache.
const CHUNK_BYTES: usize = 8 << 10;
/// In place of a piece's index: the sum of a whole block.
const WHOLE: u64 = u64::MAX;
/// In place of a piece's index: the sum over the sums of all pieces.
const COMBINED: u64 = u64::MAX - 1;

/// The seed of all sums of a pool: 64 bits of BLAKE3 of its shape. Equal for equal shapes, on any host.
pub fn pool_seed(shape: &PoolShape) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("lapis: seed of the block sums of a pool, layout 1");
    hasher.update(&shape.namespace.0);
    hasher.update(&(shape.label.len() as u64).to_le_bytes());
    hasher.update(shape.label.as_bytes());
    hasher.update(&[match shape.kind {
        PoolKind::Chain => 1,
        PoolKind::Object => 2,
    }]);
    hasher.update(&shape.block_bytes.to_le_bytes());
    hasher.update(&shape.pieces.to_le_bytes());
    let bytes: [u8; 8] = hasher.finalize().as_bytes()[..8].try_into().expect("8 of 32 bytes");
    u64::from_le_bytes(bytes)
}

/// A sum under way: XXH3-64 of the payload, then XXH3-64 of what the payload belongs to and of that hash.
pub struct Sum {
    seed: u64,
    key: Key,
    block_bytes: u64,
    part: u64,
    /// Of payload to come, if it comes at once.
    bytes: u64,
    payload: Payload,
}

enum Payload {
    Nothing,
    /// Its hash: it came at once.
    Whole(u64),
    Parts(Box<Hasher>),
}

impl Sum {
    /// Of a block of one piece: `bytes` of payload follow, at once or by and by.
    #[inline]
    pub fn new(seed: u64, key: &Key, bytes: u64) -> Self {
        Self::part(seed, key, bytes, WHOLE, bytes)
    }

    /// Of one piece of a block of `block_bytes` (of all pieces together); `bytes` of this piece follow.
    #[inline]
    pub fn piece(seed: u64, key: &Key, block_bytes: u64, index: u16, bytes: u64) -> Self {
        Self::part(seed, key, block_bytes, u64::from(index), bytes)
    }

    #[inline]
    fn part(seed: u64, key: &Key, block_bytes: u64, part: u64, bytes: u64) -> Self {
        Self { seed, key: *key, block_bytes, part, bytes, payload: Payload::Nothing }
    }

    /// Goes on with the next bytes of the payload.
    pub fn update(&mut self, bytes: &[u8]) {
        if self.is_whole(bytes.len()) {
            return self.set_whole(Hasher::oneshot(bytes));
        }
        if matches!(self.payload, Payload::Nothing) {
            self.payload = Payload::Parts(Box::new(Hasher::new()));
        }
        match &mut self.payload {
            Payload::Parts(hasher) => std::hash::Hasher::write(&mut **hasher, bytes),
            _ => panic!("more than the {} bytes that this sum is of", self.bytes),
        }
    }

    /// True if `bytes` would be all of the payload.
    #[inline]
    pub(crate) fn is_whole(&self, bytes: usize) -> bool {
        matches!(self.payload, Payload::Nothing) && bytes as u64 == self.bytes
    }

    /// In place of `update` with all of the payload: its XXH3-64.
    #[inline]
    pub(crate) fn set_whole(&mut self, hash: u64) {
        self.payload = Payload::Whole(hash);
    }

    pub fn finish(self) -> u64 {
        let payload = match self.payload {
            Payload::Nothing => Hasher::oneshot(&[]),
            Payload::Whole(hash) => hash,
            Payload::Parts(hasher) => std::hash::Hasher::finish(&*hasher),
        };
        let mut record = [0u8; 56];
        record[..32].copy_from_slice(&self.key.to_bytes());
        record[32..40].copy_from_slice(&self.block_bytes.to_le_bytes());
        record[40..48].copy_from_slice(&self.part.to_le_bytes());
        record[48..].copy_from_slice(&payload.to_le_bytes());
        Hasher::oneshot_with_seed(self.seed, &record)
    }
}

/// The sum of a block of one piece that lies in private memory.
pub fn of_bytes(seed: u64, key: &Key, payload: &[u8]) -> u64 {
    let mut sum = Sum::new(seed, key, payload.len() as u64);
    sum.update(payload);
    sum.finish()
}

/// The sum of a block of several pieces, `bytes` long in all, from the sums of its pieces in their order.
pub fn combine(seed: u64, key: &Key, bytes: u64, pieces: &[u64]) -> u64 {
    let mut sum = Sum::part(seed, key, bytes, COMBINED, pieces.len() as u64 * 8);
    sum.update(zerocopy::IntoBytes::as_bytes(pieces));
    sum.finish()
}

/// Feeds shared memory to a sum, in place of `update`: each byte is read once.
pub fn update_from(sum: &mut Sum, mapping: &Mapping, offset: usize, bytes: usize) {
    if copy::hash_in_place(mapping, offset, bytes, sum) {
        return;
    }
    let mut chunk = [MaybeUninit::<u8>::uninit(); CHUNK_BYTES];
    let mut done = 0;
    while done < bytes {
        let part = &mut chunk[..CHUNK_BYTES.min(bytes - done)];
        sum.update(copy::out(mapping, offset + done, part, copy::Kernel::Plain));
        done += part.len();
    }
}

/// The sum of a block of one piece as it lies in a slot now. The caller checks the line's generation afterwards if the
/// slot could be reused meanwhile.
pub fn of_mapping(seed: u64, key: &Key, mapping: &Mapping, offset: usize, bytes: u32) -> u64 {
    let mut sum = Sum::new(seed, key, u64::from(bytes));
    update_from(&mut sum, mapping, offset, bytes as usize);
    sum.finish()
}

#[cfg(test)]
mod tests {
    use lapis_config::Fingerprint;

    use super::*;

    fn shape() -> PoolShape {
        PoolShape {
            namespace: Fingerprint([7; 32]),
            label: "k.0".into(),
            kind: PoolKind::Chain,
            block_bytes: 65536,
            pieces: 1,
        }
    }

    const KEY: Key = Key([1, 2, 3, 4]);
    const KNOWN: &str = "d91fea39f69afff5 73e33ea9a4f7bb51 8a223479b7aa20b0 d5c33698980d0526 1859822634b1240c \
        dffae2bb12005eff 555e620c3539aada";
    const KNOWN_COMBINED: &str = "94e96bd572cad045";

    #[test]
    fn the_format_of_sums_has_not_changed() {
        let payload: Vec<u8> = (0..70_000u32).map(|i| (i.wrapping_mul(i) >> 3) as u8).collect();
        let of = |bytes: usize| of_bytes(5, &KEY, &payload[..bytes]);
        let found = [pool_seed(&shape()), of(0), of(1), of(240), of(241), of(4096), of(70_000)];
        assert_eq!(found.map(|sum| format!("{sum:016x}")).join(" "), KNOWN);
        assert_eq!(format!("{:016x}", combine(5, &KEY, 99, &[1, 2, 3])), KNOWN_COMBINED);
    }

    #[test]
    fn all_that_a_block_belongs_to_is_in_its_sum() {
        let payload = [9u8; 300];
        let plain = of_bytes(1, &KEY, &payload);
        assert_ne!(plain, of_bytes(2, &KEY, &payload), "seed");
        assert_ne!(plain, of_bytes(1, &Key([1, 2, 3, 5]), &payload), "key");
        assert_ne!(plain, of_bytes(1, &KEY, &payload[..299]), "length");
        let piece = |index, bytes| {
            let mut sum = Sum::piece(1, &KEY, bytes, index, 300);
            sum.update(&payload);
            sum.finish()
        };
        assert_ne!(plain, piece(0, 300), "a piece is no block");
        assert_ne!(piece(0, 600), piece(1, 600), "index");
        assert_ne!(piece(0, 600), piece(0, 900), "bytes of the block");
        let (a, b) = (piece(0, 600), piece(1, 600));
        assert_ne!(combine(1, &KEY, 600, &[a, b]), combine(1, &KEY, 600, &[b, a]), "order");
        assert_ne!(combine(1, &KEY, 600, &[a, b]), combine(1, &KEY, 601, &[a, b]), "bytes of the block");
    }

    #[test]
    fn every_part_of_a_pools_shape_is_in_its_seed() {
        let changes: [fn(&mut PoolShape); 5] = [
            |s| s.namespace.0[31] ^= 1,
            |s| s.label.push('x'),
            |s| s.kind = PoolKind::Object,
            |s| s.block_bytes += 1,
            |s| s.pieces += 1,
        ];
        for change in changes {
            let mut other = shape();
            change(&mut other);
            assert_ne!(pool_seed(&shape()), pool_seed(&other), "{other:?}");
        }
        assert_eq!(pool_seed(&shape()), pool_seed(&shape()));
    }

    #[test]
    #[should_panic(expected = "more than the 3 bytes")]
    fn more_payload_than_was_said_is_a_bug() {
        let mut sum = Sum::new(1, &KEY, 3);
        sum.update(b"abc");
        sum.update(b"d");
    }
}
