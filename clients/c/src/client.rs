//! A client: connecting, what it says of itself, its end.

use std::{
    ffi::{c_char, c_int},
    mem::{MaybeUninit, offset_of},
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::Duration,
};

use lapis_client::{Client, ConnectOptions, Stats, Verify};
use lapis_transport::control::Warning;

use crate::{
    bytes::lapis_bytes_t,
    error::CallError,
    guard,
    raw::{self, Growing},
};

/// Ask for memory that can only be read: every put is refused, and so are removals and hints.
pub const LAPIS_CONNECT_READ_ONLY: u32 = 1;
/// Do not map all memory ahead, in the background: the first copy of each page takes longer then.
pub const LAPIS_CONNECT_NO_POPULATE: u32 = 2;
/// Devices write into reserved slots: after the death of this process the daemon waits a grace before it reuses them.
pub const LAPIS_CONNECT_WRITES_BY_DMA: u32 = 4;
/// Ask for the daemon's memory on GPUs, where lapis_get_device() finds blocks and lapis_put_device() puts them; without it
/// both go by way of DRAM. Implies LAPIS_CONNECT_WRITES_BY_DMA.
pub const LAPIS_CONNECT_GPUS: u32 = 8;

/// When the bytes of a hit in memory are checked against their sum: as a level above says; at first the daemon's
/// configuration.
pub const LAPIS_VERIFY_DEFAULT: u32 = 0;
/// When nobody has checked them since the daemon's start.
pub const LAPIS_VERIFY_CROSSINGS: u32 = 1;
/// Always. Costs one more pass over the bytes.
pub const LAPIS_VERIFY_ALWAYS: u32 = 2;

/// The daemon has nothing to say about the views held.
pub const LAPIS_WARNING_NONE: u32 = 0;
/// Over the limit of pinned bytes while others need them: release views soon.
pub const LAPIS_WARNING_PINS_OVER_LIMIT: u32 = 1;
/// The views of this client are not heeded any more: none is valid.
pub const LAPIS_WARNING_EXPELLED: u32 = 2;

/// A connection to the daemon of this host, kept up by itself. Any thread may use it at any time.
pub struct lapis_client_t {
    pub(crate) client: Arc<Client>,
}

/// How to connect. All zero but the size: the defaults.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_connect_options_t {
    /// Set by LAPIS_INIT.
    pub size: usize,
    /// Shown by `lapis status`. Null: the program's name.
    pub name: *const c_char,
    /// LAPIS_CONNECT_..., added.
    pub flags: u32,
    /// LAPIS_VERIFY_...
    pub verify: u32,
}

// SAFETY: numbers and raw pointers, the size first.
unsafe impl Growing for lapis_connect_options_t {
    const BYTES_MIN: usize = offset_of!(Self, verify) + size_of::<u32>();
}
const _: () = assert!(size_of::<lapis_connect_options_t>() == 24, "a layout that programs are compiled with");

/// What a client counted since it connected first.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lapis_stats_t {
    /// Set by LAPIS_INIT.
    pub size: usize,
    /// Keys asked by lapis_exists and lapis_match_prefix.
    pub keys_looked_up: u64,
    /// Of those, how many were there.
    pub keys_found: u64,
    /// Blocks asked by gets and views.
    pub blocks_asked: u64,
    /// Of those, how many were hits.
    pub blocks_hit: u64,
    /// Payload bytes of those hits.
    pub bytes_hit: u64,
    /// Blocks of puts by their outcome.
    pub blocks_stored: u64,
    pub blocks_existed: u64,
    pub blocks_refused: u64,
    /// Copies and views that met a changed line and were tried once more.
    pub retries: u64,
    /// Blocks that did not fit their sum, answered as misses.
    pub blocks_corrupt: u64,
}

// SAFETY: numbers, the size first.
unsafe impl Growing for lapis_stats_t {
    const BYTES_MIN: usize = offset_of!(Self, blocks_corrupt) + size_of::<u64>();
}
const _: () = assert!(size_of::<lapis_stats_t>() == 88, "a layout that programs are compiled with");

/// Connects to the daemon that serves the socket at `path`. Ended by lapis_client_close().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_connect(
    path: *const c_char,
    options: *const lapis_connect_options_t,
    client: Option<&mut MaybeUninit<*mut lapis_client_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(client, "client")?;
        // SAFETY: the caller's promise.
        let path = unsafe { raw::text(path, "path") }?;
        // SAFETY: the caller's promise.
        let options = unsafe { connect_options(options) }?;
        let client = Arc::new(Client::connect(path, options)?);
        raw::give(place, lapis_client_t { client });
        Ok(())
    })
}

/// # Safety
/// As for [`raw::growing`], and the name in it is good.
unsafe fn connect_options(from: *const lapis_connect_options_t) -> Result<ConnectOptions, CallError> {
    const KNOWN: u32 =
        LAPIS_CONNECT_READ_ONLY | LAPIS_CONNECT_NO_POPULATE | LAPIS_CONNECT_WRITES_BY_DMA | LAPIS_CONNECT_GPUS;
    // SAFETY: the caller's promise.
    let from = unsafe { raw::growing_or_zero(from, "options") }?;
    if from.flags & !KNOWN != 0 {
        let (argument, expected) = ("options.flags", "a sum of LAPIS_CONNECT_ flags");
        return Err(CallError::Value { argument, found: from.flags.into(), expected });
    }
    let mut options = ConnectOptions {
        may_put: from.flags & LAPIS_CONNECT_READ_ONLY == 0,
        populate: from.flags & LAPIS_CONNECT_NO_POPULATE == 0,
        writes_by_dma: from.flags & LAPIS_CONNECT_WRITES_BY_DMA != 0,
        gpus: from.flags & LAPIS_CONNECT_GPUS != 0,
        verify: verify(from.verify, "options.verify")?,
        ..ConnectOptions::default()
    };
    if !from.name.is_null() {
        // SAFETY: the caller's promise.
        options.name = unsafe { raw::text(from.name, "options.name") }?.to_owned();
    }
    Ok(options)
}

/// What is asked of sums; `None` is the level above.
pub fn verify(verify: u32, argument: &'static str) -> Result<Option<Verify>, CallError> {
    match verify {
        LAPIS_VERIFY_DEFAULT => Ok(None),
        LAPIS_VERIFY_CROSSINGS => Ok(Some(Verify::Crossings)),
        LAPIS_VERIFY_ALWAYS => Ok(Some(Verify::Always)),
        found => Err(CallError::Value { argument, found: found.into(), expected: "a LAPIS_VERIFY_ value" }),
    }
}

/// Ends a client: its connection, as soon as calls of other threads, tickets, views and reservations of it have ended.
/// Its pools answer LAPIS_E_CLOSED from now on. Null is no mistake.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_client_close(client: Option<Box<lapis_client_t>>) -> c_int {
    guard::status(|| {
        drop(client);
        Ok(())
    })
}

/// Whether a daemon answers now. Never in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_client_is_connected(
    client: Option<&lapis_client_t>,
    connected: Option<&mut MaybeUninit<bool>>,
) -> c_int {
    guard::status(|| {
        let place = raw::place(connected, "connected")?;
        place.write(self::client(client)?.is_connected());
        Ok(())
    })
}

/// A descriptor that becomes readable when a ticket may have got on; for poll and its kin, not to be read or closed. It
/// is good until the client is closed.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_client_fd(client: Option<&lapis_client_t>, fd: Option<&mut MaybeUninit<c_int>>) -> c_int {
    guard::status(|| {
        let place = raw::place(fd, "fd")?;
        place.write(self::client(client)?.as_fd().as_raw_fd());
        Ok(())
    })
}

/// Makes the client's descriptor quiet. Call it before polling the tickets.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_client_acknowledge(client: Option<&lapis_client_t>) -> c_int {
    guard::status(|| Ok(self::client(client)?.acknowledge()?))
}

/// What the daemon says about the views held: LAPIS_WARNING_...
#[unsafe(no_mangle)]
pub extern "C" fn lapis_client_warning(
    client: Option<&lapis_client_t>,
    warning: Option<&mut MaybeUninit<u32>>,
) -> c_int {
    guard::status(|| {
        let place = raw::place(warning, "warning")?;
        place.write(match self::client(client)?.session()?.warning() {
            Warning::None => LAPIS_WARNING_NONE,
            Warning::PinsOverLimit => LAPIS_WARNING_PINS_OVER_LIMIT,
            Warning::Expelled => LAPIS_WARNING_EXPELLED,
        });
        Ok(())
    })
}

/// What this client counted. `stats` went through LAPIS_INIT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_client_stats(client: Option<&lapis_client_t>, stats: *mut lapis_stats_t) -> c_int {
    guard::status(|| {
        let counted = lapis_stats_t::from(self::client(client)?.stats()?);
        // SAFETY: the caller's promise.
        unsafe { raw::fill_growing(stats, &counted, "stats") }
    })
}

impl From<Stats> for lapis_stats_t {
    fn from(stats: Stats) -> Self {
        // Whole: a count that is added there is missed here.
        let Stats {
            keys_looked_up,
            keys_found,
            blocks_asked,
            blocks_hit,
            bytes_hit,
            blocks_stored,
            blocks_existed,
            blocks_refused,
            retries,
            blocks_corrupt,
        } = stats;
        Self {
            size: size_of::<Self>(),
            keys_looked_up,
            keys_found,
            blocks_asked,
            blocks_hit,
            bytes_hit,
            blocks_stored,
            blocks_existed,
            blocks_refused,
            retries,
            blocks_corrupt,
        }
    }
}

/// The daemon's state as JSON, by a connection of its own: for people and scripts. A NUL follows it. `deadline_us`: of
/// each part of the answer; at least 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_status(
    path: *const c_char,
    deadline_us: u64,
    json: Option<&mut MaybeUninit<*mut lapis_bytes_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(json, "json")?;
        // SAFETY: the caller's promise.
        let path = unsafe { raw::text(path, "path") }?;
        if deadline_us == 0 {
            return Err(CallError::Value { argument: "deadline_us", found: 0, expected: "at least 1" });
        }
        let text = lapis_client::status(path, Duration::from_micros(deadline_us))?;
        raw::give(place, lapis_bytes_t::text(text));
        Ok(())
    })
}

/// What a handle stands for.
pub fn client(client: Option<&lapis_client_t>) -> Result<&Client, CallError> {
    client.map(|client| &*client.client).ok_or(CallError::Null { argument: "client" })
}
