//! What the policy learned, kept over a restart: a length, then bytes that are the policy's own. The length is 0 while they
//! are written: a kill at any time leaves the former ones, or none.

use std::sync::atomic::{Ordering, compiler_fence};

use super::{LEARNED_AT, LEARNED_BYTES, State};

const HEAD_BYTES: usize = 8;

impl State {
    /// Keeps the bytes in place of the former ones; too many are not kept.
    pub fn keep_learned(&mut self, bytes: &[u8]) {
        if bytes.len() > LEARNED_BYTES - HEAD_BYTES {
            return;
        }
        self.set_learned_length(0);
        compiler_fence(Ordering::Release);
        self.bytes[LEARNED_AT + HEAD_BYTES..][..bytes.len()].copy_from_slice(bytes);
        compiler_fence(Ordering::Release);
        self.set_learned_length(bytes.len() as u64);
    }

    /// What was kept last, if it was kept whole.
    pub fn learned(&self) -> Option<Vec<u8>> {
        let head = self.bytes[LEARNED_AT..][..HEAD_BYTES].try_into().expect("eight bytes");
        let length = usize::try_from(u64::from_le_bytes(head)).ok()?;
        let bytes = self.bytes[LEARNED_AT..][HEAD_BYTES..LEARNED_BYTES].get(..length)?;
        (length > 0).then(|| bytes.to_vec())
    }

    fn set_learned_length(&mut self, length: u64) {
        self.bytes[LEARNED_AT..][..HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
    }
}
