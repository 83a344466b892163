//! What is there: answered from the mapped table, without a call to the daemon.

use std::{ffi::c_int, mem::MaybeUninit, sync::Weak};

use lapis_client::HitPolicy;

use crate::{
    error::CallError,
    get, guard,
    names::lapis_key_t,
    pool::{self, lapis_pool_t},
    raw,
};

/// The leading run counts.
pub const LAPIS_HIT_PREFIX: u32 = 0;
/// A length counts only if the last `trailing` keys before it are there (sliding windows, recurrent state).
pub const LAPIS_HIT_TRAILING: u32 = 1;
/// Each key for itself.
pub const LAPIS_HIT_ANY: u32 = 2;

/// One pool of a look-up, and what counts as a hit there.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_ask_t {
    pub pool: *const lapis_pool_t,
    /// LAPIS_HIT_...
    pub policy: u32,
    /// Of LAPIS_HIT_TRAILING; else 0.
    pub trailing: u32,
}

/// Which of the keys are held. `present`, if not null, has (keys_count + 63) / 64 words: bit i % 64 of word i / 64 is
/// that of key i. `found`, if not null, is how many.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_exists(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    present: *mut u64,
    found: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let keys = unsafe { raw::keys(keys, keys_count) }?;
        // SAFETY: the caller's promise.
        let words = unsafe { raw::list_out_if_wanted(present, keys_count.div_ceil(64)) }?;
        let there = pool.client()?.exists(&pool.pool, &keys)?;
        raw::fill(words, there.words().iter().copied());
        raw::tell(found, there.count());
        Ok(())
    })
}

/// How many leading keys are held under the policy of every pool asked; for a single LAPIS_HIT_ANY, how many of all.
/// All pools are of one client.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_match_prefix(
    asks: *const lapis_ask_t,
    asks_count: usize,
    keys: *const lapis_key_t,
    keys_count: usize,
    matched: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let place = raw::place(matched, "matched")?;
        // SAFETY: the caller's promise.
        let asks = unsafe { asked(asks, asks_count) }?;
        // SAFETY: the caller's promise.
        let keys = unsafe { raw::keys(keys, keys_count) }?;
        let none = CallError::Value { argument: "asks_count", found: 0, expected: "at least 1" };
        let client = asks.first().ok_or(none)?.0.client()?;
        let pools: Vec<_> = asks.iter().map(|(pool, policy)| (pool.pool.clone(), *policy)).collect();
        place.write(client.match_prefix(&pools, &keys)?);
        Ok(())
    })
}

/// lapis_match_prefix(), after what other hosts have of the keys that are missing here was fetched. Without other hosts, or
/// where nothing is missing, nobody is asked. `deadline_us`: microseconds, or LAPIS_DEADLINE_...
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_fetch_prefix(
    asks: *const lapis_ask_t,
    asks_count: usize,
    keys: *const lapis_key_t,
    keys_count: usize,
    deadline_us: i64,
    matched: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let place = raw::place(matched, "matched")?;
        let deadline = get::deadline(deadline_us, "deadline_us")?;
        // SAFETY: the caller's promise.
        let asks = unsafe { asked(asks, asks_count) }?;
        // SAFETY: the caller's promise.
        let keys = unsafe { raw::keys(keys, keys_count) }?;
        let none = CallError::Value { argument: "asks_count", found: 0, expected: "at least 1" };
        let client = asks.first().ok_or(none)?.0.client()?;
        let pools: Vec<_> = asks.iter().map(|(pool, policy)| (pool.pool.clone(), *policy)).collect();
        place.write(client.fetch_prefix(&pools, &keys, deadline)?);
        Ok(())
    })
}

/// The pools of a look-up, all of one client, with their policies.
///
/// # Safety
/// As for [`raw::list`], and every pool in it is null or open.
unsafe fn asked<'a>(asks: *const lapis_ask_t, count: usize) -> Result<Vec<(&'a lapis_pool_t, HitPolicy)>, CallError> {
    // SAFETY: the caller's promise.
    let asks = unsafe { raw::list(asks, count, "asks") }?;
    let mut pools: Vec<(&lapis_pool_t, HitPolicy)> = Vec::with_capacity(asks.len());
    for (index, ask) in asks.iter().enumerate() {
        // SAFETY: the caller's promise.
        let pool = unsafe { ask.pool.as_ref() }.ok_or(CallError::NullAt { argument: "asks.pool", index })?;
        if pools.first().is_some_and(|(first, _)| !Weak::ptr_eq(&first.client, &pool.client)) {
            return Err(CallError::Foreign { index });
        }
        pools.push((pool, policy(ask)?));
    }
    Ok(pools)
}

fn policy(ask: &lapis_ask_t) -> Result<HitPolicy, CallError> {
    let value = |argument, found: u32, expected| CallError::Value { argument, found: found.into(), expected };
    match (ask.policy, ask.trailing) {
        (LAPIS_HIT_PREFIX, 0) => Ok(HitPolicy::Prefix),
        (LAPIS_HIT_TRAILING, keys) => Ok(HitPolicy::Trailing(keys)),
        (LAPIS_HIT_ANY, 0) => Ok(HitPolicy::Any),
        (LAPIS_HIT_PREFIX | LAPIS_HIT_ANY, found) => Err(value("asks.trailing", found, "0 without LAPIS_HIT_TRAILING")),
        (found, _) => Err(value("asks.policy", found, "a LAPIS_HIT_ value")),
    }
}
