//! Blocks to and from memory of GPUs, and a thread that lets go of what copies on their way held.
//!
//! Invariant: what a copy reads or writes is let go of only after a mark behind it is over, also when the client ends.

use std::{
    sync::{Arc, Mutex, OnceLock, TryLockError},
    thread::Thread,
    time::{Duration, Instant},
};

use lapis_config::Key;

use super::{
    Client,
    shared::{Live, Shared},
};
use crate::{
    ClientError, DeviceObject, DeviceObjectStatus, DevicePiece, DevicePtr, DeviceStream, GetOptions, Got, GpuOpened,
    Pool, Put, PutOptions, Session,
    session::{
        self,
        device::{DeviceGetJob, DevicePutJob, Flight, GpuOpenJob, Watch, keys_of},
    },
};

/// Between two looks at copies under way: the driver wakes nobody. Doubled while nothing ends.
const PAUSE_MIN: Duration = Duration::from_micros(200);
const PAUSE_MAX: Duration = Duration::from_millis(5);
/// How long the end of a client waits for GPUs; what hangs longer is held as long as the process lives.
const END_MAX: Duration = Duration::from_secs(10);

/// What a get into a GPU's memory found. Its blocks are there for whatever is put on the same stream afterwards.
#[derive(Debug)]
pub struct DeviceGot {
    pub got: Got,
    session: Arc<Session>,
    watches: Vec<Watch>,
}

impl DeviceGot {
    /// Whether all copies have ended.
    pub fn is_over(&self) -> bool {
        self.watches.iter().all(Watch::is_over)
    }

    /// Whether what was copied is what was asked for; to be asked when the copies have ended. False once the GPU is lost,
    /// or the daemon gave the client up (too many pins for too long) or came back cold.
    pub fn still_valid(&self) -> bool {
        self.session.pins_are_heeded() && !self.watches.iter().any(Watch::has_failed)
    }
}

/// What a get of objects into a GPU's memory found. Their bytes are there for whatever is put on the same stream afterwards.
#[derive(Debug)]
pub struct DeviceObjects {
    /// One for each name.
    pub statuses: Vec<DeviceObjectStatus>,
    copies: DeviceGot,
}

impl DeviceObjects {
    /// As of [`DeviceGot::is_over`].
    pub fn is_over(&self) -> bool {
        self.copies.is_over()
    }

    /// As of [`DeviceGot::still_valid`].
    pub fn still_valid(&self) -> bool {
        self.copies.still_valid()
    }
}

/// A get in pieces: what it found, and what becomes of each piece. Nothing of a piece is to be looked at, nor its addresses to
/// be used by others, before its flag is seen or a stream waits for it ([`Self::wait_piece`]).
#[derive(Debug)]
pub struct DeviceLoad {
    pub got: Got,
    session: Arc<Session>,
    watches: Vec<Watch>,
    pieces: Vec<Watch>,
}

impl DeviceLoad {
    /// So many pieces as were asked for.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// What is put on the stream after this waits, on its GPU, until the piece of all blocks is there. The stream may be of any
    /// GPU. An error says that the GPU is lost, and then nothing runs there.
    ///
    /// # Panics
    /// If there is no such piece.
    pub fn wait_piece(&self, piece: usize, stream: &DeviceStream) -> Result<(), ClientError> {
        self.session.wait_on(stream, &self.pieces[piece])
    }

    /// Whether the copies of a piece, and of those before it, have ended.
    ///
    /// # Panics
    /// If there is no such piece.
    pub fn is_piece_over(&self, piece: usize) -> bool {
        self.pieces[piece].is_over()
    }

    /// Whether all copies have ended.
    pub fn is_over(&self) -> bool {
        self.pieces.iter().chain(&self.watches).all(Watch::is_over)
    }

    /// As of [`DeviceGot::still_valid`].
    pub fn still_valid(&self) -> bool {
        self.session.pins_are_heeded() && !self.pieces.iter().chain(&self.watches).any(Watch::has_failed)
    }
}

/// Copies under way, over all sessions of a client.
#[derive(Debug, Default)]
pub(super) struct Flights {
    list: Mutex<Vec<Flight>>,
    reaper: OnceLock<Thread>,
}

impl Flights {
    /// Lets go of what is over; true if anything is left, and if anything went.
    fn reap(&self) -> (bool, bool) {
        // Under one lock: to the thread that looks after them what is taken out for a moment is none.
        let mut list = session::lock(&self.list);
        let (over, left): (Vec<Flight>, Vec<Flight>) = list.drain(..).partition(Flight::is_over);
        let (any, went) = (!left.is_empty(), !over.is_empty());
        *list = left;
        drop(list);
        drop(over);
        (any, went)
    }

    /// Waits for all, when the client ends.
    pub fn end(&self) {
        let began = Instant::now();
        while self.reap().0 {
            if began.elapsed() > END_MAX {
                let left = std::mem::take(&mut *session::lock(&self.list));
                tracing::error!(left = left.len(), "copies of a GPU do not end: what they use is never let go of");
                return std::mem::forget(left);
            }
            std::thread::sleep(PAUSE_MIN);
        }
    }

    /// In a forked child nothing of the driver may be touched, nor may a lock be waited for: who held it as the process was
    /// forked is not here. False if it is held: then these are never to be dropped.
    pub fn forget(&self) -> bool {
        let mut list = match self.list.try_lock() {
            Ok(list) => list,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        std::mem::forget(std::mem::take(&mut *list));
        true
    }
}

fn run(shared: &Shared) {
    let mut pause = PAUSE_MIN;
    while !shared.is_stopping() {
        let (any, went) = shared.flights.reap();
        pause = if went { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        if any { std::thread::park_timeout(pause) } else { std::thread::park() }
    }
}

impl Client {
    /// Opens a GPU ahead of the first call there: maps what the daemon has on it, and registers the daemon's memory in DRAM with
    /// the driver. Returns when all of that is registered or the deadline is over, with how much is; the rest goes on behind.
    /// The opening itself is waited for, whatever the deadline. A GPU that is open already is only looked at.
    ///
    /// Calls on a GPU do the same where nobody has before, within their own deadlines: what is not registered in time is a miss.
    /// So does a client that connects to a daemon with other memory, as after a cold start. `device`: as the driver counts them
    /// in this process. An error is the GPU's or the driver's, which may have refused to register.
    pub fn open_gpu(&self, device: u16, deadline: Duration) -> Result<GpuOpened, ClientError> {
        let live = self.shared().here()?;
        let mut job = GpuOpenJob::new(live.session.clone(), device)?;
        self.shared().drive(&live, deadline, |_| job.step());
        job.finish()
    }

    /// [`Self::get_into`] into the memory of a GPU, on the caller's stream: when this returns, all copies are on it. `to` has
    /// one address for each key, or the same number for each, and each gets an equal part. What the daemon has on that GPU, or
    /// on another one that it reaches (peer to peer), is copied from there, what is in DRAM from where it lies; for the rest
    /// the daemon is asked, within the deadline.
    ///
    /// Sums are checked of what comes from DRAM, as by `get_into`; what lies on a GPU was checked before it came there,
    /// and is not read there by who wants all checked (`Verify::Always`). The first call opens the GPU, and registers memory of
    /// the host with the driver, where [`Self::open_gpu`] has not; later ones wait for neither. The first block that lies on
    /// another GPU opens that one too.
    ///
    /// # Safety
    /// Each address is memory of the stream's GPU with room for its part, and nobody frees it, or reads or writes it other than
    /// on this stream, before what is put on the stream has ended.
    pub unsafe fn get_device(
        &self,
        pool: &Pool,
        keys: &[Key],
        to: &[DevicePtr],
        stream: &DeviceStream,
        options: &GetOptions,
    ) -> Result<DeviceGot, ClientError> {
        let live = self.shared().here_for(pool)?;
        self.shared().flights.reap();
        // SAFETY: the caller's promise.
        let job = unsafe { DeviceGetJob::new(live.session.clone(), pool, keys, to, stream, options)? };
        let (got, watches, _) = self.run_get(&live, job, options);
        Ok(DeviceGot { got: got?, session: live.session.clone(), watches })
    }

    /// [`Self::get_device`] of objects: each to places of its own, on the caller's stream. One status for each name, as of
    /// [`Self::get_objects_into`]; but objects of several parts are only told of. Their names are read in DRAM, so one that lies
    /// on a GPU alone is fetched from there first. `options.pieces` and `options.wait` are not heeded.
    ///
    /// # Safety
    /// As of [`Self::get_device`].
    pub unsafe fn get_objects_device(
        &self,
        pool: &Pool,
        names: &[&[u8]],
        to: &[DeviceObject],
        stream: &DeviceStream,
        options: &GetOptions,
    ) -> Result<DeviceObjects, ClientError> {
        let live = self.shared().here_for(pool)?;
        self.shared().flights.reap();
        let keys = keys_of(names)?;
        // SAFETY: the caller's promise.
        let mut job =
            unsafe { DeviceGetJob::of_objects(live.session.clone(), pool, (names, &keys), to, stream, options)? };
        self.drive_get(&live, &mut job, options);
        let statuses = job.take_told();
        let (got, watches, _) = self.end_get(&live, job);
        Ok(DeviceObjects { statuses, copies: DeviceGot { got: got?, session: live.session.clone(), watches } })
    }

    /// [`Self::get_device`] in pieces, for engines that begin with the first layer while the others arrive: the first piece of
    /// all blocks is copied first, then the second of all, in the order of `pieces`, to addresses of its own each. Copies go on
    /// a stream of the client's own, behind what is on `stream` now. When this returns all are asked for; blocks that were
    /// not in memory were waited for, within the deadline, and in that time those that were there have been copied whole.
    ///
    /// After each piece its flag is written on the stream of the copies (`cuStreamWriteValue32`): a stream of the caller's waits
    /// for it by `cuStreamWaitValue32` with `CU_STREAM_WAIT_VALUE_GEQ`, also before this is called, but then not `stream`, nor
    /// one that it waits for: the copies come behind it. Or, without a flag, by [`DeviceLoad::wait_piece`], once this has returned.
    ///
    /// A flag says that its piece is *over*, not that all blocks came: which did is what this returns. It is written too where
    /// blocks are missing, late or refused, where all are, and where this returns an error of the GPU ([`ClientError::Gpu`]) after
    /// copies were begun: so nobody who waits for it waits for ever. No flag is written by a call that is refused for what it asks
    /// (all other errors), where the GPU or its driver is not to be had or is lost (nothing runs there then), or where the driver
    /// refuses to write it, which is an error: its address is none that the GPU reaches. Who waits before calling writes the
    /// flags itself then.
    ///
    /// Pieces are bytes of a block and need not cover it; `options.pieces` is not heeded. A hit has so many bytes as all pieces.
    ///
    /// # Safety
    /// Each address is memory of the stream's GPU with room for its part, and nobody frees it, or reads or writes it, before its
    /// piece is over, but what is on `stream` when this is called. A flag is memory that the GPU can write, and that nobody frees
    /// before its piece is over.
    pub unsafe fn get_device_pieces(
        &self,
        pool: &Pool,
        keys: &[Key],
        pieces: &[DevicePiece<'_>],
        stream: &DeviceStream,
        options: &GetOptions,
    ) -> Result<DeviceLoad, ClientError> {
        let live = self.shared().here_for(pool)?;
        self.shared().flights.reap();
        // SAFETY: the caller's promise.
        let job = unsafe { DeviceGetJob::in_pieces(live.session.clone(), pool, keys, pieces, stream, options)? };
        let (got, watches, pieces) = self.run_get(&live, job, options);
        Ok(DeviceLoad { got: got?, session: live.session.clone(), watches, pieces })
    }

    fn run_get(
        &self,
        live: &Live,
        mut job: DeviceGetJob<'_>,
        options: &GetOptions,
    ) -> (Result<Got, ClientError>, Vec<Watch>, Vec<Watch>) {
        self.drive_get(live, &mut job, options);
        self.end_get(live, job)
    }

    fn drive_get(&self, live: &Live, job: &mut DeviceGetJob<'_>, options: &GetOptions) {
        let deadline = options.deadline.unwrap_or_else(|| live.get_deadline(job.bytes()));
        self.shared().drive(live, deadline, |left| job.step(left));
    }

    fn end_get(&self, live: &Live, job: DeviceGetJob<'_>) -> (Result<Got, ClientError>, Vec<Watch>, Vec<Watch>) {
        let (got, flights, pieces) = job.finish();
        let watches = flights.iter().map(Flight::watch).collect();
        self.hold(flights);
        live.ring();
        (got, watches, pieces)
    }

    /// [`Self::put_from`] out of the memory of a GPU, on the caller's stream, behind what is on it: when this returns, the
    /// blocks are read and stored. `from` has one address for each key, or the same number for each, of equal parts.
    ///
    /// # Safety
    /// Each address is memory of the stream's GPU that holds its part, and nobody frees it, or writes it other than on this
    /// stream, before what is put on the stream has ended.
    pub unsafe fn put_device(
        &self,
        pool: &Pool,
        keys: &[Key],
        parent: Option<Key>,
        from: &[DevicePtr],
        stream: &DeviceStream,
        options: &PutOptions,
    ) -> Result<Put, ClientError> {
        let live = self.shared().here_for(pool)?;
        self.shared().flights.reap();
        // SAFETY: the caller's promise.
        let mut job = unsafe { DevicePutJob::new(live.session.clone(), pool, keys, parent, from, stream)? };
        let deadline = options.deadline.unwrap_or_else(|| live.put_deadline(job.bytes()));
        self.shared().drive(&live, deadline, |left| job.step(left));
        let (put, flights) = job.finish();
        self.hold(flights);
        put
    }

    /// Keeps what copies use until they have ended.
    fn hold(&self, flights: Vec<Flight>) {
        if flights.is_empty() {
            return;
        }
        let shared = self.shared();
        session::lock(&shared.flights.list).extend(flights);
        if let Some(reaper) = shared.flights.reaper.get() {
            return reaper.unpark();
        }
        let own = shared.clone();
        let mut threads = session::lock(&shared.threads);
        match std::thread::Builder::new().name("lapis-gpu".into()).spawn(move || run(&own)) {
            // Two at once are one too many, and no harm.
            Ok(thread) => {
                let _ = shared.flights.reaper.set(thread.thread().clone());
                threads.push(thread);
            }
            Err(error) => tracing::debug!(%error, "no thread to look after copies: the next call does"),
        }
    }
}
