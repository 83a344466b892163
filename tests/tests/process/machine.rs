//! A holder and a daemon for one test, and what the daemon says of itself.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use lapis_benches::host::{Host, HostOptions};
use lapis_client::Client;
use serde_json::Value;

use super::{LOOK_EVERY, PATIENCE, binary};

pub const MIB: u64 = 1 << 20;

/// A running host that keeps its memory over kills.
pub fn host(dram_bytes: u64) -> Host {
    let host = host_with(dram_bytes, &[]);
    status_when(&host.socket(), "the daemon", |_| true);
    host
}

/// With more flags of `lapis serve`.
pub fn host_with(dram_bytes: u64, flags: &[&str]) -> Host {
    let flags = flags.iter().map(|flag| flag.to_string()).collect();
    Host::start(HostOptions { binary: binary::lapis(), dram_bytes, ssd_bytes: None, hold: true, flags })
        .expect("a host")
}

/// A client in this process.
pub fn connect(host: &mut Host) -> Client {
    host.connect("process test").expect("a client")
}

/// The daemon's status, if one answers.
pub fn status(socket: &Path) -> Option<Value> {
    let text = lapis_client::status(socket, Duration::from_secs(2)).ok()?;
    Some(serde_json::from_str(&text).expect("the status is JSON"))
}

/// Waits for a status of which `holds` is true.
pub fn status_when(socket: &Path, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let status = status(socket);
        match status {
            Some(status) if holds(&status) => return status,
            status => assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}; the status is {status:?}"),
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Waits until the daemon has taken over what its predecessor had.
pub fn adopted(host: &Host) -> Value {
    status_when(&host.socket(), "the end of the take-over", |status| status["adopting"] == false)
}

/// A number of the status: `at(status, "/dram/blocks")`.
pub fn at(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("the status has no number {path}: {status}"))
}

/// Slots in whatever state.
pub fn slots(status: &Value) -> u64 {
    let states = ["slots_free", "slots_granted", "slots_aside", "blocks"];
    states.iter().map(|state| at(status, &format!("/dram/{state}"))).sum()
}

/// Slots that some client holds, or that wait for one.
pub fn slots_held(status: &Value) -> u64 {
    at(status, "/dram/slots_granted") + at(status, "/dram/slots_aside")
}

/// The client of that process, while the daemon knows it.
pub fn client_of(status: &Value, pid: u32) -> Option<&Value> {
    status["clients"].as_array()?.iter().find(|client| client["pid"] == pid)
}

/// Waits until no client is known and nothing is held.
pub fn nothing_held(host: &Host) -> Value {
    status_when(&host.socket(), "an end of all clients, with nothing held", |status| {
        status["clients"].as_array().is_some_and(Vec::is_empty) && slots_held(status) == 0
    })
}

/// SIGKILL, and a new daemon.
pub fn kill_and_restart(host: &mut Host) {
    host.kill_daemon().expect("it can be killed");
    host.start_daemon().expect("another daemon");
}
