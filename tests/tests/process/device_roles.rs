//! What clients on a GPU do, in processes of their own, each with a stand-in driver of its own. Words: the driver's library,
//! the daemon's socket, the GPU, then the first block and the one after the last.

use std::{io::BufRead, path::Path, ptr, sync::Arc, time::Instant};

use lapis_arena::{
    Mapping,
    hbm::{Cuda, Device, HbmExtent, HostExtent, Stream},
};
use lapis_client::{
    Client, ConnectOptions, DeviceFlag, DeviceGot, DevicePiece, DevicePtr, DeviceStream, GetOptions, Key, Pool,
    PutOptions, PutResult, load_cuda,
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
}

impl Bench {
    fn new(words: &[String]) -> Self {
        let library = Path::new(&words[0]);
        load_cuda(library).expect("the stand-in");
        let device: u16 = words[2].parse().expect("a number");
        let options = ConnectOptions { name: "on a GPU".into(), gpus: true, ..ConnectOptions::default() };
        let client = Client::connect(&words[1], options).expect("a daemon");
        let pool = blocks::pool(&client, SMALL);
        let cuda = Cuda::load(None).expect("loaded above");
        let open = Device::open(&cuda, device).expect("a GPU");
        let bytes = BATCH * SMALL as u64;
        let memory = HbmExtent::create(&open, bytes, &[]).expect("memory of the GPU");
        let mapping = Mapping::anonymous(bytes).expect("memory");
        let host = HostExtent::register(&open, mapping.clone(), u64::MAX).expect("a thread");
        host.wait();
        // SAFETY: the default stream lives as long as the process.
        let (stream, own) = unsafe { (DeviceStream::raw(device, ptr::null_mut()), Stream::of(&open, ptr::null_mut())) };
        Self { client, pool, stream, own, memory, host, mapping }
    }

    fn places(&self, blocks: usize) -> Vec<DevicePtr> {
        (0..blocks).map(|block| DevicePtr(self.memory.address() + (block * SMALL) as u64)).collect()
    }

    fn wait(&self) {
        let (mark, began) = (self.own.mark(), Instant::now());
        while !mark.is_over() {
            assert!(began.elapsed() < PATIENCE, "a copy hangs");
            std::thread::yield_now();
        }
        assert!(mark.failure().is_none(), "the GPU is lost");
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
        let got = unsafe { self.client.get_device(&self.pool, keys, &places, &self.stream, &GetOptions::default()) };
        got.expect("a sound call")
    }

    /// Hits, and bytes of theirs that are wrong.
    fn get(&self, keys: &[Key]) -> (usize, u64) {
        let got = self.begin_get(keys);
        let bytes = (keys.len() * SMALL) as u64;
        // SAFETY: as in `put`.
        unsafe { self.own.copy_out(self.memory.address(), &self.host, 0, bytes).expect("a copy") };
        self.wait();
        assert!(got.is_over(), "all before it on the stream");
        let read = self.mapping.to_vec(0, bytes as usize);
        let wrong = if got.still_valid() { blocks::wrong_bytes(&self.pool, keys, &got.got, &read) } else { 0 };
        (got.got.hits, wrong)
    }
}

const LAYERS: usize = 4;
const LAYER: usize = SMALL / LAYERS;

impl Bench {
    /// As an engine does: its stream was told to wait for each layer's flag before anything was asked for, and reads a layer
    /// once it is there. That nothing is read too early is what the stand-in looks at.
    fn get_in_layers(&self, keys: &[Key]) -> (usize, u64) {
        let device = self.own.device();
        let engine = Stream::create(device).expect("a stream");
        let flags = HbmExtent::create(device, 4096, &[]).expect("memory of the GPU");
        let bytes = (keys.len() * LAYER) as u64;
        let layer_at = |layer: usize| self.memory.address() + layer as u64 * bytes;
        let flag = |layer: usize| DeviceFlag { at: DevicePtr(flags.address() + 4 * layer as u64), value: 9 };
        for layer in 0..LAYERS {
            let DeviceFlag { at, value } = flag(layer);
            // SAFETY: memory of this bench's own, which lives until all is over.
            unsafe {
                engine.wait_word(at.0, value).expect("a wait");
                engine.copy_out(layer_at(layer), &self.host, layer as u64 * bytes, bytes).expect("a copy");
            }
        }
        let place = |layer, block| DevicePtr(layer_at(layer) + (block * LAYER) as u64);
        let to: Vec<Vec<DevicePtr>> =
            (0..LAYERS).map(|layer| (0..keys.len()).map(|block| place(layer, block)).collect()).collect();
        let piece = |layer: usize| {
            let (offset, flag) = ((layer * LAYER) as u64, Some(flag(layer)));
            DevicePiece { offset, bytes: LAYER as u64, to: &to[layer], flag }
        };
        let pieces: Vec<DevicePiece<'_>> = (0..LAYERS).map(piece).collect();
        let options = GetOptions::default();
        // SAFETY: as above.
        let load = unsafe { self.client.get_device_pieces(&self.pool, keys, &pieces, &self.stream, &options) };
        let load = load.expect("a sound call");
        load.wait_piece(LAYERS - 1, &self.stream).expect("a wait");
        let (mark, began) = (engine.mark(), Instant::now());
        while !mark.is_over() {
            assert!(began.elapsed() < PATIENCE, "a flag is not written");
            std::thread::yield_now();
        }
        self.wait();
        assert!(load.is_piece_over(LAYERS - 1) && load.is_over() && load.still_valid());
        let layers = self.mapping.to_vec(0, keys.len() * SMALL);
        let part = |block: usize, layer: usize| &layers[layer * bytes as usize + block * LAYER..][..LAYER];
        let read: Vec<u8> = (0..keys.len())
            .flat_map(|block| (0..LAYERS).map(move |layer| (block, layer)))
            .flat_map(|(block, layer)| part(block, layer).to_vec())
            .collect();
        (load.got.hits, blocks::wrong_bytes(&self.pool, keys, &load.got, &read))
    }
}

pub fn run(role: &str, words: &[String]) {
    let bench = Bench::new(words);
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    let batches = || blocks::batches(number(3)..number(4)).map(blocks::keys);
    match role {
        "put" => {
            let results: Vec<PutResult> = batches().flat_map(|keys| bench.put(&keys)).collect();
            let stored = results.iter().filter(|result| **result == PutResult::Stored).count();
            say(&json!({ "stored": stored, "results": format!("{results:?}") }));
        }
        "get" => {
            let (mut hits, mut wrong) = (0, 0);
            for keys in batches() {
                let (more, bad) = bench.get(&keys);
                (hits, wrong) = (hits + more, wrong + bad);
            }
            say(&json!({ "hits": hits, "wrong": wrong }));
        }
        // With a driver whose copies take long: they are under way when it is killed.
        "hold" => {
            let got: Vec<DeviceGot> = batches().map(|keys| bench.begin_get(&keys)).collect();
            let hits: usize = got.iter().map(|got| got.got.hits).sum();
            say(&json!({ "hits": hits, "over": got.iter().all(DeviceGot::is_over) }));
        }
        "layers" => {
            let (mut hits, mut wrong) = (0, 0);
            for keys in batches() {
                let (more, bad) = bench.get_in_layers(&keys);
                (hits, wrong) = (hits + more, wrong + bad);
            }
            say(&json!({ "hits": hits, "wrong": wrong }));
        }
        // Puts and gets until it is told to end; a line for each that it is asked for.
        "load" => load(&bench, number(3), number(4)),
        other => panic!("no role {other:?}"),
    }
    std::io::stdin().lock().lines().map_while(Result::ok).for_each(drop);
}

fn load(bench: &Bench, first: u64, end: u64) {
    let mut lines = std::io::stdin().lock().lines();
    let (mut rng, mut hits, mut wrong, mut stored) = (fastrand::Rng::with_seed(first), 0, 0, 0);
    while lines.next().is_some_and(|line| line.is_ok()) {
        for _ in 0..64 {
            let from = rng.u64(first..end - 4);
            let keys = blocks::keys(from..from + 4);
            if rng.bool() {
                let results = bench.put(&keys);
                stored += results.iter().filter(|result| **result == PutResult::Stored).count();
            }
            let (more, bad) = bench.get(&keys);
            (hits, wrong) = (hits + more, wrong + bad);
        }
        say(&json!({ "hits": hits, "wrong": wrong, "stored": stored }));
    }
}
