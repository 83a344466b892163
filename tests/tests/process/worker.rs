//! A client in a process of its own: this test binary once more, told by its environment what to be. It writes lines of
//! JSON; every line that it gets asks for one; the end of its input ends it.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Instant,
};

use serde_json::Value;

use super::PATIENCE;

pub const ROLE: &str = "LAPIS_PROCESS_ROLE";
/// A JSON list of words.
pub const ARGUMENTS: &str = "LAPIS_PROCESS_ARGUMENTS";
/// What a line of ours starts with: the test harness writes there too.
pub const MARK: &str = "@ ";

pub struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<Value>,
}

impl Worker {
    pub fn start(role: &str, arguments: &[&str]) -> Self {
        Self::spawn(Command::new(env::current_exe().expect("this test's binary")), role, arguments)
    }

    /// `command` ends with the path of this binary: it may run it under a tracer.
    pub fn spawn(mut command: Command, role: &str, arguments: &[&str]) -> Self {
        let test = "the_clients_of_these_tests_run_in_processes_of_their_own";
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command.env(ROLE, role).env(ARGUMENTS, serde_json::to_string(arguments).expect("words"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The harness writes the name of the test without a line end.
                let Some(at) = line.find(MARK) else { continue };
                let value = serde_json::from_str(&line[at + MARK.len()..]).expect("a role writes JSON");
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it says next.
    pub fn line(&mut self) -> Value {
        let ended = self.child.try_wait().expect("our child");
        self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("no word of a worker ({ended:?}): {error}"))
    }

    /// Asks how far it is.
    pub fn ask(&mut self) -> Value {
        let mut input = self.input.as_ref().expect("it was not let go");
        input.write_all(b"\n").expect("the worker lives");
        self.line()
    }

    /// SIGKILL. Just before it is when it was.
    pub fn kill(&mut self) -> Instant {
        let at = Instant::now();
        self.child.kill().expect("our child");
        at
    }

    /// Whatever inherited its input goes on.
    pub fn wait(&mut self) {
        self.child.wait().expect("our child");
    }

    /// Ends its input, and with it what forked children wait for.
    pub fn let_go(&mut self) {
        self.input = None;
    }

    /// Lets it end by itself; its last word.
    pub fn finish(mut self) -> Value {
        self.let_go();
        let last = self.line();
        let status = self.child.wait().expect("our child");
        assert!(status.success(), "a worker ended with {status}: {last}");
        last
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
