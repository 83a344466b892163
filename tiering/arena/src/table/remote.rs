//! The table as another host reads it: copies of its lines, made by a NIC while its daemon writes. Pure.
//!
//! Why no such copy leads to a wrong byte, torn as it may be: all that is taken out of a line is a claim, "the block of this
//! key has so many bytes, in that slot, with that sum". The reader brings the key, and the seed of its pool; key, seed and
//! length all enter the sum. So whatever lies in the slot, of whatever block, old or new or half of each: it fits the sum
//! only if it is a payload that was put under just this key. A place, a length and a sum of two different lines, or of two
//! moments of one, fit nothing, as a sum of another key fits nothing. That `bind` is looked at once only is therefore no loss:
//! a second look at the copy would see the same copy, and the slot may be another's by the time it is read anyway.

use lapis_config::{Key, LineId, PoolId, SlotId};

use super::{
    LineState, Table,
    layout::{self, HEADER_BYTES, LINE_BYTES, LINES_MAX, LINES_MIN, Secrets, WINDOW, bind, near, word},
};
use crate::Words;

/// Bytes of the lines in which a key may lie by one of its homes.
pub const WINDOW_BYTES: u32 = WINDOW * LINE_BYTES as u32;
/// Where the lines begin in a table's memory.
pub const LINES_AT: usize = HEADER_BYTES;

/// What a reader elsewhere must know of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableShape {
    /// The number of its daemon's life.
    pub instance: u64,
    pub lines: u32,
    pub secrets: Secrets,
}

/// What a line says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub line: LineId,
    pub generation: u64,
    pub slot: SlotId,
    pub bytes: u32,
    pub sum: u64,
}

/// What a window says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is in memory.
    There(Claim),
    /// Not in this window of its first home, and perhaps in that of its second one.
    MayBeSecond,
    /// Not in memory.
    Absent,
}

impl TableShape {
    pub fn of<W: Words>(table: &Table<W>) -> Self {
        Self { instance: table.instance(), lines: table.lines, secrets: table.secrets }
    }

    /// Whether a table can have so many lines.
    pub fn is_possible(&self) -> bool {
        (LINES_MIN..=LINES_MAX).contains(&self.lines)
    }

    /// Bytes of its lines.
    pub fn lines_bytes(&self) -> u64 {
        u64::from(self.lines) * LINE_BYTES as u64
    }

    /// Where the windows of a key's two homes begin, in bytes from the first line on. They go on at the first line after the
    /// last one.
    pub fn homes(&self, pool: PoolId, key: &Key) -> [u64; 2] {
        let homes = layout::homes(&self.secrets, self.lines, pool, key);
        [homes.first, homes.second].map(|line| u64::from(line) * LINE_BYTES as u64)
    }

    /// What a copy of a window says of a key: of [`WINDOW_BYTES`], from where `homes` says on; `is_first`: of its first home.
    pub fn judge(&self, window: &[u8], is_first: bool, pool: PoolId, key: &Key) -> Seen {
        let (lines, _) = window.as_chunks::<LINE_BYTES>();
        let homes = layout::homes(&self.secrets, self.lines, pool, key);
        let home = if is_first { homes.first } else { homes.second };
        for (steps, line) in (0..).zip(lines) {
            if let Some(claim) = claim(line, layout::line_at(home, steps, self.lines), pool, key) {
                return Seen::There(claim);
            }
        }
        let near = lines.first().map_or(0, |line| load(line, word::NEAR));
        if is_first && near & near::SECOND != 0 { Seen::MayBeSecond } else { Seen::Absent }
    }
}

fn load(line: &[u8; LINE_BYTES], index: usize) -> u64 {
    let (words, _) = line.as_chunks::<8>();
    u64::from_le_bytes(words[index])
}

/// Only of a line that is live, and whose block is in DRAM: a free line keeps its key.
fn claim(line: &[u8; LINE_BYTES], at: u32, pool: PoolId, key: &Key) -> Option<Claim> {
    let bind = load(line, word::BIND);
    if !matches!(bind::state(bind), Some(LineState::Dram | LineState::Unverified)) {
        return None;
    }
    let holds = (0..4).all(|index| load(line, word::KEY + index) == key.0[index]);
    if !holds || near::pool(load(line, word::NEAR)) != pool {
        return None;
    }
    let (slot, bytes) = word::place(load(line, word::PLACE));
    let (generation, sum) = (bind::generation(bind), load(line, word::SUM));
    (bytes > 0).then_some(Claim { line: LineId(at), generation, slot, bytes, sum })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MappedWords, Mapping, TableWriter, table::bytes_for};

    const POOL: PoolId = PoolId(3);

    /// A table, and the windows of a key as a NIC would copy them.
    struct Owner {
        writer: TableWriter,
        mapping: Mapping,
        shape: TableShape,
    }

    fn owner(lines: u32) -> Owner {
        let mapping = Mapping::anonymous(bytes_for(lines)).expect("memory");
        let words = MappedWords::new(&mapping, 0, mapping.len() / 8);
        let writer =
            TableWriter::create(words, lines, 7, [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0])
                .expect("a table");
        let shape = TableShape::of(writer.table());
        Owner { writer, mapping, shape }
    }

    impl Owner {
        fn publish(&mut self, key: &Key, slot: u32, state: LineState) -> LineId {
            self.writer.publish(POOL, key, SlotId(slot), 4096, 9, state).expect("room")
        }

        fn window(&self, home: u64) -> Vec<u8> {
            let copy =
                |at: u64| self.mapping.to_vec(LINES_AT + ((home + at) % self.shape.lines_bytes()) as usize, 1)[0];
            (0..u64::from(WINDOW_BYTES)).map(copy).collect()
        }

        fn find(&self, pool: PoolId, key: &Key) -> (Option<Claim>, usize) {
            for (nth, home) in self.shape.homes(pool, key).into_iter().enumerate() {
                match self.shape.judge(&self.window(home), nth == 0, pool, key) {
                    Seen::There(claim) => return (Some(claim), nth + 1),
                    Seen::MayBeSecond => {}
                    Seen::Absent => return (None, nth + 1),
                }
            }
            (None, 2)
        }
    }

    fn key(n: u64) -> Key {
        Key([n, n ^ 5, 0, 0])
    }

    /// Full, so that many keys lie at their second home and some windows go over the end.
    #[test]
    fn what_the_table_finds_a_reader_of_copies_finds_as_well() {
        let (mut seconds, mut wrapped) = (0, 0);
        for lines in [128, 1024] {
            let (mut owner, mut here) = (owner(lines), Vec::new());
            for n in 0..u64::from(lines) {
                if owner.writer.publish(POOL, &key(n), SlotId(n as u32), 4096, n, LineState::Dram).is_ok() {
                    here.push(n);
                }
            }
            assert!(here.len() > lines as usize * 9 / 10, "{} of {lines}", here.len());
            for &n in &here {
                let found = owner.writer.find(POOL, &key(n)).expect("it is there");
                let (claim, windows) = owner.find(POOL, &key(n));
                let claim = claim.expect("it is there");
                let expected = (found.line, found.generation(), found.slot, found.bytes, found.sum);
                assert_eq!((claim.line, claim.generation, claim.slot, claim.bytes, claim.sum), expected);
                seconds += usize::from(windows == 2);
                let home = owner.shape.homes(POOL, &key(n))[windows - 1] / LINE_BYTES as u64;
                wrapped += usize::from(u64::from(claim.line.0) < home);
            }
            for n in 2_000..3_000 {
                assert_eq!(owner.find(POOL, &key(n)).0, None);
            }
            assert_eq!(owner.find(PoolId(4), &key(here[0])).0, None, "of another pool");
        }
        assert!(seconds > 20 && wrapped > 5, "{seconds} {wrapped}");
    }

    #[test]
    fn only_what_is_in_memory_is_found() {
        let mut owner = owner(128);
        let line = owner.publish(&key(1), 5, LineState::Unverified);
        let before = owner.find(POOL, &key(1)).0.expect("not verified, but there");
        owner.writer.rebind(line, SlotId(6), 4096, 9, LineState::Dram);
        let after = owner.find(POOL, &key(1)).0.expect("at another place");
        assert_eq!((before.slot, after.slot), (SlotId(5), SlotId(6)));
        assert!(after.generation > before.generation);
        owner.writer.rebind(line, SlotId(6), 4096, 9, LineState::Elsewhere);
        assert_eq!(owner.find(POOL, &key(1)).0, None, "on SSD");
        owner.writer.rebind(line, SlotId(6), 4096, 9, LineState::Dram);
        owner.writer.unpublish(line);
        assert_eq!(owner.find(POOL, &key(1)).0, None, "a free line keeps its key");
    }

    #[test]
    fn whatever_a_copy_holds_it_says_something_or_nothing() {
        let shape = TableShape { instance: 1, lines: u32::MAX - 1, secrets: [u64::MAX; 3] };
        assert!(shape.is_possible() && !TableShape { lines: 127, ..shape }.is_possible());
        let mut random = 88172645463325252u64;
        for length in [0, 1, 63, 64, 65, WINDOW_BYTES as usize] {
            let mut next = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random as u8
            };
            let window: Vec<u8> = (0..length).map(|_| next()).collect();
            assert!(!matches!(shape.judge(&window, true, POOL, &key(1)), Seen::There(_)));
        }
    }
}
