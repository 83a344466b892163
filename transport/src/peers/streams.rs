//! Blocks over TCP: an owner answers from the slots that it has lent, a reader asks on several streams and receives
//! straight into its slots. No copy in user space, at either end, unless streams are encrypted (`wire`).
//!
//! Threads, one for each stream at each end, which block in the kernel; an ask is sent by the thread that submits a fetch,
//! so that a fetch wakes one thread at the owner, one here, and whoever polls.
//!
//! Invariant: a slot is written by the thread of one stream only, and that thread is done with it when it reports.
//! Invariant: every fetch ends once, soon after its deadline at the latest, whatever the peer does.

mod crew;
mod fetching;
mod guests;
pub mod head;
mod late;
mod owner;
mod reader;
#[allow(unsafe_code, reason = "the kernel is handed addresses of shared memory, to which no reference may exist")]
mod socket;
mod spread;
mod wire;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use self::{
    crew::Crew,
    fetching::{Fetching, Run},
    guests::Guests,
    head::STREAMS_MAX,
    late::Late,
    owner::Owner,
    reader::Peer,
    spread::{Part, SpreadOptions},
};
use super::{
    links::LinkId,
    paths::{Came, Fetch, FromPaths, PathKind, Paths, ToPaths},
    tls::Credentials,
};
use crate::TransportError;

#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Where other hosts begin streams; port 0: any. `None`: nobody reads from here.
    pub listen: Option<SocketAddr>,
    /// Streams are encrypted, both ways, by hosts that show certificates; `None`: they are not. Both ends must have it so.
    pub credentials: Option<Credentials>,
    /// Connections to each peer, 1 to [`STREAMS_MAX`]; opened when they are needed.
    pub streams: usize,
    /// Bytes of a fetch that are worth a stream of their own.
    pub part_bytes_min: u64,
    /// A fetch that is larger than this on each stream goes in turns: all streams end together, and what is on its way
    /// stays in caches.
    pub part_bytes_max: u64,
    /// A stream on which nothing was asked for so long is closed.
    pub idle: Duration,
    /// For a connection to be made and greeted, at either end.
    pub greeting: Duration,
    /// A reader that takes nothing for so long is hung up on.
    pub stalled: Duration,
    /// Before a peer that failed is connected to again: the first pause, doubled up to the last.
    pub pause_min: Duration,
    pub pause_max: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            listen: None,
            credentials: None,
            streams: 4,
            part_bytes_min: 512 << 10,
            part_bytes_max: 2 << 20,
            idle: Duration::from_secs(60),
            greeting: Duration::from_secs(2),
            stalled: Duration::from_secs(30),
            pause_min: Duration::from_millis(100),
            pause_max: Duration::from_secs(10),
        }
    }
}

/// No fetch takes longer, whatever its deadline.
const WITHIN_MAX: Duration = Duration::from_secs(3600);

/// Called from any thread when there is something to poll.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// See the module's head. Dropping it ends all streams and waits for their threads: nothing is written afterwards.
pub struct TcpPaths {
    options: StreamOptions,
    events: Arc<Events>,
    guests: Arc<Guests>,
    owner: Option<Owner>,
    peers: BTreeMap<LinkId, Arc<Peer>>,
    late: Late,
    /// Of all peers, also of those that are gone.
    crew: Crew,
}

impl TcpPaths {
    /// # Panics
    /// If `streams` is out of its range.
    pub fn new(options: StreamOptions, wake: Wake) -> Result<Self, TransportError> {
        assert!((1..=usize::from(STREAMS_MAX)).contains(&options.streams), "{} streams to a peer", options.streams);
        let guests = Arc::new(Guests::default());
        let owner = options.listen.map(|at| Owner::start(at, &options, Arc::clone(&guests))).transpose()?;
        let late = Late::start().map_err(|source| TransportError::Io { op: "start a thread for deadlines", source })?;
        let events = Arc::new(Events { queue: Mutex::default(), wake });
        Ok(Self { options, events, guests, owner, peers: BTreeMap::new(), late, crew: Crew::default() })
    }

    fn fetch(&mut self, fetch: Fetch) {
        let Some(peer) = self.peers.get(&fetch.link).filter(|_| !fetch.blocks.is_empty()) else {
            let came = vec![Came::Not; fetch.blocks.len()];
            return self.events.push(FromPaths::Fetched { op: fetch.op, came, by: PathKind::Tcp });
        };
        let deadline = Instant::now() + fetch.within.min(WITHIN_MAX);
        peer.fetch(fetch, deadline);
        self.late.by(deadline);
    }
}

impl Paths for TcpPaths {
    fn submit(&mut self, job: ToPaths) {
        match job {
            // The kernel needs no registration, and TCP's two ends nothing from each other but what streams say.
            ToPaths::Memory { .. } | ToPaths::Table { .. } | ToPaths::Heard { .. } => {}
            ToPaths::Look(look) => self.events.push(FromPaths::Looked { op: look.op, found: None }),
            ToPaths::Guest { link, word, .. } => self.guests.add(link, word),
            ToPaths::GuestGone { link } => self.guests.remove(link),
            ToPaths::Lend { link, token, blocks } => self.guests.lend(link, token, blocks),
            ToPaths::Unlend { link, token } => self.guests.unlend(link, token),
            ToPaths::Peer { link, host, address, word, .. } => {
                let peer =
                    Peer::new(link, host, address, word, &self.options, Arc::clone(&self.events), self.crew.clone());
                self.late.watch(Arc::clone(&peer));
                if let Some(former) = self.peers.insert(link, peer) {
                    self.late.forget(&former);
                    former.end();
                }
            }
            ToPaths::PeerGone { link } => {
                if let Some(peer) = self.peers.remove(&link) {
                    self.late.forget(&peer);
                    peer.end();
                }
            }
            ToPaths::Fetch(fetch) => self.fetch(fetch),
        }
    }

    fn poll(&mut self) -> Option<FromPaths> {
        lock(&self.events.queue).pop_front()
    }

    fn data_port(&self) -> u16 {
        self.owner.as_ref().map_or(0, Owner::port)
    }
}

impl Drop for TcpPaths {
    fn drop(&mut self) {
        for peer in self.peers.values() {
            peer.end();
        }
        self.crew.wait();
    }
}

/// What is to be polled.
struct Events {
    queue: Mutex<VecDeque<FromPaths>>,
    wake: Wake,
}

impl Events {
    fn push(&self, event: FromPaths) {
        lock(&self.queue).push_back(event);
        (self.wake)();
    }
}

/// A thread that panicked left nothing half done that others rely on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
