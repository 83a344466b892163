//! What the core promises, one scene each.

use crate::scene::{KIB, MIB, Scene, key};
use lapis_config::{ClientId, Hint, HitPolicy, PoolId, PoolKind, Refusal, Time, Wait};
use lapis_tiering::{
    face::{Action, Outcome, Parent, Put, Reply, Reserved},
    kept::{Kept, Tier},
};

#[test]
fn three_times_the_memory_is_written_at_64_kib_and_then_at_1_mib_without_a_refusal() {
    let mut scene = Scene::new(&[256 * MIB]);
    let small = scene.pool(PoolKind::Chain, 64 * KIB, 1);
    let large = scene.pool(PoolKind::Chain, MIB, 2);
    for (pool, bytes) in [(small, 64 * KIB), (large, MIB)] {
        for chain in 0..3 * 256 * MIB / bytes / 32 {
            // 500 MB/s: the memory is written over in half a second.
            scene.now.0 += 32 * bytes / 500;
            assert_eq!(scene.put_chain(pool, 1000 * u64::from(pool.0) + chain, 32), 32);
        }
        scene.core.audit().unwrap();
    }
    let counts = scene.core.counts();
    assert_eq!(counts.puts_refused, 0);
    let (of_small, of_large) = (scene.core.pool_counts(small), scene.core.pool_counts(large));
    assert!(of_large.bytes_used >= 200 * MIB, "memory follows demand: {of_large:?}, {of_small:?}");
}

#[test]
fn two_pools_in_equal_demand_do_not_push_slabs_to_and_fro() {
    let mut scene = Scene::new(&[256 * MIB]);
    let pools = [scene.pool(PoolKind::Chain, 64 * KIB, 1), scene.pool(PoolKind::Chain, MIB, 2)];
    let mut moved = 0;
    for round in 0..400 {
        for (pool, count) in [(pools[0], 32), (pools[1], 2)] {
            scene.now.0 += 20_000;
            scene.put_chain(pool, 10_000 * u64::from(pool.0) + round, count);
        }
        if round == 200 {
            moved = scene.core.counts().slabs_moved;
        }
    }
    let late = scene.core.counts().slabs_moved - moved;
    assert!(late <= 4, "{late} slabs moved in balance, {moved} on the way there");
    assert_eq!(scene.core.counts().puts_refused, 0);
}

#[test]
fn puts_with_a_magazine_are_topped_up_without_being_asked() {
    let mut scene = Scene::new(&[64 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 64 * KIB, 1);
    let slots = scene.refill(pool, 64 * KIB as u32, 16);
    assert_eq!(slots.len(), 16);
    for round in 0..200u64 {
        let slots: Vec<_> = scene.magazine.drain(..8).collect();
        let puts = scene.commit_chain(pool, round, 0, &slots);
        assert!(puts.iter().all(|put| *put == Put::Stored));
        scene.answers();
        if scene.magazine.len() < 16 {
            // Memory is short for the first time: whether there is more was asked just now.
            assert_eq!((round, scene.refill(pool, 64 * KIB as u32, 8).len()), (126, 8));
        }
    }
    assert_eq!(scene.core.counts().puts_refused, 0);
}

#[test]
fn a_magazine_has_a_bound() {
    let mut scene = Scene::new(&[64 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 64 * KIB, 1);
    assert_eq!(scene.refill(pool, 64 * KIB as u32, 8192).len(), 64, "a sixteenth of the memory");
    assert_eq!(scene.refused(|s| s.ask_refill(pool, 64 * KIB as u32, 1)), Refusal::Limit);
    assert_eq!(scene.core.counts().puts_refused, 0, "no put was refused: there are slots for it");
}

#[test]
fn a_slot_that_a_reader_names_is_not_reused_and_another_is_found() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    for chain in 0..16 {
        scene.put_chain(pool, chain, 1);
    }
    let line = scene.core.kept().find(pool, &key(0, 0)).unwrap();
    let slot = scene.core.kept().live(line).unwrap().place.slot;
    scene.core.kept_mut().name(slot, true);
    assert_eq!(scene.put_chain(pool, 100, 1), 1);
    let counts = scene.core.counts();
    assert_eq!((counts.slots_aside, counts.blocks, counts.evictions), (1, 15, 2));
    scene.core.kept_mut().name(slot, false);
    assert!(scene.core.poll_timeout().is_some(), "slots aside are looked at again");
    scene.core.tick(Time(scene.now.0 + 200_000));
    assert_eq!((scene.core.counts().slots_aside, scene.core.counts().slots_free), (0, 1));
}

#[test]
fn what_a_client_pinned_is_free_as_soon_as_it_is_gone() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    scene.core.client_added(ClientId(9), false);
    for chain in 0..16 {
        scene.put_chain(pool, chain, 1);
    }
    let line = scene.core.kept().find(pool, &key(0, 0)).unwrap();
    let slot = scene.core.kept().live(line).unwrap().place.slot;
    scene.core.kept_mut().name(slot, true);
    scene.put_chain(pool, 100, 1);
    assert_eq!(scene.core.counts().slots_aside, 1);
    scene.core.kept_mut().name(slot, false);
    scene.core.client_gone(ClientId(9));
    assert_eq!((scene.core.counts().slots_aside, scene.core.counts().slots_free), (0, 1));
}

#[test]
fn a_draining_core_makes_up_for_nothing_that_was_put() {
    let mut scene = Scene::new(&[64 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 64 * KIB, 1);
    let slots = scene.refill(pool, 64 * KIB as u32, 8);
    scene.core.set_draining(true);
    assert!(scene.commit_chain(pool, 0, 0, &slots).iter().all(|put| *put == Put::Stored));
    scene.answers();
    assert_eq!(scene.core.counts().slots_granted, 0);
}

#[test]
fn a_put_waits_for_the_last_reader_and_then_has_its_slot() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 8 * MIB, 1);
    scene.put_chain(pool, 0, 1);
    scene.put_chain(pool, 1, 1);
    let slots = scene.slots_of(pool, &[key(0, 0), key(1, 0)]);
    slots.iter().for_each(|&slot| scene.core.kept_mut().name(slot, true));
    scene.ask_reserve(pool, 8 * MIB as u32, &[key(2, 0)], Parent::None, 1_000_000);
    assert!(scene.answers().is_empty());
    scene.core.kept_mut().name(slots[1], false);
    let soon = scene.core.poll_timeout().unwrap();
    assert!(soon.since_us(scene.now) <= 1_000);
    scene.core.tick(soon);
    let answers = scene.answers();
    assert!(matches!(&answers[..], [Reply::Reserved { results }] if results == &[Reserved::Slot(slots[1])]));
}

#[test]
fn a_put_that_finds_everything_pinned_is_refused_at_its_deadline() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 8 * MIB, 1);
    let first = scene.reserve(pool, 8 * MIB as u32, &[key(0, 0), key(1, 0)]);
    assert_eq!(first.len(), 2);
    scene.client = scene.connect();
    scene.ask_reserve(pool, 8 * MIB as u32, &[key(2, 0)], Parent::None, 1_000_000);
    assert!(scene.answers().is_empty());
    scene.core.tick(Time(scene.now.0 + 1_000_000));
    let refused = Reserved::Refused(Refusal::AllPinned);
    assert!(matches!(&scene.answers()[..], [Reply::Reserved { results }] if results == &[refused]));
}

#[test]
fn memory_is_waited_for_while_it_is_populated_and_nothing_is_evicted() {
    let mut scene = Scene::unpopulated(&[64 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 64 * KIB, 1);
    scene.core.populated(0, 8 * MIB);
    for chain in 0..4 {
        assert_eq!(scene.put_chain(pool, chain, 32), 32);
    }
    scene.ask_reserve(pool, 64 * KIB as u32, &[key(9, 0)], Parent::None, 1_000_000);
    assert!(scene.answers().is_empty());
    scene.core.populated(0, 16 * MIB);
    assert_eq!(scene.answers().len(), 1);
    assert_eq!(scene.core.counts().evictions, 0);
}

#[test]
fn memory_that_does_not_come_is_not_waited_for_beyond_half_the_deadline() {
    let mut scene = Scene::unpopulated(&[64 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    scene.core.populated(0, 8 * MIB);
    assert_eq!(scene.put_chain(pool, 0, 8), 8);
    scene.ask_reserve(pool, MIB as u32, &[key(9, 0)], Parent::None, 1_000_000);
    assert!(scene.answers().is_empty());
    let at = scene.core.poll_timeout().unwrap();
    assert_eq!(at.since_us(scene.now), 500_000);
    scene.core.tick(at);
    assert!(matches!(&scene.answers()[..], [Reply::Reserved { .. }]));
    assert_eq!(scene.core.counts().evictions, 1);
}

#[test]
fn a_block_that_fits_no_extent_is_refused_at_once() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 17 * MIB, 1);
    scene.ask_reserve(pool, 17 * MIB as u32, &[key(0, 0)], Parent::None, 1_000_000);
    let refused = Reserved::Refused(Refusal::NoExtentFits);
    assert!(matches!(&scene.answers()[..], [Reply::Reserved { results }] if results == &[refused]));
}

#[test]
fn an_idle_client_is_asked_for_its_magazine_when_memory_is_short() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    assert_eq!(scene.refill(pool, MIB as u32, 1).len(), 1);
    let idle = scene.client;
    scene.client = scene.connect();
    scene.now.0 += 20_000_000;
    for chain in 0..20 {
        scene.put_chain(pool, chain, 1);
    }
    let recalls: Vec<Action> = scene.others.drain(..).collect();
    assert_eq!(recalls, [Action::Recall { client: idle, pool }], "once");
}

#[test]
fn kin_of_an_evicted_block_go_next() {
    let mut scene = Scene::new(&[32 * MIB]);
    let (k, v) = (scene.pool(PoolKind::Chain, MIB, 1), scene.pool(PoolKind::Chain, MIB, 1));
    for chain in 0..4 {
        scene.put_chain(v, chain, 2);
    }
    for chain in (0..4).rev() {
        scene.put_chain(k, chain, 2);
    }
    // The oldest of `k` is chain 3; of `v` it would be chain 0.
    let mut chain = 100;
    while scene.core.kept().find(k, &key(3, 1)).is_some() {
        scene.put_chain(k, chain, 2);
        chain += 1;
    }
    while scene.core.counts().evictions < 40 && scene.core.kept().find(v, &key(0, 1)).is_some() {
        assert!(scene.core.kept().find(v, &key(3, 0)).is_none() || scene.core.kept().find(v, &key(0, 1)).is_some());
        scene.put_chain(v, chain, 2);
        chain += 1;
    }
    assert_eq!(scene.core.kept().find(v, &key(3, 1)), None);
}

#[test]
fn one_length_answers_for_all_pools() {
    let mut scene = Scene::new(&[64 * MIB]);
    let (full, window) = (scene.pool(PoolKind::Chain, MIB, 1), scene.pool(PoolKind::Chain, MIB, 1));
    scene.put_chain(full, 0, 8);
    // The sliding window's pool has only blocks 2, 3 and 6.
    for depth in [2, 3, 6] {
        scene.put_root(window, key(0, depth));
    }
    let keys: Vec<_> = (0..10).map(|depth| key(0, depth)).collect();
    let mut hit = |asks: &[(PoolId, HitPolicy)]| scene.get(asks, &keys, Wait::Present, 0);
    assert_eq!(hit(&[(full, HitPolicy::Prefix)]), Some(8));
    assert_eq!(hit(&[(full, HitPolicy::Prefix), (window, HitPolicy::Trailing(2))]), Some(4));
    assert_eq!(hit(&[(full, HitPolicy::Prefix), (window, HitPolicy::Trailing(1))]), Some(7));
    assert_eq!(hit(&[(window, HitPolicy::Any)]), Some(3));
    assert_eq!(hit(&[(window, HitPolicy::Prefix)]), Some(0));
}

#[test]
fn a_get_waits_for_what_is_being_filled_and_not_for_what_nobody_fills() {
    let mut scene = Scene::new(&[64 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    let keys: Vec<_> = (0..4).map(|depth| key(0, depth)).collect();
    let asks = [(pool, HitPolicy::Prefix)];
    assert_eq!(scene.get(&asks, &keys, Wait::Filling, 1_000_000), Some(0));
    let slots = scene.reserve(pool, MIB as u32, &keys[..2]);
    assert_eq!(scene.get(&asks, &keys, Wait::Filling, 1_000_000), None);
    scene.commit_chain(pool, 0, 0, &slots[..1]);
    assert!(scene.answers().is_empty());
    scene.core.abort(scene.now, scene.client, &slots[1..]);
    assert_eq!(scene.answers(), [Reply::Got { hit: 1 }]);
    assert_eq!(scene.get(&asks, &keys, Wait::Absent, 1_000_000), None);
    scene.put_chain(pool, 0, 3);
    assert!(scene.answers().is_empty(), "one key is still absent");
    scene.core.tick(Time(scene.now.0 + 1_000_000));
    assert_eq!(scene.answers(), [Reply::Got { hit: 3 }]);
}

#[test]
fn what_a_get_was_answered_stays_until_it_is_released() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    scene.put_chain(pool, 0, 4);
    let keys: Vec<_> = (0..4).map(|depth| key(0, depth)).collect();
    let (caller, hit) = scene.get_held(&[(pool, HitPolicy::Prefix)], &keys, 10_000_000);
    assert_eq!(hit, 4);
    for chain in 1..40 {
        assert_eq!(scene.put_chain(pool, chain, 1), 1);
    }
    assert!(keys.iter().all(|key| scene.core.kept().find(pool, key).is_some()));
    scene.core.release(caller);
    for chain in 40..80 {
        assert_eq!(scene.put_chain(pool, chain, 1), 1);
    }
    assert!(keys.iter().all(|key| scene.core.kept().find(pool, key).is_none()));
}

#[test]
fn soft_pins_outlast_others_and_never_wedge_a_put() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    scene.put_chain(pool, 0, 4);
    let keys: Vec<_> = (0..4).map(|depth| key(0, depth)).collect();
    scene.core.hint(scene.now, pool, &keys, Hint::Pinned { ttl_ms: 60_000 });
    for chain in 1..40 {
        assert_eq!(scene.put_chain(pool, chain, 2), 2);
    }
    assert!(keys.iter().all(|key| scene.core.kept().find(pool, key).is_some()));
    let many: Vec<_> = (0..16).map(|depth| key(99, depth)).collect();
    assert_eq!(scene.reserve(pool, MIB as u32, &many).len(), 16, "all else is granted, then the pinned ones go");
}

#[test]
fn blocks_of_an_ended_session_go_first_but_not_what_it_shares() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    scene.put_chain(pool, 7, 4);
    scene.put_chain(pool, 0, 4);
    scene.put_after(pool, key(0, 1), key(1, 2));
    scene.core.hint(scene.now, pool, &(0..4).map(|depth| key(0, depth)).collect::<Vec<_>>(), Hint::Ended);
    scene.put_chain(pool, 50, 9);
    let there: Vec<bool> = (0..4).map(|depth| scene.core.kept().find(pool, &key(0, depth)).is_some()).collect();
    assert_eq!(there, [true, true, false, false]);
    assert!(scene.core.kept().find(pool, &key(7, 3)).is_some(), "older, and still wanted");
}

#[test]
fn a_child_of_nothing_is_refused_and_harms_nobody() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    let slots = scene.refill(pool, MIB as u32, 1);
    let before = scene.core.counts();
    let puts = scene.commit_chain(pool, 0, 3, &slots);
    assert_eq!(puts, [Put::Refused(Refusal::NoParent)]);
    let after = scene.core.counts();
    assert_eq!((after.slots_granted, after.slots_free), (before.slots_granted, before.slots_free), "topped up");
    scene.core.audit().unwrap();
}

#[test]
fn restarted_blocks_are_verified_and_broken_ones_go_with_all_below() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    scene.put_chain(pool, 0, 3);
    scene.restart();
    let mut verifies = Vec::new();
    scene.answers();
    for action in scene.others.drain(..) {
        if let Action::Verify { op, key, .. } = action {
            verifies.push((op, key));
        }
    }
    assert_eq!(verifies.len(), 3);
    assert_eq!(verifies[0].1, key(0, 0), "the most recent first: roots");
    for (op, at) in verifies {
        let outcome = if at == key(0, 1) { Outcome::Corrupt } else { Outcome::Ok };
        scene.core.completed(scene.now, op, outcome);
    }
    assert_eq!(scene.core.kept().find(pool, &key(0, 1)), None);
    assert_eq!(scene.core.kept().find(pool, &key(0, 2)), None);
    let root = scene.core.kept().find(pool, &key(0, 0)).unwrap();
    assert_eq!(scene.core.kept().live(root).unwrap().place.tier, Tier::Dram);
    assert_eq!((scene.core.counts().verified, scene.core.counts().corrupt), (1, 1));
    scene.core.audit().unwrap();
}

#[test]
fn a_full_window_evicts_its_coldest_block() {
    let mut scene = Scene::with_lines(&[64 * MIB], 40);
    let pool = scene.pool(PoolKind::Chain, 64 * KIB, 1);
    for chain in 0..200 {
        scene.now.0 += 100_000;
        assert_eq!(scene.put_chain(pool, chain, 3), 3);
    }
    assert_eq!(scene.core.counts().puts_refused, 0);
    scene.core.audit().unwrap();
}

#[test]
fn a_get_that_waits_is_answered_by_the_put_that_it_waits_for() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Object, MIB, 1);
    let asks = [(pool, HitPolicy::Any)];
    assert_eq!(scene.get(&asks, &[key(0, 0), key(1, 0)], Wait::Absent, 1_000_000), None);
    scene.put_root(pool, key(0, 0));
    let slots = scene.reserve(pool, MIB as u32, &[key(1, 0)]);
    scene.commit_chain(pool, 1, 0, &slots);
    assert_eq!(scene.answers(), [Reply::Got { hit: 2 }]);
}

#[test]
fn a_refill_is_answered_with_what_there_is() {
    let mut scene = Scene::new(&[32 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    let keys: Vec<_> = (0..31).map(|chain| key(chain, 0)).collect();
    assert_eq!(scene.reserve(pool, MIB as u32, &keys).len(), 31);
    assert_eq!(scene.refill(pool, MIB as u32, 2).len(), 1);
}

#[test]
fn a_slab_with_a_held_block_is_not_handed_over() {
    let mut scene = Scene::new(&[16 * MIB]);
    let (small, large) = (scene.pool(PoolKind::Chain, 64 * KIB, 1), scene.pool(PoolKind::Chain, MIB, 2));
    for chain in 0..64 {
        assert_eq!(scene.put_chain(small, chain, 4), 4);
    }
    // The oldest chain: its slab would be the first to go.
    let keys: Vec<_> = (0..4).map(|depth| key(0, depth)).collect();
    let (_, hit) = scene.get_held(&[(small, HitPolicy::Prefix)], &keys, 60_000_000);
    assert_eq!(hit, 4);
    for chain in 0..14 {
        scene.now.0 += 1_000_000;
        assert_eq!(scene.put_chain(large, 1000 + chain, 1), 1);
    }
    assert!(keys.iter().all(|key| scene.core.kept().find(small, key).is_some()));
    assert!(scene.core.pool_counts(large).slabs >= 6, "{:?}", scene.core.pool_counts(large));
    scene.core.audit().unwrap();
}

#[test]
fn a_parent_link_of_another_life_of_its_line_is_not_believed() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    scene.put_chain(pool, 0, 1);
    scene.put_chain(pool, 1, 1);
    let [stranger, block] = [0, 1].map(|chain| scene.core.kept().find(pool, &key(chain, 0)).unwrap());
    let generation = scene.core.kept().live(stranger).unwrap().generation as u16;
    let entry = scene.core.kept_mut().entry_mut(block);
    (entry.parent, entry.parent_generation) = (stranger.0, generation.wrapping_sub(1));
    scene.restart();
    assert_eq!(scene.remove(pool, &[key(0, 0)]), 1);
    assert!(scene.core.kept().find(pool, &key(1, 0)).is_some());
}

#[test]
fn parent_links_that_run_in_a_circle_are_cut() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    scene.put_chain(pool, 0, 3);
    let [root, deepest] = [0, 2].map(|depth| scene.core.kept().find(pool, &key(0, depth)).unwrap());
    let generation = scene.core.kept().live(deepest).unwrap().generation as u16;
    let entry = scene.core.kept_mut().entry_mut(root);
    (entry.parent, entry.parent_generation) = (deepest.0, generation);
    scene.restart();
    scene.core.audit().unwrap();
    assert_eq!(scene.core.counts().blocks, 3);
}

#[test]
fn a_put_behind_another_is_refused_at_its_own_deadline() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 8 * MIB, 1);
    assert_eq!(scene.reserve(pool, 8 * MIB as u32, &[key(0, 0), key(1, 0)]).len(), 2);
    scene.client = scene.connect();
    scene.ask_reserve(pool, 8 * MIB as u32, &[key(2, 0)], Parent::None, 1_000_000);
    scene.client = scene.connect();
    scene.ask_reserve(pool, 8 * MIB as u32, &[key(3, 0)], Parent::None, 1_000);
    assert!(scene.answers().is_empty());
    let at = scene.core.poll_timeout().unwrap();
    assert_eq!(at.since_us(scene.now), 1_000);
    scene.core.tick(at);
    let refused = Reserved::Refused(Refusal::AllPinned);
    assert!(matches!(&scene.answers()[..], [Reply::Reserved { results }] if results == &[refused]));
}

#[test]
fn a_verdict_on_bytes_that_were_replaced_meanwhile_counts_for_nothing() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    scene.put_chain(pool, 0, 1);
    scene.restart();
    scene.answers();
    let Some(Action::Verify { op, line, .. }) = scene.others.pop() else { panic!("a block is to be verified") };
    scene.remove(pool, &[key(0, 0)]);
    scene.core.client_resumed(scene.client, &[]);
    scene.put_chain(pool, 5, 1);
    assert_eq!(scene.core.kept().find(pool, &key(5, 0)), Some(line), "the same line");
    scene.core.completed(scene.now, op, Outcome::Corrupt);
    assert_eq!(scene.core.kept().find(pool, &key(5, 0)), Some(line));
    assert_eq!(scene.core.counts().corrupt, 0);
}
