//! The sum of a block whose bytes come in runs that need not be its pieces: vectors of a caller, copies of a slot.

use lapis_arena::{Found, Mapping, Sum, sum};
use lapis_config::{Key, sizes};

use crate::Pool;

/// Sums of consecutive whole pieces of one block, fed in order.
pub(crate) struct BlockSum<'a> {
    seed: u64,
    key: &'a Key,
    bytes: u64,
    pieces: u16,
    piece_bytes: usize,
    /// The piece under way, and how many of its bytes are still to come.
    index: u16,
    left: usize,
    sum: Option<Sum>,
    done: Vec<u64>,
}

impl<'a> BlockSum<'a> {
    /// Of a block of `bytes` in all, beginning with its piece `first`.
    pub fn new(pool: &Pool, key: &'a Key, bytes: u64, first: u16) -> Self {
        let pieces = pool.pieces();
        let piece_bytes = (bytes / u64::from(pieces)) as usize;
        Self {
            seed: pool.seed(),
            key,
            bytes,
            pieces,
            piece_bytes,
            index: first,
            left: piece_bytes,
            sum: None,
            done: Vec::new(),
        }
    }

    /// The sum to feed next, and how many of the `wanted` bytes belong to it.
    #[inline]
    pub fn run(&mut self, wanted: usize) -> (&mut Sum, usize) {
        let (seed, key, bytes, index) = (self.seed, self.key, self.bytes, self.index);
        let (pieces, piece_bytes) = (self.pieces, self.piece_bytes as u64);
        let sum = self.sum.get_or_insert_with(|| match pieces {
            1 => Sum::new(seed, key, bytes),
            _ => Sum::piece(seed, key, bytes, index, piece_bytes),
        });
        (sum, wanted.min(self.left))
    }

    /// So many bytes went into the sum that `run` gave.
    #[inline]
    pub fn took(&mut self, bytes: usize) {
        self.left -= bytes;
        if self.left == 0 {
            self.done.extend(self.sum.take().map(Sum::finish));
            self.index += 1;
            self.left = self.piece_bytes;
        }
    }

    /// The sum of the whole block, and the sums of its pieces, if it was fed whole.
    pub fn finish(mut self) -> (u64, Vec<u64>) {
        if self.bytes == 0 {
            self.run(0);
            self.done.extend(self.sum.take().map(Sum::finish));
        }
        assert!(self.done.len() == usize::from(self.pieces), "a block is summed whole");
        match self.pieces {
            1 => (self.done[0], Vec::new()),
            _ => (sum::combine(self.seed, self.key, self.bytes, &self.done), self.done),
        }
    }

    /// Whether what was fed are bytes of the block that `found` describes. If it was fed in part, the sums of all
    /// pieces are read from the tail of the slot at `offset`, and the block's own sum tells whether to believe them.
    pub fn fits(self, found: &Found, mapping: &Mapping, offset: usize) -> bool {
        let pieces = usize::from(self.pieces);
        if self.done.len() == pieces || self.bytes == 0 {
            return self.finish().0 == found.sum;
        }
        let tail = mapping.to_vec(offset + sizes::tail_offset(self.bytes) as usize, 8 * pieces);
        let (sums, _) = tail.as_chunks::<8>();
        let sums: Vec<u64> = sums.iter().map(|sum| u64::from_le_bytes(*sum)).collect();
        let first = usize::from(self.index) - self.done.len();
        sums[first..first + self.done.len()] == self.done
            && sum::combine(self.seed, self.key, self.bytes, &sums) == found.sum
    }
}

/// Whether the bytes in a slot are those of the block that `found` describes.
pub(crate) fn slot_fits(pool: &Pool, key: &Key, found: &Found, mapping: &Mapping, offset: usize) -> bool {
    slot_sum(pool, key, u64::from(found.bytes), mapping, offset).0 == found.sum
}

/// The sums of a block as it lies in its slot now.
pub(crate) fn slot_sum(pool: &Pool, key: &Key, bytes: u64, mapping: &Mapping, offset: usize) -> (u64, Vec<u64>) {
    let mut sum = BlockSum::new(pool, key, bytes, 0);
    let mut at = 0;
    while at < bytes as usize {
        let (part, run) = sum.run(bytes as usize - at);
        sum::update_from(part, mapping, offset + at, run);
        sum.took(run);
        at += run;
    }
    sum.finish()
}
