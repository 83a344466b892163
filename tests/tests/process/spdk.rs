//! Controllers of SPDK's stand-in that are pulled out of a running daemon and come back.

use std::time::{Duration, Instant};

use super::{
    PATIENCE, beside,
    blocks::{self, SMALL},
    machine::{connect, status, status_when},
    ssd::{DRAM, Files, says},
    ssd_devices::{DEADLINE, read, serves_on, written_again},
};

/// Commands until it is pulled: in the midst of what is written first.
const PULLED_AFTER: u64 = 400;

/// A controller that is away for so long; what the daemon must say of it then.
fn comes_back(away: Duration, says_so: &[&str]) {
    let Some(files) = Files::controllers(1) else { return };
    files.plan(0, &format!("remove_after={PULLED_AFTER},back_after_ms={}", away.as_millis()));
    let mut host = files.serving(DRAM, &[]);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    let state =
        |status: &serde_json::Value| status["ssd"]["devices"][0]["state"].as_str().unwrap_or_default().to_owned();
    let (started, mut first) = (Instant::now(), 0);
    while status(&host.socket()).is_some_and(|status| state(&status) == "well") {
        serves_on(&mut host, &client, &pool, first);
        first += 128;
        assert!(started.elapsed() < PATIENCE, "it is never pulled out: {first} blocks");
    }
    says(&host, &["WARN", "it is not written"]);
    // Reads while it is away are misses, or right.
    let ids: Vec<u64> = (0..first).collect();
    ids.chunks(32).take(8).for_each(|ids| {
        read(&client, &pool, ids, DEADLINE);
    });
    serves_on(&mut host, &client, &pool, 100_000);
    says(&host, says_so);
    status_when(&host.socket(), "the controller to be well", |status| state(status) == "well");
    ids.chunks(32).for_each(|ids| {
        read(&client, &pool, ids, PATIENCE);
    });
    written_again(&host, &client, &pool, 200_000);
    assert!(!host.daemon_log().contains("MISUSE"), "SPDK was called wrongly: {}", host.log_tail());
}

#[test]
fn a_controller_that_is_away_for_seconds_is_degraded_and_well_again() {
    let _beside = beside();
    comes_back(Duration::from_secs(3), &["INFO", "well again"]);
}

/// Beside all others: nearly all of its time it waits.
#[test]
fn a_controller_that_is_away_for_long_is_taken_out_and_serves_again() {
    comes_back(Duration::from_secs(18), &["INFO", "the device serves again"]);
}
