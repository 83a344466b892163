//! The slab map: records in kept memory, and which of them holds which slab.
//!
//! Invariant: a record counts from the store of its `units` on, which is the last one.

use std::{
    collections::BTreeMap,
    sync::atomic::{Ordering, compiler_fence},
};

use lapis_config::{PoolId, SlotId, UNIT_BYTES};
use lapis_tiering::kept::Slab;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// No slab is smaller, which bounds the slab map.
const SLAB_UNITS_MIN: u64 = 16;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SlabRecord {
    /// 0: no slab starts here.
    units: u32,
    stride: u32,
    pool: u16,
    spare: u16,
    base: u32,
}
const _: () = assert!(size_of::<SlabRecord>() == 16, "layout of kept memory");

/// Records that so much memory may need.
pub fn records_for(bytes: u64) -> u64 {
    bytes / UNIT_BYTES / SLAB_UNITS_MIN + 1
}

/// Which record holds the slab that starts at a unit; and the records that are free below the high mark.
#[derive(Debug, Default)]
pub struct SlabMap {
    by_base: BTreeMap<u32, usize>,
    free: Vec<usize>,
}

impl SlabMap {
    /// Records a slab. `high`: how many records were ever used.
    pub fn set(&mut self, records: &mut [SlabRecord], high: &mut u64, slab: &Slab) {
        let index = self.free.pop().unwrap_or_else(|| {
            *high += 1;
            *high as usize - 1
        });
        let record = &mut records[index];
        *record = SlabRecord { units: 0, stride: slab.stride, pool: slab.pool.0, spare: 0, base: slab.base.0 };
        compiler_fence(Ordering::Release);
        record.units = slab.units;
        let former = self.by_base.insert(slab.base.0, index);
        assert!(former.is_none(), "a slab is forgotten before its memory is given again");
    }

    pub fn forget(&mut self, records: &mut [SlabRecord], slab: &Slab) {
        let index = self.by_base.remove(&slab.base.0).expect("only a recorded slab is forgotten");
        records[index].units = 0;
        self.free.push(index);
    }

    /// Reads the records of a former daemon: the slabs of so many pools within the first `units` of memory, in order of
    /// place. An impossible or overlapping record is left out, and its memory counts as empty.
    pub fn adopt(&mut self, records: &mut [SlabRecord], high: &mut u64, pools: u32, units: u64) -> Vec<Slab> {
        *high = (*high).min(records.len() as u64);
        let mut found: Vec<(usize, SlabRecord)> = Vec::new();
        for (index, place) in records[..*high as usize].iter_mut().enumerate() {
            let record = *place;
            let sound = record.units > 0
                && (1..=record.units).contains(&record.stride)
                && u32::from(record.pool) < pools
                && u64::from(record.base) + u64::from(record.units) <= units;
            if sound {
                found.push((index, record));
            } else {
                place.units = 0;
                self.free.push(index);
            }
        }
        found.sort_unstable_by_key(|(_, record)| record.base);
        let (mut slabs, mut end) = (Vec::with_capacity(found.len()), 0u64);
        for (index, record) in found {
            if u64::from(record.base) < end {
                records[index].units = 0;
                self.free.push(index);
                continue;
            }
            end = u64::from(record.base) + u64::from(record.units);
            self.by_base.insert(record.base, index);
            let (base, pool) = (SlotId(record.base), PoolId(record.pool));
            slabs.push(Slab { base, units: record.units, pool, stride: record.stride });
        }
        slabs
    }
}
