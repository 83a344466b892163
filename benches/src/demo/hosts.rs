//! `lapis demo --hosts N`: as many daemons, each the others' peer, and a trace whose requests go round them; one is killed
//! in the middle.

use std::{fmt::Write, time::Instant};

use anyhow::Context;
use lapis_config::Bytes;
use lapis_trace::Request;
use serde_json::Value;

use super::{DemoArgs, progress::Progress, ssd, table};
use crate::{
    host::HostOptions,
    hosts::{self, Hosts},
    load::{self, Counts, Load},
    stop::Stop,
};

/// What one host is given at least of memory.
const DRAM_BYTES_MIN: u64 = 64 << 20;
/// The killed host is away for this part of the trace.
const AWAY_PART: usize = 8;

/// Blocks that came to one host's client, by where they were.
#[derive(Clone, Copy, Debug, Default)]
struct Hits {
    ssd: u64,
    peers: u64,
    lent: u64,
    corrupt: u64,
    failed: u64,
}

impl Hits {
    fn of(status: &Value) -> Self {
        let number = |path: &str| status.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        Self {
            ssd: number("/hits/keys_hit_ssd"),
            peers: number("/hits/keys_hit_peers"),
            lent: number("/peers/blocks_lent"),
            corrupt: number("/peers/blocks_corrupt") + number("/dram/checksum_failures"),
            failed: number("/peers/blocks_failed"),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            ssd: self.ssd + other.ssd,
            peers: self.peers + other.peers,
            lent: self.lent + other.lent,
            corrupt: self.corrupt + other.corrupt,
            failed: self.failed + other.failed,
        }
    }
}

/// Replays the requests; an error also if a single byte was wrong.
pub fn run(args: &DemoArgs, count: usize, requests: &[Request], dram_bytes: u64) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let dram_bytes = (dram_bytes / count as u64).max(DRAM_BYTES_MIN.max(args.block_bytes * 256));
    let (ssd_bytes, ssd_note) = ssd::bytes_for(args.ssd, count)?;
    let mut hosts = Hosts::start(count, &HostOptions { ssd_bytes, ..HostOptions::here(dram_bytes)? })?;
    let mut loads = Vec::with_capacity(count);
    for at in 0..count {
        let client = hosts.get_mut(at).connect("demo")?;
        let pool = client.pool(&load::shape("demo", args.block_bytes))?;
        loads.push(Load::new(client, pool, args.seed)?);
    }
    hosts.until_all_up()?;
    let total: u64 = requests.iter().map(|request| request.ids.len() as u64).sum();
    let mut progress = Progress::new(total);
    ssd_note.iter().for_each(|note| progress.say(note));
    let tier = ssd_bytes.map_or("no SSD".into(), |bytes| format!("{} on SSD", Bytes(bytes)));
    progress.say(&format!(
        "{} requests for {total} blocks of {}, in turn to {count} hosts with {} of DRAM and {tier} each",
        requests.len(),
        Bytes(args.block_bytes),
        Bytes(dram_bytes),
    ));
    let started = Instant::now();
    let (middle, away) = (requests.len() / 2, (requests.len() / AWAY_PART).max(1));
    let (mut before_kill, mut turn) = (Hits::default(), 0);
    for (at, request) in requests.iter().enumerate() {
        stop.check()?;
        if at == middle && count > 1 {
            before_kill = Hits::of(&hosts::status(hosts.get(count - 1))?);
            hosts.get_mut(count - 1).kill_daemon()?;
            progress.say(&format!("kill -9 of the daemon of {}; the others go on", hosts::name(count - 1)));
        }
        if at == middle + away && count > 1 {
            hosts.get_mut(count - 1).start_daemon()?;
            loads[count - 1].until_connected(&stop)?;
            hosts.until_all_up()?;
            progress.say(&format!("{} is back", hosts::name(count - 1)));
        }
        let there = if (middle..middle + away).contains(&at) && count > 1 { count - 1 } else { count };
        turn = (turn + 1) % there;
        loads[turn].request(&request.ids).with_context(|| format!("at {}", hosts::name(turn)))?;
        let done = loads
            .iter()
            .fold((0, 0), |(blocks, hits), load| (blocks + load.counts().blocks, hits + load.counts().hits));
        progress.set(done.0, done.1);
    }
    drop(progress);
    let elapsed = started.elapsed();
    let mut hits =
        (0..count).map(|at| Ok(Hits::of(&hosts::status(hosts.get(at))?))).collect::<anyhow::Result<Vec<_>>>()?;
    hits[count - 1] = hits[count - 1].and(before_kill);
    let counts: Vec<Counts> = loads.iter().map(|load| *load.counts()).collect();
    let wrong_bytes: u64 = counts.iter().map(|counts| counts.wrong_bytes).sum();
    let text = render(&counts, &hits, elapsed.as_secs_f64());
    drop((loads, hosts));
    crate::trace::print(format!("{text}wrong bytes: {wrong_bytes}\n").as_bytes())?;
    anyhow::ensure!(wrong_bytes == 0, "{wrong_bytes} bytes were not those that were put under their keys");
    Ok(())
}

fn render(counts: &[Counts], hits: &[Hits], elapsed_s: f64) -> String {
    let mut text = String::new();
    let mut line = |columns: [String; 7]| {
        let [name, requests, blocks, dram, ssd, peers, missed] = columns;
        writeln!(text, "{name:<8} {requests:>9} {blocks:>9} {dram:>18} {ssd:>18} {peers:>18} {missed:>18}")
            .expect("a String takes everything");
    };
    line(["host", "requests", "blocks", "local DRAM", "local SSD", "peers", "missed"].map(String::from));
    let mut row = |name: String, counts: &Counts, hits: &Hits| {
        let peers = hits.peers.min(counts.hits);
        let ssd = hits.ssd.min(counts.hits - peers);
        let part = |blocks: u64| table::share_short(blocks, counts.blocks);
        line([
            name,
            counts.requests.to_string(),
            counts.blocks.to_string(),
            part(counts.hits - ssd - peers),
            part(ssd),
            part(peers),
            part(counts.blocks - counts.hits),
        ]);
    };
    let (mut all, mut all_hits) = (Counts::default(), Hits::default());
    for (at, (counts, hits)) in counts.iter().zip(hits).enumerate() {
        row(hosts::name(at), counts, hits);
        all.requests += counts.requests;
        all.blocks += counts.blocks;
        all.hits += counts.hits;
        all.refused += counts.refused;
        all_hits = all_hits.and(*hits);
    }
    row("all".into(), &all, &all_hits);
    writeln!(
        text,
        "{elapsed_s:.1} s; {} blocks shown to peers, {} did not come, {} checksum failures, {} puts refused",
        all_hits.lent, all_hits.failed, all_hits.corrupt, all.refused
    )
    .expect("a String takes everything");
    text
}
