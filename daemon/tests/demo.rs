//! `lapis demo` as a person runs it: what it prints, how it ends, and that nothing is left behind.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Nothing here takes longer, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A demo whose temporary folders are in `folder`.
fn demo(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
    command.arg("demo").args(arguments).env("TMPDIR", folder).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Processes that were told of `folder`.
fn processes_of(folder: &Path) -> usize {
    let wanted = folder.to_str().expect("a plain path").as_bytes();
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let command_lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    command_lines.filter(|line| line.windows(wanted.len()).any(|part| part == wanted)).count()
}

fn assert_nothing_left(folder: &Path) {
    assert_eq!(processes_of(folder), 0, "processes are left");
    let left: Vec<_> = fs::read_dir(folder).expect("the folder").flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?} are left");
    let shared = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let names: Vec<_> = shared.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(!names.iter().any(|name| name.contains("lapis")), "{names:?} in /dev/shm");
}

/// Waits for an end, and fails after a time in which it must have come.
fn ended(mut child: Child) -> Output {
    let started = Instant::now();
    while child.try_wait().expect("our child").is_none() {
        assert!(started.elapsed() < PATIENCE, "the demo did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("it ended")
}

fn assert_whole(output: &Output) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    assert_eq!(out.lines().last(), Some("wrong bytes: 0"), "{out}\n{err}");
    for row in ["requests", "hits", "puts refused", "blocks kept over the kill", "first verified hit"] {
        assert!(out.lines().any(|line| line.starts_with(row)), "no {row} in\n{out}");
    }
    assert!(out.contains(" 0 misses"), "a read was a miss because of the kill:\n{out}");
}

#[test]
fn a_generated_trace_ends_without_a_wrong_byte_and_nothing_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["--requests", "120", "--dram", "64MiB", "--block-bytes", "16KiB", "--seed", "7"];
    let output = demo(folder.path(), &arguments).output().expect("the demo runs");
    assert_whole(&output);
    assert_nothing_left(folder.path());
}

#[test]
fn a_trace_from_a_file_is_replayed_with_its_kill() {
    let (folder, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let file = files.path().join("made.jsonl.zst");
    let made = Command::new(env!("CARGO_BIN_EXE_lapis"))
        .args(["trace", "--requests", "60", "--seed", "3", "--out"])
        .arg(&file)
        .status()
        .expect("the generator runs");
    assert!(made.success());
    let path = file.to_str().expect("a plain path");
    let output = demo(folder.path(), &["--trace", path, "--dram", "128MiB"]).output().expect("the demo runs");
    assert_whole(&output);
    assert_nothing_left(folder.path());
}

/// Starts a long demo, sends it a signal when its daemon serves, and returns how it ended.
fn signalled(folder: &Path, signal: Signal) -> Output {
    let mut child =
        demo(folder, &["--dram", "64MiB"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut err = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("daemon") {
        line.clear();
        assert!(err.read_line(&mut line).expect("its messages") > 0, "the demo ended early");
    }
    assert_eq!(processes_of(folder), 2, "a holder and a daemon");
    kill_process(Pid::from_child(&child), signal).expect("a signal");
    let mut rest = Vec::new();
    err.read_to_end(&mut rest).expect("its last messages");
    let mut output = ended(child);
    output.stderr = rest;
    output
}

#[test]
fn ctrl_c_and_sigterm_end_everything_and_leave_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let folder = tempfile::tempdir().expect("a folder");
        let output = signalled(folder.path(), signal);
        assert!(!output.status.success(), "{}", output.status);
        assert!(text(&output.stderr).contains("interrupted"), "{}", text(&output.stderr));
        assert!(!text(&output.stdout).contains("wrong bytes: 0"), "an interrupted demo shows nothing");
        assert_nothing_left(folder.path());
    }
}

#[test]
fn holder_and_daemon_die_with_a_demo_that_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    signalled(folder.path(), Signal::KILL);
    let started = Instant::now();
    while processes_of(folder.path()) > 0 {
        assert!(started.elapsed() < PATIENCE, "processes are left");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_trace_that_cannot_be_read_is_one_line_and_nothing_is_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = tempfile::tempdir().expect("a folder");
    let cut = files.path().join("cut.jsonl");
    fs::write(&cut, "{\"timestamp\":0,\"input_length\":512,\"output_length\":1,\"hash_ids\":[1]}\n{\"timest")
        .expect("written");
    for (path, part) in [("/no/such/trace", "No such file"), (cut.to_str().expect("a plain path"), "cut short")] {
        let output = demo(folder.path(), &["--trace", path]).output().expect("the demo runs");
        let err = text(&output.stderr);
        assert!(!output.status.success() && err.contains(part) && err.contains(path), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert_nothing_left(folder.path());
    }
}
