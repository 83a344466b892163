//! Blocks in several pieces, whose sums lie behind them in their slots: who puts on a GPU writes none.

use crate::scene::{MIB, Scene, key};
use lapis_config::{HitPolicy, LineId, OpId, PolicyName, PoolId, SlotId, Time, Wait};
use lapis_tiering::{
    face::{Action, Caller, CommitItem, Outcome, Parent, Put, Reply, Reserved},
    kept::{Kept, Tier},
};

use super::host::{GPU, SECOND_US};

const BLOCK: u32 = MIB as u32;

/// One block that was put on a GPU, came to DRAM with its sum, and is on the GPU alone since.
struct OnGpu {
    scene: Scene,
    pool: PoolId,
    sum: u64,
}

impl OnGpu {
    fn new() -> Self {
        let mut scene = Scene::under(PolicyName::Lru, &[16 * MIB], BLOCK);
        let pool = scene.pool_in_pieces(MIB, 4, 1);
        assert!(scene.core.gpu_added(scene.now, GPU, 8 * MIB));
        let to = Caller { client: scene.client, token: 1 << 40 };
        scene.core.reserve_on_gpu(scene.now, to, GPU, pool, &[key(0, 0)], Parent::None);
        let answers = scene.answers();
        let [Reply::Reserved { results }] = &answers[..] else { panic!("{answers:?}") };
        let [Reserved::Slot(slot)] = results[..] else { panic!("{results:?}") };
        let (mut puts, item) =
            (Vec::new(), CommitItem { slot, key: key(0, 0), parent: Parent::None, bytes: BLOCK, sum: 0 });
        scene.core.commit_on_gpu(scene.now, scene.client, GPU, pool, &[item], &mut puts);
        assert_eq!(puts, [Put::Stored]);
        let mut own = Self { scene, pool, sum: 77 };
        own.end_copy();
        let (op, _) = own.sum_wanted().expect("a sum is made of it");
        own.scene.core.summed(own.scene.now, op, Some(own.sum));
        assert_eq!(own.tier(), Some(Tier::Dram));
        own.scene.now.0 += SECOND_US;
        own.scene.core.tick(own.scene.now);
        for chain in 1_000..1_020 {
            own.scene.now.0 += SECOND_US;
            own.scene.put_chain(pool, chain, 1);
        }
        assert_eq!(own.tier(), Some(Tier::Hbm));
        own.scene.others.clear();
        own
    }

    fn line(&self) -> Option<LineId> {
        self.scene.core.kept().find(self.pool, &key(0, 0))
    }

    fn tier(&self) -> Option<Tier> {
        self.line().map(|line| self.scene.core.kept().live(line).unwrap().place.tier)
    }

    fn get(&mut self) -> Option<u32> {
        self.scene.get(&[(self.pool, HitPolicy::Prefix)], &[key(0, 0)], Wait::Present, 10 * SECOND_US)
    }

    /// The one copy under way ends well.
    fn end_copy(&mut self) {
        self.scene.answers();
        let copy = |action: &Action| if let Action::Copy { op, .. } = action { Some(*op) } else { None };
        let op: OpId = self.scene.others.drain(..).find_map(|action| copy(&action)).expect("a copy");
        self.scene.core.completed(self.scene.now, op, Outcome::Ok);
        self.scene.core.audit().unwrap();
    }

    fn sum_wanted(&mut self) -> Option<(OpId, SlotId)> {
        let answers = self.scene.answers();
        assert_eq!(answers, [], "not before");
        self.scene.others.drain(..).find_map(|action| match action {
            Action::Sum { op, slot, .. } => Some((op, slot)),
            _ => None,
        })
    }
}

#[test]
fn a_block_that_was_put_on_a_gpu_gets_the_sums_of_its_pieces_whenever_it_comes_from_there() {
    let mut own = OnGpu::new();
    assert_eq!(own.get(), None, "it comes");
    own.end_copy();
    let (op, _) = own.sum_wanted().expect("the sums of its pieces are not on the GPU");
    own.scene.core.summed(own.scene.now, op, Some(own.sum));
    assert_eq!(own.scene.answers(), [Reply::Got { hit: 1 }]);
    assert_eq!((own.tier(), own.scene.core.counts().corrupt), (Some(Tier::Dram), 0));
    own.scene.core.audit().unwrap();
}

#[test]
fn a_block_whose_bytes_on_a_gpu_are_not_its_own_any_more_goes_as_its_sum_is_made_anew() {
    let mut own = OnGpu::new();
    assert_eq!(own.get(), None);
    own.end_copy();
    let (op, _) = own.sum_wanted().expect("a sum");
    own.scene.core.summed(own.scene.now, op, Some(own.sum + 1));
    assert_eq!(own.scene.answers(), [Reply::Got { hit: 0 }]);
    assert_eq!((own.line(), own.scene.core.counts().corrupt), (None, 1));
    let counts = own.scene.core.gpu_counts(GPU).unwrap();
    assert_eq!((counts.blocks, counts.slots_busy, own.scene.core.counts().slots_busy), (0, 0, 0));
    own.scene.core.audit().unwrap();
}

#[test]
fn a_sum_that_cannot_be_made_leaves_the_block_on_its_gpu() {
    let mut own = OnGpu::new();
    assert_eq!(own.get(), None);
    own.end_copy();
    let (op, _) = own.sum_wanted().expect("a sum");
    own.scene.core.summed(own.scene.now, op, None);
    assert_eq!(own.scene.answers(), [Reply::Got { hit: 0 }]);
    assert_eq!((own.tier(), own.scene.core.counts().corrupt), (Some(Tier::Hbm), 0));
    own.scene.core.tick(Time(own.scene.now.0 + SECOND_US));
    own.scene.core.audit().unwrap();
}
