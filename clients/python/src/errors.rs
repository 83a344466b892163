//! Exceptions, and which error of the client becomes which. A mistake in the call is a `ValueError` or a `TypeError`; what
//! the host or the daemon did is a `LapisError`. Misses and refused puts are values and never come here.

use std::{error::Error, fmt::Write};

use lapis_client::ClientError;
use pyo3::{
    create_exception,
    exceptions::{PyException, PyValueError},
    prelude::*,
};

create_exception!(
    lapis_kv,
    LapisError,
    PyException,
    "What the host or the daemon did, not the call. `is_transient` (bool): the same call may succeed later."
);
create_exception!(
    lapis_kv,
    ConnectError,
    LapisError,
    "No daemon was reached at the socket, or it hung up on the welcome."
);
create_exception!(lapis_kv, GoneError, LapisError, "The daemon is gone. The client comes back by itself. Transient.");
create_exception!(lapis_kv, LateError, LapisError, "The daemon did not answer within the deadline. Transient.");
create_exception!(lapis_kv, RefusedError, LapisError, "The daemon refused and said why; what was asked has to change.");
create_exception!(
    lapis_kv,
    ViewsError,
    LapisError,
    "The client holds as many views as it may. Transient: release some."
);
create_exception!(
    lapis_kv,
    ForkedError,
    LapisError,
    "The client belongs to the process that this one was forked from."
);
create_exception!(lapis_kv, ClosedError, LapisError, "The client was closed.");
create_exception!(
    lapis_kv,
    GpuError,
    LapisError,
    "A GPU or its driver: it is not there, was lost, or refused. Transient where memory is short."
);
create_exception!(
    lapis_kv,
    ProtocolError,
    LapisError,
    "Daemon and client do not understand each other, or memory failed."
);

/// The exception of an error.
pub(crate) fn exception(py: Python<'_>, error: ClientError) -> PyErr {
    let text = with_causes(&error);
    let raised = match &error {
        ClientError::KeyBytes { .. } => {
            let advice = "a buffer of keys has 32 for each; names go in a list: [b\"name\"]";
            return PyValueError::new_err(format!("{text} ({advice})"));
        }
        ClientError::KeyCount { .. }
        | ClientError::BufferBytes { .. }
        | ClientError::VectorCount { .. }
        | ClientError::VectorBytes { .. }
        | ClientError::Pieces { .. }
        | ClientError::Range { .. }
        | ClientError::Flag { .. }
        | ClientError::Kind { .. }
        | ClientError::ForeignPool { .. }
        | ClientError::Name { .. }
        | ClientError::Label { .. } => return PyValueError::new_err(text),
        ClientError::Closed => return forked(),
        ClientError::Views { .. } => ViewsError::new_err(text),
        ClientError::Refused { .. } => RefusedError::new_err(text),
        ClientError::Late { .. } => LateError::new_err(text),
        ClientError::Gone => GoneError::new_err(text),
        ClientError::Connect { .. } => ConnectError::new_err(text),
        ClientError::Welcome { .. }
        | ClientError::NoDescriptor { .. }
        | ClientError::Memory(_)
        | ClientError::Control(_)
        | ClientError::Io { .. } => ProtocolError::new_err(text),
        ClientError::Gpu { .. } => GpuError::new_err(text),
    };
    match raised.value(py).setattr("is_transient", error.is_transient()) {
        Ok(()) => raised,
        Err(instead) => instead,
    }
}

pub(crate) fn forked() -> PyErr {
    ForkedError::new_err(
        "this client belongs to the process that this one was forked from: make a lapis_kv.Client of its own in the \
         child, or start workers with multiprocessing's \"spawn\"",
    )
}

pub(crate) fn closed() -> PyErr {
    ClosedError::new_err("the client was closed: make another one")
}

fn with_causes(error: &ClientError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
