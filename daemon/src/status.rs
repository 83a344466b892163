//! What `lapis status` shows of one group, as JSON; and the sums over all groups for the metrics.

mod gpus;
mod peers;
mod ssd;

use lapis_config::{PoolKind, Time};
use lapis_membership::KnownBy;
use lapis_tiering::face::Counts;
use lapis_transport::{control::Counters, wire::Wire};
use serde::{Deserialize, Serialize};

use crate::{engine::Engine, group::Group, movers::Movers, peers::PeerCounts};

pub use gpus::{Gpu, GpuHeld, GpuLoad, Hbm};
pub use peers::{PeerHost, Peers};
pub use ssd::{Device, DeviceTotals, Load, Ssd, SsdTotals};

/// Index bytes that every line takes: table 64, entry 32, sibling links 8, a count of keys at their second home 1.
const LINE_BYTES: u64 = 64 + 32 + 8 + 1;
/// And where the group uses GPUs: its place in the device table.
const DEVICE_LINE_BYTES: u64 = 16;
/// Of every slot, its state.
const SLOT_BYTES: u64 = 8;

/// The document on a group's socket. Only of that group: nothing here tells of another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub group: String,
    /// How the group began: "fresh", "warm", or "cold: " and why.
    pub start: String,
    /// Blocks of the former daemon are still being taken over.
    pub adopting: bool,
    pub draining: bool,
    pub uptime_s: f64,
    /// Starts of a daemon on this table, this one included.
    pub boots: u64,
    pub dram: Dram,
    /// Of the HBM tier; none where `hbm.bytes` is 0.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// `None` where the group uses no GPU.
    #[serde(default)]
    pub hbm: Option<Hbm>,
    pub ssd: Ssd,
    pub peers: Peers,
    pub hits: Hits,
    pub puts: Puts,
    pub pools: Vec<Pool>,
    pub clients: Vec<Client>,
    /// Index memory per block that is stored: table lines, private entries and slot states, slack included.
    pub index_bytes_per_block: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Dram {
    pub bytes: u64,
    pub populated_bytes: u64,
    pub used_bytes: u64,
    pub blocks: u64,
    pub lines: u64,
    pub slots_free: u64,
    pub slots_granted: u64,
    pub slots_aside: u64,
    pub evictions: u64,
    pub slabs_moved: u64,
    pub verified: u64,
    pub checksum_failures: u64,
}

/// As reported by clients, former ones included. `asked` counts every key of every look-up.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Hits {
    pub keys_asked: u64,
    pub keys_hit: u64,
    pub bytes_hit: u64,
    /// Of `keys_hit`: those that this daemon read from SSD and from other hosts for who waited, those in the memory of GPUs
    /// (read there by clients, or by the daemon for who waited), and the others, read ahead of the asking too.
    pub keys_hit_ssd: u64,
    #[serde(default)]
    pub keys_hit_hbm: u64,
    pub keys_hit_peers: u64,
    pub keys_hit_dram: u64,
    /// `keys_hit / keys_asked`, 0 if nothing was asked.
    pub rate: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Puts {
    pub stored: u64,
    pub existed: u64,
    pub refused: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pool {
    pub id: u16,
    pub label: String,
    pub kind: String,
    pub block_bytes: u64,
    pub blocks: u64,
    pub slabs: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Client {
    pub id: u32,
    pub name: String,
    pub pid: u32,
    pub uid: u32,
    pub connected: bool,
    pub may_put: bool,
    pub keys_asked: u64,
    pub keys_hit: u64,
}

/// Sums over all groups.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub core: Counts,
    pub asked: u64,
    pub hit: u64,
    /// Of `hit`: in the memory of GPUs.
    pub hit_hbm: u64,
    pub bytes_hit: u64,
    pub clients: u64,
    pub dram_bytes: u64,
    pub populated_bytes: u64,
    pub ssd: SsdTotals,
    pub peers: PeerCounts,
    /// With their load.
    pub gpus: Vec<Gpu>,
    known_by: KnownBy,
}

impl Totals {
    pub fn of<W: Wire, M: Movers>(engine: &Engine<W, M>, now: Time) -> Self {
        let known_by = engine.peers.as_ref().map(|peers| peers.known_by.clone()).unwrap_or_default();
        let mut totals =
            Self { ssd: SsdTotals::of(engine), gpus: gpus::totals(engine, now), known_by, ..Self::default() };
        for (index, group) in engine.groups().iter().enumerate() {
            let (core, hits) = (group.core.counts(), hits(engine, index));
            totals.peers.add(&engine.peer_counts(index));
            totals.core.blocks += core.blocks;
            totals.core.evictions += core.evictions;
            totals.core.puts_stored += core.puts_stored;
            totals.core.puts_exists += core.puts_exists;
            totals.core.puts_refused += core.puts_refused;
            totals.core.slots_granted += core.slots_granted;
            totals.core.slots_aside += core.slots_aside;
            totals.core.bytes_used += core.bytes_used;
            totals.core.slabs_moved += core.slabs_moved;
            totals.core.verified += core.verified;
            totals.core.corrupt += core.corrupt;
            ssd::add(&mut totals.core, &core);
            gpus::add(&mut totals.core, &core);
            totals.asked += hits.keys_asked;
            totals.hit += hits.keys_hit;
            totals.hit_hbm += hit_hbm(&core, &reported(group));
            totals.bytes_hit += hits.bytes_hit;
            totals.clients += group.clients.values().filter(|client| client.connected).count() as u64;
            totals.dram_bytes += group.space.bytes();
            totals.populated_bytes += populated(group);
        }
        totals
    }
}

impl Totals {
    /// For how long other hosts may have come and gone unseen.
    pub fn membership_stale_s(&self, now: Time) -> f64 {
        peers::stale_s(&self.known_by, now)
    }
}

fn populated(group: &Group) -> u64 {
    group.extents.iter().map(|extent| extent.populated_bytes).sum()
}

fn hits<W: Wire, M: Movers>(engine: &Engine<W, M>, index: usize) -> Hits {
    let group = &engine.groups()[index];
    let (core, sum) = (group.core.counts(), reported(group));
    let rate = if sum.asked == 0 { 0.0 } else { sum.hit as f64 / sum.asked as f64 };
    let keys_hit_ssd = core.ssd_hits.min(sum.hit);
    let keys_hit_hbm = hit_hbm(&core, &sum).min(sum.hit - keys_hit_ssd);
    let keys_hit_peers = engine.peer_counts(index).blocks_hit.min(sum.hit - keys_hit_ssd - keys_hit_hbm);
    Hits {
        keys_asked: sum.asked,
        keys_hit: sum.hit,
        bytes_hit: sum.bytes,
        keys_hit_ssd,
        keys_hit_hbm,
        keys_hit_peers,
        keys_hit_dram: sum.hit - keys_hit_ssd - keys_hit_hbm - keys_hit_peers,
        rate,
    }
}

/// Adds what a client that ends had reported to its group's sums.
pub(crate) fn keep_counters(former: &mut Counters, last: Counters) {
    former.asked = former.asked.saturating_add(last.asked);
    former.hit = former.hit.saturating_add(last.hit);
    former.bytes = former.bytes.saturating_add(last.bytes);
    former.hit_hbm = former.hit_hbm.saturating_add(last.hit_hbm);
}

/// What a group's clients reported, former ones included.
fn reported(group: &Group) -> Counters {
    let mut sum = group.counters_former;
    group.clients.values().for_each(|client| keep_counters(&mut sum, client.control.counters()));
    sum
}

/// Hits in the memory of GPUs: those that clients read there, and those that were waited for.
fn hit_hbm(core: &Counts, reported: &Counters) -> u64 {
    reported.hit_hbm.saturating_add(core.hbm_hits)
}

impl Status {
    pub fn of<W: Wire, M: Movers>(engine: &Engine<W, M>, now: Time, index: usize) -> Self {
        let group = &engine.groups()[index];
        let counts = group.core.counts();
        let lines = group.options.geometry.lines;
        let slots = counts.slots_free + counts.slots_granted + counts.slots_aside + counts.slots_used;
        let index_bytes = index_bytes(lines, slots, gpus::slots(engine, index));
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            group: group.options.name.clone(),
            start: group.start.to_string(),
            adopting: group.adoption.is_some(),
            draining: engine.draining,
            uptime_s: now.since_us(engine.started) as f64 / 1e6,
            boots: group.core.kept().state.boots(),
            dram: Dram {
                bytes: group.space.bytes(),
                populated_bytes: populated(group),
                used_bytes: counts.bytes_used,
                blocks: counts.blocks,
                lines,
                slots_free: counts.slots_free,
                slots_granted: counts.slots_granted,
                slots_aside: counts.slots_aside,
                evictions: counts.evictions,
                slabs_moved: counts.slabs_moved,
                verified: counts.verified,
                checksum_failures: counts.corrupt,
            },
            gpus: gpus::of_group(engine, now, index),
            hbm: group.devices_fd.is_some().then(|| Hbm::of(&counts)),
            ssd: Ssd::of(engine, index),
            peers: Peers::of(engine, now, index),
            hits: hits(engine, index),
            puts: Puts { stored: counts.puts_stored, existed: counts.puts_exists, refused: counts.puts_refused },
            pools: group
                .shapes
                .iter()
                .map(|(id, (shape, _))| {
                    let pool = group.core.pool_counts(*id);
                    Pool {
                        id: id.0,
                        label: shape.label.clone(),
                        kind: match shape.kind {
                            PoolKind::Chain => "chain".into(),
                            PoolKind::Object => "object".into(),
                        },
                        block_bytes: shape.block_bytes,
                        blocks: pool.blocks,
                        slabs: pool.slabs,
                    }
                })
                .collect(),
            clients: group
                .clients
                .values()
                .map(|client| {
                    let counters = client.control.counters();
                    Client {
                        id: client.id.0,
                        name: client.name.clone(),
                        pid: client.peer.pid,
                        uid: client.peer.uid,
                        connected: client.connected,
                        may_put: client.may_put,
                        keys_asked: counters.asked,
                        keys_hit: counters.hit,
                    }
                })
                .collect(),
            index_bytes_per_block: if counts.blocks == 0 { 0.0 } else { index_bytes as f64 / counts.blocks as f64 },
        }
    }
}

/// `slots_gpu`: of all GPUs, where the group uses them.
fn index_bytes(lines: u64, slots: u64, slots_gpu: Option<u64>) -> u64 {
    let own = lines * LINE_BYTES + slots * SLOT_BYTES + (lines + slots) / 8;
    // A byte a line, too: when it was read into a GPU.
    let of_gpus = |slots| lines * (DEVICE_LINE_BYTES + 1) + slots * SLOT_BYTES;
    own + slots_gpu.map_or(0, of_gpus)
}

pub(crate) fn json<W: Wire, M: Movers>(engine: &Engine<W, M>, now: Time, index: usize) -> String {
    serde_json::to_string(&Status::of(engine, now, index)).expect("plain data has a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_a_group_that_uses_gpus_has_a_place_in_the_device_table_for_each_line() {
        assert_eq!(index_bytes(1000, 80, None), 1000 * 105 + 80 * 8 + 135);
        let more = |slots_gpu| index_bytes(1000, 80, Some(slots_gpu)) - index_bytes(1000, 80, None);
        assert_eq!((more(0), more(40) - more(0)), (1000 * 17, 40 * 8));
        assert_eq!(DEVICE_LINE_BYTES, lapis_arena::device::bytes_for(2) - lapis_arena::device::bytes_for(1));
    }
}
