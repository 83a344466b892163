//! Which other hosts there are, where etcd knows it: this host is listed there under a lease, and a view of all others is
//! kept. Without etcd the view stays as it was last seen.
//!
//! `machine` decides what to ask next and what answers mean, with the `view` of who is listed; `words` are the requests and
//! answers of etcd's JSON gateway. All three are pure. `client` carries them over HTTP and TLS, `driver` is the thread that
//! runs the machine.

pub mod client;
pub mod driver;
pub mod machine;
pub mod view;
pub mod words;

use std::path::PathBuf;

use lapis_config::{Endpoint, Options, Time};

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

/// What the client must know of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdOptions {
    pub endpoints: Vec<Endpoint>,
    pub authority: Option<PathBuf>,
    /// The certificate that is shown to etcd, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A file with the line USER:PASSWORD.
    pub login: Option<PathBuf>,
}

impl EtcdOptions {
    /// As configured; `None`: hosts are not found by etcd.
    pub fn of(options: &Options) -> Option<Self> {
        (!options.peers_etcd.is_empty()).then(|| Self {
            endpoints: options.peers_etcd.clone(),
            authority: options.peers_etcd_ca.clone(),
            identity: options.peers_etcd_certificate.clone().zip(options.peers_etcd_key.clone()),
            login: options.peers_etcd_login.clone(),
        })
    }
}
