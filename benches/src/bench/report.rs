//! Figures as they are told: one JSON object a line for programs, a row with its goal for people.

use std::fmt::Write;

use serde::Serialize;

use crate::samples::{Pairs, Samples};

/// One measured thing. Fields without a meaning for it are left out of the JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figure {
    pub bench: &'static str,
    /// Which form of the bench, where it has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arena_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// Hosts, the blocks of each, of which digests know one in `sample`, and how many come and how many go a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Operations that a device has at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u64>,
    /// Where the bytes go: `reused` is the same memory in every round, `cold` is memory not in any cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<&'static str>,
    /// The median.
    pub value: f64,
    pub unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// What the machine itself does, median, in the same unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// What `limit` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_is: Option<&'static str>,
    /// Value to limit of one round; median over the rounds, least, greatest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_max: Option<f64>,
    pub rounds: usize,
    /// Processor time a gigabyte: ours without what sums take, that of sums, and the limit's; medians.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_gb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sums_cpu_us_per_gb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_cpu_us_per_gb: Option<f64>,
    /// The same of the process at the other end, where there are two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_cpu_us_per_gb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_owner_cpu_us_per_gb: Option<f64>,
    /// Blocks that were not taken, and blocks that were and are not there afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    #[serde(skip)]
    pub goal: Option<Goal>,
}

/// What the figure is held against.
#[derive(Clone, Debug)]
pub struct Goal {
    text: String,
    met: bool,
}

impl Goal {
    pub fn new(text: impl Into<String>, met: bool) -> Self {
        Self { text: text.into(), met }
    }
}

impl Figure {
    pub fn new(bench: &'static str, unit: &'static str) -> Self {
        Self { bench, unit, ..Self::default() }
    }

    /// A throughput beside its limit, both in GB/s.
    pub fn throughput(bench: &'static str, mut pairs: Pairs) -> Self {
        let mut figure = Self::new(bench, "GB/s");
        figure.value = rounded(pairs.ours.median());
        figure.beside(&mut pairs);
        figure
    }

    /// A latency beside its limit, both in microseconds.
    pub fn latency(bench: &'static str, mut pairs: Pairs) -> Self {
        let mut figure = Self::times(bench, "us", &mut pairs.ours);
        figure.beside(&mut pairs);
        figure
    }

    /// Times with nothing to stand beside.
    pub fn times(bench: &'static str, unit: &'static str, times: &mut Samples) -> Self {
        let mut figure = Self::new(bench, unit);
        figure.value = rounded(times.median());
        figure.p50 = Some(figure.value);
        figure.p99 = Some(rounded(times.percentile(0.99)));
        figure.rounds = times.len();
        figure
    }

    /// Throughputs with nothing to stand beside, in GB/s.
    pub fn rates(bench: &'static str, rates: &mut Samples) -> Self {
        let mut figure = Self::new(bench, "GB/s");
        figure.value = rounded(rates.median());
        figure.rounds = rates.len();
        figure
    }

    fn beside(&mut self, pairs: &mut Pairs) {
        let [ratio, min, max] = pairs.ratio().map(rounded);
        self.limit = Some(rounded(pairs.limit.median()));
        (self.ratio, self.ratio_min, self.ratio_max) = (Some(ratio), Some(min), Some(max));
        self.rounds = pairs.rounds();
    }

    /// What it is of, in words.
    fn subject(&self) -> String {
        let mut text = String::from(self.bench);
        let mut add = |part: std::fmt::Arguments| text.write_fmt(part).expect("a String takes everything");
        if let Some(batch) = self.batch.filter(|batch| *batch > 1) {
            add(format_args!(" {batch} x"));
        }
        if let Some(bytes) = self.block_bytes {
            add(format_args!(" {}", lapis_config::Bytes(bytes)));
        }
        if let Some(hosts) = self.hosts {
            add(format_args!(" {hosts} hosts"));
        }
        if let Some(sample) = self.sample {
            add(format_args!(" 1 in {sample}"));
        }
        if let Some(rate) = self.rate {
            add(format_args!(" {rate}/s"));
        }
        if let Some(keys) = self.keys {
            add(format_args!(" {keys} key{}", if keys == 1 { "" } else { "s" }));
        }
        for word in [self.case, self.destination].into_iter().flatten() {
            add(format_args!(" {word}"));
        }
        if let Some(depth) = self.depth {
            add(format_args!(" depth {depth}"));
        }
        if let Some(bytes) = self.arena_bytes {
            add(format_args!(" {}", lapis_config::Bytes(bytes)));
        }
        text
    }

    fn row(&self) -> String {
        let value = match self.p99 {
            Some(p99) => format!("{} {} (p99 {p99})", self.value, self.unit),
            None => format!("{} {}", self.value, self.unit),
        };
        let limit = match (self.limit, self.limit_is) {
            (Some(limit), Some(name)) => format!("{limit} {name}"),
            (Some(limit), None) => limit.to_string(),
            (None, _) => String::from("-"),
        };
        let ratio = match (self.ratio, self.ratio_min, self.ratio_max) {
            (Some(ratio), Some(min), Some(max)) => format!("{ratio} ({min}..{max})"),
            _ => String::from("-"),
        };
        let goal = self
            .goal
            .as_ref()
            .map_or(String::new(), |goal| format!("{}  {}", if goal.met { "met   " } else { "MISSED" }, goal.text));
        let row = format!("{:<36} {value:<30} {limit:<34} {ratio:<26} {goal}", self.subject()).trim_end().to_string();
        row + &self.processor()
    }

    /// A line of its own, where processor time was measured.
    fn processor(&self) -> String {
        let Some(cpu) = self.cpu_us_per_gb else { return String::new() };
        let sums = self.sums_cpu_us_per_gb.map_or(String::new(), |sums| format!(", sums {sums}"));
        let limit = self.limit_cpu_us_per_gb.map_or(String::new(), |limit| format!(", limit {limit}"));
        let owner = match (self.owner_cpu_us_per_gb, self.limit_owner_cpu_us_per_gb) {
            (Some(owner), Some(limit)) => format!("; owner {owner}, limit {limit}"),
            _ => String::new(),
        };
        format!("\n{:<36} processor us/GB: {cpu}{sums}{limit}{owner}", "")
    }
}

/// Three significant digits: more would be noise.
pub fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let places = (2 - value.abs().log10().floor() as i32).max(0);
    let scale = 10f64.powi(places);
    (value * scale).round() / scale
}

/// Writes figures as they come.
pub struct Report {
    json: bool,
    headed: bool,
    missed: usize,
}

impl Report {
    pub fn new(json: bool) -> Self {
        Self { json, headed: false, missed: 0 }
    }

    pub fn add(&mut self, figure: &Figure) -> anyhow::Result<()> {
        let mut text = String::new();
        if self.json {
            text = serde_json::to_string(figure)?;
        } else {
            if !self.headed {
                writeln!(text, "{:<36} {:<30} {:<34} {:<26} goal", "", "figure", "limit", "ratio (min..max)")?;
                self.headed = true;
            }
            text += &figure.row();
        }
        self.missed += usize::from(figure.goal.as_ref().is_some_and(|goal| !goal.met));
        text.push('\n');
        crate::trace::print(text.as_bytes())
    }

    /// Says how many goals were missed.
    pub fn end(self) -> anyhow::Result<()> {
        match (self.json, self.missed) {
            (true, _) => Ok(()),
            (false, 0) => crate::trace::print(b"all goals met\n"),
            (false, missed) => crate::trace::print(format!("goals missed: {missed}\n").as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(values: &[(f64, f64)]) -> Pairs {
        let mut pairs = Pairs::default();
        values.iter().for_each(|(ours, limit)| pairs.push(*ours, *limit));
        pairs
    }

    #[test]
    fn a_throughput_is_one_object_with_its_limit() {
        let mut figure = Figure::throughput("get_into", pairs(&[(9.8, 11.2), (4.9, 5.6), (10.0, 5.0)]));
        (figure.block_bytes, figure.batch) = (Some(65_536), Some(32));
        assert_eq!(
            serde_json::to_string(&figure).expect("plain values"),
            r#"{"bench":"get_into","block_bytes":65536,"batch":32,"value":9.8,"unit":"GB/s","limit":5.6,"ratio":0.875,"ratio_min":0.875,"ratio_max":2.0,"rounds":3}"#
        );
    }

    #[test]
    fn a_latency_has_percentiles_and_its_keys() {
        let mut figure = Figure::latency("match_prefix", pairs(&[(300.0, 100.0), (600.0, 200.0)]));
        figure.keys = Some(8192);
        figure.goal = Some(Goal::new("<= 4 x limit", true));
        assert_eq!(
            serde_json::to_string(&figure).expect("plain values"),
            r#"{"bench":"match_prefix","keys":8192,"value":300.0,"unit":"us","p50":300.0,"p99":600.0,"limit":100.0,"ratio":3.0,"ratio_min":3.0,"ratio_max":3.0,"rounds":2}"#
        );
        let row = figure.row();
        assert!(row.starts_with("match_prefix 8192 keys") && row.ends_with("met     <= 4 x limit"), "{row}");
    }

    #[test]
    fn figures_are_rounded_to_three_digits() {
        assert_eq!([0.0, 0.012345, 1.2345, 98.76, 1234.4].map(rounded), [0.0, 0.0123, 1.23, 98.8, 1234.0]);
    }
}
