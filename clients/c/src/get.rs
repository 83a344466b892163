//! Copies of blocks into the caller's memory.

use std::{
    ffi::{c_int, c_void},
    mem::{MaybeUninit, offset_of},
    ops::Range,
    time::Duration,
};

use lapis_client::{BlockStatus, Dst, GetOptions, Got, Wait};

use crate::{
    client,
    error::CallError,
    guard,
    names::lapis_key_t,
    pool::{self, lapis_pool_t},
    raw::{self, Growing},
};

/// Answer at once from what is there.
pub const LAPIS_WAIT_PRESENT: u32 = 0;
/// Wait for blocks that somebody is filling now.
pub const LAPIS_WAIT_FILLING: u32 = 1;
/// Wait until the deadline for blocks that nobody has put yet, too.
pub const LAPIS_WAIT_ABSENT: u32 = 2;

/// The daemon's default: for a get 50 ms + bytes / 500 MB/s, for a put 1 s + bytes / 500 MB/s.
pub const LAPIS_DEADLINE_DEFAULT: i64 = 0;
/// Do not wait at all. Hits in memory are copied nevertheless.
pub const LAPIS_DEADLINE_NOW: i64 = -1;

/// How to get. All zero but the size: the defaults.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_get_options_t {
    /// Set by LAPIS_INIT.
    pub size: usize,
    /// Microseconds, or LAPIS_DEADLINE_...
    pub deadline_us: i64,
    /// LAPIS_WAIT_...
    pub wait: u32,
    /// LAPIS_VERIFY_...
    pub verify: u32,
    /// Only the pieces from `pieces_first` up to and without `pieces_end` of every block; both 0: all.
    pub pieces_first: u32,
    pub pieces_end: u32,
}

// SAFETY: numbers, the size first.
unsafe impl Growing for lapis_get_options_t {
    const BYTES_MIN: usize = offset_of!(Self, pieces_end) + size_of::<u32>();
}
const _: () = assert!(size_of::<lapis_get_options_t>() == 32, "a layout that programs are compiled with");

/// Copies blocks to `dst`, one after the other: `dst_bytes` is exactly what they have. Blocks in memory need nobody else;
/// for others the daemon is asked, within the deadline. `options` may be null. `hit_bytes` has one element a key: so many
/// bytes were copied, 0 for a miss; what a miss has in `dst` is not to be looked at. `hits`, if not null, is how many
/// were hits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_get_into(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    dst: *mut c_void,
    dst_bytes: usize,
    options: *const lapis_get_options_t,
    hit_bytes: *mut u32,
    hits: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let dst = unsafe { raw::dst(dst, dst_bytes) }?;
        // SAFETY: the caller's promise.
        unsafe { get(pool, keys, keys_count, dst, options, hit_bytes, hits) }
    })
}

/// lapis_get_into() for vectors: the same number for every block, in order, together exactly its bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_get_into_vectors(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    vectors: *const libc::iovec,
    vectors_count: usize,
    options: *const lapis_get_options_t,
    hit_bytes: *mut u32,
    hits: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let vectors = unsafe { raw::vectors(vectors, vectors_count, &pool.pool) }?;
        // SAFETY: the caller's promise: all are good and apart, and nobody else uses them until the call ends.
        let dst = unsafe { Dst::raw(vectors) };
        // SAFETY: the caller's promise.
        unsafe { get(pool, keys, keys_count, dst, options, hit_bytes, hits) }
    })
}

/// # Safety
/// As for [`raw`], of keys, options and results.
unsafe fn get(
    pool: &lapis_pool_t,
    keys: *const lapis_key_t,
    keys_count: usize,
    dst: Dst<'_>,
    options: *const lapis_get_options_t,
    hit_bytes: *mut u32,
    hits: Option<&mut MaybeUninit<usize>>,
) -> Result<(), CallError> {
    // SAFETY: the caller's promise.
    let keys = unsafe { raw::keys(keys, keys_count) }?;
    // SAFETY: the caller's promise.
    let options = unsafe { get_options(options) }?;
    // SAFETY: the caller's promise.
    let hit_bytes = unsafe { raw::list_out(hit_bytes, keys_count, "hit_bytes") }?;
    let got = pool.client()?.get_into(&pool.pool, &keys, dst, &options)?;
    answer(&got, hit_bytes, hits);
    Ok(())
}

/// Writes what a get found.
pub fn answer(got: &Got, hit_bytes: &mut [MaybeUninit<u32>], hits: Option<&mut MaybeUninit<usize>>) {
    let bytes = got.statuses.iter().map(|status| match status {
        BlockStatus::Hit { bytes } => *bytes,
        BlockStatus::Miss => 0,
    });
    raw::fill(hit_bytes, bytes);
    raw::tell(hits, got.hits);
}

/// # Safety
/// As for [`raw::growing`].
pub unsafe fn get_options(from: *const lapis_get_options_t) -> Result<GetOptions, CallError> {
    // SAFETY: the caller's promise.
    let from = unsafe { raw::growing_or_zero(from, "options") }?;
    Ok(GetOptions {
        pieces: pieces(from.pieces_first, from.pieces_end)?,
        from: None,
        wait: match from.wait {
            LAPIS_WAIT_PRESENT => Wait::Present,
            LAPIS_WAIT_FILLING => Wait::Filling,
            LAPIS_WAIT_ABSENT => Wait::Absent,
            found => {
                let (argument, expected) = ("options.wait", "a LAPIS_WAIT_ value");
                return Err(CallError::Value { argument, found: found.into(), expected });
            }
        },
        deadline: deadline(from.deadline_us, "options.deadline_us")?,
        verify: client::verify(from.verify, "options.verify")?,
    })
}

fn pieces(first: u32, end: u32) -> Result<Option<Range<u16>>, CallError> {
    if (first, end) == (0, 0) {
        return Ok(None);
    }
    let index = |argument, found: u32| {
        u16::try_from(found).map_err(|_| CallError::Value { argument, found: found.into(), expected: "at most 256" })
    };
    Ok(Some(index("options.pieces_first", first)?..index("options.pieces_end", end)?))
}

/// A deadline as C has it; `None` is the default.
pub fn deadline(us: i64, argument: &'static str) -> Result<Option<Duration>, CallError> {
    match us {
        LAPIS_DEADLINE_DEFAULT => Ok(None),
        LAPIS_DEADLINE_NOW => Ok(Some(Duration::ZERO)),
        us => match u64::try_from(us) {
            Ok(us) => Ok(Some(Duration::from_micros(us))),
            Err(_) => {
                let expected = "microseconds or LAPIS_DEADLINE_NOW";
                Err(CallError::Value { argument, found: us as u64, expected })
            }
        },
    }
}
