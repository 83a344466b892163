//! RDMA paths over NICs that fail by a seed: two hosts, one owning blocks, one fetching them, with a time of their own.

mod blocks;
mod lane;
mod looks;
mod stale;
mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lapis_config::UNIT_BYTES;

use super::{
    fake::{Fabric, Faults},
    said::{End, GidKind, RegionSaid, Said},
    threads::{Look, Threads},
};
use crate::peers::{
    links::LinkId,
    paths::{Came, Fetch, FromPaths, ToPaths},
};
use world::{LINK, Options, SECOND_US, STEP_US, TAIL_BYTES, World};

const SECOND: Duration = Duration::from_secs(1);

fn faultless(nics: usize) -> World {
    World::new(Options { nics, ..Options::default() })
}

#[test]
fn blocks_are_read_whole_over_every_lane() {
    for nics in [1, 3] {
        let mut world = faultless(nics);
        world.until_up();
        assert_eq!(world.fabric.pairs(), 2 * nics, "one at either side of each lane");
        for round in 0..50 {
            let slots: Vec<u32> = (0..8).map(|n| (n + round) % world.slots()).collect();
            let op = world.fetch(&slots, SECOND);
            assert_eq!(world.until_fetched(op), vec![Came::Whole; 8]);
        }
    }
}

/// One block at a time: no lane has to wait for another.
#[test]
fn blocks_come_by_the_nic_of_their_memorys_node_and_by_any_where_it_has_none() {
    for (node, near) in [(Some(0), Some(0)), (Some(1), Some(1)), (Some(7), None), (None, None)] {
        let mut world = World::new(Options { nics: 2, node, ..Options::default() });
        world.until_up();
        let reads = |world: &World| [0, 1].map(|nic| world.asker.nics[nic].reads.load(Ordering::Relaxed));
        let before = reads(&world);
        for slot in 0..20 {
            let op = world.fetch(&[slot], SECOND);
            assert_eq!(world.until_fetched(op), vec![Came::Whole]);
        }
        let read = [0, 1].map(|nic| reads(&world)[nic] - before[nic]);
        assert_eq!(read.iter().sum::<u64>(), 20, "{node:?}: {read:?}");
        if let Some(near) = near {
            assert_eq!(read[near], 20, "{node:?}: {read:?}");
        }
    }
}

#[test]
fn blocks_that_cross_regions_are_cut_at_their_borders() {
    let mut world = World::new(Options { region_bytes_max: 3 * UNIT_BYTES, block_units: 2, ..Options::default() });
    world.until_up();
    let slots: Vec<u32> = (0..world.slots()).collect();
    let op = world.fetch(&slots, SECOND);
    assert!(world.until_fetched(op).iter().all(|came| *came == Came::Whole));
}

#[test]
fn what_follows_a_block_in_its_slot_comes_with_it() {
    let mut world = faultless(1);
    world.until_up();
    world.blocks.write_tail(3, &[7; TAIL_BYTES as usize]);
    let wanted = vec![world.blocks.wanted(3, 5, 1)];
    let op = world.begin(LINK, wanted, vec![5], SECOND);
    assert_eq!(world.until_fetched(op), vec![Came::Whole]);
    assert_eq!(world.blocks.tail(5), [7; TAIL_BYTES as usize]);
}

#[test]
fn a_fetch_before_a_lane_is_up_or_on_no_link_at_all_is_not_kept_waiting() {
    let mut world = faultless(1);
    let op = world.fetch(&[1, 2], SECOND);
    let before = world.now();
    assert_eq!(world.until_fetched(op), vec![Came::Not; 2]);
    assert!(world.now() - before < SECOND_US / 100);
    world.until_up();
    let op = world.fetch_on(LinkId(77), &[1], SECOND);
    assert_eq!(world.until_fetched(op), vec![Came::Not]);
}

#[test]
fn a_cut_link_ends_every_fetch_by_its_deadline_and_heals_by_itself() {
    let mut world = faultless(2);
    world.until_up();
    let short = world.fetch(&[1, 2, 3], Duration::from_millis(20));
    let long = world.fetch(&[4, 5, 6], Duration::from_millis(200));
    let began = world.now();
    world.post();
    world.fabric.cut();
    assert_eq!(world.until_fetched(short), vec![Came::Not; 3]);
    assert!(world.now() - began <= 20_000 + world::LATE_US, "{} us", world.now() - began);
    assert_eq!(world.until_fetched(long), vec![Came::Not; 3], "its lanes are gone as well");
    assert!(world.now() - began <= 200_000 + world::LATE_US);
    world.until_up();
    let op = world.fetch(&[1, 2, 3], SECOND);
    assert_eq!(world.until_fetched(op), vec![Came::Whole; 3]);
}

/// To destroy a pair takes a second on a link that is dead; what its NIC hands back is there much sooner.
#[test]
fn what_a_nic_hands_back_after_the_deadline_is_waited_for_before_its_pair_is_destroyed() {
    let mut world = faultless(1);
    world.until_up();
    let op = world.fetch(&[1, 2, 3], Duration::from_millis(50));
    world.post();
    world.fabric.cut();
    world.fabric.mute(true);
    world.run(52_000);
    assert_eq!(world.fabric.pairs(), 2, "one at either side");
    world.fabric.mute(false);
    assert_eq!(world.until_fetched(op), vec![Came::Not; 3]);
}

#[test]
fn a_lane_that_fails_leaves_its_reads_to_the_others() {
    let mut world = faultless(2);
    world.until_up();
    for _ in 0..200 {
        let op = world.fetch(&[1, 2, 3, 4], SECOND);
        world.post();
        world.fail_a_lane();
        assert_eq!(world.until_fetched(op), vec![Came::Whole; 4]);
        world.until_up();
    }
}

#[test]
fn when_a_peer_goes_its_fetches_end_at_once_and_its_guests_pairs_are_gone() {
    let mut world = faultless(2);
    world.until_up();
    let op = world.fetch(&[1, 2], SECOND);
    world.post();
    let before = world.now();
    world.asker.tell(world.now(), ToPaths::PeerGone { link: LINK });
    assert_eq!(world.until_fetched(op), vec![Came::Not; 2]);
    assert_eq!(world.now(), before, "as soon as its pairs are destroyed");
    assert_eq!(world.fabric.pairs_in_use(), 2, "the owner's");
    world.owner.tell(world.now(), ToPaths::GuestGone { link: LINK });
    assert_eq!(world.fabric.pairs_in_use(), 0, "at once");
    world.run(20 * STEP_US);
    assert_eq!(world.fabric.pairs(), 0, "destroyed");
}

#[test]
fn nothing_can_be_read_after_the_session_ended() {
    let mut world = faultless(1);
    world.until_up();
    world.owner.tell(world.now(), ToPaths::GuestGone { link: LINK });
    let op = world.fetch(&[1], Duration::from_millis(50));
    let reads = world.fabric.lock().reads;
    assert_eq!(world.until_fetched(op), vec![Came::Not]);
    assert_eq!(world.fabric.lock().reads, reads, "no READ succeeded");
}

#[test]
fn memory_that_comes_later_can_be_read_later() {
    let mut world = World::new(Options { memory_later: true, ..Options::default() });
    world.until_connected();
    let op = world.fetch(&[1], SECOND);
    assert_eq!(world.until_fetched(op), vec![Came::Not]);
    world.add_memory();
    world.until_up();
    let op = world.fetch(&[1], SECOND);
    assert_eq!(world.until_fetched(op), vec![Came::Whole]);
}

#[test]
fn a_group_cannot_read_anothers_memory_even_if_told_its_keys() {
    let mut world = faultless(1);
    world.until_up();
    let key = world.another_groups_memory();
    let region = RegionSaid { first: 1 << 20, units: 4, address: key.0, key: key.1 };
    let said = Said::Regions { lane: 0, session: 1, regions: vec![region] }.encode();
    world.asker.tell(world.now(), ToPaths::Heard { link: LINK, said });
    let op = world.fetch_at(1 << 20, Duration::from_millis(100));
    assert_eq!(world.until_fetched(op), vec![Came::Not]);
}

/// Whoever fetches may not be read by in return: its owner need not be one that may ask it.
#[test]
fn only_the_owners_half_of_a_pair_can_be_read_by() {
    let mut world = faultless(3);
    world.until_up();
    assert_eq!((world.fabric.pairs_in_use(), world.fabric.pairs_read()), (6, 3));
}

/// To connect is no proof: addresses are resolved, and no packet goes to the other side.
#[test]
fn a_lane_by_which_nothing_can_be_read_is_never_up() {
    let mut world = faultless(2);
    world.fabric.wall(true);
    world.until_connected();
    for _ in 0..600 {
        world.run(SECOND_US / 10);
        assert_eq!(world.lanes_up(), 0, "blocks would be lost there that could go by TCP");
    }
    let begun = world.said.iter().filter(|said| matches!(said, Said::Begin { .. })).count();
    assert!((10..=32).contains(&begun), "two lanes, tried with growing pauses: {begun}");
    world.fabric.wall(false);
    world.until_up();
    let op = world.fetch(&[1, 2], SECOND);
    assert_eq!(world.until_fetched(op), vec![Came::Whole; 2]);
}

#[test]
fn a_nic_that_is_found_later_is_used_from_then_on() {
    let mut world = faultless(0);
    world.run(SECOND_US);
    let op = world.fetch(&[1], SECOND);
    assert_eq!(world.until_fetched(op), vec![Came::Not], "there is none");
    for nics in 1..=2 {
        world.add_nics();
        world.until_up();
        assert_eq!((world.lanes_up(), world.fabric.pairs()), (nics, 2 * nics));
        let op = world.fetch(&[1, 2, 3], SECOND);
        assert_eq!(world.until_fetched(op), vec![Came::Whole; 3]);
    }
}

#[test]
fn threads_look_for_nics_until_they_end() {
    let fabric = Fabric::default();
    let (looked, looks) = crossbeam::channel::unbounded();
    let mut later = vec![fabric.nic("later", GidKind::RoceV2Ip4)];
    let find = Box::new(move || {
        looked.send(()).unwrap_or_default();
        std::mem::take(&mut later)
    });
    let every = Duration::from_millis(1);
    let threads = Threads::start(Vec::new(), Some(Look { every, find }), Arc::new(|| {})).expect("threads");
    let mapping = world::Blocks::new(4, 1).there;
    threads.submit(ToPaths::Memory { group: 0, first: lapis_config::SlotId(0), mapping, node: None });
    let began = Instant::now();
    // Its scratch, and the memory.
    while fabric.regions() < 2 {
        assert!(began.elapsed() < Duration::from_secs(60), "it was found, and knows no memory");
        looks.recv().expect("it looks again and again");
    }
    drop(threads);
    while looks.recv_timeout(Duration::from_secs(60)).is_ok() {}
    assert_eq!(looks.recv(), Err(crossbeam::channel::RecvError), "it looks no more");
}

/// A device that is removed, or whose driver is loaded anew, is ready to be read from for ever.
#[test]
fn a_nic_that_is_gone_does_not_keep_its_thread_awake() {
    let fabric = Fabric::default();
    let gone = fabric.nic("gone", GidKind::RoceV2Ip4).gone();
    let threads = Threads::start(vec![gone.clone()], None, Arc::new(|| {})).expect("threads");
    let turns = || gone.taken.load(Ordering::Relaxed);
    while turns() == 0 {
        std::thread::yield_now();
    }
    let nothing = crossbeam::channel::never::<()>().recv_timeout(Duration::from_millis(500));
    assert!(nothing.is_err() && turns() < 20, "woken {} times in half a second", turns());
    drop(threads);
}

#[test]
fn a_host_without_a_nic_of_the_others_kind_says_so() {
    let mut world = World::new(Options { owner_kind: GidKind::InfiniBand, ..Options::default() });
    world.run(3 * SECOND_US);
    let said =
        world.said.iter().filter(|said| matches!(said, Said::Refused { reason, .. } if reason.contains("no NIC")));
    let refused = said.count();
    assert!((3..10).contains(&refused), "asked again with growing pauses: {refused}");
    assert_eq!(world.fabric.pairs(), 0);
}

#[test]
fn an_owner_that_does_not_answer_is_asked_less_and_less() {
    let mut world = faultless(1);
    world.owner_is_deaf = true;
    world.run(60 * SECOND_US);
    let begun = world.said.iter().filter(|said| matches!(said, Said::Begin { .. })).count();
    assert!((5..=13).contains(&begun), "{begun}");
    world.owner_is_deaf = false;
    world.until_up();
}

#[test]
fn what_has_no_hope_to_be_in_time_is_not_begun() {
    let mut world = World::new(Options { block_units: 4, ..Options::default() });
    world.until_up();
    let slots: Vec<u32> = (0..world.slots() / 2).collect();
    let op = world.fetch(&slots, SECOND);
    world.until_fetched(op);
    let first = world.fetch(&slots, SECOND);
    world.post();
    let second = world.fetch(&slots, Duration::from_micros(5));
    assert!(world.until_fetched(second).iter().all(|came| *came == Came::Not));
    assert!(world.until_fetched(first).iter().all(|came| *came == Came::Whole), "its lane was not taken from it");
}

/// Whatever a peer says: no panic, nothing written where no fetch is, no block that is not one.
#[test]
fn a_peer_that_lies_harms_nothing() {
    for seed in 0..40 {
        let mut world = World::new(Options { seed, nics: 2, ..Options::default() });
        world.until_up();
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..100 {
            let (lane, session) = (random.u8(..3), random.u32(..4));
            let end = End {
                pair: random.u32(..40),
                packet: 0,
                gid: [0; 16],
                kind: GidKind::RoceV2Ip4,
                lid: 0,
                mtu: 5,
                reads_max: 1,
            };
            let region = RegionSaid {
                first: random.u32(..200),
                units: random.u32(..100),
                address: world.some_address(&mut random),
                key: random.u32(..60),
            };
            let nic = "nic0".to_owned();
            let said = match random.u8(..5) {
                0 => Said::Begin { lane, session, nic, end },
                1 => Said::Answer { lane, session, nic, end },
                2 => Said::Refused { lane, session, reason: "no".into() },
                _ => Said::Regions { lane, session, regions: vec![region] },
            };
            let mut bytes = said.encode();
            if random.u8(..10) == 0 {
                bytes.truncate(random.usize(..bytes.len()));
            }
            let side = if random.u8(..4) == 0 { &mut world.owner } else { &mut world.asker };
            side.tell(world.now, ToPaths::Heard { link: LINK, said: bytes });
            let op = world.fetch(&[random.u32(..8)], Duration::from_millis(30));
            world.until_fetched(op);
        }
    }
}

/// The same code as it runs in a daemon: its threads, its sleeps, its wake-ups.
#[test]
fn threads_carry_every_fetch_to_its_end() {
    let faults = Faults { stuck: 0, absent: 0, ..Faults::all() };
    let fabric = Fabric::new(7, faults);
    let over = Arc::new(AtomicBool::new(false));
    let pump = std::thread::spawn({
        let (fabric, over) = (fabric.clone(), over.clone());
        move || {
            while !over.load(Ordering::Relaxed) {
                if !fabric.step() {
                    std::thread::yield_now();
                }
            }
        }
    });
    let (heard, news) = crossbeam::channel::unbounded();
    let side = |name: &str| {
        let nics = vec![fabric.nic(name, GidKind::RoceV2Ip4), fabric.nic(&format!("{name}b"), GidKind::RoceV2Ip4)];
        let heard = heard.clone();
        Threads::start(nics, None, Arc::new(move || heard.send(()).unwrap_or_default())).expect("threads")
    };
    let (owner, asker) = (side("a"), side("b"));
    let blocks = world::Blocks::new(64, 16);
    owner.submit(ToPaths::Memory {
        group: 0,
        first: lapis_config::SlotId(0),
        mapping: blocks.there.clone(),
        node: None,
    });
    asker.submit(ToPaths::Memory {
        group: 0,
        first: lapis_config::SlotId(0),
        mapping: blocks.here.clone(),
        node: None,
    });
    owner.submit(ToPaths::Guest { group: 0, link: LINK, word: 0 });
    asker.submit(world::peer());
    let began = Instant::now();
    let (mut whole, mut op, mut waits) = (0, 0, false);
    while whole < 300 {
        assert!(began.elapsed() < Duration::from_secs(120), "{whole} fetches in two minutes");
        while let Some(FromPaths::Say { link, said }) = owner.poll() {
            asker.submit(ToPaths::Heard { link, said });
        }
        while let Some(from) = asker.poll() {
            match from {
                FromPaths::Say { link, said } => owner.submit(ToPaths::Heard { link, said }),
                FromPaths::Looked { .. } => unreachable!("nothing is looked up"),
                FromPaths::Fetched { op: ended, came, .. } => {
                    assert_eq!(ended, op);
                    fabric.unlend(blocks.address(0));
                    whole += usize::from(came.iter().all(|came| *came == Came::Whole));
                    assert!(!came.contains(&Came::Corrupt), "nobody changed anything");
                    waits = false;
                }
            }
        }
        let slots: Vec<u32> = (0..16).collect();
        let fetch = blocks.fetch(op + 1, LINK, &slots, Duration::from_secs(30));
        if !waits && asker.takes(&fetch) {
            (op, waits) = (op + 1, true);
            fabric.lend(blocks.address(0), 16 * 16 * UNIT_BYTES);
            asker.submit(ToPaths::Fetch(fetch));
        }
        // Woken by either side; lanes that come up wake nobody.
        let _ = news.recv_timeout(Duration::from_millis(5));
    }
    // A thread that fails has fetches go another way: the same one twice is a mistake that it does not bear.
    let nothing = |op| Fetch { op, blocks: Vec::new(), ..blocks.fetch(0, LINK, &[], SECOND) };
    while !asker.takes(&nothing(op)) {
        assert!(began.elapsed() < Duration::from_secs(180), "no lane is up");
        // The last one may have failed with the last fetch: others are made only if either side hears of it.
        while let Some(FromPaths::Say { link, said }) = owner.poll() {
            asker.submit(ToPaths::Heard { link, said });
        }
        while let Some(FromPaths::Say { link, said }) = asker.poll() {
            owner.submit(ToPaths::Heard { link, said });
        }
        let _ = news.recv_timeout(Duration::from_millis(5));
    }
    while !asker.is_over() {
        op += 1;
        (0..2).for_each(|_| asker.submit(ToPaths::Fetch(nothing(op))));
        assert!(began.elapsed() < Duration::from_secs(180), "its thread is there still");
    }
    assert!(!asker.takes(&nothing(op)), "nobody is there who would do it");
    drop((asker, owner));
    assert_eq!(fabric.pairs(), 0, "nothing is left that could write");
    over.store(true, Ordering::Relaxed);
    pump.join().expect("no write where no fetch was");
}
