//! Which other hosts there are, where etcd knows it: this host is listed there under a lease, and a view of all others is
//! kept. Without etcd the view stays as it was last seen.
//!
//! `lapis_membership` decides what to ask next and what answers mean. `client` carries requests and answers over HTTP and TLS,
//! `driver` is the thread that runs the machine.

pub mod client;
pub mod driver;

use std::path::PathBuf;

use lapis_config::{Endpoint, Options};

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
