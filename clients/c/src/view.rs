//! Views: blocks read where they lie, without a copy.

use std::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    ptr,
};

use lapis_client::{ClientError, View};

use crate::{
    client,
    error::CallError,
    guard,
    names::lapis_key_t,
    pool::{self, lapis_pool_t},
    raw,
};

/// The pinned blocks of one batch. One thread at a time may use the handle; the blocks any thread may read.
pub struct lapis_views_t {
    views: Vec<Option<View>>,
}

/// Pins blocks where they are. Only what is in memory; no view is given while the daemon is another one than this client
/// has registered with. `pointers` and `lengths` have one element a key: null and 0 for a miss. `lengths` may be null.
/// `verify`: LAPIS_VERIFY_... The blocks are only to be read: other processes map them, too.
///
/// Release views soon: over the daemon's limit of pinned bytes, and when others need them, the client is warned
/// (lapis_client_warning), then given up. Freed by lapis_views_release().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_view(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    verify: u32,
    pointers: *mut *const c_void,
    lengths: *mut usize,
    views: Option<&mut MaybeUninit<*mut lapis_views_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(views, "views")?;
        let pool = pool::named(pool)?;
        let verify = client::verify(verify, "verify")?;
        // SAFETY: the caller's promise.
        let keys = unsafe { raw::keys(keys, keys_count) }?;
        // SAFETY: the caller's promise.
        let pointers = unsafe { raw::list_out(pointers, keys_count, "pointers") }?;
        // SAFETY: the caller's promise.
        let lengths = unsafe { raw::list_out_if_wanted(lengths, keys_count) }?;
        let views = pool.client()?.session()?.view(&pool.pool, &keys, verify)?.into_vec();
        raw::fill(pointers, views.iter().map(|view| view.as_ref().map_or(ptr::null(), |view| view.as_ptr().cast())));
        raw::fill(lengths, views.iter().map(|view| view.as_ref().map_or(0, View::len)));
        raw::give(place, lapis_views_t { views });
        Ok(())
    })
}

/// Whether what was read so far through each view was the block; ask after the last read. False once the daemon gave the
/// client up or came back cold, for misses, and for what was released. `valid`, if not null, has one element a key;
/// `valid_count`, if not null, is how many are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_views_still_valid(
    views: Option<&lapis_views_t>,
    valid: *mut bool,
    valid_count: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let views = &views.ok_or(CallError::Null { argument: "views" })?.views;
        // SAFETY: the caller's promise.
        let places = unsafe { raw::list_out_if_wanted(valid, views.len()) }?;
        let valid: Vec<bool> = views.iter().map(|view| view.as_ref().is_some_and(View::still_valid)).collect();
        raw::tell(valid_count, valid.iter().filter(|valid| **valid).count());
        raw::fill(places, valid);
        Ok(())
    })
}

/// Copies bytes of the view of key `index`, from `offset` on. LAPIS_E_ARGUMENT if it is a miss or was released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_views_copy(
    views: Option<&lapis_views_t>,
    index: usize,
    offset: usize,
    dst: *mut c_void,
    dst_bytes: usize,
) -> c_int {
    guard::status(|| {
        let views = &views.ok_or(CallError::Null { argument: "views" })?.views;
        let view = views.get(index).and_then(Option::as_ref).ok_or(no_view(index))?;
        if offset.checked_add(dst_bytes).is_none_or(|end| end > view.len()) {
            let (offset, block_bytes) = (offset as u64, view.len() as u64);
            return Err(ClientError::Range { offset, bytes: dst_bytes, block_bytes }.into());
        }
        // SAFETY: the caller's promise.
        let dst = unsafe { raw::list_out(dst.cast::<u8>(), dst_bytes, "dst") }?;
        // SAFETY: the view pins as many bytes for as long as it lives, `dst` lies elsewhere, and both were checked. What
        // another process could write meanwhile is copied, and no reference to it is made.
        unsafe { ptr::copy_nonoverlapping(view.as_ptr().add(offset), dst.as_mut_ptr().cast(), dst_bytes) };
        Ok(())
    })
}

/// Releases the view of key `index` before the others: its pointer is not to be used any more.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_views_release_one(views: Option<&mut lapis_views_t>, index: usize) -> c_int {
    guard::status(|| {
        let views = &mut views.ok_or(CallError::Null { argument: "views" })?.views;
        let released = views.get_mut(index).and_then(Option::take);
        released.map(drop).ok_or(no_view(index))
    })
}

/// Releases all views and frees the handle: no pointer of theirs is to be used any more. Null is no mistake.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_views_release(views: Option<Box<lapis_views_t>>) -> c_int {
    guard::status(|| {
        drop(views);
        Ok(())
    })
}

fn no_view(index: usize) -> CallError {
    CallError::Value { argument: "index", found: index as u64, expected: "the index of a key that has a view" }
}
