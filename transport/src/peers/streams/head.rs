//! What is said on a stream beside the bytes of blocks: a greeting and a welcome when it begins, then for each ask an
//! answer, in order, and the bytes behind it. Pure. The layout is in docs/formats.md.
//!
//! Invariant: all are of fixed length, so that nothing a peer says makes anybody allocate.

use crate::code::{CodeError, Reader, Writer};

/// Streams speak the same one, or none.
pub const VERSION: u16 = 1;
/// A peer's streams are numbered below this; a new one takes the place of an older one of its number.
pub const STREAMS_MAX: u16 = 16;

pub const GREETING_BYTES: usize = 24;
pub const WELCOME_BYTES: usize = 12;
pub const ASK_BYTES: usize = 32;
pub const ANSWER_BYTES: usize = 24;

const MAGIC: u32 = u32::from_le_bytes(*b"LSTR");
const ASK: u32 = 1;
const ANSWER: u32 = 2;

/// Why bytes do not belong on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the other side speaks something else than lapis: its stream begins with {magic:#010x}")]
    Magic { magic: u32 },
    #[error(
        "the other side speaks version {version} of the streams' protocol, this one {VERSION}: use the same release"
    )]
    Version { version: u16 },
    #[error("{what} of a stream")]
    Body { what: &'static str, source: CodeError },
}

/// The first words of who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Which of its streams it is.
    pub stream: u16,
    /// Of the link on which the blocks are located.
    pub word: u64,
}

/// What the owner says to a greeting. After anything but `In` it closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    In,
    /// No link has this word, or not any more.
    Unknown,
    /// Of which version the owner is.
    Version(u16),
}

/// Asks for the bytes of blocks that follow each other among those of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Counts up from 0 on each stream.
    pub number: u32,
    pub token: u64,
    pub first: u32,
    pub count: u32,
    /// Of all of them together, as they were located.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// So many bytes follow, those of all blocks.
    Here { bytes: u64 },
    /// There is no such token, or not any more, or not so many blocks of it. Nothing follows.
    Gone,
    /// The blocks have so many bytes, not what was asked for. Nothing follows.
    Differs { bytes: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// That of the ask.
    pub number: u32,
    pub said: Said,
}

impl Greeting {
    pub fn encode(&self) -> [u8; GREETING_BYTES] {
        fixed(|out| {
            out.u32(MAGIC);
            out.u16(VERSION);
            out.u16(self.stream);
            out.u64(self.word);
            out.u64(0);
        })
    }

    pub fn decode(bytes: &[u8; GREETING_BYTES]) -> Result<Self, HeadError> {
        let mut body = begun(bytes, "greeting")?;
        parse("greeting", || {
            let stream = body.u16("stream")?;
            if stream >= STREAMS_MAX {
                return Err(CodeError::Limit { field: "stream", value: stream.into(), max: (STREAMS_MAX - 1).into() });
            }
            let word = body.u64("word")?;
            body.spare(8)?;
            body.end()?;
            Ok(Self { stream, word })
        })
    }
}

impl Welcome {
    pub fn encode(self) -> [u8; WELCOME_BYTES] {
        let (code, version) = match self {
            Self::In => (0, VERSION),
            Self::Unknown => (1, VERSION),
            Self::Version(version) => (2, version),
        };
        fixed(|out| {
            out.u32(MAGIC);
            out.u16(version);
            out.u16(code);
            out.u32(0);
        })
    }

    pub fn decode(bytes: &[u8; WELCOME_BYTES]) -> Result<Self, HeadError> {
        let mut body = Reader::new(bytes);
        let magic = body.u32("magic").map_err(|source| HeadError::Body { what: "welcome", source })?;
        if magic != MAGIC {
            return Err(HeadError::Magic { magic });
        }
        parse("welcome", || {
            let (version, code) = (body.u16("version")?, body.u16("code")?);
            body.spare(4)?;
            body.end()?;
            match code {
                0 if version == VERSION => Ok(Self::In),
                1 => Ok(Self::Unknown),
                2 => Ok(Self::Version(version)),
                value => Err(CodeError::Value { field: "code", value: value.into() }),
            }
        })
    }
}

impl Ask {
    pub fn encode(&self) -> [u8; ASK_BYTES] {
        fixed(|out| {
            out.u32(ASK);
            out.u32(self.number);
            out.u64(self.token);
            out.u32(self.first);
            out.u32(self.count);
            out.u64(self.bytes);
        })
    }

    pub fn decode(bytes: &[u8; ASK_BYTES]) -> Result<Self, HeadError> {
        let mut body = Reader::new(bytes);
        parse("ask", || {
            kind(&mut body, ASK)?;
            let (number, token) = (body.u32("number")?, body.u64("token")?);
            let (first, count) = (body.u32("first")?, body.u32("count")?);
            let bytes = body.u64("bytes")?;
            body.end()?;
            Ok(Self { number, token, first, count, bytes })
        })
    }
}

impl Answer {
    pub fn encode(&self) -> [u8; ANSWER_BYTES] {
        let (code, bytes) = match self.said {
            Said::Here { bytes } => (0, bytes),
            Said::Gone => (1, 0),
            Said::Differs { bytes } => (2, bytes),
        };
        fixed(|out| {
            out.u32(ANSWER);
            out.u32(self.number);
            out.u32(code);
            out.u32(0);
            out.u64(bytes);
        })
    }

    pub fn decode(bytes: &[u8; ANSWER_BYTES]) -> Result<Self, HeadError> {
        let mut body = Reader::new(bytes);
        parse("answer", || {
            kind(&mut body, ANSWER)?;
            let (number, code) = (body.u32("number")?, body.u32("code")?);
            body.spare(4)?;
            let bytes = body.u64("bytes")?;
            body.end()?;
            let said = match code {
                0 => Said::Here { bytes },
                1 => Said::Gone,
                2 => Said::Differs { bytes },
                value => return Err(CodeError::Value { field: "code", value: value.into() }),
            };
            Ok(Self { number, said })
        })
    }
}

/// Magic and version, which come first in whatever version.
fn begun<'a>(bytes: &'a [u8], what: &'static str) -> Result<Reader<'a>, HeadError> {
    let mut body = Reader::new(bytes);
    let failed = |source| HeadError::Body { what, source };
    let (magic, version) = (body.u32("magic").map_err(failed)?, body.u16("version").map_err(failed)?);
    match (magic, version) {
        (MAGIC, VERSION) => Ok(body),
        (MAGIC, version) => Err(HeadError::Version { version }),
        (magic, _) => Err(HeadError::Magic { magic }),
    }
}

fn kind(body: &mut Reader<'_>, wanted: u32) -> Result<(), CodeError> {
    match body.u32("kind")? {
        kind if kind == wanted => Ok(()),
        kind => Err(CodeError::UnknownKind { kind }),
    }
}

fn parse<T>(what: &'static str, fields: impl FnOnce() -> Result<T, CodeError>) -> Result<T, HeadError> {
    fields().map_err(|source| HeadError::Body { what, source })
}

fn fixed<const N: usize>(fields: impl FnOnce(&mut Writer<'_>)) -> [u8; N] {
    let mut bytes = Vec::with_capacity(N);
    fields(&mut Writer(&mut bytes));
    bytes.try_into().expect("the fields fill it")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_is_that_of_the_documentation() {
        let greeting = Greeting { stream: 3, word: 0x0807_0605_0403_0201 }.encode();
        assert_eq!(greeting[..8], *b"LSTR\x01\x00\x03\x00");
        assert_eq!(greeting[8..], [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Welcome::Unknown.encode(), *b"LSTR\x01\x00\x01\x00\x00\x00\x00\x00");
        let ask = Ask { number: 1, token: 2, first: 3, count: 4, bytes: 5 }.encode();
        assert_eq!(ask.map(u32::from)[..32].iter().step_by(4).copied().collect::<Vec<_>>(), [1, 1, 2, 0, 3, 4, 5, 0]);
        let answer = Answer { number: 7, said: Said::Differs { bytes: 9 } }.encode();
        assert_eq!(answer.iter().step_by(4).copied().collect::<Vec<_>>(), [2, 7, 2, 0, 9, 0]);
    }

    #[test]
    fn another_version_and_another_program_are_named() {
        let mut greeting = Greeting { stream: 0, word: 9 }.encode();
        greeting[4] = 9;
        assert_eq!(Greeting::decode(&greeting), Err(HeadError::Version { version: 9 }));
        assert_eq!(Welcome::decode(&Welcome::Version(9).encode()), Ok(Welcome::Version(9)));
        let http = Greeting::decode(b"GET / HTTP/1.1\r\nHost: ab").expect_err("no greeting");
        assert!(http.to_string().contains("something else than lapis"), "{http}");
        assert!(matches!(Welcome::decode(b"HTTP/1.1 400"), Err(HeadError::Magic { .. })));
        let far = Greeting { stream: STREAMS_MAX, word: 9 }.encode();
        assert!(matches!(Greeting::decode(&far), Err(HeadError::Body { .. })));
    }

    proptest! {
        #[test]
        fn what_was_said_is_heard(
            (number, first, count) in any::<(u32, u32, u32)>(),
            (token, bytes, word) in any::<(u64, u64, u64)>(),
            stream in 0..STREAMS_MAX,
        ) {
            let greeting = Greeting { stream, word };
            prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
            let ask = Ask { number, token, first, count, bytes };
            prop_assert_eq!(Ask::decode(&ask.encode()), Ok(ask));
            for said in [Said::Here { bytes }, Said::Gone, Said::Differs { bytes }] {
                let answer = Answer { number, said };
                prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
            }
            for welcome in [Welcome::In, Welcome::Unknown, Welcome::Version(stream)] {
                prop_assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
            }
        }

        /// What is taken is what would be said: no two readings of one head, but for what is not looked at.
        #[test]
        fn any_bytes_are_refused_or_mean_one_thing(bytes in any::<[u8; 32]>(), begin in any::<bool>()) {
            let mut bytes = bytes;
            if begin {
                bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
                let code = bytes[6] % 4;
                bytes[4..8].copy_from_slice(&[1, 0, code, 0]);
            }
            if let Ok(greeting) = Greeting::decode(bytes[..24].try_into().expect("24 bytes")) {
                prop_assert_eq!(&greeting.encode()[..16], &bytes[..16]);
            }
            if let Ok(welcome) = Welcome::decode(bytes[..12].try_into().expect("12 bytes")) {
                prop_assert_eq!(welcome.encode()[6], bytes[6]);
            }
            bytes[..4].copy_from_slice(&1u32.to_le_bytes());
            let ask = Ask::decode(&bytes).expect("any numbers are an ask");
            prop_assert_eq!(ask.encode(), bytes);
            bytes[0] = 2;
            if let Ok(answer) = Answer::decode(bytes[..24].try_into().expect("24 bytes")) {
                prop_assert_eq!(&answer.encode()[..12], &bytes[..12]);
            }
        }
    }
}
