//! What waits for room on the device. Reads go first, for somebody waits for them; after a run of them a write goes, for
//! memory waits for that. Pure.
//!
//! Invariant: commands of one kind (reads, all others) leave in the order in which they came.
//! Invariant: a command on a segment that is being discarded is held until that is over.

use std::collections::VecDeque;

use lapis_config::{
    SegmentId,
    planted::{self, Bug},
};

use super::Command;

/// Reads that may overtake a waiting write.
const READS_IN_A_ROW: u32 = 8;

#[derive(Default)]
pub(super) struct Queue {
    reads: VecDeque<Command>,
    others: VecDeque<Command>,
    reads_in_a_row: u32,
    /// Segments that are about to be discarded or being so: few, as segments are large.
    fences: Vec<Fence>,
}

struct Fence {
    segment: SegmentId,
    durable: bool,
    begun: bool,
    held: VecDeque<Command>,
}

impl Queue {
    pub fn push(&mut self, command: Command) {
        let fence = command.segment().and_then(|segment| self.fences.iter_mut().find(|f| f.segment == segment));
        if let Some(fence) = fence {
            fence.held.push_back(command);
            return;
        }
        match command {
            Command::Discard { segment, durable } => {
                self.fences.push(Fence { segment, durable, begun: false, held: VecDeque::new() });
            }
            Command::Read { .. } => self.reads.push_back(command),
            _ => self.others.push_back(command),
        }
    }

    /// The next to begin; never a discard.
    pub fn next(&mut self) -> Option<Command> {
        let overtakes = self.others.is_empty() || self.reads_in_a_row < READS_IN_A_ROW;
        if overtakes && let Some(read) = self.reads.pop_front() {
            self.reads_in_a_row += 1;
            return Some(read);
        }
        self.reads_in_a_row = 0;
        self.others.pop_front()
    }

    /// A segment whose discarding may begin: nothing on it waits, and nothing is `under_way`.
    pub fn next_discard(&mut self, under_way: impl Fn(SegmentId) -> bool) -> Option<SegmentId> {
        let waits = |segment| self.reads.iter().chain(&self.others).any(|c| c.segment() == Some(segment));
        let busy = |segment| (under_way(segment) || waits(segment)) && !planted::is(Bug::SegmentFreeDuringRead);
        let ready = self.fences.iter().position(|f| !f.begun && !busy(f.segment))?;
        self.fences[ready].begun = true;
        Some(self.fences[ready].segment)
    }

    /// Whether the segment, whose header was wiped, is discarded only after a flush.
    pub fn is_flushed_first(&self, segment: SegmentId) -> bool {
        self.fences.iter().any(|f| f.segment == segment && f.begun && f.durable)
    }

    /// A discard is over, however it ended: what it held is free to go.
    pub fn discarded(&mut self, segment: SegmentId) {
        let at = self.fences.iter().position(|f| f.segment == segment && f.begun);
        let fence = self.fences.swap_remove(at.expect("a discard that ended had begun"));
        // Through `push`: another discard of the same segment may be among them, and fences what follows it.
        fence.held.into_iter().for_each(|command| self.push(command));
    }

    pub fn len(&self) -> usize {
        let fenced = self.fences.iter().map(|f| f.held.len() + usize::from(!f.begun));
        self.reads.len() + self.others.len() + fenced.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use lapis_arena::Mapping;
    use lapis_config::{OpId, PageIndex, SsdPlace};

    use super::*;
    use crate::device::Memory;

    fn read(op: u64, segment: u32) -> Command {
        let mapping = Mapping::anonymous(4096).expect("memory");
        let at = SsdPlace::new(SegmentId(segment), PageIndex(17));
        Command::Read { op: OpId(op), at, memory: Memory::new(&mapping, 0, 4096) }
    }

    fn op(command: Option<Command>) -> u64 {
        match command.expect("one waits") {
            Command::Read { op, .. } | Command::Flush { op } => op.0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_overtake_writes_but_not_forever() {
        let mut queue = Queue::default();
        (0..2).for_each(|i| queue.push(Command::Flush { op: OpId(i) }));
        (100..120).for_each(|i| queue.push(read(i, 1)));
        let order: Vec<u64> = (0..22).map(|_| op(queue.next())).collect();
        assert_eq!(order[..10], [100, 101, 102, 103, 104, 105, 106, 107, 0, 108]);
        assert_eq!(order[17], 1, "the second write after as many reads again");
        assert_eq!((order[21], queue.len()), (119, 0));
    }

    #[test]
    fn a_discard_waits_for_what_came_before_and_holds_what_comes_after() {
        let mut queue = Queue::default();
        queue.push(read(1, 7));
        queue.push(Command::Discard { segment: SegmentId(7), durable: false });
        queue.push(read(2, 7));
        queue.push(read(3, 8));
        assert_eq!(queue.next_discard(|_| false), None, "a read of the segment waits");
        assert_eq!((op(queue.next()), op(queue.next())), (1, 3), "other segments go on");
        assert!(queue.next().is_none());
        assert_eq!(queue.next_discard(|segment| segment == SegmentId(7)), None, "the read is under way");
        assert_eq!(queue.next_discard(|_| false), Some(SegmentId(7)));
        assert_eq!(queue.next_discard(|_| false), None, "once");
        assert!(queue.next().is_none());
        queue.discarded(SegmentId(7));
        assert_eq!((op(queue.next()), queue.len()), (2, 0));
    }
}
