//! Operations under way.

use lapis_config::{GpuId, LineId, PageIndex, SegmentId, SlotId, SsdPlace};

/// An operation under way: what is done when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Verify {
        line: LineId,
        generation: u64,
    },
    /// `None`: it is nobody's, see `strays`. No pages: it counts among those under way no more.
    Write {
        line: Option<LineId>,
        at: SsdPlace,
        pages: u32,
        slot: SlotId,
    },
    Read {
        line: Option<LineId>,
        at: SsdPlace,
        pages: u32,
        slot: SlotId,
    },
    /// From DRAM to a GPU's slot. Its bytes count among those under way; `is_stray`: no block lies in `from` any more.
    CopyOut {
        line: Option<LineId>,
        gpu: GpuId,
        life: u32,
        from: SlotId,
        slot: SlotId,
        bytes: u32,
        is_stray: bool,
    },
    /// From a GPU's slot to DRAM. `is_bare`: what belongs behind its payload does not lie there, and is made when it has come.
    CopyIn {
        line: Option<LineId>,
        gpu: GpuId,
        life: u32,
        from: SlotId,
        slot: SlotId,
        pages: u32,
        is_bare: bool,
    },
    /// Of what came from a GPU.
    Sum {
        line: Option<LineId>,
        slot: SlotId,
    },
    Open(SegmentId),
    List(SegmentId, PageIndex),
    Flush(SegmentId),
}
