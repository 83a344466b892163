//! Room on a GPU: between pools, and where readers or a drain are in the way.

use crate::scene::{MIB, key};
use lapis_config::{PoolKind, Refusal};
use lapis_tiering::{
    face::{Caller, Outcome, Parent, Reserved},
    kept::{Kept, Tier},
};

use super::host::{BOTH, GPU, Host, SECOND_US};

#[test]
fn a_pool_that_comes_late_gets_room_though_all_on_the_gpu_is_nowhere_else() {
    for policy in BOTH {
        let mut host = Host::under(policy);
        (0..4).for_each(|chain| host.heat(chain, 1));
        host.flood();
        assert!((0..4).all(|chain| host.tier(chain, 0) == Some(Tier::Hbm)));
        let late = host.scene.pool(PoolKind::Chain, MIB, 2);
        assert_eq!(host.reserve_in(late, &[key(9, 0)]), [Reserved::Refused(Refusal::AllPinned)], "{policy:?}");
        assert!(!host.copies.is_empty(), "{policy:?}: what is in the way is copied back");
        host.work(Outcome::Ok);
        assert!(matches!(host.reserve_in(late, &[key(9, 0)])[..], [Reserved::Slot(_)]), "{policy:?}");
        let left = (0..4).filter(|&chain| host.on_gpu(chain, 0).is_some()).count();
        assert_eq!(left, 3, "{policy:?}: one slab went");
    }
}

#[test]
fn what_could_not_be_copied_back_for_another_pool_is_tried_again() {
    let mut host = Host::new();
    (0..4).for_each(|chain| host.heat(chain, 1));
    host.flood();
    let late = host.scene.pool(PoolKind::Chain, MIB, 2);
    for _ in 0..3 {
        assert_eq!(host.reserve_in(late, &[key(9, 0)]), [Reserved::Refused(Refusal::AllPinned)]);
        assert!(!host.copies.is_empty());
        host.work(Outcome::Failed);
        assert!((0..4).all(|chain| host.on_gpu(chain, 0).is_some()), "readers find all of it meanwhile");
        host.scene.now.0 += SECOND_US;
    }
    host.reserve_in(late, &[key(9, 0)]);
    host.work(Outcome::Ok);
    host.scene.now.0 += SECOND_US;
    assert!(matches!(host.reserve_in(late, &[key(9, 0)])[..], [Reserved::Slot(_)]));
}

#[test]
fn of_a_gpu_that_readers_hold_whole_one_copy_goes_in_vain_and_no_more() {
    let mut host = Host::new();
    (0..4).for_each(|chain| host.heat(chain, 1));
    let slots: Vec<_> = (0..4).map(|chain| host.on_gpu(chain, 0).unwrap()).collect();
    slots.iter().for_each(|&slot| host.scene.core.kept_mut().name_on_gpu(GPU, slot, true));
    assert_eq!(host.reserve(&[key(9, 0)]), [Reserved::Refused(Refusal::AllPinned)]);
    let there = (0..4).filter(|&chain| host.on_gpu(chain, 0).is_some()).count();
    assert_eq!((there, host.counts().slots_aside), (3, 1));
    // One of them lets go: the one that is unused for longest is named still, and stays.
    host.scene.core.kept_mut().name_on_gpu(GPU, slots[2], false);
    assert_eq!(host.reserve(&[key(9, 0)]).len(), 1);
    let there: Vec<bool> = (0..4).map(|chain| host.on_gpu(chain, 0).is_some()).collect();
    assert!(!there[2] && there[3], "{there:?}");
}

#[test]
fn while_it_drains_nothing_new_is_copied_to_a_gpu() {
    let mut host = Host::new();
    host.scene.put_chain(host.pool, 0, 2);
    host.read(0, 2);
    host.scene.core.set_draining(true);
    host.read(0, 2);
    host.poll();
    assert_eq!(host.copies, [], "a slot that is being filled when the daemon ends is lost to the next one");
    host.scene.core.set_draining(false);
    host.read(0, 2);
    host.poll();
    assert_eq!(host.copies.len(), 2);
}

#[test]
fn a_block_that_is_read_by_hosts_too_gets_a_copy_on_the_gpu() {
    let mut host = Host::new();
    host.scene.put_chain(host.pool, 0, 3);
    for _ in 0..3 {
        host.scene.now.0 += SECOND_US;
        let line = host.line(0, 2).unwrap();
        let bind = host.scene.core.kept().live(line).unwrap().generation << 4;
        host.scene.core.touched(host.scene.now, line, bind as u32, 3, 3);
        host.read_now(GPU, 0, 3);
    }
    host.work(Outcome::Ok);
    assert!((0..3).all(|depth| host.on_gpu(0, depth).is_some()));
}

#[test]
fn a_warmer_block_comes_though_a_colder_one_before_it_found_no_room() {
    let mut host = Host::new();
    host.scene.put_chain(host.pool, 8, 1);
    (0..4).for_each(|chain| host.heat(chain, 1));
    host.scene.now.0 += SECOND_US;
    host.scene.put_chain(host.pool, 9, 1);
    let lines = [host.line(8, 0).unwrap(), host.line(9, 0).unwrap()];
    host.scene.core.hbm_wanted(host.scene.now, GPU, &lines);
    host.work(Outcome::Ok);
    let there = [8, 9, 0].map(|chain| host.on_gpu(chain, 0).is_some());
    assert_eq!(there, [false, true, false]);
}

#[test]
fn a_copy_that_a_put_goes_on_below_stays() {
    let mut host = Host::new();
    (0..4).for_each(|chain| host.heat(chain, 1));
    let to = Caller { client: host.scene.client, token: 1 << 40 };
    let parent = Parent::Key(key(0, 0));
    host.scene.core.reserve_on_gpu(host.scene.now, to, GPU, host.pool, &[key(0, 1)], parent);
    host.poll();
    let there: Vec<bool> = (0..4).map(|chain| host.on_gpu(chain, 0).is_some()).collect();
    assert_eq!(there, [true, false, true, true], "it is the one unused for longest, and held");
}
