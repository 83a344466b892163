//! The core's choice of what stays agrees with a model that is obviously right, and with the figures that another
//! simulator gave for three published traces.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use lapis_benches::replay::{Outcome, capacities, replay};
use lapis_config::PolicyName;
use lapis_trace::{Generate, Request, generate, read_all};

const CAPACITIES: &str = "1k,3k,10k,30k,50k,100k";

/// Hit blocks at those capacities, plain least-recently-used, leaves first.
const PUBLISHED: [(&str, [u64; 6]); 4] = [
    ("conversation", [12847, 18850, 61046, 93978, 102290, 104924]),
    ("synthetic", [10252, 23226, 51669, 76077, 77953, 77953]),
    ("codeagent", [212619, 944731, 1505499, 1548226, 1550429, 1551030]),
    ("conversation,synthetic,codeagent", [166962, 851810, 1519643, 1682868, 1716481, 1731614]),
];

/// Hit blocks and hit tokens by the counting rule, word for word: the hits of a request are its longest resident run
/// from the first block; then all its blocks are touched or inserted, deepest first; then the least recent blocks go
/// until `capacity` remain.
fn model(trace: &[Request], capacity: u64) -> (u64, u64) {
    let (mut touched, mut by_time) = (HashMap::new(), BTreeMap::new());
    let (mut hit_blocks, mut hit_tokens, mut time) = (0, 0, 0u64);
    for request in trace {
        let hits = request.ids.iter().take_while(|id| touched.contains_key(*id)).count();
        hit_blocks += hits as u64;
        hit_tokens += request.tokens_of(hits);
        for id in request.ids.iter().rev() {
            time += 1;
            if let Some(before) = touched.insert(*id, time) {
                by_time.remove(&before);
            }
            by_time.insert(time, *id);
        }
        while by_time.len() as u64 > capacity {
            let (_, id) = by_time.pop_first().expect("more than the capacity");
            touched.remove(&id);
        }
    }
    (hit_blocks, hit_tokens)
}

#[test]
fn the_core_agrees_with_the_model_on_made_traces() {
    for seed in [1, 2, 3] {
        let trace = generate(&Generate { seed, requests: 1_500, span_s: 3_537 });
        // From "smaller than one request" to "everything stays".
        for capacity in [1, 7, 40, 300, 1_000, 5_000, 40_000] {
            let Outcome { hit_blocks, hit_tokens, .. } = replay(&trace, PolicyName::Lru, capacity);
            assert_eq!((hit_blocks, hit_tokens), model(&trace, capacity), "seed {seed}, {capacity} blocks");
        }
    }
}

#[test]
fn the_core_gives_the_published_figures() {
    let Some(folder) = traces() else { return };
    let capacities = capacities(CAPACITIES).expect("a list");
    for (names, expected) in PUBLISHED {
        let paths: Vec<PathBuf> = names.split(',').map(|name| folder.join(format!("{name}_trace.jsonl.zst"))).collect();
        let trace = read_all(&paths).unwrap_or_else(|e| panic!("{e}"));
        let found: Vec<u64> = capacities.iter().map(|c| replay(&trace, PolicyName::Lru, *c).hit_blocks).collect();
        assert_eq!(found, expected, "{names} at {CAPACITIES}");
    }
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
