//! A client process on a GPU: its blocks go from there to the daemon and back, and every byte that came is compared.

use std::{
    io::{BufRead, Write},
    path::Path,
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use lapis_arena::{
    Mapping,
    hbm::{Cuda, Device, HbmExtent, HostExtent, Stream},
};
use lapis_client::{
    Client, ConnectOptions, DeviceGot, DevicePtr, DeviceStream, GetOptions, HitPolicy, Pool, PutOptions, PutResult,
};
use lapis_config::{BATCH_KEYS_MAX, Key};

use super::{
    super::DemoArgs,
    onlooker::{Onlooker, Place},
    words::{self, Order, Role, Seen},
};
use crate::{
    load,
    pattern::{self, Pattern},
};

/// Blocks of one get or put call.
pub const BATCH: usize = 32;
/// A copy, or a daemon that comes back, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(30);
const CALL_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// Does what it is told on standard input, line by line, until that ends.
pub fn run(args: &DemoArgs, role: &str) -> anyhow::Result<()> {
    match serde_json::from_str(role).context("read the role of a process of the demo")? {
        Role::Probe => say(&probe(args.cuda_library.as_deref())?),
        Role::Client { socket, device, name } => {
            let mut worker = Worker::new(args, Path::new(&socket), device, &name)?;
            for line in std::io::stdin().lock().lines() {
                say(&worker.obey(serde_json::from_str(&line?).context("read an order")?)?)?;
            }
            Ok(())
        }
    }
}

fn say(what: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

fn probe(library: Option<&Path>) -> anyhow::Result<Vec<words::Device>> {
    let cuda = Cuda::load(library)?;
    let shown = |info: lapis_arena::hbm::DeviceInfo| {
        let (free_bytes, _) = Device::open(&cuda, info.index)?.memory()?;
        let uuid = info.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(words::Device { name: info.name, uuid, free_bytes })
    };
    cuda.devices()?.into_iter().map(shown).collect()
}

/// One client, its stream, and room for a batch on the GPU and in memory of the host.
struct Worker {
    client: Client,
    pool: Pool,
    onlooker: Onlooker,
    seed: u64,
    device: u16,
    stream: DeviceStream,
    own: Stream,
    memory: HbmExtent,
    host: Arc<HostExtent>,
    mapping: Mapping,
    block_bytes: usize,
}

impl Worker {
    fn new(args: &DemoArgs, socket: &Path, device: u16, name: &str) -> anyhow::Result<Self> {
        let cuda = Cuda::load(args.cuda_library.as_deref())?;
        let options = ConnectOptions { name: name.into(), gpus: true, ..ConnectOptions::default() };
        let client = Client::connect(socket, options)?;
        let pool = client.pool(&load::shape("demo", args.block_bytes))?;
        let open = Device::open(&cuda, device)?;
        let bytes = BATCH as u64 * args.block_bytes;
        let memory = HbmExtent::create(&open, bytes, &[])?;
        let mapping = Mapping::anonymous(bytes)?;
        let host = HostExtent::register(&open, mapping.clone(), u64::MAX)?;
        host.wait();
        if let Some(error) = host.failure() {
            return Err(anyhow!(error.clone()).context("register memory of the demo's client"));
        }
        // SAFETY: the default stream lives as long as the process.
        let (stream, own) = unsafe { (DeviceStream::raw(device, ptr::null_mut()), Stream::of(&open, ptr::null_mut())) };
        let (onlooker, seed) = (Onlooker::open(socket)?, args.seed);
        let block_bytes = args.block_bytes as usize;
        Ok(Self { client, pool, onlooker, seed, device, stream, own, memory, host, mapping, block_bytes })
    }

    fn obey(&mut self, order: Order) -> anyhow::Result<Seen> {
        let mut seen = Seen::default();
        match order {
            Order::Replay(requests) => {
                for ids in requests {
                    let keys = self.keys(&ids);
                    let hits = self.get_prefix(&keys, &mut seen)?;
                    self.put_rest(&keys, hits, &mut seen)?;
                    (seen.requests, seen.blocks) = (seen.requests + 1, seen.blocks + keys.len() as u64);
                }
            }
            Order::Read(runs) => {
                for ids in runs {
                    let keys = self.keys(&ids);
                    for keys in keys.chunks(BATCH) {
                        self.get(keys, &mut seen)?;
                    }
                    (seen.requests, seen.blocks) = (seen.requests + 1, seen.blocks + keys.len() as u64);
                }
            }
            Order::Hold(ids) => {
                let keys = self.keys(&ids);
                let got: Vec<DeviceGot> =
                    keys.chunks(BATCH).map(|keys| self.begin_get(keys)).collect::<anyhow::Result<_>>()?;
                seen.blocks = keys.len() as u64;
                seen.hits = got.iter().map(|got| got.got.hits as u64).sum();
                seen.under_way = got.iter().filter(|got| !got.is_over()).count() as u64;
            }
            Order::Connected => {
                let began = Instant::now();
                while !self.client.is_connected() {
                    ensure!(began.elapsed() < PATIENCE, "the client is not served again after {PATIENCE:?}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        Ok(seen)
    }

    fn keys(&self, ids: &[u64]) -> Vec<Key> {
        ids.iter().map(|id| pattern::key(self.seed, *id)).collect()
    }

    /// Reads the leading blocks that are there; how many.
    fn get_prefix(&self, keys: &[Key], seen: &mut Seen) -> anyhow::Result<usize> {
        let mut hits = 0;
        for part in keys.chunks(BATCH_KEYS_MAX) {
            let matched = self.client.match_prefix(&[(self.pool.clone(), HitPolicy::Prefix)], part)?;
            for keys in part[..matched].chunks(BATCH) {
                let prefix = self.get(keys, seen)?;
                hits += prefix;
                if prefix < keys.len() {
                    return Ok(hits);
                }
            }
            if matched < part.len() {
                break;
            }
        }
        Ok(hits)
    }

    /// On the stream when this returns.
    fn begin_get(&self, keys: &[Key]) -> anyhow::Result<DeviceGot> {
        let options = GetOptions { deadline: Some(CALL_WITHIN), ..GetOptions::default() };
        let places = self.places(keys.len());
        // SAFETY: memory of this worker's own, used on this stream alone.
        Ok(unsafe { self.client.get_device(&self.pool, keys, &places, &self.stream, &options)? })
    }

    /// Gets a batch, compares it, and counts it; how many leading blocks were hits.
    fn get(&self, keys: &[Key], seen: &mut Seen) -> anyhow::Result<usize> {
        let session = self.client.session()?;
        let places: Vec<Option<Place>> =
            keys.iter().map(|key| self.onlooker.place(&session, &self.pool, key)).collect();
        let got = self.begin_get(keys)?;
        let bytes = keys.len() * self.block_bytes;
        // SAFETY: as in `begin_get`; the registered memory is written by nobody else.
        unsafe { self.own.copy_out(self.memory.address(), &self.host, 0, bytes as u64)? };
        self.wait()?;
        let read = self.mapping.to_vec(0, bytes);
        let (mut prefix, is_valid) = (0, got.still_valid());
        for (i, (key, status)) in keys.iter().zip(&got.got.statuses).enumerate() {
            if !(status.is_hit() && is_valid) {
                seen.lost += u64::from(places[i].is_some());
                continue;
            }
            let block = &read[i * self.block_bytes..(i + 1) * self.block_bytes];
            seen.wrong_bytes += Pattern::of(key).wrong_bytes(block);
            seen.hits += 1;
            prefix += usize::from(prefix == i);
            *match places[i] {
                Some(Place::Gpu(device)) if device == self.device => &mut seen.hits_hbm,
                Some(Place::Gpu(_)) => &mut seen.hits_other,
                Some(Place::Dram) => &mut seen.hits_dram,
                // One that was not there yet was fetched too.
                Some(Place::Ssd) | None => &mut seen.hits_ssd,
            } += 1;
        }
        Ok(prefix)
    }

    /// Stores the blocks of the chain from `from` on.
    fn put_rest(&self, keys: &[Key], from: usize, seen: &mut Seen) -> anyhow::Result<()> {
        let mut parent = from.checked_sub(1).map(|last| keys[last]);
        let mut block = vec![0; self.block_bytes];
        for keys in keys[from..].chunks(BATCH) {
            for (i, key) in keys.iter().enumerate() {
                Pattern::of(key).fill(&mut block);
                self.mapping.copy_in(i * self.block_bytes, &block);
            }
            let (bytes, options) = ((keys.len() * self.block_bytes) as u64, PutOptions { deadline: Some(CALL_WITHIN) });
            let places = self.places(keys.len());
            // SAFETY: as in `get`. The bytes are there before the put reads them: both are on this stream.
            let put = unsafe {
                self.own.copy_in(&self.host, 0, self.memory.address(), bytes)?;
                self.client.put_device(&self.pool, keys, parent, &places, &self.stream, &options)?
            };
            // What is copied to the GPU is written anew by the next batch.
            self.wait()?;
            for result in put.results {
                match result {
                    PutResult::Stored => seen.stored += 1,
                    PutResult::Exists => seen.existed += 1,
                    PutResult::Refused(_) => seen.refused += 1,
                }
            }
            parent = keys.last().copied();
        }
        Ok(())
    }

    fn places(&self, blocks: usize) -> Vec<DevicePtr> {
        (0..blocks).map(|block| DevicePtr(self.memory.address() + (block * self.block_bytes) as u64)).collect()
    }

    /// Until all that is on the stream has ended.
    fn wait(&self) -> anyhow::Result<()> {
        let (mark, began) = (self.own.mark(), Instant::now());
        while !mark.is_over() {
            ensure!(began.elapsed() < PATIENCE, "a copy on GPU {} takes longer than {PATIENCE:?}", self.device);
            std::thread::sleep(LOOK_EVERY);
        }
        match mark.failure() {
            None => Ok(()),
            Some(error) => Err(anyhow!("GPU {}: {error:?}", self.device)),
        }
    }
}
