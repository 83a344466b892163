//! How fast a device is driven by an engine, and what that costs: `ssd_rate PATH ENGINE read|write BYTES SECONDS`. Keeps 32
//! operations of BYTES at random places of the first 256 MiB under way, in registered memory, and prints bytes a second
//! and processor time an operation. What is there is lost if it writes. `tests/testbed/nvme` compares this with fio. ENGINE
//! `spdk` is for controllers, as in `pci:0000:65:00.0`, with the libraries in LAPIS_SSD_SPDK_LIBRARY if they are elsewhere.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lapis_arena::Mapping;
use lapis_ssd::{
    device::{Device, DeviceFile, Io, IoId, Memory, Waits},
    engine::{self, Engine, EngineChoice},
    spdk::Spdk,
};
use rustix::{
    event::EventfdFlags,
    time::{ClockId, clock_gettime},
};

const DEPTH: usize = 32;
const SPAN_BYTES: u64 = 256 << 20;
/// Not measured.
const WARM_UP: Duration = Duration::from_millis(200);

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [path, engine, way, bytes, seconds] = words.as_slice() else {
        return Err("usage: ssd_rate PATH ENGINE read|write BYTES SECONDS".into());
    };
    let (is_read, bytes) = (way == "read", bytes.parse::<usize>()?);
    let length = Duration::from_secs_f64(seconds.parse()?);
    let took = run(open(Path::new(path), engine)?, is_read, bytes, length)?;
    let (rate, cpu) = (took.operations as f64 / took.wall.as_secs_f64(), took.cpu.as_secs_f64());
    println!("{engine} {way} {bytes} {:.0} {:.2}", rate * bytes as f64, cpu * 1e6 / took.operations as f64);
    Ok(())
}

fn open(path: &Path, engine: &str) -> Result<Engine, AnyError> {
    if engine == "spdk" {
        let folder = std::env::var_os("LAPIS_SSD_SPDK_LIBRARY").map(PathBuf::from);
        return Ok(Engine::Spdk(Spdk::open(path, folder.as_deref(), DEPTH)?));
    }
    Ok(engine::start(DeviceFile::open(path, None)?, choice(engine)?, DEPTH, DEPTH)?.engine)
}

fn choice(name: &str) -> Result<EngineChoice, AnyError> {
    match name {
        "passthrough" => Ok(EngineChoice::Passthrough { polled: false }),
        "passthrough-polled" => Ok(EngineChoice::Passthrough { polled: true }),
        "uring" => Ok(EngineChoice::Uring),
        "threads" => Ok(EngineChoice::Threads),
        _ => Err(format!("no engine {name}").into()),
    }
}

struct Took {
    operations: u64,
    wall: Duration,
    cpu: Duration,
}

fn run(mut device: Engine, is_read: bool, bytes: usize, length: Duration) -> Result<Took, AnyError> {
    let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    let memory = Mapping::anonymous((DEPTH * bytes) as u64)?;
    device.register(&memory)?;
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut operations, mut under_way, mut out) = (0, 0, Vec::with_capacity(DEPTH));
    let (mut free, mut begun) = ((0..DEPTH).collect::<Vec<_>>(), None);
    let (start, mut over) = (Instant::now(), false);
    while !over || under_way > 0 {
        while !over && let Some(slot) = free.pop() {
            let offset = rng.u64(0..SPAN_BYTES / bytes as u64) * bytes as u64;
            let memory = Memory::new(&memory, slot * bytes, bytes);
            let id = IoId(slot as u64);
            let io = if is_read { Io::read(id, offset, memory) } else { Io::write(id, offset, memory) };
            device.submit(io).map_err(|_| "no room for an operation")?;
            under_way += 1;
        }
        device.kick()?;
        device.wait(bell.as_fd(), None)?;
        device.poll(&mut out)?;
        for completion in out.drain(..) {
            completion.result?;
            free.push(completion.id.0 as usize);
            (operations, under_way) = (operations + 1, under_way - 1);
        }
        if begun.is_none() && start.elapsed() >= WARM_UP {
            begun = Some((Instant::now(), cpu(), operations));
        }
        over = start.elapsed() >= WARM_UP + length;
    }
    let (at, before, counted) = begun.ok_or("nothing was measured")?;
    Ok(Took { operations: operations - counted, wall: at.elapsed(), cpu: cpu() - before })
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
