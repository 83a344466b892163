//! What hazq learned is kept over a restart, and damage to it is survived.

use crate::scene::{MIB, Scene, key};
use lapis_config::{HitPolicy, Key, PolicyName, PoolId, PoolKind, Wait};
use lapis_tiering::kept::Kept;

const CAPACITY: u64 = 64;
const SECOND_US: u64 = 1_000_000;
/// Blocks of a session that was there twice, at the restart.
const KNOWN: u64 = 16;

fn keys(chain: u64, count: u64) -> Vec<Key> {
    (0..count).map(|depth| key(chain, depth)).collect()
}

/// One request of a session: what is there is hit, the rest is stored.
fn request(scene: &mut Scene, pool: PoolId, chain: u64, blocks: u64) {
    let keys = keys(chain, blocks);
    scene.get(&[(pool, HitPolicy::Prefix)], &keys, Wait::Present, 0);
    let deepest = keys.iter().rev().find_map(|key| scene.core.kept().find(pool, key));
    if let Some(line) = deepest {
        let bind = (scene.core.kept().live(line).expect("found").generation << 4) as u32;
        let there = keys.iter().take_while(|key| scene.core.kept().find(pool, key).is_some()).count() as u32;
        scene.core.touched(scene.now, line, bind, there, there);
    }
    scene.put_chain(pool, chain, blocks);
    scene.now.0 += SECOND_US;
}

/// An hour in which requests of one turn never come back and sessions go on every half minute; then one session that has
/// gone on, and younger requests that fill the memory.
fn scene() -> (Scene, PoolId) {
    let mut scene = Scene::under(PolicyName::Hazq, &[CAPACITY * MIB], MIB as u32);
    let pool = scene.pool(PoolKind::Chain, MIB, 1);
    for at in 0..3_000 {
        request(&mut scene, pool, 1_000_000 + at, 2);
        // Eight sessions; every one of them grows by a block with each request, to sixteen.
        if at % 4 == 0 {
            let (session, turn) = (at / 4 % 8 + at / 512 * 8, 1 + at / 32 % 16);
            request(&mut scene, pool, session, turn);
        }
    }
    request(&mut scene, pool, 900_000, KNOWN / 2);
    scene.now.0 += 30 * SECOND_US;
    request(&mut scene, pool, 900_000, KNOWN);
    for at in 0..CAPACITY / 4 {
        request(&mut scene, pool, 2_000_000 + at, 2);
    }
    scene.core.audit().expect("sound lists");
    (scene, pool)
}

/// The daemon dies; a new one has the bytes that are given in place of what was learned, and the client comes back.
fn restart_with(scene: &mut Scene, learned: Option<&[u8]>) {
    if let Some(bytes) = learned {
        scene.core.kept_mut().keep_learned(bytes);
    }
    scene.restart();
    scene.core.populated(0, CAPACITY * MIB);
    scene.core.client_resumed(scene.client, &[]);
    assert_eq!(scene.answers(), [], "nobody waits");
    scene.core.audit().expect("sound lists");
}

/// Of the session that is known, so many blocks outlast the next half minute.
fn survivors(scene: &mut Scene, pool: PoolId) -> usize {
    for at in 0..30 {
        request(scene, pool, 3_000_000 + at, 2);
    }
    scene.core.audit().expect("sound lists");
    keys(900_000, KNOWN).iter().filter(|key| scene.core.kept().find(pool, key).is_some()).count()
}

#[test]
fn after_a_restart_it_knows_who_comes_back() {
    let (mut scene, pool) = scene();
    assert!(scene.core.kept().learned().is_some(), "an hour is long enough to learn something");
    restart_with(&mut scene, None);
    let with = survivors(&mut scene, pool);

    let (mut scene, pool) = self::scene();
    restart_with(&mut scene, Some(&[]));
    let without = survivors(&mut scene, pool);
    assert_eq!((with, without), (KNOWN as usize, 0));
}

#[test]
fn what_was_learned_is_survived_whatever_became_of_it() {
    let (mut scene, pool) = scene();
    let whole = scene.core.kept().learned().expect("an hour is long enough to learn something");
    let mut random = fastrand::Rng::with_seed(7);
    let noise: Vec<u8> = (0..whole.len()).map(|_| random.u8(..)).collect();
    let damaged = [
        Vec::new(),
        vec![0],
        whole[1..].to_vec(),
        [&whole[..], &[0]].concat(),
        vec![0; whole.len()],
        vec![0xff; whole.len()],
        noise,
    ];
    for (at, bytes) in damaged.into_iter().enumerate() {
        restart_with(&mut scene, Some(&bytes));
        // Long enough that it is refreshed, and kept anew, again.
        for chain in 0..600 {
            // Twice: lives end by a hit.
            (0..2).for_each(|_| request(&mut scene, pool, 4_000_000 + 10_000 * at as u64 + chain, 2));
        }
        scene.core.audit().unwrap_or_else(|wrong| panic!("damage {at}: {wrong}"));
        assert_eq!(scene.core.counts().blocks, CAPACITY, "damage {at}: the memory is in use as before");
        let again = scene.core.kept().learned().expect("learned again");
        assert!(again.len() == whole.len() && again != bytes, "damage {at}: it goes on learning");
    }
}
