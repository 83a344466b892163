//! Blocks read where they lie: a class with Python's buffer protocol over a pinned block, and bytes that an object came in.
//!
//! Invariant: a view's pin is given back only when no memoryview of it is left.

use std::{
    ffi::c_int,
    sync::{Mutex, PoisonError},
};

use lapis_client::{self as client, Birthplace};
use pyo3::{exceptions::PyBufferError, ffi, prelude::*};

use crate::{errors::forked, results::index};

/// One block in place, read-only and pinned until it is released: `memoryview(view)`, `numpy.frombuffer(view, ...)`.
/// Also a context manager. Other processes map the same memory: what was read is the block if `still_valid()` says so
/// afterwards.
#[pyclass(frozen, module = "lapis_kv")]
pub(crate) struct View {
    state: Mutex<State>,
    birthplace: Birthplace,
}

struct State {
    view: Option<client::View>,
    /// Memoryviews and arrays over it.
    exports: usize,
}

impl View {
    fn new(view: client::View) -> Self {
        Self { state: Mutex::new(State { view: Some(view), exports: 0 }), birthplace: Birthplace::here() }
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut State) -> PyResult<T>) -> PyResult<T> {
        if !self.birthplace.is_here() {
            return Err(forked());
        }
        // Held for a few instructions, and never while the interpreter is waited for.
        use_it(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn unexported(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).exports -= 1;
    }
}

#[pymethods]
impl View {
    /// Whether what was read so far through this view was the block. False once the daemon gave the client up (too many
    /// pins for too long) or came back cold, and after `release`.
    fn still_valid(&self) -> PyResult<bool> {
        self.with(|state| Ok(state.view.as_ref().is_some_and(client::View::still_valid)))
    }

    /// Gives the block back. Raises BufferError while memoryviews or arrays over it are alive. Twice is once.
    fn release(&self) -> PyResult<()> {
        let view = self.with(|state| match state.exports {
            0 => Ok(state.view.take()),
            n => Err(PyBufferError::new_err(format!(
                "{n} memoryviews or arrays over this view are alive: drop them first"
            ))),
        })?;
        drop(view);
        Ok(())
    }

    /// Bytes of the block; 0 after `release`.
    #[getter]
    fn nbytes(&self) -> PyResult<usize> {
        self.with(|state| Ok(state.view.as_ref().map_or(0, client::View::len)))
    }

    fn __len__(&self) -> PyResult<usize> {
        self.nbytes()
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.release()
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, buffer: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let (base, len) = slf.get().with(|state| {
            let view = state.view.as_ref().ok_or_else(|| PyBufferError::new_err("the view was released"))?;
            state.exports += 1;
            Ok((view.as_ptr().cast_mut(), view.len()))
        })?;
        // Without the lock: a refusal makes an exception, and that may collect garbage, which may call anything.
        // SAFETY: Python gives a structure to fill; the block stays pinned, and mapped, until `exports` is 0.
        let filled = unsafe { fill(buffer, &slf, base, len, true, flags) };
        if filled.is_err() {
            slf.get().unexported();
        }
        filled
    }

    unsafe fn __releasebuffer__(&self, _buffer: *mut ffi::Py_buffer) {
        self.unexported();
    }
}

/// The views of one batch in the order of its keys; `None` is a miss. Also a context manager.
#[pyclass(frozen, module = "lapis_kv")]
pub(crate) struct Views {
    views: Vec<Option<Py<View>>>,
}

impl Views {
    pub fn new(py: Python<'_>, views: client::Views) -> PyResult<Self> {
        let views = views.into_vec().into_iter().map(|view| view.map(|view| Py::new(py, View::new(view))).transpose());
        Ok(Self { views: views.collect::<PyResult<_>>()? })
    }
}

#[pymethods]
impl Views {
    /// How many keys have a view.
    #[getter]
    fn hits(&self) -> usize {
        self.views.iter().flatten().count()
    }

    /// How many leading keys have a view.
    #[getter]
    fn prefix(&self) -> usize {
        self.views.iter().take_while(|view| view.is_some()).count()
    }

    /// Gives all blocks back that can be; raises BufferError if memoryviews or arrays over any are alive.
    fn release(&self) -> PyResult<()> {
        let results: Vec<_> = self.views.iter().flatten().map(|view| view.get().release()).collect();
        results.into_iter().collect()
    }

    fn __len__(&self) -> usize {
        self.views.len()
    }

    fn __getitem__(&self, py: Python<'_>, key: isize) -> PyResult<Option<Py<View>>> {
        Ok(self.views[index(key, self.views.len())?].as_ref().map(|view| view.clone_ref(py)))
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.release()
    }

    fn __repr__(&self) -> String {
        format!("<lapis_kv.Views {} of {} keys>", self.hits(), self.views.len())
    }
}

/// The bytes of one object, owned by Python: what the memoryviews of `get_object` are over.
#[pyclass(frozen, module = "lapis_kv")]
pub(crate) struct Bytes {
    base: *mut u8,
    len: usize,
    capacity: usize,
}

// SAFETY: memory of its own; who reads and writes it through buffers is Python's affair, as with a bytearray.
unsafe impl Send for Bytes {}
// SAFETY: as above: nothing here dereferences the address.
unsafe impl Sync for Bytes {}

impl Bytes {
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut bytes = std::mem::ManuallyDrop::new(bytes);
        Self { base: bytes.as_mut_ptr(), len: bytes.len(), capacity: bytes.capacity() }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: the parts of the vector that `new` took apart, put together once.
        drop(unsafe { Vec::from_raw_parts(self.base, self.len, self.capacity) });
    }
}

#[pymethods]
impl Bytes {
    fn __len__(&self) -> usize {
        self.len
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, buffer: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let (base, len) = (slf.get().base, slf.get().len);
        // SAFETY: Python gives a structure to fill; the bytes live as long as their owner, which the buffer references.
        unsafe { fill(buffer, &slf, base, len, false, flags) }
    }
}

/// Fills a buffer structure with plain bytes that `owner` keeps.
///
/// # Safety
/// `buffer` may be written; the bytes stay valid while `owner` is referenced.
unsafe fn fill<T>(
    buffer: *mut ffi::Py_buffer,
    owner: &Bound<'_, T>,
    base: *mut u8,
    len: usize,
    read_only: bool,
    flags: c_int,
) -> PyResult<()> {
    // SAFETY: the caller's promise; an object of ours.
    let failed = unsafe {
        ffi::PyBuffer_FillInfo(buffer, owner.as_ptr(), base.cast(), len as isize, c_int::from(read_only), flags)
    };
    if failed == 0 { Ok(()) } else { Err(PyErr::fetch(owner.py())) }
}
