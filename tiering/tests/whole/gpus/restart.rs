//! What a new daemon believes of GPUs whose memory was kept.

use crate::scene::{MIB, Scene, key};
use lapis_config::{LineId, PolicyName, PoolKind, Refusal, SlotId};
use lapis_tiering::{
    PlainKept,
    face::{Action, Caller, CommitItem, Outcome, Parent, Put, Reply, Spot},
    kept::{Kept, Place, SlotState, Tier},
};

use super::host::{BLOCK, GPU, GPU_BLOCKS, Host, SECOND_US};

#[test]
fn copies_on_a_gpu_outlive_the_daemon_and_serve_hosts_too() {
    let mut host = Host::new();
    host.heat(0, 2);
    host.flood();
    let before = [host.on_gpu(0, 0), host.on_gpu(0, 1)];
    assert!(before.iter().all(Option::is_some));
    host.restart(|_| {}, true);
    assert_eq!([host.on_gpu(0, 0), host.on_gpu(0, 1)], before);
    assert_eq!((host.tier(0, 1), host.counts().blocks), (Some(Tier::Hbm), 2));
    host.scene.core.client_resumed(host.scene.client, &[]);
    assert_eq!(host.get(0, 2), None, "it comes");
    assert_eq!(host.work(Outcome::Ok), [Reply::Got { hit: 2 }]);
}

#[test]
fn of_a_gpu_whose_memory_was_not_kept_nothing_is_believed() {
    let mut host = Host::new();
    host.heat(0, 1);
    host.flood();
    host.heat(1, 1);
    host.restart(|_| {}, false);
    assert_eq!((host.line(0, 0), host.tier(1, 0)), (None, Some(Tier::DramUnverified)));
    assert!(host.scene.core.gpu_added(host.scene.now, GPU, GPU_BLOCKS * MIB));
    host.poll();
    assert_eq!((host.on_gpu(1, 0), host.counts().blocks), (None, 0));
}

/// Whether all of the GPU is there for a client that comes back.
fn is_free(host: &mut Host) -> bool {
    host.scene.core.client_resumed(host.scene.client, &[]);
    host.slots(8, GPU_BLOCKS).len() as u64 == GPU_BLOCKS
}

/// The line's bond changed, and its place in the device table had not followed when the daemon died.
fn rebound(kept: &mut PlainKept, line: lapis_config::LineId) {
    let place = kept.live(line).expect("a live line").place;
    kept.rebind(line, place);
}

#[test]
fn a_copy_that_was_set_for_another_generation_of_its_line_is_none() {
    let mut host = Host::new();
    host.heat(0, 1);
    let line = host.line(0, 0).unwrap();
    host.restart(|kept| rebound(kept, line), true);
    assert_eq!((host.on_gpu(0, 0), host.tier(0, 0)), (None, Some(Tier::DramUnverified)));
    assert!(is_free(&mut host), "and its slot is free");
}

#[test]
fn a_block_on_a_gpu_alone_that_is_not_found_there_is_nowhere() {
    let mut host = Host::new();
    host.heat(0, 1);
    host.flood();
    let line = host.line(0, 0).unwrap();
    host.restart(|kept| rebound(kept, line), true);
    assert!(host.line(0, 0).is_none() && is_free(&mut host));
}

#[test]
fn a_copy_whose_slot_is_anothers_or_of_another_size_is_none() {
    for state in [SlotState::Free, SlotState::IoIn, SlotState::Aside] {
        let mut host = Host::new();
        host.heat(0, 1);
        let slot = host.on_gpu(0, 0).unwrap();
        let as_state = |kept: &mut PlainKept| {
            let holds = |slab: &&lapis_tiering::kept::Slab| (slab.base.0..slab.base.0 + slab.units).contains(&slot.0);
            let slab = *kept.gpu_slabs().map(|(_, slab)| slab).find(holds).expect("a slab around it");
            kept.set_device_slot_state(GPU, &slab, (slot.0 - slab.base.0) / slab.stride, state);
        };
        host.restart(as_state, true);
        assert_eq!(host.on_gpu(0, 0), None, "{state:?}");
    }
    let mut host = Host::new();
    host.heat(0, 1);
    let line = host.line(0, 0).unwrap();
    let shorter = |kept: &mut PlainKept| {
        let (device, place) = (kept.device(line), kept.live(line).unwrap().place);
        kept.rebind(line, Place { slot: SlotId(u32::MAX), tier: Tier::Elsewhere, ..place });
        kept.set_device(line, device);
    };
    host.restart(shorter, true);
    assert!(host.line(0, 0).is_none() && is_free(&mut host), "what says that it is on SSD is not here");
}

#[test]
fn a_slot_that_a_dead_daemons_copy_may_write_is_given_to_nobody() {
    let mut host = Host::new();
    host.scene.put_chain(host.pool, 0, 1);
    (0..2).for_each(|_| host.read(0, 1));
    host.poll();
    let (_, _, Spot::Hbm(_, to)) = host.copies.pop().expect("a copy") else { panic!("to the GPU") };
    host.restart(|_| {}, true);
    assert_eq!((host.on_gpu(0, 0), host.counts().slots_aside), (None, 1));
    host.scene.core.client_resumed(host.scene.client, &[]);
    let slots = host.slots(8, 4);
    assert!(slots.len() == 3 && !slots.contains(&to), "{slots:?}");
}

#[test]
fn grants_on_a_gpu_outlive_the_daemon_as_far_as_their_client_still_writes() {
    let mut host = Host::new();
    let slots = host.slots(0, 2);
    host.restart(|_| {}, true);
    assert_eq!(host.counts().slots_granted, 2);
    host.scene.core.client_resumed(host.scene.client, &[]);
    host.scene.core.client_resumed_on_gpus(host.scene.client, &[(GPU, slots[0])]);
    host.poll();
    assert_eq!((host.counts().slots_granted, host.counts().slots_free), (1, 1));
    let mut puts = Vec::new();
    let item = |at: usize| {
        let key = key(0, at as u64);
        CommitItem { slot: slots[at], key, parent: Parent::None, bytes: BLOCK, sum: 1 }
    };
    let items = [item(0), item(1)];
    host.scene.core.commit_on_gpu(host.scene.now, host.scene.client, GPU, host.pool, &items, &mut puts);
    assert_eq!(puts, [Put::Stored, Put::Refused(Refusal::NotGranted)]);
    host.work(Outcome::Ok);
}

#[test]
fn a_copy_of_a_time_to_come_does_not_stay_for_ever() {
    const BYTES: u64 = 64 << 10;
    // More copies than are looked at for one victim.
    const CHAINS: u64 = 96;
    let mut scene = Scene::under(PolicyName::Lru, &[16 * MIB], BYTES as u32);
    let pool = scene.pool(PoolKind::Chain, BYTES, 1);
    assert!(scene.core.gpu_added(scene.now, GPU, CHAINS * BYTES));
    let lines: Vec<LineId> = (0..CHAINS)
        .map(|chain| {
            assert_eq!(scene.put_chain(pool, chain, 1), 1);
            scene.core.kept().find(pool, &key(chain, 0)).unwrap()
        })
        .collect();
    scene.core.hbm_wanted(scene.now, GPU, &lines);
    scene.answers();
    for action in std::mem::take(&mut scene.others) {
        if let Action::Copy { op, .. } = action {
            scene.core.completed(scene.now, op, Outcome::Ok);
        }
    }
    let now = scene.now;
    scene.restart_with(
        |kept| kept.entry_mut(lines[0]).last_use = u32::MAX,
        |core| {
            let slabs: Vec<_> = core.kept().gpu_slabs().map(|(gpu, slab)| (gpu, *slab)).collect();
            assert!(core.gpu_added(now, GPU, CHAINS * BYTES));
            slabs.into_iter().for_each(|(gpu, slab)| core.adopt_gpu_slab(gpu, slab));
        },
    );
    scene.core.client_resumed(scene.client, &[]);
    // All others are used after it.
    scene.now.0 += SECOND_US;
    for &line in &lines[1..] {
        let bind = scene.core.kept().live(line).unwrap().generation << 4;
        scene.core.touched(scene.now, line, bind as u32, 1, 1);
    }
    let to = Caller { client: scene.client, token: 1 << 40 };
    scene.core.reserve_on_gpu(scene.now, to, GPU, pool, &[key(CHAINS, 0)], Parent::None);
    let gone: Vec<LineId> = lines.into_iter().filter(|&line| scene.core.kept().device(line).is_none()).collect();
    assert_eq!(gone, [scene.core.kept().find(pool, &key(0, 0)).unwrap()]);
    scene.core.audit().unwrap();
}

#[test]
fn a_client_that_writes_to_memory_that_was_not_kept_is_granted_none_of_the_new_before_it_lets_go() {
    let mut host = Host::new();
    let former = host.slots(0, 2);
    host.restart(|_| {}, false);
    assert!(host.scene.core.gpu_added(host.scene.now, GPU, GPU_BLOCKS * MIB));
    let (now, client) = (host.scene.now, host.scene.client);
    let writing = [(GPU, former[0]), (GPU, former[1])];
    host.scene.core.client_resumed(client, &[]);
    host.scene.core.client_resumed_on_gpus(client, &writing);
    host.poll();
    // It would have them under the same numbers, and give them back when the former copy is over.
    let is_refused = |host: &mut Host| {
        let to = Caller { client, token: 1 << 41 };
        host.scene.core.reserve_on_gpu(now, to, GPU, host.pool, &[key(1, 0)], Parent::None);
        host.poll() == [Reply::Refused(Refusal::NotReady)]
    };
    assert!(is_refused(&mut host));
    host.scene.core.abort_on_gpu(now, client, GPU, &former[..1]);
    assert!(is_refused(&mut host), "one is written yet");
    let mut puts = Vec::new();
    let item = CommitItem { slot: former[1], key: key(0, 0), parent: Parent::None, bytes: BLOCK, sum: 1 };
    host.scene.core.commit_on_gpu(now, client, GPU, host.pool, &[item], &mut puts);
    assert_eq!(puts, [Put::Refused(Refusal::NotGranted)]);
    assert_eq!(host.slots(1, 1).len(), 1);
    // What it says no more when it comes back again is over, too.
    host.scene.core.client_resumed_on_gpus(client, &writing);
    assert_eq!((host.counts().slots_granted, is_refused(&mut host)), (1, true));
    host.scene.core.client_resumed_on_gpus(client, &[]);
    assert_eq!((host.counts().slots_granted, host.slots(1, 1).len()), (0, 1));
}

#[test]
fn a_block_that_had_no_sum_when_the_daemon_died_gets_one() {
    let mut host = Host::new();
    host.put(0, 1, 0);
    host.poll();
    host.restart(|_| {}, true);
    host.work(Outcome::Ok);
    let live = host.scene.core.kept().live(host.line(0, 0).unwrap()).unwrap();
    assert_eq!((live.place.tier, live.place.sum), (Tier::Dram, 77));
}
