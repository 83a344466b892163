//! Memory of a device in two processes, and over a restart.

use std::{
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    sync::Arc,
};

use lapis_arena::{
    Mapping,
    hbm::{Cuda, CudaCopier, Device, HbmError, HbmExtent, HostExtent, Shared},
};
use rustix::io::{FdFlags, fcntl_setfd};

use super::{
    harness::{Scenario, WORD, cuda, open, word},
    suite::{BLOCK, all_well, device, host, job, pattern},
};

const BYTES: u64 = 4 * BLOCK;

/// One extent and memory of the host, to look into it.
struct Window {
    copier: CudaCopier,
    memory: Mapping,
}

impl Window {
    fn new(device: &Arc<Device>, extent: Arc<HbmExtent>) -> Self {
        let memory = Mapping::anonymous(BYTES).expect("memory");
        let mut copier = CudaCopier::new(8);
        copier.add_device(device).expect("streams");
        copier.add_extent(extent);
        let extent = HostExtent::register(device, memory.clone(), u64::MAX).expect("registration");
        extent.wait();
        copier.add_host(extent);
        Self { copier, memory }
    }

    fn write(&mut self, slot: u64, bytes: &[u8]) {
        self.memory.copy_in(0, bytes);
        all_well(&mut self.copier, &[job(1, host(0), device(0, slot))]);
    }

    fn read(&mut self, slot: u64) -> Vec<u8> {
        all_well(&mut self.copier, &[job(1, device(0, slot), host(1))]);
        self.memory.to_vec(BLOCK as usize, BLOCK as usize)
    }
}

/// What is told to another process of shared memory.
fn tell(shared: &Shared) -> String {
    match shared {
        Shared::Descriptor(fd) => {
            fcntl_setfd(fd, FdFlags::empty()).expect("inherited");
            format!("fd {}", fd.as_raw_fd())
        }
        Shared::Ipc(bytes) => format!("ipc {}", bytes.map(|byte| format!("{byte:02x}")).concat()),
    }
}

fn told(word: &str) -> Shared {
    match word.split_once(' ').expect("two words") {
        // SAFETY: inherited from the process that started this one, and nobody else's here.
        ("fd", number) => Shared::Descriptor(unsafe { OwnedFd::from_raw_fd(number.parse().expect("a number")) }),
        (_, hex) => {
            let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex");
            Shared::Ipc(std::array::from_fn(byte))
        }
    }
}

fn create(cuda: &Arc<Cuda>) -> (Window, Shared) {
    let device = open(cuda, 0);
    let extent = Arc::new(HbmExtent::create(&device, BYTES, &[]).expect("memory"));
    let shared = extent.share().expect("shared");
    let mut window = Window::new(&device, extent);
    window.write(0, &pattern(1));
    window.write(1, &pattern(2));
    (window, shared)
}

#[test]
#[ignore = "in a process of its own"]
fn owner() {
    let Some(cuda) = cuda() else { return };
    let (mut window, shared) = create(&cuda);
    println!("kind {}", if matches!(shared, Shared::Ipc(_)) { "ipc" } else { "descriptor" });
    let output = Scenario::new("sharing::guest").with(WORD, tell(&shared)).run();
    print!("{}", output.output);
    assert_eq!((window.read(2), window.read(0)), (pattern(7), pattern(1)));
}

/// Reads what the owner wrote, and writes what the owner reads.
#[test]
#[ignore = "in a process of its own"]
fn guest() {
    let Some(cuda) = cuda() else { return };
    let device = open(&cuda, 0);
    let extent = HbmExtent::import(&device, &told(&word()), BYTES, &[]).expect("the owner's");
    let mut window = Window::new(&device, Arc::new(extent));
    assert_eq!((window.read(0), window.read(1)), (pattern(1), pattern(2)));
    window.write(2, &pattern(7));
}

#[test]
fn two_processes_see_the_same_memory() {
    let output = Scenario::new("sharing::owner").run_clean();
    assert!(output.contains("kind descriptor"), "{output}");
}

#[test]
fn two_processes_see_the_same_memory_by_cuda_ipc() {
    for without in ["vmm", "descriptors"] {
        let output = Scenario::new("sharing::owner").with("LAPIS_CUDA_WITHOUT", without).run_clean();
        assert!(output.contains("kind ipc"), "{output}");
    }
}

/// Becomes another program, as a daemon that was killed: of all that it had only the descriptor is left.
#[test]
#[ignore = "in a process of its own"]
fn before() {
    let Some(cuda) = cuda() else { return };
    let (window, shared) = create(&cuda);
    let mut command = Command::new(std::env::current_exe().expect("this file"));
    command.args(["--exact", "sharing::guest", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(WORD, tell(&shared));
    let error = command.exec();
    drop(window);
    panic!("{error}");
}

#[test]
fn memory_whose_descriptor_is_kept_outlives_its_process() {
    Scenario::new("sharing::before").run_clean();
}

/// By CUDA IPC memory ends with its process: that is an error then, not other bytes.
#[test]
#[ignore = "in a process of its own"]
fn ended() {
    let Some(cuda) = cuda() else { return };
    let (_window, shared) = create(&cuda);
    println!("handle {}", tell(&shared));
}

#[test]
#[ignore = "in a process of its own"]
fn late() {
    let Some(cuda) = cuda() else { return };
    let device = open(&cuda, 0);
    let error = HbmExtent::import(&device, &told(&word()), BYTES, &[]).expect_err("the owner has ended");
    assert!(!error.is_lost() && device.memory().is_ok(), "{error}");
}

#[test]
fn memory_of_cuda_ipc_is_gone_with_its_process() {
    let output = Scenario::new("sharing::ended").with("LAPIS_CUDA_WITHOUT", "vmm").run_clean();
    let handle = output.lines().find_map(|line| line.split_once("handle ")).expect("a handle").1;
    Scenario::new("sharing::late").with(WORD, handle).run_clean();
}

/// What is not the memory that was expected is refused.
#[test]
#[ignore = "in a process of its own"]
fn foreign() {
    let Some(cuda) = cuda() else { return };
    let (zero, one) = (open(&cuda, 0), open(&cuda, 1));
    let extent = HbmExtent::create(&zero, BYTES, &[]).expect("memory");
    let shared = extent.share().expect("shared");
    let error = HbmExtent::import(&one, &shared, BYTES, &[]).expect_err("of another device");
    assert!(matches!(error, HbmError::Foreign { device: 1, .. }), "{error}");
    let file = Shared::Descriptor(tempfile::tempfile().expect("a file").into());
    assert!(HbmExtent::import(&zero, &file, BYTES, &[]).is_err());
    let again = HbmExtent::import(&zero, &shared, BYTES, &[]).expect("the same, in the same process");
    assert_ne!(again.address(), extent.address());
    // More than there is: the stand-in calls it a misuse, which it is where a caller does not look.
    let error = HbmExtent::import(&zero, &shared, 1 << 30, &[]).expect_err("larger than it is");
    assert!(matches!(error, HbmError::Foreign { .. }), "{error}");
    drop((extent, again));
    assert_eq!(zero.memory().expect("memory").0, zero.memory().expect("memory").1, "nothing is left");
}

#[test]
fn memory_that_does_not_fit_is_refused_and_nothing_of_it_is_left() {
    let ended = Scenario::new("sharing::foreign").with("LAPIS_CUDA_DEVICES", "2").run();
    assert_eq!(ended.misuses.len(), 1, "{:?}", ended.misuses);
    assert!(ended.misuses[0].starts_with("out-of-bounds: cuMemMap"), "{:?}", ended.misuses);
}
