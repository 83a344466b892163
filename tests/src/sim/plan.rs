//! What a seed makes of a run: how large, with whom, and what goes wrong.

use fastrand::Rng;
use lapis_config::{Fingerprint, Key, PoolKind, PoolShape};

/// Memory comes in extents of this much.
pub const EXTENT_BYTES: u64 = 2 << 20;

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Turns of daemon, clients and movers together, before everybody goes home.
    pub turns: u32,
    pub groups: usize,
    pub extents: u64,
    pub lines: u64,
    pub clients: usize,
    pub chains: u64,
    pub depth: u64,
    /// Views that a well-behaved client holds at once.
    pub views: usize,
    pub kills: bool,
    pub colds: bool,
    pub crashes: bool,
    pub forks: bool,
    pub stalls: bool,
    pub evil: bool,
    pub removes: bool,
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut percent = |p: u32| rng.u32(..100) < p;
        let (kills, crashes, stalls, evil) = (percent(60), percent(60), percent(25), percent(25));
        let (colds, forks, removes) = (kills && percent(30), crashes && percent(50), percent(50));
        let groups = if percent(25) { 2 } else { 1 };
        Self {
            seed,
            turns: rng.u32(1_500..4_000),
            groups,
            extents: rng.u64(1..4) + groups as u64 - 1,
            lines: rng.u64(512..2_048),
            clients: rng.usize(1..6),
            chains: rng.u64(4..40),
            depth: rng.u64(2..12),
            views: if rng.bool() { 4 } else { 40 },
            kills,
            colds,
            crashes,
            forks,
            stalls,
            evil,
            removes,
        }
    }

    /// True if nobody takes more than a fair share: then no put may be refused for want of room.
    pub fn is_calm(&self) -> bool {
        !self.evil && !self.stalls && !self.forks && self.views <= 4
    }

    /// The pools of every group: two of kin, and one of objects.
    pub fn shapes() -> [PoolShape; 3] {
        let namespace = Fingerprint([0x51; 32]);
        let chain = |label: &str, block_bytes, pieces| {
            let kind = PoolKind::Chain;
            PoolShape { namespace, label: label.into(), kind, block_bytes, pieces }
        };
        let kind = PoolKind::Object;
        let objects = PoolShape {
            namespace: Fingerprint([0x52; 32]),
            label: "objects".into(),
            kind,
            block_bytes: 40 << 10,
            pieces: 1,
        };
        [chain("keys", 16 << 10, 1), chain("values", 12 << 10, 4), objects]
    }

    pub fn chain(&self, rng: &mut Rng) -> Vec<Key> {
        // Some chains are hot.
        let chain = if rng.bool() { rng.u64(..self.chains) } else { rng.u64(..self.chains.div_ceil(4)) };
        (0..rng.u64(1..=self.depth)).map(|depth| key(chain, depth)).collect()
    }
}

/// The key of a place in a chain; says which, for the model.
pub fn key(chain: u64, depth: u64) -> Key {
    Key([mixed(chain << 32 | depth), mixed(!chain ^ depth << 17), chain, depth])
}

/// A key of those that nobody judges.
pub fn evil_key(rng: &mut Rng) -> Key {
    Key([rng.u64(..), rng.u64(..), EVIL, rng.u64(..)])
}

const EVIL: u64 = u64::MAX;

pub fn is_evil(key: &Key) -> bool {
    key.0[2] == EVIL
}

/// SplitMix64.
pub fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
