//! Puts out of the memory of a GPU, on the caller's stream: slots are reserved, copies put on the stream, and what they filled
//! is committed when a mark behind them is over. A batch goes in parts, one after the other.

use std::{ops::Range, sync::Arc, time::Duration};

use lapis_arena::hbm::{HostExtent, Mark, Stream};
use lapis_config::{Key, PoolKind, Refusal};
use lapis_transport::frame::PutResult;

use super::{DevicePtr, DeviceStream, Flight, OpenGpu, Places};
use crate::{
    ClientError, Pool, Put, keys,
    session::{CommitJob, Reservation, ReserveJob, Session, Step},
};

/// Bytes of a part: at most, and at most one part in so many of the memory; one block at least.
const PART_BYTES_MAX: u64 = 256 << 20;
const PART_OF_MEMORY: u64 = 16;

enum Stage {
    Begin,
    Reserve(ReserveJob),
    /// Slots that are to be filled as soon as their memory is registered.
    Copy(Reservation),
    /// Being filled.
    Filling(Reservation, Arc<Mark>, Vec<Arc<HostExtent>>),
    Commit(CommitJob),
    Done,
}

/// A put under way.
pub struct DevicePutJob<'a> {
    session: Arc<Session>,
    pool: Pool,
    keys: &'a [Key],
    parent: Option<Key>,
    from: Places<'a>,
    gpu: Arc<OpenGpu>,
    stream: Stream,
    results: Vec<Option<PutResult>>,
    /// The part under way.
    part: Range<usize>,
    stage: Stage,
    flights: Vec<Flight>,
    error: Option<ClientError>,
}

impl<'a> DevicePutJob<'a> {
    /// Checks what is asked, and opens the GPU at the first call; copies nothing yet.
    ///
    /// # Safety
    /// Each address of `from` is memory of the stream's GPU that holds an equal part of a block, and nobody frees it, or writes
    /// it other than on this stream, before what is put on the stream has ended.
    pub unsafe fn new(
        session: Arc<Session>,
        pool: &Pool,
        keys: &'a [Key],
        parent: Option<Key>,
        from: &'a [DevicePtr],
        stream: &DeviceStream,
    ) -> Result<Self, ClientError> {
        if session.here().is_err() {
            return Err(ClientError::Closed);
        }
        keys::check(keys.len())?;
        pool.expect_kind(PoolKind::Chain)?;
        let from = Places::new(from, keys.len(), pool.block_bytes())?;
        let (gpu, stream) = session.open_gpu(stream)?;
        Ok(Self {
            session,
            pool: pool.clone(),
            keys,
            parent,
            from,
            gpu,
            stream,
            results: vec![None; keys.len()],
            part: 0..0,
            stage: Stage::Begin,
            flights: Vec::new(),
            error: None,
        })
    }

    /// Bytes of the whole batch; what the default deadline depends on.
    pub fn bytes(&self) -> u64 {
        self.pool.block_bytes() * self.keys.len() as u64
    }

    /// Goes on as far as possible without waiting. `left`: until the caller's deadline.
    pub fn step(&mut self, left: Duration) -> Step {
        loop {
            let stage = std::mem::replace(&mut self.stage, Stage::Done);
            let (stage, step) = self.turn(stage, left);
            self.stage = stage;
            match step {
                Some(step) => return step,
                None if matches!(self.stage, Stage::Done) => return Step::Done,
                None => {}
            }
        }
    }

    /// One stage further, or what it waits for.
    fn turn(&mut self, stage: Stage, left: Duration) -> (Stage, Option<Step>) {
        match stage {
            Stage::Begin => (self.begin_part(), None),
            Stage::Reserve(mut job) => match job.step(left) {
                Step::Done => (Stage::Copy(job.finish()), None),
                step => (Stage::Reserve(job), Some(step)),
            },
            Stage::Copy(reservation) => self.fill(reservation),
            Stage::Filling(reservation, mark, hosts) if !mark.is_over() => {
                (Stage::Filling(reservation, mark, hosts), Some(Step::Full))
            }
            Stage::Filling(reservation, mark, _) => match mark.failure() {
                // What is in the slots is anything.
                Some(error) => (self.fail(ClientError::gpu("copying blocks from a GPU")(error)), None),
                None => (Stage::Commit(reservation.commit()), None),
            },
            Stage::Commit(mut job) => match job.step() {
                Step::Done => {
                    self.take_results(job.finish());
                    (Stage::Begin, None)
                }
                step => (Stage::Commit(job), Some(step)),
            },
            Stage::Done => (Stage::Done, None),
        }
    }

    fn fail(&mut self, error: ClientError) -> Stage {
        self.error = Some(error);
        Stage::Done
    }

    /// Keys that are there are passed over.
    fn begin_part(&mut self) -> Stage {
        let mut first = self.part.end;
        while self.keys.get(first).is_some_and(|key| self.session.find(&self.pool, key).is_some()) {
            self.results[first] = Some(PutResult::Exists);
            first += 1;
        }
        if first == self.keys.len() {
            return Stage::Done;
        }
        let bytes = PART_BYTES_MAX.min(self.session.maps().extents.bytes() / PART_OF_MEMORY);
        let blocks = (bytes / u64::from(self.pool.slot_bytes()).max(1)).max(1) as usize;
        self.part = first..self.keys.len().min(first + blocks);
        match ReserveJob::new(self.session.clone(), &self.pool, &self.keys[self.part.clone()], self.parent_of_part()) {
            Ok(job) => Stage::Reserve(job),
            Err(error) => self.fail(error),
        }
    }

    fn parent_of_part(&self) -> Option<Key> {
        self.part.start.checked_sub(1).map_or(self.parent, |before| Some(self.keys[before]))
    }

    /// Puts the copies into reserved slots on the stream.
    fn fill(&mut self, reservation: Reservation) -> (Stage, Option<Step>) {
        let mut targets = Vec::new();
        for i in 0..self.part.len() {
            let Some((mapping, offset)) = reservation.memory(i) else { continue };
            let host = match self.session.gpus.host(&self.gpu.device, mapping) {
                Ok(host) => host,
                Err(error) => return (self.fail(error), None),
            };
            if offset as u64 + self.pool.block_bytes() > host.registered_bytes() {
                return match host.failure() {
                    Some(error) => (self.fail(ClientError::gpu("registering memory of the host")(error.clone())), None),
                    None => (Stage::Copy(reservation), Some(Step::Full)),
                };
            }
            targets.push((i, host, offset as u64));
        }
        if targets.is_empty() {
            return (Stage::Commit(reservation.commit()), None);
        }
        let error = targets.iter().find_map(|(i, host, offset)| self.copy(self.part.start + i, host, *offset).err());
        let mark = Arc::new(self.stream.mark());
        let hosts = targets.into_iter().map(|(_, host, _)| host).collect();
        match error {
            None => (Stage::Filling(reservation, mark, hosts), None),
            Some(error) => {
                // Some may be under way.
                self.flights.push(Flight::new(mark, (reservation, hosts)));
                (self.fail(error), None)
            }
        }
    }

    fn copy(&self, i: usize, host: &HostExtent, offset: u64) -> Result<(), ClientError> {
        for (from, before) in self.from.of(i) {
            // SAFETY: the slot is reserved, so nobody else's until it is committed or given back, which is after a mark behind
            // this is over; the address is the promise of who made this job.
            let copied = unsafe { self.stream.copy_out(from, host, offset + before, self.from.bytes) };
            copied.map_err(ClientError::gpu("copying blocks from a GPU"))?;
        }
        Ok(())
    }

    fn take_results(&mut self, put: Put) {
        for (i, result) in self.part.clone().zip(put.results) {
            self.results[i] = Some(result);
        }
    }

    /// All results, and what is to be held until copies under way have ended; what has no result yet is late. An error is the
    /// GPU's, or the driver's.
    pub fn finish(mut self) -> (Result<Put, ClientError>, Vec<Flight>) {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Filling(reservation, mark, hosts) => {
                // Given back when nobody writes there any more.
                self.flights.push(Flight::new(mark, (reservation, hosts)));
            }
            Stage::Commit(job) => self.take_results(job.finish()),
            Stage::Begin | Stage::Reserve(_) | Stage::Copy(_) | Stage::Done => {}
        }
        let late = PutResult::Refused(Refusal::Late);
        let put = match self.error.take() {
            Some(error) => Err(error),
            None => Ok(Put { results: self.results.iter().map(|result| result.unwrap_or(late)).collect() }),
        };
        (put, std::mem::take(&mut self.flights))
    }
}

impl Drop for DevicePutJob<'_> {
    fn drop(&mut self) {
        if let Stage::Filling(reservation, mark, hosts) = std::mem::replace(&mut self.stage, Stage::Done) {
            self.flights.push(Flight::new(mark, (reservation, hosts)));
        }
        // Without `finish`: nobody else waits for what is under way.
        super::wait_for(&self.flights);
    }
}
