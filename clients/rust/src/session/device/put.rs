//! Puts out of the memory of a GPU, on the caller's stream: slots are reserved, copies put on the stream, and what they filled
//! is committed when a mark behind them is over. A batch goes in parts, one after the other: into slots on the GPU as far as
//! the daemon has any there, else by way of DRAM.
//!
//! Invariant: a slot is committed only if what was said of GPUs is still what was said before it was reserved.

use std::{ops::Range, sync::Arc, time::Duration};

use lapis_arena::hbm::{HostExtent, Mark, Stream};
use lapis_config::{GpuId, Key, PoolId, PoolKind, Refusal, SlotId};
use lapis_transport::frame::{COMMIT_ITEMS_MAX, CommitItem, ParentRef, PutResult, Request, ReserveResult};

use super::{DevicePtr, DeviceStream, Flight, OpenGpu, Places};
use crate::{
    ClientError, Pool, Put, keys,
    session::{Answer, Busy, CommitJob, Reservation, ReserveJob, Session, Step, Token},
};

/// Bytes of a part: at most, and at most one part in so many of the memory; one block at least.
const PART_BYTES_MAX: u64 = 256 << 20;
const PART_OF_MEMORY: u64 = 16;
/// So that a client that comes back can name what it writes.
const PART_BLOCKS_MAX: usize = 512;

/// Slots on a GPU that are being filled, given back when this is dropped.
struct GpuSlots {
    session: Arc<Session>,
    gpu: GpuId,
    /// With the place of each block in the part.
    slots: Vec<(usize, SlotId)>,
}

impl Drop for GpuSlots {
    fn drop(&mut self) {
        let slots: Vec<SlotId> = self.slots.iter().map(|(_, slot)| *slot).collect();
        self.session.give_back_on_gpu(self.gpu, &slots);
    }
}

/// A commit of slots on a GPU: what is not posted yet, and what was.
struct GpuCommit {
    rest: GpuSlots,
    posted: Vec<(Token, Vec<usize>)>,
}

enum Stage {
    Begin,
    ReserveOnGpu(Token),
    FillingOnGpu(GpuSlots, Arc<Mark>),
    CommitOnGpu(GpuCommit),
    /// Nothing on the GPU is to be had for this part.
    ByDram,
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
            Stage::Begin => self.begin_part(),
            Stage::ReserveOnGpu(token) => match self.session.take(token) {
                None => (Stage::ReserveOnGpu(token), Some(Step::Waiting)),
                Some(Answer::Reserved(results)) if results.len() == self.part.len() => {
                    (self.fill_on_gpu(&results), None)
                }
                // Why is said again by who grants slots in DRAM, if it holds there.
                Some(_) => (Stage::ByDram, None),
            },
            Stage::FillingOnGpu(slots, mark) if !mark.is_over() => (Stage::FillingOnGpu(slots, mark), Some(Step::Full)),
            Stage::FillingOnGpu(slots, mark) => match mark.failure() {
                Some(error) => (self.fail(ClientError::gpu("copying blocks to the daemon's memory")(error)), None),
                // Of a daemon that is there no more: so are its slots.
                None if !self.gpu.is_current(&self.session) => (Stage::ByDram, None),
                None => (Stage::CommitOnGpu(GpuCommit { rest: slots, posted: Vec::new() }), None),
            },
            Stage::CommitOnGpu(commit) => self.commit_on_gpu(commit),
            Stage::ByDram => (self.reserve_in_dram(), None),
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
    fn begin_part(&mut self) -> (Stage, Option<Step>) {
        let mut first = self.part.end;
        while self.keys.get(first).is_some_and(|key| self.session.find(&self.pool, key).is_some()) {
            self.results[first] = Some(PutResult::Exists);
            first += 1;
        }
        if first == self.keys.len() {
            return (Stage::Done, None);
        }
        let bytes = PART_BYTES_MAX.min(self.session.maps().extents.bytes() / PART_OF_MEMORY);
        let blocks = ((bytes / u64::from(self.pool.slot_bytes()).max(1)).max(1) as usize).min(PART_BLOCKS_MAX);
        self.part = first..self.keys.len().min(first + blocks);
        if !self.gpu.is_current(&self.session) {
            match self.session.gpus.open(self.stream.device().index()) {
                Ok(gpu) => self.gpu = gpu,
                Err(error) => return (self.fail(error), None),
            }
        }
        let (Some(gpu), Some(pool)) = (self.gpu.id(), self.session.pool_id(&self.pool)) else {
            return (Stage::ByDram, None);
        };
        let parent = self.parent_of_part().map_or(ParentRef::None, ParentRef::Key);
        let keys = self.keys[self.part.clone()].to_vec();
        let reserve = |token| Request::ReserveOnGpu { token, gpu, pool, parent, keys };
        match self.session.submit_on_gpu(gpu, reserve) {
            Ok(token) => (Stage::ReserveOnGpu(token), Some(Step::Posted)),
            Err(Busy::Full) => {
                self.part = first..first;
                (Stage::Begin, Some(Step::Full))
            }
            Err(Busy::Gone) => (Stage::ByDram, None),
        }
    }

    fn reserve_in_dram(&mut self) -> Stage {
        match ReserveJob::new(self.session.clone(), &self.pool, &self.keys[self.part.clone()], self.parent_of_part()) {
            Ok(job) => Stage::Reserve(job),
            Err(error) => self.fail(error),
        }
    }

    /// Puts the copies into slots on the GPU on the stream, of the leading blocks that have one: those behind them need them as
    /// parents, and are the next part.
    fn fill_on_gpu(&mut self, results: &[ReserveResult]) -> Stage {
        let lead = results.iter().take_while(|result| !matches!(result, ReserveResult::Refused(_))).count();
        let Some((id, current)) = self.gpu.id().map(|id| (id, self.gpu.is_current(&self.session))) else {
            return Stage::ByDram;
        };
        let slot_of = |(i, result): (usize, &ReserveResult)| match result {
            ReserveResult::Slot(slot) => Some((i, *slot)),
            _ => None,
        };
        let all = results.iter().enumerate().filter_map(slot_of).collect();
        let mut slots = GpuSlots { session: self.session.clone(), gpu: id, slots: all };
        if lead == 0 || !current {
            return Stage::ByDram;
        }
        let behind = slots.slots.partition_point(|(i, _)| *i < lead);
        drop(GpuSlots { session: self.session.clone(), gpu: id, slots: slots.slots.split_off(behind) });
        self.part.end = self.part.start + lead;
        for (i, result) in results.iter().enumerate().take(lead) {
            if *result == ReserveResult::Exists {
                self.results[self.part.start + i] = Some(PutResult::Exists);
            }
        }
        let copied = slots.slots.iter().try_for_each(|&(i, slot)| self.copy_on_gpu(self.part.start + i, slot));
        let mark = Arc::new(self.stream.mark());
        match copied {
            Ok(()) => Stage::FillingOnGpu(slots, mark),
            Err(error) => {
                // Some may be under way.
                self.flights.push(Flight::new(mark, (slots, self.gpu.clone())));
                self.fail(error)
            }
        }
    }

    fn copy_on_gpu(&self, i: usize, slot: SlotId) -> Result<(), ClientError> {
        let slices = self.gpu.own.as_ref();
        let place = slices.and_then(|slices| slices.locate(slot, self.pool.block_bytes()));
        let Some((extent, offset)) = place else {
            return Err(ClientError::Welcome { what: "a slot outside of its memory on a GPU" });
        };
        for (from, before) in self.from.of(i) {
            // SAFETY: the slot is reserved, so nobody else's until it is committed or given back, which is after a mark behind
            // this is over; the address is the promise of who made this job.
            let copied = unsafe { self.stream.copy_to(from, extent, offset + before, self.from.bytes) };
            copied.map_err(ClientError::gpu("copying blocks to the daemon's memory"))?;
        }
        Ok(())
    }

    /// Posts what is filled, and takes the answers.
    fn commit_on_gpu(&mut self, mut commit: GpuCommit) -> (Stage, Option<Step>) {
        let (gpu, mut posted) = (commit.rest.gpu, false);
        while !commit.rest.slots.is_empty() {
            let count = commit.rest.slots.len().min(COMMIT_ITEMS_MAX);
            let items = self.items(&commit.rest.slots[..count]);
            // Slots of a daemon that is there no more are no slots of this one's.
            let pool = self.session.pool_id(&self.pool).filter(|_| self.gpu.is_current(&self.session));
            let Some(pool) = pool else { return (self.by_dram(commit), None) };
            match self.session.submit_commit_on_gpu(gpu, pool, &items) {
                Ok(token) => {
                    let blocks = commit.rest.slots.drain(..count).map(|(i, _)| i).collect();
                    commit.posted.push((token, blocks));
                    posted = true;
                }
                Err(Busy::Full) => return (Stage::CommitOnGpu(commit), Some(Step::Full)),
                // By way of DRAM, where it is said why.
                Err(Busy::Gone) => return (self.by_dram(commit), None),
            }
        }
        let (session, results, start) = (&self.session, &mut self.results, self.part.start);
        commit.posted.retain(|(token, blocks)| {
            let Some(answer) = session.take(*token) else { return true };
            let one = |n: usize| match &answer {
                Answer::Committed(results) if results.len() == blocks.len() => results[n],
                Answer::Refused(reason) => PutResult::Refused(*reason),
                _ => PutResult::Refused(Refusal::Gone),
            };
            blocks.iter().enumerate().for_each(|(n, i)| results[start + i] = Some(one(n)));
            false
        });
        match commit.posted.is_empty() {
            true => (Stage::Begin, None),
            false => (Stage::CommitOnGpu(commit), Some(if posted { Step::Posted } else { Step::Waiting })),
        }
    }

    /// The whole part once more; what was posted already is there then, or not.
    fn by_dram(&self, commit: GpuCommit) -> Stage {
        self.give_up(Stage::CommitOnGpu(commit));
        Stage::ByDram
    }

    /// Without sums: the daemon makes them when the blocks have come to DRAM.
    fn items(&self, slots: &[(usize, SlotId)]) -> Vec<CommitItem> {
        let mut before = None;
        let item = |&(i, slot): &(usize, SlotId)| {
            let at = self.part.start + i;
            let parent = match at.checked_sub(1) {
                Some(above) if before == Some(above) => ParentRef::Previous,
                Some(above) => ParentRef::Key(self.keys[above]),
                None => self.parent.map_or(ParentRef::None, ParentRef::Key),
            };
            before = Some(at);
            CommitItem { slot, key: self.keys[at], parent, bytes: self.pool.block_bytes() as u32, sum: 0 }
        };
        slots.iter().map(item).collect()
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

    /// Nobody takes the answers that are still to come.
    fn give_up(&self, stage: Stage) {
        match stage {
            Stage::ReserveOnGpu(token) => self.session.abandon(token),
            Stage::CommitOnGpu(commit) => commit.posted.iter().for_each(|(token, _)| self.session.abandon(*token)),
            _ => {}
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
            Stage::FillingOnGpu(slots, mark) => self.flights.push(Flight::new(mark, (slots, self.gpu.clone()))),
            Stage::Commit(job) => self.take_results(job.finish()),
            stage => self.give_up(stage),
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
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Filling(reservation, mark, hosts) => {
                self.flights.push(Flight::new(mark, (reservation, hosts)));
            }
            Stage::FillingOnGpu(slots, mark) => self.flights.push(Flight::new(mark, (slots, self.gpu.clone()))),
            stage => self.give_up(stage),
        }
        // Without `finish`: nobody else waits for what is under way.
        super::wait_for(&self.flights);
    }
}

impl Session {
    /// Begins a call whose answer may bring slots on a GPU.
    fn submit_on_gpu(&self, gpu: GpuId, request: impl FnOnce(u64) -> Request) -> Result<Token, Busy> {
        self.here()?;
        self.calls().submit_on(Some(gpu), 0, request)
    }

    /// Posts a commit; from then on nobody here writes its slots.
    fn submit_commit_on_gpu(&self, gpu: GpuId, pool: PoolId, items: &[CommitItem]) -> Result<Token, Busy> {
        self.here()?;
        let mut calls = self.calls();
        let token = calls.submit(0, |token| Request::CommitOnGpu { token, gpu, pool, items: items.to_vec() })?;
        calls.written_on_gpu(gpu, items.iter().map(|item| item.slot));
        Ok(token)
    }

    /// Nobody writes these slots any more, and they hold nothing.
    fn give_back_on_gpu(&self, gpu: GpuId, slots: &[SlotId]) {
        if !slots.is_empty() && self.here().is_ok() {
            self.calls().give_back_on_gpu(gpu, slots);
        }
    }
}
