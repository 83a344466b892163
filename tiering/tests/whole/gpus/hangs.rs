//! A GPU that does not answer is no concern of the others, nor of anything else.

use crate::scene::{MIB, key};
use lapis_config::GpuId;
use lapis_tiering::{
    face::{Outcome, Reply, Spot},
    kept::{Kept, Tier},
};

use super::host::{GPU_BLOCKS, Host, SECOND_US};

const HANGS: GpuId = GpuId(0);
const WELL: GpuId = GpuId(1);

/// Two GPUs, of which the first does not answer from some time on.
fn two_gpus() -> Host {
    let mut host = Host::new();
    assert!(host.scene.core.gpu_added(host.scene.now, WELL, GPU_BLOCKS * MIB));
    host
}

fn is_of(gpu: GpuId) -> impl Fn(&Spot) -> bool {
    move |spot| matches!(spot, Spot::Hbm(of, _) if *of == gpu)
}

/// Ends the copies of the GPU that answers, and what that brings.
fn work(host: &mut Host) -> Vec<Reply> {
    let mut answers = host.poll();
    loop {
        let (ended, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut host.copies)
            .into_iter()
            .partition(|(_, from, to)| is_of(WELL)(from) || is_of(WELL)(to));
        host.copies = rest;
        if ended.is_empty() {
            return answers;
        }
        for (op, ..) in ended {
            host.scene.core.completed(host.scene.now, op, Outcome::Ok);
            answers.extend(host.poll());
        }
    }
}

fn gpu_of(host: &Host, chain: u64) -> Option<GpuId> {
    let line = host.line(chain, 0)?;
    Some(host.scene.core.kept().device(line)?.gpu)
}

#[test]
fn promotions_to_a_gpu_that_hangs_hold_up_none_to_another() {
    // 64 MiB may be under way.
    let mut scene = crate::scene::Scene::under(lapis_config::PolicyName::Lru, &[1_024 * MIB], 40 << 20);
    let pool = scene.pool(lapis_config::PoolKind::Chain, 40 * MIB, 1);
    for gpu in [HANGS, WELL] {
        assert!(scene.core.gpu_added(scene.now, gpu, 1_024 * MIB));
    }
    assert_eq!(scene.put_chain(pool, 0, 6), 6);
    let lines: Vec<_> = (0..6).map(|depth| scene.core.kept().find(pool, &key(0, depth)).unwrap()).collect();
    scene.core.hbm_wanted(scene.now, HANGS, &lines[..3]);
    scene.core.hbm_wanted(scene.now, WELL, &lines[3..]);
    let mut came = 0;
    for _ in 0..3 {
        scene.answers();
        for action in std::mem::take(&mut scene.others) {
            match action {
                lapis_tiering::face::Action::Copy { op, to, .. } if is_of(WELL)(&to) => {
                    scene.core.completed(scene.now, op, Outcome::Ok);
                    came += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!(came, 3);
    scene.core.audit().unwrap();
}

/// Chains 0 to 2 are on the GPU that hangs and on no other, chain 3 on the one that is well, none in DRAM.
fn on_both() -> Host {
    let mut host = two_gpus();
    (0..4).for_each(|chain| assert_eq!(host.scene.put_chain(host.pool, chain, 1), 1));
    for _ in 0..2 {
        host.scene.now.0 += SECOND_US;
        (0..3).for_each(|chain| host.read_now(HANGS, chain, 1));
        host.read_now(WELL, 3, 1);
    }
    host.work(Outcome::Ok);
    host.flood();
    assert!((0..4).all(|chain| host.tier(chain, 0) == Some(Tier::Hbm)));
    let on: Vec<_> = (0..4).map(|chain| gpu_of(&host, chain)).collect();
    assert_eq!(on, [Some(HANGS), Some(HANGS), Some(HANGS), Some(WELL)]);
    host
}

#[test]
fn gets_that_wait_for_a_gpu_that_hangs_hold_up_none_that_wait_for_another() {
    let mut host = on_both();
    for chain in 0..3 {
        assert_eq!(host.get(chain, 1), None);
    }
    assert!(host.copies.iter().all(|(_, from, _)| is_of(HANGS)(from)));
    assert!(!host.copies.is_empty() && host.copies.len() < 3, "so much is under way there, and the rest waits");
    assert_eq!(host.get(3, 1), None);
    assert_eq!(work(&mut host), [Reply::Got { hit: 1 }]);
    assert_eq!(host.tier(3, 0), Some(Tier::DramUnverified));
    // Those of the other end at their deadline, and what comes after is nobody's concern.
    host.scene.now.0 += 11 * SECOND_US;
    host.scene.core.tick(host.scene.now);
    assert_eq!(host.poll(), vec![Reply::Got { hit: 0 }; 3]);
    host.work(Outcome::Ok);
    assert_eq!(host.scene.core.counts().slots_busy, 0);
}

#[test]
fn puts_on_a_gpu_are_saved_while_gets_wait_for_one_that_hangs() {
    let mut host = on_both();
    for chain in 0..3 {
        assert_eq!(host.get(chain, 1), None);
    }
    let to = lapis_tiering::face::Caller { client: host.scene.client, token: 1 << 40 };
    host.scene.core.reserve_on_gpu(
        host.scene.now,
        to,
        WELL,
        host.pool,
        &[key(7, 0)],
        lapis_tiering::face::Parent::None,
    );
    let answers = host.poll();
    let [Reply::Reserved { results }] = &answers[..] else { panic!("{answers:?}") };
    let [lapis_tiering::face::Reserved::Slot(slot)] = results[..] else { panic!("{results:?}") };
    let parent = lapis_tiering::face::Parent::None;
    let item = lapis_tiering::face::CommitItem { slot, key: key(7, 0), parent, bytes: super::host::BLOCK, sum: 5 };
    let mut puts = Vec::new();
    host.scene.core.commit_on_gpu(host.scene.now, host.scene.client, WELL, host.pool, &[item], &mut puts);
    work(&mut host);
    assert_eq!((puts, host.tier(7, 0)), (vec![lapis_tiering::face::Put::Stored], Some(Tier::DramUnverified)));
}
