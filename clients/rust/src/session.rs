//! One client's half of the protocol: what it mapped, what it asked, what it was granted. No sockets, no threads, no
//! clock, and nothing here blocks, so that a simulation can drive it; [`crate::Client`] adds those.
//!
//! Look-ups, copies and views work from the mapped table alone, from any thread, without a system call, and go on while
//! no daemon is there. Everything else is a frame in a ring: `submit`, later `poll`, then `take`.
//!
//! Invariant: bytes are handed out only after the line was checked again (`Table::still`), or while a hazard names them.

mod calls;
mod commits;
mod connection;
#[cfg(feature = "cuda")]
pub(crate) mod device;
mod get;
mod maps;
pub(crate) mod object;
pub(crate) mod object_get;
pub(crate) mod object_put;
mod pins;
mod put;
mod reserve;
mod view;
mod windows;

use std::{
    collections::HashMap,
    fmt,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use lapis_arena::{Access, Found, Mapping, memfd};
use lapis_config::{ClientId, GpuId, HitPolicy, Key, POOLS_MAX, PoolId};
use lapis_transport::{
    control::{self, Completions, ControlClient, Counters, Touch},
    hello::{CallDefaults, Geometry, ToClient},
};

pub(crate) use self::maps::Maps;
pub(crate) use self::put::daemons_share_us;
use self::{calls::Calls, pins::Pins};
pub use self::{
    calls::{Answer, Busy, Token},
    get::{BlockStatus, GetJob, GetOptions, Got},
    object_get::{ObjectDst, ObjectInfo, ObjectStatus},
    put::{Put, PutJob, PutOptions},
    reserve::{CommitJob, Reservation, ReserveJob},
    view::{View, Views},
};
use crate::{ClientError, Pool, fork::Birthplace, present::Present, stats::Counts};

/// When the bytes of a local hit are checked against their sum, beside the re-check of the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// When nobody has checked them since the daemon's start.
    #[default]
    Crossings,
    /// Always. Costs one more pass over the bytes.
    Always,
}

/// What a job needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Done,
    /// A frame was posted and there is more to do: ring the daemon if it sleeps, then go on.
    Posted,
    /// Nothing to do before the next completion.
    Waiting,
    /// There was no room for a frame: again a little later.
    Full,
}

/// The daemon's first answer, as values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Welcome {
    pub client: ClientId,
    pub secret: u64,
    pub geometry: Geometry,
    pub may_put: bool,
    pub resumed: bool,
    pub magazine_bytes_max: u64,
    pub defaults: CallDefaults,
}

impl Welcome {
    /// Of the message of that name.
    pub fn of(message: ToClient) -> Option<Self> {
        match message {
            ToClient::Welcome { client, secret, geometry, may_put, resumed, magazine_bytes_max, defaults } => {
                Some(Self { client, secret, geometry, may_put, resumed, magazine_bytes_max, defaults })
            }
            _ => None,
        }
    }
}

/// A client of one daemon, from its welcome until the daemon knows it no more.
pub struct Session {
    // Declared in the order in which they are to go: everything mapped first, then what tells the daemon so.
    #[cfg(feature = "cuda")]
    gpus: device::Gpus,
    maps: Arc<Maps>,
    control: ControlClient,
    pins: Pins,
    completions: Mutex<Completions>,
    calls: Mutex<Calls>,
    /// Never used: the daemon sees its end when the last process that mapped all this has ended.
    _lifeline: Option<OwnedFd>,
    last: Mutex<Option<Box<dyn Send>>>,

    client: ClientId,
    secret: u64,
    may_put: bool,
    magazine_bytes_max: u64,
    defaults: CallDefaults,
    verify: Verify,
    /// Number of the daemon's life that this session is registered with.
    instance: AtomicU64,
    connected: AtomicBool,
    /// Replaced by another session: its memory is no daemon's any more.
    retired: AtomicBool,
    /// Completions dispatched and connections lost.
    events: AtomicU64,
    /// Number and slot bytes of each pool, by its index in the client's list; `UNKNOWN` until the daemon said it.
    pools: Box<[AtomicU64]>,
    /// Lines whose bytes did not fit their sum, with the generation in which they did not.
    corrupt: RwLock<HashMap<u32, u64>>,
    any_corrupt: AtomicBool,
    counts: Arc<Counts>,
    birthplace: Birthplace,
}

const UNKNOWN: u64 = u64::MAX;
/// Corrupt lines remembered; when there are more, all are forgotten and found again.
const CORRUPT_MAX: usize = 4096;

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session(client {}, table {:016x})", self.client.0, self.maps.table.table_id())
    }
}

impl Session {
    /// Maps what came with a welcome; extents are added as they come. `former` is the session before, whose maps are
    /// used further if they still are the daemon's. `verify`: instead of what the daemon says.
    pub fn open(
        welcome: &Welcome,
        table: BorrowedFd<'_>,
        control: BorrowedFd<'_>,
        lifeline: Option<OwnedFd>,
        verify: Option<Verify>,
        former: Option<&Session>,
    ) -> Result<Self, ClientError> {
        let shared = former.map(|former| &former.maps).filter(|maps| maps.serve(welcome)).cloned();
        #[cfg(feature = "cuda")]
        let gpus = former.map_or_else(device::Gpus::default, |former| former.gpus.successor(shared.is_some()));
        let maps = match shared {
            Some(maps) => maps,
            None => Arc::new(Maps::open(welcome, table)?),
        };
        memfd::check(control, control::BYTES)?;
        let control = ControlClient::new(&Mapping::shared(control, control::BYTES, Access::ReadWrite)?)?;
        let (requests, completions) = control.rings();
        Ok(Self {
            #[cfg(feature = "cuda")]
            gpus,
            pins: Pins::new(control.hazards()),
            completions: Mutex::new(completions),
            calls: Mutex::new(Calls::new(requests)),
            _lifeline: lifeline,
            last: Mutex::new(None),
            client: welcome.client,
            secret: welcome.secret,
            may_put: welcome.may_put,
            magazine_bytes_max: welcome.magazine_bytes_max,
            defaults: welcome.defaults,
            verify: verify.unwrap_or(if welcome.defaults.verify_always { Verify::Always } else { Verify::Crossings }),
            instance: AtomicU64::new(welcome.geometry.instance),
            connected: AtomicBool::new(true),
            retired: AtomicBool::new(false),
            events: AtomicU64::new(0),
            pools: (0..POOLS_MAX).map(|_| AtomicU64::new(UNKNOWN)).collect(),
            corrupt: RwLock::new(HashMap::new()),
            any_corrupt: AtomicBool::new(false),
            counts: former.map_or_else(Arc::default, |former| former.counts.clone()),
            birthplace: Birthplace::here(),
            maps,
            control,
        })
    }

    /// Maps the extents of an `Extents` message, those that are new.
    pub fn add_extents(&self, first: u32, extents_bytes: &[u64], fds: &[OwnedFd]) -> Result<(), ClientError> {
        Ok(self.maps.add(first, extents_bytes, fds)?)
    }

    /// Extents mapped so far.
    pub fn extents(&self) -> usize {
        self.maps.extents.len()
    }

    /// Of the lives of the same pools in other sessions of the client.
    pub fn pool_opened(&self, pool: &Pool, id: PoolId, slot_bytes: u32) {
        self.pools[pool.index()].store(u64::from(slot_bytes) << 16 | u64::from(id.0), Ordering::Release);
    }

    /// The pool's number here, if the daemon of this session was asked to open it.
    pub fn pool_id(&self, pool: &Pool) -> Option<PoolId> {
        match self.pools[pool.index()].load(Ordering::Acquire) {
            UNKNOWN => None,
            known => Some(PoolId(known as u16)),
        }
    }

    pub fn client(&self) -> ClientId {
        self.client
    }

    pub fn table_id(&self) -> u64 {
        self.maps.table.table_id()
    }

    pub fn may_put(&self) -> bool {
        self.may_put
    }

    /// Deadlines of calls that name none.
    pub fn defaults(&self) -> CallDefaults {
        self.defaults
    }

    /// True from the welcome to `lost`.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// What is dropped after everything is unmapped and nothing of the client writes any more: the place to say `Bye`.
    pub fn set_last(&self, last: Box<dyn Send>) {
        *lock(&self.last) = Some(last);
    }

    // ---- Look-ups ----

    /// Where a block is, as the table says now. A claim only: see [`lapis_arena::Found`].
    #[inline]
    pub fn find(&self, pool: &Pool, key: &Key) -> Option<Found> {
        self.maps.table.find(self.pool_id(pool)?, key)
    }

    /// Which of the keys are there: in memory, or where the daemon would fetch them from.
    pub fn exists(&self, pool: &Pool, keys: &[Key]) -> Present {
        let present = self.present(pool, keys);
        self.counts.looked_up(keys.len(), present.count());
        present
    }

    /// Whether the daemon can ask other hosts for what is not here.
    pub(crate) fn has_peers(&self) -> bool {
        self.maps.table.peers() > 0
    }

    /// How many leading keys are there under every pool's policy; for `Any` alone, how many of all.
    ///
    /// Counts the keys beyond the answer as asked: those before it count when they are read.
    pub fn match_prefix(&self, pools: &[(Pool, HitPolicy)], keys: &[Key]) -> usize {
        let matched = crate::present::longest(
            pools,
            keys.len(),
            |pool, limit| {
                let mut run = 0;
                if let Some(id) = self.pool_id(pool) {
                    self.maps.table.find_while(id, &keys[..limit], |_, found| {
                        let there = found.is_some_and(|found| self.counts_as_there(&found));
                        run += usize::from(there);
                        there
                    });
                }
                run
            },
            |pool, limit| self.present(pool, &keys[..limit]),
        );
        self.counts.looked_up(keys.len(), matched);
        self.control.count(Counters { asked: (keys.len() - matched) as u64, ..Counters::default() });
        matched
    }

    fn present(&self, pool: &Pool, keys: &[Key]) -> Present {
        let mut present = Present::new(keys.len());
        if let Some(id) = self.pool_id(pool) {
            self.maps.table.find_many(id, keys, |i, found| {
                if found.is_some_and(|found| self.counts_as_there(&found)) {
                    present.set(i);
                }
            });
        }
        present
    }

    /// What is not in memory is only there while somebody can fetch it.
    #[inline]
    fn counts_as_there(&self, found: &Found) -> bool {
        found.state.is_readable() || self.is_connected()
    }

    // ---- Hits ----

    /// Tells the daemon of a call's hits: one entry for the deepest line, and counters that lose nothing.
    #[inline]
    fn report(&self, deepest: Option<Found>, hit: usize, asked: usize, bytes: u64) {
        self.report_into(None, deepest, Counters { asked: asked as u64, hit: hit as u64, bytes, hit_hbm: 0 });
    }

    /// The same of bytes that went into the memory of a GPU that the daemon knows.
    #[inline]
    fn report_into(&self, gpu: Option<GpuId>, deepest: Option<Found>, all: Counters) {
        self.control.count(all);
        self.counts.got(all);
        if let Some(found) = deepest.filter(|_| self.is_connected()) {
            let [hit, asked] = [all.hit, all.asked].map(|count| count as u32);
            self.control.touch(Touch { line: found.line.0, bind_low: found.bind as u32, hit, asked, gpu });
        }
    }

    #[inline]
    fn verify_of(&self, verify: Option<Verify>) -> Verify {
        verify.unwrap_or(self.verify)
    }

    #[inline]
    fn must_check(&self, found: &Found, verify: Option<Verify>) -> bool {
        found.state == lapis_arena::LineState::Unverified || self.verify_of(verify) == Verify::Always
    }

    #[inline]
    fn is_corrupt(&self, found: &Found) -> bool {
        self.any_corrupt.load(Ordering::Acquire)
            && self.corrupt.read().unwrap_or_else(PoisonError::into_inner).get(&found.line.0)
                == Some(&found.generation())
    }

    /// A copy did not fit its sum though the line stayed the same. Not read again under this generation.
    #[cold]
    fn remember_corrupt(&self, found: &Found) {
        self.counts.corrupt();
        tracing::error!(line = found.line.0, slot = found.slot.0, "a block does not fit its sum: answered as a miss");
        let mut corrupt = self.corrupt.write().unwrap_or_else(PoisonError::into_inner);
        if corrupt.len() == CORRUPT_MAX {
            corrupt.clear();
        }
        corrupt.insert(found.line.0, found.generation());
        self.any_corrupt.store(true, Ordering::Release);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A forked child shares rings and socket with the process whose they are: it says nothing.
        let last = self.last.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !self.birthplace.is_here() {
            std::mem::forget(last.take());
            #[cfg(feature = "cuda")]
            self.gpus.forget();
        }
    }
}

/// What a panicking thread left under a lock of ours is whole: nothing unwinds in the middle of a change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
