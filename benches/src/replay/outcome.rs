//! What a replay found, and how it is said in JSON.

use serde::Serialize;

use super::{daemon::DaemonOutcome, hosts::HostsOutcome, words::Subject};

/// What one replay found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    pub block_refs: u64,
    pub hit_blocks: u64,
    pub input_tokens: u64,
    pub hit_tokens: u64,
    pub evictions: u64,
    /// Processor time in the core, by the references to blocks.
    pub ns_per_block: f64,
    /// Of the requests of the trace alone, where a scan runs between them.
    pub real: Sums,
    /// With an SSD tier.
    pub ssd: Option<SsdOutcome>,
    /// With several hosts.
    pub hosts: Option<HostsOutcome>,
    /// Through a daemon beside the core.
    pub daemon: Option<DaemonOutcome>,
    /// Hit tokens by those of the offline optimum.
    pub share_of_opt: Option<f64>,
}

/// Hits and what they are counted against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sums {
    #[serde(rename = "real_block_refs")]
    pub block_refs: u64,
    #[serde(rename = "real_hit_blocks")]
    pub hit_blocks: u64,
    #[serde(rename = "real_input_tokens")]
    pub input_tokens: u64,
    #[serde(rename = "real_hit_tokens")]
    pub hit_tokens: u64,
}

impl Sums {
    /// Hit tokens by input tokens.
    pub fn hit_rate(&self) -> f64 {
        self.hit_tokens as f64 / self.input_tokens.max(1) as f64
    }
}

/// What a tier on SSD counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SsdCounts {
    pub hit_blocks: u64,
    pub admitted_bytes: u64,
    pub readmitted_bytes: u64,
    pub device_bytes: u64,
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
    /// Bytes of all distinct blocks, had each been full: what budgets in per cent are of.
    pub distinct_bytes: u64,
}

impl SsdOutcome {
    pub fn new(ssd_blocks: u64, block_bytes: u64, distinct_blocks: u64, counts: &SsdCounts) -> Self {
        let amplification = counts.device_bytes as f64 / counts.admitted_bytes.max(1) as f64;
        Self {
            ssd_blocks,
            block_bytes,
            ssd_hit_blocks: counts.hit_blocks,
            admitted_bytes: counts.admitted_bytes,
            readmitted_bytes: counts.readmitted_bytes,
            device_bytes: counts.device_bytes,
            write_amplification: rounded(amplification),
            distinct_bytes: distinct_blocks.saturating_mul(block_bytes),
        }
    }
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
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_opt: Option<f64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    real: Option<Sums>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    hosts: Option<HostsOutcome>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    daemon: Option<DaemonOutcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admission: Option<&'a str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    ssd: Option<SsdOutcome>,
}

/// What a line is of, beside the outcome.
#[derive(Clone, Copy, Debug)]
pub struct Of<'a> {
    pub trace: &'a str,
    pub subject: Subject,
    pub capacity: u64,
    /// Whether a scan ran between the requests.
    pub scan: bool,
    /// With an SSD tier: what is written to it.
    pub admission: Option<&'a str>,
}

/// One line.
pub fn json(of: &Of<'_>, outcome: &Outcome) -> anyhow::Result<String> {
    let Outcome { block_refs, hit_blocks, input_tokens, hit_tokens, evictions, ns_per_block, .. } = *outcome;
    let row = Row {
        trace: of.trace,
        policy: of.subject.word(),
        capacity_blocks: of.capacity,
        block_refs,
        hit_blocks,
        input_tokens,
        hit_tokens,
        evictions,
        ns_per_block,
        share_of_opt: outcome.share_of_opt.map(rounded),
        real: of.scan.then_some(outcome.real),
        hosts: outcome.hosts,
        daemon: outcome.daemon,
        admission: of.admission,
        ssd: outcome.ssd,
    };
    Ok(serde_json::to_string(&row)? + "\n")
}

/// To four digits after the point.
pub fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            hosts::{Peers, Route},
            words::subjects,
        },
        *,
    };

    fn outcome() -> Outcome {
        Outcome {
            block_refs: 4,
            hit_blocks: 2,
            input_tokens: 2048,
            hit_tokens: 1024,
            evictions: 1,
            ns_per_block: 9.5,
            ..Outcome::default()
        }
    }

    fn of(policy: &str) -> Of<'static> {
        let subject = subjects(policy).expect("a policy")[0];
        Of { trace: "t", subject, capacity: 3, scan: false, admission: None }
    }

    #[test]
    fn a_json_line_has_the_agreed_fields() {
        let line = json(&of("lru"), &outcome()).expect("a line");
        assert_eq!(
            line,
            "{\"trace\":\"t\",\"policy\":\"lru\",\"capacity_blocks\":3,\"block_refs\":4,\"hit_blocks\":2,\
             \"input_tokens\":2048,\"hit_tokens\":1024,\"evictions\":1,\"ns_per_block\":9.5}\n"
        );
    }

    #[test]
    fn what_was_asked_for_beside_comes_in_fields_of_its_own() {
        let real = Sums { block_refs: 3, hit_blocks: 2, input_tokens: 1536, hit_tokens: 1024 };
        let hosts = HostsOutcome {
            hosts: 4,
            route: Route::Affinity,
            peers: Peers::Oracle,
            remote_hit_blocks: 1,
            digests: None,
        };
        let counts = SsdCounts { hit_blocks: 1, admitted_bytes: 8192, readmitted_bytes: 0, device_bytes: 12288 };
        let ssd = Some(SsdOutcome::new(9, 4096, 3, &counts));
        let outcome = Outcome { real, hosts: Some(hosts), ssd, share_of_opt: Some(0.66666), ..outcome() };
        let line = json(&Of { scan: true, admission: Some("full"), ..of("arc") }, &outcome).expect("a line");
        for field in [
            "\"share_of_opt\":0.6667,\"real_block_refs\":3,\"real_hit_blocks\":2,\"real_input_tokens\":1536",
            "\"hosts\":4,\"route\":\"affinity\",\"peers\":\"oracle\",\"remote_hit_blocks\":1",
            "\"admission\":\"full\",\"ssd_blocks\":9,\"block_bytes\":4096,\"ssd_hit_blocks\":1",
            "\"device_bytes\":12288,\"write_amplification\":1.5,\"distinct_bytes\":12288}",
        ] {
            assert!(line.contains(field), "{line} has not {field}");
        }
    }
}
