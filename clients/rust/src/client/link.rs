//! One connection to a daemon: the handshake, the doorbells, the socket.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use lapis_transport::{
    TransportError,
    hello::{ToClient, ToDaemon},
    socket::{self, ClientSocket},
};

use super::ConnectOptions;
#[cfg(feature = "cuda")]
use crate::session::device::{DevicesSaid, GpuOffer};
use crate::{ClientError, Pools, Session, session, session::Welcome};

/// Longest wait for each message of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// An established connection.
#[derive(Debug)]
pub(crate) struct Link {
    socket: Mutex<ClientSocket>,
    /// The same socket, to sleep on without the lock.
    watched: OwnedFd,
    to_daemon: OwnedFd,
    to_client: OwnedFd,
}

impl Link {
    pub fn socket(&self) -> MutexGuard<'_, ClientSocket> {
        session::lock(&self.socket)
    }

    pub fn watched(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }

    /// Readable when the daemon rang, or hung up.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.to_client.as_fd()
    }

    /// Wakes the daemon.
    pub fn ring(&self) {
        if let Err(error) = rustix::io::write(&self.to_daemon, &1u64.to_ne_bytes()) {
            tracing::warn!(%error, "the daemon's doorbell does not ring");
        }
    }

    /// Takes the rings that came. To be called when the doorbell is readable, by the one thread that watches it.
    pub fn quieten(&self) {
        let mut rings = [0u8; 512];
        if let Err(error) = rustix::io::read(&self.to_client, &mut rings) {
            tracing::debug!(%error, "reading the doorbell");
        }
    }
}

/// What a handshake led to.
pub(crate) enum Greeted {
    /// A session of its own.
    New(Arc<Session>, Link),
    /// The former session goes on.
    Resumed(Link),
}

/// Connects, and comes back as the former client if the daemon still knows it. When this returns, all extents that the
/// daemon named are mapped and all pools are open.
pub(crate) fn greet(
    path: &Path,
    options: &ConnectOptions,
    pools: &Pools,
    former: Option<&Session>,
) -> Result<Greeted, ClientError> {
    let failed = |source| ClientError::Connect { path: path.to_owned(), source };
    let mut socket = socket::connect(path).map_err(failed)?;
    let hello = ToDaemon::Hello {
        resume: former.and_then(Session::resume),
        name: options.name.clone(),
        may_put: options.may_put,
        writes_by_dma: options.writes_by_dma,
        gpus: asks_for_gpus(options),
    };
    socket.send(&hello).map_err(failed)?;
    let (message, fds) = receive(&mut socket, path)?;
    let welcome = Welcome::of(message).ok_or(ClientError::Welcome { what: "another message" })?;
    let mut fds = fds.into_iter();
    let mut next = |what| fds.next().ok_or(ClientError::NoDescriptor { what });
    let (table, control) = (next("the table")?, next("the client's memory")?);
    let (to_daemon, to_client) = (next("a doorbell")?, next("a doorbell")?);
    let lifeline = fds.next();

    let fresh = match former {
        Some(former) if welcome.resumed && welcome.client == former.client() => None,
        _ => {
            // Without it the daemon would take a forked child's memory for free.
            let lifeline = Some(lifeline.ok_or(ClientError::NoDescriptor { what: "a lifeline" })?);
            let opened = Session::open(&welcome, table.as_fd(), control.as_fd(), lifeline, options.verify, former)?;
            Some(Arc::new(opened))
        }
    };
    let session = fresh.as_deref().or(former).ok_or(ClientError::Welcome { what: "a resumption" })?;
    take_extents(&mut socket, path, session, welcome.geometry.extents_bytes.len())?;
    #[cfg(feature = "cuda")]
    if asks_for_gpus(options) {
        session.set_devices(take_devices(&mut socket, path)?)?;
    }
    if fresh.is_some() {
        open_pools(&mut socket, path, pools, session)?;
    }
    let watched = socket.as_fd().try_clone_to_owned().map_err(|e| ClientError::io("duplicating the socket", e))?;
    let link = Link { socket: Mutex::new(socket), watched, to_daemon, to_client };
    match fresh {
        Some(fresh) => Ok(Greeted::New(fresh, link)),
        None if session.resumed(&welcome) => Ok(Greeted::Resumed(link)),
        None => Err(ClientError::Welcome { what: "a resumption of another client" }),
    }
}

/// The next message; a refusal is an error.
fn receive(socket: &mut ClientSocket, path: &Path) -> Result<(ToClient, Vec<OwnedFd>), ClientError> {
    let failed = |source| ClientError::Connect { path: path.to_owned(), source };
    let received = socket.recv_timeout(HANDSHAKE).map_err(failed)?;
    match received.ok_or_else(|| failed(TransportError::TimedOut { after: HANDSHAKE }))? {
        (ToClient::Refused { token: 0, reason }, _) => Err(ClientError::Refused { reason }),
        received => Ok(received),
    }
}

fn take_extents(socket: &mut ClientSocket, path: &Path, session: &Session, count: usize) -> Result<(), ClientError> {
    let mut come = 0;
    while come < count {
        let (message, fds) = receive(socket, path)?;
        let ToClient::Extents { first, extents_bytes } = message else {
            return Err(ClientError::Welcome { what: "another message than its extents" });
        };
        session.add_extents(first, &extents_bytes, &fds)?;
        come = come.max(first as usize + extents_bytes.len());
    }
    Ok(())
}

fn asks_for_gpus(options: &ConnectOptions) -> bool {
    cfg!(feature = "cuda") && options.gpus
}

/// What the daemon says of GPUs: the last of what it says by itself.
#[cfg(feature = "cuda")]
fn take_devices(socket: &mut ClientSocket, path: &Path) -> Result<Option<DevicesSaid>, ClientError> {
    use lapis_arena::hbm::Shared;
    use lapis_transport::hello::GpuExtents;

    let (ToClient::Devices { gpus }, fds) = receive(socket, path)? else {
        return Err(ClientError::Welcome { what: "another message than its GPUs" });
    };
    let mut devices = fds.into_iter();
    let (mut offers, mut left): (Vec<GpuOffer>, u32) = (Vec::new(), gpus);
    while left > 0 {
        let (ToClient::Gpu { gpu, last, uuid, extents, .. }, fds) = receive(socket, path)? else {
            return Err(ClientError::Welcome { what: "another message than a GPU" });
        };
        if offers.last().is_none_or(|offer| offer.id != gpu) {
            offers.push(GpuOffer { id: gpu, uuid, extents: Vec::new() });
        }
        let offer = offers.last_mut().expect("just pushed, if there was none");
        match extents {
            GpuExtents::Descriptors(extents) if extents.len() != fds.len() => {
                return Err(ClientError::NoDescriptor { what: "a GPU's memory" });
            }
            GpuExtents::Descriptors(extents) => {
                offer.extents.extend(extents.into_iter().zip(fds.into_iter().map(Shared::Descriptor)));
            }
            GpuExtents::Handles(extents) => {
                offer.extents.extend(extents.into_iter().map(|(bytes, handle)| (bytes, Shared::Ipc(handle))));
            }
        }
        left -= u32::from(last);
    }
    let Some(table) = devices.next() else { return Ok(None) };
    let page = devices.next().ok_or(ClientError::NoDescriptor { what: "the page for slots on GPUs" })?;
    Ok(Some(DevicesSaid { table, page, offers }))
}

/// Opens the pools of the former session in a new one. One that is refused now stays unknown: a miss.
fn open_pools(socket: &mut ClientSocket, path: &Path, pools: &Pools, session: &Session) -> Result<(), ClientError> {
    let failed = |source| ClientError::Connect { path: path.to_owned(), source };
    for (token, pool) in pools.all().into_iter().enumerate() {
        let shape = pool.shape().clone();
        socket.send(&ToDaemon::OpenPool { token: token as u64 + 1, shape }).map_err(failed)?;
        loop {
            match receive(socket, path)? {
                (ToClient::Pool { pool: id, slot_bytes, .. }, _) => session.pool_opened(&pool, id, slot_bytes),
                (ToClient::Refused { reason, .. }, _) => {
                    tracing::warn!(label = pool.shape().label, reason, "the new daemon does not open a pool");
                }
                (ToClient::Extents { first, extents_bytes }, fds) => {
                    session.add_extents(first, &extents_bytes, &fds)?;
                    continue;
                }
                _ => return Err(ClientError::Welcome { what: "another message than a pool" }),
            }
            break;
        }
    }
    Ok(())
}

/// Where a session's link is, while there is one. The last act of a session is to say `Bye` on it, when everything is
/// unmapped.
#[derive(Debug, Default)]
pub(crate) struct Farewell(pub Arc<Mutex<Option<Arc<Link>>>>);

impl Drop for Farewell {
    fn drop(&mut self) {
        if let Some(link) = session::lock(&self.0).take()
            && let Err(error) = link.socket().send(&ToDaemon::Bye)
        {
            tracing::debug!(%error, "the daemon went first");
        }
    }
}
