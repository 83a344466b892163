//! Batches of keys as Python has them: one buffer of 32 bytes each, or a list of names.

use std::ops::Deref;

use lapis_client::{KEY_BYTES, Key, Keys};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyBytes, PyList, PyString, PyTuple},
};

use crate::{
    buffers::{Held, Role},
    errors::exception,
};

/// The keys of one call. Borrowed of a `bytes` object, which never changes, else copied.
pub(crate) enum Batch<'a> {
    Borrowed(Keys<'a>),
    Owned(Vec<Key>),
}

impl Deref for Batch<'_> {
    type Target = [Key];
    fn deref(&self) -> &[Key] {
        match self {
            Self::Borrowed(keys) => keys,
            Self::Owned(keys) => keys,
        }
    }
}

impl<'a> Batch<'a> {
    pub fn of(object: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Keys::from_bytes(bytes.as_bytes()).map(Self::Borrowed).map_err(|error| exception(py, error));
        }
        if object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>() {
            let keys = object.try_iter()?.map(|name| key(&name?));
            return keys.collect::<PyResult<_>>().map(Self::Owned);
        }
        let held = Held::of(object, Role::Keys)?;
        // SAFETY: the interpreter is attached until they are copied.
        let keys = Keys::from_bytes(unsafe { held.bytes() }).map_err(|error| exception(py, error))?;
        Ok(Self::Owned(keys.to_vec()))
    }

    pub fn into_owned(self) -> Vec<Key> {
        match self {
            Self::Borrowed(keys) => keys.to_vec(),
            Self::Owned(keys) => keys,
        }
    }
}

/// The key of one name: up to 32 bytes as they are, padded with zeros; longer ones hashed.
fn key(name: &Bound<'_, PyAny>) -> PyResult<Key> {
    named(name, Role::Key)
}

/// The key that the first block of a put follows.
pub(crate) fn parent_key(name: &Bound<'_, PyAny>) -> PyResult<Key> {
    named(name, Role::Parent)
}

fn named(name: &Bound<'_, PyAny>, role: Role) -> PyResult<Key> {
    let key = name_bytes(name, role, |bytes| (!bytes.is_empty()).then(|| Key::new(bytes)))?;
    key.ok_or_else(|| PyValueError::new_err(format!("{} has 0 bytes: expected at least 1", role.name())))
}

/// Calls `take` with the bytes of a name.
pub(crate) fn name_bytes<T>(name: &Bound<'_, PyAny>, role: Role, take: impl FnOnce(&[u8]) -> T) -> PyResult<T> {
    if let Ok(bytes) = name.cast::<PyBytes>() {
        return Ok(take(bytes.as_bytes()));
    }
    if name.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(format!("{} is a str: encode it, name.encode()", role.name())));
    }
    let held = Held::of(name, role)?;
    // SAFETY: the interpreter is attached until they are copied.
    Ok(take(unsafe { held.bytes() }))
}

/// The 32 bytes of a key: of a name of up to 32 bytes those, padded with zeros; of a longer one its BLAKE3.
#[pyfunction]
#[pyo3(name = "key", signature = (name, /))]
pub(crate) fn key_of<'py>(py: Python<'py>, name: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    Ok(PyBytes::new(py, &key(name)?.to_bytes()))
}

/// One buffer of the keys of all names, 32 bytes each, to be used for many calls: cheaper than a list in each.
#[pyfunction]
#[pyo3(signature = (names, /))]
pub(crate) fn pack_keys<'py>(py: Python<'py>, names: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let keys = names.try_iter()?.map(|name| key(&name?)).collect::<PyResult<Vec<Key>>>()?;
    PyBytes::new_with(py, keys.len() * KEY_BYTES, |bytes| {
        for (place, key) in bytes.chunks_exact_mut(KEY_BYTES).zip(&keys) {
            place.copy_from_slice(&key.to_bytes());
        }
        Ok(())
    })
}
