//! A host that forbids io_uring, as container runtimes do: a filter answers EPERM.

#[path = "../../tests/tests/process/filter.rs"]
mod filter;

use std::{os::fd::AsFd, thread};

use lapis_arena::Mapping;
use lapis_ssd::{
    SsdError,
    device::{Device, DeviceFile, Io, IoId, Memory, Waits},
    engine::{self, EngineChoice},
    threads::THREADS_DEFAULT,
};
use rustix::event::EventfdFlags;
use tempfile::TempDir;

fn file(dir: &TempDir) -> DeviceFile {
    DeviceFile::open(&dir.path().join("device"), Some(1 << 20)).expect("a file")
}

/// A device that is asked for under a filter, and one write through what is given instead.
fn falls_back_without(calls: &'static [libc::c_long]) {
    let fallen_back = thread::spawn(move || {
        filter::forbid(calls);
        let dir = tempfile::tempdir().expect("a directory");
        match engine::start(file(&dir), EngineChoice::Uring, 4, THREADS_DEFAULT).map(|started| started.engine.name()) {
            Err(SsdError::Uring { source, .. }) => assert_eq!(source.raw_os_error(), Some(libc::EPERM)),
            other => panic!("{other:?}"),
        }
        let started = engine::start(file(&dir), EngineChoice::Auto, 4, THREADS_DEFAULT).expect("threads are there");
        let why = started.why().expect("a reason for the log");
        assert!(why.contains("io_uring") && !why.contains("NVMe"), "a file is no namespace: {why}");
        let mut engine = started.engine;
        assert_eq!(engine.name(), "threads");
        let memory = Memory::new(&Mapping::anonymous(4096).expect("memory"), 0, 4096);
        engine.submit(Io::write(IoId(1), 0, memory)).expect("room");
        engine.kick().expect("a kick");
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor");
        let mut out = Vec::new();
        while out.is_empty() {
            engine.wait(bell.as_fd(), None).expect("a wait");
            engine.poll(&mut out).expect("a poll");
        }
        out.remove(0).result.expect("threads write");
    });
    fallen_back.join().expect("it falls back");
}

#[test]
fn where_io_uring_is_forbidden_auto_takes_threads_and_says_why() {
    falls_back_without(&[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]);
}

#[test]
fn a_filter_that_lets_only_the_set_up_pass_is_noticed() {
    falls_back_without(&[libc::SYS_io_uring_enter]);
    falls_back_without(&[libc::SYS_io_uring_register]);
}

#[test]
fn what_is_asked_for_by_name_is_what_there_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let started = engine::start(file(&dir), EngineChoice::Threads, 4, THREADS_DEFAULT).expect("threads");
    assert!(started.why().is_none() && started.engine.name() == "threads");
}
