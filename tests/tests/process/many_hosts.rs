//! Sixteen daemons that are each other's peers, with small arenas, some of which are killed again and again under load.
//! `LAPIS_HOSTS_SECONDS=300` is the long form; `LAPIS_STRICT=1` holds times to their promise.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use lapis_benches::hosts::{Hosts, status};
use lapis_client::{Client, GetOptions, Pool};
use lapis_config::Key;

use super::{
    PATIENCE, alone, asked,
    blocks::{self, SMALL, get, keys, put},
    eventually, is_strict,
    machine::MIB,
    peers::options,
    quantiles,
};

const HOSTS: usize = 16;
/// Of them, so many are killed at once: 30 %.
const KILLED: usize = 5;
const DRAM: u64 = 32 * MIB;
const LOADERS: usize = 3;
const CHAINS: u64 = 300;
const DEPTH: u64 = 8;
const KILL_EVERY: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_millis(500);
/// All hosts know of each other again so long after the last one was started.
const CONVERGED_WITHIN: Duration = Duration::from_secs(2);
/// Beyond its deadline, for a call on a busy machine.
const SLACK: Duration = Duration::from_secs(10);
const SLACK_STRICT: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Tally {
    hits: AtomicU64,
    misses: AtomicU64,
    wrong: AtomicU64,
    stored: AtomicU64,
    times: Mutex<Vec<Duration>>,
}

fn chain(number: u64) -> Vec<Key> {
    keys(number * DEPTH..(number + 1) * DEPTH)
}

/// Reads chains at any host, and puts there what is nowhere.
fn load(seed: u64, clients: &[(Client, Pool)], tally: &Tally, over: &AtomicBool) {
    let mut rng = Rng::with_seed(seed);
    while !over.load(Ordering::Relaxed) {
        let (client, pool) = &clients[rng.usize(..clients.len())];
        let keys = chain(rng.u64(..CHAINS));
        let options = GetOptions { deadline: Some(DEADLINE), ..GetOptions::default() };
        let began = Instant::now();
        let (got, wrong) = get(client, pool, &keys, &options);
        tally.times.lock().expect("no panic").push(began.elapsed());
        tally.wrong.fetch_add(wrong, Ordering::Relaxed);
        tally.hits.fetch_add(got.hits as u64, Ordering::Relaxed);
        tally.misses.fetch_add((keys.len() - got.hits) as u64, Ordering::Relaxed);
        if got.hits < keys.len() {
            tally.stored.fetch_add(put(client, pool, &keys).stored() as u64, Ordering::Relaxed);
        }
    }
}

#[test]
fn sixteen_hosts_of_which_some_are_killed_all_the_time_serve_no_wrong_byte_and_find_each_other_again() {
    let _alone = alone();
    let seconds = asked("LAPIS_HOSTS_SECONDS", 10);
    let mut hosts = Hosts::start(HOSTS, &options(DRAM)).expect("hosts");
    let clients: Vec<(Client, Pool)> = (0..HOSTS)
        .map(|at| {
            let client = hosts.get_mut(at).connect("load").expect("a client");
            let pool = blocks::pool(&client, SMALL);
            (client, pool)
        })
        .collect();
    hosts.until_all_up().expect("hosts that find each other");
    let (tally, over, seed) = (Tally::default(), AtomicBool::new(false), asked("LAPIS_SEED", fastrand::u64(..)));
    println!("LAPIS_SEED={seed}");
    let (mut rng, mut kills, mut converged) = (Rng::with_seed(seed), 0, Vec::new());
    thread::scope(|scope| {
        for loader in 0..LOADERS as u64 {
            let (clients, tally, over) = (&clients, &tally, &over);
            scope.spawn(move || load(seed ^ loader << 32, clients, tally, over));
        }
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until {
            thread::park_timeout(KILL_EVERY);
            let mut killed: Vec<usize> = (0..HOSTS).collect();
            rng.shuffle(&mut killed);
            killed.truncate(KILLED);
            killed.iter().for_each(|at| hosts.get_mut(*at).kill_daemon().expect("killed"));
            kills += killed.len();
            for at in &killed {
                hosts.get_mut(*at).start_daemon().expect("started");
            }
            let began = Instant::now();
            hosts.until_all_up().expect("hosts that find each other again");
            converged.push(began.elapsed());
        }
        over.store(true, Ordering::Relaxed);
    });
    let mut times = tally.times.into_inner().expect("no panic");
    let longest = times.iter().max().copied().unwrap_or_default();
    let read: u64 = (0..HOSTS)
        .map(|at| {
            let status = eventually("a daemon", || status(hosts.get(at)).ok());
            status.pointer("/peers/blocks_read").and_then(serde_json::Value::as_u64).unwrap_or(0)
        })
        .sum();
    let [hits, misses, wrong, stored] =
        [tally.hits, tally.misses, tally.wrong, tally.stored].map(AtomicU64::into_inner);
    println!(
        "{kills} kills; {hits} hits, {misses} misses, {stored} stored, {wrong} wrong bytes, {read} from peers since the last kills"
    );
    println!("calls: {}", quantiles(&mut times));
    println!("all know all after kills: {}", quantiles(&mut converged));
    assert_eq!(wrong, 0, "wrong bytes");
    assert!(hits > 0 && read > 0, "{hits} hits, {read} from peers");
    let slack = if is_strict() { SLACK_STRICT } else { SLACK };
    assert!(longest <= DEADLINE + slack, "a call took {longest:?}");
    let within = if is_strict() { CONVERGED_WITHIN } else { PATIENCE };
    assert!(converged.iter().all(|time| *time <= within), "not all know all in time");
}
