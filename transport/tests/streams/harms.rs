//! What comes over a wire that stalls, is cut, or changes bytes; and when it is too late or not wanted any more.

use std::time::{Duration, Instant};

use lapis_transport::peers::{
    paths::{Came, ToPaths},
    streams::{StreamOptions, head},
};

use super::{
    proxy::{Harm, Proxy},
    world::{BLANK, Blocks, FAR, Host, LINK, PATIENCE, WORD, one_stream, one_try, with_time_enough},
};

const BLOCK: u32 = 65_536;
/// Where the bytes of the first answer begin.
const PAYLOAD: usize = head::WELCOME_BYTES + head::ANSWER_BYTES;
/// In the middle of the third block.
const HALF: usize = PAYLOAD + BLOCK as usize * 5 / 2;
const PAINT: u8 = 0x77;

fn world(harm: Harm, options: StreamOptions) -> (Host, Proxy, Host, Blocks) {
    let mut owner = Host::owner();
    let blocks = Blocks::plain(8, BLOCK);
    owner.lend(&blocks);
    let proxy = Proxy::start(owner.address(), harm);
    let reader = Host::reader(proxy.address, WORD, options);
    (owner, proxy, reader, blocks)
}

fn first(whole: usize) -> Vec<Came> {
    (0..8).map(|at| if at < whole { Came::Whole } else { Came::Not }).collect()
}

/// Some leading blocks are whole, so many at most.
fn is_start(came: &[Came], most: usize) -> bool {
    (0..=most).any(|whole| came == first(whole))
}

/// No byte comes into the slots any more, when all that was on its way has ended.
fn nothing_comes_after_all(proxy: &Proxy, blocks: &Blocks) {
    blocks.paint(PAINT);
    proxy.release();
    proxy.wait_open(0);
    assert!(blocks.is_painted(PAINT), "a slot was written after its fetch had ended");
    blocks.paint(BLANK);
}

#[test]
fn what_is_late_ends_at_its_deadline_and_nothing_is_written_afterwards() {
    let (_owner, proxy, mut reader, blocks) = world(Harm::Stall(HALF), one_stream());
    let started = Instant::now();
    let came = reader.fetch_within(&blocks, Duration::from_millis(200));
    assert!(started.elapsed() >= Duration::from_millis(200), "not before its deadline");
    assert!(is_start(&came, 2), "{came:?}");
    nothing_comes_after_all(&proxy, &blocks);
    proxy.set(Harm::Nothing);
    reader.fetch_again(&blocks);
}

#[test]
fn deadlines_are_kept_in_their_order_whatever_waits_behind_what() {
    let (_owner, proxy, mut reader, blocks) = world(Harm::Stall(PAYLOAD), one_try());
    // Longest first: each wakes the one who watches earlier than it planned.
    let ops = [400, 300, 200, 100].map(|ms| reader.begin(&blocks.wanted, 0, Duration::from_millis(ms)));
    let ended: Vec<(u64, Vec<Came>)> = (0..4).map(|_| reader.ended()).collect();
    assert_eq!(ended[0].0, ops[3], "the first to be late");
    assert!(ended.iter().all(|(_, came)| *came == first(0)));
    let mut all: Vec<u64> = ended.iter().map(|(op, _)| *op).collect();
    all.sort_unstable();
    assert_eq!(all, ops);
    nothing_comes_after_all(&proxy, &blocks);
}

#[test]
fn a_peer_that_is_gone_ends_its_fetches_at_once() {
    let (_owner, proxy, mut reader, blocks) = world(Harm::Stall(HALF), one_stream());
    let ops = [(); 4].map(|()| reader.begin(&blocks.wanted, 0, FAR));
    proxy.wait_passed(HALF);
    reader.submit(ToPaths::PeerGone { link: LINK });
    let mut ended = [(); 4].map(|()| reader.ended());
    ended.sort_by_key(|(op, _)| *op);
    assert_eq!(ended.each_ref().map(|(op, _)| *op), ops);
    assert!(is_start(&ended[0].1, 2), "what was taken in before it was told: {:?}", ended[0].1);
    assert!(ended[1..].iter().all(|(_, came)| *came == first(0)));
    nothing_comes_after_all(&proxy, &blocks);
    assert_eq!(reader.fetch(&blocks), first(0), "on a link that is gone");
}

#[test]
fn another_peer_on_a_link_takes_the_place_of_the_former() {
    let (owner, proxy, mut reader, blocks) = world(Harm::Stall(PAYLOAD), one_try());
    let op = reader.begin(&blocks.wanted, 0, FAR);
    // The owner knows the stream: of two that greet it at once, whichever is heard later takes the other's place.
    proxy.wait_passed(PAYLOAD);
    reader.peer(owner.address(), WORD);
    assert_eq!(reader.ended(), (op, first(0)));
    assert_eq!(reader.fetch(&blocks), first(8));
}

#[test]
fn a_host_that_ends_waits_for_nobody() {
    let (_owner, proxy, mut reader, blocks) = world(Harm::Stall(HALF), one_stream());
    reader.begin(&blocks.wanted, 0, FAR);
    proxy.wait_passed(HALF);
    let started = Instant::now();
    drop(reader.paths.take());
    assert!(started.elapsed() < PATIENCE);
    nothing_comes_after_all(&proxy, &blocks);
}

#[test]
fn an_owner_that_dies_in_the_middle_is_lost_at_once() {
    let (mut owner, proxy, mut reader, blocks) = world(Harm::Stall(HALF), one_try());
    let op = reader.begin(&blocks.wanted, 0, FAR);
    proxy.wait_passed(HALF);
    drop(owner.paths.take());
    proxy.release();
    let (ended, came) = reader.ended();
    assert_eq!(ended, op);
    assert!(came == first(8) || came.contains(&Came::Not), "whatever was under way: {came:?}");
    blocks.check(&came);
    assert_eq!(reader.fetch(&blocks), first(0), "nobody is there");
}

#[test]
fn a_cut_leaves_what_came_and_a_peer_is_left_alone_for_a_while() {
    let (_owner, proxy, mut reader, blocks) = world(Harm::Cut(HALF), one_try());
    assert_eq!(reader.fetch(&blocks), first(2));
    assert_eq!(reader.fetch(&blocks), first(0), "at once, since its deadline is far");
    assert_eq!(proxy.made(), 1);

    let (_owner, proxy, mut reader, blocks) = world(Harm::Cut(HALF), one_stream());
    assert_eq!(reader.fetch(&blocks), first(2));
    proxy.set(Harm::Nothing);
    reader.fetch_again(&blocks);
}

#[test]
fn a_cut_at_any_place_costs_what_lies_behind_it() {
    for (cut, whole) in
        [(0, 0), (5, 0), (12, 0), (20, 0), (PAYLOAD, 0), (PAYLOAD + 1, 0), (PAYLOAD + 8 * 65_536 - 1, 7)]
    {
        let (_owner, _proxy, mut reader, blocks) = world(Harm::Cut(cut), one_try());
        assert_eq!(reader.fetch(&blocks), first(whole), "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let (_owner, _proxy, mut reader, blocks) = world(Harm::Flip(HALF), one_try());
    let mut came = first(8);
    came[2] = Came::Corrupt;
    assert_eq!(reader.fetch(&blocks), came);
    assert_eq!(reader.fetch(&blocks), first(8), "the stream is sound");
    // Of the welcome and of the answer, but for fields that are not looked at (8 to 11 and 24 to 27).
    for at in (0..8).chain(12..24).chain(28..PAYLOAD) {
        let (_owner, _proxy, mut reader, blocks) = world(Harm::Flip(at), one_try());
        assert_eq!(reader.fetch(&blocks), first(0), "byte {at} of what is said");
        assert_eq!(reader.fetch(&blocks), first(0), "the stream has ended");
    }
}

#[test]
fn bytes_too_many_harm_nothing_but_their_fetch() {
    let (_owner, proxy, mut reader, blocks) = world(Harm::PutIn(HALF, 3), one_stream());
    let came = reader.fetch(&blocks);
    assert_eq!((&came[..2], &came[2..]), (&[Came::Whole; 2][..], &[Came::Corrupt; 6][..]));
    blocks.paint(BLANK);
    proxy.set(Harm::Nothing);
    assert_eq!(reader.fetch(&blocks), first(0), "what was too much is no answer");
    assert!(blocks.is_painted(BLANK));
    reader.fetch_again(&blocks);
    assert_eq!(proxy.made(), 2);
}

#[test]
fn bytes_too_few_harm_nothing_but_their_fetch() {
    with_time_enough(|within| {
        let (_owner, proxy, mut reader, blocks) = world(Harm::TakeOut(HALF, 3), one_stream());
        let came = reader.fetch_within(&blocks, within);
        assert_eq!(came[7], Came::Not, "three bytes of it are missing");
        proxy.wait_open(0);
        blocks.paint(BLANK);
        proxy.set(Harm::Nothing);
        reader.fetch_again(&blocks);
        came[..7] == [[Came::Whole; 2].as_slice(), &[Came::Corrupt; 5]].concat()
    });
}
