//! Pools: opened once by their shape, then asked. Each knows its client.

use std::{
    ffi::{c_char, c_int},
    mem::{MaybeUninit, offset_of},
    sync::{Arc, Weak},
};

use lapis_client::{Client, Fingerprint, Pool, PoolKind, PoolShape};

use crate::{
    client::lapis_client_t,
    error::CallError,
    guard,
    names::lapis_fingerprint_t,
    raw::{self, Growing},
};

/// Equal blocks with parents.
pub const LAPIS_POOL_CHAIN: u32 = 0;
/// Any bytes under any name.
pub const LAPIS_POOL_OBJECT: u32 = 1;

/// An open pool. It stays good over restarts of the daemon, cold ones too. Any thread may use it at any time.
pub struct lapis_pool_t {
    pub(crate) pool: Pool,
    /// Weak: a client ends when it is closed, whatever pools are left.
    pub(crate) client: Weak<Client>,
}

impl lapis_pool_t {
    /// The client, unless it was closed.
    pub(crate) fn client(&self) -> Result<Arc<Client>, CallError> {
        self.client.upgrade().ok_or(CallError::Closed { what: "pool" })
    }
}

/// The pool that a call names.
pub fn named(pool: Option<&lapis_pool_t>) -> Result<&lapis_pool_t, CallError> {
    pool.ok_or(CallError::Null { argument: "pool" })
}

/// What makes a pool: the same shape is the same pool, in every process of the trust group.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_pool_shape_t {
    /// Set by LAPIS_INIT.
    pub size: usize,
    /// Of lapis_fingerprint().
    pub fingerprint: lapis_fingerprint_t,
    /// Which family of blocks in the namespace: cache group, rank or shard rectangle, K or V. ASCII, at most 48 bytes.
    pub label: *const c_char,
    /// Payload bytes of every block of a chain pool; the most that an object of an object pool may have.
    pub block_bytes: u64,
    /// LAPIS_POOL_...
    pub kind: u32,
    /// Equal pieces of a block, each with a sum of its own when there are several: 1 to 256; 0 is 1.
    pub pieces: u32,
}

// SAFETY: numbers and raw pointers, the size first.
unsafe impl Growing for lapis_pool_shape_t {
    const BYTES_MIN: usize = offset_of!(Self, pieces) + size_of::<u32>();
}
const _: () = assert!(size_of::<lapis_pool_shape_t>() == 64, "a layout that programs are compiled with");

/// Opens a pool, or makes it. `shape` went through LAPIS_INIT. Freed by lapis_pool_close().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_pool_open(
    client: Option<&lapis_client_t>,
    shape: *const lapis_pool_shape_t,
    pool: Option<&mut MaybeUninit<*mut lapis_pool_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(pool, "pool")?;
        let client = &client.ok_or(CallError::Null { argument: "client" })?.client;
        // SAFETY: the caller's promise.
        let pool = client.pool(&unsafe { pool_shape(shape) }?)?;
        raw::give(place, lapis_pool_t { pool, client: Arc::downgrade(client) });
        Ok(())
    })
}

/// # Safety
/// As for [`raw::growing`], and the label in it is good.
unsafe fn pool_shape(from: *const lapis_pool_shape_t) -> Result<PoolShape, CallError> {
    // SAFETY: the caller's promise.
    let from = unsafe { raw::growing(from, "shape") }?;
    let value = |argument, found: u32, expected| CallError::Value { argument, found: found.into(), expected };
    Ok(PoolShape {
        namespace: Fingerprint(from.fingerprint.bytes),
        // SAFETY: the caller's promise.
        label: unsafe { raw::text(from.label, "shape.label") }?.to_owned(),
        kind: match from.kind {
            LAPIS_POOL_CHAIN => PoolKind::Chain,
            LAPIS_POOL_OBJECT => PoolKind::Object,
            found => return Err(value("shape.kind", found, "LAPIS_POOL_CHAIN or LAPIS_POOL_OBJECT")),
        },
        block_bytes: from.block_bytes,
        pieces: u16::try_from(from.pieces.max(1)).map_err(|_| value("shape.pieces", from.pieces, "at most 256"))?,
    })
}

/// Frees the handle; the pool and its blocks stay with the daemon. Null is no mistake.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_pool_close(pool: Option<Box<lapis_pool_t>>) -> c_int {
    guard::status(|| {
        drop(pool);
        Ok(())
    })
}
