//! Daemons that find each other in a real etcd, which goes through everything. Run by `tests/etcd/run`: LAPIS_ETCD names it.

use std::{
    env,
    fs::{self, File},
    net::{SocketAddrV4, TcpListener},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lapis_benches::{
    host::{Host, HostOptions},
    hosts::free_addresses,
};
use lapis_client::{Client, GetOptions, Pool};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde_json::Value;

use super::{
    LOOK_EVERY, PATIENCE, alone, binary,
    blocks::{self, SMALL, get, keys, put_all},
    eventually, is_strict,
    machine::{MIB, status, status_when},
};

const TTL: Duration = Duration::from_secs(3);
const HOSTS: usize = 3;

/// A real one, alone in its cluster. It does not outlive this process.
struct Etcd {
    ports: [u16; 2],
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Etcd {
    fn start() -> Self {
        // Bound at once, so that they differ; free again before it starts.
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let ports = listeners.map(|listener| listener.local_addr().expect("an address").port());
        let mut etcd = Self { ports, folder: folder(), process: None };
        etcd.begin();
        etcd
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn begin(&mut self) {
        assert!(self.process.is_none(), "one at a time");
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.ports[1]));
        let log = self.folder.path().join("log");
        let log = File::options().create(true).append(true).open(log).expect("a log");
        let mut command = Command::new(env::var_os("LAPIS_ETCD").expect("LAPIS_ETCD names an etcd (tests/etcd/run)"));
        command.arg("--data-dir").arg(self.data());
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        // SAFETY: between fork and exec only one prctl is called, which is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        self.process = Some(command.spawn().expect("etcd starts"));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.process.as_ref().expect("a process")), signal).expect("a signal");
    }

    fn kill(&mut self) {
        let mut process = self.process.take().expect("a process");
        process.kill().and_then(|()| process.wait()).expect("its end");
    }

    fn wipe(&self) {
        fs::remove_dir_all(self.data()).expect("its data can be removed");
    }
}

/// In memory where that can be: what etcd syncs waits for no busy disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

/// Daemons that know nothing of each other but the etcd.
struct Cluster {
    hosts: Vec<Host>,
    clients: Vec<Option<(Client, Pool)>>,
    /// Of the next block that is put.
    next: u64,
}

fn host(url: &str, name: &str, address: SocketAddrV4, ttl: Duration) -> Host {
    let flags = [
        ("--peers-listen", address.to_string()),
        ("--peers-host", name.into()),
        ("--peers-etcd", url.into()),
        ("--peers-etcd-ttl", format!("{}s", ttl.as_secs())),
    ];
    host_with(flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect())
}

fn host_with(flags: Vec<String>) -> Host {
    let options = HostOptions { binary: binary::lapis(), dram_bytes: 64 * MIB, ssd_bytes: None, hold: true, flags };
    Host::start(options).expect("a host")
}

impl Cluster {
    fn start(etcd: &Etcd, ttl: Duration) -> Self {
        let addresses = free_addresses(HOSTS).expect("addresses");
        let host = |(at, address)| host(&etcd.url(), &format!("host-{at}"), address, ttl);
        let hosts = addresses.into_iter().enumerate().map(host);
        let mut cluster = Self { hosts: hosts.collect(), clients: (0..HOSTS).map(|_| None).collect(), next: 0 };
        (0..HOSTS).for_each(|at| cluster.connect(at));
        (0..HOSTS).for_each(|at| cluster.until_up(at, HOSTS - 1));
        cluster
    }

    fn connect(&mut self, at: usize) {
        let client = self.hosts[at].connect("etcd test").expect("a client");
        let pool = blocks::pool(&client, SMALL);
        self.clients[at] = Some((client, pool));
    }

    /// Waits for a status of a host.
    fn until(&self, at: usize, what: &str, is_so: impl FnMut(&Value) -> bool) -> Value {
        status_when(&self.hosts[at].socket(), &format!("{what}, at host-{at}"), is_so)
    }

    fn until_up(&self, at: usize, others: usize) {
        self.until(at, &format!("{others} others"), |status| up(status) == others && members(status) == others);
    }

    fn until_well(&self, at: usize) {
        let is_well = |status: &Value| said(status).ends_with("this host is listed") && stale_s(status) == 0.0;
        self.until(at, "a place in the list", is_well);
    }

    /// A block that is put on one host is a hit on another one.
    fn share(&mut self, from: usize, to: usize) {
        let ids = self.next..self.next + 4;
        self.next = ids.end;
        let of = |at: usize| self.clients[at].as_ref().expect("a client");
        let ((source, source_pool), (target, pool)) = (of(from), of(to));
        assert!(put_all(source, source_pool, ids.clone()).is_empty());
        let (keys, options) = (keys(ids), GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() });
        eventually("a block of another host", || {
            let (got, wrong) = get(target, pool, &keys, &options);
            assert_eq!(wrong, 0, "wrong bytes");
            (got.hits == keys.len()).then_some(())
        });
    }

    fn share_all(&mut self) {
        (0..HOSTS).for_each(|at| self.share(at, (at + 1) % HOSTS));
    }
}

fn members(status: &Value) -> usize {
    status["peers"]["hosts"].as_array().expect("hosts").len()
}

fn up(status: &Value) -> usize {
    status["peers"]["hosts"].as_array().expect("hosts").iter().filter(|host| host["is_up"] == true).count()
}

fn said(status: &Value) -> &str {
    status["peers"]["membership"].as_str().expect("how it knows")
}

fn stale_s(status: &Value) -> f64 {
    status["peers"]["membership_stale_s"].as_f64().expect("seconds")
}

/// Looks at all hosts all the time: the fewest others that any of them has known.
struct Watcher {
    over: Arc<AtomicBool>,
    fewest: Arc<AtomicU64>,
    looks: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    fn start(cluster: &Cluster) -> Self {
        let sockets: Vec<PathBuf> = cluster.hosts.iter().map(Host::socket).collect();
        let (over, fewest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(u64::MAX)));
        let looks = Arc::new(AtomicU64::new(0));
        let (is_over, least, counted) = (Arc::clone(&over), Arc::clone(&fewest), Arc::clone(&looks));
        let thread = thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let seen =
                    sockets.iter().filter_map(|socket| status(socket)).map(|status| members(&status) as u64).min();
                least.fetch_min(seen.unwrap_or(u64::MAX), Ordering::Relaxed);
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(LOOK_EVERY);
            }
        });
        Self { over, fewest, looks, thread: Some(thread) }
    }

    fn end(&mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().expect("ended once").join().expect("it saw no broken status");
        assert!(self.looks.load(Ordering::Relaxed) > 10, "it has looked");
        self.fewest.load(Ordering::Relaxed)
    }
}

#[test]
#[ignore = "needs an etcd: tests/etcd/run"]
fn with_etcd_a_killed_host_is_dropped_with_its_lease_and_comes_back() {
    let _alone = alone();
    let etcd = Etcd::start();
    let mut cluster = Cluster::start(&etcd, TTL);
    (0..HOSTS).for_each(|at| cluster.until_well(at));
    cluster.share_all();
    for host in &cluster.hosts {
        // Each has dialled the others as soon as it saw them, and they may have heard of it after that.
        let log = host.daemon_log();
        assert!(!is_strict() || !log.contains("not one of the peers"), "{log}");
    }
    // Killed, it says no good-bye.
    cluster.hosts[2].kill_daemon().expect("its end");
    let killed = Instant::now();
    (0..2).for_each(|at| cluster.until_up(at, 1));
    let took = killed.elapsed();
    println!("a killed host is dropped after {took:?} (lease {TTL:?})");
    assert!(!is_strict() || took <= TTL + Duration::from_secs(1), "{took:?}");
    cluster.share(0, 1);
    cluster.clients[2] = None;
    cluster.hosts[2].start_daemon().expect("a daemon");
    cluster.connect(2);
    (0..HOSTS).for_each(|at| cluster.until_up(at, 2));
    cluster.share_all();
    // Back before its lease has ended, it is still where the others look for it.
    cluster.clients[2] = None;
    cluster.until_well(2);
    cluster.hosts[2].kill_daemon().expect("its end");
    cluster.hosts[2].start_daemon().expect("a daemon");
    cluster.connect(2);
    cluster.share(0, 2);
    cluster.share(2, 0);
    cluster.until_well(2);
    (0..HOSTS).for_each(|at| cluster.until_up(at, 2));
    assert!(!cluster.hosts[2].daemon_log().contains("another host is listed"), "{}", cluster.hosts[2].log_tail());
}

#[test]
#[ignore = "needs an etcd: tests/etcd/run"]
fn with_etcd_a_host_that_stops_is_dropped_long_before_its_lease_ends() {
    let _alone = alone();
    let etcd = Etcd::start();
    let mut cluster = Cluster::start(&etcd, 10 * PATIENCE);
    cluster.until_well(2);
    cluster.clients[2] = None;
    cluster.hosts[2].stop_daemon().expect("its end");
    let stopped = Instant::now();
    (0..2).for_each(|at| cluster.until_up(at, 1));
    println!("a host that stopped is dropped after {:?}", stopped.elapsed());
}

#[test]
#[ignore = "needs an etcd: tests/etcd/run"]
fn with_etcd_frozen_killed_and_wiped_the_hosts_go_on_as_one_cache() {
    let _alone = alone();
    let mut etcd = Etcd::start();
    let mut cluster = Cluster::start(&etcd, TTL);
    (0..HOSTS).for_each(|at| cluster.until_well(at));
    let mut watcher = Watcher::start(&cluster);
    for outage in ["frozen", "killed", "wiped"] {
        let began = Instant::now();
        match outage {
            "frozen" => etcd.signal(Signal::STOP),
            _ => etcd.kill(),
        }
        for at in 0..HOSTS {
            let lost =
                cluster.until(at, "the loss of etcd", |status| said(status).starts_with("etcd is lost: http://"));
            assert_eq!(members(&lost), HOSTS - 1, "{lost}");
        }
        println!("{outage}: noticed by all after {:?}", began.elapsed());
        // Longer than any lease, and blocks come all the while.
        while began.elapsed() < TTL + TTL / 2 {
            cluster.share_all();
        }
        for at in 0..HOSTS {
            cluster.until(at, "a stale list", |status| stale_s(status) > TTL.as_secs_f64());
        }
        let healed = Instant::now();
        match outage {
            "frozen" => etcd.signal(Signal::CONT),
            "killed" => etcd.begin(),
            _ => {
                etcd.wipe();
                etcd.begin();
            }
        }
        (0..HOSTS).for_each(|at| cluster.until_well(at));
        println!("{outage}: all listed again after {:?}", healed.elapsed());
        cluster.share_all();
        // Nobody is held any more: all are really there.
        for at in 0..HOSTS {
            cluster.until(at, "the others' return", |status| !said(status).contains("not back") && up(status) == 2);
        }
    }
    assert_eq!(watcher.end(), HOSTS as u64 - 1, "somebody was dropped because etcd was lost");
    for host in &cluster.hosts {
        // Each loss is told once, and so is each return.
        let told: Vec<bool> = host.daemon_log().lines().filter_map(lost_or_back).collect();
        let alternates = told.iter().enumerate().all(|(at, is_lost)| *is_lost == (at % 2 == 0));
        assert!(alternates && told.len() >= 6 && told.len().is_multiple_of(2), "{told:?}: {}", host.daemon_log());
    }
}

/// What a line of the log says of etcd.
fn lost_or_back(line: &str) -> Option<bool> {
    let is_lost = line.contains("etcd is lost");
    (is_lost || line.contains("etcd is back")).then_some(is_lost)
}

#[test]
#[ignore = "needs an etcd: tests/etcd/run"]
fn with_etcd_a_second_host_of_a_name_is_not_listed_until_the_name_is_free() {
    let _alone = alone();
    let etcd = Etcd::start();
    let addresses = free_addresses(2).expect("addresses");
    let first = host(&etcd.url(), "twin", addresses[0], TTL);
    let is_listed = |status: &Value| said(status).ends_with("this host is listed");
    status_when(&first.socket(), "a place in the list", is_listed);
    let second = host(&etcd.url(), "twin", addresses[1], TTL);
    let held = format!("its name is held by {}", addresses[0]);
    status_when(&second.socket(), "who has the name", |status| said(status).contains(&held));
    assert!(second.daemon_log().contains("another host is listed under this one's name"), "{}", second.log_tail());
    status_when(&first.socket(), "a place in the list", is_listed);
    drop(first);
    status_when(&second.socket(), "a place in the list", is_listed);
}

#[test]
#[ignore = "needs an etcd: tests/etcd/run"]
fn with_etcd_a_host_that_is_not_found_there_is_refused_with_what_to_do_and_let_in_when_it_is() {
    let _alone = alone();
    let etcd = Etcd::start();
    let addresses = free_addresses(2).expect("addresses");
    let found = host(&etcd.url(), "found", addresses[0], TTL);
    status_when(&found.socket(), "a place in the list", |status| said(status).ends_with("this host is listed"));
    let listed = |prefix: &[&str]| {
        let listen = ["--peers-listen".into(), addresses[1].to_string(), "--peers-host".into(), "listed".into()];
        let members = ["--peers-members".into(), format!("found={}", addresses[0])];
        let prefix = prefix.iter().map(|&word| word.into());
        host_with(listen.into_iter().chain(members).chain(prefix).collect())
    };
    let other = [("--peers-etcd", etcd.url()), ("--peers-etcd-prefix", "/elsewhere/".into())];
    let other: Vec<&str> = other.iter().flat_map(|(flag, value)| [*flag, value.as_str()]).collect();
    for flags in [&[][..], &other] {
        let stranger = listed(flags);
        let why = "\"listed\" is not one of the peers that \"found\" has found: it is in etcd under another peers.etcd_prefix";
        let is_told = |status: &Value| {
            status["peers"]["hosts"][0]["why_down"].as_str().is_some_and(|reason| reason.contains(why))
        };
        status_when(&stranger.socket(), "what to do", is_told);
        assert!(found.daemon_log().contains(&why.replace('"', "\\\"")), "{}", found.log_tail());
    }
    let url = etcd.url();
    let joined = listed(&["--peers-etcd", &url]);
    status_when(&joined.socket(), "the other", |status| up(status) == 1);
    status_when(&found.socket(), "the other", |status| up(status) == 1);
}

#[test]
#[ignore = "needs an etcd: tests/etcd/run"]
fn with_etcd_the_hosts_of_the_configuration_are_peers_besides() {
    let _alone = alone();
    let mut etcd = Etcd::start();
    let addresses = free_addresses(2).expect("addresses");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("lapis.toml");
    let (url, listen) = (etcd.url(), addresses[1]);
    let configure = |members: &str| {
        let text = format!("listen = \"{listen}\"\netcd = [\"{url}\"]\nmembers = [{members}]\nhost = \"own\"\n");
        fs::write(&file, format!("[peers]\n{text}")).expect("a file");
    };
    let _found = host(&url, "found", addresses[0], TTL);
    configure("\"listed=127.77.1.1:7450\"");
    let own = host_with(vec!["--config".into(), file.display().to_string()]);
    let names = |status: &Value| -> Vec<String> {
        let hosts = status["peers"]["hosts"].as_array().expect("hosts").iter();
        hosts.map(|host| host["name"].as_str().expect("a name").into()).collect()
    };
    let both = |status: &Value| names(status).len() == 2 && said(status).contains("listed; 1 more in peers.members");
    status_when(&own.socket(), "both", both);
    etcd.kill();
    let lost = status_when(&own.socket(), "the loss of etcd", |status| said(status).starts_with("etcd is lost"));
    assert_eq!(names(&lost).len(), 2, "{lost}");
    // The list is reloaded all the same.
    configure("");
    let pid = Pid::from_raw(own.daemon_pid().expect("a daemon") as i32).expect("a pid");
    kill_process(pid, Signal::HUP).expect("told");
    status_when(&own.socket(), "the one of etcd alone", |status| names(status) == ["found"]);
}
