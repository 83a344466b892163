//! `lapis cert` as a person runs it: files that a daemon takes, lines to paste, and nothing written over.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use lapis_config::{ConfigFile, LoadInput, Options};
use lapis_transport::peers::{
    links::{LinkEvent, Links},
    message::PeerMessage,
    tcp::{TcpLimits, TcpLinks},
    tls::{self, Credentials, Identity, IdentityFiles},
};

fn lapis(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LAPIS_")) {
        command.env_remove(name);
    }
    command.current_dir(folder).args(arguments).output().expect("the binary runs")
}

/// What it printed.
fn done(folder: &Path, arguments: &[&str]) -> String {
    let output = lapis(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Why it was not done; in one line, unless it is about the command line.
fn refused(folder: &Path, arguments: &[&str], words: &str) {
    let output = lapis(folder, arguments);
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}: {said}");
    assert!(said.contains(words), "{arguments:?}: {said:?} does not say {words:?}");
    assert!(said.lines().count() == 1 || said.contains("For more information"), "{arguments:?}: {said:?}");
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|file| file.expect("a file").file_name().into_string().expect("a plain name"))
        .collect();
    names.sort();
    names
}

fn mode(path: PathBuf) -> u32 {
    fs::metadata(path).expect("it is there").mode() & 0o7777
}

fn days_left(files: &IdentityFiles, host: &str) -> u64 {
    let identity = Identity::load(files, host).expect("whole");
    let left = identity.expires().duration_since(SystemTime::now()).expect("in the future");
    // To the nearest day.
    (left + Duration::from_secs(43_200)).as_secs() / 86_400
}

#[test]
fn two_commands_make_hosts_that_meet_by_the_lines_that_were_printed() {
    let folder = tempfile::tempdir().expect("a folder");
    let printed = done(folder.path(), &["cert", "ca"]);
    assert!(printed.contains("next: lapis cert host host-a host-b\n"), "{printed}");
    let printed = done(folder.path(), &["cert", "host", "Host-A=127.0.0.1", "host-b=::1", "host-c", "host-d=::1"]);
    let certs = folder.path().join("lapis-certs");
    let made = [
        "ca.key",
        "ca.pem",
        "host-a.key",
        "host-a.pem",
        "host-b.key",
        "host-b.pem",
        "host-c.key",
        "host-c.pem",
        "host-d.key",
        "host-d.pem",
    ];
    assert_eq!(names(&certs), made);
    for name in made {
        assert_eq!(mode(certs.join(name)), if name.ends_with(".key") { 0o600 } else { 0o644 }, "{name}");
    }

    let mut hosts = printed.split("\n# ").skip(1).map(|block| {
        let (name, lines) = block.split_once('\n').expect("a name and lines");
        // The port may be another test's.
        let file = ConfigFile::Text("printed".into(), lines.into());
        let effective = Options::load(&LoadInput { file: Some(file), ..LoadInput::default() });
        let options = effective.unwrap_or_else(|errors| panic!("{errors}")).options;
        assert_eq!(options.peers_host, name);
        options
    });
    let mut next = || hosts.next().expect("four hosts");
    let (a, b, c, d) = (next(), next(), next(), next());
    let listen = |options: &Options| options.peers_listen.expect("it is on").to_string();
    let listens = [listen(&a), listen(&b), listen(&c), listen(&d)];
    assert_eq!(listens, ["127.0.0.1:7450", "[::1]:7450", "0.0.0.0:7450", "[::1]:7451"]);
    let others: Vec<String> = a.other_members().map(ToString::to_string).collect();
    assert_eq!(others, ["host-b=[::1]:7450", "host-c=host-c:7450", "host-d=[::1]:7451"]);

    let mut links = [&a, &b].map(|options| {
        let files = IdentityFiles::of(options).expect("all three");
        assert_eq!(days_left(&files, &options.peers_host), 365);
        let credentials = Credentials::load(&files, &options.peers_host).expect("whole");
        let address = "127.0.0.1:0".parse().expect("an address");
        TcpLinks::start(address, Some(credentials), TcpLimits::default(), Arc::new(|| {})).expect("a free port")
    });
    let address = links[1].local_addr().to_string();
    let link = links[0].dial("host-b", &address);
    links[0].send(link, PeerMessage::Leaving);
    let until = Instant::now() + Duration::from_secs(30);
    let certified = loop {
        assert!(Instant::now() < until, "they do not meet");
        match links[1].poll() {
            Some(LinkEvent::Accepted { certified, .. }) => break certified,
            Some(event) => panic!("{event:?}"),
            None => std::thread::yield_now(),
        }
    };
    assert_eq!(certified.as_deref(), Some("host-a"));
}

#[test]
fn nothing_is_written_over_unless_it_is_forced() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    done(at, &["cert", "ca", "--out", "x"]);
    done(at, &["cert", "host", "a", "--ca", "x"]);
    let read = |name: &str| fs::read(at.join("x").join(name)).expect("it is there");
    let (ca, ca_key, host, key) = (read("ca.pem"), read("ca.key"), read("a.pem"), read("a.key"));
    refused(at, &["cert", "ca", "--out", "x"], "x/ca.pem is there already, and the certificates that it has signed");
    // The second of the two is there: the first is not made either.
    refused(at, &["cert", "host", "b", "a", "--ca", "x"], "x/a.pem is there already, and a daemon may use them");
    assert_eq!(names(&at.join("x")), ["a.key", "a.pem", "ca.key", "ca.pem"]);
    assert_eq!((read("ca.pem"), read("ca.key"), read("a.pem"), read("a.key")), (ca.clone(), ca_key, host.clone(), key));

    done(at, &["cert", "host", "a", "--ca", "x", "--force", "--days", "10"]);
    assert!(read("a.pem") != host && read("ca.pem") == ca);
    let files =
        |ca: &str| IdentityFiles { authority: at.join(ca), certificate: at.join("x/a.pem"), key: at.join("x/a.key") };
    assert_eq!(days_left(&files("x/ca.pem"), "a"), 10);
    assert_eq!(mode(at.join("x/a.key")), 0o600);
    done(at, &["cert", "ca", "--out", "x", "--force"]);
    let error = Identity::load(&files("x/ca.pem"), "a").expect_err("another authority's").to_string();
    assert!(error.contains("is not signed by this host's authority"), "{error}");
}

#[test]
fn what_cannot_be_made_is_refused_with_the_reason_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    refused(at, &["cert", "host", "a"], "lapis-certs/ca.pem cannot be read: make an authority with `lapis cert ca`");
    refused(at, &["cert", "ca", "--out", "no/such"], "no/such cannot be made: No such file");
    done(at, &["cert", "ca", "--out", "x"]);
    done(at, &["cert", "ca", "--out", "y"]);
    fs::write(at.join("file"), "").expect("our own folder");
    refused(at, &["cert", "ca", "--out", "file"], "file is no folder");
    refused(at, &["cert", "host", "a", "a", "--ca", "x"], "host \"a\" is given twice");
    refused(at, &["cert", "host", "ca", "--ca", "x"], "would have the authority's files");
    refused(at, &["cert", "host", "10.0.0.1", "--ca", "x"], "\"10.0.0.1\" is not a host's name");
    refused(at, &["cert", "host", "a b", "--ca", "x"], "\"a b\" is not a host's name");
    refused(at, &["cert", "host", "../a", "--ca", "x"], "\"../a\" is not a host's name");
    refused(at, &["cert", "host", "a=10.0.0.1:7450", "--ca", "x"], "\"10.0.0.1:7450\" is not an IP address");
    refused(at, &["cert", "host", "a", "--ca", "x", "--days", "0"], "0 is not in 1..=36500");
    refused(at, &["cert", "host", "--ca", "x"], "NAME[=IP]");
    // One authority's certificate with another one's key.
    fs::copy(at.join("y/ca.pem"), at.join("x/ca.pem")).expect("our own folder");
    refused(at, &["cert", "host", "a", "--ca", "x"], "x/ca.pem was not made with x/ca.key by `lapis cert ca`");
    fs::write(at.join("x/ca.key"), "no key").expect("our own folder");
    refused(at, &["cert", "host", "a", "--ca", "x"], "x/ca.key holds no private key that can be used");
    fs::write(at.join("x/ca.pem"), "no certificate").expect("our own folder");
    fs::copy(at.join("y/ca.key"), at.join("x/ca.key")).expect("our own folder");
    refused(at, &["cert", "host", "a", "--ca", "x"], "there is no certificate in PEM in x/ca.pem");
    assert_eq!(names(&at.join("x")), ["ca.key", "ca.pem"]);
}

#[test]
fn doctor_says_how_long_a_certificate_is_good_and_who_may_read_its_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    done(at, &["cert", "ca", "--out", "x"]);
    done(at, &["cert", "host", "host-a=127.0.0.1", "--ca", "x", "--days", "20"]);
    let file = |name: &str| at.join("x").join(name).display().to_string();
    let (ca, certificate, key) = (file("ca.pem"), file("host-a.pem"), file("host-a.key"));
    let doctor = |host: &str| {
        let flags = ["--dram-bytes=64MiB", "--metrics-listen=off", "--peers-listen=127.0.0.1:0"];
        let socket = format!("--server-socket={}/lapis.sock", at.display());
        let paths =
            [format!("--peers-ca={ca}"), format!("--peers-certificate={certificate}"), format!("--peers-key={key}")];
        let host = format!("--peers-host={host}");
        let mut arguments = vec!["doctor", &socket, &host];
        arguments.extend(flags);
        arguments.extend(paths.iter().map(String::as_str));
        let output = lapis(at, &arguments);
        let lines = String::from_utf8(output.stdout).expect("text");
        lines.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let has =
        |lines: &[String], line: &str| assert!(lines.iter().any(|l| l.starts_with(line)), "{line:?} in {lines:?}");
    let lines = doctor("host-a");
    let ends = tls::day(SystemTime::now() + Duration::from_secs(20 * 86_400));
    has(&lines, &format!("warn  certificate    {certificate}: of \"host-a\", ends on {ends}, in 19 days: make a new"));
    has(&lines, &format!("ok    key            {key}: its owner's alone (mode 0600)"));
    has(&lines, "ok    peers          127.0.0.1:0: free");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("our own file");
    let lines = doctor("host-b");
    has(&lines, &format!("warn  key            {key}: others may read or change it (mode 0644)"));
    has(
        &lines,
        &format!("fail  certificate    {certificate}: the certificate in {certificate} is of \"host-a\", not of"),
    );
}
