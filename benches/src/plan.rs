//! `lapis plan`: which sizes of DRAM and SSD buy which hit rate of a trace, and what the SSD is written for it. The core
//! itself is replayed, as `lapis replay` does; a model's bytes per token make bytes of its blocks.

mod models;
mod sizes;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use lapis_config::{Bytes, size};
use lapis_trace::{BLOCK_TOKENS, read_all};
use serde::Serialize;

use crate::{
    replay::{Outcome, Setting, Subject, Subjects, Workload, names, rounded, subjects},
    trace::print,
};
use models::Model;

/// A block has whole pages in the core, and no more than memory can be cut into.
const BYTES_PER_TOKEN: std::ops::RangeInclusive<u64> = 8..=16 << 20;
/// Larger blocks are replayed as blocks of this size, and bytes scaled. A trace's block has 512 tokens; engines store
/// 16 or so in one, a few MiB. Replayed at hundreds of MiB, the core's bounds on bytes under way would hold a block or two
/// and cost hits that no engine loses; memory of thousands of TiB can be planned besides.
const REPLAYED_BYTES_MAX: u64 = 1 << 20;
const DAY_S: f64 = 86_400.0;

/// Says from a trace which sizes of DRAM and SSD buy which hit rate, and how much is written to SSD for it.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Files in Mooncake form, .jsonl or .jsonl.zst; several are merged by time. All of it comes to one host.
    #[arg(required = true)]
    traces: Vec<PathBuf>,
    /// KV bytes of one token, all layers of this host's share of the model, like 320KB.
    #[arg(long, value_name = "BYTES", value_parser = bytes_per_token, required_unless_present = "model")]
    bytes_per_token: Option<u64>,
    /// The model's name; a known one brings its bytes per token (16-bit KV, the whole model on this host).
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Sizes of DRAM, several separated by commas; chosen by the trace if not given.
    #[arg(long, value_name = "BYTES", value_parser = sizes::list)]
    dram: Option<Sizes>,
    /// Sizes of the SSD tier, several separated by commas, 0 for none; chosen by the trace if not given.
    #[arg(long, value_name = "BYTES", value_parser = sizes::list)]
    ssd: Option<Sizes>,
    /// What is evicted first: a policy of the core, such as lru.
    #[arg(long, default_value = "hazq", value_parser = policy)]
    policy: Subjects,
    /// One JSON object a line, one line for each pair of sizes.
    #[arg(long)]
    json: bool,
}

/// Bytes, in the order given.
pub type Sizes = Arc<[u64]>;

/// What one pair of sizes gives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    pub dram_bytes: u64,
    pub ssd_bytes: u64,
    pub dram_blocks: u64,
    pub ssd_blocks: u64,
    pub input_tokens: u64,
    pub hit_tokens: u64,
    /// Hit tokens by input tokens.
    pub hit_rate: f64,
    /// Blocks hit on SSD by all that were asked for.
    pub ssd_hit_rate: f64,
    /// Hit tokens by those of the offline optimum of as many blocks.
    pub share_of_opt: f64,
    pub ssd_write_bytes: u64,
    /// `None` if the trace has no span to spread them over.
    pub ssd_write_bytes_per_s: Option<f64>,
    pub ssd_write_bytes_per_day: Option<f64>,
    /// Bytes a day by the size of the SSD tier; `None` without one.
    pub drive_writes_per_day: Option<f64>,
}

/// The trace in the model's bytes.
pub struct Plan<'a> {
    pub workload: &'a Workload,
    pub block_bytes: u64,
    pub policy: Subject,
    pub span_s: f64,
}

#[derive(Serialize)]
struct Row<'a> {
    trace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    policy: &'a str,
    bytes_per_token: u64,
    block_bytes: u64,
    span_s: f64,
    #[serde(flatten)]
    cell: &'a Cell,
}

/// `lapis plan`.
pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let bytes_per_token = match (args.bytes_per_token, &args.model) {
        (Some(bytes), _) => bytes,
        (None, Some(name)) => Model::find(name)?.bytes_per_token(),
        (None, None) => anyhow::bail!("give --bytes-per-token, like 320KB, or --model"),
    };
    let block_bytes = bytes_per_token * BLOCK_TOKENS;
    for dram in args.dram.iter().flat_map(|sizes| sizes.iter()) {
        check_dram(*dram, block_bytes)?;
    }
    let workload = Workload::of(read_all(&args.traces)?);
    let distinct_bytes =
        workload.blocks.checked_mul(block_bytes).context("the trace's blocks have 2^64 bytes or more")?;
    let (policy, span_s) = (args.policy[0], workload.span_ms() as f64 / 1e3);
    let plan = Plan { workload: &workload, block_bytes, policy, span_s };

    let drams = args.dram.clone().unwrap_or_else(|| sizes::drams(distinct_bytes, block_bytes));
    let ssds = args.ssd.clone().unwrap_or_else(|| sizes::ssds(distinct_bytes, block_bytes));
    let pairs = || drams.iter().flat_map(|dram| ssds.iter().map(|ssd| (*dram, *ssd)));
    for (dram, ssd) in pairs() {
        plan.check(dram, ssd)?;
    }
    let (names, model) = (names(&args.traces), args.model.as_deref());
    if !args.json {
        print(table::heading(&names, model, bytes_per_token, &plan).as_bytes())?;
    }
    for (dram, ssd) in pairs() {
        let cell = plan.cell(dram, ssd)?;
        let (trace, policy) = (&names[..], policy.word());
        let row = Row { trace, model, policy, bytes_per_token, block_bytes, span_s, cell: &cell };
        let text = if args.json { serde_json::to_string(&row)? + "\n" } else { table::line(&cell) };
        print(text.as_bytes())?;
    }
    if !args.json {
        print(table::NOTES.as_bytes())?;
    }
    Ok(())
}

impl Plan<'_> {
    fn replayed_bytes(&self) -> u64 {
        self.block_bytes.min(REPLAYED_BYTES_MAX)
    }

    fn setting(&self, ssd_bytes: u64) -> Setting {
        let blocks = ssd_bytes / self.block_bytes;
        Setting { ssd: (blocks > 0).then_some((blocks, self.replayed_bytes())), ..Setting::default() }
    }

    fn check(&self, dram_bytes: u64, ssd_bytes: u64) -> anyhow::Result<()> {
        check_dram(dram_bytes, self.block_bytes)?;
        ensure!(
            ssd_bytes == 0 || ssd_bytes >= self.block_bytes,
            "--ssd {} holds no block of {}: take more, or 0 for no SSD tier",
            Bytes(ssd_bytes),
            Bytes(self.block_bytes)
        );
        self.setting(ssd_bytes)
            .check(self.policy, dram_bytes / self.block_bytes)
            .with_context(|| format!("{} of DRAM and {} of SSD", Bytes(dram_bytes), Bytes(ssd_bytes)))
    }

    /// Replays the trace over tiers of these sizes.
    pub fn cell(&self, dram_bytes: u64, ssd_bytes: u64) -> anyhow::Result<Cell> {
        self.check(dram_bytes, ssd_bytes)?;
        let (setting, dram_blocks) = (self.setting(ssd_bytes), dram_bytes / self.block_bytes);
        let outcome = setting.replay(self.workload, self.policy, dram_blocks);
        let optimum = setting.optimum(self.workload, dram_blocks);
        let Outcome { block_refs, input_tokens, hit_tokens, .. } = outcome;
        let ssd = outcome.ssd.unwrap_or_default();
        let scaled = u128::from(ssd.device_bytes) * u128::from(self.block_bytes) / u128::from(self.replayed_bytes());
        let ssd_write_bytes = u64::try_from(scaled).context("2^64 bytes or more are written")?;
        let per_s = Some(ssd_write_bytes as f64 / self.span_s).filter(|rate| rate.is_finite());
        let per_day = per_s.map(|rate| rate * DAY_S);
        Ok(Cell {
            dram_bytes,
            ssd_bytes,
            dram_blocks,
            ssd_blocks: ssd.ssd_blocks,
            input_tokens,
            hit_tokens,
            hit_rate: rounded(hit_tokens as f64 / input_tokens.max(1) as f64),
            ssd_hit_rate: rounded(ssd.ssd_hit_blocks as f64 / block_refs.max(1) as f64),
            share_of_opt: rounded(hit_tokens as f64 / optimum.hit_tokens.max(1) as f64),
            ssd_write_bytes,
            ssd_write_bytes_per_s: per_s.map(f64::round),
            ssd_write_bytes_per_day: per_day.map(f64::round),
            drive_writes_per_day: per_day.filter(|_| ssd_bytes > 0).map(|rate| rounded(rate / ssd_bytes as f64)),
        })
    }
}

fn check_dram(dram_bytes: u64, block_bytes: u64) -> anyhow::Result<()> {
    ensure!(
        dram_bytes >= block_bytes,
        "--dram {} holds no block of {} ({BLOCK_TOKENS} tokens): take more",
        Bytes(dram_bytes),
        Bytes(block_bytes)
    );
    Ok(())
}

fn bytes_per_token(text: &str) -> Result<u64, String> {
    let bytes = size(text).map_err(|e| e.to_string())?;
    let (least, most) = (BYTES_PER_TOKEN.start(), BYTES_PER_TOKEN.end());
    let range = || format!("{text}: a token has {} to {}", Bytes(*least), Bytes(*most));
    Some(bytes).filter(|bytes| BYTES_PER_TOKEN.contains(bytes)).ok_or_else(range)
}

/// One policy of the core.
fn policy(text: &str) -> Result<Subjects, String> {
    let found = subjects(text)?;
    match found[..] {
        [Subject::Core(_)] => Ok(found),
        [_] => Err(format!("{text:?} is a yardstick, which keeps no tiers: take a policy of the core such as lru")),
        _ => Err(format!("{text:?} is more than one policy: plan with one at a time")),
    }
}

#[cfg(test)]
mod tests {
    use lapis_trace::{Generate, generate};

    use super::*;

    fn plan(workload: &Workload, block_bytes: u64) -> Plan<'_> {
        Plan { workload, block_bytes, policy: subjects("lru").expect("a policy")[0], span_s: 1_000.0 }
    }

    fn made() -> Workload {
        Workload::of(generate(&Generate { seed: 5, requests: 800, span_s: 1_000 }))
    }

    #[test]
    fn more_room_is_never_worse_and_only_ssd_is_written() {
        let workload = made();
        let (plan, mib) = (plan(&workload, 1 << 20), 1 << 20);
        let small = plan.cell(300 * mib, 0).expect("a plan");
        let with_ssd = plan.cell(300 * mib, 8_000 * mib).expect("a plan");
        let large = plan.cell(3_000 * mib, 0).expect("a plan");
        assert!(small.hit_rate < large.hit_rate && small.hit_rate < with_ssd.hit_rate, "{small:?} {with_ssd:?}");
        assert_eq!((small.ssd_write_bytes, small.drive_writes_per_day), (0, None));
        assert!(with_ssd.ssd_hit_rate > 0.0 && with_ssd.share_of_opt <= 1.0, "{with_ssd:?}");
        let per_day = with_ssd.ssd_write_bytes as f64 * 86.4;
        assert_eq!(with_ssd.ssd_write_bytes_per_day, Some(per_day.round()));
        assert_eq!(with_ssd.drive_writes_per_day, Some(rounded(per_day / with_ssd.ssd_bytes as f64)));
    }

    #[test]
    fn large_blocks_give_the_same_hits_and_bytes_in_proportion() {
        let workload = made();
        let cell = |block_bytes: u64| {
            plan(&workload, block_bytes).cell(300 * block_bytes, 2_000 * block_bytes).expect("a plan")
        };
        let (one, ten) = (cell(16 << 20), cell(160 << 20));
        assert_eq!((one.hit_tokens, one.ssd_hit_rate), (ten.hit_tokens, ten.ssd_hit_rate));
        assert_eq!(
            (ten.ssd_write_bytes, ten.drive_writes_per_day),
            (10 * one.ssd_write_bytes, one.drive_writes_per_day)
        );
    }

    #[test]
    fn a_tier_without_room_for_a_block_is_an_error() {
        let workload = made();
        let error = |dram, ssd| plan(&workload, 1 << 20).cell(dram, ssd).expect_err("no room").to_string();
        assert!(error(1 << 19, 0).contains("--dram 512KiB holds no block of 1MiB"), "{}", error(1 << 19, 0));
        assert!(error(1 << 30, 4096).contains("--ssd 4KiB holds no block of 1MiB"), "{}", error(1 << 30, 4096));
    }

    #[test]
    fn a_plan_has_one_policy_of_the_core() {
        assert!(policy("lru").is_ok());
        assert!(policy("arc").expect_err("a yardstick").contains("yardstick"));
        assert!(policy("lru,lru").expect_err("two").contains("one at a time"));
        assert!(bytes_per_token("320KB").is_ok() && bytes_per_token("1B").is_err() && bytes_per_token("1GiB").is_err());
    }
}
