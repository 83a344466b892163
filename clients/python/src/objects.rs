//! Objects by name: what the client's methods of that kind do.

use std::time::Duration;

use lapis_client::{Client, ClientError, NewObject, ObjectDst, ObjectInfo, ObjectStatus, Pool, PutOptions};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyList, PyMemoryView, PyString, PyTuple},
};

use crate::{
    buffers::{Held, Memory, Role},
    errors::exception,
    keys::name_bytes,
    results::Put,
    view::Bytes,
    wait::detached,
    words::{PutStatus, deadline as duration},
};

pub(crate) fn put(
    py: Python<'_>,
    client: &Client,
    pool: &Pool,
    name: &Bound<'_, PyAny>,
    data: &Bound<'_, PyAny>,
    deadline: Option<f64>,
) -> PyResult<PutStatus> {
    let options = PutOptions { deadline: duration(deadline)? };
    let (name, memory) = (object_name(name)?, Memory::of(data, Role::Data)?);
    let put = detached(py, || {
        // SAFETY: the caller lends it to the call (docs/python.md).
        client.put_object_vectored(pool, &name, &unsafe { memory.slices() }, &options)
    });
    put.map(PutStatus::from)
}

/// `read`: a call that reads an object of that name within a deadline.
pub(crate) fn get<'py>(
    py: Python<'py>,
    pool: &Pool,
    name: &Bound<'py, PyAny>,
    deadline: Option<f64>,
    read: impl FnOnce(&Pool, &[u8], Option<Duration>) -> Result<Option<Vec<u8>>, ClientError> + Send,
) -> PyResult<Option<Bound<'py, PyMemoryView>>> {
    let (name, deadline) = (object_name(name)?, duration(deadline)?);
    match detached(py, || read(pool, &name, deadline))? {
        Some(bytes) => PyMemoryView::from(Bound::new(py, Bytes::new(bytes))?.as_any()).map(Some),
        None => Ok(None),
    }
}

pub(crate) fn remove(
    py: Python<'_>,
    client: &Client,
    pool: &Pool,
    name: &Bound<'_, PyAny>,
    deadline: Option<f64>,
) -> PyResult<bool> {
    let (name, deadline) = (object_name(name)?, duration(deadline)?);
    detached(py, || client.remove_object(pool, &name, deadline))
}

/// Several objects at once; `sources[i]` are the places of object `i`.
pub(crate) fn put_many(
    py: Python<'_>,
    client: &Client,
    pool: &Pool,
    names: &Bound<'_, PyAny>,
    sources: &Bound<'_, PyAny>,
    deadline: Option<f64>,
) -> PyResult<Put> {
    let options = PutOptions { deadline: duration(deadline)? };
    let names = object_names(names)?;
    let places = places(sources, names.len(), Role::Src)?;
    detached(py, || {
        // SAFETY: the caller lends them to the call (docs/python.md).
        let slices: Vec<Vec<&[u8]>> = places.iter().map(|places| unsafe { places.slices() }).collect();
        let objects = names.iter().zip(&slices).map(|(name, vectors)| NewObject { name, vectors });
        client.put_objects(pool, &objects.collect::<Vec<_>>(), &options)
    })
    .map(Put)
}

/// Objects, or ranges of them, to memory of the caller.
pub(crate) fn get_many_into(
    py: Python<'_>,
    client: &Client,
    pool: &Pool,
    names: &Bound<'_, PyAny>,
    dst: &Bound<'_, PyAny>,
    offsets: Option<Vec<Vec<u64>>>,
    deadline: Option<f64>,
) -> PyResult<Vec<Option<i64>>> {
    let (names, deadline) = (object_names(names)?, duration(deadline)?);
    let places = places(dst, names.len(), Role::Dst)?;
    if let Some(offsets) = &offsets {
        let as_many = offsets.iter().map(Vec::len).eq(places.iter().map(|places| places.vectors.len()));
        if !as_many {
            return Err(PyValueError::new_err("offsets: expected one for each place of each object in dst"));
        }
    }
    let got = detached(py, || {
        let mut dsts: Vec<ObjectDst<'_>> = Vec::with_capacity(places.len());
        for (i, places) in places.iter().enumerate() {
            let vectors = places.vectors.clone();
            dsts.push(match &offsets {
                // SAFETY: held to be written, or addresses that the caller vouches for; lent to the call (docs/python.md).
                None => unsafe { ObjectDst::raw(vectors) },
                // SAFETY: as above.
                Some(offsets) => unsafe { ObjectDst::ranges(offsets[i].iter().copied().zip(vectors).collect()) },
            });
        }
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        client.get_objects_into(pool, &names, &mut dsts, deadline)
    });
    Ok(got?
        .into_iter()
        .map(|status| match status {
            ObjectStatus::Hit { bytes } => Some(bytes as i64),
            ObjectStatus::Long { bytes } => Some(-(bytes as i64)),
            ObjectStatus::Miss => None,
        })
        .collect())
}

/// Several objects in memory of their own.
pub(crate) fn get_many<'py>(
    py: Python<'py>,
    client: &Client,
    pool: &Pool,
    names: &Bound<'py, PyAny>,
    deadline: Option<f64>,
) -> PyResult<Vec<Option<Bound<'py, PyMemoryView>>>> {
    let (names, deadline) = (object_names(names)?, duration(deadline)?);
    let got = detached(py, || {
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        client.get_objects(pool, &names, deadline)
    });
    let objects = got?.into_iter();
    let memory = |bytes| PyMemoryView::from(Bound::new(py, Bytes::new(bytes))?.as_any());
    objects.map(|object| object.map(memory).transpose()).collect()
}

/// How many bytes an object has, if that is known, and whether it is in memory.
pub(crate) type Info = (Option<u64>, bool);

/// For each name how many bytes its object has, if that is known, and whether it is in memory; `None` for a miss.
pub(crate) fn find_many(
    py: Python<'_>,
    client: &Client,
    pool: &Pool,
    names: &Bound<'_, PyAny>,
) -> PyResult<Vec<Option<Info>>> {
    let names = object_names(names)?;
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    let infos = client.find_objects(pool, &names).map_err(|error| exception(py, error))?;
    Ok(infos.into_iter().map(|info| info.map(|ObjectInfo { bytes, in_memory }| (bytes, in_memory))).collect())
}

/// The memory of one object of a batch.
#[derive(Default)]
struct Places {
    vectors: Vec<libc::iovec>,
    /// What keeps the buffers among them; addresses are kept by the caller.
    _held: Vec<Held>,
}

// SAFETY: addresses of what is held, or of what the caller keeps for the call.
unsafe impl Send for Places {}
// SAFETY: nothing changes through a shared reference.
unsafe impl Sync for Places {}

impl Places {
    /// A buffer, a pair of address and size, or a list of those.
    fn of(object: &Bound<'_, PyAny>, role: Role) -> PyResult<Self> {
        let mut places = Self::default();
        if let Ok(list) = object.cast::<PyList>() {
            list.iter().try_for_each(|one| places.add(&one, role))?;
        } else {
            places.add(object, role)?;
        }
        Ok(places)
    }

    fn add(&mut self, object: &Bound<'_, PyAny>, role: Role) -> PyResult<()> {
        if let Ok(pair) = object.cast::<PyTuple>() {
            let (address, bytes): (usize, usize) =
                pair.extract().map_err(|_| PyTypeError::new_err("a tuple is (address, bytes), both not negative"))?;
            if bytes > 0 && (address == 0 || address.checked_add(bytes).is_none_or(|end| end > isize::MAX as usize)) {
                return Err(PyValueError::new_err(format!("{bytes} bytes at address {address:#x} are no memory")));
            }
            let iov_base = std::ptr::with_exposed_provenance_mut(address);
            self.vectors.push(libc::iovec { iov_base, iov_len: bytes });
            return Ok(());
        }
        let held = Held::of(object, role)?;
        self.vectors.push(held.vector());
        self._held.push(held);
        Ok(())
    }

    /// All of it, in order.
    ///
    /// # Safety
    /// Nobody writes this memory meanwhile, and the addresses are of memory: the caller's promise (docs/python.md).
    unsafe fn slices(&self) -> Vec<&[u8]> {
        let there = self.vectors.iter().filter(|vector| vector.iov_len > 0);
        // SAFETY: the caller's promise; held, or kept by the caller.
        there.map(|vector| unsafe { std::slice::from_raw_parts(vector.iov_base.cast(), vector.iov_len) }).collect()
    }
}

fn places(objects: &Bound<'_, PyAny>, names: usize, role: Role) -> PyResult<Vec<Places>> {
    let places = objects.try_iter()?.map(|object| Places::of(&object?, role)).collect::<PyResult<Vec<_>>>()?;
    if places.len() != names {
        return Err(PyValueError::new_err(format!("{} objects of memory for {names} names", places.len())));
    }
    Ok(places)
}

pub(crate) fn object_names(names: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<u8>>> {
    names.try_iter()?.map(|name| object_name(&name?)).collect()
}

/// Names are bytes, or text in UTF-8.
fn object_name(name: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(text) = name.cast::<PyString>() {
        return Ok(text.to_cow()?.as_bytes().to_vec());
    }
    name_bytes(name, Role::Name, <[u8]>::to_vec)
}
