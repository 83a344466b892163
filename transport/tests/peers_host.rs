//! A host and one peer of it, message by message.

use lapis_config::{Fingerprint, Key, PoolId, PoolKind, PoolShape, Time, Wait};
use lapis_transport::peers::{
    asker::AskerOptions,
    directory::PeerId,
    host::{Do, Host, Link},
    message::{Located, PeerHello, PeerMessage},
};

const POOL: PoolId = PoolId(3);
const PEER: PeerId = PeerId(0);
const NOW: Time = Time(1_000);

fn hello(host: &str) -> PeerHello {
    let (host, group) = (host.into(), "default".into());
    PeerHello { host, group, boot: 1, digest_bytes_max: 1 << 20, data_port: 1, data_word: 2 }
}

fn shape() -> PoolShape {
    let (namespace, kind) = (Fingerprint([9; 32]), PoolKind::Chain);
    PoolShape { namespace, label: "kv".into(), kind, block_bytes: 1 << 16, pieces: 1 }
}

/// Host a, which has dialled host b.
fn host() -> Host {
    let mut host = Host::new(Time(0), hello("a"), 1_000, 0, AskerOptions::default());
    host.pool_opened(POOL, shape());
    host.join(Time(0), PEER, "b".into());
    assert_eq!(done(&mut host), [Do::Dial(PEER)]);
    host
}

fn done(host: &mut Host) -> Vec<Do> {
    std::iter::from_fn(|| host.poll()).collect()
}

fn sent(host: &mut Host, link: u64) -> Vec<PeerMessage> {
    std::iter::from_fn(|| host.poll_send(link)).collect()
}

fn greet(host: &mut Host, link: u64) {
    host.connected(link, Some("b".into()), 5);
    host.asked(NOW, link, PeerMessage::Hello(hello("b")));
}

#[test]
fn a_peer_that_connects_anew_leaves_its_former_connection() {
    let mut host = host();
    greet(&mut host, 1);
    assert!(matches!(done(&mut host)[..], [Do::Guest(1, _)]));
    greet(&mut host, 2);
    let done = done(&mut host);
    assert!(matches!(&done[1], Do::HangUp(Link::From(1), why) if why.contains("another connection")), "{done:?}");
    assert!(matches!(&sent(&mut host, 1)[..], [PeerMessage::Refused { .. }]));
    assert!(matches!(sent(&mut host, 2)[0], PeerMessage::Hello(_)));
}

#[test]
fn a_digest_goes_out_also_where_something_changes_all_the_time() {
    let mut host = host();
    greet(&mut host, 1);
    host.changed(NOW, POOL, &Key([1, 0, 0, 0]), true);
    let told = sent(&mut host, 1);
    assert!(matches!(told[3..], [PeerMessage::Whole(_), PeerMessage::Part(_)]), "{told:?}");
    host.changed(NOW, POOL, &Key([2, 0, 0, 0]), true);
    host.tick(NOW);
    assert_eq!(sent(&mut host, 1), [], "changes wait for each other");
    host.tick(Time(NOW.0 + 100_000));
    assert!(matches!(&sent(&mut host, 1)[..], [PeerMessage::Delta(delta)] if delta.changes.len() == 1));
}

#[test]
fn a_peer_that_comes_to_ask_is_dialled_at_once() {
    let mut host = host();
    let mut now = NOW;
    for _ in 0..8 {
        host.lost(now, PEER);
        now = host.poll_timeout().expect("dialled again");
        host.tick(now);
    }
    host.lost(now, PEER);
    done(&mut host);
    assert!(host.poll_timeout().expect("dialled again").since_us(now) > 5_000_000);
    greet(&mut host, 1);
    assert!(done(&mut host).contains(&Do::Dial(PEER)));
}

#[test]
fn what_was_found_and_is_not_read_is_released() {
    let mut host = host();
    host.dialled(NOW, PEER);
    for message in [
        PeerMessage::Hello(hello("b")),
        PeerMessage::Pool { pool: PoolId(8), shape: shape() },
        PeerMessage::Credit { calls: 4 },
    ] {
        host.answered(NOW, PEER, message);
    }
    let (keys, until) = (vec![Key([1, 0, 0, 0])], Time(NOW.0 + 50_000));
    assert!(host.want(NOW, 1, POOL, false, keys, until, Some((PEER, Wait::Absent))));
    done(&mut host);
    // Of another key than the first one.
    let block = Located { index: 5, follows: false, line: 1, generation: 2, slot: 3, bytes: 4, sum: 5 };
    host.answered(NOW, PEER, PeerMessage::Found { token: 1, parent: Key::default(), blocks: vec![block] });
    let done = done(&mut host);
    assert!(done.contains(&Do::Send(Link::To(PEER), PeerMessage::Release { token: 1 })), "{done:?}");
    assert!(done.contains(&Do::Ended { want: 1, came: 0 }));
}
