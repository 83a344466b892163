//! `lapis replay`: what the core would keep of a trace, no bytes moved. The rule of counting: the hits of a request
//! are its longest resident run from the first block; then all its blocks are touched or stored.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use lapis_config::{Bytes, PolicyName, size};
use lapis_tiering::{
    Chosen, Replay, SsdTier,
    replay::{ReplayCounts, ghost_bytes},
};
use serde::Serialize;

use crate::trace::{Request, print, read_all};

/// Blocks that a DRAM tier of a replay may have: a line of the table each, and lines are counted in 32 bits.
const CAPACITY_MAX: u64 = 1 << 30;
/// Pages of memory are counted in 32 bits.
const MEMORY_BYTES_END: u64 = 16 << 40;
/// Bytes of a block: a page to 1 GiB.
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 4 << 10..=1 << 30;

/// Runs the core alone over traces and counts its hits.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// Files in Mooncake form, .jsonl or .jsonl.zst; several are merged by time.
    #[arg(required = true)]
    traces: Vec<PathBuf>,
    /// What is evicted first.
    #[arg(long, default_value = "hazq", value_parser = policy)]
    policy: PolicyName,
    /// Blocks in the DRAM tier, several separated by commas: 1k is 1000, 1M a million.
    #[arg(long, value_name = "BLOCKS", default_value = "1k,3k,10k,30k,50k,100k", value_parser = capacities)]
    capacity: Capacities,
    /// Blocks on SSD below each DRAM tier: a log of so many blocks' worth of segments, written as the daemon writes.
    /// Segments have 64 MiB or eight blocks, the larger; less where that would be fewer than 16 of them. The last block
    /// of a request is not written if it is not full.
    #[arg(long, value_name = "BLOCKS", value_parser = capacity, requires = "block_bytes")]
    ssd: Option<u64>,
    /// Bytes of a block, like 64KiB: records take whole pages of 4 KiB, headers and tables of contents come on top.
    #[arg(long, value_name = "BYTES", value_parser = block_bytes, requires = "ssd")]
    block_bytes: Option<u64>,
    /// One JSON object a line, one line a capacity.
    #[arg(long)]
    json: bool,
}

/// Blocks, in the order given.
pub type Capacities = std::sync::Arc<[u64]>;

/// What one replay found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    pub block_refs: u64,
    pub hit_blocks: u64,
    pub input_tokens: u64,
    pub hit_tokens: u64,
    pub evictions: u64,
    /// Time in the core, by the references to blocks.
    pub ns_per_block: f64,
    /// With an SSD tier.
    pub ssd: Option<SsdOutcome>,
}

/// What became of the SSD tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SsdOutcome {
    pub ssd_blocks: u64,
    pub block_bytes: u64,
    /// Of the blocks hit, those that were on SSD alone.
    pub ssd_hit_blocks: u64,
    /// First writes of blocks.
    pub admitted_bytes: u64,
    /// Later ones, of blocks whose segment was given up.
    pub readmitted_bytes: u64,
    /// Everything written: records, headers, tables of contents.
    pub device_bytes: u64,
    /// Device bytes by admitted bytes.
    pub write_amplification: f64,
}

#[derive(Serialize)]
struct Row<'a> {
    trace: &'a str,
    policy: &'a str,
    capacity_blocks: u64,
    block_refs: u64,
    hit_blocks: u64,
    input_tokens: u64,
    hit_tokens: u64,
    evictions: u64,
    ns_per_block: f64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    ssd: Option<SsdOutcome>,
}

/// `lapis replay`. Traces are read to their ends first: a broken one is an error before any figure.
pub fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let ssd = args.ssd.zip(args.block_bytes);
    for capacity in args.capacity.iter().filter(|_| ssd.is_some()) {
        check_ssd(*capacity, ssd)?;
    }
    let trace = read_all(&args.traces)?;
    let names: Vec<&str> = args.traces.iter().map(|path| name(path)).collect();
    let (names, policy) = (names.join("+"), word(args.policy));
    if !args.json {
        print(heading(&names, policy, ssd, &trace).as_bytes())?;
    }
    for capacity in args.capacity.iter() {
        let outcome = match ssd {
            Some((blocks, block_bytes)) => replay_ssd(&trace, args.policy, *capacity, blocks, block_bytes),
            None => replay(&trace, args.policy, *capacity),
        };
        let text = if args.json { json(&names, policy, *capacity, &outcome)? } else { line(*capacity, &outcome) };
        print(text.as_bytes())?;
    }
    Ok(())
}

fn check_ssd(capacity: u64, ssd: Option<(u64, u64)>) -> anyhow::Result<()> {
    let Some((blocks, block_bytes)) = ssd else { return Ok(()) };
    let most = |blocks: u64| blocks.checked_mul(block_bytes).is_some_and(|bytes| bytes < MEMORY_BYTES_END);
    anyhow::ensure!(
        most(capacity) && capacity + 2 * blocks <= CAPACITY_MAX,
        "{capacity} blocks of {} in memory and {blocks} on SSD are too many: less than 16TiB of memory, and with \
         twice those on SSD {CAPACITY_MAX} blocks in all",
        Bytes(block_bytes)
    );
    Ok(())
}

/// Replays `trace` through a core with `capacity` blocks of DRAM, 1 to 2^30.
pub fn replay(trace: &[Request], policy: PolicyName, capacity: u64) -> Outcome {
    assert!((1..=CAPACITY_MAX).contains(&capacity), "capacities are checked where they are read");
    drive(trace, Replay::new(capacity as u32, Chosen::new(policy, ghost_bytes(capacity)))).0
}

/// The same over an SSD tier of so many blocks of so many bytes.
pub fn replay_ssd(trace: &[Request], policy: PolicyName, capacity: u64, blocks: u64, block_bytes: u64) -> Outcome {
    check_ssd(capacity, Some((blocks, block_bytes))).expect("capacities are checked where they are read");
    let tier = SsdTier { blocks: blocks as u32, block_bytes };
    let policy = Chosen::new(policy, ghost_bytes(capacity));
    let (outcome, counts) = drive(trace, Replay::with_ssd(capacity as u32, tier, policy));
    let ssd = SsdOutcome {
        ssd_blocks: blocks,
        block_bytes,
        ssd_hit_blocks: counts.ssd_hit_blocks,
        admitted_bytes: counts.admitted_bytes,
        readmitted_bytes: counts.readmitted_bytes,
        device_bytes: counts.device_bytes,
        write_amplification: (counts.write_amplification() * 1e4).round() / 1e4,
    };
    Outcome { ssd: Some(ssd), ..outcome }
}

fn drive(trace: &[Request], mut core: Replay<Chosen>) -> (Outcome, ReplayCounts) {
    let start = Instant::now();
    for request in trace {
        core.request_at(request.timestamp_ms, &request.ids, request.input_length);
    }
    let (ns, counts) = (start.elapsed().as_nanos() as f64, core.counts());
    let outcome = Outcome {
        block_refs: counts.block_refs,
        hit_blocks: counts.hit_blocks,
        input_tokens: counts.input_tokens,
        hit_tokens: counts.hit_tokens,
        evictions: counts.evictions,
        ns_per_block: (ns / counts.block_refs.max(1) as f64 * 10.0).round() / 10.0,
        ssd: None,
    };
    (outcome, counts)
}

fn json(trace: &str, policy: &str, capacity_blocks: u64, outcome: &Outcome) -> anyhow::Result<String> {
    let Outcome { block_refs, hit_blocks, input_tokens, hit_tokens, evictions, ns_per_block, ssd } = *outcome;
    let row = Row {
        trace,
        policy,
        capacity_blocks,
        block_refs,
        hit_blocks,
        input_tokens,
        hit_tokens,
        evictions,
        ns_per_block,
        ssd,
    };
    Ok(serde_json::to_string(&row)? + "\n")
}

fn heading(names: &str, policy: &str, ssd: Option<(u64, u64)>, trace: &[Request]) -> String {
    let refs: usize = trace.iter().map(|request| request.ids.len()).sum();
    let columns = ["capacity", "hit blocks", "of blocks", "of tokens", "evictions", "ns/block"];
    let [capacity, blocks, of_blocks, of_tokens, evictions, ns] = columns;
    let (mut below, mut more) = (String::new(), String::new());
    if let Some((blocks, block_bytes)) = ssd {
        below = format!(", {blocks} blocks of {} on SSD", Bytes(block_bytes));
        let [hits, admitted, again, device, ratio] = ["SSD hits", "admitted", "again", "device", "dev/adm"];
        more = format!("  {hits:>10}  {admitted:>11}  {again:>11}  {device:>11}  {ratio:>7}");
    }
    format!(
        "{names}: {} requests, {refs} references to blocks, policy {policy}{below}\n\
         {capacity:>10}  {blocks:>12}  {of_blocks:>9}  {of_tokens:>9}  {evictions:>12}  {ns:>8}{more}\n",
        trace.len()
    )
}

fn line(capacity: u64, outcome: &Outcome) -> String {
    let percent = |part: u64, all: u64| format!("{:.2} %", 100.0 * part as f64 / all.max(1) as f64);
    let of_blocks = percent(outcome.hit_blocks, outcome.block_refs);
    let of_tokens = percent(outcome.hit_tokens, outcome.input_tokens);
    let Outcome { hit_blocks, evictions, ns_per_block, .. } = outcome;
    let more = outcome.ssd.map_or(String::new(), |ssd| {
        let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
        let (admitted, again, device) = (gib(ssd.admitted_bytes), gib(ssd.readmitted_bytes), gib(ssd.device_bytes));
        let (hits, ratio) = (ssd.ssd_hit_blocks, ssd.write_amplification);
        format!("  {hits:>10}  {admitted:>11}  {again:>11}  {device:>11}  {ratio:>7.4}")
    });
    format!(
        "{capacity:>10}  {hit_blocks:>12}  {of_blocks:>9}  {of_tokens:>9}  {evictions:>12}  {ns_per_block:>8.1}{more}\n"
    )
}

/// "conversation_trace" of "/traces/conversation_trace.jsonl.zst".
fn name(path: &Path) -> &str {
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or("trace");
    file.split_once('.').map_or(file, |(name, _)| if name.is_empty() { file } else { name })
}

fn policy(text: &str) -> Result<PolicyName, String> {
    let found = PolicyName::CHOICES.0.iter().find(|(word, _)| *word == text);
    let words = || PolicyName::CHOICES.0.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
    found.map(|(_, policy)| *policy).ok_or_else(|| format!("not one of: {}", words()))
}

fn word(policy: PolicyName) -> &'static str {
    let found = PolicyName::CHOICES.0.iter().find(|(_, known)| *known == policy);
    found.map(|(word, _)| *word).expect("every policy has a name")
}

/// A list such as "1k,3k,10k".
pub fn capacities(text: &str) -> Result<Capacities, String> {
    text.split(',').map(|word| capacity(word.trim())).collect()
}

fn capacity(word: &str) -> Result<u64, String> {
    let (digits, scale) = match word.char_indices().last() {
        Some((at, 'k' | 'K')) => (&word[..at], 1_000),
        Some((at, 'm' | 'M')) => (&word[..at], 1_000_000),
        _ => (word, 1),
    };
    let blocks = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale));
    blocks
        .filter(|blocks| (1..=CAPACITY_MAX).contains(blocks))
        .ok_or_else(|| format!("{word:?} is no number of blocks from 1 to {CAPACITY_MAX}, like 500, 10k or 1M"))
}

fn block_bytes(text: &str) -> Result<u64, String> {
    let bytes = size(text).map_err(|e| e.to_string())?;
    let range = || format!("{text}: a block has {} to {}", Bytes(*BLOCK_BYTES.start()), Bytes(*BLOCK_BYTES.end()));
    Some(bytes).filter(|bytes| BLOCK_BYTES.contains(bytes)).ok_or_else(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_are_counts_of_blocks_with_thousands() {
        assert_eq!(capacities("1k, 3000,2M,7").expect("a list")[..], [1_000, 3_000, 2_000_000, 7]);
        for wrong in ["", "1k,", "0", "-1", "k", "1.5k", "1G", "2000M", "99999999999999999999", "é"] {
            assert!(capacities(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_trace_is_called_by_its_file() {
        let of = |path| name(Path::new(path));
        assert_eq!(
            (of("/a/conversation_trace.jsonl.zst"), of("x"), of(".hidden")),
            ("conversation_trace", "x", ".hidden")
        );
    }

    #[test]
    fn a_json_line_has_the_agreed_fields() {
        let outcome = Outcome {
            block_refs: 4,
            hit_blocks: 2,
            input_tokens: 2048,
            hit_tokens: 1024,
            evictions: 1,
            ns_per_block: 9.5,
            ssd: None,
        };
        let line = json("t", "lru", 3, &outcome).expect("a line");
        assert_eq!(
            line,
            "{\"trace\":\"t\",\"policy\":\"lru\",\"capacity_blocks\":3,\"block_refs\":4,\"hit_blocks\":2,\
             \"input_tokens\":2048,\"hit_tokens\":1024,\"evictions\":1,\"ns_per_block\":9.5}\n"
        );
    }
}
