//! Numbers that a caller compares with: what a call answers, and what became of each key.

use std::{
    ffi::{CStr, CString, c_char, c_int},
    sync::LazyLock,
};

use lapis_client::{ClientError, PutResult, Refusal, ReserveResult};

use crate::guard;

/// The call did what it says. Misses and refused puts are results of single keys and no errors.
pub const LAPIS_OK: c_int = 0;
/// A bug of this library: it caught itself. Believe nothing that the call was to write.
pub const LAPIS_E_PANIC: c_int = -1;
/// An argument is null, out of its bounds, or not of this client; lapis_last_error() names it.
pub const LAPIS_E_ARGUMENT: c_int = -2;
/// The size of a struct is none that this library knows: LAPIS_INIT was forgotten, or the library is too old.
pub const LAPIS_E_SIZE: c_int = -3;
/// The client was closed, or belongs to the process that this one was forked from: connect anew here.
pub const LAPIS_E_CLOSED: c_int = -4;
/// The number of keys: 1 to LAPIS_KEYS_MAX in one call.
pub const LAPIS_E_KEYS: c_int = -5;
/// Buffer or vectors do not hold exactly the bytes of the blocks asked.
pub const LAPIS_E_BUFFER: c_int = -6;
/// Pieces or bytes beyond the end of a block.
pub const LAPIS_E_RANGE: c_int = -7;
/// The call is for pools of the other kind.
pub const LAPIS_E_KIND: c_int = -8;
/// A name or label is too long, empty, or not of the letters allowed.
pub const LAPIS_E_NAME: c_int = -9;
/// Too many views are held by this client: release some. Transient.
pub const LAPIS_E_VIEWS: c_int = -10;
/// The daemon refused and said why: what is asked has to change.
pub const LAPIS_E_REFUSED: c_int = -11;
/// The daemon did not answer within the deadline; what was asked may yet happen. Transient.
pub const LAPIS_E_LATE: c_int = -12;
/// The daemon is gone; the client reconnects by itself. Transient.
pub const LAPIS_E_GONE: c_int = -13;
/// No daemon is at that path, or it is not ready. Transient.
pub const LAPIS_E_ABSENT: c_int = -14;
/// Connecting failed in a way that does not pass by itself.
pub const LAPIS_E_CONNECT: c_int = -15;
/// The daemon speaks another language than this library: they are of different releases.
pub const LAPIS_E_PROTOCOL: c_int = -16;
/// The system has no memory, no descriptors or no threads left, or forbids the use of them.
pub const LAPIS_E_SYSTEM: c_int = -17;
/// A GPU or its driver: it is not there, was lost, or refused. lapis_last_error() says which, and what to do.
pub const LAPIS_E_GPU: c_int = -18;
/// A GPU has no memory left for what the call needs, or the system has not. Transient.
pub const LAPIS_E_GPU_BUSY: c_int = -19;

/// What became of a key of a put: stored by this call.
pub const LAPIS_STORED: i32 = 1;
/// Of a put or a reserve: it was there already, and nothing was copied.
pub const LAPIS_EXISTS: i32 = 2;
/// Of a reserve: there is a slot to fill.
pub const LAPIS_RESERVED: i32 = 3;
/// Every slot is pinned, granted or being written, and stayed so until the deadline. Transient.
pub const LAPIS_REFUSED_ALL_PINNED: i32 = -1;
/// The block is larger than the pool's blocks.
pub const LAPIS_REFUSED_TOO_LARGE: i32 = -2;
/// The block does not fit an extent of this group.
pub const LAPIS_REFUSED_NO_EXTENT_FITS: i32 = -3;
/// The pool is not known to this daemon.
pub const LAPIS_REFUSED_NO_POOL: i32 = -4;
/// This client, or this group's socket, does not permit puts.
pub const LAPIS_REFUSED_READ_ONLY: i32 = -5;
/// The slot was not granted to this client.
pub const LAPIS_REFUSED_NOT_GRANTED: i32 = -6;
/// The block table has no line for this key that could be freed. Transient.
pub const LAPIS_REFUSED_NO_LINE: i32 = -7;
/// The daemon's memory is still being populated. Transient.
pub const LAPIS_REFUSED_NOT_READY: i32 = -8;
/// The parent block is not stored.
pub const LAPIS_REFUSED_NO_PARENT: i32 = -9;
/// A limit of this client is reached.
pub const LAPIS_REFUSED_LIMIT: i32 = -10;
/// The daemon is draining. Transient.
pub const LAPIS_REFUSED_DRAINING: i32 = -11;
/// The daemon is gone. Transient.
pub const LAPIS_REFUSED_GONE: i32 = -12;
/// The daemon did not answer before the deadline; the block may yet be stored. Transient.
pub const LAPIS_REFUSED_LATE: i32 = -13;
/// Every block that could make room is worth more. An ordinary answer where there is no SSD tier: go on without storing.
pub const LAPIS_REFUSED_COLD: i32 = -14;
/// No other host of this name can be asked now.
pub const LAPIS_REFUSED_NO_PEER: i32 = -15;

/// What a code means, in a few words. lapis_last_error() knows more of the last failure.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_code_text(code: c_int) -> *const c_char {
    guard::value(c"".as_ptr(), || code_text(code).as_ptr())
}

/// Whether the same call may succeed later without a change of what is asked.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_code_is_transient(code: c_int) -> bool {
    guard::value(false, || {
        matches!(code, LAPIS_E_VIEWS | LAPIS_E_LATE | LAPIS_E_GONE | LAPIS_E_ABSENT | LAPIS_E_GPU_BUSY)
    })
}

/// What the result of a put's or a reserve's key means, in a few words.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_result_text(result: i32) -> *const c_char {
    guard::value(c"".as_ptr(), || result_text(result).as_ptr())
}

/// Whether the same put may succeed later without anyone's help.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_result_is_transient(result: i32) -> bool {
    guard::value(false, || refusal_of(result).is_some_and(Refusal::is_transient))
}

/// The code of an error of the client.
pub fn of_client(error: &ClientError) -> c_int {
    match error {
        ClientError::Closed => LAPIS_E_CLOSED,
        ClientError::KeyBytes { .. } | ClientError::KeyCount { .. } => LAPIS_E_KEYS,
        ClientError::BufferBytes { .. } | ClientError::VectorCount { .. } | ClientError::VectorBytes { .. } => {
            LAPIS_E_BUFFER
        }
        ClientError::Pieces { .. } | ClientError::Range { .. } => LAPIS_E_RANGE,
        ClientError::Flag { .. } => LAPIS_E_ARGUMENT,
        ClientError::Kind { .. } | ClientError::ForeignPool { .. } => LAPIS_E_KIND,
        ClientError::Name { .. } | ClientError::Label { .. } => LAPIS_E_NAME,
        ClientError::Views { .. } => LAPIS_E_VIEWS,
        ClientError::Refused { .. } => LAPIS_E_REFUSED,
        ClientError::Late { .. } => LAPIS_E_LATE,
        ClientError::Gone => LAPIS_E_GONE,
        ClientError::Connect { .. } if error.is_transient() => LAPIS_E_ABSENT,
        ClientError::Connect { .. } => LAPIS_E_CONNECT,
        ClientError::Welcome { .. } | ClientError::NoDescriptor { .. } | ClientError::Control(_) => LAPIS_E_PROTOCOL,
        ClientError::Memory(_) | ClientError::Io { .. } => LAPIS_E_SYSTEM,
        ClientError::Gpu { is_transient: true, .. } => LAPIS_E_GPU_BUSY,
        ClientError::Gpu { .. } => LAPIS_E_GPU,
    }
}

/// The number of a put's result.
pub fn of_put(result: PutResult) -> i32 {
    match result {
        PutResult::Stored => LAPIS_STORED,
        PutResult::Exists => LAPIS_EXISTS,
        PutResult::Refused(reason) => of_refusal(reason),
    }
}

/// The number of a reserve's result.
pub fn of_reserve(result: ReserveResult) -> i32 {
    match result {
        ReserveResult::Slot(_) => LAPIS_RESERVED,
        ReserveResult::Exists => LAPIS_EXISTS,
        ReserveResult::Refused(reason) => of_refusal(reason),
    }
}

fn of_refusal(reason: Refusal) -> i32 {
    match reason {
        Refusal::AllPinned => LAPIS_REFUSED_ALL_PINNED,
        Refusal::TooLarge => LAPIS_REFUSED_TOO_LARGE,
        Refusal::NoExtentFits => LAPIS_REFUSED_NO_EXTENT_FITS,
        Refusal::NoPool => LAPIS_REFUSED_NO_POOL,
        Refusal::ReadOnly => LAPIS_REFUSED_READ_ONLY,
        Refusal::NotGranted => LAPIS_REFUSED_NOT_GRANTED,
        Refusal::NoLine => LAPIS_REFUSED_NO_LINE,
        Refusal::NotReady => LAPIS_REFUSED_NOT_READY,
        Refusal::NoParent => LAPIS_REFUSED_NO_PARENT,
        Refusal::Limit => LAPIS_REFUSED_LIMIT,
        Refusal::Draining => LAPIS_REFUSED_DRAINING,
        Refusal::Gone => LAPIS_REFUSED_GONE,
        Refusal::Late => LAPIS_REFUSED_LATE,
        Refusal::Cold => LAPIS_REFUSED_COLD,
        Refusal::NoPeer => LAPIS_REFUSED_NO_PEER,
    }
}

fn refusal_of(result: i32) -> Option<Refusal> {
    Refusal::ALL.into_iter().find(|reason| of_refusal(*reason) == result)
}

fn code_text(code: c_int) -> &'static CStr {
    match code {
        LAPIS_OK => c"ok",
        LAPIS_E_PANIC => c"a bug of this library",
        LAPIS_E_ARGUMENT => c"an argument is wrong",
        LAPIS_E_SIZE => c"the size of a struct is none that this library knows",
        LAPIS_E_CLOSED => c"the client is closed",
        LAPIS_E_KEYS => c"the number of keys is wrong",
        LAPIS_E_BUFFER => c"buffer or vectors do not fit the blocks",
        LAPIS_E_RANGE => c"beyond the end of a block",
        LAPIS_E_KIND => c"the pool is of the other kind",
        LAPIS_E_NAME => c"a name or label is wrong",
        LAPIS_E_VIEWS => c"too many views are held",
        LAPIS_E_REFUSED => c"the daemon refused",
        LAPIS_E_LATE => c"the daemon did not answer in time",
        LAPIS_E_GONE => c"the daemon is gone",
        LAPIS_E_ABSENT => c"no daemon is there",
        LAPIS_E_CONNECT => c"connecting failed",
        LAPIS_E_PROTOCOL => c"the daemon is of another release",
        LAPIS_E_SYSTEM => c"the system refused",
        LAPIS_E_GPU => c"a GPU or its driver is not there, or refused",
        LAPIS_E_GPU_BUSY => c"a GPU has no room for it now",
        _ => c"no code of this library",
    }
}

fn result_text(result: i32) -> &'static CStr {
    static REFUSALS: LazyLock<Vec<CString>> = LazyLock::new(|| {
        let text = |reason: Refusal| CString::new(reason.to_string()).expect("our own words have no NUL");
        Refusal::ALL.into_iter().map(text).collect()
    });
    match result {
        LAPIS_STORED => c"stored",
        LAPIS_EXISTS => c"exists",
        LAPIS_RESERVED => c"reserved",
        refused => {
            let at = Refusal::ALL.into_iter().position(|reason| of_refusal(reason) == refused);
            at.map_or(c"no result of this library", |at| REFUSALS[at].as_c_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use lapis_transport::TransportError;

    use super::*;

    const CODES: std::ops::RangeInclusive<c_int> = LAPIS_E_GPU_BUSY..=LAPIS_OK;

    #[test]
    fn a_refusal_has_the_number_that_goes_over_the_wire_and_a_text() {
        for reason in Refusal::ALL {
            let result = of_put(PutResult::Refused(reason));
            assert_eq!(result, -i32::from(reason as u8), "{reason}");
            assert_eq!(result_text(result).to_str().expect("our own words"), reason.to_string());
            assert_eq!(lapis_result_is_transient(result), reason.is_transient(), "{reason}");
        }
        assert!(!lapis_result_is_transient(LAPIS_STORED) && !lapis_result_is_transient(-100));
    }

    #[test]
    fn every_code_has_a_text_of_its_own() {
        let mut texts: Vec<&CStr> = CODES.map(code_text).collect();
        let codes = texts.len();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!((texts.len(), texts.contains(&code_text(1))), (codes, false));
    }

    #[test]
    fn what_the_client_calls_transient_has_a_transient_code() {
        let gone = std::io::ErrorKind::NotFound;
        let nobody = TransportError::Path { op: "connect to", path: "/nowhere".into(), source: gone.into() };
        let errors = [
            ClientError::Closed,
            ClientError::KeyCount { keys: 0 },
            ClientError::Views { wanted: 2, held: 1 },
            ClientError::Refused { reason: String::new() },
            ClientError::Late { after: std::time::Duration::ZERO },
            ClientError::Gone,
            ClientError::Connect { path: "/nowhere".into(), source: nobody },
            ClientError::Welcome { what: "nothing" },
            ClientError::Gpu { op: "a copy", reason: String::new(), is_transient: false },
            ClientError::Gpu { op: "a copy", reason: String::new(), is_transient: true },
        ];
        for error in errors {
            assert_eq!(lapis_code_is_transient(of_client(&error)), error.is_transient(), "{error}");
        }
    }
}
