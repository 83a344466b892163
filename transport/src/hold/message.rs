//! What a daemon and the holder say to each other: docs/formats.md, "Holder messages". Pure.

use crate::{
    code::{CodeError, Reader, Writer},
    hello::{MESSAGE_FDS_MAX, REASON_BYTES_MAX},
};

/// Longest name of a kept descriptor, bytes.
pub const NAME_BYTES_MAX: usize = 128;
const MAGIC: u32 = u32::from_le_bytes(*b"LPHD");
/// A holder runs for months and is not restarted with the daemon: this number changes never, if it can be helped.
const VERSION: u16 = 1;

const TAKE: u32 = 1;
const KEEP: u32 = 2;
const FORGET: u32 = 3;
const BATCH: u32 = 65;
const DONE: u32 = 66;
const REFUSED: u32 = 67;
const HELD: u32 = 68;

/// To the holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The descriptors from index `first` on, in order of their names. Answered by `Batch`; before that by `Held` if the
    /// process that has them lives: the batch then comes when it has ended.
    Take { first: u32 },
    /// With one descriptor. Answered by `Done`.
    Keep { name: String },
    /// Answered by `Done`.
    Forget { name: String },
}

/// To the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With as many descriptors as names, 64 at most; `total` counts all that are kept.
    Batch {
        total: u32,
        names: Vec<String>,
    },
    Done,
    Refused {
        reason: String,
    },
    Held {
        pid: u32,
    },
}

fn encode(out: &mut Vec<u8>, token: u32, body: impl FnOnce(&mut Writer<'_>) -> u32) {
    out.clear();
    let mut w = Writer(out);
    w.u32(MAGIC);
    w.u16(VERSION);
    w.u16(0);
    w.u64(0);
    w.u32(token);
    let kind = body(&mut w);
    let bytes = out.len() as u32;
    out[8..12].copy_from_slice(&kind.to_le_bytes());
    out[12..16].copy_from_slice(&bytes.to_le_bytes());
}

/// Kind, token and body.
fn decode(message: &[u8]) -> Result<(u32, u32, Reader<'_>), CodeError> {
    let mut r = Reader::new(message);
    let magic = r.u32("magic")?;
    if magic != MAGIC {
        return Err(CodeError::Value { field: "magic", value: magic.into() });
    }
    let version = r.u16("version")?;
    if version != VERSION {
        return Err(CodeError::Value { field: "version", value: version.into() });
    }
    r.spare(2)?;
    let (kind, bytes, token) = (r.u32("kind")?, r.u32("length")?, r.u32("token")?);
    if bytes as usize != message.len() {
        return Err(CodeError::Value { field: "length", value: bytes.into() });
    }
    Ok((kind, token, r))
}

impl Ask {
    /// Replaces `out` by the message. The answer will carry the same token.
    pub fn encode(&self, token: u32, out: &mut Vec<u8>) {
        encode(out, token, |w| match self {
            Self::Take { first } => {
                w.u32(*first);
                TAKE
            }
            Self::Keep { name } => {
                w.text(name, NAME_BYTES_MAX);
                KEEP
            }
            Self::Forget { name } => {
                w.text(name, NAME_BYTES_MAX);
                FORGET
            }
        });
    }

    pub fn decode(message: &[u8]) -> Result<(u32, Self), CodeError> {
        let (kind, token, mut r) = decode(message)?;
        let ask = match kind {
            TAKE => Self::Take { first: r.u32("first")? },
            KEEP => Self::Keep { name: r.text("name", NAME_BYTES_MAX)? },
            FORGET => Self::Forget { name: r.text("name", NAME_BYTES_MAX)? },
            kind => return Err(CodeError::UnknownKind { kind }),
        };
        r.end()?;
        Ok((token, ask))
    }
}

impl Answer {
    pub fn encode(&self, token: u32, out: &mut Vec<u8>) {
        encode(out, token, |w| match self {
            Self::Batch { total, names } => {
                w.u32(*total);
                w.count(names.len(), MESSAGE_FDS_MAX);
                names.iter().for_each(|name| w.text(name, NAME_BYTES_MAX));
                BATCH
            }
            Self::Done => DONE,
            Self::Refused { reason } => {
                w.text(reason, REASON_BYTES_MAX);
                REFUSED
            }
            Self::Held { pid } => {
                w.u32(*pid);
                HELD
            }
        });
    }

    pub fn decode(message: &[u8]) -> Result<(u32, Self), CodeError> {
        let (kind, token, mut r) = decode(message)?;
        let answer = match kind {
            BATCH => {
                let (total, count) = (r.u32("total")?, r.count("names", MESSAGE_FDS_MAX)?);
                let names = (0..count).map(|_| r.text("name", NAME_BYTES_MAX)).collect::<Result<_, _>>()?;
                Self::Batch { total, names }
            }
            DONE => Self::Done,
            REFUSED => Self::Refused { reason: r.text("reason", REASON_BYTES_MAX)? },
            HELD => Self::Held { pid: r.u32("pid")? },
            kind => return Err(CodeError::UnknownKind { kind }),
        };
        r.end()?;
        Ok((token, answer))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn a_question_comes_back_from_its_bytes(token: u32, first: u32, name in ".{0,32}") {
            let mut bytes = Vec::new();
            for ask in [Ask::Take { first }, Ask::Keep { name: name.clone() }, Ask::Forget { name }] {
                ask.encode(token, &mut bytes);
                prop_assert_eq!(Ask::decode(&bytes), Ok((token, ask)));
            }
        }

        #[test]
        fn an_answer_comes_back_from_its_bytes(token: u32, total: u32, names in vec(".{0,32}", 0..=64), reason: String) {
            let reason = crate::code::cut(&reason, REASON_BYTES_MAX).to_owned();
            let mut bytes = Vec::new();
            for answer in
                [Answer::Batch { total, names }, Answer::Done, Answer::Refused { reason }, Answer::Held { pid: total }]
            {
                answer.encode(token, &mut bytes);
                prop_assert_eq!(Answer::decode(&bytes), Ok((token, answer)));
            }
        }

        #[test]
        fn no_bytes_make_the_holder_or_its_daemon_panic(kind in 0u32..70, mut body in vec(any::<u8>(), 20..300)) {
            let _ = (Ask::decode(&body), Answer::decode(&body));
            let bytes = body.len() as u32;
            body[..4].copy_from_slice(&MAGIC.to_le_bytes());
            body[4..6].copy_from_slice(&VERSION.to_le_bytes());
            body[8..12].copy_from_slice(&kind.to_le_bytes());
            body[12..16].copy_from_slice(&bytes.to_le_bytes());
            let _ = (Ask::decode(&body), Answer::decode(&body));
        }
    }
}
