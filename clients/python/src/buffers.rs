//! Memory of Python objects, held in place while a call copies from or to it.
//!
//! Invariant: what a [`Held`] names stays where it is, and allocated, until it is dropped: a buffer is exported so long
//! (its owner may not resize it), a tensor is referenced so long.

use std::{ffi::CStr, mem::MaybeUninit};

use lapis_client::{Dst, Src};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    ffi, intern,
    prelude::*,
    types::{PyList, PyTuple},
};

/// What a call does with memory, and the name of its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Dst,
    Src,
    /// Of an object.
    Data,
    Keys,
    Key,
    Parent,
    Name,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Dst => "dst",
            Self::Src => "src",
            Self::Data => "data",
            Self::Keys => "keys",
            Self::Key => "a key",
            Self::Parent => "parent",
            Self::Name => "name",
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Dst | Self::Src | Self::Data => {
                "bytes-like memory (bytes, bytearray, memoryview, a numpy array), a torch tensor on the CPU, or a list of \
                 those"
            }
            Self::Keys => "bytes-like memory of 32 bytes a key, or a list of names, each bytes",
            Self::Key | Self::Parent => "bytes",
            Self::Name => "bytes or str",
        }
    }

    fn access(self) -> i32 {
        if self == Self::Dst { ffi::PyBUF_WRITABLE } else { ffi::PyBUF_SIMPLE }
    }
}

/// Contiguous bytes of one object.
pub(crate) struct Held {
    base: *mut u8,
    bytes: usize,
    /// None: a tensor, which is only referenced.
    export: Option<Box<ffi::Py_buffer>>,
    _owner: Option<Py<PyAny>>,
}

// SAFETY: the address is only used by calls that own or borrow this; the export is released with the interpreter attached.
unsafe impl Send for Held {}
// SAFETY: nothing changes through a shared reference.
unsafe impl Sync for Held {}

impl Held {
    /// The bytes of a buffer of any kind, or of a torch tensor on the CPU.
    pub fn of(object: &Bound<'_, PyAny>, role: Role) -> PyResult<Self> {
        // SAFETY: an object of ours, and the interpreter is attached.
        if unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) } != 0 {
            return Self::exported(object, role);
        }
        let py = object.py();
        if object.hasattr(intern!(py, "data_ptr"))? && object.hasattr(intern!(py, "element_size"))? {
            return Self::tensor(object, role);
        }
        let kind = object.get_type().name()?;
        let name = role.name();
        if object.hasattr(intern!(py, "__cuda_array_interface__"))? {
            return Err(PyValueError::new_err(format!(
                "{name} lies in device memory ({kind}): only host memory works, copy it to the CPU first"
            )));
        }
        Err(PyTypeError::new_err(format!("{name} is of type {kind}: expected {}", role.expected())))
    }

    fn exported(object: &Bound<'_, PyAny>, role: Role) -> PyResult<Self> {
        const WITH_FORMAT: i32 = ffi::PyBUF_FORMAT | ffi::PyBUF_ND;
        let export = match export(object, role.access() | WITH_FORMAT) {
            Ok(export) => export,
            // Some arrays cannot name their type (numpy's dates, ml_dtypes' bfloat16), and have bytes all the same.
            Err(_) => export(object, role.access()).map_err(|error| explained(object, role).unwrap_or(error))?,
        };
        let held = Self { base: export.buf.cast(), bytes: export.len as usize, export: Some(export), _owner: None };
        if held.has_references(object)? {
            return Err(PyValueError::new_err(format!(
                "{} ({}) holds references to Python objects: only plain bytes and numbers can be copied",
                role.name(),
                object.get_type()
            )));
        }
        Ok(held)
    }

    /// Whether an exported element is, or has within it, a pointer to a Python object: to write it would be to make one up.
    fn has_references(&self, object: &Bound<'_, PyAny>) -> PyResult<bool> {
        let format = self.export.as_ref().map_or(std::ptr::null_mut(), |export| export.format);
        if !format.is_null() {
            // SAFETY: a string of the exporter's, in place while it is exported (PEP 3118).
            return Ok(names_references(unsafe { CStr::from_ptr(format) }.to_bytes()));
        }
        // Only numpy hides its type: what has no format and no dtype is bytes.
        let dtype = object.getattr_opt(intern!(object.py(), "dtype"))?;
        let has = dtype.map(|dtype| dtype.getattr_opt(intern!(object.py(), "hasobject"))).transpose()?.flatten();
        has.map_or(Ok(false), |has| has.is_truthy())
    }

    /// By its address: torch is not imported, so any object with these methods will do.
    fn tensor(object: &Bound<'_, PyAny>, role: Role) -> PyResult<Self> {
        let (py, name) = (object.py(), role.name());
        let device: String = object.getattr(intern!(py, "device"))?.getattr(intern!(py, "type"))?.extract()?;
        if device != "cpu" {
            return Err(PyValueError::new_err(format!(
                "{name} is a tensor on {device}: only tensors on the CPU work, copy with tensor.cpu() (into pinned memory \
                 for speed)"
            )));
        }
        if !object.call_method0(intern!(py, "is_contiguous"))?.is_truthy()? {
            return Err(PyValueError::new_err(format!(
                "{name} is a tensor that is not contiguous: give tensor.contiguous(), or a list of its contiguous parts"
            )));
        }
        if object.hasattr(intern!(py, "is_conj"))? && object.call_method0(intern!(py, "is_conj"))?.is_truthy()? {
            return Err(PyValueError::new_err(format!("{name} is a conjugate view: give tensor.resolve_conj()")));
        }
        if object.hasattr(intern!(py, "is_neg"))? && object.call_method0(intern!(py, "is_neg"))?.is_truthy()? {
            return Err(PyValueError::new_err(format!("{name} is a negated view: give tensor.resolve_neg()")));
        }
        let address: usize = object.call_method0(intern!(py, "data_ptr"))?.extract()?;
        let count: usize = object.call_method0(intern!(py, "numel"))?.extract()?;
        let element_bytes: usize = object.call_method0(intern!(py, "element_size"))?.extract()?;
        let bytes = count.checked_mul(element_bytes).filter(|bytes| isize::try_from(*bytes).is_ok());
        let there = storage_end(object)?.map_or(usize::MAX, |end| end.saturating_sub(address));
        let Some(bytes) = bytes.filter(|bytes| *bytes == 0 || (address != 0 && *bytes <= there)) else {
            return Err(PyValueError::new_err(format!(
                "{name} is a tensor of {count} elements without memory (its storage was freed or cut, or it is a fake): \
                 give one that has its own"
            )));
        };
        let base = std::ptr::with_exposed_provenance_mut(address);
        Ok(Self { base, bytes, export: None, _owner: Some(object.clone().unbind()) })
    }

    /// The bytes.
    ///
    /// # Safety
    /// Nobody writes them meanwhile: the caller of the call that holds this promised as much (docs/python.md).
    pub unsafe fn bytes(&self) -> &[u8] {
        if self.bytes == 0 {
            return &[];
        }
        // SAFETY: valid and in place while `self` lives; the caller's promise.
        unsafe { std::slice::from_raw_parts(self.base, self.bytes) }
    }

    pub fn vector(&self) -> libc::iovec {
        libc::iovec { iov_base: self.base.cast(), iov_len: self.bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(mut export) = self.export.take() {
            // SAFETY: exported once, released once, with the interpreter attached.
            Python::attach(|_| unsafe { ffi::PyBuffer_Release(&mut *export) });
        }
    }
}

/// Where a tensor's storage ends, which may have been resized under it.
fn storage_end(tensor: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    let py = tensor.py();
    let Some(storage) = tensor.getattr_opt(intern!(py, "untyped_storage"))? else { return Ok(None) };
    let storage = storage.call0()?;
    let base: usize = storage.call_method0(intern!(py, "data_ptr"))?.extract()?;
    let bytes: usize = storage.call_method0(intern!(py, "nbytes"))?.extract()?;
    Ok(base.checked_add(bytes))
}

/// Whether a format of PEP 3118 has an object (`O`) outside of the names of its fields (`:name:`).
fn names_references(format: &[u8]) -> bool {
    format.split(|byte| *byte == b':').step_by(2).any(|part| part.contains(&b'O'))
}

fn export(object: &Bound<'_, PyAny>, flags: i32) -> PyResult<Box<ffi::Py_buffer>> {
    let mut export = Box::new(ffi::Py_buffer::new());
    // SAFETY: `export` is a buffer structure that nothing was exported to yet; it stays in its box until it is released,
    // as exporters may keep its address.
    let failed = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &mut *export, flags) } != 0;
    if failed { Err(PyErr::fetch(object.py())) } else { Ok(export) }
}

/// Why an object does not export its memory as asked, in words that say what to do; `None` if it is something else.
fn explained(object: &Bound<'_, PyAny>, role: Role) -> Option<PyErr> {
    let mut export = export(object, ffi::PyBUF_STRIDED_RO).ok()?;
    let read_only = export.readonly != 0;
    // SAFETY: a structure that was filled just now, released right after.
    let contiguous = unsafe {
        let contiguous = ffi::PyBuffer_IsContiguous(&*export, b'C' as std::ffi::c_char) != 0;
        ffi::PyBuffer_Release(&mut *export);
        contiguous
    };
    let (name, kind) = (role.name(), object.get_type());
    let what = if !contiguous {
        "is not contiguous: give numpy.ascontiguousarray(x), or a list of its contiguous parts"
    } else if role == Role::Dst && read_only {
        "is read-only: give a bytearray, a numpy array that is writeable, or memory of your own"
    } else {
        return None;
    };
    Some(PyValueError::new_err(format!("{name} ({kind}) {what}")))
}

/// The memory of a batch: one buffer of all blocks, or vectors.
pub(crate) struct Memory {
    held: Vec<Held>,
    vectors: Vec<libc::iovec>,
    is_list: bool,
}

// SAFETY: the vectors are addresses of what `held` holds.
unsafe impl Send for Memory {}
// SAFETY: nothing changes through a shared reference.
unsafe impl Sync for Memory {}

impl Memory {
    /// Of one object, or of a list or tuple of them.
    pub fn of(object: &Bound<'_, PyAny>, role: Role) -> PyResult<Self> {
        let is_list = object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>();
        let held = if is_list {
            object.try_iter()?.map(|one| Held::of(&one?, role)).collect::<PyResult<Vec<_>>>()?
        } else {
            vec![Held::of(object, role)?]
        };
        let vectors = held.iter().map(Held::vector).collect();
        Ok(Self { held, vectors, is_list })
    }

    /// To copy blocks to.
    ///
    /// # Safety
    /// Held with [`Role::Dst`], and nobody else uses this memory meanwhile: the caller's promise (docs/python.md).
    pub unsafe fn dst(&self) -> Dst<'_> {
        if self.is_list {
            // SAFETY: every vector is valid for writes while `self.held` lives; the rest is the caller's promise.
            return unsafe { Dst::raw(&self.vectors) };
        }
        let held = &self.held[0];
        if held.bytes == 0 {
            return Dst::from(&mut [] as &mut [u8]);
        }
        // SAFETY: as above; bytes are only ever initialised by the client.
        Dst::from(unsafe { std::slice::from_raw_parts_mut(held.base.cast::<MaybeUninit<u8>>(), held.bytes) })
    }

    /// To copy blocks from.
    ///
    /// # Safety
    /// Nobody writes this memory meanwhile: the caller's promise (docs/python.md).
    pub unsafe fn src(&self) -> Src<'_> {
        if self.is_list {
            // SAFETY: every vector is valid for reads while `self.held` lives; the rest is the caller's promise.
            return unsafe { Src::raw(&self.vectors) };
        }
        // SAFETY: the caller's promise.
        Src::from(unsafe { self.held[0].bytes() })
    }

    /// All of it, in order.
    ///
    /// # Safety
    /// As for [`Self::src`].
    pub unsafe fn slices(&self) -> Vec<&[u8]> {
        // SAFETY: the caller's promise.
        self.held.iter().map(|held| unsafe { held.bytes() }).collect()
    }
}
