//! Descriptors over a daemon's death: kept by the holder, handed out only when the former owner has ended.

mod children;

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use children::Process;
use lapis_transport::{
    TransportError,
    hold::{HoldClient, Holder, Keeper},
};
use rustix::fs::MemfdFlags;

const LONG: Duration = Duration::from_secs(10);

struct Running {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), TransportError>>>,
    _folder: tempfile::TempDir,
}

impl Running {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hold.sock");
        let mut holder = Holder::bind(&path).expect("a free path");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || holder.run(&stopped));
        Self { path, stop, thread: Some(thread), _folder: folder }
    }

    fn connect(&self) -> HoldClient {
        HoldClient::connect(&self.path).expect("a holder")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("dropped once").join();
        if !std::thread::panicking() {
            ended.expect("the holder did not panic").expect("the holder ended well");
            assert!(!self.path.exists(), "a clean end leaves nothing");
        }
    }
}

fn memfd(content: &str) -> OwnedFd {
    let fd = rustix::fs::memfd_create("kept", MemfdFlags::CLOEXEC).expect("memory");
    let mut file = File::from(fd);
    file.write_all(content.as_bytes()).expect("memory");
    file.into()
}

fn content(fd: &OwnedFd) -> String {
    let mut file = File::from(fd.try_clone().expect("a descriptor"));
    let mut text = String::new();
    file.rewind().expect("a memfd");
    file.read_to_string(&mut text).expect("a memfd");
    text
}

/// The child: a daemon that keeps two descriptors and is killed.
#[test]
#[ignore = "run by other tests"]
fn owning_daemon() {
    let Some(path) = children::path() else { return };
    let mut keeper = HoldClient::connect(&path).expect("a holder");
    let taken = keeper.take_all(LONG).expect("the former owner has ended");
    let round = taken.len();
    for n in 0..2 {
        keeper.keep(&format!("round{round}.{n}"), memfd(&format!("bytes {round}.{n}")).as_fd()).expect("room");
    }
    children::ready(round);
    children::wait_for_death();
}

#[test]
fn what_a_killed_daemon_kept_comes_back_and_a_living_one_is_named() {
    let holder = Running::start();
    let (mut daemon, round) = Process::start("owning_daemon", &holder.path);
    assert_eq!(round.trim(), "0");

    let refused = holder.connect().take_all(Duration::from_millis(20));
    assert!(matches!(&refused, Err(TransportError::Held { pid }) if *pid == daemon.pid()), "{refused:?}");
    let text = refused.expect_err("held").to_string();
    assert_eq!(text, format!("the descriptors are held by pid {}, which is alive", daemon.pid()));

    daemon.kill();
    let mut keeper = holder.connect();
    let taken = keeper.take_all(LONG).expect("the former owner has ended");
    let found: Vec<_> = taken.iter().map(|(name, fd)| (name.as_str(), content(fd))).collect();
    assert_eq!(found, [("round0.0", "bytes 0.0".into()), ("round0.1", "bytes 0.1".into())]);
    keeper.forget("round0.0").expect("the owner forgets");
    keeper.forget("round0.0").expect("a name that is not kept is no error");

    // The same process may connect anew, and finds what it left.
    drop(keeper);
    let taken = holder.connect().take_all(LONG).expect("the same process");
    assert_eq!(taken.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["round0.1"]);
}

#[test]
fn a_daemon_that_starts_while_the_former_one_dies_waits_for_its_end() {
    let holder = Running::start();
    let (mut first, _) = Process::start("owning_daemon", &holder.path);
    let path = holder.path.clone();
    let second = std::thread::spawn(move || Process::start("owning_daemon", &path));
    first.kill();
    let (_second, found) = second.join().expect("the second daemon started");
    assert_eq!(found.trim(), "2");
}

#[test]
fn a_closed_connection_of_a_living_daemon_proves_nothing() {
    let holder = Running::start();
    let mut ours = holder.connect();
    ours.take_all(LONG).expect("nobody had them");
    ours.keep("one", memfd("1").as_fd()).expect("room");
    drop(ours);
    // This process lives, so another one waits; it prints nothing until we let it.
    let (started, path) = (Instant::now(), holder.path.clone());
    let waits = std::thread::spawn(move || Process::start("impatient_daemon", &path).1);
    let said = waits.join().expect("the daemon started");
    assert_eq!(said.trim(), format!("the descriptors are held by pid {}, which is alive", std::process::id()));
    assert!(started.elapsed() >= Duration::from_millis(100));
}

/// The child: a daemon that waits a little for descriptors and says what came of it.
#[test]
#[ignore = "run by other tests"]
fn impatient_daemon() {
    let Some(path) = children::path() else { return };
    let mut keeper = HoldClient::connect(&path).expect("a holder");
    children::ready(keeper.take_all(Duration::from_millis(100)).expect_err("held"));
}

#[test]
fn hundreds_of_descriptors_come_back_in_batches() {
    let holder = Running::start();
    let mut keeper = holder.connect();
    assert!(keeper.take_all(LONG).expect("nobody had them").is_empty());
    let kept = memfd("the same");
    for n in 0..300 {
        keeper.keep(&format!("{n:03}"), kept.as_fd()).expect("room");
    }
    keeper.keep("007", memfd("another").as_fd()).expect("a name is kept once");
    let taken = keeper.take_all(LONG).expect("the same process");
    assert_eq!(taken.len(), 300);
    for (n, (name, fd)) in taken.iter().enumerate() {
        let expected = if n == 7 { "another" } else { "the same" };
        assert_eq!((name.as_str(), content(fd).as_str()), (format!("{n:03}").as_str(), expected));
    }
}

#[test]
fn who_is_not_the_owner_keeps_nothing_and_garbage_ends_nobody() {
    let holder = Running::start();
    let mut stranger = holder.connect();
    let error = stranger.keep("one", memfd("1").as_fd()).expect_err("not the owner");
    assert!(error.to_string().contains("only their owner keeps more"), "{error}");

    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, None);
    let socket = socket.expect("a socket");
    let address = rustix::net::SocketAddrUnix::new(&holder.path).expect("a path");
    rustix::net::connect(&socket, &address).expect("a holder");
    let mut random = fastrand::Rng::with_seed(11);
    let mut answer = [0; 2048];
    for _ in 0..500 {
        let mut bytes = vec![0; random.usize(0..200)];
        random.fill(&mut bytes);
        if random.bool() && bytes.len() > 6 {
            bytes[..6].copy_from_slice(b"LPHD\x01\x00");
        }
        rustix::net::send(&socket, &bytes, rustix::net::SendFlags::empty()).expect("a holder that reads");
        let (_, length) = rustix::net::recv(&socket, &mut answer, rustix::net::RecvFlags::empty()).expect("an answer");
        assert!(length > 20);
    }
    assert!(stranger.take_all(LONG).expect("nobody had them").is_empty());
    stranger.keep("one", memfd("1").as_fd()).expect("now the owner");
}
