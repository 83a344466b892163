//! Objects: any bytes under any name, in pools of that kind.

use std::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    ptr,
};

use crate::{
    bytes::lapis_bytes_t,
    codes,
    error::CallError,
    get, guard,
    pool::{self, lapis_pool_t},
    put::{self, lapis_put_options_t},
    raw,
};

/// Stores an object, whole or not at all, under a name of 1 to 1024 bytes. Objects never change: a name that is there is
/// answered LAPIS_EXISTS. `bytes` may be null where there are none. `result`: LAPIS_STORED, LAPIS_EXISTS or a
/// LAPIS_REFUSED_ value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_put_object(
    pool: Option<&lapis_pool_t>,
    name: *const c_void,
    name_bytes: usize,
    bytes: *const c_void,
    bytes_count: usize,
    options: *const lapis_put_options_t,
    result: Option<&mut MaybeUninit<i32>>,
) -> c_int {
    guard::status(|| {
        let place = raw::place(result, "result")?;
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let (name, bytes) = unsafe { (self::name(name, name_bytes)?, raw::bytes(bytes, bytes_count, "bytes")?) };
        // SAFETY: the caller's promise.
        let options = unsafe { put::put_options(options) }?;
        place.write(codes::of_put(pool.client()?.put_object(&pool.pool, name, bytes, &options)?));
        Ok(())
    })
}

/// The bytes of an object, or null in `object` if it is not there as a whole. `deadline_us`, or LAPIS_DEADLINE_...: of
/// the whole call; by default each part that has to be fetched may take as long as a get of as many bytes. Freed by
/// lapis_bytes_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_get_object(
    pool: Option<&lapis_pool_t>,
    name: *const c_void,
    name_bytes: usize,
    deadline_us: i64,
    object: Option<&mut MaybeUninit<*mut lapis_bytes_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(object, "object")?;
        let pool = pool::named(pool)?;
        let deadline = get::deadline(deadline_us, "deadline_us")?;
        // SAFETY: the caller's promise.
        let name = unsafe { self::name(name, name_bytes) }?;
        match pool.client()?.get_object(&pool.pool, name, deadline)? {
            Some(bytes) => raw::give(place, lapis_bytes_t::new(bytes)),
            None => drop(place.write(ptr::null_mut())),
        }
        Ok(())
    })
}

/// Forgets an object. `removed`, if not null, is whether it was there. `deadline_us`: microseconds, or
/// LAPIS_DEADLINE_...
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_remove_object(
    pool: Option<&lapis_pool_t>,
    name: *const c_void,
    name_bytes: usize,
    deadline_us: i64,
    removed: Option<&mut MaybeUninit<bool>>,
) -> c_int {
    guard::status(|| {
        let pool = pool::named(pool)?;
        let deadline = get::deadline(deadline_us, "deadline_us")?;
        // SAFETY: the caller's promise.
        let name = unsafe { self::name(name, name_bytes) }?;
        raw::tell(removed, pool.client()?.remove_object(&pool.pool, name, deadline)?);
        Ok(())
    })
}

/// # Safety
/// As for [`raw::bytes`].
unsafe fn name<'a>(name: *const c_void, bytes: usize) -> Result<&'a [u8], CallError> {
    if name.is_null() {
        return Err(CallError::Null { argument: "name" });
    }
    // SAFETY: the caller's promise.
    unsafe { raw::bytes(name, bytes, "name") }
}
