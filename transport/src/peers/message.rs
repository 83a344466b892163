//! What hosts say to each other on their control connection: a stream of messages, each with a head of 16 bytes (magic,
//! version, kind, length) that never changes, so that the oldest and the newest daemon can refuse each other by name.
//!
//! Bytes of blocks never go this way. Invariant: a decoder allocates no more than the message's own bytes justify.

mod decode;
mod encode;

use lapis_config::{Key, PoolId, PoolShape, Wait};

use super::{
    digest::{Delta, Part, Whole},
    name::ShortName,
};
use crate::code::CodeError;

/// A differing major is refused; a daemon speaks the lower of two minors.
pub const VERSION_MAJOR: u16 = 1;
pub const VERSION_MINOR: u16 = 0;

/// Bytes of a message's head.
pub const HEAD_BYTES: usize = 16;
/// Largest message with its head; a longer one ends the connection.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Longest name of a host or a group, bytes; cut when sent.
pub const NAME_BYTES_MAX: usize = 256;
/// Longest reason of a refusal, bytes; cut when sent.
pub const REASON_BYTES_MAX: usize = 1024;
/// Most changes of one delta; the sender splits.
pub const CHANGES_MAX: usize = 64 * 1024;
/// Most bytes that a path says at once.
pub const PATH_BYTES_MAX: usize = 16 << 10;
/// Most bytes of one part of a digest.
pub const PART_BYTES_MAX: usize = 512 << 10;

/// With which every message begins.
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"LPEE");

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("the other side speaks something else than lapis: its message begins with {magic:#010x}")]
    Magic { magic: u32 },
    #[error(
        "the other side speaks version {major}.{minor} of the peers' protocol, this one {VERSION_MAJOR}.{VERSION_MINOR}"
    )]
    Version { major: u16, minor: u16 },
    #[error("a message of {bytes} bytes, the limit is {MESSAGE_BYTES_MAX}")]
    TooLong { bytes: u32 },
    #[error("a message of {bytes} bytes with its head, which has {HEAD_BYTES}")]
    TooShort { bytes: u32 },
    #[error("message of kind {kind}")]
    Body { kind: u32, source: CodeError },
}

/// Who a host is. The first message of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// As its configuration calls it.
    pub host: String,
    /// The trust group whose blocks this connection is about.
    pub group: String,
    /// New at each start of the daemon: what was said to another one counts no more.
    pub boot: u64,
    /// Of the largest digest of another host that it keeps.
    pub digest_bytes_max: u64,
    /// Where it takes streams of blocks: a port at the address of this connection, and a word of this connection that such
    /// a stream begins with. Zeros from who asks.
    pub data_port: u16,
    pub data_word: u64,
}

/// Where a block lies at its owner, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Of its key, among those asked for.
    pub index: u16,
    /// Its parent is the block before it in the answer.
    pub follows: bool,
    /// Line of the owner's table, and its generation when this was said: a changed one is another block's.
    pub line: u32,
    pub generation: u64,
    /// In units of 4 KiB from the start of the owner's memory.
    pub slot: u32,
    pub bytes: u32,
    pub sum: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    Hello(PeerHello),
    /// Why this connection ends; the last message of it.
    Refused {
        reason: String,
    },
    /// The sender's number of a pool. A pool is announced before anything is said of it.
    Pool {
        pool: PoolId,
        shape: PoolShape,
    },
    Whole(Whole),
    Part(Part),
    Delta(Delta),
    /// The receiver's digest is to be sent whole.
    WholeWanted,
    /// Where these blocks are: the leading run of them, or with `each` all that there are; `pool` is the receiver's number.
    /// Answered by `Found`. They stay there until `Release`, at most until the deadline.
    Locate {
        token: u64,
        pool: PoolId,
        each: bool,
        wait: Wait,
        deadline_us: u64,
        keys: Vec<Key>,
    },
    /// In the order of their keys. `parent`: of the first of them; zeros if it has none.
    Found {
        token: u64,
        parent: Key,
        blocks: Vec<Located>,
    },
    /// What moves the blocks has to say to its like at the other side: addresses of a NIC, keys of its regions.
    Path {
        said: Vec<u8>,
    },
    /// What was located is needed no more. No answer.
    Release {
        token: u64,
    },
    /// Blocks of the sender that the receiver may want: of a prefill that it decodes, or of a host that goes away. It reads
    /// what it has room for, and answers by `Offered`, at the latest at the deadline.
    Offer {
        number: u64,
        pool: PoolId,
        deadline_us: u64,
        keys: Vec<Key>,
    },
    /// So many of the offered blocks are at the answering host now.
    Offered {
        number: u64,
        came: u32,
    },
    /// These blocks were removed at the sender, or with no keys all of the pool: copies of them are to go. No answer.
    Forget {
        pool: PoolId,
        keys: Vec<Key>,
    },
    /// So many calls may be under way that are not answered.
    Credit {
        calls: u32,
    },
    /// Answered by `Pong` of the same number.
    Ping {
        number: u64,
    },
    Pong {
        number: u64,
    },
    /// The sender goes away: it is asked no more, and asks no more.
    Leaving,
}

/// The head of a message: what kind it is, and how many bytes follow. `bytes` has at least [`HEAD_BYTES`].
pub fn head(bytes: &[u8; HEAD_BYTES]) -> Result<(u32, usize), MessageError> {
    decode::head(bytes)
}

impl PeerMessage {
    /// Appends the message with its head.
    ///
    /// # Panics
    /// If a list is longer than its limit: senders split.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode::message(self, out);
    }

    /// Parses what follows a head.
    pub fn decode(kind: u32, body: &[u8]) -> Result<Self, MessageError> {
        decode::body(kind, body).map_err(|source| MessageError::Body { kind, source })
    }
}

/// Bytes of a change in a delta.
pub const CHANGE_BYTES: usize = 7;

fn change_bytes(name: ShortName, added: bool) -> [u8; CHANGE_BYTES] {
    let word = name.bits() | u64::from(added) << 48;
    word.to_le_bytes()[..CHANGE_BYTES].try_into().expect("seven of eight")
}
