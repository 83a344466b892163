//! `lapis demo`: a holder, a daemon and this process as its client; a request trace through shared memory, every byte
//! compared, the daemon killed in the middle.

use std::path::PathBuf;

use clap::Args;

/// Smallest and largest blocks that the demo replays, bytes.
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 4096..=4 << 20;

/// Starts a daemon in a temporary folder and replays a request trace through it, with a kill -9 in the middle.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Trace in Mooncake form, .jsonl or .jsonl.zst; without it one is generated
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Memory of the DRAM tier; by default a third of what is free, at most 4GiB
    #[arg(long, value_name = "SIZE", value_parser = lapis_config::size)]
    pub dram: Option<u64>,
    /// Seed of the generated trace and of the bytes
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Requests of the generated trace; of a file, the first so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub requests: Option<u64>,
    /// What a 512-token block is scaled to
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = block_bytes)]
    pub block_bytes: u64,
}

fn block_bytes(text: &str) -> Result<u64, String> {
    let bytes = lapis_config::size(text).map_err(|mistake| mistake.to_string())?;
    if BLOCK_BYTES.contains(&bytes) && bytes.is_multiple_of(8) {
        return Ok(bytes);
    }
    Err(format!("{bytes} bytes: blocks have 4KiB to 4MiB, a multiple of 8 bytes"))
}

/// `lapis demo`. An error also if a single byte was wrong.
pub fn run(_args: DemoArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
