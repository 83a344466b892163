//! The SSD tier of a replay: devices that have done everything as soon as it is asked of them. No bytes move; which
//! pages would be written is the core's own count.

use lapis_config::{OpId, SegmentId, Time, UNIT_BYTES};

use crate::{
    Policy,
    core::Core,
    face::{Action, Outcome, Reply},
    kept::Kept,
    log::{CHUNK_PAGES, HEAD_PAGES, LogOptions},
};

/// As a daemon chooses them by default: the larger one of both.
const SEGMENT_BYTES: u64 = 64 << 20;
const SEGMENT_RECORDS: u64 = 8;
/// A small log has smaller segments: so many of them at least. What is being written or given up is a small part then.
const SEGMENTS_MIN: u64 = 16;
/// As a daemon lists by default, us.
const LIST_AFTER_US: u64 = 100_000;
const DEVICE: u8 = 0;

/// How large the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SsdTier {
    /// So many blocks' worth of segments.
    pub blocks: u32,
    /// Bytes of a full block; pages of its record follow.
    pub block_bytes: u64,
}

impl SsdTier {
    /// Bytes of a segment: the larger of 64 MiB and eight blocks, less where that would be fewer than 16 segments.
    pub fn segment_bytes(&self) -> u64 {
        u64::from(self.segment_pages()) * UNIT_BYTES
    }

    /// 4 KiB units of a block's slot, and of its record.
    pub(super) fn block_units(&self) -> u32 {
        u32::try_from(self.block_bytes.div_ceil(UNIT_BYTES)).expect("a block has less than 16 TiB")
    }

    fn segment_pages(&self) -> u32 {
        let record = u64::from(self.block_units());
        let usual = (SEGMENT_BYTES / UNIT_BYTES).max(SEGMENT_RECORDS * record);
        let most = u64::from(self.blocks) * record / SEGMENTS_MIN;
        // At least one record beside the head and one more chunk.
        let least = u64::from(HEAD_PAGES + CHUNK_PAGES) + record.max(u64::from(HEAD_PAGES));
        u32::try_from(usual.min(most).max(least)).expect("a segment has less than 16 TiB")
    }

    fn segments(&self) -> u32 {
        let pages = u64::from(self.blocks) * u64::from(self.block_units());
        // One is written, one is ready, one is full: less is no log.
        u32::try_from(pages.div_ceil(u64::from(self.segment_pages())).max(3)).expect("fewer than the blocks")
    }

    /// Most blocks that the log can hold.
    pub(super) fn lines(&self) -> u32 {
        let records = u64::from(self.segments()) * u64::from(self.segment_pages() / self.block_units());
        u32::try_from(records).unwrap_or(u32::MAX)
    }
}

pub(super) struct Devices {
    free: Vec<SegmentId>,
    done: Vec<OpId>,
}

impl Devices {
    /// An empty log, ready to be written.
    pub fn open<K: Kept, P: Policy>(core: &mut Core<K, P>, tier: &SsdTier) -> Self {
        core.ssd_coming();
        core.ssd_opened(LogOptions {
            group: 0,
            segment_pages: tier.segment_pages(),
            sequence_first: 1,
            sequence_end: u64::MAX,
            list_after_us: LIST_AFTER_US,
            durable: false,
        });
        core.device_added(DEVICE);
        core.ssd_ready(Time(0));
        let free = (0..tier.segments()).rev().map(|index| SegmentId::new(DEVICE, index)).collect();
        Self { free, done: Vec::new() }
    }

    /// Does what the core wants done until it wants no more. The last answer among it, if there was one.
    pub fn work<K: Kept, P: Policy>(&mut self, core: &mut Core<K, P>, now: Time) -> Option<Reply> {
        let mut answer = None;
        loop {
            while let Some(action) = core.poll_action() {
                match action {
                    Action::Reply { reply, .. } => answer = Some(reply),
                    Action::NeedSegment { .. } => self.free.pop().into_iter().for_each(|free| core.segment_given(free)),
                    Action::FreeSegment { segment, leaves } if leaves => self.free.push(segment),
                    Action::FreeSegment { .. } => {}
                    Action::WriteSsd { op, .. }
                    | Action::ReadSsd { op, .. }
                    | Action::OpenSegment { op, .. }
                    | Action::ListSsd { op, .. }
                    | Action::FlushSsd { op, .. }
                    | Action::Verify { op, .. } => self.done.push(op),
                    Action::Recall { .. } | Action::Expel { .. } | Action::NeedMemory => {}
                    Action::Copy { .. } | Action::Sum { .. } => unreachable!("a replay has no GPU"),
                }
            }
            if self.done.is_empty() {
                return answer;
            }
            for op in self.done.drain(..) {
                core.completed(now, op, Outcome::Ok);
            }
        }
    }
}
