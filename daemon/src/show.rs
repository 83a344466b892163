//! `lapis status` and `lapis drain`: ask the daemon on a group's socket and print what it says.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use lapis::{
    engine::DrainReport,
    status::{Device, Gpu, Hbm, Peers, Ssd, Status},
};
use lapis_config::{LoadInput, Options};

/// A daemon answers within a turn of its loop.
const ANSWER_MAX: Duration = Duration::from_secs(2);

pub fn run(socket: Option<PathBuf>, json: bool) -> anyhow::Result<()> {
    let socket = socket_or_default(socket)?;
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

/// `lapis drain`: waits until the daemon has handed over what it could.
pub fn drain(socket: Option<PathBuf>, within: Duration) -> anyhow::Result<()> {
    let socket = socket_or_default(socket)?;
    let text = lapis_client::drain(&socket, within)
        .with_context(|| format!("drain the daemon on {} (choose another with --socket)", socket.display()))?;
    let report: DrainReport = serde_json::from_str(&text).context("read the daemon's answer")?;
    println!(
        "{} blocks in memory: {} moved to other hosts, {} were there already, {} are only here; {:.1} s",
        report.blocks, report.moved, report.there, report.left, report.seconds
    );
    Ok(())
}

fn socket_or_default(socket: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    match socket {
        Some(socket) => Ok(socket),
        None => Ok(Options::load(&LoadInput::here(None, Vec::new()))?.options.groups[0].socket.clone()),
    }
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
            "{} of {} asked keys ({:.1} %), {}; {} in DRAM, {} from GPUs, {} from SSD, {} from peers",
            hits.keys_hit,
            hits.keys_asked,
            100.0 * hits.rate,
            size(hits.bytes_hit),
            hits.keys_hit_dram,
            hits.keys_hit_hbm,
            hits.keys_hit_ssd,
            hits.keys_hit_peers
        ),
    );
    line("puts", format!("{} stored, {} existed, {} refused", puts.stored, puts.existed, puts.refused));
    for gpu in &status.gpus {
        line("gpu", gpu_line(gpu));
    }
    if let Some(hbm) = &status.hbm {
        line("on gpus", hbm_line(hbm));
    }
    for (name, text) in ssd_lines(&status.ssd) {
        line(name, text);
    }
    for (name, text) in peers_lines(&status.peers) {
        line(name, text);
    }
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

/// Of other hosts: a name and a text each.
fn peers_lines(peers: &Peers) -> Vec<(&'static str, String)> {
    if peers.host.is_empty() {
        return vec![("peers", "none (peers.listen)".into())];
    }
    let up = peers.hosts.iter().filter(|host| host.is_up).count();
    let mut lines = vec![
        (
            "peers",
            format!(
                "{up} of {} there, this is {:?}; {} of {} wants in vain, {} for what they have",
                peers.hosts.len(),
                peers.host,
                peers.wants_vain,
                peers.wants,
                size(peers.directory_bytes)
            ),
        ),
        (
            "from peers",
            format!(
                "{} blocks read, {} ({} by RDMA), {} of them looked up; {} did not come, {} checksum failures",
                peers.blocks_read,
                size(peers.bytes_read),
                size(peers.bytes_read_rdma),
                peers.blocks_looked_up,
                peers.blocks_failed,
                peers.blocks_corrupt
            ),
        ),
        ("membership", membership(peers)),
        ("to peers", format!("{} blocks shown, {}", peers.blocks_lent, size(peers.bytes_lent))),
    ];
    lines.extend(peers.hosts.iter().map(|host| {
        let state = match (&host.why_down, host.is_up) {
            (_, true) => "there".into(),
            (Some(why), false) => format!("not there: {why}"),
            (None, false) => "not there yet".into(),
        };
        ("peer", format!("{} at {}: {state}", host.name, host.address))
    }));
    lines
}

/// How the other hosts are known.
fn membership(peers: &Peers) -> String {
    match peers.membership_stale_s {
        0.0 => peers.membership.clone(),
        stale_s => format!("stale for {stale_s:.1} s: {}", peers.membership),
    }
}

fn gpu_line(gpu: &Gpu) -> String {
    let state = match &gpu.why_lost {
        Some(why) => format!("lost: {why}"),
        None => gpu.state.clone(),
    };
    let kept = if gpu.kept { "by descriptors" } else { "by CUDA IPC" };
    let mut text = format!(
        "{} {} at {}: {state}, {}, {kept}, {}",
        gpu.index,
        gpu.uuid,
        gpu.pci_bus_id,
        size(gpu.bytes),
        gpu.start
    );
    if let Some(held) = &gpu.held {
        text += &format!("; {} blocks, {} used", held.blocks, size(held.used_bytes));
    }
    if let Some(load) = &gpu.load {
        text += &format!(
            "; {} in, {} out, {} across, {} copies in flight, {} failed; {} of DRAM registered",
            size(load.bytes_in),
            size(load.bytes_out),
            size(load.bytes_across),
            load.copies_in_flight,
            load.errors,
            size(load.registered_bytes)
        );
    }
    text
}

fn hbm_line(hbm: &Hbm) -> String {
    format!(
        "{} promoted, {} put, {} evicted; {} left DRAM for GPUs alone, {} came back; {} copies failed, {} blocks lost",
        hbm.promotions, hbm.puts, hbm.evictions, hbm.demotions, hbm.saved, hbm.copy_failures, hbm.lost_blocks
    )
}

/// Of the SSD tier: a name and a text each.
fn ssd_lines(ssd: &Ssd) -> Vec<(&'static str, String)> {
    match ssd.state.as_str() {
        "none" => return vec![("ssd", "none (ssd.paths)".into())],
        "off" => return vec![("ssd", format!("off: {}", ssd.why_off.as_deref().unwrap_or("for no known reason")))],
        _ => {}
    }
    let recovery = match ssd.recovery_s {
        Some(seconds) => format!("; {} found at the start, in {seconds:.2} s", ssd.recovered_blocks),
        None if ssd.state == "serving" => format!("; {} found at the start", ssd.recovered_blocks),
        None => "; former starts' blocks are being looked for".into(),
    };
    let budget = match ssd.write_budget {
        None => "unlimited".into(),
        Some(budget) => format!(
            "{} a day, {} spent, {}{} left; {} full blocks declined",
            size(budget.bytes_a_day),
            size(budget.spent_bytes),
            if budget.available_bytes < 0 { "-" } else { "" },
            size(budget.available_bytes.unsigned_abs()),
            budget.declined_blocks
        ),
    };
    let mut lines = vec![
        ("ssd", format!("{}, {} blocks, {}{recovery}", ssd.state, ssd.blocks, size(ssd.used_bytes))),
        (
            "blocks",
            format!(
                "{} on SSD alone, {} on SSD and in DRAM, {} in DRAM alone",
                ssd.blocks_ssd_only, ssd.blocks_both, ssd.blocks_dram_only
            ),
        ),
        (
            "ssd writes",
            format!(
                "{} admitted, {} written anew, {} to devices: {:.3} for each admitted",
                size(ssd.admitted_bytes),
                size(ssd.readmitted_bytes),
                size(ssd.device_written_bytes),
                ssd.write_amplification
            ),
        ),
        ("budget", budget),
        (
            "moved",
            format!(
                "{} demoted, {} promoted, {} left SSD with {} segments",
                ssd.demotions, ssd.promotions, ssd.evictions, ssd.segments_retired
            ),
        ),
        (
            "ssd faults",
            format!(
                "{} reads failed, {} writes failed, {} checksum failures, {} records passed over",
                ssd.read_failures, ssd.write_failures, ssd.checksum_failures, ssd.passed_over
            ),
        ),
    ];
    lines.extend(ssd.devices.iter().map(|device| ("device", device_line(device))));
    lines
}

fn device_line(device: &Device) -> String {
    let engine = device.engine.as_deref().unwrap_or("not open");
    let (path, state) = (&device.path, &device.state);
    let mut text = format!("{path}: {state}, {engine}, {}", size(device.bytes));
    if let Some(load) = &device.load {
        text += &format!(
            ", {} in flight, {} segments used, {} free; {} read, {} written",
            load.operations_in_flight,
            load.segments_used,
            load.segments_free,
            size(load.read_bytes),
            size(load.written_bytes)
        );
    }
    if let Some(why) = &device.engine_why {
        text += &format!("; {why}");
    }
    text
}
