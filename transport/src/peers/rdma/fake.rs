//! NICs in memory that fail by a seed, and otherwise keep what verbs promise: READs of a pair complete in order, nothing is
//! written for a pair that was destroyed. Bytes move in `step`, a chunk at a time in any order, so that whatever an owner
//! writes meanwhile is torn; what was fetched may be written much later.
//!
//! A write to memory that no fetch has at that moment panics.

mod faults;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use lapis_arena::Mapping;
use rustix::event::{EventfdFlags, eventfd};

use super::{
    memory::SCRATCH_BYTES,
    provider::{Completion, Nic, Pair, Read, Region, Use},
    said::{End, GidKind},
};

pub(super) use faults::Faults;

/// Bytes that move at once.
const CHUNK: u32 = 512;
/// READs of a pair whose bytes move at the same time.
const AT_ONCE: usize = 4;

#[derive(Clone, Default)]
pub(super) struct Fabric(Arc<Mutex<State>>);

pub(super) struct State {
    pub random: fastrand::Rng,
    pub faults: Faults,
    regions: BTreeMap<u32, Known>,
    pairs: BTreeMap<u32, Queues>,
    next: u32,
    /// Memory that fetches have: what may be written, by its first address.
    lent: BTreeMap<u64, u64>,
    /// READs whose bytes have all moved.
    pub reads: u64,
    is_walled: bool,
    /// What failed pairs have is not handed back.
    is_mute: bool,
}

impl Default for State {
    fn default() -> Self {
        let random = fastrand::Rng::with_seed(0);
        let (regions, pairs, lent) = Default::default();
        let (faults, reads, is_walled, is_mute) = Default::default();
        Self { random, faults, regions, pairs, next: 1, lent, reads, is_walled, is_mute }
    }
}

struct Known {
    domain: u32,
    address: u64,
    mapping: Mapping,
    range: Range<usize>,
    what_for: Use,
}

struct Queues {
    domain: u32,
    /// The other half may read by it.
    is_read: bool,
    there: Option<u32>,
    failed: bool,
    stuck: bool,
    posted: VecDeque<Moving>,
    completed: VecDeque<Completion>,
    armed: bool,
    bell: Arc<OwnedFd>,
}

struct Moving {
    read: Read,
    /// Chunks to be read; those that were, and wait to be written.
    left: Vec<u32>,
    fetched: Vec<(u32, Vec<u8>)>,
    broken: Option<&'static str>,
}

impl Queues {
    fn tell(&mut self, completion: Completion) {
        self.completed.push_back(completion);
        if std::mem::take(&mut self.armed) {
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }
}

impl Fabric {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        let fabric = Self::default();
        let mut state = fabric.lock();
        (state.random, state.faults) = (fastrand::Rng::with_seed(seed), faults);
        drop(state);
        fabric
    }

    pub(super) fn nic(&self, name: &str, kind: GidKind) -> Arc<FakeNic> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("a descriptor"));
        Arc::new(FakeNic {
            fabric: self.clone(),
            name: name.into(),
            kind,
            bell,
            region_bytes_max: u64::MAX,
            // As the last figure of its name says: it counts only where the memory has a node too.
            node: name.chars().last().and_then(|last| last.to_digit(10)),
            reads: Arc::default(),
            taken: AtomicU64::new(0),
            domains: Mutex::default(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lend(&self, address: u64, bytes: u64) {
        assert_eq!(self.lock().lent.insert(address, address + bytes), None);
    }

    /// From now on a write there is a mistake.
    pub(super) fn unlend(&self, address: u64) {
        assert!(self.lock().lent.remove(&address).is_some());
    }

    pub(super) fn pairs(&self) -> usize {
        self.lock().pairs.len()
    }

    /// Those that are connected.
    pub(super) fn pairs_in_use(&self) -> usize {
        self.lock().pairs.values().filter(|pair| pair.there.is_some() && !pair.failed).count()
    }

    pub(super) fn regions(&self) -> usize {
        self.lock().regions.len()
    }

    /// How many of those that are connected the other half may read by.
    pub(super) fn pairs_read(&self) -> usize {
        self.lock().pairs.values().filter(|pair| pair.there.is_some() && pair.is_read).count()
    }

    /// Some pair that reads fails.
    pub(super) fn fail_one(&self) {
        let mut state = self.lock();
        if let Some(pair) = state.pairs.values_mut().find(|pair| !pair.posted.is_empty()) {
            pair.posted.front_mut().expect("seen").broken = Some("by the test");
        }
    }

    /// From now on no pair hears another, though each is connected as before: a firewall.
    pub(super) fn wall(&self, stands: bool) {
        self.lock().is_walled = stands;
    }

    /// All pairs that there are hear nothing any more, and are told nothing.
    pub(super) fn cut(&self) {
        self.lock().pairs.values_mut().for_each(|pair| pair.stuck = true);
    }

    /// From now on NICs keep what failed pairs have, or hand it back.
    pub(super) fn mute(&self, is_mute: bool) {
        self.lock().is_mute = is_mute;
    }

    /// Moves a chunk of some READ, or ends one. False: nothing moves.
    pub(super) fn step(&self) -> bool {
        self.lock().step(|_| true)
    }

    /// Failed pairs hand back what they have.
    pub(super) fn flush(&self) {
        while self.lock().step(|pair| pair.failed) {}
    }
}

impl State {
    fn is_hit(&mut self, in_a_million: u32) -> bool {
        in_a_million > 0 && self.random.u32(..1_000_000) < in_a_million
    }

    fn step(&mut self, of: impl Fn(&Queues) -> bool) -> bool {
        let is_still = |pair: &Queues| if pair.failed { self.is_mute } else { pair.stuck || self.is_walled };
        let moving = |pair: &Queues| !pair.posted.is_empty() && !is_still(pair) && of(pair);
        let busy: Vec<u32> = self.pairs.iter().filter(|(_, pair)| moving(pair)).map(|(number, _)| *number).collect();
        let Some(number) = self.random.choice(&busy).copied() else { return false };
        let mut pair = self.pairs.remove(&number).expect("one of them");
        self.turn(number, &mut pair);
        self.pairs.insert(number, pair);
        true
    }

    fn turn(&mut self, number: u32, pair: &mut Queues) {
        let index = self.random.usize(..pair.posted.len().min(AT_ONCE));
        // A pair that failed may move bytes until its READs are flushed.
        if pair.failed && self.random.bool() {
            let flushed = pair.posted.pop_front().expect("a busy pair");
            return pair.tell(Completion { id: flushed.read.id, outcome: Err("flushed".into()) });
        }
        let (there, domain) = (self.there(number, pair), pair.domain);
        let moving = &mut pair.posted[index];
        if there.is_none() && moving.broken.is_none() {
            // A host that is gone: an error after some time, or nothing ever.
            pair.stuck = self.random.bool();
            moving.broken = Some("no answer");
        }
        if moving.broken.is_none() && (!moving.left.is_empty() || !moving.fetched.is_empty()) {
            moving.broken = self.move_chunk(domain, there.expect("seen above"), moving).err();
        }
        while !pair.failed {
            let Some(first) = pair.posted.front() else { return };
            let is_over = first.broken.is_some() || (first.left.is_empty() && first.fetched.is_empty());
            if !is_over {
                return;
            }
            let first = pair.posted.pop_front().expect("seen above");
            self.end(pair, first);
        }
    }

    fn end(&mut self, pair: &mut Queues, moving: Moving) {
        let id = moving.read.id;
        let broken = moving.broken.or_else(|| self.is_hit(self.faults.error).then_some("by seed"));
        if let Some(reason) = broken {
            pair.failed = true;
            return pair.tell(Completion { id, outcome: Err(reason.into()) });
        }
        self.reads += 1;
        if self.is_hit(self.faults.stuck) {
            pair.stuck = true;
        }
        if !moving.read.signalled || self.is_hit(self.faults.absent) {
            return;
        }
        pair.tell(Completion { id, outcome: Ok(()) });
        if self.is_hit(self.faults.twice) {
            pair.tell(Completion { id, outcome: Ok(()) });
        }
    }

    /// The domain of the other half, if that is connected with this one and alive.
    fn there(&self, number: u32, pair: &Queues) -> Option<u32> {
        let there = self.pairs.get(&pair.there?)?;
        (there.there == Some(number) && there.is_read && !there.failed && !there.stuck).then_some(there.domain)
    }

    fn move_chunk(&mut self, here: u32, there: u32, moving: &mut Moving) -> Result<(), &'static str> {
        let read = moving.read;
        let is_fetched = !moving.fetched.is_empty() && (moving.left.is_empty() || self.random.bool());
        let (chunk, bytes) = if is_fetched {
            moving.fetched.swap_remove(self.random.usize(..moving.fetched.len()))
        } else {
            let chunk = moving.left.swap_remove(self.random.usize(..moving.left.len()));
            let length = CHUNK.min(read.bytes - chunk);
            let (mapping, offset) = self
                .find(there, read.remote_key, true, read.there + u64::from(chunk), length)
                .ok_or("remote access")?;
            let bytes = mapping.to_vec(offset, length as usize);
            if self.is_hit(self.faults.again) {
                moving.left.push(chunk);
            }
            if self.is_hit(self.faults.delayed) {
                moving.fetched.push((chunk, bytes));
                return Ok(());
            }
            (chunk, bytes)
        };
        let address = read.here + u64::from(chunk);
        let (mapping, offset) =
            self.find(here, read.local_key, false, address, bytes.len() as u32).ok_or("local access")?;
        let lent = self.lent.range(..=address).next_back().is_some_and(|(_, end)| address + bytes.len() as u64 <= *end);
        assert!(lent, "a write to memory that no fetch has");
        mapping.copy_in(offset, &bytes);
        Ok(())
    }

    fn find(&self, domain: u32, key: u32, remote: bool, address: u64, bytes: u32) -> Option<(Mapping, usize)> {
        let known = self.regions.get(&(key / 2)).filter(|known| known.domain == domain && (key % 2 == 1) == remote)?;
        if known.what_for == if remote { Use::Scratch } else { Use::Table } {
            return None;
        }
        let inside = usize::try_from(address.checked_sub(known.address)?).ok()?;
        (inside.checked_add(bytes as usize)? <= known.range.len())
            .then(|| (known.mapping.clone(), known.range.start + inside))
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }
}

pub(super) struct FakeNic {
    fabric: Fabric,
    name: String,
    kind: GidKind,
    bell: Arc<OwnedFd>,
    pub region_bytes_max: u64,
    pub node: Option<u32>,
    /// READs that its pairs took.
    pub reads: Arc<AtomicU64>,
    /// How often its events were taken.
    pub taken: AtomicU64,
    /// Its own: those of another NIC are none here.
    domains: Mutex<Vec<u32>>,
}

impl FakeNic {
    fn has(&self, domain: u32) -> bool {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner).contains(&domain)
    }

    /// With which another host could read what begins there.
    pub(super) fn key_of(&self, address: u64) -> u32 {
        let state = self.fabric.lock();
        let found = state.regions.iter().find(|(_, known)| known.address == address);
        found.expect("known to a NIC").0 * 2 + 1
    }

    /// Its device is gone: the kernel says so whenever it is asked.
    pub(super) fn gone(self: Arc<Self>) -> Arc<Self> {
        let mut nic = Arc::into_inner(self).expect("nobody else has it yet");
        let (bell, _) = rustix::pipe::pipe().expect("a pipe");
        nic.bell = Arc::new(bell);
        Arc::new(nic)
    }

    pub(super) fn with_small_regions(self: Arc<Self>, bytes: u64) -> Arc<Self> {
        let mut nic = Arc::into_inner(self).expect("nobody else has it yet");
        nic.region_bytes_max = bytes;
        Arc::new(nic)
    }
}

pub(super) struct FakeRegion {
    fabric: Fabric,
    number: u32,
}

pub(super) struct FakePair {
    fabric: Fabric,
    reads: Arc<AtomicU64>,
    number: u32,
    kind: GidKind,
}

fn refused(fabric: &Fabric) -> io::Result<MutexGuard<'_, State>> {
    let mut state = fabric.lock();
    let refused = state.faults.refused;
    if state.is_hit(refused) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(state) }
}

impl Nic for FakeNic {
    type Domain = u32;
    type Region = FakeRegion;
    type Pair = FakePair;

    fn name(&self) -> &str {
        &self.name
    }

    fn node(&self) -> Option<u32> {
        self.node
    }

    fn kind(&self) -> GidKind {
        self.kind
    }

    fn region_bytes_max(&self) -> u64 {
        self.region_bytes_max
    }

    fn domain(&self) -> io::Result<u32> {
        let number = self.fabric.lock().number();
        self.domains.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        Ok(number)
    }

    fn register(
        &self,
        domain: &Arc<u32>,
        mapping: &Mapping,
        range: Range<usize>,
        what_for: Use,
    ) -> io::Result<FakeRegion> {
        assert!(range.len() as u64 <= self.region_bytes_max && self.has(**domain));
        let (domain, address, mapping) = (**domain, mapping.as_ptr(range.start) as u64, mapping.clone());
        let mut state = self.fabric.lock();
        let number = state.number();
        // Whatever is tried out or looked up may be written there at any time.
        if what_for == Use::Scratch {
            state.lent.insert(address, address + range.len() as u64);
        }
        state.regions.insert(number, Known { domain, address, mapping, range, what_for });
        Ok(FakeRegion { fabric: self.fabric.clone(), number })
    }

    fn pair(&self, domain: &Arc<u32>, reads_max: u32) -> io::Result<FakePair> {
        assert!(self.has(**domain));
        let mut state = refused(&self.fabric)?;
        let number = state.number();
        let queues = Queues {
            domain: **domain,
            is_read: reads_max == 0,
            there: None,
            failed: false,
            stuck: false,
            posted: VecDeque::new(),
            completed: VecDeque::new(),
            armed: false,
            bell: self.bell.clone(),
        };
        state.pairs.insert(number, queues);
        Ok(FakePair { fabric: self.fabric.clone(), reads: self.reads.clone(), number, kind: self.kind })
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.as_fd())
    }

    fn take_events(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        let mut rung = [0; 8];
        let _ = rustix::io::read(&self.bell, &mut rung);
    }
}

impl Region for FakeRegion {
    fn local_key(&self) -> u32 {
        self.number * 2
    }

    fn remote_key(&self) -> u32 {
        self.number * 2 + 1
    }
}

impl Drop for FakeRegion {
    fn drop(&mut self) {
        let mut state = self.fabric.lock();
        let known = state.regions.remove(&self.number).expect("until it is dropped");
        if known.mapping.len() as u64 == SCRATCH_BYTES {
            state.lent.remove(&known.address);
        }
    }
}

impl FakePair {
    fn queues<T>(&self, of: impl FnOnce(&mut Queues) -> T) -> T {
        of(self.fabric.lock().pairs.get_mut(&self.number).expect("until it is dropped"))
    }
}

impl Pair for FakePair {
    fn end(&self) -> End {
        End { pair: self.number, packet: 0, gid: [1; 16], kind: self.kind, lid: 0, mtu: 5, reads_max: 16 }
    }

    fn connect(&mut self, there: &End) -> io::Result<()> {
        drop(refused(&self.fabric)?);
        self.queues(|pair| pair.there = Some(there.pair));
        Ok(())
    }

    fn read(&mut self, reads: &[Read]) -> (usize, Option<io::Error>) {
        assert!(reads.last().is_none_or(|last| last.signalled), "nobody would hear of the last one");
        let mut state = self.fabric.lock();
        let (full, broken) = (state.faults.full, state.faults.broken);
        let (taken, error) = if state.is_hit(broken) {
            (state.random.usize(..=reads.len()), Some(io::Error::from_raw_os_error(libc::EIO)))
        } else if state.is_hit(full) {
            (state.random.usize(..reads.len()), Some(io::Error::from_raw_os_error(libc::ENOMEM)))
        } else {
            (reads.len(), None)
        };
        let pair = state.pairs.get_mut(&self.number).expect("until it is dropped");
        self.reads.fetch_add(taken as u64, Ordering::Relaxed);
        for read in &reads[..taken] {
            let left = (0..read.bytes).step_by(CHUNK as usize).collect();
            pair.posted.push_back(Moving { read: *read, left, fetched: Vec::new(), broken: None });
        }
        (taken, error)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.queues(|pair| done.extend(pair.completed.drain(..)));
        Ok(())
    }

    fn arm(&mut self) -> io::Result<()> {
        self.queues(|pair| pair.armed = true);
        Ok(())
    }

    fn fail(&mut self) -> io::Result<()> {
        self.queues(|pair| pair.failed = true);
        Ok(())
    }
}

impl Drop for FakePair {
    fn drop(&mut self) {
        self.fabric.lock().pairs.remove(&self.number);
    }
}
