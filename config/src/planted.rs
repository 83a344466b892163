//! Bugs that tests plant, to see that the simulator finds them: each is asked for where it would be made. Without the
//! feature `planted` nothing is ever planted, and the compiler takes the questions out.

/// What goes wrong, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// A slot whose block went is free though a device still reads it.
    SlotFreeDuringWrite = 1,
    /// A slot is reused though a reader names it.
    HazardMissed,
    /// A page of contents counts before the flush that follows it.
    FlushLost,
    /// Some records are written a page away from where they are looked for.
    RecordMisplaced,
    /// A record is listed as soon as its write begins.
    ListedBeforeWritten,
    /// Of several records of a key, a start believes the oldest.
    OldestWins,
    /// A removed block is forgotten in memory alone.
    RemovalNotListed,
    /// A start uses sequences that a former one has used.
    SequencesReused,
    /// A block counts as on SSD before a page lists it.
    CleanBeforeListed,
    /// What a device read is believed.
    ReadBelieved,
    /// A segment is given to new records while it is read: neither the core nor the device's queue waits for its reads.
    /// Either of them alone would hold the other's mistake up.
    SegmentFreeDuringRead,
    /// A hold that ended with its block ends the hold of the next one there.
    HoldOfAnother,
    /// Records whose pool no page lists.
    PoolNotListed,
    /// The slot of a block that a device brings is not marked before it does.
    SlotOfReadForgotten,
    /// What was removed before a start's records are told is not looked for among them.
    EarlyRemovalForgotten,
}

#[cfg(feature = "planted")]
mod selected {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Bug;

    static SELECTED: AtomicU8 = AtomicU8::new(0);

    impl Bug {
        pub const ALL: [Self; 15] = [
            Self::SlotFreeDuringWrite,
            Self::HazardMissed,
            Self::FlushLost,
            Self::RecordMisplaced,
            Self::ListedBeforeWritten,
            Self::OldestWins,
            Self::RemovalNotListed,
            Self::SequencesReused,
            Self::CleanBeforeListed,
            Self::ReadBelieved,
            Self::SegmentFreeDuringRead,
            Self::HoldOfAnother,
            Self::PoolNotListed,
            Self::SlotOfReadForgotten,
            Self::EarlyRemovalForgotten,
        ];
    }

    /// Plants one bug in this process, and takes out any other.
    pub fn plant(bug: Option<Bug>) {
        SELECTED.store(bug.map_or(0, |bug| bug as u8), Ordering::SeqCst);
    }

    #[inline]
    pub fn is(bug: Bug) -> bool {
        SELECTED.load(Ordering::Relaxed) == bug as u8
    }
}

#[cfg(feature = "planted")]
pub use selected::{is, plant};

/// Whether the bug is planted.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
