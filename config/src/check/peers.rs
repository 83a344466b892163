//! Whether this host and its peers can know each other. Decides without I/O.

mod etcd;

use std::net::IpAddr;

use crate::load::{Loading, group_key};
use crate::machine::Machine;
use crate::mistake::{Mistake, Source};
use crate::nearest::nearest;
use crate::options::{Options, Rdma};
use crate::units::host_name;

const LISTEN: &str = "peers.listen";
const HOST: &str = "peers.host";
const MEMBERS: &str = "peers.members";
const FILES: [&str; 3] = ["peers.ca", "peers.certificate", "peers.key"];

pub(super) fn peers(loading: &mut Loading, machine: &Machine) {
    let own = machine.host_name.as_deref().map(|name| host_name(name).ok_or_else(|| name.to_owned()));
    if let (true, Some(Ok(name))) = (loading.options.peers_host.is_empty(), &own) {
        loading.options.peers_host.clone_from(name);
    }
    if loading.is_broken(LISTEN) {
        return;
    }
    if loading.options.peers_listen.is_none() {
        return alone(loading);
    }
    if loading.options.peers_host.is_empty() && !loading.is_broken(HOST) {
        let name = own.and_then(Result::err);
        loading.wrong(loading.source(HOST), HOST, Mistake::NoHostName { name });
    }
    certificates(loading);
    own_place(loading);
    etcd::etcd(loading);
    who_may_ask(loading);
    rdma(loading);
}

/// What is only used with RDMA, where there is none.
fn rdma(loading: &mut Loading) {
    let options = &loading.options;
    let why = match (options.peers_rdma, options.peers_encrypt_blocks) {
        (Rdma::Off, _) => "peers.rdma = \"off\"",
        (Rdma::Auto, true) => "peers.encrypt_blocks, as RDMA does not encrypt",
        (Rdma::Auto, false) => return,
    };
    let is_given = |name: &&str| loading.sources.contains_key(*name);
    let unused: Vec<&str> = ["peers.rdma_devices", "peers.locate"].into_iter().filter(is_given).collect();
    if !unused.is_empty() {
        loading.notes.push(format!("{}: not used with {why}", unused.join(", ")));
    }
}

/// Nothing is listened on: what is said of peers is not used, and those that are named would wait for this host.
fn alone(loading: &mut Loading) {
    let is_meant = loading.sources.contains_key(LISTEN);
    let unheard = [(MEMBERS, loading.options.peers_members.len()), (etcd::ETCD, loading.options.peers_etcd.len())];
    if let Some((name, _)) = unheard.into_iter().find(|&(_, hosts)| !is_meant && hosts > 0) {
        return loading.wrong(loading.source(name), name, Mistake::MembersUnheard);
    }
    let given = |name: &&str| name.starts_with("peers.") && *name != LISTEN && loading.sources.contains_key(*name);
    let mut unused: Vec<&str> = Options::DEFINITIONS.iter().map(|d| d.name).filter(given).collect();
    let in_groups =
        (0..loading.options.groups.len()).any(|i| loading.sources.contains_key(&group_key(i, "group.peers")));
    unused.extend(in_groups.then_some("group.peers"));
    if !unused.is_empty() {
        loading.notes.push(format!("{}: not used without peers.listen", unused.join(", ")));
    }
}

/// Who can be reached by others shows a certificate and asks for one.
fn certificates(loading: &mut Loading) {
    if FILES.iter().chain([&MEMBERS]).any(|name| loading.is_broken(name)) {
        return;
    }
    let options = &loading.options;
    let files = [&options.peers_ca, &options.peers_certificate, &options.peers_key];
    let given: Vec<&str> =
        FILES.into_iter().zip(files).filter(|(_, file)| file.is_some()).map(|(name, _)| name).collect();
    if let (Some(&first), true) = (given.first(), given.len() < FILES.len()) {
        let missing: Vec<&str> = FILES.into_iter().filter(|name| !given.contains(name)).collect();
        let mistake = Mistake::CertificateIncomplete { missing: missing.join(" and ") };
        return loading.wrong(loading.source(first), first, mistake);
    }
    if !given.is_empty() {
        return;
    }
    let listen = options.peers_listen.expect("the caller looked");
    let (blocks, name) = (options.peers_encrypt_blocks, "peers.encrypt_blocks");
    let far = options.other_members().find(|member| member.ip().is_some_and(|ip| !is_loopback(ip))).cloned();
    if !is_loopback(listen.ip()) {
        let mistake = Mistake::ListenUncertified { address: listen.to_string() };
        return loading.wrong(loading.source(LISTEN), LISTEN, mistake);
    }
    if let Some(far) = far {
        let mistake = Mistake::MemberUncertified { member: far.to_string() };
        loading.wrong(loading.source(MEMBERS), MEMBERS, mistake);
    }
    if blocks {
        loading.wrong(loading.source(name), name, Mistake::BlocksUncertified);
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// One file may fit all hosts, so this host is in it too: where others look for it.
fn own_place(loading: &mut Loading) {
    let options = &loading.options;
    let Some(own) = options.peers_members.iter().find(|member| member.name == options.peers_host) else { return };
    let listen = options.peers_listen.expect("the caller looked");
    if listen.port() != 0 && own.port() != listen.port() {
        loading.notes.push(format!("peers.members has this host at {own}, but peers.listen is {listen}"));
    }
}

/// A name that nobody has shuts a host out that was meant.
fn who_may_ask(loading: &mut Loading) {
    // Who is in etcd is not known here.
    if loading.is_broken(MEMBERS) || loading.is_broken(etcd::ETCD) || !loading.options.peers_etcd.is_empty() {
        return;
    }
    let options = &loading.options;
    let names: Vec<&str> = options.peers_members.iter().map(|member| member.name.as_str()).collect();
    let mut wrong: Vec<(Source, Mistake)> = Vec::new();
    for (i, group) in options.groups.iter().enumerate() {
        for name in &group.peers {
            if !names.contains(&name.as_str()) && *name != options.peers_host {
                let nearest = nearest(name, names.iter().copied()).map(String::from);
                let source = loading.source(&group_key(i, "group.peers"));
                wrong.push((source, Mistake::NotAMember { name: name.clone(), nearest }));
            }
        }
    }
    for (source, mistake) in wrong {
        loading.wrong(source, "group.peers", mistake);
    }
}
