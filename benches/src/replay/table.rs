//! What a replay found, as a plain table.

use lapis_config::Bytes;

use super::{Outcome, outcome::Of, setting::Setting, workload::Workload};

/// Which columns there are.
pub struct Table<'a> {
    pub names: &'a str,
    pub setting: &'a Setting,
    pub scan: bool,
    pub opt: bool,
    pub daemon: bool,
}

impl Table<'_> {
    /// A line about the traces, and the names of the columns.
    pub fn heading(&self, workload: &Workload) -> String {
        let (requests, refs) = (workload.requests.len(), workload.block_refs());
        let mut text = format!("{}: {requests} requests, {refs} references to blocks", self.names);
        if self.scan {
            let real = workload.requests.iter().filter(|request| workload.is_real(request)).count();
            text += &format!(", of which {} requests are the scan's and no hits can be theirs", requests - real);
        }
        if let Some((blocks, block_bytes)) = self.setting.ssd {
            let admission = self.setting.admission.word();
            text += &format!(", {blocks} blocks of {} on SSD, admission {admission}", Bytes(block_bytes));
        }
        if let Some(plan) = self.setting.hosts {
            text += &format!(", {} hosts of that capacity each", plan.hosts);
        }
        text += &format!(
            "\n{:>8}  {:>10}  {:>12}  {:>9}  {:>9}",
            "policy", "capacity", "hit blocks", "of blocks", "of tokens"
        );
        if self.opt {
            text += &format!("  {:>9}", "of opt");
        }
        text += &format!("  {:>12}  {:>8}", "evictions", "ns/block");
        if self.setting.hosts.is_some() {
            text += &format!("  {:>11}", "remote hits");
        }
        if self.daemon {
            let [hits, of_blocks, by_core] = ["by daemon", "of blocks", "by core"];
            let [cold, refused, late] = ["cold", "refused", "late"];
            text += &format!("  {hits:>12}  {of_blocks:>9}  {by_core:>7}  {cold:>8}  {refused:>8}  {late:>8}");
        }
        if self.setting.ssd.is_some() {
            let [hits, admitted, again, device, ratio] = ["SSD hits", "admitted", "again", "device", "dev/adm"];
            text += &format!("  {hits:>10}  {admitted:>11}  {again:>11}  {device:>11}  {ratio:>7}");
        }
        text + "\n"
    }

    /// Rates are those of the trace's own requests.
    pub fn line(&self, of: &Of<'_>, outcome: &Outcome) -> String {
        let percent = |part: u64, all: u64| format!("{:.2} %", 100.0 * part as f64 / all.max(1) as f64);
        let real = outcome.real;
        let mut text = format!(
            "{:>8}  {:>10}  {:>12}  {:>9}  {:>9}",
            of.subject.word(),
            of.capacity,
            real.hit_blocks,
            percent(real.hit_blocks, real.block_refs),
            percent(real.hit_tokens, real.input_tokens)
        );
        if let Some(share) = outcome.share_of_opt {
            text += &format!("  {:>7.2} %", 100.0 * share);
        }
        text += &format!("  {:>12}  {:>8.1}", outcome.evictions, outcome.ns_per_block);
        if let Some(hosts) = outcome.hosts {
            text += &format!("  {:>11}", hosts.remote_hit_blocks);
        }
        if let Some(daemon) = outcome.daemon {
            let (hits, by_core) = (daemon.daemon_hit_blocks, daemon.daemon_by_core);
            let (rate, late) = (percent(hits, outcome.block_refs), format!("{} ms", daemon.late_ms_max));
            let (cold, refused) = (daemon.daemon_cold, daemon.daemon_refused);
            text += &format!("  {hits:>12}  {rate:>9}  {by_core:>7.4}  {cold:>8}  {refused:>8}  {late:>8}");
        }
        if let Some(ssd) = outcome.ssd {
            let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
            let (admitted, again, device) = (gib(ssd.admitted_bytes), gib(ssd.readmitted_bytes), gib(ssd.device_bytes));
            let (hits, ratio) = (ssd.ssd_hit_blocks, ssd.write_amplification);
            text += &format!("  {hits:>10}  {admitted:>11}  {again:>11}  {device:>11}  {ratio:>7.4}");
        }
        text + "\n"
    }
}
