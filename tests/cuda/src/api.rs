//! The functions of the driver, each with the type that cudarc calls it by, which is checked as this is compiled.
//!
//! Pointers come from the caller, who vouches for them as CUDA's manual asks; null is refused where CUDA refuses it.

use std::ffi::{CStr, c_char};

use cudarc::driver::sys::CUresult;

use crate::world::Outcome;

/// Defines functions of the driver: each is exported under its name, and has cudarc's type of it.
macro_rules! api {
    ($( fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block )*) => { $(
        /// As in CUDA's driver API.
        ///
        /// # Safety
        /// Pointers are what CUDA's manual asks for.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "names of the driver's interface")]
        #[allow(dead_code, reason = "not every body says which call it is")]
        #[allow(clippy::redundant_closure_call, reason = "`?` needs a function to leave")]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> cudarc::driver::sys::CUresult {
            const CALL: &str = stringify!($name);
            $crate::api::answer((|| -> $crate::world::Outcome { $body })())
        }
        const _: unsafe fn($($type),*) -> cudarc::driver::sys::CUresult = cudarc::driver::sys::$name;
    )* };
}

mod batch;
mod capture;
mod context;
mod copy;
mod device;
mod error;
mod event;
mod host;
mod ipc;
mod memory;
mod pointer;
mod stream;
mod vmm;

pub use self::{
    batch::*, capture::*, context::*, copy::*, device::*, error::*, event::*, host::*, ipc::*, memory::*, pointer::*,
    stream::*, vmm::*,
};

fn answer(outcome: Outcome) -> CUresult {
    outcome.err().unwrap_or(CUresult::CUDA_SUCCESS)
}

/// Writes an answer where the caller asked for it.
fn put<T>(at: *mut T, value: T) -> Outcome {
    if at.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: not null; the caller of the driver vouches that a `T` may be written there.
    unsafe { at.write(value) };
    Ok(())
}

/// Reads what the caller passed by its address.
fn take<T: Copy>(at: *const T) -> Outcome<T> {
    if at.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: not null; the caller of the driver vouches that a `T` is there.
    Ok(unsafe { at.read() })
}

/// Reads `count` of them.
fn take_all<T: Copy>(at: *const T, count: usize) -> Outcome<Vec<T>> {
    if count == 0 || at.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: not null; the caller of the driver vouches for `count` of them.
    Ok((0..count).map(|index| unsafe { at.add(index).read() }).collect())
}

/// Writes a text and a zero, cut to `bytes`.
fn put_text(at: *mut c_char, bytes: usize, text: &CStr) -> Outcome {
    if at.is_null() || bytes == 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let copied = text.count_bytes().min(bytes - 1);
    // SAFETY: not null; the caller vouches for `bytes` bytes, of which no more than that are written.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), at, copied);
        *at.add(copied) = 0;
    }
    Ok(())
}
