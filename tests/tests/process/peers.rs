//! Hosts that are each other's peers, as real processes on loopback addresses.

use std::time::{Duration, Instant};

use lapis_benches::{
    host::{Host, HostOptions},
    hosts::{self, Hosts},
};
use lapis_client::{
    Client, GetOptions, HitPolicy, Namespace, Pool, PoolKind, PoolShape, PutOptions, PutResult, Refusal, Wait,
};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    PATIENCE, alone, binary,
    blocks::{self, SMALL, get, keys, put_all},
    eventually,
    machine::{MIB, at, status, status_when},
};

const DRAM: u64 = 64 * MIB;

pub fn options(dram_bytes: u64) -> HostOptions {
    HostOptions { binary: binary::lapis(), dram_bytes, ssd_bytes: None, hold: true, flags: Vec::new() }
}

/// So many hosts that know each other, and a client at each.
fn start(count: usize, options: &HostOptions) -> (Hosts, Vec<Client>) {
    let mut hosts = Hosts::start(count, options).expect("hosts");
    let clients = (0..count).map(|at| hosts.get_mut(at).connect("test").expect("a client")).collect();
    hosts.until_all_up().expect("hosts that find each other");
    (hosts, clients)
}

/// Reads all of `ids` with time to spare: how many are hits, none of them wrong.
fn hits(client: &Client, pool: &Pool, ids: std::ops::Range<u64>) -> u64 {
    let options = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
    let all = blocks::batches(ids).map(|batch| get(client, pool, &keys(batch), &options));
    all.map(|(got, wrong)| {
        assert_eq!(wrong, 0, "wrong bytes");
        got.hits as u64
    })
    .sum()
}

/// Waits until a host's peers know of its blocks: those it told of are hits elsewhere.
pub fn told(client: &Client, pool: &Pool, ids: std::ops::Range<u64>) {
    let options = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
    let last = keys(ids.end - 1..ids.end);
    eventually("another host to know of blocks", || (get(client, pool, &last, &options).0.hits == 1).then_some(()));
}

#[test]
fn blocks_of_one_host_are_hits_at_another_and_then_its_own() {
    let _alone = alone();
    let (hosts, clients) = start(3, &options(DRAM));
    let pools: Vec<Pool> = clients.iter().map(|client| blocks::pool(client, SMALL)).collect();
    assert!(put_all(&clients[0], &pools[0], 0..200).is_empty());
    told(&clients[1], &pools[1], 0..200);
    assert_eq!(hits(&clients[1], &pools[1], 0..200), 200);
    let second = status(&hosts.get(1).socket()).expect("a daemon");
    assert_eq!(at(&second, "/peers/blocks_read"), 200);
    assert_eq!(at(&second, "/hits/keys_hit_peers"), 200);
    assert_eq!(at(&second, "/dram/blocks"), 200);
    // Read once more, they are nobody else's.
    assert_eq!(hits(&clients[1], &pools[1], 0..200), 200);
    let first = status(&hosts.get(0).socket()).expect("a daemon");
    assert_eq!(at(&first, "/peers/blocks_lent"), 200);
    // And the third may take them from either; a look-up brings them too.
    let keys = keys(0..100);
    let pools = [(pools[2].clone(), HitPolicy::Prefix)];
    let found = eventually("the third host to know", || {
        let found = clients[2].fetch_prefix(&pools, &keys, Some(PATIENCE)).expect("a sound call");
        (found > 0).then_some(found)
    });
    assert_eq!(found, 100);
}

#[test]
fn chains_objects_pieces_and_blocks_that_are_only_on_ssd_come_whole() {
    let _alone = alone();
    let ssd = HostOptions { ssd_bytes: Some(512 * MIB), ..options(DRAM) };
    let (hosts, clients) = start(2, &ssd);
    // Twice the memory: the first ones are on SSD alone.
    let blocks = 2 * DRAM / SMALL as u64;
    let pools: Vec<Pool> = clients.iter().map(|client| blocks::pool(client, SMALL)).collect();
    assert!(put_all(&clients[0], &pools[0], 0..blocks).is_empty());
    status_when(&hosts.get(0).socket(), "blocks on SSD alone", |now| at(now, "/ssd/blocks_ssd_only") > 100);
    told(&clients[1], &pools[1], 0..blocks);
    assert_eq!(hits(&clients[1], &pools[1], 0..64), 64);

    let shape = |kind, label: &str, pieces| {
        let namespace = Namespace::new("peers").fingerprint();
        PoolShape { namespace, label: label.into(), kind, block_bytes: 1 << 20, pieces }
    };
    let objects = shape(PoolKind::Object, "objects", 1);
    let [here, there] = [0, 1].map(|at| clients[at].pool(&objects).expect("a pool"));
    let bytes: Vec<Vec<u8>> = (0..20).map(|n| vec![n as u8 + 1; 1000 + 50_000 * n]).collect();
    for (n, object) in bytes.iter().enumerate() {
        let name = format!("object {n}");
        let put = clients[0].put_object(&here, name.as_bytes(), object, &PutOptions::default()).expect("a sound call");
        assert_eq!(put, PutResult::Stored, "{name}");
        let read = clients[0].get_object(&here, name.as_bytes(), Some(PATIENCE)).expect("a sound call");
        assert_eq!(read.as_ref(), Some(object), "{name}");
    }
    for (n, object) in bytes.iter().enumerate() {
        let name = format!("object {n}");
        let read = eventually(&format!("{name} of another host"), || {
            clients[1].get_object(&there, name.as_bytes(), Some(PATIENCE)).expect("a sound call")
        });
        assert_eq!(&read, object, "{name}");
    }

    let pieces = shape(PoolKind::Chain, "pieces", 8);
    let [here, there] = [0, 1].map(|at| clients[at].pool(&pieces).expect("a pool"));
    assert!(put_all(&clients[0], &here, 0..8).is_empty());
    told(&clients[1], &there, 0..8);
    for piece in 0..8 {
        let options = GetOptions { pieces: Some(piece..piece + 1), deadline: Some(PATIENCE), ..GetOptions::default() };
        let keys = keys(0..8);
        let mut buffer = vec![0; 8 * (1 << 20) / 8];
        let got = clients[1].get_into(&there, &keys, &mut buffer, &options).expect("a sound call");
        assert_eq!(got.hits, 8, "piece {piece}");
    }
}

#[test]
fn what_was_removed_goes_at_other_hosts_too() {
    let _alone = alone();
    let (_hosts, clients) = start(2, &options(DRAM));
    let pools: Vec<Pool> = clients.iter().map(|client| blocks::pool(client, SMALL)).collect();
    assert!(put_all(&clients[0], &pools[0], 0..64).is_empty());
    told(&clients[1], &pools[1], 0..64);
    assert_eq!(hits(&clients[1], &pools[1], 0..64), 64);
    clients[0].remove(&pools[0], &keys(32..64), None).expect("removed");
    let gone = keys(32..64);
    eventually("the copies to go", || {
        (clients[1].exists(&pools[1], &gone).expect("a look-up").count() == 0).then_some(())
    });
    assert_eq!(clients[1].exists(&pools[1], &keys(0..32)).expect("a look-up").count(), 32);
    clients[0].purge(&pools[0], None).expect("purged");
    let rest = keys(0..32);
    eventually("all to go", || (clients[1].exists(&pools[1], &rest).expect("a look-up").count() == 0).then_some(()));
}

#[test]
fn a_prefill_hands_its_blocks_to_the_host_that_decodes() {
    let _alone = alone();
    let (running, clients) = start(2, &options(DRAM));
    let pools: Vec<Pool> = clients.iter().map(|client| blocks::pool(client, SMALL)).collect();
    std::thread::scope(|scope| {
        // It waits for what nobody has put yet, here or there.
        let waits = scope.spawn(|| {
            let options = GetOptions { wait: Wait::Absent, deadline: Some(PATIENCE), ..GetOptions::default() };
            get(&clients[1], &pools[1], &keys(0..32), &options)
        });
        assert!(put_all(&clients[0], &pools[0], 0..32).is_empty());
        let came = clients[0].offer(&pools[0], &keys(0..32), &hosts::name(1), Some(PATIENCE)).expect("an answer");
        assert_eq!(came, 32);
        let (got, wrong) = waits.join().expect("no panic");
        assert_eq!((got.hits, wrong), (32, 0));
    });
    // Those that are there already count too.
    assert!(put_all(&clients[0], &pools[0], 32..40).is_empty());
    let there = clients[0].offer(&pools[0], &keys(0..40), &hosts::name(1), Some(PATIENCE)).expect("an answer");
    assert_eq!(there, 40);
    // Or whoever decodes waits at the host that prefills.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let (wait, from) = (Wait::Absent, Some(hosts::name(0)));
            let options = GetOptions { wait, from, deadline: Some(PATIENCE), ..GetOptions::default() };
            get(&clients[1], &pools[1], &keys(100..132), &options)
        });
        assert!(put_all(&clients[0], &pools[0], 100..132).is_empty());
        let (got, wrong) = waits.join().expect("no panic");
        assert_eq!((got.hits, wrong), (32, 0));
    });
    // What comes by another way meanwhile is not waited for there.
    let wants = |now: &serde_json::Value| at(now, "/peers/wants");
    let before = wants(&status(&running.get(1).socket()).expect("a daemon"));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let (wait, from) = (Wait::Absent, Some(hosts::name(0)));
            let options = GetOptions { wait, from, deadline: Some(2 * PATIENCE), ..GetOptions::default() };
            (get(&clients[1], &pools[1], &keys(200..232), &options), Instant::now())
        });
        status_when(&running.get(1).socket(), "a want", |now| wants(now) > before || waits.is_finished());
        assert_eq!(put_all(&clients[1], &pools[1], 200..232), []);
        let put = Instant::now();
        let ((got, wrong), answered) = waits.join().expect("no panic");
        assert_eq!((got.hits, wrong), (32, 0));
        assert!(answered < put + PATIENCE, "it waited for the other host");
    });
    let error = clients[0].offer(&pools[0], &keys(0..32), "nobody", None).expect_err("no such host");
    assert!(error.to_string().contains("nobody: no other host of this name"), "{error}");
}

#[test]
fn a_host_that_goes_away_hands_over_what_it_has() {
    let _alone = alone();
    let (hosts, clients) = start(3, &options(DRAM));
    let pools: Vec<Pool> = clients.iter().map(|client| blocks::pool(client, SMALL)).collect();
    assert!(put_all(&clients[0], &pools[0], 0..300).is_empty());
    let socket = hosts.get(0).socket();
    let mut drain = std::process::Command::new(binary::lapis());
    drain.arg("drain").arg("--socket").arg(&socket);
    let (code, out, err) = binary::run(&mut drain);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.starts_with("300 blocks in memory: 300 moved to other hosts, 0 were there already, 0 are only here"),
        "{out}"
    );
    // But for those for which clients had slots already.
    let refused = put_all(&clients[0], &pools[0], 1000..1600);
    assert!(refused.contains(&Refusal::Draining), "it takes no more puts: {refused:?}");
    drop(clients);
    let mut hosts = hosts;
    hosts.get_mut(0).kill_daemon().expect("killed");
    let clients: Vec<Client> = [1, 2].map(|at| hosts.get_mut(at).connect("test").expect("a client")).into();
    let all = keys(0..300);
    let there: usize = clients
        .iter()
        .map(|client| client.exists(&blocks::pool(client, SMALL), &all).expect("a look-up").count())
        .sum();
    assert_eq!(there, 300);
}

#[test]
fn a_peer_that_is_killed_is_a_miss_in_time_and_found_again_when_it_is_back() {
    let _alone = alone();
    let (mut hosts, clients) = start(2, &options(DRAM));
    let pools: Vec<Pool> = clients.iter().map(|client| blocks::pool(client, SMALL)).collect();
    assert!(put_all(&clients[0], &pools[0], 0..200).is_empty());
    told(&clients[1], &pools[1], 0..1);
    hosts.get_mut(0).kill_daemon().expect("killed");
    let options = GetOptions { deadline: Some(Duration::from_millis(300)), ..GetOptions::default() };
    let began = Instant::now();
    let (got, wrong) = get(&clients[1], &pools[1], &keys(100..132), &options);
    assert_eq!((got.hits, wrong), (0, 0));
    assert!(began.elapsed() < Duration::from_secs(5), "a miss took {:?}", began.elapsed());
    status_when(&hosts.get(1).socket(), "the peer to be gone", |now| {
        now.pointer("/peers/hosts/0/is_up") == Some(&false.into())
    });
    hosts.get_mut(0).start_daemon().expect("started");
    hosts.until_all_up().expect("found again");
    // Its memory was kept: another process, the same blocks.
    told(&clients[1], &pools[1], 0..200);
    assert_eq!(hits(&clients[1], &pools[1], 0..200), 200);
}

#[test]
fn the_list_of_hosts_is_read_again_on_sighup() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("lapis.toml");
    let (others, _clients) = start(1, &options(DRAM));
    let other = status(&others.get(0).socket()).expect("a daemon");
    assert_eq!(other.pointer("/peers/host"), Some(&"host-1".into()));
    // The other one listens at an address that only its log tells; nobody needs to know that for this.
    let listen = "listen = \"127.77.1.9:0\"\nhost = \"late\"\n";
    std::fs::write(&file, format!("[peers]\n{listen}members = []\n")).expect("written");
    let flags = vec!["--config".into(), file.display().to_string()];
    let mut host = Host::start(HostOptions { flags, ..options(DRAM) }).expect("a host");
    drop(host.connect("test").expect("a client"));
    let count =
        |now: &serde_json::Value| now.pointer("/peers/hosts").and_then(|hosts| hosts.as_array()).map_or(0, Vec::len);
    assert_eq!(count(&status(&host.socket()).expect("a daemon")), 0);
    let pid = Pid::from_raw(host.daemon_pid().expect("a daemon") as i32).expect("a pid");
    let members = "members = [\"host-a=127.77.1.1:7450\", \"host-b=127.77.1.2:7450\"]\n";
    std::fs::write(&file, format!("[peers]\n{listen}{members}")).expect("written");
    kill_process(pid, Signal::HUP).expect("told");
    status_when(&host.socket(), "two hosts", |now| count(now) == 2);
    // A list that cannot be used changes nothing.
    std::fs::write(&file, format!("[peers]\n{listen}members = [\"host-a\"]\n")).expect("written");
    kill_process(pid, Signal::HUP).expect("told");
    eventually("the mistake in the log", || host.daemon_log().contains("is not reloaded").then_some(()));
    assert_eq!(count(&status(&host.socket()).expect("a daemon")), 2);
}
