//! Copies of the lists that a ticket borrows, so that a caller may forget its own as soon as the call that began it
//! returns.

use std::ptr::NonNull;

use lapis_client::Key;

/// Keys and vectors at places of their own: they stay where they are until this is dropped.
///
/// Pointers and no boxes: a box that is moved would claim to be the only way to what it holds.
pub struct Lists {
    keys: NonNull<[Key]>,
    vectors: NonNull<[libc::iovec]>,
}

// SAFETY: it owns its lists alone. What the vectors name is used by the call under way, in whatever thread polls it: the
// caller's promise.
unsafe impl Send for Lists {}

impl Lists {
    pub fn new(keys: &[Key], vectors: &[libc::iovec]) -> Self {
        Self { keys: leak(keys.into()), vectors: leak(vectors.into()) }
    }

    /// The keys.
    ///
    /// # Safety
    /// Not to be used once this is dropped.
    pub unsafe fn keys(&self) -> &'static [Key] {
        // SAFETY: allocated by `new`, freed by `drop`, never written; the caller ends its use before.
        unsafe { self.keys.as_ref() }
    }

    /// The vectors.
    ///
    /// # Safety
    /// Not to be used once this is dropped.
    pub unsafe fn vectors(&self) -> &'static [libc::iovec] {
        // SAFETY: as for the keys.
        unsafe { self.vectors.as_ref() }
    }
}

fn leak<T>(list: Box<[T]>) -> NonNull<[T]> {
    NonNull::from(Box::leak(list))
}

impl Drop for Lists {
    fn drop(&mut self) {
        // SAFETY: made of boxes by `new`, and dropped here alone.
        unsafe {
            drop(Box::from_raw(self.keys.as_ptr()));
            drop(Box::from_raw(self.vectors.as_ptr()));
        }
    }
}
