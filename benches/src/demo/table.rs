//! What the demo showed, as a small table.

use std::{fmt::Write, time::Duration};

use super::{kill::Killed, ssd::Tiers};
use crate::load::Load;

/// The rows, each ended. `tiers`: of both daemons, if there is an SSD tier.
pub fn render(load: &mut Load, killed: &Killed, tiers: Option<&Tiers>, elapsed: Duration) -> String {
    let counts = *load.counts();
    let [get_rate, put_rate] = load.rates().map(|rate| rate / 1e9);
    let [p50, p99] = [0.5, 0.99].map(|share| milliseconds(load.request_us().percentile(share) / 1e3));
    let mut text = String::new();
    let mut row = |name: &str, value: String| writeln!(text, "{name:<28} {value}").expect("a String takes everything");
    row("requests", format!("{} in {:.1} s", counts.requests, elapsed.as_secs_f64()));
    row("blocks", counts.blocks.to_string());
    row("hits", share(counts.hits, counts.blocks));
    if let Some(tiers) = tiers {
        let from_ssd = tiers.hits_ssd.min(counts.hits);
        let in_dram = share(counts.hits - from_ssd, counts.blocks);
        row("hits by tier", format!("DRAM {in_dram}, SSD {}", share(from_ssd, counts.blocks)));
    }
    row("read at", format!("{get_rate:.1} GB/s, look-ups included"));
    row("stored", format!("{} at {put_rate:.1} GB/s", counts.stored));
    row("puts refused", counts.refused.to_string());
    row("a request p50 / p99", format!("{p50} / {p99} in the client's calls"));
    row("blocks kept over the kill", share(killed.blocks_after, killed.blocks_before));
    if let Some(tiers) = tiers {
        let (found, before, sample) = (killed.ssd_found, killed.ssd_before, &killed.sample);
        let recovery = milliseconds(killed.ssd_recovery_s * 1e3);
        row("SSD blocks over the kill", format!("{found} found of {before} in {recovery}"));
        row(
            "read back from SSD alone",
            format!("{} verified, {} missed, {} wrong bytes", sample.verified, sample.missed, sample.wrong_bytes),
        );
        row("moved", format!("{} demoted, {} promoted", tiers.demotions, tiers.promotions));
        let [written, admitted] = [tiers.written_bytes, tiers.admitted_bytes];
        let ratio = written as f64 / admitted.max(1) as f64;
        row("device / admitted bytes", format!("{ratio:.3} ({} of {} MiB)", written >> 20, admitted >> 20));
        row("checksum failures", tiers.checksum_failures.to_string());
    }
    row("first verified hit", format!("{} after the new daemon's exec", milliseconds(millis(killed.first_hit))));
    row("old client served again", format!("{} after the kill", milliseconds(millis(killed.reconnected))));
    let longest = milliseconds(millis(killed.read_longest));
    row("reads through the kill", format!("{}, {} misses, longest call {longest}", killed.reads, killed.read_misses));
    text
}

fn share(part: u64, whole: u64) -> String {
    format!("{part} of {whole} ({:.1} %)", 100.0 * part as f64 / whole.max(1) as f64)
}

/// The same in few letters.
pub fn share_short(part: u64, whole: u64) -> String {
    format!("{part} ({:.1} %)", 100.0 * part as f64 / whole.max(1) as f64)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn milliseconds(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}
