//! What waits is bounded, and a link that stands still holds up no other one.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lapis_transport::peers::{
    links::{LinkEvent, LinkId, Links},
    message::PeerMessage,
    tcp::TcpLimits,
};
use rustix::net::sockopt;

use crate::{
    certificates::Authority,
    harness::{End, PATIENCE, connect, credentials, is_over, ping, read_message},
};

/// 16 KiB, the most that paths say at once.
const SAID: usize = 16 << 10;
/// Far more of these than sockets with a small buffer take: 20 MiB.
const MANY: u64 = 1280;

fn long(number: u64) -> PeerMessage {
    let mut said = number.to_le_bytes().to_vec();
    said.resize(SAID, 1);
    PeerMessage::Path { said }
}

/// A link that is dialled to somebody who does not read yet, and has a small buffer.
fn to_idler(end: &mut End) -> (LinkId, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    sockopt::set_socket_recv_buffer_size(&listener, 64 << 10).expect("a socket");
    let link = end.links.dial("host-b", &listener.local_addr().expect("its address").to_string());
    let (stream, _) = listener.accept().expect("it dials");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    assert!(matches!(end.next(), LinkEvent::Dialled { .. }));
    (link, stream)
}

fn send_many(end: &mut End, link: LinkId) {
    (0..MANY).for_each(|number| end.links.send(link, long(number)));
}

#[test]
fn a_peer_that_stops_reading_leaves_no_room_until_it_reads_again() {
    let mut end = End::new(None);
    let (link, mut stream) = to_idler(&mut end);
    assert!(end.links.has_room(link), "nothing waits");
    send_many(&mut end, link);
    assert!(!end.links.has_room(link), "it does not read");
    assert!(end.is_quiet(), "and so there is no room");
    for number in 0..MANY {
        assert_eq!(read_message(&mut stream), long(number));
    }
    assert!(matches!(end.next(), LinkEvent::Room { link: of } if of == link));
    assert!(end.links.has_room(link) && end.is_quiet(), "told once");
    // Nobody asks: nobody is told.
    send_many(&mut end, link);
    for number in 0..MANY {
        assert_eq!(read_message(&mut stream), long(number));
    }
    stream.write_all(&crate::harness::encoded(&PeerMessage::Leaving)).expect("it is open");
    assert_eq!(end.message(link), PeerMessage::Leaving);
}

#[test]
fn a_peer_that_takes_nothing_for_too_long_is_given_up() {
    let limits = TcpLimits { stalled: Duration::from_millis(300), ..TcpLimits::default() };
    let mut end = End::with(None, limits);
    let (link, mut stream) = to_idler(&mut end);
    send_many(&mut end, link);
    let (closed, reason) = end.closed();
    // The kernel has the same limit: either says it.
    let words = ["the other side took nothing for 300ms", "the other side gives no sign any more"];
    assert!(closed == link && words.contains(&reason.as_str()), "{reason}");
    let mut rest = Vec::new();
    // Cut off, whole or with a reset.
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < MANY as usize * SAID);
}

#[test]
fn more_than_any_reader_leaves_waiting_ends_a_link() {
    let mut end = End::new(None);
    let (link, mut stream) = to_idler(&mut end);
    (0..4).for_each(|_| send_many(&mut end, link));
    let (closed, reason) = end.closed();
    assert!(closed == link && reason.ends_with("bytes wait for the other side, which reads too slowly"), "{reason}");
    let bytes: usize = reason.split(' ').next().and_then(|bytes| bytes.parse().ok()).expect("a number");
    assert!(bytes <= 64 << 20, "{bytes} bytes waited");
    let _ = stream.read_to_end(&mut Vec::new());
    assert!(is_over(&mut stream));
}

#[test]
fn what_waits_when_a_link_is_hung_up_is_sent_to_who_reads() {
    let mut end = End::with(None, TcpLimits { flush: PATIENCE, ..TcpLimits::default() });
    let (link, mut stream) = to_idler(&mut end);
    send_many(&mut end, link);
    end.links.hang_up(link);
    for number in 0..MANY {
        assert_eq!(read_message(&mut stream), long(number));
    }
    assert!(is_over(&mut stream) && end.is_quiet());
}

#[test]
fn what_waits_when_a_link_is_hung_up_is_given_up_soon() {
    let mut end = End::with(None, TcpLimits { flush: Duration::from_millis(100), ..TcpLimits::default() });
    let (link, mut stream) = to_idler(&mut end);
    send_many(&mut end, link);
    end.links.hang_up(link);
    let started = Instant::now();
    drop(end);
    assert!(started.elapsed() < PATIENCE / 3, "{:?}", started.elapsed());
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < MANY as usize * SAID, "it was not waited for");
}

/// Carries bytes both ways until it is frozen: then it neither reads nor closes, as a host that lost its power.
struct Proxy {
    address: SocketAddr,
    is_frozen: Arc<AtomicBool>,
}

impl Proxy {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        sockopt::set_socket_recv_buffer_size(&listener, 64 << 10).expect("a socket");
        let address = listener.local_addr().expect("its address");
        let is_frozen = Arc::new(AtomicBool::new(false));
        let frozen = is_frozen.clone();
        // Its threads end with the test's process: a frozen socket is what the test wants.
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.expect("somebody dials");
                let far = TcpStream::connect(target).expect("somebody listens");
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                    let frozen = frozen.clone();
                    std::thread::spawn(move || carry(from, to, &frozen));
                }
            }
        });
        Self { address, is_frozen }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, is_frozen: &AtomicBool) {
    let mut bytes = [0; 4096];
    loop {
        let read = from.read(&mut bytes);
        while is_frozen.load(Ordering::SeqCst) {
            std::thread::park();
        }
        match read {
            Ok(0) | Err(_) => break,
            Ok(count) if to.write_all(&bytes[..count]).is_err() => break,
            Ok(_) => {}
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_link_that_died_without_a_word_holds_up_nobody() {
    let authority = Authority::new();
    let limits = TcpLimits { stalled: Duration::from_millis(500), ..TcpLimits::default() };
    let mut a = End::with(Some(credentials(&authority, "host-a")), limits);
    let mut b = End::with(Some(credentials(&authority, "host-b")), limits);
    let proxy = Proxy::to(b.links.local_addr());
    let over_proxy = |a: &mut End, b: &mut End| {
        let to_b = a.links.dial("host-b", &proxy.address.to_string());
        a.links.send(to_b, crate::harness::hello("host-a"));
        assert!(matches!(a.next(), LinkEvent::Dialled { .. }));
        let LinkEvent::Accepted { link: from_a, .. } = b.next() else { panic!("not accepted") };
        b.message(from_a);
        ping(a, to_b, b, from_a, 1);
        (to_b, from_a)
    };
    let (forgotten, _) = over_proxy(&mut a, &mut b);
    let (stalled, _) = over_proxy(&mut a, &mut b);
    let (kept, _) = over_proxy(&mut a, &mut b);
    let (direct, direct_at_b) = connect(&mut a, "host-a", &mut b, "host-b");
    proxy.is_frozen.store(true, Ordering::SeqCst);

    // One is hung up with much that waits, one is not: others go on, old and new.
    for link in [forgotten, stalled] {
        (0..MANY).for_each(|number| a.links.send(link, long(number)));
    }
    a.links.send(kept, PeerMessage::Leaving);
    let started = Instant::now();
    a.links.hang_up(forgotten);
    ping(&mut a, direct, &mut b, direct_at_b, 2);
    let (new, new_at_b) = connect(&mut a, "host-a", &mut b, "host-b");
    ping(&mut a, new, &mut b, new_at_b, 3);
    assert!(started.elapsed() < PATIENCE / 3, "{:?}", started.elapsed());
    let (closed, reason) = a.closed();
    let words = ["the other side took nothing for 500ms", "the other side gives no sign any more"];
    assert!(closed == stalled && words.contains(&reason.as_str()), "{reason}");
    ping(&mut a, new, &mut b, new_at_b, 4);
    // What little was said on the last one is with the kernel of whoever died: only its own side's clock can tell.
    assert!(a.links.has_room(kept) && a.is_quiet() && b.is_quiet());
    let started = Instant::now();
    drop(a);
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}
