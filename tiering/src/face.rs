//! What goes into the core and what comes out of it: plain values. Batches are of one chain at a time.

use lapis_config::{ClientId, GpuId, Key, LineId, OpId, PageIndex, PoolId, Refusal, SegmentId, SlotId, SsdPlace};

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

/// A slot in DRAM or on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    Dram(SlotId),
    /// Counted over the GPU's own extents.
    Hbm(GpuId, SlotId),
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
    /// Between a slot in DRAM and one on a GPU. What a failed one leaves there is read by nobody.
    Copy {
        op: OpId,
        from: Spot,
        to: Spot,
        bytes: u32,
    },
    /// Make the sums of a block that came from a GPU without them; those of its pieces lie behind it in the slot. Answered
    /// by `summed`.
    Sum {
        op: OpId,
        pool: PoolId,
        key: Key,
        slot: SlotId,
        bytes: u32,
    },
    /// Write a slot as it stands to the log.
    WriteSsd {
        op: OpId,
        at: SsdPlace,
        slot: SlotId,
        pages: u32,
    },
    /// Read a record into a slot. Its bytes are checked later: against `Verify`, and by whoever reads them first.
    ReadSsd {
        op: OpId,
        at: SsdPlace,
        slot: SlotId,
        pages: u32,
    },
    /// Write the header of a segment's new use.
    OpenSegment {
        op: OpId,
        segment: SegmentId,
        opened: u64,
    },
    /// Write a page of contents.
    ListSsd {
        op: OpId,
        segment: SegmentId,
        opened: u64,
        place: PageIndex,
        /// Where the page after it will be; `None` in the last one.
        next: Option<PageIndex>,
        sequence: u64,
        listed: Listed,
    },
    /// What the device reported as written outlasts a power cut from then on.
    FlushSsd {
        op: OpId,
        device: u8,
    },
    /// Nothing in this segment is needed any more: its header is wiped, before whatever comes after. With `leaves` it is
    /// nobody's then.
    FreeSegment {
        segment: SegmentId,
        leaves: bool,
    },
    /// The group could use one more segment on that device: answered by `segment_given` before the next action is asked
    /// for, or not at all.
    NeedSegment {
        device: u8,
    },
    /// No slab is free: the group could use one more extent if it may have one.
    NeedMemory,
}

/// A line of a page of contents: a record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub pool: PoolId,
    pub key: Key,
    /// Zeros for a root.
    pub parent: Key,
    pub start: PageIndex,
    pub pages: u32,
    /// Of payload.
    pub bytes: u32,
    pub sum: u64,
    pub sequence: u64,
    pub class: u8,
    /// Nothing was written: records of the key with lower sequences are gone.
    pub removed: bool,
}

impl Record {
    pub fn removal(pool: PoolId, key: Key, sequence: u64) -> Self {
        let (parent, start) = (Key::default(), PageIndex(0));
        Self { pool, key, parent, start, pages: 0, bytes: 0, sum: 0, sequence, class: 0, removed: true }
    }
}

/// What a page of contents is to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    Records(Vec<Record>),
    /// Pools, each with the sequence below which its records are gone.
    Pools(Vec<(PoolId, u64)>),
}

/// How an operation of a mover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
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
    /// Now: of a dropped block, or of one that is coming, which a device writes or reads.
    pub slots_busy: u64,
    /// Now: blocks that have a line, wherever their bytes are.
    pub lines_used: u64,
    /// Now: blocks that are on SSD, whether in DRAM too or not, and the bytes of their records.
    pub ssd_blocks: u64,
    pub ssd_bytes: u64,
    /// Blocks that somebody waited for and that came from SSD: once for each who waited.
    pub ssd_hits: u64,
    /// Of `corrupt`: blocks that were on SSD too.
    pub ssd_corrupt: u64,
    /// Blocks that left DRAM and stayed on SSD, and that came back.
    pub demotions: u64,
    pub promotions: u64,
    /// Blocks that left SSD with their segment.
    pub ssd_evictions: u64,
    /// Records of former starts: taken over, and not.
    pub ssd_found: u64,
    pub ssd_passed_over: u64,
    pub ssd_writes_failed: u64,
    pub ssd_reads_failed: u64,
    /// Bytes of blocks that were stored on SSD and were not there before; of those that were written anew when their
    /// segment went; of all records written, whatever became of them; of headers and tables of contents.
    pub admitted_bytes: u64,
    pub readmitted_bytes: u64,
    pub ssd_record_bytes: u64,
    pub ssd_table_bytes: u64,
    pub segments_retired: u64,
    /// Bytes of records, tables and headers since the start, where a budget bounds them; and full blocks that left DRAM
    /// without being on SSD because it had none for them.
    pub budget_spent_bytes: u64,
    pub ssd_declined: u64,
    /// Copies of blocks that came to GPUs from DRAM, that clients put there, and that went to make room.
    pub hbm_promotions: u64,
    pub hbm_puts: u64,
    pub hbm_evictions: u64,
    /// Blocks that left DRAM and stayed on a GPU alone, and that came back to DRAM from one.
    pub hbm_demotions: u64,
    pub hbm_saved: u64,
    /// Blocks that a host waited for and that came from a GPU: once for each who waited.
    pub hbm_hits: u64,
    pub hbm_copies_failed: u64,
    /// Blocks that went with a GPU, and with those that hung on them.
    pub hbm_lost: u64,
}
