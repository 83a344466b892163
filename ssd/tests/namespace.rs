//! An NVMe namespace that is claimed, reset, broken and pulled out under load: only where there is one, as in
//! `tests/testbed/nvme`. `LAPIS_TEST_NAMESPACE` names it; all on it is lost. One test at a time has it.
//!
//! `LAPIS_TEST_BAD_SECTORS` (first, count; of 512 bytes): reads there fail. `LAPIS_TEST_REMOVE`: it may be pulled out.

use std::{
    env, fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lapis_arena::Mapping;
use lapis_ssd::{
    SsdError,
    device::{Completion, Device, DeviceFile, Io, IoId, Memory, Waits},
    engine::{self, Engine, EngineChoice},
    passthrough::block_beside,
};
use rustix::event::EventfdFlags;

const PAGE: usize = 4096;
const DEPTH: usize = 32;
const BLOCK: usize = 256 << 10;
const COMMANDS: EngineChoice = EngineChoice::Passthrough { polled: false };
/// The kernel's own limit of a command (30 s), and what follows it.
const ENDS_WITHIN: Duration = Duration::from_secs(40);

fn namespace() -> Option<PathBuf> {
    let named = env::var_os("LAPIS_TEST_NAMESPACE");
    if named.is_none() {
        println!("skipped: LAPIS_TEST_NAMESPACE names no NVMe namespace (tests/testbed/nvme has one)");
    }
    named.map(PathBuf::from)
}

/// Both names of it: the block device, the generic device.
fn names(path: &Path) -> [PathBuf; 2] {
    let block = block_beside(path).unwrap_or_else(|| path.into());
    let generic = block.to_string_lossy().replace("/nvme", "/ng").into();
    [block, generic]
}

/// The controller's folder in sysfs; of one with several, the first of them.
fn controller(block: &Path) -> PathBuf {
    let folder = fs::canonicalize(Path::new("/sys/class/block").join(block.file_name().expect("a name")));
    let parent = folder.expect("sysfs").parent().expect("a controller or a subsystem").to_owned();
    if parent.join("reset_controller").exists() {
        return parent;
    }
    let within = fs::read_dir(&parent).expect("sysfs").flatten().map(|entry| entry.path());
    let controller = within.filter(|path| path.join("reset_controller").exists()).min().expect("a controller");
    fs::canonicalize(controller).expect("sysfs")
}

fn opened(path: &Path) -> DeviceFile {
    let start = Instant::now();
    loop {
        match DeviceFile::open(path, None) {
            Err(error) if error.is_transient() && start.elapsed() < Duration::from_secs(5) => std::thread::yield_now(),
            opened => return opened.expect("a namespace that nobody has"),
        }
    }
}

struct Driven {
    engine: Engine,
    bell: OwnedFd,
}

impl Driven {
    fn over(path: &Path, choice: EngineChoice) -> Self {
        let started = engine::start(opened(path), choice, DEPTH, DEPTH).expect("an engine");
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor");
        Self { engine: started.engine, bell }
    }

    fn submit(&mut self, io: Io) {
        self.engine.submit(io).unwrap_or_else(|io| panic!("no room for {:?}", io.id));
    }

    fn turn(&mut self, out: &mut Vec<Completion>) {
        self.engine.kick().expect("a kick");
        self.engine.wait(self.bell.as_fd(), Some(Duration::from_millis(100))).expect("a wait");
        self.engine.poll(out).expect("a poll");
    }

    fn ended(&mut self, count: usize) -> Vec<Completion> {
        let (start, mut out) = (Instant::now(), Vec::new());
        while out.len() < count {
            self.turn(&mut out);
            assert!(start.elapsed() < ENDS_WITHIN, "{} of {count}", out.len());
        }
        out
    }

    fn one(&mut self, io: Io) -> Result<(), std::io::Error> {
        self.submit(io);
        self.ended(1).remove(0).result
    }
}

fn filled(seed: u64, bytes: usize) -> Mapping {
    let mapping = Mapping::anonymous(bytes as u64).expect("memory");
    let mut rng = fastrand::Rng::with_seed(seed);
    mapping.copy_in(0, &(0..bytes).map(|_| rng.u8(..)).collect::<Vec<_>>());
    mapping
}

/// Keeps the device full with writes and reads back what it wrote, until `over`; how many ended well, and the errors.
fn load(driven: &mut Driven, mut over: impl FnMut(u64, &[std::io::Error]) -> bool) -> (u64, Vec<std::io::Error>) {
    let places = 4 * DEPTH as u64;
    let memory: Vec<Mapping> = (0..DEPTH as u64).map(|slot| filled(slot, BLOCK)).collect();
    let back: Vec<Mapping> = (0..DEPTH).map(|_| filled(0, BLOCK)).collect();
    let (mut well, mut errors, mut out, mut free) = (0, Vec::new(), Vec::new(), (0..DEPTH).collect::<Vec<_>>());
    // By slot: the place, and whether it is being read back.
    let mut at = vec![(0, false); DEPTH];
    let (mut next, mut last) = (0, Instant::now());
    loop {
        let is_over = over(well, &errors);
        if is_over && free.len() == DEPTH {
            return (well, errors);
        }
        while !is_over && let Some(slot) = free.pop() {
            at[slot] = (next % places, false);
            next += 1;
            let offset = at[slot].0 * BLOCK as u64;
            driven.submit(Io::write(IoId(slot as u64), offset, Memory::new(&memory[slot], 0, BLOCK)));
        }
        driven.turn(&mut out);
        for Completion { id, result } in out.drain(..) {
            last = Instant::now();
            let slot = id.0 as usize;
            match (result, at[slot].1) {
                (Ok(()), false) if !is_over => {
                    at[slot].1 = true;
                    let offset = at[slot].0 * BLOCK as u64;
                    driven.submit(Io::read(id, offset, Memory::new(&back[slot], 0, BLOCK)));
                    continue;
                }
                (Ok(()), true) => {
                    assert!(back[slot].to_vec(0, BLOCK) == memory[slot].to_vec(0, BLOCK), "wrong bytes");
                    well += 1;
                }
                (Ok(()), false) => {}
                (Err(error), _) => errors.push(error),
            }
            free.push(slot);
        }
        assert!(last.elapsed() < ENDS_WITHIN, "{} hang", DEPTH - free.len());
    }
}

#[test]
fn a_namespace_has_one_user_by_whichever_name_and_whichever_engine() {
    let Some(path) = namespace() else { return };
    let [block, generic] = names(&path);
    for (first, second) in [(&block, &generic), (&generic, &block), (&generic, &generic)] {
        for choice in [COMMANDS, EngineChoice::Uring, EngineChoice::Threads] {
            let driven = Driven::over(first, choice);
            let refused = DeviceFile::open(second, None).expect_err("it has a user");
            assert!(matches!(refused, SsdError::Busy { .. } | SsdError::Locked { .. }), "{refused}");
            drop(driven);
        }
    }
    drop(opened(&path));
}

#[test]
fn auto_takes_commands_and_a_file_does_not_miss_them() {
    let Some(path) = namespace() else { return };
    let started = engine::start(opened(&path), EngineChoice::Auto, DEPTH, DEPTH).expect("an engine");
    assert_eq!((started.engine.name(), started.why()), ("passthrough", None));
    drop(started);
    let dir = tempfile::tempdir().expect("a folder");
    let file = DeviceFile::open(&dir.path().join("log"), Some(1 << 20)).expect("a file");
    let started = engine::start(file, EngineChoice::Auto, DEPTH, DEPTH).expect("an engine");
    assert!(started.engine.name() != "passthrough" && !started.why().is_some_and(|why| why.contains("NVMe")));
}

#[test]
fn what_is_given_up_reads_as_it_was_or_as_zeros_and_the_rest_stays() {
    let Some(path) = namespace() else { return };
    let mut driven = Driven::over(&path, COMMANDS);
    let (written, back) = (filled(9, 3 * BLOCK), filled(0, 3 * BLOCK));
    driven.one(Io::write(IoId(0), 0, Memory::new(&written, 0, 3 * BLOCK))).expect("a write");
    driven.one(Io::discard(IoId(1), BLOCK as u64, BLOCK as u64)).expect("a discard");
    driven.one(Io::flush(IoId(2))).expect("a flush");
    driven.one(Io::read(IoId(3), 0, Memory::new(&back, 0, 3 * BLOCK))).expect("a read");
    for third in [0, 2] {
        assert!(back.to_vec(third * BLOCK, BLOCK) == written.to_vec(third * BLOCK, BLOCK), "third {third}");
    }
    let given_up = back.to_vec(BLOCK, BLOCK);
    assert!(given_up == written.to_vec(BLOCK, BLOCK) || given_up.iter().all(|byte| *byte == 0));
}

#[test]
fn resets_under_load_lose_nothing() {
    let Some(path) = namespace() else { return };
    let [block, _] = names(&path);
    let reset = controller(&block).join("reset_controller");
    for choice in [COMMANDS, EngineChoice::Passthrough { polled: true }, EngineChoice::Uring, EngineChoice::Threads] {
        let mut driven = Driven::over(&path, choice);
        let (mut resets, mut at) = (Vec::new(), 20);
        let (well, errors) = load(&mut driven, |well, _| {
            if well >= at && resets.len() < 3 {
                let reset = reset.clone();
                resets.push(std::thread::spawn(move || fs::write(reset, "1")));
                at = well + 40;
            }
            resets.len() == 3 && well >= at && resets.iter().all(|reset| reset.is_finished())
        });
        for reset in resets {
            reset.join().expect("no panic").expect("a reset");
        }
        println!("{}: {well} blocks written and read back over 3 resets", driven.engine.name());
        assert_eq!(errors.len(), 0, "{}, the first: {:?}", driven.engine.name(), errors.first());
    }
}

#[test]
fn a_media_error_is_said_and_costs_only_what_lies_there() {
    let Some(path) = namespace() else { return };
    let Ok(bad) = env::var("LAPIS_TEST_BAD_SECTORS") else {
        println!("skipped: LAPIS_TEST_BAD_SECTORS names no sectors that cannot be read");
        return;
    };
    let (first, count) = bad.split_once(',').expect("first,count");
    let [first, count]: [u64; 2] = [first, count].map(|number| number.parse().expect("a number"));
    let (bad, bad_bytes) = (first * 512 / PAGE as u64 * PAGE as u64, (count * 512) as usize);
    assert!(bad_bytes <= BLOCK, "the bad sectors lie in one block");
    let mut driven = Driven::over(&path, COMMANDS);
    let memory = filled(3, BLOCK);
    driven.one(Io::write(IoId(0), bad, Memory::new(&memory, 0, BLOCK))).expect("writes go well");
    let error = driven.one(Io::read(IoId(1), bad, Memory::new(&memory, 0, BLOCK))).expect_err("it cannot be read");
    assert!(error.to_string().contains("media error"), "{error}");
    let beside = filled(4, BLOCK);
    driven.one(Io::write(IoId(2), bad + BLOCK as u64, Memory::new(&beside, 0, BLOCK))).expect("a write");
    let back = filled(0, BLOCK);
    driven.one(Io::read(IoId(3), bad + BLOCK as u64, Memory::new(&back, 0, BLOCK))).expect("a read");
    assert!(back.to_vec(0, BLOCK) == beside.to_vec(0, BLOCK));
}

/// By itself: the device is gone afterwards.
#[test]
fn what_is_under_way_when_the_device_is_pulled_out_ends_in_errors() {
    let Some(path) = namespace() else { return };
    if env::var_os("LAPIS_TEST_REMOVE").is_none() {
        println!("skipped: LAPIS_TEST_REMOVE does not say that the device may be pulled out");
        return;
    }
    let [block, _] = names(&path);
    let remove = controller(&block).join("device/remove");
    let mut driven = Driven::over(&path, COMMANDS);
    let (mut pulled, mut pulled_at) = (None, None);
    let (well, errors) = load(&mut driven, |well, errors| {
        if well >= 50 && pulled.is_none() {
            let remove = remove.clone();
            pulled_at = Some(Instant::now());
            pulled = Some(std::thread::spawn(move || fs::write(remove, "1")));
        }
        errors.len() >= DEPTH
    });
    let took = pulled_at.expect("it was pulled out").elapsed();
    println!("{well} well, then {} errors within {took:?}; the first: {}", errors.len(), errors[0]);
    assert!(errors.len() >= DEPTH && took < ENDS_WITHIN);
    let start = Instant::now();
    drop(driven);
    assert!(start.elapsed() < Duration::from_secs(5), "dropping it took {:?}", start.elapsed());
    pulled.expect("it was pulled out").join().expect("no panic").expect("it can be pulled out");
}
