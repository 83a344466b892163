//! What the core keeps where a restart finds it: the lines of the table, the private entries, the states of slots, the
//! slab map. A plain array in replay; the shared table and two private memfds in the daemon and the simulator.

use lapis_config::{ClientId, Entry, GpuId, Key, LineId, PoolId, SlotId};

/// Where a published block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub slot: SlotId,
    pub bytes: u32,
    pub sum: u64,
    pub tier: Tier,
}

/// The state of a line as readers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Dram,
    /// In DRAM and not verified since the daemon's start: readers check the sum themselves.
    DramUnverified,
    /// Not in memory: readers ask the daemon.
    Elsewhere,
    /// Not in DRAM, but on a GPU: for a host as `Elsewhere`.
    Hbm,
}

/// Where a block's copy on a GPU lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePlace {
    pub gpu: GpuId,
    /// Over the GPU's own extents.
    pub slot: SlotId,
    /// 4 KiB units of the slot.
    pub units: u32,
}

/// No free line within reach of either home of the key: the lines that could be evicted to make room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoLine {
    pub candidates: Vec<LineId>,
}

/// Who may write a slot now. Written before the slot number leaves the daemon, so that a restart knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    Free,
    /// Published (or about to be) at this line.
    Used(LineId),
    /// This client may be writing into it.
    Granted(ClientId),
    /// A device may be writing into it.
    IoIn,
    /// Unpublished, but a reader may still name it.
    Aside,
}

/// One slab: memory given to one pool and cut into slots of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slab {
    pub base: SlotId,
    /// 4 KiB units in the slab; a power of two.
    pub units: u32,
    pub pool: PoolId,
    /// 4 KiB units per slot.
    pub stride: u32,
}

impl Slab {
    pub fn slots(&self) -> u32 {
        self.units / self.stride
    }
    pub fn slot(&self, index: u32) -> SlotId {
        SlotId(self.base.0 + index * self.stride)
    }
}

/// One live line, as adoption finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    pub pool: PoolId,
    pub key: Key,
    pub place: Place,
    /// Changed whenever the bond of key and slot changed.
    pub generation: u64,
}

/// A key that came or went, whatever tier it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyChange {
    pub pool: PoolId,
    pub key: Key,
    /// It came, or it went.
    pub came: bool,
}

/// The kept memory, as the core uses it. All calls are single-threaded; none blocks.
pub trait Kept {
    fn lines(&self) -> u32;
    fn find(&self, pool: PoolId, key: &Key) -> Option<LineId>;
    /// The key is asked for, or published, soon: a hint.
    fn prefetch(&self, _pool: PoolId, _key: &Key) {}
    /// A key that was hinted at before is published next, if it is not there: the line where it will probably be, with
    /// its entry.
    fn prefetch_free(&self, _pool: PoolId, _key: &Key) -> Option<LineId> {
        None
    }
    /// This value of the core's own is wanted soon: a hint.
    fn prefetch_value<T>(&self, _value: &T) {}
    /// `None` if the line is free.
    fn live(&self, line: LineId) -> Option<Live>;
    /// Puts a new key into the table, visible to readers when this returns.
    fn publish(&mut self, pool: PoolId, key: &Key, place: Place) -> Result<LineId, NoLine>;
    /// Same key, other place (demotion, promotion).
    fn rebind(&mut self, line: LineId, place: Place);
    /// The bytes at an unverified line fit their sum; the generation stays.
    fn verified(&mut self, line: LineId);
    fn unpublish(&mut self, line: LineId);
    fn entry(&self, line: LineId) -> &Entry;
    fn entry_mut(&mut self, line: LineId) -> &mut Entry;

    /// `slab` is the slab that holds the slot, `index` the slot's number in it.
    fn slot_state(&self, slab: &Slab, index: u32) -> SlotState;
    fn set_slot_state(&mut self, slab: &Slab, index: u32, state: SlotState);
    /// Records that the slab exists (before any of its slots is used), or with `forget` that it does not any more.
    fn set_slab(&mut self, slab: &Slab);
    fn forget_slab(&mut self, slab: &Slab);

    /// Whether what the policy learned is kept; `keep_learned` replaces what there was.
    fn keeps_learned(&self) -> bool {
        false
    }
    fn keep_learned(&mut self, _bytes: &[u8]) {}
    /// What was kept last, if it is whole.
    fn learned(&self) -> Option<Vec<u8>> {
        None
    }

    /// For each of `slots` (all unpublished before): whether a reader still names it. Fences, then scans all hazard
    /// pages once. `named` is cleared first.
    fn named(&mut self, slots: &[SlotId], named: &mut Vec<bool>);

    /// Whether there is a device table: without one no GPU is used, and none of what follows is called.
    fn keeps_devices(&self) -> bool {
        false
    }
    /// Where a GPU has a copy of the block, if readers find it: the place was set with the line's present generation.
    fn device(&self, _line: LineId) -> Option<DevicePlace> {
        None
    }
    /// Readers find the block's copy there, under the line's present generation, or do not any more, when this returns.
    fn set_device(&mut self, _line: LineId, _place: Option<DevicePlace>) {}
    /// The same of a GPU's slots as `slot_state` and those after it of DRAM's.
    fn device_slot_state(&self, _gpu: GpuId, _slab: &Slab, _index: u32) -> SlotState {
        SlotState::Aside
    }
    fn set_device_slot_state(&mut self, _gpu: GpuId, _slab: &Slab, _index: u32, _state: SlotState) {}
    fn set_device_slab(&mut self, _gpu: GpuId, _slab: &Slab) {}
    fn forget_device_slab(&mut self, _gpu: GpuId, _slab: &Slab) {}
    /// `named` for slots of a GPU: whether a reader names them.
    fn device_named(&mut self, _gpu: GpuId, slots: &[SlotId], named: &mut Vec<bool>) {
        named.clear();
        named.resize(slots.len(), true);
    }
}
