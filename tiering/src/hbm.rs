//! What a GPU's copy of a block may become: a table of legal steps, asserted at each, as `copies` has one for DRAM.
//!
//! A block has at most one copy in the memory of GPUs, on one of them. It is a further copy of a block that the table
//! knows. Whether it is the only one is not kept here: that is so where the block is neither in DRAM nor on SSD.

/// The state of a block's copy on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnGpu {
    Absent,
    /// Being copied from DRAM; readers do not see it.
    Filling,
    Ready,
    /// Readable, and being copied back to DRAM, so that it can go: it is the only one.
    Leaving,
}

/// What happens to a copy on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuStep {
    /// A copy from DRAM begins, and ends.
    Fill,
    Filled,
    FillFailed,
    /// A client put it there, or a former daemon left it.
    Commit,
    Adopt,
    /// A copy back to DRAM begins, and ends.
    Save,
    Saved,
    SaveFailed,
    Drop,
}

impl OnGpu {
    /// What a copy becomes by a step; `None` if the step is not legal. One that is being filled is given up as one that
    /// failed: its slot is the operation's until that ends.
    pub const fn after(self, step: GpuStep) -> Option<Self> {
        match (self, step) {
            (Self::Absent, GpuStep::Fill) => Some(Self::Filling),
            (Self::Filling, GpuStep::FillFailed) | (Self::Leaving, GpuStep::Saved) => Some(Self::Absent),
            (Self::Filling, GpuStep::Filled)
            | (Self::Absent, GpuStep::Commit | GpuStep::Adopt)
            | (Self::Leaving, GpuStep::SaveFailed) => Some(Self::Ready),
            (Self::Ready, GpuStep::Save) => Some(Self::Leaving),
            (Self::Ready | Self::Leaving, GpuStep::Drop) => Some(Self::Absent),
            _ => None,
        }
    }

    /// Takes it one step on.
    ///
    /// # Panics
    /// If the step is not legal: the core's own mistake.
    pub(crate) fn step(&mut self, step: GpuStep) {
        *self = self.after(step).unwrap_or_else(|| panic!("{step:?} of a copy on a GPU that is {self:?}"));
    }

    /// Whether readers find it.
    pub const fn is_readable(self) -> bool {
        matches!(self, Self::Ready | Self::Leaving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [OnGpu; 4] = [OnGpu::Absent, OnGpu::Filling, OnGpu::Ready, OnGpu::Leaving];

    #[test]
    fn a_copy_that_is_being_filled_is_not_dropped_and_not_saved() {
        assert_eq!((OnGpu::Filling.after(GpuStep::Drop), OnGpu::Filling.after(GpuStep::Save)), (None, None));
        assert_eq!(OnGpu::Filling.after(GpuStep::FillFailed), Some(OnGpu::Absent));
    }

    #[test]
    fn nothing_but_an_end_of_writing_makes_a_copy_readable() {
        let into = |step: GpuStep| {
            ALL.into_iter().any(|copy| !copy.is_readable() && copy.after(step).is_some_and(OnGpu::is_readable))
        };
        assert!([GpuStep::Filled, GpuStep::Commit, GpuStep::Adopt].into_iter().all(into));
        let others = [GpuStep::Fill, GpuStep::FillFailed, GpuStep::Save, GpuStep::Saved, GpuStep::Drop];
        assert!(!others.into_iter().any(into));
    }

    #[test]
    fn a_copy_is_filled_saved_and_gone() {
        let mut copy = OnGpu::Absent;
        for (step, state) in [
            (GpuStep::Fill, OnGpu::Filling),
            (GpuStep::Filled, OnGpu::Ready),
            (GpuStep::Save, OnGpu::Leaving),
            (GpuStep::SaveFailed, OnGpu::Ready),
            (GpuStep::Save, OnGpu::Leaving),
            (GpuStep::Saved, OnGpu::Absent),
        ] {
            copy.step(step);
            assert_eq!(copy, state);
        }
    }
}
