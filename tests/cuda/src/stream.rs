//! Streams: a thread with a queue each. What is asked for runs when the stream comes to it, in order, and late if so asked.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    ffi::c_void,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Instant,
};

use cudarc::driver::sys::{CUhostFn, CUresult};
use fastrand::Rng;

use crate::{
    clock::{Actor, Clock},
    event::{Point, Shared},
    history::Access,
    memory::Spot,
    misuse::Kind,
    options::Fault,
    world::{self, Held, Mark, Outcome, World},
};

/// Which memory an address is said to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Device,
    Host,
}

#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub side: Side,
    pub at: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub to: Place,
    pub from: Place,
    pub bytes: u64,
    /// Host memory need not be registered: its bytes are waited for in the call.
    pub pageable: bool,
}

/// How a word of memory is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    AtLeast(u32),
    Equal(u32),
    And(u32),
    Nor(u32),
}

impl Until {
    fn holds(self, word: u32) -> bool {
        match self {
            // As CUDA has it: cyclic.
            Self::AtLeast(value) => word.wrapping_sub(value) as i32 >= 0,
            Self::Equal(value) => word == value,
            Self::And(value) => word & value != 0,
            Self::Nor(value) => !(word | value) != 0,
        }
    }
}

pub struct HostCall {
    pub function: CUhostFn,
    pub data: *mut c_void,
}

// SAFETY: the caller of `cuLaunchHostFunc` says that the function may run in another thread with that data.
unsafe impl Send for HostCall {}

pub enum Work {
    /// Of a batch there are several pieces, in no order among themselves.
    Copy(Vec<Piece>),
    Fill {
        to: Place,
        bytes: u64,
        value: u8,
    },
    /// With the number of the record where other processes know the event.
    Record(Mark, Option<(Arc<Shared>, u64)>),
    Wait(Mark),
    WaitShared(Arc<Shared>, u64),
    WriteWord {
        at: u64,
        value: u32,
    },
    WaitWord {
        at: u64,
        until: Until,
    },
    Call(HostCall),
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Copy(_) => "Copy",
            Self::Fill { .. } => "Fill",
            Self::Record(..) => "Record",
            Self::Wait(_) | Self::WaitShared(..) => "Wait",
            Self::WriteWord { .. } => "WriteWord",
            Self::WaitWord { .. } => "WaitWord",
            Self::Call(_) => "Call",
        })
    }
}

impl Work {
    /// Addresses that it touches.
    fn ranges(&self) -> Vec<(u64, u64)> {
        match self {
            Self::Copy(pieces) => pieces.iter().flat_map(|p| [(p.to.at, p.bytes), (p.from.at, p.bytes)]).collect(),
            Self::Fill { to, bytes, .. } => vec![(to.at, *bytes)],
            Self::WriteWord { at, .. } | Self::WaitWord { at, .. } => vec![(*at, 4)],
            _ => Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Queued {
    work: Work,
    call: &'static str,
    /// What the host knew when it asked.
    known: Clock,
}

#[derive(Debug)]
pub struct Stream {
    pub context: u64,
    pub blocking: bool,
    pub priority: i32,
    pub actor: Actor,
    pub clock: Clock,
    queue: VecDeque<Queued>,
    /// What runs: its addresses and its name.
    running: Option<(Vec<(u64, u64)>, &'static str)>,
    closed: bool,
    rng: Rng,
}

impl Stream {
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_none()
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Destroyed, or going to be when its work is done.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn close(&mut self) {
        self.closed = true;
        world::tell();
    }

    /// Work that has not begun is never done. Who waits for its events is let go.
    pub fn drop_queue(&mut self) {
        for queued in std::mem::take(&mut self.queue) {
            abandon(&queued.work);
        }
        world::tell();
    }

    pub fn uses(&self, at: u64, bytes: u64) -> Option<&'static str> {
        let within = |ranges: &[(u64, u64)]| ranges.iter().any(|(base, len)| *base < at + bytes && at < base + len);
        let running = self.running.as_ref().filter(|(ranges, _)| within(ranges)).map(|(_, call)| *call);
        running.or_else(|| self.queue.iter().find(|queued| within(&queued.work.ranges())).map(|queued| queued.call))
    }

    pub fn runs(&self, at: u64, bytes: u64) -> bool {
        let Some((ranges, _)) = &self.running else { return false };
        ranges.iter().any(|(base, len)| *base < at + bytes && at < base + len)
    }
}

/// Who waits for work that will not be done must not wait for ever.
fn abandon(work: &Work) {
    if let Work::Record(mark, shared) = work {
        let _ = mark.set(Point { clock: Clock::default(), at: Instant::now() });
        if let Some((shared, number)) = shared {
            shared.reach(*number);
        }
    }
}

/// A new stream of a context, with its thread.
pub fn create(held: &mut World, context: u64, blocking: bool, priority: i32) -> Outcome<u64> {
    let id = held.handle();
    let actor = (id / 0x10) as Actor;
    let rng = Rng::with_seed(held.options.seed ^ id.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let clock = held.host.clone();
    let (queue, running, closed) = (VecDeque::new(), None, false);
    held.streams.insert(id, Stream { context, blocking, priority, actor, clock, queue, running, closed, rng });
    let thread = thread::Builder::new().name(format!("cuda-{id:x}")).spawn(move || run(id));
    if thread.is_err() {
        held.streams.remove(&id);
        return Err(CUresult::CUDA_ERROR_OPERATING_SYSTEM);
    }
    Ok(id)
}

/// Puts work at the end of a stream.
pub fn push(held: &mut World, id: u64, work: Work, call: &'static str) {
    order_with_legacy(held, id);
    push_plain(held, id, work, call);
}

fn push_plain(held: &mut World, id: u64, work: Work, call: &'static str) {
    let known = held.host.clone();
    if let Some(stream) = held.streams.get_mut(&id) {
        stream.queue.push_back(Queued { work, call, known });
    }
    world::tell();
}

/// The legacy stream comes after all that blocking streams of its context have, and they after it.
fn order_with_legacy(held: &mut World, id: u64) {
    let Some(stream) = held.streams.get(&id).filter(|stream| stream.blocking) else { return };
    let context = stream.context;
    let Some(legacy) = held.contexts.get(&context).and_then(|context| context.legacy) else { return };
    let before: Vec<u64> = if id == legacy {
        let others = held.streams.iter().filter(|(other, s)| **other != id && s.context == context && s.blocking);
        others.map(|(other, _)| *other).collect()
    } else {
        vec![legacy]
    };
    for other in before {
        let mark = Mark::default();
        push_plain(held, other, Work::Record(mark.clone(), None), "the legacy stream");
        push_plain(held, id, Work::Wait(mark), "the legacy stream");
    }
}

/// A stream's thread: until it is destroyed and has nothing left.
fn run(id: u64) {
    let mut held = world::lock();
    loop {
        let Some(stream) = held.streams.get(&id) else { return };
        let (context, closed) = (stream.context, stream.closed);
        let Some(next) = stream.queue.front() else {
            if closed {
                held.streams.remove(&id);
                return;
            }
            held.tidy();
            held = world::wait(held);
            continue;
        };
        let fallen = held.sticky(context).is_some() || !held.contexts.contains_key(&context);
        let waits = !fallen
            && match &next.work {
                Work::Wait(mark) => mark.get().is_none(),
                Work::WaitShared(shared, number) => !shared.has_reached(*number),
                _ => false,
            };
        if waits {
            held = match &next.work {
                Work::Wait(_) => world::wait(held),
                _ => world::wait_a_little(held),
            };
            continue;
        }
        let stream = held.streams.get_mut(&id).expect("seen above");
        let queued = stream.queue.pop_front().expect("seen above");
        if fallen {
            abandon(&queued.work);
            world::tell();
            continue;
        }
        stream.clock.join(&queued.known);
        stream.running = Some((queued.work.ranges(), queued.call));
        held = work(held, id, queued);
        if let Some(stream) = held.streams.get_mut(&id) {
            stream.running = None;
        }
        world::tell();
    }
}

fn work(mut held: Held, id: u64, queued: Queued) -> Held {
    let call = queued.call;
    match queued.work {
        Work::Copy(mut pieces) => {
            if let Some(stream) = held.streams.get_mut(&id) {
                stream.rng.shuffle(&mut pieces);
            }
            held = pause(held, id);
            for piece in pieces {
                held = copy(held, id, piece, call);
            }
        }
        Work::Fill { to, bytes, value } => {
            held = pause(held, id);
            if let Some(spot) = touch(&mut held, id, to, bytes, true, true, call) {
                drop(held);
                // SAFETY: `spot` is memory of the device that its object keeps mapped, or registered host memory that is
                // not given up before this ends.
                unsafe { std::ptr::write_bytes(spot.at, value, bytes as usize) };
                held = world::lock();
            }
        }
        Work::Record(mark, shared) => {
            let clock = held.streams.get(&id).map(|stream| stream.clock.clone()).unwrap_or_default();
            let _ = mark.set(Point { clock, at: Instant::now() });
            if let Some((shared, number)) = shared {
                shared.reach(number);
            }
        }
        Work::Wait(mark) => {
            if let (Some(stream), Some(point)) = (held.streams.get_mut(&id), mark.get()) {
                stream.clock.join(&point.clock);
            }
        }
        Work::WaitShared(..) => {}
        Work::WriteWord { at, value } => {
            if let Some(word) = word(&mut held, id, at, call) {
                let clock = held.streams.get(&id).map(|stream| stream.clock.clone()).unwrap_or_default();
                held.written.insert(word.bytes.key, word.bytes.start, clock);
                // SAFETY: four aligned bytes of memory that `word` keeps; all access to them here is atomic.
                unsafe { AtomicU32::from_ptr(word.at.cast()) }.store(value, Ordering::Release);
            }
        }
        Work::WaitWord { at, until } => held = wait_for_word(held, id, at, until, call),
        Work::Call(host) => {
            drop(held);
            if let Some(function) = host.function {
                // SAFETY: the caller of `cuLaunchHostFunc` vouches for both.
                unsafe { function(host.data) };
            }
            held = world::lock();
        }
    }
    held
}

/// Latency, by the stream's seed.
fn pause(mut held: Held, id: u64) -> Held {
    let options = held.options.clone();
    let latency = match held.streams.get_mut(&id) {
        Some(stream) => options.latency(|range| stream.rng.u64(range)),
        None => return held,
    };
    if latency.is_zero() {
        return held;
    }
    drop(held);
    thread::sleep(latency);
    world::lock()
}

fn copy(mut held: Held, id: u64, piece: Piece, call: &'static str) -> Held {
    let Some(context) = held.streams.get(&id).map(|stream| stream.context) else { return held };
    if held.sticky(context).is_some() {
        return held;
    }
    let Some(device) = held.contexts.get(&context).map(|context| context.device) else { return held };
    if held.devices[device].faults.strike(Fault::Sticky) {
        held.fall(context, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        return held;
    }
    let Some(from) = touch(&mut held, id, piece.from, piece.bytes, false, piece.pageable, call) else { return held };
    let Some(to) = touch(&mut held, id, piece.to, piece.bytes, true, piece.pageable, call) else { return held };
    let lost = [&from, &to].into_iter().filter_map(|spot| spot.object.as_ref()).any(|o| held.devices[o.device].lost);
    if lost {
        // A device that is gone moves nothing; that the copy ran says nothing about its bytes.
        return held;
    }
    let split = held.streams.get_mut(&id).map_or(0, |stream| stream.rng.u64(..=piece.bytes)) as usize;
    drop(held);
    // SAFETY: both are memory of a device that its object keeps mapped, or registered host memory that is not given up before
    // this ends; they may overlap, as `copy` allows. In two parts, so that who reads too early sees one without the other.
    unsafe {
        std::ptr::copy(from.at, to.at, split);
        std::ptr::copy(from.at.add(split), to.at.add(split), piece.bytes as usize - split);
    }
    world::lock()
}

/// Resolves an address as the stream comes to it, and notes the access. `None` ends the context: the address is gone.
fn touch(
    held: &mut World,
    id: u64,
    place: Place,
    bytes: u64,
    writes: bool,
    pageable: bool,
    call: &'static str,
) -> Option<Spot> {
    let context = held.streams.get(&id)?.context;
    let device = held.contexts.get(&context)?.device;
    let found = match place.side {
        Side::Device => held.memory.device_spot(place.at, bytes, device, writes),
        Side::Host => held.memory.host_spot(place.at, bytes, context, pageable || held.options.pageable),
    };
    match found {
        Ok(spot) => {
            let stream = held.streams.get_mut(&id)?;
            let (actor, act) = (stream.actor, stream.clock.tick(stream.actor));
            let clock = stream.clock.clone();
            let access = Access { bytes: spot.bytes, writes, actor, act, call };
            if let Some(other) = held.history.touch(access, &clock) {
                let what = format!(
                    "stream {actor} {} {:?}, which {} on stream {} {} (0 is the host), and nothing orders the two",
                    if writes { "writes" } else { "reads" },
                    spot.bytes,
                    other.call,
                    other.actor,
                    if other.writes { "wrote" } else { "read" },
                );
                held.misuse(Kind::Unsynchronised, call, what);
            }
            Some(spot)
        }
        Err((kind, what)) => {
            held.misuse(kind, call, format!("as the stream came to it: {what}"));
            held.fall(context, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            None
        }
    }
}

/// A word that streams write and wait for: no race, it is what orders them.
fn word(held: &mut World, id: u64, at: u64, call: &'static str) -> Option<Spot> {
    let context = held.streams.get(&id)?.context;
    let device = held.contexts.get(&context)?.device;
    let memory = &held.memory;
    let found = if memory.mapping(at).is_some() {
        memory.device_spot(at, 4, device, true)
    } else {
        memory.host_spot(at, 4, context, false)
    };
    found
        .map_err(|(kind, what)| {
            held.misuse(kind, call, format!("as the stream came to it: {what}"));
            held.fall(context, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        })
        .ok()
}

fn wait_for_word(mut held: Held, id: u64, at: u64, until: Until, call: &'static str) -> Held {
    loop {
        let Some(context) = held.streams.get(&id).map(|stream| stream.context) else { return held };
        if held.sticky(context).is_some() {
            return held;
        }
        let Some(word) = word(&mut held, id, at, call) else { return held };
        // SAFETY: four aligned bytes of memory that `word` keeps; all access to them here is atomic.
        let value = unsafe { AtomicU32::from_ptr(word.at.cast()) }.load(Ordering::Acquire);
        if until.holds(value) {
            if let Some(clock) = held.written.get(word.bytes.key, word.bytes.start)
                && let Some(stream) = held.streams.get_mut(&id)
            {
                stream.clock.join(&clock);
            }
            return held;
        }
        held = world::wait_a_little(held);
    }
}
