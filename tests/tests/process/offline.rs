//! A client without its daemon: hits go on, everything else is answered at once, and it comes back by itself.

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use lapis_benches::host::Host;
use lapis_client::{
    Client, ConnectOptions, GetOptions, HitPolicy, Key, Pool, PutOptions, PutResult, Refusal, ReserveResult, Wait,
};

use super::{
    PATIENCE, alone, asked,
    blocks::{self, SMALL, bytes_of, get, keys},
    eventually, is_strict,
    machine::{MIB, adopted, at, host, status},
    quantile, quantiles,
};

const DRAM: u64 = 64 * MIB;
const THERE: u64 = 64;
/// What was promised of 95 of 100, and what a machine that does other things too gets.
const ANSWER_WITHIN: Duration = Duration::from_millis(10);
const ANSWER_AT_LAST: Duration = Duration::from_secs(1);

/// A host and a client of it that finds the daemon only while a link is there.
struct Scene {
    client: Client,
    pool: Pool,
    link: PathBuf,
    host: Host,
}

impl Scene {
    fn new() -> Self {
        let mut host = host(DRAM);
        let link = host.folder().join("link");
        symlink(host.folder(), &link).expect("a link");
        let (path, options) = (link.join("lapis.sock"), ConnectOptions::default());
        let client = host
            .until("a client", |_| Ok(Client::connect(&path, options.clone()).ok()))
            .expect("the daemon takes clients");
        let pool = blocks::pool(&client, SMALL);
        assert_eq!(blocks::put_all(&client, &pool, 0..THERE), []);
        Self { client, pool, link, host }
    }

    fn cut(&self) {
        fs::remove_file(&self.link).expect("our link");
    }

    fn mend(&self) {
        symlink(self.host.folder(), &self.link).expect("a link");
        self.until_connected();
    }

    fn until_connected(&self) {
        eventually("the client's return", || self.client.is_connected().then_some(()));
    }

    /// All that needs no daemon.
    fn assert_hits(&self) {
        let (client, pool) = (&self.client, &self.pool);
        assert_eq!(blocks::hits(client, pool, 0..THERE), THERE);
        let asked = keys(0..THERE + 16);
        assert_eq!(client.exists(pool, &asked).expect("a sound call").count() as u64, THERE);
        let asks = [(pool.clone(), HitPolicy::Prefix)];
        assert_eq!(client.match_prefix(&asks, &asked).expect("a sound call") as u64, THERE);
    }

    fn views(&self) -> usize {
        self.client.view(&self.pool, &keys(0..8)).expect("few views").hits()
    }
}

/// Blocks that nobody ever puts.
fn absent() -> Vec<Key> {
    keys(1 << 40..(1 << 40) + 4)
}

fn waiting_get(client: &Client, pool: &Pool) {
    let options = GetOptions { wait: Wait::Absent, deadline: Some(PATIENCE), ..GetOptions::default() };
    assert_eq!(get(client, pool, &absent(), &options).0.hits, 0);
}

/// Puts until the daemon is gone. Every put is of new blocks, and has more time than a busy machine takes.
fn put_until_gone(client: &Client, pool: &Pool, first: u64) {
    let options = PutOptions { deadline: Some(PATIENCE) };
    for id in first.. {
        let key = keys(id..id + 1);
        let put = client.put_from(pool, &key, None, &bytes_of(&key, SMALL), &options);
        match put.expect("a sound call").results[0] {
            PutResult::Refused(Refusal::Gone) => return,
            PutResult::Refused(other) => panic!("{other}"),
            PutResult::Stored | PutResult::Exists => {}
        }
    }
}

fn reserve_until_gone(client: &Client, pool: &Pool) {
    loop {
        let reserved = client.reserve(pool, &absent(), None, &PutOptions::default()).expect("a sound call");
        match reserved.results()[0] {
            ReserveResult::Refused(Refusal::Gone) => return,
            ReserveResult::Refused(other) => panic!("{other}"),
            ReserveResult::Slot(_) | ReserveResult::Exists => {}
        }
    }
}

#[test]
fn calls_under_way_when_the_daemon_is_killed_are_answered_within_milliseconds_and_hits_go_on() {
    let _alone = alone();
    let rounds = asked("LAPIS_OFFLINE_ROUNDS", 15);
    let mut scene = Scene::new();
    let mut times: [(&str, Vec<Duration>); 3] =
        [("waiting get", Vec::new()), ("put", Vec::new()), ("reserve", Vec::new())];
    let mut after = Vec::new();
    for round in 0..rounds {
        let Scene { client, pool, host, .. } = &mut scene;
        let (client, pool, socket) = (&*client, &*pool, host.socket());
        thread::scope(|scope| {
            let ended = |call: &dyn Fn()| {
                call();
                Instant::now()
            };
            let calls = [
                scope.spawn(move || ended(&|| waiting_get(client, pool))),
                scope.spawn(move || ended(&|| put_until_gone(client, pool, 10_000 * (round + 1)))),
                scope.spawn(move || ended(&|| reserve_until_gone(client, pool))),
            ];
            // By then the daemon has heard of all three.
            let stored = at(&status(&socket).expect("it answers"), "/puts/stored");
            eventually("puts", || (at(&status(&socket)?, "/puts/stored") > stored + 20).then_some(()));
            let killed = Instant::now();
            host.kill_daemon().expect("it can be killed");
            for ((_, times), call) in times.iter_mut().zip(calls) {
                times.push(call.join().expect("it was answered").saturating_duration_since(killed));
            }
        });
        assert!(!scene.client.is_connected());
        // Later calls do not even wait.
        let began = Instant::now();
        waiting_get(&scene.client, &scene.pool);
        put_until_gone(&scene.client, &scene.pool, 5_000_000);
        reserve_until_gone(&scene.client, &scene.pool);
        after.push(began.elapsed());
        scene.host.start_daemon().expect("another daemon");
        scene.until_connected();
        adopted(&scene.host);
        // Whatever the puts evicted is there again.
        assert_eq!(blocks::put_all(&scene.client, &scene.pool, 0..THERE), []);
        scene.assert_hits();
    }
    for (name, times) in &mut times {
        println!("kill to the answer of a {name}: {}", quantiles(times));
        assert!(quantile(times, 1000) < ANSWER_AT_LAST, "{name}: {}", quantiles(times));
        if is_strict() {
            assert!(quantile(times, 950) < ANSWER_WITHIN, "{name}: {}", quantiles(times));
        }
    }
    println!("one of each without a daemon: {}", quantiles(&mut after));
}

#[test]
fn no_view_is_given_under_another_daemon_until_the_client_is_back() {
    let _alone = alone();
    let mut scene = Scene::new();
    for _ in 0..3 {
        assert_eq!(scene.views(), 8);
        let held = scene.client.view(&scene.pool, &keys(0..1)).expect("few views");
        scene.cut();
        scene.host.kill_daemon().expect("it can be killed");
        eventually("the hang-up", || (!scene.client.is_connected()).then_some(()));
        scene.assert_hits();
        assert_eq!(scene.views(), 8, "the daemon is dead, but it is the same one");
        scene.host.start_daemon().expect("another daemon");
        assert_eq!(adopted(&scene.host)["start"], "warm");
        assert_eq!(scene.views(), 0, "nobody looks at this client's hazards for sure");
        scene.assert_hits();
        scene.mend();
        assert!(held[0].as_ref().expect("a hit").still_valid(), "its page was kept");
        assert_eq!(scene.views(), 8);
        scene.assert_hits();
    }
}

#[test]
fn after_a_cold_start_the_client_drops_its_maps_and_works_on() {
    let _alone = alone();
    let mut scene = Scene::new();
    let table_before = scene.client.session().expect("here").table_id();
    scene.host.kill_daemon().expect("it can be killed");
    scene.host.options_mut().dram_bytes = DRAM / 2;
    scene.assert_hits();
    scene.host.start_daemon().expect("another daemon");
    eventually("the new table", || {
        (scene.client.is_connected() && scene.client.session().expect("here").table_id() != table_before).then_some(())
    });
    let said = adopted(&scene.host);
    assert!(said["start"].as_str().is_some_and(|start| start.starts_with("cold: ")), "{said}");
    assert_eq!(blocks::hits(&scene.client, &scene.pool, 0..THERE), 0);
    // No other client is in this process while this test runs.
    eventually("the end of the old maps", || (tables_mapped() == 1).then_some(()));
    assert_eq!(blocks::put_all(&scene.client, &scene.pool, 0..THERE), []);
    scene.assert_hits();
    assert_eq!(scene.views(), 8);
}

/// Block tables that this process maps.
fn tables_mapped() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("it is there on Linux");
    maps.lines().filter(|line| line.contains("default.table")).count()
}
