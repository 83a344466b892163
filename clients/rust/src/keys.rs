//! Batches of keys as engines have them: one contiguous buffer.

use std::{borrow::Cow, ops::Deref};

use lapis_config::{BATCH_KEYS_MAX, Key};
use zerocopy::FromBytes;

use crate::ClientError;

/// Bytes of one key in a buffer of keys.
pub const KEY_BYTES: usize = size_of::<Key>();

/// 1 to 8192 keys, checked. Borrowed where the buffer is aligned to 8 bytes, else copied.
#[derive(Clone, Debug)]
pub struct Keys<'a>(Cow<'a, [Key]>);

impl<'a> Keys<'a> {
    /// The keys in a buffer of 32 bytes each, one after the other.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, ClientError> {
        if !bytes.len().is_multiple_of(KEY_BYTES) {
            return Err(ClientError::KeyBytes { bytes: bytes.len() });
        }
        check(bytes.len() / KEY_BYTES)?;
        if let Ok(keys) = <[Key]>::ref_from_bytes(bytes) {
            return Ok(Self(Cow::Borrowed(keys)));
        }
        let (keys, _) = bytes.as_chunks::<KEY_BYTES>();
        Ok(Self(keys.iter().map(|key| Key::from_bytes(*key)).collect()))
    }
}

impl Deref for Keys<'_> {
    type Target = [Key];
    fn deref(&self) -> &[Key] {
        &self.0
    }
}

/// Checks the length of a batch.
pub(crate) fn check(keys: usize) -> Result<(), ClientError> {
    if (1..=BATCH_KEYS_MAX).contains(&keys) { Ok(()) } else { Err(ClientError::KeyCount { keys }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_the_wrong_length_is_refused_with_both_numbers() {
        let error = Keys::from_bytes(&[0; 100]).expect_err("100 bytes are no keys").to_string();
        assert!(error.contains("100") && error.contains("32"), "{error}");
        for bytes in [0, (BATCH_KEYS_MAX + 1) * KEY_BYTES] {
            let error = Keys::from_bytes(&vec![0; bytes]).expect_err("too few or too many").to_string();
            assert!(error.contains("8192"), "{error}");
        }
    }

    #[test]
    fn keys_are_the_same_wherever_their_buffer_starts() {
        let buffer: Vec<u8> = (0..=255).cycle().take(10 * KEY_BYTES + 8).collect();
        for shift in 0..8 {
            let bytes = &buffer[shift..shift + 10 * KEY_BYTES];
            let keys = Keys::from_bytes(bytes).expect("ten keys");
            for (i, key) in keys.iter().enumerate() {
                assert_eq!(key.to_bytes(), bytes[i * KEY_BYTES..][..KEY_BYTES]);
            }
        }
    }
}
