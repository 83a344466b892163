//! What the policy learned, kept over a restart: a word, then bytes that are the policy's own. The word is 0 while they
//! are written: a kill at any time leaves the former ones, or none. It holds their length and a checksum: any numbers look
//! like counts, and damage that was believed could make a class worthless for days.

use std::sync::atomic::{Ordering, compiler_fence};

use lapis_arena::sum;
use lapis_config::Key;

use super::{LEARNED_AT, LEARNED_BYTES, MAGIC, State};

const HEAD_BYTES: usize = 8;

impl State {
    /// Keeps the bytes in place of the former ones; too many are not kept.
    pub fn keep_learned(&mut self, bytes: &[u8]) {
        if bytes.len() > LEARNED_BYTES - HEAD_BYTES {
            return;
        }
        self.set_learned_head(0);
        compiler_fence(Ordering::Release);
        self.bytes[LEARNED_AT + HEAD_BYTES..][..bytes.len()].copy_from_slice(bytes);
        compiler_fence(Ordering::Release);
        self.set_learned_head(head_of(bytes));
    }

    /// What was kept last, if it was kept whole and is still what it was.
    pub fn learned(&self) -> Option<Vec<u8>> {
        let head = u64::from_le_bytes(self.bytes[LEARNED_AT..][..HEAD_BYTES].try_into().expect("eight bytes"));
        let bytes = self.bytes[LEARNED_AT..][HEAD_BYTES..LEARNED_BYTES].get(..head as u32 as usize)?;
        (!bytes.is_empty() && head == head_of(bytes)).then(|| bytes.to_vec())
    }

    fn set_learned_head(&mut self, head: u64) {
        self.bytes[LEARNED_AT..][..HEAD_BYTES].copy_from_slice(&head.to_le_bytes());
    }
}

/// The length, and above it half of the checksum.
fn head_of(bytes: &[u8]) -> u64 {
    let sum = sum::of_bytes(MAGIC, &Key([0; 4]), bytes);
    bytes.len() as u64 | sum << 32
}
