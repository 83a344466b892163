//! Whether hosts can find each other in etcd, as it is configured. Decides without I/O.

use std::net::{IpAddr, SocketAddr};

use crate::load::Loading;
use crate::mistake::Mistake;
use crate::options::Options;
use crate::units::Endpoint;

pub(super) const ETCD: &str = "peers.etcd";
const ADVERTISE: &str = "peers.advertise";
const CA: &str = "peers.etcd_ca";
const CERTIFICATE: &str = "peers.etcd_certificate";
const KEY: &str = "peers.etcd_key";

/// What is used of `peers.etcd_*` and `peers.advertise` is only used with endpoints.
pub(super) fn etcd(loading: &mut Loading) {
    if loading.is_broken(ETCD) {
        return;
    }
    if loading.options.peers_etcd.is_empty() {
        return unused(loading);
    }
    advertise(loading);
    tls(loading);
    login(loading);
}

fn unused(loading: &mut Loading) {
    let is_unused =
        |name: &&str| (*name == ADVERTISE || name.starts_with("peers.etcd_")) && loading.sources.contains_key(*name);
    let unused: Vec<&str> = Options::DEFINITIONS.iter().map(|d| d.name).filter(is_unused).collect();
    if !unused.is_empty() {
        loading.notes.push(format!("{}: not used without {ETCD}", unused.join(", ")));
    }
}

/// Others are told where this host is, so it must be somewhere.
fn advertise(loading: &mut Loading) {
    if loading.is_broken(ADVERTISE) {
        return;
    }
    let options = &mut loading.options;
    let listen = options.peers_listen.expect("the caller looked");
    if options.peers_advertise.is_empty() {
        // Of a link alone, as fe80::1%2, is also none: the name of the link is this host's own.
        if listen.ip().is_unspecified() || matches!(listen, SocketAddr::V6(v6) if v6.scope_id() != 0) {
            let mistake = Mistake::NotAdvertised { listen: listen.to_string() };
            return loading.wrong(loading.source(ADVERTISE), ADVERTISE, mistake);
        }
        // Port 0 stands for one that is known only once it is listened on.
        if listen.port() != 0 {
            options.peers_advertise = listen.to_string();
        }
        return;
    }
    let address = options.peers_advertise.clone();
    let (host, _) = address.rsplit_once(':').expect("an address has a port");
    let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    if ip.is_some_and(|ip| ip.is_unspecified()) {
        loading.wrong(loading.source(ADVERTISE), ADVERTISE, Mistake::AdvertisedToNobody { address });
    } else if listen.ip().is_loopback() && !ip.is_some_and(|ip| ip.is_loopback()) {
        loading
            .notes
            .push(format!("peers.advertise is {address}, but peers.listen is {listen}, for this machine alone"));
    }
}

fn tls(loading: &mut Loading) {
    if [CA, CERTIFICATE, KEY].iter().any(|name| loading.is_broken(name)) {
        return;
    }
    let options = &loading.options;
    let first = &options.peers_etcd[0];
    let files =
        [(CA, &options.peers_etcd_ca), (CERTIFICATE, &options.peers_etcd_certificate), (KEY, &options.peers_etcd_key)];
    let given: Vec<&str> = files.iter().filter(|(_, file)| file.is_some()).map(|(name, _)| *name).collect();
    let has = |name| given.contains(&name);
    let (name, mistake) = match (first.is_https, given.first()) {
        (false, Some(&name)) => (name, Mistake::EtcdPlain),
        (true, _) if !has(CA) => (ETCD, Mistake::EtcdUncertified { endpoint: first.to_string() }),
        (true, _) if has(CERTIFICATE) && !has(KEY) => {
            (CERTIFICATE, Mistake::EtcdCertificateIncomplete { missing: KEY })
        }
        (true, _) if has(KEY) && !has(CERTIFICATE) => {
            (KEY, Mistake::EtcdCertificateIncomplete { missing: CERTIFICATE })
        }
        _ => return,
    };
    loading.wrong(loading.source(name), name, mistake);
}

/// A password that others on the way may read.
fn login(loading: &mut Loading) {
    let options = &loading.options;
    let is_far =
        |endpoint: &&Endpoint| !endpoint.is_https && !endpoint.host().parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let far = options.peers_etcd.iter().find(is_far);
    if let (Some(far), Some(_)) = (far, &options.peers_etcd_login) {
        loading.notes.push(format!("peers.etcd_login goes to {far} unencrypted: whoever sees the wire can read it"));
    }
}
