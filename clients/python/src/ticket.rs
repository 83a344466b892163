//! Calls that do not block: tickets that own all that they copy from or to.
//!
//! Invariant: memory of the caller is held until the job that copies is gone, also when the caller gave up.

use std::{
    mem::transmute,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use lapis_client::{Birthplace, Client, ClientError, GetOptions, GetTicket, Key, Pool, PutOptions, PutTicket};
use pyo3::{IntoPyObjectExt, prelude::*};

use crate::{
    buffers::Memory,
    errors::{exception, forked},
    results::{Got, Put},
};

/// A get or put under way; made by `Client.begin_get` and `Client.begin_put`. Poll it when `Client.fileno()` is readable,
/// after `Client.acknowledge()`, and at `poll_in()` at the latest. Memory is copied by `poll` alone.
#[pyclass(frozen, module = "lapis_kv")]
pub(crate) struct Ticket {
    running: Mutex<Option<Running>>,
    /// Another thread may have held the lock when a child was forked: there it is not to be waited for.
    birthplace: Birthplace,
}

/// Declared in the order in which it goes: the job before what it borrows.
struct Running {
    job: Job,
    _memory: Box<Memory>,
    _keys: Box<[Key]>,
}

enum Job {
    Get(GetTicket<'static>),
    Put(PutTicket<'static>),
}

enum Done {
    Got(lapis_client::Got),
    Put(lapis_client::Put),
}

impl Ticket {
    fn new(running: Running) -> Self {
        Self { running: Mutex::new(Some(running)), birthplace: Birthplace::here() }
    }

    fn here(&self) -> PyResult<()> {
        if self.birthplace.is_here() { Ok(()) } else { Err(forked()) }
    }

    pub fn get(
        client: &Client,
        pool: &Pool,
        keys: Vec<Key>,
        memory: Memory,
        options: &GetOptions,
    ) -> Result<Self, ClientError> {
        let (memory, keys) = (Box::new(memory), keys.into_boxed_slice());
        // SAFETY: the caller lends this memory to the call (docs/python.md); it was held to be written.
        let ticket = client.begin_get(pool, &keys, unsafe { memory.dst() }, options)?;
        // SAFETY: keys and memory lie in boxes of `Running`, which drops the job before them.
        let job = Job::Get(unsafe { transmute::<GetTicket<'_>, GetTicket<'static>>(ticket) });
        Ok(Self::new(Running { job, _memory: memory, _keys: keys }))
    }

    pub fn put(
        client: &Client,
        pool: &Pool,
        keys: Vec<Key>,
        parent: Option<Key>,
        memory: Memory,
        options: &PutOptions,
    ) -> Result<Self, ClientError> {
        let (memory, keys) = (Box::new(memory), keys.into_boxed_slice());
        // SAFETY: the caller lends this memory to the call (docs/python.md).
        let ticket = client.begin_put(pool, &keys, parent, unsafe { memory.src() }, options)?;
        // SAFETY: keys and memory lie in boxes of `Running`, which drops the job before them.
        let job = Job::Put(unsafe { transmute::<PutTicket<'_>, PutTicket<'static>>(ticket) });
        Ok(Self::new(Running { job, _memory: memory, _keys: keys }))
    }

    /// One step, and all that is left of the job if that was the last one.
    fn step(&self) -> Result<Option<(Done, Option<Running>)>, ClientError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match running.as_mut().map(|running| &mut running.job) {
            None => None,
            Some(Job::Get(ticket)) => ticket.poll()?.map(Done::Got),
            Some(Job::Put(ticket)) => ticket.poll()?.map(Done::Put),
        };
        Ok(done.map(|done| (done, running.take())))
    }
}

#[pymethods]
impl Ticket {
    /// Goes on without waiting: the `Got` or `Put`, once, when it is complete or its deadline has passed, else None.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.here()?;
        let Some((done, rest)) = py.detach(|| self.step()).map_err(|error| exception(py, error))? else {
            return Ok(None);
        };
        drop(rest);
        match done {
            Done::Got(got) => Got(got).into_bound_py_any(py).map(Some),
            Done::Put(put) => Put(put).into_bound_py_any(py).map(Some),
        }
    }

    /// Seconds until `poll` is to be called though the descriptor stays quiet; None when it is over.
    fn poll_in(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        self.here()?;
        let by = py.detach(|| {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.as_ref().map(|running| match &running.job {
                Job::Get(ticket) => ticket.poll_by(),
                Job::Put(ticket) => ticket.poll_by(),
            })
        });
        Ok(by.map(|by| by.saturating_duration_since(Instant::now()).as_secs_f64()))
    }

    /// Gives up: nothing is copied any more, the memory is the caller's again. A put that was under way may yet be stored.
    /// Does nothing in a forked child: the call is the parent's.
    fn close(&self, py: Python<'_>) {
        if self.here().is_err() {
            return;
        }
        let running = py.detach(|| self.running.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(running);
    }
}
