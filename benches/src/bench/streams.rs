//! Blocks from slot to slot over TCP between two processes of this machine, beside one raw TCP stream between the same
//! two in the same rounds; and that raw stream beside other ways to use the kernel.

mod owner;
pub(crate) mod raw;

use std::{
    env,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use lapis_arena::{Mapping, StoredBlock};
use lapis_transport::peers::{
    directory::PeerId,
    links::LinkId,
    message::Located,
    paths::{Came, Fetch, FromPaths, Paths, ToPaths, Wanted},
    streams::{StreamOptions, TcpPaths},
};
use rustix::process::{Signal, set_parent_process_death_signal};

pub(crate) use self::owner::run as run_owner;
use self::{
    owner::{BLOCKS_BYTES, KEY, SEED, WORD, memory},
    raw::{RawClient, Way},
};
use super::{
    Name, Plan,
    report::{Figure, Goal, Report, rounded},
    ssd::cpu_of_process,
};
use crate::samples::{Pairs, Samples};

/// Blocks of one fetch.
const BATCH: usize = 32;
/// Block sizes, and the least share of a raw stream's speed.
const SIZES: [(usize, f64); 4] = [(64 << 10, 0.7), (256 << 10, 0.9), (1 << 20, 0.9), (4 << 20, 0.9)];
/// Bytes that each of the two moves in a round, at least.
const ROUND_BYTES: usize = 128 << 20;
/// More than any fetch takes that works.
const WITHIN: Duration = Duration::from_secs(20);
const LINK: LinkId = LinkId(1);

pub fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    if !plan.wants_any(&[Name::Streams, Name::RawTcp]) {
        return Ok(());
    }
    let owner = OwnerProcess::start()?;
    if plan.wants(Name::Streams) {
        for (block_bytes, wanted) in SIZES {
            report.add(&streams(plan, &owner, block_bytes, wanted)?)?;
        }
    }
    if plan.wants(Name::RawTcp) {
        for way in [Way::ZeroCopy, Way::Uring, Way::UringFixed] {
            report.add(&raw_tcp(plan, &owner, way)?)?;
        }
    }
    Ok(())
}

/// Fetches beside a raw stream.
fn streams(plan: &Plan, owner: &OwnerProcess, block_bytes: usize, wanted: f64) -> anyhow::Result<Figure> {
    let mut raw = RawClient::connect(owner.raw, Way::Plain)?;
    let mut reader = Reader::new(owner.streams, block_bytes)?;
    let (mut pairs, mut rng) = (Pairs::default(), fastrand::Rng::with_seed(1));
    let [mut cpu, mut owner_cpu, mut limit_cpu, mut limit_owner_cpu] = [(); 4].map(|()| Samples::default());
    let fetches = (ROUND_BYTES / (BATCH * block_bytes)).max(1);
    for round in 0..if plan.quick { 6 } else { 31 } {
        plan.stop.check()?;
        let ours = owner.measured(|| reader.fetch_all(fetches, &mut rng))?;
        let limit = owner.measured(|| raw.receive(ROUND_BYTES))?;
        // The first one opens the streams.
        if round > 0 {
            pairs.push(ours.gigabytes_per_second(), limit.gigabytes_per_second());
            cpu.push(ours.per_gigabyte(ours.cpu));
            owner_cpu.push(ours.per_gigabyte(ours.owner_cpu));
            limit_cpu.push(limit.per_gigabyte(limit.cpu));
            limit_owner_cpu.push(limit.per_gigabyte(limit.owner_cpu));
        }
    }
    let [ratio, ..] = pairs.ratio();
    let mut figure = Figure::throughput("streams", pairs);
    (figure.block_bytes, figure.batch) = (Some(block_bytes as u64), Some(BATCH as u64));
    figure.limit_is = Some("raw TCP stream");
    figure.cpu_us_per_gb = Some(rounded(cpu.median()));
    figure.owner_cpu_us_per_gb = Some(rounded(owner_cpu.median()));
    figure.limit_cpu_us_per_gb = Some(rounded(limit_cpu.median()));
    figure.limit_owner_cpu_us_per_gb = Some(rounded(limit_owner_cpu.median()));
    figure.goal = Some(Goal::new(format!(">= {wanted} x raw TCP stream"), ratio >= wanted));
    Ok(figure)
}

/// Another way to use the kernel beside plain reads and writes.
fn raw_tcp(plan: &Plan, owner: &OwnerProcess, way: Way) -> anyhow::Result<Figure> {
    let mut plain = RawClient::connect(owner.raw, Way::Plain)?;
    let mut other = RawClient::connect(owner.raw, way)?;
    let mut pairs = Pairs::default();
    let [mut cpu, mut owner_cpu, mut limit_cpu, mut limit_owner_cpu] = [(); 4].map(|()| Samples::default());
    for round in 0..if plan.quick { 6 } else { 31 } {
        plan.stop.check()?;
        let ours = owner.measured(|| other.receive(ROUND_BYTES))?;
        let limit = owner.measured(|| plain.receive(ROUND_BYTES))?;
        if round > 0 {
            pairs.push(ours.gigabytes_per_second(), limit.gigabytes_per_second());
            cpu.push(ours.per_gigabyte(ours.cpu));
            owner_cpu.push(ours.per_gigabyte(ours.owner_cpu));
            limit_cpu.push(limit.per_gigabyte(limit.cpu));
            limit_owner_cpu.push(limit.per_gigabyte(limit.owner_cpu));
        }
    }
    let mut figure = Figure::throughput("raw_tcp", pairs);
    figure.case = Some(way.name());
    figure.limit_is = Some("plain read and write");
    figure.cpu_us_per_gb = Some(rounded(cpu.median()));
    figure.owner_cpu_us_per_gb = Some(rounded(owner_cpu.median()));
    figure.limit_cpu_us_per_gb = Some(rounded(limit_cpu.median()));
    figure.limit_owner_cpu_us_per_gb = Some(rounded(limit_owner_cpu.median()));
    Ok(figure)
}

/// What moving bytes took, at both ends.
pub(super) struct Took {
    bytes: usize,
    wall: Duration,
    pub cpu: Duration,
    pub owner_cpu: Duration,
}

impl Took {
    pub fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.wall.as_secs_f64() / 1e9
    }

    /// Microseconds a gigabyte.
    pub fn per_gigabyte(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / (self.bytes as f64 / 1e9)
    }
}

/// The other process. It ends with this one.
pub(super) struct OwnerProcess {
    child: Child,
    streams: SocketAddr,
    pub raw: SocketAddr,
}

impl OwnerProcess {
    pub fn start() -> anyhow::Result<Self> {
        let binary = env::current_exe().context("find this program's own file")?;
        let mut command = Command::new(binary);
        command.args(["bench", "--streams-owner"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: between fork and exec only one prctl is called, which is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut child = command.spawn().context("start the process that owns the blocks")?;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).context("hear of the owner's ports")?;
        let ports: Vec<u16> = line.split_whitespace().filter_map(|port| port.parse().ok()).collect();
        let [streams, raw] = ports[..] else { bail!("the process that owns the blocks said {line:?}") };
        let [streams, raw] = [streams, raw].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Ok(Self { child, streams, raw })
    }

    pub fn measured(&self, work: impl FnOnce() -> anyhow::Result<usize>) -> anyhow::Result<Took> {
        let cpu =
            || -> anyhow::Result<[Duration; 2]> { Ok([cpu_of_process(None)?, cpu_of_process(Some(self.child.id()))?]) };
        let ([here, there], started) = (cpu()?, Instant::now());
        let bytes = work()?;
        let wall = started.elapsed();
        let [here_after, there_after] = cpu()?;
        Ok(Took { bytes, wall, cpu: here_after - here, owner_cpu: there_after - there })
    }
}

impl Drop for OwnerProcess {
    fn drop(&mut self) {
        // Its standard input ends, and so does it.
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("lapis: the process that owned the blocks: {error}");
        }
    }
}

/// Fetches blocks of one size into slots of this process.
struct Reader {
    paths: TcpPaths,
    woken: Arc<(Mutex<bool>, Condvar)>,
    slots: Mapping,
    block_bytes: usize,
    sums: Vec<u64>,
    op: u64,
}

impl Reader {
    fn new(address: SocketAddr, block_bytes: usize) -> anyhow::Result<Self> {
        // The bytes are a function of their place: this process can say what they are.
        let source = memory("bench.sums")?;
        let sums = (0..BLOCKS_BYTES / block_bytes)
            .map(|block| lapis_arena::sum::of_mapping(SEED, &KEY, &source, block * block_bytes, block_bytes as u32));
        let sums = sums.collect();
        drop(source);
        let slots = memory("bench.slots")?;
        let woken = Arc::new((Mutex::new(false), Condvar::new()));
        let bell = Arc::clone(&woken);
        let wake = move || {
            *bell.0.lock().expect("no panic") = true;
            bell.1.notify_one();
        };
        let mut paths = TcpPaths::new(StreamOptions::default(), Arc::new(wake))?;
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (peer, host) = (PeerId(0), String::from("owner"));
        paths.submit(ToPaths::Peer { group: 0, peer, host, link: LINK, local, address, word: WORD });
        Ok(Self { paths, woken, slots, block_bytes, sums, op: 0 })
    }

    /// So many fetches, one after the other, of blocks from anywhere into slots anywhere.
    fn fetch_all(&mut self, fetches: usize, rng: &mut fastrand::Rng) -> anyhow::Result<usize> {
        for _ in 0..fetches {
            let [from, to] = [(); 2].map(|()| rng.usize(..=self.sums.len() - BATCH));
            self.fetch(from, to)?;
        }
        Ok(fetches * BATCH * self.block_bytes)
    }

    fn fetch(&mut self, from: usize, to: usize) -> anyhow::Result<()> {
        self.op += 1;
        let blocks = (0..BATCH).map(|at| self.wanted(from + at, to + at)).collect();
        let (token, first) = (owner::token(self.block_bytes), from as u32);
        self.paths.submit(ToPaths::Fetch(Fetch { op: self.op, link: LINK, token, first, blocks, within: WITHIN }));
        loop {
            if let Some(event) = self.paths.poll() {
                let FromPaths::Fetched { op, came, .. } = event else { bail!("paths over TCP say nothing") };
                ensure!(op == self.op && came.iter().all(|came| *came == Came::Whole), "a fetch failed: {came:?}");
                return Ok(());
            }
            let mut rung = self.woken.0.lock().expect("no panic");
            while !std::mem::take(&mut *rung) {
                rung = self.woken.1.wait(rung).expect("no panic");
            }
        }
    }

    fn wanted(&self, from: usize, to: usize) -> Wanted {
        let (bytes, sum) = (self.block_bytes as u32, self.sums[from]);
        let located = Located { index: 0, follows: false, line: 0, generation: 0, slot: 0, bytes, sum };
        let (mapping, offset, block_bytes) = (self.slots.clone(), to * self.block_bytes, self.block_bytes as u64);
        let into = StoredBlock { mapping, offset, key: KEY, bytes, pieces: 1, block_bytes, pool_seed: SEED, sum };
        Wanted { from: located, span: bytes, into }
    }
}
