//! The words that all parts of Lapis share: keys, pools, places, times. Plain values, no behaviour beyond their own.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the unit in which slots are placed and counted; also the alignment that O_DIRECT needs.
pub const UNIT_BYTES: u64 = 4096;
/// Largest block of a chain pool and largest part of an object, bytes.
pub const BLOCK_BYTES_MAX: u64 = 256 << 20;
/// Objects longer than this are stored as a chain of parts of this many bytes.
pub const OBJECT_PART_BYTES: u64 = 64 << 20;
/// Longest name of an object, bytes.
pub const OBJECT_NAME_BYTES_MAX: usize = 1024;
/// Most keys in one call.
pub const BATCH_KEYS_MAX: usize = 8192;
/// Most pieces a block may be cut into.
pub const PIECES_MAX: u16 = 256;
/// Most pools of one group.
pub const POOLS_MAX: usize = 1024;
/// Most extents of one group.
pub const EXTENTS_MAX: usize = 256;
/// No slot straddles a multiple of this: io_uring registers at most 1 GiB at a time.
pub const REGISTER_BYTES: u64 = 1 << 30;
/// Views that one client may hold at once: the entries of its hazard page.
pub const HAZARDS: usize = 8192;

/// A block key: the engine's hash (zero-padded), or BLAKE3 of a longer name.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Key(pub [u64; 4]);

impl Key {
    /// The key of an engine's hash of up to 32 bytes, zero-padded; longer names are hashed with BLAKE3.
    pub fn new(bytes: &[u8]) -> Self {
        let mut padded = [0u8; 32];
        if bytes.len() <= 32 {
            padded[..bytes.len()].copy_from_slice(bytes);
        } else {
            padded = *blake3::hash(bytes).as_bytes();
        }
        Self::from_bytes(padded)
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("8 bytes"));
        Self([word(0), word(1), word(2), word(3)])
    }

    pub fn to_bytes(self) -> [u8; 32] {
        let mut out = [0u8; 32];
        for (chunk, word) in out.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

/// A pool's number within its group: an index into the group's pool table, the same over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u16);

/// A line's index in the block table. Lines never move, so the core knows blocks by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineId(pub u32);

impl LineId {
    pub const NONE: Self = Self(u32::MAX);
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }
}

/// Where a slot starts: an offset in units of 4 KiB over the group's extents, laid end to end (16 TiB at most).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

impl SlotId {
    /// Bytes from the start of the group's first extent.
    pub fn offset_bytes(self) -> u64 {
        u64::from(self.0) * UNIT_BYTES
    }
}

/// A GPU of this host, by the number that the daemon gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GpuId(pub u8);

/// A segment of the SSD log: device in the upper 8 bits, number on the device in the lower 24. A segment lies on one
/// device whole, so that a lost device costs its own segments and no others; one is open on each device, so that all of
/// them write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

impl SegmentId {
    pub const ON_DEVICE_MAX: u32 = 1 << 24;

    pub fn new(device: u8, index: u32) -> Self {
        assert!(index < Self::ON_DEVICE_MAX, "segments of a device are counted in 24 bits");
        Self(u32::from(device) << 24 | index)
    }
    pub fn device(self) -> u8 {
        (self.0 >> 24) as u8
    }
    pub fn index(self) -> u32 {
        self.0 & (Self::ON_DEVICE_MAX - 1)
    }
}

/// A page's place in its segment, in pages of 4 KiB from the segment's start. 0 is the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageIndex(pub u32);

/// Where a record starts on SSD: segment in the upper half, page in the lower. 0 is nowhere: page 0 is a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SsdPlace(pub u64);

impl SsdPlace {
    pub const NONE: Self = Self(0);

    pub fn new(segment: SegmentId, page: PageIndex) -> Self {
        Self(u64::from(segment.0) << 32 | u64::from(page.0))
    }
    pub fn segment(self) -> SegmentId {
        SegmentId((self.0 >> 32) as u32)
    }
    pub fn page(self) -> PageIndex {
        PageIndex(self.0 as u32)
    }
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }
}

/// A connected client of a group. 0 is nobody; numbers are never used twice within a table's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u32);

/// One operation of a mover: named by the core, reported back with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// Microseconds on a clock that never goes back and goes on over a daemon restart (CLOCK_BOOTTIME, or virtual).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    pub const NEVER: Self = Self(u64::MAX);
    pub fn after(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
    /// Microseconds from `earlier` to this; 0 if `earlier` is later.
    pub fn since_us(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What the bytes of a namespace mean: BLAKE3 over model, weights revision, dtype, layout, tokens per block, hash
/// algorithm and seed, salt. Unlike fingerprints never share a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// Equal blocks with parents.
    Chain,
    /// Any bytes under any name.
    Object,
}

/// What makes a pool: two clients that give the same shape get the same pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolShape {
    pub namespace: Fingerprint,
    /// Which family of blocks in the namespace: cache group, rank or shard rectangle, K or V. At most 48 bytes.
    pub label: String,
    pub kind: PoolKind,
    /// Payload bytes of every block (chain), or the most that an object may have.
    pub block_bytes: u64,
    /// Equal pieces per block, each with a sum of its own when there are several; 1 to 256.
    pub pieces: u16,
}

/// How many of the asked keys count as a hit, per pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HitPolicy {
    /// The leading run.
    Prefix,
    /// A length counts only if the last `n` keys before it are present (sliding windows, recurrent state).
    Trailing(u32),
    /// Each key for itself.
    Any,
}

/// Whether a get may wait for a block that is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wait {
    /// Answer at once from what is present.
    Present,
    /// Wait for blocks that somebody is filling now.
    Filling,
    /// Wait until the deadline for blocks that nobody has put yet, too.
    Absent,
}

/// Why a put was refused. Values go over the wire: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    #[error("every slot is pinned, granted or being written, and stayed so until the deadline")]
    AllPinned = 1,
    #[error("the block is larger than the pool's blocks")]
    TooLarge = 2,
    #[error("the block does not fit an extent of this group")]
    NoExtentFits = 3,
    #[error("the pool is not known to this daemon")]
    NoPool = 4,
    #[error("this group's socket does not permit puts")]
    ReadOnly = 5,
    #[error("the slot was not granted to this client")]
    NotGranted = 6,
    #[error("no free line in both windows of the key, and none that may be evicted")]
    NoLine = 7,
    #[error("the group's memory is still being populated")]
    NotReady = 8,
    #[error("the parent block is not stored")]
    NoParent = 9,
    #[error("a limit of this client is reached")]
    Limit = 10,
    #[error("the daemon is draining")]
    Draining = 11,
    #[error("the daemon is gone")]
    Gone = 12,
    /// The block may yet be stored.
    #[error("the daemon did not answer before the deadline")]
    Late = 13,
    /// Without a tier below: the put itself is the coldest.
    #[error("every block that could make room is worth more")]
    Cold = 14,
    #[error("no other host of this name can be asked now")]
    NoPeer = 15,
}

impl Refusal {
    pub const ALL: [Self; 15] = [
        Self::AllPinned,
        Self::TooLarge,
        Self::NoExtentFits,
        Self::NoPool,
        Self::ReadOnly,
        Self::NotGranted,
        Self::NoLine,
        Self::NotReady,
        Self::NoParent,
        Self::Limit,
        Self::Draining,
        Self::Gone,
        Self::Late,
        Self::Cold,
        Self::NoPeer,
    ];

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|r| *r as u8 == code)
    }

    /// True if the same put may succeed later without anyone's help.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::AllPinned | Self::NotReady | Self::NoLine | Self::Draining | Self::Gone | Self::Late | Self::NoPeer
        )
    }
}

/// What an engine knows of the future of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hint {
    /// The session ended: its own blocks are the first to go.
    Ended,
    /// The session will be back soon (a tool call runs).
    WillReturn,
    /// Kept as long as anything else can go, for so many milliseconds.
    Pinned { ttl_ms: u32 },
    /// Higher stays longer; decays.
    Priority(u8),
}

/// What the core remembers of the block at one line, beside what the line itself says. Lives in the daemon's private
/// memory, kept over restarts; after one, only `parent` (if its generation still fits), `class` and `last_use` are
/// believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Entry {
    /// Neighbours in the policy's list; line numbers.
    pub newer: u32,
    pub older: u32,
    /// Line of the parent block, or `u32::MAX`.
    pub parent: u32,
    /// Tenths of a second of [`Time`].
    pub last_use: u32,
    /// Low bits of the parent's generation when the link was made.
    pub parent_generation: u16,
    pub class: u8,
    pub flags: u8,
    /// Line of one of the resident children, or `u32::MAX`: then the block is a leaf.
    pub first_child: u32,
    /// Where the copy on SSD starts; 0 = none.
    pub ssd: u64,
}

const _: () = assert!(size_of::<Entry>() == 32 && size_of::<Key>() == 32, "layout of shared memory");
