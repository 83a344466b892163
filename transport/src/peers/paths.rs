//! How blocks move between hosts: straight from a slot of the one into a slot of the other. Jobs and what comes of them;
//! implemented over TCP streams, over RDMA, by both together, and by the simulator with faults.
//!
//! Paths decide nothing. Whoever fetches checks each block's sum before it is reported: what the owner has reused or lost
//! meanwhile, and what was cut or damaged on its way, is no block.

pub mod both;

use std::{net::SocketAddr, time::Duration};

use lapis_arena::{Mapping, StoredBlock, table::TableShape};
use lapis_config::{Key, PoolId, SlotId};

use super::{directory::PeerId, links::LinkId, message::Located};

/// Bytes of a block that is lent to a peer, where they lie now: payload and tail.
#[derive(Clone, Debug)]
pub struct Lent {
    pub mapping: Mapping,
    pub offset: usize,
    pub bytes: u32,
}

/// A block to fetch: where it lies at its owner, and into which slot it goes. `into.sum` and `into.bytes` are what the
/// owner said.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub from: Located,
    /// Bytes that are moved: `into.bytes`, and the tail of the slot.
    pub span: u32,
    pub into: StoredBlock,
}

/// Fetches blocks that a peer has located and holds.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// The caller's name for it, given back by `Fetched`; never used again.
    pub op: u64,
    /// On which they were located.
    pub link: LinkId,
    /// By which they were located: the owner has them lent under this.
    pub token: u64,
    /// Index of the first of `blocks` among those that were located.
    pub first: u32,
    pub blocks: Vec<Wanted>,
    /// From now; what is not there then has failed.
    pub within: Duration,
}

/// Looks keys up in a peer's block table without asking it.
#[derive(Clone, Debug)]
pub struct Look {
    /// As of a fetch; no fetch has the same.
    pub op: u64,
    pub link: LinkId,
    /// The peer's number of it.
    pub pool: PoolId,
    pub keys: Vec<Key>,
    /// From now; what is not found then is not found.
    pub within: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It is in its slot, and its bytes fit their sum.
    Whole,
    /// Bytes came that are not its own.
    Corrupt,
    /// Nothing came, or not all of it.
    Not,
}

/// What moved a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    Tcp,
    Rdma,
}

#[derive(Clone, Debug)]
pub enum ToPaths {
    /// Memory of a trust group, from which its peers may read and into which blocks are fetched: an extent whose memory is
    /// populated and stays. `first`: the number of its first slot; `node`: the NUMA node that it is of, where that is followed.
    Memory {
        group: usize,
        first: SlotId,
        mapping: Mapping,
        node: Option<u32>,
    },
    /// The block table of a trust group, in which its peers may look keys up: it takes the place of a former one. Who has
    /// not told of one looks nothing up either.
    Table {
        group: usize,
        mapping: Mapping,
        shape: TableShape,
    },

    // ---- At the owner of blocks ----
    /// A peer may ask on this link; its streams of blocks begin with `word`.
    Guest {
        group: usize,
        link: LinkId,
        word: u64,
    },
    /// It may not any more: nothing more is sent or can be read by it.
    GuestGone {
        link: LinkId,
    },
    /// These blocks may be read by the peer on this link under this token.
    Lend {
        link: LinkId,
        token: u64,
        blocks: Vec<Lent>,
    },
    /// Their slots may be reused now; what still goes out of them does no harm, as its reader checks it.
    Unlend {
        link: LinkId,
        token: u64,
    },

    // ---- At who fetches ----
    /// A peer is there, asked on this link: where its streams begin, and the word that it wants to hear first. `host`: its
    /// name, also in its certificate. `local`: this host's address on the link.
    Peer {
        group: usize,
        peer: PeerId,
        host: String,
        link: LinkId,
        local: SocketAddr,
        address: SocketAddr,
        word: u64,
    },
    /// It is gone, or another process answers in its place: every fetch on this link ends now.
    PeerGone {
        link: LinkId,
    },
    Fetch(Fetch),
    Look(Look),

    /// The other side's paths said this on that link, at either end of it.
    Heard {
        link: LinkId,
        said: Vec<u8>,
    },
}

#[derive(Debug)]
pub enum FromPaths {
    /// To be carried to the other side's paths: at most `PATH_BYTES_MAX`.
    Say { link: LinkId, said: Vec<u8> },
    /// A fetch ended: for each of its blocks, in order. Nothing is written into its slots any more.
    Fetched { op: u64, came: Vec<Came>, by: PathKind },
    /// A look ended: where the leading run of its keys was when it was looked up, `follows` of none of them known; or it could
    /// not be looked up at all. Nothing is held there: what a fetch by no token brings decides.
    Looked { op: u64, found: Option<Vec<Located>> },
}

pub trait Paths {
    fn submit(&mut self, job: ToPaths);
    fn poll(&mut self) -> Option<FromPaths>;
    /// The port at which other hosts begin streams of blocks; 0: none.
    fn data_port(&self) -> u16;
}
