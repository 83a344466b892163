//! What was removed stays removed: scenes that random steps come upon too seldom.

use std::collections::BTreeSet;

use crate::world::{World, key};
use lapis_config::{ClientId, HitPolicy, Key, PolicyName, PoolId, Time, Wait};
use lapis_tiering::{
    face::{Outcome, Parent},
    kept::{Kept, Tier},
};

const POOL: u16 = 1;
const CLIENT: ClientId = ClientId(1);
const DEPTH: u32 = 8;

fn put_chain(world: &mut World, chain: u32) {
    world.reserve(CLIENT, POOL, 8, (0..DEPTH).map(|depth| key(chain, depth)).collect(), Parent::None, 900_000);
    world.perform();
    world.commit(CLIENT, POOL, 64, chain, 0);
    world.check();
}

/// Blocks that are in memory and, if `on_ssd`, on SSD as well; else in memory alone.
fn in_memory(world: &mut World, on_ssd: bool) -> BTreeSet<Key> {
    let core = world.core();
    let kept = core.kept();
    let lines = (0..kept.lines()).map(lapis_config::LineId);
    let lines = lines.filter_map(|line| kept.live(line).map(|live| (live, kept.entry(line).ssd != 0)));
    let found = lines.filter(|(live, ssd)| live.place.tier != Tier::Elsewhere && *ssd == on_ssd);
    found.map(|(live, _)| live.key).collect()
}

#[test]
fn a_removed_block_does_not_come_back_from_a_segment_that_was_given_up_and_is_not_wiped_yet() {
    let mut world = World::with_ssd(PolicyName::Lru, 768, 1);
    world.populate(0, 512);
    world.recover();
    world.check();
    let mut clean = BTreeSet::new();
    for chain in 0..400 {
        let retired = world.core().counts().segments_retired;
        put_chain(&mut world, chain);
        // What went to SSD comes back, and is in both until its segment's end.
        let keys = (0..DEPTH).map(|depth| key(0, depth)).collect();
        match chain {
            ..16 => {}
            16 => world.get(CLIENT, &[(PoolId(POOL), HitPolicy::Prefix)], keys, Wait::Present, 900_000),
            _ => world.touch(POOL, 0, DEPTH - 1),
        }
        world.complete_all_but_opens();
        world.check();
        if world.core().counts().segments_retired > retired {
            // Blocks that were on SSD too and are in memory alone now: only the given-up segment has their records.
            let former: Vec<Key> = in_memory(&mut world, false).intersection(&clean).copied().collect();
            if let Some(key) = former.first() {
                let [chain, depth, ..] = key.0;
                world.remove(CLIENT, POOL, chain as u32, depth as u32);
                world.complete_all_but_opens();
                world.restart();
                world.recover();
                world.check();
                assert_eq!(world.core().kept().find(PoolId(POOL), key), None, "it is there again");
                return world.end();
            }
        }
        while world.ops() > 0 {
            world.complete(0, Outcome::Ok);
            world.perform();
        }
        clean = in_memory(&mut world, true);
    }
    panic!("no block was left in memory alone by a segment's end");
}

/// Of a chain; its last block is a part of one and stays in memory.
const ON_SSD: u32 = DEPTH - 1;

/// A world with a chain that is on SSD.
fn on_ssd() -> World {
    let mut world = World::with_ssd(PolicyName::Lru, 768, 1);
    world.populate(0, 512);
    world.recover();
    put_chain(&mut world, 0);
    world.core().flush(Time(1), 1 << 30);
    all_done(&mut world);
    assert_eq!(world.core().counts().ssd_blocks, u64::from(ON_SSD));
    world
}

fn all_done(world: &mut World) {
    for _ in 0..20 {
        world.wait(100_000);
        world.check();
        while world.ops() > 0 {
            world.complete(0, Outcome::Ok);
            world.check();
        }
    }
}

/// What a purge took is not there any more for a removal that comes behind it; a restart may find it all the same as long as
/// the purge is not written down.
#[test]
fn a_removal_of_what_a_purge_took_is_not_over_before_the_purge_is() {
    for purged_early in [false, true] {
        let mut world = on_ssd();
        if purged_early {
            world.restart();
        }
        world.purge(CLIENT, POOL);
        world.remove(CLIENT, POOL, 0, ON_SSD - 1);
        world.check();
        world.recover();
        world.check();
        // The daemon dies before the purge is listed: whatever was answered does not come back.
        world.restart();
        world.recover();
        assert_eq!(world.core().counts().ssd_found, u64::from(ON_SSD), "the purge was not listed");

        world.purge(CLIENT, POOL);
        world.remove(CLIENT, POOL, 0, ON_SSD - 1);
        all_done(&mut world);
        world.restart();
        world.recover();
        assert_eq!(world.core().counts().ssd_found, 0);
        world.end();
    }
}

/// A device that says that a page failed may have it all the same, and one that was under way beside it gets there.
#[test]
fn a_removed_block_does_not_come_back_from_a_page_that_counts_as_failed() {
    let mut world = World::with_ssd(PolicyName::Lru, 768, 1);
    world.populate(0, 512);
    world.recover();
    world.check();
    let mut failed = 0;
    for chain in 0..400 {
        put_chain(&mut world, chain);
        world.wait(50_000);
        world.perform();
        for _ in 0..2 {
            world.complete_all_but_pages();
            world.wait(30_000);
            world.perform();
        }
        if !world.fail_second_page() {
            continue;
        }
        failed += 1;
        world.check();
        for chain in 0..=chain {
            world.remove(CLIENT, POOL, chain, 0);
        }
        all_done(&mut world);
        world.restart();
        world.recover();
        world.check();
        if failed == 3 {
            break;
        }
    }
    assert_eq!(failed, 3);
    world.end();
}
