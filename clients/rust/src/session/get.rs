//! Copies of blocks out of the arena: look the whole batch up, copy, check every line again. Blocks that are not in
//! memory are asked of the daemon, a window at a time, then read like any other.

use std::{cell::RefCell, ops::Range, sync::Arc, time::Duration};

use lapis_arena::{Found, copy};
use lapis_config::{Key, PoolKind, Wait};
use lapis_transport::frame::Request;

use super::{Answer, Busy, Session, Step, Verify, windows::Windows};
use crate::{
    ClientError, Pool, keys,
    sums::BlockSum,
    vectors::{Blocks, Dst},
};

/// How to get.
#[derive(Clone, Debug)]
pub struct GetOptions {
    /// Only these pieces of every block, as an index range; all if `None`.
    pub pieces: Option<Range<u16>>,
    /// Whether to wait for blocks that are being filled, or that nobody has put yet.
    pub wait: Wait,
    /// Another host that is asked first for what is missing here, and waits for it as `wait` says: whoever makes the blocks.
    pub from: Option<String>,
    /// Instead of the default of 50 ms + bytes / 500 MB/s. Hits in memory are copied whatever it says.
    pub deadline: Option<Duration>,
    /// Instead of what the session does.
    pub verify: Option<Verify>,
}

impl Default for GetOptions {
    fn default() -> Self {
        Self { pieces: None, wait: Wait::Present, from: None, deadline: None, verify: None }
    }
}

/// What became of one key of a get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockStatus {
    /// So many bytes were copied.
    Hit { bytes: u32 },
    /// Nothing that was copied is to be looked at.
    Miss,
}

impl BlockStatus {
    pub fn is_hit(self) -> bool {
        self != Self::Miss
    }
}

/// What a get found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Got {
    /// One a key, in the order asked.
    pub statuses: Vec<BlockStatus>,
    pub hits: usize,
    pub bytes: u64,
}

impl Got {
    /// How many leading keys were hits.
    pub fn prefix(&self) -> usize {
        self.statuses.iter().take_while(|status| status.is_hit()).count()
    }
}

/// Which bytes of every block are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub first: u16,
    pub offset: usize,
    pub bytes: usize,
}

impl Part {
    pub fn of(pool: &Pool, pieces: Option<&Range<u16>>) -> Result<Self, ClientError> {
        let all = pool.pieces();
        let range = pieces.cloned().unwrap_or(0..all);
        if range.start >= range.end || range.end > all {
            return Err(ClientError::Pieces { first: range.start, end: range.end, pieces: all });
        }
        let piece_bytes = (pool.block_bytes() / u64::from(all)) as usize;
        let bytes = piece_bytes * usize::from(range.end - range.start);
        Ok(Self { first: range.start, offset: piece_bytes * usize::from(range.start), bytes })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    Yes,
    /// The bytes do not fit the sum.
    Unfit,
    /// The place is not one of ours: an extent that has not come yet, or a broken line.
    Outside,
}

thread_local! {
    /// Reused, so that a hit allocates nothing large.
    static HITS: RefCell<Vec<(u32, Found, Copied)>> = const { RefCell::new(Vec::new()) };
}

/// A get under way. Whatever is in memory is copied by the first `step`.
pub struct GetJob<'a> {
    session: Arc<Session>,
    pool: Pool,
    keys: &'a [Key],
    blocks: Blocks<Dst<'a>>,
    part: Part,
    wait: Wait,
    from: Option<String>,
    verify: Option<Verify>,
    got: Got,
    deepest: Option<(usize, Found)>,
    /// What is asked of the daemon.
    windows: Windows,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Asking,
    Done,
}

impl<'a> GetJob<'a> {
    /// Checks what is asked; copies nothing yet.
    pub fn new(
        session: Arc<Session>,
        pool: &Pool,
        keys: &'a [Key],
        dst: Dst<'a>,
        options: &GetOptions,
    ) -> Result<Self, ClientError> {
        if session.here().is_err() {
            return Err(ClientError::Closed);
        }
        keys::check(keys.len())?;
        pool.expect_kind(PoolKind::Chain)?;
        let part = Part::of(pool, options.pieces.as_ref())?;
        Ok(Self {
            blocks: Blocks::to(dst, keys.len(), part.bytes as u64)?,
            session,
            pool: pool.clone(),
            keys,
            part,
            wait: options.wait,
            from: options.from.clone(),
            verify: options.verify,
            got: Got { statuses: vec![BlockStatus::Miss; keys.len()], hits: 0, bytes: 0 },
            deepest: None,
            windows: Windows::default(),
            state: State::New,
        })
    }

    /// Bytes asked for; what the default deadline depends on.
    pub fn bytes(&self) -> u64 {
        self.blocks.block_bytes() as u64 * self.keys.len() as u64
    }

    /// Goes on as far as possible without waiting. `left`: until the caller's deadline.
    pub fn step(&mut self, left: Duration) -> Step {
        if self.state == State::New {
            self.copy_present();
            self.state = State::Asking;
            self.plan();
        }
        if self.state == State::Done {
            return Step::Done;
        }
        let mut posted = self.take_answers();
        loop {
            match self.ask(left) {
                Ok(true) => posted = true,
                Ok(false) => break,
                Err(Busy::Full) => return Step::Full,
                Err(Busy::Gone) => {
                    self.windows.forget_rest();
                    break;
                }
            }
        }
        if self.windows.is_done() {
            self.state = self.end();
        }
        match (posted, self.state) {
            (true, _) => Step::Posted,
            (false, State::Done) => Step::Done,
            (false, _) => Step::Waiting,
        }
    }

    /// The result, as far as it has come; what was still awaited is a miss.
    pub fn finish(mut self) -> Got {
        if self.state == State::New {
            self.copy_present();
        }
        self.give_up();
        std::mem::take(&mut self.got)
    }

    fn give_up(&mut self) {
        self.windows.abandon(&self.session);
        if self.state != State::Done {
            self.state = self.end();
        }
    }

    fn end(&self) -> State {
        let deepest = self.deepest.map(|(_, found)| found);
        self.session.report(deepest, self.got.hits, self.keys.len(), self.got.bytes);
        State::Done
    }

    /// Which keys are asked of the daemon: those that it can fetch from devices or other hosts, and with a wait also those
    /// that may come.
    fn plan(&mut self) {
        let some_missing = self.got.hits < self.keys.len();
        let (absent, remote) = (self.wait != Wait::Present && some_missing, some_missing && self.session.has_peers());
        if self.windows.is_empty() && !absent && !remote || !self.session.is_connected() {
            return self.windows.forget_rest();
        }
        self.windows.set_size(self.session.maps.extents.bytes(), self.pool.slot_bytes());
        let missing = self.got.statuses.iter().enumerate().filter(|(_, status)| !status.is_hit());
        let missing = missing.map(|(i, _)| i as u32);
        if absent {
            self.windows.await_absent(missing);
        } else if remote {
            self.windows.want_all(missing);
        }
    }

    /// Asks for one more window, if one is left and it is time for it.
    fn ask(&mut self, left: Duration) -> Result<bool, Busy> {
        if !self.windows.may_ask() {
            return Ok(false);
        }
        let pool = self.session.pool_id(&self.pool).ok_or(Busy::Gone)?;
        let from = self.from.as_deref();
        self.windows.ask(&self.session, pool, self.keys, (self.wait, from), super::put::daemons_share_us(left))?;
        Ok(true)
    }

    /// Copies what came, and lets it go. True if anything was answered that is to be released.
    fn take_answers(&mut self) -> bool {
        let mut released = false;
        while let Some((token, answer, window)) = self.windows.take(&self.session) {
            self.copy_window(&window);
            if matches!(answer, Answer::Got { hit: 0 }) {
                // Of a chain, what follows is no use, and no likelier.
                self.windows.forget_rest();
            }
            if matches!(answer, Answer::Got { .. }) {
                self.session.post(Request::Release { token: token.number() });
                released = true;
            }
        }
        released
    }

    fn copy_present(&mut self) {
        let Some(id) = self.session.pool_id(&self.pool) else { return };
        HITS.with_borrow_mut(|hits| {
            hits.clear();
            self.session.maps.table.find_many(id, self.keys, |i, found| match found {
                Some(found) if found.state.is_readable() => hits.push((i as u32, found, Copied::Yes)),
                Some(_) => self.windows.want(i as u32),
                None => {}
            });
            self.copy_all(hits);
        });
    }

    fn copy_window(&mut self, window: &[u32]) {
        HITS.with_borrow_mut(|hits| {
            hits.clear();
            for &i in window {
                let found = self.session.find(&self.pool, &self.keys[i as usize]);
                hits.extend(found.filter(|found| found.state.is_readable()).map(|found| (i, found, Copied::Yes)));
            }
            self.copy_all(hits);
        });
    }

    fn copy_all(&mut self, hits: &mut [(u32, Found, Copied)]) {
        let kernel = copy::Kernel::choose(self.part.bytes, hits.len());
        for n in 0..hits.len() {
            if let Some((_, next, _)) = hits.get(n + 1)
                && let Some((mapping, offset)) = self.session.maps.extents.locate(next.slot, u64::from(next.bytes))
            {
                copy::prefetch_next(mapping, offset + self.part.offset);
            }
            let (i, found, _) = hits[n];
            hits[n].2 = self.copy(i as usize, &found, kernel);
        }
        if kernel == copy::Kernel::Streaming {
            copy::sfence();
        }
        for (i, found, copied) in hits {
            self.settle(*i as usize, *found, *copied, kernel);
        }
    }

    /// The second look at a line. If its bond changed under the copy: find, copy and look once more, then it is a miss.
    #[inline]
    fn settle(&mut self, i: usize, found: Found, copied: Copied, kernel: copy::Kernel) {
        let still = self.session.maps.table.still(&found);
        match (copied, still) {
            (Copied::Yes, true) => self.hit(i, found),
            (Copied::Unfit, true) => self.session.remember_corrupt(&found),
            (Copied::Outside, _) => {}
            (_, false) => self.retry(i, kernel),
        }
    }

    #[cold]
    fn retry(&mut self, i: usize, kernel: copy::Kernel) {
        self.session.counts.retried();
        let Some(found) = self.session.find(&self.pool, &self.keys[i]) else { return };
        if !found.state.is_readable() {
            // It left memory under the copy. Asked for once: what leaves again is a miss.
            if self.state == State::New {
                self.windows.want(i as u32);
            }
            return;
        }
        let copied = self.copy(i, &found, kernel);
        copy::sfence();
        match (copied, self.session.maps.table.still(&found)) {
            (Copied::Yes, true) => self.hit(i, found),
            (Copied::Unfit, true) => self.session.remember_corrupt(&found),
            _ => {}
        }
    }

    #[inline]
    fn hit(&mut self, i: usize, found: Found) {
        self.got.statuses[i] = BlockStatus::Hit { bytes: self.part.bytes as u32 };
        self.got.hits += 1;
        self.got.bytes += self.part.bytes as u64;
        if self.deepest.is_none_or(|(deepest, _)| deepest < i) {
            self.deepest = Some((i, found));
        }
    }

    #[inline]
    fn copy(&mut self, i: usize, found: &Found, kernel: copy::Kernel) -> Copied {
        if u64::from(found.bytes) != self.pool.block_bytes() || self.session.is_corrupt(found) {
            return Copied::Outside;
        }
        let place = self.session.maps.extents.locate(found.slot, u64::from(self.pool.slot_bytes()));
        let Some((mapping, offset)) = place else { return Copied::Outside };
        let mut at = offset + self.part.offset;
        if !self.session.must_check(found, self.verify) {
            self.blocks.each_mut(i, |dst| {
                copy::out(mapping, at, dst, kernel);
                at += dst.len();
            });
            return Copied::Yes;
        }
        let mut sum = BlockSum::new(&self.pool, &self.keys[i], u64::from(found.bytes), self.part.first);
        self.blocks.each_mut(i, |mut dst| {
            while !dst.is_empty() {
                let (part, run) = sum.run(dst.len());
                let (now, later) = dst.split_at_mut(run);
                copy::out_summed(mapping, at, now, kernel, part);
                sum.took(run);
                (dst, at) = (later, at + run);
            }
        });
        if sum.fits(found, mapping, offset) { Copied::Yes } else { Copied::Unfit }
    }
}

impl Drop for GetJob<'_> {
    fn drop(&mut self) {
        self.windows.abandon(&self.session);
    }
}
