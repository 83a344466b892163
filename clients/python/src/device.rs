//! Blocks to and from the memory of GPUs: addresses and streams as numbers, as torch has them.

use std::{mem::ManuallyDrop, path::PathBuf, time::Duration};

use lapis_client::{
    self as client, Birthplace, Client, DeviceObject, DeviceObjectStatus, DevicePtr, DeviceRange, DeviceStream,
    GetOptions, Key, Pool, PutOptions,
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::PyList,
};

use crate::{
    errors::forked,
    keys::Batch,
    objects::object_names,
    results::{Got, Put},
    wait::detached,
    words::whole,
};

/// What a get into a GPU's memory found: a `Got`, and how it stands with the copies, which are on the stream by now.
#[pyclass(frozen, extends=Got, module = "lapis_kv")]
pub(crate) struct DeviceGot {
    copies: ManuallyDrop<client::DeviceGot>,
    birthplace: Birthplace,
}

impl DeviceGot {
    /// In a forked child nothing of the driver may be touched.
    fn copies(&self) -> PyResult<&client::DeviceGot> {
        if self.birthplace.is_here() { Ok(&self.copies) } else { Err(forked()) }
    }
}

impl Drop for DeviceGot {
    fn drop(&mut self) {
        if self.birthplace.is_here() {
            // SAFETY: dropped here alone, and never used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.copies) };
        }
    }
}

#[pymethods]
impl DeviceGot {
    /// Whether all copies have ended.
    fn is_over(&self) -> PyResult<bool> {
        Ok(self.copies()?.is_over())
    }

    /// Whether what was copied is what was asked for; ask when the copies have ended, and before the bytes are believed.
    /// False once the GPU is lost, or the daemon gave the client up or came back cold: then the bytes may be anything.
    fn still_valid(&self) -> PyResult<bool> {
        Ok(self.copies()?.still_valid())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let got = &slf.as_super().get().0;
        format!("<lapis_kv.DeviceGot {} of {} keys, {} bytes>", got.hits, got.statuses.len(), got.bytes)
    }
}

/// What a get of objects into a GPU's memory found, and how it stands with the copies, which are on the stream by now.
#[pyclass(frozen, module = "lapis_kv")]
pub(crate) struct DeviceObjects {
    objects: ManuallyDrop<client::DeviceObjects>,
    birthplace: Birthplace,
}

impl DeviceObjects {
    /// In a forked child nothing of the driver may be touched.
    fn objects(&self) -> PyResult<&client::DeviceObjects> {
        if self.birthplace.is_here() { Ok(&self.objects) } else { Err(forked()) }
    }
}

impl Drop for DeviceObjects {
    fn drop(&mut self) {
        if self.birthplace.is_here() {
            // SAFETY: dropped here alone, and never used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.objects) };
        }
    }
}

#[pymethods]
impl DeviceObjects {
    /// For each name the bytes of the object, None if it is not there or of several parts, or, negative, the bytes of one that
    /// is longer than its place.
    #[getter]
    fn found(&self) -> Vec<Option<i64>> {
        let found = |status: &DeviceObjectStatus| match *status {
            DeviceObjectStatus::Hit { bytes } => Some(bytes as i64),
            DeviceObjectStatus::Long { bytes } => Some(-(bytes as i64)),
            DeviceObjectStatus::Parts | DeviceObjectStatus::Miss => None,
        };
        self.objects.statuses.iter().map(found).collect()
    }

    /// Which of the names are of objects of several parts (over 64 MiB): nothing of them is copied, `get_objects_into` reads them.
    #[getter]
    fn parts(&self) -> Vec<usize> {
        let statuses = self.objects.statuses.iter().enumerate();
        statuses.filter(|(_, status)| **status == DeviceObjectStatus::Parts).map(|(n, _)| n).collect()
    }

    /// Whether all copies have ended.
    fn is_over(&self) -> PyResult<bool> {
        Ok(self.objects()?.is_over())
    }

    /// As of `DeviceGot`.
    fn still_valid(&self) -> PyResult<bool> {
        Ok(self.objects()?.still_valid())
    }

    fn __repr__(&self) -> String {
        let statuses = &self.objects.statuses;
        let hits = statuses.iter().filter(|status| matches!(status, DeviceObjectStatus::Hit { .. })).count();
        format!("<lapis_kv.DeviceObjects {hits} of {} objects>", statuses.len())
    }
}

/// Where objects go in the memory of a GPU that the caller answers for.
///
/// `places`: for each object a pair (address, bytes), or a list of those; `offsets`: for each place where in the object its bytes
/// begin.
pub(crate) fn device_objects(places: &Bound<'_, PyAny>, offsets: Option<Vec<Vec<u64>>>) -> PyResult<Vec<DeviceObject>> {
    let all: Vec<Vec<(u64, u64)>> = places.try_iter()?.map(|of_one| pairs(&of_one?)).collect::<PyResult<_>>()?;
    if let Some((n, _)) =
        all.iter().enumerate().find(|(_, pairs)| pairs.iter().any(|&(at, bytes)| at == 0 && bytes > 0))
    {
        return Err(PyValueError::new_err(format!("dst[{n}] has an address of 0, which is none")));
    }
    let Some(offsets) = offsets else {
        let whole =
            |pairs: Vec<(u64, u64)>| DeviceObject::whole(pairs.into_iter().map(|(at, bytes)| (DevicePtr(at), bytes)));
        return Ok(all.into_iter().map(whole).collect());
    };
    if !offsets.iter().map(Vec::len).eq(all.iter().map(Vec::len)) {
        return Err(PyValueError::new_err("offsets: expected one for each place of each object in dst"));
    }
    let ranges = |(pairs, offsets): (Vec<(u64, u64)>, Vec<u64>)| {
        let range = |((at, bytes), offset)| DeviceRange { offset, bytes, to: DevicePtr(at) };
        DeviceObject::ranges(pairs.into_iter().zip(offsets).map(range).collect())
    };
    Ok(all.into_iter().zip(offsets).map(ranges).collect())
}

fn pairs(of_one: &Bound<'_, PyAny>) -> PyResult<Vec<(u64, u64)>> {
    let pair = |pair: &Bound<'_, PyAny>| {
        pair.extract::<(u64, u64)>().map_err(|_| {
            PyTypeError::new_err("dst: expected a pair (address, bytes) for each object, or a list of those")
        })
    };
    match of_one.cast::<PyList>() {
        Ok(list) => list.iter().map(|one| pair(&one)).collect(),
        Err(_) => Ok(vec![pair(of_one)?]),
    }
}

pub(crate) fn get_objects<'py>(
    py: Python<'py>,
    client: &Client,
    pool: &Pool,
    names: &Bound<'py, PyAny>,
    (to, stream): (&[DeviceObject], &DeviceStream),
    options: &GetOptions,
) -> PyResult<Bound<'py, DeviceObjects>> {
    let names = object_names(names)?;
    if names.len() != to.len() {
        return Err(PyValueError::new_err(format!("{} objects of memory for {} names", to.len(), names.len())));
    }
    let objects = detached(py, || {
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        // SAFETY: the caller lends the memory to the stream (docs/python.md).
        unsafe { client.get_objects_device(pool, &names, to, stream, options) }
    })?;
    Bound::new(py, DeviceObjects { objects: ManuallyDrop::new(objects), birthplace: Birthplace::here() })
}

/// Memory of a GPU that the caller answers for, and the stream on which it may be used.
pub(crate) struct Places {
    ptrs: Vec<DevicePtr>,
    stream: DeviceStream,
}

impl Places {
    /// `argument`: the name of the list. What stream and addresses are is the caller's promise (docs/python.md).
    pub fn of(
        argument: &str,
        addresses: &Bound<'_, PyAny>,
        stream: &Bound<'_, PyAny>,
        device: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        Ok(Self { ptrs: self::addresses(argument, addresses)?, stream: stream_of(stream, whole("device", device)?)? })
    }
}

/// `argument`: the name of the list.
pub(crate) fn addresses(argument: &str, list: &Bound<'_, PyAny>) -> PyResult<Vec<DevicePtr>> {
    let wrong = |_| {
        PyTypeError::new_err(format!(
            "{argument}: expected a list of addresses in the memory of a GPU, tensor.data_ptr() or the like"
        ))
    };
    let one = |(n, address): (usize, PyResult<Bound<'_, PyAny>>)| match whole(argument, &address?)? {
        0 => Err(PyValueError::new_err(format!("{argument}[{n}] is 0, which is no address"))),
        address => Ok(DevicePtr(address)),
    };
    list.try_iter().map_err(wrong)?.enumerate().map(one).collect()
}

pub(crate) fn stream_of(stream: &Bound<'_, PyAny>, device: u16) -> PyResult<DeviceStream> {
    let raw = std::ptr::with_exposed_provenance_mut(whole("stream", stream)?);
    // SAFETY: the caller's promise (docs/python.md).
    Ok(unsafe { DeviceStream::raw(device, raw) })
}

pub(crate) fn open(py: Python<'_>, client: &Client, device: u16, deadline: Duration) -> PyResult<(u64, u64)> {
    let opened = detached(py, || client.open_gpu(device, deadline))?;
    Ok((opened.registered_bytes, opened.bytes))
}

pub(crate) fn get<'py>(
    py: Python<'py>,
    client: &Client,
    pool: &Pool,
    keys: &Batch<'_>,
    to: &Places,
    options: &GetOptions,
) -> PyResult<Bound<'py, DeviceGot>> {
    let keys: &[Key] = keys;
    // SAFETY: the caller lends the memory to the stream (docs/python.md).
    let mut copies = detached(py, || unsafe { client.get_device(pool, keys, &to.ptrs, &to.stream, options) })?;
    let got = Got(std::mem::take(&mut copies.got));
    let device_got = DeviceGot { copies: ManuallyDrop::new(copies), birthplace: Birthplace::here() };
    Bound::new(py, PyClassInitializer::from(got).add_subclass(device_got))
}

pub(crate) fn put(
    py: Python<'_>,
    client: &Client,
    pool: &Pool,
    keys: &Batch<'_>,
    parent: Option<Key>,
    from: &Places,
    options: &PutOptions,
) -> PyResult<Put> {
    let keys: &[Key] = keys;
    // SAFETY: the caller lends the memory to the stream (docs/python.md).
    detached(py, || unsafe { client.put_device(pool, keys, parent, &from.ptrs, &from.stream, options) }).map(Put)
}

/// Takes CUDA's driver from a file, instead of libcuda.so or libcuda.so.1 as the loader finds it; before the first call that
/// needs it, and for the life of the process. Without this call the driver is looked for at the first call on a GPU.
/// Raises GpuError where it cannot be loaded, or another one is.
#[pyfunction]
#[pyo3(signature = (library, /))]
pub(crate) fn load_cuda(py: Python<'_>, library: PathBuf) -> PyResult<()> {
    detached(py, || client::load_cuda(&library))
}
