//! `kill -9` of a daemon that writes to, reads from and reuses its SSD tier, with and without what was in memory.

use std::{collections::BTreeSet, ops::Range, time::Duration};

use lapis_benches::host::Host;
use lapis_client::{Client, ClientError, GetOptions, Pool};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    PATIENCE, alone, asked,
    blocks::{self, SMALL, keys},
    eventually,
    machine::{adopted, at, connect},
    quantiles,
    ssd::{DRAM, Entries, Files, Served, serves},
    worker::Worker,
};

/// Ids of the two that put and read: together more than memory and files hold, so that segments are reused.
const FLOODED: [Range<u64>; 2] = [0..20_000, 50_000..70_000];
/// Of those that are removed, some in each round.
const REMOVED_FIRST: u64 = 1_000_000;
const REMOVED: u64 = 8;
/// Blocks that each worker stores between two kills: both together about a segment.
const STORED: u64 = 512;
/// Of what counted as on SSD, so many are read after a kill.
const READ: usize = 256;

struct Scene {
    host: Host,
    flooders: Vec<Worker>,
    /// Connected under the daemon that gets killed.
    client: Client,
    removed: BTreeSet<u64>,
    random: fastrand::Rng,
    served: usize,
    sums: Sums,
}

#[derive(Debug, Default)]
struct Sums {
    counted: u64,
    found: u64,
    read: u64,
    removed: u64,
    starts: Vec<Duration>,
}

impl Scene {
    fn new(files: &Files) -> Self {
        let mut host = files.serving(DRAM, &[]);
        let socket = host.socket().display().to_string();
        let words = |ids: &Range<u64>| [ids.start, ids.end, ids.start + 7].map(|number| number.to_string());
        let flooders = FLOODED.iter().map(|ids| {
            let [first, end, seed] = words(ids);
            Worker::start("flooder", &[&socket, &first, &end, &seed])
        });
        let flooders = flooders.collect();
        let client = connect(&mut host);
        Self {
            host,
            flooders,
            client,
            removed: BTreeSet::new(),
            random: fastrand::Rng::with_seed(0x55d),
            served: 1,
            sums: Sums::default(),
        }
    }

    fn round(&mut self, round: u64, cold: bool) {
        self.load(round);
        let entries = Entries::of(&self.host);
        self.host.kill_daemon().expect("it can be killed");
        self.flooders.iter().for_each(|flooder| send(flooder, Signal::STOP));
        let pool = blocks::pool(&self.client, SMALL);
        let counted = entries.on_ssd(&self.client, &pool, FLOODED.into_iter().flatten());
        if cold {
            self.host.kill_holder().expect("it can be killed");
            self.host.start_holder().expect("another holder");
        }
        self.host.start_daemon().expect("another daemon");
        self.served += 1;
        let served = serves(&mut self.host, self.served);
        self.judge(&counted, served, cold);
        self.flooders.iter().for_each(|flooder| send(flooder, Signal::CONT));
        eventually("the client's return", || self.client.is_connected().then_some(()));
    }

    /// Puts and gets go on; what was put a round ago is removed.
    fn load(&mut self, round: u64) {
        let (client, pool) = (&self.client, blocks::pool(&self.client, SMALL));
        let this = REMOVED_FIRST + round * REMOVED;
        blocks::put_all(client, &pool, this..this + REMOVED);
        for flooder in &mut self.flooders {
            let wanted = at(&flooder.ask(), "/stored") + STORED;
            eventually("puts of a worker", || (at(&flooder.ask(), "/stored") >= wanted).then_some(()));
        }
        if round > 0 {
            let former = this - REMOVED..this;
            match client.remove(&pool, &keys(former.clone()), Some(PATIENCE)) {
                Ok(_) => self.removed.extend(former),
                Err(ClientError::Gone | ClientError::Late { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// What there is after a restart, before anybody puts anything.
    fn judge(&mut self, counted: &[u64], served: Served, cold: bool) {
        let status = adopted(&self.host);
        assert_eq!(status["start"] == "warm", !cold, "{status}");
        let client = connect(&mut self.host);
        let pool = blocks::pool(&client, SMALL);
        assert!(served.blocks >= counted.len() as u64, "{served:?}, but {} counted", counted.len());
        let session = client.session().expect("here");
        let is_there = |id: u64| session.find(&pool, &keys(id..id + 1)[0]).is_some();
        if cold {
            // Else what was in memory alone is written behind, and may have taken the room of the oldest.
            let lost: Vec<u64> = counted.iter().copied().filter(|id| !is_there(*id)).collect();
            assert!(lost.is_empty(), "{lost:?} are lost of {} blocks that counted as on SSD", counted.len());
        }
        let back: Vec<u64> = self.removed.iter().copied().filter(|id| is_there(*id)).collect();
        assert!(back.is_empty(), "removed blocks are there again: {back:?}");
        let sample: Vec<u64> =
            (0..READ.min(counted.len())).map(|_| counted[self.random.usize(..counted.len())]).collect();
        let read: u64 = sample.chunks(16).map(|ids| read(&client, &pool, ids)).sum();
        assert!(!cold || read == sample.len() as u64, "{read} of {} blocks that are on SSD can be read", sample.len());
        self.sums.counted += counted.len() as u64;
        self.sums.found += served.blocks;
        self.sums.read += read;
        self.sums.removed = self.removed.len() as u64;
        self.sums.starts.push(Duration::from_micros(served.us));
    }
}

/// Reads blocks of the tier and judges every byte; how many are hits.
fn read(client: &Client, pool: &Pool, ids: &[u64]) -> u64 {
    let keys: Vec<_> = ids.iter().flat_map(|id| keys(*id..*id + 1)).collect();
    let options = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
    let (got, wrong) = blocks::get(client, pool, &keys, &options);
    assert_eq!(wrong, 0, "wrong bytes");
    got.hits as u64
}

fn send(worker: &Worker, signal: Signal) {
    let pid = Pid::from_raw(worker.pid() as i32).expect("a process");
    kill_process(pid, signal).expect("our child");
}

fn kills(files: &Files) {
    let _alone = alone();
    kills_over(files, asked("LAPIS_SSD_KILLS", 8).div_ceil(2));
}

/// So many kills of a daemon over these.
pub fn kills_over(files: &Files, kills: u64) {
    let mut scene = Scene::new(files);
    for round in 0..kills {
        scene.round(round, round % 2 == 1);
    }
    let flooded: Vec<Value> = scene.flooders.drain(..).map(Worker::finish).collect();
    let log = scene.host.daemon_log();
    assert!(!log.contains("MISUSE"), "SPDK was called wrongly: {log}");
    let Sums { counted, found, read, removed, mut starts } = scene.sums;
    println!("{kills} kills of the daemon, every other one with all memory; {} workers: {flooded:?}", flooded.len());
    println!("{counted} blocks counted as on SSD when they came, {found} found, {read} read; {removed} removed");
    println!("start to service from SSD: {}", quantiles(&mut starts));
    for tally in &flooded {
        assert_eq!(at(tally, "/wrong"), 0, "wrong bytes");
        assert!(at(tally, "/stored") > 0 && at(tally, "/hits") > 0, "it did nothing: {tally}");
    }
    assert!(counted > 0 && read > 0, "nothing went to SSD");
}

#[test]
fn killed_daemons_lose_no_block_that_counted_as_on_their_ssd_and_give_no_wrong_byte() {
    kills(&Files::new(1));
}

#[test]
fn nor_do_they_over_two_ssds() {
    kills(&Files::new(2));
}

#[test]
fn nor_do_they_over_controllers_of_spdk() {
    if let Some(controllers) = Files::controllers(2) {
        kills(&controllers);
    }
}
