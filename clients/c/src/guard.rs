//! The one way in and out: no panic leaves a call, and what went wrong is remembered for the thread that called.

use std::{
    any::Any,
    cell::RefCell,
    error::Error,
    ffi::{CString, c_char, c_int},
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    codes::{LAPIS_E_PANIC, LAPIS_OK},
    error::CallError,
    guard,
};

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Why the last failed call of this thread failed, as a sentence with its causes; "" if none did. Never null. The text
/// lives until the thread's next failed call.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_last_error() -> *const c_char {
    guard::value(c"".as_ptr(), || LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr()))
}

/// Runs a call that answers with a code.
pub fn status(call: impl FnOnce() -> Result<(), CallError>) -> c_int {
    // What a panic leaves behind may be broken in its meaning but not in its memory: the caller is told.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => LAPIS_OK,
        Ok(Err(error)) => {
            remember(sentence(&error));
            error.code()
        }
        Err(panic) => {
            remember(format!("a bug of this library: {}", message(panic.as_ref())));
            LAPIS_E_PANIC
        }
    }
}

/// Runs a call that answers with a value.
pub fn value<T>(instead: T, call: impl FnOnce() -> T) -> T {
    let mut answer = instead;
    status(|| {
        answer = call();
        Ok(())
    });
    answer
}

fn remember(text: String) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // While a thread ends there is nobody left to ask for it.
    let _ended = LAST.try_with(|last| last.replace(text));
}

/// An error and its causes. A cause that the error itself repeats is left out.
fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use std::{ffi::CStr, io};

    use lapis_client::ClientError;

    use super::*;

    fn last() -> String {
        // SAFETY: never null, and ends with a NUL; copied before the next call.
        unsafe { CStr::from_ptr(lapis_last_error()) }.to_str().expect("our own words").to_owned()
    }

    #[test]
    fn a_panic_becomes_a_code_and_its_message_is_kept() {
        assert_eq!(status(|| panic!("slot {} twice", 7)), LAPIS_E_PANIC);
        assert_eq!(last(), "a bug of this library: slot 7 twice");
        assert_eq!(value(3, || panic!("a plain one")), 3);
        assert_eq!(last(), "a bug of this library: a plain one");
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_outlives_calls_that_succeed() {
        let source = io::Error::other("no more descriptors");
        let error = || Err(ClientError::Io { op: "making an eventfd", source }.into());
        assert_eq!(status(error), crate::codes::LAPIS_E_SYSTEM);
        assert_eq!(status(|| Ok(())), LAPIS_OK);
        assert_eq!(last(), "making an eventfd: no more descriptors");
    }

    #[test]
    fn a_thread_does_not_see_the_errors_of_another() {
        assert_eq!(status(|| Err(CallError::Null { argument: "keys" })), crate::codes::LAPIS_E_ARGUMENT);
        let other = std::thread::spawn(last).join().expect("it only looks");
        assert_eq!((last().as_str(), other.as_str()), ("keys is null", ""));
    }
}
