//! Two trust groups: what one may have, and what it always has.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use lapis_client::{Client, ConnectOptions};
use serde_json::Value;

use super::{
    alone,
    blocks::{self, SMALL},
    machine::{MIB, at, host_with, slots_held, status, status_when},
};

const DRAM: u64 = 96 * MIB;
const FLOOR: u64 = 32 * MIB;
const CEILING: u64 = 48 * MIB;

fn client(socket: &Path) -> Client {
    Client::connect(socket, ConnectOptions::default()).expect("a client")
}

fn blocks_in(bytes: u64) -> u64 {
    bytes / SMALL as u64
}

fn group(name: &str, socket: &Path, more: &str) -> String {
    format!("[[group]]\nname = \"{name}\"\nsocket = {socket:?}\n{more}\n")
}

/// Puts three times the group's most, watching that it never has more. Returns what it has then.
fn flood(socket: &Path, most: u64) -> u64 {
    let flooder = client(socket);
    let pool = blocks::pool(&flooder, SMALL);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0u64;
            while !done.load(Ordering::Relaxed) || looks == 0 {
                let status = status(socket).expect("it answers");
                assert!(at(&status, "/dram/bytes") <= most, "{status}");
                looks += 1;
            }
        });
        let refused = blocks::put_all(&flooder, &pool, 0..3 * blocks_in(most));
        done.store(true, Ordering::Relaxed);
        watcher.join().expect("never more than it may have");
        assert_eq!(refused, [], "refused puts");
    });
    at(&status(socket).expect("it answers"), "/dram/bytes")
}

#[test]
fn a_group_never_passes_its_ceiling_and_another_ones_floor_stays_free() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let sockets: [PathBuf; 3] = ["a", "b", "c"].map(|name| folder.path().join(format!("{name}.sock")));
    let [a, b, c] = &sockets;
    let group = |name: &str, socket: &Path, more: String| group(name, socket, &more);
    let config = [
        group("a", a, format!("dram_floor = \"{FLOOR}B\"")),
        group("b", b, format!("dram_ceiling = \"{CEILING}B\"")),
        group("c", c, String::new()),
    ];
    let file = folder.path().join("lapis.toml");
    fs::write(&file, config.concat()).expect("a file");
    let mut host = host_with(DRAM, &["--config", file.to_str().expect("plain")]);
    host.until("the groups", |_| Ok(sockets.iter().all(|socket| status(socket).is_some()).then_some(())))
        .expect("all answer");

    assert_eq!(flood(b, CEILING), CEILING, "b has all that it may have");
    // What is neither b's nor a's floor.
    assert_eq!(flood(c, DRAM - CEILING - FLOOR), DRAM - CEILING - FLOOR);
    let late = client(a);
    let pool = blocks::pool(&late, SMALL);
    // Some slots are a client's ahead of its next puts.
    let within = blocks_in(FLOOR) * 3 / 4;
    assert_eq!(blocks::put_all(&late, &pool, 0..within), [], "refused puts within a floor");
    assert_eq!(blocks::hits(&late, &pool, 0..within), within, "a floor is the group's");
    assert_eq!(at(&status(a).expect("it answers"), "/dram/bytes"), FLOOR);
    let said = status(b).expect("it answers");
    assert_eq!((said["group"].as_str(), at(&said, "/dram/bytes")), (Some("b"), CEILING));
}

/// Looks in a row that show the same.
const LOOKS: u32 = 200;

/// What a group's clients are told of it, once nothing changes any more.
fn at_rest(socket: &Path) -> Value {
    let (mut last, mut same) = (Value::Null, 0);
    let mut told = |status: &Value| {
        let mut status = status.clone();
        status["uptime_s"] = Value::Null;
        same = if status == last { same + 1 } else { 0 };
        last = status;
        same >= LOOKS && slots_held(&last) == 0 && last["clients"].as_array().is_some_and(Vec::is_empty)
    };
    let mut status = status_when(socket, "a group at rest", |status| told(status));
    status["uptime_s"] = Value::Null;
    status
}

#[test]
fn nothing_that_one_group_does_within_its_share_is_told_to_another() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let sockets: [PathBuf; 2] = ["a", "b"].map(|name| folder.path().join(format!("{name}.sock")));
    let [a, b] = &sockets;
    let share = format!("dram_floor = \"{FLOOR}B\"\ndram_ceiling = \"{FLOOR}B\"\nssd_floor = \"512MiB\"");
    let log = folder.path().join("log.ssd");
    let ssd = format!("[ssd]\npaths = [{log:?}]\nbytes = \"1GiB\"\n");
    let file = folder.path().join("lapis.toml");
    fs::write(&file, [ssd, group("a", a, &share), group("b", b, &share)].concat()).expect("a file");
    let host = host_with(2 * FLOOR, &["--config", file.to_str().expect("plain")]);
    for socket in &sockets {
        status_when(socket, "the SSD tier", |status| status["ssd"]["state"] == "serving");
    }
    let fill = |socket: &Path, first: u64| {
        let client = client(socket);
        let pool = blocks::pool(&client, SMALL);
        assert_eq!(blocks::put_all(&client, &pool, first..first + 2 * blocks_in(FLOOR)), [], "refused puts");
        client
    };
    drop(fill(a, 0));
    let before = at_rest(a);
    assert!(at(&before, "/ssd/blocks") > 0 && at(&before, "/dram/evictions") > 0, "{before}");
    for first in [0, 1 << 20, 2 << 20] {
        drop(fill(b, first));
    }
    let other = at_rest(b);
    assert!(at(&other, "/dram/evictions") > 2 * at(&before, "/dram/evictions"), "{other}");
    assert_eq!(at_rest(a), before, "a group sees what another did");
    drop(host);
}
