//! Block devices that hang, fail, lie and come back: only where there are some to be had, as in `tests/testbed/ssd.sh`.
//! `LAPIS_TEST_DEVICE` names one of at least 600 MiB; everything on it is lost.

use std::{
    env, fs,
    process::Command,
    time::{Duration, Instant},
};

use lapis_benches::host::Host;
use lapis_client::{Client, GetOptions, Pool};

use super::{
    PATIENCE, alone,
    blocks::{self, SMALL, get, keys},
    machine::{adopted, connect, host_with, status, status_when},
    ssd::{DRAM, Entries, FILL, fill, says, serves},
};

pub const DEADLINE: Duration = Duration::from_millis(500);
/// Under an emulated processor, with the machine's other work.
const LATE: Duration = Duration::from_secs(5);

/// A device of the device mapper over all of the one that is given, which can be made to do anything.
struct Mapped {
    below: String,
    sectors: u64,
    name: String,
}

/// Where there is none, says so.
fn device() -> Option<String> {
    let device = env::var("LAPIS_TEST_DEVICE").ok();
    if device.is_none() {
        println!("skipped: LAPIS_TEST_DEVICE names no block device (tests/testbed/ssd.sh has one)");
    }
    device
}

fn dmsetup(words: &[&str]) -> String {
    let output = Command::new("dmsetup").args(words).output().expect("dmsetup is installed");
    assert!(output.status.success(), "dmsetup {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Mapped {
    /// Plain at first, and blank where a log looks.
    fn new(below: &str, name: &str) -> Self {
        wipe(below);
        let size = Command::new("blockdev").args(["--getsz", below]).output().expect("blockdev is installed");
        let sectors = String::from_utf8_lossy(&size.stdout).trim().parse().expect("a number of sectors");
        let this = Self { below: below.into(), sectors, name: name.into() };
        dmsetup(&["create", name, "--table", &this.table("linear", "0")]);
        this
    }

    fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    fn table(&self, target: &str, words: &str) -> String {
        let Self { below, sectors, .. } = self;
        if target == "error" { format!("0 {sectors} error") } else { format!("0 {sectors} {target} {below} {words}") }
    }

    /// From now on nothing comes back.
    fn suspend(&self) {
        dmsetup(&["suspend", "--noflush", "--nolockfs", &self.name]);
    }

    fn resume(&self) {
        dmsetup(&["resume", &self.name]);
    }

    fn becomes(&self, target: &str, words: &str) {
        dmsetup(&["load", &self.name, "--table", &self.table(target, words)]);
        self.suspend();
        self.resume();
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // What hangs must end first.
        let _ = Command::new("dmsetup").args(["resume", &self.name]).output();
        let _ = Command::new("dmsetup").args(["remove", "--retry", &self.name]).output();
    }
}

pub fn wipe(device: &str) {
    use std::io::Write;
    let mut file = fs::File::options().write(true).open(device).expect("a block device");
    file.write_all(&vec![0; 8 << 20]).and_then(|()| file.sync_all()).expect("it takes zeros");
}

fn over(path: &str) -> (Host, Client, Pool, Vec<u64>) {
    over_by(path, "auto")
}

/// A host over these paths, driven so, with what is on SSD of what was put.
pub fn over_by(paths: &str, engine: &str) -> (Host, Client, Pool, Vec<u64>) {
    let mut host = host_with(DRAM, &["--ssd-paths", paths, "--ssd-bytes", "512MiB", "--ssd-engine", engine]);
    serves(&mut host, 1);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    let ids = fill(&host, &client, &pool);
    (host, client, pool, ids)
}

/// Reads these by a deadline; how many are hits. No byte is wrong.
pub fn read(client: &Client, pool: &Pool, ids: &[u64], deadline: Duration) -> usize {
    let options = GetOptions { deadline: Some(deadline), ..GetOptions::default() };
    let keys: Vec<_> = ids.iter().flat_map(|id| keys(*id..*id + 1)).collect();
    let started = Instant::now();
    let (got, wrong) = get(client, pool, &keys, &options);
    assert_eq!(wrong, 0, "wrong bytes");
    assert!(started.elapsed() < deadline + LATE, "a get took {:?}", started.elapsed());
    got.hits
}

pub fn read_all(client: &Client, pool: &Pool, ids: &[u64]) -> usize {
    ids.chunks(32).map(|ids| read(client, pool, ids, PATIENCE)).sum()
}

pub fn only_on_ssd(client: &Client, pool: &Pool, ids: &[u64]) -> Vec<u64> {
    let session = client.session().expect("here");
    let there = |id: &u64| session.find(pool, &keys(*id..*id + 1)[0]).is_some_and(|found| !found.state.is_readable());
    ids.iter().copied().filter(there).collect()
}

/// Puts and hits in memory go on, and the daemon answers.
pub fn serves_on(host: &mut Host, client: &Client, pool: &Pool, first: u64) {
    for batch in blocks::batches(first..first + 128) {
        let started = Instant::now();
        blocks::put(client, pool, &keys(batch.clone()));
        assert!(started.elapsed() < Duration::from_secs(1) + LATE, "a put took {:?}", started.elapsed());
        blocks::hits(client, pool, batch);
    }
    assert!(status(&host.socket()).is_some(), "the daemon answers");
    assert!(host.ended().expect("our child").is_none(), "{}", host.log_tail());
}

/// New blocks reach the device again.
pub fn written_again(host: &Host, client: &Client, pool: &Pool, first: u64) {
    blocks::put_all(client, pool, first..first + FILL);
    let on_ssd = Entries::of(host).on_ssd(client, pool, first..first + FILL);
    assert!(on_ssd.len() as u64 > FILL / 4, "{} blocks of {FILL} are on SSD\n{}", on_ssd.len(), host.log_tail());
    assert_eq!(read_all(client, pool, &on_ssd), on_ssd.len());
}

#[test]
fn a_block_device_keeps_its_blocks_over_a_kill() {
    let _alone = alone();
    let Some(device) = device() else { return };
    wipe(&device);
    let (mut host, _, _, ids) = over(&device);
    host.kill_daemon().expect("it can be killed");
    host.kill_holder().expect("it can be killed");
    host.start_holder().expect("another holder");
    host.start_daemon().expect("another daemon");
    serves(&mut host, 2);
    adopted(&host);
    let client = connect(&mut host);
    assert_eq!(read_all(&client, &blocks::pool(&client, SMALL), &ids), ids.len());
}

#[test]
fn a_device_that_hangs_for_seconds_is_not_written_and_has_its_blocks_when_it_is_back() {
    let _alone = alone();
    let Some(device) = device() else { return };
    let mapped = Mapped::new(&device, "lapis-short");
    let (mut host, client, pool, ids) = over(&mapped.path());
    let outside = only_on_ssd(&client, &pool, &ids);
    mapped.suspend();
    assert!(read(&client, &pool, &outside[..8], DEADLINE) < 8, "it hangs");
    serves_on(&mut host, &client, &pool, 10_000);
    says(&host, &["WARN", "it is not written"]);
    mapped.resume();
    says(&host, &["INFO", "well again"]);
    let there = only_on_ssd(&client, &pool, &ids);
    assert!(there.len() * 2 > outside.len(), "{} of {} blocks are left", there.len(), outside.len());
    assert_eq!(read_all(&client, &pool, &there), there.len());
    written_again(&host, &client, &pool, 20_000);
}

#[test]
fn a_device_that_hangs_for_long_is_taken_out_and_brought_back() {
    let _alone = alone();
    let Some(device) = device() else { return };
    let mapped = Mapped::new(&device, "lapis-long");
    let (mut host, client, pool, ids) = over(&mapped.path());
    let outside = only_on_ssd(&client, &pool, &ids);
    mapped.suspend();
    assert!(read(&client, &pool, &outside[..8], DEADLINE) < 8, "it hangs");
    says(&host, &["ERROR", "what is on it is not served"]);
    assert_eq!(client.exists(&pool, &keys(outside[9]..outside[9] + 1)).expect("a sound call").count(), 0);
    serves_on(&mut host, &client, &pool, 10_000);
    mapped.resume();
    says(&host, &["INFO", "the device serves again"]);
    written_again(&host, &client, &pool, 20_000);
}

#[test]
fn a_device_that_fails_is_taken_out_and_brought_back() {
    let _alone = alone();
    let Some(device) = device() else { return };
    let mapped = Mapped::new(&device, "lapis-error");
    let (mut host, client, pool, ids) = over(&mapped.path());
    let outside = only_on_ssd(&client, &pool, &ids);
    mapped.becomes("error", "");
    assert!(read(&client, &pool, &outside[..8], DEADLINE) < 8, "it hangs");
    serves_on(&mut host, &client, &pool, 10_000);
    says(&host, &["WARN", "it is not written"]);
    says(&host, &["ERROR", "what is on it is not served"]);
    serves_on(&mut host, &client, &pool, 11_000);
    mapped.becomes("linear", "0");
    says(&host, &["INFO", "the device serves again"]);
    written_again(&host, &client, &pool, 20_000);
}

#[test]
fn a_device_that_fails_now_and_then_gives_right_blocks_or_none() {
    let _alone = alone();
    let Some(device) = device() else { return };
    let mapped = Mapped::new(&device, "lapis-flaky");
    let (mut host, client, pool, ids) = over(&mapped.path());
    // Two seconds well, one in which all fails.
    mapped.becomes("flakey", "0 2 1");
    let started = Instant::now();
    for round in 0.. {
        serves_on(&mut host, &client, &pool, 10_000 + 128 * round);
        for ids in ids.chunks(32).take(8) {
            read(&client, &pool, ids, DEADLINE);
        }
        if started.elapsed() > Duration::from_secs(8) {
            break;
        }
    }
    mapped.becomes("linear", "0");
    serves_on(&mut host, &client, &pool, 30_000);
    well(&host);
    written_again(&host, &client, &pool, 40_000);
}

/// All of the tier is written, by what the daemon says.
fn well(host: &Host) {
    let is_well = |status: &serde_json::Value| status["ssd"]["devices"][0]["state"] == "well";
    status_when(&host.socket(), "the device to be well", is_well);
}

#[test]
fn a_device_that_is_slow_gives_its_blocks_later_and_one_that_is_too_slow_is_not_written_until_it_is_itself_again() {
    let _alone = alone();
    let Some(device) = device() else { return };
    let mapped = Mapped::new(&device, "lapis-slow");
    let (mut host, client, pool, ids) = over(&mapped.path());
    mapped.becomes("delay", &format!("0 200 {device} 0 200"));
    let outside = only_on_ssd(&client, &pool, &ids);
    assert_eq!(read(&client, &pool, &outside[..32], PATIENCE), 32, "late, not lost");
    serves_on(&mut host, &client, &pool, 10_000);
    well(&host);
    assert!(!host.daemon_log().contains("it is not written"), "{}", host.log_tail());
    mapped.becomes("delay", &format!("0 5000 {device} 0 5000"));
    assert!(read(&client, &pool, &outside[32..40], DEADLINE) < 8, "it takes 5 s");
    serves_on(&mut host, &client, &pool, 11_000);
    says(&host, &["WARN", "it is not written"]);
    mapped.becomes("linear", "0");
    says(&host, &["INFO", "well again"]);
    well(&host);
    let there = only_on_ssd(&client, &pool, &ids);
    assert!(there.len() * 2 > outside.len(), "{} of {} blocks are left", there.len(), outside.len());
    assert_eq!(read_all(&client, &pool, &there), there.len());
    written_again(&host, &client, &pool, 20_000);
}

#[test]
fn a_device_that_changes_what_it_gives_back_costs_hits_and_gives_no_wrong_byte() {
    let _alone = alone();
    let Some(device) = device() else { return };
    let mapped = Mapped::new(&device, "lapis-liar");
    let (mut host, client, pool, ids) = over(&mapped.path());
    let outside = only_on_ssd(&client, &pool, &ids);
    // Byte 224 of all that is read is 1 from now on.
    mapped.becomes("flakey", "0 0 3600 5 corrupt_bio_byte 224 r 1 0");
    let hits: usize = outside[..64].chunks(32).map(|ids| read(&client, &pool, ids, PATIENCE)).sum();
    assert!(hits < 8, "{hits} of 64 blocks had that byte by chance");
    serves_on(&mut host, &client, &pool, 10_000);
}
