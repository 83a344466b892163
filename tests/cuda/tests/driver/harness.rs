//! Processes of their own: this test binary again, running one ignored test.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use lapis_arena::hbm::{Cuda, Device};
use std::sync::Arc;

/// Where a child finds the driver's library. Unset: this process was told to run all ignored tests, and has nothing to do.
const LIBRARY: &str = "LAPIS_TEST_CUDA";
/// What else a child is told.
pub const WORD: &str = "LAPIS_TEST_WORD";
const PATIENCE: Duration = Duration::from_secs(120);

/// The stand-in, as cargo has built it for this test.
pub fn stand_in() -> PathBuf {
    let this = env::current_exe().expect("this test's own file");
    let library = this.parent().expect("a folder").join("libcuda.so");
    assert!(library.exists(), "{} was not built", library.display());
    library
}

/// A scenario that is going to run.
pub struct Scenario {
    name: String,
    command: Command,
    misuses: tempfile::NamedTempFile,
}

/// What came of it.
pub struct Ended {
    pub output: String,
    /// A line each.
    pub misuses: Vec<String>,
}

impl Scenario {
    /// `name` is the path of an ignored test of this binary.
    pub fn new(name: &str) -> Self {
        let misuses = tempfile::NamedTempFile::new().expect("a file");
        let mut command = Command::new(env::current_exe().expect("this test's own file"));
        command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(LIBRARY, stand_in()).env("LAPIS_CUDA_MISUSES", misuses.path());
        // Cargo names its own folders there, and a driver would be found in them.
        command.env_remove("LD_LIBRARY_PATH");
        Self { name: name.to_owned(), command, misuses }
    }

    pub fn with(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn library(self, path: &Path) -> Self {
        self.with(LIBRARY, path)
    }

    /// Runs it; it must end well.
    pub fn run(mut self) -> Ended {
        let child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
        let pid = child.id();
        let (sender, receiver) = channel();
        thread::spawn(move || sender.send(child.wait_with_output()));
        let output = receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("{} did not end", self.name)
        });
        let output = output.expect("its output");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains("1 passed"), "{}: {}\n{text}", self.name, output.status);
        let misuses = fs::read_to_string(self.misuses.path()).expect("the file of misuses");
        Ended { output: text, misuses: misuses.lines().map(str::to_owned).collect() }
    }

    /// Runs it; it must end well, and nothing may have been misused.
    pub fn run_clean(self) -> String {
        let Ended { output, misuses } = self.run();
        assert!(misuses.is_empty(), "{misuses:#?}\n{output}");
        output
    }
}

/// In a child: the library to load.
pub fn library() -> Option<PathBuf> {
    env::var_os(LIBRARY).map(PathBuf::from)
}

/// In a child: what it was told.
pub fn word() -> String {
    env::var(WORD).expect("a word")
}

/// In a child: the driver, or none where the child is not one.
pub fn cuda() -> Option<Arc<Cuda>> {
    Some(Cuda::load(Some(&library()?)).expect("the stand-in"))
}

pub fn open(cuda: &Arc<Cuda>, index: u16) -> Arc<Device> {
    Device::open(cuda, index).expect("a device")
}
