//! Hosts that belong together meet, know each other by name, and part.

use std::{
    fs,
    net::TcpListener,
    sync::mpsc,
    time::{Duration, Instant},
};

use lapis_transport::peers::{
    links::{LinkEvent, Links},
    message::PeerMessage,
    tcp::{TcpError, TcpLimits, TcpLinks},
    tls::{Credentials, IdentityFiles},
};

use crate::{
    certificates::{Authority, Kind},
    harness::{End, connect, credentials, files, hello, pair, ping},
};

/// One of each kind that the machine has.
fn loopbacks() -> Vec<&'static str> {
    let all = ["127.0.0.1:0", "[::1]:0", "[::]:0"];
    let there: Vec<_> = all.into_iter().filter(|address| TcpListener::bind(address).is_ok()).collect();
    assert!(there.contains(&"127.0.0.1:0"), "every machine has this one");
    there
}

#[test]
fn each_end_knows_the_certified_name_and_the_address_of_the_other() {
    let authority = Authority::new();
    for listen in loopbacks() {
        let mut a = End::at(listen, Some(credentials(&authority, "host-a")), TcpLimits::default());
        let mut b = End::at(listen, Some(credentials(&authority, "host-b")), TcpLimits::default());
        // Who listens at all addresses is reached at one, by either kind.
        let ports = b.links.local_addr().port();
        let called = match listen {
            "[::]:0" => vec![format!("127.0.0.1:{ports}"), format!("[::1]:{ports}"), format!("localhost:{ports}")],
            _ => vec![b.address()],
        };
        for address in called {
            let to_b = a.links.dial("host-b", &address);
            let local = match a.next() {
                LinkEvent::Dialled { link, certified, local, remote } => {
                    assert_eq!((link, certified.as_deref()), (to_b, Some("host-b")), "{address}");
                    assert!(remote.port() == ports && remote.ip().is_loopback(), "{address}: {remote}");
                    local
                }
                event => panic!("{address}: {event:?}"),
            };
            assert!(b.is_quiet(), "nothing is told of who has said nothing");
            a.links.send(to_b, hello("host-a"));
            let from_a = match b.next() {
                LinkEvent::Accepted { link, certified, remote } => {
                    assert_eq!((certified.as_deref(), remote), (Some("host-a"), local), "{address}");
                    link
                }
                event => panic!("{address}: {event:?}"),
            };
            assert_eq!(b.message(from_a), hello("host-a"));
            ping(&mut a, to_b, &mut b, from_a, 7);
            a.links.hang_up(to_b);
            assert_eq!(b.closed(), (from_a, "the other side closed the connection".into()));
        }
    }
}

#[test]
fn who_has_several_names_is_certified_by_the_one_that_it_greets_with() {
    let authority = Authority::new();
    let names = vec!["host-a".into(), "host-a.example".into()];
    let both = authority.make("both", &Kind { names, ..Kind::of("host-a") });
    let mut a = End::new(Some(Credentials::load(&both, "host-a").expect("one of its names")));
    let mut b = End::new(Some(credentials(&authority, "host-b")));
    for (greets_as, certified_as) in [("host-a.example", "host-a.example"), ("host-a", "host-a"), ("host-z", "host-a")]
    {
        let to_b = a.links.dial("host-b", &b.address());
        a.links.send(to_b, hello(greets_as));
        let certified = b.find(|event| match event {
            LinkEvent::Accepted { certified, .. } => Some(certified),
            _ => None,
        });
        assert_eq!(certified.as_deref(), Some(certified_as));
    }
}

#[test]
fn without_certificates_loopback_is_plain_and_nobody_is_certified() {
    let (mut a, mut b) = (End::new(None), End::new(None));
    let to_b = a.links.dial("host-b", &b.address());
    assert!(matches!(a.next(), LinkEvent::Dialled { certified: None, .. }));
    a.links.send(to_b, hello("host-a"));
    assert!(matches!(b.next(), LinkEvent::Accepted { certified: None, .. }));
}

#[test]
fn without_certificates_nothing_beyond_loopback_is_listened_on_or_dialled() {
    for listen in ["0.0.0.0:0", "[::]:0", "10.0.0.1:7450"] {
        let address = listen.parse().expect("an address");
        let wake = std::sync::Arc::new(|| {});
        let error = TcpLinks::start(address, None, TcpLimits::default(), wake).err().expect("it is refused");
        assert!(matches!(error, TcpError::Uncertified { .. }) && error.to_string().contains("lapis cert"), "{error}");
    }
    let mut a = End::new(None);
    for address in ["10.0.0.2:7450", "[fd00::2]:7450", "0.0.0.0:7450"] {
        let link = a.links.dial("host-b", address);
        let (closed, reason) = a.closed();
        assert_eq!(closed, link);
        assert!(reason.starts_with(address) && reason.contains("give peers.ca, peers.certificate and"), "{reason}");
    }
}

#[test]
fn who_cannot_be_reached_is_closed_with_the_reason() {
    let authority = Authority::new();
    let limits = TcpLimits { connect: Duration::from_millis(300), ..TcpLimits::default() };
    let mut a = End::with(Some(credentials(&authority, "host-a")), limits);
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    // Who listens and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().map(|address| (address, silent)).expect("its address");
    let cases = [
        ("host-b", free.to_string(), "Connection refused"),
        ("host-b", silent.0.to_string(), "no handshake of TLS within 300ms"),
        ("host-b", "host-b.invalid:7450".into(), "its name "),
        ("host-b", "nonsense".into(), "its name is not resolved: invalid socket address"),
        ("10.0.0.1", silent.0.to_string(), "cannot be a host's name in a certificate"),
    ];
    for (name, address, words) in cases {
        let link = a.links.dial(name, &address);
        let (closed, reason) = a.closed();
        assert!(closed == link && reason.starts_with(&address) && reason.contains(words), "{reason:?}: {words:?}");
    }
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    let taken = End::new(None);
    let address = taken.links.local_addr();
    let error = TcpLinks::start(address, None, TcpLimits::default(), std::sync::Arc::new(|| {}));
    let error = error.err().expect("two cannot have it");
    assert_eq!(error.to_string(), format!("peers.listen = {address}"));
    assert!(matches!(error, TcpError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse));
}

#[test]
fn what_was_said_before_a_hang_up_arrives_though_the_other_side_talks_on() {
    let authority = Authority::new();
    for secure in [true, false] {
        let host = |name| secure.then(|| credentials(&authority, name));
        let (mut a, mut b) = (End::new(host("host-a")), End::new(host("host-b")));
        let (to_b, from_a) = connect(&mut a, "host-a", &mut b, "host-b");
        // Bytes that nobody reads make a socket take back what it has sent.
        for _ in 0..200 {
            b.links.send(from_a, PeerMessage::Path { said: vec![1; 4096] });
        }
        for number in 0..1000 {
            a.links.send(to_b, PeerMessage::Ping { number });
        }
        a.links.send(to_b, PeerMessage::Refused { reason: "it is late".into() });
        a.links.hang_up(to_b);
        for number in 0..1000 {
            assert_eq!(b.message(from_a), PeerMessage::Ping { number });
        }
        assert_eq!(b.message(from_a), PeerMessage::Refused { reason: "it is late".into() });
        let (closed, reason) = b.closed();
        assert!(closed == from_a && reason.contains("the other side c"), "{reason}");
        assert!(a.is_quiet(), "nothing is heard of a link that was hung up");
    }
}

#[test]
fn a_host_that_ends_says_its_last_words_and_is_soon_gone() {
    let authority = Authority::new();
    let (mut a, mut b, to_b, from_a) = pair(&authority, TcpLimits::default());
    a.links.send(to_b, PeerMessage::Leaving);
    let started = Instant::now();
    drop(a);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(b.message(from_a), PeerMessage::Leaving);
    assert_eq!(b.closed().0, from_a);
}

#[test]
fn new_certificates_count_for_new_connections_and_bad_ones_change_nothing() {
    let (old, new) = (Authority::new(), Authority::new());
    let of_a = credentials(&old, "host-a");
    let of_b = credentials(&old, "host-b");
    let (mut a, mut b) = (End::new(Some(of_a.clone())), End::new(Some(of_b.clone())));
    let (first, first_at_b) = connect(&mut a, "host-a", &mut b, "host-b");

    // Bad ones: another host's, and a key that was cut short.
    let error = of_b.reload(&files(&new, "host-c")).expect_err("it is another host's").to_string();
    assert!(error.contains("is of \"host-c\", not of \"host-b\""), "{error}");
    let next = files(&new, "host-b");
    let key = fs::read(&next.key).expect("it was made");
    fs::write(&next.key, &key[..key.len() / 2]).expect("our own folder");
    let error = of_b.reload(&next).expect_err("a key in halves").to_string();
    assert!(error.contains("host-b.key"), "{error}");
    let (again, again_at_b) = connect(&mut a, "host-a", &mut b, "host-b");

    // Good ones, at one end: the other believes another authority.
    fs::write(&next.key, &key).expect("our own folder");
    of_b.reload(&next).expect("whole now");
    let link = a.links.dial("host-b", &b.address());
    let (closed, reason) = a.closed();
    assert!(closed == link && reason.contains("is not signed by this host's authority"), "{reason}");
    assert!(b.closed().1.contains("refuses this host's certificate"));

    of_a.reload(&files(&new, "host-a")).expect("whole");
    let (last, last_at_b) = connect(&mut a, "host-a", &mut b, "host-b");
    for (number, (to_b, from_a)) in
        [(first, first_at_b), (again, again_at_b), (last, last_at_b)].into_iter().enumerate()
    {
        ping(&mut a, to_b, &mut b, from_a, number as u64);
    }
}

#[test]
fn while_an_authority_is_replaced_no_connection_is_refused() {
    let (old, new) = (Authority::new(), Authority::new());
    let both = new.path("both.pem");
    fs::write(&both, old.pem() + &new.pem()).expect("our own folder");
    let trusting = |files: IdentityFiles| IdentityFiles { authority: both.clone(), ..files };
    // Every step of the way that the manual tells: all believe both; then one after the other has a new certificate.
    let steps = [(files(&old, "host-a"), files(&old, "host-b")), (files(&new, "host-a"), files(&old, "host-b"))];
    for (of_a, of_b) in steps {
        let of_a = Credentials::load(&trusting(of_a), "host-a").expect("whole");
        let of_b = Credentials::load(&trusting(of_b), "host-b").expect("whole");
        let (mut a, mut b) = (End::new(Some(of_a)), End::new(Some(of_b)));
        connect(&mut a, "host-a", &mut b, "host-b");
        connect(&mut b, "host-b", &mut a, "host-a");
    }
}

#[test]
fn one_is_woken_once_until_all_is_taken() {
    let (wake, woken) = mpsc::channel();
    let wake = std::sync::Arc::new(move || {
        let _ = wake.send(());
    });
    let address = "127.0.0.1:0".parse().expect("an address");
    let mut a = TcpLinks::start(address, None, TcpLimits::default(), wake).expect("a free port");
    let mut b = End::new(None);
    let link = a.dial("host-b", &b.address());
    woken.recv().expect("it is dialled");
    a.send(link, hello("host-a"));
    let LinkEvent::Accepted { link: from_a, .. } = b.next() else { panic!("it said hello") };
    assert_eq!(b.message(from_a), hello("host-a"));
    assert!(woken.try_recv().is_err(), "not again, as nothing was taken");
    assert!(matches!(a.poll(), Some(LinkEvent::Dialled { .. })));
    assert!(a.poll().is_none());
    drop(b);
    woken.recv().expect("it is closed");
    assert!(matches!(a.poll(), Some(LinkEvent::Closed { .. })));
}
