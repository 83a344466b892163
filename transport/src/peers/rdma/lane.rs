//! One pair of who fetches, from its making to its end, and again: what is posted on it, what came of that, and the pauses
//! between attempts. No clock of its own, no thread. To destroy a pair takes a second at times: it is handed out, as `Over`.
//!
//! Two pairs can be connected between which nothing goes: a firewall, another network, packets too large for a switch. So the
//! first READ of a pair is a trial into memory of no fetch, and only a lane that passed it is up.
//!
//! Invariant: what was posted leaves `posted` only when it completed, or with its pair.

use std::{collections::VecDeque, io, time::Duration};

use lapis_arena::table::TableShape;
use lapis_config::Time;

use super::{
    fetches::Piece,
    memory::{Stretch, There},
    pace::Pace,
    provider::{Completion, Pair, Read},
    said::{End, RegionSaid},
    work::DEPTH,
};

/// The first pause after a failure; doubled each time until something was read.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long the owner has for its answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the first READ may take. Most NICs give up on a peer that does not answer before.
const TRIAL: Duration = Duration::from_secs(3);
/// How long what a failed pair had is waited for, before the pair is destroyed with it. Most NICs hand it back within a
/// millisecond, while to destroy a pair takes the kernel a second on a link that is dead: that is for NICs that hand back nothing.
pub(super) const DRAIN: Duration = Duration::from_millis(100);
/// Bytes that are posted and not read, at most: more gains nothing, and takes longer to take back.
const WINDOW_BYTES: u64 = 8 << 20;
/// At least one READ in so many bytes tells that it, and all before it, succeeded.
const SIGNAL_BYTES: u32 = 512 << 10;
/// Of the first READ of a pair.
const TRIAL_ID: u64 = 1;
/// READs posted at once.
const BATCH: usize = 16;
/// Until a NIC is tried again that would not take more, while it has nothing whose end would tell.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The NIC has a READ of it.
    Given(Piece),
    /// No more: it was read, or it was not.
    Whole(Piece),
    Back(Piece),
    /// It never was: the NIC would not take it.
    Refused(Piece),
}

/// A pair that is to be destroyed; until then it may write what it was given.
pub(super) struct Over<P> {
    pub pair: P,
    pub pieces: Vec<Piece>,
}

struct Posted {
    id: u64,
    piece: Piece,
}

struct Up<P> {
    pair: P,
    posted: VecDeque<Posted>,
    next_id: u64,
    /// To be posted at once; they are in `posted` already.
    batch: Vec<Read>,
    /// Since the last READ that tells.
    silent_bytes: u32,
    /// The last that the NIC took does not tell: another one must. Where it was read from and to.
    owes: Option<(Read, Piece)>,
    /// The NIC would not take more.
    full_until: Option<Time>,
}

impl<P> Up<P> {
    fn new(pair: P) -> Self {
        let (posted, batch) = (VecDeque::new(), Vec::new());
        Self { pair, posted, next_id: TRIAL_ID + 1, batch, silent_bytes: 0, owes: None, full_until: None }
    }
}

enum Stand<P> {
    Resting {
        until: Time,
    },
    Making,
    /// The owner was told of it.
    Asked {
        pair: P,
        until: Time,
    },
    Connecting,
    /// Its first READ is to be posted, as soon as the owner says a region; or shall be done by then.
    Trying {
        up: Box<Up<P>>,
        until: Option<Time>,
    },
    Up(Box<Up<P>>),
    /// It failed, or was made to: what it has is coming back.
    Ending {
        up: Box<Up<P>>,
        until: Time,
    },
}

pub(super) struct Lane<P> {
    /// Of this host; and the NUMA node of its NIC, where that is known.
    pub nic: usize,
    pub node: Option<u32>,
    session: u32,
    stand: Stand<P>,
    pause: Duration,
    pub pace: Pace,
    there: There,
    pub over: Vec<Over<P>>,
    /// Of the link and of this, for the log.
    name: String,
    /// Why it is not up, as the log has it.
    told: String,
}

impl<P: Pair> Lane<P> {
    pub(super) fn new(now: Time, nic: usize, node: Option<u32>, name: String) -> Self {
        let stand = Stand::Resting { until: now };
        let (pace, there, over) = (Pace::default(), There::default(), Vec::new());
        Self { nic, node, session: 0, stand, pause: PAUSE_MIN, pace, there, over, name, told: String::new() }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.stand, Stand::Up(_))
    }

    pub(super) fn there(&self) -> &There {
        &self.there
    }

    // ---- Coming up ----

    /// The session of a pair that is to be made now, if it is time.
    pub(super) fn begin(&mut self, now: Time) -> Option<u32> {
        if !matches!(self.stand, Stand::Resting { until } if until <= now) {
            return None;
        }
        self.session += 1;
        self.there = There::default();
        self.stand = Stand::Making;
        Some(self.session)
    }

    /// What the owner is to be told of it.
    pub(super) fn made(&mut self, now: Time, session: u32, pair: io::Result<P>) -> Option<End> {
        if session != self.session || !matches!(self.stand, Stand::Making) {
            self.unwanted(pair);
            return None;
        }
        match pair {
            Ok(pair) => {
                let end = pair.end();
                self.stand = Stand::Asked { pair, until: now.after(ANSWER) };
                Some(end)
            }
            Err(error) => {
                self.rest(now, &format!("no queue pair: {error}"));
                None
            }
        }
    }

    /// The pair, which is to be connected to that end.
    pub(super) fn answered(&mut self, now: Time, session: u32, there: &End) -> Option<P> {
        if session != self.session || !matches!(self.stand, Stand::Asked { .. }) {
            return None;
        }
        let Stand::Asked { pair, .. } = std::mem::replace(&mut self.stand, Stand::Connecting) else { return None };
        if pair.end().kind == there.kind {
            return Some(pair);
        }
        self.rest(now, &format!("its NIC has an address of another kind: {:?}", there.kind));
        None
    }

    pub(super) fn refused(&mut self, now: Time, session: u32, reason: &str) {
        if session == self.session && matches!(self.stand, Stand::Asked { .. }) {
            self.rest(now, &format!("refused: {reason}"));
        }
    }

    pub(super) fn connected(&mut self, now: Time, session: u32, pair: io::Result<P>) {
        if session != self.session || !matches!(self.stand, Stand::Connecting) {
            return self.unwanted(pair);
        }
        match pair {
            Ok(pair) => self.stand = Stand::Trying { up: Box::new(Up::new(pair)), until: None },
            Err(error) => self.rest(now, &format!("not connected: {error}")),
        }
    }

    /// Of a former session. Destroyed elsewhere, which may take long.
    fn unwanted(&mut self, pair: io::Result<P>) {
        self.over.extend(pair.ok().map(|pair| Over { pair, pieces: Vec::new() }));
    }

    /// Posts the first READ, once: into memory that is nobody's.
    pub(super) fn try_out(&mut self, now: Time, scratch: Stretch) {
        let Stand::Trying { up, until: until @ None } = &mut self.stand else { return };
        let Some(from) = self.there.any() else { return };
        let bytes = from.bytes.min(scratch.bytes) as u32;
        let (here, local_key) = (scratch.address, scratch.key);
        let (there, remote_key) = (from.address, from.key);
        let trial = Read { id: TRIAL_ID, signalled: true, here, local_key, there, remote_key, bytes };
        *until = Some(now.after(TRIAL));
        if let (_, Some(error)) = up.pair.read(&[trial]) {
            self.fail_trial(now, &format!("its first READ was not taken: {error}"));
        }
    }

    fn tried(&mut self, now: Time, completion: &Completion) {
        match (&completion.outcome, std::mem::replace(&mut self.stand, Stand::Connecting)) {
            (Ok(()), Stand::Trying { up, .. }) => {
                tracing::info!(lane = self.name, session = self.session, "blocks are read by RDMA");
                self.told.clear();
                self.stand = Stand::Up(up);
            }
            (Err(reason), stand @ Stand::Trying { .. }) => {
                self.stand = stand;
                self.fail_trial(now, &format!("its first READ failed: {reason}"));
            }
            (_, stand) => self.stand = stand,
        }
    }

    fn fail_trial(&mut self, now: Time, why: &str) {
        self.end_pair();
        self.rest(now, why);
    }

    pub(super) fn regions(&mut self, now: Time, session: u32, regions: &[RegionSaid]) {
        if session == self.session && !self.there.add(regions) {
            self.there = There::default();
            self.kill(now, "its owner says too many regions");
        }
    }

    pub(super) fn table(&mut self, session: u32, shape: TableShape, regions: &[RegionSaid]) {
        if session == self.session {
            self.there.set_table(shape, regions);
        }
    }

    // ---- Reading ----

    /// Whether `bytes` more may be posted now.
    pub(super) fn has_room(&self, bytes: u32) -> bool {
        let Stand::Up(up) = &self.stand else { return false };
        let under_way = self.pace.under_way();
        // One is kept for a READ that tells.
        up.full_until.is_none()
            && up.posted.len() + 1 < DEPTH as usize
            && (under_way == 0 || under_way + u64::from(bytes) <= WINDOW_BYTES)
    }

    /// Takes a piece: it is posted by `flush` at the latest.
    pub(super) fn post(&mut self, now: Time, piece: Piece, from: Stretch, into: Stretch, changes: &mut Vec<Change>) {
        let Stand::Up(up) = &mut self.stand else { panic!("a READ on a lane that is not up") };
        let id = up.next_id;
        up.next_id += 1;
        up.silent_bytes = up.silent_bytes.saturating_add(piece.bytes);
        let signalled = up.silent_bytes >= SIGNAL_BYTES;
        if signalled {
            up.silent_bytes = 0;
        }
        up.batch.push(Read {
            id,
            signalled,
            here: into.address,
            local_key: into.key,
            there: from.address,
            remote_key: from.key,
            bytes: piece.bytes,
        });
        up.posted.push_back(Posted { id, piece });
        changes.push(Change::Given(piece));
        self.pace.given(now, piece.bytes.into());
        if up.batch.len() == BATCH {
            self.flush(now, changes);
        }
    }

    /// Hands what was taken to the NIC. What it does not take comes back.
    pub(super) fn flush(&mut self, now: Time, changes: &mut Vec<Change>) {
        let Stand::Up(up) = &mut self.stand else { return };
        let Some(last) = up.batch.last_mut() else { return };
        (last.signalled, up.silent_bytes) = (true, 0);
        let (taken, error) = up.pair.read(&up.batch);
        let back = up.posted.split_off(up.posted.len() - (up.batch.len() - taken));
        if let Some(last) = taken.checked_sub(1).map(|last| up.batch[last]) {
            let piece = up.posted.back().expect("as many as were taken").piece;
            up.owes = (!last.signalled).then_some((last, piece));
        }
        for Posted { piece, .. } in &back {
            self.pace.left(piece.bytes.into());
            changes.push(Change::Refused(*piece));
        }
        up.batch.clear();
        let Some(error) = error else { return };
        // Full, it says: for as long as what it has is under way.
        if error.raw_os_error() == Some(libc::ENOMEM) && !back.is_empty() {
            up.full_until = Some(now.after(FULL_PAUSE));
        } else {
            self.kill(now, &format!("a READ was not taken: {error}"));
        }
    }

    /// Whether a READ of a fetch is with the NIC.
    pub(super) fn has_of(&self, op: u64) -> bool {
        match &self.stand {
            Stand::Up(up) | Stand::Ending { up, .. } => up.posted.iter().any(|posted| posted.piece.op == op),
            _ => false,
        }
    }

    /// Takes what completed. `done` is a buffer.
    pub(super) fn poll(&mut self, now: Time, done: &mut Vec<Completion>, changes: &mut Vec<Change>) {
        done.clear();
        let (up, is_ending) = match &mut self.stand {
            Stand::Trying { up, until: Some(_) } => {
                return match up.pair.poll(done) {
                    Ok(()) => done.drain(..).for_each(|completion| self.tried(now, &completion)),
                    Err(error) => self.fail_trial(now, &format!("its completions cannot be had: {error}")),
                };
            }
            Stand::Up(up) => (up, false),
            Stand::Ending { up, .. } => (up, true),
            _ => return,
        };
        let mut why = up.pair.poll(done).err().map(|error| format!("its completions cannot be had: {error}"));
        for completion in done.drain(..) {
            // One that is not under way was told twice.
            if up.posted.binary_search_by_key(&completion.id, |posted| posted.id).is_err() {
                tracing::debug!(lane = self.name, id = completion.id, "a completion of what is not under way");
                continue;
            }
            up.full_until = None;
            if let Err(reason) = &completion.outcome {
                why.get_or_insert_with(|| format!("a READ failed: {reason}"));
            }
            let ended = up.posted.iter().take_while(|posted| posted.id <= completion.id).count();
            for posted in up.posted.drain(..ended) {
                let (piece, bytes) = (posted.piece, posted.piece.bytes.into());
                if completion.outcome.is_ok() {
                    self.pace.came(bytes);
                    self.pause = PAUSE_MIN;
                    changes.push(Change::Whole(piece));
                } else {
                    self.pace.left(bytes);
                    changes.push(Change::Back(piece));
                }
            }
        }
        self.pace.measure(now);
        if let Some(why) = why.filter(|_| !is_ending) {
            self.kill(now, &why);
        }
        self.settle(now);
    }

    /// Before sleep: what completes from now on is told. What completed before is seen by another `poll`.
    pub(super) fn arm(&mut self, now: Time) {
        let up = match &mut self.stand {
            Stand::Up(up) | Stand::Ending { up, .. } if !up.posted.is_empty() => up,
            Stand::Trying { up, until: Some(_) } => up,
            _ => return,
        };
        if let Err(error) = up.pair.arm() {
            self.kill(now, &format!("it cannot tell of completions: {error}"));
        }
    }

    // ---- Going down ----

    /// Takes back what the NIC has.
    pub(super) fn kill(&mut self, now: Time, why: &str) {
        match std::mem::replace(&mut self.stand, Stand::Connecting) {
            Stand::Up(mut up) => {
                tracing::warn!(lane = self.name, reads = up.posted.len(), "the lane failed: {why}");
                let until = match up.pair.fail() {
                    Ok(()) => now.after(DRAIN),
                    // What cannot be taken back ends with its pair.
                    Err(_) => now,
                };
                self.stand = Stand::Ending { up, until };
                self.settle(now);
            }
            trying @ Stand::Trying { .. } => {
                self.stand = trying;
                self.fail_trial(now, why);
            }
            other => self.stand = other,
        }
    }

    /// A pair of which nothing is left is over.
    fn settle(&mut self, now: Time) {
        if matches!(&self.stand, Stand::Ending { up, .. } if up.posted.is_empty()) {
            self.close(now);
        }
    }

    /// The pair is over, with what it has.
    pub(super) fn close(&mut self, now: Time) {
        self.end_pair();
        self.rest(now, "");
    }

    fn end_pair(&mut self) {
        let former = std::mem::replace(&mut self.stand, Stand::Resting { until: Time::NEVER });
        if let Stand::Up(up) | Stand::Trying { up, .. } | Stand::Ending { up, .. } = former {
            let Up { mut pair, posted, .. } = *up;
            // What cannot be taken back ends with the pair.
            let _ = pair.fail();
            let pieces: Vec<Piece> = posted.into_iter().map(|posted| posted.piece).collect();
            pieces.iter().for_each(|piece| self.pace.left(piece.bytes.into()));
            self.over.push(Over { pair, pieces });
        }
    }

    fn rest(&mut self, now: Time, why: &str) {
        let pause_ms = self.pause.as_millis() as u64;
        // Once: a host may have none for years.
        if !why.is_empty() && self.told != why {
            tracing::info!(lane = self.name, pause_ms, "no RDMA yet: {why}");
            why.clone_into(&mut self.told);
        } else if !why.is_empty() {
            tracing::debug!(lane = self.name, pause_ms, "no RDMA yet: {why}");
        }
        self.stand = Stand::Resting { until: now.after(self.pause) };
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    // ---- Time ----

    pub(super) fn tick(&mut self, now: Time, changes: &mut Vec<Change>) {
        match &mut self.stand {
            Stand::Asked { until, .. } if *until <= now => self.rest(now, "its owner did not answer"),
            Stand::Trying { until: Some(until), .. } if *until <= now => {
                self.fail_trial(now, "its first READ had no answer");
            }
            Stand::Ending { until, .. } if *until <= now => self.close(now),
            Stand::Up(up) => {
                if up.full_until.is_some_and(|until| until <= now) {
                    up.full_until = None;
                }
                if up.owes.is_some() && up.full_until.is_none() {
                    self.pay(now, changes);
                }
            }
            _ => {}
        }
    }

    /// The NIC took READs none of which tells of its end, and then no more: the first byte of the last is read once more, by
    /// one that tells.
    fn pay(&mut self, now: Time, changes: &mut Vec<Change>) {
        let Stand::Up(up) = &mut self.stand else { return };
        let Some((last, piece)) = up.owes.take() else { return };
        if !up.posted.iter().any(|posted| posted.id == last.id) {
            return;
        }
        let id = up.next_id;
        up.next_id += 1;
        let (taken, error) = up.pair.read(&[Read { id, signalled: true, bytes: 1, ..last }]);
        // Taken, and a reason not to: nobody knows, so the NIC may write it until the pair has ended.
        if taken == 1 {
            let piece = Piece { bytes: 0, ..piece };
            changes.push(Change::Given(piece));
            up.posted.push_back(Posted { id, piece });
        }
        match error {
            None => {}
            Some(error) if taken == 0 && error.raw_os_error() == Some(libc::ENOMEM) => {
                up.owes = Some((last, piece));
                up.full_until = Some(now.after(FULL_PAUSE));
            }
            Some(error) => self.kill(now, &format!("a READ was not taken: {error}")),
        }
    }

    pub(super) fn next_at(&self) -> Option<Time> {
        match &self.stand {
            Stand::Resting { until } | Stand::Asked { until, .. } | Stand::Ending { until, .. } => Some(*until),
            Stand::Trying { until, .. } => *until,
            Stand::Up(up) => up.full_until,
            Stand::Making | Stand::Connecting => None,
        }
    }
}
