//! GPUs of the HBM tier, over the stand-in for NVIDIA's driver: no GPU is needed, and none is touched.
//!
//! Memory of a stand-in GPU is a memfd of the process that has it, so these tests look into it from outside.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lapis_benches::host::{Host, HostOptions};
use serde_json::Value;

use super::{
    alone, binary,
    blocks::{self, SMALL},
    eventually,
    machine::{MIB, at, connect, kill_and_restart, status_when},
    worker::Worker,
};

pub const DRAM: u64 = 64 * MIB;
const HBM: u64 = 32 * MIB;
/// As the stand-in names its second GPU.
const BUS_OF_SECOND: &str = "0000:41:00.0";

/// A folder with a program that runs the daemon with a stand-in driver of its own.
pub struct Bed {
    folder: tempfile::TempDir,
}

impl Bed {
    /// `variables`: of the stand-in, without their `LAPIS_CUDA_`.
    pub fn new(variables: &[(&str, &str)]) -> Self {
        let bed = Self { folder: tempfile::tempdir().expect("a folder") };
        bed.set(variables);
        bed
    }

    /// The variables of the next daemon.
    pub fn set(&self, variables: &[(&str, &str)]) {
        let mut script = "#!/bin/sh\nunset LD_LIBRARY_PATH\n".to_owned();
        let misuses = self.misuses().display().to_string();
        for (name, value) in variables.iter().copied().chain([("MISUSES", misuses.as_str())]) {
            script += &format!("export LAPIS_CUDA_{name}='{value}'\n");
        }
        script += &format!("exec '{}' \"$@\"\n", binary::lapis().display());
        let mut file = File::create(self.program()).expect("a file");
        file.write_all(script.as_bytes()).expect("written");
        file.set_permissions(fs::Permissions::from_mode(0o755)).expect("ours");
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("lapis")
    }

    /// Where stand-ins say what was asked of them that the driver's manual forbids; none may, or the end of this fails.
    pub fn misuses(&self) -> PathBuf {
        self.folder.path().join("misuses")
    }

    pub fn host(&self, flags: &[&str]) -> Host {
        let options = HostOptions {
            binary: self.program(),
            dram_bytes: DRAM,
            ssd_bytes: None,
            hold: true,
            flags: flags_of(HBM, flags),
        };
        Host::start(options).expect("a host")
    }

    /// Runs the program to its end.
    fn run(&self, words: &[&str]) -> (Option<i32>, String, String) {
        binary::run(Command::new(self.program()).args(words).stdin(Stdio::null()))
    }
}

impl Drop for Bed {
    /// Whatever the daemon asked of its driver was as the driver's manual has it.
    fn drop(&mut self) {
        let misuses = fs::read_to_string(self.misuses()).unwrap_or_default();
        if !std::thread::panicking() {
            assert_eq!(misuses, "", "misuse of the driver");
        }
    }
}

fn flags_of(hbm_bytes: u64, more: &[&str]) -> Vec<String> {
    let library = binary::cuda_stand_in().display().to_string();
    let bytes = format!("{hbm_bytes}B");
    let own = ["--hbm-bytes", bytes.as_str(), "--hbm-cuda-library", library.as_str()];
    own.iter().chain(more).map(|flag| (*flag).to_owned()).collect()
}

/// Memory of stand-in GPUs that a process has a descriptor of, by GPU: path and bytes.
fn memory_of(pid: u32, gpu: usize) -> Vec<(PathBuf, u64)> {
    let name = format!("/memfd:lapis-cuda-device-{gpu} ");
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").flatten().map(|file| file.path());
    let ours = |path: &PathBuf| fs::read_link(path).is_ok_and(|link| link.to_string_lossy().starts_with(&name));
    files.filter(ours).map(|path| (path.clone(), fs::metadata(&path).expect("open").len())).collect()
}

fn pattern(gpu: usize) -> Vec<u8> {
    (0..HBM).map(|at| (at / 4096 * 7 + at % 251 + gpu as u64) as u8).collect()
}

fn write(pid: u32, gpu: usize) {
    let (path, _) = memory_of(pid, gpu).pop().expect("memory of a GPU");
    File::options().write(true).open(path).expect("ours").write_all_at(&pattern(gpu), 0).expect("written");
}

fn read(pid: u32, gpu: usize) -> Vec<u8> {
    let (path, bytes) = memory_of(pid, gpu).pop().expect("memory of a GPU");
    let mut read = vec![0; bytes as usize];
    File::open(path).expect("ours").read_exact_at(&mut read, 0).expect("read");
    read
}

/// A status in which all memory of the host is registered with each GPU.
pub fn registered(host: &Host, gpus: usize) -> Value {
    status_when(&host.socket(), "registration of memory with GPUs", |status| {
        let all = status["gpus"].as_array().expect("a list of GPUs");
        all.len() == gpus && all.iter().all(|gpu| gpu["load"]["registered_bytes"] == DRAM)
    })
}

fn starts(status: &Value) -> Vec<String> {
    let all = status["gpus"].as_array().expect("a list of GPUs");
    all.iter().map(|gpu| gpu["start"].as_str().expect("a text").to_owned()).collect()
}

fn loads_a_driver(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).expect("a process").contains("libcuda")
}

#[test]
fn a_killed_daemon_finds_the_memory_of_its_gpus_with_its_bytes() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    let status = registered(&host, 2);
    assert_eq!(starts(&status), ["fresh", "fresh"]);
    assert_eq!(status["gpus"][1]["pci_bus_id"], BUS_OF_SECOND);
    assert!(status["gpus"].as_array().expect("a list").iter().all(|gpu| gpu["kept"] == true && gpu["state"] == "well"));
    let pid = host.daemon_pid().expect("a daemon");
    assert!(loads_a_driver(pid));
    [0, 1].into_iter().for_each(|gpu| write(pid, gpu));
    for _ in 0..2 {
        kill_and_restart(&mut host);
        assert_eq!(starts(&registered(&host, 2)), ["warm", "warm"]);
        let pid = host.daemon_pid().expect("a daemon");
        for gpu in [0, 1] {
            assert!(read(pid, gpu) == pattern(gpu), "the bytes of GPU {gpu} are others");
            let bytes: Vec<u64> = memory_of(host.holder_pid().expect("a holder"), gpu).iter().map(|m| m.1).collect();
            assert_eq!(bytes, [HBM], "kept once");
        }
    }
    // Another size, then one GPU less, then none: what was kept is given back, and this is said.
    let holder = host.holder_pid().expect("a holder");
    host.options_mut().flags = flags_of(HBM / 2, &[]);
    kill_and_restart(&mut host);
    let why = "cold: 32MiB in 1 extents were kept, hbm.bytes is 16MiB in 1";
    assert_eq!(starts(&registered(&host, 2)), [why, why]);
    assert!(host.daemon_log().contains("WARN") && host.daemon_log().contains(why), "{}", host.daemon_log());
    assert_eq!(memory_of(holder, 0).iter().map(|m| m.1).collect::<Vec<_>>(), [HBM / 2]);
    let pid = host.daemon_pid().expect("a daemon");
    assert!(read(pid, 0).iter().all(|byte| *byte == 0), "new memory");
    host.options_mut().flags = flags_of(HBM / 2, &["--hbm-gpus", BUS_OF_SECOND]);
    kill_and_restart(&mut host);
    assert_eq!(starts(&registered(&host, 1)), ["warm"]);
    assert_eq!((memory_of(holder, 0).len(), memory_of(holder, 1).len()), (0, 1));
    // A card that takes the place of another.
    host.options_mut().flags = flags_of(HBM / 2, &["--hbm-gpus", "0"]);
    kill_and_restart(&mut host);
    let start = starts(&registered(&host, 1)).pop().expect("one");
    assert!(start.starts_with("cold: what was kept is of GPU-"), "{start}");
    host.options_mut().flags = Vec::new();
    kill_and_restart(&mut host);
    let status = status_when(&host.socket(), "a daemon without GPUs", |_| true);
    assert_eq!((status["gpus"].as_array().expect("a list").len(), memory_of(holder, 0).len()), (0, 0));
    assert!(host.daemon_log().contains("is given back: hbm.bytes is 0"), "{}", host.daemon_log());
    host.stop_daemon().expect("it ends");
}

#[test]
fn a_lost_gpu_takes_itself_out_and_nothing_else() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let gone = folder.path().join("gone");
    let bed = Bed::new(&[("DEVICES", "2"), ("LOSE", &format!("1@{}", gone.display()))]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    File::create(&gone).expect("a file");
    let status = status_when(&host.socket(), "the loss", |status| status["gpus"][1]["state"] == "lost");
    assert_eq!(status["gpus"][0]["state"], "well");
    assert!(status["gpus"][1]["why_lost"].is_string());
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    // A call may be late where the machine is busy.
    eventually("puts", || blocks::put_all(&client, &pool, 0..64).is_empty().then_some(()));
    eventually("hits", || (blocks::hits(&client, &pool, 0..64) == 64).then_some(()));
    // Another look of its thread.
    std::thread::sleep(Duration::from_millis(1200));
    let log = host.daemon_log();
    assert_eq!(log.matches("a GPU is lost with all that was on it").count(), 1, "{log}");
    // It stays out over a restart while it is gone, and the daemon serves without it.
    kill_and_restart(&mut host);
    let status = status_when(&host.socket(), "the daemon", |status| status["gpus"][1]["state"] == "lost");
    assert_eq!(starts(&status), ["warm", "cold: the GPU is lost"]);
    drop(client);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    eventually("hits", || (blocks::hits(&client, &pool, 0..64) == 64).then_some(()));
    drop(client);
    assert!(host.stop_daemon().expect("it ends").success());
    // Back, and empty.
    fs::remove_file(&gone).expect("it is there");
    host.start_daemon().expect("a daemon");
    let status = registered(&host, 2);
    assert_eq!(starts(&status), ["warm", "fresh"]);
    host.stop_daemon().expect("it ends");
}

#[test]
fn a_gpu_that_is_lost_while_another_begins_takes_itself_out_and_nothing_else() {
    let _alone = alone();
    for without in ["", "descriptors"] {
        // At the first call after it was opened: the first GPU's memory is shared with it.
        let bed = Bed::new(&[("DEVICES", "2"), ("LOSE", "1@1"), ("WITHOUT", without)]);
        let mut host = bed.host(&[]);
        let status = status_when(&host.socket(), "the daemon", |status| at(status, "/dram/populated_bytes") == DRAM);
        let states = [0, 1].map(|gpu| status["gpus"][gpu]["state"].as_str().expect("a text"));
        assert_eq!(states, ["well", "lost"], "{}", host.daemon_log());
        host.stop_daemon().expect("it ends");
    }
}

#[test]
fn what_is_missing_is_said_and_the_daemon_does_not_start() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let socket = bed.folder.path().join("lapis.sock").display().to_string();
    let serve = |bed: &Bed, words: &[&str]| {
        let common = ["serve", "--server-socket", &socket, "--dram-bytes", "64MiB", "--metrics-listen", "off"];
        let (status, _, said) = bed.run(&[&common, words].concat());
        assert_eq!(status, Some(1), "{said}");
        said
    };
    let has = |said: &str, words: &[&str]| {
        let last = said.lines().last().unwrap_or_default();
        assert!(words.iter().all(|words| last.contains(words)), "{words:?} not in {said}");
    };
    let said = serve(&bed, &["--hbm-bytes", "8MiB"]);
    has(&said, &["lapis: open the GPUs", "install NVIDIA's driver (libcuda.so.1)", "hbm.cuda_library"]);
    let said = serve(&bed, &["--hbm-bytes", "8MiB", "--hbm-cuda-library", "/nowhere/libcuda.so"]);
    has(&said, &["/nowhere/libcuda.so", "No such file"]);
    let library = binary::cuda_stand_in().display().to_string();
    let with = |bytes: &str, more: &[&str]| {
        serve(&bed, &[&["--hbm-cuda-library", &library, "--hbm-bytes", bytes], more].concat())
    };
    let other = "GPU-00112233-4455-6677-8899-aabbccddeeff";
    has(&with("8MiB", &["--hbm-gpus", other]), &[&format!("names {other}, which is not there"), BUS_OF_SECOND]);
    has(&with("300MiB", &[]), &["has 256MiB free of 256MiB, hbm.bytes is 300MiB", "lower it"]);
    let none = Bed::new(&[("DEVICES", "0")]);
    let said = serve(&none, &["--hbm-cuda-library", &library, "--hbm-bytes", "8MiB"]);
    has(&said, &["shows no GPU to this process", "CUDA_VISIBLE_DEVICES"]);
    assert!(!Path::new(&socket).exists(), "nobody was let in");
}

#[test]
fn the_doctor_says_what_gpus_there_are_and_what_they_lack() {
    let _alone = alone();
    let library = binary::cuda_stand_in().display().to_string();
    let doctor = |bed: &Bed, words: &[&str]| {
        let socket = bed.folder.path().join("lapis.sock").display().to_string();
        let common = ["doctor", "--server-socket", &socket, "--dram-bytes", "64MiB"];
        let (status, said, _) = bed.run(&[&common, words].concat());
        let lines = said.lines().filter(|line| line.get(6..).is_some_and(|rest| rest.starts_with("gpus")));
        (status, lines.map(str::to_owned).collect::<Vec<_>>().join("\n"))
    };
    let bed = Bed::new(&[("DEVICES", "2")]);
    let (_, said) = doctor(&bed, &["--hbm-bytes", "8MiB", "--hbm-cuda-library", &library]);
    assert!(said.contains("8MiB of 256MiB free") && said.contains("0 reaches 1; 1 reaches 0"), "{said}");
    let (status, said) = doctor(&bed, &["--hbm-bytes", "8MiB"]);
    assert!(status == Some(1) && said.starts_with("fail") && said.contains("install NVIDIA's driver"), "{said}");
    let bed = Bed::new(&[("DEVICES", "2"), ("WITHOUT", "descriptors,peers")]);
    let (_, said) = doctor(&bed, &["--hbm-bytes", "8MiB", "--hbm-cuda-library", &library]);
    assert!(said.contains("warn  gpus") && said.contains("CUDA IPC alone"), "{said}");
    assert!(said.contains("1 reaches none (blocks go by way of the host)"), "{said}");
    let (_, said) = doctor(&bed, &["--hbm-cuda-library", &library]);
    assert!(said.contains("not used: hbm.bytes = 0B") && !said.contains("warn"), "{said}");
    // As a daemon would go on.
    let bed = Bed::new(&[("DEVICES", "2"), ("LOSE", "1@0")]);
    let (_, said) = doctor(&bed, &["--hbm-bytes", "8MiB", "--hbm-cuda-library", &library]);
    assert!(said.contains("warn  gpus") && said.contains("a daemon goes on without it"), "{said}");
    assert!(!said.contains("fail"), "{said}");
    // One that is not to be used is left alone: nothing is asked of it.
    let busy = bed.folder.path().join("busy");
    File::create(&busy).expect("a file");
    bed.set(&[("DEVICES", "2"), ("HANG", &format!("1@{}", busy.display()))]);
    let (_, said) = doctor(&bed, &["--hbm-bytes", "8MiB", "--hbm-cuda-library", &library, "--hbm-gpus", "0"]);
    assert!(said.contains("8MiB of 256MiB free") && said.contains("not named in hbm.gpus"), "{said}");
}

#[test]
fn memory_that_is_shared_by_cuda_ipc_is_not_kept_and_that_is_said() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "1"), ("WITHOUT", "descriptors")]);
    let mut host = bed.host(&[]);
    for _ in 0..2 {
        let status = registered(&host, 1);
        assert_eq!(starts(&status), ["cold: its memory is shared by CUDA IPC, which no restart outlives"]);
        assert_eq!(status["gpus"][0]["kept"], false);
        assert!(host.daemon_log().contains("which no restart outlives"), "{}", host.daemon_log());
        assert!(memory_of(host.holder_pid().expect("a holder"), 0).is_empty());
        kill_and_restart(&mut host);
    }
    registered(&host, 1);
    host.stop_daemon().expect("it ends");
}

#[test]
fn no_driver_is_loaded_unless_gpus_are_asked_for() {
    let _alone = alone();
    // Where the loader would find one.
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["libcuda.so", "libcuda.so.1"] {
        fs::copy(binary::cuda_stand_in(), folder.path().join(name)).expect("copied");
    }
    let program = folder.path().join("lapis");
    let script = format!(
        "#!/bin/sh\nexport LD_LIBRARY_PATH='{}'\nexec '{}' \"$@\"\n",
        folder.path().display(),
        binary::lapis().display()
    );
    fs::write(&program, script).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("ours");
    for (flags, loads) in [(Vec::new(), false), (vec!["--hbm-bytes".to_owned(), "8MiB".to_owned()], true)] {
        let options = HostOptions { binary: program.clone(), dram_bytes: DRAM, ssd_bytes: None, hold: false, flags };
        let mut host = Host::start(options).expect("a host");
        let status = status_when(&host.socket(), "the daemon", |status| at(status, "/dram/populated_bytes") == DRAM);
        assert_eq!(status["gpus"].as_array().expect("a list").len(), usize::from(loads));
        assert_eq!(loads_a_driver(host.daemon_pid().expect("a daemon")), loads);
        host.stop_daemon().expect("it ends");
    }
}

/// Runs one of the roles of `gpu_roles` over the stand-in; nothing of the driver may be misused.
fn run_role(role: &str, variables: &[(&str, &str)]) {
    let misuses = tempfile::NamedTempFile::new().expect("a file");
    let mut command = Command::new(std::env::current_exe().expect("this test's binary"));
    command.env_remove("LD_LIBRARY_PATH").env("LAPIS_CUDA_MISUSES", misuses.path());
    for (name, value) in variables {
        command.env(format!("LAPIS_CUDA_{name}"), value);
    }
    let worker = Worker::spawn(command, role, &[&binary::cuda_stand_in().display().to_string()]);
    worker.finish();
    assert_eq!(fs::read_to_string(misuses.path()).expect("a file"), "", "misuse of the driver");
}

#[test]
fn copies_go_every_way_and_each_is_reported_once() {
    run_role("gpu copies", &[("DEVICES", "2"), ("LATENCY_US", "0-200")]);
    run_role("gpu copies", &[("DEVICES", "2"), ("WITHOUT", "descriptors")]);
}

#[test]
fn copies_that_fail_are_reported_and_counted() {
    run_role("gpu errors", &[("DEVICES", "1"), ("ERRORS", "copy=3"), ("SEED", "5")]);
}

#[test]
fn all_copies_of_a_lost_gpu_end_as_lost_and_those_of_others_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let gone = folder.path().join("gone");
    let lose = format!("0@{}", gone.display());
    run_role("gpu loss", &[("DEVICES", "2"), ("LOSE", &lose), ("LATENCY_US", "2000-4000")]);
}

#[test]
fn kept_memory_that_is_not_what_it_is_called_is_not_taken_over() {
    run_role("gpu kept", &[("DEVICES", "2")]);
}

#[test]
fn a_gpu_that_hangs_does_not_hold_up_the_end() {
    let began = Instant::now();
    eventually("an end", || {
        run_role("gpu hang", &[("DEVICES", "1"), ("LATENCY_US", "60000000-60000000")]);
        Some(())
    });
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// With a file that makes a GPU hang.
fn run_hanging(role: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let hang = format!("0@{}", folder.path().join("hangs").display());
    run_role(role, &[("DEVICES", "2"), ("HANG", &hang)]);
}

#[test]
fn a_start_waits_for_a_driver_that_does_not_answer_and_then_says_so() {
    run_hanging("gpu silent");
}

#[test]
fn a_call_of_the_driver_that_does_not_return_holds_up_its_gpu_alone() {
    run_hanging("gpu stuck");
}
