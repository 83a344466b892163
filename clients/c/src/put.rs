//! Storing blocks from the caller's memory.

use std::{
    ffi::{c_int, c_void},
    mem::{MaybeUninit, offset_of},
};

use lapis_client::{Put, PutOptions, Src};

use crate::{
    codes,
    error::CallError,
    get, guard,
    names::lapis_key_t,
    pool::{self, lapis_pool_t},
    raw::{self, Growing},
};

/// How to put, reserve or commit. All zero but the size: the defaults.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_put_options_t {
    /// Set by LAPIS_INIT.
    pub size: usize,
    /// Microseconds, or LAPIS_DEADLINE_...
    pub deadline_us: i64,
}

// SAFETY: numbers, the size first.
unsafe impl Growing for lapis_put_options_t {
    const BYTES_MIN: usize = offset_of!(Self, deadline_us) + size_of::<i64>();
}
const _: () = assert!(size_of::<lapis_put_options_t>() == 16, "a layout that programs are compiled with");

/// Stores blocks from `src`, one after the other: `src_bytes` is exactly what they have. The first one's parent is
/// `parent`, which may be null; each other one's is the block before it. Keys that are there are not copied. `options`
/// may be null. `results` has one element a key: LAPIS_STORED, LAPIS_EXISTS or a LAPIS_REFUSED_ value. `stored`, if not
/// null, is how many were stored by this call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_put_from(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    parent: *const lapis_key_t,
    src: *const c_void,
    src_bytes: usize,
    options: *const lapis_put_options_t,
    results: *mut i32,
    stored: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let src = unsafe { raw::src(src, src_bytes) }?;
        // SAFETY: the caller's promise.
        unsafe { put(pool, keys, keys_count, parent, src, options, results, stored) }
    })
}

/// lapis_put_from() for vectors: the same number for every block, in order, together exactly its bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_put_from_vectors(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    parent: *const lapis_key_t,
    vectors: *const libc::iovec,
    vectors_count: usize,
    options: *const lapis_put_options_t,
    results: *mut i32,
    stored: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let vectors = unsafe { raw::vectors(vectors, vectors_count, &pool.pool) }?;
        // SAFETY: the caller's promise: all are good, initialised, and nobody writes there until the call ends.
        let src = unsafe { Src::raw(vectors) };
        // SAFETY: the caller's promise.
        unsafe { put(pool, keys, keys_count, parent, src, options, results, stored) }
    })
}

/// # Safety
/// As for [`raw`], of keys, options and results.
#[expect(clippy::too_many_arguments, reason = "those of the two functions above, passed on")]
unsafe fn put(
    pool: &lapis_pool_t,
    keys: *const lapis_key_t,
    keys_count: usize,
    parent: *const lapis_key_t,
    src: Src<'_>,
    options: *const lapis_put_options_t,
    results: *mut i32,
    stored: Option<&mut MaybeUninit<usize>>,
) -> Result<(), CallError> {
    // SAFETY: the caller's promise.
    let (keys, parent) = unsafe { (raw::keys(keys, keys_count)?, raw::key(parent)) };
    // SAFETY: the caller's promise.
    let options = unsafe { put_options(options) }?;
    // SAFETY: the caller's promise.
    let results = unsafe { raw::list_out(results, keys_count, "results") }?;
    let put = pool.client()?.put_from(&pool.pool, &keys, parent, src, &options)?;
    answer(&put, results, stored);
    Ok(())
}

/// Writes what became of a put.
pub fn answer(put: &Put, results: &mut [MaybeUninit<i32>], stored: Option<&mut MaybeUninit<usize>>) {
    raw::fill(results, put.results.iter().map(|result| codes::of_put(*result)));
    raw::tell(stored, put.stored());
}

/// # Safety
/// As for [`raw::growing`].
pub unsafe fn put_options(from: *const lapis_put_options_t) -> Result<PutOptions, CallError> {
    // SAFETY: the caller's promise.
    let from = unsafe { raw::growing_or_zero(from, "options") }?;
    Ok(PutOptions { deadline: get::deadline(from.deadline_us, "options.deadline_us")? })
}
