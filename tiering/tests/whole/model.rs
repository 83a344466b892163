//! Random operations of clients that reserve, fill, commit, die and come back, readers that name slots, daemons that
//! restart: after each the core is audited and compared with what everyone was told.

use crate::world::{POOLS, World, key};
use lapis_config::{ClientId, Hint, HitPolicy, PolicyName, PoolId, Wait};
use lapis_tiering::face::{Outcome, Parent};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Step {
    what: u8,
    who: u8,
    pool: u16,
    chain: u32,
    depth: u32,
    count: u32,
    wait_us: u64,
}

fn step() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![Just(0), Just(10_000), Just(900_000)];
    (0u8..48, any::<u8>(), 0..POOLS.len() as u16, 0u32..6, 0u32..14, 1u32..24, wait).prop_map(
        |(what, who, pool, chain, depth, count, wait_us)| Step { what, who, pool, chain, depth, count, wait_us },
    )
}

/// What GPUs add.
fn apply_to_gpus(world: &mut World, step: Step) {
    let Step { what, who, pool, chain, depth, count, .. } = step;
    let ids: Vec<ClientId> = world.clients.keys().copied().collect();
    let Some(&id) = ids.get(usize::from(who) % ids.len().max(1)) else { return world.connect() };
    let (gpu, chains) = (who / 7 % 2, pool % 3);
    match what {
        0..3 => {
            world.reserve_on_gpu(id, gpu, chains, (0..count).map(|d| key(chain, d)).collect(), Parent::None);
            world.commit_on_gpu(id, gpu, chains, 64);
        }
        3 => {
            let parent = depth.checked_sub(1).map_or(Parent::None, |above| Parent::Key(key(chain, above)));
            let keys = (depth..depth + count).map(|d| key(chain, d)).collect();
            world.reserve_on_gpu(id, gpu, chains, keys, parent);
        }
        4 => world.commit_on_gpu(id, gpu, chains, count as usize),
        5 => world.abort_on_gpu(id, gpu, count as usize),
        6..12 => {
            // Twice, and later: then it is wanted there.
            for _ in 0..2 {
                world.tick(150_000);
                world.read_into(gpu, chains, chain, depth);
            }
        }
        12 => world.want_on_gpu(gpu, chains, chain, depth),
        13..15 => world.name_on_gpu(chains, chain, depth),
        15 | 16 => world.unname_on_gpu(count as usize),
        17 if count % 4 == 0 => world.lose_gpu(gpu),
        18 => (0..2).for_each(|id| {
            if !world.has_gpu(id) {
                world.add_gpu(id)
            }
        }),
        19 if who % 4 == 0 => world.restart(),
        _ => (0..1 + depth)
            .for_each(|_| world.complete(who.into(), if count == 2 { Outcome::Failed } else { Outcome::Ok })),
    }
}

fn with_gpus(mut world: World, steps: Vec<(bool, Step)>) {
    world.populate(0, 512);
    world.add_gpu(0);
    world.add_gpu(1);
    world.check();
    for (on_gpu, step) in steps {
        if on_gpu {
            apply_to_gpus(&mut world, Step { what: step.what / 2, ..step });
        } else {
            apply(&mut world, step);
        }
        world.check();
    }
    world.end();
}

fn policy() -> impl Strategy<Value = PolicyName> {
    prop_oneof![Just(PolicyName::Hazq), Just(PolicyName::Lru)]
}

fn apply(world: &mut World, step: Step) {
    let Step { what, who, pool, chain, depth, count, wait_us } = step;
    let ids: Vec<ClientId> = world.clients.keys().copied().collect();
    let Some(&id) = ids.get(usize::from(who) % ids.len().max(1)) else { return world.connect() };
    let units = if pool == 3 { 1 + (count * 7 + depth) % 40 } else { POOLS[pool as usize].1 };
    match what {
        0..4 => world.refill(id, pool, units, count, wait_us),
        4..8 => {
            // As clients mostly do: the whole chain at once.
            world.reserve(id, pool, units, (0..count).map(|d| key(chain, d)).collect(), Parent::None, wait_us);
            world.perform();
            world.commit(id, pool, 64, chain, 0);
        }
        8..11 => {
            let parent = depth.checked_sub(1).map_or(Parent::None, |above| Parent::Key(key(chain, above)));
            let keys = (depth..depth + count).map(|d| key(chain, d)).collect();
            world.reserve(id, pool, units, keys, parent, wait_us);
        }
        11..16 => world.commit(id, pool, count as usize, chain, depth),
        16..20 => world.name(pool, chain, depth),
        20 | 21 => world.abort(id, count as usize),
        22 => world.gone(id),
        23 => world.resume(id),
        24 => world.lose(id),
        25 => world.connect(),
        26 | 27 => world.touch(pool, chain, depth),
        28 | 29 => {
            let other = (pool + 1) % 2;
            let policy = [HitPolicy::Prefix, HitPolicy::Trailing(1 + depth % 4), HitPolicy::Any][who as usize % 3];
            let asks = [(PoolId(pool), policy), (PoolId(other), HitPolicy::Prefix)];
            let asks = &asks[..1 + usize::from(count % 2 == 0 && pool < 2)];
            let wait = [Wait::Present, Wait::Filling, Wait::Absent][chain as usize % 3];
            world.get(id, asks, (0..count).map(|d| key(chain, d)).collect(), wait, wait_us);
        }
        30 => world.core().release(lapis_tiering::face::Caller { client: id, token: u64::from(count) }),
        31 => world.hint(pool, chain, depth, Hint::Pinned { ttl_ms: 500 }),
        32 => world.unname(count as usize),
        33 => {
            let hints = [Hint::Ended, Hint::WillReturn, Hint::Pinned { ttl_ms: 200 }, Hint::Priority(3)];
            world.hint(pool, chain, depth, hints[count as usize % 4]);
        }
        34 => match count % 8 {
            0 => world.purge(id, pool),
            _ => world.remove(id, pool, chain, depth),
        },
        35 => world.tick(u64::from(count) * 7_000),
        36 => world.wait(u64::from(count) * 50_000),
        37 => world.populate(usize::from(who % 2), u64::from(count) * 16),
        38 if who % 4 == 0 => world.restart(),
        39 if who % 4 == 0 => world.recover(),
        _ => {
            let outcome = match count {
                1 => Outcome::Corrupt,
                2 => Outcome::Failed,
                _ => Outcome::Ok,
            };
            for _ in 0..1 + depth {
                world.complete(who.into(), outcome);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_is_given_twice(
        policy in policy(),
        lines in prop_oneof![Just(48u32), Just(512)],
        whole in prop::bool::weighted(0.8),
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let mut world = World::new(policy, lines);
        if whole {
            world.populate(0, 512);
        }
        world.check();
        for step in steps {
            apply(&mut world, step);
            world.check();
        }
        world.end();
    }

    #[test]
    fn no_block_on_a_gpu_is_another_and_none_is_lost_that_was_elsewhere_too(
        policy in policy(),
        lines in prop_oneof![1 => Just(64u32), 3 => Just(512)],
        steps in prop::collection::vec((any::<bool>(), step()), 1..400),
    ) {
        with_gpus(World::new(policy, lines), steps);
    }

    #[test]
    fn the_same_with_a_tier_below(
        policy in policy(),
        lines in prop_oneof![1 => Just(64u32), 3 => Just(768)],
        devices in 1u8..3,
        steps in prop::collection::vec((any::<bool>(), step()), 1..500),
    ) {
        let mut world = World::with_ssd(policy, lines, devices);
        world.recover();
        with_gpus(world, steps);
    }

    #[test]
    fn nothing_that_counted_as_on_ssd_is_lost_and_nothing_removed_comes_back(
        policy in policy(),
        lines in prop_oneof![1 => Just(64u32), 3 => Just(768)],
        devices in 1u8..3,
        steps in prop::collection::vec(step(), 1..500),
    ) {
        let mut world = World::with_ssd(policy, lines, devices);
        world.populate(0, 512);
        world.recover();
        world.check();
        for step in steps {
            apply(&mut world, step);
            world.check();
        }
        world.end();
    }
}
