//! What is replayed beside policy and capacity: tiers, hosts, admission. Says what does not go together before a trace
//! is read, and makes the cache for the rest.

use anyhow::{bail, ensure};
use lapis_config::{Bytes, PolicyName};
use lapis_tiering::SsdTier;

use super::{
    CAPACITY_MAX, Cache, Outcome, SsdOutcome,
    cache::{Ssd, core, drive},
    hosts::{HostsPlan, Peers},
    words::{Admission, Subject, WriteBudget},
    workload::Workload,
    yardsticks::{WriteThrough, Yardstick},
};

/// Pages of memory are counted in 32 bits.
const MEMORY_BYTES_END: u64 = 16 << 40;
const DAY_MS: f64 = 86_400_000.0;
/// One cache of several hosts is a table by block: so many entries in all.
const HOSTS_BLOCKS_MAX: u64 = 1 << 30;

#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Blocks on SSD, and the bytes of one.
    pub ssd: Option<(u64, u64)>,
    pub admission: Admission,
    pub write_budget: Option<WriteBudget>,
    pub hosts: Option<HostsPlan>,
}

impl Default for Setting {
    fn default() -> Self {
        Self { ssd: None, admission: Admission::Full, write_budget: None, hosts: None }
    }
}

impl Setting {
    /// Whether this can be replayed: an error says what to give instead.
    pub fn check(&self, subject: Subject, capacity: u64) -> anyhow::Result<()> {
        self.check_admission(subject)?;
        let word = subject.word();
        match (subject, self.ssd, self.hosts) {
            (Subject::Yardstick(_), Some(_), _) => {
                bail!("--policy {word} has one tier: leave out --ssd, or take a policy of the core such as lru")
            }
            (Subject::Yardstick(Yardstick::Opt), _, Some(_)) => bail!(
                "--policy opt is one cache: with --hosts give --opt, which compares with the optimum of all hosts' \
                 blocks together"
            ),
            (Subject::Yardstick(_), _, Some(HostsPlan { peers: Peers::Digest, .. })) => bail!(
                "--policy {word} does not tell what it evicts, so there is no digest of it: give --peers oracle, or a policy \
                 of the core such as lru"
            ),
            _ => {}
        }
        if let Some((blocks, block_bytes)) = self.ssd {
            let most = |blocks: u64| blocks.checked_mul(block_bytes).is_some_and(|bytes| bytes < MEMORY_BYTES_END);
            ensure!(
                most(capacity) && capacity + 2 * blocks <= CAPACITY_MAX,
                "{capacity} blocks of {} in memory and {blocks} on SSD are too many: less than 16TiB of memory, and \
                 with twice those on SSD {CAPACITY_MAX} blocks in all",
                Bytes(block_bytes)
            );
        }
        if let Some(HostsPlan { hosts, .. }) = self.hosts {
            ensure!(
                hosts.saturating_mul(capacity) <= HOSTS_BLOCKS_MAX,
                "{hosts} hosts of {capacity} blocks are too many: {HOSTS_BLOCKS_MAX} blocks in all at most"
            );
        }
        Ok(())
    }

    fn check_admission(&self, subject: Subject) -> anyhow::Result<()> {
        ensure!(
            self.write_budget.is_none() || self.admission == Admission::Class,
            "--admission {} writes what it writes: leave out --write-budget, or give --admission class",
            self.admission.word()
        );
        match self.admission {
            Admission::Class => ensure!(
                subject != Subject::Core(PolicyName::Lru) && self.write_budget.is_some(),
                "--admission class writes the blocks of the classes that are worth most, as far as a budget goes: give \
                 --policy hazq, which has classes, and --write-budget, like 50% or 68TB/day; --admission full writes every \
                 full block"
            ),
            Admission::WriteThrough => ensure!(
                subject == Subject::Core(PolicyName::Lru),
                "--admission write-through is a model with lru in both tiers: give --policy lru, not {}",
                subject.word()
            ),
            Admission::Full => {}
        }
        Ok(())
    }

    /// Replays `workload`; what was asked for was checked.
    pub fn replay(&self, workload: &Workload, subject: Subject, capacity: u64) -> Outcome {
        self.check(subject, capacity).expect("settings are checked before a trace is read");
        if let Some(plan) = &self.hosts {
            let mut hosts = plan.build(capacity, || self.cache(workload, subject, capacity));
            let outcome = drive(workload, &mut hosts);
            return Outcome { hosts: Some(plan.outcome(&hosts)), ..outcome };
        }
        let mut cache = self.cache(workload, subject, capacity);
        let outcome = drive(workload, &mut *cache);
        let ssd = self
            .ssd
            .zip(cache.ssd())
            .map(|((blocks, block_bytes), counts)| SsdOutcome::new(blocks, block_bytes, workload.real_blocks, &counts));
        Outcome { ssd, ..outcome }
    }

    /// The most that any cache with all this room, DRAM and SSD of all hosts, could hit.
    pub fn optimum(&self, workload: &Workload, capacity: u64) -> Outcome {
        let below = self.ssd.map_or(0, |(blocks, _)| blocks);
        let hosts = self.hosts.map_or(1, |plan| plan.hosts);
        let mut cache = Yardstick::Opt.cache(workload, hosts * (capacity + below));
        drive(workload, &mut *cache)
    }

    /// The budget of a day, if there is one. Per cent are of the bytes of the trace's distinct blocks, over its span.
    fn write_bytes_a_day(&self, workload: &Workload, block_bytes: u64) -> Option<u64> {
        self.write_budget.map(|budget| match budget {
            WriteBudget::BytesPerDay(bytes) => bytes,
            WriteBudget::Percent(percent) => {
                let bytes = workload.real_blocks as f64 * block_bytes as f64 * percent / 100.0;
                (bytes * DAY_MS / workload.span_ms().max(1) as f64) as u64
            }
        })
    }

    fn cache(&self, workload: &Workload, subject: Subject, capacity: u64) -> Box<dyn Cache> {
        match (subject, self.admission, self.ssd) {
            (Subject::Yardstick(yardstick), ..) => yardstick.cache(workload, capacity),
            (_, Admission::WriteThrough, Some((blocks, block_bytes))) => {
                Box::new(WriteThrough::new(workload.blocks, capacity, blocks, block_bytes))
            }
            (Subject::Core(policy), _, ssd) => {
                let ssd = ssd.map(|(blocks, block_bytes)| Ssd {
                    tier: SsdTier { blocks: blocks as u32, block_bytes },
                    write_bytes_a_day: self.write_bytes_a_day(workload, block_bytes),
                });
                core(policy, capacity, ssd)
            }
        }
    }
}
