//! Taking over a table from a daemon that died, in steps, while readers go on.
//!
//! Two passes over the lines. The first believes, demotes to 'unverified' or drops each line, and sets the bits by which
//! the live ones are found. The second clears the bits that lead to no line of that home: what a publish or an unpublish
//! left that was cut short.
//! Invariant: a bit of a live line is never cleared, so that no reader misses a block for our sake.

use std::sync::atomic::Ordering;

use lapis_config::LineId;

use super::{
    LineState, LiveLine, TableWriter,
    layout::{self, WINDOW, bind, near, word},
};
use crate::Words;

/// How far the adoption of one table is.
#[derive(Debug)]
pub struct Adoption {
    pass: Pass,
    /// The next line of the pass.
    next: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Lines,
    Bits,
    Done,
}

impl Adoption {
    /// Begins with the first line of a writer made by [`TableWriter::adopt`]. Set the new instance before.
    pub fn new<W: Words>(writer: &TableWriter<W>) -> Self {
        assert!(!writer.ready, "an adoption of a table in use");
        Self { pass: Pass::Lines, next: 0 }
    }

    /// Goes on for up to `lines` lines; true when all is done. `keep` sees every live line once and says whether it is
    /// believed: its pool and slot exist, no other line names the slot. A line in DRAM is shown, and left, unverified.
    pub fn step<W: Words>(
        &mut self,
        writer: &mut TableWriter<W>,
        lines: u32,
        keep: &mut dyn FnMut(LineId, &LiveLine) -> bool,
    ) -> bool {
        let end = self.next.saturating_add(lines).min(writer.table.lines());
        match self.pass {
            Pass::Lines => (self.next..end).for_each(|line| adopt_line(writer, line, keep)),
            Pass::Bits => (self.next..end).for_each(|home| clear_stale(writer, home)),
            Pass::Done => return true,
        }
        self.next = end;
        if end == writer.table.lines() {
            self.next = 0;
            self.pass = if self.pass == Pass::Lines { Pass::Bits } else { Pass::Done };
        }
        if self.pass == Pass::Done {
            writer.ready = true;
        }
        self.pass == Pass::Done
    }

    /// All steps at once.
    pub fn run<W: Words>(mut self, writer: &mut TableWriter<W>, keep: &mut dyn FnMut(LineId, &LiveLine) -> bool) {
        while !self.step(writer, u32::MAX, keep) {}
    }
}

fn adopt_line<W: Words>(writer: &mut TableWriter<W>, line: u32, keep: &mut dyn FnMut(LineId, &LiveLine) -> bool) {
    let at = word::of(line) + word::BIND;
    let now = writer.table.words.load(at, Ordering::Relaxed);
    if bind::is_free(now) {
        return;
    }
    let Some(mut live) = writer.live(LineId(line)) else {
        // Being written when its daemon died, or no state at all.
        return writer.free(line);
    };
    let homes = writer.table.homes(live.pool, &live.key);
    let near_home = |home| layout::steps_to(home, line, writer.table.lines).is_some();
    if !(near_home(homes.first) || near_home(homes.second)) {
        return writer.free(line);
    }
    if live.state == LineState::Dram {
        live.state = LineState::Unverified;
        writer.table.words.store(at, bind::with_state(now, live.state), Ordering::Release);
    }
    if !keep(LineId(line), &live) {
        return writer.free(line);
    }
    writer.link(homes, line);
    writer.set_taken(line, true);
    writer.live += 1;
}

fn clear_stale<W: Words>(writer: &mut TableWriter<W>, home: u32) {
    let lines = writer.table.lines;
    let before = writer.table.words.load(word::of(home) + word::NEAR, Ordering::Relaxed);
    let mut stale = 0;
    for steps in (0..WINDOW).filter(|steps| before >> steps & 1 != 0) {
        let line = layout::line_at(home, steps, lines);
        // The line's own home: the first whose window has it, as in `link`.
        let belongs = writer.is_taken(line)
            && writer.live(LineId(line)).is_some_and(|live| {
                let homes = writer.table.homes(live.pool, &live.key);
                let first = layout::steps_to(homes.first, line, lines).is_some();
                home == if first { homes.first } else { homes.second }
            });
        if !belongs {
            stale |= 1 << steps;
        }
    }
    if writer.seconds[home as usize] == 0 {
        stale |= near::SECOND;
    }
    writer.change_near(home, |near| near & !stale);
}
