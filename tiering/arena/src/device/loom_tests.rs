//! The device table under every interleaving and every weak-memory outcome that loom knows: the real writer, reader and
//! hazard code over loom's atomics. Each test holds; without its fence or check it fails, which is tested as well.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64 as StdU64, Ordering},
    },
};

use lapis_config::{GpuId, LineId, SlotId};
use loom::{
    model::Builder,
    sync::atomic::{AtomicU64, fence},
    thread,
};

use super::{DeviceHazards, DeviceSlot, DeviceTable, DeviceWriter, HEAD, OnDevice, bytes_for, scan, word_of};
use crate::Words;

const LINE: LineId = LineId(0);
const GENERATION: u64 = 6;

fn place(slot: u32) -> DeviceSlot {
    DeviceSlot { gpu: GpuId(1), slot: SlotId(slot), units: 1 }
}

/// One side's access to a table of one line, whose two words loom watches. The one writer loads nothing.
#[derive(Clone)]
struct Side {
    head: Arc<Vec<StdU64>>,
    watched: Arc<[AtomicU64; 2]>,
    /// With false, fences of this strength are left out.
    fences: fn(Ordering) -> bool,
}

impl Words for Side {
    fn len(&self) -> usize {
        self.head.len() + 2
    }
    fn load(&self, i: usize, order: Ordering) -> u64 {
        if i < HEAD { self.head[i].load(order) } else { self.watched[i - HEAD].load(order) }
    }
    fn store(&self, i: usize, value: u64, order: Ordering) {
        if i < HEAD { self.head[i].store(value, order) } else { self.watched[i - HEAD].store(value, order) }
    }
    fn fence(&self, order: Ordering) {
        if (self.fences)(order) {
            fence(order);
        }
    }
}

/// One side's access to a hazard page of one entry, with or without its fences.
struct Page {
    entry: Arc<AtomicU64>,
    fences: bool,
}

impl Page {
    fn both_sides(client_fences: bool, daemon_fences: bool) -> [DeviceHazards<Self>; 2] {
        let entry = Arc::new(AtomicU64::new(0));
        [client_fences, daemon_fences].map(|fences| DeviceHazards::new(Self { entry: Arc::clone(&entry), fences }))
    }
}

impl Words for Page {
    fn len(&self) -> usize {
        1
    }
    fn load(&self, _: usize, order: Ordering) -> u64 {
        self.entry.load(order)
    }
    fn store(&self, _: usize, value: u64, order: Ordering) {
        self.entry.store(value, order);
    }
    fn fence(&self, order: Ordering) {
        if self.fences {
            fence(order);
        }
    }
}

fn table(fences: fn(Ordering) -> bool) -> (DeviceWriter<Side>, DeviceTable<Side>) {
    let words = Side {
        head: Arc::new(crate::words::zeroed(HEAD)),
        watched: Arc::new([AtomicU64::new(0), AtomicU64::new(0)]),
        fences,
    };
    assert_eq!(words.len() * 8, bytes_for(1) as usize);
    let writer = DeviceWriter::create(words.clone(), 1, 5).expect("the words are enough");
    (writer, DeviceTable::open(words, 1, 5).expect("it was just made"))
}

fn model(test: impl Fn() + Sync + Send + 'static) {
    Builder::new().check(test);
}

/// True if some execution of `test` panics.
fn fails(test: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| model(test))).is_err()
}

/// A copy moves to another slot and another generation while it is looked up.
fn find_while_it_moves(fences: fn(Ordering) -> bool) {
    let (writer, reader) = table(fences);
    writer.set(LINE, GENERATION, place(3));
    let writing = thread::spawn(move || writer.set(LINE, GENERATION + 1, place(9)));
    if let Some(found) = reader.find(LINE, GENERATION) {
        assert_eq!(found.at, place(3));
    }
    if let Some(found) = reader.find(LINE, GENERATION + 1) {
        assert_eq!(found.at, place(9));
    }
    writing.join().expect("no panic");
}

#[test]
fn a_place_is_that_of_its_generation() {
    model(|| find_while_it_moves(|_| true));
}

#[test]
fn a_place_found_without_fences_can_be_of_another_generation() {
    assert!(fails(|| find_while_it_moves(|_| false)));
}

/// What lies in two slots: which block's bytes.
struct Slots([AtomicU64; 2]);

impl Slots {
    fn of(at: DeviceSlot) -> usize {
        usize::from(at.slot == SlotId(9))
    }
}

type Check = fn(&DeviceTable<Side>, &OnDevice) -> bool;

/// A reader pins a copy while the daemon takes it away, fills its slot anew unless it is named, and puts a copy of the
/// same block, under the same generation, elsewhere.
fn pin_while_it_goes_and_comes_again(client_fences: bool, daemon_fences: bool, check: Check) {
    let (writer, reader) = table(|_| true);
    let slots = Arc::new(Slots([AtomicU64::new(1), AtomicU64::new(0)]));
    writer.set(LINE, GENERATION, place(3));
    let [hazards, scanned] = Page::both_sides(client_fences, daemon_fences);
    let filled = Arc::clone(&slots);
    let daemon = thread::spawn(move || {
        writer.clear(LINE);
        let mut named = false;
        scan([&scanned], &mut |gpu, slot| named |= (gpu, slot) == (GpuId(1), SlotId(3)));
        if !named {
            filled.0[0].store(2, Ordering::Relaxed);
        }
        filled.0[1].store(1, Ordering::Relaxed);
        writer.set(LINE, GENERATION, place(9));
    });
    if let Some(found) = reader.find(LINE, GENERATION) {
        hazards.set(0, found.at.gpu, found.at.slot);
        hazards.fence();
        if check(&reader, &found) {
            assert_eq!(slots.0[Slots::of(found.at)].load(Ordering::Relaxed), 1);
        }
        hazards.clear(0);
    }
    daemon.join().expect("no panic");
}

#[test]
fn a_pinned_slot_is_not_reused() {
    model(|| pin_while_it_goes_and_comes_again(true, true, DeviceTable::still));
}

#[test]
fn a_pin_without_the_clients_fence_can_lose_its_slot() {
    assert!(fails(|| pin_while_it_goes_and_comes_again(false, true, DeviceTable::still)));
}

#[test]
fn a_pin_without_the_daemons_fence_can_lose_its_slot() {
    assert!(fails(|| pin_while_it_goes_and_comes_again(true, false, DeviceTable::still)));
}

#[test]
fn a_pin_that_looks_at_the_stamp_alone_can_lose_its_slot_to_a_copy_that_came_again() {
    let stamp_alone: Check = |reader, found| reader.find(found.line, GENERATION).is_some();
    assert!(fails(move || pin_while_it_goes_and_comes_again(true, true, stamp_alone)));
}

/// A reader pins a copy that the daemon takes away before; it puts a copy of the same block, under the same generation,
/// elsewhere, takes that away too, and gives the line and the first slot to another block.
fn pin_while_another_block_comes_to_line_and_slot(check: Check) {
    let (writer, reader) = table(|_| true);
    let slots = Arc::new(Slots([AtomicU64::new(1), AtomicU64::new(0)]));
    writer.set(LINE, GENERATION, place(3));
    let found = reader.find(LINE, GENERATION).expect("it was set");
    let [hazards, scanned] = Page::both_sides(true, true);
    let filled = Arc::clone(&slots);
    let daemon = thread::spawn(move || {
        writer.clear(LINE);
        let mut named = false;
        scan([&scanned], &mut |gpu, slot| named |= (gpu, slot) == (GpuId(1), SlotId(3)));
        if named {
            return;
        }
        filled.0[1].store(1, Ordering::Relaxed);
        writer.set(LINE, GENERATION, place(9));
        filled.0[0].store(2, Ordering::Relaxed);
        writer.set(LINE, GENERATION + 1, place(3));
    });
    hazards.set(0, found.at.gpu, found.at.slot);
    hazards.fence();
    if check(&reader, &found) {
        assert_eq!(slots.0[Slots::of(found.at)].load(Ordering::Relaxed), 1);
    }
    hazards.clear(0);
    daemon.join().expect("no panic");
}

#[test]
fn a_pin_does_not_take_one_copys_stamp_and_anothers_place_for_its_own() {
    model(|| pin_while_another_block_comes_to_line_and_slot(DeviceTable::still));
}

#[test]
fn a_pin_that_does_not_look_at_the_stamp_again_can_do_that() {
    let once: Check = |reader, found| {
        let at = word_of(found.line);
        let stamp = reader.words.load(at, Ordering::Acquire);
        stamp == found.stamp && reader.words.load(at + 1, Ordering::Relaxed) == found.at.to_word()
    };
    assert!(fails(move || pin_while_another_block_comes_to_line_and_slot(once)));
}

#[test]
fn a_pin_that_looks_at_the_place_before_the_stamp_can_lose_its_slot() {
    let place_first: Check = |reader, found| {
        let at = word_of(found.line);
        let place = reader.words.load(at + 1, Ordering::Relaxed);
        place == found.at.to_word() && reader.words.load(at, Ordering::Acquire) == found.stamp
    };
    assert!(fails(move || pin_while_another_block_comes_to_line_and_slot(place_first)));
}
