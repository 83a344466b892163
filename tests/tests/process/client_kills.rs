//! `kill -9` of clients, wherever they are.

use std::{
    thread,
    time::{Duration, Instant},
};

use lapis_benches::host::Host;
use lapis_client::GetOptions;

use super::{
    alone, asked,
    blocks::{self, SMALL, get, keys},
    eventually, is_strict,
    machine::{MIB, at, client_of, connect, host, nothing_held, slots, slots_held, status, status_when},
    quantile, quantiles,
    worker::Worker,
};

const DRAM: u64 = 64 * MIB;
/// More than fit, so that views hold up the reuse of slots.
const IDS: u64 = 2 * DRAM / SMALL as u64;
/// Clients in the middle of something at once.
const CLIENTS: u64 = 2;
/// A kill comes so long after the client's first calls, at most.
const LIFE_MAX_US: u64 = 8000;
/// What was promised, and what a machine that does other things too gets.
const BACK_WITHIN: Duration = Duration::from_millis(100);
const BACK_AT_LAST: Duration = Duration::from_secs(2);

fn start(host: &Host, seed: u64) -> Worker {
    let socket = host.socket().display().to_string();
    Worker::start("chaos", &[&socket, "0", &IDS.to_string(), &seed.to_string()])
}

/// From the kill to the status that shows nothing of the client; and how many slots were held just before.
fn kill(host: &Host, mut clients: Vec<Worker>) -> (Duration, u64) {
    let held = slots_held(&status(&host.socket()).expect("it answers"));
    let pids: Vec<u32> = clients.iter().map(Worker::pid).collect();
    let killed = Instant::now();
    for client in &mut clients {
        client.kill();
    }
    status_when(&host.socket(), "everything back", |status| {
        pids.iter().all(|pid| client_of(status, *pid).is_none()) && slots_held(status) == 0
    });
    (killed.elapsed(), held)
}

#[test]
fn all_that_killed_clients_held_is_back_at_once_and_every_block_is_right() {
    let _alone = alone();
    let mut host = host(DRAM);
    let reader = connect(&mut host);
    let pool = blocks::pool(&reader, SMALL);
    let kills = asked("LAPIS_CLIENT_KILLS", 30);
    let mut random = fastrand::Rng::with_seed(2);
    let (mut times, mut held, mut hits) = (Vec::new(), 0, 0);
    // The next ones start while the last ones die.
    let mut next: Vec<Worker> = (0..CLIENTS).map(|seed| start(&host, seed)).collect();
    for round in 1..=kills.div_ceil(CLIENTS) {
        let mut clients = std::mem::take(&mut next);
        for client in &mut clients {
            assert_eq!(client.line(), "busy");
        }
        // Not to wait for anything: this is the point at which the kill comes.
        thread::sleep(Duration::from_micros(random.u64(..LIFE_MAX_US)));
        let (time, slots) = kill(&host, clients);
        times.push(time);
        held += slots;
        next = (0..CLIENTS).map(|i| start(&host, round * CLIENTS + i)).collect();
        let first = random.u64(..IDS - blocks::BATCH);
        let (got, wrong) = get(&reader, &pool, &keys(first..first + blocks::BATCH), &GetOptions::default());
        assert_eq!(wrong, 0, "wrong bytes");
        hits += got.hits;
    }
    drop(next);
    println!("{kills} kills of clients, which held {held} slots; {hits} blocks read between them, all right");
    println!("kill to a status without them: {}", quantiles(&mut times));
    assert!(held > 0, "no client held anything");
    assert!(blocks::hits(&reader, &pool, 0..IDS) > 0);
    assert!(quantile(&mut times, 1000) < BACK_AT_LAST, "{}", quantiles(&mut times));
    if is_strict() {
        assert!(quantile(&mut times, 999) < BACK_WITHIN, "{}", quantiles(&mut times));
    }
    // Whatever happened, the memory is whole: as many blocks fit as before anything was killed.
    assert_eq!(blocks::put_all(&reader, &pool, 100_000..100_000 + IDS), [], "refused puts");
    drop(reader);
    assert_eq!(slots(&nothing_held(&host)), DRAM / SMALL as u64);
}

#[test]
fn granted_slots_wait_for_a_forked_child_of_a_killed_client() {
    const RESERVED: u64 = 40;
    let _alone = alone();
    let mut host = host(DRAM);
    let socket = host.socket();
    let mut parent = Worker::start("forker", &[&socket.display().to_string(), "0", &RESERVED.to_string()]);
    let pid = parent.pid();
    assert_eq!(at(&parent.line(), "/reserved"), RESERVED);
    let granted = at(&status(&socket).expect("it answers"), "/dram/slots_granted");
    assert!(granted >= RESERVED, "{granted}");

    parent.kill();
    parent.wait();
    status_when(&socket, "the hang-up", |status| client_of(status, pid).is_some_and(|c| c["connected"] == false));
    // Whoever needs every slot there is does not get these.
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    assert_eq!(blocks::put_all(&client, &pool, 1000..1000 + IDS), [], "refused puts");
    drop(client);
    let status =
        status_when(&socket, "its flood's end", |status| status["clients"].as_array().is_some_and(|c| c.len() == 1));
    assert!(client_of(&status, pid).is_some(), "{status}");
    assert_eq!(at(&status, "/dram/slots_granted"), granted, "they wait for the child");

    parent.let_go();
    eventually("the slots", || Some(slots_held(&super::machine::status(&socket)?)).filter(|held| *held == 0));
    assert_eq!(slots(&nothing_held(&host)), DRAM / SMALL as u64);
}
