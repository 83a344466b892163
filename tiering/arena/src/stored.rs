//! A block in its slot, with all that its sum depends on.

use lapis_config::Key;

use crate::{Mapping, Sum, sum};

#[derive(Clone, Debug)]
pub struct StoredBlock {
    pub mapping: Mapping,
    pub offset: usize,
    pub key: Key,
    pub bytes: u32,
    pub pieces: u16,
    /// Of the pool: a block may be shorter.
    pub block_bytes: u64,
    pub pool_seed: u64,
    pub sum: u64,
}

impl StoredBlock {
    /// Whether the bytes, as they lie there now, fit their sum.
    pub fn is_sound(&self) -> bool {
        let found = if self.pieces == 1 {
            sum::of_mapping(self.pool_seed, &self.key, &self.mapping, self.offset, self.bytes)
        } else {
            self.sum_of_pieces()
        };
        found == self.sum
    }

    fn sum_of_pieces(&self) -> u64 {
        let piece_bytes = (self.block_bytes / u64::from(self.pieces)) as usize;
        let (bytes, mut sums) = (u64::from(self.bytes), Vec::with_capacity(usize::from(self.pieces)));
        for (index, start) in (0..self.bytes as usize).step_by(piece_bytes).enumerate() {
            let length = piece_bytes.min(self.bytes as usize - start);
            let mut piece = Sum::piece(self.pool_seed, &self.key, bytes, index as u16, length as u64);
            sum::update_from(&mut piece, &self.mapping, self.offset + start, length);
            sums.push(piece.finish());
        }
        sum::combine(self.pool_seed, &self.key, bytes, &sums)
    }
}
