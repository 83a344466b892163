//! Clients of a fake daemon behind a real socket: waiting, deadlines, hang-ups, returns, forks.

mod fake;

use std::{
    os::fd::AsFd,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fake::{BLOCK_BYTES, Fake, key, keys, payload, server::Server, shape};
use lapis_arena::LineState;
use lapis_client::{
    Client, ClientError, ConnectOptions, GetOptions, HitPolicy, Key, Namespace, NewObject, ObjectDst, ObjectInfo,
    ObjectStatus, Pool, PoolKind, PoolShape, PutOptions, PutResult, Refusal, Wait,
};
use lapis_config::PoolId;
use lapis_transport::frame::{Completion, Request};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a condition; that it comes is asserted, not when.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come about");
        std::thread::sleep(Duration::from_micros(200));
    }
}

struct Scene {
    folder: tempfile::TempDir,
    server: Server,
    client: Client,
    pool: Pool,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::start(&folder.path().join("lapis.sock"), Fake::new());
        let client = server.connect();
        let pool = client.pool(&shape("kv", BLOCK_BYTES, 1)).expect("a pool");
        Self { folder, server, client, pool }
    }

    fn with_blocks(count: u64) -> Self {
        let scene = Self::new();
        put(&scene.client, &scene.pool, 0..count);
        scene
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("lapis.sock")
    }
}

fn bytes_of(range: std::ops::Range<u64>) -> Vec<u8> {
    range.flat_map(|n| payload(n, 0, BLOCK_BYTES)).collect()
}

fn put(client: &Client, pool: &Pool, range: std::ops::Range<u64>) {
    let (batch, bytes) = (keys(range.clone()), bytes_of(range));
    let put = client.put_from(pool, &batch, None, &bytes, &PutOptions::default()).expect("a sound call");
    assert_eq!(put.stored(), batch.len(), "{:?}", put.results);
}

fn hits(client: &Client, pool: &Pool, range: std::ops::Range<u64>) -> usize {
    let (batch, mut buffer) = (keys(range.clone()), vec![0; (range.end - range.start) as usize * BLOCK_BYTES]);
    let got = client.get_into(pool, &batch, &mut buffer, &GetOptions::default()).expect("a sound call");
    for ((n, status), block) in range.zip(&got.statuses).zip(buffer.chunks(BLOCK_BYTES)) {
        assert!(!status.is_hit() || block == payload(n, 0, BLOCK_BYTES), "wrong bytes of block {n}");
    }
    got.hits
}

#[test]
fn what_is_put_is_found_and_read_though_the_daemon_sleeps_between() {
    let Scene { server, client, pool, .. } = Scene::with_blocks(40);
    assert_eq!(client.match_prefix(&[(pool.clone(), HitPolicy::Prefix)], &keys(0..50)).expect("a sound call"), 40);
    assert_eq!(hits(&client, &pool, 0..50), 40);
    assert_eq!(client.view(&pool, &keys(38..42)).expect("a sound call").hits(), 2);
    assert_eq!(client.remove(&pool, &keys(3..5), None).expect("an answer"), 2);
    assert_eq!(client.exists(&pool, &keys(0..50)).expect("a sound call").count(), 38);
    client.prefetch(&pool, &keys(0..1)).expect("posted");
    let came = |frame: &Request| matches!(frame, Request::Prefetch { .. });
    until("the prefetch", || server.with(move |fake| fake.frames.iter().any(came)));
}

#[test]
fn many_threads_wait_for_their_own_answers() {
    let Scene { server: _server, client, pool, .. } = Scene::new();
    let threads: Vec<_> = (0..6u64)
        .map(|thread| {
            let (client, pool) = (client.clone(), pool.clone());
            std::thread::spawn(move || {
                for round in 0..6 {
                    let first = thread * 1000 + round * 10;
                    put(&client, &pool, first..first + 6);
                    assert_eq!(hits(&client, &pool, first..first + 6), 6);
                    client.remove(&pool, &keys(first..first + 6), None).expect("an answer");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("right bytes for all"));
}

/// In each round two threads have one answer each to wait for, while a third one waits for what does not come: who misses
/// that its answer was taken in by another thread hears of nothing more before its deadline.
#[test]
fn an_answer_that_another_thread_took_in_is_not_waited_for() {
    const ROUNDS: u64 = 30_000;
    let Scene { server, client, pool, folder: _folder } = Scene::new();
    let (client, pool, together, stalled) = (&client, &pool, &Barrier::new(2), &AtomicBool::new(false));
    let hits = std::thread::scope(|scope| {
        let long = scope.spawn(|| {
            let options = GetOptions { wait: Wait::Absent, deadline: Some(20 * PATIENCE), ..GetOptions::default() };
            let mut buffer = vec![0; BLOCK_BYTES];
            client.get_into(pool, &keys(0..1), &mut buffer, &options).expect("a sound call").hits
        });
        let asking = [1, 2].map(|n| {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    together.wait();
                    let began = Instant::now();
                    let removed = client.remove(pool, &keys(n..n + 1), Some(2 * PATIENCE)).expect("an answer");
                    assert_eq!(removed, 0, "round {round}");
                    stalled.fetch_or(began.elapsed() > PATIENCE, Ordering::Relaxed);
                    together.wait();
                    if stalled.load(Ordering::Relaxed) {
                        return;
                    }
                }
            })
        });
        asking.into_iter().for_each(|thread| thread.join().expect("no panic"));
        server.kill();
        long.join().expect("no panic")
    });
    assert_eq!(hits, 0);
    assert!(!stalled.load(Ordering::Relaxed), "an answer was there, and was waited for");
}

#[test]
fn no_call_outlives_its_deadline() {
    let Scene { server, client, pool, .. } = Scene::with_blocks(1);
    server.with(|fake| fake.is_silent = true);
    let soon = Duration::from_millis(20);
    let start = Instant::now();
    let (batch, mut bytes) = (keys(0..3), bytes_of(0..3));
    let put_options = PutOptions { deadline: Some(soon) };
    let put = client.put_from(&pool, &batch, None, &bytes, &put_options).expect("a sound call");
    let late = PutResult::Refused(Refusal::Late);
    assert_eq!(put.results, [PutResult::Exists, late, late]);
    let options = GetOptions { wait: Wait::Absent, deadline: Some(soon), ..GetOptions::default() };
    assert_eq!(client.get_into(&pool, &batch, &mut bytes, &options).expect("a sound call").hits, 1);
    let error = client.remove(&pool, &batch, Some(soon)).expect_err("no answer");
    assert!(matches!(error, ClientError::Late { after } if after == soon), "{error}");
    let reserved = client.reserve(&pool, &batch, None, &put_options).expect("a sound call");
    assert_eq!(reserved.results().len(), 3);
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn a_deadline_may_be_longer_than_time_itself() {
    let Scene { server: _server, client, pool, .. } = Scene::with_blocks(2);
    for deadline in [Duration::MAX, Duration::from_secs(u64::MAX / 2), Duration::from_secs(1 << 40)] {
        let (batch, mut buffer) = (keys(0..3), vec![0; 3 * BLOCK_BYTES]);
        let options = GetOptions { deadline: Some(deadline), ..GetOptions::default() };
        assert_eq!(client.get_into(&pool, &batch, &mut buffer, &options).expect("a sound call").hits, 2);
        let mut ticket = client.begin_get(&pool, &batch[..2], &mut buffer[..2 * BLOCK_BYTES], &options).expect("sound");
        assert_eq!(ticket.poll().expect("it is ours").expect("all is in memory").hits, 2);
        drop(ticket);
        assert_eq!(client.remove(&pool, &keys(7..8), Some(deadline)).expect("an answer"), 0);
    }
}

#[test]
fn an_interrupted_call_ends_and_another_one_does_not() {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    static ASKED: AtomicBool = AtomicBool::new(false);
    let Scene { server, pool: _pool, folder, .. } = Scene::new();
    let interrupted: fn() -> bool = || {
        ASKED.store(true, Ordering::Relaxed);
        INTERRUPTED.load(Ordering::Relaxed)
    };
    let options = ConnectOptions { interrupted: Some(interrupted), ..ConnectOptions::default() };
    let client = Client::connect(folder.path().join("lapis.sock"), options).expect("a daemon");
    let pool = client.pool(&shape("kv", BLOCK_BYTES, 1)).expect("a pool");
    let never = |deadline| {
        let mut buffer = vec![0; BLOCK_BYTES];
        let options = GetOptions { wait: Wait::Absent, deadline: Some(deadline), ..GetOptions::default() };
        client.get_into(&pool, &keys(99..100), &mut buffer, &options).expect("a sound call").hits
    };
    // The fake daemon lets such a get wait: only the deadline, or what interrupts, ends it.
    server.with(|fake| fake.is_silent = true);
    let began = Instant::now();
    assert_eq!(never(Duration::from_millis(300)), 0);
    assert!(began.elapsed() >= Duration::from_millis(300), "asked and answered no, it went on");
    assert!(ASKED.load(Ordering::Relaxed), "nobody was asked");
    INTERRUPTED.store(true, Ordering::Relaxed);
    assert_eq!(never(10 * PATIENCE), 0);
    assert!(began.elapsed() < PATIENCE, "it was asked and did not end");
}

#[test]
fn without_the_daemon_hits_go_on_and_all_else_is_answered_at_once() {
    let scene = Scene::with_blocks(4);
    let (client, pool) = (scene.client.clone(), scene.pool.clone());
    // Callers that wait for the daemon while it dies are woken.
    let waiting = std::thread::spawn({
        let (client, pool) = (client.clone(), pool.clone());
        move || {
            let (batch, mut buffer) = (keys(0..8), vec![0; 8 * BLOCK_BYTES]);
            let options = GetOptions { wait: Wait::Absent, deadline: Some(PATIENCE * 2), ..GetOptions::default() };
            client.get_into(&pool, &batch, &mut buffer, &options).expect("a sound call").hits
        }
    });
    until("a waiting get", || scene.server.with(|fake| !fake.waiting.is_empty()));
    let fake = scene.server.kill();
    assert_eq!(waiting.join().expect("it returned"), 4);
    until("the hang-up", || !client.is_connected());
    assert_eq!(hits(&client, &pool, 0..6), 4);
    assert_eq!(client.view(&pool, &keys(0..6)).expect("a sound call").hits(), 4, "the instance is the same still");
    let (batch, bytes) = (keys(10..12), bytes_of(10..12));
    let put = client.put_from(&pool, &batch, None, &bytes, &PutOptions::default()).expect("a sound call");
    assert_eq!(put.results, [PutResult::Refused(Refusal::Gone); 2]);
    assert!(matches!(client.purge(&pool, None), Err(ClientError::Gone)));
    assert!(matches!(client.pool(&shape("other", BLOCK_BYTES, 1)), Err(ClientError::Gone)));
    drop(fake);
    assert_eq!(hits(&client, &pool, 0..6), 4, "the mapping is ours");
}

#[test]
fn a_client_comes_back_by_itself_to_a_warm_daemon() {
    let scene = Scene::with_blocks(4);
    let path = scene.path();
    let Scene { server, client, pool, folder: _folder } = scene;
    let view = client.view(&pool, &keys(1..2)).expect("a sound call");
    let (stop, reader) = (Arc::new(AtomicBool::new(false)), client.clone());
    let reading = std::thread::spawn({
        let (stop, pool) = (stop.clone(), pool.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(hits(&reader, &pool, 0..4), 4, "a miss because of a restart");
            }
        }
    });
    let mut fake = server.kill();
    fake.restart();
    until("the hang-up", || !client.is_connected());
    assert_eq!(client.view(&pool, &keys(0..1)).expect("a sound call").hits(), 0, "another instance");
    let server = Server::start(&path, fake);
    until("the return", || client.is_connected());
    assert_eq!(client.view(&pool, &keys(0..1)).expect("a sound call").hits(), 1);
    assert!(view[0].as_ref().expect("a hit").still_valid());
    assert_eq!(server.with(|fake| fake.clients.len()), 1, "the same client");
    put(&client, &pool, 4..20);
    assert_eq!(hits(&client, &pool, 0..20), 20);
    stop.store(true, Ordering::Relaxed);
    reading.join().expect("no miss");
}

#[test]
fn after_a_cold_start_the_old_memory_goes_and_pools_are_opened_again() {
    let scene = Scene::with_blocks(4);
    let path = scene.path();
    let Scene { server, client, pool, folder: _folder } = scene;
    let view = client.view(&pool, &keys(1..2)).expect("a sound call");
    server.kill();
    let mut cold = Fake::new();
    cold.open_pool(&shape("somebody else's", BLOCK_BYTES, 1));
    let server = Server::start(&path, cold);
    until("the new table", || hits(&client, &pool, 0..4) == 0 && client.is_connected());
    let view = view[0].as_ref().expect("a hit");
    assert!(!view.still_valid());
    let mut bytes = vec![0; BLOCK_BYTES];
    view.copy_to(0, &mut bytes).expect("the old mapping lives on");
    assert!(bytes == payload(1, 0, BLOCK_BYTES));
    put(&client, &pool, 0..8);
    assert_eq!(hits(&client, &pool, 0..8), 8);
    assert_eq!(server.with(|fake| fake.pools.len()), 2, "under another number");
}

#[test]
fn tickets_get_on_when_the_descriptor_says_so() {
    let Scene { server: _server, client, pool, .. } = Scene::with_blocks(2);
    let (batch, bytes) = (keys(0..30), bytes_of(0..30));
    let mut ticket = client.begin_put(&pool, &batch, None, &bytes, &PutOptions::default()).expect("a sound call");
    let put = loop {
        client.acknowledge().expect("it is ours");
        if let Some(put) = ticket.poll().expect("it is ours") {
            break put;
        }
        let mut fds = [rustix::event::PollFd::new(&client, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        rustix::event::poll(&mut fds, Some(&timeout)).expect("a descriptor");
    };
    assert_eq!((put.stored(), put.refused()), (28, 0), "{:?}", put.results);
    drop(ticket);
    assert_eq!(hits(&client, &pool, 0..30), 30);
    let _ = client.as_fd();
}

#[test]
fn a_ticket_whose_answer_another_one_took_in_is_told_of_it() {
    let Scene { server, client, pool, .. } = Scene::with_blocks(4);
    let answered = |count: usize| {
        let is_get = |frame: &&Request| matches!(frame, Request::Get { .. });
        until("the answers", || server.with(move |fake| fake.frames.iter().filter(is_get).count() == count));
    };
    server.with(|fake| {
        (0..4).for_each(|n| fake.demote(PoolId(0), &key(n)));
        fake.is_silent = true;
    });
    let (first, second) = (keys(0..2), keys(2..4));
    let mut buffers = [vec![0; 2 * BLOCK_BYTES], vec![0; 2 * BLOCK_BYTES]];
    let [one, two] = &mut buffers;
    let options = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
    let mut one = client.begin_get(&pool, &first, one, &options).expect("a sound call");
    assert!(one.poll().expect("it is ours").is_none());
    let mut two = client.begin_get(&pool, &second, two, &options).expect("a sound call");
    assert!(two.poll().expect("it is ours").is_none());
    server.with(|fake| fake.is_silent = false);
    answered(2);
    // Whoever takes the answers in first, the descriptor says so to the holder of the other ticket.
    until("the second get", || two.poll().expect("it is ours").is_some());
    let mut fds = [rustix::event::PollFd::new(&client, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 })).expect("a descriptor");
    assert!(!fds[0].revents().is_empty(), "nobody is told");
    until("the first get", || one.poll().expect("it is ours").is_some());
}

#[test]
fn a_taken_object_is_there_no_more_wherever_its_bytes_came_from() {
    let Scene { server: _server, client, .. } = Scene::new();
    let shape = PoolShape { kind: PoolKind::Object, block_bytes: 1 << 20, ..shape("objects", BLOCK_BYTES, 1) };
    let pool = client.pool(&shape).expect("a pool");
    let object = payload(3, 7, 200_000);
    for cut in [0, 1, 64, 199_999, 200_000] {
        let vectors = [&object[..cut], &object[cut..]];
        let put = client.put_object_vectored(&pool, b"n", &vectors, &PutOptions::default()).expect("a sound call");
        assert_eq!(put, PutResult::Stored);
        assert!(client.take_object(&pool, b"n", Wait::Present, None).expect("a sound call") == Some(object.clone()));
        assert_eq!(client.take_object(&pool, b"n", Wait::Present, None).expect("a sound call"), None);
    }
    let soon = Some(Duration::from_millis(20));
    assert_eq!(client.await_object(&pool, b"n", Wait::Absent, soon).expect("a sound call"), None);
}

#[test]
fn objects_have_names_and_any_length() {
    let Scene { server: _server, client, .. } = Scene::new();
    let shape = PoolShape { kind: PoolKind::Object, block_bytes: 1 << 20, ..shape("objects", BLOCK_BYTES, 1) };
    let pool = client.pool(&shape).expect("a pool");
    let options = PutOptions::default();
    for (name, bytes) in [(&b"a"[..], 0), (b"b", 1), (b"a rather longer name, beyond what a key holds", 300_000)] {
        let object = payload(bytes as u64, 7, bytes);
        assert_eq!(client.put_object(&pool, name, &object, &options).expect("a sound call"), PutResult::Stored);
        assert_eq!(client.put_object(&pool, name, b"other", &options).expect("a sound call"), PutResult::Exists);
        assert!(client.get_object(&pool, name, None).expect("a sound call") == Some(object));
    }
    assert_eq!(client.get_object(&pool, b"c", None).expect("a sound call"), None);
    assert!(client.remove_object(&pool, b"b", None).expect("an answer"));
    assert_eq!(client.get_object(&pool, b"b", None).expect("a sound call"), None);
    let long = vec![0; (1 << 20) + 1];
    let refused = client.put_object(&pool, b"d", &long, &options).expect("a sound call");
    assert_eq!(refused, PutResult::Refused(Refusal::TooLarge));
    assert!(matches!(client.get_object(&pool, &[0; 1025], None), Err(ClientError::Name { bytes: 1025 })));
    assert!(matches!(client.view(&pool, &[]), Err(ClientError::KeyCount { keys: 0 })));
}

/// A name and the bytes under it.
type Object = (Vec<u8>, Vec<u8>);

/// A pool of objects, and some of them that make up a batch: a few sizes of slots, one without bytes.
fn objects(client: &Client) -> (Pool, Vec<Object>) {
    let shape = PoolShape { kind: PoolKind::Object, block_bytes: 1 << 20, ..shape("objects", BLOCK_BYTES, 1) };
    let sizes = [100, 70_000, 0, 100, 200_000, 3, 70_000];
    let objects =
        sizes.iter().enumerate().map(|(n, bytes)| (format!("object {n}").into_bytes(), payload(n as u64, 7, *bytes)));
    (client.pool(&shape).expect("a pool"), objects.collect())
}

#[test]
fn a_batch_of_objects_is_put_and_read_with_an_answer_for_each() {
    let Scene { server, client, .. } = Scene::new();
    let (pool, objects) = objects(&client);
    let halves: Vec<[&[u8]; 2]> = objects.iter().map(|(_, bytes)| bytes.split_at(bytes.len() / 3).into()).collect();
    let mut batch: Vec<NewObject<'_>> =
        objects.iter().zip(&halves).map(|((name, _), vectors)| NewObject { name, vectors }).collect();
    let long = vec![0; (1 << 20) + 1];
    let too_long: [&[u8]; 1] = [&long];
    batch.insert(2, NewObject { name: b"too long", vectors: &too_long });
    batch.push(NewObject { name: b"object 1", vectors: &[b"of a name that is given twice"] });
    let put = client.put_objects(&pool, &batch, &PutOptions::default()).expect("a sound call");
    assert_eq!(put.results[2], PutResult::Refused(Refusal::TooLarge));
    assert_eq!((put.stored(), put.refused(), put.results[8]), (objects.len(), 1, PutResult::Exists));
    let reserves = server.with(|fake| {
        let sizes = fake.frames.iter().filter_map(|frame| match frame {
            Request::Reserve { slot_bytes, keys, .. } => Some((*slot_bytes, keys.len())),
            _ => None,
        });
        sizes.collect::<Vec<_>>()
    });
    assert_eq!(reserves.len(), 3, "one for each size of slots: {reserves:?}");

    let mut names: Vec<&[u8]> = objects.iter().map(|(name, _)| &name[..]).collect();
    names.insert(1, b"none");
    let got = client.get_objects(&pool, &names, None).expect("a sound call");
    assert_eq!(got.iter().flatten().collect::<Vec<_>>(), objects.iter().map(|(_, bytes)| bytes).collect::<Vec<_>>());
    assert_eq!(got[1], None);
    let infos = client.find_objects(&pool, &names).expect("a sound call");
    assert_eq!(infos[1], None);
    assert_eq!(infos[2], Some(ObjectInfo { bytes: Some(70_000), in_memory: true }));
    let again = client.put_objects(&pool, &batch[..2], &PutOptions::default()).expect("a sound call");
    assert_eq!(again.results, [PutResult::Exists; 2]);
}

#[test]
fn the_daemon_is_told_of_each_object_of_a_batch_that_was_read() {
    let Scene { server, client, .. } = Scene::new();
    let (pool, objects) = objects(&client);
    for (name, bytes) in &objects {
        client.put_object(&pool, name, bytes, &PutOptions::default()).expect("a sound call");
    }
    let told = || {
        server.with(|fake| {
            let mut lines = Vec::new();
            fake.clients[0].control.drain_touches(1_000, &mut |touch| lines.push((touch.line, touch.hit)));
            lines
        })
    };
    told();
    let names: Vec<&[u8]> = objects.iter().map(|(name, _)| &name[..]).chain([&b"none"[..]]).collect();
    client.get_objects(&pool, &names, None).expect("a sound call");
    let keys = objects.iter().map(|(name, _)| Key::new(name)).collect::<Vec<_>>();
    let lines = server.with(move |fake| {
        let line = |key: &Key| fake.writer.find(PoolId(1), key).expect("a published object").line.0;
        keys.iter().map(|key| (line(key), 1)).collect::<Vec<_>>()
    });
    assert_eq!(told(), lines, "each by itself: objects have no parents");
}

#[test]
fn an_object_goes_to_its_places_in_turn_or_by_ranges_wherever_it_was() {
    let Scene { server, client, .. } = Scene::new();
    let (pool, objects) = objects(&client);
    let (name, bytes) = &objects[4];
    for (name, bytes) in &objects {
        client.put_object(&pool, name, bytes, &PutOptions::default()).expect("a sound call");
    }
    for demoted in [false, true] {
        if demoted {
            server.with(|fake| fake.demote(PoolId(1), &Key::new(b"object 4")));
            let info = client.find_objects(&pool, &[name]).expect("a sound call")[0];
            assert_eq!(info, Some(ObjectInfo { bytes: Some(200_000), in_memory: false }));
        }
        let (mut one, mut two, mut short) = (vec![0; 150_000], vec![0; 90_000], vec![9; 69_999]);
        let (mut head, mut tail, mut beyond) = ([0; 5], [0; 7], [0; 7]);
        let vector = |bytes: &mut [u8]| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let ranges = vec![(0, vector(&mut head)), (199_993, vector(&mut tail)), (199_994, vector(&mut beyond))];
        let mut places = [std::io::IoSliceMut::new(&mut one), std::io::IoSliceMut::new(&mut two)];
        // SAFETY: they live until the end of this turn, and nobody else uses them in the call.
        let ranges = unsafe { ObjectDst::ranges(ranges) };
        let mut dsts = [
            ObjectDst::from(&mut places[..]),
            ObjectDst::from(&mut short[..]),
            ranges,
            ObjectDst::from(&mut [] as &mut [u8]),
        ];
        let names: [&[u8]; 4] = [name, b"object 1", name, b"none"];
        let statuses = client.get_objects_into(&pool, &names, &mut dsts, None).expect("a sound call");
        let hit = ObjectStatus::Hit { bytes: 200_000 };
        assert_eq!(statuses, [hit, ObjectStatus::Long { bytes: 70_000 }, hit, ObjectStatus::Miss]);
        assert!(one == bytes[..150_000] && two[..50_000] == bytes[150_000..] && two[50_000..] == [0; 40_000]);
        assert!(short == [9; 69_999], "nothing is copied of what does not fit");
        assert!(head == bytes[..5] && tail == bytes[199_993..] && beyond == [0; 7]);
    }
    assert!(matches!(client.get_objects_into(&pool, &[name], &mut [], None), Err(ClientError::VectorCount { .. })));
}

#[test]
fn who_has_more_time_than_the_daemon_waits_asks_it_again() {
    let Scene { server, client, .. } = Scene::new();
    let (pool, _) = objects(&client);
    let awaiting = std::thread::spawn({
        let (client, pool) = (client.clone(), pool.clone());
        move || client.await_object(&pool, b"late", Wait::Absent, Some(PATIENCE * 2)).expect("a sound call")
    });
    let answer = |hit| {
        until("a waiting get", || server.with(|fake| !fake.waiting.is_empty()));
        server.with(move |fake| {
            let (at, token) = fake.waiting.pop().expect("a get that waits");
            assert!(fake.clients[at].control.push_completion(&Completion::Got { token, hit }));
        });
        // Its answer wakes the client.
        assert_eq!(client.remove(&pool, &[key(1)], None).expect("an answer"), 0);
    };
    answer(0);
    until("another get", || server.with(|fake| !fake.waiting.is_empty()));
    client.put_object(&pool, b"late", b"bytes", &PutOptions::default()).expect("a sound call");
    answer(1);
    assert_eq!(awaiting.join().expect("it returned").as_deref(), Some(&b"bytes"[..]));
}

#[test]
fn what_is_on_ssd_is_fetched_within_the_call() {
    let Scene { server, client, pool, .. } = Scene::with_blocks(60);
    let objects = PoolShape { kind: PoolKind::Object, block_bytes: 1 << 20, ..shape("objects", BLOCK_BYTES, 1) };
    let objects = client.pool(&objects).expect("a pool");
    let object = payload(1, 7, 300_000);
    client.put_object(&objects, b"name", &object, &PutOptions::default()).expect("a sound call");
    server.with(|fake| {
        (0..60).for_each(|n| fake.demote(PoolId(0), &key(n)));
        fake.demote(PoolId(1), &Key::new(b"name"));
    });
    assert_eq!(hits(&client, &pool, 0..60), 60);
    assert!(client.get_object(&objects, b"name", None).expect("a sound call") == Some(object));
}

#[test]
fn a_put_may_take_longer_the_more_bytes_it_has() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut fake = Fake::new();
    fake.is_silent = true;
    (fake.defaults.put_us, fake.defaults.get_bytes_per_s) = (1_000, 10 * BLOCK_BYTES as u64);
    let server = Server::start(&folder.path().join("lapis.sock"), fake);
    let client = server.connect();
    let pool = client.pool(&shape("kv", BLOCK_BYTES, 1)).expect("a pool");
    let (batch, bytes, start) = (keys(0..2), vec![0; 2 * BLOCK_BYTES], Instant::now());
    let put = client.put_from(&pool, &batch, None, &bytes, &PutOptions::default()).expect("a sound call");
    assert_eq!(put.refused(), 2);
    assert!(start.elapsed() >= Duration::from_millis(201), "{:?}", start.elapsed());
}

#[test]
fn a_forked_child_is_closed_and_leaves_the_parent_alone() {
    let Scene { server, client, pool, .. } = Scene::with_blocks(2);
    let views = client.view(&pool, &keys(0..1)).expect("a sound call");
    // SAFETY: the child makes only calls that touch neither locks nor memory held at the fork, and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut buffer = [0u8; BLOCK_BYTES];
        let closed = [
            client.exists(&pool, &[key(0)]).is_err(),
            matches!(
                client.get_into(&pool, &[key(0)], &mut buffer[..], &GetOptions::default()),
                Err(ClientError::Closed)
            ),
            matches!(
                client.put_from(&pool, &[key(9)], None, &buffer[..], &PutOptions::default()),
                Err(ClientError::Closed)
            ),
            matches!(client.view(&pool, &[key(0)]), Err(ClientError::Closed)),
            !client.is_connected(),
        ];
        drop(views);
        drop(client);
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(if closed == [true; 5] { 0 } else { 1 }) }
    }
    let mut status = 0;
    // SAFETY: waits for our own child; `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child found something open");
    assert!(server.with(|fake| fake.byes.is_empty()), "the child said nothing");
    let still_named = server.with(|fake| !fake.drop_block(lapis_config::PoolId(0), &key(0)));
    assert!(still_named, "the child did not release the parent's view");
    put(&client, &pool, 5..8);
}

#[test]
fn the_last_one_to_go_says_bye_once_everything_is_unmapped() {
    let Scene { server, client, pool, .. } = Scene::with_blocks(1);
    let views = client.view(&pool, &keys(0..1)).expect("a sound call");
    drop(client);
    assert!(server.with(|fake| fake.byes.is_empty()), "a view still reads");
    drop(views);
    until("the bye", || server.with(|fake| fake.byes.len() == 1));
}

#[test]
fn a_refused_pool_says_why() {
    let Scene { server: _server, client, .. } = Scene::new();
    let error = client.pool(&shape("refused", BLOCK_BYTES, 1)).expect_err("it is refused").to_string();
    assert!(error.contains("a label that is refused"), "{error}");
    let long = shape(&"x".repeat(49), BLOCK_BYTES, 1);
    let error = client.pool(&long).expect_err("too long").to_string();
    assert!(error.contains("49") && error.contains("48"), "{error}");
}

#[test]
fn an_unverified_block_is_checked_by_whoever_reads_it() {
    let Scene { server, client, pool, .. } = Scene::new();
    server.with(|fake| {
        let shape = shape("kv", BLOCK_BYTES, 1);
        for n in 0..2 {
            fake.publish(&shape, &key(n), &payload(n, 0, BLOCK_BYTES), LineState::Unverified);
        }
        let slot = fake.writer.find(lapis_config::PoolId(0), &key(1)).expect("published").slot;
        fake.write(slot, b"damage");
    });
    assert_eq!(hits(&client, &pool, 0..2), 1);
    assert_eq!(client.stats().expect("it is ours").blocks_corrupt, 1);
}

#[test]
fn status_is_asked_without_a_client() {
    let scene = Scene::new();
    assert_eq!(lapis_client::status(scene.path(), PATIENCE).expect("an answer"), "{}");
    let error = lapis_client::status(scene.folder.path().join("nobody"), PATIENCE).expect_err("nobody is there");
    assert!(error.is_transient(), "somebody may come");
}

#[test]
fn a_namespace_makes_a_pool_of_its_own() {
    let Scene { server: _server, client, pool, .. } = Scene::with_blocks(1);
    let namespace = Namespace::new("llama").dtype("fp8").fingerprint();
    let other = client.pool(&PoolShape { namespace, ..pool.shape().clone() }).expect("a pool");
    let found: [Key; 1] = [key(0)];
    assert_eq!(client.exists(&pool, &found).expect("a sound call").count(), 1);
    assert_eq!(client.exists(&other, &found).expect("a sound call").count(), 0);
}

#[test]
fn a_pool_of_another_client_is_refused_and_not_taken_for_one_of_the_same_number() {
    let scene = Scene::with_blocks(4);
    let other = scene.server.connect();
    let foreign = other.pool(&shape("other", BLOCK_BYTES, 1)).expect("a pool, the first of that client");
    let mut buffer = vec![0; 4 * BLOCK_BYTES];
    let is_foreign = |error: ClientError| matches!(error, ClientError::ForeignPool { ref label } if label == "other");
    let (client, batch) = (&scene.client, keys(0..4));
    assert!(is_foreign(client.exists(&foreign, &batch).expect_err("another's")));
    assert!(is_foreign(client.match_prefix(&[(foreign.clone(), HitPolicy::Prefix)], &batch).expect_err("another's")));
    let got = client.get_into(&foreign, &batch, &mut buffer, &GetOptions::default());
    assert!(is_foreign(got.expect_err("another's")));
    let put = client.put_from(&foreign, &batch, None, &buffer, &PutOptions::default());
    assert!(is_foreign(put.expect_err("another's")));
    assert!(is_foreign(client.view(&foreign, &batch).expect_err("another's")));
    assert!(is_foreign(client.remove(&foreign, &batch, None).expect_err("another's")));
    assert_eq!(hits(client, &scene.pool, 0..4), 4, "its own is as it was");
}
