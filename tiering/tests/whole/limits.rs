//! What one client cannot take from the others, one scene each.

use crate::scene::{MIB, Scene, key};
use lapis_config::{BATCH_KEYS_MAX, HitPolicy, PoolKind, Refusal, Time, UNIT_BYTES, Wait};
use lapis_tiering::{
    face::{Action, Caller, Parent, Put, Reply, Reserved},
    kept::Kept,
};

#[test]
fn equal_asks_count_once_and_too_many_different_ones_are_refused() {
    let mut scene = Scene::new(&[64 * MIB]);
    let pools: Vec<_> = (0..17).map(|_| scene.pool(PoolKind::Chain, MIB, 1)).collect();
    pools[..2].iter().for_each(|&pool| scene.put_root(pool, key(0, 0)));
    let asks: Vec<_> = pools.iter().map(|&pool| (pool, HitPolicy::Prefix)).collect();
    let equal = asks[..2].repeat(100);
    assert_eq!(scene.get(&equal, &[key(0, 0)], Wait::Present, 0), Some(1));
    let now = scene.now;
    let to = Caller { client: scene.client, token: 99 };
    let refusal = scene.refused(|scene| scene.core.get(now, to, &asks, &[key(0, 0)], Wait::Present, now));
    assert_eq!(refusal, Refusal::Limit);
}

#[test]
fn a_get_is_answered_whatever_the_order_in_which_its_blocks_come() {
    let mut scene = Scene::new(&[64 * MIB]);
    let pools = [scene.pool(PoolKind::Object, MIB, 1), scene.pool(PoolKind::Object, MIB, 2)];
    let asks = pools.map(|pool| (pool, HitPolicy::Prefix));
    let keys: Vec<_> = (0..6).map(|depth| key(0, depth)).collect();
    for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]] {
        assert_eq!(scene.get(&asks, &keys, Wait::Absent, 1_000_000), None);
        for (pool, at) in pools.into_iter().flat_map(|pool| order.map(|at| (pool, at))) {
            assert!(scene.answers().is_empty());
            scene.put_root(pool, keys[at]);
        }
        assert_eq!(scene.answers(), [Reply::Got { hit: 6 }]);
        let removed: u64 = pools.iter().map(|&pool| scene.remove(pool, &keys)).sum();
        assert_eq!(removed, 12);
    }
}

#[test]
fn memory_that_was_denied_is_asked_for_again_after_5_s() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 8 * MIB, 1);
    let other = scene.connect();
    for chain in 0..2 {
        assert_eq!(scene.reserve(pool, 8 * MIB as u32, &[key(chain, 0)]).len(), 1);
        scene.client = other;
    }
    scene.ask_reserve(pool, 8 * MIB as u32, &[key(2, 0)], Parent::None, 20_000_000);
    assert!(scene.answers().is_empty());
    assert_eq!(scene.growths_asked, 1);
    let (denied, mut asked) = (scene.now, Vec::new());
    while let Some(at) = scene.core.poll_timeout().filter(|at| at.since_us(denied) < 12_000_000) {
        scene.core.tick(at);
        assert!(scene.answers().is_empty());
        if scene.growths_asked > 1 + asked.len() as u32 {
            asked.push(at.since_us(denied));
        }
    }
    assert_eq!(asked, [5_000_000, 10_000_000]);
    scene.core.extent_added(16 * MIB);
    scene.core.populated(1, 16 * MIB);
    assert!(
        matches!(&scene.answers()[..], [Reply::Reserved { results }] if matches!(results[..], [Reserved::Slot(_)]))
    );
}

#[test]
fn a_draining_core_commits_and_grants_nothing_more() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 8 * MIB, 1);
    let other = scene.connect();
    let slots = scene.reserve(pool, 8 * MIB as u32, &[key(0, 0)]);
    scene.client = other;
    assert_eq!(scene.reserve(pool, 8 * MIB as u32, &[key(1, 0)]).len(), 1);
    scene.ask_reserve(pool, 8 * MIB as u32, &[key(2, 0)], Parent::None, 1_000_000);
    scene.ask_refill(pool, 8 * MIB as u32, 1);
    assert!(scene.answers().is_empty());
    scene.core.set_draining(true);
    let refused = Reply::Reserved { results: vec![Reserved::Refused(Refusal::Draining)] };
    assert_eq!(scene.answers(), [refused, Reply::Refused(Refusal::Draining)]);
    assert_eq!(scene.core.poll_timeout(), None, "nobody waits");
    assert_eq!(scene.refused(|s| s.ask_refill(pool, 8 * MIB as u32, 1)), Refusal::Draining);
    let ask = |s: &mut Scene| s.ask_reserve(pool, 8 * MIB as u32, &[key(3, 0)], Parent::None, 0);
    assert_eq!(scene.refused(ask), Refusal::Draining);
    scene.client = lapis_config::ClientId(1);
    assert_eq!(scene.commit_chain(pool, 0, 0, &slots), [Put::Stored]);
    scene.core.set_draining(false);
    assert_eq!(scene.put_chain(pool, 3, 1), 1);
    scene.core.audit().unwrap();
}

#[test]
fn magazines_of_many_clients_are_together_a_quarter_of_the_memory_and_come_back() {
    let mut scene = Scene::new(&[64 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    let first = scene.client;
    let mut clients = vec![first];
    clients.extend((0..6).map(|_| scene.connect()));
    let granted: Vec<usize> = clients
        .iter()
        .map(|&client| {
            scene.client = client;
            scene.refill(pool, MIB as u32, 8).len()
        })
        .collect();
    assert_eq!(granted, [4, 4, 4, 4, 1, 1, 1], "16 slots, and one for each that had none");
    scene.ask_refill(pool, MIB as u32, 1);
    assert!(scene.answers().is_empty(), "it waits");
    scene.now.0 += 1_000_000;
    scene.core.tick(scene.now);
    assert_eq!(scene.answers(), [Reply::Refused(Refusal::Limit)]);
    assert_eq!(scene.others, [], "nobody has been idle for long");

    scene.now.0 += 10_000_000;
    scene.ask_refill(pool, MIB as u32, 1);
    assert!(scene.answers().is_empty());
    let recalls: Vec<_> = clients.iter().map(|&client| Action::Recall { client, pool }).collect();
    assert_eq!(scene.others, recalls);
    let slots: Vec<_> = scene.magazine.drain(..4).collect();
    scene.core.abort(scene.now, first, &slots);
    assert!(matches!(&scene.answers()[..], [Reply::Granted { slots, .. }] if slots.len() == 1));
    scene.core.audit().unwrap();
}

#[test]
fn a_refill_that_waits_for_magazines_holds_up_no_other_put() {
    let mut scene = Scene::new(&[64 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    for _ in 0..4 {
        assert_eq!(scene.refill(pool, MIB as u32, 8).len(), 4);
        scene.client = scene.connect();
    }
    assert_eq!(scene.refill(pool, MIB as u32, 8).len(), 1);
    scene.ask_refill(pool, MIB as u32, 8);
    assert_eq!(scene.put_chain(pool, 0, 4), 4);
    scene.client = scene.connect();
    assert_eq!(scene.refill(pool, MIB as u32, 8).len(), 1);
}

#[test]
fn a_recall_that_was_not_obeyed_is_sent_again() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    scene.refill(pool, MIB as u32, 1);
    scene.client = scene.connect();
    for recalls in 1..4 {
        scene.now.0 += 10_000_000;
        for chain in 0..20 {
            assert_eq!(scene.put_chain(pool, 100 * recalls + chain, 1), 1);
        }
        assert_eq!(scene.others.len() as u64, recalls);
    }
}

#[test]
fn one_client_reserves_at_most_half_of_the_memory() {
    let mut scene = Scene::limited(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    let keys: Vec<_> = (0..10).map(|chain| key(chain, 0)).collect();
    scene.ask_reserve(pool, MIB as u32, &keys, Parent::None, 1_000_000);
    let answers = scene.answers();
    let [Reply::Reserved { results }] = &answers[..] else { panic!("{answers:?}") };
    assert!(results[..8].iter().all(|result| matches!(result, Reserved::Slot(_))));
    assert_eq!(results[8..], [Reserved::Refused(Refusal::Limit); 2]);
    assert_eq!(scene.reserve(pool, MIB as u32, &keys[8..]).len(), 0);
    let Reserved::Slot(slot) = results[0] else { unreachable!("checked above") };
    scene.commit_chain(pool, 0, 0, &[slot]);
    assert_eq!(scene.reserve(pool, MIB as u32, &keys[8..]).len(), 1);
    scene.client = scene.connect();
    assert_eq!(scene.reserve(pool, MIB as u32, &keys[9..]).len(), 1, "there is room for others");
    scene.core.audit().unwrap();
}

#[test]
fn one_slot_may_always_be_reserved() {
    let mut scene = Scene::limited(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 12 * MIB, 1);
    assert_eq!(scene.reserve(pool, 12 * MIB as u32, &[key(0, 0), key(1, 0)]).len(), 1);
}

#[test]
fn the_65th_put_of_a_client_that_would_wait_is_refused_and_others_wait_on() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 16 * MIB, 1);
    assert_eq!(scene.reserve(pool, 16 * MIB as u32, &[key(0, 0)]).len(), 1);
    scene.client = scene.connect();
    for _ in 0..64 {
        scene.ask_refill(pool, 16 * MIB as u32, 1);
        assert!(scene.answers().is_empty());
    }
    assert_eq!(scene.refused(|s| s.ask_refill(pool, 16 * MIB as u32, 1)), Refusal::Limit);
    scene.client = scene.connect();
    scene.ask_refill(pool, 16 * MIB as u32, 1);
    assert!(scene.answers().is_empty());
    scene.core.tick(Time(scene.now.0 + 1_000_000));
    assert_eq!(scene.answers().len(), 65);
    scene.core.audit().unwrap();
}

#[test]
fn the_65th_get_of_a_client_that_would_wait_is_answered_at_once() {
    let mut scene = Scene::new(&[16 * MIB]);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    let asks = [(pool, HitPolicy::Prefix)];
    for chain in 0..64 {
        assert_eq!(scene.get(&asks, &[key(chain, 0)], Wait::Absent, 1_000_000), None);
    }
    assert_eq!(scene.get(&asks, &[key(64, 0)], Wait::Absent, 1_000_000), Some(0));
    scene.client = scene.connect();
    assert_eq!(scene.get(&asks, &[key(64, 0)], Wait::Absent, 1_000_000), None);
    scene.core.tick(Time(scene.now.0 + 1_000_000));
    assert_eq!(scene.answers().len(), 65);
}

#[test]
fn the_oldest_answer_of_a_client_ends_when_it_holds_too_many_lines() {
    let batch = BATCH_KEYS_MAX as u64;
    let mut scene = Scene::with_lines(&[9 * batch * UNIT_BYTES], 10 * batch as u32);
    let pool = scene.pool(PoolKind::Object, UNIT_BYTES, 1);
    let keys = |of: u64| (0..batch).map(|at| key(1 + of * batch + at, 0)).collect::<Vec<_>>();
    let put = |scene: &mut Scene, of: u64| {
        let slots = scene.reserve(pool, UNIT_BYTES as u32, &keys(of));
        for (key, slot) in keys(of).into_iter().zip(&slots) {
            assert_eq!(scene.commit_chain(pool, key.0[0], 0, &[*slot]), [Put::Stored]);
        }
        slots.len()
    };
    for of in 0..9 {
        assert_eq!(put(&mut scene, of), BATCH_KEYS_MAX);
    }
    for of in 0..9 {
        assert_eq!(scene.get_held(&[(pool, HitPolicy::Prefix)], &keys(of), 60_000_000).1, batch as u32);
    }
    assert_eq!(put(&mut scene, 9), BATCH_KEYS_MAX, "what the first answer held may go");
    assert_eq!(put(&mut scene, 10), BATCH_KEYS_MAX, "and what was put since");
    assert_eq!(scene.core.kept().find(pool, &key(1, 0)), None);
    assert!(scene.core.kept().find(pool, &key(1 + batch, 0)).is_some());
    scene.core.audit().unwrap();
}
