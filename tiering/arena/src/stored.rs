//! A block in its slot, with all that its sum depends on.

use lapis_config::{Key, sizes};

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
            self.combine(&self.piece_sums())
        };
        found == self.sum
    }

    /// Its sum, of the bytes as they lie there now; those of its pieces are written behind it in its slot. `sum` is not
    /// looked at.
    pub fn make_sums(&self) -> u64 {
        if self.pieces == 1 {
            return sum::of_mapping(self.pool_seed, &self.key, &self.mapping, self.offset, self.bytes);
        }
        let sums = self.piece_sums();
        let tail: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        self.mapping.copy_in(self.offset + sizes::tail_offset(self.bytes.into()) as usize, &tail);
        self.combine(&sums)
    }

    /// Whether the sums of its pieces that follow it in its slot are its own as well. True of a block of one piece.
    pub fn has_its_tail(&self) -> bool {
        if self.pieces == 1 {
            return true;
        }
        let count = u64::from(self.bytes).div_ceil(self.block_bytes / u64::from(self.pieces));
        let at = self.offset + sizes::tail_offset(self.bytes.into()) as usize;
        let tail = self.mapping.to_vec(at, 8 * count as usize);
        let (sums, _) = tail.as_chunks::<8>();
        let sums: Vec<u64> = sums.iter().map(|sum| u64::from_le_bytes(*sum)).collect();
        self.combine(&sums) == self.sum
    }

    fn combine(&self, sums: &[u64]) -> u64 {
        sum::combine(self.pool_seed, &self.key, self.bytes.into(), sums)
    }

    fn piece_sums(&self) -> Vec<u64> {
        let piece_bytes = (self.block_bytes / u64::from(self.pieces)) as usize;
        let (bytes, mut sums) = (u64::from(self.bytes), Vec::with_capacity(usize::from(self.pieces)));
        for (index, start) in (0..self.bytes as usize).step_by(piece_bytes).enumerate() {
            let length = piece_bytes.min(self.bytes as usize - start);
            let mut piece = Sum::piece(self.pool_seed, &self.key, bytes, index as u16, length as u64);
            sum::update_from(&mut piece, &self.mapping, self.offset + start, length);
            sums.push(piece.finish());
        }
        sums
    }
}

#[test]
fn a_block_in_pieces_has_its_own_sums_behind_it_or_others() {
    let (mapping, offset, key, pool_seed) = (Mapping::anonymous(8192).expect("memory"), 0, Key([1, 2, 3, 4]), 5);
    let (bytes, pieces, block_bytes) = (3000, 4, 4096);
    mapping.copy_in(0, &[7; 3000]);
    let mut block = StoredBlock { mapping, offset, key, bytes, pieces, block_bytes, pool_seed, sum: 0 };
    block.sum = block.combine(&block.piece_sums());
    assert!(block.is_sound() && !block.has_its_tail());
    let sums = [(0, 1024), (1, 1024), (2, 952)].map(|(index, length)| {
        let mut piece = Sum::piece(pool_seed, &key, bytes.into(), index, length);
        piece.update(&vec![7; length as usize]);
        piece.finish().to_le_bytes()
    });
    let at = sizes::tail_offset(bytes.into()) as usize;
    block.mapping.copy_in(at, &sums.concat());
    assert!(block.has_its_tail());
    block.mapping.copy_in(at + 8, &sums[2]);
    assert!(block.is_sound() && !block.has_its_tail(), "another block's");
    assert_eq!(block.make_sums(), block.sum);
    assert!(block.has_its_tail(), "made anew");
    let whole = StoredBlock { pieces: 1, ..block };
    assert!(whole.has_its_tail(), "it has none");
    assert!(StoredBlock { sum: whole.make_sums(), ..whole }.is_sound());
}
