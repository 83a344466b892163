//! Which operations are under way, as which commands, and which of them are to be tried again. Pure: no call to the
//! kernel, and time is told.
//!
//! Invariant: each tag is in `free_tags` or has a command, which is with the kernel or in `paused`.
//! Invariant: a flight is in `waiting` as long as something of it is in no command; it is over when it is not, and none of
//! its commands is left.

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use super::{
    flight::{Flight, Part},
    limits::Limits,
    status::Status,
};
use crate::device::{Completion, Io, IoKind};

/// A command that a reset has cut off is tried again for so long, as the block layer would; then its operation fails.
const TRY_FOR: Duration = Duration::from_secs(5);
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// See the module's head. Owns the memory of what is under way.
pub(super) struct Ledger {
    flights: Vec<Option<Flight>>,
    /// By tag.
    commands: Vec<Option<Sent>>,
    free_slots: Vec<u32>,
    free_tags: Vec<u32>,
    /// Slots of flights, the oldest first.
    waiting: VecDeque<u32>,
    /// Tags, and when they are due.
    paused: Vec<(Instant, u32)>,
    /// Of the namespace: see `judged`.
    has_paths: bool,
}

/// A command that was begun.
struct Sent {
    slot: u32,
    part: Part,
    /// Of one that was cut off: when first, and how long it was paused last.
    cut_off: Option<(Instant, Duration)>,
}

/// Why a command failed.
enum Failure {
    /// By a reset, or because the device is not ready: the same command may do well a little later.
    CutOff(io::Error),
    Failed(io::Error),
}

impl Ledger {
    pub(super) fn new(depth: usize, commands: usize, has_paths: bool) -> Self {
        Self {
            has_paths,
            flights: (0..depth).map(|_| None).collect(),
            commands: (0..commands).map(|_| None).collect(),
            free_slots: (0..depth as u32).rev().collect(),
            free_tags: (0..commands as u32).rev().collect(),
            waiting: VecDeque::with_capacity(depth),
            paused: Vec::with_capacity(commands),
        }
    }

    pub(super) fn depth(&self) -> usize {
        self.flights.len()
    }

    /// Operations that have not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.flights.len() - self.free_slots.len()
    }

    /// Commands that were begun and not answered.
    pub(super) fn sent(&self) -> usize {
        self.commands.len() - self.free_tags.len() - self.paused.len()
    }

    /// Takes an operation; its commands come by `next`.
    ///
    /// # Panics
    /// If `depth` operations are in flight.
    pub(super) fn begin(&mut self, io: Io) {
        let slot = self.free_slots.pop().expect("fewer than `depth` are in flight");
        self.flights[slot as usize] = Some(Flight::new(io));
        self.waiting.push_back(slot);
    }

    /// The tag of a command that is to be given to the kernel now, if there is one and a tag for it.
    pub(super) fn next(&mut self, limits: &Limits) -> Option<u32> {
        while let Some(slot) = self.waiting.front().copied() {
            let tag = self.free_tags.last().copied()?;
            let flight = self.flights[slot as usize].as_mut().expect("what waits is in flight");
            let part = flight.next(limits);
            if part.is_none() || flight.is_handed() {
                self.waiting.pop_front();
            }
            if let Some(part) = part {
                self.free_tags.pop();
                self.commands[tag as usize] = Some(Sent { slot, part, cut_off: None });
                return Some(tag);
            }
        }
        None
    }

    /// The tag of a command that was paused for long enough, to be given to the kernel again.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<u32> {
        let index = self.paused.iter().position(|(at, _)| *at <= now)?;
        Some(self.paused.swap_remove(index).1)
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.paused.iter().map(|(at, _)| *at).min()
    }

    /// What a command is to do.
    pub(super) fn command(&self, tag: u32) -> (&Flight, &Part) {
        let sent = self.commands[tag as usize].as_ref().expect("a tag in use");
        (self.flights[sent.slot as usize].as_ref().expect("a command's operation"), &sent.part)
    }

    /// The kernel's answer to a command, and what came of its operation if that is over.
    pub(super) fn answered(&mut self, now: Instant, tag: u32, answer: i32) -> Option<Completion> {
        let sent = self.commands[tag as usize].as_mut().expect("the kernel answers what it was given, once");
        let result = match judged(answer, self.has_paths) {
            Ok(()) => Ok(()),
            Err(Failure::CutOff(error)) => match sent.pause(now) {
                Some(until) => {
                    self.paused.push((until, tag));
                    return None;
                }
                None => Err(error),
            },
            Err(Failure::Failed(error)) => Err(error),
        };
        let slot = sent.slot;
        self.commands[tag as usize] = None;
        self.free_tags.push(tag);
        let place = &mut self.flights[slot as usize];
        let flight = place.as_mut().expect("a command's operation");
        // A hint: a device that refuses it is none the worse.
        let result = if flight.kind() == IoKind::Discard { Ok(()) } else { result };
        let result = flight.ended(result)?;
        if result.is_err() {
            // Of what failed, the rest is not begun.
            self.waiting.retain(|waiting| *waiting != slot);
        }
        let id = flight.id();
        *place = None;
        self.free_slots.push(slot);
        Some(Completion { id, result })
    }
}

/// What the kernel's answer to a command means: an NVMe status above zero, an error of the kernel's own below. A namespace that
/// may have several paths answers EINVAL as long as none of them is up: its only controller is being reset, too.
///
/// EFAULT is not to be believed: the memory of what is under way is mapped. During a reset io_uring leaves commands to workers
/// of its own, and of a worker that was made while the ring's thread was interrupted, a kernel with the x32 ABI (Debian's, seen
/// with 7.3) holds that it is in a call of that: the driver takes the lower half of the command's address. Nothing of this
/// process lies there, and registered memory is found another way.
fn judged(answer: i32, has_paths: bool) -> Result<(), Failure> {
    match answer {
        0 => Ok(()),
        1.. => {
            let status = Status::of(answer as u16);
            let error = io::Error::other(status);
            Err(if status.may_pass() { Failure::CutOff(error) } else { Failure::Failed(error) })
        }
        // What it took back itself: the controller was reset, or did not answer in time.
        _ if answer == -libc::EINTR => Err(Failure::CutOff(io::Error::other(Status::TAKEN_BACK))),
        _ if [-libc::EAGAIN, -libc::EFAULT].contains(&answer) || (has_paths && answer == -libc::EINVAL) => {
            Err(Failure::CutOff(io::Error::from_raw_os_error(-answer)))
        }
        _ => Err(Failure::Failed(io::Error::from_raw_os_error(-answer))),
    }
}

impl Sent {
    /// Until when to wait before it is tried again; `None` when that has gone on for too long.
    fn pause(&mut self, now: Instant) -> Option<Instant> {
        let (since, pause) = match self.cut_off {
            None => (now, PAUSE_FIRST),
            Some((since, pause)) => (since, (2 * pause).min(PAUSE_MAX)),
        };
        self.cut_off = Some((since, pause));
        (now + pause < since + TRY_FOR).then(|| now + pause)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use lapis_arena::Mapping;
    use proptest::prelude::*;

    use super::*;
    use crate::device::{IoId, Memory};

    const PAGE: u64 = 4096;

    #[test]
    fn answers_are_told_apart() {
        assert!(judged(0, false).is_ok());
        let failed = |answer, has_paths| match judged(answer, has_paths) {
            Err(Failure::Failed(error)) => error,
            _ => panic!("{answer} does not fail for good"),
        };
        assert!(failed(0x281, true).to_string().contains("media error"));
        assert_eq!(failed(-libc::ENODEV, true).raw_os_error(), Some(libc::ENODEV));
        for answer in [-libc::EINTR, -libc::EAGAIN, -libc::EFAULT, 0x371, 0x082, 0x008] {
            assert!(matches!(judged(answer, false), Err(Failure::CutOff(_))), "{answer}");
        }
        assert_eq!(failed(-libc::EINVAL, false).raw_os_error(), Some(libc::EINVAL), "a command that is wrong");
        assert!(matches!(judged(-libc::EINVAL, true), Err(Failure::CutOff(_))), "no path is up");
    }

    #[test]
    fn what_was_cut_off_is_tried_again_at_growing_pauses_and_not_for_ever() {
        let mut ledger = Ledger::new(1, 1, false);
        ledger.begin(Io::flush(IoId(7)));
        let tag = ledger.next(&Limits::SMALLEST).expect("a command");
        let start = Instant::now();
        let (mut now, mut pauses) = (start, Vec::new());
        let over = loop {
            if let Some(over) = ledger.answered(now, tag, -libc::EINTR) {
                break over;
            }
            let due = ledger.due().expect("it is paused");
            assert!(ledger.next_due(now).is_none() && ledger.sent() == 0);
            pauses.push(due - now);
            now = due;
            assert_eq!(ledger.next_due(now), Some(tag));
        };
        assert!(
            over.id == IoId(7) && over.result.is_err_and(|error| error.to_string().contains("aborted by the host"))
        );
        assert!(pauses[0] == PAUSE_FIRST && pauses.iter().all(|pause| *pause <= PAUSE_MAX));
        assert!(pauses.windows(2).all(|two| two[0] <= two[1]));
        assert!(now - start <= TRY_FOR && now - start > TRY_FOR - 2 * PAUSE_MAX, "{:?}", now - start);
        assert_eq!((ledger.in_flight(), ledger.due()), (0, None));
    }

    #[test]
    fn a_discard_that_is_refused_is_none_the_worse() {
        let mut ledger = Ledger::new(1, 1, false);
        ledger.begin(Io::discard(IoId(1), 0, 8 * PAGE));
        let limits = Limits { discard_bytes_max: 1 << 20, ..Limits::SMALLEST };
        let tag = ledger.next(&limits).expect("a command");
        assert!(ledger.answered(Instant::now(), tag, 0x002).is_some_and(|over| over.result.is_ok()));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin { pages: u64 },
        Next,
        Answer { which: usize, answer: i32 },
        Pass,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let answer = prop_oneof![6 => Just(0), 1 => Just(0x281), 2 => Just(-libc::EINTR)];
        let step = prop_oneof![
            2 => (1..9u64).prop_map(|pages| Step::Begin { pages }),
            3 => Just(Step::Next),
            3 => (any::<usize>(), answer).prop_map(|(which, answer)| Step::Answer { which, answer }),
            1 => Just(Step::Pass),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Against a list of what is with the kernel: each operation is over once, all of it moved, or with an error and
        /// nothing of it left with the kernel.
        #[test]
        fn each_operation_is_over_once_and_nothing_of_it_is_left(steps in steps()) {
            const DEPTH: usize = 5;
            let mapping = Mapping::anonymous(8 * PAGE).expect("memory");
            let limits = Limits { transfer_bytes_max: 2 * PAGE, ..Limits::SMALLEST };
            let (mut ledger, mut now) = (Ledger::new(DEPTH, 4, false), Instant::now());
            let (mut kernel, mut paused) = (Vec::<u32>::new(), BTreeSet::new());
            let mut left = BTreeMap::<u64, (u64, bool)>::new();
            let mut id = 0;
            let done = steps.len();
            let ends = (0..2000).flat_map(|_| [Step::Next, Step::Pass, Step::Answer { which: 0, answer: 0 }]);
            for (index, step) in steps.into_iter().chain(ends).enumerate() {
                match step {
                    Step::Begin { pages } if left.len() < DEPTH => {
                        id += 1;
                        left.insert(id, (pages * PAGE, false));
                        ledger.begin(Io::write(IoId(id), 0, Memory::new(&mapping, 0, (pages * PAGE) as usize)));
                    }
                    Step::Next => kernel.extend(ledger.next(&limits)),
                    Step::Pass => {
                        now += Duration::from_millis(7);
                        while let Some(tag) = ledger.next_due(now) {
                            prop_assert!(paused.remove(&tag));
                            kernel.push(tag);
                        }
                    }
                    Step::Answer { which, answer } if !kernel.is_empty() => {
                        let tag = kernel.swap_remove(which % kernel.len());
                        let (flight, part) = ledger.command(tag);
                        let (of, bytes) = (flight.id().0, part.bytes.end - part.bytes.start);
                        let over = ledger.answered(now, tag, answer);
                        let entry = left.get_mut(&of).expect("not over");
                        match answer {
                            0 => entry.0 -= bytes,
                            0x281 => entry.1 = true,
                            _ if over.is_none() => drop(paused.insert(tag)),
                            _ => entry.1 = true,
                        }
                        if let Some(over) = over {
                            let (bytes, failed) = left.remove(&over.id.0).expect("over once");
                            prop_assert_eq!(over.result.is_err(), failed);
                            prop_assert!(failed || bytes == 0);
                            let mut with_kernel = kernel.iter().chain(&paused);
                            prop_assert!(with_kernel.all(|tag| ledger.command(*tag).0.id() != over.id));
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!((ledger.sent(), ledger.in_flight()), (kernel.len(), left.len()));
                if index > done && left.is_empty() {
                    break;
                }
            }
            prop_assert!(left.is_empty(), "{:?}", left);
            prop_assert!(ledger.due().is_none() && ledger.next(&limits).is_none());
        }
    }
}
