//! `lapis demo`: a holder, a daemon and this process as its client; a request trace through shared memory, every byte
//! compared, the daemon killed in the middle. With `--hosts`, several of them that are each other's peers; with `--gpus`, clients
//! that have their blocks in the memory of GPUs.

mod gpus;
mod hosts;
mod kill;
mod progress;
mod ssd;
mod table;

use std::{collections::HashSet, path::PathBuf, time::Instant};

use anyhow::{Context, ensure};
use clap::Args;
use lapis_config::{Bytes, DRAM_BYTES_MIN, DRAM_STEP_BYTES, Key, Machine};
use lapis_trace::{Generate, Request, generate, read_all};

use self::{
    progress::Progress,
    ssd::{Tier, Tiers},
};
use crate::{
    host::{Host, HostOptions},
    load::{self, Load},
    pattern,
    stop::Stop,
};

/// Memory of the DRAM tier where there is enough.
const DRAM_BYTES_DEFAULT: u64 = 4 << 30;
/// Fewer blocks than this and the reader's own would be evicted with the rest.
const DRAM_BLOCKS_MIN: u64 = 8 * kill::READER_BLOCKS as u64;

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
    /// File of the SSD tier in the temporary folder, 0 for none; by default 4GiB, or less where the disk has less room
    #[arg(long, value_name = "SIZE", value_parser = ssd::size)]
    pub ssd: Option<u64>,
    /// Devices of the SSD tier in place of that file, commas between; blank, or of a former demo: what is on them is lost
    #[arg(long, value_name = "PATHS", value_delimiter = ',', conflicts_with_all = ["ssd", "hosts"])]
    pub ssd_paths: Vec<PathBuf>,
    /// How they are driven, as in ssd.engine
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    pub ssd_engine: String,
    /// Seed of the generated trace and of the bytes
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Requests of the generated trace; of a file, the first so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub requests: Option<u64>,
    /// So many daemons on loopback addresses, each the others' peer; requests go to them in turn, one is killed in the middle
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub hosts: Option<u8>,
    /// So many GPUs have a slice each for blocks, and clients get and put blocks in their memory
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16), conflicts_with = "hosts")]
    pub gpus: Option<u16>,
    /// The CUDA driver's library; by default the one that the loader finds as libcuda.so.1
    #[arg(long, value_name = "PATH", requires = "gpus")]
    pub cuda_library: Option<PathBuf>,
    /// The slice of each GPU
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = hbm_bytes, requires = "gpus")]
    pub hbm: u64,
    /// What a process is that the demo started itself
    #[arg(long, hide = true)]
    pub gpu_role: Option<String>,
    /// What a 512-token block is scaled to
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = block_bytes)]
    pub block_bytes: u64,
}

/// Less is no slice, and the daemon would run without GPUs.
fn hbm_bytes(text: &str) -> Result<u64, String> {
    let bytes = lapis_config::size(text).map_err(|mistake| mistake.to_string())?;
    if bytes >= DRAM_STEP_BYTES { Ok(bytes) } else { Err(format!("the least is {}", Bytes(DRAM_STEP_BYTES))) }
}

fn block_bytes(text: &str) -> Result<u64, String> {
    let bytes = lapis_config::size(text).map_err(|mistake| mistake.to_string())?;
    if BLOCK_BYTES.contains(&bytes) && bytes.is_multiple_of(8) {
        return Ok(bytes);
    }
    Err(format!("{bytes} bytes: blocks have 4KiB to 4MiB, a multiple of 8 bytes"))
}

/// `lapis demo`. An error also if a single byte was wrong.
pub fn run(args: DemoArgs) -> anyhow::Result<()> {
    if let Some(role) = &args.gpu_role {
        return gpus::client::run(&args, role);
    }
    if let Some(count) = args.gpus {
        return gpus::run(&args, count);
    }
    let requests = requests(&args)?;
    let dram_bytes = dram_bytes(&args)?;
    if let Some(count) = args.hosts {
        return hosts::run(&args, count.into(), &requests, dram_bytes);
    }
    let stop = Stop::on_signals()?;
    let Tier { bytes: ssd_bytes, flags, name: tier, note: ssd_note } = ssd::tier(&args)?;
    let has_ssd = tier.is_some();
    let mut host = Host::start(HostOptions { ssd_bytes, flags, ..HostOptions::here(dram_bytes)? })?;
    let client = host.connect("demo")?;
    let pool = client.pool(&load::shape("demo", args.block_bytes))?;

    let total = requests.iter().map(|request| request.ids.len() as u64).sum();
    let mut progress = Progress::new(total);
    if let Some(note) = ssd_note {
        progress.say(&note);
    }
    let tier = tier.unwrap_or("no SSD".into());
    progress.say(&format!(
        "{} requests for {total} blocks of {} through {} of DRAM and {tier}, daemon {} in {}",
        requests.len(),
        Bytes(args.block_bytes),
        Bytes(dram_bytes),
        host.daemon_pid().unwrap_or(0),
        host.folder().display()
    ));
    let started = Instant::now();
    let mut load = Load::new(client.clone(), pool.clone(), args.seed)?;
    let (mut known, mut killed) = (HashSet::new(), None);
    for request in &requests {
        stop.check()?;
        load.request(&request.ids).with_context(|| format!("after {:?}", load.counts()))?;
        known.extend(request.ids.iter().copied());
        progress.set(load.counts().blocks, load.counts().hits);
        if killed.is_none() && load.counts().blocks * 2 >= total {
            progress.say("kill -9 of the daemon, and another one started; reads go on");
            let keys: Vec<Key> = known.iter().map(|id| pattern::key(args.seed, *id)).collect();
            killed = Some(kill::kill(&mut host, &client, &pool, args.seed, &keys, &stop)?);
        }
    }
    drop(progress);
    let killed = killed.expect("a trace has a middle");
    let wrong_bytes = load.counts().wrong_bytes + killed.wrong_bytes;
    let elapsed = started.elapsed();
    let tiers = has_ssd.then(|| Tiers::now(&host)).transpose()?;
    let tiers = tiers.map(|end| Tiers { hits_ssd: end.hits_ssd - killed.sample.hits_ssd, ..end });
    let tiers = tiers.map(|end| killed.tiers.through(&end));
    let text = table::render(&mut load, &killed, tiers.as_ref(), elapsed);
    drop((client, host));
    crate::trace::print(format!("{text}wrong bytes: {wrong_bytes}\n").as_bytes())?;
    ensure!(wrong_bytes == 0, "{wrong_bytes} bytes were not those that were put under their keys");
    Ok(())
}

fn requests(args: &DemoArgs) -> anyhow::Result<Vec<Request>> {
    let limit = args.requests.map_or(usize::MAX, |requests| requests as usize);
    let Some(path) = &args.trace else {
        let shape = Generate { seed: args.seed, ..Generate::default() };
        return Ok(generate(&Generate { requests: limit.min(shape.requests), ..shape }));
    };
    let mut requests = read_all(std::slice::from_ref(path))?;
    requests.truncate(limit);
    Ok(requests)
}

/// Memory of the tier: as asked if it fits, else a part of what is free.
fn dram_bytes(args: &DemoArgs) -> anyhow::Result<u64> {
    let free = free_bytes().context("find out how much memory is free")?;
    let least = DRAM_BYTES_MIN.max(args.block_bytes * DRAM_BLOCKS_MIN);
    let bytes = args.dram.unwrap_or((free / 3).min(DRAM_BYTES_DEFAULT) / DRAM_STEP_BYTES * DRAM_STEP_BYTES);
    let [given, block, lowest] = [bytes, args.block_bytes, least].map(Bytes);
    ensure!(bytes >= least, "{given} of DRAM, the least for blocks of {block} is {lowest}");
    ensure!(bytes < free, "{given} of DRAM, but only {} MiB of memory are free", free >> 20);
    Ok(bytes)
}

/// Memory that can be had without swapping.
fn free_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("MemAvailable is no number")?;
    Ok((kib << 10).min(Machine::here().memory_bytes.unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        demo: DemoArgs,
    }

    fn parse(line: &str) -> Result<DemoArgs, String> {
        let words = std::iter::once("demo").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.demo).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        let args = parse("--dram 64MiB --block-bytes 16KiB --seed 7").expect("good arguments");
        assert_eq!((args.dram, args.block_bytes, args.seed), (Some(64 << 20), 16 << 10, 7));
        for (line, part) in [
            ("--dram lots", "a size like"),
            ("--dram 64", "64"),
            ("--block-bytes 1B", "4KiB to 4MiB"),
            ("--block-bytes 8MiB", "4KiB to 4MiB"),
            ("--requests 0", "1..="),
            ("--gpus 2 --hbm 0B", "the least is 2MiB"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn memory_that_is_too_small_or_not_there_is_refused_with_both_numbers() {
        let error = |line: &str| dram_bytes(&parse(line).expect("good arguments")).expect_err(line).to_string();
        assert_eq!(error("--dram 1MiB"), "1MiB of DRAM, the least for blocks of 64KiB is 16MiB");
        assert_eq!(error("--dram 64MiB --block-bytes 4MiB"), "64MiB of DRAM, the least for blocks of 4MiB is 256MiB");
        let large = error("--dram 1000TiB");
        assert!(large.starts_with("1000TiB of DRAM, but only "), "{large}");
        assert!(dram_bytes(&parse("").expect("no arguments")).is_ok_and(|bytes| bytes <= DRAM_BYTES_DEFAULT));
    }

    #[test]
    fn a_trace_that_is_not_there_or_cut_short_is_one_clear_line() {
        let error = |path: &str| {
            let args = parse(&format!("--trace {path}")).expect("good arguments");
            format!("{:#}", requests(&args).expect_err("no trace"))
        };
        let missing = error("/no/such/trace.jsonl");
        assert!(missing.contains("/no/such/trace.jsonl") && missing.contains("No such file"), "{missing}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), br#"{"timestamp":0,"input_length":600,"output_len"#).expect("written");
        let cut = error(&file.path().display().to_string());
        assert!(cut.contains("cut short") && !cut.contains('\n'), "{cut}");
    }

    #[test]
    fn devices_take_the_place_of_the_file_and_are_a_demos_own() {
        let tier = ssd::tier(&parse("--ssd-paths /dev/a,/dev/b --ssd-engine uring").expect("good arguments"));
        let Tier { bytes, flags, name, note } = tier.expect("nothing is looked at");
        assert_eq!((bytes, name.as_deref(), note), (None, Some("/dev/a, /dev/b by uring"), None));
        let flags = flags.join(" ");
        assert_eq!(flags, "--ssd-engine uring --ssd-paths /dev/a,/dev/b --ssd-instance demo");
        assert!(parse("--ssd-paths /dev/a --ssd 1GiB").is_err() && parse("--ssd-paths /dev/a --hosts 2").is_err());
    }

    #[test]
    fn as_many_requests_as_asked_are_made() {
        let args = parse("--requests 17").expect("good arguments");
        assert_eq!(requests(&args).expect("generated").len(), 17);
    }
}
