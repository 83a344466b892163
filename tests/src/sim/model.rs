//! What may be read: every put has a number, every payload tells key and number, and a hit must be a put that nobody has
//! replaced or removed for certain.
//!
//! Of several puts of a key of which none was removed, a daemon's start may find any on SSD, over cold starts too; from
//! when it serves them on, the last one counts again.
//!
//! A call takes effect at some moment between its begin and its end; one whose end is not known may do so until the
//! world ends. A read happens at one moment, since nothing here runs at the same time.

use std::collections::BTreeMap;

use lapis_client::{Key, PutResult, Refusal};

use super::plan::{is_shared, mixed};

/// Where a key lives: the group, the pool's index in [`super::plan::Plan::shapes`].
pub type Place = (usize, usize, Key);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Under way, or its answer never came.
    Unknown,
    Stored,
    /// It was answered that it is not stored, and it must never be seen.
    Not,
}

#[derive(Clone, Copy, Debug)]
struct Put {
    place: Place,
    /// The table's life.
    table: u64,
    began: u64,
    ended: u64,
    fate: Fate,
}

#[derive(Clone, Copy, Debug)]
struct Removal {
    table: u64,
    began: u64,
    ended: u64,
}

const NEVER: u64 = u64::MAX;

/// In place of a put's number: the bytes that other hosts have.
pub const REMOTE: u64 = 1 << 40;

#[derive(Default)]
pub struct Model {
    clock: u64,
    puts: Vec<Put>,
    by_key: BTreeMap<Place, Vec<usize>>,
    removals: Vec<Removal>,
    removed: BTreeMap<Place, Vec<usize>>,
    /// Of chains (a removed block takes its children along) and of whole pools.
    chains_removed: BTreeMap<(usize, usize, u64), Vec<usize>>,
    purged: BTreeMap<(usize, usize), Vec<usize>>,
    /// Blocks of a table may be gone by themselves: evicted, or a client of that table lied.
    pub forgetful: bool,
    /// Blocks outlive their table.
    pub has_ssd: bool,
    /// What was removed may come back over a daemon's start: its devices lie, or the power fails and nothing is flushed.
    pub removals_fade: bool,
    /// Tables in the order of their lives.
    tables: Vec<u64>,
    /// When the present daemon began to serve what is on SSD: until then a start may find any put.
    served: u64,
}

impl Model {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A daemon starts over this group's table.
    pub fn table_starts(&mut self, table: u64) {
        if !self.tables.contains(&table) {
            self.tables.push(table);
        }
        if self.has_ssd {
            self.served = NEVER;
        }
    }

    /// From now on nothing older comes to light.
    pub fn ssd_serves(&mut self) {
        self.served = self.tick();
    }

    /// Whether what happened in one table is known in the other.
    fn is_before(&self, earlier: u64, later: u64) -> bool {
        let life = |table: u64| self.tables.iter().position(|known| *known == table);
        life(earlier) <= life(later)
    }

    /// A put begins; its number.
    pub fn put(&mut self, place: Place, table: u64) -> u64 {
        let began = self.tick();
        self.puts.push(Put { place, table, began, ended: NEVER, fate: Fate::Unknown });
        self.by_key.entry(place).or_default().push(self.puts.len() - 1);
        self.puts.len() as u64
    }

    pub fn put_ended(&mut self, number: u64, result: PutResult) {
        let now = self.tick();
        let put = &mut self.puts[number as usize - 1];
        put.fate = match result {
            PutResult::Stored => Fate::Stored,
            PutResult::Refused(Refusal::Late | Refusal::Gone) => return,
            PutResult::Exists | PutResult::Refused(_) => Fate::Not,
        };
        put.ended = now;
    }

    pub fn remove(&mut self, group: usize, table: u64, pool: usize, keys: &[Key]) -> usize {
        let number = self.removal(table);
        for &key in keys {
            self.removed.entry((group, pool, key)).or_default().push(number);
            self.chains_removed.entry((group, pool, key.0[2])).or_default().push(number);
        }
        number
    }

    pub fn purge(&mut self, group: usize, table: u64, pool: usize) -> usize {
        let number = self.removal(table);
        self.purged.entry((group, pool)).or_default().push(number);
        number
    }

    fn removal(&mut self, table: u64) -> usize {
        let began = self.tick();
        self.removals.push(Removal { table, began, ended: NEVER });
        self.removals.len() - 1
    }

    pub fn removal_ended(&mut self, number: usize) {
        self.removals[number].ended = self.tick();
    }

    /// The bytes of a put.
    pub fn fill(key: &Key, number: u64, payload: &mut [u8]) {
        let (words, rest) = payload.as_chunks_mut::<8>();
        let (start, step) = pattern(key, number);
        for (i, out) in words.iter_mut().enumerate() {
            let word = start.wrapping_add(step.wrapping_mul(i as u64));
            *out = if i == 0 { number } else { word }.to_le_bytes();
        }
        rest.fill(number as u8);
    }

    /// The number of the put whose bytes these are, every one of them.
    pub fn number(key: &Key, payload: &[u8]) -> Result<u64, String> {
        let (words, rest) = payload.as_chunks::<8>();
        let number = words.first().map_or(0, |word| u64::from_le_bytes(*word));
        let (start, step) = pattern(key, number);
        let expected = |i: usize| start.wrapping_add(step.wrapping_mul(i as u64));
        let wrong =
            words.iter().enumerate().skip(1).filter(|(i, word)| u64::from_le_bytes(**word) != expected(*i)).count();
        if wrong > 0 || rest.iter().any(|byte| *byte != number as u8) {
            return Err(format!(
                "wrong bytes under {key:x?}: {wrong} of {} words are not of put {number}",
                words.len()
            ));
        }
        Ok(number)
    }

    /// Judges a hit at this moment in a table, and says whose bytes they are.
    pub fn read(&self, place: Place, table: u64, payload: &[u8]) -> Result<u64, String> {
        self.read_since(self.now() + 1, place, table, 0, payload)
    }

    /// Of calls that begin now.
    pub fn now(&self) -> u64 {
        self.clock
    }

    /// Judges a hit of some moment from `since` on: a get that waits copies what is there when it begins.
    /// The bytes are those from `offset` on.
    pub fn read_since(&self, since: u64, place: Place, table: u64, offset: u64, bytes: &[u8]) -> Result<u64, String> {
        let number = match offset {
            0 => Self::number(&place.2, bytes)?,
            _ => self.number_of_part(place, offset as usize, bytes)?,
        };
        let shared = is_shared(&place.2);
        if shared && number == REMOTE {
            return Ok(number);
        }
        let read = self.puts.get((number as usize).wrapping_sub(1)).filter(|put| put.place == place);
        let Some(read) = read else { return Err(format!("no put {number} was ever made at {place:x?}")) };
        if read.fate == Fate::Not {
            return Err(format!("put {number} at {place:x?} was answered as not stored, and is read"));
        }
        if shared {
            // What was removed here comes back from others, and what others have may be here before a later put.
            return Ok(number);
        }
        if !self.has_ssd && read.table != table {
            return Err(format!("put {number} at {place:x?} is of another table than where it is read"));
        }
        let later = |put: &&Put| {
            let follows = put.fate == Fate::Stored && put.began > read.ended && put.ended < since;
            follows && put.table == table && (!self.has_ssd || put.began > self.served)
        };
        if let Some(newer) = self.by_key[&place].iter().map(|i| &self.puts[*i]).find(later) {
            return Err(format!("put {number} at {place:x?} is read after {newer:?} took its place"));
        }
        let gone = |removal: &Removal| {
            let follows = removal.began > read.ended && removal.ended < since;
            let fades = self.removals_fade && removal.began < self.served;
            follows && !fades && self.is_before(removal.table, table)
        };
        if let Some(removal) = self.removals_of(place).find(|removal| gone(removal)) {
            return Err(format!(
                "put {number} at {place:x?}, {read:?}, is read after its removal was acknowledged: {removal:?}"
            ));
        }
        Ok(number)
    }

    /// A part without the block's start tells no number: it is that of one of the key's puts.
    fn number_of_part(&self, place: Place, offset: usize, bytes: &[u8]) -> Result<u64, String> {
        let mut block = vec![0; offset + bytes.len()];
        let puts = self.by_key.get(&place).into_iter().flatten().rev();
        let numbers = puts.map(|i| *i as u64 + 1);
        let remote = is_shared(&place.2).then_some(REMOTE);
        let number = remote.into_iter().chain(numbers).find(|number| {
            Self::fill(&place.2, *number, &mut block);
            block[offset..] == *bytes
        });
        number.ok_or_else(|| format!("wrong bytes from {offset} on at {place:x?}: of no put"))
    }

    fn removals_of(&self, place: Place) -> impl Iterator<Item = &Removal> {
        let own = self.removed.get(&place);
        let all = self.purged.get(&(place.0, place.1));
        own.into_iter().chain(all).flatten().map(|i| &self.removals[*i])
    }

    /// Judges what another host read here: bytes of a put that was not answered as not stored.
    pub fn read_by_host(&self, place: Place, number: u64) -> Result<(), String> {
        if is_shared(&place.2) && number == REMOTE {
            return Ok(());
        }
        match self.puts.get((number as usize).wrapping_sub(1)).filter(|put| put.place == place) {
            Some(put) if put.fate != Fate::Not => Ok(()),
            put => Err(format!("another host read put {number} at {place:x?}: {put:?}")),
        }
    }

    /// Whether a miss would be a loss: the block was stored, and nothing has happened since that could have ended it.
    pub fn must_hit(&self, place: Place, table: u64) -> bool {
        let Some(puts) = self.by_key.get(&place).filter(|_| !self.forgetful) else { return false };
        let stored = puts.iter().map(|i| &self.puts[*i]).rfind(|put| put.fate == Fate::Stored && put.table == table);
        stored.is_some_and(|put| !self.is_touched(place, put.began))
    }

    /// Whether a removal of it, or of what may be above it, may have taken effect after this moment.
    pub fn is_touched(&self, place: Place, since: u64) -> bool {
        let chain = self.chains_removed.get(&(place.0, place.1, place.2.0[2]));
        let mut removals = self.removals_of(place).chain(chain.into_iter().flatten().map(|i| &self.removals[*i]));
        removals.any(|removal| removal.ended >= since)
    }
}

fn pattern(key: &Key, number: u64) -> (u64, u64) {
    let start = mixed(key.0[0] ^ key.0[1].rotate_left(7) ^ mixed(number));
    (start, mixed(start) | 1)
}
