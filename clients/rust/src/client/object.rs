//! Objects by name: see `session/object.rs` for how they are stored.

use std::time::{Duration, Instant};

use lapis_config::{HitPolicy, Key, PoolKind, Refusal, Wait, sizes};
use lapis_transport::frame::{PutResult, Request, ReserveResult};

use super::{Client, shared::Live};
use crate::{
    ClientError, Pool, PutOptions,
    session::{
        Answer, ReserveJob, Session, daemons_share_us,
        object::{self, Part, Read},
    },
};

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
        pool.expect_kind(PoolKind::Object)?;
        let mut key = object::first_key(name)?;
        let total = bytes.len() as u64;
        if total > pool.block_bytes() {
            return Ok(PutResult::Refused(Refusal::TooLarge));
        }
        let part_bytes = pool.part_bytes_max() as usize;
        let parts = bytes.len().div_ceil(part_bytes).max(1);
        let tail = object::tail(name, total, parts as u32);
        let (mut parent, mut result) = (None, PutResult::Exists);
        for at in 0..parts {
            let part = &bytes[at * part_bytes..bytes.len().min((at + 1) * part_bytes)];
            let sum = Session::sum_of(pool, &key, part);
            match self.put_part(pool, &NewPart { key, parent, bytes: part, tail: &tail, sum }, options)? {
                PutResult::Refused(reason) => return Ok(PutResult::Refused(reason)),
                PutResult::Stored => result = PutResult::Stored,
                PutResult::Exists => {}
            }
            parent = Some(key);
            key = object::next_key(&key, sum, total);
        }
        Ok(result)
    }

    fn put_part(&self, pool: &Pool, part: &NewPart<'_>, options: &PutOptions) -> Result<PutResult, ClientError> {
        let live = self.shared().here()?;
        if live.session.find(pool, &part.key).is_some() {
            return Ok(PutResult::Exists);
        }
        let bytes = part.bytes.len() as u64;
        let mut job = ReserveJob::of_bytes(live.session.clone(), pool, &[part.key], part.parent, bytes)?;
        let deadline = options.deadline.unwrap_or_else(|| live.put_deadline(job.bytes()));
        self.shared().drive(&live, deadline, |left| job.step(left));
        let mut reservation = job.finish();
        match reservation.results() {
            [ReserveResult::Slot(_)] => {}
            [ReserveResult::Refused(reason)] => return Ok(PutResult::Refused(*reason)),
            _ => return Ok(PutResult::Exists),
        }
        reservation.write(0, 0, part.bytes);
        reservation.write(0, sizes::tail_offset(bytes), part.tail);
        let put = self.commit(reservation, Some(&[part.sum]), options)?;
        Ok(put.results.first().copied().unwrap_or(PutResult::Refused(Refusal::Gone)))
    }

    /// The bytes of an object, or `None` if it is not there as a whole. `deadline`: of the whole call; without one, each
    /// part that has to be fetched may take as long as a get of as many bytes.
    pub fn get_object(
        &self,
        pool: &Pool,
        name: &[u8],
        deadline: Option<Duration>,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        pool.expect_kind(PoolKind::Object)?;
        let mut key = object::first_key(name)?;
        let live = self.shared().here()?;
        let until = deadline.map(|deadline| Instant::now() + deadline);
        let mut bytes = Vec::new();
        let Some(first) = self.read_part(&live, pool, &key, name, &mut bytes, until)? else { return Ok(None) };
        let mut before = first.clone();
        for at in 1..first.parts {
            key = object::next_key(&key, before.sum, first.total);
            if at + 1 < first.parts {
                live.session.fetch_after(pool, &key, first.total);
            }
            match self.read_part(&live, pool, &key, name, &mut bytes, until)? {
                Some(part) if (part.total, part.parts) == (first.total, first.parts) => before = part,
                _ => return Ok(None),
            }
        }
        Ok((bytes.len() as u64 == first.total).then_some(bytes))
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
        until: Option<Instant>,
    ) -> Result<Option<Part>, ClientError> {
        match live.session.read_part(pool, key, name, to) {
            Read::Part(part) => return Ok(Some(part)),
            Read::Miss => return Ok(None),
            Read::Elsewhere => {}
        }
        let Some(id) = live.session.pool_id(pool) else { return Ok(None) };
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let deadline = left.unwrap_or_else(|| live.get_deadline(pool.part_bytes_max()));
        let deadline_us = daemons_share_us(deadline);
        let asked = self.shared().ask(live, deadline, |token| Request::Get {
            token,
            asks: vec![(id, HitPolicy::Any)],
            wait: Wait::Present,
            deadline_us,
            keys: vec![*key],
        });
        let read = live.session.read_part(pool, key, name, to);
        match asked {
            Ok((token, Answer::Got { .. })) => {
                live.session.post(Request::Release { token: token.number() });
                live.ring();
            }
            Ok(_) | Err(ClientError::Gone | ClientError::Late { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(if let Read::Part(part) = read { Some(part) } else { None })
    }
}

/// One part about to be put.
struct NewPart<'a> {
    key: Key,
    parent: Option<Key>,
    bytes: &'a [u8],
    tail: &'a [u8],
    sum: u64,
}
