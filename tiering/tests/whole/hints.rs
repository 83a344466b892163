//! What hints promise, under either policy.

use crate::scene::{MIB, Scene, key};
use lapis_config::{Hint, Key, PolicyName, PoolId, PoolKind, Refusal};
use lapis_tiering::{face::Put, kept::Kept};

const BOTH: [PolicyName; 2] = [PolicyName::Lru, PolicyName::Hazq];
const MINUTE_US: u64 = 60_000_000;

/// Memory of sixteen blocks.
fn scene(policy: PolicyName) -> (Scene, PoolId) {
    let mut scene = Scene::under(policy, &[16 * MIB], MIB as u32);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    (scene, pool)
}

fn keys(chain: u64, count: u64) -> Vec<Key> {
    (0..count).map(|depth| key(chain, depth)).collect()
}

fn there(scene: &Scene, pool: PoolId, chain: u64, count: u64) -> usize {
    keys(chain, count).iter().filter(|key| scene.core.kept().find(pool, key).is_some()).count()
}

/// New blocks, a second apart, by puts that are always taken.
fn flood(scene: &mut Scene, pool: PoolId, first: u64, blocks: u64) {
    for chain in first..first + blocks {
        scene.now.0 += 1_000_000;
        scene.put_from_magazine(pool, chain);
    }
    scene.core.audit().expect("sound lists");
}

#[test]
fn what_is_pinned_outlasts_all_else_until_its_time_is_over() {
    for policy in BOTH {
        let (mut scene, pool) = scene(policy);
        scene.put_chain(pool, 0, 4);
        scene.core.hint(scene.now, pool, &keys(0, 4), Hint::Pinned { ttl_ms: 60_000 });
        flood(&mut scene, pool, 1, 50);
        assert_eq!(there(&scene, pool, 0, 4), 4, "{policy:?}");
        scene.now.0 += MINUTE_US;
        flood(&mut scene, pool, 100, 50);
        assert_eq!(there(&scene, pool, 0, 4), 0, "{policy:?}: its pin is over");
    }
}

#[test]
fn a_pin_that_another_hint_ends_is_over_though_the_block_came_up_meanwhile() {
    for policy in BOTH {
        for hint in [Hint::Priority(0), Hint::Priority(9), Hint::WillReturn, Hint::Ended, Hint::Pinned { ttl_ms: 1 }] {
            let (mut scene, pool) = scene(policy);
            scene.put_chain(pool, 0, 4);
            scene.core.hint(scene.now, pool, &keys(0, 4), Hint::Pinned { ttl_ms: 600_000 });
            flood(&mut scene, pool, 1, 50);
            assert_eq!(there(&scene, pool, 0, 4), 4, "{policy:?}: each came up, and stayed");
            scene.core.hint(scene.now, pool, &keys(0, 4), hint);
            scene.core.audit().unwrap_or_else(|wrong| panic!("{policy:?} {hint:?}: {wrong}"));
            scene.now.0 += 120 * MINUTE_US;
            flood(&mut scene, pool, 100, 50);
            assert_eq!(there(&scene, pool, 0, 4), 0, "{policy:?} {hint:?}: nothing pins it");
        }
    }
}

#[test]
fn where_all_is_pinned_a_put_is_taken_and_the_pin_that_ends_first_gives_way() {
    for policy in BOTH {
        let (mut scene, pool) = scene(policy);
        for chain in 0..4 {
            scene.put_chain(pool, chain, 4);
            let ttl_ms = 600_000 - 100_000 * chain as u32;
            scene.core.hint(scene.now, pool, &keys(chain, 4), Hint::Pinned { ttl_ms });
        }
        let pinned = |scene: &Scene| (0..4).map(|chain| there(scene, pool, chain, 4)).collect::<Vec<_>>();
        assert_eq!(pinned(&scene).iter().sum::<usize>(), 16, "{policy:?}: nothing else is there");
        // Old enough to be worth more than whatever comes, and asked for by name: it may not be refused as cold either.
        for chain in 0..4 {
            scene.core.hint(scene.now, pool, &keys(chain, 4), Hint::WillReturn);
            let ttl_ms = 600_000 - 100_000 * chain as u32;
            scene.core.hint(scene.now, pool, &keys(chain, 4), Hint::Pinned { ttl_ms });
        }
        let slots = scene.reserve(pool, MIB as u32, &keys(9, 3));
        assert_eq!(slots.len(), 3, "{policy:?}");
        assert_eq!(pinned(&scene), [4, 4, 4, 1], "{policy:?}: the deepest of the one that ends first");
    }
}

#[test]
fn an_ended_session_goes_before_older_ones() {
    for policy in BOTH {
        let (mut scene, pool) = scene(policy);
        scene.put_chain(pool, 0, 6);
        scene.now.0 += MINUTE_US;
        scene.put_chain(pool, 1, 6);
        scene.core.hint(scene.now, pool, &keys(1, 6), Hint::Ended);
        // Three fit beside them, with one in the magazine.
        flood(&mut scene, pool, 10, 3 + 4);
        assert_eq!((there(&scene, pool, 0, 6), there(&scene, pool, 1, 6)), (6, 2), "{policy:?}");
    }
}

#[test]
fn a_session_that_will_return_outlasts_younger_ones() {
    for policy in BOTH {
        let (mut scene, pool) = scene(policy);
        scene.put_chain(pool, 0, 6);
        scene.now.0 += 5_000_000;
        scene.put_chain(pool, 1, 6);
        scene.core.hint(scene.now, pool, &keys(0, 6), Hint::WillReturn);
        // Three fit beside them, with one in the magazine.
        flood(&mut scene, pool, 10, 3 + 4);
        assert_eq!((there(&scene, pool, 0, 6), there(&scene, pool, 1, 6)), (6, 2), "{policy:?}");
    }
}

#[test]
fn priority_keeps_blocks_for_a_while_and_not_for_ever() {
    let (mut scene, pool) = scene(PolicyName::Hazq);
    scene.put_chain(pool, 0, 4);
    scene.core.hint(scene.now, pool, &keys(0, 4), Hint::Priority(200));
    flood(&mut scene, pool, 1, 60);
    assert_eq!(there(&scene, pool, 0, 4), 4, "a minute of new blocks");
    scene.now.0 += 30 * MINUTE_US;
    // So slow that what goes is minutes old: 64 times the worth of half an hour would outlast that.
    for chain in 100..130 {
        scene.now.0 += 20_000_000;
        scene.put_from_magazine(pool, chain);
    }
    assert_eq!(there(&scene, pool, 0, 4), 0, "half an hour later it is worth no more than others");
}

#[test]
fn higher_priority_outlasts_lower() {
    let (mut scene, pool) = scene(PolicyName::Hazq);
    for (chain, priority) in [(0, 255), (1, 1)] {
        scene.put_chain(pool, chain, 8);
        scene.core.hint(scene.now, pool, &keys(chain, 8), Hint::Priority(priority));
        // The higher one is older.
        scene.now.0 += 5_000_000;
    }
    // All that is there has one; puts are taken whatever goes for them.
    scene.now.0 += MINUTE_US;
    flood(&mut scene, pool, 10, 3);
    assert_eq!(there(&scene, pool, 0, 8), 8);
    assert!(there(&scene, pool, 1, 8) < 8);
}

#[test]
fn a_priority_halves_with_every_minute_until_it_is_worth_no_more_than_others() {
    // The highest beside the lowest, and that beside none: six and three doublings, and each minute takes one.
    for (priorities, minutes) in [([255, 1], 6), ([1, 0], 3)] {
        for (after_us, outlasts) in [(minutes * MINUTE_US - MINUTE_US / 2, true), (minutes * MINUTE_US, false)] {
            let (mut scene, pool) = scene(PolicyName::Hazq);
            let start = scene.now.0;
            for (chain, priority) in [(0, priorities[0]), (1, priorities[1])] {
                scene.put_chain(pool, chain, 8);
                scene.core.hint(scene.now, pool, &keys(chain, 8), Hint::Priority(priority));
                scene.now.0 += 1_000_000;
            }
            scene.now.0 = start + after_us;
            flood(&mut scene, pool, 10, 3);
            // Where both are worn out, the older one goes.
            let whole = [0, 1].map(|chain| there(&scene, pool, chain, 8) == 8);
            assert_eq!(whole, [outlasts, !outlasts], "{priorities:?}, {after_us} us after its last use");
        }
    }
}

#[test]
fn a_put_into_memory_that_is_free_is_never_refused_as_cold() {
    let (mut scene, pool) = scene(PolicyName::Hazq);
    for chain in 0..8 {
        assert_eq!(scene.refusals(pool, MIB as u32, &keys(chain, 2)), [None, None], "{chain}");
    }
}

#[test]
fn a_reserve_worth_less_than_its_victim_is_refused_as_cold_and_only_without_ssd() {
    for ssd in [false, true] {
        let (mut scene, pool) = scene(PolicyName::Hazq);
        if ssd {
            // Also while it is being opened.
            scene.core.ssd_coming();
        }
        scene.put_chain(pool, 0, 16);
        scene.core.hint(scene.now, pool, &keys(0, 16), Hint::Priority(255));
        let refused = scene.refusals(pool, MIB as u32, &keys(1, 1));
        let expected = if ssd { None } else { Some(Refusal::Cold) };
        assert_eq!(refused, [expected], "ssd: {ssd}");
    }
}

#[test]
fn a_put_that_comes_in_parts_never_makes_room_for_itself_out_of_itself() {
    for policy in BOTH {
        let (mut scene, pool) = scene(policy);
        for chain in 0..16 {
            scene.put_from_magazine(pool, chain);
            scene.core.hint(scene.now, pool, &keys(chain, 1), Hint::Priority(255));
        }
        for depth in 0..8 {
            assert_eq!(scene.put_next(pool, 99, depth), Put::Stored, "{policy:?}: block {depth}");
        }
        // Nobody goes on: what it came to may go like any other.
        scene.now.0 += MINUTE_US;
        flood(&mut scene, pool, 200, 50);
        assert_eq!(there(&scene, pool, 99, 8), 0, "{policy:?}");
    }
}
