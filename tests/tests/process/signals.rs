//! Orderly ends, and the end of the holder.

use std::fs;

use lapis_benches::host::Host;
use lapis_client::{PutResult, Refusal};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    alone,
    blocks::{self, SMALL, keys, put},
    eventually,
    machine::{MIB, adopted, connect, host, kill_and_restart},
};

fn terminate(host: &Host) {
    let pid = host.daemon_pid().and_then(|pid| Pid::from_raw(pid as i32)).expect("it runs");
    kill_process(pid, Signal::TERM).expect("our child");
}

fn assert_ended_well(host: &mut Host) {
    let status = eventually("the daemon's end", || host.ended().expect("our child"));
    assert!(status.success(), "{status}\n{}", host.log_tail());
}

#[test]
fn a_daemon_that_is_told_to_stop_drains_and_ends_well() {
    let _alone = alone();
    let mut host = host(64 * MIB);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    assert_eq!(blocks::put_all(&client, &pool, 0..64), []);
    terminate(&host);
    assert_ended_well(&mut host);
    assert!(host.log_tail().contains("drained"), "{}", host.log_tail());
    assert!(!host.socket().exists(), "its socket's file went with it");
    assert_eq!(blocks::hits(&client, &pool, 0..64), 64, "as after a kill");
    kill_and_restart(&mut host);
    assert_eq!(adopted(&host)["start"], "warm");
    eventually("the client's return", || client.is_connected().then_some(()));
    assert_eq!(blocks::hits(&client, &pool, 0..64), 64);
}

#[test]
fn a_draining_daemon_refuses_puts_and_a_second_signal_stops_it_at_once() {
    let _alone = alone();
    let mut host = host(64 * MIB);
    host.kill_daemon().expect("it can be killed");
    host.options_mut().flags = ["--drain-timeout", "1h"].map(String::from).into();
    host.start_daemon().expect("another daemon");
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    assert_eq!(blocks::put_all(&client, &pool, 0..8), []);
    terminate(&host);
    // Puts keep it busy, so that it does not come to its end by itself.
    for id in 100.. {
        if put(&client, &pool, &keys(id..id + 1)).results == [PutResult::Refused(Refusal::Draining)] {
            break;
        }
        assert!(id < 100_000, "a draining daemon stores block after block");
        assert!(host.ended().expect("our child").is_none(), "{}", host.log_tail());
    }
    assert_eq!(blocks::hits(&client, &pool, 0..8), 8);
    terminate(&host);
    let status = eventually("the daemon's end", || {
        put(&client, &pool, &keys(50..51));
        host.ended().expect("our child")
    });
    assert!(status.success(), "{status}");
    assert!(host.log_tail().contains("stopped at once"), "{}", host.log_tail());
}

#[test]
fn a_restarted_holder_gets_everything_back_and_the_next_kill_is_a_warm_start() {
    let _alone = alone();
    let mut host = host(64 * MIB);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    assert_eq!(blocks::put_all(&client, &pool, 0..64), []);
    host.kill_holder().expect("it can be killed");
    assert_eq!(blocks::put_all(&client, &pool, 64..96), [], "the daemon serves on");
    // A client that comes while there is no holder.
    let late = connect(&mut host);
    host.start_holder().expect("another holder");
    let log = host.folder().join("daemon.log");
    eventually("the holder to have everything", || {
        fs::read_to_string(&log).expect("a log").contains("a holder has everything again").then_some(())
    });
    kill_and_restart(&mut host);
    assert_eq!(adopted(&host)["start"], "warm");
    for client in [client, late] {
        eventually("a client's return", || client.is_connected().then_some(()));
        assert_eq!(blocks::hits(&client, &blocks::pool(&client, SMALL), 0..96), 96);
    }
}
