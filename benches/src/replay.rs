//! `lapis replay`: what the core would keep of a trace, no bytes moved, and what others would. The rule of counting: the
//! hits of a request are its longest resident run from the first block; then all its blocks are touched or stored.

mod cache;
mod daemon;
mod digests;
mod hosts;
mod outcome;
mod plot;
mod setting;
mod table;
mod words;
mod workload;
mod yardsticks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use lapis_config::PolicyName;
use lapis_trace::{Request, read_all};

use crate::trace::print;
use outcome::Of;
use plot::{Curve, Labels, PlotFile};
use table::Table;

pub use cache::Cache;
pub use daemon::{DaemonOutcome, DaemonPlan};
pub use hosts::{HostsOutcome, HostsPlan, Peers, Route};
pub use outcome::{Outcome, SsdOutcome, Sums, rounded};
pub use setting::Setting;
pub use words::{Admission, Capacities, Subject, Subjects, WriteBudget, capacities, subjects};
pub use workload::{Scan, Workload};
pub use yardsticks::Yardstick;

/// Blocks that a DRAM tier of a replay may have: a line of the table each, and lines are counted in 32 bits.
const CAPACITY_MAX: u64 = 1 << 30;
/// What the optimum is called in plots.
const OPT: &str = "opt";

/// Runs the core alone over traces and counts its hits; others too, to hold it against.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// Files in Mooncake form, .jsonl or .jsonl.zst; several are merged by time.
    #[arg(required = true)]
    traces: Vec<PathBuf>,
    /// What is evicted first, several separated by commas: a policy of the core, such as lru, or a yardstick: s3fifo, arc,
    /// or opt, the offline optimum (Belady's rule with bypass).
    #[arg(long, default_value = "hazq", value_parser = subjects)]
    policy: Subjects,
    /// Blocks in the DRAM tier, several separated by commas: 1k is 1000, 1M a million.
    #[arg(long, value_name = "BLOCKS", default_value = "1k,3k,10k,30k,50k,100k", value_parser = capacities)]
    capacity: Capacities,
    /// Compare each with the offline optimum of as many blocks, all tiers and hosts together.
    #[arg(long)]
    opt: bool,
    /// After each so many requests one of so many blocks that nobody asks for again, like 250/10: blocks, a stroke,
    /// requests. Hits of the trace's own requests are told apart.
    #[arg(long, value_name = "BLOCKS/EVERY", value_parser = words::scan)]
    scan: Option<Scan>,
    /// Blocks on SSD below each DRAM tier: a log of so many blocks' worth of segments, written as the daemon writes.
    /// Segments have 64 MiB or eight blocks, the larger; less where that would be fewer than 16 of them. The last block
    /// of a request is not written if it is not full.
    #[arg(long, value_name = "BLOCKS", value_parser = words::capacity, requires = "block_bytes")]
    ssd: Option<u64>,
    /// Bytes of a block, like 64KiB: records take whole pages of 4 KiB, headers and tables of contents come on top.
    #[arg(long, value_name = "BYTES", value_parser = words::block_bytes, requires = "ssd")]
    block_bytes: Option<u64>,
    /// What is written to SSD.
    #[arg(long, value_enum, default_value = "full", requires = "ssd")]
    admission: Admission,
    /// How much may be written to SSD by --admission class: per cent of the bytes of the trace's distinct blocks, like
    /// 50%, spread over its span, or bytes a day, like 68TB/day.
    #[arg(long, value_name = "BUDGET", value_parser = words::write_budget, requires = "ssd")]
    write_budget: Option<WriteBudget>,
    /// So many hosts, each with a cache of the capacity given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=hosts::HOSTS_MAX), conflicts_with = "ssd")]
    hosts: Option<u64>,
    /// Which host gets a request.
    #[arg(long, value_enum, default_value = "rr", requires = "hosts")]
    route: Route,
    /// What a host may read of others.
    #[arg(long, value_enum, default_value = "none", requires = "hosts")]
    peers: Peers,
    /// Also through a daemon over shared memory, blocks scaled to 4 KiB; the core's figures are then those at the times at
    /// which the daemon had the requests, and every block of a request is full.
    #[arg(long, conflicts_with_all = ["ssd", "hosts", "scan", "opt", "plot"])]
    daemon: bool,
    /// Seconds of the trace in one second of the daemon.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000), requires = "daemon")]
    speed: u32,
    /// Draws the hit rate over capacity, every policy and the optimum, as .svg or .png.
    #[arg(long, value_name = "FILE", value_parser = PlotFile::parse)]
    plot: Option<PlotFile>,
    /// One JSON object a line, one line for each policy and capacity.
    #[arg(long)]
    json: bool,
}

/// `lapis replay`. What does not go together, and a broken trace, are errors before any figure.
pub fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let setting = Setting {
        ssd: args.ssd.zip(args.block_bytes),
        admission: args.admission,
        write_budget: args.write_budget,
        hosts: args.hosts.map(|hosts| HostsPlan { hosts, route: args.route, peers: args.peers }),
    };
    let daemon = args.daemon.then(|| DaemonPlan::here(args.speed)).transpose()?;
    for (subject, capacity) in cells(args) {
        setting.check(subject, capacity)?;
        if daemon.is_some() {
            DaemonPlan::check(subject, capacity)?;
        }
    }
    if let Some(plot) = &args.plot {
        plot.check(&args.capacity)?;
    }
    let mut workload = Workload::of(read_all(&args.traces)?);
    if let Some(scan) = args.scan {
        workload = workload.with_scan(scan);
    }
    let names = names(&args.traces);
    let table =
        Table { names: &names, setting: &setting, scan: args.scan.is_some(), opt: args.opt, daemon: args.daemon };
    if !args.json {
        print(table.heading(&workload).as_bytes())?;
    }
    let mut optima = Optima { setting: &setting, workload: &workload, found: BTreeMap::new() };
    let mut curves: Vec<Curve> = Vec::new();
    for (subject, capacity) in cells(args) {
        let mut outcome = match &daemon {
            Some(plan) => plan.replay(&workload, subject, capacity)?,
            None => setting.replay(&workload, subject, capacity),
        };
        if args.opt {
            outcome.share_of_opt = Some(outcome.real.hit_tokens as f64 / optima.of(capacity).hit_tokens.max(1) as f64);
        }
        let admission = setting.ssd.map(|_| setting.admission.word());
        let of = Of { trace: &names, subject, capacity, scan: args.scan.is_some(), admission };
        let text = if args.json { outcome::json(&of, &outcome)? } else { table.line(&of, &outcome) };
        print(text.as_bytes())?;
        if curves.last().is_none_or(|curve| curve.name != subject.word()) {
            curves.push(Curve { name: subject.word().into(), points: Vec::new() });
        }
        let curve = curves.last_mut().expect("pushed if there was none");
        curve.points.push((capacity, outcome.real.hit_rate()));
    }
    if let Some(plot) = &args.plot {
        curves.retain(|curve| curve.name != OPT);
        let points = args.capacity.iter().map(|capacity| (*capacity, optima.of(*capacity).hit_rate())).collect();
        curves.push(Curve { name: OPT.into(), points });
        for curve in &mut curves {
            curve.points.sort_by_key(|(capacity, _)| *capacity);
        }
        plot.write(&labels(&names, args), &curves)?;
    }
    Ok(())
}

/// The optimum by capacity; each is found once.
struct Optima<'a> {
    setting: &'a Setting,
    workload: &'a Workload,
    found: BTreeMap<u64, Sums>,
}

impl Optima<'_> {
    fn of(&mut self, capacity: u64) -> Sums {
        *self.found.entry(capacity).or_insert_with(|| self.setting.optimum(self.workload, capacity).real)
    }
}

fn labels(names: &str, args: &ReplayArgs) -> Labels {
    let mut title = names.replace("_trace", "");
    if let Some(Scan { blocks, every }) = args.scan {
        title += &format!(", a scan of {blocks} blocks after each {every} requests");
    }
    let mut capacity = "blocks in DRAM".to_string();
    if let Some(hosts) = args.hosts {
        capacity += &format!(", each of {hosts} hosts");
    }
    if let Some(ssd) = args.ssd {
        capacity += &format!(", {ssd} on SSD below");
    }
    Labels { title, capacity }
}

fn cells(args: &ReplayArgs) -> impl Iterator<Item = (Subject, u64)> {
    args.policy.iter().flat_map(|subject| args.capacity.iter().map(|capacity| (*subject, *capacity)))
}

/// Replays `trace` through a core with `capacity` blocks of DRAM, 1 to 2^30.
pub fn replay(trace: &[Request], policy: PolicyName, capacity: u64) -> Outcome {
    assert!((1..=CAPACITY_MAX).contains(&capacity), "capacities are checked where they are read");
    Setting::default().replay(&Workload::of(trace.to_vec()), Subject::Core(policy), capacity)
}

/// The same over an SSD tier of so many blocks of so many bytes.
pub fn replay_ssd(trace: &[Request], policy: PolicyName, capacity: u64, blocks: u64, block_bytes: u64) -> Outcome {
    let setting = Setting { ssd: Some((blocks, block_bytes)), ..Setting::default() };
    setting.replay(&Workload::of(trace.to_vec()), Subject::Core(policy), capacity)
}

/// "conversation_trace+synthetic_trace".
pub(crate) fn names(traces: &[PathBuf]) -> String {
    traces.iter().map(|path| name(path)).collect::<Vec<_>>().join("+")
}

/// "conversation_trace" of "/traces/conversation_trace.jsonl.zst".
fn name(path: &Path) -> &str {
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or("trace");
    file.split_once('.').map_or(file, |(name, _)| if name.is_empty() { file } else { name })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use lapis_trace::{Generate, generate, write};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ReplayArgs,
    }

    /// What is said against a command line, by clap or before the trace is read.
    fn said(line: &str) -> String {
        let words = ["replay", "no/such/trace"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words) {
            Ok(cli) => run(&cli.args).expect_err("there is no trace").to_string(),
            Err(error) => error.to_string(),
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
    fn what_does_not_go_together_is_said_before_a_trace_is_read() {
        let ssd = "--ssd 1k --block-bytes 64KiB";
        let cases = [
            (format!("{ssd} --policy lru,arc"), "--policy arc has one tier: leave out --ssd"),
            (format!("{ssd} --admission class --write-budget 50% --policy lru"), "give --policy hazq"),
            (format!("{ssd} --admission class"), "and --write-budget, like 50% or 68TB/day"),
            (format!("{ssd} --write-budget 68TB/day"), "or give --admission class"),
            (format!("{ssd} --hosts 4"), "cannot be used with"),
            ("--admission write-through".into(), "--ssd"),
            ("--route affinity".into(), "--hosts"),
            ("--hosts 4 --policy opt".into(), "with --hosts give --opt"),
            ("--hosts 4 --policy arc --peers digest".into(), "--policy arc does not tell what it evicts"),
            ("--daemon --policy arc".into(), "--policy arc is no policy of a daemon"),
            ("--daemon --capacity 10k".into(), "in steps of 512, such as 10240"),
            ("--speed 5".into(), "--daemon"),
            ("--hosts 0".into(), "0"),
            ("--hosts 1024 --capacity 100M".into(), "1024 hosts of 100000000 blocks are too many"),
            ("--policy belady".into(), "\"belady\" is not one of: "),
            ("--scan 250".into(), "like 250/10"),
            ("--plot a.pdf".into(), "neither .svg nor .png"),
            ("--plot a.svg --capacity 1k".into(), "two or more with --capacity"),
            (String::new(), "no/such/trace"),
        ];
        for (line, expected) in cases {
            let said = said(&line);
            assert!(said.contains(expected), "{line}: {said:?} does not say {expected:?}");
        }
    }

    #[test]
    fn a_replay_with_everything_runs() {
        let folder = tempfile::tempdir().expect("a folder");
        let [trace, plot] = ["t.jsonl", "p.svg"].map(|name| folder.path().join(name));
        let mut text = Vec::new();
        write(&mut text, &generate(&Generate { seed: 2, requests: 120, span_s: 600 })).expect("in memory");
        std::fs::write(&trace, text).expect("our file");
        let [trace, plot_text] = [&trace, &plot].map(|path| path.to_str().expect("a name"));
        for line in [
            "--policy lru,s3fifo,arc,opt --opt --scan 25/10",
            "--hosts 3 --route affinity --peers oracle --opt",
            "--hosts 3 --peers digest --json",
            "--ssd 300 --block-bytes 64KiB --opt",
            "--ssd 300 --block-bytes 64KiB --admission class --write-budget 50%",
            "--ssd 300 --block-bytes 64KiB --policy lru --admission write-through --json",
        ] {
            let words = ["replay", trace, "--capacity", "50,100", "--plot", plot_text].into_iter();
            let cli =
                Cli::try_parse_from(words.chain(line.split_whitespace())).unwrap_or_else(|e| panic!("{line}: {e}"));
            run(&cli.args).unwrap_or_else(|e| panic!("{line}: {e:#}"));
            let drawn = std::fs::read_to_string(&plot).expect("a plot");
            assert!(drawn.contains("opt") && drawn.ends_with("</svg>\n"), "{line}");
            std::fs::remove_file(&plot).expect("our file");
        }
    }

    #[test]
    fn a_scan_never_hits_and_the_optimum_passes_it_by() {
        let trace = generate(&Generate { seed: 4, requests: 400, span_s: 900 });
        let plain = Workload::of(trace.clone());
        let scanned = Workload::of(trace).with_scan(Scan { blocks: 50, every: 10 });
        let setting = Setting::default();
        for (subject, changes) in [("lru", true), ("arc", true), ("opt", false)] {
            let subject = subjects(subject).expect("a policy")[0];
            let [alone, beside] = [&plain, &scanned].map(|workload| setting.replay(workload, subject, 300));
            assert_eq!(beside.real.hit_blocks, beside.hit_blocks);
            assert_eq!(beside.real.block_refs, alone.block_refs);
            assert_eq!(beside.block_refs, alone.block_refs + 40 * 50);
            assert_eq!(beside.real.hit_tokens < alone.real.hit_tokens, changes, "{subject:?}");
        }
    }
}
