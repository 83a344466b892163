//! A client that asks and never reads its answers is disconnected; nobody else notices.

use std::{os::fd::AsFd, time::Instant};

use lapis_arena::{Access, Mapping};
use lapis_config::PoolId;
use lapis_transport::{
    control::{self, ControlClient},
    frame::Request,
    hello::{ToClient, ToDaemon},
    socket,
};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    PATIENCE, alone, blocks,
    machine::{MIB, at, connect, host, status, status_when},
};

/// More than the request ring, the completion ring and all answers that may wait hold together.
const FRAMES: u64 = 100_000;

#[test]
fn a_client_that_reads_no_answer_is_disconnected_and_the_daemon_lives_on() {
    let _alone = alone();
    let mut host = host(64 * MIB);
    let before = status_when(&host.socket(), "an answer", |_| true);
    let mut socket = socket::connect(&host.socket()).expect("the daemon listens");
    let hello = ToDaemon::Hello { resume: None, name: "deaf".into(), may_put: true, writes_by_dma: false, gpus: false };
    socket.send(&hello).expect("room");
    let (welcome, fds) = socket.recv_timeout(PATIENCE).expect("an answer").expect("in time");
    assert!(matches!(welcome, ToClient::Welcome { .. }), "{welcome:?}");
    let memory = Mapping::shared(fds[1].as_fd(), control::BYTES, Access::ReadWrite).expect("the control memfd");
    let (mut requests, _unread) = ControlClient::new(&memory).expect("a client's memory").rings();

    let daemon = Pid::from_raw(host.daemon_pid().expect("it runs") as i32).expect("a pid");
    let (started, mut posted) = (Instant::now(), 0);
    while posted < FRAMES && !socket.has_hung_up() {
        assert!(started.elapsed() < PATIENCE, "neither served nor disconnected after {posted} frames");
        // The daemon finds a full ring each time: the worst that can be waiting when it has had enough.
        kill_process(daemon, Signal::STOP).expect("it is ours");
        loop {
            let request = Request::Commit { token: posted + 1, pool: PoolId(0), items: Vec::new() };
            if !requests.push(&request).is_ok_and(|pushed| pushed) {
                break;
            }
            posted += 1;
        }
        kill_process(daemon, Signal::CONT).expect("it is ours");
        rustix::io::write(&fds[2], &1u64.to_ne_bytes()).expect("the doorbell");
        std::thread::yield_now();
    }
    assert!(socket.has_hung_up(), "{posted} frames without an answer read");
    let after = status(&host.socket()).expect("the daemon answers others");
    assert_eq!((at(&after, "/boots"), at(&before, "/boots")), (1, 1), "the same daemon");
    let another = connect(&mut host);
    blocks::pool(&another, blocks::SMALL);
}
