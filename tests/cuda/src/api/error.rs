//! Names of errors.

use std::ffi::{CString, c_char};

use cudarc::driver::sys::CUresult;

use super::put;

api! {
    fn cuGetErrorName(error: CUresult, text: *mut *const c_char) {
        put(text, constant(format!("{error:?}")))
    }

    fn cuGetErrorString(error: CUresult, text: *mut *const c_char) {
        let words = format!("{error:?}").trim_start_matches("CUDA_").to_lowercase().replace('_', " ");
        put(text, constant(format!("{words} (stand-in)")))
    }
}

/// Texts of the driver live for ever; there are few.
fn constant(text: String) -> *const c_char {
    use std::{
        collections::BTreeMap,
        sync::{Mutex, PoisonError},
    };
    static TEXTS: Mutex<BTreeMap<String, CString>> = Mutex::new(BTreeMap::new());
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = texts.entry(text).or_insert_with_key(|text| CString::new(text.as_str()).expect("no zero within"));
    // The bytes stay where they are when the map moves its strings.
    known.as_ptr()
}
