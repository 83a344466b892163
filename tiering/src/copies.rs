//! What a tier's copy of a block may become: a table of legal steps, asserted at each.
//!
//! A block has at most one copy per tier. In DRAM alone every stored block is `Dirty`: it is nowhere else. What is only on
//! SSD has an `Absent` copy in DRAM and a place in `Entry::ssd`.

use lapis_config::Entry;

/// The state of one tier's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Copy {
    Absent = 0,
    /// A slot is reserved and being filled; readers do not see it.
    Filling = 1,
    /// Readable, and only in this tier: dropping it loses the block.
    Dirty = 2,
    /// Readable, and on SSD too.
    Clean = 3,
    /// Being written to a lower tier; readable until the write has ended.
    Moving = 4,
}

/// What happens to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Reserve,
    Abort,
    Commit,
    Adopt,
    Drop,
    /// A write to SSD begins, and ends.
    Write,
    Written,
    WriteFailed,
    /// The copy on SSD is gone, or one was found there.
    Lost,
    Found,
    /// A read from SSD begins, and ends.
    Fetch,
    Fetched,
    FetchFailed,
}

/// Bits of `Entry::flags` that hold the state of the DRAM copy.
const DRAM: u8 = 0b111;

impl Copy {
    /// What a copy becomes by a step; `None` if the step is not legal. Dropping a `Dirty` copy is a cache's right. One
    /// that a device still reads is dropped for readers only: its slot is the operation's until that ends.
    pub const fn after(self, step: Step) -> Option<Self> {
        match (self, step) {
            (Self::Absent, Step::Reserve) => Some(Self::Filling),
            (Self::Filling, Step::Abort) => Some(Self::Absent),
            (Self::Filling, Step::Commit) => Some(Self::Dirty),
            (Self::Absent, Step::Adopt) => Some(Self::Dirty),
            (Self::Dirty | Self::Clean | Self::Moving, Step::Drop) => Some(Self::Absent),
            (Self::Dirty, Step::Write) => Some(Self::Moving),
            (Self::Moving, Step::Written) => Some(Self::Clean),
            (Self::Moving, Step::WriteFailed) => Some(Self::Dirty),
            (Self::Clean, Step::Lost) => Some(Self::Dirty),
            (Self::Dirty, Step::Found) => Some(Self::Clean),
            (Self::Absent, Step::Fetch) => Some(Self::Filling),
            (Self::Filling, Step::Fetched) => Some(Self::Clean),
            (Self::Filling, Step::FetchFailed) => Some(Self::Absent),
            _ => None,
        }
    }

    /// Whether readers find it.
    pub const fn is_readable(self) -> bool {
        matches!(self, Self::Dirty | Self::Clean | Self::Moving)
    }

    pub fn of_dram(entry: &Entry) -> Self {
        match entry.flags & DRAM {
            1 => Self::Filling,
            2 => Self::Dirty,
            3 => Self::Clean,
            4 => Self::Moving,
            _ => Self::Absent,
        }
    }
}

/// Takes the DRAM copy of an entry one step on.
///
/// # Panics
/// If the step is not legal: the core's own mistake.
pub(crate) fn step_dram(entry: &mut Entry, step: Step) {
    let from = Copy::of_dram(entry);
    let to = from.after(step).unwrap_or_else(|| panic!("{step:?} of a copy that is {from:?}"));
    entry.flags = entry.flags & !DRAM | to as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_is_being_filled_is_not_dropped() {
        assert_eq!(Copy::Filling.after(Step::Drop), None);
        assert_eq!(Copy::Filling.after(Step::FetchFailed), Some(Copy::Absent));
    }

    #[test]
    fn only_what_is_on_ssd_too_is_clean() {
        let into_clean = |step: &Step| {
            let all = [Copy::Absent, Copy::Filling, Copy::Dirty, Copy::Clean, Copy::Moving];
            all.iter().any(|copy| copy.after(*step) == Some(Copy::Clean))
        };
        let steps = [Step::Commit, Step::Adopt, Step::Write, Step::WriteFailed, Step::Lost, Step::Fetch];
        assert!(!steps.iter().any(into_clean));
        assert!([Step::Written, Step::Found, Step::Fetched].iter().all(into_clean));
    }

    #[test]
    fn a_put_goes_from_absent_over_filling_to_dirty_and_back() {
        let mut entry = Entry::default();
        for (step, state) in [
            (Step::Reserve, Copy::Filling),
            (Step::Commit, Copy::Dirty),
            (Step::Drop, Copy::Absent),
            (Step::Reserve, Copy::Filling),
            (Step::Abort, Copy::Absent),
        ] {
            step_dram(&mut entry, step);
            assert_eq!(Copy::of_dram(&entry), state);
        }
    }
}
