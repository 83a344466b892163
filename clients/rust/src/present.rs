//! Which keys of a batch are there, and how long a prefix that makes under several pools' policies. Pure.

use lapis_config::HitPolicy;

use crate::Pool;

/// One bit a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    words: Vec<u64>,
    keys: usize,
}

impl Present {
    pub(crate) fn new(keys: usize) -> Self {
        Self { words: vec![0; keys.div_ceil(64)], keys }
    }

    #[inline]
    pub(crate) fn set(&mut self, key: usize) {
        self.words[key / 64] |= 1 << (key % 64);
    }

    /// How many keys were asked.
    pub fn len(&self) -> usize {
        self.keys
    }

    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// Whether the key of that index is there.
    ///
    /// # Panics
    /// If there is no such key.
    #[inline]
    pub fn get(&self, key: usize) -> bool {
        assert!(key < self.keys, "key {key} of {}", self.keys);
        self.words[key / 64] >> (key % 64) & 1 != 0
    }

    /// How many are there.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The bits, lowest first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

/// The longest length that every pool's policy accepts; for `Any` alone, how many of all are there. `run` gives the
/// leading run of a pool within a limit, `present` the single keys.
pub(crate) fn longest(
    pools: &[(Pool, HitPolicy)],
    keys: usize,
    mut run: impl FnMut(&Pool, usize) -> usize,
    mut present: impl FnMut(&Pool, usize) -> Present,
) -> usize {
    if let [(pool, HitPolicy::Any)] = pools {
        return present(pool, keys).count();
    }
    // Prefixes first: each one shortens what the next ones have to look up.
    let mut limit = keys;
    for (pool, policy) in pools {
        if *policy == HitPolicy::Prefix {
            limit = run(pool, limit);
        }
    }
    let trailing: Vec<(usize, Present)> = pools
        .iter()
        .filter_map(|(pool, policy)| match policy {
            HitPolicy::Trailing(n) => Some((*n as usize, present(pool, limit))),
            _ => None,
        })
        .collect();
    accepted(&trailing, limit)
}

/// The longest length up to `limit` before which every window is there.
fn accepted(windows: &[(usize, Present)], limit: usize) -> usize {
    let mut runs = vec![0; windows.len()];
    let mut best = 0;
    for length in 1..=limit {
        for (run, (_, present)) in runs.iter_mut().zip(windows) {
            *run = if present.get(length - 1) { *run + 1 } else { 0 };
        }
        if runs.iter().zip(windows).all(|(run, (n, _))| *run >= (*n).min(length)) {
            best = length;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bits: &str) -> Present {
        let mut present = Present::new(bits.len());
        bits.bytes().enumerate().filter(|(_, bit)| *bit == b'1').for_each(|(i, _)| present.set(i));
        present
    }

    #[test]
    fn a_window_needs_only_the_keys_before_the_length() {
        assert_eq!(accepted(&[(2, of("00110"))], 5), 4);
        assert_eq!(accepted(&[(2, of("10000"))], 5), 1);
        assert_eq!(accepted(&[(2, of("01000"))], 5), 0);
        assert_eq!(accepted(&[(0, of("00000"))], 5), 5);
    }

    #[test]
    fn all_windows_must_accept_the_same_length() {
        assert_eq!(accepted(&[(1, of("11111")), (2, of("01101"))], 5), 3);
        assert_eq!(accepted(&[(1, of("00100")), (1, of("00010"))], 5), 0);
    }

    #[test]
    fn no_window_accepts_all() {
        assert_eq!(accepted(&[], 7), 7);
    }
}
