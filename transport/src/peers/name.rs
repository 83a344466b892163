//! Short names: what stands for a block in a digest.

use lapis_config::{Key, PoolKind, PoolShape};

/// Bits of a short name.
const BITS: u32 = 48;

/// 48 bits of a block's identity, evenly spread. The upper 16 say which block it is, never 0; the lower 32 where it is
/// looked for. Two blocks may share one: then a look-up finds what is not there, which costs a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShortName(u64);

impl ShortName {
    /// Of a key in a pool. A pool's number differs from host to host: `pool` is a hash of all that makes it the same one.
    pub fn new(pool: u64, key: &Key) -> Self {
        let mixed = key.0.iter().fold(pool, |mixed, &word| mix(mixed ^ word));
        Self::from_bits(mixed >> (u64::BITS - BITS))
    }

    /// As it was sent. Bits beyond a short name are left out.
    pub fn from_bits(bits: u64) -> Self {
        let bits = bits & ((1 << BITS) - 1);
        Self(if bits >> 32 == 0 { bits | 1 << 32 } else { bits })
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    pub(super) fn mark(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Evenly from 0 to below `end`.
    pub(super) fn place(self, end: u32) -> u32 {
        ((u64::from(self.0 as u32) * u64::from(end)) >> 32) as u32
    }

    /// Whether a digest of one in 2^`shift` names has this one. By bits that decide little of where it is looked for.
    pub fn is_sampled(self, shift: u8) -> bool {
        self.0 & ((1 << shift) - 1) == 0
    }
}

/// What a pool is called in short names: a hash of all that makes it the same one on two hosts.
pub fn pool_name(shape: &PoolShape) -> u64 {
    let mut mixed = mix(shape.block_bytes ^ u64::from(shape.pieces) << 48 ^ u64::from(shape.kind == PoolKind::Object));
    let mut word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        mixed = mix(mixed ^ u64::from_le_bytes(word));
    };
    shape.namespace.0.chunks(8).for_each(&mut word);
    shape.label.as_bytes().chunks(8).for_each(&mut word);
    mixed
}

/// Multiplies and folds: every bit of the word changes half of those that come out.
pub(super) fn mix(word: u64) -> u64 {
    let wide = u128::from(word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
    let folded = wide as u64 ^ (wide >> 64) as u64;
    (folded ^ folded >> 32).wrapping_mul(0x9fb2_1c65_1e98_df25)
}
