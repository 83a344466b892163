//! Hosts of a test, and what the other side may be instead of one.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use lapis_transport::peers::{
    links::{LinkEvent, LinkId, Links},
    message::{HEAD_BYTES, PeerHello, PeerMessage, head},
    tcp::{TcpLimits, TcpLinks},
    tls::{Credentials, IdentityFiles},
};

use crate::certificates::{Authority, Kind};

/// What does not come within this does not come: longer than any limit of a test, whatever the machine is busy with.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct End {
    pub links: TcpLinks,
    woken: mpsc::Receiver<()>,
}

impl End {
    pub fn new(credentials: Option<Credentials>) -> Self {
        Self::with(credentials, TcpLimits::default())
    }

    pub fn with(credentials: Option<Credentials>, limits: TcpLimits) -> Self {
        Self::at("127.0.0.1:0", credentials, limits)
    }

    pub fn at(listen: &str, credentials: Option<Credentials>, limits: TcpLimits) -> Self {
        let (wake, woken) = mpsc::channel();
        let wake = Arc::new(move || {
            let _ = wake.send(());
        });
        let links = TcpLinks::start(listen.parse().expect("an address"), credentials, limits, wake);
        Self { links: links.expect("a free port"), woken }
    }

    pub fn address(&self) -> String {
        self.links.local_addr().to_string()
    }

    /// The next event, for which it waits until it is woken.
    pub fn next(&mut self) -> LinkEvent {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.links.poll() {
                return event;
            }
            let left = until.saturating_duration_since(Instant::now());
            self.woken.recv_timeout(left).expect("nothing happened for too long");
        }
    }

    /// What the events give first, of which the others may be anything.
    pub fn find<T>(&mut self, mut find: impl FnMut(LinkEvent) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < until, "it did not come");
            if let Some(found) = find(self.next()) {
                return found;
            }
        }
    }

    pub fn message(&mut self, of: LinkId) -> PeerMessage {
        match self.next() {
            LinkEvent::Message { link, message } if link == of => message,
            event => panic!("a message of {of:?} was awaited, not {event:?}"),
        }
    }

    /// Why the next event ends a link.
    pub fn closed(&mut self) -> (LinkId, String) {
        match self.next() {
            LinkEvent::Closed { link, reason } => (link, reason),
            event => panic!("an end was awaited, not {event:?}"),
        }
    }

    /// Nothing happens until the other end has answered once more, on a link that is there.
    pub fn is_quiet(&mut self) -> bool {
        self.links.poll().is_none()
    }
}

pub fn hello(host: &str) -> PeerMessage {
    let (host, group) = (host.into(), "default".into());
    PeerMessage::Hello(PeerHello { host, group, boot: 1, digest_bytes_max: 1, data_port: 2, data_word: 3 })
}

/// Of this authority, for a host of this name.
pub fn credentials(authority: &Authority, host: &str) -> Credentials {
    Credentials::load(&files(authority, host), host).expect("it was made for it")
}

pub fn files(authority: &Authority, host: &str) -> IdentityFiles {
    authority.make(host, &Kind::of(host))
}

/// Dials from `a`, which says hello as `as_host`; the links at both ends.
pub fn connect(a: &mut End, as_host: &str, b: &mut End, called: &str) -> (LinkId, LinkId) {
    let to_b = a.links.dial(called, &b.address());
    match a.next() {
        LinkEvent::Dialled { link, .. } if link == to_b => {}
        event => panic!("not dialled: {event:?}"),
    }
    a.links.send(to_b, hello(as_host));
    let from_a = match b.next() {
        LinkEvent::Accepted { link, .. } => link,
        event => panic!("not accepted: {event:?}"),
    };
    assert_eq!(b.message(from_a), hello(as_host));
    (to_b, from_a)
}

/// A pair of hosts with certificates, and their links.
pub fn pair(authority: &Authority, limits: TcpLimits) -> (End, End, LinkId, LinkId) {
    let mut a = End::with(Some(credentials(authority, "host-a")), limits);
    let mut b = End::with(Some(credentials(authority, "host-b")), limits);
    let (to_b, from_a) = connect(&mut a, "host-a", &mut b, "host-b");
    (a, b, to_b, from_a)
}

/// A question is answered on the link, both ways over the wire.
pub fn ping(a: &mut End, to_b: LinkId, b: &mut End, from_a: LinkId, number: u64) {
    a.links.send(to_b, PeerMessage::Ping { number });
    assert_eq!(b.message(from_a), PeerMessage::Ping { number });
    b.links.send(from_a, PeerMessage::Pong { number });
    assert_eq!(a.message(to_b), PeerMessage::Pong { number });
}

/// Somebody with a socket of his own.
pub fn raw(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

pub fn encoded(message: &PeerMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

/// The next message of whoever is at the other side of a plain stream.
pub fn read_message(stream: &mut impl Read) -> PeerMessage {
    let mut bytes = [0; HEAD_BYTES];
    stream.read_exact(&mut bytes).expect("a head");
    let (kind, length) = head(&bytes).expect("a head");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    PeerMessage::decode(kind, &body).expect("a message")
}

/// Whether nothing more comes: it was closed, or cut.
pub fn is_over(stream: &mut impl Read) -> bool {
    match stream.read(&mut [0]) {
        Ok(bytes) => bytes == 0,
        Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
    }
}

/// A stream on which a hello was taken, and the link of it at `end`.
pub fn greeted(end: &mut End) -> (TcpStream, LinkId) {
    let mut stream = raw(end.links.local_addr());
    stream.write_all(&encoded(&hello("host-x"))).expect("it is open");
    let link = match end.next() {
        LinkEvent::Accepted { link, certified: None, .. } => link,
        event => panic!("not accepted: {event:?}"),
    };
    assert_eq!(end.message(link), hello("host-x"));
    (stream, link)
}
