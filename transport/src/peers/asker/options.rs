//! How a peer is asked.

use std::time::Duration;

/// How it is found out where a peer's blocks lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocateBy {
    /// The peer is asked: what it finds stays there while it is read, and counts as used there.
    #[default]
    Asked,
    /// Chains are looked up in the peer's block table first, where that can be read; it is asked for what was not found so.
    OneSided,
}

#[derive(Clone, Copy, Debug)]
pub struct AskerOptions {
    /// For a connection to be made and greeted.
    pub greeting: Duration,
    /// A connection on which nothing came for so long is asked for a sign.
    pub quiet: Duration,
    /// Without a sign for so long after that, it is dead.
    pub patience: Duration,
    /// Pauses before a peer is dialled again: the first, doubled up to the last.
    pub pause_min: Duration,
    pub pause_max: Duration,
    /// So many calls in a row that end at their deadlines, and the peer is not asked for a pause.
    pub failures_max: u32,
    /// Calls under way, also where the peer allows more.
    pub calls_max: u32,
    pub locate: LocateBy,
}

impl Default for AskerOptions {
    fn default() -> Self {
        Self {
            greeting: Duration::from_secs(2),
            quiet: Duration::from_millis(500),
            patience: Duration::from_secs(1),
            pause_min: Duration::from_millis(100),
            pause_max: Duration::from_secs(10),
            failures_max: 3,
            calls_max: 256,
            locate: LocateBy::Asked,
        }
    }
}
