//! What was done wrong: said on standard error, appended to a file, kept for whoever asks.

use std::{
    ffi::{c_char, c_ulonglong},
    fmt,
    io::Write,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::options::Options;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pointer, handle, stream or event that was freed or destroyed.
    UseAfterFree,
    DoubleFree,
    /// A call without a context, with one that is gone, or with another than the stream's or the event's.
    WrongContext,
    /// Host memory in an asynchronous copy that is not registered.
    Pageable,
    OutOfBounds,
    /// Memory that no one ever gave out.
    WildPointer,
    /// Memory of another device, without access to it.
    NoAccess,
    /// Freed, unmapped or unregistered while a copy that was asked for uses it.
    InUse,
    /// Two that touch the same bytes, one of them writes, and nothing orders them.
    Unsynchronised,
    /// An event that is asked about or waited for before it was recorded.
    Unrecorded,
    Leak,
    /// Registered a second time, or unregistered without.
    Registration,
    /// A word of a stream that does not begin at a multiple of four.
    Misaligned,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UseAfterFree => "use-after-free",
            Self::DoubleFree => "double-free",
            Self::WrongContext => "wrong-context",
            Self::Pageable => "pageable",
            Self::OutOfBounds => "out-of-bounds",
            Self::WildPointer => "wild-pointer",
            Self::NoAccess => "no-access",
            Self::InUse => "in-use",
            Self::Unsynchronised => "unsynchronised",
            Self::Unrecorded => "unrecorded",
            Self::Leak => "leak",
            Self::Registration => "registration",
            Self::Misaligned => "misaligned",
        })
    }
}

static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn found() -> MutexGuard<'static, Vec<String>> {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records one: `KIND: CALL: WHAT`.
pub fn report(options: &Options, kind: Kind, call: &str, what: impl fmt::Display) {
    let line = format!("{kind}: {call}: {what}");
    eprintln!("cuda stand-in: misuse: {line}");
    if let Some(path) = &options.misuses {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = written {
            eprintln!("cuda stand-in: {}: {error}", path.display());
        }
    }
    found().push(line);
}

/// How many were found in this process.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_cuda_misuses() -> c_ulonglong {
    found().len() as c_ulonglong
}

/// Writes one of them, counted from 0, as text with a zero at its end, cut to `bytes`. Returns its length, 0 if there is none.
///
/// # Safety
/// `text` is valid for writes of `bytes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_cuda_misuse(index: c_ulonglong, text: *mut c_char, bytes: usize) -> usize {
    let found = found();
    let Some(line) = usize::try_from(index).ok().and_then(|index| found.get(index)) else { return 0 };
    if text.is_null() || bytes == 0 {
        return line.len();
    }
    let copied = line.len().min(bytes - 1);
    // SAFETY: the caller vouches for `bytes` bytes, and no more than `bytes - 1` and the zero are written.
    unsafe {
        std::ptr::copy_nonoverlapping(line.as_ptr(), text.cast(), copied);
        *text.add(copied) = 0;
    }
    line.len()
}
