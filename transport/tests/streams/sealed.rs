//! Encrypted streams: between hosts that have shown their certificates, and between no others.

use std::time::Duration;

use lapis_transport::peers::{
    paths::{Came, ToPaths},
    streams::StreamOptions,
    tls::Credentials,
};

use super::{
    certificates::{Authority, Kind},
    proxy::{Harm, Proxy},
    world::{BLANK, Blocks, FAR, Host, LINK, Shape, WORD, loopback, one_stream, one_try},
};

const BLOCK: u32 = 65_536;

fn credentials(authority: &Authority, host: &str) -> Option<Credentials> {
    let files = authority.make(host, &Kind::of(host));
    Some(Credentials::load(&files, host).expect("an identity"))
}

/// A host with these credentials, lending these blocks.
fn owner(credentials: Option<Credentials>, blocks: &Blocks) -> Host {
    let mut host = Host::new(StreamOptions { listen: Some(loopback(0)), credentials, ..StreamOptions::default() });
    host.submit(ToPaths::Guest { group: 0, link: LINK, word: WORD });
    host.lend(blocks);
    host
}

#[test]
fn blocks_come_whole_and_what_is_not_lent_does_not() {
    let authority = Authority::new();
    let mut shapes: Vec<Shape> = [1, 4096, 5000, 65_536, 300_001, 4 << 20].into_iter().map(Shape::plain).collect();
    shapes.push(Shape { bytes: 200_000, tail: 96, pieces: 4, block_bytes: 262_144 });
    shapes.extend(vec![Shape::plain(4096); 300]);
    let blocks = Blocks::new(&shapes);
    let mut owner = owner(credentials(&authority, "host-b"), &blocks);
    for streams in [1, 4] {
        let credentials = credentials(&authority, "host-a");
        let options = StreamOptions { streams, credentials, part_bytes_min: 64 << 10, ..one_try() };
        let mut reader = Host::reader(owner.address(), WORD, options);
        owner.lend(&blocks);
        for _ in 0..3 {
            blocks.paint(BLANK);
            assert_eq!(reader.fetch(&blocks), vec![Came::Whole; shapes.len()], "{streams} streams");
        }
        owner.submit(ToPaths::Unlend { link: LINK, token: super::world::TOKEN });
        assert_eq!(reader.fetch(&blocks), vec![Came::Not; shapes.len()]);
    }
}

#[test]
fn only_the_very_host_that_is_called_is_believed_and_only_a_host_of_the_authority_is_answered() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let blocks = Blocks::plain(2, BLOCK);
    let [a, b, c] = ["host-a", "host-b", "host-c"].map(|host| credentials(&ours, host));
    let pairs = [
        (b.clone(), a.clone(), true),
        (c, a.clone(), false),
        (credentials(&theirs, "host-b"), a.clone(), false),
        (b.clone(), credentials(&theirs, "host-a"), false),
        (b, None, false),
        (None, a, false),
    ];
    for (at, (theirs, ours, is_good)) in pairs.into_iter().enumerate() {
        let owner = owner(theirs, &blocks);
        let mut reader = Host::reader(owner.address(), WORD, StreamOptions { credentials: ours, ..one_try() });
        let wanted = if is_good { Came::Whole } else { Came::Not };
        assert_eq!(reader.fetch(&blocks), [wanted; 2], "pair {at}");
    }
}

#[test]
fn a_certificate_for_all_hosts_is_nobodys() {
    let authority = Authority::new();
    let blocks = Blocks::plain(2, BLOCK);
    for (also, wanted) in [("b.rack.example", Came::Whole), ("*.rack.example", Came::Not)] {
        let kind = Kind { names: vec!["host-z".into(), also.into()], ..Kind::of("host-z") };
        let shown = Credentials::load(&authority.make("z", &kind), "host-z").expect("an identity");
        let owner = owner(Some(shown), &blocks);
        let credentials = credentials(&authority, "host-a");
        let mut reader = Host::new(StreamOptions { credentials, ..one_try() });
        reader.peer_called("b.rack.example", owner.address(), WORD);
        assert_eq!(reader.fetch(&blocks), [wanted; 2], "{also}");
    }
}

#[test]
fn a_changed_byte_ends_the_stream_and_no_word_is_read_on_the_way() {
    let authority = Authority::new();
    let blocks = Blocks::plain(8, BLOCK);
    let owner = owner(credentials(&authority, "host-b"), &blocks);
    let proxy = Proxy::start(owner.address(), Harm::Flip(5 * BLOCK as usize / 2));
    let options = StreamOptions { credentials: credentials(&authority, "host-a"), ..one_stream() };
    let mut reader = Host::reader(proxy.address, WORD, options);
    let came = reader.fetch(&blocks);
    assert!(!came.contains(&Came::Corrupt), "nothing of a broken record is taken: {came:?}");
    assert_eq!((came[0], came[7]), (Came::Whole, Came::Not));
    proxy.set(Harm::Nothing);
    reader.fetch_again(&blocks);
    assert!(!proxy.asked().windows(8).any(|bytes| bytes == WORD.to_le_bytes()), "the word goes over the wire");
}

#[test]
fn what_is_late_is_not_written_afterwards() {
    let authority = Authority::new();
    let blocks = Blocks::plain(8, BLOCK);
    let owner = owner(credentials(&authority, "host-b"), &blocks);
    let proxy = Proxy::start(owner.address(), Harm::Stall(5 * BLOCK as usize / 2));
    let options = StreamOptions { credentials: credentials(&authority, "host-a"), ..one_stream() };
    let mut reader = Host::reader(proxy.address, WORD, options);
    let came = reader.fetch_within(&blocks, Duration::from_millis(200));
    assert_eq!(came[7], Came::Not);
    blocks.paint(0x77);
    proxy.release();
    // Also where it was late before it was greeted.
    drop(reader.paths.take());
    proxy.wait_open(0);
    assert!(blocks.is_painted(0x77), "a slot was written after its fetch had ended");
}

#[test]
fn a_silent_stranger_does_not_stay() {
    let authority = Authority::new();
    let blocks = Blocks::plain(2, BLOCK);
    let greeting = Duration::from_millis(100);
    let mut owner = Host::new(StreamOptions {
        listen: Some(loopback(0)),
        credentials: credentials(&authority, "host-b"),
        greeting,
        ..StreamOptions::default()
    });
    owner.submit(ToPaths::Guest { group: 0, link: LINK, word: WORD });
    owner.lend(&blocks);
    let mut stranger = std::net::TcpStream::connect(owner.address()).expect("it listens");
    assert_eq!(std::io::copy(&mut stranger, &mut std::io::sink()).expect("it hangs up"), 0);
    let options = StreamOptions { credentials: credentials(&authority, "host-a"), ..one_stream() };
    let mut reader = Host::reader(owner.address(), WORD, options);
    reader.fetch_again(&blocks);
    assert_eq!(reader.fetch_within(&blocks, FAR), [Came::Whole; 2]);
}
