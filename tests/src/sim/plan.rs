//! What a seed makes of a run: how large, with whom, and what goes wrong.

use std::time::Duration;

use fastrand::Rng;
use lapis_config::{Fingerprint, Key, PoolKind, PoolShape};
use lapis_ssd::faulty::Faults;

/// Memory comes in extents of this much.
pub const EXTENT_BYTES: u64 = 2 << 20;

/// Numbers and switches that a plan is made of, by name: what shrinking turns, and what a shrunk plan is told by.
macro_rules! knobs {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Plan {
            pub seed: u64,
            $($(#[$doc])* pub $name: $kind,)*
        }

        impl Plan {
            pub const KNOBS: &[&str] = &[$(stringify!($name)),*];

            pub fn knob(&self, name: &str) -> Option<u64> {
                match name {
                    $(stringify!($name) => Some(Knob::get(&self.$name)),)*
                    _ => None,
                }
            }

            /// False if there is no such knob.
            pub fn turn(&mut self, name: &str, value: u64) -> bool {
                match name {
                    $(stringify!($name) => self.$name = Knob::of(value),)*
                    _ => return false,
                }
                true
            }
        }
    };
}

trait Knob {
    fn get(&self) -> u64;
    fn of(value: u64) -> Self;
}

macro_rules! knob {
    ($($kind:ty),*) => {
        $(impl Knob for $kind {
            fn get(&self) -> u64 {
                *self as u64
            }

            fn of(value: u64) -> Self {
                value as $kind
            }
        })*
    };
}

knob!(u32, u64, usize);

impl Knob for bool {
    fn get(&self) -> u64 {
        (*self).into()
    }

    fn of(value: u64) -> Self {
        value != 0
    }
}

knobs! {
    /// Turns of daemon, clients and movers together, before everybody goes home.
    turns: u32,
    groups: usize,
    extents: u64,
    lines: u64,
    clients: usize,
    chains: u64,
    depth: u64,
    /// Views that a well-behaved client holds at once.
    views: usize,
    /// By how much clients, and what goes wrong, are slower.
    pace: u64,
    kills: bool,
    colds: bool,
    crashes: bool,
    forks: bool,
    stalls: bool,
    evil: bool,
    /// Of 100 things that clients begin: removals and purges, gets that hold what they are answered, and puts beside
    /// those that are anyway.
    removes: u32,
    holds: u32,
    puts: u32,
    /// Of the SSD tier; 0: there is none.
    devices: usize,
    segment_bytes: u64,
    /// On each device.
    segments: u64,
    /// Operations that a device takes at once.
    queue: usize,
    /// What an operation takes, at most; and before the daemon has found all that is there.
    latency_us: u64,
    start_latency_us: u64,
    /// A part of the memory is kept clean.
    ahead_part: u64,
    list_after_us: u64,
    durable: bool,
    /// Kills that take memory along, and what was not flushed.
    power_cuts: bool,
    /// Devices go and come back.
    vanish: bool,
    // Of 10,000 operations each.
    eio: u32,
    short: u32,
    torn: u32,
    bit_flip: u32,
    misdirected: u32,
    lost: u32,
    stale: u32,
    full: u32,
    delay: u32,
    hang: u32,
    reorder: u32,
    delay_max_us: u64,
    /// Other hosts, and whether links to them fail, and they lie.
    hosts: usize,
    link_faults: bool,
    /// Whether hosts look keys up in each other's tables.
    looks: bool,
}

/// Chains from here on are those that other hosts have too.
pub const SHARED: u64 = 1 << 20;
pub const SHARED_CHAINS: u64 = 12;

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let percent = |rng: &mut Rng, p: u32| rng.u32(..100) < p;
        let (kills, crashes) = (percent(&mut rng, 60), percent(&mut rng, 60));
        let (stalls, evil) = (percent(&mut rng, 25), percent(&mut rng, 25));
        let (colds, forks) = (kills && percent(&mut rng, 30), crashes && percent(&mut rng, 50));
        // Some hosts do little else than that.
        let removes = if percent(&mut rng, 50) { [4, 4, 12][rng.usize(..3)] } else { 0 };
        let holds = [4, 4, 30][rng.usize(..3)];
        // A few keys come and go again and again.
        let few = rng.u32(..10) < 2;
        let groups = if percent(&mut rng, 25) { 2 } else { 1 };
        let plan = Self {
            seed,
            turns: rng.u32(1_500..4_000),
            groups,
            extents: rng.u64(1..4) + groups as u64 - 1,
            lines: rng.u64(512..2_048),
            clients: rng.usize(1..6),
            chains: if few { rng.u64(1..4) } else { rng.u64(4..40) },
            depth: rng.u64(2..12),
            views: if rng.bool() { 4 } else { 40 },
            pace: 1,
            kills,
            colds,
            crashes,
            forks,
            stalls,
            evil,
            removes,
            holds,
            puts: 0,
            devices: 0,
            segment_bytes: 256 << 10,
            segments: 8,
            queue: 1,
            latency_us: 200,
            start_latency_us: 200,
            ahead_part: 16,
            list_after_us: 0,
            durable: false,
            power_cuts: false,
            vanish: false,
            eio: 0,
            short: 0,
            torn: 0,
            bit_flip: 0,
            misdirected: 0,
            lost: 0,
            stale: 0,
            full: 0,
            delay: 0,
            hang: 0,
            reorder: 0,
            delay_max_us: 0,
            hosts: 0,
            link_faults: false,
            looks: false,
        };
        let plan = if rng.u32(..100) < 60 { plan.with_ssd(&mut rng) } else { plan };
        // Drawn apart, so that a seed of before there were hosts is the same host.
        let mut rng = Rng::with_seed(seed ^ 0x0705_7500);
        let hosts = if percent(&mut rng, 40) { rng.usize(1..4) } else { 0 };
        let link_faults = hosts > 0 && percent(&mut rng, 60);
        Self { hosts, link_faults, looks: hosts > 0 && percent(&mut rng, 50), ..plan }
    }

    fn with_ssd(self, rng: &mut Rng) -> Self {
        // Half of the devices do nothing wrong: then more can be demanded.
        let faulty = rng.bool();
        let mut rate = |percent: u32, most: u32| {
            let happens = rng.u32(..100) < percent;
            let rate = [most / 50, most / 8, most][rng.usize(..3)].max(1);
            if happens { rate } else { 0 }
        };
        let mut wrong = |most: u32| if faulty { rate(30, most) } else { 0 };
        let (eio, short, torn, bit_flip) = (wrong(200), wrong(300), wrong(400), wrong(400));
        let (misdirected, lost, stale, full) = (wrong(300), wrong(300), wrong(300), wrong(200));
        let hang = wrong(60);
        let (delay, reorder) = (rate(30, 3_000), rate(40, 3_000));
        let groups = self.groups as u64;
        // Segments come and go.
        let churns = rng.u32(..10) < 3;
        let few = self.chains < 4;
        let latency_us = [200, 200, 200, 2_000][rng.usize(..4)];
        let slow = (faulty || rng.u32(..10) == 0) && rng.bool();
        Self {
            // Little memory, many blocks: they go to SSD and come back.
            turns: rng.u32(1_500..6_000),
            extents: if rng.u32(..10) < 6 { groups } else { self.extents },
            chains: if few { self.chains } else { rng.u64(8..80) },
            puts: if churns { 40 } else { 0 },
            pace: if slow { rng.u64(10..60) } else { 1 },
            devices: if churns { 1 } else { rng.usize(1..4) },
            segment_bytes: (256 << 10) << if churns { 0 } else { rng.u32(..3) },
            segments: rng.u64(6..if churns { 9 } else { 18 }),
            queue: [1, 4, 32][rng.usize(..3)],
            latency_us,
            start_latency_us: if rng.u32(..10) < 3 { 20_000 } else { latency_us },
            ahead_part: if churns { 1 } else { 16 },
            list_after_us: [1_000, 20_000, 100_000][rng.usize(..3)],
            durable: rng.u32(..10) < 4,
            power_cuts: self.kills && rng.u32(..10) < 4,
            vanish: faulty && rng.u32(..4) == 0,
            eio,
            short,
            torn,
            bit_flip,
            misdirected,
            lost,
            stale,
            full,
            delay,
            hang,
            reorder,
            delay_max_us: [2_000, 50_000, 2_000_000][rng.usize(..3)],
            ..self
        }
    }

    pub fn has_ssd(&self) -> bool {
        self.devices > 0
    }

    pub fn faults(&self) -> Faults {
        Faults {
            eio: self.eio,
            short: self.short,
            torn: self.torn,
            bit_flip: self.bit_flip,
            misdirected: self.misdirected,
            lost: self.lost,
            stale: self.stale,
            full: self.full,
            delay: self.delay,
            hang: self.hang,
            reorder: self.reorder,
            latency_us: 20..self.latency_us,
            delay_max: Duration::from_micros(self.delay_max_us),
        }
    }

    /// Whether devices take longer than a call that is in a hurry.
    pub fn is_slow(&self) -> bool {
        self.delay > 0 || self.latency_us.max(self.start_latency_us) > 200
    }

    /// Whether devices say that they did what they did not.
    pub fn lies(&self) -> bool {
        self.torn + self.bit_flip + self.misdirected + self.lost + self.stale > 0
    }

    /// Whether devices do what they are told to, sooner or later: then what counts as on SSD stays there over kills, and
    /// what was removed stays away.
    pub fn is_honest(&self) -> bool {
        !self.lies() && !self.vanish && self.eio + self.short + self.full + self.hang == 0
    }

    /// Whether what counts as on SSD outlasts whatever happens.
    pub fn is_kept(&self) -> bool {
        self.is_honest() && (self.durable || !self.power_cuts)
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

    /// The same without other hosts.
    pub fn alone(self) -> Self {
        Self { hosts: 0, link_faults: false, looks: false, ..self }
    }

    pub fn chain(&self, rng: &mut Rng) -> Vec<Key> {
        if self.hosts > 0 && rng.u8(..3) == 0 {
            let chain = SHARED + rng.u64(..SHARED_CHAINS);
            return (0..rng.u64(1..=self.depth)).map(|depth| key(chain, depth)).collect();
        }
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

/// Of a chain that other hosts have blocks of.
pub fn is_shared(key: &Key) -> bool {
    (SHARED..SHARED + SHARED_CHAINS).contains(&key.0[2])
}

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
