//! Several hosts on this machine: daemons that are each other's peers, each at a loopback address of its own.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::host::{Host, HostOptions};

/// Most hosts: the last byte of their addresses.
pub const HOSTS_MAX: usize = 64;

const PORT: u16 = 7450;
const STATUS_WITHIN: Duration = Duration::from_secs(10);

/// Running hosts that know each other.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
}

impl Hosts {
    /// Starts so many hosts, each with these options and its own folder.
    pub fn start(count: usize, options: &HostOptions) -> anyhow::Result<Self> {
        Self::start_each(count, |_| options.clone())
    }

    /// The same, each with its own options.
    pub fn start_each(count: usize, options: impl Fn(usize) -> HostOptions) -> anyhow::Result<Self> {
        ensure!((1..=HOSTS_MAX).contains(&count), "{count} hosts: 1 to {HOSTS_MAX}");
        let addresses = free_addresses(count)?;
        let members: Vec<String> = (0..count).map(|at| format!("{}={}", name(at), addresses[at])).collect();
        let start = |at: usize| {
            let own = ["--peers-listen".into(), addresses[at].to_string(), "--peers-host".into(), name(at)];
            let all = ["--peers-members".into(), members.join(",")];
            let options = options(at);
            let flags = options.flags.iter().cloned().chain(own).chain(all).collect();
            Host::start(HostOptions { flags, ..options }).with_context(|| format!("start {}", name(at)))
        };
        Ok(Self { hosts: (0..count).map(start).collect::<anyhow::Result<_>>()? })
    }

    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    pub fn get(&self, at: usize) -> &Host {
        &self.hosts[at]
    }

    pub fn get_mut(&mut self, at: usize) -> &mut Host {
        &mut self.hosts[at]
    }

    /// Waits until a host can ask so many others.
    pub fn until_up(&mut self, at: usize, peers: usize) -> anyhow::Result<()> {
        self.hosts[at].until("its peers", |host| {
            let Ok(status) = status(host) else { return Ok(None) };
            let hosts = status.pointer("/peers/hosts").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let up = hosts.iter().filter(|peer| peer.pointer("/is_up").and_then(Value::as_bool) == Some(true)).count();
            Ok((up >= peers).then_some(()))
        })
    }

    /// Waits until all know all.
    pub fn until_all_up(&mut self) -> anyhow::Result<()> {
        let peers = self.hosts.len() - 1;
        (0..self.hosts.len()).try_for_each(|at| self.until_up(at, peers))
    }
}

/// As the others call it.
pub fn name(at: usize) -> String {
    format!("host-{}", at + 1)
}

/// What a daemon says of itself.
pub fn status(host: &Host) -> anyhow::Result<Value> {
    let text = lapis_client::status(host.socket(), STATUS_WITHIN).context("ask for the daemon's status")?;
    serde_json::from_str(&text).context("read the daemon's status")
}

/// Loopback addresses, one a host, at which nobody listens, nor at the next port.
pub fn free_addresses(count: usize) -> anyhow::Result<Vec<SocketAddrV4>> {
    let mut random = fastrand::Rng::new();
    for _ in 0..64 {
        let network = [random.u8(1..255), random.u8(1..255)];
        let address = |at: usize| Ipv4Addr::new(127, network[0], network[1], at as u8 + 1);
        let is_free = |at: usize| {
            [PORT, PORT + 1].iter().all(|port| TcpListener::bind(SocketAddrV4::new(address(at), *port)).is_ok())
        };
        if (0..count).all(is_free) {
            return Ok((0..count).map(|at| SocketAddrV4::new(address(at), PORT)).collect());
        }
    }
    anyhow::bail!("no loopback addresses with free ports {PORT} and {}", PORT + 1)
}
