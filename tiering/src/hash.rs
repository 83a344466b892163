//! Hash maps whose order is the same in every run: the core is deterministic.

use std::hash::{BuildHasherDefault, Hasher};

pub(crate) type Map<K, V> = hashbrown::HashMap<K, V, BuildHasherDefault<Mix>>;

/// Multiplies and folds word by word. Keys that clients choose are bounded in number wherever they are looked up here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mix(u64);

impl Mix {
    #[inline]
    fn word(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = wide as u64 ^ (wide >> 64) as u64;
    }
}

impl Hasher for Mix {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }
    #[inline]
    fn write_u16(&mut self, word: u16) {
        self.word(u64::from(word));
    }
    #[inline]
    fn write_u32(&mut self, word: u32) {
        self.word(u64::from(word));
    }
    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.word(word);
    }
    #[inline]
    fn write_usize(&mut self, word: usize) {
        self.word(word as u64);
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
