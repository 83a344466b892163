//! All state of the driver, behind one lock: devices, contexts, streams, events, memory.
//!
//! Bytes are copied without the lock. `TURN` is told of everything that somebody may be waiting for.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cudarc::driver::sys::CUresult;

use crate::{
    capture::{self, Capture},
    clock::{Clock, HOST},
    event::Event,
    faults::Faults,
    history::{Access, Bytes, History, Key},
    memory::Memory,
    misuse::{self, Kind},
    options::{Loss, Options},
    stream::Stream,
};

pub type Outcome<T = ()> = Result<T, CUresult>;

#[derive(Debug)]
pub struct Device {
    pub bytes: u64,
    pub faults: Faults,
    pub context: Option<u64>,
    pub retained: u32,
    pub calls: u64,
    pub lost: bool,
}

#[derive(Debug)]
pub struct Context {
    pub device: usize,
    /// What every call answers from now on.
    pub sticky: Option<CUresult>,
    /// The stream that is called 0.
    pub legacy: Option<u64>,
    /// Contexts whose memory it may reach.
    pub peers: BTreeSet<u64>,
}

#[derive(Debug)]
pub struct World {
    pub options: Options,
    pub initialised: bool,
    pub host: Clock,
    pub devices: Vec<Device>,
    pub contexts: BTreeMap<u64, Context>,
    pub streams: BTreeMap<u64, Stream>,
    pub events: BTreeMap<u64, Event>,
    pub memory: Memory,
    pub history: History,
    /// What somebody captures now.
    pub capture: Option<Capture>,
    /// Who wrote the words that streams wait for.
    pub written: Written,
    last_handle: u64,
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::new(Options::of_environment())));
static TURN: Condvar = Condvar::new();

/// The world, held.
pub type Held = MutexGuard<'static, World>;

thread_local! {
    /// Contexts of this thread, the current one last.
    pub static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The lock, whatever was called before.
pub fn lock() -> Held {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something happened that somebody may be waiting for.
pub fn tell() {
    TURN.notify_all();
}

/// Lets others run until something happens.
pub fn wait(held: Held) -> Held {
    TURN.wait(held).unwrap_or_else(PoisonError::into_inner)
}

/// The same for what other processes do, which nobody tells of.
pub fn wait_a_little(held: Held) -> Held {
    const LOOK: Duration = Duration::from_micros(200);
    TURN.wait_timeout(held, LOOK).unwrap_or_else(PoisonError::into_inner).0
}

/// Returns when the device answers; others do meanwhile.
pub fn answering(mut held: Held, device: usize) -> Held {
    const LOOK: Duration = Duration::from_millis(5);
    while held.options.hangs.iter().any(|(index, path)| *index == device && path.exists()) {
        held = TURN.wait_timeout(held, LOOK).unwrap_or_else(PoisonError::into_inner).0;
    }
    held
}

impl World {
    fn new(options: Options) -> Self {
        let device = |(index, bytes): (usize, &u64)| {
            let faults = Faults::new(options.seed, index, &options.chances);
            Device { bytes: *bytes, faults, context: None, retained: 0, calls: 0, lost: false }
        };
        Self {
            devices: options.device_bytes.iter().enumerate().map(device).collect(),
            options,
            initialised: false,
            host: Clock::default(),
            contexts: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            memory: Memory::default(),
            history: History::default(),
            capture: None,
            written: Written::default(),
            last_handle: 0x5000,
        }
    }

    /// A number that was never given out before; it stands for a context, a stream, an event or a handle.
    pub fn handle(&mut self) -> u64 {
        self.last_handle += 0x10;
        self.last_handle
    }

    /// Whether it was given out once.
    pub fn was_handle(&self, handle: u64) -> bool {
        handle > 0x5000 && handle <= self.last_handle && handle.is_multiple_of(0x10)
    }

    pub fn misuse(&self, kind: Kind, call: &str, what: impl std::fmt::Display) {
        misuse::report(&self.options, kind, call, what);
    }

    /// Looks whether the device was lost meanwhile, and counts a call to it.
    pub fn look_at_device(&mut self, device: usize) {
        self.devices[device].calls += 1;
        let calls = self.devices[device].calls;
        let lost = self.options.losses.iter().any(|(index, loss)| {
            *index == device
                && match loss {
                    Loss::After(limit) => calls > *limit,
                    Loss::While(path) => path.exists(),
                }
        });
        if lost && !self.devices[device].lost {
            self.devices[device].lost = true;
            if let Some(context) = self.devices[device].context.and_then(|id| self.contexts.get_mut(&id)) {
                context.sticky = Some(self.options.lost_as);
            }
            tell();
        }
        let comes_back = |loss: &Loss| matches!(loss, Loss::While(_));
        if !lost && self.options.losses.iter().any(|(index, loss)| *index == device && comes_back(loss)) {
            self.devices[device].lost = false;
        }
    }

    /// What a context answers to everything.
    pub fn sticky(&self, context: u64) -> Option<CUresult> {
        self.contexts.get(&context)?.sticky
    }

    /// An error of a context that does not go away.
    pub fn fall(&mut self, context: u64, error: CUresult) {
        if let Some(context) = self.contexts.get_mut(&context) {
            context.sticky.get_or_insert(error);
        }
        tell();
    }

    /// What of a context has not begun is never done.
    fn drop_queues(&mut self, context: u64) {
        self.streams.values_mut().filter(|stream| stream.context == context).for_each(Stream::drop_queue);
    }

    /// The host touches bytes itself: everything that it has not waited for is a race.
    pub fn host_touches(&mut self, bytes: Bytes, writes: bool, call: &'static str) -> bool {
        let act = self.host.tick(HOST);
        let clock = self.host.clone();
        let found = self.history.touch(Access { bytes, writes, actor: HOST, act, call }, &clock);
        if let Some(other) = &found {
            let what = format!(
                "{:?} was touched by {} on stream {}, and nobody waited for it",
                bytes, other.call, other.actor
            );
            self.misuse(Kind::Unsynchronised, call, what);
        }
        found.is_none()
    }

    /// A copy that was asked for and has not ended, and touches these addresses.
    pub fn pending(&self, at: u64, bytes: u64) -> Option<&'static str> {
        self.streams.values().find_map(|stream| stream.uses(at, bytes))
    }

    fn runs(&self, at: u64, bytes: u64) -> bool {
        self.streams.values().any(|stream| stream.runs(at, bytes))
    }

    /// Forgets accesses that nobody can race with any more.
    pub fn tidy(&mut self) {
        let host = self.host.clone();
        if self.streams.values().all(Stream::is_idle) {
            self.history.forget(&host);
        } else {
            self.history.bound(&host);
        }
    }
}

/// `at..at + bytes` is about to be freed, unmapped or unregistered: nothing may use it, and who used it must have been waited
/// for. Returns when nothing touches it any more.
pub fn give_up(mut held: Held, at: u64, bytes: u64, touched: Bytes, call: &'static str) -> Held {
    if let Some(user) = held.pending(at, bytes) {
        held.misuse(Kind::InUse, call, format!("{at:#x} is used by a {user} that has not ended"));
        while held.runs(at, bytes) {
            held = wait(held);
        }
        return held;
    }
    held.host_touches(touched, true, call);
    held
}

/// The state, for a call that needs no context.
pub fn enter() -> Outcome<Held> {
    let held = lock();
    if held.initialised { Ok(held) } else { Err(CUresult::CUDA_ERROR_NOT_INITIALIZED) }
}

/// The state and the current context, which works.
pub fn enter_context(call: &'static str) -> Outcome<(Held, u64)> {
    let mut held = enter()?;
    let current = CURRENT.with_borrow(|stack| stack.last().copied().unwrap_or(0));
    if current == 0 {
        held.misuse(Kind::WrongContext, call, "no context is current in this thread");
        return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
    capture::permits(&mut held, call)?;
    enter_of(held, current, call).map(|held| (held, current))
}

/// The same for a context that is given.
pub fn enter_of(mut held: Held, context: u64, call: &'static str) -> Outcome<Held> {
    let Some(device) = held.contexts.get(&context).map(|context| context.device) else {
        held.misuse(Kind::WrongContext, call, format!("context {context:#x} is gone"));
        return Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
    };
    held = answering(held, device);
    held.look_at_device(device);
    unless_fallen(held, context)
}

/// The error of a context that has failed, when nothing of it runs any more.
pub fn unless_fallen(mut held: Held, context: u64) -> Outcome<Held> {
    match held.sticky(context) {
        None => Ok(held),
        Some(error) => {
            // Its streams' threads would do so too, when they have a processor.
            held.drop_queues(context);
            drop(quiet(held, context));
            Err(error)
        }
    }
}

/// Returns when nothing of a context runs: what has failed moves no bytes after it has said so, and who heard it knows that.
pub fn quiet(mut held: Held, context: u64) -> Held {
    while held.streams.values().any(|stream| stream.context == context && stream.is_running()) {
        held = wait(held);
    }
    let World { host, streams, .. } = &mut *held;
    for stream in streams.values().filter(|stream| stream.context == context) {
        host.join(&stream.clock);
    }
    held
}

/// Ends a context with all that belongs to it. What was left is a leak, unless the context had failed.
pub fn end_context(mut held: Held, context: u64, counts_leaks: bool, call: &'static str) -> Held {
    let fallen = held.sticky(context).is_some();
    let Some(device) = held.contexts.get(&context).map(|context| context.device) else { return held };
    held.drop_queues(context);
    held = quiet(held, context);
    let allocated = |mapped: &crate::memory::Mapped| mapped.context == context;
    let mapped = |mapped: &crate::memory::Mapped| mapped.context == 0 && mapped.object.device == device;
    if counts_leaks && !fallen {
        let memory = &held.memory;
        let left = memory.mapped.values().filter(|m| allocated(m) || mapped(m)).count()
            + memory.handles.values().filter(|handle| handle.object.device == device).count()
            + memory.hosts.values().filter(|host| host.context == context).count();
        if left > 0 {
            held.misuse(
                Kind::Leak,
                call,
                format!("{left} allocations, mappings, handles or registrations of device {device}"),
            );
        }
    }
    let gone: Vec<_> = held.memory.mapped.iter().filter(|(_, m)| allocated(m)).map(|(at, m)| (*at, m.bytes)).collect();
    for (at, bytes) in gone {
        held.memory.mapped.remove(&at);
        held.memory.bury(at, bytes);
    }
    if fallen {
        // What failed cannot give back what it had.
        held.memory.handles.retain(|_, handle| handle.object.device != device);
        let gone: Vec<_> = held.memory.mapped.iter().filter(|(_, m)| mapped(m)).map(|(at, m)| (*at, m.bytes)).collect();
        for (at, bytes) in gone {
            held.memory.mapped.remove(&at);
            held.memory.bury(at, bytes);
        }
    }
    // What it could reach of others it reaches no more.
    for other in held.memory.mapped.values_mut().filter(|mapped| mapped.object.device != device) {
        other.read.remove(&device);
        other.write.remove(&device);
    }
    held.memory.hosts.retain(|_, host| host.context != context);
    held.events.retain(|_, event| event.context != context);
    for stream in held.streams.values_mut().filter(|stream| stream.context == context) {
        stream.close();
    }
    held.contexts.remove(&context);
    for other in held.contexts.values_mut() {
        other.peers.remove(&context);
    }
    held.devices[device].context = None;
    held.devices[device].retained = 0;
    tell();
    held
}

/// What was known to the stream that last wrote a word.
#[derive(Debug, Default)]
pub struct Written(BTreeMap<(Key, u64), Clock>);

impl Written {
    pub fn insert(&mut self, key: Key, start: u64, clock: Clock) {
        self.0.insert((key, start), clock);
    }

    pub fn get(&self, key: Key, start: u64) -> Option<Clock> {
        self.0.get(&(key, start)).cloned()
    }
}

/// Shared between who records and who waits.
pub type Mark = Arc<crate::event::Reached>;
