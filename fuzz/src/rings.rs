//! Rings and the whole memory that a client shares with the daemon.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use lapis_arena::{Mapping, words};
use lapis_transport::{
    control::{BYTES, ControlClient, ControlDaemon},
    frame::{Completion, Request},
    ring::{Consumer, Place, Producer},
};

/// A script for a small ring, whose first byte says whether its words are scribbled on too. Without scribbling every
/// frame comes out as it went in; with it every call still ends.
pub fn ring(bytes: &[u8]) {
    let Some((first, script)) = bytes.split_first() else { return };
    small_ring(script, first % 2 == 1);
    if first % 8 == 1 {
        whole_memory(script);
    }
}

const PLACE: Place = Place { head: 0, tail: 8, data: 16, count: 16 };

fn small_ring(script: &[u8], scribbled: bool) {
    let words: Vec<AtomicU64> = words::zeroed(PLACE.data + PLACE.count);
    let (mut producer, mut consumer) = (Producer::new(&words, PLACE), Consumer::new(&words, PLACE));
    let (mut expected, mut payload) = (VecDeque::new(), Vec::new());
    for step in script.chunks(4) {
        let [what, at, value, more] = [0, 1, 2, 3].map(|i| step.get(i).copied().unwrap_or(0));
        match what % 4 {
            0 | 1 => {
                let frame = vec![value; usize::from(at) % 100];
                match producer.push(more.into(), &frame) {
                    Ok(true) => expected.push_back((u32::from(more), frame)),
                    Ok(false) => {}
                    Err(fault) => assert!(scribbled, "{fault}"),
                }
            }
            2 => match consumer.pop(&mut payload) {
                Ok(Some(kind)) if !scribbled => assert_eq!(expected.pop_front(), Some((kind, payload.clone()))),
                Ok(Some(_)) => assert!(payload.len() <= 8 * PLACE.count),
                Ok(None) => assert!(scribbled || expected.is_empty()),
                Err(fault) => assert!(scribbled, "{fault}"),
            },
            _ if scribbled => scribble(&words, at, value, more),
            _ => {}
        }
    }
}

fn scribble(words: &[AtomicU64], at: u8, value: u8, shift: u8) {
    words[usize::from(at) % words.len()].fetch_add(u64::from(value) << (shift % 64), Relaxed);
}

/// The same against the daemon's side of a whole client's memory.
fn whole_memory(script: &[u8]) {
    let mapping = Mapping::anonymous(BYTES).expect("memory");
    let mut daemon = ControlDaemon::new(mapping.clone());
    let client = ControlClient::new(&mapping).expect("fresh memory");
    let mut requests = client.rings().0;
    for step in script.chunks(12) {
        let [what, kind] = [0, 1].map(|i| step.get(i).copied().unwrap_or(0));
        match what % 4 {
            0 => {
                // Half of the writes hit the page of positions.
                let at = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| step.get(4 + i).copied().unwrap_or(0)));
                let end = if kind % 2 == 0 { 4096 } else { BYTES };
                mapping.store64((at % end) as usize & !7, at >> (kind % 64), Relaxed);
            }
            1 => drop(requests.push(&Request::Release { token: kind.into() })),
            2 => {
                daemon.push_completion(&Completion::Got { token: kind.into(), hit: 1 });
            }
            _ => {}
        }
        if daemon.pop_request().is_err() {
            daemon.reset();
            requests = client.rings().0;
        }
        daemon.drain_touches(16, &mut |_| {});
        daemon.hazards().fence();
    }
}

/// Frames that go round honestly, round a scribbled ring, and round a scribbled memory.
pub fn scripts() -> Vec<Vec<u8>> {
    let round: Vec<u8> =
        (0..60u8).flat_map(|i| [[0, i, i * 4, 1], [1, 99 - i, i, 2], [2, 0, 0, 0]]).flatten().collect();
    let scribbles: Vec<u8> =
        (0..40u8).flat_map(|i| [[0, 40, i, 1], [3, i, i + 1, i], [2, 0, 0, 0]]).flatten().collect();
    let memory: Vec<u8> = (0..20u8)
        .flat_map(|i| [[1, i, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, i, 0, 0, i * 8, i, 0, 0, 0, 0, 0, 0]])
        .flatten()
        .collect();
    [(0u8, round), (3, scribbles.clone()), (1, scribbles), (1, memory)]
        .into_iter()
        .map(|(first, script)| [&[first][..], &script].concat())
        .collect()
}
