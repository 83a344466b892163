//! Hosts that do not belong together, and those who are none, are refused by name.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use lapis_transport::peers::{
    links::{LinkEvent, Links},
    message::PeerMessage,
    tcp::TcpLimits,
    tls::{self, IdentityFiles},
};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::{
    certificates::{Authority, DAY, Kind},
    harness::{End, PATIENCE, connect, credentials, encoded, files, hello, is_over, pair, ping, raw},
};

/// Somebody who does as he likes: shows any certificate, or none, and speaks any version that rustls has.
struct Anyone {
    roots: Arc<RootCertStore>,
    shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Anyone {
    fn new(believes: &Authority, shows: Option<&IdentityFiles>) -> Self {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(believes.path("ca.pem")).expect("it was made");
        roots.add(authority).expect("it is one");
        let shown = shows.map(|files| {
            let chain = CertificateDer::pem_file_iter(&files.certificate).expect("it was made");
            let chain = chain.collect::<Result<_, _>>().expect("certificates");
            (chain, PrivateKeyDer::from_pem_file(&files.key).expect("a key"))
        });
        Self { roots: Arc::new(roots), shown }
    }

    fn dial(self, to: SocketAddr, called: &str) -> StreamOwned<ClientConnection, TcpStream> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider's")
            .with_root_certificates(self.roots);
        let config = match self.shown {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).expect("they belong together"),
            None => config.with_no_client_auth(),
        };
        let name = tls::server_name(called).expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        StreamOwned::new(connection, raw(to))
    }

    /// Takes one connection, shakes hands, says hello, and waits for its end.
    fn listen(self) -> (String, JoinHandle<()>) {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots, provider.clone()).build();
        let (chain, key) = self.shown.expect("a server shows something");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider's")
            .with_client_cert_verifier(verifier.expect("there are roots"))
            .with_single_cert(chain, key)
            .expect("they belong together");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("it dials");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let connection = ServerConnection::new(Arc::new(config)).expect("a server");
            let mut stream = StreamOwned::new(connection, stream);
            // Whether it gets so far is the other side's matter.
            let _ = stream.write_all(&encoded(&hello("host-b")));
            while !is_over(&mut stream) {}
        });
        (address, thread)
    }
}

/// What the link that is dialled says, and what is wrong with who is there.
fn dial_refuses(title: &str, believes: &Authority, there: Anyone, words: &str) {
    let mut a = End::new(Some(credentials(believes, "host-a")));
    let (address, thread) = there.listen();
    let link = a.links.dial("host-b", &address);
    let (closed, reason) = a.closed();
    assert!(closed == link && reason.starts_with(&address), "{title}: {reason}");
    assert!(reason.contains(words), "{title}: {reason:?} does not say {words:?}");
    thread.join().expect("it ended");
}

#[test]
fn who_is_dialled_and_is_not_the_one() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let now = SystemTime::now();
    let of = |authority: &Authority, kind: &Kind| Anyone::new(&ours, Some(&authority.make("x", kind)));
    let b = Kind::of("host-b");
    let ended = Kind { begins: now - 9 * DAY, ends: now - DAY, ..b.clone() };
    let not_yet = Kind { begins: now + DAY, ..b.clone() };
    let client_only = Kind { purposes: vec![ExtendedKeyUsagePurpose::ClientAuth], ..b.clone() };
    let ended_words = format!("the other side has shown a certificate that ended on {}", tls::day(now - DAY));
    let cases = [
        ("another authority", of(&theirs, &b), "a certificate that is not signed by this host's authority"),
        ("another host", of(&ours, &Kind::of("host-c")), "that is for \"host-c\", not for \"host-b\""),
        ("a certificate that has ended", of(&ours, &ended), &ended_words),
        ("a certificate that begins later", of(&ours, &not_yet), "is a clock wrong?"),
        ("a certificate of clients", of(&ours, &client_only), "is not for both ends of a connection"),
        ("one of no name", of(&ours, &Kind { names: Vec::new(), ..b.clone() }), "that has no name, not \"host-b\""),
    ];
    for (title, there, words) in cases {
        dial_refuses(title, &ours, there, words);
    }
}

#[test]
fn one_certificate_for_a_whole_domain_is_nobodys() {
    let ours = Authority::new();
    let all = Anyone::new(&ours, Some(&ours.make("x", &Kind::of("*.pool.example"))));
    let mut a = End::new(Some(credentials(&ours, "host-a")));
    let (address, thread) = all.listen();
    a.links.dial("b.pool.example", &address);
    let (_, reason) = a.closed();
    assert!(reason.contains("\"b.pool.example\" has shown the certificate of \"*.pool.example\""), "{reason}");
    thread.join().expect("it ended");
}

#[test]
fn who_dials_and_is_not_known() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let now = SystemTime::now();
    let a = Kind::of("host-a");
    let mut made = 0;
    let mut make = |authority: &Authority, kind: &Kind| {
        made += 1;
        authority.make(&made.to_string(), kind)
    };
    let ended = Kind { begins: now - 9 * DAY, ends: now - DAY, ..a.clone() };
    let server_only = Kind { purposes: vec![ExtendedKeyUsagePurpose::ServerAuth], ..a.clone() };
    let ended_words = format!("the other side has shown a certificate that ended on {}", tls::day(now - DAY));
    let cases = [
        ("no certificate", None, "the other side has shown no certificate"),
        ("another authority", Some(make(&theirs, &a)), "that is not signed by this host's authority"),
        ("a certificate that has ended", Some(make(&ours, &ended)), ended_words.as_str()),
        ("a certificate of servers", Some(make(&ours, &server_only)), "is not for both ends of a connection"),
        ("one of no name", Some(make(&ours, &Kind { names: Vec::new(), ..a.clone() })), "without a DNS name"),
    ];
    let mut b = End::new(Some(credentials(&ours, "host-b")));
    for (title, shown, words) in cases {
        let mut stream = Anyone::new(&ours, shown.as_ref()).dial(b.links.local_addr(), "host-b");
        // Its own side of the handshake is over before the other one judges.
        let _ = stream.write_all(&encoded(&hello("host-a")));
        let (_, reason) = b.closed();
        assert!(reason.starts_with("from 127.0.0.1:") && reason.contains(words), "{title}: {reason:?}");
        assert!(is_over(&mut stream), "{title}: it goes on");
    }
    assert!(b.is_quiet());
}

#[test]
fn two_hosts_of_two_authorities_both_hear_why() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mut a = End::new(Some(credentials(&ours, "host-a")));
    let mut b = End::new(Some(credentials(&theirs, "host-b")));
    a.links.dial("host-b", &b.address());
    let (at_a, at_b) = (a.closed().1, b.closed().1);
    assert!(at_a.contains("the other side has shown a certificate that is not signed by this host's"), "{at_a}");
    assert!(at_b.contains("the other side refuses this host's certificate: it is not signed by that side's"), "{at_b}");

    // One that believes the other, who does not believe it: its own half of the handshake was over.
    let both = theirs.path("both.pem");
    std::fs::write(&both, ours.pem() + &theirs.pem()).expect("our own folder");
    let trusting = IdentityFiles { authority: both, ..files(&ours, "host-a") };
    let mut a = End::new(Some(tls::Credentials::load(&trusting, "host-a").expect("whole")));
    let link = a.links.dial("host-b", &b.address());
    assert!(matches!(a.next(), LinkEvent::Dialled { .. }));
    a.links.send(link, hello("host-a"));
    let (at_a, at_b) = (a.closed().1, b.closed().1);
    assert!(at_a.contains("the other side refuses this host's certificate: it is not signed by that"), "{at_a}");
    assert!(at_b.contains("a certificate that is not signed by this host's authority"), "{at_b}");
}

#[test]
fn who_has_no_certificates_at_a_host_that_asks_for_them() {
    let authority = Authority::new();
    let mut b = End::new(Some(credentials(&authority, "host-b")));
    let mut a = End::new(None);
    let link = a.links.dial("host-b", &b.address());
    assert!(matches!(a.next(), LinkEvent::Dialled { certified: None, .. }));
    a.links.send(link, hello("host-a"));
    let PeerMessage::Refused { reason } = a.message(link) else { panic!("not told why") };
    assert!(reason.contains("this host asks for TLS, and it speaks without TLS: it has no certificates"), "{reason}");
    assert_eq!(a.closed(), (link, "the other side closed the connection".into()));
    assert!(b.closed().1.contains("it speaks without TLS: it has no certificates (peers.ca"));

    let mut stream = raw(b.links.local_addr());
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it is open");
    assert!(b.closed().1.contains("it speaks neither TLS nor the peers' protocol"));
    assert!(is_over(&mut stream));
    drop(raw(b.links.local_addr()));
    assert!(b.closed().1.contains("it closed the connection and said nothing"));
}

#[test]
fn who_asks_for_certificates_where_there_are_none() {
    let authority = Authority::new();
    let mut a = End::new(Some(credentials(&authority, "host-a")));
    let mut b = End::new(None);
    let link = a.links.dial("host-b", &b.address());
    let (closed, reason) = a.closed();
    assert!(closed == link && reason.contains("instead of speaking TLS: it may have no certificates"), "{reason}");
    let (_, reason) = b.closed();
    assert!(reason.contains("the other side speaks TLS, and this host has no certificates (peers.ca)"), "{reason}");
}

#[test]
fn who_says_nothing_is_dropped_and_who_has_spoken_is_not() {
    let authority = Authority::new();
    let soon = Duration::from_millis(200);
    let limits = TcpLimits { connect: soon, first_message: soon, ..TcpLimits::default() };
    let (mut a, mut b, to_b, from_a) = pair(&authority, limits);
    // Nothing at all; half a handshake; a handshake and no more.
    let mut nothing = raw(b.links.local_addr());
    assert!(b.closed().1.contains("no handshake of TLS within 200ms"));
    assert!(is_over(&mut nothing));
    let mut half = raw(b.links.local_addr());
    half.write_all(b"\x16\x03\x01\x02\x00\x01").expect("it is open");
    assert!(b.closed().1.contains("no handshake of TLS within 200ms"));
    assert!(is_over(&mut half));
    let shown = files(&authority, "host-x");
    let mut shaken = Anyone::new(&authority, Some(&shown)).dial(b.links.local_addr(), "host-b");
    while shaken.conn.is_handshaking() {
        shaken.conn.complete_io(&mut shaken.sock).expect("it belongs to them");
    }
    assert!(b.closed().1.contains("it said nothing within 200ms"));
    assert!(is_over(&mut shaken));
    ping(&mut a, to_b, &mut b, from_a, 1);

    let mut plain = End::with(None, limits);
    let mut silent = raw(plain.links.local_addr());
    silent.write_all(b"LPEE").expect("it is open");
    assert!(plain.closed().1.contains("it said nothing within 200ms"));
    assert!(is_over(&mut silent));
}

#[test]
fn who_comes_when_all_places_are_taken_is_told() {
    let limits = TcpLimits { guests_max: 2, ..TcpLimits::default() };
    let (mut a, mut b) = (End::new(None), End::with(None, limits));
    let (first, _) = connect(&mut a, "host-a", &mut b, "host-b");
    let (second, at_b) = connect(&mut a, "host-a", &mut b, "host-b");
    let third = a.links.dial("host-b", &b.address());
    assert!(matches!(a.next(), LinkEvent::Dialled { .. }));
    a.links.send(third, hello("host-a"));
    let words = "this host has 2 connections of others, its most";
    assert_eq!(a.message(third), PeerMessage::Refused { reason: words.into() });
    assert_eq!(a.closed().0, third);
    assert!(b.closed().1.contains(words));
    a.links.hang_up(first);
    b.closed();
    ping(&mut a, second, &mut b, at_b, 1);
    // The place of the first is free once its task has ended, which nobody is told of.
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let link = a.links.dial("host-b", &b.address());
        a.links.send(link, hello("host-a"));
        if let LinkEvent::Accepted { .. } = b.next() {
            break;
        }
        assert!(std::time::Instant::now() < until, "its place is never free");
    }
}
