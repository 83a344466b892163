//! The module `lapis_kv._lapis`: the client of Lapis for Python. What users import is the package around it, `lapis_kv`.
//!
//! Invariant: no call keeps the interpreter while it copies or waits, and what it copies is held meanwhile (`buffers`).

mod buffers;
mod client;
mod device;
mod errors;
mod keys;
mod load;
mod objects;
mod pool;
mod results;
mod ticket;
mod view;
mod wait;
mod words;

/// The compiled half of `lapis_kv`.
#[pyo3::pymodule]
mod _lapis {
    #[pymodule_export]
    use crate::{
        client::{Client, status_json},
        device::{DeviceGot, DeviceObjects, load_cuda},
        errors::{
            ClosedError, ConnectError, ForkedError, GoneError, GpuError, LapisError, LateError, ProtocolError,
            RefusedError, ViewsError,
        },
        keys::{key_of, pack_keys},
        load::DeviceLoad,
        pool::Pool,
        results::{Got, Present, Put},
        ticket::Ticket,
        view::{Bytes, View, Views},
        words::{Hint, HitPolicy, Namespace, PutStatus, Verify, Wait},
    };

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("KEY_BYTES", lapis_client::KEY_BYTES)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        // Of the exceptions that say nothing else of themselves.
        module.py().get_type::<LapisError>().setattr("is_transient", false)
    }
}
