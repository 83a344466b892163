//! Certificates that are not the right ones: whoever has them is refused, both sides say why, and the others go on.

use std::{
    fs,
    net::SocketAddrV4,
    path::{Path, PathBuf},
    process::Command,
};

use lapis_benches::{
    host::{Host, HostOptions},
    hosts,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    alone, binary,
    blocks::{self, SMALL, keys, put_all},
    eventually,
    machine::{MIB, status_when},
    peers,
};

const DRAM: u64 = 64 * MIB;
/// As each calls itself. The list of the others has the last one by another name.
const NAMES: [&str; 4] = ["host-a", "host-b", "host-c", "host-z"];
const LISTED: [&str; 4] = ["host-a", "host-b", "host-c", "host-d"];

/// `lapis cert` in a folder.
fn cert(folder: &Path, arguments: &[&str]) {
    let (code, _, err) = binary::run(Command::new(binary::lapis()).arg("cert").args(arguments).current_dir(folder));
    assert_eq!(code, Some(0), "lapis cert {arguments:?}: {err}");
}

/// An authority, and what it has made for these hosts.
fn authority(folder: &Path, name: &str, hosts: &[&str]) -> PathBuf {
    cert(folder, &["ca", "--out", name]);
    cert(folder, &[&["host", "--ca", name], hosts].concat());
    folder.join(name)
}

/// A host with a configuration and certificates in files of its own.
struct Own {
    host: Host,
    at: usize,
    folder: PathBuf,
}

impl Own {
    fn start(folder: &Path, at: usize, addresses: &[SocketAddrV4], made: &Path) -> Self {
        let folder = folder.join(format!("{at}"));
        fs::create_dir(&folder).expect("a folder");
        given(&folder, made, NAMES[at]);
        configured(&folder, at, addresses, &LISTED);
        let flags = vec!["--config".into(), folder.join("lapis.toml").display().to_string()];
        let host = Host::start(HostOptions { flags, ..peers::options(DRAM) }).expect("a host");
        Self { host, at, folder }
    }

    /// Reads its configuration and certificates again.
    fn reload(&self) {
        let pid = Pid::from_raw(self.host.daemon_pid().expect("a daemon") as i32).expect("a pid");
        kill_process(pid, Signal::HUP).expect("told");
    }

    /// Waits until these others are there.
    fn up(&self, names: &[&str]) {
        let what = format!("{} to have {names:?}", NAMES[self.at]);
        status_when(&self.host.socket(), &what, |now| names.iter().all(|name| peer(now, name)["is_up"] == true));
    }

    /// Waits until the status says that another one is not there, and why.
    fn says(&self, name: &str, why: &str) {
        let what = format!("{} to say of {name}: {why}", NAMES[self.at]);
        let is_why = |now: &Value| peer(now, name)["why_down"].as_str().is_some_and(|told| told.contains(why));
        status_when(&self.host.socket(), &what, |now| peer(now, name)["is_up"] == false && is_why(now));
    }

    fn logs(&self, words: &[&str]) {
        let is_said = || self.host.daemon_log().lines().any(|line| words.iter().all(|word| line.contains(word)));
        eventually(&format!("{words:?} in the log of {}", NAMES[self.at]), || is_said().then_some(()));
    }
}

/// What a status says of another host.
fn peer<'a>(status: &'a Value, name: &str) -> &'a Value {
    let hosts = status["peers"]["hosts"].as_array().expect("a list of hosts");
    hosts.iter().find(|host| host["name"] == name).unwrap_or(&Value::Null)
}

/// Its certificates are those that an authority has made for that name.
fn given(folder: &Path, made: &Path, name: &str) {
    let copy = |from: &str, to: &str| fs::copy(made.join(from), folder.join(to)).expect("copied");
    copy("ca.pem", "ca.pem");
    copy(&format!("{name}.pem"), "host.pem");
    copy(&format!("{name}.key"), "host.key");
}

/// Its configuration, with all by the names that are listed.
fn configured(folder: &Path, at: usize, addresses: &[SocketAddrV4], listed: &[&str]) {
    let members: Vec<String> =
        listed.iter().zip(addresses).map(|(name, address)| format!("\"{name}={address}\"")).collect();
    let file = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "[peers]\nhost = \"{}\"\nlisten = \"{}\"\nmembers = [{}]\nca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
        NAMES[at],
        addresses[at],
        members.join(", "),
        file("ca.pem"),
        file("host.pem"),
        file("host.key"),
    );
    fs::write(folder.join("lapis.toml"), text).expect("written");
}

#[test]
fn who_has_the_wrong_certificate_is_refused_with_the_reason_until_it_is_mended() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (authority(folder.path(), "ours", &NAMES), authority(folder.path(), "theirs", &NAMES));
    let addresses = hosts::free_addresses(NAMES.len()).expect("addresses");
    let mut owns: Vec<Own> = [&ours, &ours, &theirs, &ours]
        .into_iter()
        .enumerate()
        .map(|(at, made)| Own::start(folder.path(), at, &addresses, made))
        .collect();
    let clients: Vec<_> = owns.iter_mut().map(|own| own.host.connect("test").expect("a client")).collect();
    let [a, b, c, z] = &owns[..] else { unreachable!("four hosts") };
    a.up(&["host-b"]);
    b.up(&["host-a"]);

    // Two authorities: either side says so, of whom it dialled and of who dialled it.
    for own in [a, b] {
        own.says("host-c", "has shown a certificate that is not signed by this host's authority");
        own.logs(&[
            "a connection of another host is refused",
            "this host's certificate: it is not signed by that side's",
        ]);
    }
    c.says("host-a", "has shown a certificate that is not signed by this host's authority");
    // Another name than in the list.
    a.says("host-d", "has shown a certificate that is for \"host-z\", not for \"host-d\"");
    z.says("host-a", "host \"host-z\" is not one of the peers of \"host-a\": name it there");
    a.logs(&["a connection of another host is refused", "host-z", "is not one of the peers of"]);
    // As people see it.
    let (code, out, err) =
        binary::run(Command::new(binary::lapis()).arg("status").arg("--socket").arg(a.host.socket()));
    assert_eq!(code, Some(0), "{err}");
    let line = |of: &str| out.lines().find(|line| line.contains(of)).unwrap_or_else(|| panic!("no {of} in {out}"));
    assert!(line("host-b at").ends_with(": there"), "{out}");
    assert!(line("host-c at").contains("not there: ") && line("host-c at").contains("not signed by"), "{out}");

    // Those that are in order work on.
    let pools: Vec<_> = clients.iter().map(|client| blocks::pool(client, SMALL)).collect();
    assert!(put_all(&clients[0], &pools[0], 0..32).is_empty());
    peers::told(&clients[1], &pools[1], 0..32);

    // A key of another host does no harm at a reload, and is none to start with.
    fs::copy(ours.join("host-a.key"), b.folder.join("host.key")).expect("copied");
    b.reload();
    b.logs(&["the former certificates stay in use", "is not that of the certificate in", "host.key"]);
    b.up(&["host-a"]);
    let mut serve = Command::new(binary::lapis());
    serve.arg("serve").arg("--config").arg(b.folder.join("lapis.toml"));
    serve.arg("--server-socket").arg(folder.path().join("none.sock")).args(["--dram-bytes", "64MiB"]);
    let (code, _, err) = binary::run(&mut serve);
    assert!(code != Some(0) && err.contains("is not that of the certificate in"), "{code:?}: {err}");

    // Mended: the files of one, the list of the others.
    given(&b.folder, &ours, "host-b");
    given(&c.folder, &ours, "host-c");
    for own in [a, b, c, z] {
        configured(&own.folder, own.at, &addresses, &NAMES);
        own.reload();
    }
    for own in [a, b, c, z] {
        let others: Vec<&str> = NAMES.into_iter().filter(|name| *name != NAMES[own.at]).collect();
        own.up(&others);
    }
    for (client, pool) in clients.iter().zip(&pools).skip(2) {
        assert_eq!(client.exists(pool, &keys(0..32)).expect("a look-up").count(), 0);
        peers::told(client, pool, 0..32);
    }
}
