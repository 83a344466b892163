//! Gets of objects into the memory of a GPU. The name of an object lies behind its bytes, and is read in DRAM; the bytes come
//! from there too, or from the copy that the daemon has on a GPU of the same block.
//!
//! Objects of several parts are told of and not copied: their parts are found one after the other, by the sums of those before.

use std::sync::Arc;

use lapis_config::{Key, PoolKind, Wait, sizes};

use super::{
    DevicePins, DevicePtr, DeviceStream,
    get::{DeviceGetJob, Look},
    pieces::Targets,
};
use crate::{
    ClientError, GetOptions, Pool,
    session::{Session, object::first_key},
};

/// Bytes of an object, from an offset on, and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRange {
    pub offset: u64,
    pub bytes: u64,
    pub to: DevicePtr,
}

/// What is wanted of one object, and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceObject {
    ranges: Vec<DeviceRange>,
    is_whole: bool,
}

impl DeviceObject {
    /// All of the object, to places that it fills one after the other; they may hold more than it has.
    pub fn whole(places: impl IntoIterator<Item = (DevicePtr, u64)>) -> Self {
        let mut offset = 0;
        let range = |(to, bytes)| {
            let range = DeviceRange { offset, bytes, to };
            offset = u64::saturating_add(offset, bytes);
            range
        };
        Self { ranges: places.into_iter().map(range).collect(), is_whole: true }
    }

    /// Ranges of it. Those that reach beyond its end are not copied.
    pub fn ranges(ranges: Vec<DeviceRange>) -> Self {
        Self { ranges, is_whole: false }
    }

    /// Bytes of all places.
    fn bytes(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, range| sum.saturating_add(range.bytes))
    }

    /// Whether an object of so many bytes has its place here.
    fn fits(&self, total: u64) -> bool {
        !self.is_whole || self.bytes() >= total
    }

    /// What is to be copied of an object of so many bytes.
    pub(super) fn runs(&self, total: u64) -> impl Iterator<Item = DeviceRange> {
        let run = move |range: &DeviceRange| {
            let end = range.offset.checked_add(range.bytes);
            let bytes = match self.is_whole {
                true => range.bytes.min(total.saturating_sub(range.offset)),
                false => range.bytes * u64::from(end.is_some_and(|end| end <= total)),
            };
            (bytes > 0).then_some(DeviceRange { bytes, ..*range })
        };
        self.ranges.iter().filter_map(run)
    }
}

/// What became of one object of a get into a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceObjectStatus {
    /// The object has so many bytes; what was asked of them is on its way.
    Hit { bytes: u64 },
    /// It is longer than its place. Nothing is copied.
    Long { bytes: u64 },
    /// It is of several parts. Nothing is copied; [`crate::Client::get_objects_into`] reads it into memory of the host.
    Parts,
    /// Nothing that was copied is to be looked at.
    Miss,
}

/// The objects of a get.
pub(super) struct Objects<'a> {
    names: &'a [&'a [u8]],
    to: &'a [DeviceObject],
    pub told: Vec<DeviceObjectStatus>,
}

impl Objects<'_> {
    /// Bytes asked for.
    pub fn bytes(&self) -> u64 {
        self.to.iter().fold(0, |sum, object| sum.saturating_add(object.bytes()))
    }

    /// Of the largest that is asked for.
    pub fn slot_bytes(&self, pool: &Pool) -> u32 {
        let bytes = self.to.iter().map(DeviceObject::bytes).max().unwrap_or(0).min(pool.part_bytes_max());
        u32::try_from(sizes::slot_bytes(pool.shape(), bytes)).unwrap_or(u32::MAX)
    }

    /// Whether more than a miss is known of it.
    pub fn is_told(&self, i: usize) -> bool {
        self.told[i] != DeviceObjectStatus::Miss
    }
}

/// The keys of objects.
pub(crate) fn keys_of(names: &[&[u8]]) -> Result<Vec<Key>, ClientError> {
    names.iter().map(|name| first_key(name)).collect()
}

impl<'a> DeviceGetJob<'a> {
    /// A get of objects, whose keys are `keys_of` their names.
    ///
    /// # Safety
    /// Each address of `to` is memory of the stream's GPU with room for its bytes, and nobody frees it, or reads or writes it other
    /// than on this stream, before what is put on the stream has ended.
    pub unsafe fn of_objects(
        session: Arc<Session>,
        pool: &Pool,
        (names, keys): (&'a [&'a [u8]], &'a [Key]),
        to: &'a [DeviceObject],
        stream: &DeviceStream,
        options: &GetOptions,
    ) -> Result<Self, ClientError> {
        Self::check(&session, pool, keys, PoolKind::Object)?;
        if to.len() != names.len() {
            return Err(ClientError::VectorCount { blocks: names.len(), vectors: to.len() });
        }
        let (gpu, stream) = session.open_gpu(stream)?;
        let options = GetOptions { wait: Wait::Present, ..options.clone() };
        let mut job = Self::begin(session, pool, keys, Targets::objects(to, stream), gpu, &options);
        job.objects = Some(Objects { names, to, told: vec![DeviceObjectStatus::Miss; names.len()] });
        Ok(job)
    }

    pub(super) fn look_at_object(&self, objects: &Objects<'_>, i: usize, pins: Option<&mut DevicePins>) -> Look {
        let (session, pool) = (&self.session, &self.pool);
        let Some(found) = session.find(pool, &self.keys[i]) else { return Look::Miss };
        let bytes = u64::from(found.bytes);
        if bytes >= pool.part_bytes_max() {
            return Look::Told(DeviceObjectStatus::Parts);
        }
        if !found.state.is_readable() {
            return Look::Elsewhere;
        }
        // To be believed once the line was looked at again, as is done with all that is read.
        let place = session.object_place(pool, &found);
        let Some((mapping, offset)) = place else { return Look::Miss };
        if session.object_lengths(mapping, offset, &found, objects.names[i]) != Some((bytes, 1)) {
            return if session.maps().table.still(&found) { Look::Miss } else { Look::NotYet };
        }
        if !objects.to[i].fits(bytes) {
            return Look::Told(DeviceObjectStatus::Long { bytes });
        }
        self.place(found, pins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, bytes: u64, to: u64) -> DeviceRange {
        DeviceRange { offset, bytes, to: DevicePtr(to) }
    }

    #[test]
    fn a_whole_object_fills_its_places_one_after_the_other_as_far_as_it_goes() {
        let object = DeviceObject::whole([(DevicePtr(100), 10), (DevicePtr(500), 0), (DevicePtr(300), 20)]);
        assert_eq!((object.bytes(), object.fits(30), object.fits(31)), (30, true, false));
        let runs = |total| object.runs(total).collect::<Vec<_>>();
        assert_eq!(runs(30), [range(0, 10, 100), range(10, 20, 300)]);
        assert_eq!(runs(11), [range(0, 10, 100), range(10, 1, 300)]);
        assert_eq!(runs(10), [range(0, 10, 100)]);
        assert_eq!(runs(0), []);
    }

    #[test]
    fn ranges_beyond_the_end_are_left_out() {
        let object = DeviceObject::ranges(vec![range(5, 10, 1), range(0, 4, 2), range(u64::MAX, 2, 3), range(3, 0, 4)]);
        assert!(object.fits(0) && object.fits(u64::MAX));
        assert_eq!(object.runs(15).collect::<Vec<_>>(), [range(5, 10, 1), range(0, 4, 2)]);
        assert_eq!(object.runs(14).collect::<Vec<_>>(), [range(0, 4, 2)]);
        assert_eq!(object.runs(3).count(), 0);
    }

    #[test]
    fn lengths_that_no_memory_has_do_not_wrap() {
        let object = DeviceObject::whole([(DevicePtr(1), u64::MAX), (DevicePtr(2), u64::MAX)]);
        assert!(object.fits(u64::MAX));
        assert_eq!(object.runs(8).collect::<Vec<_>>(), [range(0, 8, 1)]);
    }
}
