//! An owner among strangers, and readers that do not read.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use lapis_transport::peers::{
    paths::{Came, ToPaths},
    streams::{
        StreamOptions,
        head::{ANSWER_BYTES, Answer, Ask, Greeting, Said, WELCOME_BYTES, Welcome},
    },
};

use super::world::{Blocks, FAR, Host, LINK, PATIENCE, TOKEN, WORD, loopback, one_stream, one_try, until};

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn greeted(address: SocketAddr, stream: u16, word: u64) -> (TcpStream, Welcome) {
    let mut socket = connect(address);
    socket.write_all(&Greeting { stream, word }.encode()).expect("it takes a greeting");
    let mut welcome = [0; WELCOME_BYTES];
    socket.read_exact(&mut welcome).expect("it answers");
    (socket, Welcome::decode(&welcome).expect("a welcome"))
}

/// Nothing more comes, and no more than this came.
fn has_ended(socket: &mut TcpStream) -> usize {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it did not end: {error}"),
    }
    rest.len()
}

#[test]
fn a_wrong_word_is_refused_and_hung_up_on() {
    let owner = Host::owner();
    for word in [0, WORD ^ 1, u64::MAX] {
        let (mut socket, welcome) = greeted(owner.address(), 0, word);
        assert_eq!((welcome, has_ended(&mut socket)), (Welcome::Unknown, 0));
    }
    let blocks = Blocks::plain(2, 4096);
    let mut reader = Host::reader(owner.address(), WORD ^ 2, one_try());
    assert_eq!(reader.fetch(&blocks), [Came::Not; 2]);
}

#[test]
fn a_word_counts_until_its_guest_has_gone() {
    let mut owner = Host::owner();
    let blocks = Blocks::plain(2, 4096);
    owner.lend(&blocks);
    let mut reader = Host::reader(owner.address(), WORD, one_try());
    assert_eq!(reader.fetch(&blocks), [Came::Whole; 2]);
    let (mut socket, welcome) = greeted(owner.address(), 3, WORD);
    assert_eq!(welcome, Welcome::In);
    owner.submit(ToPaths::GuestGone { link: LINK });
    assert_eq!(has_ended(&mut socket), 0, "its streams end");
    let (_, welcome) = greeted(owner.address(), 3, WORD);
    assert_eq!(welcome, Welcome::Unknown);
    until("the reader to see that it is shut out", || reader.fetch(&blocks) == [Came::Not; 2]);
}

#[test]
fn another_version_is_told_ours_and_another_program_nothing() {
    let owner = Host::owner();
    let mut socket = connect(owner.address());
    let mut greeting = Greeting { stream: 0, word: WORD }.encode();
    greeting[4] = 2;
    socket.write_all(&greeting).expect("it takes a greeting");
    let mut welcome = [0; WELCOME_BYTES];
    socket.read_exact(&mut welcome).expect("it answers");
    assert_eq!(Welcome::decode(&welcome), Ok(Welcome::Version(1)));
    assert_eq!(has_ended(&mut socket), 0);
    let mut socket = connect(owner.address());
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").expect("it takes bytes");
    assert_eq!(has_ended(&mut socket), 0);
}

#[test]
fn what_is_no_ask_ends_the_stream() {
    let owner = Host::owner();
    let (mut socket, welcome) = greeted(owner.address(), 0, WORD);
    assert_eq!(welcome, Welcome::In);
    socket.write_all(&[0xff; 32]).expect("it takes bytes");
    assert_eq!(has_ended(&mut socket), 0);
}

#[test]
fn a_new_stream_takes_the_place_of_an_older_one_of_its_number() {
    let owner = Host::owner();
    let (mut first, welcome) = greeted(owner.address(), 5, WORD);
    assert_eq!(welcome, Welcome::In);
    let (mut second, welcome) = greeted(owner.address(), 5, WORD);
    assert_eq!((welcome, has_ended(&mut first)), (Welcome::In, 0));
    let ask = Ask { number: 9, token: TOKEN, first: 0, count: 1, bytes: 1 };
    second.write_all(&ask.encode()).expect("it is open");
    let mut answer = [0; ANSWER_BYTES];
    second.read_exact(&mut answer).expect("it answers");
    assert_eq!(Answer::decode(&answer), Ok(Answer { number: 9, said: Said::Gone }));
}

#[test]
fn strangers_that_say_nothing_are_few_and_do_not_stay() {
    let greeting = Duration::from_millis(100);
    let listen = Some(loopback(0));
    let mut owner = Host::new(StreamOptions { listen, greeting, ..StreamOptions::default() });
    owner.submit(ToPaths::Guest { group: 0, link: LINK, word: WORD });
    let blocks = Blocks::plain(2, 4096);
    owner.lend(&blocks);
    let mut strangers: Vec<TcpStream> = (0..400).map(|_| connect(owner.address())).collect();
    let mut reader = Host::reader(owner.address(), WORD, one_stream());
    reader.fetch_again(&blocks);
    assert!(strangers.iter_mut().all(|stranger| has_ended(stranger) == 0));
}

#[test]
fn a_reader_that_does_not_read_is_hung_up_on_and_holds_up_nobody() {
    let (listen, stalled) = (Some(loopback(0)), Duration::from_millis(100));
    let mut owner = Host::new(StreamOptions { listen, stalled, ..StreamOptions::default() });
    owner.submit(ToPaths::Guest { group: 0, link: LINK, word: WORD });
    let blocks = Blocks::plain(8, 16 << 20);
    owner.lend(&blocks);
    let bytes = 8 * (16 << 20);
    let mut reader = Host::reader(owner.address(), WORD, one_stream());
    let mut fetches = 1;
    // It takes nothing while another one reads ever more. What fits into buffers is all that it gets in the end.
    until("a reader that is hung up on", || {
        let (mut lazy, _) = greeted(owner.address(), 9, WORD);
        lazy.write_all(&Ask { number: 0, token: TOKEN, first: 0, count: 8, bytes }.encode()).expect("it is open");
        for _ in 0..fetches {
            assert_eq!(reader.fetch_within(&blocks, FAR), [Came::Whole; 8]);
        }
        fetches *= 2;
        let mut got = Vec::new();
        let ended = lazy.take(ANSWER_BYTES as u64 + bytes).read_to_end(&mut got);
        ended.is_err() || (got.len() as u64) < bytes
    });
}
