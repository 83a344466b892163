//! Which blocks a get asks of the daemon at once. It brings them into memory until the answer is released: so a get of more
//! than memory holds at a time comes through it in windows, two at a time, and devices work on one while the other is
//! copied.
//!
//! Invariant: an index is in at most one window, and a window's token is taken or abandoned once.

use std::ops::Range;

use lapis_config::{BATCH_KEYS_MAX, HitPolicy, Key, PoolId, Wait};
use lapis_transport::frame::Request;

use super::{Answer, Busy, Session, Token};

/// Bytes of slots in a window: at most, and at most one part in so many of the memory; one block at least.
const WINDOW_BYTES_MAX: u64 = 256 << 20;
const WINDOW_PART: u64 = 16;
/// Windows under way at once.
const WINDOWS_MAX: usize = 2;

#[derive(Debug)]
struct Window {
    token: Token,
    /// Of `wanted`.
    range: Range<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Windows {
    /// Indices of the keys to ask for: those that are elsewhere, then those that may come.
    wanted: Vec<u32>,
    /// So many of them are elsewhere.
    elsewhere: usize,
    /// Of them, so many were asked for.
    asked: usize,
    /// The others were asked for.
    awaited: bool,
    size: usize,
    under_way: Vec<Window>,
}

impl Windows {
    /// A block that is not in memory and can be fetched.
    pub fn want(&mut self, index: u32) {
        self.wanted.push(index);
        self.elsewhere = self.wanted.len();
    }

    /// All that is missing, in order: other hosts may have what this one does not know.
    pub fn want_all(&mut self, missing: impl Iterator<Item = u32>) {
        self.wanted = missing.collect();
        self.elsewhere = self.wanted.len();
    }

    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    pub fn set_size(&mut self, memory_bytes: u64, slot_bytes: u32) {
        let bytes = WINDOW_BYTES_MAX.min(memory_bytes / WINDOW_PART);
        let blocks = bytes / u64::from(slot_bytes).max(1);
        self.size = blocks.clamp(1, BATCH_KEYS_MAX as u64) as usize;
    }

    /// Of the missing keys, those that nobody has put yet are waited for together: they need no device.
    pub fn await_absent(&mut self, missing: impl Iterator<Item = u32>) {
        let mut fetched: Vec<u32> = self.wanted.clone();
        fetched.sort_unstable();
        self.wanted.extend(missing.filter(|index| fetched.binary_search(index).is_err()));
    }

    /// Nothing more is asked for.
    pub fn forget_rest(&mut self) {
        self.asked = self.elsewhere;
        self.awaited = true;
    }

    fn absent(&self) -> Range<usize> {
        self.elsewhere..self.wanted.len()
    }

    fn awaits(&self) -> bool {
        !self.awaited && !self.absent().is_empty()
    }

    pub fn may_ask(&self) -> bool {
        let windows = self.under_way.iter().filter(|window| window.range.start < self.elsewhere).count();
        self.awaits() || self.asked < self.elsewhere && windows < WINDOWS_MAX
    }

    pub fn is_done(&self) -> bool {
        self.under_way.is_empty() && !self.may_ask()
    }

    /// Asks for the next window, or, first of all, for what nobody has put yet.
    pub fn ask(
        &mut self,
        session: &Session,
        pool: PoolId,
        keys: &[Key],
        (wait, from): (Wait, Option<&str>),
        deadline_us: u64,
    ) -> Result<(), Busy> {
        let awaits = self.awaits();
        let next = self.asked..self.elsewhere.min(self.asked + self.size);
        let (range, wait) = if awaits { (self.absent(), wait) } else { (next, Wait::Present) };
        let keys = self.wanted[range.clone()].iter().map(|&i| keys[i as usize]).collect();
        let asks = vec![(pool, HitPolicy::Any)];
        let token = session.submit(|token| match from {
            Some(peer) => Request::GetFrom { token, peer: peer.to_owned(), asks, wait, deadline_us, keys },
            None => Request::Get { token, asks, wait, deadline_us, keys },
        })?;
        if awaits {
            self.awaited = true
        } else {
            self.asked = range.end
        }
        self.under_way.push(Window { token, range });
        Ok(())
    }

    /// A window that was answered: its token, the answer, and its keys.
    pub fn take(&mut self, session: &Session) -> Option<(Token, Answer, Vec<u32>)> {
        for at in 0..self.under_way.len() {
            if let Some(answer) = session.take(self.under_way[at].token) {
                let Window { token, range } = self.under_way.remove(at);
                return Some((token, answer, self.wanted[range].to_vec()));
            }
        }
        None
    }

    /// Nobody takes the answers that are still to come.
    pub fn abandon(&mut self, session: &Session) {
        for window in self.under_way.drain(..) {
            session.abandon(window.token);
        }
    }
}
