//! READs race with the reuse of the slots that they read: whatever the clocks say and whatever fails, a block is whole only
//! if it is, byte for byte, the one that was located.

use std::{collections::BTreeMap, time::Duration};

use super::{
    super::fake::Faults,
    world::{LINK, Options, World},
};
use crate::peers::paths::{Came, ToPaths, Wanted};

/// Blocks that are read; `LAPIS_RDMA_READS` says how many else.
const READS: u64 = 40_000;
const SEED: u64 = 0x5eed;

fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The owner at work: it writes other blocks into its slots, a bit at a time, without asking anybody.
#[derive(Default)]
struct Reuse {
    under_way: Option<(u32, Vec<u8>, usize)>,
}

impl Reuse {
    fn step(&mut self, world: &mut World) {
        let (slot, payload, at) = match self.under_way.take() {
            Some(under_way) => under_way,
            None if world.random.u8(..3) > 0 => return,
            None => {
                let slot = world.random.u32(..world.slots());
                (slot, world.blocks.begin_write(slot), 0)
            }
        };
        let end = payload.len().min(at + world.random.usize(1..2000));
        world.blocks.write(slot, at, &payload[at..end]);
        if end < payload.len() {
            self.under_way = Some((slot, payload, end));
        }
    }

    fn is_writing(&self, slot: u32) -> bool {
        self.under_way.as_ref().is_some_and(|(of, ..)| *of == slot)
    }
}

#[derive(Debug, Default)]
struct Counts {
    whole: u64,
    corrupt: u64,
    not: u64,
    restarts: u64,
}

/// One world, until it has tried so many blocks.
fn race(seed: u64, faults: Faults, nics: usize, blocks: u64) -> Counts {
    let mut world = World::new(Options { seed, faults, nics, slots: 64, ..Options::default() });
    let (mut reuse, mut counts) = (Reuse::default(), Counts::default());
    // What each fetch wants: the slot here, the slot there, and its version.
    let mut wants: BTreeMap<u64, Vec<(u32, u32, u64)>> = BTreeMap::new();
    while counts.whole + counts.corrupt + counts.not < blocks {
        if world.lanes_up() == 0 {
            world.run(1_000);
        }
        let count = world.random.usize(1..6);
        if wants.len() < 6
            && world.lanes_up() > 0
            && let Some(into) = world.free_slots(count)
        {
            let of = |into: &u32| {
                let slot = world.random.u32(..64);
                // Located just now, or some time ago: then it may be another's since.
                let age = u64::from(world.random.u8(..10) == 0);
                let is_old = age > 0 || reuse.is_writing(slot);
                let version = world.blocks.version(slot);
                (*into, slot, if is_old { version.saturating_sub(age).max(1) } else { version })
            };
            let want: Vec<(u32, u32, u64)> = into.iter().map(of).collect();
            let wanted: Vec<Wanted> =
                want.iter().map(|(into, slot, v)| world.blocks.wanted(*slot, *into, *v)).collect();
            let within = Duration::from_micros(world.random.u64(200..20_000));
            let op = world.begin(LINK, wanted, into, within);
            wants.insert(op, want);
        }
        reuse.step(&mut world);
        world.step();
        while let Some((op, came)) = world.ended() {
            let want = wants.remove(&op).expect("one that was wanted");
            for ((into, slot, version), came) in want.into_iter().zip(came) {
                let is_it = world.blocks.is(into, slot, version);
                match came {
                    Came::Whole => counts.whole += 1,
                    Came::Corrupt => counts.corrupt += 1,
                    Came::Not => counts.not += 1,
                }
                assert!(
                    came == Came::Not || is_it == (came == Came::Whole),
                    "seed {seed}, fetch {op}: {came:?}, {is_it}"
                );
            }
        }
        if world.random.u32(..20_000) == 0 {
            counts.restarts += 1;
            restart(&mut world);
        }
    }
    counts
}

/// The link is lost and made again, in mid-transfer.
fn restart(world: &mut World) {
    let now = world.now();
    world.asker.tell(now, ToPaths::PeerGone { link: LINK });
    world.owner.tell(now, ToPaths::GuestGone { link: LINK });
    world.step();
    assert_eq!(world.fabric.pairs_in_use(), 0, "nothing can be read any more");
    world.owner.tell(now, ToPaths::Guest { group: 0, link: LINK, word: 0 });
    world.asker.tell(now, super::world::peer());
}

#[test]
fn no_stale_or_torn_read_is_taken_for_a_block() {
    let (blocks, seed) = (asked("LAPIS_RDMA_READS", READS), asked("LAPIS_RDMA_FIRST", SEED));
    let mut all = Counts::default();
    let each = (blocks / 12).clamp(1, 1_000_000);
    for (index, seed) in (seed..).enumerate().take(blocks.div_ceil(each) as usize) {
        let faults = if index % 3 == 0 { Faults { delayed: 200_000, ..Faults::default() } } else { Faults::all() };
        let counts = race(seed, faults, 1 + index % 3, each);
        all.whole += counts.whole;
        all.corrupt += counts.corrupt;
        all.not += counts.not;
        all.restarts += counts.restarts;
    }
    println!("{blocks} blocks from seed {seed}: {all:?}");
    // Else it would show nothing.
    let some = blocks / 50;
    assert!(all.whole > blocks / 4 && all.corrupt > some && all.not > some, "{all:?}");
}
