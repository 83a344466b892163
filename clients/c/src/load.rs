//! Copies of blocks to the memory of a GPU piece by piece, and what tells of each piece.

use std::{
    ffi::{c_int, c_ulonglong, c_void},
    mem::{ManuallyDrop, MaybeUninit, offset_of},
};

use lapis_client::{Birthplace, ClientError, DeviceFlag, DeviceLoad, DevicePiece, DevicePtr};

use crate::{
    device::{device_ptrs, device_stream},
    error::CallError,
    get::{self, lapis_get_options_t},
    guard,
    names::lapis_key_t,
    pool::{self, lapis_pool_t},
    raw::{self, Growing},
};

/// A part of every block that goes to places of its own, such as a layer's. All zero but the size is no piece.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_device_piece_t {
    /// Set by LAPIS_INIT.
    pub size: usize,
    /// Bytes of a block before it.
    pub offset: u64,
    pub bytes: u64,
    /// As lapis_get_device() has them, each for an equal part of the piece.
    pub addresses: *const c_ulonglong,
    pub addresses_count: usize,
    /// Of 4 bytes in memory that the GPU reaches, a multiple of 4: written when the piece is over. 0: no flag.
    pub flag: c_ulonglong,
    /// What is written there.
    pub flag_value: u32,
    /// 0.
    pub unused: u32,
}

// SAFETY: numbers and raw pointers, the size first.
unsafe impl Growing for lapis_device_piece_t {
    const BYTES_MIN: usize = offset_of!(Self, unused) + size_of::<u32>();
}
const _: () = assert!(size_of::<lapis_device_piece_t>() == 56, "a layout that programs are compiled with");

/// The copies of a get in pieces. Any thread may use it at any time.
pub struct lapis_device_load_t {
    load: ManuallyDrop<DeviceLoad>,
    birthplace: Birthplace,
}

impl lapis_device_load_t {
    /// In a forked child nothing of the driver may be touched.
    fn load(&self) -> Result<&DeviceLoad, CallError> {
        if self.birthplace.is_here() { Ok(&self.load) } else { Err(ClientError::Closed.into()) }
    }
}

impl Drop for lapis_device_load_t {
    fn drop(&mut self) {
        if self.birthplace.is_here() {
            // SAFETY: dropped here alone, and never used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.load) };
        }
    }
}

/// lapis_get_device() in pieces, for engines that begin with the first layer while the others arrive: the first piece of all
/// blocks is copied first, then the second of all, in the order of `pieces`, to addresses of its own each. Pieces are bytes
/// of a block and need not cover it. Copies go on a stream of the client's own, behind what is on `stream` now. When this
/// returns all are asked for; blocks that were not in memory were waited for, within the deadline, and in that time those
/// that were there have been copied whole.
///
/// Behind each piece its flag is written (cuStreamWriteValue32): a stream of the caller's waits for it by
/// cuStreamWaitValue32 with CU_STREAM_WAIT_VALUE_GEQ, also before this is called, but then not `stream`, nor one that it
/// waits for: the copies come behind it. Or, without a flag, lapis_device_load_wait_piece() once this has returned. Until then
/// nobody looks at an address of the piece, frees it, or reads or writes it, but what is on `stream` when this is called;
/// nor does anybody free the flag's memory.
///
/// A flag says that its piece is over, not that all blocks came: which did is in `hit_bytes`. It is written too where blocks
/// are missing, and where this fails with LAPIS_E_GPU or LAPIS_E_GPU_BUSY after copies were begun. None is written by a call
/// that is refused for what it asks (all other codes), where the GPU or its driver is not to be had or is lost (nothing runs
/// there then), or where the driver refuses the flag itself: who waits before calling writes the flags itself then.
///
/// Arguments are as lapis_get_device() has them; pieces of `options` are not heeded, and a hit has so many bytes as all
/// pieces. `load` tells of the copies; ask lapis_device_load_still_valid() when all are over and before the bytes are
/// believed. Freed by lapis_device_load_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_get_device_pieces(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    pieces: *const lapis_device_piece_t,
    pieces_count: usize,
    device: u32,
    stream: *mut c_void,
    options: *const lapis_get_options_t,
    hit_bytes: *mut u32,
    hits: Option<&mut MaybeUninit<usize>>,
    load: Option<&mut MaybeUninit<*mut lapis_device_load_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(load, "load")?;
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let (keys, pieces) = unsafe { (raw::keys(keys, keys_count)?, self::pieces(pieces, pieces_count)?) };
        // SAFETY: the caller's promise.
        let (options, stream) = unsafe { (get::get_options(options)?, device_stream(device, stream)?) };
        // SAFETY: the caller's promise.
        let hit_bytes = unsafe { raw::list_out(hit_bytes, keys_count, "hit_bytes") }?;
        let list: Vec<DevicePiece<'_>> = pieces.iter().map(Piece::borrowed).collect();
        // SAFETY: the caller's promise of addresses, flags and stream.
        let found = unsafe { pool.client()?.get_device_pieces(&pool.pool, &keys, &list, &stream, &options) }?;
        get::answer(&found.got, hit_bytes, hits);
        raw::give(place, lapis_device_load_t { load: ManuallyDrop::new(found), birthplace: Birthplace::here() });
        Ok(())
    })
}

/// What is put on the stream after this waits, on its GPU, until the piece `piece`, counted from 0, and those before it are
/// there; nobody waits here. `device` and `stream` are as lapis_get_device() has them, and may be of another GPU than the
/// copies. LAPIS_E_GPU if a GPU is lost: then nothing runs there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_device_load_wait_piece(
    load: Option<&lapis_device_load_t>,
    piece: usize,
    device: u32,
    stream: *mut c_void,
) -> c_int {
    guard::status(|| {
        let load = piece_of(load, piece)?;
        // SAFETY: the caller's promise.
        let stream = unsafe { device_stream(device, stream) }?;
        Ok(load.wait_piece(piece, &stream)?)
    })
}

/// Whether the copies of a piece, and of those before it, have ended.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_device_load_is_piece_over(
    load: Option<&lapis_device_load_t>,
    piece: usize,
    over: Option<&mut MaybeUninit<bool>>,
) -> c_int {
    guard::status(|| {
        let load = piece_of(load, piece)?;
        raw::place(over, "over")?.write(load.is_piece_over(piece));
        Ok(())
    })
}

/// Whether all copies have ended.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_device_load_is_over(
    load: Option<&lapis_device_load_t>,
    over: Option<&mut MaybeUninit<bool>>,
) -> c_int {
    guard::status(|| {
        let load = load.ok_or(CallError::Null { argument: "load" })?.load()?;
        raw::place(over, "over")?.write(load.is_over());
        Ok(())
    })
}

/// Whether what was copied is what was asked for; ask when all copies have ended. False once the GPU is lost, or one that was
/// read from, or the daemon gave the client up or came back cold: then the bytes may be anything.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_device_load_still_valid(
    load: Option<&lapis_device_load_t>,
    valid: Option<&mut MaybeUninit<bool>>,
) -> c_int {
    guard::status(|| {
        let load = load.ok_or(CallError::Null { argument: "load" })?.load()?;
        raw::place(valid, "valid")?.write(load.still_valid());
        Ok(())
    })
}

/// Frees the handle, whether the copies have ended or not: they go on, and so do flags; what is read stays pinned until then.
/// Null is no mistake.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_device_load_free(load: Option<Box<lapis_device_load_t>>) -> c_int {
    guard::status(|| {
        drop(load);
        Ok(())
    })
}

fn piece_of(load: Option<&lapis_device_load_t>, piece: usize) -> Result<&DeviceLoad, CallError> {
    let load = load.ok_or(CallError::Null { argument: "load" })?.load()?;
    if piece < load.pieces() {
        return Ok(load);
    }
    Err(CallError::Value { argument: "piece", found: piece as u64, expected: "the index of a piece" })
}

/// A piece with addresses of our own.
struct Piece {
    offset: u64,
    bytes: u64,
    to: Vec<DevicePtr>,
    flag: Option<DeviceFlag>,
}

impl Piece {
    fn borrowed(&self) -> DevicePiece<'_> {
        DevicePiece { offset: self.offset, bytes: self.bytes, to: &self.to, flag: self.flag }
    }
}

/// # Safety
/// As for [`raw::growing_list`], and for [`raw::list`] of each piece's addresses.
unsafe fn pieces(pieces: *const lapis_device_piece_t, count: usize) -> Result<Vec<Piece>, CallError> {
    // SAFETY: the caller's promise.
    let pieces = unsafe { raw::growing_list(pieces, count, "pieces") }?;
    let one = |piece: lapis_device_piece_t| {
        let lapis_device_piece_t { size: _, offset, bytes, addresses, addresses_count, flag, flag_value, unused } =
            piece;
        if unused != 0 {
            return Err(CallError::Value { argument: "pieces.unused", found: unused.into(), expected: "0" });
        }
        if flag == 0 && flag_value != 0 {
            let (argument, expected) = ("pieces.flag_value", "0 without a flag");
            return Err(CallError::Value { argument, found: flag_value.into(), expected });
        }
        let flag = (flag != 0).then_some(DeviceFlag { at: DevicePtr(flag), value: flag_value });
        // SAFETY: the caller's promise.
        Ok(Piece { offset, bytes, to: unsafe { device_ptrs(addresses, addresses_count) }?, flag })
    };
    pieces.into_iter().map(one).collect()
}
