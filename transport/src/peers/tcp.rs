//! Control connections between hosts over TCP, with TLS 1.3 and certificates on both sides beyond loopback: the real
//! [`Links`], one thread for all of them.
//!
//! Invariant: no call here waits. What a peer does to one connection, however slow, silent or many it is, holds up no
//! other one: each has its own task, a bound on what waits either way, and deadlines.
//! Invariant: whoever has not said a first whole message counts for nothing but a place among `newcomers_max`, of which
//! the address that has most gives one up when they are short.

mod dial;
mod events;
mod guest;
mod link;
mod newcomers;
mod shared;
mod socket;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};

use self::{
    events::Told,
    link::{LinkHandle, Stop},
    shared::Shared,
};
use super::{
    links::{LinkEvent, LinkId, Links},
    message::PeerMessage,
    tls::Credentials,
};

/// With less than this waiting on it, a link takes more.
const ROOM_BYTES: usize = 1 << 20;
/// With more than this waiting on it, whoever should read it does not.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// How long and how much is borne with.
#[derive(Clone, Copy, Debug)]
pub struct TcpLimits {
    /// To resolve a name, connect and shake hands; at the other side to shake hands.
    pub connect: Duration,
    /// From then until the first message of whoever has made the connection.
    pub first_message: Duration,
    /// Without a byte of what waits being taken.
    pub stalled: Duration,
    /// For what waits when a link is hung up, and for the other side to hear it.
    pub flush: Duration,
    /// Connections of others that have not said a first message.
    pub newcomers_max: usize,
    /// Connections of others that have: a link for each group of each peer.
    pub guests_max: usize,
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            first_message: Duration::from_secs(2),
            stalled: Duration::from_secs(10),
            flush: Duration::from_secs(1),
            newcomers_max: 256,
            guests_max: 16_384,
        }
    }
}

/// Why no connections can be served.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    #[error(
        "{address} can be reached by other hosts, and this one has no certificates (peers.ca): `lapis cert` makes them"
    )]
    Uncertified { address: SocketAddr },
    #[error("peers.listen = {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("a thread for connections to other hosts")]
    Thread { source: io::Error },
}

/// The real [`Links`]. Whoever was woken calls `poll` until it gives `None`; nobody is woken again before. Beside what
/// the trait says, `Closed` of a link of which nothing was heard before is a connection of another host that was refused:
/// it is in the log already.
pub struct TcpLinks {
    shared: Arc<Shared>,
    runtime: Handle,
    links: HashMap<LinkId, LinkHandle>,
    local: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TcpLinks {
    /// Listens. `wake` is called by another thread when there is something to poll. Without credentials all is plain, and
    /// both ends must be loopback addresses.
    pub fn start(
        listen: SocketAddr,
        credentials: Option<Credentials>,
        limits: TcpLimits,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Self, TcpError> {
        if credentials.is_none() && !socket::is_loopback(listen) {
            return Err(TcpError::Uncertified { address: listen });
        }
        let thread = |source| TcpError::Thread { source };
        // Names are resolved by threads of their own: few, as a resolver that does not answer holds one for long.
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(8).build().map_err(thread)?;
        let handle = runtime.handle().clone();
        let listener = {
            let _inside = handle.enter();
            socket::listen(listen).map_err(|source| TcpError::Listen { address: listen, source })?
        };
        let local = listener.local_addr().map_err(|source| TcpError::Listen { address: listen, source })?;
        let shared = Arc::new(Shared::new(credentials, limits, wake));
        let (stop, stopped) = oneshot::channel();
        let serving = shared.clone();
        let thread = std::thread::Builder::new()
            .name("lapis-links".into())
            .spawn(move || run(runtime, serving, listener, stopped))
            .map_err(thread)?;
        let (stop, thread) = (Some(stop), Some(thread));
        Ok(Self { shared, runtime: handle, links: HashMap::new(), local, stop, thread })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// How many connections of others were refused, whyever.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    fn took(&mut self, told: Told) -> Option<LinkEvent> {
        match told {
            Told::Accepted { link, certified, remote, handle } => {
                self.links.insert(link, handle);
                Some(LinkEvent::Accepted { link, certified, remote })
            }
            Told::Dialled { link, certified, local, remote } => {
                self.links.contains_key(&link).then_some(LinkEvent::Dialled { link, certified, local, remote })
            }
            // What a message had of its link's bound is free again.
            Told::Message { link, message, room: _room } => {
                self.links.contains_key(&link).then_some(LinkEvent::Message { link, message })
            }
            Told::Room { link } => self.links.contains_key(&link).then_some(LinkEvent::Room { link }),
            Told::Closed { link, reason } => self.links.remove(&link).map(|_| LinkEvent::Closed { link, reason }),
            Told::Refused { link, reason } => Some(LinkEvent::Closed { link, reason }),
        }
    }
}

impl Links for TcpLinks {
    fn dial(&mut self, name: &str, address: &str) -> LinkId {
        let link = self.shared.link();
        let (handle, end) = link::open();
        self.links.insert(link, handle);
        self.runtime.spawn(dial::dial(self.shared.clone(), link, end, name.into(), address.into()));
        link
    }

    fn send(&mut self, link: LinkId, message: PeerMessage) {
        let Some(handle) = self.links.get_mut(&link) else { return };
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        if handle.flow.waiting() + bytes.len() > WAITING_BYTES_MAX {
            return handle.stop(Stop::Overrun);
        }
        handle.send(bytes);
    }

    fn has_room(&mut self, link: LinkId) -> bool {
        self.links.get(&link).is_none_or(|handle| handle.flow.has_room())
    }

    fn hang_up(&mut self, link: LinkId) {
        // Its task sees that nobody holds it any more.
        self.links.remove(&link);
    }

    fn poll(&mut self) -> Option<LinkEvent> {
        loop {
            let told = self.shared.events.take()?;
            if let Some(event) = self.took(told) {
                return Some(event);
            }
        }
    }
}

impl Drop for TcpLinks {
    /// Hangs up on everybody, which takes `flush` at most.
    fn drop(&mut self) {
        self.links.clear();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of connections to other hosts has panicked");
        }
    }
}

fn run(runtime: Runtime, shared: Arc<Shared>, listener: tokio::net::TcpListener, stopped: oneshot::Receiver<()>) {
    runtime.block_on(async {
        tokio::select! {
            () = guest::serve(&shared, listener) => {}
            _ = stopped => {}
        }
        shared.newcomers.clear();
        // Those that were accepted and never polled are held by what nobody takes any more.
        while shared.events.take().is_some() {}
        let wait = 2 * shared.limits.flush;
        if tokio::time::timeout(wait, shared.all_ended()).await.is_err() {
            tracing::debug!("some connections to other hosts were cut as they did not end");
        }
    });
    // A name that is being resolved is not waited for.
    runtime.shutdown_background();
}
