//! The bytes that a key stands for, so that every byte read can be judged without keeping a copy. Pure.
//!
//! Word `i` of a block is `start + i * step`, both derived from the key: no word is twice in a block, two keys share
//! none but by chance (2^-64 a word), and a shifted, torn or foreign block differs in all its words.

use lapis_config::Key;

/// Finaliser of SplitMix64: every bit of the input moves every bit of the output.
pub(crate) fn mixed(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The key of block `id` of the trace or working set `seed`: 32 bytes without structure, as an engine's hash has.
pub fn key(seed: u64, id: u64) -> Key {
    let start = mixed(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ id;
    Key(std::array::from_fn(|i| mixed(start.wrapping_add(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64 + 1)))))
}

/// The bytes under one key.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    start: u64,
    step: u64,
}

impl Pattern {
    pub fn of(key: &Key) -> Self {
        let [a, b, c, d] = key.0;
        let start = mixed(a ^ b.rotate_left(17) ^ c.rotate_left(31) ^ d.rotate_left(47));
        // Odd, so that the words of a block are all different.
        Self { start, step: mixed(start ^ a) | 1 }
    }

    /// Writes the first `block.len()` bytes of the pattern.
    pub fn fill(self, block: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as just checked.
            return unsafe { self.fill_avx2(block) };
        }
        self.fill_any(block);
    }

    /// How many bytes of `block` are not the pattern's. All are looked at.
    pub fn wrong_bytes(self, block: &[u8]) -> u64 {
        #[cfg(target_arch = "x86_64")]
        let differs = if std::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as just checked.
            unsafe { self.differs_avx2(block) }
        } else {
            self.differs_any(block)
        };
        #[cfg(not(target_arch = "x86_64"))]
        let differs = self.differs_any(block);
        if differs { self.count(block) } else { 0 }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn fill_avx2(self, block: &mut [u8]) {
        self.fill_any(block);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn differs_avx2(self, block: &[u8]) -> bool {
        self.differs_any(block)
    }

    #[inline(always)]
    fn fill_any(self, block: &mut [u8]) {
        let (words, rest) = block.as_chunks_mut::<8>();
        let mut word = self.start;
        for out in words.iter_mut() {
            *out = word.to_le_bytes();
            word = word.wrapping_add(self.step);
        }
        let last = word.to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }

    /// Without a branch in the loop, so that it runs at the speed of memory.
    #[inline(always)]
    fn differs_any(self, block: &[u8]) -> bool {
        let (words, rest) = block.as_chunks::<8>();
        let (mut word, mut differs) = (self.start, 0);
        for found in words {
            differs |= u64::from_le_bytes(*found) ^ word;
            word = word.wrapping_add(self.step);
        }
        differs != 0 || rest != &word.to_le_bytes()[..rest.len()]
    }

    #[cold]
    fn count(self, block: &[u8]) -> u64 {
        let mut expected = vec![0; block.len()];
        self.fill_any(&mut expected);
        block.iter().zip(&expected).filter(|(found, expected)| found != expected).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_is_right_at_every_length() {
        for bytes in [0, 1, 7, 8, 9, 63, 64, 65, 4096, 65_536, 65_539] {
            let pattern = Pattern::of(&key(1, bytes as u64));
            let mut block = vec![0xee; bytes];
            pattern.fill(&mut block);
            assert_eq!(pattern.wrong_bytes(&block), 0, "{bytes} bytes");
        }
    }

    #[test]
    fn any_flipped_bit_is_one_wrong_byte() {
        let pattern = Pattern::of(&key(1, 2));
        let mut block = vec![0; 1003];
        pattern.fill(&mut block);
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(pattern.wrong_bytes(&block), 1, "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn blocks_of_other_keys_shifted_and_torn_ones_are_wrong() {
        let (mine, other) = (Pattern::of(&key(1, 2)), Pattern::of(&key(1, 3)));
        let mut block = vec![0; 8192];
        other.fill(&mut block);
        assert!(mine.wrong_bytes(&block) > 8000);
        mine.fill(&mut block);
        assert!(mine.wrong_bytes(&block[8..]) > 8000, "shifted by a word");
        other.fill(&mut block[..64]);
        assert!(mine.wrong_bytes(&block) >= 60, "one cache line of another block");
        block.fill(0);
        assert!(mine.wrong_bytes(&block) > 8000, "never written");
    }

    #[test]
    fn seeds_and_ids_have_keys_of_their_own() {
        let mut keys: Vec<_> = (0..100).flat_map(|seed| (0..100).map(move |id| key(seed, id))).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 10_000);
    }
}
