//! GPUs simulated: the real core and the copier's faulty twin with real bytes, clients that read and write the memory of
//! GPUs by copies that end later, their deaths with copies under way, GPUs that are lost, daemons that are killed. What is
//! drawn comes from the seed; the same seed gives the same run.
//!
//! The daemon's engine is not part of it. Kept memory is the plain one, and the device table with it.

mod clients;
mod daemon;

use std::collections::BTreeMap;

use fastrand::Rng;
use lapis_arena::{
    Mapping,
    hbm::{Copied, Copier, CopyError, CopyJob, FakeCopier, FakeFaults, Spot},
};
use lapis_config::{GpuId, Key, LineId, PolicyName, PoolId, SlotId, Time, UNIT_BYTES};
use lapis_tiering::{
    Chosen, Core, PlainKept,
    face::Counts,
    kept::{Kept, Tier},
};

use self::clients::Process;

pub const POOL: PoolId = PoolId(0);
/// Of every block.
const BLOCK_UNITS: u32 = 2;
pub const BLOCK_BYTES: u32 = BLOCK_UNITS * UNIT_BYTES as u32;
const DRAM_BLOCKS: u64 = 40;
const CHAINS: u64 = 8;
const DEPTH_MAX: u64 = 8;
/// Slots of the host memory from and to which clients copy.
const SCRATCH_SLOTS: u64 = 64;
const JOBS_MAX: usize = 24;
/// Numbers of clients' copies; those of a daemon have its life above them.
const CLIENTS_JOB: u64 = 1 << 63;
const LIFE_SHIFT: u32 = 40;

/// How often what happened, for a look at what a number of seeds came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub reads_on_gpu: u64,
    pub puts_on_gpu: u64,
    pub host_hits: u64,
    pub hits_from_gpus: u64,
    pub promotions: u64,
    pub saved: u64,
    pub failed: u64,
    pub evictions: u64,
    pub losses: u64,
    pub returns: u64,
    pub kills: u64,
    pub deaths_mid_copy: u64,
    pub judged: u64,
    /// Of all that happened, in order.
    pub hash: u64,
}

impl Tally {
    /// Adds what another run came to.
    pub fn add(&mut self, other: &Self) {
        let counts = other.named().map(|(_, count)| count);
        for (own, more) in self.counts().into_iter().zip(counts) {
            *own += more;
        }
    }

    /// All counts, with their names.
    pub fn named(&self) -> [(&'static str, u64); 13] {
        let mut names = [
            "reads on GPUs",
            "puts on GPUs",
            "hits of hosts",
            "hits of hosts that came from GPUs",
            "promotions",
            "copies back",
            "copies that failed",
            "evictions",
            "losses of GPUs",
            "returns of GPUs",
            "kills of the daemon",
            "deaths with copies under way",
            "blocks judged where they lie",
        ]
        .map(|name| (name, 0));
        let mut own = self.clone();
        names.iter_mut().zip(own.counts()).for_each(|(name, count)| name.1 = *count);
        names
    }

    fn counts(&mut self) -> [&mut u64; 13] {
        [
            &mut self.reads_on_gpu,
            &mut self.puts_on_gpu,
            &mut self.host_hits,
            &mut self.hits_from_gpus,
            &mut self.promotions,
            &mut self.saved,
            &mut self.failed,
            &mut self.evictions,
            &mut self.losses,
            &mut self.returns,
            &mut self.kills,
            &mut self.deaths_mid_copy,
            &mut self.judged,
        ]
    }
}

/// The bytes of a block: each differs from those of every other block everywhere.
pub fn payload(key: &Key) -> Vec<u8> {
    let base = key.0[0] << 48 | key.0[1] << 32;
    let word = |at: u64| (base + at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..u64::from(BLOCK_BYTES) / 8).flat_map(word).collect()
}

/// Never 0: that says that there is none.
pub fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
    words.fold(1u64, |sum, word| (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)) | 1
}

pub struct World {
    rng: Rng,
    now: Time,
    policy: PolicyName,
    core: Option<Core<PlainKept, Chosen>>,
    /// Of the daemon; above its copies' numbers.
    life: u64,
    dram: Mapping,
    scratch: Mapping,
    scratch_free: Vec<u64>,
    copier: FakeCopier,
    /// Copies that found no room with the copier.
    queue: Vec<CopyJob>,
    gpus: BTreeMap<GpuId, Slice>,
    processes: Vec<Process>,
    jobs: BTreeMap<u64, clients::Job>,
    job_next: u64,
    client_next: u32,
    token_next: u64,
    /// Who names what: several readers may name one slot.
    named: BTreeMap<(GpuId, SlotId), u32>,
    calls: BTreeMap<lapis_tiering::face::Caller, clients::Call>,
    soon: Vec<(Time, daemon::Soon)>,
    tally: Tally,
}

/// A GPU's slice as the daemon knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slice {
    There,
    /// Lost, and the daemon does not know it yet.
    Dying,
    Away,
}

/// Runs one seed to its end. The error says what was wrong.
pub fn run(seed: u64) -> Result<Tally, String> {
    let lived = std::panic::catch_unwind(|| World::new(seed).and_then(World::live));
    lived.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("a panic: {}", text.unwrap_or("without words")))
    })
}

impl World {
    fn new(seed: u64) -> Result<Self, String> {
        let mut rng = Rng::with_seed(seed);
        let faults = FakeFaults {
            latency_us_max: [50, 500, 20_000][rng.usize(..3)],
            refuse_one_in: [0, 0, 40, 8][rng.usize(..4)],
            lose_one_in: [0, 0, 400][rng.usize(..3)],
        };
        let memory = |bytes| Mapping::anonymous(bytes).map_err(|error| error.to_string());
        let dram = memory(DRAM_BLOCKS * u64::from(BLOCK_BYTES))?;
        let scratch = memory(SCRATCH_SLOTS * u64::from(BLOCK_BYTES))?;
        let mut copier = FakeCopier::new(rng.u64(..), faults, JOBS_MAX);
        copier.add_host(dram.clone());
        copier.add_host(scratch.clone());
        let gpus: Vec<GpuId> = (0..1 + rng.u8(..2)).map(GpuId).collect();
        for gpu in &gpus {
            copier.add_extent(gpu.0.into(), Self::gpu_bytes(*gpu)).map_err(|error| error.to_string())?;
        }
        let policy = if rng.bool() { PolicyName::Hazq } else { PolicyName::Lru };
        let mut world = Self {
            rng,
            now: Time(1_000_000),
            policy,
            core: None,
            life: 0,
            dram,
            scratch,
            scratch_free: (0..SCRATCH_SLOTS).collect(),
            copier,
            queue: Vec::new(),
            gpus: gpus.into_iter().map(|gpu| (gpu, Slice::Away)).collect(),
            processes: Vec::new(),
            jobs: BTreeMap::new(),
            job_next: CLIENTS_JOB,
            client_next: 1,
            token_next: 1,
            named: BTreeMap::new(),
            calls: BTreeMap::new(),
            soon: Vec::new(),
            tally: Tally::default(),
        };
        world.start_cold();
        Ok(world)
    }

    fn gpu_bytes(gpu: GpuId) -> u64 {
        (10 + 8 * u64::from(gpu.0)) * u64::from(BLOCK_BYTES)
    }

    fn live(mut self) -> Result<Tally, String> {
        for turn in 0..1_500u32 {
            self.turn(false)?;
            if turn % 16 == 0 {
                self.judge()?;
            }
        }
        self.come_to_rest()?;
        let counts = self.core().counts();
        self.tell(&counts);
        Ok(self.tally)
    }

    /// Time passes, and one thing happens; `ending`: nobody begins anything.
    fn turn(&mut self, ending: bool) -> Result<(), String> {
        self.now.0 += self.rng.u64(1..400);
        if self.rng.u32(..12) == 0 {
            self.now.0 += self.rng.u64(..120_000);
        }
        let what = if ending { 0 } else { self.rng.u32(..1_000) };
        match what {
            0..500 => {}
            500..620 => self.read_on_gpu(),
            620..700 => self.read_into(),
            700..760 => self.begin_put_on_gpu(),
            760..840 => self.begin_put(),
            840..900 => self.begin_get(),
            900..930 => self.connect(),
            930..960 => self.kill_process(),
            960..965 => self.lose_gpu(),
            965..985 => self.bring_gpu_back(),
            985..992 => self.remove(),
            992..995 => self.kill_daemon()?,
            _ => {
                let now = self.now;
                self.core().tick(now);
            }
        }
        self.perform()?;
        self.poll_copier()?;
        self.bury();
        // Last: nothing is on its way to anybody between two turns.
        self.turn_daemon()?;
        if self.rng.u32(..4) == 0 { self.core().audit() } else { Ok(()) }
    }

    fn core(&mut self) -> &mut Core<PlainKept, Chosen> {
        self.core.as_mut().expect("a daemon between two turns")
    }

    fn key(&mut self) -> (u64, u64) {
        (self.rng.u64(..CHAINS), self.rng.u64(..DEPTH_MAX))
    }

    /// What a daemon counted in its life.
    fn tell(&mut self, counts: &Counts) {
        self.tally.hits_from_gpus += counts.hbm_hits;
        self.tally.promotions += counts.hbm_promotions;
        self.tally.saved += counts.hbm_saved;
        self.tally.failed += counts.hbm_copies_failed;
        self.tally.evictions += counts.hbm_evictions;
    }

    fn note(&mut self, what: u64) {
        self.tally.hash = (self.tally.hash ^ what).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }

    // ---- Copies ----

    fn dram_spot(slot: SlotId) -> Spot {
        Spot::Host { extent: 0, offset: slot.offset_bytes() }
    }

    fn gpu_spot(gpu: GpuId, slot: SlotId) -> Spot {
        Spot::Device { device: gpu.0.into(), extent: 0, offset: slot.offset_bytes() }
    }

    fn submit(&mut self, job: CopyJob) {
        self.queue.push(job);
        let taken = self.copier.submit(self.now, &self.queue);
        self.queue.drain(..taken);
    }

    fn poll_copier(&mut self) -> Result<(), String> {
        let mut done = Vec::new();
        self.copier.poll(self.now, &mut done);
        let taken = self.copier.submit(self.now, &self.queue);
        self.queue.drain(..taken);
        for Copied { op, outcome } in done {
            self.note(op ^ u64::from(outcome.is_ok()));
            if let Err(CopyError::Lost { device }) = outcome {
                self.is_dying(GpuId(device as u8));
            }
            if op >= CLIENTS_JOB {
                self.job_ended(op, outcome.is_ok())?;
            } else if op >> LIFE_SHIFT == self.life {
                self.copy_ended(op & ((1 << LIFE_SHIFT) - 1), outcome.is_ok());
            }
            // What was answered is looked at before anything else happens.
            self.perform()?;
        }
        Ok(())
    }

    // ---- What must hold ----

    /// All that readers find, in DRAM or on GPUs, is what was put under its key.
    fn judge(&mut self) -> Result<(), String> {
        let core = self.core.as_ref().expect("a daemon between two turns");
        let kept = core.kept();
        for line in (0..kept.lines()).map(LineId) {
            let Some(live) = kept.live(line) else { continue };
            let right = payload(&live.key);
            if matches!(live.place.tier, Tier::Dram | Tier::DramUnverified) {
                let offset = live.place.slot.offset_bytes() as usize;
                if self.dram.to_vec(offset, right.len()) != right {
                    return Err(format!("wrong bytes in DRAM: {live:?}"));
                }
                self.tally.judged += 1;
            }
            let Some(place) = kept.device(line) else { continue };
            if self.gpus[&place.gpu] != Slice::There {
                continue;
            }
            if self.copier.peek(Self::gpu_spot(place.gpu, place.slot), right.len()) != right {
                return Err(format!("wrong bytes on a GPU: {live:?} at {place:?}"));
            }
            self.tally.judged += 1;
        }
        Ok(())
    }

    /// Nobody begins anything: all ends, and everything comes back.
    fn come_to_rest(&mut self) -> Result<(), String> {
        for _ in 0..800 {
            self.turn(true)?;
            self.now.0 += 2_000;
        }
        let now = self.now;
        self.core().tick(now);
        self.turn_daemon()?;
        if !self.calls.is_empty() || !self.jobs.is_empty() || !self.queue.is_empty() {
            return Err(format!("not over: {} calls, {:?}", self.calls.len(), self.jobs));
        }
        self.end_processes();
        for _ in 0..200 {
            self.turn(true)?;
            self.now.0 += 20_000;
        }
        self.judge()?;
        let left = self.core().unfinished();
        let counts = self.core().counts();
        let aside = self.io_in_dram();
        if !left.is_empty() || (counts.slots_granted, counts.slots_busy, counts.slots_aside) != (0, 0, aside) {
            return Err(format!("left over: {left}, {aside} slots of dead copies, {counts:?}"));
        }
        let gpus: Vec<GpuId> = self.gpus.keys().copied().collect();
        for gpu in gpus {
            let aside = self.io_in_on(gpu);
            let Some(counts) = self.core().gpu_counts(gpu) else { continue };
            if (counts.slots_granted, counts.slots_busy, counts.slots_aside) != (0, 0, aside) {
                return Err(format!("left over on GPU {}: {aside} slots of dead copies, {counts:?}", gpu.0));
            }
        }
        Ok(())
    }
}
