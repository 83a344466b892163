//! Calls of simulated clients under way, with the memory that they work on, and how their results are judged.

use std::{sync::Arc, time::Duration};

use lapis_client::{
    Dst, GetOptions, HitPolicy, Key, Pool, PutResult, Refusal, Reservation, ReserveResult, Session, Src, Wait,
    session::{Answer, CommitJob, GetJob, PutJob, ReserveJob, Step, Token},
};
use lapis_config::Time;
use lapis_transport::frame::Request;

use super::{
    client::Context,
    model::Model,
    plan::{EXTENT_BYTES, Plan},
};

/// How much later than its deadline an answer may come in a world whose messages take up to 20 ms.
const SLACK_US: u64 = 200_000;
/// A removal is answered when it is on the device, or the device is taken out.
const REMOVAL_US: u64 = 120_000_000;

pub struct Job {
    what: What,
    session: Arc<Session>,
    group: usize,
    table: u64,
    /// Index of the pool in [`super::plan::Plan::shapes`].
    pool: usize,
    began: Time,
    until: Time,
    /// The client's connection when it began: an answer is demanded only if that one still stands.
    epoch: u64,
}

enum What {
    Get(Get),
    Put(Put),
    Reserve(Option<ReserveJob>, Vec<Key>),
    Commit(Option<CommitJob>, Vec<Option<u64>>),
    Ask(Option<Token>, Ask),
}

/// Fields are dropped in their order: the job before what it borrows.
struct Get {
    job: Option<GetJob<'static>>,
    bytes: Vec<u8>,
    keys: Box<[Key]>,
    /// Where in each block the pieces begin that were asked for.
    offset: u64,
    /// Whether the model says that it must be a hit.
    must: Vec<bool>,
    since: u64,
    wait: Wait,
}

struct Put {
    job: Option<PutJob<'static>>,
    #[expect(dead_code, reason = "the job reads it")]
    bytes: Vec<u8>,
    #[expect(dead_code, reason = "the job reads them")]
    keys: Box<[Key]>,
    numbers: Vec<u64>,
}

enum Ask {
    Removal(usize),
    Wait { release: bool },
    Offer,
}

/// What is left when a job is over.
pub enum After {
    Nothing,
    Reserved {
        reservation: Reservation,
        keys: Vec<Key>,
        table: u64,
        pool: usize,
    },
    /// To be released later, or never.
    Got(u64),
}

/// The same slice for as long as its owner keeps it where it is.
fn lasting<'a, T>(slice: &[T]) -> &'a [T] {
    // SAFETY: callers keep the owner unmoved beside the job that gets this, and drop the job first.
    unsafe { std::slice::from_raw_parts(slice.as_ptr(), slice.len()) }
}

fn lasting_mut<'a>(slice: &mut [u8]) -> &'a mut [u8] {
    // SAFETY: as above; and the owner does not look at it before the job is over.
    unsafe { std::slice::from_raw_parts_mut(slice.as_mut_ptr(), slice.len()) }
}

/// What every call starts from.
pub struct Call<'a> {
    pub session: &'a Arc<Session>,
    pub group: usize,
    pub handle: &'a Pool,
    pub pool: usize,
    pub deadline: Duration,
    pub epoch: u64,
}

impl Call<'_> {
    fn job(&self, now: Time, what: What) -> Job {
        let (session, table) = (self.session.clone(), self.session.table_id());
        let (group, pool, until) = (self.group, self.pool, now.after(self.deadline));
        Job { what, session, group, table, pool, began: now, until, epoch: self.epoch }
    }

    pub fn get(&self, cx: &mut Context<'_>, keys: Vec<Key>, wait: Wait) -> Job {
        let keys = keys.into_boxed_slice();
        let pieces = self.handle.pieces();
        let first = cx.rng.u16(..pieces);
        let range = if cx.percent(50) { 0..pieces } else { first..cx.rng.u16(first + 1..=pieces) };
        let piece_bytes = self.handle.block_bytes() / u64::from(pieces);
        let (offset, block) = (u64::from(range.start) * piece_bytes, range.len() as u64 * piece_bytes);
        let mut bytes = vec![0; keys.len() * block as usize];
        let table = self.session.table_id();
        // Of a pool that this session has not opened, nothing can be told.
        let open = self.session.pool_id(self.handle).is_some();
        // Nor of a block in an extent that it has not heard of yet.
        let mapped_bytes = self.session.extents() as u64 * EXTENT_BYTES;
        let near =
            |key| self.session.find(self.handle, key).is_none_or(|found| found.slot.offset_bytes() < mapped_bytes);
        let must = keys
            .iter()
            .map(|key| open && near(key) && cx.model.must_hit((self.group, self.pool, *key), table))
            .collect();
        let options = GetOptions { wait, pieces: Some(range), ..GetOptions::default() };
        let dst = Dst::from(lasting_mut(&mut bytes));
        let job = GetJob::new(self.session.clone(), self.handle, lasting(&keys), dst, &options).expect("a sound get");
        self.job(cx.now, What::Get(Get { job: Some(job), bytes, keys, offset, must, since: cx.model.now(), wait }))
    }

    pub fn put(&self, cx: &mut Context<'_>, keys: Vec<Key>, parent: Option<Key>) -> Job {
        let keys = keys.into_boxed_slice();
        let block = self.handle.block_bytes() as usize;
        let mut bytes = vec![0; keys.len() * block];
        let table = self.session.table_id();
        let numbers = keys.iter().zip(bytes.chunks_exact_mut(block)).map(|(key, payload)| {
            let number = cx.model.put((self.group, self.pool, *key), table);
            Model::fill(key, number, payload);
            number
        });
        let numbers = numbers.collect();
        let src = Src::from(lasting(&bytes));
        let job = PutJob::new(self.session.clone(), self.handle, lasting(&keys), parent, src).expect("a sound put");
        self.job(cx.now, What::Put(Put { job: Some(job), bytes, keys, numbers }))
    }

    pub fn reserve(&self, cx: &Context<'_>, keys: Vec<Key>, parent: Option<Key>, bytes: u64) -> Job {
        let job =
            ReserveJob::of_bytes(self.session.clone(), self.handle, &keys, parent, bytes).expect("a sound reserve");
        self.job(cx.now, What::Reserve(Some(job), keys))
    }

    pub fn commit(&self, cx: &Context<'_>, reservation: Reservation, numbers: Vec<Option<u64>>) -> Job {
        self.job(cx.now, What::Commit(Some(reservation.commit()), numbers))
    }

    pub fn remove(&self, cx: &mut Context<'_>, keys: Vec<Key>) -> Option<Job> {
        let pool = self.session.pool_id(self.handle)?;
        let removal = cx.model.remove(self.group, self.session.table_id(), self.pool, &keys);
        let token = self.session.submit(|token| Request::Remove { token, pool, keys }).ok();
        Some(self.job(cx.now, What::Ask(token, Ask::Removal(removal))))
    }

    pub fn purge(&self, cx: &mut Context<'_>) -> Option<Job> {
        let pool = self.session.pool_id(self.handle)?;
        let removal = cx.model.purge(self.group, self.session.table_id(), self.pool);
        let token = self.session.submit(|token| Request::Purge { token, pool }).ok();
        Some(self.job(cx.now, What::Ask(token, Ask::Removal(removal))))
    }

    /// Blocks are offered to another host, which may be there.
    pub fn offer(&self, cx: &mut Context<'_>, keys: Vec<Key>) -> Option<Job> {
        let pool = self.session.pool_id(self.handle)?;
        let (peer, deadline_us) = (format!("host-{}", cx.rng.u32(1..4)), self.deadline.as_micros() as u64);
        let token = self.session.submit(|token| Request::Offer { token, peer, pool, deadline_us, keys }).ok();
        Some(self.job(cx.now, What::Ask(token, Ask::Offer)))
    }

    /// A get by the daemon over pools of kin, as one that waits for a hand-over.
    pub fn wait(&self, cx: &mut Context<'_>, pools: &[Pool], keys: Vec<Key>, wait: Wait) -> Option<Job> {
        let policy = |i: usize, rng: &mut fastrand::Rng| match rng.u32(..3) {
            0 => HitPolicy::Trailing(rng.u32(1..4)),
            1 if i == 0 && pools.len() == 1 => HitPolicy::Any,
            _ => HitPolicy::Prefix,
        };
        let asks: Option<Vec<_>> =
            pools.iter().enumerate().map(|(i, pool)| Some((self.session.pool_id(pool)?, policy(i, cx.rng)))).collect();
        let (asks, deadline_us) = (asks?, self.deadline.as_micros() as u64);
        let token = self.session.submit(|token| Request::Get { token, asks, wait, deadline_us, keys }).ok();
        let release = cx.rng.u32(..10) > 0;
        Some(self.job(cx.now, What::Ask(token, Ask::Wait { release })))
    }
}

impl Job {
    /// When to look again if nothing comes.
    pub fn due(&self, now: Time) -> Time {
        let late = self.until.after(Duration::from_micros(SLACK_US));
        match now {
            now if now < self.until => self.until,
            now if now < late => late,
            _ => self.until.after(Duration::from_micros(REMOVAL_US)),
        }
    }

    fn slack(&self, plan: &Plan) -> Duration {
        let removal = matches!(self.what, What::Ask(_, Ask::Removal(_)));
        let slow = plan.has_ssd() && (!plan.is_honest() || plan.is_slow());
        Duration::from_micros(if removal && slow { REMOVAL_US } else { SLACK_US })
    }

    /// Goes on with it. `epoch`: of the client's connection now, if it stands.
    pub fn step(&mut self, cx: &mut Context<'_>, epoch: Option<u64>) -> Result<Option<After>, String> {
        let left = Duration::from_micros(self.until.since_us(cx.now));
        let (stands, late) = (epoch == Some(self.epoch), cx.now >= self.until.after(self.slack(cx.plan)));
        let over = if stands { late } else { left.is_zero() };
        let done = match &mut self.what {
            What::Get(get) => {
                let job = get.job.as_mut().expect("not over");
                // The last step may post something too.
                job.step(left) == Step::Done || job.step(left) == Step::Done
            }
            // A put is given up at its deadline: it asks the daemon more than once.
            What::Put(put) => put.job.as_mut().expect("not over").step(left) == Step::Done || left.is_zero(),
            What::Reserve(job, _) => job.as_mut().expect("not over").step(left) == Step::Done,
            What::Commit(job, _) => job.as_mut().expect("not over").step() == Step::Done,
            What::Ask(token, ask) => match token.map(|token| (token, self.session.take(token))) {
                Some((token, Some(answer))) => return Self::answered(cx, ask, token, &answer).map(Some),
                Some((_, None)) => false,
                None => return Ok(Some(After::Nothing)),
            },
        };
        if !done && !over {
            return Ok(None);
        }
        if !done && stands {
            return Err(format!(
                "{} of {} us at {} was not answered by its deadline",
                self.name(),
                self.until.since_us(self.began),
                self.began.0
            ));
        }
        self.finish(cx).map(Some)
    }

    pub fn name(&self) -> &'static str {
        match &self.what {
            What::Get(_) => "a get",
            What::Put(_) => "a put",
            What::Reserve(..) => "a reserve",
            What::Commit(..) => "a commit",
            What::Ask(_, Ask::Removal(_)) => "a removal",
            What::Ask(_, Ask::Wait { .. }) => "a waiting get",
            What::Ask(_, Ask::Offer) => "an offer",
        }
    }

    fn answered(cx: &mut Context<'_>, ask: &Ask, token: Token, answer: &Answer) -> Result<After, String> {
        cx.note(format_args!("answer {answer:?}"));
        match (ask, answer) {
            (Ask::Removal(number), Answer::Removed { .. }) => cx.model.removal_ended(*number),
            (Ask::Wait { release: true }, Answer::Got { .. }) => return Ok(After::Got(token.number())),
            (Ask::Wait { .. }, Answer::Got { .. }) | (_, Answer::Refused(Refusal::Gone)) => {}
            (Ask::Offer, Answer::Got { .. } | Answer::Refused(Refusal::NoPeer)) => {}
            // A client that only reads: nothing was removed.
            (Ask::Removal(_), Answer::Refused(Refusal::ReadOnly)) => {}
            other => return Err(format!("an answer of another kind: {:?}", other.1)),
        }
        Ok(After::Nothing)
    }

    fn finish(&mut self, cx: &mut Context<'_>) -> Result<After, String> {
        let deadline_us = self.until.since_us(self.began);
        match &mut self.what {
            What::Get(get) => {
                let got = get.job.take().expect("finished once").finish();
                cx.note(format_args!("got {} of {}", got.hits, get.keys.len()));
                let block = get.bytes.len() / get.keys.len();
                for (i, status) in got.statuses.iter().enumerate() {
                    let place = (self.group, self.pool, get.keys[i]);
                    if status.is_hit() {
                        cx.tally.hits += 1;
                        cx.tally.owed += u64::from(get.must[i]);
                        let bytes = &get.bytes[i * block..][..block];
                        let number = cx.model.read_since(get.since, place, self.table, get.offset, bytes)?;
                        cx.note(format_args!("reads put {number}"));
                    } else {
                        cx.tally.misses += 1;
                        if get.must[i] {
                            return Err(format!("a stored block is missed: {place:x?}, {:?}", get.wait));
                        }
                    }
                }
            }
            What::Put(put) => {
                let results = put.job.take().expect("finished once").finish().results;
                for (number, result) in put.numbers.iter().zip(&results) {
                    ended(cx, *number, *result, deadline_us)?;
                }
            }
            What::Commit(job, numbers) => {
                let results = job.take().expect("finished once").finish().results;
                for (number, result) in numbers.iter().zip(&results) {
                    if let Some(number) = number {
                        ended(cx, *number, *result, deadline_us)?;
                    }
                }
            }
            What::Reserve(job, keys) => {
                let reservation = job.take().expect("finished once").finish();
                cx.note(format_args!("reserved {:?}", reservation.results()));
                for result in reservation.results() {
                    match result {
                        // Its share is reserved, and it has yet to fill that.
                        ReserveResult::Refused(Refusal::Limit) => {}
                        // The policy's choice, where no tier below would take what leaves. Puts from a magazine never hear it.
                        ReserveResult::Refused(Refusal::Cold) if !cx.plan.has_ssd() => {
                            *cx.tally.refused.entry(Refusal::Cold as u8).or_insert(0) += 1;
                        }
                        ReserveResult::Refused(reason) => refused(cx, *reason, deadline_us)?,
                        _ => {}
                    }
                }
                let (keys, table, pool) = (std::mem::take(keys), self.table, self.pool);
                return Ok(After::Reserved { reservation, keys, table, pool });
            }
            What::Ask(token, _) => token.iter().for_each(|token| self.session.abandon(*token)),
        }
        Ok(After::Nothing)
    }
}

fn ended(cx: &mut Context<'_>, number: u64, result: PutResult, deadline_us: u64) -> Result<(), String> {
    cx.note(format_args!("put {number} is {result:?}"));
    cx.model.put_ended(number, result);
    match result {
        PutResult::Stored => cx.tally.stored += 1,
        PutResult::Exists => cx.tally.existed += 1,
        PutResult::Refused(reason) => refused(cx, reason, deadline_us)?,
    }
    Ok(())
}

/// Where nobody takes more than a fair share, a put that may wait is refused only because the daemon, or a parent, went.
fn refused(cx: &mut Context<'_>, reason: Refusal, deadline_us: u64) -> Result<(), String> {
    *cx.tally.refused.entry(reason as u8).or_insert(0) += 1;
    let may = match reason {
        Refusal::Gone | Refusal::Late | Refusal::Draining | Refusal::NoParent => true,
        // Others fill what they have reserved meanwhile, slow ones for longer than anybody waits; memory is on its way, or
        // its announcement.
        Refusal::AllPinned => deadline_us < 900_000 || cx.plan.pace > 1,
        Refusal::NotReady => deadline_us < 900_000 || cx.plan.groups > 1,
        _ => false,
    };
    if cx.plan.is_calm() && !may { Err(format!("a put is refused: {reason}")) } else { Ok(()) }
}
