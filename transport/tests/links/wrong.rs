//! What is no message ends the connection with a reason, and who would understand it hears it.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
};

use lapis_transport::peers::{
    links::{LinkEvent, Links},
    message::{HEAD_BYTES, MESSAGE_BYTES_MAX, PeerMessage},
};

use crate::harness::{End, PATIENCE, encoded, greeted, hello, is_over, ping, raw, read_message};

/// A head as another daemon might write it.
fn head(magic: &[u8; 4], major: u16, minor: u16, kind: u32, length: u32) -> Vec<u8> {
    let words = [&major.to_le_bytes()[..], &minor.to_le_bytes(), &kind.to_le_bytes(), &length.to_le_bytes()];
    [&magic[..], &words.concat()].concat()
}

/// Bytes, what this side says of them, and whether the other side is told.
fn cases() -> Vec<(&'static str, Vec<u8>, &'static str, bool)> {
    let ours = b"LPEE";
    let kind_of_ping = 14;
    let mut cut = encoded(&PeerMessage::Ping { number: 1 });
    cut.pop();
    let long = (MESSAGE_BYTES_MAX + 1) as u32;
    let version = "the other side speaks version 2.7 of the peers' protocol, this one 1.";
    vec![
        ("another version", head(ours, 2, 7, kind_of_ping, 24), version, true),
        ("a version of old", head(ours, 0, 9, 1, 16), "speaks version 0.9", true),
        ("a kind that nobody knows", head(ours, 1, 0, 999, 16), "message of kind 999: ", true),
        (
            "a length over all",
            head(ours, 1, 0, kind_of_ping, u32::MAX),
            "a message of 4294967295 bytes, the limit",
            true,
        ),
        (
            "a length over the limit",
            head(ours, 1, 0, kind_of_ping, long),
            "a message of 1048577 bytes, the limit",
            true,
        ),
        ("a length without a head", head(ours, 1, 0, kind_of_ping, 15), "a message of 15 bytes with its head", true),
        ("a body that is too short", head(ours, 1, 0, kind_of_ping, 16), "message of kind 14: ", true),
        (
            "a body that goes on",
            [head(ours, 1, 0, kind_of_ping, 25), vec![0; 9]].concat(),
            "message of kind 14: ",
            true,
        ),
        ("garbage", (0..200u8).map(|n| n.wrapping_mul(151)).collect(), "speaks something else than lapis", false),
        ("a web browser", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "its message begins with 0x20544547", false),
        (
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaa".to_vec(),
            "the other side speaks TLS, and this",
            false,
        ),
        ("a short word of another kind", b"EHLO\r\n".to_vec(), "speaks something else than lapis", false),
        ("an end within a head", ours.to_vec(), "closed the connection within a message", false),
        ("an end within a body", cut, "closed the connection within a message", false),
    ]
}

/// Says the bytes and no more; whether it is told why, and then cut off.
fn say(mut stream: TcpStream, title: &str, bytes: &[u8], words: &str, is_told: bool) {
    stream.write_all(bytes).expect("it is open");
    stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    if is_told {
        let PeerMessage::Refused { reason } = read_message(&mut stream) else { panic!("{title}: not told why") };
        assert!(reason.contains(words), "{title}: {reason:?} does not say {words:?}");
    }
    assert!(is_over(&mut stream), "{title}: it goes on");
}

#[test]
fn as_a_first_message() {
    let mut end = End::new(None);
    for (title, bytes, words, is_told) in cases() {
        let refused = end.links.refused();
        say(raw(end.links.local_addr()), title, &bytes, words, is_told);
        // Some are only counted, as so many in a second are told of.
        let until = std::time::Instant::now() + PATIENCE;
        while end.links.refused() == refused {
            assert!(std::time::Instant::now() < until, "{title}: not counted");
            std::thread::yield_now();
        }
    }
    let told: Vec<String> = std::iter::from_fn(|| end.links.poll())
        .map(|event| match event {
            LinkEvent::Closed { reason, .. } => reason,
            event => panic!("of who is refused no more is told than {event:?}"),
        })
        .collect();
    assert!(told.len() >= 8 && told.len() <= cases().len(), "{told:?}");
    for (reason, (title, _, words, _)) in told.iter().zip(cases()).take(8) {
        assert!(reason.starts_with("from 127.0.0.1:") && reason.contains(words), "{title}: {reason:?}");
    }
}

#[test]
fn as_a_first_message_that_is_too_long_for_one() {
    let mut end = End::new(None);
    let mut stream = raw(end.links.local_addr());
    stream.write_all(&encoded(&PeerMessage::Path { said: vec![0; 8192] })).expect("it is open");
    let (_, reason) = end.closed();
    assert!(reason.contains("bytes before it was greeted, the limit is 4096"), "{reason}");
    assert!(is_over(&mut stream));
}

#[test]
fn within_a_connection_that_another_host_has_made() {
    let mut end = End::new(None);
    let (mut other, other_link) = greeted(&mut end);
    for (title, bytes, words, is_told) in cases() {
        let (stream, link) = greeted(&mut end);
        say(stream, title, &bytes, words, is_told);
        let (closed, reason) = end.closed();
        assert!(closed == link && reason.contains(words), "{title}: {reason:?} does not say {words:?}");
    }
    other.write_all(&encoded(&PeerMessage::Leaving)).expect("it goes on");
    assert_eq!(end.message(other_link), PeerMessage::Leaving);
}

#[test]
fn within_a_connection_that_this_host_has_made() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let mut end = End::new(None);
    for (title, bytes, words, is_told) in cases() {
        let link = end.links.dial("host-b", &address);
        let (stream, _) = listener.accept().expect("it dials");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        assert!(matches!(end.next(), LinkEvent::Dialled { .. }), "{title}");
        say(stream, title, &bytes, words, is_told);
        let (closed, reason) = end.closed();
        assert!(closed == link && reason.contains(words), "{title}: {reason:?} does not say {words:?}");
    }
}

#[test]
fn a_refusal_of_another_version_is_understood() {
    let mut end = End::new(None);
    let (mut stream, link) = greeted(&mut end);
    let mut bytes = encoded(&PeerMessage::Refused { reason: "this one speaks 2.0".into() });
    bytes[4..6].copy_from_slice(&2u16.to_le_bytes());
    stream.write_all(&bytes).expect("it is open");
    assert_eq!(end.message(link), PeerMessage::Refused { reason: "this one speaks 2.0".into() });
}

#[test]
fn what_was_begun_is_sent_whole_before_the_reason() {
    let mut end = End::new(None);
    let (mut stream, link) = greeted(&mut end);
    // More than any socket takes at once: some of it waits when the other side says what is no message.
    let said = vec![7; 16 << 10];
    let count = 600;
    for _ in 0..count {
        end.links.send(link, PeerMessage::Path { said: said.clone() });
    }
    stream.write_all(&head(b"LPEE", 2, 0, 14, 24)).expect("it is open");
    assert!(end.closed().1.contains("speaks version 2.0"));
    let mut whole = 0;
    let reason = loop {
        match read_message(&mut stream) {
            PeerMessage::Path { said: came } => assert_eq!(came, said),
            PeerMessage::Refused { reason } => break reason,
            message => panic!("{message:?}"),
        }
        whole += 1;
    };
    assert!(reason.contains("version 2.0") && whole <= count, "{whole}: {reason}");
    assert!(is_over(&mut stream));
}

#[test]
fn messages_in_pieces_are_put_together() {
    let mut end = End::new(None);
    let (mut stream, link) = greeted(&mut end);
    stream.set_nodelay(true).expect("a socket");
    let bytes = [encoded(&hello("host-y")), encoded(&PeerMessage::Leaving)].concat();
    assert!(bytes.len() > 2 * HEAD_BYTES);
    for byte in &bytes {
        stream.write_all(&[*byte]).expect("it is open");
    }
    assert_eq!(end.message(link), hello("host-y"));
    assert_eq!(end.message(link), PeerMessage::Leaving);
}

#[test]
fn a_longest_message_arrives_in_order_with_short_ones() {
    let (mut a, mut b) = (End::new(None), End::new(None));
    let (to_b, from_a) = crate::harness::connect(&mut a, "host-a", &mut b, "host-b");
    let part = lapis_transport::peers::digest::Part { first: 1, bytes: vec![3; 512 << 10] };
    for _ in 0..40 {
        a.links.send(to_b, PeerMessage::Part(part.clone()));
        a.links.send(to_b, PeerMessage::WholeWanted);
    }
    for _ in 0..40 {
        assert_eq!(b.message(from_a), PeerMessage::Part(part.clone()));
        assert_eq!(b.message(from_a), PeerMessage::WholeWanted);
    }
    // On the way there was no room, which is told of once there is.
    if let Some(event) = a.links.poll() {
        assert!(matches!(event, LinkEvent::Room { .. }), "{event:?}");
    }
    ping(&mut a, to_b, &mut b, from_a, 1);
}
