//! The device table against an ordered map that is obviously right: random settings, clearings and adoptions.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
};

use lapis_config::{GpuId, LineId, SlotId};
use proptest::prelude::*;

use super::{AT_LINES, AT_VERSION, DeviceSlot, DeviceTable, DeviceWriter, bytes_for, word_of};
use crate::{Words, words};

const LINES: u32 = 24;

type Memory = Arc<Vec<AtomicU64>>;

fn memory(lines: u32) -> Memory {
    Arc::new(words::zeroed(bytes_for(lines) as usize / 8))
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Set(u32, u64, u8, u32, u32),
    Clear(u32),
    /// The daemon dies, perhaps while it sets a line, and its successor takes over.
    Adopt(Option<u32>),
}

fn step() -> impl Strategy<Value = Step> {
    let line = 0..LINES;
    let slot = prop_oneof![Just(0), Just(u32::MAX), any::<u32>()];
    prop_oneof![
        6 => (line.clone(), 0u64..1 << 59, any::<u8>(), slot, 1u32..1 << 24)
            .prop_map(|(line, generation, gpu, slot, units)| Step::Set(line, generation, gpu, slot, units)),
        2 => line.clone().prop_map(Step::Clear),
        1 => prop::option::of(line).prop_map(Step::Adopt),
    ]
}

proptest! {
    #[test]
    fn readers_find_what_was_set_last_and_nothing_else(steps in prop::collection::vec(step(), 1..200)) {
        let words = memory(LINES);
        let mut writer = DeviceWriter::create(Arc::clone(&words), LINES, 9).unwrap();
        let reader = DeviceTable::open(Arc::clone(&words), LINES, 9).unwrap();
        let mut model: BTreeMap<LineId, (u64, DeviceSlot)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Set(line, generation, gpu, slot, units) => {
                    let at = DeviceSlot { gpu: GpuId(gpu), slot: SlotId(slot), units };
                    writer.set(LineId(line), generation, at);
                    model.insert(LineId(line), (generation, at));
                }
                Step::Clear(line) => {
                    writer.clear(LineId(line));
                    model.remove(&LineId(line));
                }
                Step::Adopt(torn) => {
                    drop(writer);
                    if let Some(line) = torn.map(LineId) {
                        // Between its two stores.
                        words.store(word_of(line), 0, Ordering::Relaxed);
                        words.store(word_of(line) + 1, 77, Ordering::Relaxed);
                        model.remove(&line);
                    }
                    writer = DeviceWriter::adopt(Arc::clone(&words), LINES, 9).unwrap();
                }
            }
            for line in (0..LINES).map(LineId) {
                let Some(&(generation, at)) = model.get(&line) else {
                    prop_assert_eq!(reader.find(line, 0), None);
                    continue;
                };
                let found = reader.find(line, generation).expect("it was set");
                prop_assert_eq!((found.at, reader.still(&found)), (at, true));
                prop_assert_eq!(reader.find(line, generation + 1), None);
            }
        }
    }
}

#[test]
fn a_copy_that_went_or_came_again_elsewhere_is_not_still_there() {
    let words = memory(LINES);
    let writer = DeviceWriter::create(Arc::clone(&words), LINES, 9).unwrap();
    let at = |slot| DeviceSlot { gpu: GpuId(0), slot: SlotId(slot), units: 16 };
    writer.set(LineId(4), 3, at(16));
    let found = writer.table().find(LineId(4), 3).unwrap();
    writer.set(LineId(4), 3, at(32));
    assert!(!writer.table().still(&found));
    writer.set(LineId(4), 3, at(16));
    assert!(writer.table().still(&found), "the same bytes at the same place");
    writer.clear(LineId(4));
    assert!(!writer.table().still(&found));
}

#[test]
fn a_table_of_another_version_size_or_life_is_refused() {
    let words = memory(LINES);
    DeviceWriter::create(Arc::clone(&words), LINES, 9).unwrap();
    assert!(DeviceTable::open(Arc::clone(&words), LINES, 9).is_ok());
    assert!(DeviceTable::open(Arc::clone(&words), LINES, 8).is_err(), "another life");
    assert!(DeviceTable::open(Arc::clone(&words), LINES - 1, 9).is_err(), "other lines");
    assert!(DeviceTable::open(Arc::clone(&words), LINES + 1, 9).is_err(), "too few words");
    assert!(DeviceTable::open(memory(LINES), LINES, 9).is_err(), "no header");
    for at in [0, AT_VERSION, AT_LINES] {
        let before = words.load(at, Ordering::Relaxed);
        words.store(at, before + 1, Ordering::Relaxed);
        assert!(DeviceTable::open(Arc::clone(&words), LINES, 9).is_err(), "word {at}");
        words.store(at, before, Ordering::Relaxed);
    }
    assert_eq!(DeviceTable::open(words, LINES, 9).unwrap().find(LineId(LINES), 1), None, "no line of it");
}
