//! The one writer of a table.
//!
//! Invariant: `taken` has the bit of a line set exactly if the line is not free; a key is at most once in the table.
//! Invariant: `seconds[home]` counts the live keys whose first home that is and which lie at their second home.

use std::sync::atomic::Ordering;

use lapis_config::{Key, LineId, PoolId, SlotId};

use super::{
    Found, LineState, Table,
    layout::{self, Homes, WINDOW, bind, head, near, word},
};
use crate::{ArenaError, MappedWords, Mapping, PagesAhead, Words};

/// All that a live line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveLine {
    pub pool: PoolId,
    pub key: Key,
    pub slot: SlotId,
    pub bytes: u32,
    pub sum: u64,
    pub state: LineState,
    pub generation: u64,
}

/// Writes the table. There is one per table, over all processes: whoever makes it holds the lock of the memory
/// ([`crate::memfd::lock_owner`]).
#[derive(Debug)]
pub struct TableWriter<W = MappedWords> {
    pub(super) table: Table<W>,
    /// A count that reached 255 stays there: the flag is then never cleared, which costs look-ups and nothing else.
    pub(super) seconds: Vec<u8>,
    /// One bit a line.
    pub(super) taken: Vec<u64>,
    pub(super) live: u32,
    /// False from `adopt` until its [`super::Adoption`] is done: nothing may be published before.
    pub(super) ready: bool,
}

impl TableWriter<MappedWords> {
    /// The memory that the table lies in.
    pub fn mapping(&self) -> &Mapping {
        self.table.words.mapping()
    }

    /// For whoever maps its pages in while it is used.
    pub fn pages_ahead(&self) -> PagesAhead {
        self.table.words.mapping().pages_ahead()
    }
}

impl<W: Words> TableWriter<W> {
    /// Makes a fresh table in words that are all zero.
    pub fn create(words: W, lines: u32, table_id: u64, secrets: [u64; 3]) -> Result<Self, ArenaError> {
        layout::format(&words, lines, table_id, &secrets)?;
        let mut writer = Self::adopt(words)?;
        writer.ready = true;
        Ok(writer)
    }

    /// Takes over a table that a former daemon left. It can be read at once, written when the adoption is done.
    pub fn adopt(words: W) -> Result<Self, ArenaError> {
        let table = Table::open(words)?;
        let lines = table.lines() as usize;
        Ok(Self { table, seconds: vec![0; lines], taken: vec![0; lines.div_ceil(64)], live: 0, ready: false })
    }

    /// The same table as its readers see it.
    pub fn table(&self) -> &Table<W> {
        &self.table
    }

    /// How many lines are live.
    pub fn live_lines(&self) -> u32 {
        self.live
    }

    /// False while an adoption is under way.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Starts a new life of the daemon: from here on pins of clients that registered with the former one fail.
    pub fn set_instance(&self, instance: u64) {
        self.table.words.store(head::INSTANCE, instance, Ordering::Release);
        self.table.words.fence(Ordering::SeqCst);
    }

    /// Says whether clients must ring. With `true`, look at all rings once more after it, then wait.
    pub fn set_sleeping(&self, sleeping: bool) {
        self.table.words.store(head::SLEEPING, u64::from(sleeping), Ordering::Relaxed);
        self.table.words.fence(Ordering::SeqCst);
    }

    /// How many other hosts can be asked for what is not here.
    pub fn set_peers(&self, peers: u64) {
        self.table.words.store(head::PEERS, peers, Ordering::Relaxed);
    }

    pub fn find(&self, pool: PoolId, key: &Key) -> Option<Found> {
        self.table.find(pool, key)
    }

    /// What a line says; `None` if it is free.
    pub fn live(&self, line: LineId) -> Option<LiveLine> {
        if line.0 >= self.table.lines() {
            return None;
        }
        let load = |i: usize| self.table.words.load(word::of(line.0) + i, Ordering::Relaxed);
        let bind = load(word::BIND);
        let state = bind::state(bind)?;
        let (slot, bytes) = word::place(load(word::PLACE));
        let key = Key(std::array::from_fn(|i| load(word::KEY + i)));
        let pool = near::pool(load(word::NEAR));
        Some(LiveLine { pool, key, slot, bytes, sum: load(word::SUM), state, generation: bind::generation(bind) })
    }

    /// A key that is not there is published soon, probably at this line, which the processor is told to fetch; its home
    /// should have been ([`Table::prefetch`]).
    #[inline]
    pub fn prefetch_free(&self, pool: PoolId, key: &Key) -> Option<LineId> {
        let line = self.free_line(self.table.homes(pool, key).first)?;
        self.table.words.prefetch(word::of(line));
        Some(LineId(line))
    }

    /// Puts a key into the table; readers find it when this returns. The key must not be there (ask `find`). `Err` names the lines in
    /// both windows: one of them must go first.
    pub fn publish(
        &mut self,
        pool: PoolId,
        key: &Key,
        slot: SlotId,
        bytes: u32,
        sum: u64,
        state: LineState,
    ) -> Result<LineId, Vec<LineId>> {
        assert!(self.ready, "a publish before the adoption is done");
        let homes = self.table.homes(pool, key);
        let Some(line) = self.free_line(homes.first).or_else(|| self.free_line(homes.second)) else {
            return Err(self.occupants(homes));
        };
        let writing = self.begin(line, word::from_place(slot, bytes), sum);
        let words = &self.table.words;
        let at = word::of(line);
        for (i, value) in key.0.into_iter().enumerate() {
            words.store(at + word::KEY + i, value, Ordering::Relaxed);
        }
        let near = words.load(at + word::NEAR, Ordering::Relaxed);
        words.store(at + word::NEAR, near::with_pool(near, pool), Ordering::Relaxed);
        words.store(at + word::BIND, bind::with_state(writing, state), Ordering::Release);
        self.link(homes, line);
        self.set_taken(line, true);
        self.live += 1;
        Ok(LineId(line))
    }

    /// Gives a live key another place, under a new generation: demotion, promotion.
    pub fn rebind(&mut self, line: LineId, slot: SlotId, bytes: u32, sum: u64, state: LineState) {
        assert!(self.ready, "a rebind before the adoption is done");
        self.assert_live(line);
        let writing = self.begin(line.0, word::from_place(slot, bytes), sum);
        self.table.words.store(word::of(line.0) + word::BIND, bind::with_state(writing, state), Ordering::Release);
    }

    /// The bytes of an unverified line fit their sum. The generation stays, so that no running copy is disturbed. Does
    /// nothing to lines in other states.
    pub fn set_verified(&mut self, line: LineId) {
        let at = word::of(line.0) + word::BIND;
        let now = self.table.words.load(at, Ordering::Relaxed);
        if bind::state(now) == Some(LineState::Unverified) {
            self.table.words.store(at, bind::with_state(now, LineState::Dram), Ordering::Release);
        }
    }

    /// Takes a key out: one store, after which no new reader finds it. Its slot may be reused after a
    /// [`crate::hazard::scan`] that does not name it.
    pub fn unpublish(&mut self, line: LineId) {
        assert!(self.ready, "an unpublish before the adoption is done");
        let was = self.assert_live(line);
        self.free(line.0);
        self.unlink(self.table.homes(was.pool, &was.key), line.0);
        self.set_taken(line.0, false);
        self.live -= 1;
    }

    fn assert_live(&self, line: LineId) -> LiveLine {
        self.live(line).expect("the caller knows lines by what this writer told it")
    }

    /// Marks a line as being written, under its next generation, and writes what all changes write.
    fn begin(&mut self, line: u32, place: u64, sum: u64) -> u64 {
        let words = &self.table.words;
        let at = word::of(line);
        let writing = bind::next(words.load(at + word::BIND, Ordering::Relaxed), bind::WRITING);
        words.store(at + word::BIND, writing, Ordering::Relaxed);
        words.fence(Ordering::Release);
        words.store(at + word::PLACE, place, Ordering::Relaxed);
        words.store(at + word::SUM, sum, Ordering::Relaxed);
        writing
    }

    /// Ends a line's life by the one store that readers test.
    pub(super) fn free(&mut self, line: u32) {
        let at = word::of(line) + word::BIND;
        let now = self.table.words.load(at, Ordering::Relaxed);
        self.table.words.store(at, bind::next(now, bind::FREE), Ordering::Release);
    }

    /// Makes a live line findable from the home that it belongs to.
    pub(super) fn link(&mut self, homes: Homes, line: u32) {
        let lines = self.table.lines;
        if let Some(steps) = layout::steps_to(homes.first, line, lines) {
            return self.change_near(homes.first, |near| near | 1 << steps);
        }
        let steps = layout::steps_to(homes.second, line, lines).expect("a line lies in a window of its key");
        self.change_near(homes.second, |near| near | 1 << steps);
        let seconds = &mut self.seconds[homes.first as usize];
        *seconds = seconds.saturating_add(1);
        self.change_near(homes.first, |near| near | near::SECOND);
    }

    fn unlink(&mut self, homes: Homes, line: u32) {
        let lines = self.table.lines;
        if let Some(steps) = layout::steps_to(homes.first, line, lines) {
            return self.change_near(homes.first, |near| near & !(1 << steps));
        }
        let steps = layout::steps_to(homes.second, line, lines).expect("a line lies in a window of its key");
        self.change_near(homes.second, |near| near & !(1 << steps));
        let seconds = &mut self.seconds[homes.first as usize];
        if *seconds < u8::MAX {
            *seconds -= 1;
        }
        if *seconds == 0 {
            self.change_near(homes.first, |near| near & !near::SECOND);
        }
    }

    /// There is one writer, so a load and a store change a word.
    pub(super) fn change_near(&self, home: u32, change: impl FnOnce(u64) -> u64) {
        let at = word::of(home) + word::NEAR;
        let before = self.table.words.load(at, Ordering::Relaxed);
        let after = change(before);
        if before != after {
            self.table.words.store(at, after, Ordering::Release);
        }
    }

    pub(super) fn set_taken(&mut self, line: u32, taken: bool) {
        let (word, bit) = (line as usize / 64, 1u64 << (line % 64));
        if taken { self.taken[word] |= bit } else { self.taken[word] &= !bit }
    }

    pub(super) fn is_taken(&self, line: u32) -> bool {
        self.taken[line as usize / 64] >> (line % 64) & 1 != 0
    }

    /// The first free line of a window.
    fn free_line(&self, home: u32) -> Option<u32> {
        if home + WINDOW <= self.table.lines {
            let (word, bit) = (home as usize / 64, home % 64);
            let low = self.taken[word] >> bit;
            // In two steps: by all 64 at once is no shift.
            let high = self.taken.get(word + 1).copied().unwrap_or(0) << 1 << (63 - bit);
            let free = !(low | high) & near::MAP;
            return (free != 0).then(|| home + free.trailing_zeros());
        }
        let window = (0..WINDOW).map(|steps| layout::line_at(home, steps, self.table.lines));
        let mut free = window.filter(|line| !self.is_taken(*line));
        free.next()
    }

    fn occupants(&self, homes: Homes) -> Vec<LineId> {
        let window = |home| (0..WINDOW).map(move |steps| LineId(layout::line_at(home, steps, self.table.lines)));
        let mut lines: Vec<LineId> = window(homes.first).chain(window(homes.second)).collect();
        lines.sort_unstable();
        lines.dedup();
        lines
    }
}
