//! Reservations: slots that the caller fills in place, by its own stores or a device.

use std::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    ptr,
    sync::Weak,
};

use lapis_client::{Client, ClientError, Pool, Reservation, Session};

use crate::{
    codes,
    error::CallError,
    guard,
    names::lapis_key_t,
    pool::{self, lapis_pool_t},
    put::{self, lapis_put_options_t},
    raw,
};

/// Slots to be filled, one for each key that was answered LAPIS_RESERVED. One thread at a time may use the handle; the
/// slots any thread may fill.
pub struct lapis_reservation_t {
    /// Gone once it was committed.
    reservation: Option<Reservation>,
    keys_count: usize,
    pool: Pool,
    client: Weak<Client>,
}

/// Asks for slots. Parent and options are those of lapis_put_from(). `results` and `places` have one element a key:
/// LAPIS_RESERVED and where the block is to be written, block_bytes of it; or LAPIS_EXISTS or a LAPIS_REFUSED_ value and
/// null. Freed by lapis_reservation_abort().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_reserve(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    parent: *const lapis_key_t,
    options: *const lapis_put_options_t,
    results: *mut i32,
    places: *mut *mut c_void,
    reservation: Option<&mut MaybeUninit<*mut lapis_reservation_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(reservation, "reservation")?;
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let (keys, parent) = unsafe { (raw::keys(keys, keys_count)?, raw::key(parent)) };
        // SAFETY: the caller's promise.
        let options = unsafe { put::put_options(options) }?;
        // SAFETY: the caller's promise.
        let results = unsafe { raw::list_out(results, keys_count, "results") }?;
        // SAFETY: the caller's promise.
        let places = unsafe { raw::list_out(places, keys_count, "places") }?;
        let reservation = pool.client()?.reserve(&pool.pool, &keys, parent, &options)?;
        raw::fill(results, reservation.results().iter().map(|result| codes::of_reserve(*result)));
        raw::fill(places, (0..keys_count).map(|i| reservation.as_mut_ptr(i).map_or(ptr::null_mut(), <*mut u8>::cast)));
        let (pool, client) = (pool.pool.clone(), pool.client.clone());
        raw::give(place, lapis_reservation_t { reservation: Some(reservation), keys_count, pool, client });
        Ok(())
    })
}

/// Copies bytes into the slot of key `index`, from `offset` on. LAPIS_E_ARGUMENT if it has none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_reservation_write(
    reservation: Option<&mut lapis_reservation_t>,
    index: usize,
    offset: u64,
    src: *const c_void,
    src_bytes: usize,
) -> c_int {
    guard::status(|| {
        let reservation = reservation.ok_or(CallError::Null { argument: "reservation" })?;
        let slots = reservation.reservation.as_mut().ok_or(USED)?;
        // SAFETY: the caller's promise.
        let bytes = unsafe { raw::bytes(src, src_bytes, "src") }?;
        if slots.write_at(index, offset, bytes)? {
            return Ok(());
        }
        let expected = "the index of a key that was answered LAPIS_RESERVED";
        Err(CallError::Value { argument: "index", found: index as u64, expected })
    })
}

/// Stores what the slots hold, all of which are full now; they are not the caller's any more. `sums`, if not null, has one
/// element a key (lapis_sum; of keys without a slot anything): the slots are not read once more then; for pools of one
/// piece. `results` and `stored` are those of lapis_put_from(). The reservation is still to be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_reservation_commit(
    reservation: Option<&mut lapis_reservation_t>,
    sums: *const u64,
    options: *const lapis_put_options_t,
    results: *mut i32,
    stored: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let reservation = reservation.ok_or(CallError::Null { argument: "reservation" })?;
        let count = reservation.keys_count;
        // SAFETY: the caller's promise.
        let options = unsafe { put::put_options(options) }?;
        // SAFETY: the caller's promise.
        let results = unsafe { raw::list_out(results, count, "results") }?;
        let sums = match sums.is_null() {
            true => None,
            // SAFETY: the caller's promise.
            false => Some(unsafe { raw::list(sums, count, "sums") }?),
        };
        // Before the slots are given up, so that the call can be made again without sums.
        if sums.is_some() && reservation.pool.pieces() != 1 {
            return Err(ClientError::Pieces { first: 0, end: 1, pieces: reservation.pool.pieces() }.into());
        }
        let client = reservation.client.upgrade().ok_or(CallError::Closed { what: "reservation" })?;
        let slots = reservation.reservation.take().ok_or(USED)?;
        let put = client.commit(slots, sums, &options)?;
        put::answer(&put, results, stored);
        Ok(())
    })
}

/// Frees a reservation; slots that were not committed go back unused, and no device may write there any more by then.
/// Null is no mistake.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_reservation_abort(reservation: Option<Box<lapis_reservation_t>>) -> c_int {
    guard::status(|| {
        drop(reservation);
        Ok(())
    })
}

/// The sum of a block of one piece, as lapis_reservation_commit() takes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_sum(
    pool: Option<&lapis_pool_t>,
    key: *const lapis_key_t,
    block: *const c_void,
    block_bytes: usize,
    sum: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    guard::status(|| {
        let place = raw::place(sum, "sum")?;
        let pool = &pool::named(pool)?.pool;
        // SAFETY: the caller's promise.
        let key = unsafe { raw::key(key) }.ok_or(CallError::Null { argument: "key" })?;
        if pool.pieces() != 1 {
            return Err(ClientError::Pieces { first: 0, end: 1, pieces: pool.pieces() }.into());
        }
        // SAFETY: the caller's promise.
        let block = unsafe { raw::bytes(block, block_bytes, "block") }?;
        place.write(Session::sum_of(pool, &key, block));
        Ok(())
    })
}

const USED: CallError = CallError::Used { what: "reservation" };
