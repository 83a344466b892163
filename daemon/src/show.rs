//! `lapis status`: asks the daemon on a group's socket and prints what it says.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use lapis::status::Status;
use lapis_config::{LoadInput, Options};

/// A daemon answers within a turn of its loop.
const ANSWER_MAX: Duration = Duration::from_secs(2);

pub fn run(socket: Option<PathBuf>, json: bool) -> anyhow::Result<()> {
    let socket = match socket {
        Some(socket) => socket,
        None => Options::load(&LoadInput::here(None, Vec::new()))?.options.groups[0].socket.clone(),
    };
    let text = lapis_client::status(&socket, ANSWER_MAX)
        .with_context(|| format!("ask the daemon on {} (choose another with --socket)", socket.display()))?;
    if json {
        println!("{text}");
        return Ok(());
    }
    let status: Status = serde_json::from_str(&text).context("read the daemon's answer")?;
    print!("{}", render(&status));
    Ok(())
}

/// To a hundredth of GiB, or of MiB where that is less.
fn size(bytes: u64) -> String {
    let (unit, name) = if bytes >= 1 << 30 { (1u64 << 30, "GiB") } else { (1 << 20, "MiB") };
    format!("{:.2} {name}", bytes as f64 / unit as f64)
}

fn render(status: &Status) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let (dram, hits, puts) = (&status.dram, &status.hits, &status.puts);
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:10} {text}");
    };
    let state = match (status.adopting, status.draining) {
        (true, _) => "taking over the former daemon's blocks",
        (_, true) => "draining",
        _ => "serving",
    };
    line(
        "daemon",
        format!(
            "lapis {}, {state}, up {:.1} s, start {} ({})",
            status.version, status.uptime_s, status.boots, status.start
        ),
    );
    line("group", status.group.clone());
    line(
        "dram",
        format!(
            "{} of {} used, {} populated; {} blocks in {} lines",
            size(dram.used_bytes),
            size(dram.bytes),
            size(dram.populated_bytes),
            dram.blocks,
            dram.lines
        ),
    );
    line(
        "slots",
        format!("{} free, {} granted to clients, {} aside", dram.slots_free, dram.slots_granted, dram.slots_aside),
    );
    line(
        "since table",
        format!(
            "{} evictions, {} slabs moved, {} verified, {} checksum failures",
            dram.evictions, dram.slabs_moved, dram.verified, dram.checksum_failures
        ),
    );
    line(
        "hits",
        format!(
            "{} of {} asked keys ({:.1} %), {}",
            hits.keys_hit,
            hits.keys_asked,
            100.0 * hits.rate,
            size(hits.bytes_hit)
        ),
    );
    line("puts", format!("{} stored, {} existed, {} refused", puts.stored, puts.existed, puts.refused));
    for pool in &status.pools {
        line(
            "pool",
            format!(
                "{} {:?}: {} of {} B, {} blocks, {} slabs",
                pool.id, pool.label, pool.kind, pool.block_bytes, pool.blocks, pool.slabs
            ),
        );
    }
    for client in &status.clients {
        let state = if client.connected { "connected" } else { "awaited" };
        line(
            "client",
            format!(
                "{} {:?}: pid {}, uid {}, {state}, {} of {} keys hit",
                client.id, client.name, client.pid, client.uid, client.keys_hit, client.keys_asked
            ),
        );
    }
    out
}
