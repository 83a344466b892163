//! Real sockets, descriptors and processes: who connects, what is said, and in which order ends are told.

mod children;

use std::{
    fs,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use children::Process;
use lapis_arena::Mapping;
use lapis_config::ClientId;
use lapis_transport::{
    TransportError,
    control::{BYTES, ControlClient, ControlDaemon},
    frame::{Completion, Request},
    hello::{Geometry, ToClient, ToDaemon},
    listen::Listener,
    socket::{ClientSocket, connect},
    unix::UnixWire,
    wire::{ConnId, Event, Peer, Wire},
};
use rustix::{
    event::{PollFd, PollFlags},
    pipe::PipeFlags,
};

const LONG: Duration = Duration::from_secs(10);

struct Server {
    wire: UnixWire,
    events: Vec<Event>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(connections_max: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run").join("lapis.sock");
        let mut wire = UnixWire::new().expect("epoll");
        wire.listen(Listener::bind(&path, 0o660).expect("a free path"), connections_max).expect("a listener");
        Self { wire, events: Vec::new(), path, _folder: folder }
    }

    fn connect(&self) -> ClientSocket {
        connect(&self.path).expect("a daemon")
    }

    /// Waits until `wanted` says something about an event, which it takes out.
    fn until<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + LONG;
        loop {
            let found = self.events.iter().enumerate().find_map(|(at, event)| Some((at, wanted(event)?)));
            if let Some((at, found)) = found {
                self.events.remove(at);
                return found;
            }
            assert!(Instant::now() < deadline, "still waiting; so far: {:?}", self.events);
            self.wire.wait(Some(Duration::from_millis(100)), &mut self.events).expect("epoll waits");
        }
    }

    fn connected(&mut self) -> (ConnId, Peer) {
        self.until(|event| match event {
            Event::Connected { conn, peer, .. } => Some((*conn, *peer)),
            _ => None,
        })
    }

    fn message(&mut self) -> ToDaemon {
        self.until(|event| match event {
            Event::Message { message, .. } => Some(message.clone()),
            _ => None,
        })
    }

    fn garbled(&mut self) -> String {
        self.until(|event| match event {
            Event::Garbled { reason, .. } => Some(reason.clone()),
            _ => None,
        })
    }

    fn welcome(&mut self, conn: ConnId) -> (ControlDaemon, OwnedFd) {
        let mapping = Mapping::anonymous(BYTES).expect("memory");
        let bells = self.wire.open_doorbells(conn).expect("doorbells");
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        self.wire.watch_lifeline(conn, read.as_fd()).expect("a lifeline");
        let fds = [bells.to_daemon.as_fd(), bells.to_client.as_fd(), write.as_fd()];
        self.wire.send(conn, &welcome(), &fds).expect("a client that reads");
        (ControlDaemon::new(mapping), read)
    }
}

fn welcome() -> ToClient {
    ToClient::Welcome {
        client: ClientId(7),
        secret: 1,
        geometry: Geometry { table_id: 2, instance: 3, lines: 4, extents_bytes: vec![5, 6] },
        may_put: true,
        resumed: false,
        magazine_bytes_max: 8,
        defaults: lapis_transport::hello::CallDefaults::default(),
    }
}

fn hello(name: &str) -> ToDaemon {
    ToDaemon::Hello { resume: None, name: name.to_owned(), may_put: true, writes_by_dma: false, gpus: false }
}

fn received(client: &mut ClientSocket) -> (ToClient, Vec<OwnedFd>) {
    client.recv_timeout(LONG).expect("a living daemon").expect("a message in time")
}

#[test]
fn a_client_is_known_says_hello_and_gets_descriptors() {
    let mut server = Server::start(8);
    let mut client = server.connect();
    client.send(&hello("engine")).expect("a daemon that reads");
    let (conn, peer) = server.connected();
    assert_eq!(peer.pid, std::process::id());
    assert_eq!((peer.uid, peer.gid), (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()));
    assert!(peer.start_time > 0);
    assert_eq!(server.message(), hello("engine"));
    server.welcome(conn);
    let (message, fds) = received(&mut client);
    assert_eq!((message, fds.len()), (welcome(), 3));
    for fd in &fds {
        assert!(rustix::io::fcntl_getfd(fd).expect("ours").contains(rustix::io::FdFlags::CLOEXEC));
    }
    assert!(client.recv_timeout(Duration::ZERO).expect("a living daemon").is_none());

    server.wire.send(conn, &ToClient::Refused { token: 0, reason: "enough".into() }, &[]).expect("a client that reads");
    server.wire.hang_up(conn);
    assert!(client.has_hung_up());
    assert_eq!(received(&mut client).0, ToClient::Refused { token: 0, reason: "enough".into() });
    assert!(matches!(client.recv_timeout(LONG), Err(TransportError::HungUp)));
    server.wire.send(conn, &welcome(), &[]).expect_err("a connection that is closed");
}

#[test]
fn doorbells_wake_both_ways_and_end_with_the_connection() {
    let mut server = Server::start(8);
    let mut client = server.connect();
    client.send(&hello("engine")).expect("a daemon that reads");
    let (conn, _) = server.connected();
    server.welcome(conn);
    let (_, fds) = received(&mut client);
    let [to_daemon, to_client, _lifeline] = <[OwnedFd; 3]>::try_from(fds).expect("three");
    for _ in 0..3 {
        rustix::io::write(&to_daemon, &1u64.to_ne_bytes()).expect("room");
        server.until(|event| matches!(event, Event::Doorbell { conn: of } if *of == conn).then_some(()));
        server.wire.ring(conn);
        assert_eq!(rustix::io::read(&to_client, &mut [0; 8]), Ok(8));
        assert_eq!(rustix::io::read(&to_client, &mut [0; 8]), Err(rustix::io::Errno::AGAIN));
    }
    // However often it is rung, a client that never reads costs the daemon no wait.
    (0..10_000).for_each(|_| server.wire.ring(conn));
    server.wire.hang_up(conn);
    let mut rest = Vec::new();
    fs::File::from(to_client).read_to_end(&mut rest).expect("the pipe ends");
    assert!(!rest.is_empty());
    rustix::io::write(&to_daemon, &1u64.to_ne_bytes()).expect("room");
    server.wire.waker().wake();
    server.until(|event| matches!(event, Event::Woken).then_some(()));
    assert!(!server.events.iter().any(|event| matches!(event, Event::Doorbell { .. })), "{:?}", server.events);
}

#[test]
fn a_wake_from_another_thread_ends_the_wait() {
    let mut server = Server::start(1);
    let waker = server.wire.waker();
    let thread = std::thread::spawn(move || (0..100).for_each(|_| waker.wake()));
    server.wire.wait(None, &mut server.events).expect("epoll waits");
    assert!(matches!(server.events[..], [Event::Woken]));
    thread.join().expect("the thread ended well");
}

#[test]
fn what_is_no_message_is_garbled_and_descriptors_sent_along_are_not_taken() {
    let mut server = Server::start(8);
    let client = server.connect();
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let passed = [write.as_fd()];
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&passed)));
    let slices = [std::io::IoSlice::new(b"GET / HTTP/1.1")];
    rustix::net::sendmsg(&client, &slices, &mut control, rustix::net::SendFlags::empty()).expect("room");
    drop(write);
    assert!(server.garbled().contains("not a message of lapis"));
    // The daemon has not got the write end: the pipe has ended.
    assert_eq!(rustix::io::read(&read, &mut [0; 8]), Ok(0));

    for (bytes, said) in [(vec![], "0 bytes"), (vec![1; 100_000], "the limit is 65536")] {
        rustix::net::send(&client, &bytes, rustix::net::SendFlags::empty()).expect("room");
        let reason = server.garbled();
        assert!(reason.contains(said), "{reason}");
    }
}

#[test]
fn a_connection_that_says_nothing_is_garbled_after_a_second() {
    let mut server = Server::start(8);
    let (started, _silent) = (Instant::now(), server.connect());
    let mut speaks = server.connect();
    speaks.send(&ToDaemon::Status).expect("a daemon that reads");
    assert!(server.garbled().contains("nothing said within 1s"));
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(!server.events.iter().any(|event| matches!(event, Event::Garbled { .. })), "{:?}", server.events);
}

#[test]
fn a_connection_above_the_limit_is_told_so_and_room_comes_back() {
    let mut server = Server::start(2);
    let first = server.connect();
    let (_second, mut third) = (server.connect(), server.connect());
    let (conn, _) = server.connected();
    server.connected();
    let refused = loop {
        server.wire.wait(Some(Duration::from_millis(10)), &mut server.events).expect("epoll waits");
        if let Some((message, _)) = third.recv_timeout(Duration::ZERO).expect("a living daemon") {
            break message;
        }
    };
    assert!(matches!(refused, ToClient::Refused { reason, .. } if reason.contains("2 connections are open")));
    drop(first);
    server.until(|event| matches!(event, Event::HungUp { conn: of } if *of == conn).then_some(()));
    server.wire.forget(conn);
    let _fourth = server.connect();
    server.connected();
}

#[test]
fn a_bye_is_told_before_the_hang_up_that_follows_it() {
    let mut server = Server::start(8);
    let mut client = server.connect();
    client.send(&hello("engine")).expect("a daemon that reads");
    client.send(&ToDaemon::Bye).expect("a daemon that reads");
    drop(client);
    let (conn, _) = server.connected();
    server.until(|event| matches!(event, Event::HungUp { conn: of } if *of == conn).then_some(()));
    let said: Vec<_> = server.events.drain(..).collect();
    assert!(matches!(&said[..], [Event::Message { .. }, Event::Message { message: ToDaemon::Bye, .. }]), "{said:?}");
}

#[test]
fn what_a_client_said_is_heard_though_it_left_an_answer_unread() {
    let mut server = Server::start(8);
    let mut client = server.connect();
    client.send(&hello("engine")).expect("a daemon that reads");
    let (conn, _) = server.connected();
    server.message();
    server.wire.send(conn, &welcome(), &[]).expect("room");
    client.send(&ToDaemon::Bye).expect("a daemon that reads");
    drop(client);
    assert_eq!(server.message(), ToDaemon::Bye);
    server.until(|event| matches!(event, Event::HungUp { .. }).then_some(()));
}

#[test]
fn a_ring_and_its_doorbells_lose_no_wake_up() {
    const CALLS: u64 = 5_000;
    let memory = Mapping::anonymous(BYTES).expect("memory");
    let sleeping = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut server = Server::start(8);
    let mut socket = server.connect();
    socket.send(&hello("engine")).expect("a daemon that reads");
    let (conn, _) = server.connected();
    server.welcome(conn);
    let (_, fds) = received(&mut socket);
    let mut daemon = ControlDaemon::new(memory.clone());
    let control = ControlClient::new(&memory).expect("fresh memory");
    let daemon_sleeps = sleeping.clone();
    let client = std::thread::spawn(move || {
        let (mut requests, mut completions) = control.rings();
        for token in 1..=CALLS {
            assert!(requests.push(&Request::Release { token }).expect("an honest daemon"));
            if control.must_ring(|| daemon_sleeps.load(std::sync::atomic::Ordering::Relaxed)) {
                rustix::io::write(&fds[0], &1u64.to_ne_bytes()).expect("room");
            }
            let answer = loop {
                if let Some(answer) = completions.pop().expect("an honest daemon") {
                    break answer;
                }
                if control.falls_asleep(&completions) {
                    let mut poll = [PollFd::new(&fds[1], PollFlags::IN)];
                    let timeout = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
                    assert_eq!(rustix::event::poll(&mut poll, Some(&timeout)), Ok(1), "a wake-up was lost");
                    rustix::io::read(&fds[1], &mut [0; 8]).expect("rung");
                }
                control.awake();
            };
            assert_eq!(answer, Completion::Got { token, hit: 0 });
        }
    });
    let mut served = 0;
    while served < CALLS {
        while let Some(request) = daemon.pop_request().expect("an honest client") {
            let Request::Release { token } = request else { panic!("{request:?}") };
            served += 1;
            assert!(daemon.push_completion(&Completion::Got { token, hit: 0 }));
            if daemon.client_sleeping() {
                server.wire.ring(conn);
            }
        }
        sleeping.store(true, std::sync::atomic::Ordering::Relaxed);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if served < CALLS && !daemon.has_requests() {
            server.until(|event| matches!(event, Event::Doorbell { .. }).then_some(()));
        }
        sleeping.store(false, std::sync::atomic::Ordering::Relaxed);
    }
    client.join().expect("the client ended well");
}

/// The child: a daemon that runs out of descriptors for a while. Its limits are its own.
#[test]
#[ignore = "run by without_descriptors_one_connection_is_turned_away_and_the_others_wait"]
fn short_daemon() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Some(_) = children::path() else { return };
    let mut server = Server::start(8);
    let clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    let full = getrlimit(Resource::Nofile);
    // Descriptors are given lowest first: the next one would be this.
    let next = rustix::io::fcntl_dupfd_cloexec(&clients[0], 0).expect("room");
    let current = Some(std::os::fd::AsRawFd::as_raw_fd(&next) as u64);
    drop(next);
    setrlimit(Resource::Nofile, Rlimit { current, maximum: full.maximum }).expect("a lower limit");
    let mut waits = 0;
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(500) {
        server.wire.wait(Some(Duration::from_millis(500)), &mut server.events).expect("epoll waits");
        waits += 1;
        if clients.iter().any(ClientSocket::has_hung_up) {
            break;
        }
    }
    let turned_away = clients.iter().filter(|client| client.has_hung_up()).count();
    assert!(server.events.is_empty(), "{:?}", server.events);
    setrlimit(Resource::Nofile, full).expect("the limit of before");
    let waiting = clients.len() - turned_away;
    for _ in 0..waiting {
        server.connected();
    }
    children::ready(format!("{turned_away} turned away, {waiting} connected after, busy {}", waits > 20));
}

#[test]
fn without_descriptors_one_connection_is_turned_away_and_the_others_wait() {
    let (_daemon, said) = Process::start("short_daemon", Path::new("unused"));
    assert_eq!(said.trim(), "1 turned away, 2 connected after, busy false");
}

/// The child: an engine that forked. Its own child inherits socket and lifeline.
#[test]
#[ignore = "run by the_ends_of_a_forked_engine_are_told_apart"]
fn forked_engine() {
    let Some(path) = children::path() else { return };
    let mut client = connect(&path).expect("a daemon");
    client.send(&hello("engine")).expect("a daemon that reads");
    let (_, fds) = received(&mut client);
    assert_eq!(fds.len(), 3);
    // SAFETY: the child only waits, which is allowed after a fork in a process with threads.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: no memory is involved. It ends by itself, should the test fail before it ends it.
        unsafe { libc::alarm(60) };
        loop {
            // SAFETY: no memory is involved.
            unsafe { libc::pause() };
        }
    }
    children::ready(pid);
    children::wait_for_death();
}

fn end(event: &Event) -> Option<&'static str> {
    match event {
        Event::Exited { .. } => Some("exited"),
        Event::HungUp { .. } => Some("hung up"),
        Event::LifelineEnded { .. } => Some("lifeline ended"),
        _ => None,
    }
}

#[test]
fn the_ends_of_a_forked_engine_are_told_apart() {
    let mut server = Server::start(8);
    let path = server.path.clone();
    let starting = std::thread::spawn(move || Process::start("forked_engine", &path));
    let (conn, peer) = server.connected();
    let (_control, lifeline) = server.welcome(conn);
    let (mut engine, grandchild) = starting.join().expect("the engine started");
    assert_eq!(peer.pid, engine.pid());
    let grandchild: i32 = grandchild.trim().parse().expect("a pid");

    engine.kill();
    assert_eq!(server.until(end), "exited");
    // The grandchild holds socket and lifeline: nothing more is told, now or a little later.
    server.wire.wait(Some(Duration::from_millis(50)), &mut server.events).expect("epoll waits");
    assert!(!server.events.iter().any(|event| end(event).is_some()), "{:?}", server.events);
    // A daemon that restarts now is told the same of its former client.
    let former = server.wire.watch_former(peer.pid, peer.start_time, lifeline.as_fd()).expect("a watch");
    server.until(|event| matches!(event, Event::Exited { conn } if *conn == former).then_some(()));

    let pid = rustix::process::Pid::from_raw(grandchild).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a process of ours");
    let mut ends = [server.until(end), server.until(end), server.until(end)];
    ends.sort_unstable();
    assert_eq!(ends, ["hung up", "lifeline ended", "lifeline ended"]);
}

#[test]
fn a_living_former_client_is_watched_by_pid_and_start_time() {
    let mut server = Server::start(8);
    let (mut process, _) = Process::start("stale_listener", &server.path.with_file_name("other.sock"));
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).expect("it lives");
    let start_time: u64 =
        stat.rsplit_once(')').expect("a name").1.split_whitespace().nth(19).expect("fields").parse().expect("ticks");
    let (read, _write) = rustix::pipe::pipe().expect("a pipe");
    let former = server.wire.watch_former(process.pid(), start_time, read.as_fd()).expect("a watch");
    let other = server.wire.watch_former(process.pid(), start_time + 1, read.as_fd()).expect("a watch");
    let exited = |event: &Event| match event {
        Event::Exited { conn } => Some(*conn),
        _ => None,
    };
    assert_eq!(server.until(exited), other, "a process that started at another time is another one");
    process.kill();
    assert_eq!(server.until(exited), former);
}

#[test]
fn of_a_process_that_cannot_be_told_apart_the_lifeline_tells_the_end() {
    let mut server = Server::start(8);
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    // Start time 0: /proc did not show it when the client connected.
    let former = server.wire.watch_former(std::process::id(), 0, read.as_fd()).expect("a watch");
    server.wire.wait(Some(Duration::ZERO), &mut server.events).expect("epoll waits");
    assert!(server.events.is_empty(), "{:?}", server.events);
    drop(write);
    assert_eq!([server.until(end), server.until(end)], ["lifeline ended", "exited"]);
    server.wire.forget(former);
}

/// The child: a daemon that will be killed.
#[test]
#[ignore = "run by other tests"]
fn stale_listener() {
    let Some(path) = children::path() else { return };
    let _listener = Listener::bind(&path, 0o600).expect("a free path");
    children::ready("");
    children::wait_for_death();
}

#[test]
fn a_living_server_is_named_and_a_dead_ones_file_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lapis.sock");
    let (mut first, _) = Process::start("stale_listener", &path);
    match Listener::bind(&path, 0o660) {
        Err(TransportError::Served { pid, path: at }) => assert_eq!((pid, at), (first.pid(), path.clone())),
        other => panic!("{other:?}"),
    }
    first.kill();
    assert!(path.exists(), "a killed daemon leaves its file");
    let listener = Listener::bind(&path, 0o660).expect("nobody serves it");
    assert_eq!(mode(&path), 0o660);
    assert!(
        matches!(Listener::bind(&path, 0o660), Err(TransportError::Served { pid, .. }) if pid == std::process::id())
    );
    drop(listener);
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0, "a clean end leaves nothing");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").permissions().mode() & 0o777
}

#[test]
fn who_answers_without_a_lock_is_left_alone_and_so_is_a_plain_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lapis.sock");
    let other = std::os::unix::net::UnixListener::bind(&path).expect("a free path");
    assert!(matches!(Listener::bind(&path, 0o660), Err(TransportError::Served { .. })));
    drop(other);
    drop(Listener::bind(&path, 0o660).expect("nobody answers any more"));
    fs::write(&path, "notes").expect("a file");
    assert!(matches!(Listener::bind(&path, 0o660), Err(TransportError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&path).expect("a file"), "notes");
}

#[test]
fn a_socket_that_listens_already_is_served_and_another_is_refused() {
    let mut server = Server::start(8);
    let path = server.path.with_file_name("passed.sock");
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, None);
    let socket = socket.expect("a socket");
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).expect("a path")).expect("a free path");
    let early = Listener::from_listening(socket.try_clone().expect("a descriptor"));
    let early = early.expect_err("it does not listen yet");
    let cause = std::error::Error::source(&early).expect("a cause").to_string();
    assert_eq!(
        (early.to_string().as_str(), cause.as_str()),
        ("serve a passed socket", "no listening SEQPACKET socket")
    );
    rustix::net::listen(&socket, 8).expect("a bound socket");
    let listener = Listener::from_listening(socket).expect("it listens");
    assert_eq!(server.wire.listen(listener, 8).expect("a listener"), 1);
    let _client = connect(&path).expect("a daemon");
    let index = server.until(|event| match event {
        Event::Connected { listener, .. } => Some(*listener),
        _ => None,
    });
    assert_eq!(index, 1);
}

#[test]
fn nobody_at_a_path_is_an_error_that_names_it() {
    let error = connect(Path::new("/nowhere/lapis.sock")).expect_err("nobody is there");
    assert!(error.to_string().contains("/nowhere/lapis.sock"), "{error}");
}
