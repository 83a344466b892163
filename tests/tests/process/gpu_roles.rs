//! What processes do that are given the stand-in driver: the threads and the memory of GPUs, as the daemon uses them.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use lapis::{
    gpus::{self, FromGpu, GpuCopied, GpuJob, GpuOptions, GpuState, Gpus, OpenGpu, Place, name_of},
    group::Start,
    serve,
};
use lapis_arena::{Mapping, hbm::CopyError};
use lapis_config::{OpId, topology::sysfs::list};
use lapis_transport::hold::Keeper;

use super::{PATIENCE, machine::MIB};

const BLOCK: u64 = 64 << 10;
const DRAM: u64 = 4 * MIB;
/// In two extents.
const HBM: u64 = 4 * MIB;
const EXTENT: u64 = 2 * MIB;

#[derive(Default)]
struct Kept(BTreeMap<String, OwnedFd>);

impl Keeper for Kept {
    fn keep(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.0.insert(name.to_owned(), fd.try_clone_to_owned()?);
        Ok(())
    }
    fn forget(&mut self, name: &str) -> io::Result<()> {
        self.0.remove(name).map(drop).ok_or_else(|| io::Error::other(format!("{name} was not kept")))
    }
}

fn options(library: &str) -> GpuOptions {
    GpuOptions {
        bytes: HBM,
        extent_bytes_max: EXTENT,
        gpus: lapis_config::Gpus::All,
        library: Some(PathBuf::from(library)),
        wait_max: PATIENCE,
    }
}

/// By GPU, the number of the memory of which something is known.
type Known = ([u8; 16], u64);

fn known(opened: &[OpenGpu]) -> Vec<Known> {
    opened.iter().map(|gpu| (gpu.shown.info.uuid, gpu.shown.memory)).collect()
}

/// Takes over what the keeper has and is known.
fn open(library: &str, keeper: &mut Kept, known: &[Known]) -> Vec<OpenGpu> {
    let copy = |(name, fd): (&String, &OwnedFd)| (name.clone(), fd.as_fd().try_clone_to_owned().expect("a descriptor"));
    let kept = keeper.0.iter().map(copy).collect();
    gpus::find(options(library)).expect("the stand-in").open(kept, known, keeper).expect("memory")
}

/// By number of the copy: the GPU that reported it, and how it ended.
type Ended = BTreeMap<u64, (usize, Result<(), CopyError>)>;

struct Bench {
    gpus: Gpus,
    said: Receiver<(usize, FromGpu)>,
    memory: Mapping,
    next: u64,
}

impl Bench {
    fn new(library: &str) -> Self {
        let (sender, said) = channel();
        let opened = open(library, &mut Kept::default(), &[]);
        let report = Arc::new(move |gpu, from| sender.send((gpu, from)).unwrap_or_default());
        // The first on one CPU, the others wherever they like.
        let mut cpus = vec![None; opened.len()];
        cpus[0] = Some(vec![cpus_of("/proc/self")[0]]);
        let gpus = Gpus::start(opened, &cpus, report).expect("threads");
        let memory = Mapping::anonymous(DRAM).expect("memory");
        Self { gpus, said, memory, next: 0 }
    }

    /// Returns when the memory of the host is registered.
    fn register(&mut self) {
        self.gpus.register(3, 1, self.memory.clone());
        let began = Instant::now();
        while self.gpus.shown().iter().any(|gpu| gpu.registered_bytes() < DRAM) {
            assert!(began.elapsed() < PATIENCE, "registration");
            std::thread::yield_now();
        }
        // The thread takes what was sent to it in order, so a copy from here on finds the memory.
    }

    fn begin(&mut self, gpu: usize, copies: &[(Place, Place)]) {
        let job = |&(from, to): &(Place, Place)| {
            self.next += 1;
            GpuJob { op: OpId(self.next), from, to, bytes: BLOCK }
        };
        let jobs = copies.iter().map(job).collect();
        self.gpus.copy(gpu, jobs);
    }

    /// What is reported of so many copies, by number of the copy; losses apart.
    fn ended(&mut self, count: usize) -> (Ended, Vec<usize>) {
        let (mut ended, mut lost) = (BTreeMap::new(), Vec::new());
        while ended.len() < count {
            match self.said.recv_timeout(PATIENCE).expect("reports") {
                (gpu, FromGpu::Copied(copied)) => {
                    for GpuCopied { op, outcome } in copied {
                        assert!(ended.insert(op.0, (gpu, outcome)).is_none(), "{op:?} ended twice");
                    }
                }
                (gpu, FromGpu::Lost { .. }) => lost.push(gpu),
            }
        }
        (ended, lost)
    }

    /// All must end well.
    fn copy(&mut self, gpu: usize, copies: &[(Place, Place)]) {
        self.begin(gpu, copies);
        let (ended, lost) = self.ended(copies.len());
        assert!(lost.is_empty() && ended.values().all(|end| *end == (gpu, Ok(()))), "{ended:?} {lost:?}");
    }
}

/// Those that a process or a thread may run on.
fn cpus_of(at: &str) -> Vec<u32> {
    let status = fs::read_to_string(format!("{at}/status")).expect("it is there");
    let said = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("it says so");
    list(said).expect("a list")
}

fn thread(name: &str) -> String {
    let threads = fs::read_dir("/proc/self/task").expect("threads").flatten();
    let mut threads = threads.map(|thread| thread.path().display().to_string());
    let is_called = |at: &String| fs::read_to_string(format!("{at}/comm")).is_ok_and(|found| found.trim() == name);
    threads.find(is_called).unwrap_or_else(|| panic!("no thread {name:?}"))
}

fn dram(block: u64) -> Place {
    Place::Dram { group: 3, extent: 1, offset: block * BLOCK }
}

fn hbm(gpu: usize, block: u64) -> Place {
    Place::Hbm { gpu, offset: block * BLOCK }
}

fn pattern(block: u64) -> Vec<u8> {
    (0..BLOCK).map(|at| (block * 31 + at / 512 + at % 241) as u8).collect()
}

pub fn run(role: &str, library: &str) {
    match role {
        "copies" => copies(library),
        "errors" => errors(library),
        "loss" => loss(library),
        "kept" => kept(library),
        "hang" => hang(library),
        "silent" => silent(library),
        "stuck" => stuck(library),
        other => panic!("no role {other:?}"),
    }
}

fn copies(library: &str) {
    let mut bench = Bench::new(library);
    bench.begin(0, &[(dram(0), hbm(0, 0))]);
    let (early, _) = bench.ended(1);
    assert_eq!(early[&1].1, Err(CopyError::NotRegistered { extent: 1 }), "nothing is registered yet");
    bench.register();
    let blocks = EXTENT / BLOCK;
    for block in 0..blocks {
        bench.memory.copy_in((block * BLOCK) as usize, &pattern(block));
    }
    // Into both extents of the first GPU, over to the second one, within it, and out.
    let all = 0..blocks;
    bench.copy(0, &all.clone().map(|block| (dram(block), hbm(0, blocks / 2 + block))).collect::<Vec<_>>());
    bench.copy(1, &all.clone().map(|block| (hbm(0, blocks / 2 + block), hbm(1, block))).collect::<Vec<_>>());
    bench.copy(1, &all.clone().map(|block| (hbm(1, block), hbm(1, blocks + block))).collect::<Vec<_>>());
    bench.copy(1, &all.clone().map(|block| (hbm(1, blocks + block), dram(blocks + block))).collect::<Vec<_>>());
    for block in all {
        let found = bench.memory.to_vec(((blocks + block) * BLOCK) as usize, BLOCK as usize);
        assert!(found == pattern(block), "block {block} is another");
    }
    let ways = bench.gpus.shown().iter().map(|gpu| gpu.ways()).collect::<Vec<_>>();
    assert_eq!((ways[0].copies, ways[1].copies), ([blocks, 0, 0], [0, blocks, 2 * blocks]));
    assert_eq!((ways[0].bytes, ways[1].bytes), ([EXTENT, 0, 0], [0, EXTENT, 2 * EXTENT]));
    assert_eq!(bench.gpus.shown()[0].errors(), 1, "the one before registration");
    let all = cpus_of("/proc/self");
    assert_eq!((cpus_of(&thread("gpu 0")), cpus_of(&thread("gpu 1"))), (vec![all[0]], all));
    assert!(bench.gpus.shown().iter().all(|gpu| gpu.in_flight() == 0 && gpu.state(serve::now()) == GpuState::Well));
}

fn errors(library: &str) {
    // More than the driver is given at once, each of bytes of its own.
    const COPIES: u64 = 3000;
    const BYTES: u64 = 1024;
    let mut bench = Bench::new(library);
    bench.register();
    let job = |copy| {
        let from = Place::Dram { group: 3, extent: 1, offset: copy * BYTES };
        GpuJob { op: OpId(copy), from, to: Place::Hbm { gpu: 0, offset: copy * BYTES }, bytes: BYTES }
    };
    bench.gpus.copy(0, (0..COPIES).map(job).collect());
    let (ended, lost) = bench.ended(COPIES as usize);
    let failed = ended.values().filter(|(_, outcome)| outcome.is_err()).count() as u64;
    assert!(lost.is_empty() && failed > 0 && failed < COPIES, "{failed} failed");
    let gpu = &bench.gpus.shown()[0];
    assert_eq!((gpu.errors(), gpu.ways().copies[0]), (failed, COPIES - failed));
    assert_eq!((gpu.in_flight(), gpu.state(serve::now())), (0, GpuState::Well));
}

fn loss(library: &str) {
    let gone = std::env::var("LAPIS_CUDA_LOSE").expect("where the file is");
    let gone = gone.split_once('@').expect("a path").1;
    let mut bench = Bench::new(library);
    bench.register();
    let ways: Vec<_> = (0..16).map(|block| (dram(block), hbm(0, block))).collect();
    bench.begin(0, &ways);
    let others: Vec<_> = (16..32).map(|block| (dram(block), hbm(1, block))).collect();
    bench.begin(1, &others);
    let between: Vec<_> = (32..36).map(|block| (hbm(0, block), hbm(1, block))).collect();
    fs::write(gone, "").expect("a file");
    bench.begin(1, &between);
    // And more when its thread may know.
    bench.begin(0, &ways);
    let (ended, lost) = bench.ended(52);
    let is_lost = |outcome: &Result<(), CopyError>| *outcome == Err(CopyError::Lost { device: 0 });
    for (op, (gpu, outcome)) in &ended {
        match op {
            // What ended before the loss ended well.
            1..=16 => assert!(*gpu == 0 && (outcome.is_ok() || is_lost(outcome)), "{op}: {outcome:?}"),
            17..=32 => assert_eq!((*gpu, outcome), (1, &Ok(())), "{op}"),
            33..=36 => assert!(*gpu == 1 && is_lost(outcome), "{op}: {outcome:?}"),
            _ => assert!(*gpu == 0 && is_lost(outcome), "{op}: {outcome:?}"),
        }
    }
    assert_eq!(lost, [0], "said once");
    bench.begin(0, &ways);
    bench.begin(1, &others);
    let (ended, lost) = bench.ended(32);
    assert!(
        lost.is_empty()
            && ended.values().all(|(gpu, outcome)| if *gpu == 0 { is_lost(outcome) } else { outcome.is_ok() })
    );
    assert!(matches!(bench.gpus.shown()[0].state(serve::now()), GpuState::Lost(_)));
    assert_eq!(bench.gpus.shown()[1].state(serve::now()), GpuState::Well);
}

/// Names are compared with what is known, and with what the driver says of the memory.
fn kept(library: &str) {
    let mut keeper = Kept::default();
    let starts = |opened: &[OpenGpu]| opened.iter().map(|gpu| gpu.shown.start.clone()).collect::<Vec<_>>();
    let opened = open(library, &mut keeper, &[]);
    assert_eq!(starts(&opened), [Start::Fresh, Start::Fresh]);
    let first = known(&opened);
    drop(opened);
    assert_eq!(keeper.0.len(), 4, "two extents each");
    let opened = open(library, &mut keeper, &first);
    assert_eq!((starts(&opened), known(&opened)), (vec![Start::Warm, Start::Warm], first.clone()));
    drop(opened);
    let name = |(uuid, memory): Known, index| name_of(uuid, index, EXTENT, memory);
    // The memory of one GPU under the name of the other.
    let (one, other) = (name(first[0], 1), name(first[1], 1));
    let (its, others) = (keeper.0.remove(&one).expect("kept"), keeper.0.remove(&other).expect("kept"));
    keeper.0.insert(one, others);
    keeper.0.insert(other, its);
    let opened = open(library, &mut keeper, &first);
    for start in starts(&opened) {
        let why = start.to_string();
        assert!(why.starts_with("cold: extent 1 cannot be used: shared memory does not fit"), "{why}");
    }
    // Made anew and kept, and its daemon ended before it was known: of the first GPU's that came to be so, not of the other's.
    let second = known(&opened);
    drop(opened);
    assert!(first.iter().zip(&second).all(|(first, second)| first.0 == second.0 && first.1 != second.1));
    let opened = open(library, &mut keeper, &[second[0], first[1]]);
    let cold = Start::Cold("nothing is known of what was kept".into());
    assert_eq!(starts(&opened), [Start::Warm, cold]);
    let third = known(&opened);
    drop(opened);
    assert_eq!(keeper.0.len(), 4, "what nothing is known of was given back");
    // No memory of a GPU at all, and one extent too few.
    keeper.0.insert(name(third[0], 0), fs::File::open("/dev/null").expect("a file").into());
    keeper.0.remove(&name(third[1], 1)).expect("kept");
    let opened = open(library, &mut keeper, &third);
    let said: Vec<String> = starts(&opened).iter().map(Start::to_string).collect();
    assert!(said[0].starts_with("cold: extent 0 cannot be used"), "{said:?}");
    assert_eq!(said[1], "cold: extent 1 is not among what was kept");
    let fourth = known(&opened);
    drop(opened);
    // Names of who knows what: given back, and said.
    keeper.0.insert("HBM.of another version".into(), fs::File::open("/dev/null").expect("a file").into());
    assert_eq!(starts(&open(library, &mut keeper, &fourth)), [Start::Warm, Start::Warm]);
    assert_eq!(keeper.0.len(), 4);
}

/// Where the file is that makes a GPU hang.
fn hang_file() -> String {
    let hang = std::env::var("LAPIS_CUDA_HANG").expect("where the file is");
    hang.split_once('@').expect("a path").1.to_owned()
}

/// The driver does not answer while memory is made.
fn silent(library: &str) {
    let wait_max = Duration::from_millis(300);
    let found = gpus::find(GpuOptions { wait_max, ..options(library) }).expect("the stand-in");
    fs::write(hang_file(), "").expect("a file");
    let began = Instant::now();
    let error = found.open(Vec::new(), &[], &mut Kept::default()).expect_err("no answer");
    assert!(error.to_string().contains("the CUDA driver has not answered"), "{error}");
    assert!((wait_max..PATIENCE).contains(&began.elapsed()), "{:?}", began.elapsed());
    let error = gpus::find(GpuOptions { wait_max, ..options(library) }).expect_err("no answer");
    assert!(error.to_string().contains("the CUDA driver has not answered"), "{error}");
}

/// A call of the driver does not return: of that GPU's thread alone, and not of who asks it, nor of the end.
fn stuck(library: &str) {
    let mut bench = Bench::new(library);
    bench.register();
    fs::write(hang_file(), "").expect("a file");
    let began = Instant::now();
    bench.begin(0, &[(dram(0), hbm(0, 0))]);
    bench.copy(1, &[(dram(1), hbm(1, 1))]);
    bench.copy(1, &[(hbm(1, 1), dram(2))]);
    assert_eq!(bench.gpus.shown()[0].in_flight(), 1);
    let asked = began.elapsed();
    drop(bench);
    assert!(asked < Duration::from_secs(5) && began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

fn hang(library: &str) {
    let mut bench = Bench::new(library);
    bench.register();
    bench.begin(0, &[(dram(0), hbm(0, 0))]);
    assert!(bench.said.recv_timeout(Duration::from_millis(200)).is_err(), "a copy that takes a minute");
    let began = Instant::now();
    // What an engine does beside goes on; the copies are asked for and not waited for.
    bench.begin(0, &[(dram(1), hbm(0, 1))]);
    let asked = began.elapsed();
    assert_eq!(bench.gpus.shown()[0].in_flight(), 2);
    drop(bench);
    assert!(asked < Duration::from_secs(1) && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
