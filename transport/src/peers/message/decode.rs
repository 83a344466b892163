//! Bytes as messages. Pure: works on private copies.

use lapis_config::{BATCH_KEYS_MAX, Fingerprint, PoolKind, PoolShape, Wait};

use super::{
    CHANGE_BYTES, CHANGES_MAX, HEAD_BYTES, Located, MAGIC, MESSAGE_BYTES_MAX, MessageError, NAME_BYTES_MAX,
    PART_BYTES_MAX, PATH_BYTES_MAX, PeerHello, PeerMessage, REASON_BYTES_MAX, VERSION_MAJOR,
};
use crate::{
    code::{CodeError, Reader},
    hello::LABEL_BYTES_MAX,
    peers::{
        digest::{Change, Delta, Part, Whole},
        name::ShortName,
    },
};

pub(super) const HELLO: u32 = 1;
pub(super) const REFUSED: u32 = 2;
pub(super) const POOL: u32 = 3;
pub(super) const WHOLE: u32 = 4;
pub(super) const PART: u32 = 5;
pub(super) const DELTA: u32 = 6;
pub(super) const WHOLE_WANTED: u32 = 7;
pub(super) const LOCATE: u32 = 8;
pub(super) const FOUND: u32 = 9;
pub(super) const PATH: u32 = 10;
pub(super) const RELEASE: u32 = 11;
pub(super) const OFFER: u32 = 12;
pub(super) const CREDIT: u32 = 13;
pub(super) const PING: u32 = 14;
pub(super) const PONG: u32 = 15;
pub(super) const LEAVING: u32 = 16;
pub(super) const OFFERED: u32 = 17;
pub(super) const FORGET: u32 = 18;

pub(super) fn head(bytes: &[u8; HEAD_BYTES]) -> Result<(u32, usize), MessageError> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"));
    let (magic, major, minor, kind, length) = (word(0), half(4), half(6), word(8), word(12));
    if magic != MAGIC {
        return Err(MessageError::Magic { magic });
    }
    // A refusal is understood in every version: it says why.
    if major != VERSION_MAJOR && kind != REFUSED {
        return Err(MessageError::Version { major, minor });
    }
    match length as usize {
        bytes if bytes > MESSAGE_BYTES_MAX => Err(MessageError::TooLong { bytes: length }),
        bytes if bytes < HEAD_BYTES => Err(MessageError::TooShort { bytes: length }),
        bytes => Ok((kind, bytes - HEAD_BYTES)),
    }
}

pub(super) fn body(kind: u32, body: &[u8]) -> Result<PeerMessage, CodeError> {
    let mut r = Reader::new(body);
    let message = match kind {
        HELLO => PeerMessage::Hello(PeerHello {
            boot: r.u64("boot")?,
            digest_bytes_max: r.u64("digest_bytes_max")?,
            data_word: r.u64("data_word")?,
            data_port: r.u16("data_port")?,
            host: r.text("host", NAME_BYTES_MAX)?,
            group: r.text("group", NAME_BYTES_MAX)?,
        }),
        REFUSED => PeerMessage::Refused { reason: r.text("reason", REASON_BYTES_MAX)? },
        POOL => {
            let (pool, pieces) = (r.pool()?, r.u16("pieces")?);
            let kind = if r.flag("kind")? { PoolKind::Object } else { PoolKind::Chain };
            let block_bytes = r.u64("block_bytes")?;
            let namespace = Fingerprint(r.bytes(32, "namespace")?.try_into().expect("so many were taken"));
            let label = r.text("label", LABEL_BYTES_MAX)?;
            PeerMessage::Pool { pool, shape: PoolShape { namespace, label, kind, block_bytes, pieces } }
        }
        WHOLE => PeerMessage::Whole(Whole {
            epoch: r.u64("epoch")?,
            sequence: r.u64("sequence")?,
            buckets: r.u32("buckets")?,
            sampling: r.u8("sampling")?,
        }),
        PART => {
            let first = r.u32("first")?;
            let count = r.count("bytes", PART_BYTES_MAX)?;
            PeerMessage::Part(Part { first, bytes: r.bytes(count, "bytes")?.to_vec() })
        }
        DELTA => {
            let (epoch, sequence) = (r.u64("epoch")?, r.u64("sequence")?);
            let count = r.count("changes", CHANGES_MAX)?;
            let bytes = r.bytes(count * CHANGE_BYTES, "changes")?;
            let changes = bytes.chunks_exact(CHANGE_BYTES).map(change).collect::<Result<_, _>>()?;
            PeerMessage::Delta(Delta { epoch, sequence, changes })
        }
        WHOLE_WANTED => PeerMessage::WholeWanted,
        LOCATE => {
            let (token, deadline_us, pool) = (r.u64("token")?, r.u64("deadline_us")?, r.pool()?);
            let wait = match r.u8("wait")? {
                0 => Wait::Present,
                1 => Wait::Filling,
                2 => Wait::Absent,
                value => return Err(CodeError::Value { field: "wait", value: value.into() }),
            };
            let each = r.flag("each")?;
            let count = r.key_count()?;
            PeerMessage::Locate { token, pool, each, wait, deadline_us, keys: r.keys(count)? }
        }
        FOUND => {
            let (token, parent) = (r.u64("token")?, r.keys(1)?[0]);
            let count = r.count("blocks", BATCH_KEYS_MAX)?;
            let blocks = (0..count).map(|_| located(&mut r)).collect::<Result<_, _>>()?;
            PeerMessage::Found { token, parent, blocks }
        }
        PATH => {
            let count = r.count("said", PATH_BYTES_MAX)?;
            PeerMessage::Path { said: r.bytes(count, "said")?.to_vec() }
        }
        RELEASE => PeerMessage::Release { token: r.u64("token")? },
        OFFER => {
            let (number, deadline_us) = (r.u64("number")?, r.u64("deadline_us")?);
            let (pool, count) = (r.pool()?, r.key_count()?);
            PeerMessage::Offer { number, pool, deadline_us, keys: r.keys(count)? }
        }
        OFFERED => PeerMessage::Offered { number: r.u64("number")?, came: r.u32("came")? },
        FORGET => {
            let (pool, count) = (r.pool()?, r.key_count()?);
            PeerMessage::Forget { pool, keys: r.keys(count)? }
        }
        CREDIT => PeerMessage::Credit { calls: r.u32("calls")? },
        PING => PeerMessage::Ping { number: r.u64("number")? },
        PONG => PeerMessage::Pong { number: r.u64("number")? },
        LEAVING => PeerMessage::Leaving,
        kind => return Err(CodeError::UnknownKind { kind }),
    };
    r.end()?;
    Ok(message)
}

fn located(r: &mut Reader<'_>) -> Result<Located, CodeError> {
    let (generation, sum) = (r.u64("generation")?, r.u64("sum")?);
    let (line, slot, bytes) = (r.u32("line")?, r.u32("slot")?, r.u32("bytes")?);
    Ok(Located { index: r.u16("index")?, follows: r.flag("follows")?, line, generation, slot, bytes, sum })
}

fn change(bytes: &[u8]) -> Result<Change, CodeError> {
    let mut word = [0; 8];
    word[..CHANGE_BYTES].copy_from_slice(bytes);
    let word = u64::from_le_bytes(word);
    let (name, sent) = (ShortName::from_bits(word), word & !(0xffff << 48));
    match word >> 48 {
        // No name looks so: taken for one, it would be another than what was sent.
        0..=1 if name.bits() != sent => Err(CodeError::Value { field: "name", value: sent }),
        flag @ 0..=1 => Ok(Change { name, added: flag == 1 }),
        value => Err(CodeError::Value { field: "added", value }),
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::{Key, PoolId};
    use proptest::prelude::*;

    use super::*;

    fn samples() -> Vec<PeerMessage> {
        let keys: Vec<Key> = (0..5).map(|n| Key([n, 1, 2, 3])).collect();
        let name = ShortName::new(1, &keys[0]);
        let shape = PoolShape {
            namespace: Fingerprint([7; 32]),
            label: "g0s1".into(),
            kind: PoolKind::Chain,
            block_bytes: 1 << 20,
            pieces: 4,
        };
        let block = Located { index: 7, follows: true, line: 1, generation: 2, slot: 3, bytes: 4, sum: 5 };
        vec![
            PeerMessage::Hello(PeerHello {
                host: "a".into(),
                group: "default".into(),
                boot: 3,
                digest_bytes_max: 1 << 20,
                data_port: 7851,
                data_word: 9,
            }),
            PeerMessage::Refused { reason: "no".into() },
            PeerMessage::Pool { pool: PoolId(3), shape },
            PeerMessage::Whole(Whole { epoch: 1, sequence: 2, buckets: 3, sampling: 4 }),
            PeerMessage::Part(Part { first: 9, bytes: vec![1; 64] }),
            PeerMessage::Delta(Delta {
                epoch: 1,
                sequence: 2,
                changes: vec![Change { name, added: true }, Change { name, added: false }],
            }),
            PeerMessage::WholeWanted,
            PeerMessage::Locate {
                token: 1,
                pool: PoolId(2),
                each: true,
                wait: Wait::Absent,
                deadline_us: 3,
                keys: keys.clone(),
            },
            PeerMessage::Found { token: 1, parent: keys[0], blocks: vec![block; 3] },
            PeerMessage::Path { said: vec![1, 2, 3] },
            PeerMessage::Release { token: 1 },
            PeerMessage::Offer { number: 1, pool: PoolId(2), deadline_us: 3, keys: keys.clone() },
            PeerMessage::Offered { number: 1, came: 2 },
            PeerMessage::Forget { pool: PoolId(2), keys },
            PeerMessage::Credit { calls: 8 },
            PeerMessage::Ping { number: 1 },
            PeerMessage::Pong { number: 1 },
            PeerMessage::Leaving,
        ]
    }

    fn parsed(bytes: &[u8]) -> Result<(PeerMessage, usize), MessageError> {
        let (kind, body) = head(bytes[..HEAD_BYTES].try_into().expect("a head"))?;
        Ok((PeerMessage::decode(kind, &bytes[HEAD_BYTES..HEAD_BYTES + body])?, HEAD_BYTES + body))
    }

    #[test]
    fn every_message_comes_as_it_was_sent_one_after_the_other() {
        let mut bytes = Vec::new();
        samples().iter().for_each(|message| message.encode(&mut bytes));
        let mut at = 0;
        for message in samples() {
            let (found, taken) = parsed(&bytes[at..]).expect("a message");
            assert_eq!(found, message);
            at += taken;
        }
        assert_eq!(at, bytes.len());
    }

    #[test]
    fn a_message_that_was_cut_or_goes_on_is_none() {
        for message in samples() {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            let (kind, _) = head(bytes[..HEAD_BYTES].try_into().expect("a head")).expect("a head");
            for end in HEAD_BYTES..bytes.len() {
                assert!(PeerMessage::decode(kind, &bytes[HEAD_BYTES..end]).is_err(), "{message:?} up to {end}");
            }
            bytes.push(0);
            assert!(PeerMessage::decode(kind, &bytes[HEAD_BYTES..]).is_err(), "{message:?} and a byte");
        }
    }

    #[test]
    fn a_head_says_what_is_wrong_with_it() {
        let mut bytes = Vec::new();
        PeerMessage::Leaving.encode(&mut bytes);
        let with = |at: usize, value: &[u8]| {
            let mut head: [u8; HEAD_BYTES] = bytes[..HEAD_BYTES].try_into().expect("a head");
            head[at..at + value.len()].copy_from_slice(value);
            super::head(&head)
        };
        assert_eq!(with(0, b"GET "), Err(MessageError::Magic { magic: u32::from_le_bytes(*b"GET ") }));
        assert_eq!(with(4, &[2, 0, 5, 0]), Err(MessageError::Version { major: 2, minor: 5 }));
        assert_eq!(with(12, &[15, 0, 0, 0]), Err(MessageError::TooShort { bytes: 15 }));
        assert_eq!(with(12, &[0, 0, 0, 1]), Err(MessageError::TooLong { bytes: 1 << 24 }));
        assert_eq!(with(6, &[9, 0]), Ok((LEAVING, 0)), "a newer minor");
    }

    #[test]
    fn a_change_of_what_is_no_name_is_refused() {
        let mut bytes = Vec::new();
        let changes = vec![Change { name: ShortName::from_bits(0xabcd_0000_0007), added: true }];
        PeerMessage::Delta(Delta { epoch: 1, sequence: 2, changes }).encode(&mut bytes);
        assert!(parsed(&bytes).is_ok());
        let end = bytes.len();
        bytes[end - 3..end - 1].fill(0);
        let refused = parsed(&bytes).expect_err("no name");
        assert!(matches!(refused, MessageError::Body { source: CodeError::Value { field: "name", value: 7 }, .. }));
    }

    #[test]
    fn another_version_can_still_say_why_it_refuses() {
        let mut bytes = Vec::new();
        PeerMessage::Refused { reason: "too old".into() }.encode(&mut bytes);
        bytes[4] = 7;
        assert_eq!(parsed(&bytes).expect("a refusal").0, PeerMessage::Refused { reason: "too old".into() });
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_decoder(kind in 0_u32..20, body in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(message) = PeerMessage::decode(kind, &body) {
                let mut bytes = Vec::new();
                message.encode(&mut bytes);
                prop_assert_eq!(parsed(&bytes).expect("what was decoded").0, message);
            }
        }
    }
}
