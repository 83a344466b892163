//! Gets of objects into the caller's memory: whole ones, or ranges of them. Those in memory are copied at once; the others
//! are asked of the daemon, a window at a time.

use std::{io::IoSliceMut, marker::PhantomData, mem::MaybeUninit, sync::Arc, time::Duration};

use lapis_arena::{Found, Mapping, copy};
use lapis_config::{Key, Wait, sizes};
use lapis_transport::frame::Request;

use super::{
    Answer, Busy, Session, Step,
    object::{first_key, lengths, tail},
    put::daemons_share_us,
    windows::Windows,
};
use crate::{ClientError, Pool, keys, sums};

/// What an object is taken to have that this host does not know, and another one may.
const REMOTE_OBJECT_BYTES: u64 = 1 << 20;

#[derive(Debug)]
enum Form {
    /// All of the object, to places that may hold more.
    Whole(Vec<libc::iovec>),
    /// The bytes from each offset on.
    Ranges(Vec<(u64, libc::iovec)>),
}

/// Where bytes of one object go.
#[derive(Debug)]
pub struct ObjectDst<'a> {
    form: Form,
    of: PhantomData<&'a mut [u8]>,
}

// SAFETY: an exclusive borrow of plain bytes, or the caller of `raw` or `ranges` promised as much.
unsafe impl Send for ObjectDst<'_> {}

impl<'a> From<&'a mut [u8]> for ObjectDst<'a> {
    fn from(buffer: &'a mut [u8]) -> Self {
        let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        Self { form: Form::Whole(vec![vector]), of: PhantomData }
    }
}

impl<'a> From<&'a mut [MaybeUninit<u8>]> for ObjectDst<'a> {
    fn from(buffer: &'a mut [MaybeUninit<u8>]) -> Self {
        let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        Self { form: Form::Whole(vec![vector]), of: PhantomData }
    }
}

impl<'a> From<&'a mut [IoSliceMut<'_>]> for ObjectDst<'a> {
    fn from(vectors: &'a mut [IoSliceMut<'_>]) -> Self {
        let vector =
            |slice: &mut IoSliceMut<'_>| libc::iovec { iov_base: slice.as_mut_ptr().cast(), iov_len: slice.len() };
        Self { form: Form::Whole(vectors.iter_mut().map(vector).collect()), of: PhantomData }
    }
}

impl ObjectDst<'_> {
    /// Memory known by its addresses alone; the object fills one after the other.
    ///
    /// # Safety
    /// Each vector is valid for writes of its length until the call that is given this ends, nobody else reads or writes
    /// there meanwhile, and none lies in memory that the client mapped.
    pub unsafe fn raw(vectors: Vec<libc::iovec>) -> Self {
        Self { form: Form::Whole(vectors), of: PhantomData }
    }

    /// For each vector the bytes of the object from an offset on. Those beyond the object's end are not copied.
    ///
    /// # Safety
    /// As for [`Self::raw`].
    pub unsafe fn ranges(ranges: Vec<(u64, libc::iovec)>) -> Self {
        Self { form: Form::Ranges(ranges), of: PhantomData }
    }

    /// Whether an object of so many bytes has its place here.
    fn fits(&self, total: u64) -> bool {
        match &self.form {
            Form::Whole(vectors) => vectors.iter().map(|vector| vector.iov_len as u64).sum::<u64>() >= total,
            Form::Ranges(_) => true,
        }
    }

    /// Calls `copy` with the offset in the object, and the place, of every run of bytes that is wanted.
    fn each(&mut self, total: u64, mut copy: impl FnMut(u64, &mut [MaybeUninit<u8>])) {
        let mut run = |offset: u64, vector: &libc::iovec, bytes: usize| {
            if bytes > 0 {
                // SAFETY: valid for writes and nobody else's while it is borrowed (its sources, or the promise to `raw`);
                // one slice at a time is made of it. Bytes are only ever initialised.
                copy(offset, unsafe { std::slice::from_raw_parts_mut(vector.iov_base.cast(), bytes) });
            }
        };
        match &self.form {
            Form::Whole(vectors) => {
                let mut at = 0;
                for vector in vectors {
                    let bytes = (vector.iov_len as u64).min(total - at);
                    run(at, vector, bytes as usize);
                    at += bytes;
                }
            }
            Form::Ranges(ranges) => {
                for (offset, vector) in ranges {
                    if offset.checked_add(vector.iov_len as u64).is_some_and(|end| end <= total) {
                        run(*offset, vector, vector.iov_len);
                    }
                }
            }
        }
    }

    /// Copies from an object that was read already.
    pub(crate) fn fill(&mut self, object: &[u8]) -> ObjectStatus {
        let bytes = object.len() as u64;
        if !self.fits(bytes) {
            return ObjectStatus::Long { bytes };
        }
        self.each(bytes, |offset, dst| {
            let from = &object[offset as usize..offset as usize + dst.len()];
            dst.iter_mut().zip(from).for_each(|(to, byte)| {
                to.write(*byte);
            });
        });
        ObjectStatus::Hit { bytes }
    }
}

/// What became of one object of a get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectStatus {
    /// The object has so many bytes; what was asked of them was copied.
    Hit { bytes: u64 },
    /// It is longer than its place. Nothing was copied.
    Long { bytes: u64 },
    /// Nothing that was copied is to be looked at.
    Miss,
}

/// What is known of an object without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// `None`: of several parts, and not in memory; reading it tells.
    pub bytes: Option<u64>,
    pub in_memory: bool,
}

/// One object of a batch, as far as it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    Done(ObjectStatus),
    /// To be read part by part.
    Parts,
}

/// What a look at one line gave.
enum Look {
    Copied(ObjectStatus),
    Parts,
    Unfit,
    Miss,
}

/// A get of objects under way: `begin` once, then `step`.
pub(crate) struct ObjectGetJob<'a, 'b> {
    session: Arc<Session>,
    pool: Pool,
    names: &'a [&'a [u8]],
    keys: Vec<Key>,
    dsts: &'a mut [ObjectDst<'b>],
    results: Vec<Copied>,
    windows: Windows,
}

impl<'a, 'b> ObjectGetJob<'a, 'b> {
    /// Checks what is asked; copies nothing yet.
    pub fn new(
        session: Arc<Session>,
        pool: &Pool,
        names: &'a [&'a [u8]],
        dsts: &'a mut [ObjectDst<'b>],
    ) -> Result<Self, ClientError> {
        if session.here().is_err() {
            return Err(ClientError::Closed);
        }
        keys::check(names.len())?;
        if dsts.len() != names.len() {
            return Err(ClientError::VectorCount { blocks: names.len(), vectors: dsts.len() });
        }
        let keys = names.iter().map(|name| first_key(name)).collect::<Result<Vec<Key>, _>>()?;
        let results = vec![Copied::Done(ObjectStatus::Miss); names.len()];
        let windows = Windows::default();
        Ok(Self { session, pool: pool.clone(), names, keys, dsts, results, windows })
    }

    /// Copies what is in memory. Returns the bytes that are to be fetched; what the default deadline depends on.
    pub fn begin(&mut self) -> u64 {
        let Some(id) = self.session.pool_id(&self.pool) else {
            self.windows.forget_rest();
            return 0;
        };
        let mut here = Vec::with_capacity(self.keys.len());
        let (mut slot_bytes_max, mut bytes_elsewhere) = (0, 0);
        let (pool, windows, peers) = (&self.pool, &mut self.windows, self.session.has_peers());
        self.session.maps.table.find_many(id, &self.keys, |i, found| match found {
            Some(found) if found.state.is_readable() => here.push((i, found)),
            Some(found) => {
                let bytes = u64::from(found.bytes);
                bytes_elsewhere += bytes;
                slot_bytes_max = slot_bytes_max.max(sizes::slot_bytes(pool.shape(), bytes));
                windows.want(i as u32);
            }
            None if peers => {
                bytes_elsewhere += REMOTE_OBJECT_BYTES;
                slot_bytes_max = slot_bytes_max.max(REMOTE_OBJECT_BYTES);
                windows.want(i as u32);
            }
            None => {}
        });
        self.copy_all(&here);
        if self.windows.is_empty() || !self.session.is_connected() {
            self.windows.forget_rest();
            return 0;
        }
        let slot_bytes = slot_bytes_max.try_into().unwrap_or(u32::MAX);
        self.windows.set_size(self.session.maps.extents.bytes(), slot_bytes);
        bytes_elsewhere
    }

    /// Goes on as far as possible without waiting. `left`: until the caller's deadline.
    pub fn step(&mut self, left: Duration) -> Step {
        let mut posted = self.take_answers();
        while self.windows.may_ask() {
            match self.ask(left) {
                Ok(()) => posted = true,
                Err(Busy::Full) => return Step::Full,
                Err(Busy::Gone) => self.windows.forget_rest(),
            }
        }
        match (posted, self.windows.is_done()) {
            (true, _) => Step::Posted,
            (false, true) => Step::Done,
            (false, false) => Step::Waiting,
        }
    }

    /// The results, as far as they have come; what was still awaited is a miss.
    pub fn finish(mut self) -> Vec<Copied> {
        self.windows.abandon(&self.session);
        std::mem::take(&mut self.results)
    }

    fn ask(&mut self, left: Duration) -> Result<(), Busy> {
        let pool = self.session.pool_id(&self.pool).ok_or(Busy::Gone)?;
        self.windows.ask(&self.session, pool, &self.keys, (Wait::Present, None), daemons_share_us(left))
    }

    /// Copies what came, and lets it go. True if anything was answered that is to be released.
    fn take_answers(&mut self) -> bool {
        let mut released = false;
        while let Some((token, answer, window)) = self.windows.take(&self.session) {
            let found = |i: u32| Some((i as usize, self.session.find(&self.pool, &self.keys[i as usize])?));
            let here: Vec<_> = window.into_iter().filter_map(found).collect();
            self.copy_all(&here);
            if matches!(answer, Answer::Got { .. }) {
                self.session.post(Request::Release { token: token.number() });
                released = true;
            }
        }
        released
    }

    fn copy_all(&mut self, here: &[(usize, Found)]) {
        let mut looks = Vec::with_capacity(here.len());
        for (n, (i, found)) in here.iter().enumerate() {
            if let Some((_, next)) = here.get(n + 1)
                && let Some((mapping, offset)) = self.session.maps.extents.locate(next.slot, u64::from(next.bytes))
            {
                copy::prefetch_next(mapping, offset);
            }
            looks.push(self.copy(*i, found, here.len()));
        }
        copy::sfence();
        for ((i, found), look) in here.iter().zip(looks) {
            self.settle(*i, found, look);
        }
    }

    /// The second look at a line. If its bond changed under the copy: find, copy and look once more, then it is a miss.
    fn settle(&mut self, i: usize, found: &Found, look: Look) {
        if self.session.maps.table.still(found) {
            return self.conclude(i, found, look);
        }
        self.session.counts.retried();
        let Some(again) = self.session.find(&self.pool, &self.keys[i]) else { return };
        let look = self.copy(i, &again, 1);
        copy::sfence();
        if self.session.maps.table.still(&again) {
            self.conclude(i, &again, look);
        }
    }

    fn conclude(&mut self, i: usize, found: &Found, look: Look) {
        match look {
            Look::Copied(status) => {
                self.results[i] = Copied::Done(status);
                // Objects have no parents: each has to be told of by itself.
                self.session.report(Some(*found), 1, 1, u64::from(found.bytes));
            }
            Look::Parts => self.results[i] = Copied::Parts,
            Look::Unfit => self.session.remember_corrupt(found),
            Look::Miss => {}
        }
    }

    fn copy(&mut self, i: usize, found: &Found, batch: usize) -> Look {
        let Some((mapping, offset)) = self.session.object_place(&self.pool, found) else { return Look::Miss };
        let Some((total, parts)) = self.session.object_lengths(mapping, offset, found, self.names[i]) else {
            return Look::Miss;
        };
        if parts > 1 {
            return Look::Parts;
        }
        if total != u64::from(found.bytes) {
            return Look::Miss;
        }
        if self.session.must_check(found, None) && !sums::slot_fits(&self.pool, &self.keys[i], found, mapping, offset) {
            return Look::Unfit;
        }
        if !self.dsts[i].fits(total) {
            return Look::Copied(ObjectStatus::Long { bytes: total });
        }
        self.dsts[i].each(total, |at, dst| {
            let kernel = copy::Kernel::choose(dst.len(), batch);
            copy::out(mapping, offset + at as usize, dst, kernel);
        });
        Look::Copied(ObjectStatus::Hit { bytes: total })
    }
}

impl Drop for ObjectGetJob<'_, '_> {
    fn drop(&mut self) {
        self.windows.abandon(&self.session);
    }
}

impl Session {
    /// Where a first part lies, if it is in memory and was not found damaged.
    pub(super) fn object_place(&self, pool: &Pool, found: &Found) -> Option<(&Mapping, usize)> {
        if !found.state.is_readable() || self.is_corrupt(found) {
            return None;
        }
        self.maps.extents.locate(found.slot, sizes::slot_bytes(pool.shape(), u64::from(found.bytes)))
    }

    /// What its tail says, if it is of that name. To be believed once the line was looked at again.
    pub(super) fn object_lengths(
        &self,
        mapping: &Mapping,
        offset: usize,
        found: &Found,
        name: &[u8],
    ) -> Option<(u64, u32)> {
        let at = offset + sizes::tail_offset(u64::from(found.bytes)) as usize;
        let head = mapping.to_vec(at, sizes::OBJECT_TAIL_BYTES as usize + name.len());
        let (total, parts) = lengths(&head);
        (head == tail(name, total, parts)).then_some((total, parts))
    }

    /// What is known of objects from the table alone, and of long ones in memory from their tails.
    pub(crate) fn find_objects(&self, pool: &Pool, names: &[&[u8]]) -> Result<Vec<Option<ObjectInfo>>, ClientError> {
        keys::check(names.len())?;
        let keys = names.iter().map(|name| first_key(name)).collect::<Result<Vec<Key>, _>>()?;
        let mut infos = vec![None; names.len()];
        if let Some(id) = self.pool_id(pool) {
            self.maps.table.find_many(id, &keys, |i, found| {
                infos[i] = found.filter(|found| self.counts_as_there(found)).map(|found| {
                    let in_memory = found.state.is_readable();
                    let bytes = u64::from(found.bytes);
                    if bytes < pool.part_bytes_max() {
                        return ObjectInfo { bytes: Some(bytes), in_memory };
                    }
                    let place = self.object_place(pool, &found);
                    let told = place.and_then(|(mapping, at)| self.object_lengths(mapping, at, &found, names[i]));
                    let told = told.filter(|_| self.maps.table.still(&found));
                    ObjectInfo { bytes: told.map(|(total, _)| total), in_memory }
                });
            });
        }
        self.counts.looked_up(keys.len(), infos.iter().flatten().count());
        Ok(infos)
    }
}
