//! What comes when nothing is wrong, and what does not when the owner has no more of it.

use std::{net::TcpListener, time::Duration};

use lapis_transport::{
    TransportError,
    peers::{
        links::LinkId,
        paths::{Came, Fetch, Paths, ToPaths},
        streams::{StreamOptions, TcpPaths},
    },
};

use super::{
    proxy::{Harm, Proxy},
    world::{Blocks, FAR, Host, LINK, Shape, TOKEN, WORD, loopback, one_stream, one_try},
};

fn streams(streams: usize) -> StreamOptions {
    StreamOptions { streams, part_bytes_min: 64 << 10, part_bytes_max: 1 << 20, ..StreamOptions::default() }
}

#[test]
fn blocks_of_all_sizes_come_whole_on_one_stream_and_on_several() {
    let mut shapes: Vec<Shape> = [1, 4095, 4096, 5000, 65_536, 262_144, 300_001, 1 << 20, 4 << 20, 16 << 20]
        .into_iter()
        .map(Shape::plain)
        .collect();
    shapes.push(Shape { bytes: 262_144, tail: 0, pieces: 4, block_bytes: 262_144 });
    shapes.push(Shape { bytes: 200_000, tail: 96, pieces: 4, block_bytes: 262_144 });
    shapes.push(Shape { bytes: 2 << 20, tail: 128, pieces: 16, block_bytes: 4 << 20 });
    shapes.extend(vec![Shape::plain(4096); 700]);
    let mut owner = Host::owner();
    for count in [1, 2, 4, 16] {
        let blocks = Blocks::new(&shapes);
        owner.lend(&blocks);
        let mut reader = Host::reader(owner.address(), WORD, streams(count));
        for _ in 0..3 {
            blocks.paint(super::world::BLANK);
            assert_eq!(reader.fetch(&blocks), vec![Came::Whole; shapes.len()], "{count} streams");
        }
    }
}

#[test]
fn a_part_of_what_was_located_comes_from_its_place() {
    let mut owner = Host::owner();
    let blocks = Blocks::plain(20, 40_000);
    owner.lend(&blocks);
    let mut reader = Host::reader(owner.address(), WORD, streams(3));
    reader.begin(&blocks.wanted[5..12], 5, FAR);
    assert_eq!(reader.ended().1, [Came::Whole; 7]);
    let there: Vec<bool> = (0..20).map(|at| blocks.slot(at) == blocks.payloads[at]).collect();
    assert_eq!(there, (0..20).map(|at| (5..12).contains(&at)).collect::<Vec<_>>());
}

#[test]
fn many_fetches_at_once_end_once_each() {
    let mut owner = Host::owner();
    let blocks = Blocks::plain(64, 65_536);
    owner.lend(&blocks);
    let mut reader = Host::reader(owner.address(), WORD, streams(3));
    let mut begun: Vec<u64> = (0..64).map(|at| reader.begin(&blocks.wanted[at..=at], at as u32, FAR)).collect();
    for _ in 0..64 {
        let (op, came) = reader.ended();
        assert_eq!(came, [Came::Whole]);
        begun.retain(|begun| *begun != op);
    }
    assert!(begun.is_empty() && reader.poll().is_none());
    blocks.check(&[Came::Whole; 64]);
}

#[test]
fn what_was_overwritten_at_its_owner_is_corrupt_and_the_rest_is_whole() {
    let mut owner = Host::owner();
    let blocks = Blocks::new(&[
        Shape::plain(65_536),
        Shape::plain(65_536),
        Shape { bytes: 262_144, tail: 0, pieces: 4, block_bytes: 262_144 },
        Shape::plain(4096),
    ]);
    owner.lend(&blocks);
    for at in [1, 2] {
        let end = blocks.lent[at].offset + blocks.lent[at].bytes as usize;
        blocks.owned.copy_in(end - 1, &[!blocks.payloads[at][end - 1 - blocks.lent[at].offset]]);
    }
    let mut reader = Host::reader(owner.address(), WORD, streams(2));
    assert_eq!(reader.fetch(&blocks), [Came::Whole, Came::Corrupt, Came::Corrupt, Came::Whole]);
}

#[test]
fn what_is_not_lent_is_told_to_be_gone_and_the_stream_goes_on() {
    let mut owner = Host::owner();
    let blocks = Blocks::plain(4, 4096);
    // Any loss of the stream would be the last of it.
    let mut reader = Host::reader(owner.address(), WORD, one_try());
    assert_eq!(reader.fetch(&blocks), [Came::Not; 4], "not yet");
    owner.lend(&blocks);
    assert_eq!(reader.fetch(&blocks), [Came::Whole; 4]);
    reader.begin(&blocks.wanted, 1, FAR);
    assert_eq!(reader.ended().1, [Came::Not; 4], "not so many");
    reader.begin(&blocks.wanted, u32::MAX, FAR);
    assert_eq!(reader.ended().1, [Came::Not; 4], "not so many by far");
    let mut other = Blocks::plain(4, 4096);
    other.lent[2].bytes = 4000;
    owner.lend(&other);
    assert_eq!(reader.fetch(&blocks), [Came::Not; 4], "other lengths");
    owner.lend(&blocks);
    assert_eq!(reader.fetch(&blocks), [Came::Whole; 4]);
    owner.submit(ToPaths::Unlend { link: LINK, token: TOKEN });
    assert_eq!(reader.fetch(&blocks), [Came::Not; 4], "not any more");
}

#[test]
fn what_is_lent_to_one_link_is_not_read_on_another() {
    let mut owner = Host::owner();
    let blocks = Blocks::plain(2, 4096);
    let other = LinkId(8);
    owner.submit(ToPaths::Guest { group: 1, link: other, word: 5 });
    owner.submit(ToPaths::Lend { link: other, token: TOKEN, blocks: blocks.lent.clone() });
    let mut reader = Host::reader(owner.address(), WORD, one_stream());
    assert_eq!(reader.fetch(&blocks), [Came::Not; 2]);
    let mut reader = Host::reader(owner.address(), 5, one_stream());
    assert_eq!(reader.fetch(&blocks), [Came::Whole; 2]);
}

#[test]
fn without_a_peer_nothing_comes_and_nothing_of_nothing_does_at_once() {
    let mut reader = Host::new(StreamOptions::default());
    let blocks = Blocks::plain(3, 4096);
    assert_eq!(reader.fetch(&blocks), [Came::Not; 3], "an unknown link");
    assert_eq!(reader.address().port(), 0, "nobody reads from here");
    reader.peer(loopback(1), WORD);
    assert_eq!(reader.fetch(&blocks), [Came::Not; 3], "nobody is there");
    reader.submit(ToPaths::Fetch(Fetch { op: 77, link: LINK, token: 1, first: 0, blocks: vec![], within: FAR }));
    assert_eq!(reader.ended(), (77, vec![]));
}

#[test]
fn a_stream_that_is_not_needed_is_closed_and_opened_again_when_it_is() {
    let mut owner = Host::owner();
    let blocks = Blocks::plain(3, 4096);
    owner.lend(&blocks);
    let proxy = Proxy::start(owner.address(), Harm::Nothing);
    let options = StreamOptions { idle: Duration::from_millis(5), ..one_try() };
    let mut reader = Host::reader(proxy.address, WORD, options);
    for made in 1..=3 {
        // At worst it is closed between two fetches that follow each other at once; but it is, and is no failure.
        assert_eq!(reader.fetch(&blocks), [Came::Whole; 3]);
        proxy.wait_open(0);
        assert_eq!(proxy.made(), made);
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind(loopback(0)).expect("a port");
    let address = taken.local_addr().expect("an address");
    let options = StreamOptions { listen: Some(address), ..StreamOptions::default() };
    let Err(error) = TcpPaths::new(options, std::sync::Arc::new(|| {})) else { panic!("it is taken") };
    assert!(matches!(error, TransportError::Listen { .. }), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    let free = StreamOptions { listen: Some(loopback(0)), ..StreamOptions::default() };
    let paths = TcpPaths::new(free, std::sync::Arc::new(|| {})).expect("any port");
    assert_ne!(paths.data_port(), 0);
}
