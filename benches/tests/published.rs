//! The yardsticks give the figures that another simulator gave for three published traces, wherever these are found.

use std::path::PathBuf;

use lapis_benches::replay::{
    Admission, HostsPlan, Outcome, Peers, Route, Scan, Setting, SsdOutcome, Workload, WriteBudget, subjects,
};
use lapis_trace::read_all;

const CAPACITIES: [u64; 4] = [1_000, 3_000, 10_000, 30_000];

/// Hit tokens by input tokens at those capacities: the optimum; ARC and S3-FIFO of that simulator, whose ways with a
/// request larger than what is free are not known.
const PUBLISHED: [(&str, [[f64; 4]; 3]); 4] = [
    (
        "conversation",
        [[0.1944, 0.3003, 0.3736, 0.3736], [0.0540, 0.0876, 0.2270, 0.3170], [0.0584, 0.0958, 0.2020, 0.3103]],
    ),
    (
        "synthetic",
        [[0.2819, 0.4549, 0.6292, 0.6512], [0.0953, 0.1995, 0.4440, 0.6374], [0.0882, 0.1911, 0.4254, 0.6228]],
    ),
    (
        "codeagent",
        [[0.4464, 0.7898, 0.9525, 0.9606], [0.2354, 0.5983, 0.9275, 0.9578], [0.2421, 0.5638, 0.9041, 0.9563]],
    ),
    (
        "conversation,synthetic,codeagent",
        [[0.3745, 0.6656, 0.8367, 0.8600], [0.1770, 0.4821, 0.7559, 0.8372], [0.1837, 0.4622, 0.7405, 0.8241]],
    ),
];
/// How far, relative, the classics may be from those figures, by capacity.
const CLASSICS: [f64; 4] = [0.06, 0.015, 0.005, 0.001];

/// Blocks hit by blocks asked for with 6000 blocks a host: hosts; one after the other; the same with peers, and the part
/// that came from them; by affinity.
const HOSTS: [(u64, [f64; 4]); 3] =
    [(4, [0.130, 0.294, 0.164, 0.305]), (10, [0.105, 0.353, 0.248, 0.359]), (16, [0.094, 0.360, 0.266, 0.363])];

/// Write-through with so many blocks in DRAM and on SSD: blocks hit, those on SSD alone, writes by distinct blocks.
const WRITE_THROUGH: [(&str, u64, u64, [f64; 3]); 3] = [
    ("conversation", 10_000, 50_000, [0.3533, 0.1417, 1.02]),
    ("synthetic", 10_000, 30_000, [0.6209, 0.1969, 1.05]),
    ("codeagent", 3_000, 20_000, [0.9550, 0.3699, 1.14]),
];

#[test]
fn the_optimum_is_the_published_one_and_the_classics_are_near() {
    for (names, expected) in PUBLISHED {
        let Some(workload) = workload(names) else { return };
        for (policy, expected) in ["opt", "arc", "s3fifo"].into_iter().zip(expected) {
            for ((capacity, expected), near) in CAPACITIES.into_iter().zip(expected).zip(CLASSICS) {
                let subject = subjects(policy).expect("a policy")[0];
                let found = Setting::default().replay(&workload, subject, capacity).real.hit_rate();
                let allowed = if policy == "opt" { 0.000_05 } else { near * expected };
                assert!((found - expected).abs() <= allowed, "{names}, {policy} of {capacity}: {found:.4}, {expected}");
            }
        }
    }
}

/// The best of thirteen classic policies of that simulator at those capacities, whichever it is in each cell.
const BEST_CLASSIC: [(&str, [f64; 4]); 4] = [
    ("conversation", [0.0747, 0.1156, 0.2270, 0.3349]),
    ("synthetic", [0.0953, 0.2062, 0.4440, 0.6448]),
    ("codeagent", [0.2421, 0.5983, 0.9324, 0.9589]),
    ("conversation,synthetic,codeagent", [0.1954, 0.4821, 0.7610, 0.8372]),
];
/// Least mean share of the optimum over all those cells.
const SCORE_MIN: f64 = 0.71;
/// Of the best classic's hit rate, in any cell.
const WORST_CELL_MIN: f64 = 0.985;

/// What a request of 250 blocks after each tenth, never asked for again, may cost the others with 10,000 blocks.
const SCAN_COST_MAX: [(&str, f64); 3] = [("conversation", 0.03), ("synthetic", 0.07), ("codeagent", 0.02)];

#[test]
fn hazq_reaches_most_of_the_optimum_and_is_nowhere_far_below_the_best_classic() {
    let (mut shares, mut low) = (Vec::new(), Vec::new());
    for ((names, [optimum, ..]), (_, best)) in PUBLISHED.into_iter().zip(BEST_CLASSIC) {
        let Some(workload) = workload(names) else { return };
        for ((capacity, optimum), best) in CAPACITIES.into_iter().zip(optimum).zip(best) {
            let found = hazq(&workload, capacity).real.hit_rate();
            println!(
                "{names}, {capacity}: {found:.4}, of the optimum {:.4}, of the best {:.4}",
                found / optimum,
                found / best
            );
            low.extend((found < WORST_CELL_MIN * best).then_some((names, capacity)));
            shares.push(found / optimum);
        }
    }
    let score = shares.iter().sum::<f64>() / shares.len() as f64;
    println!("score {score:.4}");
    assert!(score >= SCORE_MIN && low.is_empty(), "score {score:.4}; far below the best classic: {low:?}");
}

#[test]
fn a_scan_costs_the_others_little() {
    for (name, most) in SCAN_COST_MAX {
        let Some(alone) = workload(name) else { return };
        let beside = alone.clone().with_scan(Scan { blocks: 250, every: 10 });
        let [alone, beside] = [alone, beside].map(|workload| hazq(&workload, 10_000).real.hit_tokens as f64);
        println!("{name}: {:.4}", 1.0 - beside / alone);
        assert!(beside >= (1.0 - most) * alone, "{name}: {alone} tokens hit, {beside} beside a scan");
    }
}

fn hazq(workload: &Workload, capacity: u64) -> Outcome {
    Setting::default().replay(workload, subjects("hazq").expect("a policy")[0], capacity)
}

#[test]
fn hosts_hit_what_was_published() {
    let Some(workload) = workload("conversation") else { return };
    for (hosts, expected) in HOSTS {
        let of = |route, peers| {
            let setting = Setting { hosts: Some(HostsPlan { hosts, route, peers }), ..Setting::default() };
            let outcome = setting.replay(&workload, subjects("lru").expect("a policy")[0], 6_000);
            let remote = outcome.hosts.expect("several hosts").remote_hit_blocks;
            [outcome.hit_blocks, remote].map(|blocks| blocks as f64 / outcome.block_refs as f64)
        };
        let [apart, _] = of(Route::Rr, Peers::None);
        let [together, remote] = of(Route::Rr, Peers::Unseen);
        let [affinity, _] = of(Route::Affinity, Peers::None);
        for (found, expected) in [apart, together, remote, affinity].into_iter().zip(expected) {
            assert!((found - expected).abs() < 0.0011, "{hosts} hosts: {found:.4}, {expected}");
        }
    }
}

/// Of the blocks asked for, with ten hosts of 6000 blocks, one after the other: what peers bring at least, and how near to an
/// oracle digests come.
const TOGETHER_MIN: f64 = 0.345;
const DIGEST_MIN: f64 = 0.99;

#[test]
fn digests_bring_what_an_oracle_does() {
    let Some(workload) = workload("conversation") else { return };
    for policy in ["hazq", "lru"] {
        let of = |peers| {
            let setting =
                Setting { hosts: Some(HostsPlan { hosts: 10, route: Route::Rr, peers }), ..Setting::default() };
            let outcome = setting.replay(&workload, subjects(policy).expect("a policy")[0], 6_000);
            (outcome.hit_blocks as f64 / outcome.block_refs as f64, outcome.hosts.expect("several hosts").digests)
        };
        let [(none, _), (oracle, _), (digest, told)] = [Peers::None, Peers::Oracle, Peers::Digest].map(of);
        let told = told.expect("digests");
        println!("{policy}: none {none:.4}, oracle {oracle:.4}, digest {digest:.4}, {told:?}");
        assert!(oracle >= TOGETHER_MIN && digest >= DIGEST_MIN * oracle, "{policy}: {none}, {oracle}, {digest}");
        assert!(told.asked_in_vain * 50 < told.asked, "{policy}: {told:?}");
    }
}

#[test]
fn write_through_hits_and_writes_what_was_published() {
    for (name, dram, blocks, expected) in WRITE_THROUGH {
        let Some(workload) = workload(name) else { return };
        let setting = Setting { ssd: Some((blocks, 4096)), admission: Admission::WriteThrough, ..Setting::default() };
        let Outcome { hit_blocks, block_refs, ssd, .. } =
            setting.replay(&workload, subjects("lru").expect("a policy")[0], dram);
        let ssd = ssd.expect("a tier on SSD");
        let rate = |blocks: u64| blocks as f64 / block_refs as f64;
        let writes = ssd.device_bytes as f64 / ssd.distinct_bytes as f64;
        for (found, expected) in [rate(hit_blocks), rate(ssd.ssd_hit_blocks), writes].into_iter().zip(expected) {
            assert!((found - expected).abs() < 0.0051 * expected, "{name}: {found:.4}, {expected}");
        }
    }
}

#[test]
fn half_a_write_budget_keeps_three_quarters_of_the_hits_on_ssd() {
    let Some(workload) = workload("conversation") else { return };
    let of = |policy: &str, admission, write_budget| -> SsdOutcome {
        let setting = Setting { ssd: Some((50_000, 64 << 10)), admission, write_budget, ..Setting::default() };
        let outcome = setting.replay(&workload, subjects(policy).expect("a policy")[0], 10_000);
        outcome.ssd.expect("a tier on SSD")
    };
    let full = of("hazq", Admission::Full, None);
    let half = of("hazq", Admission::Class, Some(WriteBudget::Percent(50.0)));
    let through = of("lru", Admission::WriteThrough, None);
    let kept = half.ssd_hit_blocks as f64 / full.ssd_hit_blocks as f64;
    let written = half.device_bytes as f64 / through.device_bytes as f64;
    println!("{kept:.4} of the hits on SSD with {written:.4} of the bytes of write-through");
    assert!(kept >= 0.75 && written <= 0.60, "{kept:.4} of the hits, {written:.4} of the bytes");
}

fn workload(names: &str) -> Option<Workload> {
    let folder = traces()?;
    let paths: Vec<PathBuf> = names.split(',').map(|name| folder.join(format!("{name}_trace.jsonl.zst"))).collect();
    Some(Workload::of(read_all(&paths).expect("a good trace")))
}

/// Where the traces are, or `None` after saying why the test is skipped.
fn traces() -> Option<PathBuf> {
    let must = std::env::var_os("LAPIS_CONFORMANCE").is_some();
    if !must && cfg!(debug_assertions) {
        eprintln!("skipped: published figures need a release build or LAPIS_CONFORMANCE=1");
        return None;
    }
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces");
    let folder = std::env::var_os("LAPIS_TRACES").map_or_else(beside, PathBuf::from);
    if !folder.join("conversation_trace.jsonl.zst").is_file() {
        assert!(!must, "LAPIS_CONFORMANCE is set and no traces are in {}", folder.display());
        eprintln!("skipped: no traces in {} (LAPIS_TRACES names another place)", folder.display());
        return None;
    }
    Some(folder)
}
