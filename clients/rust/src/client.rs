//! The blocking client: a [`Session`], the socket that it came from, and a thread that watches that. Clones are cheap;
//! any thread may use any of them.
//!
//! Invariant: no call outlives its deadline by more than a copy, whatever the daemon does.

#[cfg(feature = "cuda")]
mod device;
mod link;
mod object;
mod populate;
mod shared;
mod ticket;
mod wait;
mod watch;

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Arc, Mutex, RwLock, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use lapis_config::{Hint, HitPolicy, Key, PoolId, PoolShape, Wait};
use lapis_transport::{
    TransportError,
    frame::Request,
    hello::{ToClient, ToDaemon},
    socket,
};

#[cfg(feature = "cuda")]
pub use self::device::{DeviceGot, DeviceLoad, DeviceObjects};
pub use self::object::NewObject;
pub use self::ticket::{GetTicket, PutTicket};
use self::{
    link::{Greeted, greet},
    shared::{Live, Mail, Shared, bounded},
    wait::Waiters,
};
use crate::{
    ClientError, Dst, GetOptions, Got, Pool, Pools, Present, Put, PutOptions, Reservation, Session, Src, Stats, Verify,
    Views,
    fork::Birthplace,
    keys,
    session::{self, Answer, GetJob, PutJob, ReserveJob},
};

/// Longest wait for answers on the socket.
const SOCKET_DEADLINE: Duration = Duration::from_secs(1);

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Shown by `lapis status`.
    pub name: String,
    /// Ask for writable memory. Refused puts come of a group that does not permit it.
    pub may_put: bool,
    /// Devices write into reserved slots: after the death of this process the daemon waits a grace before it reuses them.
    pub writes_by_dma: bool,
    /// Ask for the daemon's memory on GPUs; without the feature `cuda` nothing is asked. Implies `writes_by_dma`.
    pub gpus: bool,
    /// Instead of what the daemon's configuration says.
    pub verify: Option<Verify>,
    /// Map all memory ahead, in the background.
    pub populate: bool,
    /// Asked every 100 ms by a call that waits, in its own thread: true ends it as if its deadline was over. For languages
    /// whose signal handlers run only when a call has come back.
    pub interrupted: Option<fn() -> bool>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        let name = std::env::args().next().unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        Self { name, may_put: true, writes_by_dma: false, gpus: false, verify: None, populate: true, interrupted: None }
    }
}

/// A connection to the daemon of this host, kept up by itself.
///
/// Without a daemon, hits in memory go on; all else answers at once: misses, and puts refused with
/// [`Refusal::Gone`](crate::Refusal::Gone).
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
}

impl Client {
    /// Connects to the daemon that serves a group's socket.
    pub fn connect(path: impl AsRef<Path>, options: ConnectOptions) -> Result<Self, ClientError> {
        let path = path.as_ref().to_owned();
        let pools = Pools::default();
        let Greeted::New(session, link) = greet(&path, &options, &pools, None)? else {
            return Err(ClientError::Welcome { what: "a resumption" });
        };
        let shared = Arc::new(Shared {
            path,
            options,
            live: RwLock::new(Arc::new(Live::new(session.clone(), link))),
            pools,
            waiters: Waiters::new()?,
            mail: Mail::default(),
            stop: Arc::default(),
            threads: Mutex::default(),
            #[cfg(feature = "cuda")]
            flights: device::Flights::default(),
            birthplace: Birthplace::here(),
        });
        populate::start(&shared, &session);
        let watched = shared.clone();
        let watcher = std::thread::Builder::new()
            .name("lapis-watch".into())
            .spawn(move || watch::run(&watched))
            .map_err(|source| ClientError::io("starting the watcher", source))?;
        Ok(Self { inner: Arc::new(Inner { shared, watcher: Some(watcher) }) })
    }

    /// Opens a pool, or makes it. It is opened again by itself when a daemon comes back cold.
    pub fn pool(&self, shape: &PoolShape) -> Result<Pool, ClientError> {
        let shared = self.shared();
        let live = shared.here()?;
        let pool = shared.pools.add(shape)?;
        if live.session.pool_id(&pool).is_some() {
            return Ok(pool);
        }
        let Some(link) = &live.link else { return Err(ClientError::Gone) };
        let token = shared.mail.expect();
        match link.socket().send(&ToDaemon::OpenPool { token, shape: shape.clone() }) {
            Ok(()) => {}
            Err(TransportError::HungUp) => return Err(ClientError::Gone),
            Err(source) => return Err(ClientError::Connect { path: shared.path.clone(), source }),
        }
        // Whoever loses all mail says before that the connection is gone.
        if !live.session.is_connected() {
            return Err(ClientError::Gone);
        }
        let (id, slot_bytes) = shared.mail.wait(token, SOCKET_DEADLINE)?;
        if shape.kind == lapis_config::PoolKind::Chain && slot_bytes != pool.slot_bytes() {
            let reason = format!("slots of {slot_bytes} bytes where this build has {}", pool.slot_bytes());
            return Err(ClientError::Refused { reason });
        }
        live.session.pool_opened(&pool, id, slot_bytes);
        Ok(pool)
    }

    // ---- In memory: no call to the daemon, no system call ----

    /// Which of the keys Lapis holds.
    pub fn exists(&self, pool: &Pool, keys: &[Key]) -> Result<Present, ClientError> {
        keys::check(keys.len())?;
        Ok(self.shared().here_for(pool)?.session.exists(pool, keys))
    }

    /// How many leading keys are held under every pool's hit policy; for a single `Any`, how many of all.
    pub fn match_prefix(&self, pools: &[(Pool, HitPolicy)], keys: &[Key]) -> Result<usize, ClientError> {
        keys::check(keys.len())?;
        let live = self.shared().here()?;
        pools.iter().try_for_each(|(pool, _)| self.shared().here_for(pool).map(drop))?;
        Ok(live.session.match_prefix(pools, keys))
    }

    /// [`Self::match_prefix`], after what other hosts have of the keys that are missing here was fetched, within the
    /// deadline (that of a get of so much if `None`). Without other hosts, or where nothing is missing, nobody is asked.
    pub fn fetch_prefix(
        &self,
        pools: &[(Pool, HitPolicy)],
        keys: &[Key],
        deadline: Option<Duration>,
    ) -> Result<usize, ClientError> {
        let here = self.match_prefix(pools, keys)?;
        let live = self.shared().here()?;
        if here == keys.len() || !live.session.has_peers() || !live.session.is_connected() {
            return Ok(here);
        }
        // Windows reach back from the answer: what they need of the keys before it is here, or is fetched too.
        let windows = pools.iter().map(|(_, policy)| match policy {
            HitPolicy::Trailing(window) => *window as usize,
            HitPolicy::Prefix => 0,
            HitPolicy::Any => keys.len(),
        });
        let first = here.saturating_sub(windows.max().unwrap_or(0));
        let asks: Option<Vec<_>> =
            pools.iter().map(|(pool, policy)| Some((live.session.pool_id(pool)?, *policy))).collect();
        let Some(asks) = asks else { return Ok(here) };
        let block_bytes: u64 = pools.iter().map(|(pool, _)| pool.block_bytes()).sum();
        let deadline = deadline.unwrap_or_else(|| live.get_deadline(block_bytes * (keys.len() - here) as u64));
        let deadline_us = session::daemons_share_us(deadline);
        let asked = self.shared().ask(&live, deadline, |token| Request::Get {
            token,
            asks: asks.clone(),
            wait: Wait::Present,
            deadline_us,
            keys: keys[first..].to_vec(),
        });
        match asked {
            Ok((token, _)) => {
                let there = self.match_prefix(pools, keys)?;
                live.session.post(Request::Release { token: token.number() });
                live.ring();
                Ok(there)
            }
            Err(ClientError::Gone | ClientError::Late { .. }) => self.match_prefix(pools, keys),
            Err(error) => Err(error),
        }
    }

    /// Copies blocks to `dst`: one buffer of all blocks, or vectors. Blocks in memory need nobody else; for others the
    /// daemon is asked, within the deadline.
    pub fn get_into<'a>(
        &self,
        pool: &Pool,
        keys: &'a [Key],
        dst: impl Into<Dst<'a>>,
        options: &GetOptions,
    ) -> Result<Got, ClientError> {
        let live = self.shared().here_for(pool)?;
        let mut job = GetJob::new(live.session.clone(), pool, keys, dst.into(), options)?;
        let deadline = options.deadline.unwrap_or_else(|| live.get_deadline(job.bytes()));
        self.shared().drive(&live, deadline, |left| job.step(left));
        Ok(job.finish())
    }

    /// [`Self::get_into`] for addresses.
    ///
    /// # Safety
    /// As for [`Dst::raw`].
    pub unsafe fn get_into_raw(
        &self,
        pool: &Pool,
        keys: &[Key],
        vectors: &[libc::iovec],
        options: &GetOptions,
    ) -> Result<Got, ClientError> {
        // SAFETY: the caller's promise.
        self.get_into(pool, keys, unsafe { Dst::raw(vectors) }, options)
    }

    /// Blocks in place, pinned until the views are dropped. Only what is in memory; no view is given while the daemon is
    /// another one than this client has registered with.
    pub fn view(&self, pool: &Pool, keys: &[Key]) -> Result<Views, ClientError> {
        self.shared().here_for(pool)?.session.view(pool, keys, None)
    }

    // ---- By the daemon ----

    /// Stores blocks from `src`. The first one's parent is `parent`, each other one's the block before it in the batch.
    /// Keys that are there already are not copied.
    pub fn put_from<'a>(
        &self,
        pool: &Pool,
        keys: &'a [Key],
        parent: Option<Key>,
        src: impl Into<Src<'a>>,
        options: &PutOptions,
    ) -> Result<Put, ClientError> {
        let live = self.shared().here_for(pool)?;
        let mut job = PutJob::new(live.session.clone(), pool, keys, parent, src.into())?;
        let deadline = options.deadline.unwrap_or_else(|| live.put_deadline(job.bytes()));
        self.shared().drive(&live, deadline, |left| job.step(left));
        Ok(job.finish())
    }

    /// [`Self::put_from`] for addresses.
    ///
    /// # Safety
    /// As for [`Src::raw`].
    pub unsafe fn put_from_raw(
        &self,
        pool: &Pool,
        keys: &[Key],
        parent: Option<Key>,
        vectors: &[libc::iovec],
        options: &PutOptions,
    ) -> Result<Put, ClientError> {
        // SAFETY: the caller's promise.
        self.put_from(pool, keys, parent, unsafe { Src::raw(vectors) }, options)
    }

    /// Slots to fill in place, by own stores or a device; see [`Reservation`] and [`Self::commit`].
    pub fn reserve(
        &self,
        pool: &Pool,
        keys: &[Key],
        parent: Option<Key>,
        options: &PutOptions,
    ) -> Result<Reservation, ClientError> {
        let live = self.shared().here_for(pool)?;
        let mut job = ReserveJob::new(live.session.clone(), pool, keys, parent)?;
        let deadline = options.deadline.unwrap_or_else(|| live.put_deadline(job.bytes()));
        self.shared().drive(&live, deadline, |left| job.step(left));
        Ok(job.finish())
    }

    /// Stores what a reservation holds. With `sums` ([`Session::sum_of`]) the slots are not read once more.
    pub fn commit(
        &self,
        reservation: Reservation,
        sums: Option<&[u64]>,
        options: &PutOptions,
    ) -> Result<Put, ClientError> {
        let live = self.shared().here()?;
        let mut job = match sums {
            Some(sums) => reservation.commit_summed(sums)?,
            None => reservation.commit(),
        };
        let deadline = options.deadline.unwrap_or_else(|| live.put_deadline(job.bytes()));
        self.shared().drive(&live, deadline, |_| job.step());
        Ok(job.finish())
    }

    /// Fetches blocks into memory ahead of their use. No answer.
    pub fn prefetch(&self, pool: &Pool, keys: &[Key]) -> Result<(), ClientError> {
        self.post(pool, keys, |pool, keys| Request::Prefetch { pool, keys })
    }

    /// Tells what is known of the future of these blocks. No answer.
    pub fn hint(&self, pool: &Pool, keys: &[Key], hint: Hint) -> Result<(), ClientError> {
        self.post(pool, keys, |pool, keys| Request::HintKeys { pool, hint, keys })
    }

    fn post(
        &self,
        pool: &Pool,
        keys: &[Key],
        request: impl FnOnce(PoolId, Vec<Key>) -> Request,
    ) -> Result<(), ClientError> {
        keys::check(keys.len())?;
        let live = self.shared().here_for(pool)?;
        let id = live.session.pool_id(pool).filter(|_| live.session.is_connected()).ok_or(ClientError::Gone)?;
        live.session.post(request(id, keys.to_vec()));
        live.ring();
        Ok(())
    }

    /// Offers blocks that were put here to another host, as `peers.members` calls it: it reads what it has room for. How many
    /// of them are there then.
    pub fn offer(&self, pool: &Pool, keys: &[Key], peer: &str, deadline: Option<Duration>) -> Result<u64, ClientError> {
        keys::check(keys.len())?;
        let live = self.shared().here_for(pool)?;
        let id = live.session.pool_id(pool).ok_or(ClientError::Gone)?;
        let deadline = deadline.unwrap_or_else(|| live.get_deadline(pool.block_bytes() * keys.len() as u64));
        let deadline_us = session::daemons_share_us(deadline);
        let asked = self.shared().ask(&live, deadline, |token| Request::Offer {
            token,
            peer: peer.to_owned(),
            pool: id,
            deadline_us,
            keys: keys.to_vec(),
        });
        match asked?.1 {
            Answer::Got { hit } => Ok(u64::from(hit)),
            Answer::Refused(reason) => Err(ClientError::Refused { reason: format!("{peer}: {reason}") }),
            _ => Err(ClientError::Welcome { what: "another answer than was asked" }),
        }
    }

    /// Forgets blocks; how many there were.
    pub fn remove(&self, pool: &Pool, keys: &[Key], deadline: Option<Duration>) -> Result<u64, ClientError> {
        keys::check(keys.len())?;
        self.forget(pool, deadline, |token, pool| Request::Remove { token, pool, keys: keys.to_vec() })
    }

    /// Forgets every block of a pool; how many there were.
    pub fn purge(&self, pool: &Pool, deadline: Option<Duration>) -> Result<u64, ClientError> {
        self.forget(pool, deadline, |token, pool| Request::Purge { token, pool })
    }

    fn forget(
        &self,
        pool: &Pool,
        deadline: Option<Duration>,
        request: impl Fn(u64, PoolId) -> Request,
    ) -> Result<u64, ClientError> {
        let live = self.shared().here_for(pool)?;
        let id = live.session.pool_id(pool).ok_or(ClientError::Gone)?;
        let deadline = deadline.unwrap_or_else(|| live.put_deadline(0));
        match self.shared().ask(&live, deadline, |token| request(token, id))?.1 {
            Answer::Removed { blocks } => Ok(blocks),
            Answer::Refused(reason) => Err(ClientError::Refused { reason: reason.to_string() }),
            _ => Err(ClientError::Welcome { what: "another answer than was asked" }),
        }
    }

    // ---- About the client ----

    /// What this client counted.
    pub fn stats(&self) -> Result<Stats, ClientError> {
        Ok(self.shared().here()?.session.stats())
    }

    /// Whether a daemon answers now. Never in a forked child.
    pub fn is_connected(&self) -> bool {
        self.shared().here().is_ok_and(|live| live.session.is_connected())
    }

    /// The session now; another one after a daemon came back cold.
    pub fn session(&self) -> Result<Arc<Session>, ClientError> {
        Ok(self.shared().here()?.session.clone())
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }
}

/// Has a host hand its blocks over to others, before it goes away: the report as JSON, when that is over.
pub fn drain(path: impl AsRef<Path>, within: Duration) -> Result<String, ClientError> {
    let within_us = u64::try_from(within.as_micros()).unwrap_or(u64::MAX);
    ask_daemon(path.as_ref(), &ToDaemon::Drain { within_us }, within.saturating_add(SOCKET_DEADLINE * 5))
}

/// The daemon's state as JSON, by a connection of its own: for people and scripts. `deadline`: of each part of the answer.
pub fn status(path: impl AsRef<Path>, deadline: Duration) -> Result<String, ClientError> {
    ask_daemon(path.as_ref(), &ToDaemon::Status, deadline)
}

fn ask_daemon(path: &Path, question: &ToDaemon, deadline: Duration) -> Result<String, ClientError> {
    let deadline = bounded(deadline);
    let failed = |source| ClientError::Connect { path: path.to_owned(), source };
    let mut socket = socket::connect(path).map_err(failed)?;
    socket.send(question).map_err(failed)?;
    let mut document = String::new();
    loop {
        match socket.recv_timeout(deadline).map_err(failed)? {
            Some((ToClient::Status { json, last }, _)) => {
                document.push_str(&json);
                if last {
                    return Ok(document);
                }
            }
            Some((ToClient::Refused { reason, .. }, _)) => return Err(ClientError::Refused { reason }),
            Some(_) => return Err(ClientError::Welcome { what: "another message than its status" }),
            None => return Err(ClientError::Late { after: deadline }),
        }
    }
}

/// Readable when a ticket may have got on; [`Client::acknowledge`] makes it quiet again.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.shared.waiters.ready.as_fd()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if !self.shared.birthplace.is_here() {
            // The threads are the parent's.
            #[cfg(feature = "cuda")]
            if !self.shared.flights.forget() {
                std::mem::forget(self.shared.clone());
            }
            return;
        }
        self.shared.waiters.nudge.raise();
        let threads = std::mem::take(&mut *session::lock(&self.shared.threads));
        threads.iter().for_each(|thread| thread.thread().unpark());
        for thread in self.watcher.take().into_iter().chain(threads) {
            if thread.join().is_err() {
                tracing::error!("a thread of the client had panicked");
            }
        }
        #[cfg(feature = "cuda")]
        self.shared.flights.end();
    }
}
