//! An SSD tier that cannot be opened: one clear line, a failure, and not a byte of any file changed.

use std::{
    fs::{self, File},
    hash::Hasher,
    io::{BufReader, Read, Write},
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, UNIX_EPOCH},
};

use lapis_benches::host::Host;
use lapis_client::GetOptions;
use tempfile::TempDir;
use twox_hash::XxHash3_64;

use super::{
    LOOK_EVERY, PATIENCE, beside, binary,
    blocks::{self, SMALL, get, keys},
    machine::connect,
    ssd::{DRAM, FILE, FILL, Files, answers, fill, says, serves},
};

/// `lapis serve` over these paths of so many bytes, with a socket of its own.
fn serve_of(folder: &TempDir, paths: &[&Path], bytes: u64, flags: &[&str]) -> Command {
    let mut command = Command::new(binary::lapis());
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    command.env_clear().args(["serve", "--dram-bytes", "64MiB", "--metrics-listen", "off"]);
    command.arg("--server-socket").arg(folder.path().join("lapis.sock"));
    command.args(["--ssd-paths", &paths.join(",")]).args(["--ssd-bytes", &format!("{bytes}B")]).args(flags);
    command
}

fn serve(folder: &TempDir, paths: &[&Path], flags: &[&str]) -> Command {
    serve_of(folder, paths, FILE, flags)
}

/// What a daemon says that does not start: one line.
fn refused(mut command: Command) -> String {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut output = child.stderr.take().expect("it is piped");
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        output.read_to_string(&mut said).map(|_| said)
    });
    let started = Instant::now();
    let status = loop {
        match child.try_wait().expect("our child") {
            Some(status) => break status,
            None if started.elapsed() > PATIENCE => {
                child.kill().expect("our child");
                panic!("it started: {:?}", said.join());
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    };
    let said = said.join().expect("no panic").expect("text");
    assert_eq!(status.code(), Some(1), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("lapis: ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    lines[0].to_owned()
}

/// All that can be seen of a file: its bytes, its length, when it was written.
fn seen(path: &Path) -> (u64, u64, u128) {
    let file = File::open(path).expect("it is there");
    let found = file.metadata().expect("it is there");
    let written = found.modified().expect("a time").duration_since(UNIX_EPOCH).expect("lately").as_nanos();
    let (mut hash, mut reader) = (XxHash3_64::with_seed(0), BufReader::with_capacity(1 << 20, file));
    let mut chunk = vec![0; 1 << 20];
    loop {
        let bytes = reader.read(&mut chunk).expect("it can be read");
        if bytes == 0 {
            return (hash.finish(), found.len(), written);
        }
        hash.write(&chunk[..bytes]);
    }
}

/// Blocks on the files of a daemon that has ended; how many.
fn written(files: &Files) -> u64 {
    let mut host = files.serving(DRAM, &[]);
    let client = connect(&mut host);
    fill(&host, &client, &blocks::pool(&client, SMALL)).len() as u64
}

/// Works with memory alone.
fn serves_dram(host: &mut Host) {
    let client = connect(host);
    let pool = blocks::pool(&client, SMALL);
    assert_eq!(blocks::put_all(&client, &pool, 100..164), []);
    assert_eq!(blocks::hits(&client, &pool, 100..164), 64);
}

#[test]
fn a_file_too_large_for_its_disk_is_refused_with_what_it_needs_and_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("large.ssd");
    let said = refused(serve_of(&folder, &[&path], 200 << 40, &["--index-entries-max", "100000"]));
    let needed = format!("{} MiB", 200 << 20);
    assert!(said.contains(&needed) && said.contains("free") && said.contains("large.ssd"), "{said}");
    assert!(fs::metadata(&path).map_or(0, |found| found.len()) == 0, "something was taken");
}

#[test]
fn a_file_of_somebody_else_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("thesis");
    for length in [5, 4096, 9_000, FILE] {
        let mut file = File::create(&path).expect("a file");
        let text = "to be continued; ".repeat(600);
        file.write_all(&text.as_bytes()[..text.len().min(length as usize)]).expect("room");
        file.set_len(length).expect("a sparse file");
        let before = seen(&path);
        let said = refused(serve(&folder, &[&path], &[]));
        assert!(said.contains("thesis") && said.contains("not a log's"), "{said}");
        assert_eq!(seen(&path), before, "{length} bytes");
    }
}

#[test]
fn a_second_daemon_on_a_file_is_refused_and_the_first_one_goes_on() {
    let _beside = beside();
    let files = Files::new(1);
    let mut host = files.serving(DRAM, &[]);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    let on_ssd = fill(&host, &client, &pool);
    let folder = tempfile::tempdir().expect("a folder");
    let said = refused(serve(&folder, &[&files.path(0)], &[]));
    assert!(said.contains("0.ssd") && said.contains("is locked"), "{said}");
    let patient = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
    for ids in on_ssd.chunks(16) {
        let keys: Vec<_> = ids.iter().flat_map(|id| keys(*id..*id + 1)).collect();
        let (got, wrong) = get(&client, &pool, &keys, &patient);
        assert_eq!((got.hits, wrong), (keys.len(), 0));
    }
    assert_eq!(blocks::put_all(&client, &pool, FILL..FILL + 64), []);
}

#[test]
fn a_log_of_another_instance_or_of_more_devices_is_refused_with_both_values() {
    let _beside = beside();
    let files = Files::new(2);
    let blocks = written(&files);
    let folder = tempfile::tempdir().expect("a folder");
    let paths = [files.path(0), files.path(1)];
    let before = paths.each_ref().map(|path| seen(path));
    let [first, second] = paths.each_ref().map(|path| path.as_path());
    let said = refused(serve(&folder, &[first, second], &["--ssd-instance", "other"]));
    assert!(["0.ssd", "of installation", "expected"].iter().all(|word| said.contains(word)), "{said}");
    let said = refused(serve(&folder, &[first], &[]));
    assert!(["0.ssd", "number of devices is 2", "expected 1"].iter().all(|word| said.contains(word)), "{said}");
    let said = refused(serve(&folder, &[second, first], &[]));
    assert!(["its number is", "expected 0"].iter().all(|word| said.contains(word)), "{said}");
    assert_eq!(paths.each_ref().map(|path| seen(path)), before, "a refused start writes nothing");
    // Nothing is lost: the right start has it all.
    let mut host = files.serving(DRAM, &[]);
    assert!(serves(&mut host, 1).blocks >= blocks);
}

#[test]
fn without_a_tier_that_is_not_required_the_daemon_serves_dram_alone_and_says_so() {
    let _beside = beside();
    let files = Files::new(1);
    written(&files);
    let before = seen(&files.path(0));
    let mut host = files.host(DRAM, &["--ssd-instance", "other", "--ssd-required=false"]);
    answers(&host.socket());
    says(&host, &["ERROR", "DRAM alone", "0.ssd", "of installation"]);
    serves_dram(&mut host);
    drop(host);
    // A folder is no device.
    let folder = tempfile::tempdir().expect("a folder");
    fs::rename(files.path(0), folder.path().join("kept")).expect("our file");
    fs::create_dir(files.path(0)).expect("a folder");
    let mut host = files.host(DRAM, &["--ssd-required=false"]);
    says(&host, &["ERROR", "DRAM alone", "0.ssd"]);
    serves_dram(&mut host);
    assert_eq!(seen(&folder.path().join("kept")), before);
}

/// What systemd is told.
fn told(socket: &UnixDatagram, within: Duration) -> Option<String> {
    let mut message = [0; 4096];
    socket.set_read_timeout(Some(within)).expect("a time");
    let bytes = socket.recv(&mut message).ok()?;
    Some(String::from_utf8_lossy(&message[..bytes]).into_owned())
}

#[test]
fn systemd_hears_that_a_daemon_is_ready_when_its_devices_were_accepted_and_not_before() {
    let _beside = beside();
    let files = Files::new(1);
    written(&files);
    let folder = tempfile::tempdir().expect("a folder");
    let notify = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
    let start = |flags: &[&str]| {
        let mut command = serve(&folder, &[&files.path(0)], flags);
        command.env("NOTIFY_SOCKET", folder.path().join("notify"));
        command
    };
    let mut child = start(&[]).stderr(Stdio::null()).spawn().expect("the binary starts");
    let said = told(&notify, PATIENCE);
    child.kill().expect("our child");
    child.wait().expect("our child");
    assert_eq!(said.as_deref().map(str::trim), Some("READY=1"));
    refused(start(&["--ssd-instance", "other"]));
    assert_eq!(told(&notify, Duration::from_millis(1)), None);
}
