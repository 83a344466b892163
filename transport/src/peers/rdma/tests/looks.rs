//! Keys are looked up in the owner's table by READs, and what it says is fetched, while the owner does as it likes with lines
//! and slots: whatever is read, a block is whole only if it is the one of its key.

use std::{collections::BTreeMap, time::Duration};

use lapis_arena::table::{LINES_AT, TableShape};
use lapis_config::Key;

use super::{
    super::{
        fake::Faults,
        said::{RegionSaid, Said},
    },
    world::{Blocks, LINK, Options, SECOND_US, Table, World},
};
use crate::peers::{
    message::Located,
    paths::{Came, ToPaths},
};

const SECOND: Duration = Duration::from_secs(1);
const LINE_BYTES: usize = 64;
/// Keys that are looked up; `LAPIS_RDMA_READS` says how many else.
const READS: u64 = 40_000;

fn with_table(options: Options, lines: u32) -> (World, Table) {
    let mut world = World::new(options);
    let table = world.add_table(lines);
    world.until_up();
    world.until_table();
    (world, table)
}

fn keys(slots: impl IntoIterator<Item = u32>) -> Vec<Key> {
    slots.into_iter().map(|slot| Blocks::key(slot, 1)).collect()
}

#[test]
fn what_is_in_the_owners_memory_is_found_and_fetched_without_asking_it() {
    for (nics, region_bytes_max) in [(1, u64::MAX), (3, 8192)] {
        // Its lines cross regions and do not fill the last one; the last ones' windows go on at the first.
        let options = Options { nics, slots: 120, region_bytes_max, ..Options::default() };
        let (mut world, table) = with_table(options, 130);
        let op = world.look(keys(0..120), SECOND);
        let found = world.until_looked(op).expect("a table");
        assert_eq!(found.len(), 120);
        let homes = |located: &Located| {
            let homes = table.shape.homes(super::world::POOL, &Blocks::key(located.slot, 1));
            (homes[0] / LINE_BYTES as u64, u64::from(located.line))
        };
        let steps = found.iter().map(homes).map(|(home, line)| (line + 130 - home) % 130);
        assert!(steps.filter(|steps| *steps >= 47).count() > 0, "some lie by their second home");
        assert!(found.iter().map(homes).filter(|(home, line)| line < home).count() > 0, "and some behind the end");
        for slots in (0..120).collect::<Vec<u32>>().chunks(8) {
            let wanted = slots.iter().zip(0..).map(|(slot, into)| {
                let located = found[*slot as usize];
                assert_eq!((located.index, located.slot), (*slot as u16, *slot));
                world.blocks.wanted_from(located, Blocks::key(*slot, 1), into)
            });
            let (wanted, into) = (wanted.collect(), (0..8).collect());
            let op = world.begin(LINK, wanted, into, SECOND);
            assert_eq!(world.until_fetched(op), vec![Came::Whole; 8]);
        }
    }
}

#[test]
fn the_leading_run_is_found_and_nothing_of_another_pool_or_key() {
    let (mut world, mut table) = with_table(Options::default(), 128);
    table.unpublish(&world.blocks, 5);
    let op = world.look(keys(0..20), SECOND);
    assert_eq!(world.until_looked(op).expect("a table").len(), 5);
    let op = world.look(vec![Key([9; 4])], SECOND);
    assert_eq!(world.until_looked(op), Some(Vec::new()));
    let op = world.look(Vec::new(), SECOND);
    assert_eq!(world.until_looked(op), Some(Vec::new()));
}

#[test]
fn more_keys_than_scratch_has_room_for_take_turns() {
    let (mut world, _table) = with_table(Options { slots: 400, ..Options::default() }, 512);
    let ops: Vec<u64> = (0..3).map(|_| world.look(keys(0..400), SECOND)).collect();
    for op in ops {
        assert_eq!(world.until_looked(op).expect("a table").len(), 400);
    }
    assert!(world.asker.mover.looks_are_idle());
}

#[test]
fn without_a_table_at_either_side_nothing_is_looked_up() {
    let mut world = World::new(Options::default());
    world.until_up();
    let op = world.look(keys([1]), SECOND);
    assert_eq!(world.until_looked(op), None, "neither has one");
    world.owner.tell(world.now, Table::new(128).shown(0));
    world.until_table();
    let op = world.look(keys([1]), SECOND);
    assert_eq!(world.until_looked(op), None, "it looks nothing up that does not let itself be read");
}

#[test]
fn a_look_ends_by_its_deadline_whatever_the_wire_does_and_its_places_come_back() {
    let (mut world, _table) = with_table(Options::default(), 128);
    let began = world.now;
    let op = world.look(keys(0..32), Duration::from_millis(20));
    world.post();
    world.fabric.cut();
    assert!(world.until_looked(op).is_none_or(|found| found.is_empty()));
    assert!(world.now - began <= 20_000 + 1_000, "{} us", world.now - began);
    // Another fetch's end takes the dead lane down.
    let op = world.fetch(&[1], Duration::from_millis(20));
    world.until_fetched(op);
    world.until_up();
    world.until_table();
    let op = world.look(keys(0..32), SECOND);
    assert_eq!(world.until_looked(op).expect("a table").len(), 32);
    assert!(world.asker.mover.looks_are_idle());
}

#[test]
fn a_table_cannot_be_read_after_the_session_ended() {
    let (mut world, _table) = with_table(Options::default(), 128);
    world.owner.tell(world.now, ToPaths::GuestGone { link: LINK });
    let reads = world.fabric.lock().reads;
    let op = world.look(keys([1, 2]), Duration::from_millis(50));
    assert!(world.until_looked(op).is_none_or(|found| found.is_empty()));
    assert_eq!(world.fabric.lock().reads, reads, "no READ succeeded");
    let op = world.look(keys([1]), SECOND);
    world.post();
    world.asker.tell(world.now, ToPaths::PeerGone { link: LINK });
    assert!(world.until_looked(op).is_none_or(|found| found.is_empty()));
}

#[test]
fn another_groups_table_is_not_found_even_if_told_where_it_is() {
    let (mut world, mine) = with_table(Options::default(), 128);
    let mut other = Table::new(128);
    other.publish(&world.blocks, 3);
    let (nic, address) = (world.owner.nics[0].clone(), other.mapping.as_ptr(LINES_AT) as u64);
    world.owner.tell(world.now, other.shown(1));
    world.run(SECOND_US / 10);
    let region = RegionSaid { first: 0, units: 2, address, key: nic.key_of(address) };
    let said = Said::Table { lane: 0, session: 1, shape: mine.shape, regions: vec![region] }.encode();
    world.asker.tell(world.now, ToPaths::Heard { link: LINK, said });
    let op = world.look(keys([3]), Duration::from_millis(100));
    assert_eq!(world.until_looked(op), Some(Vec::new()));
}

#[test]
fn a_new_table_takes_the_place_of_the_former_one() {
    let (mut world, _former) = with_table(Options::default(), 128);
    let mut table = Table::new(256);
    table.publish(&world.blocks, 7);
    world.owner.tell(world.now, table.shown(0));
    world.run(SECOND_US / 10);
    let op = world.look(keys([7, 8]), SECOND);
    assert_eq!(world.until_looked(op).expect("a table").len(), 1);
}

/// Whatever table a peer says to have: no panic, nothing written where it may not be, no block that is not one.
#[test]
fn an_owner_that_lies_about_its_table_harms_nothing() {
    for seed in 0..40 {
        let (mut world, table) = with_table(Options { seed, nics: 2, ..Options::default() }, 128);
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..60 {
            let region = RegionSaid {
                first: random.u32(..4),
                units: random.u32(..100),
                address: world.some_address(&mut random),
                key: random.u32(..60),
            };
            let lines = if random.bool() { 128 } else { random.u32(128..u32::MAX) };
            let shape = TableShape { instance: random.u64(..3), lines, ..table.shape };
            let (lane, session) = (random.u8(..3), random.u32(..4));
            let said = Said::Table { lane, session, shape, regions: vec![region; random.usize(..3)] };
            world.asker.tell(world.now, ToPaths::Heard { link: LINK, said: said.encode() });
            let op = world.look(keys(0..4), Duration::from_millis(5));
            let Some(mut found) = world.until_looked(op) else { continue };
            // What is wrong in its lines goes on to the fetch.
            for located in &mut found {
                match random.u8(..4) {
                    0 => located.slot = random.u32(..),
                    1 => located.slot = random.u32(..world.slots()),
                    2 => located.sum ^= 1 << random.u8(..64),
                    _ => {}
                }
            }
            fetch_all(&mut world, &found);
        }
    }
}

/// Each is whole only if it is the block of its key.
fn fetch_all(world: &mut World, found: &[Located]) {
    let of = |(into, located): (u32, &Located)| {
        let key = Blocks::key(located.index.into(), 1);
        world.blocks.wanted_from(*located, key, into)
    };
    let wanted = (0..).zip(found).map(of).collect();
    let op = world.begin(LINK, wanted, (0..found.len() as u32).collect(), Duration::from_millis(30));
    for (into, came) in (0..).zip(world.until_fetched(op)) {
        let slot = u32::from(found[into as usize].index);
        assert!(came != Came::Whole || world.blocks.is(into, slot, 1), "block {slot}");
    }
}

/// The owner at work: it takes lines away, writes other blocks into their slots bit by bit, and publishes those. Now and then
/// a line is seen half written, with words of another one.
struct Reuse {
    table: Table,
    under_way: Option<(u32, Vec<u8>, usize)>,
    torn: Option<(usize, Vec<u8>)>,
}

impl Reuse {
    fn step(&mut self, world: &mut World) {
        self.mend();
        let (slot, payload, at) = match self.under_way.take() {
            Some(under_way) => under_way,
            None if world.random.u8(..3) > 0 => return self.tear(world),
            None => {
                let slot = world.random.u32(..world.slots());
                self.table.unpublish(&world.blocks, slot);
                (slot, world.blocks.begin_write(slot), 0)
            }
        };
        let end = payload.len().min(at + world.random.usize(1..2000));
        world.blocks.write(slot, at, &payload[at..end]);
        if end < payload.len() {
            self.under_way = Some((slot, payload, end));
        } else {
            self.table.publish(&world.blocks, slot);
        }
    }

    fn tear(&mut self, world: &mut World) {
        let mut line = || {
            let slot = world.random.u32(..world.slots());
            let key = Blocks::key(slot, world.blocks.version(slot));
            let found = self.table.writer.find(super::world::POOL, &key)?;
            Some(LINES_AT + found.line.0 as usize * LINE_BYTES)
        };
        let (Some(at), Some(other)) = (line(), line()) else { return };
        let was = self.table.mapping.to_vec(at, LINE_BYTES);
        let other = self.table.mapping.to_vec(other, LINE_BYTES);
        for word in (0..LINE_BYTES).step_by(8).filter(|_| world.random.u8(..4) == 0) {
            self.table.mapping.copy_in(at + word, &other[word..word + 8]);
        }
        self.torn = Some((at, was));
    }

    fn mend(&mut self) {
        if let Some((at, was)) = self.torn.take() {
            self.table.mapping.copy_in(at, &was);
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    looked: u64,
    unseen: u64,
    whole: u64,
    corrupt: u64,
    not: u64,
}

fn race(seed: u64, faults: Faults, nics: usize, keys: u64, counts: &mut Counts) {
    let options = Options { seed, faults, nics, slots: 64, ..Options::default() };
    let (mut world, table) = with_table(options, 128);
    let mut reuse = Reuse { table, under_way: None, torn: None };
    // By look, and by fetch with its slots here: slots there and versions.
    let mut looks: BTreeMap<u64, Vec<(u32, u64)>> = BTreeMap::new();
    let mut fetches: BTreeMap<u64, Vec<(u32, u32, u64)>> = BTreeMap::new();
    let end = counts.looked + keys;
    while counts.looked < end {
        if looks.len() < 4 && world.asker.reaches.looks(LINK) {
            let count = world.random.usize(1..6);
            let want: Vec<u32> = (0..count).map(|_| world.random.u32(..64)).collect();
            let want: Vec<(u32, u64)> = want.into_iter().map(|slot| (slot, world.blocks.version(slot))).collect();
            let keys = want.iter().map(|(slot, version)| Blocks::key(*slot, *version)).collect();
            let within = Duration::from_micros(world.random.u64(200..20_000));
            looks.insert(world.look(keys, within), want);
        } else if looks.is_empty() && fetches.is_empty() {
            world.run(1_000);
        }
        reuse.step(&mut world);
        world.step();
        while let Some((op, found)) = world.looked.pop_first() {
            let want = looks.remove(&op).expect("one that was begun");
            let found = found.unwrap_or_default();
            counts.looked += want.len() as u64;
            counts.unseen += (want.len() - found.len()) as u64;
            let Some(into) = world.free_slots(found.len()).filter(|into| !into.is_empty()) else { continue };
            let of = |(located, into): (&Located, &u32)| {
                let (slot, version) = want[usize::from(located.index)];
                let wanted = world.blocks.wanted_from(*located, Blocks::key(slot, version), *into);
                // Its slots have one length: the engine refuses another before it fetches.
                assert_eq!(located.bytes, world.blocks.bytes());
                (wanted, (*into, slot, version))
            };
            let (wanted, fetched) = found.iter().zip(&into).map(of).unzip();
            let within = Duration::from_micros(world.random.u64(200..20_000));
            fetches.insert(world.begin(LINK, wanted, into, within), fetched);
        }
        while let Some((op, came)) = world.ended() {
            let fetched = fetches.remove(&op).expect("one that was begun");
            for ((into, slot, version), came) in fetched.into_iter().zip(came) {
                let is_it = world.blocks.is(into, slot, version);
                match came {
                    Came::Whole => counts.whole += 1,
                    Came::Corrupt => counts.corrupt += 1,
                    Came::Not => counts.not += 1,
                }
                assert!(came != Came::Whole || is_it, "seed {seed}, fetch {op}: {slot} in version {version}");
            }
        }
    }
    reuse.mend();
}

#[test]
fn no_stale_or_torn_line_or_slot_is_taken_for_a_block() {
    let asked = |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (keys, first) = (asked("LAPIS_RDMA_READS", READS), asked("LAPIS_RDMA_FIRST", 0x1005_e5e5));
    let mut counts = Counts::default();
    let each = (keys / 8).clamp(1, 1_000_000);
    for (index, seed) in (first..).enumerate().take(keys.div_ceil(each) as usize) {
        let faults = if index % 2 == 0 { Faults { delayed: 200_000, ..Faults::default() } } else { Faults::all() };
        race(seed, faults, 1 + index % 3, each, &mut counts);
    }
    println!("{keys} keys from seed {first}: {counts:?}");
    // Else it would show nothing.
    let some = keys / 100;
    assert!(counts.whole > keys / 4 && counts.corrupt > some && counts.unseen > some, "{counts:?}");
}
