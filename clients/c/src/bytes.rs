//! Bytes that a call made and the caller frees.

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use crate::guard;

/// Bytes of this library's making; freed by lapis_bytes_free().
pub struct lapis_bytes_t {
    bytes: Vec<u8>,
    /// Without the NUL at the end of a text.
    count: usize,
}

impl lapis_bytes_t {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { count: bytes.len(), bytes }
    }

    /// A text with a NUL after it.
    pub fn text(text: String) -> Self {
        let (count, mut bytes) = (text.len(), text.into_bytes());
        bytes.push(0);
        Self { bytes, count }
    }
}

/// Where the bytes are, until they are freed; null only for null.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_bytes_data(bytes: Option<&lapis_bytes_t>) -> *const c_void {
    guard::value(ptr::null(), || bytes.map_or(ptr::null(), |bytes| bytes.bytes.as_ptr().cast()))
}

/// How many there are; 0 for null.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_bytes_count(bytes: Option<&lapis_bytes_t>) -> usize {
    guard::value(0, || bytes.map_or(0, |bytes| bytes.count))
}

/// Frees the bytes. Null is no mistake.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_bytes_free(bytes: Option<Box<lapis_bytes_t>>) -> c_int {
    guard::status(|| {
        drop(bytes);
        Ok(())
    })
}
