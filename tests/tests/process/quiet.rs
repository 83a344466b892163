//! Hits in memory make no system call, as strace sees it.

use std::{fs, process::Command};

use super::{
    alone,
    blocks::{self, SMALL},
    machine::{MIB, at, connect, host},
    worker::Worker,
};

/// Sizes of the two writes around the loop, bytes.
pub const FIRST_MARK: usize = 11_111;
pub const LAST_MARK: usize = 22_222;
/// Rounds before the first one.
pub const WARM_UP: u64 = 100;
const BLOCKS: u64 = 8;
const ROUNDS: u64 = 1000;

#[test]
fn hits_in_memory_make_no_system_call() {
    let _alone = alone();
    let works = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).status();
    if !works.is_ok_and(|status| status.success()) {
        println!("skipped: strace is not here, or may not trace");
        return;
    }
    let mut host = host(64 * MIB);
    let client = connect(&mut host);
    assert_eq!(blocks::put_all(&client, &blocks::pool(&client, SMALL), 0..BLOCKS), []);

    let trace = host.folder().join("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-o"]).arg(&trace).arg(std::env::current_exe().expect("this test's binary"));
    let socket = host.socket().display().to_string();
    let worker = Worker::spawn(command, "hits", &[&socket, "0", &BLOCKS.to_string(), &ROUNDS.to_string()]);
    let said = worker.finish();
    assert_eq!((at(&said, "/hits"), at(&said, "/wrong")), (WARM_UP + ROUNDS + 1, 0), "not all were hits");

    let trace = fs::read_to_string(&trace).expect("strace wrote it");
    // A call that another thread's came between has two lines: from the end of the first mark to the start of the last.
    let line = |what: &dyn Fn(&str) -> bool| trace.lines().position(|line| line.contains("write") && what(line));
    let first = line(&|line| line.ends_with(&format!("= {FIRST_MARK}"))).expect("the first mark");
    let last = line(&|line| line.contains(&format!(", {LAST_MARK}"))).expect("the last mark");
    let thread = trace.lines().nth(first).and_then(|line| line.split(' ').next()).expect("strace names the thread");
    let between = trace.lines().take(last).skip(first + 1);
    let calls: Vec<&str> = between.filter(|line| line.split(' ').next() == Some(thread)).collect();
    assert!(calls.is_empty(), "{} system calls in {ROUNDS} rounds of hits:\n{}", calls.len(), calls.join("\n"));
}
