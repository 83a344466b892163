//! What clients on a GPU do, in processes of their own, each with a stand-in driver of its own. Words: the driver's library,
//! the daemon's socket, the GPU, then the first block and the one after the last.

mod layers;

use std::{
    io::{BufRead, StdinLock},
    path::Path,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use lapis_arena::{
    Mapping,
    hbm::{Cuda, Device, HbmExtent, HostExtent, Mark, Stream, is_present},
};
use lapis_client::{
    Client, ClientError, ConnectOptions, DeviceGot, DevicePtr, DeviceStream, GetOptions, Key, Pool, PutOptions,
    PutResult, load_cuda,
};
use serde_json::json;

use super::{
    PATIENCE,
    blocks::{self, BATCH, SMALL},
    roles::say,
};

/// Room for a batch in the memory of a GPU, and for what goes there and comes from there.
struct Bench {
    client: Client,
    pool: Pool,
    stream: DeviceStream,
    own: Stream,
    memory: HbmExtent,
    host: Arc<HostExtent>,
    mapping: Mapping,
    /// Memory of the host that streams wait for and write to.
    words: Arc<HostExtent>,
    options: GetOptions,
}

fn connect(socket: &str) -> (Client, Pool) {
    let options = ConnectOptions { name: "on a GPU".into(), gpus: true, ..ConnectOptions::default() };
    let client = Client::connect(socket, options).expect("a daemon");
    let pool = blocks::pool(&client, SMALL);
    (client, pool)
}

impl Bench {
    fn new(words: &[String]) -> Self {
        let library = Path::new(&words[0]);
        load_cuda(library).expect("the stand-in");
        let device: u16 = words[2].parse().expect("a number");
        let (client, pool) = connect(&words[1]);
        let cuda = Cuda::load(None).expect("loaded above");
        let open = Device::open(&cuda, device).expect("a GPU");
        let bytes = BATCH * SMALL as u64;
        let memory = HbmExtent::create(&open, bytes, &[]).expect("memory of the GPU");
        let mapping = Mapping::anonymous(bytes).expect("memory");
        let register = |mapping: Mapping| {
            let host = HostExtent::register(&open, mapping, u64::MAX).expect("a thread");
            host.wait();
            host
        };
        let host = register(mapping.clone());
        let words = register(Mapping::anonymous(4096).expect("memory"));
        let options = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
        // SAFETY: the default stream lives as long as the process.
        let (stream, own) = unsafe { (DeviceStream::raw(device, ptr::null_mut()), Stream::of(&open, ptr::null_mut())) };
        Self { client, pool, stream, own, memory, host, mapping, words, options }
    }

    fn places(&self, blocks: usize) -> Vec<DevicePtr> {
        (0..blocks).map(|block| DevicePtr(self.memory.address() + (block * SMALL) as u64)).collect()
    }

    fn wait(&self) {
        wait_for(&self.own.mark(), "a copy hangs");
    }

    /// A word of the host that streams wait for and write to, and its address.
    fn word(&self, index: usize) -> (&AtomicU32, u64) {
        let at = self.words.mapping().as_ptr(4 * index).cast::<u32>();
        // SAFETY: an aligned word of memory that lives as long as this, and that nobody touches otherwise.
        (unsafe { AtomicU32::from_ptr(at) }, at.addr() as u64)
    }

    fn put(&self, keys: &[Key]) -> Vec<PutResult> {
        self.mapping.copy_in(0, &blocks::bytes_of(keys, SMALL));
        let bytes = (keys.len() * SMALL) as u64;
        // SAFETY: memory of this bench's own, used on this stream alone.
        unsafe {
            self.own.copy_in(&self.host, 0, self.memory.address(), bytes).expect("a copy");
            let places = self.places(keys.len());
            let put = self.client.put_device(&self.pool, keys, None, &places, &self.stream, &PutOptions::default());
            put.expect("a sound call").results
        }
    }

    /// On the stream when this returns.
    fn begin_get(&self, keys: &[Key]) -> DeviceGot {
        let places = self.places(keys.len());
        // SAFETY: as in `put`.
        let got = unsafe { self.client.get_device(&self.pool, keys, &places, &self.stream, &self.options) };
        got.expect("a sound call")
    }

    /// Waits for a get. Whether it is valid, and bytes of hits that are wrong, if it is.
    fn end_get(&self, keys: &[Key], got: &DeviceGot) -> (bool, u64) {
        let bytes = (keys.len() * SMALL) as u64;
        // SAFETY: as in `put`.
        unsafe { self.own.copy_out(self.memory.address(), &self.host, 0, bytes).expect("a copy") };
        self.wait();
        assert!(got.is_over(), "all before it on the stream");
        let (is_valid, read) = (got.still_valid(), self.mapping.to_vec(0, bytes as usize));
        (is_valid, if is_valid { blocks::wrong_bytes(&self.pool, keys, &got.got, &read) } else { 0 })
    }

    /// The hits' statuses, and bytes of theirs that are wrong.
    fn get(&self, keys: &[Key]) -> (Vec<bool>, u64) {
        let got = self.begin_get(keys);
        let (_, wrong) = self.end_get(keys, &got);
        (got.got.statuses.iter().map(|status| status.is_hit()).collect(), wrong)
    }

    /// What a get finds that waits for nothing, before the GPU was opened to the end and after.
    fn open(&self, keys: &[Key]) {
        let at_once = GetOptions { deadline: Some(Duration::ZERO), ..GetOptions::default() };
        let get = || {
            // SAFETY: as in `put`.
            let got =
                unsafe { self.client.get_device(&self.pool, keys, &self.places(keys.len()), &self.stream, &at_once) };
            got.expect("a sound call")
        };
        let open = |deadline| self.client.open_gpu(self.stream.device(), deadline).expect("a GPU");
        let (early, begun, opened) = (get().got.hits, open(Duration::ZERO), open(PATIENCE));
        let got = get();
        let (is_valid, wrong) = self.end_get(keys, &got);
        say(
            &json!({ "early": early, "begun": begun.registered_bytes, "bytes": begun.bytes, "whole": opened.is_whole(),
            "registered": opened.registered_bytes, "hits": got.got.hits, "valid": is_valid, "wrong": wrong }),
        );
    }

    /// Memory of the host is to be registered by the first GPU, which is lost before that has ended.
    fn open_when_another_is_lost(&self, keys: &[Key]) {
        let lost = std::env::var("LAPIS_CUDA_LOSE").expect("a loss");
        let begun = self.client.open_gpu(0, Duration::ZERO).expect("it is there yet");
        std::fs::write(lost.strip_prefix("0@").expect("the first GPU's"), "").expect("a file");
        let opened = self.client.open_gpu(self.stream.device(), PATIENCE).expect("the other one");
        let (hits, wrong) = self.get(keys);
        let hits = hits.into_iter().filter(|hit| *hit).count();
        let begun = begun.registered_bytes;
        say(&json!({ "begun": begun, "whole": opened.is_whole(), "hits": hits, "wrong": wrong }));
    }

    /// A get whose copies come when `open` was asked for; then what became of it, and of one more for each further line.
    fn get_behind_a_gate(&self, keys: &[Key]) {
        let (gate, at) = self.word(0);
        // SAFETY: registered memory that lives as long as this.
        unsafe { self.own.wait_word(at, 1).expect("a wait") };
        let got = self.begin_get(keys);
        say(&json!({ "hits": got.got.hits, "over": got.is_over() }));
        let mut lines = lines();
        if lines.next().is_some() {
            gate.store(1, Ordering::Release);
            let (is_valid, wrong) = self.end_get(keys, &got);
            say(&json!({ "valid": is_valid, "wrong": wrong }));
        }
        lines.for_each(|()| {
            let got = self.begin_get(keys);
            let (is_valid, wrong) = self.end_get(keys, &got);
            say(&json!({ "hits": got.got.hits, "valid": is_valid, "wrong": wrong }));
        });
        // What is on the stream ends with the process else.
        gate.store(1, Ordering::Release);
    }

    /// For each line the next blocks, a few in each call, and after each call those that are stored.
    fn put_when_asked(&self, mut next: u64) {
        const IN_ALL: u64 = 64;
        const AT_ONCE: u64 = 4;
        for () in lines() {
            for first in (next..next + IN_ALL).step_by(AT_ONCE as usize) {
                let results = self.put(&blocks::keys(first..first + AT_ONCE));
                let there = |result: &PutResult| !matches!(result, PutResult::Refused(_));
                let stored: Vec<u64> =
                    (first..).zip(&results).filter(|(_, result)| there(result)).map(|(id, _)| id).collect();
                say(&json!({ "stored": stored }));
            }
            next += IN_ALL;
            // What was refused while the daemon was away is not waited for by the put.
            self.wait();
            say(&json!({ "next": next }));
        }
    }
}

fn wait_for(mark: &Mark, or_else: &str) {
    let began = Instant::now();
    while !mark.is_over() {
        assert!(began.elapsed() < PATIENCE, "{or_else}");
        std::thread::yield_now();
    }
    assert!(mark.failure().is_none(), "the GPU is lost");
}

/// What it is asked, until the end of its input.
fn lines() -> impl Iterator<Item = ()> {
    let input: StdinLock<'static> = std::io::stdin().lock();
    input.lines().map_while(Result::ok).map(drop)
}

/// Where no driver is, and none of the name that is given.
fn without_a_driver(words: &[String]) {
    let (client, pool) = connect(&words[1]);
    let (keys, to) = (blocks::keys(0..1), [DevicePtr(1 << 16)]);
    let text = |outcome: Result<(), ClientError>| {
        let error = outcome.expect_err("no driver");
        assert!(matches!(&error, ClientError::Gpu { is_transient: false, .. }), "{error:?}");
        error.to_string()
    };
    let load = text(load_cuda(Path::new(&words[0])));
    if is_present(None) {
        return say(&json!({ "driver": true }));
    }
    // SAFETY: nothing can be read or written there: no driver is to be had.
    let (get, put) = unsafe {
        let stream = DeviceStream::raw(0, ptr::null_mut());
        let get = client.get_device(&pool, &keys, &to, &stream, &GetOptions::default());
        let put = client.put_device(&pool, &keys, None, &to, &stream, &PutOptions::default());
        (text(get.map(drop)), text(put.map(drop)))
    };
    // All else goes on.
    let refused = blocks::put_all(&client, &pool, 0..4);
    say(&json!({ "driver": false, "load": load, "get": get, "put": put, "refused": refused.len(),
        "hits": blocks::hits(&client, &pool, 0..4) }));
}

pub fn run(role: &str, words: &[String]) {
    if role == "without a driver" {
        return without_a_driver(words);
    }
    let bench = Bench::new(words);
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    let ids = number(3)..number(4);
    let batches = || blocks::batches(ids.clone()).map(blocks::keys);
    match role {
        "put" => {
            let results: Vec<PutResult> = batches().flat_map(|keys| bench.put(&keys)).collect();
            let stored = results.iter().filter(|result| **result == PutResult::Stored).count();
            say(&json!({ "stored": stored, "results": format!("{results:?}") }));
        }
        "put when asked" => bench.put_when_asked(ids.start),
        "get" => {
            let read: Vec<(Vec<bool>, u64)> = batches().map(|keys| bench.get(&keys)).collect();
            let is_hit = read.iter().flat_map(|(hits, _)| hits);
            let found: Vec<u64> = ids.clone().zip(is_hit).filter(|(_, hit)| **hit).map(|(id, _)| id).collect();
            let wrong: u64 = read.iter().map(|(_, wrong)| wrong).sum();
            say(&json!({ "hits": found.len(), "found": found, "wrong": wrong }));
        }
        // With a driver whose copies take long: they are under way when it is killed.
        "hold" => {
            let got: Vec<DeviceGot> = batches().map(|keys| bench.begin_get(&keys)).collect();
            let hits: usize = got.iter().map(|got| got.got.hits).sum();
            say(&json!({ "hits": hits, "over": got.iter().all(DeviceGot::is_over) }));
        }
        "open" => bench.open(&blocks::keys(ids.clone())),
        "open when another is lost" => bench.open_when_another_is_lost(&blocks::keys(ids.clone())),
        "get behind a gate" => bench.get_behind_a_gate(&blocks::keys(ids.clone())),
        // Puts and gets until it is told to end; a line for each that it is asked for.
        "load" => load(&bench, number(3), number(4)),
        other => layers::run(&bench, other, ids.clone()),
    }
    lines().for_each(drop);
}

fn load(bench: &Bench, first: u64, end: u64) {
    let (mut rng, mut hits, mut wrong, mut stored) = (fastrand::Rng::with_seed(first), 0, 0, 0);
    for () in lines() {
        for _ in 0..64 {
            let from = rng.u64(first..end - 4);
            let keys = blocks::keys(from..from + 4);
            if rng.bool() {
                let results = bench.put(&keys);
                stored += results.iter().filter(|result| **result == PutResult::Stored).count();
            }
            let (found, bad) = bench.get(&keys);
            (hits, wrong) = (hits + found.iter().filter(|hit| **hit).count(), wrong + bad);
        }
        say(&json!({ "hits": hits, "wrong": wrong, "stored": stored }));
    }
}
