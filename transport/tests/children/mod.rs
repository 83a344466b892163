//! Other processes for tests: this test program again, running one ignored test as that process's main function.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

/// Where the child finds its socket.
pub const PATH: &str = "LAPIS_TEST_SOCKET";

/// A child that is killed when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Runs the ignored test `name` with `path` and returns when it has printed `ready ...`, with what followed.
    pub fn start(name: &str, path: &std::path::Path) -> (Self, String) {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"])
            .env(PATH, path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = lines.find_map(|line| {
            let line = line.ok()?;
            // The test harness writes its own words before ours, on the same line.
            line.split_once("ready ").map(|(_, rest)| rest.to_owned())
        });
        (Self { child }, ready.expect("the child says that it is ready"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// In the child: the socket's path, or None when the test program runs all its ignored tests for once.
pub fn path() -> Option<std::path::PathBuf> {
    std::env::var_os(PATH).map(Into::into)
}

/// In the child: says `ready`, and what the parent should know.
pub fn ready(what: impl std::fmt::Display) {
    println!("ready {what}");
}

/// In the child: until it is killed.
pub fn wait_for_death() -> ! {
    loop {
        std::thread::park();
    }
}
