//! The frames of the request and completion rings between a client and the daemon of its host. One frame a call,
//! batches inside. The daemon copies a frame out of shared memory once and parses the copy.

mod completion;
mod request;

use lapis_config::{GpuId, Hint, HitPolicy, Key, PoolId, Refusal, SlotId, Wait};

pub use crate::code::CodeError;

/// Most items of one `Commit`; the client library splits longer batches (the first item of a part then names its
/// parent by key).
pub const COMMIT_ITEMS_MAX: usize = 256;
/// Longest name of another host, bytes; cut when sent.
pub const PEER_NAME_BYTES_MAX: usize = 256;
/// Most pools that one `Get` asks.
pub const ASKS_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentRef {
    None,
    /// The item before it in the same frame.
    Previous,
    Key(Key),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitItem {
    pub slot: SlotId,
    pub key: Key,
    pub parent: ParentRef,
    pub bytes: u32,
    pub sum: u64,
}

/// Client to daemon. `token` names the call in its answer; `deadline_us` counts from when the daemon takes the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Answered by `Committed`.
    Commit { token: u64, pool: PoolId, items: Vec<CommitItem> },
    /// More slots of `slot_bytes` for the magazine. Answered by `Granted` with 1 to `count` slots, or `Refused`.
    Refill { token: u64, pool: PoolId, slot_bytes: u32, count: u32, deadline_us: u64 },
    /// Answered by `Reserved`.
    Reserve { token: u64, pool: PoolId, slot_bytes: u32, parent: ParentRef, deadline_us: u64, keys: Vec<Key> },
    /// Slots given back unfilled: an abort, or an answer to a recall. No answer.
    Abort { slots: Vec<SlotId> },
    /// Answered by `Got`; the hit blocks stay until `Release` of the same token.
    Get { token: u64, asks: Vec<(PoolId, HitPolicy)>, wait: Wait, deadline_us: u64, keys: Vec<Key> },
    /// As `Get`, but what is missing here is asked of the host `peer` first, which waits for it as `wait` says.
    GetFrom { token: u64, peer: String, asks: Vec<(PoolId, HitPolicy)>, wait: Wait, deadline_us: u64, keys: Vec<Key> },
    /// Offers blocks to the host `peer`, which reads what it has room for. Answered by `Got` with how many are there then, or
    /// `Refused`.
    Offer { token: u64, peer: String, pool: PoolId, deadline_us: u64, keys: Vec<Key> },
    /// No answer.
    Release { token: u64 },
    /// No answer.
    Prefetch { pool: PoolId, keys: Vec<Key> },
    /// No answer.
    HintKeys { pool: PoolId, hint: Hint, keys: Vec<Key> },
    /// Answered by `Removed`.
    Remove { token: u64, pool: PoolId, keys: Vec<Key> },
    /// Every block of the pool. Answered by `Removed`.
    Purge { token: u64, pool: PoolId },
    /// Slots on a GPU, now or not at all. Answered by `Reserved`.
    ReserveOnGpu { token: u64, gpu: GpuId, pool: PoolId, parent: ParentRef, keys: Vec<Key> },
    /// Slots on a GPU that were filled; a sum of 0 is made by the daemon. Answered by `Committed`.
    CommitOnGpu { token: u64, gpu: GpuId, pool: PoolId, items: Vec<CommitItem> },
    /// Slots on a GPU given back unfilled. No answer.
    AbortOnGpu { gpu: GpuId, slots: Vec<SlotId> },
}

/// Per item of a commit: 0 stored, 1 exists, else 16 + refusal code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutResult {
    Stored,
    Exists,
    Refused(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveResult {
    Slot(SlotId),
    Exists,
    Refused(Refusal),
}

/// Daemon to client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion {
    Committed {
        token: u64,
        results: Vec<PutResult>,
    },
    /// Token 0: a top-up that nobody asked for.
    Granted {
        token: u64,
        pool: PoolId,
        slot_bytes: u32,
        slots: Vec<SlotId>,
    },
    Reserved {
        token: u64,
        results: Vec<ReserveResult>,
    },
    Got {
        token: u64,
        hit: u32,
    },
    Removed {
        token: u64,
        blocks: u64,
    },
    Refused {
        token: u64,
        reason: Refusal,
    },
}
