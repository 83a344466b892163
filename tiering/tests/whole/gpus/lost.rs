//! GPUs that are lost, and blocks that go while they are copied.

use crate::scene::{MIB, key};
use lapis_config::{GpuId, HitPolicy, Refusal, Wait};
use lapis_tiering::{
    face::{CommitItem, Outcome, Parent, Put, Reply, Spot},
    kept::Tier,
};

use super::host::{BLOCK, GPU, GPU_BLOCKS, Host, SECOND_US};

#[test]
fn a_lost_gpu_takes_its_copies_and_nothing_else() {
    let mut host = Host::new();
    host.heat(0, 2);
    host.scene.core.gpu_lost(host.scene.now, GPU);
    host.poll();
    assert_eq!((host.tier(0, 0), host.tier(0, 1), host.on_gpu(0, 0)), (Some(Tier::Dram), Some(Tier::Dram), None));
    assert_eq!((host.scene.core.counts().hbm_lost, host.scene.core.gpu_counts(GPU)), (0, None));
}

#[test]
fn what_was_on_a_lost_gpu_alone_goes_with_all_that_hangs_on_it() {
    let mut host = Host::new();
    host.heat(0, 2);
    host.flood();
    assert_eq!(host.tier(0, 0), Some(Tier::Hbm));
    host.scene.put_after(host.pool, key(0, 1), key(0, 2));
    host.scene.core.gpu_lost(host.scene.now, GPU);
    host.poll();
    assert!((0..3).all(|depth| host.line(0, depth).is_none()));
    assert_eq!(host.scene.core.counts().hbm_lost, 3);
}

#[test]
fn a_get_that_waits_for_a_block_of_a_lost_gpu_is_answered() {
    let mut host = Host::new();
    host.heat(0, 1);
    host.flood();
    assert_eq!(host.get(0, 1), None);
    let copies = std::mem::take(&mut host.copies);
    host.scene.core.gpu_lost(host.scene.now, GPU);
    assert_eq!(host.poll(), [Reply::Got { hit: 0 }]);
    assert_eq!(host.scene.core.counts().slots_busy, 1, "the copy may still write into its slot");
    assert!(host.scene.core.gpu_added(host.scene.now, GPU, GPU_BLOCKS * MIB), "it comes back");
    assert_eq!(host.counts().slots_free, 0, "empty");
    host.heat(1, 1);
    host.scene.core.completed(host.scene.now, copies[0].0, Outcome::Failed);
    host.poll();
    assert_eq!((host.scene.core.counts().slots_busy, host.counts().blocks), (0, 1));
}

#[test]
fn grants_on_a_lost_gpu_end_with_it() {
    let mut host = Host::new();
    let slots = host.slots(0, 2);
    host.scene.core.gpu_lost(host.scene.now, GPU);
    host.poll();
    assert!(host.scene.core.gpu_added(host.scene.now, GPU, GPU_BLOCKS * MIB));
    let item = CommitItem { slot: slots[0], key: key(0, 0), parent: Parent::None, bytes: BLOCK, sum: 1 };
    let mut puts = Vec::new();
    host.scene.core.commit_on_gpu(host.scene.now, host.scene.client, GPU, host.pool, &[item], &mut puts);
    assert_eq!(puts, [Put::Refused(Refusal::NotGranted)]);
    host.poll();
    assert_eq!(host.slots(1, 4).len(), 4, "all of it is free for others");
    host.scene.core.client_gone(host.scene.client);
    host.poll();
    assert_eq!((host.counts().slots_granted, host.counts().slots_free), (0, 4));
}

#[test]
fn a_copy_to_a_gpu_that_was_lost_meanwhile_is_nothing_to_the_one_that_came_back() {
    let mut host = Host::new();
    host.scene.put_chain(host.pool, 0, 1);
    (0..2).for_each(|_| host.read(0, 1));
    host.poll();
    let (op, ..) = host.copies.pop().expect("a copy");
    host.scene.core.gpu_lost(host.scene.now, GPU);
    host.poll();
    assert!(host.scene.core.gpu_added(host.scene.now, GPU, GPU_BLOCKS * MIB));
    assert_eq!(host.slots(1, 4).len(), 4);
    host.scene.core.completed(host.scene.now, op, Outcome::Ok);
    host.poll();
    assert_eq!((host.on_gpu(0, 0), host.counts().slots_granted, host.counts().slots_busy), (None, 4, 0));
}

#[test]
fn a_block_that_waits_in_dram_for_its_sum_goes_with_its_gpu() {
    let mut host = Host::new();
    host.put(0, 1, 0);
    host.poll();
    let (op, ..) = host.copies.pop().expect("it is copied back");
    host.scene.core.completed(host.scene.now, op, Outcome::Ok);
    host.poll();
    host.scene.core.gpu_lost(host.scene.now, GPU);
    host.poll();
    assert_eq!((host.line(0, 0), host.scene.core.counts().slots_busy), (None, 1));
    let (op, _) = host.sums.pop().expect("it gets a sum");
    host.scene.core.summed(host.scene.now, op, Some(9));
    host.poll();
    assert_eq!((host.line(0, 0), host.scene.core.counts().slots_busy), (None, 0));
}

#[test]
fn a_copy_under_way_keeps_both_of_its_slots_though_the_block_goes() {
    let mut host = Host::new();
    host.scene.put_chain(host.pool, 0, 1);
    (0..2).for_each(|_| host.read(0, 1));
    host.poll();
    let (op, Spot::Dram(from), Spot::Hbm(_, to)) = host.copies.pop().expect("a copy") else { panic!("to the GPU") };
    assert_eq!(host.scene.remove(host.pool, &[key(0, 0)]), 1);
    host.poll();
    assert_eq!((host.scene.core.counts().slots_busy, host.counts().slots_busy), (1, 1));
    let granted = host.scene.reserve(host.pool, BLOCK, &(0..16).map(|d| key(7, d)).collect::<Vec<_>>());
    assert!(granted.len() == 15 && !granted.contains(&from), "{granted:?}");
    let on_gpu = host.slots(8, 4);
    assert!(on_gpu.len() == 3 && !on_gpu.contains(&to), "{on_gpu:?}");
    host.scene.core.completed(host.scene.now, op, Outcome::Ok);
    host.poll();
    assert_eq!((host.scene.core.counts().slots_busy, host.counts().slots_busy), (0, 0));
    assert_eq!(host.counts().slots_free, 1, "what came belongs to nobody");
}

#[test]
fn a_get_is_not_answered_with_a_block_that_goes_in_the_same_removal() {
    let mut host = Host::new();
    host.put(0, 3, 5);
    host.poll();
    assert_eq!(host.get(0, 3), None, "it waits for all three");
    for _ in 0..2 {
        let (op, ..) = host.copies.remove(0);
        host.scene.core.completed(host.scene.now, op, Outcome::Ok);
        assert_eq!(host.poll(), []);
    }
    let &[(op, ..)] = &host.copies[..] else { panic!("of the deepest block") };
    // The deepest block goes first, and with it what the get waits for; the one above it is still there then.
    host.remove(0, 1);
    assert_eq!(host.poll(), [Reply::Removed { blocks: 2 }, Reply::Got { hit: 1 }]);
    host.scene.core.completed(host.scene.now, op, Outcome::Ok);
    host.poll();
    assert_eq!((host.line(0, 1), host.scene.core.counts().slots_busy), (None, 0));
}

#[test]
fn a_get_is_not_answered_with_a_block_that_goes_with_the_lost_gpu() {
    let mut host = Host::new();
    host.heat(0, 2);
    host.flood();
    host.scene.put_after(host.pool, key(0, 1), key(0, 2));
    let (asks, keys) = ([(host.pool, HitPolicy::Any)], [key(0, 0), key(0, 2)]);
    assert_eq!(host.scene.get(&asks, &keys, Wait::Present, 10 * SECOND_US), None, "it waits for the root");
    host.poll();
    host.scene.core.gpu_lost(host.scene.now, GPU);
    assert_eq!(host.poll(), [Reply::Got { hit: 0 }], "what was in DRAM hung on what was lost");
}

#[test]
fn a_slot_in_dram_that_is_copied_to_two_gpus_is_free_when_both_copies_have_ended() {
    let mut host = Host::new();
    let other = GpuId(1);
    assert!(host.scene.core.gpu_added(host.scene.now, other, GPU_BLOCKS * MIB));
    host.scene.put_chain(host.pool, 0, 1);
    (0..2).for_each(|_| host.read(0, 1));
    host.poll();
    // The first copy goes on, for nobody.
    host.scene.core.gpu_lost(host.scene.now, GPU);
    host.scene.now.0 += SECOND_US;
    host.read_now(other, 0, 1);
    host.poll();
    let ops: Vec<_> = host.copies.drain(..).map(|(op, ..)| op).collect();
    assert_eq!(ops.len(), 2);
    host.scene.core.completed(host.scene.now, ops[0], Outcome::Failed);
    assert_eq!(host.scene.remove(host.pool, &[key(0, 0)]), 1);
    host.poll();
    assert_eq!(host.scene.core.counts().slots_busy, 1, "it is still read");
    host.scene.core.completed(host.scene.now, ops[1], Outcome::Ok);
    host.poll();
    assert_eq!(host.scene.core.counts().slots_busy, 0);
}
