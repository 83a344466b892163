//! Pools as Python handles, each bound to the client that opened it.

use lapis_client::{self as client, PoolKind};
use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes};

/// A pool that a client opened: blocks of one size with parents ("chain"), or objects by name ("object"). Stays good over
/// restarts of the daemon.
#[pyclass(frozen, module = "lapis_kv")]
pub(crate) struct Pool {
    pool: client::Pool,
    /// Number of the client that opened it: its place in another client's list is another pool.
    owner: u64,
}

impl Pool {
    pub fn new(pool: client::Pool, owner: u64) -> Self {
        Self { pool, owner }
    }

    /// The pool, for calls of that client.
    pub fn of(&self, owner: u64) -> PyResult<&client::Pool> {
        if self.owner == owner {
            Ok(&self.pool)
        } else {
            Err(PyValueError::new_err("the pool was opened by another client: open it with this one, client.pool(...)"))
        }
    }
}

#[pymethods]
impl Pool {
    /// Which family of blocks in the namespace.
    #[getter]
    fn label(&self) -> &str {
        &self.pool.shape().label
    }

    /// "chain" or "object".
    #[getter]
    fn kind(&self) -> &'static str {
        match self.pool.kind() {
            PoolKind::Chain => "chain",
            PoolKind::Object => "object",
        }
    }

    /// Bytes of every block; of an object pool the most that an object may have.
    #[getter]
    fn block_bytes(&self) -> u64 {
        self.pool.block_bytes()
    }

    /// Equal pieces of a block.
    #[getter]
    fn pieces(&self) -> u16 {
        self.pool.pieces()
    }

    /// 32 bytes of the namespace.
    #[getter]
    fn fingerprint<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.pool.shape().namespace.0)
    }

    fn __repr__(&self) -> String {
        format!("<lapis_kv.Pool {:?}, {} of {} bytes>", self.label(), self.kind(), self.block_bytes())
    }
}
