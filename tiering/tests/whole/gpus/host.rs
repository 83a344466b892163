//! One host with a GPU: DRAM of sixteen blocks, a GPU of four.

use crate::scene::{MIB, Scene, key};
use lapis_config::{GpuId, HitPolicy, Key, LineId, OpId, PolicyName, PoolId, PoolKind, SlotId, Wait};
use lapis_tiering::{
    GpuCounts, PlainKept,
    face::{Action, Caller, CommitItem, Outcome, Parent, Put, Reply, Reserved, Spot},
    kept::{Kept, Tier},
};

pub const GPU: GpuId = GpuId(0);
pub const GPU_BLOCKS: u64 = 4;
pub const BLOCK: u32 = MIB as u32;
pub const SECOND_US: u64 = 1_000_000;
pub const BOTH: [PolicyName; 2] = [PolicyName::Lru, PolicyName::Hazq];

pub struct Host {
    pub scene: Scene,
    pub pool: PoolId,
    /// Copies that were asked for and have not ended.
    pub copies: Vec<(OpId, Spot, Spot)>,
    pub sums: Vec<(OpId, SlotId)>,
}

impl Host {
    pub fn new() -> Self {
        Self::under(PolicyName::Lru)
    }

    pub fn under(policy: PolicyName) -> Self {
        let mut scene = Scene::under(policy, &[16 * MIB], BLOCK);
        let pool = scene.pool(PoolKind::Chain, MIB, 1);
        assert!(scene.core.gpu_added(scene.now, GPU, GPU_BLOCKS * MIB));
        Self::over(scene, pool)
    }

    /// Whose GPU is at that NUMA node.
    pub fn at(node: Option<u32>) -> Self {
        let mut scene = Scene::under(PolicyName::Lru, &[16 * MIB], BLOCK);
        let pool = scene.pool(PoolKind::Chain, MIB, 1);
        assert!(scene.core.gpu_added_at(scene.now, GPU, GPU_BLOCKS * MIB, node));
        Self::over(scene, pool)
    }

    fn over(scene: Scene, pool: PoolId) -> Self {
        Self { scene, pool, copies: Vec::new(), sums: Vec::new() }
    }

    /// What the core wants is taken; what its client was answered.
    pub fn poll(&mut self) -> Vec<Reply> {
        let answers = self.scene.answers();
        for action in self.scene.others.drain(..) {
            match action {
                Action::Copy { op, from, to, bytes } => {
                    assert_eq!(bytes, BLOCK);
                    self.copies.push((op, from, to));
                }
                Action::Sum { op, slot, bytes, .. } => {
                    assert_eq!(bytes, BLOCK);
                    self.sums.push((op, slot));
                }
                _ => {}
            }
        }
        self.scene.core.audit().expect("a sound core");
        answers
    }

    /// All that is under way ends, and what that brings.
    pub fn work(&mut self, outcome: Outcome) -> Vec<Reply> {
        let mut answers = self.poll();
        while !self.copies.is_empty() || !self.sums.is_empty() {
            for (op, ..) in std::mem::take(&mut self.copies) {
                self.scene.core.completed(self.scene.now, op, outcome);
                answers.extend(self.poll());
            }
            for (op, _) in std::mem::take(&mut self.sums) {
                self.scene.core.summed(self.scene.now, op, Some(77));
                answers.extend(self.poll());
            }
        }
        answers
    }

    pub fn line(&self, chain: u64, depth: u64) -> Option<LineId> {
        self.scene.core.kept().find(self.pool, &key(chain, depth))
    }

    pub fn tier(&self, chain: u64, depth: u64) -> Option<Tier> {
        let kept = self.scene.core.kept();
        self.line(chain, depth).map(|line| kept.live(line).expect("found").place.tier)
    }

    /// Where readers on the GPU find the block.
    pub fn on_gpu(&self, chain: u64, depth: u64) -> Option<SlotId> {
        let place = self.scene.core.kept().device(self.line(chain, depth)?)?;
        assert_eq!((place.gpu, place.units), (GPU, 256));
        Some(place.slot)
    }

    /// A client reads a chain's first blocks into the GPU, a second after whatever was before.
    pub fn read(&mut self, chain: u64, blocks: u64) {
        self.scene.now.0 += SECOND_US;
        self.read_now(GPU, chain, blocks);
    }

    pub fn read_now(&mut self, gpu: GpuId, chain: u64, blocks: u64) {
        let line = self.line(chain, blocks - 1).expect("it is there");
        let bind = self.scene.core.kept().live(line).expect("found").generation << 4;
        self.scene.core.read_into(self.scene.now, gpu, line, bind as u32, blocks as u32);
    }

    /// Puts a chain and reads it so often that it is on the GPU, if it may.
    pub fn heat(&mut self, chain: u64, blocks: u64) {
        assert_eq!(self.scene.put_chain(self.pool, chain, blocks), blocks as usize);
        (0..2).for_each(|_| self.read(chain, blocks));
        self.work(Outcome::Ok);
    }

    /// The daemon dies and another takes over; the GPU's memory was kept, or not.
    pub fn restart(&mut self, died: impl FnOnce(&mut PlainKept), is_kept: bool) {
        self.copies.clear();
        self.sums.clear();
        let (now, bytes) = (self.scene.now, GPU_BLOCKS * MIB);
        self.scene.restart_with(died, |core| {
            let slabs: Vec<_> = core.kept().gpu_slabs().map(|(gpu, slab)| (gpu, *slab)).collect();
            assert!(!is_kept || core.gpu_added(now, GPU, bytes));
            slabs.into_iter().for_each(|(gpu, slab)| core.adopt_gpu_slab(gpu, slab));
        });
        self.scene.core.audit().expect("a sound core");
    }

    pub fn counts(&self) -> GpuCounts {
        self.scene.core.gpu_counts(GPU).expect("it is there")
    }

    pub fn reserve(&mut self, keys: &[Key]) -> Vec<Reserved> {
        self.reserve_in(self.pool, keys)
    }

    pub fn reserve_in(&mut self, pool: PoolId, keys: &[Key]) -> Vec<Reserved> {
        let to = Caller { client: self.scene.client, token: 1 << 40 };
        self.scene.core.reserve_on_gpu(self.scene.now, to, GPU, pool, keys, Parent::None);
        match &self.poll()[..] {
            [Reply::Reserved { results }] => results.clone(),
            other => panic!("{other:?}"),
        }
    }

    pub fn slots(&mut self, chain: u64, blocks: u64) -> Vec<SlotId> {
        let keys: Vec<Key> = (0..blocks).map(|depth| key(chain, depth)).collect();
        let slot = |result| if let Reserved::Slot(slot) = result { Some(slot) } else { None };
        self.reserve(&keys).into_iter().filter_map(slot).collect()
    }

    /// Puts a chain on the GPU; nothing is copied back yet.
    pub fn put(&mut self, chain: u64, blocks: u64, sum: u64) {
        let slots = self.slots(chain, blocks);
        assert_eq!(slots.len() as u64, blocks);
        let item = |(depth, slot)| {
            let parent = if depth == 0 { Parent::None } else { Parent::Previous };
            CommitItem { slot, key: key(chain, depth), parent, bytes: BLOCK, sum }
        };
        let items: Vec<CommitItem> = (0..).zip(slots).map(item).collect();
        let mut puts = Vec::new();
        self.scene.core.commit_on_gpu(self.scene.now, self.scene.client, GPU, self.pool, &items, &mut puts);
        assert!(puts.iter().all(|put| *put == Put::Stored), "{puts:?}");
    }

    /// DRAM is written over by other chains, which are used later.
    pub fn flood(&mut self) {
        for chain in 1_000..1_016 {
            self.scene.now.0 += SECOND_US;
            self.scene.put_chain(self.pool, chain, 1);
            self.poll();
        }
    }

    pub fn remove(&mut self, chain: u64, depth: u64) {
        let to = Caller { client: self.scene.client, token: 1 << 42 };
        self.scene.core.remove(self.scene.now, to, self.pool, &[key(chain, depth)]);
    }

    pub fn get(&mut self, chain: u64, blocks: u64) -> Option<u32> {
        let keys: Vec<Key> = (0..blocks).map(|depth| key(chain, depth)).collect();
        let got = self.scene.get(&[(self.pool, HitPolicy::Prefix)], &keys, Wait::Present, 10 * SECOND_US);
        self.poll();
        got
    }
}
