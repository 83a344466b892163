//! The table against an ordered map that is obviously right: random publishes, look-ups, moves, removals and adoptions.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lapis_config::{Key, LineId, PoolId, SlotId};
use proptest::prelude::*;

use super::{
    Adoption, LINES_MIN, LineState, LiveLine, Table, TableWriter, bytes_for,
    layout::{self, bind, head, near, word},
};
use crate::{ArenaError, Words, words};

type Memory = Arc<Vec<AtomicU64>>;
type Writer = TableWriter<Memory>;

const SECRETS: [u64; 3] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 0x5555_aaaa_3333_cccc];

fn memory(lines: u32) -> Memory {
    Arc::new(words::zeroed(bytes_for(lines) as usize / 8))
}

fn writer(lines: u32) -> Writer {
    TableWriter::create(memory(lines), lines, 77, SECRETS).expect("the words are enough")
}

/// A few keys of a few pools, some like an engine's 64-bit hashes.
fn name(n: u16) -> (PoolId, Key) {
    let n = u64::from(n);
    let key = if n.is_multiple_of(2) { Key([n, 0, 0, 0]) } else { Key([1, 2, n, 3]) };
    (PoolId((n % 3) as u16), key)
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u16, u32),
    Rebind(u16, u32),
    Verify(u16),
    Unpublish(u16),
    /// The daemon dies and its successor takes over; lines of slots below this are not believed.
    Adopt(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..300u16;
    prop_oneof![
        8 => (name.clone(), 1..1000u32).prop_map(|(n, slot)| Step::Publish(n, slot)),
        2 => (name.clone(), 1..1000u32).prop_map(|(n, slot)| Step::Rebind(n, slot)),
        1 => name.clone().prop_map(Step::Verify),
        3 => name.prop_map(Step::Unpublish),
        1 => (0..100u32).prop_map(Step::Adopt),
    ]
}

/// What the table should say of a key.
#[derive(Clone, Debug, PartialEq)]
struct Says {
    line: LineId,
    slot: u32,
    state: LineState,
    generation: u64,
}

struct Model {
    writer: Writer,
    memory: Memory,
    map: BTreeMap<u16, Says>,
}

impl Model {
    fn new() -> Self {
        let memory = memory(LINES_MIN);
        let writer = TableWriter::create(memory.clone(), LINES_MIN, 77, SECRETS).expect("the words are enough");
        Self { writer, memory, map: BTreeMap::new() }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish(n, slot) if !self.map.contains_key(&n) => self.publish(n, slot),
            Step::Rebind(n, slot) => {
                if let Some(says) = self.map.get_mut(&n) {
                    self.writer.rebind(says.line, SlotId(slot), slot * 2, u64::from(slot) * 3, LineState::Elsewhere);
                    let generation = says.generation + 1;
                    *says = Says { line: says.line, slot, state: LineState::Elsewhere, generation };
                }
            }
            Step::Verify(n) => {
                if let Some(says) = self.map.get_mut(&n) {
                    self.writer.set_verified(says.line);
                    if says.state == LineState::Unverified {
                        says.state = LineState::Dram;
                    }
                }
            }
            Step::Unpublish(n) => {
                if let Some(says) = self.map.remove(&n) {
                    self.writer.unpublish(says.line);
                }
            }
            Step::Adopt(from) => self.adopt(from),
            Step::Publish(..) => {}
        }
    }

    fn publish(&mut self, n: u16, slot: u32) {
        let (pool, key) = name(n);
        let place = (SlotId(slot), slot * 2, u64::from(slot) * 3);
        match self.writer.publish(pool, &key, place.0, place.1, place.2, LineState::Dram) {
            Ok(line) => {
                assert!(self.map.values().all(|says| says.line != line), "{line:?} was taken");
                let generation = self.writer.live(line).expect("just published").generation;
                self.map.insert(n, Says { line, slot, state: LineState::Dram, generation });
            }
            Err(candidates) => {
                // Both windows are full, and those lines are all that is in them.
                let homes = layout::homes(&SECRETS, LINES_MIN, pool, &key);
                for line in (0..LINES_MIN).map(LineId) {
                    let within = |home| layout::steps_to(home, line.0, LINES_MIN).is_some();
                    assert_eq!(candidates.contains(&line), within(homes.first) || within(homes.second));
                }
                assert!(candidates.iter().all(|line| self.writer.live(*line).is_some()));
                // As the core answers: one of them goes, then there is room.
                let gone = candidates[slot as usize % candidates.len()];
                self.map.retain(|_, says| says.line != gone);
                self.writer.unpublish(gone);
                self.publish(n, slot);
            }
        }
    }

    fn adopt(&mut self, from: u32) {
        self.writer = TableWriter::adopt(self.memory.clone()).expect("the table is there");
        let mut adoption = Adoption::new(&self.writer);
        let mut keep = |_: LineId, live: &LiveLine| live.slot.0 >= from;
        let kept = |says: &Says| says.slot >= from;
        while !adoption.step(&mut self.writer, 7, &mut keep) {
            // Readers go on meanwhile, and miss nothing that stays.
            for (n, says) in self.map.iter().filter(|(_, says)| kept(says)) {
                let (pool, key) = name(*n);
                assert_eq!(self.writer.find(pool, &key).map(|found| found.line), Some(says.line));
            }
        }
        self.map.retain(|_, says| kept(says));
        for says in self.map.values_mut().filter(|says| says.state == LineState::Dram) {
            says.state = LineState::Unverified;
        }
    }

    fn check(&self) {
        assert_eq!(self.writer.live_lines() as usize, self.map.len());
        let reader = Table::open(self.memory.clone()).expect("the table is there");
        for n in 0..300 {
            let (pool, key) = name(n);
            let found = reader.find(pool, &key);
            let says = found.map(|found| {
                assert_eq!((found.bytes, found.sum), (found.slot.0 * 2, u64::from(found.slot.0) * 3));
                assert_eq!(reader.still(&found), found.state.is_readable());
                Says { line: found.line, slot: found.slot.0, state: found.state, generation: found.generation() }
            });
            assert_eq!(says.as_ref(), self.map.get(&n), "key {n}");
        }
        self.check_bits();
    }

    /// Every bit leads to a live line of that home, every flag to a key at its second home.
    fn check_bits(&self) {
        let mut maps = vec![0u64; LINES_MIN as usize];
        for (n, says) in &self.map {
            let (pool, key) = name(*n);
            let homes = layout::homes(&SECRETS, LINES_MIN, pool, &key);
            if let Some(steps) = layout::steps_to(homes.first, says.line.0, LINES_MIN) {
                maps[homes.first as usize] |= 1 << steps;
            } else {
                let steps = layout::steps_to(homes.second, says.line.0, LINES_MIN).expect("in a window");
                maps[homes.second as usize] |= 1 << steps;
                maps[homes.first as usize] |= near::SECOND;
            }
        }
        for (line, map) in (0..).zip(maps) {
            let word = self.memory.load(word::of(line) + word::NEAR, Ordering::Relaxed);
            assert_eq!(word & (near::MAP | near::SECOND), map, "near word of line {line}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_table_says_what_a_map_says(steps in prop::collection::vec(step(), 1..500)) {
        let mut model = Model::new();
        for (i, step) in steps.iter().enumerate() {
            model.step(step);
            if i % 16 == 0 {
                model.check();
            }
        }
        model.check();
    }
}

#[test]
fn a_batch_finds_what_single_look_ups_find() {
    let mut writer = writer(4096);
    let keys: Vec<Key> = (0..3000).map(|n| Key([n, n * n, 0, 7])).collect();
    for (i, key) in keys.iter().enumerate().filter(|(i, _)| i % 3 != 1) {
        writer.publish(PoolId(1), key, SlotId(i as u32), 5, 6, LineState::Dram).expect("a table three quarters full");
    }
    let table = writer.table();
    for len in [0, 1, 2, 9, 10, 11, 23, 24, 25, 33, 100, 3000] {
        let mut seen = Vec::new();
        table.find_many(PoolId(1), &keys[..len], |i, found| seen.push((i, found)));
        let single: Vec<_> = keys[..len].iter().map(|key| table.find(PoolId(1), key)).enumerate().collect();
        assert_eq!(seen, single);
    }
    let mut found = Vec::new();
    assert_eq!(table.prefix(PoolId(1), &keys, &mut found), 1);
    assert_eq!(found[0].slot, SlotId(0));
    assert_eq!(table.find(PoolId(2), &keys[0]), None, "pools share no keys");
}

#[test]
fn no_foreign_table_is_opened() {
    let open = |memory: &Memory| Table::open(memory.clone()).map(|_| ());
    let memory = memory(LINES_MIN);
    assert!(matches!(open(&memory), Err(ArenaError::NoTable { found: 0 })));
    let made = TableWriter::create(memory.clone(), LINES_MIN, 9, SECRETS).expect("the words are enough");
    assert_eq!(made.table().table_id(), 9);
    assert!(open(&memory).is_ok());
    memory.store(head::LINES, u64::from(LINES_MIN) + 1, Ordering::Relaxed);
    assert!(matches!(open(&memory), Err(ArenaError::TableGeometry { .. })));
    memory.store(head::VERSION, 2 << 16, Ordering::Relaxed);
    assert!(matches!(open(&memory), Err(ArenaError::TableVersion { .. })));
    assert!(matches!(Table::open(words::zeroed(8)), Err(ArenaError::TableGeometry { .. })));
}

#[test]
fn a_line_that_was_being_written_when_the_daemon_died_is_dropped() {
    let memory = memory(LINES_MIN);
    let mut writer = TableWriter::create(memory.clone(), LINES_MIN, 1, SECRETS).expect("the words are enough");
    let (pool, key) = name(4);
    let line = writer.publish(pool, &key, SlotId(3), 1, 1, LineState::Dram).expect("room");
    let at = word::of(line.0) + word::BIND;
    memory.store(at, bind::next(memory.load(at, Ordering::Relaxed), bind::WRITING), Ordering::Relaxed);
    assert_eq!(writer.find(pool, &key), None, "nobody sees it");
    let mut adopted = TableWriter::adopt(memory).expect("the table is there");
    Adoption::new(&adopted).run(&mut adopted, &mut |_, _| panic!("there is no live line"));
    assert_eq!((adopted.live_lines(), adopted.live(line)), (0, None));
}

#[test]
fn a_line_that_no_home_leads_to_is_found_again_and_one_out_of_reach_is_dropped() {
    let memory = memory(LINES_MIN);
    let mut writer = TableWriter::create(memory.clone(), LINES_MIN, 1, SECRETS).expect("the words are enough");
    let (pool, key) = name(4);
    let line = writer.publish(pool, &key, SlotId(3), 1, 1, LineState::Dram).expect("room");
    let home = layout::homes(&SECRETS, LINES_MIN, pool, &key).first;
    // As if it died between the bind and the home's bit.
    let at = word::of(home) + word::NEAR;
    memory.store(at, memory.load(at, Ordering::Relaxed) & !near::MAP, Ordering::Relaxed);
    let adopt = || {
        let mut adopted = TableWriter::adopt(memory.clone()).expect("the table is there");
        Adoption::new(&adopted).run(&mut adopted, &mut |_, _| true);
        adopted
    };
    assert_eq!(adopt().find(pool, &key).map(|found| found.line), Some(line));
    // Another key in its place, whose homes are elsewhere.
    let far = (5..).map(|n| Key([n, 0, 0, 0])).find(|key| {
        let homes = layout::homes(&SECRETS, LINES_MIN, pool, key);
        [homes.first, homes.second].into_iter().all(|home| layout::steps_to(home, line.0, LINES_MIN).is_none())
    });
    memory.store(word::of(line.0) + word::KEY, far.expect("most keys").0[0], Ordering::Relaxed);
    assert_eq!(adopt().live_lines(), 0);
}

#[test]
fn two_homes_hold_nine_lines_of_ten_with_few_refusals() {
    let lines = 1 << 16;
    let mut writer = writer(lines);
    let mut random = fastrand::Rng::with_seed(3);
    let mut live = Vec::new();
    let mut refused = 0;
    while live.len() < lines as usize * 9 / 10 {
        let key = Key([random.u64(..), 0, 0, 0]);
        match writer.publish(PoolId(0), &key, SlotId(0), 0, 0, LineState::Dram) {
            Ok(line) => live.push(line),
            Err(_) => refused += 1,
        }
    }
    // Filling alone refuses about 1 in 1000 at 0.9; churn more.
    assert!(refused < live.len() / 200, "{refused} refused of {}", live.len());
    for line in live {
        writer.unpublish(line);
    }
    assert_eq!(writer.live_lines(), 0);
}

#[test]
fn the_header_carries_the_daemons_life_and_sleep() {
    let writer = writer(LINES_MIN);
    let reader = writer.table();
    writer.set_instance(5);
    writer.set_sleeping(true);
    assert_eq!((reader.instance(), reader.daemon_sleeping()), (5, true));
    writer.set_sleeping(false);
    assert!(!reader.daemon_sleeping());
}
