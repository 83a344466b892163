//! What the tier of GPUs promises, one scene each.

mod hangs;
mod host;
mod lost;
mod near;
mod pieces;
mod puts;
mod restart;
mod room;

use crate::scene::{MIB, Scene, key};
use lapis_config::{GpuId, LineId, OpId, PolicyName, PoolKind, Refusal};
use lapis_tiering::{
    face::{Action, Outcome, Reply, Reserved, Spot},
    kept::{Kept, Tier},
};

use host::{BLOCK, BOTH, GPU, GPU_BLOCKS, Host, SECOND_US};

#[test]
fn a_block_that_is_read_into_a_gpu_again_gets_a_copy_there_and_the_root_comes_first() {
    let mut host = Host::new();
    host.scene.put_chain(host.pool, 0, 3);
    host.read(0, 3);
    host.poll();
    assert_eq!(host.copies, [], "what is read once stays where it is");
    // Of the same tenth of a second: the same request goes on.
    let line = host.line(0, 2).unwrap();
    let bind = host.scene.core.kept().live(line).unwrap().generation << 4;
    host.scene.core.read_into(host.scene.now, GPU, line, bind as u32, 3);
    host.poll();
    assert_eq!(host.copies, []);
    host.read(0, 3);
    host.poll();
    let from: Vec<Spot> = host.copies.iter().map(|copy| copy.1).collect();
    let slots = host.scene.slots_of(host.pool, &[key(0, 0), key(0, 1), key(0, 2)]);
    assert_eq!(from, slots.into_iter().map(Spot::Dram).collect::<Vec<_>>());
    assert_eq!(host.on_gpu(0, 0), None, "not before the copy has ended");
    host.work(Outcome::Ok);
    assert!((0..3).all(|depth| host.on_gpu(0, depth).is_some()));
    assert_eq!((host.counts().blocks, host.scene.core.counts().hbm_promotions), (3, 3));
    assert_eq!(host.tier(0, 0), Some(Tier::Dram), "it is in DRAM too");
}

#[test]
fn a_read_of_a_line_that_changed_since_counts_for_nothing() {
    let mut host = Host::new();
    host.scene.put_chain(host.pool, 0, 1);
    let line = host.line(0, 0).unwrap();
    let bind = (host.scene.core.kept().live(line).unwrap().generation << 4) as u32;
    for _ in 0..3 {
        host.scene.now.0 += SECOND_US;
        host.scene.core.read_into(host.scene.now, GPU, line, bind + 16, 1);
        host.scene.core.read_into(host.scene.now, GPU, LineId(u32::MAX - 1), bind, 1);
        host.scene.core.read_into(host.scene.now, GpuId(9), line, bind, 1);
    }
    host.poll();
    assert_eq!(host.copies, []);
}

#[test]
fn a_copy_that_failed_is_none_and_its_slot_is_free() {
    let mut host = Host::new();
    host.scene.put_chain(host.pool, 0, 2);
    (0..2).for_each(|_| host.read(0, 2));
    host.work(Outcome::Failed);
    assert_eq!((host.on_gpu(0, 0), host.on_gpu(0, 1)), (None, None));
    assert_eq!((host.counts().slots_busy, host.scene.core.counts().hbm_copies_failed), (0, 2));
    host.read(0, 2);
    host.work(Outcome::Ok);
    assert_eq!(host.counts().blocks, 2, "it is tried again when it is read again");
}

#[test]
fn what_was_not_verified_comes_to_no_gpu() {
    let mut host = Host::new();
    host.scene.put_chain(host.pool, 0, 1);
    host.scene.restart();
    assert!(host.scene.core.gpu_added(host.scene.now, GPU, GPU_BLOCKS * MIB));
    (0..3).for_each(|_| host.read(0, 1));
    // `poll` ends no check.
    host.poll();
    assert_eq!((host.tier(0, 0), host.copies.len()), (Some(Tier::DramUnverified), 0));
}

#[test]
fn a_warmer_block_takes_the_place_of_a_colder_copy_and_a_colder_one_gets_none() {
    for policy in BOTH {
        let mut host = Host::under(policy);
        (0..4).for_each(|chain| host.heat(chain, 1));
        assert_eq!(host.counts().blocks, 4, "{policy:?}");
        host.read(0, 1);
        host.heat(4, 1);
        let there: Vec<bool> = (0..5).map(|chain| host.on_gpu(chain, 0).is_some()).collect();
        assert_eq!(there, [true, false, true, true, true], "{policy:?}: the one unused for longest went");
        // All of the GPU is warmer than this one.
        host.scene.put_chain(host.pool, 5, 1);
        let cold = host.line(5, 0).unwrap();
        host.scene.now.0 += SECOND_US;
        for chain in [0, 2, 3, 4] {
            host.read(chain, 1);
        }
        host.scene.core.hbm_wanted(host.scene.now, GPU, &[cold]);
        host.work(Outcome::Ok);
        assert_eq!(host.on_gpu(5, 0), None, "{policy:?}");
        assert_eq!(host.scene.core.counts().hbm_evictions, 1, "{policy:?}");
    }
}

#[test]
fn of_a_chain_the_deepest_copy_goes_first() {
    let mut host = Host::new();
    host.heat(0, 4);
    host.heat(1, 1);
    let there: Vec<bool> = (0..4).map(|depth| host.on_gpu(0, depth).is_some()).collect();
    assert_eq!(there, [true, true, true, false]);
}

/// Blocks of so many MiB that are wanted on a GPU at once: how many are copied at first, and more when one has ended.
fn under_way(block_mib: u64) -> (usize, usize) {
    let mut scene = Scene::under(PolicyName::Lru, &[1_024 * MIB], block_mib as u32 * BLOCK);
    let pool = scene.pool(PoolKind::Chain, block_mib * MIB, 1);
    scene.core.gpu_added(scene.now, GPU, 1_024 * MIB);
    assert_eq!(scene.put_chain(pool, 0, 5), 5);
    let lines: Vec<LineId> = (0..5).map(|d| scene.core.kept().find(pool, &key(0, d)).unwrap()).collect();
    scene.core.hbm_wanted(scene.now, GPU, &lines);
    scene.answers();
    let op = |action: &Action| if let Action::Copy { op, .. } = action { Some(*op) } else { None };
    let ops: Vec<OpId> = scene.others.iter().filter_map(op).collect();
    scene.others.clear();
    scene.core.completed(scene.now, ops[0], Outcome::Ok);
    scene.answers();
    (ops.len(), scene.others.iter().filter_map(op).count())
}

#[test]
fn bytes_under_way_to_gpus_are_bounded() {
    // 64 MiB are the bound.
    assert_eq!(under_way(20), (3, 1));
}

#[test]
fn a_block_larger_than_the_bound_of_bytes_under_way_comes_alone() {
    assert_eq!(under_way(80), (1, 1));
}

#[test]
fn a_copy_that_a_reader_names_is_not_overwritten() {
    let mut host = Host::new();
    (0..4).for_each(|chain| host.heat(chain, 1));
    let named = host.on_gpu(0, 0).unwrap();
    host.scene.core.kept_mut().name_on_gpu(GPU, named, true);
    host.heat(4, 1);
    assert_eq!(host.on_gpu(0, 0), None, "nobody finds it any more");
    assert!(host.on_gpu(4, 0).is_some_and(|slot| slot != named), "another went for it");
    let waiting = |host: &Host| host.scene.core.gpus_named().collect::<Vec<_>>();
    assert_eq!((host.counts().slots_aside, waiting(&host)), (1, vec![GPU]));
    host.scene.core.kept_mut().name_on_gpu(GPU, named, false);
    let at = host.scene.core.poll_timeout().expect("slots aside are looked at again");
    host.scene.core.tick(at);
    host.poll();
    assert_eq!((host.counts().slots_aside, host.counts().slots_free), (0, 1));
    assert_eq!(waiting(&host), []);
}

#[test]
fn what_dram_drops_stays_on_the_gpu_and_a_host_gets_it_from_there() {
    for policy in BOTH {
        let mut host = Host::under(policy);
        host.heat(0, 2);
        let before = host.on_gpu(0, 1);
        for chain in 1_000..1_100 {
            host.scene.now.0 += SECOND_US;
            host.scene.put_from_magazine(host.pool, chain);
            host.poll();
            if host.tier(0, 0) == Some(Tier::Hbm) {
                break;
            }
        }
        assert_eq!((host.tier(0, 0), host.tier(0, 1)), (Some(Tier::Hbm), Some(Tier::Hbm)), "{policy:?}");
        assert_eq!(host.on_gpu(0, 1), before, "{policy:?}: readers on the GPU find it under its new generation");
        assert_eq!(host.get(0, 2), None, "{policy:?}: it comes");
        assert_eq!(host.copies.len(), 2);
        let answers = host.work(Outcome::Ok);
        assert_eq!(answers, [Reply::Got { hit: 2 }], "{policy:?}");
        assert_eq!(host.tier(0, 1), Some(Tier::DramUnverified), "{policy:?}: whoever reads it checks its sum");
        assert_eq!(host.on_gpu(0, 1), before, "{policy:?}");
        let counts = host.scene.core.counts();
        assert_eq!((counts.hbm_demotions, counts.hbm_saved, counts.hbm_hits), (2, 2, 2), "{policy:?}");
        assert_eq!((counts.demotions, counts.promotions, counts.ssd_hits), (0, 0, 0), "{policy:?}");
    }
}

#[test]
fn a_block_that_does_not_come_from_its_gpu_is_no_hit_and_stays() {
    let mut host = Host::new();
    host.heat(0, 1);
    host.flood();
    assert_eq!(host.tier(0, 0), Some(Tier::Hbm));
    assert_eq!(host.get(0, 1), None);
    assert_eq!(host.work(Outcome::Failed), [Reply::Got { hit: 0 }]);
    assert_eq!((host.tier(0, 0), host.on_gpu(0, 0).is_some()), (Some(Tier::Hbm), true));
    assert_eq!(host.scene.core.counts().slots_busy, 0);
}

#[test]
fn bytes_from_a_gpu_that_do_not_fit_take_the_block_away_in_all_tiers() {
    let mut host = Host::new();
    host.heat(0, 1);
    host.flood();
    host.get(0, 1);
    for (op, ..) in std::mem::take(&mut host.copies) {
        host.scene.core.completed(host.scene.now, op, Outcome::Ok);
    }
    host.scene.answers();
    let verify = host.scene.others.iter().find_map(|action| match action {
        Action::Verify { op, .. } => Some(*op),
        _ => None,
    });
    host.scene.core.completed(host.scene.now, verify.expect("it is checked"), Outcome::Corrupt);
    host.poll();
    assert_eq!((host.line(0, 0), host.counts().blocks), (None, 0));
}

#[test]
fn the_only_copy_is_copied_back_before_it_goes() {
    let mut host = Host::new();
    (0..4).for_each(|chain| host.heat(chain, 1));
    host.flood();
    assert!((0..4).all(|chain| host.tier(chain, 0) == Some(Tier::Hbm)));
    assert_eq!(host.reserve(&[key(9, 0)]), [Reserved::Refused(Refusal::AllPinned)]);
    assert_eq!(host.copies.len(), 1, "as many as are wanted");
    assert!((0..4).all(|chain| host.on_gpu(chain, 0).is_some()), "it stays until then");
    host.work(Outcome::Ok);
    let there: Vec<bool> = (0..4).map(|chain| host.on_gpu(chain, 0).is_some()).collect();
    assert_eq!(there, [false, true, true, true]);
    assert_eq!(host.tier(0, 0), Some(Tier::DramUnverified));
    assert!(matches!(host.reserve(&[key(9, 0)])[..], [Reserved::Slot(_)]));
}

#[test]
fn a_copy_that_a_get_waits_for_stays() {
    let mut host = Host::new();
    (0..4).for_each(|chain| host.heat(chain, 1));
    host.flood();
    assert_eq!(host.get(0, 1), None);
    assert_eq!(host.reserve(&[key(9, 0)]), [Reserved::Refused(Refusal::AllPinned)]);
    assert_eq!(host.copies.len(), 2, "room is made of the next one");
    host.work(Outcome::Ok);
    let there: Vec<bool> = (0..4).map(|chain| host.on_gpu(chain, 0).is_some()).collect();
    assert_eq!(there, [true, false, true, true]);
}

#[test]
fn a_copy_back_that_failed_leaves_the_copy_where_it_is() {
    let mut host = Host::new();
    (0..4).for_each(|chain| host.heat(chain, 1));
    host.flood();
    host.reserve(&[key(9, 0)]);
    host.work(Outcome::Failed);
    assert!((0..4).all(|chain| host.on_gpu(chain, 0).is_some() && host.tier(chain, 0) == Some(Tier::Hbm)));
    host.reserve(&[key(9, 0)]);
    assert_eq!(host.copies.len(), 1, "it is tried again");
}
