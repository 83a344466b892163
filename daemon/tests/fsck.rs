//! `lapis fsck` on real files, and a daemon's SSD tier over its restarts: what is whole, found again, refused.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use lapis_benches::{
    host::{Host, HostOptions},
    load,
    pattern::{self, Pattern},
};
use lapis_client::{GetOptions, Key, PutOptions};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK_BYTES: u64 = 64 << 10;
const BLOCKS: u64 = 400;

fn lapis(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapis")).args(arguments).output().expect("it runs")
}

fn fsck(path: &Path, flags: &[&str]) -> (i32, String) {
    let path = path.to_str().expect("a plain path");
    let output = lapis(&[&["fsck", path], flags].concat());
    (output.status.code().expect("an exit"), String::from_utf8(output.stdout).expect("text"))
}

fn host() -> Host {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_lapis"));
    let options =
        HostOptions { binary, dram_bytes: 64 << 20, ssd_bytes: Some(512 << 20), hold: false, flags: Vec::new() };
    Host::start(options).expect("a daemon")
}

/// The daemon's status once its SSD tier serves.
fn serving(host: &Host) -> Value {
    let started = Instant::now();
    loop {
        let text = lapis_client::status(host.socket(), Duration::from_secs(1));
        let status: Value = text.map(|text| serde_json::from_str(&text).expect("JSON")).unwrap_or_default();
        if status["ssd"]["state"] == "serving" {
            return status;
        }
        assert!(started.elapsed() < PATIENCE, "{status}\n{}", host.log_tail());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn keys() -> Vec<Key> {
    (0..BLOCKS).map(|id| pattern::key(1, id)).collect()
}

/// Puts all blocks as chains of 50.
fn put(host: &mut Host) {
    let client = host.connect("test").expect("a client");
    let pool = client.pool(&load::shape("fsck", BLOCK_BYTES)).expect("a pool");
    for chain in keys().chunks(50) {
        let mut bytes = vec![0; chain.len() * BLOCK_BYTES as usize];
        for (key, block) in chain.iter().zip(bytes.chunks_exact_mut(BLOCK_BYTES as usize)) {
            Pattern::of(key).fill(block);
        }
        let put = client.put_from(&pool, chain, None, &bytes, &PutOptions::default()).expect("a put");
        assert_eq!(put.stored(), chain.len());
    }
}

/// Reads all blocks: how many are there. Each byte is compared.
fn read(host: &mut Host) -> u64 {
    let client = host.connect("test").expect("a client");
    let pool = client.pool(&load::shape("fsck", BLOCK_BYTES)).expect("a pool");
    let options = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
    let (mut block, mut hits) = (vec![0; BLOCK_BYTES as usize], 0);
    for key in keys() {
        let got = client.get_into(&pool, &[key], &mut block, &options).expect("a get");
        if got.hits == 1 {
            assert_eq!(Pattern::of(&key).wrong_bytes(&block), 0);
            hits += 1;
        }
    }
    hits
}

#[test]
fn after_an_orderly_stop_everything_is_found_on_ssd_and_fsck_finds_it_whole() {
    let mut host = host();
    serving(&host);
    put(&mut host);
    let path = host.ssd_path();
    let (code, text) = fsck(&path, &[]);
    assert!(code == 2 && text.contains("a daemon has it open"), "{text}");
    assert_ne!(fsck(&path, &["--force"]).0, 2);
    assert!(host.stop_daemon().expect("an end").success());

    let (code, text) = fsck(&path, &["--payload"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("400 payloads have their sums"), "{text}");

    host.start_daemon().expect("another one");
    let status = serving(&host);
    let ssd = &status["ssd"];
    assert_eq!((&ssd["recovered_blocks"], &ssd["blocks_ssd_only"]), (&BLOCKS.into(), &BLOCKS.into()), "{ssd}");
    assert_eq!(read(&mut host), BLOCKS);
    let status = serving(&host);
    assert_eq!(status["ssd"]["promotions"], BLOCKS, "{status}");
    let device = &status["ssd"]["devices"][0];
    assert!(
        device["load"]["read_bytes"].as_u64() >= Some(BLOCKS * BLOCK_BYTES) && device["state"] == "well",
        "{device}"
    );
    assert!(status["hits"]["keys_hit_ssd"].as_u64() > Some(0), "{status}");
}

#[test]
fn fsck_names_what_is_torn_and_a_daemon_leaves_it_out() {
    let mut host = host();
    serving(&host);
    put(&mut host);
    assert!(host.stop_daemon().expect("an end").success());
    let path = host.ssd_path();
    let (_, text) = fsck(&path, &["--json"]);
    let checked: Value = serde_json::from_str::<Value>(&text).expect("JSON")[0]["checked"].clone();
    let segment = &checked["segments"][0];
    let bytes = checked["device"]["segment_bytes"].as_u64().expect("a size");
    // The first record lies behind header and first contents.
    let offset = (1 << 20) + segment["index"].as_u64().expect("a number") * bytes + 17 * 4096 + 100;
    let file = File::options().read(true).write(true).open(&path).expect("the file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[!byte[0]], offset).expect("written");

    assert_eq!(fsck(&path, &[]).0, 0, "contents are whole");
    let (code, text) = fsck(&path, &["--payload"]);
    assert!(code == 1 && text.contains("DAMAGED") && text.contains("page 17: payload: "), "{text}");
    host.start_daemon().expect("another one");
    serving(&host);
    let there = read(&mut host);
    assert!((BLOCKS - 50..BLOCKS).contains(&there), "{there}");
}

#[test]
fn what_is_no_log_is_said_and_has_its_own_exit_status() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    let (code, text) = fsck(&path, &[]);
    assert!(code == 2 && text.contains("No such file"), "{text}");
    std::fs::write(&path, vec![0; 1 << 20]).expect("written");
    let (code, text) = fsck(&path, &[]);
    assert!(code == 2 && text.contains("no log: its first pages are blank"), "{text}");
    std::fs::write(&path, vec![7; 1 << 20]).expect("written");
    let (code, text) = fsck(&path, &["--json"]);
    let verdict: Value = serde_json::from_str(&text).expect("JSON");
    assert!(code == 2 && verdict[0]["verdict"] == "unreadable", "{text}");
    let (code, text) = fsck(folder.path(), &[]);
    assert!(code == 2 && text.contains("neither a regular file nor a block device"), "{text}");
}
