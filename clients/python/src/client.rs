//! The client as a Python class. Every call that copies or waits runs detached from the interpreter, so that other threads
//! go on meanwhile; what it copies from or to is held until it has ended.

use std::{
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    sync::{
        RwLock, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
};

use lapis_client::{self as client, Birthplace, ConnectOptions, PoolKind, PoolShape, PutOptions};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyDict, PyMemoryView, PyTuple},
};

use crate::{
    buffers::{Memory, Role},
    device::{self, DeviceGot, DeviceObjects},
    errors::{closed, exception, forked},
    keys::{Batch, parent_key},
    load::{self, DeviceLoad},
    objects,
    pool::Pool,
    results::{Got, Present, Put},
    ticket::Ticket,
    view::Views,
    wait::{detached, interrupted},
    words::{Hint, HitPolicy, PutStatus, Verify, Wait, dict, fingerprint, get_options, seconds, whole},
};

/// Keys from which on a look-up lets other threads run: below, it is over before one would.
const DETACH_KEYS: usize = 256;

static CLIENTS: AtomicU64 = AtomicU64::new(0);

/// A connection to the daemon of this host. `lapis_kv.Client` is its subclass with awaitable calls and tensors.
#[pyclass(subclass, frozen, weakref, module = "lapis_kv._lapis")]
pub(crate) struct Client {
    /// Written by `close` alone.
    client: RwLock<Option<client::Client>>,
    birthplace: Birthplace,
    path: PathBuf,
    number: u64,
}

impl Client {
    /// The client, unless it was closed or this is a forked child, where no lock is touched.
    pub(crate) fn client(&self) -> PyResult<client::Client> {
        if !self.birthplace.is_here() {
            return Err(forked());
        }
        match self.client.try_read() {
            Ok(client) => client.clone().ok_or_else(closed),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().clone().ok_or_else(closed),
            // Only `close` locks it for itself.
            Err(TryLockError::WouldBlock) => Err(closed()),
        }
    }

    pub(crate) fn own<'a>(&self, pool: &'a Bound<'_, Pool>) -> PyResult<&'a client::Pool> {
        pool.get().of(self.number)
    }
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (path, *, name=None, may_put=true, populate=true, verify=None, gpus=false))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        name: Option<String>,
        may_put: bool,
        populate: bool,
        verify: Option<Verify>,
        gpus: bool,
    ) -> PyResult<Self> {
        let defaults = ConnectOptions::default();
        let name = name.unwrap_or(defaults.name.clone());
        let (verify, interrupted) = (verify.map(Into::into), Some(interrupted as fn() -> bool));
        let options = ConnectOptions { name, may_put, populate, verify, interrupted, gpus, ..defaults };
        let connected = detached(py, || client::Client::connect(&path, options))?;
        Ok(Self {
            client: RwLock::new(Some(connected)),
            birthplace: Birthplace::here(),
            path,
            number: CLIENTS.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Ends the connection. Views that are alive keep their blocks; all else raises ClosedError from now on. Twice is once.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if !self.birthplace.is_here() {
            return Err(forked());
        }
        py.detach(|| {
            let taken = self.client.write().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            drop(taken);
        });
        Ok(())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    /// The socket that this client is connected to.
    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Opens a pool, or makes it; the same arguments give the same pool in every process.
    ///
    /// namespace: a `Namespace`, or the 32 bytes of a fingerprint. label: which family of blocks in it (cache group, rank,
    /// shard), at most 48 characters of ASCII. kind: "chain" for equal blocks of `block_bytes` bytes that have parents, or
    /// "object" for any bytes by name, at most `block_bytes` each. pieces: equal parts of a block that can be read alone.
    /// Raises RefusedError (with the daemon's reason), GoneError or LateError.
    #[pyo3(signature = (namespace, label, block_bytes, *, pieces=None, kind="chain"),
           text_signature = "($self, namespace, label, block_bytes, *, pieces=1, kind=\"chain\")")]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn pool(
        &self,
        py: Python<'_>,
        namespace: &Bound<'_, PyAny>,
        label: String,
        block_bytes: &Bound<'_, PyAny>,
        pieces: Option<&Bound<'_, PyAny>>,
        kind: &str,
    ) -> PyResult<Pool> {
        let kind = match kind {
            "chain" => PoolKind::Chain,
            "object" => PoolKind::Object,
            _ => return Err(PyValueError::new_err(format!("kind {kind:?}: expected \"chain\" or \"object\""))),
        };
        let block_bytes = whole("block_bytes", block_bytes)?;
        let pieces = pieces.map_or(Ok(1), |pieces| whole("pieces", pieces))?;
        let shape = PoolShape { namespace: fingerprint(namespace)?, label, kind, block_bytes, pieces };
        let client = self.client()?;
        let pool = detached(py, || client.pool(&shape))?;
        Ok(Pool::new(pool, self.number))
    }

    // ---- In memory: no call to the daemon, no system call ----

    /// Which of the keys are there, in memory or where the daemon would fetch them from. One call for a whole request.
    ///
    /// keys: bytes-like, 32 bytes a key and 1 to 8192 keys; or a list of names, bytes of any length (see `key`).
    fn exists(&self, py: Python<'_>, pool: &Bound<'_, Pool>, keys: &Bound<'_, PyAny>) -> PyResult<Present> {
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        let present = if keys.len() < DETACH_KEYS {
            client.exists(pool, &keys)
        } else {
            py.detach(|| client.exists(pool, &keys))
        };
        present.map(Present).map_err(|error| exception(py, error))
    }

    /// How many leading keys are held under every pool's hit policy; for a single `HitPolicy.ANY`, how many of all.
    ///
    /// pools: a Pool (its leading run counts), or a list of pairs (Pool, HitPolicy). keys: as in `exists`.
    fn match_prefix(&self, py: Python<'_>, pools: &Bound<'_, PyAny>, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let (client, pools, keys) = (self.client()?, self.policies(pools)?, Batch::of(keys)?);
        let matched = if keys.len() < DETACH_KEYS {
            client.match_prefix(&pools, &keys)
        } else {
            py.detach(|| client.match_prefix(&pools, &keys))
        };
        matched.map_err(|error| exception(py, error))
    }

    /// `match_prefix`, after what other hosts have of the keys that are missing here was fetched. Without other hosts, or where
    /// nothing is missing, nobody is asked.
    ///
    /// pools, keys: as in `match_prefix`. deadline: seconds; without one that of a get of so much.
    #[pyo3(signature = (pools, keys, *, deadline=None))]
    fn fetch_prefix(
        &self,
        py: Python<'_>,
        pools: &Bound<'_, PyAny>,
        keys: &Bound<'_, PyAny>,
        deadline: Option<f64>,
    ) -> PyResult<usize> {
        let deadline = crate::words::deadline(deadline)?;
        let (client, pools, keys) = (self.client()?, self.policies(pools)?, Batch::of(keys)?);
        detached(py, || client.fetch_prefix(&pools, &keys, deadline))
    }

    /// Offers blocks that were put here to another host, which reads what it has room for; how many are there then.
    ///
    /// peer: as `peers.members` calls the host. deadline: seconds. Raises GoneError, LateError, or RefusedError if no such host
    /// can be asked now.
    #[pyo3(signature = (pool, keys, peer, *, deadline=None))]
    fn offer(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        keys: &Bound<'_, PyAny>,
        peer: &str,
        deadline: Option<f64>,
    ) -> PyResult<u64> {
        let deadline = crate::words::deadline(deadline)?;
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        detached(py, || client.offer(pool, &keys, peer, deadline))
    }

    /// Copies blocks to `dst`. Those in memory need nobody else; for others the daemon is asked, within the deadline.
    ///
    /// keys: as in `exists`. dst: one writable contiguous buffer of len(keys) blocks, or a list of buffers, the same number
    /// for each block, whose bytes add up to a block: bytearray, memoryview, numpy array, torch tensor on the CPU. pieces:
    /// (first, end) to copy only those pieces of every block; `dst` then has just them. wait: for what to wait. deadline:
    /// seconds; without one 50 ms + bytes / 500 MB/s. Hits in memory are copied whatever it says. verify: when to check sums.
    ///
    /// Misses are no errors: see `Got`. Raises ValueError or TypeError for a `dst` that does not fit.
    #[pyo3(signature = (pool, keys, dst, *, pieces=None, wait=Wait::Present, deadline=None, verify=None))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn get_into(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        keys: &Bound<'_, PyAny>,
        dst: &Bound<'_, PyAny>,
        pieces: Option<&Bound<'_, PyAny>>,
        wait: Wait,
        deadline: Option<f64>,
        verify: Option<Verify>,
    ) -> PyResult<Got> {
        let options = get_options(pieces, wait, deadline, verify)?;
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        let memory = Memory::of(dst, Role::Dst)?;
        // SAFETY: held to be written; the caller lends it to the call (docs/python.md).
        detached(py, || client.get_into(pool, &keys, unsafe { memory.dst() }, &options)).map(Got)
    }

    /// Pins blocks that are in memory and gives views of them, None for each other key. Release them soon: over the daemon's
    /// limit of pinned bytes, and when others need them, the client is given up (`View.still_valid`).
    ///
    /// Raises ViewsError if the client would hold more than 8192.
    fn view(&self, py: Python<'_>, pool: &Bound<'_, Pool>, keys: &Bound<'_, PyAny>) -> PyResult<Views> {
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        let views = detached(py, || client.view(pool, &keys))?;
        Views::new(py, views)
    }

    // ---- By the daemon ----

    /// Stores blocks from `src`. Those that are there already are not copied.
    ///
    /// keys: as in `exists`. src: one contiguous buffer of len(keys) blocks, or a list of buffers, the same number for each
    /// block. parent: the key that the first block follows; each other one follows the block before it. deadline: seconds;
    /// without one 1 s + bytes / 500 MB/s.
    ///
    /// Refused blocks are no errors: see `Put`. Raises ValueError or TypeError for a `src` that does not fit.
    #[pyo3(signature = (pool, keys, src, *, parent=None, deadline=None))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn put_from(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        keys: &Bound<'_, PyAny>,
        src: &Bound<'_, PyAny>,
        parent: Option<&Bound<'_, PyAny>>,
        deadline: Option<f64>,
    ) -> PyResult<Put> {
        let options = PutOptions { deadline: crate::words::deadline(deadline)? };
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        let parent = parent.map(parent_key).transpose()?;
        let memory = Memory::of(src, Role::Src)?;
        // SAFETY: the caller lends it to the call (docs/python.md).
        detached(py, || client.put_from(pool, &keys, parent, unsafe { memory.src() }, &options)).map(Put)
    }

    // ---- On GPUs ----

    /// Opens a GPU ahead of the first call there: maps what the daemon has on it (`gpus=True`), and registers the daemon's memory
    /// in DRAM with the driver. Returns when all of that is registered or the deadline, in seconds, is over: how many bytes
    /// are, and how many there are; the rest goes on behind. The opening itself is waited for at any rate. A GPU that is open
    /// already is only looked at.
    ///
    /// Calls on a GPU do the same where nobody has before, within their own deadlines: what is not registered in time is a miss.
    /// So does a client that connects to a daemon with other memory, as after a cold start. device: as in `get_device`. Raises
    /// GpuError, also where there is no driver or it refuses to register.
    #[pyo3(signature = (device, *, deadline=60.0))]
    fn open_gpu(&self, py: Python<'_>, device: &Bound<'_, PyAny>, deadline: f64) -> PyResult<(u64, u64)> {
        let (client, device) = (self.client()?, whole("device", device)?);
        device::open(py, &client, device, seconds("deadline", deadline)?)
    }

    /// `get_into` into the memory of a GPU, on the caller's stream: when this returns, all copies are on it, so blocks are there
    /// for whatever is put on the stream afterwards. The CPU waits for the daemon alone, and only for what is in no memory.
    ///
    /// dst: a list of addresses, `tensor.data_ptr()`: one for each key, or the same number for each; each gets an equal part
    /// of what is asked of a block. stream: `torch.cuda.current_stream().cuda_stream`, or 0 for the default stream. device: its
    /// GPU as this process counts them, `tensor.device.index`. The memory stays, and is used on this stream alone, until what
    /// is on it has ended. pieces, wait, deadline, verify: as in `get_into`; with `Verify.ALWAYS` blocks come from DRAM, as
    /// nobody checks sums on a GPU.
    ///
    /// The daemon's memory on that GPU, and on others that it reaches (peer to peer), is read by a client with `gpus=True`;
    /// without, blocks come from DRAM. The first call opens the GPU and registers memory of the host with the driver: what is
    /// not registered within the deadline is a miss (`open_gpu`).
    /// Ask `DeviceGot.still_valid` when the copies have ended. Raises GpuError, also where there is no driver; copies may be on
    /// the stream all the same.
    #[pyo3(signature = (pool, keys, dst, stream, *, device, pieces=None, wait=Wait::Present, deadline=None, verify=None))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn get_device<'py>(
        &self,
        py: Python<'py>,
        pool: &Bound<'py, Pool>,
        keys: &Bound<'py, PyAny>,
        dst: &Bound<'py, PyAny>,
        stream: &Bound<'py, PyAny>,
        device: &Bound<'py, PyAny>,
        pieces: Option<&Bound<'py, PyAny>>,
        wait: Wait,
        deadline: Option<f64>,
        verify: Option<Verify>,
    ) -> PyResult<Bound<'py, DeviceGot>> {
        let options = get_options(pieces, wait, deadline, verify)?;
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        let to = device::Places::of("dst", dst, stream, device)?;
        device::get(py, &client, pool, &keys, &to, &options)
    }

    /// `get_device` in pieces, for engines that begin with the first layer while the others arrive: the first piece of all
    /// blocks is copied first, then the second of all, on a stream of the client's own, behind what is on `stream` now. When
    /// this returns all copies are asked for; blocks that were in no memory were waited for, within the deadline.
    ///
    /// pieces: a list of (offset, nbytes, addresses) in bytes of a block; addresses as `dst` in `get_device`, each an equal part
    /// of the piece. Or (offset, nbytes, addresses, (address, value)): a flag of 4 bytes in memory that the GPU reaches, where
    /// the value is written when the piece is over, whatever became of its blocks. stream, device, wait, deadline, verify: as in
    /// `get_device`. Until its piece is over nobody frees an address's memory, or reads or writes it, but what is on `stream` now.
    ///
    /// The answer tells of each piece: `wait_piece(n, stream)` has a stream wait for it. Ask `still_valid` when all is over.
    /// Raises GpuError, also where there is no driver; copies may be under way all the same, and flags are written then, too,
    /// unless the GPU is lost.
    #[pyo3(signature = (pool, keys, pieces, stream, *, device, wait=Wait::Present, deadline=None, verify=None))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn get_device_pieces<'py>(
        &self,
        py: Python<'py>,
        pool: &Bound<'py, Pool>,
        keys: &Bound<'py, PyAny>,
        pieces: &Bound<'py, PyAny>,
        stream: &Bound<'py, PyAny>,
        device: &Bound<'py, PyAny>,
        wait: Wait,
        deadline: Option<f64>,
        verify: Option<Verify>,
    ) -> PyResult<Bound<'py, DeviceLoad>> {
        let options = get_options(None, wait, deadline, verify)?;
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        let pieces = load::Pieces::of(pieces, stream, device)?;
        load::get(py, &client, pool, &keys, &pieces, &options)
    }

    /// `put_from` out of the memory of a GPU, on the caller's stream, behind what is on it: when this returns, the blocks are read
    /// and stored.
    ///
    /// src, stream, device: as `dst` and the others in `get_device`. parent, deadline: as in `put_from`. A client with `gpus=True`
    /// puts into the daemon's memory on that GPU as far as there is room; all else goes to DRAM. Raises GpuError.
    #[pyo3(signature = (pool, keys, src, stream, *, device, parent=None, deadline=None))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn put_device(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        keys: &Bound<'_, PyAny>,
        src: &Bound<'_, PyAny>,
        stream: &Bound<'_, PyAny>,
        device: &Bound<'_, PyAny>,
        parent: Option<&Bound<'_, PyAny>>,
        deadline: Option<f64>,
    ) -> PyResult<Put> {
        let options = PutOptions { deadline: crate::words::deadline(deadline)? };
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        let parent = parent.map(parent_key).transpose()?;
        let from = device::Places::of("src", src, stream, device)?;
        device::put(py, &client, pool, &keys, parent, &from, &options)
    }

    /// Begins a `get_into`: a `Ticket` that holds `dst` and copies when it is polled. `aget_into` does it all.
    #[pyo3(signature = (pool, keys, dst, *, pieces=None, wait=Wait::Present, deadline=None, verify=None))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn begin_get(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        keys: &Bound<'_, PyAny>,
        dst: &Bound<'_, PyAny>,
        pieces: Option<&Bound<'_, PyAny>>,
        wait: Wait,
        deadline: Option<f64>,
        verify: Option<Verify>,
    ) -> PyResult<Ticket> {
        let options = get_options(pieces, wait, deadline, verify)?;
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        let memory = Memory::of(dst, Role::Dst)?;
        Ticket::get(&client, pool, keys.into_owned(), memory, &options).map_err(|error| exception(py, error))
    }

    /// Begins a `put_from`: a `Ticket` that holds `src` and copies when it is polled. `aput_from` does it all.
    #[pyo3(signature = (pool, keys, src, *, parent=None, deadline=None))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn begin_put(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        keys: &Bound<'_, PyAny>,
        src: &Bound<'_, PyAny>,
        parent: Option<&Bound<'_, PyAny>>,
        deadline: Option<f64>,
    ) -> PyResult<Ticket> {
        let options = PutOptions { deadline: crate::words::deadline(deadline)? };
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        let parent = parent.map(parent_key).transpose()?;
        let memory = Memory::of(src, Role::Src)?;
        Ticket::put(&client, pool, keys.into_owned(), parent, memory, &options).map_err(|error| exception(py, error))
    }

    /// A descriptor that is readable when a ticket may have got on.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.client()?.as_fd().as_raw_fd())
    }

    /// Makes the descriptor quiet; to be called before the tickets are polled.
    fn acknowledge(&self, py: Python<'_>) -> PyResult<()> {
        self.client()?.acknowledge().map_err(|error| exception(py, error))
    }

    /// Fetches blocks into memory ahead of their use. False if there is no daemon to do it.
    fn prefetch(&self, py: Python<'_>, pool: &Bound<'_, Pool>, keys: &Bound<'_, PyAny>) -> PyResult<bool> {
        posted(py, self.client()?.prefetch(self.own(pool)?, &Batch::of(keys)?))
    }

    /// Tells what is known of the future of these blocks. False if there is no daemon to hear it.
    fn hint(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        keys: &Bound<'_, PyAny>,
        hint: &Bound<'_, Hint>,
    ) -> PyResult<bool> {
        posted(py, self.client()?.hint(self.own(pool)?, &Batch::of(keys)?, hint.get().0))
    }

    /// Forgets blocks and all that follow them in their chains; how many there were. deadline: seconds. Raises GoneError or LateError if the daemon does not answer.
    #[pyo3(signature = (pool, keys, *, deadline=None))]
    fn remove(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        keys: &Bound<'_, PyAny>,
        deadline: Option<f64>,
    ) -> PyResult<u64> {
        let deadline = crate::words::deadline(deadline)?;
        let (client, pool, keys) = (self.client()?, self.own(pool)?, Batch::of(keys)?);
        detached(py, || client.remove(pool, &keys, deadline))
    }

    /// Forgets every block of a pool; how many there were. deadline: seconds. Raises GoneError or LateError.
    #[pyo3(signature = (pool, *, deadline=None))]
    fn purge(&self, py: Python<'_>, pool: &Bound<'_, Pool>, deadline: Option<f64>) -> PyResult<u64> {
        let deadline = crate::words::deadline(deadline)?;
        let (client, pool) = (self.client()?, self.own(pool)?);
        detached(py, || client.purge(pool, deadline))
    }

    // ---- Objects ----

    /// Stores an object, whole or not at all. Objects never change: a name that is there is answered `EXISTS`.
    ///
    /// name: 1 to 1024 bytes, or text in UTF-8. data: a buffer of any kind, or a list of them that make up the object one
    /// after the other; copied once. deadline: seconds.
    ///
    /// A refusal is a value: `PutStatus`. Raises ValueError for a pool that is no object pool.
    #[pyo3(signature = (pool, name, data, *, deadline=None))]
    fn put_object(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        name: &Bound<'_, PyAny>,
        data: &Bound<'_, PyAny>,
        deadline: Option<f64>,
    ) -> PyResult<PutStatus> {
        objects::put(py, &self.client()?, self.own(pool)?, name, data, deadline)
    }

    /// The bytes of an object as a memoryview over memory of its own, or None if it is not there.
    ///
    /// take: forget it, too; of several takers one gets it. wait: `Wait.ABSENT` waits until the deadline for an object that
    /// nobody has put yet. deadline: seconds, of the whole call; a removal may outlive it by 0.1 s.
    ///
    /// Raises GoneError or LateError if `take` read the object and the daemon did not confirm its removal.
    #[pyo3(signature = (pool, name, *, take=false, wait=Wait::Present, deadline=None))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn get_object<'py>(
        &self,
        py: Python<'py>,
        pool: &Bound<'py, Pool>,
        name: &Bound<'py, PyAny>,
        take: bool,
        wait: Wait,
        deadline: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyMemoryView>>> {
        let get = if take { client::Client::take_object } else { client::Client::await_object };
        objects::get(py, self.own(pool)?, name, deadline, {
            let client = self.client()?;
            move |pool, name, deadline| get(&client, pool, name, wait.into(), deadline)
        })
    }

    /// Forgets an object; whether it was there. Raises GoneError or LateError if the daemon does not answer.
    #[pyo3(signature = (pool, name, *, deadline=None))]
    fn remove_object(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        name: &Bound<'_, PyAny>,
        deadline: Option<f64>,
    ) -> PyResult<bool> {
        objects::remove(py, &self.client()?, self.own(pool)?, name, deadline)
    }

    /// Stores 1 to 8192 objects, each whole or not at all, with one wait for room. Of a name that is given twice the first is
    /// stored.
    ///
    /// names: a list of names as in `put_object`. src: for each a buffer, a pair (address, bytes) of host memory that stays
    /// as it is until the call ends, or a list of those that make up the object. deadline: seconds, of the whole call.
    ///
    /// Refused objects are no errors: see `Put`. Raises ValueError or TypeError for what does not fit.
    #[pyo3(signature = (pool, names, src, *, deadline=None))]
    fn put_objects(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        names: &Bound<'_, PyAny>,
        src: &Bound<'_, PyAny>,
        deadline: Option<f64>,
    ) -> PyResult<Put> {
        objects::put_many(py, &self.client()?, self.own(pool)?, names, src, deadline)
    }

    /// The bytes of 1 to 8192 objects, each a memoryview over memory of its own, or None for those that are not there.
    #[pyo3(signature = (pool, names, *, deadline=None))]
    fn get_objects<'py>(
        &self,
        py: Python<'py>,
        pool: &Bound<'py, Pool>,
        names: &Bound<'py, PyAny>,
        deadline: Option<f64>,
    ) -> PyResult<Vec<Option<Bound<'py, PyMemoryView>>>> {
        objects::get_many(py, &self.client()?, self.own(pool)?, names, deadline)
    }

    /// Copies 1 to 8192 objects to memory of the caller. For each name: the bytes of the object, None if it is not there,
    /// or, negative, the bytes of one that is longer than its place; of such a one nothing is copied.
    ///
    /// names: as in `put_objects`. dst: for each a writable buffer, a pair (address, bytes), or a list of those, which the
    /// object fills one after the other. offsets: for each name a list with, for each of its places, where in the object
    /// the bytes for it begin; places that would go beyond the object's end stay as they are. deadline: seconds; without
    /// one 50 ms + bytes / 500 MB/s of what is not in memory.
    #[pyo3(signature = (pool, names, dst, *, offsets=None, deadline=None))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn get_objects_into(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        names: &Bound<'_, PyAny>,
        dst: &Bound<'_, PyAny>,
        offsets: Option<Vec<Vec<u64>>>,
        deadline: Option<f64>,
    ) -> PyResult<Vec<Option<i64>>> {
        objects::get_many_into(py, &self.client()?, self.own(pool)?, names, dst, offsets, deadline)
    }

    /// `get_objects_into` memory of a GPU, on the caller's stream: when this returns, all copies are on it. Objects come from where
    /// they lie, in DRAM or on the GPU; those of several parts (over 64 MiB) are only told of.
    ///
    /// names, deadline: as in `get_objects_into`; dst, offsets: too, but addresses of the GPU's memory alone. stream, device: as in
    /// `get_device`. Ask `DeviceObjects.still_valid` when the copies have ended. Raises GpuError, also where there is no driver.
    #[pyo3(signature = (pool, names, dst, stream, *, device, offsets=None, deadline=None))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn get_objects_device<'py>(
        &self,
        py: Python<'py>,
        pool: &Bound<'py, Pool>,
        names: &Bound<'py, PyAny>,
        dst: &Bound<'py, PyAny>,
        stream: &Bound<'py, PyAny>,
        device: &Bound<'py, PyAny>,
        offsets: Option<Vec<Vec<u64>>>,
        deadline: Option<f64>,
    ) -> PyResult<Bound<'py, DeviceObjects>> {
        let options = get_options(None, Wait::Present, deadline, None)?;
        let (client, pool) = (self.client()?, self.own(pool)?);
        let to = device::device_objects(dst, offsets)?;
        let stream = device::stream_of(stream, whole("device", device)?)?;
        device::get_objects(py, &client, pool, names, (&to, &stream), &options)
    }

    /// For each of 1 to 8192 names (bytes or None, in_memory), without reading it; None if it is not there. No bytes are
    /// told of an object over 64 MiB that is not in memory.
    fn find_objects(
        &self,
        py: Python<'_>,
        pool: &Bound<'_, Pool>,
        names: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<Option<objects::Info>>> {
        objects::find_many(py, &self.client()?, self.own(pool)?, names)
    }

    // ---- About the client ----

    /// What this client counted since it connected first.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.client()?.stats().map_err(|error| exception(py, error))?;
        dict(py, &stats.named())
    }

    /// Whether a daemon answers now.
    fn is_connected(&self) -> PyResult<bool> {
        Ok(self.client()?.is_connected())
    }

    fn __repr__(&self) -> String {
        format!("<lapis_kv.Client of {}>", self.path.display())
    }
}

impl Client {
    /// A pool alone (its leading run counts), or a list of pools with their policies.
    fn policies(&self, pools: &Bound<'_, PyAny>) -> PyResult<Vec<(client::Pool, client::HitPolicy)>> {
        if let Ok(pool) = pools.cast::<Pool>() {
            return Ok(vec![(self.own(pool)?.clone(), client::HitPolicy::Prefix)]);
        }
        let one = |pool: PyResult<Bound<'_, PyAny>>| {
            let pool = pool?;
            let pair: (Bound<'_, Pool>, Bound<'_, HitPolicy>) = pool.extract()?;
            Ok((self.own(&pair.0)?.clone(), pair.1.get().0))
        };
        let wrong = |error: PyErr| {
            if error.is_instance_of::<PyTypeError>(pools.py()) {
                PyTypeError::new_err("pools: expected a Pool, or a list of pairs (Pool, HitPolicy)")
            } else {
                error
            }
        };
        let pools: Vec<_> = pools.try_iter().and_then(|pools| pools.map(one).collect()).map_err(wrong)?;
        if pools.is_empty() {
            return Err(PyValueError::new_err("pools: expected a Pool, or at least one pair (Pool, HitPolicy)"));
        }
        Ok(pools)
    }
}

/// Whether a frame without an answer found a daemon.
fn posted(py: Python<'_>, result: Result<(), client::ClientError>) -> PyResult<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(client::ClientError::Gone) => Ok(false),
        Err(error) => Err(exception(py, error)),
    }
}

/// The daemon's state as JSON, by a connection of its own. `deadline`: seconds for each part of the answer.
#[pyfunction]
#[pyo3(signature = (path, deadline=2.0))]
pub(crate) fn status_json(py: Python<'_>, path: PathBuf, deadline: f64) -> PyResult<String> {
    let deadline = seconds("deadline", deadline)?;
    detached(py, || client::status(&path, deadline))
}
