//! A peer that speaks the streams' protocol, and lies.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use lapis_transport::peers::{
    paths::Came,
    streams::head::{ASK_BYTES, Answer, Ask, GREETING_BYTES, Greeting, Said, Welcome},
};

use super::world::{Blocks, FAR, Host, WORD, loopback, one_try, with_time_enough};

const BLOCKS: usize = 4;
const BLOCK: usize = 65_536;
const ALL: u64 = (BLOCKS * BLOCK) as u64;

/// A liar's answer to an ask: bytes, and whether it goes on listening.
type Lie = dyn Fn(&Ask) -> (Vec<u8>, bool) + Send + Sync;

fn liar(welcome: impl Fn(&Greeting) -> Vec<u8> + Send + Sync + 'static, lie: Arc<Lie>) -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|stream| tell(stream, &welcome, &*lie));
        }
    });
    address
}

fn tell(mut stream: TcpStream, welcome: &dyn Fn(&Greeting) -> Vec<u8>, lie: &Lie) -> std::io::Result<()> {
    let mut greeting = [0; GREETING_BYTES];
    stream.read_exact(&mut greeting)?;
    let greeting = Greeting::decode(&greeting).expect("a reader's greeting");
    assert_eq!(greeting.word, WORD);
    stream.write_all(&welcome(&greeting))?;
    let mut ask = [0; ASK_BYTES];
    loop {
        stream.read_exact(&mut ask)?;
        let (answer, goes_on) = lie(&Ask::decode(&ask).expect("a reader's ask"));
        stream.write_all(&answer)?;
        if !goes_on {
            return Ok(());
        }
    }
}

fn answer(number: u32, said: Said) -> Vec<u8> {
    Answer { number, said }.encode().to_vec()
}

/// Fetches once from such a peer, within; and once more, if nothing is to come then.
fn fetch(lie: impl Fn(&Ask, &[u8]) -> (Vec<u8>, bool) + Send + Sync + 'static, within: Duration) -> Vec<Came> {
    let blocks = Blocks::plain(BLOCKS, BLOCK as u32);
    let truth = blocks.payloads.concat();
    let lie = Arc::new(move |ask: &Ask| lie(ask, &truth));
    let mut reader = Host::reader(liar(|_| Welcome::In.encode().to_vec(), lie), WORD, one_try());
    let came = reader.fetch_within(&blocks, within);
    drop(reader.paths.take());
    // Whatever came later.
    blocks.check(&came);
    came
}

#[test]
fn a_liar_that_tells_the_truth_is_believed() {
    let came = fetch(
        |ask, truth| {
            assert_eq!((ask.first, ask.count, ask.bytes, ask.number), (0, BLOCKS as u32, ALL, 0));
            (answer(ask.number, Said::Here { bytes: ALL }).into_iter().chain(truth.iter().copied()).collect(), true)
        },
        FAR,
    );
    assert_eq!(came, [Came::Whole; BLOCKS]);
}

#[test]
fn other_lengths_than_were_located_are_not_taken() {
    for bytes in [0, 1, ALL - 1, ALL + 1, u64::MAX] {
        let lie = move |ask: &Ask, truth: &[u8]| {
            let mut said = answer(ask.number, Said::Here { bytes });
            said.extend_from_slice(truth);
            (said, true)
        };
        assert_eq!(fetch(lie, FAR), [Came::Not; BLOCKS], "{bytes} bytes");
    }
}

#[test]
fn answers_to_something_else_end_the_stream() {
    let numbers = [1, 7, u32::MAX];
    for number in numbers {
        let lie = move |_: &Ask, truth: &[u8]| {
            let mut said = answer(number, Said::Here { bytes: ALL });
            said.extend_from_slice(truth);
            (said, true)
        };
        assert_eq!(fetch(lie, FAR), [Came::Not; BLOCKS], "number {number}");
    }
    assert_eq!(fetch(|_, _| (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), true), FAR), [Came::Not; BLOCKS]);
}

#[test]
fn more_than_was_said_is_not_written_anywhere() {
    let lie = |ask: &Ask, truth: &[u8]| {
        let mut said = answer(ask.number, Said::Here { bytes: ALL });
        said.extend_from_slice(truth);
        said.extend_from_slice(&[0x99; 1 << 20]);
        (said, true)
    };
    assert_eq!(fetch(lie, FAR), [Came::Whole; BLOCKS]);
}

#[test]
fn less_than_was_said_and_then_silence_or_the_end_is_what_came() {
    let lie = |ask: &Ask, truth: &[u8], goes_on| {
        let mut said = answer(ask.number, Said::Here { bytes: ALL });
        said.extend_from_slice(&truth[..BLOCK + 1]);
        (said, goes_on)
    };
    let came = [Came::Whole, Came::Not, Came::Not, Came::Not];
    with_time_enough(|within| fetch(move |ask, truth| lie(ask, truth, true), within) == came);
    assert_eq!(fetch(move |ask, truth| lie(ask, truth, false), FAR), came);
}

#[test]
fn silence_after_the_ask_ends_with_the_deadline_and_a_hang_up_at_once() {
    assert_eq!(fetch(|_, _| (vec![], true), Duration::from_millis(50)), [Came::Not; BLOCKS]);
    assert_eq!(fetch(|_, _| (vec![], false), FAR), [Came::Not; BLOCKS]);
}

#[test]
fn other_bytes_of_the_right_length_are_corrupt() {
    let lie = |ask: &Ask, truth: &[u8]| {
        let mut said = answer(ask.number, Said::Here { bytes: ALL });
        // Right bytes in the wrong order: each is some block's, and none is its own.
        said.extend(truth.chunks(BLOCK).rev().flatten());
        (said, true)
    };
    assert_eq!(fetch(lie, FAR), [Came::Corrupt; BLOCKS]);
}

#[test]
fn a_welcome_that_is_none_or_never_comes_fails_the_fetch() {
    let blocks = Blocks::plain(BLOCKS, BLOCK as u32);
    let welcomes: [(&[u8], Duration); 4] = [
        (&Welcome::Unknown.encode(), FAR),
        (&Welcome::Version(9).encode(), FAR),
        (b"220 smtp.example ESMTP", FAR),
        (b"LST", Duration::from_millis(50)),
    ];
    for (welcome, within) in welcomes {
        let said = welcome.to_vec();
        let address = liar(move |_| said.clone(), Arc::new(|_: &Ask| panic!("nothing is asked of it")));
        let mut reader = Host::reader(address, WORD, one_try());
        assert_eq!(reader.fetch_within(&blocks, within), [Came::Not; BLOCKS], "{welcome:?}");
    }
}
