//! What a group keeps of GPUs: the device table, which readers map, and a memfd of the daemon's own with the slabs and the
//! slot states of each GPU; and the pages on which clients name slots there. Drawn in `docs/formats.md`.
//!
//! A GPU goes by a number that it was given when it was first used with this memory, and that its UUID finds again: neither
//! the order in the configuration nor the driver's changes what the device table and clients' pages mean.
//!
//! Invariant: a number is of one UUID from the start of a daemon to its end; slabs recorded under it are of that GPU's memory,
//! of the one that is recorded beside them. Whatever else is found under the GPU's name, nothing is known of it.

use std::sync::atomic::{Ordering, compiler_fence};

use lapis_arena::{DeviceHazards, DeviceWriter, MappedWords, Mapping, Private, device};
use lapis_config::{ClientId, GPUS_MAX, GpuId, LineId, SlotId, UNIT_BYTES};
use lapis_state::slabs::{SlabMap, SlabRecord, records_for};
use lapis_tiering::kept::{DevicePlace, Slab, SlotState};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{slot_state_of, slot_word};

/// "LAPISHBM".
const MAGIC: u64 = u64::from_le_bytes(*b"LAPISHBM");
const VERSION: u64 = 2;
const WORD: u64 = size_of::<u64>() as u64;
const RECORD_WORDS: usize = size_of::<SlabRecord>() / size_of::<u64>();
/// Words of the header.
const HEAD: usize = 512;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct GpuRecord {
    uuid: [u8; 16],
    /// 1: the number is taken.
    used: u64,
    /// Slab records that were ever used; free ones among them have 0 units.
    slabs: u64,
    /// Which memory of the GPU they are of, by its number; 0: none.
    memory: u64,
}

impl GpuRecord {
    fn is_kept(&self, gpus: &[GpuHere]) -> bool {
        let is_known = |gpu: &GpuHere| gpu.uuid == self.uuid && gpu.memory == self.memory;
        self.used != 0 && self.memory != 0 && gpus.iter().any(is_known)
    }
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: u64,
    version: u64,
    table_id: u64,
    /// Of each GPU.
    gpu_bytes: u64,
    spare: [u64; 4],
    /// By number.
    gpus: [GpuRecord; GPUS_MAX],
}
const _: () = assert!(size_of::<Header>() <= HEAD * size_of::<u64>(), "the header is one page");

/// Why kept memory of GPUs is not used, for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DevicesUnlike {
    #[error("{what} is {found}, expected {expected}")]
    Field { what: &'static str, found: u64, expected: u64 },
    #[error("one GPU has two numbers")]
    Twice,
}

/// Kept memory of a group's slots on GPUs.
#[derive(Debug)]
pub struct Devices {
    writer: DeviceWriter<MappedWords>,
    words: Private<u64>,
    gpu_bytes: u64,
    /// By number.
    slabs: Vec<SlabMap>,
    pages: Vec<(ClientId, DeviceHazards)>,
    /// Scratch of `named`: the asked slots in order, with their places in the answer.
    asked: Vec<(u32, usize)>,
}

impl Devices {
    /// Words of the daemon's own memfd, where each GPU has `gpu_bytes`; sparse, a few pages are touched.
    pub fn words_for(gpu_bytes: u64) -> u64 {
        HEAD as u64 + GPUS_MAX as u64 * (records_for(gpu_bytes) * RECORD_WORDS as u64 + gpu_bytes / UNIT_BYTES)
    }

    /// Bytes of that memfd.
    pub fn bytes_for(gpu_bytes: u64) -> u64 {
        (Self::words_for(gpu_bytes) * WORD).next_multiple_of(4096)
    }

    /// Bytes of the device table's memfd.
    pub fn table_bytes_for(lines: u32) -> u64 {
        device::bytes_for(lines).next_multiple_of(4096)
    }

    /// Over an empty device table and words that are all zero.
    pub fn create(writer: DeviceWriter<MappedWords>, words: Private<u64>, gpu_bytes: u64, table_id: u64) -> Self {
        let mut devices = Self::over(writer, words, gpu_bytes);
        let header = devices.header_mut();
        header.version = VERSION;
        header.table_id = table_id;
        header.gpu_bytes = gpu_bytes;
        compiler_fence(Ordering::Release);
        header.magic = MAGIC;
        devices
    }

    /// What a former daemon left, if it is of this table and of GPUs with as much memory.
    pub fn adopt(
        writer: DeviceWriter<MappedWords>,
        words: Private<u64>,
        gpu_bytes: u64,
        table_id: u64,
    ) -> Result<Self, DevicesUnlike> {
        let devices = Self::over(writer, words, gpu_bytes);
        let header = devices.header();
        for (what, found, expected) in [
            ("the magic", header.magic, MAGIC),
            ("the version", header.version, VERSION),
            ("the block table", header.table_id, table_id),
            ("the memory of a GPU", header.gpu_bytes, gpu_bytes),
        ] {
            if found != expected {
                return Err(DevicesUnlike::Field { what, found, expected });
            }
        }
        let mut uuids: Vec<_> = header.gpus.iter().filter(|gpu| gpu.used != 0).map(|gpu| gpu.uuid).collect();
        uuids.sort_unstable();
        let count = uuids.len();
        uuids.dedup();
        if uuids.len() == count { Ok(devices) } else { Err(DevicesUnlike::Twice) }
    }

    fn over(writer: DeviceWriter<MappedWords>, words: Private<u64>, gpu_bytes: u64) -> Self {
        assert!(words.len() as u64 >= Self::words_for(gpu_bytes), "mapped as `words_for` says");
        let slabs = (0..GPUS_MAX).map(|_| SlabMap::default()).collect();
        Self { writer, words, gpu_bytes, slabs, pages: Vec::new(), asked: Vec::new() }
    }

    fn header(&self) -> &Header {
        Header::ref_from_prefix(self.words.as_bytes()).expect("the mapping is page-aligned and longer").0
    }

    fn header_mut(&mut self) -> &mut Header {
        Header::mut_from_prefix(self.words.as_mut_bytes()).expect("the mapping is page-aligned and longer").0
    }

    /// Memory that each GPU has for the group.
    pub fn gpu_bytes(&self) -> u64 {
        self.gpu_bytes
    }

    // ---- GPUs and their numbers ----

    /// The memory of each GPU, by its number, of which is known what lies in it.
    pub fn known_memory(&self) -> Vec<([u8; 16], u64)> {
        let known = self.header().gpus.iter().filter(|record| record.used != 0 && record.memory != 0);
        known.map(|record| (record.uuid, record.memory)).collect()
    }

    /// Numbers under which slabs are recorded whose GPU is not here, or not with the memory that it had: what the device
    /// table says of these is not to be believed.
    pub fn stale(&self, gpus: &[GpuHere]) -> Vec<GpuId> {
        let stale = |record: &GpuRecord| record.slabs > 0 && !record.is_kept(gpus);
        let records = self.header().gpus.iter().enumerate();
        records.filter(|(_, record)| stale(record)).map(|(number, _)| GpuId(number as u8)).collect()
    }

    /// Gives each of these GPUs its number, in their order. Slabs of stale ones are forgotten: the device table must say
    /// nothing of them any more.
    ///
    /// # Panics
    /// If there are more than `GPUS_MAX`.
    pub fn number(&mut self, gpus: &[GpuHere]) -> Vec<GpuId> {
        let header = self.header_mut();
        for record in header.gpus.iter_mut().filter(|record| !record.is_kept(gpus)) {
            record.slabs = 0;
            record.memory = 0;
        }
        compiler_fence(Ordering::Release);
        let mut number = |gpu: &GpuHere| {
            let number = number_of(&mut header.gpus, gpu.uuid, gpus);
            // Nothing is recorded of it yet, and nothing is said of it in the device table.
            header.gpus[number].memory = gpu.memory;
            GpuId(number as u8)
        };
        gpus.iter().map(&mut number).collect()
    }

    /// From now on nothing is known of the GPU's memory, and no daemon takes it over: the GPU is lost, and clients may read and
    /// write there all the same, of whom nothing will be known.
    pub fn forget_memory(&mut self, gpu: GpuId) {
        self.header_mut().gpus[usize::from(gpu.0)].memory = 0;
        compiler_fence(Ordering::Release);
    }

    /// Slabs of the former daemon on a GPU, in order of place.
    pub fn adopt_slabs(&mut self, gpu: GpuId, pools: u32) -> Vec<Slab> {
        let units = self.gpu_bytes / UNIT_BYTES;
        let (map, records, high) = self.slab_parts(gpu);
        map.adopt(records, high, pools, units)
    }

    pub fn set_slab(&mut self, gpu: GpuId, slab: &Slab) {
        // What a former use of this memory left must not be read as states of the new slots.
        let first = self.slot_at(gpu, slab, 0);
        self.words[first..first + slab.slots() as usize].fill(slot_word(SlotState::Free));
        compiler_fence(Ordering::Release);
        let (map, records, high) = self.slab_parts(gpu);
        map.set(records, high, slab);
    }

    pub fn forget_slab(&mut self, gpu: GpuId, slab: &Slab) {
        let (map, records, _) = self.slab_parts(gpu);
        map.forget(records, slab);
    }

    /// The slab map of a GPU, its records, and how many of these were ever used.
    fn slab_parts(&mut self, gpu: GpuId) -> (&mut SlabMap, &mut [SlabRecord], &mut u64) {
        let (number, words) = (usize::from(gpu.0), records_for(self.gpu_bytes) as usize * RECORD_WORDS);
        let (head, rest) = self.words.split_at_mut(HEAD);
        let header = Header::mut_from_prefix(head.as_mut_bytes()).expect("one page").0;
        let records = rest[number * words..][..words].as_mut_bytes();
        let records = <[SlabRecord]>::mut_from_bytes(records).expect("whole records");
        (&mut self.slabs[number], records, &mut header.gpus[number].slabs)
    }

    // ---- Slots ----

    fn slot_at(&self, gpu: GpuId, slab: &Slab, index: u32) -> usize {
        let (units, records) = ((self.gpu_bytes / UNIT_BYTES) as usize, records_for(self.gpu_bytes) as usize);
        let place = slab.base.0 as usize + index as usize;
        assert!(place < units, "a slot lies in its GPU's memory");
        HEAD + GPUS_MAX * records * RECORD_WORDS + usize::from(gpu.0) * units + place
    }

    pub fn slot_state(&self, gpu: GpuId, slab: &Slab, index: u32) -> SlotState {
        slot_state_of(self.words[self.slot_at(gpu, slab, index)])
    }

    pub fn set_slot_state(&mut self, gpu: GpuId, slab: &Slab, index: u32, state: SlotState) {
        let at = self.slot_at(gpu, slab, index);
        self.words[at] = slot_word(state);
        compiler_fence(Ordering::Release);
    }

    // ---- What readers see, and what they name ----

    pub fn place(&self, line: LineId, generation: u64) -> Option<DevicePlace> {
        let at = self.writer.table().find(line, generation)?.at;
        Some(DevicePlace { gpu: at.gpu, slot: at.slot, units: at.units })
    }

    pub fn set_place(&self, line: LineId, generation: u64, place: DevicePlace) {
        let DevicePlace { gpu, slot, units } = place;
        self.writer.set(line, generation, lapis_arena::DeviceSlot { gpu, slot, units });
    }

    pub fn clear_place(&self, line: LineId) {
        self.writer.clear(line);
    }

    /// From now on no slot on a GPU that this client names is reused.
    pub fn add_hazards(&mut self, client: ClientId, page: &Mapping) {
        self.pages.push((client, DeviceHazards::mapped(page, 0)));
    }

    /// The client's processes ended, or it was expelled: its page counts as empty.
    pub fn remove_hazards(&mut self, client: ClientId) {
        self.pages.retain(|(id, _)| *id != client);
    }

    /// Calls `visit` with each slot that the client's page names.
    pub fn hazards_of(&self, client: ClientId, visit: &mut impl FnMut(GpuId, SlotId)) {
        for (_, page) in self.pages.iter().filter(|(id, _)| *id == client) {
            page.each(visit);
        }
    }

    /// For each slot whether a reader names it. Fences once; `named` is cleared first.
    pub fn named(&mut self, gpu: GpuId, slots: &[SlotId], named: &mut Vec<bool>) {
        named.clear();
        named.resize(slots.len(), false);
        self.asked.clear();
        self.asked.extend(slots.iter().enumerate().map(|(i, slot)| (slot.0, i)));
        self.asked.sort_unstable();
        let asked = &self.asked;
        device::scan(self.pages.iter().map(|(_, page)| page), &mut |of, slot| {
            if of == gpu
                && let Ok(at) = asked.binary_search_by_key(&slot.0, |(asked, _)| *asked)
            {
                named[asked[at].1] = true;
            }
        });
    }
}

/// A GPU as this daemon found it.
#[derive(Clone, Copy, Debug)]
pub struct GpuHere {
    pub uuid: [u8; 16],
    /// The number of its memory, which that alone has; 0: it has none.
    pub memory: u64,
}

/// The number that the GPU has, or one that no GPU has that is here: best one that none had.
fn number_of(records: &mut [GpuRecord], uuid: [u8; 16], here: &[GpuHere]) -> usize {
    if let Some(number) = records.iter().position(|record| record.used != 0 && record.uuid == uuid) {
        return number;
    }
    let unused = records.iter().position(|record| record.used == 0);
    let number = unused.or_else(|| records.iter().position(|record| here.iter().all(|gpu| gpu.uuid != record.uuid)));
    let number = number.expect("no more GPUs than numbers");
    let record = &mut records[number];
    // Its predecessor's slabs are forgotten already.
    record.uuid = uuid;
    compiler_fence(Ordering::Release);
    record.used = 1;
    number
}

#[cfg(test)]
mod tests;
