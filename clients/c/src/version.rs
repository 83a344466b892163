//! Which library this is.

use std::ffi::{CStr, c_char};

use crate::guard;

/// Of this header. The upper half rises when a program compiled before would not run any more (as does the number in
/// the shared library's name), the lower half when something was added.
pub const LAPIS_ABI_VERSION: u32 = 0x0000_0003;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a version has no NUL"),
};

/// LAPIS_ABI_VERSION of the library. LAPIS_ABI_FITS() says whether a program can use it.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_abi_version() -> u32 {
    guard::value(0, || LAPIS_ABI_VERSION)
}

/// The release of the library, as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn lapis_version() -> *const c_char {
    guard::value(c"".as_ptr(), || VERSION.as_ptr())
}
