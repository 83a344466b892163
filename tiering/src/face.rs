//! What goes into the core and what comes out of it: plain values. Batches are of one chain at a time.

use lapis_config::{ClientId, Key, LineId, OpId, PoolId, Refusal, SlotId};

/// The parent of a block in a commit or reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The first block of a chain, or an object.
    None,
    /// The block before it in the same batch.
    Previous,
    Key(Key),
}

/// A filled slot that its client wants published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitItem {
    pub slot: SlotId,
    pub key: Key,
    pub parent: Parent,
    pub bytes: u32,
    pub sum: u64,
}

/// What became of one committed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Stored,
    /// Somebody's copy of the same key was there first. The slot is back with the daemon.
    Exists,
    Refused(Refusal),
}

/// What a reserve answers for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    Slot(SlotId),
    Exists,
    Refused(Refusal),
}

/// Whom an answer is for: the client and the number by which it knows its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller {
    pub client: ClientId,
    pub token: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// How many of the leading keys are hits under every (pool, hit policy) asked, or for `Any` alone how many of all.
    /// Lines in DRAM stay where they are until `release` of the same caller.
    Got {
        hit: u32,
    },
    /// Slots for the magazine, of one pool and size; empty never: then it is `Refused`.
    Granted {
        pool: PoolId,
        slot_bytes: u32,
        slots: Vec<SlotId>,
    },
    Reserved {
        results: Vec<Reserved>,
    },
    Committed {
        results: Vec<Put>,
    },
    /// Of a remove or purge: blocks that were there.
    Removed {
        blocks: u64,
    },
    Done,
    Refused(Refusal),
}

/// What the core wants done. The engine loop carries it to a mover; where there is an `op`, the mover's outcome comes
/// back by `completed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Reply {
        to: Caller,
        reply: Reply,
    },
    /// Ask an idle client for the slots of its magazine.
    Recall {
        client: ClientId,
        pool: PoolId,
    },
    /// The client holds more pins than its bound, under pressure, and had its grace: disconnect it, ignore its page.
    Expel {
        client: ClientId,
    },
    /// Check the bytes of a published slot against their sum.
    Verify {
        op: OpId,
        line: LineId,
        pool: PoolId,
        key: Key,
        slot: SlotId,
        bytes: u32,
        sum: u64,
    },
    /// Between slots of two tiers' arenas.
    Copy {
        op: OpId,
        from: SlotId,
        to: SlotId,
        bytes: u32,
    },
    WriteSsd {
        op: OpId,
        line: LineId,
        pool: PoolId,
        key: Key,
        parent: Option<Key>,
        slot: SlotId,
        bytes: u32,
        sum: u64,
    },
    ReadSsd {
        op: OpId,
        at: u64,
        pool: PoolId,
        key: Key,
        slot: SlotId,
        bytes: u32,
        sum: u64,
    },
    Fetch {
        op: OpId,
        peer: u32,
        pool: PoolId,
        key: Key,
        slot: SlotId,
        bytes: u32,
    },
    /// The copy on SSD is not wanted any more.
    Discard {
        at: u64,
    },
    /// No slab is free: the group could use one more extent if it may have one.
    NeedMemory,
}

/// How an operation of a mover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Written; where.
    Written {
        at: u64,
    },
    /// The bytes do not fit their sum.
    Corrupt,
    Failed,
}

/// Counters of one core. Monotonic since the table was made, unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub blocks: u64,
    pub evictions: u64,
    pub puts_stored: u64,
    pub puts_exists: u64,
    pub puts_refused: u64,
    /// Now.
    pub slots_granted: u64,
    /// Now: reuse waits for a reader, a dead client's processes, or an operation.
    pub slots_aside: u64,
    pub slots_free: u64,
    pub slots_used: u64,
    pub bytes_used: u64,
    pub slabs_moved: u64,
    pub verified: u64,
    pub corrupt: u64,
}
