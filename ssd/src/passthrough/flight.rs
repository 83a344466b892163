//! One operation on its way as commands: cut into what a command may move, over when its last part is. Pure.

use std::{io, ops::Range};

use super::limits::Limits;
use crate::device::{Io, IoId, IoKind, Memory};

/// An operation under way; owns its memory.
pub(super) struct Flight {
    io: Io,
    /// Bytes of it that are or were in commands; a flush, which has none, counts one.
    handed: u64,
    /// Commands that have not ended.
    commands: u32,
    failed: Option<io::Error>,
}

/// Of an operation, what one command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Bytes of the operation; empty for a flush.
    pub bytes: Range<u64>,
}

impl Flight {
    pub(super) fn new(io: Io) -> Self {
        Self { io, handed: 0, commands: 0, failed: None }
    }

    pub(super) fn id(&self) -> IoId {
        self.io.id
    }

    pub(super) fn kind(&self) -> IoKind {
        self.io.kind
    }

    pub(super) fn memory(&self) -> Option<&Memory> {
        self.io.memory.as_ref()
    }

    /// Where on the device a part begins.
    pub(super) fn offset(&self, part: &Part) -> u64 {
        self.io.offset + part.bytes.start
    }

    /// What the next command is to do; `None` when all are on their way or one has failed.
    pub(super) fn next(&mut self, limits: &Limits) -> Option<Part> {
        if self.is_handed() || self.failed.is_some() {
            return None;
        }
        self.commands += 1;
        if self.io.kind == IoKind::Flush {
            self.handed = 1;
            return Some(Part { bytes: 0..0 });
        }
        let most = if self.io.kind == IoKind::Discard { limits.discard_bytes_max } else { limits.transfer_bytes_max };
        let start = self.handed;
        self.handed = self.io.bytes.min(start + most);
        Some(Part { bytes: start..self.handed })
    }

    /// Whether all of it is or was in commands.
    pub(super) fn is_handed(&self) -> bool {
        self.handed >= self.io.bytes.max(1)
    }

    /// A command ended; what came of the operation if that was the last.
    pub(super) fn ended(&mut self, result: io::Result<()>) -> Option<io::Result<()>> {
        assert!(self.commands > 0, "a command that was begun");
        self.commands -= 1;
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
        let is_over = self.commands == 0 && (self.is_handed() || self.failed.is_some());
        is_over.then(|| self.failed.take().map_or(Ok(()), Err))
    }
}

#[cfg(test)]
mod tests {
    use lapis_arena::Mapping;
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    fn flight(kind: IoKind, bytes: u64) -> Flight {
        let mapping = Mapping::anonymous(bytes.max(PAGE)).expect("memory");
        let moves = matches!(kind, IoKind::Read | IoKind::Write);
        let memory = moves.then(|| Memory::new(&mapping, 0, bytes as usize));
        Flight::new(Io { id: IoId(1), kind, offset: 10 * PAGE, bytes, memory })
    }

    fn limits(transfer: u64) -> Limits {
        Limits { transfer_bytes_max: transfer, discard_bytes_max: 3 * transfer, ..Limits::SMALLEST }
    }

    fn parts(flight: &mut Flight, limits: &Limits) -> Vec<Range<u64>> {
        std::iter::from_fn(|| flight.next(limits)).map(|part| part.bytes).collect()
    }

    #[test]
    fn an_operation_is_cut_where_the_device_says_and_over_with_its_last_part() {
        let mut write = flight(IoKind::Write, 5 * PAGE);
        assert_eq!(parts(&mut write, &limits(2 * PAGE)), [0..2 * PAGE, 2 * PAGE..4 * PAGE, 4 * PAGE..5 * PAGE]);
        assert_eq!(write.offset(&Part { bytes: 2 * PAGE..4 * PAGE }), 12 * PAGE);
        assert!(write.ended(Ok(())).is_none() && write.ended(Ok(())).is_none());
        assert!(matches!(write.ended(Ok(())), Some(Ok(()))));
        let mut discard = flight(IoKind::Discard, 7 * PAGE);
        assert_eq!(parts(&mut discard, &limits(2 * PAGE)), [0..6 * PAGE, 6 * PAGE..7 * PAGE]);
        let mut flush = flight(IoKind::Flush, 0);
        assert!(
            flush.next(&limits(PAGE)).is_some_and(|part| part.bytes.is_empty()) && flush.next(&limits(PAGE)).is_none()
        );
        assert!(matches!(flush.ended(Ok(())), Some(Ok(()))));
    }

    #[test]
    fn a_part_that_fails_ends_it_when_no_other_is_under_way_and_nothing_more_is_begun() {
        let mut read = flight(IoKind::Read, 4 * PAGE);
        let limits = limits(PAGE);
        assert!(read.next(&limits).is_some() && read.next(&limits).is_some());
        assert!(read.ended(Err(io::ErrorKind::TimedOut.into())).is_none(), "the other still writes there");
        assert!(read.next(&limits).is_none());
        let over = read.ended(Ok(())).expect("the last one that was begun");
        assert_eq!(over.expect_err("it failed").kind(), io::ErrorKind::TimedOut);
    }

    proptest! {
        #[test]
        fn parts_are_the_whole_in_order_and_none_is_too_long(pages in 1..600u64, most in 1..130u64) {
            let mut read = flight(IoKind::Read, pages * PAGE);
            let parts = parts(&mut read, &limits(most * PAGE));
            prop_assert!(parts.iter().all(|part| part.start < part.end && part.end - part.start <= most * PAGE));
            prop_assert!(parts.windows(2).all(|two| two[0].end == two[1].start));
            prop_assert_eq!((parts[0].start, parts.last().expect("one").end), (0, pages * PAGE));
            for left in (0..parts.len()).rev() {
                prop_assert_eq!(read.ended(Ok(())).is_some(), left == 0);
            }
        }
    }
}
