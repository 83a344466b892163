//! From a plan that fails to a small one that does too: features are turned off one by one, counts are halved, as long
//! as it fails.

use super::{Plan, run};

/// What these mean when they are off. All others: 0.
const LEAST: [(&str, u64); 15] = [
    ("turns", 50),
    ("groups", 1),
    ("extents", 1),
    ("lines", 512),
    ("clients", 1),
    ("chains", 1),
    ("depth", 1),
    ("views", 4),
    ("pace", 1),
    ("segment_bytes", 256 << 10),
    ("segments", 8),
    ("queue", 1),
    ("latency_us", 200),
    ("start_latency_us", 200),
    ("ahead_part", 16),
];
/// Runs that shrinking may take.
const RUNS_MAX: u32 = 400;

/// The smallest plan found that fails, and how it fails.
pub fn shrink(plan: &Plan, wrong: String) -> (Plan, String) {
    let (mut best, mut wrong, mut runs) = (plan.clone(), wrong, 0);
    loop {
        let before = best.clone();
        for &name in Plan::KNOBS {
            let least = LEAST.iter().find(|(of, _)| *of == name).map_or(0, |(_, least)| *least);
            let is_off = |plan: &Plan| plan.knob(name) == Some(least);
            // All the way first; counts then by halves.
            for step in 0..6 {
                let now = best.knob(name).expect("a knob");
                let next = if step == 0 { least } else { least.max(now - now.saturating_sub(least).div_ceil(2)) };
                if is_off(&best) || next == now || runs == RUNS_MAX {
                    break;
                }
                let mut tried = best.clone();
                tried.turn(name, next);
                runs += 1;
                if let Err(other) = run(tried.clone())
                    && kind(&other) == kind(&wrong)
                {
                    (best, wrong) = (tried, other);
                } else if step > 0 {
                    break;
                }
            }
        }
        if best == before || runs == RUNS_MAX {
            return (best, wrong);
        }
    }
}

/// What went wrong, without its numbers.
fn kind(wrong: &str) -> String {
    let last = wrong.lines().last().unwrap_or("");
    last.chars().filter(|c| c.is_alphabetic() && !c.is_ascii_hexdigit()).take(24).collect()
}

/// What makes this plan of its seed's, for `LAPIS_SIM_SHRUNK`.
pub fn difference(plan: &Plan) -> String {
    let whole = Plan::of(plan.seed);
    let turned = Plan::KNOBS.iter().filter(|name| plan.knob(name) != whole.knob(name));
    turned.map(|name| format!("{name}={}", plan.knob(name).expect("a knob"))).collect::<Vec<_>>().join(",")
}

/// A seed's plan with knobs turned: `name=number,...`.
pub fn turned(seed: u64, difference: &str) -> Result<Plan, String> {
    let mut plan = Plan::of(seed);
    for turn in difference.split(',').filter(|turn| !turn.is_empty()) {
        let (name, value) = turn.split_once('=').ok_or_else(|| format!("{turn} is no name=number"))?;
        let value = value.parse().map_err(|_| format!("{turn}: no number"))?;
        if !plan.turn(name, value) {
            return Err(format!("{turn}: no such knob"));
        }
    }
    Ok(plan)
}
