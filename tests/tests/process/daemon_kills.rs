//! `kill -9` of the daemon under load.

use std::{process::Command, time::Duration, time::Instant};

use lapis_client::Client;
use serde_json::Value;

use super::{
    alone, asked, binary,
    blocks::{self, SMALL},
    eventually,
    machine::{MIB, adopted, at, connect, host, kill_and_restart, nothing_held, slots, status},
    quantiles,
    worker::Worker,
};

const DRAM: u64 = 64 * MIB;
/// Blocks that fit.
const ROOM: u64 = DRAM / SMALL as u64;
/// Blocks that everyone reads and nobody removes: ids 0 to this.
const KEPT: u64 = 256;
/// Ids of the writer.
const WRITTEN: std::ops::Range<u64> = 10_000..10_400;
/// Ids that fill the memory.
const FILL: std::ops::Range<u64> = 20_000..20_000 + ROOM * 5 / 4;
/// Calls of a worker between two kills, at least.
const CALLS: u64 = 20;

fn kills() -> u64 {
    asked("LAPIS_KILLS", 10)
}

/// Fills the memory with other blocks, then forgets them; how many slots there are in all.
fn slots_in_all(host: &mut lapis_benches::host::Host) -> u64 {
    let client = connect(host);
    let pool = blocks::pool(&client, SMALL);
    assert_eq!(blocks::put_all(&client, &pool, FILL), [], "refused puts");
    drop(client);
    let in_all = slots(&nothing_held(host));
    let client = connect(host);
    client.purge(&blocks::pool(&client, SMALL), None).expect("an answer");
    drop(client);
    nothing_held(host);
    in_all
}

/// Waits until the worker has made some more calls.
fn more_calls(worker: &mut Worker, calls: u64) -> Value {
    let wanted = at(&worker.ask(), "/calls") + calls;
    eventually("calls of a worker", || Some(worker.ask()).filter(|tally| at(tally, "/calls") >= wanted))
}

/// From the restart to all of the kept blocks, read and compared by a client that has never been here.
fn read_all(host: &mut lapis_benches::host::Host) -> Duration {
    let started = host.started();
    let client = connect(host);
    let hits = blocks::hits(&client, &blocks::pool(&client, SMALL), 0..KEPT);
    assert!(hits * 100 >= KEPT * 99, "{hits} of {KEPT} blocks are left after a kill");
    started.elapsed()
}

fn back(client: &Client, killed: Instant) -> Duration {
    eventually("the client's return", || client.is_connected().then(|| killed.elapsed()))
}

#[test]
fn killed_daemons_cost_a_reader_no_hit_nobody_a_byte_and_leak_no_slot() {
    let _alone = alone();
    let mut host = host(DRAM);
    let in_all = slots_in_all(&mut host);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    assert_eq!(blocks::put_all(&client, &pool, 0..KEPT), []);
    let socket = host.socket().display().to_string();
    let mut reader = Worker::start("reader", &[&socket, "0", &KEPT.to_string()]);
    let [first, end] = [WRITTEN.start, WRITTEN.end].map(|id| id.to_string());
    let mut writer = Worker::start("writer", &[&socket, &first, &end, "1"]);

    let (mut first_reads, mut returns) = (Vec::new(), Vec::new());
    for _ in 0..kills() {
        more_calls(&mut writer, CALLS);
        more_calls(&mut reader, 8);
        let killed = Instant::now();
        host.kill_daemon().expect("it can be killed");
        // Hits go on.
        more_calls(&mut reader, 8);
        host.start_daemon().expect("another daemon");
        first_reads.push(read_all(&mut host));
        returns.push(back(&client, killed));
        let status = adopted(&host);
        assert_eq!(status["start"], "warm");
        assert_eq!(at(&status, "/dram/checksum_failures"), 0);
    }
    let (read, written) = (reader.finish(), writer.finish());
    println!("{} kills of the daemon; reader {read}; writer {written}", kills());
    println!("exec to {KEPT} blocks read by a new client: {}", quantiles(&mut first_reads));
    println!("kill to a client's return: {}", quantiles(&mut returns));
    assert_eq!([at(&read, "/wrong"), at(&written, "/wrong")], [0, 0], "wrong bytes");
    assert_eq!(at(&read, "/misses"), 0, "misses because of kills");
    assert!(at(&written, "/stored") > 0 && at(&written, "/hits") > 0, "the writer did nothing: {written}");
    drop(client);
    nothing_leaked(&mut host, in_all);
}

#[test]
fn daemons_killed_in_a_flood_leave_no_wrong_byte_and_leak_no_slot() {
    let _alone = alone();
    let mut host = host(DRAM);
    let in_all = slots_in_all(&mut host);
    let socket = host.socket().display().to_string();
    let mut flooders: Vec<Worker> = [[0, 3 * ROOM], [50_000, 50_000 + 2 * ROOM]]
        .map(|ids| Worker::start("flooder", &[&socket, &ids[0].to_string(), &ids[1].to_string(), "7"]))
        .into();
    for _ in 0..kills() {
        flooders.iter_mut().for_each(|flooder| drop(more_calls(flooder, CALLS)));
        kill_and_restart(&mut host);
        let status = adopted(&host);
        assert_eq!((&status["start"], at(&status, "/dram/checksum_failures")), (&"warm".into(), 0));
    }
    for flooder in flooders {
        let flooded = flooder.finish();
        println!("{} kills of the daemon; flooder {flooded}", kills());
        assert_eq!(at(&flooded, "/wrong"), 0, "wrong bytes");
        assert!(at(&flooded, "/stored") > 0 && at(&flooded, "/hits") > 0, "it did nothing: {flooded}");
    }
    nothing_leaked(&mut host, in_all);
}

/// With all clients gone, by the words of `lapis status --json`; then all memory can be filled again.
fn nothing_leaked(host: &mut lapis_benches::host::Host, in_all: u64) {
    nothing_held(host);
    let mut command = Command::new(binary::lapis());
    let (code, output, errors) = binary::run(command.args(["status", "--json", "--socket"]).arg(host.socket()));
    assert_eq!(code, Some(0), "{errors}");
    let said: Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!([at(&said, "/dram/slots_granted"), at(&said, "/dram/slots_aside")], [0, 0], "leaked slots");
    assert_eq!(slots_in_all(host), in_all, "slots are conserved");
    let said = status(&host.socket()).expect("it answers");
    assert_eq!(at(&said, "/dram/used_bytes"), 0, "everything was forgotten");
}
