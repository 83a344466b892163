//! The device table: which blocks have a copy on a GPU, and where. Beside the block table, whose lines are full: two words
//! a line, in a memfd of its own. The daemon alone writes it, readers on the GPUs' side call nobody.
//!
//! Reader: `find` the line in the block table; [`DeviceTable::find`] with its generation; name the slot on the page of
//! [`DeviceHazards`], `fence`, ask [`DeviceTable::still`] and compare the daemon's instance; enqueue the copy; clear the
//! hazard when an event behind the copy has fired. Daemon: [`DeviceWriter::clear`] all of a batch, then [`scan`] once.
//!
//! Invariant: a line's place is readable only with the generation for which it was set.
//! Invariant: a place that passes `still` after the fence of a hazard that names it is not reused before that is cleared.

#[cfg(test)]
mod loom_tests;
#[cfg(test)]
mod model_tests;

use std::sync::atomic::Ordering;

use lapis_config::{GpuId, HAZARDS, LineId, SlotId};

use crate::{ArenaError, MappedWords, Mapping, Words};

/// Bytes of one client's page of device hazards.
pub const HAZARD_BYTES: usize = HAZARDS * size_of::<u64>();

const MAGIC: u64 = u64::from_le_bytes(*b"lapisdev");
const VERSION: u64 = 1;
/// Words of the header: magic, version, lines, the life of the block table that it belongs to.
const HEAD: usize = 8;
const AT_VERSION: usize = 1;
const AT_LINES: usize = 2;
const AT_TABLE_ID: usize = 3;

const SLOT_BITS: u32 = 32;
const UNITS_BITS: u32 = 24;

/// Bytes that the table takes for so many lines.
pub fn bytes_for(lines: u32) -> u64 {
    (HEAD as u64 + 2 * u64::from(lines)) * size_of::<u64>() as u64
}

fn word_of(line: LineId) -> usize {
    HEAD + 2 * line.0 as usize
}

fn stamp(generation: u64) -> u64 {
    generation << 1 | 1
}

/// A slot on a GPU, with its 4 KiB units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlot {
    pub gpu: GpuId,
    pub slot: SlotId,
    pub units: u32,
}

impl DeviceSlot {
    fn to_word(self) -> u64 {
        assert!(self.units < 1 << UNITS_BITS, "a slot has less than 64 GiB");
        u64::from(self.gpu.0) << (SLOT_BITS + UNITS_BITS) | u64::from(self.units) << SLOT_BITS | u64::from(self.slot.0)
    }

    fn from_word(word: u64) -> Self {
        let units = (word >> SLOT_BITS) as u32 & ((1 << UNITS_BITS) - 1);
        Self { gpu: GpuId((word >> (SLOT_BITS + UNITS_BITS)) as u8), slot: SlotId(word as u32), units }
    }
}

/// A copy on a GPU as it was found: a claim until [`DeviceTable::still`] says so behind the fence of a hazard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDevice {
    pub line: LineId,
    pub at: DeviceSlot,
    stamp: u64,
}

/// A reader of the device table.
#[derive(Clone, Debug)]
pub struct DeviceTable<W = MappedWords> {
    words: W,
    lines: u32,
}

impl<W: Words> DeviceTable<W> {
    /// Reads the header: the words must hold the device table of that block table's life, with as many lines.
    pub fn open(words: W, lines: u32, table_id: u64) -> Result<Self, ArenaError> {
        let load = |i: usize| words.load(i, Ordering::Relaxed);
        let needed = bytes_for(lines) as usize / size_of::<u64>();
        if words.len() < needed {
            let (found, expected) = (words.len() as u64, needed as u64);
            return Err(ArenaError::DeviceTable { what: "number of words", found, expected });
        }
        for (what, at, expected) in [
            ("magic", 0, MAGIC),
            ("version", AT_VERSION, VERSION),
            ("number of lines", AT_LINES, u64::from(lines)),
            ("block table", AT_TABLE_ID, table_id),
        ] {
            let found = load(at);
            if found != expected {
                return Err(ArenaError::DeviceTable { what, found, expected });
            }
        }
        Ok(Self { words, lines })
    }

    /// Where a GPU has a copy of the block at that line, if it is one of that generation.
    #[inline]
    pub fn find(&self, line: LineId, generation: u64) -> Option<OnDevice> {
        let (stamp, known) = (stamp(generation), line.0 < self.lines);
        let at = known.then(|| self.place(line, stamp)).flatten()?;
        Some(OnDevice { line, at, stamp })
    }

    /// Whether the copy is where it was found: asked behind the fence of the hazard that names its slot. The place counts
    /// too: a copy may have gone and come again elsewhere under the same generation.
    #[inline]
    pub fn still(&self, found: &OnDevice) -> bool {
        self.place(found.line, found.stamp) == Some(found.at)
    }

    /// The place that was set with the stamp. Stamp and place are of one moment: else the stamp could be that of a copy
    /// that came elsewhere, and the place that of the block that the line has after it.
    #[inline]
    fn place(&self, line: LineId, stamp: u64) -> Option<DeviceSlot> {
        let at = word_of(line);
        // Acquire: whoever sees the newer stamp sees the newer place.
        if self.words.load(at, Ordering::Acquire) != stamp {
            return None;
        }
        let place = self.words.load(at + 1, Ordering::Relaxed);
        self.words.fence(Ordering::Acquire);
        let same = self.words.load(at, Ordering::Relaxed) == stamp;
        same.then(|| DeviceSlot::from_word(place))
    }
}

/// The one writer of a device table: whoever writes the block table.
#[derive(Debug)]
pub struct DeviceWriter<W = MappedWords> {
    table: DeviceTable<W>,
}

impl DeviceWriter<MappedWords> {
    /// The memory that the table lies in.
    pub fn mapping(&self) -> &Mapping {
        self.table.words.mapping()
    }
}

impl<W: Words> DeviceWriter<W> {
    /// Makes an empty table in words that are all zero.
    pub fn create(words: W, lines: u32, table_id: u64) -> Result<Self, ArenaError> {
        for (at, value) in [(AT_VERSION, VERSION), (AT_LINES, u64::from(lines)), (AT_TABLE_ID, table_id), (0, MAGIC)] {
            words.store(at, value, Ordering::Release);
        }
        Self::adopt(words, lines, table_id)
    }

    /// Takes over what a former daemon left. What it was writing when it died is not readable.
    pub fn adopt(words: W, lines: u32, table_id: u64) -> Result<Self, ArenaError> {
        Ok(Self { table: DeviceTable::open(words, lines, table_id)? })
    }

    /// The same table as its readers see it.
    pub fn table(&self) -> &DeviceTable<W> {
        &self.table
    }

    /// Readers that find the line with this generation find its copy there when this returns.
    pub fn set(&self, line: LineId, generation: u64, at: DeviceSlot) {
        self.clear(line);
        let (words, word) = (&self.table.words, word_of(line));
        // No reader sees the new place under the old stamp.
        words.fence(Ordering::Release);
        words.store(word + 1, at.to_word(), Ordering::Relaxed);
        words.store(word, stamp(generation), Ordering::Release);
    }

    /// Readers do not find the copy any more. The slot is free for others when a [`scan`] after this does not name it.
    pub fn clear(&self, line: LineId) {
        assert!(line.0 < self.table.lines, "a line of this table");
        self.table.words.store(word_of(line), 0, Ordering::Relaxed);
    }
}

/// One client's page that names slots on GPUs. An entry is GPU << 33 | slot + 1; 0 names nothing. Only the page's client
/// stores into it.
#[derive(Clone, Debug)]
pub struct DeviceHazards<W = MappedWords> {
    words: W,
}

impl DeviceHazards<MappedWords> {
    /// The page that starts at `offset` of a client's memory.
    ///
    /// # Panics
    /// If [`HAZARD_BYTES`] from there leave the mapping.
    pub fn mapped(mapping: &Mapping, offset: usize) -> Self {
        Self::new(MappedWords::new(mapping, offset, HAZARDS))
    }
}

impl<W: Words> DeviceHazards<W> {
    pub fn new(words: W) -> Self {
        Self { words }
    }

    /// How many slots can be named at once.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Names a slot. It is safe from reuse only if its copy is still there after a [`Self::fence`].
    #[inline]
    pub fn set(&self, entry: usize, gpu: GpuId, slot: SlotId) {
        self.words.store(entry, u64::from(gpu.0) << (SLOT_BITS + 1) | (u64::from(slot.0) + 1), Ordering::Relaxed);
    }

    /// Orders all `set` before it with the checks after it.
    #[inline]
    pub fn fence(&self) {
        self.words.fence(Ordering::SeqCst);
    }

    /// Ends the reading of the slot that `entry` names: nothing that was enqueued reads it any more.
    #[inline]
    pub fn clear(&self, entry: usize) {
        self.words.store(entry, 0, Ordering::Release);
    }

    /// What an entry names. A client may have written anything.
    #[inline]
    pub fn get(&self, entry: usize) -> Option<(GpuId, SlotId)> {
        // Acquire: what the reader did before `clear` is over before the slot is reused.
        let word = self.words.load(entry, Ordering::Acquire);
        let slot = u32::try_from((word & ((1 << (SLOT_BITS + 1)) - 1)).checked_sub(1)?).ok()?;
        Some((GpuId((word >> (SLOT_BITS + 1)) as u8), SlotId(slot)))
    }

    /// Calls `named` for every slot on this page, without a fence.
    pub fn each(&self, named: &mut impl FnMut(GpuId, SlotId)) {
        for (gpu, slot) in (0..self.len()).filter_map(|entry| self.get(entry)) {
            named(gpu, slot);
        }
    }
}

/// Fences, then calls `named` for every slot on every page. Slots whose copies were cleared before and that are not named
/// can be reused.
pub fn scan<'a, W: Words + 'a>(
    pages: impl IntoIterator<Item = &'a DeviceHazards<W>>,
    named: &mut impl FnMut(GpuId, SlotId),
) {
    let mut pages = pages.into_iter().peekable();
    if let Some(first) = pages.peek() {
        first.fence();
    }
    pages.for_each(|page| page.each(named));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_names_slots_of_all_gpus_and_survives_whatever_a_client_wrote() {
        let memory = Mapping::anonymous(2 * HAZARD_BYTES as u64).expect("memory");
        let pages = [DeviceHazards::mapped(&memory, 0), DeviceHazards::mapped(&memory, HAZARD_BYTES)];
        let named = || {
            let mut slots = Vec::new();
            scan(&pages, &mut |gpu, slot| slots.push((gpu.0, slot.0)));
            slots
        };
        assert_eq!(named(), []);
        pages[0].set(0, GpuId(0), SlotId(0));
        pages[0].set(HAZARDS - 1, GpuId(255), SlotId(u32::MAX));
        pages[1].set(3, GpuId(7), SlotId(7));
        assert_eq!(named(), [(0, 0), (255, u32::MAX), (7, 7)]);
        pages[0].clear(0);
        pages[1].words.store(3, u64::MAX, Ordering::Relaxed);
        assert_eq!(named(), [(255, u32::MAX)]);
    }
}
