//! NVMe namespaces driven by commands, under the real daemon: killed, reset, unreadable in part, pulled out. Only where
//! there are some to be had, as in `tests/testbed/nvme`. `LAPIS_TEST_NAMESPACES` names two generic devices of at least 600
//! MiB each, with a comma between; everything on them is lost. `LAPIS_TEST_BAD`: reads of some sectors of the first one
//! fail. `LAPIS_TEST_REMOVE`: it may be pulled out.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lapis_benches::host::Host;

use super::{
    PATIENCE, alone, asked,
    blocks::{self, SMALL, keys},
    eventually,
    machine::{adopted, at, connect, status, status_when},
    ssd::{FILL, Files, says, serves},
    ssd_devices::{DEADLINE, only_on_ssd, over_by, read, read_all, serves_on, wipe, written_again},
    ssd_kills::kills_over,
};

const COMMANDS: &str = "passthrough";

/// Wiped where a log looks. Where there are none, says so.
fn namespaces() -> Option<Vec<String>> {
    let Ok(named) = env::var("LAPIS_TEST_NAMESPACES") else {
        println!("skipped: LAPIS_TEST_NAMESPACES names no NVMe namespaces (tests/testbed/nvme has some)");
        return None;
    };
    let names: Vec<String> = named.split(',').map(String::from).collect();
    names.iter().for_each(|name| wipe(&block(name)));
    Some(names)
}

fn has(variable: &str) -> bool {
    let has = env::var_os(variable).is_some();
    if !has {
        println!("skipped: {variable} is not set");
    }
    has
}

/// The block device beside a generic one.
fn block(generic: &str) -> String {
    generic.replace("/ng", "/nvme")
}

/// The controller's folder in sysfs; of one with several, the first of them.
fn controller(generic: &str) -> PathBuf {
    let name = block(generic);
    let folder = Path::new("/sys/class/block").join(Path::new(&name).file_name().expect("a name"));
    let parent = fs::canonicalize(folder).expect("sysfs").parent().expect("a controller or a subsystem").to_owned();
    if parent.join("reset_controller").exists() {
        return parent;
    }
    let within = fs::read_dir(&parent).expect("sysfs").flatten().map(|entry| entry.path());
    let controller = within.filter(|path| path.join("reset_controller").exists()).min().expect("a controller");
    fs::canonicalize(controller).expect("sysfs")
}

fn health(status: &serde_json::Value, device: usize) -> String {
    status["ssd"]["devices"][device]["state"].as_str().unwrap_or_default().into()
}

#[test]
fn kills_over_namespaces_lose_no_block_that_counted_and_give_no_wrong_byte() {
    let _alone = alone();
    let Some(names) = namespaces() else { return };
    for engine in [COMMANDS, "uring", "threads"] {
        names.iter().for_each(|name| wipe(&block(name)));
        let files = Files::over(names.iter().map(PathBuf::from).collect(), engine);
        kills_over(&files, asked("LAPIS_NVME_KILLS", 2));
    }
}

#[test]
fn auto_takes_commands_and_the_status_says_so_and_why_if_not() {
    let _alone = alone();
    let Some(names) = namespaces() else { return };
    let (host, ..) = over_by(&names.join(","), "auto");
    let status = status(&host.socket()).expect("the daemon answers");
    for device in status["ssd"]["devices"].as_array().expect("two devices") {
        assert_eq!((device["engine"].as_str(), device["engine_why"].as_str()), (Some(COMMANDS), None), "{device}");
        assert!(device["bytes"].as_u64().is_some_and(|bytes| bytes > 600 << 20), "all of it is used: {device}");
    }
    drop(host);
    // Nobody may open the generic devices: the block devices do.
    names.iter().for_each(|name| fs::rename(name, format!("{name}.away")).expect("a node can be moved"));
    let blocks: Vec<String> = names.iter().map(|name| block(name)).collect();
    let (host, ..) = over_by(&blocks.join(","), "auto");
    let status = super::machine::status(&host.socket()).expect("the daemon answers");
    names.iter().for_each(|name| fs::rename(format!("{name}.away"), name).expect("a node can be moved"));
    for (device, name) in status["ssd"]["devices"].as_array().expect("two devices").iter().zip(&names) {
        assert_eq!(device["engine"], "uring", "{device}");
        let why = device["engine_why"].as_str().unwrap_or_default();
        assert!(why.contains(name) && why.contains("No such file"), "{why:?}");
    }
    says(&host, &["WARN", "engine=\"uring\"", "cannot be driven by NVMe commands"]);
}

#[test]
fn resets_of_a_controller_under_load_give_no_wrong_byte_and_the_device_is_well_afterwards() {
    let _alone = alone();
    let Some(names) = namespaces() else { return };
    let (mut host, client, pool, ids) = over_by(&names.join(","), COMMANDS);
    let reset = controller(&names[0]).join("reset_controller");
    for round in 0..3 {
        let reset = reset.clone();
        let resetting = std::thread::spawn(move || fs::write(reset, "1"));
        while !resetting.is_finished() {
            for ids in ids.chunks(32).take(8) {
                read(&client, &pool, ids, DEADLINE);
            }
        }
        resetting.join().expect("no panic").expect("a reset");
        serves_on(&mut host, &client, &pool, 10_000 + 128 * round);
    }
    status_when(&host.socket(), "both devices to be well", |status| {
        (0..2).all(|device| health(status, device) == "well")
    });
    let there = only_on_ssd(&client, &pool, &ids);
    assert_eq!(read_all(&client, &pool, &there), there.len(), "what a reset cut off was tried again");
    written_again(&host, &client, &pool, 20_000);
}

#[test]
fn blocks_on_sectors_that_cannot_be_read_are_misses_and_all_others_are_there() {
    let _alone = alone();
    let Some(names) = namespaces() else { return };
    if !has("LAPIS_TEST_BAD") {
        return;
    }
    let (mut host, client, pool, ids) = over_by(&names[0], COMMANDS);
    let outside = only_on_ssd(&client, &pool, &ids);
    let hits = read_all(&client, &pool, &outside);
    println!("{hits} of {} blocks can be read", outside.len());
    assert!(hits < outside.len() && hits > outside.len() / 2, "{hits} of {}", outside.len());
    let status = status(&host.socket()).expect("the daemon answers");
    assert!(at(&status, "/ssd/read_failures") > 0 && at(&status, "/ssd/devices/0/load/errors") > 0, "{status}");
    serves_on(&mut host, &client, &pool, 10_000);
}

/// Pulls a controller out of the daemon that uses it, under load, until the daemon has taken its device out; how long that took.
fn pulled_out(name: &str, host: &Host, mut load: impl FnMut()) -> Duration {
    let remove = controller(name).join("device/remove");
    let removing = std::thread::spawn(move || fs::write(remove, "1"));
    let started = Instant::now();
    while health(&status(&host.socket()).expect("the daemon answers"), 0) != "out" {
        load();
        assert!(started.elapsed() < PATIENCE + Duration::from_secs(30), "it is not taken out");
    }
    let took = started.elapsed();
    removing.join().expect("no panic").expect("it can be pulled out");
    took
}

fn plugged_in(name: &str) {
    fs::write("/sys/bus/pci/rescan", "1").expect("a rescan");
    eventually("the device", || Path::new(name).exists().then_some(()));
}

#[test]
fn a_device_that_is_pulled_out_costs_its_blocks_and_serves_again_when_it_is_back() {
    let _alone = alone();
    let Some(names) = namespaces() else { return };
    if !has("LAPIS_TEST_REMOVE") {
        return;
    }
    for (round, engine) in (0..).zip([COMMANDS, "uring", "threads"]) {
        wipe(&block(&names[0]));
        let (mut host, client, pool, ids) = over_by(&names[0], engine);
        let outside = only_on_ssd(&client, &pool, &ids);
        let took = pulled_out(&names[0], &host, || {
            read(&client, &pool, &outside[..32], DEADLINE);
        });
        serves_on(&mut host, &client, &pool, 10_000);
        // The load brought the first ones into memory, as long as it could.
        let lost = &outside[32..];
        assert_eq!(client.exists(&pool, &keys(lost[0]..lost[0] + 1)).expect("a sound call").count(), 0);
        let plugged = Instant::now();
        plugged_in(&names[0]);
        says(&host, &["INFO", "the device serves again"]);
        println!("by {engine}: taken out after {took:?}, serves again {:?} after it was plugged in", plugged.elapsed());
        status_when(&host.socket(), "the device to be well", |status| health(status, 0) == "well");
        let status = status(&host.socket()).expect("the daemon answers");
        assert_eq!(status["ssd"]["devices"][0]["engine"], engine, "{status}");
        assert_eq!(read_all(&client, &pool, lost), 0, "it began empty");
        written_again(&host, &client, &pool, 20_000);
        if round == 0 {
            again_after_a_restart(&mut host, 20_000);
        }
    }
}

/// What was written after the device came back outlasts the daemon, and what was lost with it stays lost.
fn again_after_a_restart(host: &mut Host, first: u64) {
    host.kill_daemon().expect("it can be killed");
    host.kill_holder().expect("it can be killed");
    host.start_holder().expect("another holder");
    host.start_daemon().expect("another daemon");
    serves(host, 2);
    adopted(host);
    let client = connect(host);
    let pool = blocks::pool(&client, SMALL);
    let ids: Vec<u64> = (first..first + FILL).collect();
    let back = only_on_ssd(&client, &pool, &ids);
    assert!(back.len() as u64 > FILL / 4, "{} of {FILL} blocks are back", back.len());
    assert_eq!(read_all(&client, &pool, &back), back.len());
}
