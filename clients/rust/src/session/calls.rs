//! Calls to the daemon under way, the magazines, and the slots that somebody is writing. No I/O: frames go into the ring
//! that the session holds, answers come by token.
//!
//! Invariant: a slot that the daemon granted is in exactly one of: a magazine, `writing`, a posted commit or abort.
//! Invariant: an answer that nobody waits for any more gives back what it brought.

use std::collections::HashSet;

use lapis_config::{GpuId, PoolId, Refusal, SlotId};
use lapis_transport::{
    control::Requests,
    frame::{Completion, PutResult, Request, ReserveResult},
    hello::{WRITING_MAX, WRITING_ON_GPUS_MAX},
};

/// A slot on a GPU.
type OnGpu = (GpuId, SlotId);

/// Most calls under way at once.
const CALLS_MAX: usize = 4096;

/// Names a call until its answer is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(u64);

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Committed(Vec<PutResult>),
    /// So many slots are in the magazine now.
    Granted(usize),
    Reserved(Vec<ReserveResult>),
    Got {
        hit: u32,
    },
    Removed {
        blocks: u64,
    },
    Refused(Refusal),
}

/// Why a call could not be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// The ring or the list of calls is full: again after the next completion.
    Full,
    /// Not connected.
    Gone,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Free,
    Waiting,
    /// Nobody waits any more.
    Abandoned,
    Answered(Answer),
}

#[derive(Debug, Default)]
struct Call {
    /// Bumped at every reuse: the high half of the token.
    round: u32,
    /// Bytes of the slots that the answer may bring.
    slot_bytes: u32,
    /// They are on that GPU.
    gpu: Option<GpuId>,
    state: State,
}

/// Slots granted ahead, of one pool and size.
#[derive(Debug)]
struct Magazine {
    pool: PoolId,
    slot_bytes: u32,
    slots: Vec<SlotId>,
}

#[derive(Debug)]
pub(super) struct Calls {
    /// None while there is no daemon.
    requests: Option<Requests>,
    calls: Vec<Call>,
    free: Vec<u32>,
    magazines: Vec<Magazine>,
    writing: HashSet<SlotId>,
    writing_on_gpus: HashSet<OnGpu>,
    /// Frames that found no room; they go before any other.
    owed: Vec<Request>,
    /// From the making of a `Resume` to its welcome: what is given back meanwhile was told to be in use.
    resuming: bool,
    /// The request ring is broken: the memory was overwritten.
    pub broken: bool,
    /// Something was pushed since this was last reset by the caller.
    pub pushed: bool,
}

impl Calls {
    pub fn new(requests: Requests) -> Self {
        Self {
            requests: Some(requests),
            calls: Vec::new(),
            free: Vec::new(),
            magazines: Vec::new(),
            writing: HashSet::new(),
            writing_on_gpus: HashSet::new(),
            owed: Vec::new(),
            resuming: false,
            broken: false,
            pushed: false,
        }
    }

    pub fn is_connected(&self) -> bool {
        self.requests.is_some()
    }

    /// Begins a call. `slot_bytes`: of the slots that its answer may bring.
    pub fn submit(&mut self, slot_bytes: u32, request: impl FnOnce(u64) -> Request) -> Result<Token, Busy> {
        self.submit_on(None, slot_bytes, request)
    }

    /// The same, of slots on a GPU if there is one.
    pub fn submit_on(
        &mut self,
        gpu: Option<GpuId>,
        slot_bytes: u32,
        request: impl FnOnce(u64) -> Request,
    ) -> Result<Token, Busy> {
        if !self.is_connected() {
            return Err(Busy::Gone);
        }
        if !self.pay() {
            return Err(Busy::Full);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.calls.len() == CALLS_MAX => return Err(Busy::Full),
            None => {
                self.calls.push(Call::default());
                self.calls.len() as u32 - 1
            }
        };
        let call = &mut self.calls[index as usize];
        call.round = call.round.wrapping_add(1);
        // Plus one: token 0 is nobody's.
        let token = u64::from(call.round) << 32 | u64::from(index + 1);
        (call.state, call.slot_bytes, call.gpu) = (State::Waiting, slot_bytes, gpu);
        if self.push(&request(token)) {
            return Ok(Token(token));
        }
        self.calls[index as usize].state = State::Free;
        self.free.push(index);
        Err(Busy::Full)
    }

    /// Sends what needs no answer, now or before the next frame.
    pub fn post(&mut self, request: Request) {
        if self.is_connected() && !(self.pay() && self.push(&request)) {
            self.owed.push(request);
        }
    }

    /// The answer of a call, once.
    pub fn take(&mut self, token: Token) -> Option<Answer> {
        let (index, call) = self.call(token.0)?;
        if !matches!(call.state, State::Answered(_)) {
            return None;
        }
        let State::Answered(answer) = std::mem::take(&mut call.state) else { return None };
        self.free.push(index);
        Some(answer)
    }

    /// Nobody will take this answer: what it brings is given back.
    pub fn abandon(&mut self, token: Token) {
        let Some((_, call)) = self.call(token.0) else { return };
        match call.state {
            State::Waiting => call.state = State::Abandoned,
            State::Answered(_) => {
                let gpu = call.gpu;
                if let Some(answer) = self.take(token) {
                    self.return_unwanted(token.0, gpu, &answer);
                }
            }
            State::Free | State::Abandoned => {}
        }
    }

    /// Takes in one completion.
    pub fn dispatch(&mut self, completion: Completion) {
        let (token, answer) = match completion {
            Completion::Committed { token, results } => (token, Answer::Committed(results)),
            Completion::Granted { token, pool, slot_bytes, slots } => {
                let count = slots.len();
                self.magazine(pool, slot_bytes).slots.extend(slots);
                (token, Answer::Granted(count))
            }
            Completion::Reserved { token, results } => {
                let slots = results.iter().filter_map(|result| match result {
                    ReserveResult::Slot(slot) => Some(*slot),
                    _ => None,
                });
                match self.gpu_of(token) {
                    Some(gpu) => self.writing_on_gpus.extend(slots.map(|slot| (gpu, slot))),
                    None => self.writing.extend(slots),
                }
                (token, Answer::Reserved(results))
            }
            Completion::Got { token, hit } => (token, Answer::Got { hit }),
            Completion::Removed { token, blocks } => (token, Answer::Removed { blocks }),
            Completion::Refused { token, reason } => (token, Answer::Refused(reason)),
        };
        let gpu = self.gpu_of(token);
        match self.call(token) {
            Some((_, call)) if matches!(call.state, State::Waiting) => call.state = State::Answered(answer),
            Some((index, call)) if matches!(call.state, State::Abandoned) => {
                call.state = State::Free;
                self.free.push(index);
                self.return_unwanted(token, gpu, &answer);
            }
            _ => self.return_unwanted(token, gpu, &answer),
        }
    }

    fn gpu_of(&mut self, token: u64) -> Option<GpuId> {
        self.call(token).and_then(|(_, call)| call.gpu)
    }

    /// Up to `count` slots out of the magazine, to be written now.
    pub fn take_slots(&mut self, pool: PoolId, slot_bytes: u32, count: usize, slots: &mut Vec<SlotId>) -> usize {
        if !self.is_connected() {
            return 0;
        }
        let count = count.min(WRITING_MAX.saturating_sub(self.writing.len()));
        let magazine = self.magazine(pool, slot_bytes);
        let count = count.min(magazine.slots.len());
        let taken = magazine.slots.split_off(magazine.slots.len() - count);
        self.writing.extend(taken.iter().copied());
        slots.extend(taken);
        count
    }

    /// Slots that wait in the magazine.
    pub fn slots_ready(&self, pool: PoolId, slot_bytes: u32) -> usize {
        let magazine = self.magazines.iter().find(|m| m.pool == pool && m.slot_bytes == slot_bytes);
        magazine.map_or(0, |magazine| magazine.slots.len())
    }

    /// These slots are filled, and in a commit that was posted.
    pub fn written(&mut self, slots: impl IntoIterator<Item = SlotId>) {
        for slot in slots {
            self.writing.remove(&slot);
        }
    }

    /// Nobody writes these slots any more, and they hold nothing.
    pub fn give_back(&mut self, slots: &[SlotId]) {
        let ours: Vec<SlotId> = slots.iter().copied().filter(|slot| self.writing.remove(slot)).collect();
        if ours.is_empty() {
            return;
        }
        if self.resuming {
            self.owed.push(Request::Abort { slots: ours });
        } else {
            // Without a connection: a later `Resume` does not name them, and so they are given back.
            self.post(Request::Abort { slots: ours });
        }
    }

    /// The same of slots on a GPU: filled, and in a commit that was posted; or given back.
    #[cfg(feature = "cuda")]
    pub fn written_on_gpu(&mut self, gpu: GpuId, slots: impl IntoIterator<Item = SlotId>) {
        for slot in slots {
            self.writing_on_gpus.remove(&(gpu, slot));
        }
    }

    pub fn give_back_on_gpu(&mut self, gpu: GpuId, slots: &[SlotId]) {
        let ours = slots.iter().copied().filter(|slot| self.writing_on_gpus.remove(&(gpu, *slot)));
        let slots: Vec<SlotId> = ours.collect();
        if slots.is_empty() {
            return;
        }
        let abort = Request::AbortOnGpu { gpu, slots };
        if self.resuming { self.owed.push(abort) } else { self.post(abort) }
    }

    /// The connection ended: no call will be answered, no magazine slot is ours.
    pub fn lost(&mut self) {
        self.requests = None;
        self.magazines.clear();
        self.owed.clear();
        self.resuming = false;
        for (index, call) in self.calls.iter_mut().enumerate() {
            match call.state {
                State::Waiting => call.state = State::Answered(Answer::Refused(Refusal::Gone)),
                State::Abandoned => {
                    call.state = State::Free;
                    self.free.push(index as u32);
                }
                State::Free | State::Answered(_) => {}
            }
        }
    }

    /// The slots that a `Resume` has to name, those on GPUs apart; `None` if there are too many, so that the client must begin
    /// anew.
    pub fn resume(&mut self) -> Option<(Vec<SlotId>, Vec<OnGpu>)> {
        // What was given back before needs no word: it is not in the list.
        self.owed.clear();
        self.resuming = self.writing.len() <= WRITING_MAX && self.writing_on_gpus.len() <= WRITING_ON_GPUS_MAX;
        let all = || (self.writing.iter().copied().collect(), self.writing_on_gpus.iter().copied().collect());
        self.resuming.then(all)
    }

    pub fn resumed(&mut self, requests: Requests) {
        self.requests = Some(requests);
        self.resuming = false;
        self.broken = false;
        self.pay();
    }

    fn call(&mut self, token: u64) -> Option<(u32, &mut Call)> {
        let index = (token as u32).checked_sub(1)?;
        let call = self.calls.get_mut(index as usize)?;
        (u64::from(call.round) == token >> 32).then_some((index, call))
    }

    fn magazine(&mut self, pool: PoolId, slot_bytes: u32) -> &mut Magazine {
        let known = self.magazines.iter().position(|m| m.pool == pool && m.slot_bytes == slot_bytes);
        let at = known.unwrap_or_else(|| {
            self.magazines.push(Magazine { pool, slot_bytes, slots: Vec::new() });
            self.magazines.len() - 1
        });
        &mut self.magazines[at]
    }

    /// Gives back the magazine of a pool.
    pub fn recalled(&mut self, pool: PoolId) {
        for at in 0..self.magazines.len() {
            if self.magazines[at].pool == pool && !self.magazines[at].slots.is_empty() {
                let slots = std::mem::take(&mut self.magazines[at].slots);
                self.post(Request::Abort { slots });
            }
        }
    }

    /// Granted slots are in the magazine already, and welcome there.
    fn return_unwanted(&mut self, token: u64, gpu: Option<GpuId>, answer: &Answer) {
        match answer {
            Answer::Reserved(results) => {
                let slots: Vec<SlotId> = results
                    .iter()
                    .filter_map(|result| match result {
                        ReserveResult::Slot(slot) => Some(*slot),
                        _ => None,
                    })
                    .collect();
                match gpu {
                    Some(gpu) => self.give_back_on_gpu(gpu, &slots),
                    None => self.give_back(&slots),
                }
            }
            Answer::Got { .. } => self.post(Request::Release { token }),
            Answer::Committed(_) | Answer::Granted(_) | Answer::Removed { .. } | Answer::Refused(_) => {}
        }
    }

    /// Pushes what is owed; false if the ring is still full.
    fn pay(&mut self) -> bool {
        while let Some(request) = self.owed.pop() {
            if !self.push(&request) {
                self.owed.push(request);
                return false;
            }
        }
        true
    }

    fn push(&mut self, request: &Request) -> bool {
        let Some(requests) = &mut self.requests else { return false };
        match requests.push(request) {
            Ok(pushed) => {
                self.pushed |= pushed;
                pushed
            }
            Err(fault) => {
                tracing::error!(%fault, "the request ring was overwritten: this process has a wild write");
                self.broken = true;
                false
            }
        }
    }
}

impl Token {
    /// The number in the frame.
    pub fn number(self) -> u64 {
        self.0
    }
}
