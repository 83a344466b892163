//! The block table: which block lies where. One daemon writes it, any process that maps it reads it, none of them calls
//! another. Lines of 64 bytes that never move while they live; a key lies within 47 lines of one of two homes, and its
//! home says which of those lines to look at.
//!
//! Invariant: bind (generation and state) changes its generation when and only when the bond of key and slot changes.
//! Invariant: a bit of a home's map that belongs to a live line is set, at every moment, adoption included.
//! Invariant: nothing a reader does writes to the table.

mod adopt;
mod layout;
mod remote;
mod writer;

#[cfg(test)]
mod loom_tests;
#[cfg(test)]
mod model_tests;

use std::sync::atomic::Ordering;

use lapis_config::{Key, LineId, PoolId, SlotId};

use self::layout::{Homes, Secrets, bind, head, near, word};
pub use self::{
    adopt::Adoption,
    layout::{LINES_MAX, LINES_MIN, VERSION, bytes_for},
    remote::{Claim, LINES_AT, Seen, TableShape, WINDOW_BYTES},
    writer::{LiveLine, TableWriter},
};
use crate::{ArenaError, MappedWords, Words};

/// How often a line is read again that changed while it was read, or that is being written.
const TRIES: u32 = 4;
/// Homes are prefetched this many keys ahead,
const HOME_AHEAD: usize = 24;
/// and the lines that they point to this many.
const LINE_AHEAD: usize = 10;
/// Homes computed and not yet used; a power of two above `HOME_AHEAD`.
const HOMES_HELD: usize = 32;
/// Lines of a home that are prefetched and compared at once; a home holds 0.8 keys on average. Of 2 to 5, three is the
/// fastest: 8192 keys of 1 M lines take 3.2 times 8192 random line reads, with two of them 3.7 times.
const CANDIDATES: usize = 3;

/// Where a live block is, as its line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LineState {
    Dram = 2,
    /// In DRAM, not verified since the daemon started: check the sum of what you read.
    Unverified = 3,
    /// Not in memory: ask the daemon.
    Elsewhere = 4,
    /// In the memory of a GPU and not in DRAM: the device table says where, and hosts ask the daemon.
    Hbm = 5,
}

impl LineState {
    #[inline]
    pub(crate) fn from_code(code: u64) -> Option<Self> {
        match code {
            2 => Some(Self::Dram),
            3 => Some(Self::Unverified),
            4 => Some(Self::Elsewhere),
            5 => Some(Self::Hbm),
            _ => None,
        }
    }

    /// True if the bytes can be read at the line's slot.
    #[inline]
    pub fn is_readable(self) -> bool {
        matches!(self, Self::Dram | Self::Unverified)
    }
}

/// A block as it was found. It is only a claim: copy or pin first, then ask [`Table::still`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub line: LineId,
    pub slot: SlotId,
    /// Generation and state, as they lie in the table.
    pub bind: u64,
    pub sum: u64,
    pub bytes: u32,
    pub state: LineState,
}

impl Found {
    pub fn generation(&self) -> u64 {
        bind::generation(self.bind)
    }
}

/// A reader of the table.
#[derive(Clone, Debug)]
pub struct Table<W = MappedWords> {
    words: W,
    lines: u32,
    secrets: Secrets,
}

impl<W: Words> Table<W> {
    /// Reads the header: the words must hold a table of this layout.
    pub fn open(words: W) -> Result<Self, ArenaError> {
        let lines = layout::check(&words)?;
        let secrets = layout::secrets(&words);
        Ok(Self { words, lines, secrets })
    }

    /// How many lines there are, live or free.
    pub fn lines(&self) -> u32 {
        self.lines
    }

    /// The number of the table's life: a cold table has another one.
    pub fn table_id(&self) -> u64 {
        self.words.load(head::TABLE_ID, Ordering::Relaxed)
    }

    /// The number of the daemon's life: compared after the fence of a batch of pins.
    #[inline]
    pub fn instance(&self) -> u64 {
        self.words.load(head::INSTANCE, Ordering::Acquire)
    }

    /// Whether the daemon must be woken. Fences first: call it after the frame is in the ring.
    #[inline]
    pub fn daemon_sleeping(&self) -> bool {
        self.words.fence(Ordering::SeqCst);
        self.words.load(head::SLEEPING, Ordering::Relaxed) != 0
    }

    /// How many other hosts the daemon can ask for what is not here: a miss is worth a question then.
    #[inline]
    pub fn peers(&self) -> u64 {
        self.words.load(head::PEERS, Ordering::Relaxed)
    }

    /// The block of a key, wherever it is.
    #[inline]
    pub fn find(&self, pool: PoolId, key: &Key) -> Option<Found> {
        self.find_at(self.homes(pool, key), pool, key)
    }

    /// Looks up all keys, in order, and tells each result with the key's index.
    pub fn find_many(&self, pool: PoolId, keys: &[Key], mut each: impl FnMut(usize, Option<Found>)) {
        self.find_while(pool, keys, |i, found| {
            each(i, found);
            true
        });
    }

    /// Appends the leading run of blocks that are there, and returns its length; stops at the first miss.
    pub fn prefix(&self, pool: PoolId, keys: &[Key], found: &mut Vec<Found>) -> usize {
        let before = found.len();
        self.find_while(pool, keys, |_, one| {
            found.extend(one);
            one.is_some()
        });
        found.len() - before
    }

    /// Looks keys up in order until `each` returns false. Two stages of prefetch hide the memory's latency: without them
    /// 8192 keys take three times as long.
    #[inline]
    pub fn find_while(&self, pool: PoolId, keys: &[Key], mut each: impl FnMut(usize, Option<Found>) -> bool) {
        let mut held = [Homes::default(); HOMES_HELD];
        for (key, homes) in keys.iter().zip(&mut held).take(HOME_AHEAD) {
            *homes = self.prefetch_home(pool, key);
        }
        for homes in held.iter().take(LINE_AHEAD.min(keys.len())) {
            self.prefetch_lines(homes);
        }
        for (i, key) in keys.iter().enumerate() {
            if let Some(later) = keys.get(i + HOME_AHEAD) {
                held[(i + HOME_AHEAD) % HOMES_HELD] = self.prefetch_home(pool, later);
            }
            if i + LINE_AHEAD < keys.len() {
                self.prefetch_lines(&held[(i + LINE_AHEAD) % HOMES_HELD]);
            }
            if !each(i, self.find_at(held[i % HOMES_HELD], pool, key)) {
                return;
            }
        }
    }

    /// True if the bond of key and slot is what it was: call it after the copy, or after the fence of the pin. Orders
    /// all loads before it with its own.
    #[inline]
    pub fn still(&self, found: &Found) -> bool {
        self.words.fence(Ordering::Acquire);
        let now = self.words.load(word::of(found.line.0) + word::BIND, Ordering::Relaxed);
        bind::same(now, found.bind) && bind::state(now).is_some_and(LineState::is_readable)
    }

    #[inline]
    fn homes(&self, pool: PoolId, key: &Key) -> Homes {
        layout::homes(&self.secrets, self.lines, pool, key)
    }

    #[inline]
    fn near(&self, home: u32) -> u64 {
        self.words.load(word::of(home) + word::NEAR, Ordering::Acquire)
    }

    /// Has the processor fetch what a later `find` or `publish` of the key reads first.
    #[inline]
    pub fn prefetch(&self, pool: PoolId, key: &Key) {
        self.prefetch_home(pool, key);
    }

    #[inline]
    fn prefetch_home(&self, pool: PoolId, key: &Key) -> Homes {
        let homes = self.homes(pool, key);
        self.words.prefetch(word::of(homes.first));
        homes
    }

    #[inline]
    fn prefetch_lines(&self, homes: &Homes) {
        let near = self.near(homes.first);
        for line in self.candidates(homes.first, near) {
            self.words.prefetch(word::of(line));
        }
        if near & near::SECOND != 0 {
            self.words.prefetch(word::of(homes.second));
        }
    }

    /// The lines of a map's first bits, without a branch; the home itself where there is no such bit.
    #[inline]
    fn candidates(&self, home: u32, near: u64) -> [u32; CANDIDATES] {
        let mut map = near & near::MAP;
        std::array::from_fn(|_| {
            // 64 zeros, of an empty map, become 0 steps.
            let steps = map.trailing_zeros() & 63;
            map &= map.wrapping_sub(1);
            layout::line_at(home, steps, self.lines)
        })
    }

    /// Which candidate it is cannot be predicted, and a branch guessed wrong costs as much as the rest of the look-up:
    /// so one is chosen by the key's first word, without a branch, and read; all others only if that was wrong.
    #[inline]
    fn find_at(&self, homes: Homes, pool: PoolId, key: &Key) -> Option<Found> {
        let near = self.near(homes.first);
        let [mut likely, others @ ..] = self.candidates(homes.first, near);
        for other in others {
            let fits = self.words.load(word::of(other) + word::KEY, Ordering::Relaxed) == key.0[0];
            likely = std::hint::select_unpredictable(fits, other, likely);
        }
        if near & near::MAP != 0
            && let Some(found) = self.read(likely, pool, key)
        {
            return Some(found);
        }
        self.find_in_all(homes, near, pool, key)
    }

    fn find_in_all(&self, homes: Homes, near: u64, pool: PoolId, key: &Key) -> Option<Found> {
        let found = self.search(homes.first, near, pool, key);
        if found.is_some() || near & near::SECOND == 0 {
            return found;
        }
        self.search(homes.second, self.near(homes.second), pool, key)
    }

    #[inline]
    fn search(&self, home: u32, near: u64, pool: PoolId, key: &Key) -> Option<Found> {
        let mut map = near & near::MAP;
        while map != 0 {
            let line = layout::line_at(home, map.trailing_zeros(), self.lines);
            if let Some(found) = self.read(line, pool, key) {
                return Some(found);
            }
            map &= map - 1;
        }
        None
    }

    /// What a line says of a key, if it is live and holds it. A key that differs needs no second look: had ours been
    /// live here all the time, its words would have been here all the time.
    #[inline]
    fn read(&self, line: u32, pool: PoolId, key: &Key) -> Option<Found> {
        let at = word::of(line);
        for _ in 0..TRIES {
            let before = self.words.load(at + word::BIND, Ordering::Acquire);
            let Some(state) = bind::state(before) else {
                if bind::is_free(before) {
                    return None;
                }
                std::hint::spin_loop();
                continue;
            };
            if !self.holds(at, pool, key) {
                return None;
            }
            let place = self.words.load(at + word::PLACE, Ordering::Relaxed);
            let sum = self.words.load(at + word::SUM, Ordering::Relaxed);
            self.words.fence(Ordering::Acquire);
            let after = self.words.load(at + word::BIND, Ordering::Relaxed);
            if bind::same(before, after) {
                // Verified in between: the newer state is as true.
                let state = bind::state(after).unwrap_or(state);
                let (slot, bytes) = word::place(place);
                return Some(Found { line: LineId(line), slot, bind: after, sum, bytes, state });
            }
        }
        None
    }

    #[inline]
    fn holds(&self, at: usize, pool: PoolId, key: &Key) -> bool {
        let word = |i: usize| self.words.load(at + word::KEY + i, Ordering::Relaxed);
        let differ = (word(0) ^ key.0[0]) | (word(1) ^ key.0[1]) | (word(2) ^ key.0[2]) | (word(3) ^ key.0[3]);
        differ == 0 && near::pool(self.words.load(at + word::NEAR, Ordering::Relaxed)) == pool
    }
}
