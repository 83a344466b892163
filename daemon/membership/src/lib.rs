//! Which other hosts there are, where etcd knows it: this host is listed there under a lease, and a view of all others is
//! kept. Without etcd the view stays as it was last seen.
//!
//! `machine` decides what to ask next and what answers mean, with the `view` of who is listed; `words` are the requests and
//! answers of etcd's JSON gateway. All three are pure.

#![forbid(unsafe_code)]

pub mod machine;
pub mod view;
pub mod words;

use lapis_config::Time;

/// How the list of other hosts is known, for whoever looks at the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownBy {
    pub text: String,
    /// Since when it may have changed unseen.
    pub stale_since: Option<Time>,
}

impl KnownBy {
    /// By the configuration alone.
    pub fn list() -> Self {
        Self { text: "a list (peers.members)".into(), stale_since: None }
    }
}
