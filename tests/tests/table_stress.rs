//! Never a wrong byte, between real processes: four of them read, by copies and by views, while one publishes,
//! unpublishes and fills slots again as fast as it can. Every block carries a pattern of its key and of the number of its
//! publish, and every word read is compared with it.
//!
//! Three negative controls leave out one step each and must show foreign bytes: a test that cannot fail proves nothing.
//! That of the daemon's fence does at every turn what a processor may do without it: left to the processor, it shows once
//! in seconds or not in minutes. That the fence forbids it is for `arena::table`'s loom tests.
//! `LAPIS_STRESS_READS=100000000 cargo test --release -p lapis-tests --test table_stress` is the long form.

use std::{
    env, fmt,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use lapis_arena::{
    Access, Found, Hazards, LineState, MappedHalves, MappedWords, Mapping, Table, TableWriter, Words, copy, hazard,
    memfd::{self, Huge},
    table,
};
use lapis_config::{Key, LineId, PoolId, SlotId, UNIT_BYTES};

const READERS: usize = 4;
const KEYS: usize = 96;
/// Fewer than keys, so that slots change hands all the time.
const SLOTS: u32 = 64;
const LINES: u32 = 256;
const POOL: PoolId = PoolId(3);
/// Entries of a reader's hazard page: short, so that the writer comes around quickly.
const PINS: usize = 8;
const PAGE_BYTES: usize = 64;
/// Bytes read through one view.
const VIEW_BYTES: usize = 8 << 10;
/// A control that has shown nothing after this has failed.
const CONTROL_TIME: Duration = Duration::from_secs(120);
/// A stress that gets nowhere.
const READ_TIME: Duration = Duration::from_secs(1200);
/// Stores before each step that a fence must order, to memory that is in no near cache: what a client or a daemon also
/// does. The step's own store waits behind them, so that a client's fence left out shows within seconds.
const SMEARS: usize = 16;
const SMEAR_BYTES: usize = 32 << 20;
const CHILD: &str = "LAPIS_STRESS_CHILD";

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    Recheck,
    ClientFence,
    /// The hazards are loaded before the lines are unpublished, as a processor may where no fence forbids it.
    DaemonFence,
}

impl Without {
    const ALL: [Self; 4] = [Self::Nothing, Self::Recheck, Self::ClientFence, Self::DaemonFence];
}

/// Words of the memory in which processes tell each other how far they are.
mod tally {
    pub const STOP: usize = 0;
    /// Then, per reader, from word `8 * (1 + reader)` on:
    pub const READS: usize = 0;
    pub const FOREIGN: usize = 1;
    pub const CAUGHT: usize = 2;
    pub const WORDS: usize = 8 * (1 + super::READERS);

    pub fn of(reader: usize, what: usize) -> usize {
        8 * (1 + reader) + what
    }
}

/// A hazard page with or without its fence.
struct Page {
    words: MappedHalves,
    fences: bool,
}

impl Words<u32> for Page {
    fn len(&self) -> usize {
        self.words.len()
    }
    fn load(&self, i: usize, order: Ordering) -> u32 {
        self.words.load(i, order)
    }
    fn store(&self, i: usize, value: u32, order: Ordering) {
        self.words.store(i, value, order);
    }
    fn fence(&self, order: Ordering) {
        if self.fences {
            self.words.fence(order);
        }
    }
}

fn page(pages: &Mapping, reader: usize, fences: bool) -> Hazards<Page> {
    Hazards::new(Page { words: MappedHalves::new(pages, reader * PAGE_BYTES, PINS), fences })
}

fn key(index: usize) -> Key {
    Key([index as u64 + 1, 0, 0, 0])
}

/// Word `i` of the block of a key, as its `publish`-th publish of all wrote it.
fn pattern(key: usize, publish: u64, i: usize) -> u64 {
    (publish << 8 | key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64
}

fn slot(index: u32, block_bytes: usize) -> SlotId {
    SlotId(index * (block_bytes as u32).div_ceil(UNIT_BYTES as u32))
}

fn arena_bytes(block_bytes: usize) -> u64 {
    slot(SLOTS, block_bytes).offset_bytes()
}

/// Memory to store into.
struct Smear(Vec<u64>);

impl Smear {
    fn new() -> Self {
        Self(vec![1; SMEAR_BYTES / 8])
    }

    fn smear(&mut self, random: &mut fastrand::Rng) {
        for _ in 0..SMEARS {
            let at = random.usize(..self.0.len());
            self.0[at] = at as u64;
        }
        std::hint::black_box(&mut self.0);
    }
}

fn words_of(mapping: &Mapping) -> MappedWords {
    MappedWords::new(mapping, 0, mapping.len() / 8)
}

fn memory(name: &str, bytes: u64) -> (OwnedFd, Mapping) {
    let (fd, _) = memfd::create(name, bytes, Huge::Never).expect("memory");
    let mapping = Mapping::shared(fd.as_fd(), bytes, Access::ReadWrite).expect("address space");
    (fd, mapping)
}

// ---- the reader's process

struct Reader {
    without: Without,
    block_bytes: usize,
    table: Table,
    arena: Mapping,
    hazards: Hazards<Page>,
    tally: MappedWords,
    reader: usize,
    random: fastrand::Rng,
    smear: Smear,
    buffer: Vec<u64>,
}

/// Not a test of its own: what the stress runs in its reader processes.
#[test]
fn the_readers_of_the_stress_run_in_processes_of_their_own() {
    let Ok(task) = env::var(CHILD) else { return };
    // A stress that is killed leaves no reader behind.
    let signal = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(signal).expect("a signal that exists");
    let numbers: Vec<u64> = task.split(',').map(|n| n.parse().expect("a number")).collect();
    let [reader, without, block_bytes, fds @ ..] = numbers.as_slice() else { panic!("{task}") };
    let map = |i: usize, access| {
        // SAFETY: the parent opened it for us and leaves it open; nobody else here knows of it.
        let fd = unsafe { BorrowedFd::borrow_raw(fds[i] as i32) };
        let bytes = memfd::size(fd).expect("an inherited descriptor");
        memfd::check(fd, bytes).expect("a sealed one");
        Mapping::shared(fd, bytes, access).expect("address space")
    };
    let (reader, without) = (*reader as usize, Without::ALL[*without as usize]);
    let mut reader = Reader {
        without,
        block_bytes: *block_bytes as usize,
        table: Table::open(words_of(&map(0, Access::ReadOnly))).expect("a table"),
        arena: map(1, Access::ReadOnly),
        hazards: page(&map(2, Access::ReadWrite), reader, without != Without::ClientFence),
        tally: words_of(&map(3, Access::ReadWrite)),
        reader,
        random: fastrand::Rng::with_seed(reader as u64),
        smear: Smear::new(),
        buffer: vec![0; *block_bytes as usize / 8],
    };
    reader.run();
}

impl Reader {
    fn run(&mut self) {
        let (mut read, mut foreign, mut caught) = (0, 0, 0);
        for round in 0u64.. {
            let copies = match self.without {
                Without::Nothing => round.is_multiple_of(2),
                Without::Recheck => true,
                Without::ClientFence | Without::DaemonFence => false,
            };
            match if copies { self.get() } else { self.view() } {
                Some(true) => read += 1,
                Some(false) => foreign += 1,
                None => caught += 1,
            }
            if round.is_multiple_of(64) || foreign > 0 {
                self.report(read, foreign, caught);
                if self.tally.load(tally::STOP, Ordering::Relaxed) != 0 {
                    return;
                }
            }
        }
    }

    fn report(&self, read: u64, foreign: u64, caught: u64) {
        for (what, count) in [(tally::READS, read), (tally::FOREIGN, foreign), (tally::CAUGHT, caught)] {
            self.tally.store(tally::of(self.reader, what), count, Ordering::Relaxed);
        }
    }

    fn find(&mut self) -> (usize, Found, usize) {
        loop {
            let index = self.random.usize(..KEYS);
            if let Some(found) = self.table.find(POOL, &key(index)) {
                assert_eq!(found.bytes as usize, self.block_bytes);
                return (index, found, found.slot.offset_bytes() as usize);
            }
            if self.tally.load(tally::STOP, Ordering::Relaxed) != 0 {
                std::process::exit(0);
            }
        }
    }

    /// A copy: whether its words are the block's, if the check let it pass.
    fn get(&mut self) -> Option<bool> {
        let (index, found, offset) = self.find();
        let buffer: &mut [u64] = &mut self.buffer;
        // SAFETY: the same memory, as bytes; every value of them is a u64.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<MaybeUninit<u8>>(), self.block_bytes) };
        copy::out(&self.arena, offset, bytes, copy::Kernel::Streaming);
        if self.without != Without::Recheck && !self.table.still(&found) {
            return None;
        }
        Some(self.buffer.iter().enumerate().all(|(i, word)| *word == pattern(index, found.sum, i)))
    }

    /// A view: whether its words are the block's, if the slot could be pinned.
    fn view(&mut self) -> Option<bool> {
        let (index, found, offset) = self.find();
        let entry = self.random.usize(..PINS);
        self.smear.smear(&mut self.random);
        self.hazards.set(entry, found.slot);
        self.hazards.fence();
        let pinned = self.table.still(&found);
        // Small blocks are read again and again: a view is held for a while.
        let words = || (0..self.block_bytes / 8).map(|i| (i, self.arena.load64(offset + i * 8, Ordering::Relaxed)));
        let read = || words().all(|(i, word)| word == pattern(index, found.sum, i));
        let right = pinned.then(|| (0..(VIEW_BYTES / self.block_bytes).max(1)).all(|_| read()));
        self.hazards.clear(entry);
        right
    }
}

// ---- the writer's process

struct Writer {
    without: Without,
    table: TableWriter,
    arena: Mapping,
    block_bytes: usize,
    pages: Vec<Hazards<Page>>,
    /// Line and slot of each key.
    live: Vec<Option<(LineId, u32)>>,
    free: Vec<u32>,
    /// Unpublished, and named by a reader when last looked at.
    aside: Vec<u32>,
    publishes: u64,
    held_up: u64,
    random: fastrand::Rng,
    smear: Smear,
    buffer: Vec<u8>,
}

impl Writer {
    /// Unpublishes one to four blocks, frees what no reader names, fills and publishes other blocks there.
    fn turn(&mut self) {
        self.smear.smear(&mut self.random);
        let early = (self.without == Without::DaemonFence).then(|| self.named());
        for _ in 0..=self.random.usize(..4) {
            let index = self.random.usize(..KEYS);
            if let Some((line, slot)) = self.live[index].take() {
                self.table.unpublish(line);
                self.aside.push(slot);
            }
        }
        let named = early.unwrap_or_else(|| self.named());
        self.reclaim(named);
        while let Some(slot) = self.free.pop() {
            let absent = (0..KEYS).map(|_| self.random.usize(..KEYS)).find(|index| self.live[*index].is_none());
            let Some(index) = absent else { return self.free.push(slot) };
            self.publish(index, slot);
        }
    }

    /// A bit for each slot that a reader names.
    fn named(&self) -> u64 {
        let mut named = 0;
        let stride = slot(1, self.block_bytes).0;
        hazard::scan(&self.pages, &mut |slot| named |= 1 << (slot.0 / stride));
        named
    }

    fn reclaim(&mut self, named: u64) {
        let (free, aside) = self.aside.drain(..).partition::<Vec<u32>, _>(|slot| named >> slot & 1 == 0);
        self.held_up += aside.len() as u64;
        self.free.extend(free);
        self.aside = aside;
    }

    fn publish(&mut self, index: usize, at: u32) {
        self.publishes += 1;
        for (i, word) in self.buffer.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&pattern(index, self.publishes, i).to_le_bytes());
        }
        let (slot, bytes) = (slot(at, self.block_bytes), self.block_bytes as u32);
        copy::into(&self.arena, slot.offset_bytes() as usize, &self.buffer, copy::Kernel::Streaming);
        copy::sfence();
        let verified = self.random.bool();
        let state = if verified { LineState::Dram } else { LineState::Unverified };
        let line = self.table.publish(POOL, &key(index), slot, bytes, self.publishes, state);
        let line = line.expect("the table is less than half full");
        if !verified {
            self.table.set_verified(line);
        }
        self.live[index] = Some((line, at));
    }
}

// ---- the test's process, which is the writer's

struct Run {
    writer: Writer,
    tally: MappedWords,
    readers: Vec<Child>,
    /// Inherited by the readers.
    _memory: Vec<OwnedFd>,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.tally.store(tally::STOP, 1, Ordering::Relaxed);
        for reader in &mut self.readers {
            // It may have ended by itself.
            let _ = reader.kill();
            let _ = reader.wait();
        }
    }
}

struct Seen {
    reads: u64,
    foreign: u64,
    caught: u64,
    publishes: u64,
    held_up: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reads, foreign, caught, publishes, held_up } = self;
        write!(f, "{reads} reads, {foreign} foreign, {caught} caught; {publishes} publishes, {held_up} slots held up")
    }
}

impl Run {
    fn start(without: Without, readers: usize, block_bytes: usize) -> Self {
        let table_bytes = table::bytes_for(LINES);
        let (table_fd, table) = memory("stress.table", table_bytes);
        let (arena_fd, arena) = memory("stress.arena", arena_bytes(block_bytes));
        let (pages_fd, pages) = memory("stress.hazards", UNIT_BYTES);
        let (tally_fd, tally) = memory("stress.tally", UNIT_BYTES);
        assert!(PAGE_BYTES * READERS <= pages.len() && tally::WORDS * 8 <= tally.len());
        let table = TableWriter::create(words_of(&table), LINES, 1, [3, 5, 7]).expect("fresh memory");
        let read_only = [table_fd, arena_fd].map(|fd| memfd::read_only(fd.as_fd()).expect("proc"));
        let memory: Vec<OwnedFd> = read_only.into_iter().chain([pages_fd, tally_fd]).collect();
        for fd in &memory {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).expect("an open descriptor");
        }
        let fds: Vec<String> = memory.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let spawn = |reader| {
            let task = format!("{reader},{},{block_bytes},{}", without as usize, fds.join(","));
            Command::new(env::current_exe().expect("this test's binary"))
                .args(["--exact", "the_readers_of_the_stress_run_in_processes_of_their_own"])
                .env(CHILD, task)
                .stdout(Stdio::null())
                .spawn()
                .expect("a process")
        };
        let writer = Writer {
            without,
            table,
            arena,
            block_bytes,
            pages: (0..readers).map(|reader| page(&pages, reader, true)).collect(),
            live: vec![None; KEYS],
            free: (0..SLOTS).collect(),
            aside: Vec::new(),
            publishes: 0,
            held_up: 0,
            random: fastrand::Rng::with_seed(99),
            smear: Smear::new(),
            buffer: vec![0; block_bytes],
        };
        Self { writer, tally: words_of(&tally), readers: (0..readers).map(spawn).collect(), _memory: memory }
    }

    fn seen(&self) -> Seen {
        let sum = |what| (0..READERS).map(|r| self.tally.load(tally::of(r, what), Ordering::Relaxed)).sum();
        let (reads, foreign, caught) = (sum(tally::READS), sum(tally::FOREIGN), sum(tally::CAUGHT));
        Seen { reads, foreign, caught, publishes: self.writer.publishes, held_up: self.writer.held_up }
    }

    /// Writes until enough was seen, or foreign bytes were, or `limit` is over.
    fn go(mut self, limit: Duration, enough: impl Fn(&Seen) -> bool) -> Seen {
        let end = Instant::now() + limit;
        loop {
            for _ in 0..256 {
                self.writer.turn();
            }
            for reader in &mut self.readers {
                assert_eq!(reader.try_wait().expect("our child"), None, "a reader ended");
            }
            let seen = self.seen();
            if enough(&seen) || seen.foreign > 0 || Instant::now() > end {
                return seen;
            }
        }
    }
}

/// One at a time: each needs all the CPUs there are.
fn alone() -> impl Drop {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reads_wanted() -> u64 {
    env::var("LAPIS_STRESS_READS").ok().map_or(1_000_000, |n| n.parse().expect("LAPIS_STRESS_READS is a number"))
}

fn shows_no_foreign_byte(reads: u64, block_bytes: usize) {
    let _alone = alone();
    let run = Run::start(Without::Nothing, READERS, block_bytes);
    let seen = run.go(READ_TIME, |seen| seen.reads >= reads && seen.publishes >= reads / 8);
    println!("{block_bytes} bytes a block: {seen}");
    assert_eq!(seen.foreign, 0, "{seen}");
    assert!(seen.reads >= reads, "the readers got nowhere: {seen}");
    assert!(seen.caught > 0 && seen.held_up > 0, "no reader was ever in the way: {seen}");
}

fn shows_foreign_bytes(without: Without) {
    let _alone = alone();
    if without != Without::Recheck && std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("skipped: on one CPU reader and writer do not run at once ({without:?})");
        return;
    }
    // One reader: both run at once on two CPUs.
    let seen = Run::start(without, 1, 256).go(CONTROL_TIME, |_| false);
    println!("without {without:?}: {seen}");
    assert!(seen.foreign > 0, "the stress does not see that {without:?} is left out: {seen}");
}

#[test]
fn no_reader_sees_a_foreign_byte_while_slots_are_reused() {
    shows_no_foreign_byte(reads_wanted(), 256);
}

#[test]
fn no_reader_sees_a_foreign_byte_in_blocks_that_stream() {
    shows_no_foreign_byte(reads_wanted() / 20, 16 << 10);
}

#[test]
fn without_the_recheck_foreign_bytes_are_seen() {
    shows_foreign_bytes(Without::Recheck);
}

#[test]
fn without_the_clients_fence_foreign_bytes_are_seen() {
    shows_foreign_bytes(Without::ClientFence);
}

#[test]
fn without_the_daemons_fence_foreign_bytes_are_seen() {
    shows_foreign_bytes(Without::DaemonFence);
}
