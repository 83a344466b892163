//! Two trust groups: what one may have, and what it always has.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use lapis_client::{Client, ConnectOptions};

use super::{
    alone,
    blocks::{self, SMALL},
    machine::{MIB, at, host_with, status},
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
    let group = |name: &str, socket: &Path, more: String| {
        format!("[[group]]\nname = \"{name}\"\nsocket = {socket:?}\n{more}\n")
    };
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
