//! Calls that wait: other threads run meanwhile, and Ctrl-C is heard.
//!
//! Python's handlers of signals run only in its main thread and only when a call comes back. So a call that waits asks now
//! and then whether one was due (`ConnectOptions::interrupted`); what the handler raised ends it.

use std::cell::RefCell;

use lapis_client::ClientError;
use pyo3::prelude::*;

use crate::errors::exception;

thread_local! {
    /// What a handler raised in the call that this thread is in.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Runs a call of the client detached from the interpreter.
pub(crate) fn detached<T: Send>(py: Python<'_>, call: impl FnOnce() -> Result<T, ClientError> + Send) -> PyResult<T> {
    let answer = py.detach(call);
    match RAISED.take() {
        Some(raised) => Err(raised),
        None => answer.map_err(|error| exception(py, error)),
    }
}

/// Whether a handler of a signal raised something since this thread's call began. Runs the handlers that are due.
pub(crate) fn interrupted() -> bool {
    // Only the main thread has handlers to run, and only it may ask for the interpreter at any time: while that ends, any
    // other thread would be ended, too.
    if is_main_thread() && !RAISED.with_borrow(Option::is_some) {
        let raised = Python::attach(|py| py.check_signals()).err();
        RAISED.set(raised);
    }
    RAISED.with_borrow(Option::is_some)
}

fn is_main_thread() -> bool {
    // SAFETY: both only tell numbers.
    unsafe { libc::gettid() == libc::getpid() }
}
