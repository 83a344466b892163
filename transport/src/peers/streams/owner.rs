//! The owner's end: takes streams in, and answers what is asked on them from what is lent, straight out of the slots.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    StreamOptions,
    crew::Crew,
    guests::{Guest, Guests},
    head::{ASK_BYTES, Answer, Ask, GREETING_BYTES, Greeting, HeadError, Said, Welcome},
    lock,
    socket::{Head, Place, Socket},
    wire::{SealError, Wire},
};
use crate::{
    TransportError,
    peers::{paths::Lent, tls::Credentials},
};

/// Connections that the kernel keeps until they are taken in.
const BACKLOG: i32 = 256;
/// Connections that have not said a word of ours: with more, the next one is closed at once.
const STRANGERS_MAX: usize = 256;
/// Before connections are taken in again, when there are no descriptors or threads left.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// Ends with all its streams and threads when it is dropped.
pub(super) struct Owner {
    shared: Arc<Shared>,
    port: u16,
    accepts: Option<JoinHandle<()>>,
}

struct Shared {
    listener: Socket,
    guests: Arc<Guests>,
    credentials: Option<Credentials>,
    greeting: Duration,
    stalled: Duration,
    crew: Crew,
    open: Mutex<Open>,
}

/// All connections, so that they can be ended.
#[derive(Default)]
struct Open {
    is_ended: bool,
    next: u64,
    wires: HashMap<u64, Arc<Wire>>,
    strangers: usize,
    /// It was said that there are too many, since there were few.
    is_crowded: bool,
}

/// Why a stream ended that did not just hang up.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("no link has the word that it began with: what it wants to read ended, or was another host's")]
    Unknown,
    #[error("receiving or sending")]
    Io(#[from] io::Error),
}

impl Owner {
    pub fn start(address: SocketAddr, options: &StreamOptions, guests: Arc<Guests>) -> Result<Self, TransportError> {
        let listen = || -> io::Result<(Socket, u16)> {
            let listener = Socket::listen(address, BACKLOG)?;
            let port = listener.local_address()?.port();
            Ok((listener, port))
        };
        let (listener, port) = listen().map_err(|source| TransportError::Listen { address, source })?;
        let (crew, open) = (Crew::default(), Mutex::default());
        let (greeting, stalled) = (options.greeting, options.stalled);
        let credentials = options.credentials.clone();
        let shared = Arc::new(Shared { listener, guests, credentials, greeting, stalled, crew, open });
        let theirs = Arc::clone(&shared);
        let accepts = thread::Builder::new().name("lapis-accept".into()).spawn(move || theirs.accept());
        let accepts = accepts.map_err(|source| TransportError::Io { op: "start a thread for streams", source })?;
        Ok(Self { shared, port, accepts: Some(accepts) })
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut open = lock(&self.shared.open);
        open.is_ended = true;
        open.wires.values().for_each(|wire| wire.socket.shut());
        drop(open);
        self.shared.listener.shut();
        if self.accepts.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that takes streams in panicked");
        }
        self.shared.crew.wait();
    }
}

impl Shared {
    fn accept(self: &Arc<Self>) {
        loop {
            let accepted = self.listener.accept();
            if lock(&self.open).is_ended {
                return;
            }
            let started = accepted.and_then(|socket| self.take_in(socket));
            match started {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "a stream of another host was not taken in");
                    thread::sleep(SHORTAGE_PAUSE);
                }
            }
        }
    }

    fn take_in(self: &Arc<Self>, socket: Socket) -> io::Result<()> {
        let wire = Wire::to_reader(socket, self.credentials.as_ref()).map_err(io::Error::other)?;
        let wire = Arc::new(wire);
        let id = {
            let mut open = lock(&self.open);
            if open.is_ended {
                return Ok(());
            }
            if open.strangers >= STRANGERS_MAX {
                tracing::warn!(
                    strangers = open.strangers,
                    "a stream was closed: too many have not said whose they are"
                );
                return Ok(());
            }
            open.next += 1;
            open.strangers += 1;
            let id = open.next;
            open.wires.insert(id, Arc::clone(&wire));
            id
        };
        let connection = Connection { shared: Arc::clone(self), id, wire, is_stranger: true };
        self.crew.spawn(format!("lapis-lend-{id}"), move || connection.run())
    }
}

/// One accepted connection, in its thread.
struct Connection {
    shared: Arc<Shared>,
    id: u64,
    wire: Arc<Wire>,
    is_stranger: bool,
}

impl Connection {
    fn run(mut self) {
        let remote = self.wire.socket.remote_address().map_or_else(|_| "?".to_owned(), |address| address.to_string());
        let ended = match self.greeted() {
            Ok(Some((guest, stream))) => {
                let ended = self.serve(&guest);
                guest.left(stream, &self.wire);
                ended
            }
            Ok(None) => Ok(()),
            Err(ended) => Err(ended),
        };
        match ended {
            Ok(()) => tracing::debug!(remote, "a stream ended"),
            Err(Ended::Io(error)) => tracing::debug!(remote, %error, "a stream ended"),
            Err(reason) => tracing::warn!(remote, %reason, "a stream of blocks was refused"),
        }
    }

    /// Whose stream it is; `None` if it said nothing.
    fn greeted(&mut self) -> Result<Option<(Arc<Guest>, u16)>, Ended> {
        self.wire.socket.set_patience(Some(self.shared.greeting), Some(self.shared.greeting))?;
        self.wire.seal(None)?;
        let mut bytes = [0; GREETING_BYTES];
        if self.wire.receive_head(&mut bytes)? != Head::Came {
            return Ok(None);
        }
        let greeting = match Greeting::decode(&bytes) {
            Ok(greeting) => greeting,
            Err(error) => {
                if let HeadError::Version { .. } = error {
                    self.wire.send(&Welcome::Version(super::head::VERSION).encode(), &[])?;
                }
                return Err(error.into());
            }
        };
        let guest = self.shared.guests.of_word(greeting.word);
        let Some(guest) = guest.filter(|guest| guest.enter(greeting.stream, &self.wire)) else {
            self.wire.send(&Welcome::Unknown.encode(), &[])?;
            return Err(Ended::Unknown);
        };
        self.no_stranger();
        tracing::debug!(link = guest.link.0, stream = greeting.stream, "a peer's stream");
        Ok(Some((guest, greeting.stream)))
    }

    fn serve(&self, guest: &Guest) -> Result<(), Ended> {
        self.wire.socket.set_patience(None, Some(self.shared.stalled))?;
        self.wire.send(&Welcome::In.encode(), &[])?;
        let mut bytes = [0; ASK_BYTES];
        while self.wire.receive_head(&mut bytes)? == Head::Came {
            let ask = Ask::decode(&bytes)?;
            let lent = guest.lent(ask.token);
            let (said, blocks) = judge(&ask, lent.as_deref());
            let answer = Answer { number: ask.number, said }.encode();
            self.wire.send(&answer, &blocks)?;
        }
        Ok(())
    }

    fn no_stranger(&mut self) {
        if std::mem::take(&mut self.is_stranger) {
            let mut open = lock(&self.shared.open);
            open.strangers -= 1;
            open.is_crowded &= open.strangers > STRANGERS_MAX / 2;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.no_stranger();
        lock(&self.shared.open).wires.remove(&self.id);
    }
}

/// What is answered, and the bytes that follow.
fn judge<'a>(ask: &Ask, lent: Option<&'a [Lent]>) -> (Said, Vec<Place<'a>>) {
    let range = (ask.first as usize).checked_add(ask.count as usize).map(|end| ask.first as usize..end);
    let Some(blocks) = lent.zip(range).and_then(|(lent, range)| lent.get(range)) else { return (Said::Gone, vec![]) };
    let bytes = blocks.iter().map(|block| u64::from(block.bytes)).sum();
    if bytes != ask.bytes {
        return (Said::Differs { bytes }, vec![]);
    }
    let place = |lent: &'a Lent| Place { mapping: &lent.mapping, offset: lent.offset, bytes: lent.bytes as usize };
    (Said::Here { bytes }, blocks.iter().map(place).collect())
}
