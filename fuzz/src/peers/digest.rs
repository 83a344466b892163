//! Another host's digest: wholes, parts and deltas in any order.

use lapis_config::Key;
use lapis_transport::peers::{
    digest::{Digest, Mirror, Unfit},
    message::PeerMessage,
    name::ShortName,
};

use super::{encoded, next};

const BYTES_MAX: u64 = 64 << 10;

/// Messages of a digest; others are passed over. It never takes more memory than it may, knows its place in the digest
/// only while it is whole, and after an error knows nothing.
pub fn digest(bytes: &[u8]) {
    let (mut mirror, mut rest) = (Mirror::new(BYTES_MAX), bytes);
    let names: Vec<ShortName> = (0..32).map(name).collect();
    while let Some((message, after)) = next(rest) {
        rest = after;
        let before = mirror.known();
        let fit = match &message {
            Some(PeerMessage::Whole(whole)) => mirror.begin(*whole),
            Some(PeerMessage::Part(part)) => mirror.part(part),
            Some(PeerMessage::Delta(delta)) => mirror.delta(delta),
            _ => continue,
        };
        assert!(mirror.bytes() <= BYTES_MAX);
        let run = mirror.leading(&names);
        assert!(run <= names.len() && (mirror.known().is_some() || run == 0));
        match (fit, message) {
            (Ok(()), Some(PeerMessage::Delta(delta))) => {
                let (epoch, sequence) = before.expect("a delta goes on from a whole");
                assert_eq!((epoch, sequence), (delta.epoch, delta.sequence));
                assert_eq!(mirror.known(), Some((epoch, sequence.wrapping_add(delta.changes.len() as u64))));
            }
            (Ok(()), _) => {}
            (Err(Unfit::Gap), _) => assert_eq!(mirror.known(), None),
            (Err(Unfit::Wrong(what)), _) => assert!(mirror.known().is_none() && !what.is_empty()),
        }
    }
}

/// A digest as a host tells it: whole, then two deltas; with all names and with a sample of them; and one of which a delta
/// was lost.
pub fn digests() -> Vec<Vec<u8>> {
    let told = |blocks, sampling, lost: bool| {
        let mut digest = Digest::new(blocks, sampling, 7);
        (0..blocks / 2).for_each(|n| digest.changed(name(n), true));
        while digest.take_delta(usize::MAX).is_some() {}
        let (whole, parts) = digest.whole();
        let mut told = vec![PeerMessage::Whole(whole)];
        told.extend(parts.map(PeerMessage::Part));
        for round in 0..2 {
            (0..40).for_each(|n| digest.changed(name(n), round == 1));
            (50..80).for_each(|n| digest.changed(name(n + blocks), round == 0));
            let delta = digest.take_delta(usize::MAX).filter(|_| !lost || round == 1);
            told.extend(delta.map(PeerMessage::Delta));
        }
        encoded(&told)
    };
    vec![told(60, 0, false), told(60, 0, true), told(400, 2, false)]
}

fn name(n: u64) -> ShortName {
    ShortName::new(1, &Key([n, 0, 0, 0]))
}
