//! Where everything lies in a table's memory, byte by byte, and which lines a key may have.
//!
//! A header page, then lines of 64 bytes:
//! ```text
//!  0  bind   generation << 4 | state     0 free  1 being written  2 DRAM  3 DRAM, unverified  4 elsewhere  5 HBM
//!  8  key    four words
//! 40  near   bits 0-46: which of the 47 lines from here on hold keys whose home is this line; bit 47: some key whose
//!            first home is this line lies at its second one; bits 48-63: pool of the key that this line holds
//! 48  place  slot (low half), bytes (high half)
//! 56  sum
//! ```

use std::sync::atomic::Ordering;

use lapis_config::{Key, PoolId, SlotId};

use crate::{ArenaError, Words};

/// Layout of the table: major << 16 | minor.
pub const VERSION: u32 = 1 << 16;
/// Fewest lines of a table: a window must not meet itself.
pub const LINES_MIN: u32 = 128;
/// Most lines of a table: `LineId::NONE` is no line.
pub const LINES_MAX: u32 = u32::MAX - 1;
/// Lines from its home on at which a key may lie.
pub(super) const WINDOW: u32 = 47;

const MAGIC: u64 = u64::from_le_bytes(*b"LAPISTBL");
pub(super) const HEADER_BYTES: usize = 4096;
pub(super) const LINE_BYTES: usize = 64;

/// Bytes of a table of that many lines, header included.
pub const fn bytes_for(lines: u32) -> u64 {
    HEADER_BYTES as u64 + lines as u64 * LINE_BYTES as u64
}

/// Words of the header.
pub(super) mod head {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 1;
    pub const LINES: usize = 2;
    pub const INSTANCE: usize = 3;
    pub const TABLE_ID: usize = 4;
    pub const SECRETS: usize = 5;
    /// Written often: in a cache line of its own, and not in the neighbour that is fetched along with the first.
    pub const SLEEPING: usize = 16;
    /// Beside it: written seldom, read by clients when they miss.
    pub const PEERS: usize = 17;
}

/// Words of a line.
pub(super) mod word {
    use super::{HEADER_BYTES, LINE_BYTES, SlotId};

    pub const BIND: usize = 0;
    pub const KEY: usize = 1;
    pub const NEAR: usize = 5;
    pub const PLACE: usize = 6;
    pub const SUM: usize = 7;

    /// First word of a line.
    #[inline]
    pub fn of(line: u32) -> usize {
        HEADER_BYTES / 8 + line as usize * (LINE_BYTES / 8)
    }

    #[inline]
    pub fn place(word: u64) -> (SlotId, u32) {
        (SlotId(word as u32), (word >> 32) as u32)
    }

    #[inline]
    pub fn from_place(slot: SlotId, bytes: u32) -> u64 {
        u64::from(bytes) << 32 | u64::from(slot.0)
    }
}

/// The bind word.
pub(super) mod bind {
    use crate::LineState;

    pub const FREE: u64 = 0;
    pub const WRITING: u64 = 1;
    const STATE: u64 = 15;

    #[inline]
    pub fn generation(bind: u64) -> u64 {
        bind >> 4
    }

    #[inline]
    pub fn is_free(bind: u64) -> bool {
        bind & STATE == FREE
    }

    /// The state of a live line.
    #[inline]
    pub fn state(bind: u64) -> Option<LineState> {
        LineState::from_code(bind & STATE)
    }

    #[inline]
    pub fn same(a: u64, b: u64) -> bool {
        generation(a) == generation(b)
    }

    /// The word of the next generation. 60 bits do not wrap: 36 000 years at a change a microsecond.
    pub fn next(bind: u64, state: u64) -> u64 {
        (generation(bind) + 1) << 4 | state
    }

    pub fn with_state(bind: u64, state: LineState) -> u64 {
        bind & !STATE | state as u64
    }
}

/// The near word.
pub(super) mod near {
    use super::{PoolId, WINDOW};

    pub const MAP: u64 = (1 << WINDOW) - 1;
    pub const SECOND: u64 = 1 << WINDOW;

    #[inline]
    pub fn pool(near: u64) -> PoolId {
        PoolId((near >> 48) as u16)
    }

    pub fn with_pool(near: u64, pool: PoolId) -> u64 {
        near & (MAP | SECOND) | u64::from(pool.0) << 48
    }
}

/// Random words, so that nobody outside of the group can choose keys that meet in one window.
pub type Secrets = [u64; 3];

/// Where a key may lie: from either line on, `WINDOW` lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Homes {
    pub first: u32,
    pub second: u32,
}

#[inline]
fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// All four words of the key count: 64-bit engine hashes come padded with zeros.
#[inline]
pub(super) fn homes(secrets: &Secrets, lines: u32, pool: PoolId, key: &Key) -> Homes {
    let [a, b, c, d] = key.0;
    let low = folded(a ^ secrets[0], b ^ secrets[1]);
    let high = folded(c ^ secrets[2], d ^ secrets[0].rotate_left(32) ^ u64::from(pool.0));
    let hash = folded(low ^ high.rotate_left(32) ^ secrets[1], 0x9e37_79b9_7f4a_7c15 ^ secrets[2]);
    let scale = |half: u64| ((half * u64::from(lines)) >> 32) as u32;
    let first = scale(hash >> 32);
    let second = scale(hash & 0xffff_ffff);
    // One home in two places would be one window for twice the keys.
    Homes { first, second: if second == first { line_at(first, lines / 2, lines) } else { second } }
}

/// The line that lies `steps` (fewer than `lines`) after `home`; the first follows the last.
#[inline]
pub(super) fn line_at(home: u32, steps: u32, lines: u32) -> u32 {
    let line = u64::from(home) + u64::from(steps);
    if line >= u64::from(lines) { (line - u64::from(lines)) as u32 } else { line as u32 }
}

/// Steps from `home` to `line`, if it lies in the home's window.
pub(super) fn steps_to(home: u32, line: u32, lines: u32) -> Option<u32> {
    let steps = if line >= home { line - home } else { lines - home + line };
    (steps < WINDOW).then_some(steps)
}

/// Writes the header of a fresh table (all words zero); the magic last, so that a half-made table is none.
pub(super) fn format(words: &impl Words, lines: u32, table_id: u64, secrets: &Secrets) -> Result<(), ArenaError> {
    check_room(words, u64::from(lines))?;
    words.store(head::VERSION, u64::from(VERSION), Ordering::Relaxed);
    words.store(head::LINES, u64::from(lines), Ordering::Relaxed);
    words.store(head::TABLE_ID, table_id, Ordering::Relaxed);
    for (i, secret) in secrets.iter().enumerate() {
        words.store(head::SECRETS + i, *secret, Ordering::Relaxed);
    }
    words.store(head::MAGIC, MAGIC, Ordering::Release);
    Ok(())
}

/// Checks a header and returns the count of lines.
pub(super) fn check(words: &impl Words) -> Result<u32, ArenaError> {
    if words.len() < HEADER_BYTES / 8 {
        return Err(ArenaError::TableGeometry { lines: 0, words: words.len() as u64 });
    }
    let found = words.load(head::MAGIC, Ordering::Acquire);
    if found != MAGIC {
        return Err(ArenaError::NoTable { found });
    }
    let found = words.load(head::VERSION, Ordering::Relaxed) as u32;
    if found >> 16 != VERSION >> 16 {
        return Err(ArenaError::TableVersion { expected: VERSION, found });
    }
    let lines = words.load(head::LINES, Ordering::Relaxed);
    check_room(words, lines)?;
    Ok(lines as u32)
}

fn check_room(words: &impl Words, lines: u64) -> Result<(), ArenaError> {
    let counts = u64::from(LINES_MIN)..=u64::from(LINES_MAX);
    if counts.contains(&lines) && word::of(lines as u32) <= words.len() {
        return Ok(());
    }
    Err(ArenaError::TableGeometry { lines, words: words.len() as u64 })
}

pub(super) fn secrets(words: &impl Words) -> Secrets {
    std::array::from_fn(|i| words.load(head::SECRETS + i, Ordering::Relaxed))
}
