//! The protocol under every interleaving and every weak-memory outcome that loom knows: the real writer, reader and
//! hazard code over loom's atomics. Each test holds; without its fence or check it fails, which is tested as well.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64 as StdU64, Ordering},
    },
};

use lapis_config::{Key, LineId, PoolId, SlotId};
use loom::{
    model::Builder,
    sync::atomic::{AtomicU32, AtomicU64, fence},
    thread,
};

use super::{
    Found, LINES_MIN, LineState, Table, TableWriter, bytes_for,
    layout::{self, word},
};
use crate::{Hazards, Words, hazard};

const POOL: PoolId = PoolId(5);
const SECRETS: [u64; 3] = [11, 22, 33];
const SLOT: SlotId = SlotId(0);

/// The words of a table, of which loom watches those of some lines; the others are written before the threads start.
struct Memory {
    plain: Vec<StdU64>,
    watched: Vec<(usize, AtomicU64)>,
}

impl Memory {
    fn new(lines: &[u32]) -> Self {
        let mut words: Vec<usize> = lines.iter().flat_map(|line| word::of(*line)..word::of(*line) + 8).collect();
        words.push(layout::head::INSTANCE);
        words.sort_unstable();
        Self {
            plain: crate::words::zeroed(bytes_for(LINES_MIN) as usize / 8),
            watched: words.into_iter().map(|i| (i, AtomicU64::new(0))).collect(),
        }
    }

    fn watched(&self, i: usize) -> Option<&AtomicU64> {
        let at = self.watched.binary_search_by_key(&i, |(i, _)| *i).ok()?;
        Some(&self.watched[at].1)
    }
}

/// One side's access to it. The one writer loads its own words unwatched: it knows them, and loom (0.7.3) forgets a
/// reader's load of a word, as something to reorder with, once the writer loads that word before it stores.
#[derive(Clone)]
struct Side {
    memory: Arc<Memory>,
    writes: bool,
    /// With false, fences of this strength are left out.
    fences: fn(Ordering) -> bool,
}

impl Words for Side {
    fn len(&self) -> usize {
        self.memory.plain.len()
    }
    fn load(&self, i: usize, order: Ordering) -> u64 {
        match self.memory.watched(i).filter(|_| !self.writes) {
            Some(word) => word.load(order),
            None => self.memory.plain[i].load(order),
        }
    }
    fn store(&self, i: usize, value: u64, order: Ordering) {
        assert!(self.writes, "a reader stored");
        self.memory.plain[i].store(value, order);
        if let Some(word) = self.memory.watched(i) {
            word.store(value, order);
        }
    }
    fn fence(&self, order: Ordering) {
        if (self.fences)(order) {
            fence(order);
        }
    }
}

/// One side's access to a hazard page of one entry, with or without its fences.
struct Page {
    entry: Arc<AtomicU32>,
    fences: bool,
}

impl Page {
    fn both_sides(client_fences: bool, daemon_fences: bool) -> [Hazards<Self>; 2] {
        let entry = Arc::new(AtomicU32::new(0));
        [client_fences, daemon_fences].map(|fences| Hazards::new(Self { entry: Arc::clone(&entry), fences }))
    }
}

impl Words<u32> for Page {
    fn len(&self) -> usize {
        1
    }
    fn load(&self, _: usize, order: Ordering) -> u32 {
        self.entry.load(order)
    }
    fn store(&self, _: usize, value: u32, order: Ordering) {
        self.entry.store(value, order);
    }
    fn fence(&self, order: Ordering) {
        if self.fences {
            fence(order);
        }
    }
}

fn key(n: u64) -> Key {
    Key([n, 0, 0, 0])
}

/// The payload of one slot: two words that must always come from one block.
struct Payload([AtomicU64; 2]);

impl Payload {
    fn new() -> Arc<Self> {
        Arc::new(Self([AtomicU64::new(0), AtomicU64::new(0)]))
    }
    /// A client's copy into a granted slot: the fence after taking the grant, then plain stores.
    fn fill(&self, stamp: u64) {
        fence(Ordering::Release);
        self.0[0].store(stamp, Ordering::Relaxed);
        self.0[1].store(stamp, Ordering::Relaxed);
    }
    fn read(&self) -> [u64; 2] {
        [self.0[0].load(Ordering::Relaxed), self.0[1].load(Ordering::Relaxed)]
    }
}

/// Two keys whose homes differ, and the lines that they get in an empty table.
fn two_keys() -> ([Key; 2], [u32; 2]) {
    let home = |k: &Key| layout::homes(&SECRETS, LINES_MIN, POOL, k).first;
    let first = key(1);
    let second = (2..).map(key).find(|k| home(k) != home(&first)).expect("keys differ");
    ([first, second], [home(&first), home(&second)])
}

fn table(lines: &[u32], fences: fn(Ordering) -> bool) -> (TableWriter<Side>, Table<Side>) {
    let writing = Side { memory: Arc::new(Memory::new(lines)), writes: true, fences };
    let reading = Side { writes: false, ..writing.clone() };
    let writer = TableWriter::create(writing, LINES_MIN, 1, SECRETS).expect("the words are enough");
    (writer, Table::open(reading).expect("it was just made"))
}

fn publish(writer: &mut TableWriter<Side>, key: &Key, sum: u64) -> LineId {
    writer.publish(POOL, key, SLOT, 16, sum, LineState::Dram).expect("an empty table has room")
}

fn model(test: impl Fn() + Sync + Send + 'static) {
    model_bounded(3, test);
}

/// With at most so many preemptions an execution.
fn model_bounded(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(test);
}

/// True if some execution of `test` panics.
fn fails(test: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| model(test))).is_err()
}

#[test]
fn a_published_block_is_seen_whole_or_not_at_all() {
    let (keys, lines) = two_keys();
    model(move || {
        let (mut writer, reader) = table(&lines[..1], |_| true);
        let payload = Payload::new();
        let filled = Arc::clone(&payload);
        let writing = thread::spawn(move || {
            filled.fill(7);
            publish(&mut writer, &keys[0], 7);
        });
        if let Some(found) = reader.find(POOL, &keys[0]) {
            assert_eq!((found.sum, found.slot, found.bytes), (7, SLOT, 16));
            assert_eq!(payload.read(), [7, 7]);
            assert!(reader.still(&found));
        }
        writing.join().expect("no panic");
    });
}

/// A copying get while its slot is unpublished, filled again and published under another key.
fn copy_while_reused(check: fn(&Table<Side>, &Found) -> bool, fences: fn(Ordering) -> bool) {
    let (keys, lines) = two_keys();
    let (mut writer, reader) = table(&lines, fences);
    let payload = Payload::new();
    payload.fill(1);
    let line = publish(&mut writer, &keys[0], 1);
    let filled = Arc::clone(&payload);
    let writing = thread::spawn(move || {
        writer.unpublish(line);
        filled.fill(2);
        publish(&mut writer, &keys[1], 2);
    });
    if let Some(found) = reader.find(POOL, &keys[0]) {
        let copied = payload.read();
        if check(&reader, &found) {
            assert_eq!((found.sum, copied), (1, [1, 1]));
        }
    }
    writing.join().expect("no panic");
}

#[test]
fn a_copy_that_passes_the_check_is_of_the_block_that_was_found() {
    model(|| copy_while_reused(Table::still, |_| true));
}

#[test]
fn a_copy_without_the_check_can_be_of_another_block() {
    assert!(fails(|| copy_while_reused(|_, _| true, |_| true)));
}

#[test]
fn a_check_without_its_fence_can_pass_a_foreign_copy() {
    assert!(fails(|| copy_while_reused(Table::still, |order| order != Ordering::Acquire)));
}

/// A look-up while its line is freed and taken by another key of the same home.
fn find_while_line_changes_hands(fences: fn(Ordering) -> bool) {
    let home = |k: &Key| layout::homes(&SECRETS, LINES_MIN, POOL, k).first;
    let first = key(1);
    let second = (2..).map(key).find(|k| home(k) == home(&first)).expect("homes repeat");
    let (mut writer, reader) = table(&[home(&first)], fences);
    let line = publish(&mut writer, &first, 1);
    let writing = thread::spawn(move || {
        writer.unpublish(line);
        publish(&mut writer, &second, 2);
    });
    if let Some(found) = reader.find(POOL, &first) {
        assert_eq!(found.sum, 1);
    }
    writing.join().expect("no panic");
}

#[test]
fn a_line_that_changes_hands_is_never_read_half_and_half() {
    // 9 stores against 16 loads of the same words: three preemptions are 311 000 executions.
    model_bounded(2, || find_while_line_changes_hands(|_| true));
}

#[test]
fn a_line_read_without_fences_can_be_half_and_half() {
    assert!(fails(|| find_while_line_changes_hands(|_| false)));
}

#[test]
fn a_rebound_line_shows_the_old_place_or_the_new_one() {
    let (keys, lines) = two_keys();
    model(move || {
        let (mut writer, reader) = table(&lines[..1], |_| true);
        let line = publish(&mut writer, &keys[0], 1);
        let writing = thread::spawn(move || writer.rebind(line, SlotId(9), 99, 2, LineState::Elsewhere));
        if let Some(found) = reader.find(POOL, &keys[0]) {
            let place = (found.slot, found.bytes, found.sum, found.state);
            let old = (SLOT, 16, 1, LineState::Dram);
            assert!(place == old || place == (SlotId(9), 99, 2, LineState::Elsewhere), "{place:?}");
        }
        writing.join().expect("no panic");
    });
}

#[test]
fn verification_disturbs_no_reader() {
    let (keys, lines) = two_keys();
    model(move || {
        let (mut writer, reader) = table(&lines[..1], |_| true);
        let line = writer.publish(POOL, &keys[0], SLOT, 16, 1, LineState::Unverified).expect("room");
        let writing = thread::spawn(move || writer.set_verified(line));
        let found = reader.find(POOL, &keys[0]).expect("it is live all the time");
        assert!(reader.still(&found));
        writing.join().expect("no panic");
    });
}

/// A view against a daemon that unpublishes the block, looks at the hazard page, and has the slot filled again unless it
/// is named there.
fn pin_while_reclaimed(client_fences: bool, daemon_fences: bool) {
    let (keys, lines) = two_keys();
    let (mut writer, reader) = table(&lines[..1], |_| true);
    let payload = Payload::new();
    payload.fill(1);
    let line = publish(&mut writer, &keys[0], 1);
    let [hazards, scanned] = Page::both_sides(client_fences, daemon_fences);
    let filled = Arc::clone(&payload);
    let daemon = thread::spawn(move || {
        writer.unpublish(line);
        let mut named = false;
        hazard::scan([&scanned], &mut |slot| named |= slot == SLOT);
        if !named {
            filled.fill(2);
        }
    });
    if let Some(found) = reader.find(POOL, &keys[0]) {
        hazards.set(0, found.slot);
        hazards.fence();
        if reader.still(&found) {
            assert_eq!(payload.read(), [1, 1]);
        }
        hazards.clear(0);
    }
    daemon.join().expect("no panic");
}

#[test]
fn a_pinned_slot_is_not_reused() {
    model(|| pin_while_reclaimed(true, true));
}

#[test]
fn a_pin_without_the_clients_fence_can_lose_its_slot() {
    assert!(fails(|| pin_while_reclaimed(false, true)));
}

#[test]
fn a_pin_without_the_daemons_fence_can_lose_its_slot() {
    assert!(fails(|| pin_while_reclaimed(true, false)));
}

/// A view against a restarted daemon: it looks at the page of a former client once, after it set its instance.
fn pin_over_restart(check_instance: bool) {
    let (keys, lines) = two_keys();
    let (mut writer, reader) = table(&lines[..1], |_| true);
    writer.set_instance(1);
    let payload = Payload::new();
    payload.fill(1);
    let line = publish(&mut writer, &keys[0], 1);
    let [hazards, scanned] = Page::both_sides(true, true);
    let filled = Arc::clone(&payload);
    let daemon = thread::spawn(move || {
        writer.set_instance(2);
        let mut named = false;
        scanned.each(&mut |slot| named |= slot == SLOT);
        if !named {
            writer.unpublish(line);
            filled.fill(2);
        }
    });
    if let Some(found) = reader.find(POOL, &keys[0]) {
        hazards.set(0, found.slot);
        hazards.fence();
        if reader.still(&found) && (!check_instance || reader.instance() == 1) {
            assert_eq!(payload.read(), [1, 1]);
        }
    }
    daemon.join().expect("no panic");
}

#[test]
fn a_pin_under_the_old_instance_is_seen_by_the_new_daemon() {
    model(|| pin_over_restart(true));
}

#[test]
fn a_pin_that_ignores_the_instance_can_lose_its_slot() {
    assert!(fails(|| pin_over_restart(false)));
}
