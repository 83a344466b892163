//! A plan, as a plain table.

use lapis_config::Bytes;

use super::{Cell, Plan};

/// What the figures mean.
pub const NOTES: &str = "hit tokens: of all input tokens. of opt: by what the best of caches with as much room would hit, \
                         knowing the future.\nfrom SSD: blocks read from SSD by all asked for. DWPD: bytes written a day \
                         by the size of the SSD tier.\nThe trace begins with empty tiers and all of it comes to one host; \
                         every full block is written as memory gets short.\n";

pub fn heading(names: &str, model: Option<&str>, bytes_per_token: u64, plan: &Plan<'_>) -> String {
    let Plan { workload, block_bytes, span_s, policy } = plan;
    let (requests, blocks) = (workload.requests.len(), workload.blocks);
    let model = model.map_or(String::new(), |model| format!("{model}, "));
    let all = decimal(blocks * block_bytes);
    let [dram, ssd, hits, of_opt, from_ssd, rate, day, dwpd] =
        ["DRAM", "SSD", "hit tokens", "of opt", "from SSD", "SSD writes/s", "a day", "DWPD"];
    format!(
        "{names}: {requests} requests in {span_s:.0} s; {model}{} a token, {blocks} distinct blocks of {}, {all} in all; \
         policy {}\n\
         {dram:>8}  {ssd:>8}  {hits:>10}  {of_opt:>9}  {from_ssd:>9}  {rate:>12}  {day:>9}  {dwpd:>6}\n",
        Bytes(bytes_per_token),
        Bytes(*block_bytes),
        policy.word()
    )
}

pub fn line(cell: &Cell) -> String {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let [dram, ssd] = [cell.dram_bytes, cell.ssd_bytes]
        .map(|bytes| if bytes == 0 { "none".into() } else { Bytes(bytes).to_string() });
    let (hits, of_opt, from_ssd) = (percent(cell.hit_rate), percent(cell.share_of_opt), percent(cell.ssd_hit_rate));
    let bytes = |bytes: Option<f64>| {
        let written = bytes.filter(|_| cell.ssd_bytes > 0);
        written.map_or("-".into(), |bytes| decimal(bytes as u64))
    };
    let (rate, day) = (bytes(cell.ssd_write_bytes_per_s), bytes(cell.ssd_write_bytes_per_day));
    let dwpd = cell.drive_writes_per_day.map_or("-".into(), |writes| format!("{writes:.2}"));
    format!("{dram:>8}  {ssd:>8}  {hits:>10}  {of_opt:>9}  {from_ssd:>9}  {rate:>12}  {day:>9}  {dwpd:>6}\n")
}

/// "7.9 GB", as drives are sold.
fn decimal(bytes: u64) -> String {
    let units = [(1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let bytes = bytes as f64;
    let found = units.into_iter().find(|(scale, _)| bytes >= *scale);
    found.map_or_else(|| format!("{bytes} B"), |(scale, unit)| format!("{:.1} {unit}", bytes / scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_drives_are_sold() {
        let shown = [0, 999, 7_900_000_000, 68_000_000_000_000].map(decimal);
        assert_eq!(shown, ["0 B", "999 B", "7.9 GB", "68.0 TB"]);
    }
}
