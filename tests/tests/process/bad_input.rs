//! Bad input: each one clear line and a failure, nothing lost.

use std::{
    env, fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
};

use lapis_client::{ClientError, GetOptions, Keys};
use lapis_transport::hello::{LAYOUT_MAJOR, LAYOUT_MINOR, ToClient, ToDaemon};
use rustix::{
    net::{self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType},
    process::{Resource, Rlimit, geteuid, setrlimit},
};

use super::{
    alone, binary,
    blocks::{self, SMALL, keys},
    machine::{MIB, connect, host, host_with, status},
    worker::Worker,
};

/// Nobody of ours.
const STRANGER: u32 = 65534;

/// `lapis` with these words and nothing of this process's environment.
fn lapis(words: &[&str]) -> Command {
    let mut command = Command::new(binary::lapis());
    env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LAPIS_")).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command.args(words);
    command
}

/// What it says when it fails, which it must.
fn failed(command: &mut Command) -> String {
    let (code, _, errors) = binary::run(command);
    assert_eq!(code, Some(1), "{errors}");
    errors
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

#[test]
fn three_mistakes_of_a_configuration_are_three_errors_with_their_lines() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("lapis.toml");
    fs::write(&file, "verify = \"sometimes\"\n[dram]\nbites = \"4GiB\"\n[server]\nclients_max = 0\n").expect("a file");
    for words in [&["check-config", text(&file)][..], &["serve", "--config", text(&file)]] {
        let said = failed(&mut lapis(words));
        for (line, word) in [(1, "verify"), (3, "bites"), (5, "clients_max")] {
            let place = format!("lapis.toml:{line}");
            let named = said.lines().filter(|text| text.contains(word) && text.contains(&place)).count();
            assert_eq!(named, 1, "{word} at line {line}:\n{said}");
        }
    }
}

#[test]
fn a_second_daemon_on_a_socket_names_the_first_ones_pid_and_leaves_it_alone() {
    let _alone = alone();
    let mut host = host(64 * MIB);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    assert_eq!(blocks::put_all(&client, &pool, 0..8), []);
    let socket = host.socket();
    let words = ["serve", "--dram-bytes", "64MiB", "--metrics-listen", "off", "--server-socket", text(&socket)];
    let said = failed(&mut lapis(&words));
    let pid = host.daemon_pid().expect("it runs").to_string();
    assert!(said.contains(&pid) && said.contains(text(&socket)), "{said}");
    assert!(client.is_connected());
    assert_eq!(blocks::put_all(&client, &pool, 8..16), []);
    assert_eq!(blocks::hits(&client, &pool, 0..16), 16);
}

#[test]
fn a_client_of_another_layout_is_refused_by_both_versions() {
    let _alone = alone();
    let mut host = host(64 * MIB);
    let client = connect(&mut host);
    let socket =
        net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket");
    net::connect(&socket, &SocketAddrUnix::new(host.socket()).expect("a path")).expect("the daemon listens");
    let mut hello = Vec::new();
    ToDaemon::Hello { resume: None, name: "old".into(), may_put: true, writes_by_dma: false, gpus: false }
        .encode(&mut hello);
    let other = LAYOUT_MAJOR + 6;
    hello[4..6].copy_from_slice(&other.to_le_bytes());
    net::send(&socket, &hello, SendFlags::empty()).expect("sent");
    let mut answer = vec![0; 64 << 10];
    let (bytes, _) = net::recv(&socket, &mut answer, RecvFlags::empty()).expect("an answer");
    let ToClient::Refused { reason, .. } = ToClient::decode(&answer[..bytes]).expect("a message") else {
        panic!("no refusal");
    };
    let versions = [format!("{other}.{LAYOUT_MINOR}"), format!("{LAYOUT_MAJOR}.{LAYOUT_MINOR}")];
    assert!(versions.iter().all(|version| reason.contains(version)), "{reason}");
    let (bytes, _) = net::recv(&socket, &mut answer, RecvFlags::empty()).expect("the end");
    assert_eq!(bytes, 0, "the daemon hung up");
    assert!(client.is_connected());
}

#[test]
fn a_foreign_uid_is_refused_by_name() {
    let _alone = alone();
    if !geteuid().is_root() {
        println!("skipped: only root can be somebody else");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("our folder");
    let (config, socket) = (folder.path().join("lapis.toml"), folder.path().join("own.sock"));
    fs::write(&config, format!("[[group]]\nname = \"own\"\nsocket = {socket:?}\nuids = [7]\n")).expect("a file");
    let mut host = host_with(64 * MIB, &["--config", text(&config), "--server-socket-mode", "0666"]);
    host.until("the group", |_| Ok(status(&socket))).expect("root may ask");
    let mut stranger = Worker::start("stranger", &[text(&socket), &STRANGER.to_string()]);
    let said = stranger.line();
    for what in ["hello", "status"] {
        let answer = said[what].as_str().expect("an answer");
        let named = ["65534", "\"own\"", "group.uids"].iter().all(|word| answer.contains(word));
        assert!(named, "{what}: {answer}");
    }
}

#[test]
fn too_small_a_memlock_limit_is_said_before_anything_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("our folder");
    // Where everyone may read it, whatever folder this was built in.
    let copy = folder.path().join("copy-of-lapis");
    fs::copy(binary::lapis(), &copy).expect("a copy");
    let place = folder.path().join("run");
    let mut command = Command::new(&copy);
    command.env_clear().args(["serve", "--dram-bytes", "64MiB", "--dram-lock=true", "--metrics-listen", "off"]);
    command.arg("--server-socket").arg(place.join("lapis.sock"));
    if geteuid().is_root() {
        // Root may lock without a limit.
        command.uid(STRANGER).gid(STRANGER);
    }
    let limit = Rlimit { current: Some(64 << 10), maximum: Some(64 << 10) };
    // SAFETY: one system call between fork and exec, which allocates nothing.
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::Memlock, limit)?));
    }
    let said = failed(&mut command);
    assert!(["memlock", "65536", "67108864"].iter().all(|word| said.contains(word)), "{said}");
    assert!(!place.exists(), "something was made");
}

#[test]
fn a_truncated_trace_is_an_error_with_its_place_and_no_figures() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["trace.jsonl", "trace.jsonl.zst"] {
        let file = folder.path().join(name);
        let (code, _, errors) = binary::run(&mut lapis(&["trace", "--requests", "400", "--out", text(&file)]));
        assert_eq!(code, Some(0), "{errors}");
        let whole = fs::read(&file).expect("a trace");
        fs::write(&file, &whole[..whole.len() * 2 / 3]).expect("our file");
        let (code, output, errors) = binary::run(&mut lapis(&["replay", "--json", text(&file)]));
        assert_eq!((code, output.as_str()), (Some(1), ""), "{errors}");
        assert!(errors.contains(name) && errors.trim_end().lines().count() == 1, "{errors}");
    }
}

#[test]
fn a_key_batch_of_the_wrong_length_is_an_error_with_both_numbers_and_harms_nothing() {
    let _alone = alone();
    let mut host = host(64 * MIB);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    assert_eq!(blocks::put_all(&client, &pool, 0..4), []);
    let error = Keys::from_bytes(&[0; 33]).expect_err("not whole keys");
    assert!(matches!(error, ClientError::KeyBytes { bytes: 33 }));
    assert!(["33", "32"].iter().all(|number| error.to_string().contains(number)), "{error}");
    let many = keys(0..8193);
    for (batch, count) in [(&many[..], "8193"), (&[], "0")] {
        let mut bytes = [0; 8];
        let got = client.get_into(&pool, batch, &mut bytes[..], &GetOptions::default()).map(drop);
        for error in [got, client.exists(&pool, batch).map(drop), client.view(&pool, batch).map(drop)] {
            let error = error.expect_err("a wrong batch").to_string();
            assert!(error.contains(count) && error.contains("8192"), "{error}");
        }
    }
    assert_eq!(blocks::hits(&client, &pool, 0..4), 4);
}
