//! What a tier's copy of a block may become: a table of legal steps, asserted at each.
//!
//! A block has at most one copy per tier. In DRAM alone every stored block is `Dirty`: it is nowhere else.

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
}

/// Bits of `Entry::flags` that hold the state of the DRAM copy.
const DRAM: u8 = 0b111;

impl Copy {
    /// What a copy becomes by a step; `None` if the step is not legal. Dropping a `Dirty` copy is a cache's right;
    /// dropping one that a device still reads is not.
    pub const fn after(self, step: Step) -> Option<Self> {
        match (self, step) {
            (Self::Absent, Step::Reserve) => Some(Self::Filling),
            (Self::Filling, Step::Abort) => Some(Self::Absent),
            (Self::Filling, Step::Commit) => Some(Self::Dirty),
            (Self::Absent, Step::Adopt) => Some(Self::Dirty),
            (Self::Dirty | Self::Clean, Step::Drop) => Some(Self::Absent),
            _ => None,
        }
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
    fn a_copy_that_a_device_reads_is_never_dropped() {
        assert_eq!(Copy::Moving.after(Step::Drop), None);
        assert_eq!(Copy::Filling.after(Step::Drop), None);
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
