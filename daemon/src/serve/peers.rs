//! Other hosts of a running daemon: connections and paths as configured, and what etcd or a reload of the configuration
//! changes.

mod others;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use lapis_config::{Effective, Locate, Options, Rdma, Time};
use lapis_transport::{
    peers::{
        asker::{AskerOptions, LocateBy},
        paths::{Paths, both::BothPaths},
        rdma::{NoRdma, RdmaOptions, RdmaPaths},
        streams::{StreamOptions, TcpPaths},
        tcp::{TcpLimits, TcpLinks},
        tls::{Credentials, IdentityFiles},
    },
    unix::UnixWire,
};

use self::others::Others;
use crate::{engine::Engine, movers::Threads, peers::PeersOptions};

/// Reads the configuration once more, as this process was started with it.
pub type Reload = Box<dyn Fn() -> anyhow::Result<Effective>>;

/// What a daemon with peers has beside its engine.
pub(super) struct Peering {
    credentials: Option<Credentials>,
    links: Option<TcpLinks>,
    paths: Option<BothPaths<RdmaPaths, TcpPaths>>,
    options: PeersOptions,
    others: Others,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Peering {
    /// Listens for other hosts; `None`: this host is alone. `boot` is another number in each life of it; `wake` is called
    /// when there is something for the engine.
    pub fn start(options: &Options, boot: u64, wake: Arc<dyn Fn() + Send + Sync>) -> anyhow::Result<Option<Self>> {
        let Some(listen) = options.peers_listen else { return Ok(None) };
        let files = IdentityFiles::of(options);
        let credentials = files.map(|files| Credentials::load(&files, &options.peers_host)).transpose();
        let credentials = credentials.context("load the certificates of this host (peers.*)")?;
        let streams = StreamOptions {
            listen: Some(data_address(options, listen)),
            streams: options.peers_streams as usize,
            ..StreamOptions::default()
        };
        let streams = TcpPaths::new(streams, Arc::clone(&wake)).context("listen for streams of blocks")?;
        let paths = BothPaths::new(rdma(options, Arc::clone(&wake)), streams);
        let links = TcpLinks::start(listen, credentials.clone(), TcpLimits::default(), Arc::clone(&wake))
            .context("listen for other hosts")?;
        let others = Others::new(options, links.local_addr(), boot)?;
        let data_port = paths.data_port();
        tracing::info!(host = options.peers_host, listen = %links.local_addr(), data_port, "reachable by other hosts");
        let options = PeersOptions {
            host: options.peers_host.clone(),
            members: others.members(),
            hosts_are_found: others.are_found(),
            may_ask: may_ask(options),
            data_port,
            asker: AskerOptions { locate: locate_by(options), ..AskerOptions::default() },
        };
        Ok(Some(Self { credentials, links: Some(links), paths: Some(paths), options, others, wake }))
    }

    /// Before the engine's first turn.
    pub fn join(&mut self, now: Time, engine: &mut Engine<UnixWire, Threads>) -> anyhow::Result<()> {
        let (links, paths) = (self.links.take(), self.paths.take());
        let (links, paths) = (links.expect("joined once"), paths.expect("joined once"));
        engine.movers_mut().set_paths(Box::new(paths));
        engine.join_peers(now, self.options.clone(), Box::new(links));
        engine.set_known_by(self.others.known_by());
        self.others.ask(Arc::clone(&self.wake))
    }

    /// What etcd has said since the last turn.
    pub fn tend(&mut self, now: Time, engine: &mut Engine<UnixWire, Threads>) {
        if self.others.take_news() {
            engine.set_members(now, self.others.members());
            engine.set_known_by(self.others.known_by());
        }
    }

    /// Members and certificates as the configuration has them now. What cannot be used is said, and what was before goes on.
    pub fn reload(&mut self, now: Time, engine: &mut Engine<UnixWire, Threads>, reload: &Reload) {
        let effective = match reload() {
            Ok(effective) => effective,
            Err(error) => return tracing::error!("the configuration is not reloaded: {error:#}"),
        };
        if let (Some(credentials), Some(files)) = (&self.credentials, IdentityFiles::of(&effective.options)) {
            match credentials.reload(&files) {
                Ok(()) => tracing::info!("certificates are reloaded: new connections use them"),
                Err(error) => tracing::error!(%error, "the former certificates stay in use"),
            }
        }
        self.others.reload(&effective.options);
        let members = self.others.members();
        tracing::info!(members = members.len(), "reloaded the list of other hosts");
        engine.set_members(now, members);
        engine.set_known_by(self.others.known_by());
    }
}

/// `None`: all blocks go by TCP.
fn rdma(options: &Options, wake: Arc<dyn Fn() + Send + Sync>) -> Option<RdmaPaths> {
    if options.peers_rdma == Rdma::Off {
        return None;
    }
    if options.peers_encrypt_blocks {
        tracing::info!("blocks go by TCP: RDMA does not encrypt them (peers.encrypt_blocks)");
        return None;
    }
    let devices = options.peers_rdma_devices.clone();
    let is_asked_for = !devices.is_empty();
    match RdmaPaths::start(&RdmaOptions { devices }, wake) {
        Ok(paths) => return Some(paths),
        Err(error @ NoRdma::NoDevice) if !is_asked_for => tracing::info!("blocks go by TCP: {error}"),
        Err(error) => tracing::warn!("no RDMA, blocks go by TCP (`lapis doctor` says more): {error}"),
    }
    None
}

fn locate_by(options: &Options) -> LocateBy {
    match options.peers_locate {
        Locate::Asked => LocateBy::Asked,
        Locate::OneSided => LocateBy::OneSided,
    }
}

fn may_ask(options: &Options) -> Vec<Vec<String>> {
    options.groups.iter().map(|group| group.peers.clone()).collect()
}

/// Beside the connections, at the next port.
fn data_address(options: &Options, listen: SocketAddr) -> SocketAddr {
    let port = match (options.peers_data_port, listen.port()) {
        (0, 0) => 0,
        (0, port) => port.checked_add(1).unwrap_or(0),
        (port, _) => port as u16,
    };
    SocketAddr::new(listen.ip(), port)
}
