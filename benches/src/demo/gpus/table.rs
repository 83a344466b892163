//! What the demo with GPUs showed, as a small table. Pure.

use std::fmt::Write;

use serde_json::Value;

use super::words::Seen;

/// What happened when a client and the daemon were killed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Killed {
    /// Of the client that was killed: blocks that it was reading, and gets of them that were under way.
    pub held: Seen,
    /// From its end until nobody names a slot on a GPU and it is forgotten.
    pub freed_ms: f64,
    /// Blocks on GPUs before and after, and how many of the former are on the same GPU still.
    pub before: u64,
    pub after: u64,
    pub kept: u64,
    /// Blocks of GPUs, read while no daemon was there, and by the next daemon.
    pub without: Seen,
    pub again: Seen,
    pub back_ms: f64,
}

/// Counters of daemons, one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moves {
    promotions: u64,
    puts: u64,
    evictions: u64,
    alone: u64,
    saved: u64,
    demotions: u64,
    ssd_promotions: u64,
    checksum_failures: u64,
}

impl Moves {
    pub fn of(status: &Value) -> Self {
        let number = |path: &str| status.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        Self {
            promotions: number("/hbm/promotions"),
            puts: number("/hbm/puts"),
            evictions: number("/hbm/evictions"),
            alone: number("/hbm/demotions"),
            saved: number("/hbm/saved"),
            demotions: number("/ssd/demotions"),
            ssd_promotions: number("/ssd/promotions"),
            checksum_failures: number("/dram/checksum_failures"),
        }
    }

    pub fn and(self, later: Self) -> Self {
        Self {
            promotions: self.promotions + later.promotions,
            puts: self.puts + later.puts,
            evictions: self.evictions + later.evictions,
            alone: self.alone + later.alone,
            saved: self.saved + later.saved,
            demotions: self.demotions + later.demotions,
            ssd_promotions: self.ssd_promotions + later.ssd_promotions,
            checksum_failures: self.checksum_failures + later.checksum_failures,
        }
    }
}

/// A row for each phase with its name, then what became of the kills and where blocks went.
pub fn render(phases: &[(&str, Seen)], killed: Option<&Killed>, moves: &Moves) -> String {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| writeln!(text, "{words}").expect("a String takes everything");
    let heads = ["asked", "hits", "own HBM", "other GPU", "DRAM", "SSD", "stored", "refused"];
    let heads: String = heads.iter().map(|head| format!(" {head:>9}")).collect();
    line(format_args!("{:<24}{heads}", "hits, by where they were"));
    for (name, seen) in phases {
        let numbers = [
            seen.blocks,
            seen.hits,
            seen.hits_hbm,
            seen.hits_other,
            seen.hits_dram,
            seen.hits_ssd,
            seen.stored,
            seen.refused,
        ];
        let numbers: String = numbers.iter().map(|number| format!(" {number:>9}")).collect();
        line(format_args!("{name:<24}{numbers}"));
    }
    let mut row = |name: &str, value: String| line(format_args!("{name:<24} {value}"));
    if let Some(killed) = killed {
        row(
            "a client killed",
            format!(
                "with {} blocks of a GPU pinned, {} gets under way; nobody named a slot there {:.0} ms later",
                killed.held.hits_hbm.max(killed.held.hits),
                killed.held.under_way,
                killed.freed_ms
            ),
        );
        row(
            "the daemon killed",
            format!(
                "{} blocks on GPUs before, {} after, {} of them the same; back after {:.0} ms",
                killed.before, killed.after, killed.kept, killed.back_ms
            ),
        );
        row(
            "read on GPUs meanwhile",
            format!(
                "{} of {} without a daemon, {} of {} with the next one",
                killed.without.hits, killed.without.blocks, killed.again.hits_hbm, killed.again.blocks
            ),
        );
    }
    row("put in HBM", format!("{}, {} copied on to DRAM", moves.puts, moves.saved));
    row("DRAM to HBM", format!("{} promoted", moves.promotions));
    row("left HBM", format!("{} for others; {} left DRAM and stayed in HBM", moves.evictions, moves.alone));
    row("DRAM and SSD", format!("{} demoted, {} came back", moves.demotions, moves.ssd_promotions));
    row("checksum failures", moves.checksum_failures.to_string());
    text
}
