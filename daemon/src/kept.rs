//! The kept memory of one group behind the core's `Kept`: the shared table, the private entries, the slot states, the
//! slab map in `state`, and the hazard pages of every client that may still read; and the same of GPUs, where there are any.

mod devices;

use lapis_arena::{Hazards, LineState, MappedWords, PagesAhead, Private, TableWriter, hazard};
use lapis_config::{
    ClientId, Entry, GpuId, Key, LineId, PoolId, SlotId,
    planted::{self, Bug},
};
use lapis_state::State;
use lapis_tiering::kept::{DevicePlace, Kept, KeyChange, Live, NoLine, Place, Slab, SlotState, Tier};

pub use self::devices::{Devices, DevicesUnlike, GpuHere};
use crate::group::DevicePage;

const FREE: u64 = 0;
const USED: u64 = 1;
const GRANTED: u64 = 2;
const IO_IN: u64 = 3;
const ASIDE: u64 = 4;
const KIND_BITS: u32 = 4;

pub struct SharedKept {
    pub table: TableWriter<MappedWords>,
    pub state: State,
    entries: Private<Entry>,
    /// One word per slot, at `slab.base + index`: `value << 4 | kind`. Sparse: only the first words of a slab are used.
    slots: Private<u64>,
    pages: Vec<(ClientId, Hazards)>,
    /// `None`: no GPU is used with this group.
    devices: Option<Devices>,
    /// Scratch of `named`: the asked slots in order, with their places in the answer.
    asked: Vec<(u32, usize)>,
    /// What came and went since it was last taken, where somebody wants to know.
    changes: Option<Vec<KeyChange>>,
}

impl SharedKept {
    pub fn new(table: TableWriter<MappedWords>, state: State, entries: Private<Entry>, slots: Private<u64>) -> Self {
        let (pages, asked) = (Vec::new(), Vec::new());
        Self { table, state, entries, slots, pages, devices: None, asked, changes: None }
    }

    /// The same, with memory for slots on GPUs.
    pub fn with_devices(self, devices: Option<Devices>) -> Self {
        Self { devices, ..self }
    }

    pub fn devices_mut(&mut self) -> Option<&mut Devices> {
        self.devices.as_mut()
    }

    /// The memory of each GPU, by its number, of which is known what lies in it.
    pub fn known_memory(&self) -> Vec<([u8; 16], u64)> {
        self.devices.as_ref().map(Devices::known_memory).unwrap_or_default()
    }

    /// No daemon takes over the memory of this GPU, which is lost.
    pub fn forget_gpu_memory(&mut self, gpu: GpuId) {
        if let Some(devices) = &mut self.devices {
            devices.forget_memory(gpu);
        }
    }

    /// Gives GPUs their numbers, with the slabs of the former daemon on each. Readers find no copy on a GPU any more whose
    /// memory is not what it was: where there was one, this looks at every line. Empty without memory for GPUs.
    pub fn number_gpus(&mut self, gpus: &[GpuHere]) -> Vec<(GpuId, Vec<Slab>)> {
        let Some(devices) = &mut self.devices else { return Vec::new() };
        let stale = devices.stale(gpus);
        if !stale.is_empty() {
            for line in (0..self.table.table().lines()).map(LineId) {
                let place = self.table.live(line).and_then(|live| devices.place(line, live.generation));
                if place.is_some_and(|place| stale.contains(&place.gpu)) {
                    devices.clear_place(line);
                }
            }
        }
        let pools = self.state.pools().count() as u32;
        let numbers = devices.number(gpus);
        numbers.into_iter().map(|gpu| (gpu, devices.adopt_slabs(gpu, pools))).collect()
    }

    /// From the first call on, keys that came and went since the one before.
    pub fn take_changes(&mut self) -> Vec<KeyChange> {
        self.changes.replace(Vec::new()).unwrap_or_default()
    }

    /// A line of a former daemon is taken over.
    pub fn came(&mut self, live: &Live) {
        if let Some(changes) = &mut self.changes {
            changes.push(KeyChange { pool: live.pool, key: live.key, came: true });
        }
    }

    /// Whether `take_changes` has something to say.
    pub fn has_changes(&self) -> bool {
        self.changes.as_ref().is_some_and(|changes| !changes.is_empty())
    }

    /// The memory of lines and entries, to be mapped in while nobody has to wait for it.
    pub fn pages_of_lines(&self) -> [PagesAhead; 2] {
        [self.table.pages_ahead(), self.entries.pages_ahead()]
    }

    /// From now on no slot that this client names is reused, in DRAM or on a GPU.
    pub fn add_hazards(&mut self, client: ClientId, page: Hazards, device_page: Option<&DevicePage>) {
        self.pages.push((client, page));
        if let (Some(devices), Some(page)) = (&mut self.devices, device_page) {
            devices.add_hazards(client, &page.mapping);
        }
    }

    /// The client's processes ended, or it was expelled: its page counts as empty.
    pub fn remove_hazards(&mut self, client: ClientId) {
        self.pages.retain(|(id, _)| *id != client);
        if let Some(devices) = &mut self.devices {
            devices.remove_hazards(client);
        }
    }

    /// Calls `visit` with each slot that the client's page names.
    pub fn hazards_of(&self, client: ClientId, visit: &mut impl FnMut(SlotId)) {
        for (_, page) in self.pages.iter().filter(|(id, _)| *id == client) {
            page.each(visit);
        }
    }

    /// The same of slots on GPUs.
    pub fn device_hazards_of(&self, client: ClientId, visit: &mut impl FnMut(GpuId, SlotId)) {
        if let Some(devices) = &self.devices {
            devices.hazards_of(client, visit);
        }
    }
}

fn line_state(tier: Tier) -> LineState {
    match tier {
        Tier::Dram => LineState::Dram,
        Tier::DramUnverified => LineState::Unverified,
        Tier::Elsewhere => LineState::Elsewhere,
        Tier::Hbm => LineState::Hbm,
    }
}

pub(crate) fn tier(state: LineState) -> Tier {
    match state {
        LineState::Dram => Tier::Dram,
        LineState::Unverified => Tier::DramUnverified,
        LineState::Elsewhere => Tier::Elsewhere,
        LineState::Hbm => Tier::Hbm,
    }
}

fn slot_word(state: SlotState) -> u64 {
    let (kind, value) = match state {
        SlotState::Free => (FREE, 0),
        SlotState::Used(line) => (USED, line.0),
        SlotState::Granted(client) => (GRANTED, client.0),
        SlotState::IoIn => (IO_IN, 0),
        SlotState::Aside => (ASIDE, 0),
    };
    u64::from(value) << KIND_BITS | kind
}

fn slot_state_of(word: u64) -> SlotState {
    let value = (word >> KIND_BITS) as u32;
    match word & ((1 << KIND_BITS) - 1) {
        FREE => SlotState::Free,
        USED => SlotState::Used(LineId(value)),
        GRANTED => SlotState::Granted(ClientId(value)),
        IO_IN => SlotState::IoIn,
        // An unknown kind can only be damage: nobody may reuse the slot before a cold start.
        _ => SlotState::Aside,
    }
}

const NO_DEVICES: &str = "nothing of GPUs is asked for without memory for them";

impl Kept for SharedKept {
    fn lines(&self) -> u32 {
        self.table.table().lines()
    }

    fn find(&self, pool: PoolId, key: &Key) -> Option<LineId> {
        self.table.find(pool, key).map(|found| found.line)
    }

    fn prefetch(&self, pool: PoolId, key: &Key) {
        self.table.table().prefetch(pool, key);
    }

    fn prefetch_free(&self, pool: PoolId, key: &Key) -> Option<LineId> {
        let line = self.table.prefetch_free(pool, key)?;
        self.entries.prefetch(line.0 as usize);
        Some(line)
    }

    fn prefetch_value<T>(&self, value: &T) {
        lapis_arena::prefetch(value);
    }

    fn live(&self, line: LineId) -> Option<Live> {
        self.table.live(line).map(|live| Live {
            pool: live.pool,
            key: live.key,
            place: Place { slot: live.slot, bytes: live.bytes, sum: live.sum, tier: tier(live.state) },
            generation: live.generation,
        })
    }

    fn publish(&mut self, pool: PoolId, key: &Key, place: Place) -> Result<LineId, NoLine> {
        let line = self
            .table
            .publish(pool, key, place.slot, place.bytes, place.sum, line_state(place.tier))
            .map_err(|candidates| NoLine { candidates })?;
        if let Some(changes) = &mut self.changes {
            changes.push(KeyChange { pool, key: *key, came: true });
        }
        Ok(line)
    }

    fn rebind(&mut self, line: LineId, place: Place) {
        self.table.rebind(line, place.slot, place.bytes, place.sum, line_state(place.tier));
    }

    fn verified(&mut self, line: LineId) {
        self.table.set_verified(line);
    }

    fn unpublish(&mut self, line: LineId) {
        if let Some(changes) = &mut self.changes
            && let Some(live) = self.table.live(line)
        {
            changes.push(KeyChange { pool: live.pool, key: live.key, came: false });
        }
        self.table.unpublish(line);
    }

    fn entry(&self, line: LineId) -> &Entry {
        &self.entries[line.0 as usize]
    }

    fn entry_mut(&mut self, line: LineId) -> &mut Entry {
        &mut self.entries[line.0 as usize]
    }

    fn slot_state(&self, slab: &Slab, index: u32) -> SlotState {
        slot_state_of(self.slots[(slab.base.0 + index) as usize])
    }

    fn set_slot_state(&mut self, slab: &Slab, index: u32, state: SlotState) {
        self.slots[(slab.base.0 + index) as usize] = slot_word(state);
        // SIGKILL keeps stores in the order in which they were made: the grant's record before the grant.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::Release);
    }

    fn set_slab(&mut self, slab: &Slab) {
        // What a former use of this memory left must not be read as states of the new slots.
        for index in 0..slab.slots() {
            self.slots[(slab.base.0 + index) as usize] = FREE;
        }
        self.state.set_slab(slab);
    }

    fn forget_slab(&mut self, slab: &Slab) {
        self.state.forget_slab(slab);
    }

    fn keeps_learned(&self) -> bool {
        true
    }

    fn keep_learned(&mut self, bytes: &[u8]) {
        self.state.keep_learned(bytes);
    }

    fn learned(&self) -> Option<Vec<u8>> {
        self.state.learned()
    }

    fn named(&mut self, slots: &[SlotId], named: &mut Vec<bool>) {
        named.clear();
        named.resize(slots.len(), false);
        if planted::is(Bug::HazardMissed) {
            return;
        }
        self.asked.clear();
        self.asked.extend(slots.iter().enumerate().map(|(i, slot)| (slot.0, i)));
        self.asked.sort_unstable();
        // Its fence is the other half of the readers' one: either a reader's check sees the unpublished line, or this
        // scan sees its hazard.
        let asked = &self.asked;
        hazard::scan(self.pages.iter().map(|(_, page)| page), &mut |slot| {
            if let Ok(at) = asked.binary_search_by_key(&slot.0, |(asked, _)| *asked) {
                named[asked[at].1] = true;
            }
        });
    }

    fn keeps_devices(&self) -> bool {
        self.devices.is_some()
    }

    fn device(&self, line: LineId) -> Option<DevicePlace> {
        // Asked of every line that is taken over, whether there are GPUs or not.
        let devices = self.devices.as_ref()?;
        devices.place(line, self.table.live(line)?.generation)
    }

    fn set_device(&mut self, line: LineId, place: Option<DevicePlace>) {
        let devices = self.devices.as_ref().expect(NO_DEVICES);
        match (place, self.table.live(line)) {
            (Some(place), Some(live)) => devices.set_place(line, live.generation, place),
            (Some(_), None) => panic!("a copy of a block that has no line"),
            (None, _) => devices.clear_place(line),
        }
    }

    fn device_slot_state(&self, gpu: GpuId, slab: &Slab, index: u32) -> SlotState {
        self.devices.as_ref().expect(NO_DEVICES).slot_state(gpu, slab, index)
    }

    fn set_device_slot_state(&mut self, gpu: GpuId, slab: &Slab, index: u32, state: SlotState) {
        self.devices.as_mut().expect(NO_DEVICES).set_slot_state(gpu, slab, index, state);
    }

    fn set_device_slab(&mut self, gpu: GpuId, slab: &Slab) {
        self.devices.as_mut().expect(NO_DEVICES).set_slab(gpu, slab);
    }

    fn forget_device_slab(&mut self, gpu: GpuId, slab: &Slab) {
        self.devices.as_mut().expect(NO_DEVICES).forget_slab(gpu, slab);
    }

    fn device_named(&mut self, gpu: GpuId, slots: &[SlotId], named: &mut Vec<bool>) {
        self.devices.as_mut().expect(NO_DEVICES).named(gpu, slots, named);
    }
}
