//! `lapis demo --gpus N`: a daemon with a slice of each GPU, and clients in processes of their own that get blocks into the
//! memory of a GPU and put them from there. Two of them share the first GPU. A client is killed while it reads there, then the
//! daemon; and blocks that sank to SSD are read until they are back on a GPU.

pub mod client;
mod onlooker;
mod table;
mod words;
mod workers;

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use lapis_client::{Client, Pool};
use lapis_config::Bytes;
use serde_json::Value;

use self::{
    onlooker::{Onlooker, Place},
    table::{Killed, Moves},
    words::{Order, Seen},
    workers::Worker,
};
use super::{DemoArgs, progress::Progress, ssd};
use crate::{
    host::{Host, HostOptions},
    load, pattern,
    stop::Stop,
};

/// Small, so that blocks sink.
const DRAM_BYTES_DEFAULT: u64 = 96 << 20;
const REQUESTS_DEFAULT: u64 = 1200;
/// Requests that a client is given at once.
const TURN: usize = 8;
/// Blocks that the client reads that is killed.
const HELD: usize = client::BATCH;
/// Blocks that come back from SSD, in runs of at least so many.
const BACK: usize = 64;
const RUN_MIN: usize = 4;
/// The core tells reads apart that are in different tenths of a second.
const APART: Duration = Duration::from_millis(150);
const PROMOTED_WITHIN: Duration = Duration::from_secs(3);
/// What a stand-in for the driver reads (`tests/cuda`). Another driver knows none of them.
const DEVICES: &str = "LAPIS_CUDA_DEVICES";
const MISUSES: &str = "LAPIS_CUDA_MISUSES";
/// Copies of a process with this end in a minute: it is killed meanwhile.
const SLOW: [(&str, &str); 1] = [("LAPIS_CUDA_LATENCY_US", "60000000-60000000")];

/// Replays the requests; an error also if a single byte was wrong.
pub fn run(args: &DemoArgs, count: u16) -> anyhow::Result<()> {
    let misuses = with_variables(count)?;
    let library = args.cuda_library.as_deref().map(std::path::absolute).transpose().context("find the CUDA library")?;
    let requests = args.requests.or_else(|| args.trace.is_none().then_some(REQUESTS_DEFAULT));
    let dram = Some(args.dram.unwrap_or(DRAM_BYTES_DEFAULT.max(args.block_bytes * super::DRAM_BLOCKS_MIN)));
    let args = DemoArgs { requests, dram, cuda_library: library, ..args.clone() };
    let name = find(&args, count)?;
    let mut demo = Demo::start(args, count, &name)?;
    let text = demo.run();
    let said = text.map(|text| (text, demo.wrong_bytes()));
    let ended = demo.end();
    let (text, wrong_bytes) = said?;
    ended?;
    let misused = fs::read_to_string(&misuses).unwrap_or_default();
    // Where none was: not even a file.
    let _ = fs::remove_file(&misuses);
    ensure!(misused.is_empty(), "the driver was asked for what its manual forbids:\n{misused}");
    crate::trace::print(format!("{text}wrong bytes: {wrong_bytes}\n").as_bytes())?;
    ensure!(wrong_bytes == 0, "{wrong_bytes} bytes were not those that were put under their keys");
    Ok(())
}

/// A stand-in reads variables when it is loaded, in every process: where they are not set, this program begins anew with them.
fn with_variables(count: u16) -> anyhow::Result<PathBuf> {
    if let (Some(_), Some(misuses)) = (env::var_os(DEVICES), env::var_os(MISUSES)) {
        return Ok(misuses.into());
    }
    let mut command = Command::new(env::current_exe().context("find this program's own file")?);
    command.args(env::args_os().skip(1));
    if env::var_os(DEVICES).is_none() {
        command.env(DEVICES, count.to_string());
    }
    if env::var_os(MISUSES).is_none() {
        command.env(MISUSES, env::temp_dir().join(format!("lapis-demo-misuses-{}", std::process::id())));
    }
    Err(command.exec()).context("begin anew")
}

/// Whether the GPUs are there, with room; what they are called.
fn find(args: &DemoArgs, count: u16) -> anyhow::Result<String> {
    const INSTEAD: &str = "Without a GPU, build the stand-in (cargo build --release -p lapis-cuda-standin) and give \
                           --cuda-library target/release/libcuda.so";
    let gpus = match workers::probe(args) {
        Ok(gpus) => gpus,
        Err(why) => bail!("no GPU can be used: {why:#}. {INSTEAD}"),
    };
    if gpus.is_empty() {
        bail!(
            "no GPU can be used: the CUDA driver shows none to this process. See that nvidia-smi lists them, and look at \
             CUDA_VISIBLE_DEVICES ({DEVICES} of the stand-in). {INSTEAD}"
        );
    }
    let there = gpus.len();
    ensure!(there >= count.into(), "--gpus {count}, but the CUDA driver shows {there}: ask for {there} at most");
    for (at, gpu) in gpus.iter().enumerate().take(count.into()) {
        let [wanted, free] = [args.hbm, gpu.free_bytes].map(|bytes| Bytes(bytes).to_string());
        ensure!(gpu.free_bytes > args.hbm, "--hbm {wanted}, but GPU {at} has only {free} free: lower it");
    }
    Ok(gpus[0].name.clone())
}

struct Demo {
    args: DemoArgs,
    stop: Stop,
    host: Host,
    client: Client,
    pool: Pool,
    onlooker: Onlooker,
    workers: Vec<Worker>,
    known: BTreeSet<u64>,
    phases: Vec<(&'static str, Seen)>,
    killed: Killed,
    progress: Progress,
}

impl Demo {
    fn start(args: DemoArgs, count: u16, gpu: &str) -> anyhow::Result<Self> {
        let stop = Stop::on_signals()?;
        let dram_bytes = super::dram_bytes(&args)?;
        let ssd::Tier { bytes: ssd_bytes, mut flags, name: tier, note } = ssd::tier(&args)?;
        flags.extend(["--hbm-bytes".into(), format!("{}B", args.hbm)]);
        flags.extend(["--hbm-gpus".into(), (0..count).map(|at| at.to_string()).collect::<Vec<_>>().join(",")]);
        if let Some(library) = &args.cuda_library {
            flags.extend(["--hbm-cuda-library".into(), library.display().to_string()]);
        }
        let mut host = Host::start(HostOptions { ssd_bytes, flags, ..HostOptions::here(dram_bytes)? })?;
        let client = host.connect("demo")?;
        let pool = client.pool(&load::shape("demo", args.block_bytes))?;
        until(&mut host, &stop, "memory to be registered with the GPUs", |status| is_registered(status, dram_bytes))?;
        let onlooker = Onlooker::open(&host.socket())?;
        let progress = Progress::new(0);
        note.iter().for_each(|note| progress.say(note));
        let tier = tier.unwrap_or("no SSD".into());
        progress.say(&format!(
            "{count} x {gpu} with {} of HBM each, {} of DRAM and {tier}, blocks of {}; daemon {} in {}",
            Bytes(args.hbm),
            Bytes(dram_bytes),
            Bytes(args.block_bytes),
            host.daemon_pid().unwrap_or(0),
            host.folder().display()
        ));
        // Two at least on the first GPU.
        let socket = host.socket().display().to_string();
        let workers =
            (0..=count).map(|at| Worker::start(&args, &socket, at % count, &format!("demo client {at}"), &[]));
        let workers = workers.collect::<anyhow::Result<_>>()?;
        let (known, phases, killed) = (BTreeSet::new(), Vec::new(), Killed::default());
        Ok(Self { args, stop, host, client, pool, onlooker, workers, known, phases, killed, progress })
    }

    /// The table of what was shown.
    fn run(&mut self) -> anyhow::Result<String> {
        let requests: Vec<Vec<u64>> = super::requests(&self.args)?.into_iter().map(|request| request.ids).collect();
        let (first, second) = requests.split_at(requests.len() / 2);
        self.progress = Progress::new(requests.iter().map(|ids| ids.len() as u64).sum());
        self.replay("first half", first)?;
        self.kill_client()?;
        let before = self.kill_daemon()?;
        self.replay("second half", second)?;
        self.come_back(&requests)?;
        let moves = before.and(Moves::of(&ssd::status(&self.host)?));
        Ok(table::render(&self.phases, Some(&self.killed), &moves))
    }

    fn wrong_bytes(&self) -> u64 {
        let phases = self.phases.iter().map(|(_, seen)| seen.wrong_bytes).sum::<u64>();
        phases + self.killed.without.wrong_bytes + self.killed.again.wrong_bytes
    }

    /// Clients, then the daemon, end in order.
    fn end(mut self) -> anyhow::Result<()> {
        for worker in self.workers.drain(..) {
            worker.finish()?;
        }
        drop(self.client);
        let status = self.host.stop_daemon()?;
        ensure!(status.success(), "the daemon ended with {status}\n{}", self.host.log_tail());
        Ok(())
    }

    /// In turn to all clients, which work at the same time.
    fn replay(&mut self, name: &'static str, requests: &[Vec<u64>]) -> anyhow::Result<()> {
        let mut seen = Seen::default();
        let (blocks, hits) =
            self.phases.iter().fold((0, 0), |(blocks, hits), (_, seen)| (blocks + seen.blocks, hits + seen.hits));
        for round in requests.chunks(TURN * self.workers.len()) {
            self.stop.check()?;
            let parts: Vec<&[Vec<u64>]> = round.chunks(round.len().div_ceil(self.workers.len())).collect();
            for (worker, part) in self.workers.iter_mut().zip(&parts) {
                worker.tell(&Order::Replay(part.to_vec()))?;
            }
            for (worker, _) in self.workers.iter_mut().zip(&parts) {
                seen.add(&worker.answer()?);
            }
            self.known.extend(round.iter().flatten());
            self.progress.set(blocks + seen.blocks, hits + seen.hits);
        }
        self.phases.push((name, seen));
        Ok(())
    }

    /// One that reads from the first GPU, and is killed before its copies have ended.
    fn kill_client(&mut self) -> anyhow::Result<()> {
        let ids: Vec<u64> =
            self.on_gpus()?.into_iter().filter(|(_, gpu)| *gpu == 0).map(|(id, _)| id).take(HELD).collect();
        let socket = self.host.socket().display().to_string();
        let mut doomed = Worker::start(&self.args, &socket, 0, "demo doomed", &SLOW)?;
        self.killed.held = doomed.ask(&Order::Hold(ids))?;
        self.progress.say("kill -9 of a client with blocks of a GPU pinned");
        let began = Instant::now();
        doomed.kill()?;
        until(&mut self.host, &self.stop, "what the killed client held", |status| {
            let clients = status["clients"].as_array();
            let is_gone = clients.is_some_and(|all| all.iter().all(|client| client["name"] != "demo doomed"));
            is_gone && sum_held(status, "slots_aside") == 0
        })?;
        self.killed.freed_ms = began.elapsed().as_secs_f64() * 1e3;
        Ok(())
    }

    /// What the first daemon had counted.
    fn kill_daemon(&mut self) -> anyhow::Result<Moves> {
        let before = ssd::status(&self.host)?;
        let on_gpus = self.on_gpus()?;
        self.killed.before = sum_held(&before, "blocks");
        self.progress.say("kill -9 of the daemon, and another one started; what is on GPUs stays there");
        let began = Instant::now();
        self.host.kill_daemon()?;
        self.killed.without = self.read_where_it_lies(&on_gpus)?;
        self.host.start_daemon()?;
        let status = until(&mut self.host, &self.stop, "the new daemon to take over all blocks", |status| {
            status["adopting"] == false && status["ssd"]["state"] != "coming"
        })?;
        self.killed.back_ms = began.elapsed().as_secs_f64() * 1e3;
        let dram_bytes = self.args.dram.unwrap_or_default();
        until(&mut self.host, &self.stop, "memory to be registered again", |status| is_registered(status, dram_bytes))?;
        for worker in &mut self.workers {
            worker.ask(&Order::Connected)?;
        }
        let client = &self.client;
        self.host.until("the demo's own client to be served again", |_| Ok(client.is_connected().then_some(())))?;
        self.killed.after = sum_held(&status, "blocks");
        let now: BTreeSet<(u64, u16)> = self.on_gpus()?.into_iter().collect();
        self.killed.kept = on_gpus.iter().filter(|block| now.contains(block)).count() as u64;
        self.killed.again = self.read_where_it_lies(&on_gpus)?;
        Ok(Moves::of(&before))
    }

    /// Runs of blocks that are on SSD alone, read on the first GPU until they are there.
    fn come_back(&mut self, requests: &[Vec<u64>]) -> anyhow::Result<()> {
        let runs = self.runs_on_ssd(requests)?;
        let ids: Vec<u64> = runs.iter().flatten().copied().collect();
        for name in ["from SSD, first read", "second read", "third read"] {
            self.stop.check()?;
            let seen = self.workers[0].ask(&Order::Read(runs.clone()))?;
            self.phases.push((name, seen));
            let began = Instant::now();
            // What is read once stays where it is.
            while began.elapsed() < APART
                || name == "second read" && began.elapsed() < PROMOTED_WITHIN && !self.are_on_gpus(&ids)?
            {
                self.stop.check()?;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    fn place(&self, id: u64) -> anyhow::Result<Option<Place>> {
        let key = pattern::key(self.args.seed, id);
        Ok(self.onlooker.place(&*self.client.session()?, &self.pool, &key))
    }

    /// Blocks on GPUs, each with its GPU.
    fn on_gpus(&self) -> anyhow::Result<Vec<(u64, u16)>> {
        let mut found = Vec::new();
        for &id in &self.known {
            if let Some(Place::Gpu(gpu)) = self.place(id)? {
                found.push((id, gpu));
            }
        }
        Ok(found)
    }

    fn are_on_gpus(&self, ids: &[u64]) -> anyhow::Result<bool> {
        for &id in ids {
            if !matches!(self.place(id)?, Some(Place::Gpu(_))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn runs_on_ssd(&self, requests: &[Vec<u64>]) -> anyhow::Result<Vec<Vec<u64>>> {
        let (mut runs, mut taken): (Vec<Vec<u64>>, BTreeSet<u64>) = (Vec::new(), BTreeSet::new());
        for ids in requests {
            let mut run: Vec<u64> = Vec::new();
            for &id in ids {
                if run.len() == client::BATCH {
                    break;
                }
                match self.place(id)? {
                    Some(Place::Ssd) if taken.insert(id) => run.push(id),
                    _ if run.len() >= RUN_MIN => break,
                    _ => run.clear(),
                }
            }
            if run.len() >= RUN_MIN {
                runs.push(run);
            }
            if runs.iter().map(Vec::len).sum::<usize>() >= BACK {
                break;
            }
        }
        Ok(runs)
    }

    /// Each block by a client on its GPU.
    fn read_where_it_lies(&mut self, blocks: &[(u64, u16)]) -> anyhow::Result<Seen> {
        let mut sum = Seen::default();
        for gpu in blocks.iter().map(|(_, gpu)| *gpu).collect::<BTreeSet<_>>() {
            let ids = blocks.iter().filter(|(_, at)| *at == gpu).map(|(id, _)| *id).collect();
            let worker = self.workers.iter_mut().find(|worker| worker.device == gpu);
            sum.add(&worker.context("a GPU without a client")?.ask(&Order::Read(vec![ids]))?);
        }
        Ok(sum)
    }
}

/// Of all GPUs.
fn sum_held(status: &Value, what: &str) -> u64 {
    let gpus = status["gpus"].as_array().into_iter().flatten();
    gpus.filter_map(|gpu| gpu["held"][what].as_u64()).sum()
}

fn is_registered(status: &Value, dram_bytes: u64) -> bool {
    let gpus = status["gpus"].as_array();
    gpus.is_some_and(|all| all.iter().all(|gpu| gpu["load"]["registered_bytes"].as_u64() >= Some(dram_bytes)))
}

/// A status that is as wanted.
fn until(host: &mut Host, stop: &Stop, what: &str, is_so: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    host.until(what, |host| {
        stop.check()?;
        // Asked again: a busy machine may not let it answer in time.
        Ok(ssd::status(host).ok().filter(|status| is_so(status)))
    })
}
