//! What `lapis status` shows of other hosts.

use lapis_config::Time;
use lapis_membership::KnownBy;
use lapis_transport::wire::Wire;
use serde::{Deserialize, Serialize};

use crate::{engine::Engine, movers::Movers};

/// Of one group. All but `hosts` and `membership` counts since the daemon's start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Peers {
    /// As others call this host; empty: it is alone.
    pub host: String,
    pub hosts: Vec<PeerHost>,
    /// How these are known, in words; and for how long they may have changed unseen.
    pub membership: String,
    pub membership_stale_s: f64,
    /// Blocks that came from other hosts, and their bytes.
    pub blocks_read: u64,
    pub bytes_read: u64,
    /// Of these bytes, those that came by RDMA; the others came by TCP.
    pub bytes_read_rdma: u64,
    /// Blocks that another host had shown and that did not come, and those whose bytes were not their own.
    pub blocks_failed: u64,
    pub blocks_corrupt: u64,
    /// Blocks that came after they were looked up in another host's block table, which was not asked.
    pub blocks_looked_up: u64,
    /// Times that something was wanted of others, and those of which nothing came.
    pub wants: u64,
    pub wants_vain: u64,
    /// Blocks that were shown to other hosts, and their bytes.
    pub blocks_lent: u64,
    pub bytes_lent: u64,
    /// What is known of others' blocks takes so much memory.
    pub directory_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerHost {
    pub name: String,
    pub address: String,
    pub is_up: bool,
    /// Why it was lost, or is not to be had.
    pub why_down: Option<String>,
}

impl Peers {
    pub(super) fn of<W: Wire, M: Movers>(engine: &Engine<W, M>, now: Time, index: usize) -> Self {
        let Some(peers) = &engine.peers else { return Self::default() };
        let (own, counts) = (&peers.groups[index], engine.peer_counts(index));
        let host = |(peer, member): (&_, &crate::peers::Member)| PeerHost {
            name: member.name.clone(),
            address: member.address.clone(),
            is_up: own.host.is_up(*peer),
            why_down: own.reasons.get(peer).cloned(),
        };
        Self {
            host: peers.options.host.clone(),
            hosts: own.members.iter().map(host).collect(),
            membership: peers.known_by.text.clone(),
            membership_stale_s: stale_s(&peers.known_by, now),
            blocks_read: counts.blocks_read,
            bytes_read: counts.bytes_read,
            bytes_read_rdma: counts.bytes_read_rdma,
            blocks_failed: counts.blocks_failed,
            blocks_corrupt: counts.blocks_corrupt,
            blocks_looked_up: counts.blocks_looked_up,
            wants: counts.wants,
            wants_vain: counts.wants_vain,
            blocks_lent: counts.blocks_lent,
            bytes_lent: counts.bytes_lent,
            directory_bytes: own.host.directory().bytes(),
        }
    }
}

/// For how long hosts may have come and gone unseen; 0: all is known.
pub(crate) fn stale_s(known_by: &KnownBy, now: Time) -> f64 {
    known_by.stale_since.map_or(0.0, |since| now.since_us(since) as f64 / 1e6)
}
