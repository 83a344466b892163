//! What calls answer, as small objects: counts at hand, the single keys on demand.

use lapis_client::{self as client, PutResult};
use pyo3::{
    exceptions::PyIndexError,
    prelude::*,
    types::{PyBytes, PyDict},
};

use crate::words::PutStatus;

/// A Python index of a list of that length.
pub(crate) fn index(index: isize, len: usize) -> PyResult<usize> {
    index_of("key", index, len)
}

/// The same of a list of other things, which `what` is one of.
pub(crate) fn index_of(what: &str, index: isize, len: usize) -> PyResult<usize> {
    let at = if index < 0 { index.checked_add_unsigned(len) } else { Some(index) };
    at.and_then(|at| usize::try_from(at).ok())
        .filter(|at| *at < len)
        .ok_or_else(|| PyIndexError::new_err(format!("{what} {index} of {len}")))
}

fn mask(py: Python<'_>, len: usize, is_set: impl Fn(usize) -> bool) -> PyResult<Bound<'_, PyBytes>> {
    PyBytes::new_with(py, len, |bytes| {
        bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = u8::from(is_set(i)));
        Ok(())
    })
}

/// Which keys of a look-up are there, one bit a key. True if all are.
#[pyclass(frozen, module = "lapis_kv")]
pub(crate) struct Present(pub client::Present);

#[pymethods]
impl Present {
    /// How many keys are there.
    #[getter]
    fn count(&self) -> usize {
        self.0.count()
    }

    /// How many leading keys are there.
    #[getter]
    fn prefix(&self) -> usize {
        (0..self.0.len()).take_while(|i| self.0.get(*i)).count()
    }

    /// One bit a key, lowest bit of the first byte first: `numpy.unpackbits(..., bitorder="little", count=len(present))`.
    #[getter]
    fn bits<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let bytes: Vec<u8> = self.0.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        PyBytes::new(py, &bytes[..self.0.len().div_ceil(8)])
    }

    /// One byte a key, 1 if it is there: `numpy.frombuffer(present.mask, bool)`.
    #[getter]
    fn mask<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        mask(py, self.0.len(), |i| self.0.get(i))
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __bool__(&self) -> bool {
        self.0.count() == self.0.len()
    }

    fn __getitem__(&self, key: isize) -> PyResult<bool> {
        Ok(self.0.get(index(key, self.0.len())?))
    }

    fn __repr__(&self) -> String {
        format!("<lapis_kv.Present {} of {} keys>", self.0.count(), self.0.len())
    }
}

/// What a get found. `got[i]` tells whether key `i` was a hit; where it was not, nothing in `dst` is to be looked at.
/// True if all were hits.
#[pyclass(frozen, subclass, module = "lapis_kv")]
pub(crate) struct Got(pub client::Got);

#[pymethods]
impl Got {
    /// How many keys were hits.
    #[getter]
    fn hits(&self) -> usize {
        self.0.hits
    }

    /// How many leading keys were hits.
    #[getter]
    fn prefix(&self) -> usize {
        self.0.prefix()
    }

    /// Bytes copied of hits.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.bytes
    }

    /// One byte a key, 1 for a hit: `numpy.frombuffer(got.mask, bool)`.
    #[getter]
    fn mask<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        mask(py, self.0.statuses.len(), |i| self.0.statuses[i].is_hit())
    }

    /// Indices of the keys that were no hits.
    fn misses(&self) -> Vec<usize> {
        let statuses = self.0.statuses.iter().enumerate();
        statuses.filter(|(_, status)| !status.is_hit()).map(|(i, _)| i).collect()
    }

    fn __len__(&self) -> usize {
        self.0.statuses.len()
    }

    fn __bool__(&self) -> bool {
        self.0.hits == self.0.statuses.len()
    }

    fn __getitem__(&self, key: isize) -> PyResult<bool> {
        Ok(self.0.statuses[index(key, self.0.statuses.len())?].is_hit())
    }

    fn __repr__(&self) -> String {
        format!("<lapis_kv.Got {} of {} keys, {} bytes>", self.0.hits, self.0.statuses.len(), self.0.bytes)
    }
}

/// What became of a put. `put[i]` is the `PutStatus` of key `i`. True if all blocks are there now.
#[pyclass(frozen, module = "lapis_kv")]
pub(crate) struct Put(pub client::Put);

#[pymethods]
impl Put {
    /// How many blocks this call stored.
    #[getter]
    fn stored(&self) -> usize {
        self.0.stored()
    }

    /// How many blocks were there before.
    #[getter]
    fn existed(&self) -> usize {
        self.0.results.iter().filter(|result| **result == PutResult::Exists).count()
    }

    /// How many blocks were refused; `refusals` says why.
    #[getter]
    fn refused(&self) -> usize {
        self.0.refused()
    }

    /// How many blocks were refused for each reason, by its name: `{"COLD": 3}`.
    #[getter]
    fn refusals<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for status in self.0.results.iter().map(|result| PutStatus::from(*result)) {
            if status.refusal().is_some() {
                let before: usize = dict.get_item(status.as_str())?.map_or(Ok(0), |count| count.extract())?;
                dict.set_item(status.as_str(), before + 1)?;
            }
        }
        Ok(dict)
    }

    /// The status of each key.
    #[getter]
    fn statuses(&self) -> Vec<PutStatus> {
        self.0.results.iter().map(|result| PutStatus::from(*result)).collect()
    }

    fn __len__(&self) -> usize {
        self.0.results.len()
    }

    fn __bool__(&self) -> bool {
        self.0.refused() == 0
    }

    fn __getitem__(&self, key: isize) -> PyResult<PutStatus> {
        Ok(self.0.results[index(key, self.0.results.len())?].into())
    }

    fn __repr__(&self) -> String {
        let (stored, refused) = (self.0.stored(), self.0.refused());
        let existed = self.0.results.len() - stored - refused;
        format!("<lapis_kv.Put {stored} stored, {existed} existed, {refused} refused>")
    }
}
