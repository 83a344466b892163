//! Connections that other hosts make.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    events::Told,
    link::{self, Came, Ending, Reader, Writer},
    shared::Shared,
    socket::{self, Stream},
};
use crate::peers::{
    message::{MAGIC, PeerMessage},
    tls,
};

/// Largest first message with its head, bytes: a hello with the longest names.
const FIRST_BYTES_MAX: usize = 4096;
/// The first byte of a handshake of TLS.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long nothing is accepted where the kernel has no more for it: of descriptors, of memory.
const PAUSE: Duration = Duration::from_millis(100);

const UNENCRYPTED: &str = "it speaks without TLS: it has no certificates (peers.ca, peers.certificate, peers.key)";

/// Accepts for ever.
pub(super) async fn serve(shared: &Arc<Shared>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let (id, remote) = (shared.link().0, socket::canonical(remote));
                if let Some(cut) = shared.newcomers.make_room(remote.ip()) {
                    shared.refuse(cut, "it said nothing while too many others came");
                }
                // It runs only when this task waits, and so is known when it ends.
                let task = tokio::spawn(newcomer(shared.clone(), id, stream, remote));
                shared.newcomers.add(id, remote, task.abort_handle());
            }
            Err(error) => {
                tracing::warn!(%error, "no connection of another host can be accepted now");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Leaves its place among the newcomers, whatever ends it.
struct Place<'a>(&'a Shared, u64);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.newcomers.remove(self.1);
    }
}

/// The whole life of a connection that another host has made.
async fn newcomer(shared: Arc<Shared>, id: u64, stream: TcpStream, remote: SocketAddr) {
    let place = Place(&shared, id);
    let greeted = match greet(&shared, stream).await {
        Ok(greeted) => greeted,
        Err(reason) => return shared.refuse(remote, &reason),
    };
    drop(place);
    welcome(&shared, greeted, remote).await;
}

struct Greeted {
    reader: Reader,
    writer: Writer,
    certified: Option<String>,
    first: Came,
}

async fn greet(shared: &Shared, stream: TcpStream) -> Result<Greeted, String> {
    let limits = &shared.limits;
    socket::prepare(&stream, limits.stalled).map_err(|error| error.to_string())?;
    let shaken = timeout(limits.connect, shake(shared, stream)).await;
    let (stream, names) = shaken.map_err(|_| format!("no handshake of TLS within {:?}", limits.connect))??;
    let (mut reader, mut writer) = link::split(stream);
    let first = timeout(limits.first_message, reader.message(FIRST_BYTES_MAX)).await;
    match first.map_err(|_| format!("it said nothing within {:?}", limits.first_message))? {
        Ok(first) => {
            let certified = names.map(|names| certified(names, &first.message)).transpose()?;
            Ok(Greeted { reader, writer, certified, first })
        }
        Err(unread) => {
            if let Some(reason) = unread.answer() {
                link::refuse(&mut reader, &mut writer, reason, limits.flush).await;
            }
            Err(unread.reason())
        }
    }
}

/// Encrypted, and the names in its certificate; plain and none where this host has no certificates.
async fn shake(shared: &Shared, stream: TcpStream) -> Result<(Stream, Option<Vec<String>>), String> {
    let Some(credentials) = &shared.credentials else { return Ok((Box::new(stream), None)) };
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) => return Err("it closed the connection and said nothing".into()),
        Ok(_) if first[0] == TLS_HANDSHAKE => {}
        Ok(_) => {
            if first[0] == MAGIC.to_le_bytes()[0] {
                let mut bytes = Vec::new();
                let reason = format!("this host asks for TLS, and {UNENCRYPTED}");
                PeerMessage::Refused { reason }.encode(&mut bytes);
                socket::part(stream, &bytes, shared.limits.flush).await;
                return Err(UNENCRYPTED.into());
            }
            return Err("it speaks neither TLS nor the peers' protocol".into());
        }
        Err(error) => return Err(error.to_string()),
    }
    let acceptor = TlsAcceptor::from(credentials.identity().server().clone());
    match acceptor.accept(stream).into_fallible().await {
        Ok(stream) => {
            let names = tls::peer_names(stream.get_ref().1);
            Ok((Box::new(stream), Some(names)))
        }
        Err((error, stream)) => {
            // What TLS has said last is the reason.
            socket::part(stream, &[], shared.limits.flush).await;
            Err(unshaken(&error))
        }
    }
}

fn unshaken(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the other side broke the handshake of TLS off".into()
        }
        _ => tls::reason(error),
    }
}

/// The name by which it greets, if its certificate has that; else the first of those that it has, and whoever judges the
/// greeting sees that they differ.
fn certified(names: Vec<String>, first: &PeerMessage) -> Result<String, String> {
    let greets_as = match first {
        PeerMessage::Hello(hello) => hello.host.as_str(),
        _ => "",
    };
    let name = names.iter().find(|name| name.eq_ignore_ascii_case(greets_as)).map(|_| greets_as.to_owned());
    name.or_else(|| names.into_iter().next()).ok_or_else(|| "it has shown a certificate without a DNS name".into())
}

/// One of the guests while it lives.
struct Seat<'a>(&'a Shared);

impl<'a> Seat<'a> {
    fn take(shared: &'a Shared) -> Option<Self> {
        let seat = Self(shared);
        (shared.guests.fetch_add(1, Ordering::SeqCst) < shared.limits.guests_max).then_some(seat)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.guests.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn welcome(shared: &Arc<Shared>, greeted: Greeted, remote: SocketAddr) {
    let _task = shared.task();
    let Greeted { mut reader, mut writer, certified, first } = greeted;
    let Some(_seat) = Seat::take(shared) else {
        let reason = format!("this host has {} connections of others, its most", shared.limits.guests_max);
        shared.refuse(remote, &reason);
        return link::refuse(&mut reader, &mut writer, reason, shared.limits.flush).await;
    };
    let link = shared.link();
    let (handle, end) = link::open();
    let mut ending = Ending::new(shared, link);
    shared.events.tell(Told::Accepted { link, certified, remote, handle });
    shared.events.tell(Told::Message { link, message: first.message, room: first.room });
    link::run(shared, &mut ending, reader, writer, end).await;
}
