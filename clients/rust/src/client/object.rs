//! Objects by name: see `session/object.rs` for how they are stored.

use std::time::{Duration, Instant};

use lapis_config::{HitPolicy, Key, PoolKind, Refusal, Wait};
use lapis_transport::frame::{PutResult, Request};

use super::{
    Client,
    shared::{Live, end_of},
};
use crate::{
    ClientError, ObjectDst, ObjectInfo, ObjectStatus, Pool, Put, PutOptions, keys,
    session::{
        Answer, Session, daemons_share_us,
        object::{self, Part, Read},
        object_get::{Copied, ObjectGetJob},
        object_put::{NewPart, ObjectPutJob},
    },
};

/// Least time for the removal after a read: an object must not be lost between the two because the wait took it all.
const REMOVAL_MIN: Duration = Duration::from_millis(100);

/// With less time than this left nobody is asked again: a daemon's answer comes so much before the deadline.
const SPARE: Duration = Duration::from_millis(10);

impl Client {
    /// Stores an object, whole or not at all (parts of a refused one are forgotten like any block). Objects never
    /// change: a name that is there is answered `Exists`.
    pub fn put_object(
        &self,
        pool: &Pool,
        name: &[u8],
        bytes: &[u8],
        options: &PutOptions,
    ) -> Result<PutResult, ClientError> {
        self.put_object_vectored(pool, name, &[bytes], options)
    }

    /// [`Self::put_object`] of bytes that lie in several places: the object is all of them, one after the other.
    pub fn put_object_vectored(
        &self,
        pool: &Pool,
        name: &[u8],
        vectors: &[&[u8]],
        options: &PutOptions,
    ) -> Result<PutResult, ClientError> {
        Ok(self.put_objects(pool, &[NewObject { name, vectors }], options)?.results[0])
    }

    /// Stores 1 to 8192 objects, each whole or not at all, with one wait for room; one result for each. Of a name that is
    /// given twice the first is stored. The deadline is of the whole call.
    pub fn put_objects(
        &self,
        pool: &Pool,
        objects: &[NewObject<'_>],
        options: &PutOptions,
    ) -> Result<Put, ClientError> {
        pool.expect_kind(PoolKind::Object)?;
        keys::check(objects.len())?;
        let live = self.shared().here_for(pool)?;
        let began = Instant::now();
        let mut results = vec![PutResult::Refused(Refusal::TooLarge); objects.len()];
        // Those that fit a slot go together; longer ones are chains of parts.
        let (mut at, mut parts, mut long) = (Vec::new(), Vec::new(), Vec::new());
        for (i, object) in objects.iter().enumerate() {
            let (key, total) = (object::first_key(object.name)?, object.bytes());
            if total > pool.block_bytes() {
                continue;
            }
            if total > pool.part_bytes_max() {
                long.push(i);
                continue;
            }
            at.push(i);
            let tail = object::tail(object.name, total, 1);
            parts.push(NewPart { key, parent: None, vectors: object.vectors, range: 0..total, tail });
        }
        if !parts.is_empty() {
            let deadline = options.deadline;
            let (put, _) = self.put_parts(&live, pool, &parts, deadline)?;
            at.iter().zip(put).for_each(|(i, result)| results[*i] = result);
        }
        for i in long {
            let left = options.deadline.map(|deadline| deadline.saturating_sub(began.elapsed()));
            results[i] = self.put_long(&live, pool, &objects[i], left)?;
        }
        Ok(Put { results })
    }

    /// Stores an object part by part: the key of each depends on the sum of the one before.
    fn put_long(
        &self,
        live: &Live,
        pool: &Pool,
        object: &NewObject<'_>,
        deadline: Option<Duration>,
    ) -> Result<PutResult, ClientError> {
        let until = deadline.map(end_of);
        let (total, part_bytes) = (object.bytes(), pool.part_bytes_max());
        let parts = total.div_ceil(part_bytes);
        let tail = object::tail(object.name, total, parts as u32);
        let mut key = object::first_key(object.name)?;
        let (mut parent, mut result) = (None, PutResult::Exists);
        for at in 0..parts {
            let range = at * part_bytes..total.min((at + 1) * part_bytes);
            let part = NewPart { key, parent, vectors: object.vectors, range, tail: tail.clone() };
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let (put, sums) = self.put_parts(live, pool, std::slice::from_ref(&part), left)?;
            match put[0] {
                PutResult::Refused(reason) => return Ok(PutResult::Refused(reason)),
                PutResult::Stored => result = PutResult::Stored,
                PutResult::Exists => {}
            }
            let summed = || {
                let runs = object::section(object.vectors, part.range.clone());
                Session::sum_of_runs(pool, &key, part.bytes(), runs)
            };
            let sum = sums[0].unwrap_or_else(summed);
            parent = Some(key);
            key = object::next_key(&key, sum, total);
        }
        Ok(result)
    }

    fn put_parts(
        &self,
        live: &Live,
        pool: &Pool,
        parts: &[NewPart<'_>],
        deadline: Option<Duration>,
    ) -> Result<(Vec<PutResult>, Vec<Option<u64>>), ClientError> {
        let mut job = ObjectPutJob::new(live.session.clone(), pool, parts)?;
        let deadline = deadline.unwrap_or_else(|| live.put_deadline(job.bytes()));
        self.shared().drive(live, deadline, |left| job.step(left));
        Ok(job.finish())
    }

    // ---- Batches that are read ----

    /// What is known of 1 to 8192 objects without reading them; `None` is a miss. Asks nobody.
    pub fn find_objects(&self, pool: &Pool, names: &[&[u8]]) -> Result<Vec<Option<ObjectInfo>>, ClientError> {
        pool.expect_kind(PoolKind::Object)?;
        self.shared().here_for(pool)?.session.find_objects(pool, names)
    }

    /// Copies 1 to 8192 objects, or ranges of them, to the caller's memory. Those in memory need nobody else; for others
    /// the daemon is asked, within the deadline. Without one 50 ms + bytes / 500 MB/s, of those that are not in memory.
    pub fn get_objects_into(
        &self,
        pool: &Pool,
        names: &[&[u8]],
        dsts: &mut [ObjectDst<'_>],
        deadline: Option<Duration>,
    ) -> Result<Vec<ObjectStatus>, ClientError> {
        pool.expect_kind(PoolKind::Object)?;
        let live = self.shared().here_for(pool)?;
        let mut job = ObjectGetJob::new(live.session.clone(), pool, names, dsts)?;
        let until = deadline.map(end_of);
        let bytes_elsewhere = job.begin();
        if bytes_elsewhere > 0 {
            let deadline = deadline.unwrap_or_else(|| live.get_deadline(bytes_elsewhere));
            self.shared().drive(&live, deadline, |left| job.step(left));
        }
        let mut statuses = Vec::with_capacity(names.len());
        for (i, copied) in job.finish().into_iter().enumerate() {
            statuses.push(match copied {
                Copied::Done(status) => status,
                Copied::Parts => {
                    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                    let object = self.await_object(pool, names[i], Wait::Present, left)?;
                    object.map_or(ObjectStatus::Miss, |object| dsts[i].fill(&object))
                }
            });
        }
        Ok(statuses)
    }

    /// The bytes of 1 to 8192 objects, `None` for those that are not there as a whole. The deadline is as in
    /// [`Self::get_objects_into`].
    pub fn get_objects(
        &self,
        pool: &Pool,
        names: &[&[u8]],
        deadline: Option<Duration>,
    ) -> Result<Vec<Option<Vec<u8>>>, ClientError> {
        let infos = self.find_objects(pool, names)?;
        let room = |info: &Option<ObjectInfo>| info.and_then(|info| info.bytes).unwrap_or(0) as usize;
        let mut objects: Vec<Vec<u8>> = infos.iter().map(|info| Vec::with_capacity(room(info))).collect();
        let mut dsts: Vec<ObjectDst<'_>> = objects
            .iter_mut()
            .zip(&infos)
            .map(|(object, info)| ObjectDst::from(&mut object.spare_capacity_mut()[..room(info)]))
            .collect();
        let statuses = self.get_objects_into(pool, names, &mut dsts, deadline)?;
        drop(dsts);
        let got = objects.into_iter().zip(statuses).zip(names).map(|((mut object, status), name)| match status {
            ObjectStatus::Hit { bytes } => {
                // SAFETY: a hit in a place of at least `bytes` initialised so many of it.
                unsafe { object.set_len(bytes as usize) };
                Ok(Some(object))
            }
            // A long one that is elsewhere, or another object by now.
            ObjectStatus::Long { .. } => self.await_object(pool, name, Wait::Present, deadline),
            ObjectStatus::Miss => Ok(None),
        });
        got.collect()
    }

    /// The bytes of an object, or `None` if it is not there as a whole. `deadline`: of the whole call; without one, each
    /// part that has to be fetched may take as long as a get of as many bytes.
    pub fn get_object(
        &self,
        pool: &Pool,
        name: &[u8],
        deadline: Option<Duration>,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        self.await_object(pool, name, Wait::Present, deadline)
    }

    /// [`Self::get_object`] that may wait, as [`GetOptions::wait`](crate::GetOptions::wait) says. Without a daemon
    /// nobody waits.
    pub fn await_object(
        &self,
        pool: &Pool,
        name: &[u8],
        wait: Wait,
        deadline: Option<Duration>,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        pool.expect_kind(PoolKind::Object)?;
        let mut key = object::first_key(name)?;
        let live = self.shared().here_for(pool)?;
        let until = deadline.map(end_of);
        let mut bytes = Vec::new();
        let Some(first) = self.read_part(&live, pool, &key, name, &mut bytes, (wait, until))? else { return Ok(None) };
        let mut before = first.clone();
        for at in 1..first.parts {
            key = object::next_key(&key, before.sum, first.total);
            if at + 1 < first.parts {
                live.session.fetch_after(pool, &key, first.total);
            }
            match self.read_part(&live, pool, &key, name, &mut bytes, (wait, until))? {
                Some(part) if (part.total, part.parts) == (first.total, first.parts) => before = part,
                _ => return Ok(None),
            }
        }
        Ok((bytes.len() as u64 == first.total).then_some(bytes))
    }

    /// Reads an object and forgets it: of several takers one gets it, the others `None` or, with a wait, what is put
    /// under that name next. The removal may outlive the deadline by 100 ms. An error may come after the read
    /// ([`ClientError::Gone`], [`ClientError::Late`]): then the object is still there, or lost.
    pub fn take_object(
        &self,
        pool: &Pool,
        name: &[u8],
        wait: Wait,
        deadline: Option<Duration>,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        let until = deadline.map(end_of);
        let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
        loop {
            let Some(bytes) = self.await_object(pool, name, wait, left())? else { return Ok(None) };
            if self.remove_object(pool, name, left().map(|left| left.max(REMOVAL_MIN)))? {
                return Ok(Some(bytes));
            }
            if wait != Wait::Absent || left().is_none_or(|left| left.is_zero()) {
                return Ok(None);
            }
        }
    }

    /// Forgets an object; whether it was there.
    pub fn remove_object(&self, pool: &Pool, name: &[u8], deadline: Option<Duration>) -> Result<bool, ClientError> {
        pool.expect_kind(PoolKind::Object)?;
        // Without its first part the others cannot be reached, and are evicted in their turn.
        Ok(self.remove(pool, &[object::first_key(name)?], deadline)? > 0)
    }

    fn read_part(
        &self,
        live: &Live,
        pool: &Pool,
        key: &Key,
        name: &[u8],
        to: &mut Vec<u8>,
        (wait, until): (Wait, Option<Instant>),
    ) -> Result<Option<Part>, ClientError> {
        match live.session.read_part(pool, key, name, to) {
            Read::Part(part) => return Ok(Some(part)),
            Read::Miss if wait == Wait::Present && !live.session.has_peers() => return Ok(None),
            Read::Miss => {}
            Read::Elsewhere => {}
        }
        let Some(id) = live.session.pool_id(pool) else { return Ok(None) };
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let deadline = left.unwrap_or_else(|| live.get_deadline(pool.part_bytes_max()));
            let deadline_us = daemons_share_us(deadline);
            let asked = self.shared().ask(live, deadline, |token| Request::Get {
                token,
                asks: vec![(id, HitPolicy::Any)],
                wait,
                deadline_us,
                keys: vec![*key],
            });
            let read = live.session.read_part(pool, key, name, to);
            let is_answered = match asked {
                Ok((token, Answer::Got { .. })) => {
                    live.session.post(Request::Release { token: token.number() });
                    live.ring();
                    true
                }
                Ok(_) | Err(ClientError::Gone | ClientError::Late { .. }) => false,
                Err(error) => return Err(error),
            };
            if let Read::Part(part) = read {
                return Ok(Some(part));
            }
            // A daemon waits for a minute at most: who has more time than that asks again.
            let has_time = until.is_some_and(|until| until.saturating_duration_since(Instant::now()) > SPARE);
            if !(is_answered && has_time && wait == Wait::Absent) {
                return Ok(None);
            }
        }
    }
}

/// An object about to be put: all of the vectors, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct NewObject<'a> {
    /// 1 to 1024 bytes.
    pub name: &'a [u8],
    pub vectors: &'a [&'a [u8]],
}

impl NewObject<'_> {
    fn bytes(&self) -> u64 {
        self.vectors.iter().map(|vector| vector.len() as u64).sum()
    }
}
