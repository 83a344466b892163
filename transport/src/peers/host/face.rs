//! What a host wants done.

use std::time::Duration;

use lapis_config::{Key, PoolId};

use super::super::{
    answerer::Asked,
    directory::PeerId,
    message::{Located, PeerHello, PeerMessage},
};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Link {
    /// On which this host asks.
    To(PeerId),
    /// On which a peer asks; a number that is never used again.
    From(u64),
}

/// What the host wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Do {
    Dial(PeerId),
    Send(Link, PeerMessage),
    HangUp(Link, String),
    /// These blocks of a want, each with the index of its key, are to be read into slots here; `filled` says which came,
    /// and the call is over then.
    Read {
        want: u64,
        peer: PeerId,
        call: u64,
        /// Whether they were looked up: nothing is held there then, and any of them may be another block by now.
        looked: bool,
        /// Of the first of them; zeros if it has none.
        parent: Key,
        blocks: Vec<(usize, Located)>,
    },
    /// These keys of a want are to be looked up in the peer's table, in `pool` by its number; `looked` says what came of it.
    Look {
        want: u64,
        peer: PeerId,
        call: u64,
        pool: PoolId,
        keys: Vec<Key>,
        within: Duration,
    },
    /// Of an offer so many blocks are at the peer now; 0 also if it did not answer.
    Offered {
        offer: u64,
        came: u32,
    },
    /// So many keys of a want came.
    Ended {
        want: u64,
        came: usize,
    },
    /// A peer is there: blocks can be fetched from where its hello says, until it is `Down`.
    Up(PeerId, PeerHello),
    Down(PeerId),
    /// A peer's paths said something to this host's.
    Path(PeerId, Vec<u8>),
    /// A peer may ask on this link; its name.
    Guest(u64, String),
    /// A peer asks; never `Hello` or `HangUp`.
    Asked(u64, Asked),
    /// A link on which a peer asked is gone, and with it all that is held for it.
    Gone(u64),
}
