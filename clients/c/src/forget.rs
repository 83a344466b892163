//! What is told of blocks without moving their bytes: prefetch, hints, removal.

use std::{
    ffi::{c_char, c_int},
    mem::MaybeUninit,
};

use lapis_client::Hint;

use crate::{
    error::CallError,
    get, guard,
    names::lapis_key_t,
    pool::{self, lapis_pool_t},
    raw,
};

/// The session ended: its own blocks are the first to go.
pub const LAPIS_HINT_ENDED: u32 = 1;
/// The session will be back soon (a tool call runs).
pub const LAPIS_HINT_WILL_RETURN: u32 = 2;
/// Kept as long as anything else can go, for `value` milliseconds.
pub const LAPIS_HINT_PINNED: u32 = 3;
/// Priority `value`, 0 to 255: higher stays longer; decays.
pub const LAPIS_HINT_PRIORITY: u32 = 4;

/// Fetches blocks into memory ahead of their use. There is no answer: LAPIS_OK says that the daemon was told.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_prefetch(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let keys = unsafe { raw::keys(keys, keys_count) }?;
        Ok(pool.client()?.prefetch(&pool.pool, &keys)?)
    })
}

/// Tells what is known of the future of these blocks: a LAPIS_HINT_ value, and what it takes, else 0. There is no answer:
/// LAPIS_OK says that the daemon was told.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_hint(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    hint: u32,
    value: u32,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let keys = unsafe { raw::keys(keys, keys_count) }?;
        Ok(pool.client()?.hint(&pool.pool, &keys, hint_of(hint, value)?)?)
    })
}

/// Offers blocks that were put here to another host, as peers.members calls it: it reads what it has room for. `there`, if not
/// null, is how many are there then. `deadline_us`: microseconds, or LAPIS_DEADLINE_...
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_offer(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    peer: *const c_char,
    deadline_us: i64,
    there: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        let deadline = get::deadline(deadline_us, "deadline_us")?;
        // SAFETY: the caller's promise.
        let keys = unsafe { raw::keys(keys, keys_count) }?;
        // SAFETY: the caller's promise.
        let peer = unsafe { raw::text(peer, "peer") }?;
        raw::tell(there, pool.client()?.offer(&pool.pool, &keys, peer, deadline)?);
        Ok(())
    })
}

/// Forgets blocks. `removed`, if not null, is how many there were. `deadline_us`: microseconds, or LAPIS_DEADLINE_...
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_remove(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    deadline_us: i64,
    removed: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        let deadline = get::deadline(deadline_us, "deadline_us")?;
        // SAFETY: the caller's promise.
        let keys = unsafe { raw::keys(keys, keys_count) }?;
        raw::tell(removed, pool.client()?.remove(&pool.pool, &keys, deadline)?);
        Ok(())
    })
}

/// Forgets every block of a pool. `removed` and `deadline_us` are those of lapis_remove().
#[unsafe(no_mangle)]
pub extern "C" fn lapis_purge(
    pool: Option<&lapis_pool_t>,
    deadline_us: i64,
    removed: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        let deadline = get::deadline(deadline_us, "deadline_us")?;
        raw::tell(removed, pool.client()?.purge(&pool.pool, deadline)?);
        Ok(())
    })
}

fn hint_of(hint: u32, value: u32) -> Result<Hint, CallError> {
    match (hint, value) {
        (LAPIS_HINT_ENDED, 0) => Ok(Hint::Ended),
        (LAPIS_HINT_WILL_RETURN, 0) => Ok(Hint::WillReturn),
        (LAPIS_HINT_PINNED, ttl_ms) => Ok(Hint::Pinned { ttl_ms }),
        (LAPIS_HINT_PRIORITY, 0..=255) => Ok(Hint::Priority(value as u8)),
        (LAPIS_HINT_ENDED | LAPIS_HINT_WILL_RETURN, _) => {
            Err(CallError::Value { argument: "value", found: value.into(), expected: "0 for this hint" })
        }
        (LAPIS_HINT_PRIORITY, _) => {
            Err(CallError::Value { argument: "value", found: value.into(), expected: "a priority of 0 to 255" })
        }
        _ => Err(CallError::Value { argument: "hint", found: hint.into(), expected: "a LAPIS_HINT_ value" }),
    }
}
