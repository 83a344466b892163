//! What the demo and its client processes say to each other: a line of JSON each, answered in turn. Pure.

use serde::{Deserialize, Serialize};

/// What a process is told when it is started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Role {
    /// Says which GPUs there are.
    Probe,
    /// A client on one of them.
    Client { socket: String, device: u16, name: String },
}

/// A GPU as the driver of a process shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Device {
    pub name: String,
    pub uuid: String,
    pub free_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Requests as an engine has them: get the longest prefix, put the rest.
    Replay(Vec<Vec<u64>>),
    /// Gets alone, of runs of blocks that hang together.
    Read(Vec<Vec<u64>>),
    /// Begins gets and does not wait for their copies.
    Hold(Vec<u64>),
    /// Answered when the daemon serves this client.
    Connected,
}

/// What came of an order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub requests: u64,
    pub blocks: u64,
    pub hits: u64,
    /// Of the hits, by where the block was when it was asked for: on the client's GPU, on another one, in DRAM, on SSD alone.
    pub hits_hbm: u64,
    pub hits_other: u64,
    pub hits_dram: u64,
    pub hits_ssd: u64,
    /// Found, and not to be had: it went in between.
    pub lost: u64,
    pub stored: u64,
    pub existed: u64,
    pub refused: u64,
    /// Gets whose copies had not ended when the answer was given.
    pub under_way: u64,
    pub wrong_bytes: u64,
}

impl Seen {
    pub fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        self.blocks += more.blocks;
        self.hits += more.hits;
        self.hits_hbm += more.hits_hbm;
        self.hits_other += more.hits_other;
        self.hits_dram += more.hits_dram;
        self.hits_ssd += more.hits_ssd;
        self.lost += more.lost;
        self.stored += more.stored;
        self.existed += more.existed;
        self.refused += more.refused;
        self.under_way += more.under_way;
        self.wrong_bytes += more.wrong_bytes;
    }
}
