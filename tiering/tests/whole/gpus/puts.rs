//! Puts on a GPU, and what becomes of their slots.

use crate::scene::key;
use lapis_config::{ClientId, GpuId, Refusal};
use lapis_tiering::{
    face::{Caller, CommitItem, Outcome, Parent, Put, Reply, Reserved, Spot},
    kept::{Kept, Tier},
};

use super::host::{BLOCK, GPU, Host, SECOND_US};

#[test]
fn what_a_client_puts_on_a_gpu_is_found_there_at_once_and_in_dram_soon() {
    let mut host = Host::new();
    host.put(0, 2, 5);
    assert_eq!((host.tier(0, 0), host.tier(0, 1)), (Some(Tier::Hbm), Some(Tier::Hbm)));
    assert!(host.on_gpu(0, 0).is_some() && host.on_gpu(0, 1).is_some());
    host.poll();
    assert_eq!(host.copies.len(), 2, "nobody asked for it");
    host.work(Outcome::Ok);
    assert_eq!((host.tier(0, 0), host.scene.core.counts().blocks), (Some(Tier::DramUnverified), 2));
    assert_eq!(host.scene.core.counts().hbm_puts, 2);
}

#[test]
fn a_put_that_could_not_be_copied_to_dram_is_tried_again_after_a_pause() {
    let mut host = Host::new();
    host.put(0, 1, 5);
    host.poll();
    let (op, ..) = host.copies.pop().expect("it is copied back");
    host.scene.core.completed(host.scene.now, op, Outcome::Failed);
    host.poll();
    assert_eq!(host.copies, [], "memory of the host that is not registered yet refuses it at once");
    let at = host.scene.core.poll_timeout().expect("it is tried again");
    assert!(at > host.scene.now);
    host.scene.core.tick(at);
    host.poll();
    assert_eq!(host.copies.len(), 1);
    host.work(Outcome::Ok);
    assert_eq!(host.tier(0, 0), Some(Tier::DramUnverified));
}

#[test]
fn a_put_that_came_to_dram_once_is_not_copied_there_unasked_again() {
    let mut host = Host::new();
    host.put(0, 1, 5);
    host.work(Outcome::Ok);
    // It is held no more as the end of a put that goes on.
    host.scene.now.0 += SECOND_US;
    host.scene.core.tick(host.scene.now);
    host.flood();
    assert_eq!((host.tier(0, 0), host.get(0, 1)), (Some(Tier::Hbm), None));
    assert_eq!(host.work(Outcome::Failed), [Reply::Got { hit: 0 }]);
    host.scene.core.tick(lapis_config::Time(host.scene.now.0 + SECOND_US));
    host.poll();
    assert_eq!(host.copies, [], "only a get asks for it");
}

#[test]
fn a_block_without_a_sum_gets_one_before_any_host_finds_it_in_dram() {
    let mut host = Host::new();
    host.put(0, 1, 0);
    host.poll();
    let (op, ..) = host.copies.pop().expect("it is copied back");
    host.scene.core.completed(host.scene.now, op, Outcome::Ok);
    host.poll();
    assert_eq!((host.tier(0, 0), host.sums.len()), (Some(Tier::Hbm), 1), "not before it has its sum");
    let (op, _) = host.sums.pop().unwrap();
    host.scene.core.summed(host.scene.now, op, Some(99));
    host.poll();
    let live = host.scene.core.kept().live(host.line(0, 0).unwrap()).unwrap();
    assert_eq!((live.place.tier, live.place.sum), (Tier::Dram, 99), "it was made of these very bytes");
}

#[test]
fn puts_on_a_gpu_that_is_full_are_refused_at_once_and_room_is_made_behind() {
    let mut host = Host::new();
    host.put(0, 4, 5);
    assert_eq!(host.reserve(&[key(1, 0)]), [Reserved::Refused(Refusal::AllPinned)], "what is there is nowhere else");
    assert!(!host.copies.is_empty());
    host.work(Outcome::Ok);
    assert!(matches!(host.reserve(&[key(1, 0)])[..], [Reserved::Slot(_)]));
    assert!((0..4).all(|depth| host.tier(0, depth) == Some(Tier::DramUnverified)), "all of it is in DRAM");
}

#[test]
fn a_block_of_a_batch_that_goes_for_the_batch_gets_no_slot() {
    let mut host = Host::new();
    (0..2).for_each(|chain| host.heat(chain, 1));
    host.flood();
    (2..4).for_each(|chain| host.heat(chain, 1));
    // The colder two on the GPU are nowhere else: one of them is copied back, and DRAM makes room for that.
    let batch = [key(1_002, 0), key(9, 0), key(1_003, 0), key(1_004, 0)];
    let results = host.reserve(&batch);
    assert!(
        matches!(results[..], [Reserved::Exists, Reserved::Slot(_), Reserved::Exists, Reserved::Exists]),
        "{results:?}"
    );
    assert_eq!((host.copies.len(), host.counts().slots_granted), (1, 1), "no more room than was counted");
    assert_eq!(host.line(1_003, 0), None, "the coldest block in DRAM that is not held");
    assert!(host.line(1_002, 0).is_some(), "what is put hangs on it");
    host.work(Outcome::Ok);
}

#[test]
fn slots_on_a_gpu_come_back_by_abort_or_with_their_client_and_by_nothing_else() {
    let mut host = Host::new();
    let slots = host.slots(0, 3);
    assert_eq!(slots.len(), 3);
    host.scene.core.abort_on_gpu(host.scene.now, ClientId(77), GPU, &slots);
    host.scene.core.abort_on_gpu(host.scene.now, host.scene.client, GPU, &slots[..1]);
    host.poll();
    assert_eq!(host.counts().slots_granted, 2);
    host.scene.core.tick(lapis_config::Time(host.scene.now.0 + 3_600 * SECOND_US));
    host.scene.core.client_lost(host.scene.client);
    host.poll();
    assert_eq!(host.counts().slots_granted, 2, "its processes may still write there");
    host.scene.core.client_gone(host.scene.client);
    host.poll();
    assert_eq!((host.counts().slots_granted, host.counts().slots_free), (0, 3));
}

#[test]
fn a_slot_on_a_gpu_is_committed_by_its_client_alone_and_once() {
    let mut host = Host::new();
    let slot = host.slots(0, 1)[0];
    let item = CommitItem { slot, key: key(0, 0), parent: Parent::None, bytes: BLOCK, sum: 1 };
    let (own, other) = (host.scene.client, host.scene.connect());
    let mut commit = |id, gpu| {
        let mut puts = Vec::new();
        host.scene.core.commit_on_gpu(host.scene.now, id, gpu, host.pool, &[item], &mut puts);
        puts[0]
    };
    assert_eq!(commit(other, GPU), Put::Refused(Refusal::NotGranted));
    assert_eq!(commit(own, GpuId(3)), Put::Refused(Refusal::NotGranted));
    assert_eq!(commit(own, GPU), Put::Stored);
    assert_eq!(commit(own, GPU), Put::Refused(Refusal::NotGranted));
    host.work(Outcome::Ok);
}

#[test]
fn what_was_put_meanwhile_by_another_is_not_stored_twice() {
    let mut host = Host::new();
    let slot = host.slots(0, 1)[0];
    assert_eq!(host.scene.put_chain(host.pool, 0, 1), 1);
    let item = CommitItem { slot, key: key(0, 0), parent: Parent::None, bytes: BLOCK, sum: 1 };
    let mut puts = Vec::new();
    host.scene.core.commit_on_gpu(host.scene.now, host.scene.client, GPU, host.pool, &[item], &mut puts);
    host.poll();
    assert_eq!((puts, host.counts().slots_free), (vec![Put::Exists], 1));
}

#[test]
fn a_copy_back_keeps_its_slot_on_the_gpu_though_the_block_goes() {
    let mut host = Host::new();
    host.put(0, 1, 5);
    host.poll();
    let (op, Spot::Hbm(_, from), _) = host.copies.pop().expect("a copy") else { panic!("from the GPU") };
    host.remove(0, 0);
    host.poll();
    assert_eq!((host.line(0, 0), host.counts().slots_busy), (None, 1));
    let on_gpu = host.slots(8, 4);
    assert!(on_gpu.len() == 3 && !on_gpu.contains(&from), "{on_gpu:?}");
    host.scene.core.completed(host.scene.now, op, Outcome::Ok);
    host.poll();
    assert_eq!((host.counts().slots_busy, host.counts().slots_free), (0, 1));
    assert_eq!(host.scene.core.counts().slots_busy, 0);
}

#[test]
fn a_removed_block_is_on_no_gpu_and_a_purged_pool_neither() {
    let mut host = Host::new();
    host.heat(0, 2);
    host.put(1, 1, 5);
    host.remove(0, 0);
    host.poll();
    assert_eq!((host.counts().blocks, host.line(0, 1)), (1, None));
    let to = Caller { client: host.scene.client, token: 1 << 41 };
    host.scene.core.purge(host.scene.now, to, host.pool);
    host.work(Outcome::Ok);
    assert_eq!((host.counts().blocks, host.line(1, 0)), (0, None));
}

#[test]
fn puts_that_cannot_be_saved_wait_each_once() {
    let mut host = Host::new();
    // Nothing in DRAM may go.
    let keys: Vec<_> = (0..16).map(|depth| key(5, depth)).collect();
    assert_eq!(host.scene.reserve(host.pool, BLOCK, &keys).len(), 16);
    for _ in 0..8 {
        host.put(0, 1, 5);
        host.poll();
        assert_eq!(host.copies, [], "there is no room");
        host.remove(0, 0);
        host.poll();
    }
    host.put(1, 1, 5);
    host.poll();
    host.scene.core.client_gone(host.scene.client);
    host.poll();
    assert_eq!(host.copies.len(), 1, "the one that is there");
    // A get asks for it once more, and fails.
    host.work(Outcome::Failed);
    assert_eq!(host.tier(1, 0), Some(Tier::Hbm));
}
