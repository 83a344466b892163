//! The ring and the two wake-up handshakes under every order that the memory model permits. The handshakes of the daemon
//! (sleeping word in the table) and of the client (in its memory) are the same two functions.

use std::sync::{
    Arc,
    atomic::Ordering::{self, Relaxed},
};

use lapis_arena::Words;
use lapis_transport::{
    control::{falls_asleep, must_wake},
    ring::{Consumer, Place, Producer},
};
use loom::sync::atomic::{AtomicU64, fence};

struct Modelled {
    words: Vec<AtomicU64>,
    fences: bool,
}

impl Words for Modelled {
    fn len(&self) -> usize {
        self.words.len()
    }
    fn load(&self, i: usize, order: Ordering) -> u64 {
        self.words[i].load(order)
    }
    fn store(&self, i: usize, value: u64, order: Ordering) {
        self.words[i].store(value, order);
    }
    fn fence(&self, order: Ordering) {
        if self.fences {
            fence(order);
        }
    }
}

const SLEEPS: usize = 2;
const PLACE: Place = Place { head: 0, tail: 1, data: 3, count: 4 };

fn words(fences: bool) -> Arc<Modelled> {
    let words = (0..PLACE.data + PLACE.count).map(|_| AtomicU64::new(0)).collect();
    Arc::new(Modelled { words, fences })
}

#[test]
fn frames_come_out_whole_and_in_order() {
    loom::model(|| {
        let words = words(true);
        let mut producer = Producer::new(words.clone(), PLACE);
        let filler = loom::thread::spawn(move || {
            // 2 + 2 + 2 words through a ring of 4: the third waits for room, and runs over the end.
            for n in 1..=3u64 {
                while !producer.push(n as u32, &(n * 11).to_le_bytes()).expect("an honest consumer") {
                    loom::thread::yield_now();
                }
            }
        });
        let (mut consumer, mut payload) = (Consumer::new(words, PLACE), Vec::new());
        for n in 1..=3u64 {
            let kind = loop {
                match consumer.pop(&mut payload).expect("an honest producer") {
                    Some(kind) => break kind,
                    None => loom::thread::yield_now(),
                }
            };
            assert_eq!((kind, payload.as_slice()), (n as u32, (n * 11).to_le_bytes().as_slice()));
        }
        filler.join().expect("the filler ended well");
    });
}

/// One side pushes and asks whether to wake, the other falls asleep. Nobody may sleep over a frame unrung.
fn handshake(fences: bool) {
    let words = words(fences);
    let mut producer = Producer::new(words.clone(), PLACE);
    let theirs = words.clone();
    let filler = loom::thread::spawn(move || {
        assert!(producer.push(1, &[]).expect("an honest consumer"));
        must_wake(&theirs, || theirs.load(SLEEPS, Relaxed) != 0)
    });
    let consumer = Consumer::new(words.clone(), PLACE);
    let sleeps = falls_asleep(&words, || words.store(SLEEPS, 1, Relaxed), || consumer.is_ready());
    let rung = filler.join().expect("the filler ended well");
    assert!(rung || !sleeps, "asleep over a frame");
}

#[test]
fn nobody_sleeps_over_a_frame() {
    loom::model(|| handshake(true));
}

#[test]
#[should_panic(expected = "asleep over a frame")]
fn without_its_fences_somebody_does() {
    loom::model(|| handshake(false));
}
