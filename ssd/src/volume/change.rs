//! Changes of the superblock while the device is in use, one after the other. Pure.
//!
//! Invariant: at most one page is being written; a change is done once both pages hold it, each flushed before the other
//! is touched. So one page may tear, rot or get lost at any time, and takes nothing with it.

use std::{collections::VecDeque, io};

use lapis_config::OpId;

use super::{Command, Report};
use crate::format::{PAGE_BYTES, Superblock};

#[derive(Default)]
pub(super) struct Changes {
    waiting: VecDeque<Command>,
    changing: Option<Changing>,
}

struct Changing {
    op: OpId,
    next: Superblock,
    step: Step,
    under_way: bool,
}

/// The way of a change to both pages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Write,
    Flush,
    WriteTwin,
    FlushTwin,
}

/// What is to be done now.
pub(super) enum Next<'a> {
    Write(&'a Superblock),
    Flush,
}

impl Changes {
    /// Takes a `Reserve` or a `Purge`.
    pub fn push(&mut self, command: Command) {
        self.waiting.push_back(command);
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The next step, unless one is under way or nothing waits; `went` says how it went.
    pub fn next(&mut self, in_force: &Superblock) -> Option<Next<'_>> {
        if self.changing.is_none() {
            self.changing = self.waiting.pop_front().map(|command| Changing::of(command, in_force));
        }
        let changing = self.changing.as_mut().filter(|changing| !changing.under_way)?;
        changing.under_way = true;
        Some(match changing.step {
            Step::Write | Step::WriteTwin => Next::Write(&changing.next),
            Step::Flush | Step::FlushTwin => Next::Flush,
        })
    }

    /// The step under way ended. A failed one leaves in force what was so before, and the next change goes to the same
    /// page again.
    pub fn went(&mut self, result: io::Result<()>, in_force: &mut Superblock) -> Option<Report> {
        let changing = self.changing.as_mut().expect("a step was begun");
        changing.under_way = false;
        if result.is_err() {
            let op = self.changing.take()?.op;
            return Some(Report { op, result, bytes: 0 });
        }
        match changing.step {
            Step::Write => changing.step = Step::Flush,
            Step::Flush => {
                *in_force = changing.next.clone();
                changing.next.write += 1;
                changing.step = Step::WriteTwin;
            }
            Step::WriteTwin => changing.step = Step::FlushTwin,
            Step::FlushTwin => {
                let Changing { op, next, .. } = self.changing.take()?;
                *in_force = next;
                return Some(Report { op, result, bytes: 2 * PAGE_BYTES as u64 });
            }
        }
        None
    }
}

impl Changing {
    fn of(command: Command, in_force: &Superblock) -> Self {
        let mut next = Superblock { write: in_force.write + 1, ..in_force.clone() };
        let op = match command {
            Command::Reserve { op, sequence_reserved } => {
                next.sequence_reserved = next.sequence_reserved.max(sequence_reserved);
                op
            }
            Command::Purge { op, group, purged_before } => {
                let group = next.groups.get_mut(usize::from(group)).expect("a group of the superblock");
                group.purged_before = group.purged_before.max(purged_before);
                op
            }
            other => unreachable!("{other:?} changes no superblock"),
        };
        Self { op, next, step: Step::Write, under_way: false }
    }
}
