//! Hosts that read each other's blocks by RDMA: only where there are two with a device each, as in `tests/testbed/rdma`.
//! `LAPIS_TEST_RDMA` names their network namespaces and addresses, as in `h0=10.77.0.1 h1=10.77.0.2`.

use std::{
    env, fs,
    ops::Range,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use lapis_benches::host::{Host, HostOptions};
use lapis_client::{Client, GetOptions, Pool, PutOptions};

use super::{
    PATIENCE, alone, binary,
    blocks::{self, SMALL, get, keys},
    eventually,
    machine::{MIB, at, status, status_when},
};

/// For what has to come: the processor is emulated.
const WIRE_DEADLINE: Duration = Duration::from_secs(60);
/// Of gets while links fail, and how much later an answer may be there where the processor is emulated and shared.
const DEADLINE: Duration = Duration::from_secs(2);
const LATE: Duration = Duration::from_secs(2);
/// Blocks of each owner while links fail: more than the reader has memory for.
const BLOCKS: u64 = 1280;
const DRAM: u64 = 32 * MIB;

struct Place {
    namespace: String,
    address: String,
}

/// Where there are none, says so.
fn places() -> Option<Vec<Place>> {
    let Ok(named) = env::var("LAPIS_TEST_RDMA") else {
        println!("skipped: LAPIS_TEST_RDMA names no hosts with RDMA devices (tests/testbed/rdma has two)");
        return None;
    };
    let place = |word: &str| {
        let (namespace, address) = word.split_once('=').expect("NAMESPACE=ADDRESS");
        Place { namespace: namespace.into(), address: address.into() }
    };
    Some(named.split_whitespace().map(place).collect())
}

fn run(program: impl AsRef<std::ffi::OsStr>, words: &[&str]) {
    let output = Command::new(program.as_ref()).args(words).output().expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?} {words:?}: {said}", program.as_ref());
}

/// Hosts with certificates, each in a namespace.
struct Net {
    folder: tempfile::TempDir,
    members: Vec<(String, String)>,
    /// `peers.locate` of all.
    locate: &'static str,
}

impl Net {
    fn new(members: Vec<(String, String)>, locate: &'static str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        run(binary::lapis(), &["cert", "ca", "--out", &at("ca")]);
        let names = members.iter().map(|(name, _)| name.as_str());
        let words: Vec<&str> = ["cert", "host"].into_iter().chain(names).collect();
        let (ca, out) = (at("ca"), at("hosts"));
        run(binary::lapis(), &[&words[..], &["--ca", &ca, "--out", &out]].concat());
        Self { folder, members, locate }
    }

    /// The binary, as it runs in a namespace.
    fn binary(&self, namespace: &str) -> PathBuf {
        let path = self.folder.path().join(format!("lapis-{namespace}"));
        let lapis = binary::lapis().display().to_string();
        fs::write(&path, format!("#!/bin/sh\nexec ip netns exec {namespace} {lapis} \"$@\"\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        path
    }

    fn start(&self, namespace: &str, which: usize, dram_bytes: u64) -> Host {
        let (name, address) = &self.members[which];
        let members: Vec<String> = self.members.iter().map(|(name, address)| format!("{name}={address}")).collect();
        let hosts = self.folder.path().join("hosts");
        let file = |name: String| hosts.join(name).display().to_string();
        let flag = |name: &str, value: String| [format!("--peers-{name}"), value];
        let flags = [
            flag("listen", address.clone()),
            flag("host", name.clone()),
            flag("locate", self.locate.into()),
            flag("members", members.join(",")),
            flag("ca", self.folder.path().join("ca/ca.pem").display().to_string()),
            flag("certificate", file(format!("{name}.pem"))),
            flag("key", file(format!("{name}.key"))),
        ];
        let (binary, flags) = (self.binary(namespace), flags.concat());
        Host::start(HostOptions { binary, dram_bytes, ssd_bytes: None, hold: true, flags }).expect("a host")
    }
}

/// Of a daemon's status. The processor is emulated: it may take a while.
fn now(socket: &Path, of: &str) -> u64 {
    at(&eventually("a status", || status(socket)), of)
}

fn by_rdma(socket: &Path) -> u64 {
    now(socket, "/peers/bytes_read_rdma")
}

fn looked_up(socket: &Path) -> u64 {
    now(socket, "/peers/blocks_looked_up")
}

/// Puts blocks, however slow the processor is.
fn put_all(client: &Client, pool: &Pool, ids: Range<u64>) {
    let options = PutOptions { deadline: Some(WIRE_DEADLINE) };
    for batch in blocks::batches(ids) {
        let keys = keys(batch);
        let bytes = blocks::bytes_of(&keys, pool.block_bytes() as usize);
        let put = client.put_from(pool, &keys, None, &bytes, &options).expect("a sound call");
        assert_eq!(put.stored(), keys.len());
    }
}

#[test]
fn blocks_come_by_rdma_with_every_byte_right() {
    blocks_come("asked");
}

#[test]
fn blocks_are_looked_up_without_asking_where_both_hosts_say_so() {
    blocks_come("onesided");
}

fn blocks_come(locate: &'static str) {
    let Some(places) = places() else { return };
    let _alone = alone();
    let members = places.iter().enumerate().map(|(n, place)| (format!("host-{n}"), format!("{}:7450", place.address)));
    let net = Net::new(members.collect(), locate);
    let mut hosts: Vec<Host> =
        places.iter().enumerate().map(|(n, place)| net.start(&place.namespace, n, 128 * MIB)).collect();
    let clients: Vec<Client> = hosts.iter_mut().map(|host| host.connect("rdma").expect("a client")).collect();
    let options = GetOptions { deadline: Some(WIRE_DEADLINE), ..GetOptions::default() };
    for block_bytes in [SMALL, 1 << 20] {
        let pools: Vec<Pool> = clients.iter().map(|client| blocks::pool(client, block_bytes)).collect();
        let (count, socket) = (32, hosts[1].socket());
        // Before pairs are connected, and told what memory there is, blocks come by TCP.
        for first in (0..).step_by(count as usize) {
            assert!(first < 2048, "nothing came by RDMA\n{}\n{}", hosts[0].daemon_log(), hosts[1].daemon_log());
            let (before, seen) = (by_rdma(&socket), looked_up(&socket));
            put_all(&clients[0], &pools[0], first..first + count);
            let all = keys(first..first + count);
            let last = [*all.last().expect("some")];
            eventually("the other host to know", || {
                (get(&clients[1], &pools[1], &last, &options).0.hits == 1).then_some(())
            });
            let (got, wrong) = get(&clients[1], &pools[1], &all, &options);
            assert_eq!((got.hits as u64, wrong), (count, 0));
            let seen = looked_up(&socket) - seen;
            assert!(locate == "onesided" || seen == 0, "{seen} were looked up");
            let all_seen = locate == "asked" || seen >= count - 1;
            if all_seen && by_rdma(&socket) >= before + (count - 1) * block_bytes as u64 {
                break;
            }
        }
        println!("{count} blocks of {block_bytes} bytes came by RDMA ({locate}), each byte right");
    }
}

/// What a client hears that reads the blocks of one owner again and again.
#[derive(Default)]
struct Heard {
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Reads until it is told to stop; no byte is wrong and no answer late.
fn read(client: &Client, pool: &Pool, ids: Range<u64>, heard: &Heard, stop: &AtomicBool) -> Duration {
    let options = GetOptions { deadline: Some(DEADLINE), ..GetOptions::default() };
    let (mut longest, batches): (_, Vec<Range<u64>>) = (Duration::ZERO, blocks::batches(ids).collect());
    for batch in batches.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let keys = keys(batch.clone());
        let mut buffer = vec![0; keys.len() * pool.block_bytes() as usize];
        let began = Instant::now();
        let got = client.get_into(pool, &keys, &mut buffer, &options).expect("a sound call");
        longest = longest.max(began.elapsed());
        assert_eq!(blocks::wrong_bytes(pool, &keys, &got, &buffer), 0, "wrong bytes");
        heard.hits.fetch_add(got.hits as u64, Ordering::Relaxed);
        heard.misses.fetch_add((keys.len() - got.hits) as u64, Ordering::Relaxed);
    }
    longest
}

/// More than now of a count.
fn more(what: &str, count: impl Fn() -> u64) {
    let (before, end) = (count(), Instant::now() + 4 * PATIENCE);
    while count() <= before {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn links_and_owners_fail_in_mid_transfer_and_heal() {
    let Some(places) = places() else { return };
    let _alone = alone();
    let (there, here) = (&places[0], &places[1]);
    let members = [
        ("owner-0".into(), format!("{}:7450", there.address)),
        ("owner-1".into(), format!("{}:7460", there.address)),
        ("reader".into(), format!("{}:7450", here.address)),
    ];
    let net = Net::new(members.into(), "asked");
    let mut owners = [0, 1].map(|n| net.start(&there.namespace, n, 4 * DRAM));
    let mut reader = net.start(&here.namespace, 2, DRAM);
    for (n, owner) in owners.iter_mut().enumerate() {
        let client = owner.connect("puts").expect("a client");
        put_all(&client, &blocks::pool(&client, SMALL), n as u64 * BLOCKS..(n as u64 + 1) * BLOCKS);
    }
    let client = reader.connect("reads").expect("a client");
    let (pool, socket) = (blocks::pool(&client, SMALL), reader.socket());
    let (heard, stop): ([Heard; 2], _) = (Default::default(), AtomicBool::new(false));
    let device = there.namespace.replace('h', "v");
    let netem = |how: &str, words: &[&str]| {
        run("ip", &[&["netns", "exec", &there.namespace, "tc", "qdisc", how, "dev", &device, "root"], words].concat());
    };
    let link = |state: &str| run("ip", &["-n", &there.namespace, "link", "set", &device, state]);
    thread::scope(|scope| {
        let readers = [0, 1].map(|n: u64| {
            let (client, pool, heard, stop) = (&client, &pool, &heard[n as usize], &stop);
            scope.spawn(move || read(client, pool, n * BLOCKS..(n + 1) * BLOCKS, heard, stop))
        });
        let _stops = Stops(&stop);
        let misses = |n: usize| more("misses", || heard[n].misses.load(Ordering::Relaxed));
        let come = || more("blocks by RDMA", || by_rdma(&socket));
        come();
        let cut = |what: &str, begin: &dyn Fn(), end: &dyn Fn()| {
            begin();
            [0, 1].into_iter().for_each(&misses);
            end();
            come();
            println!("{what}: over, blocks come by RDMA");
        };
        cut("link down", &|| link("down"), &|| link("up"));
        cut("black hole", &|| netem("add", &["netem", "loss", "100%"]), &|| netem("del", &[]));
        netem("add", &["netem", "loss", "2%"]);
        come();
        netem("del", &[]);
        println!("2 % loss: blocks come by RDMA");
        owners[0].kill_daemon().expect("killed");
        misses(0);
        come();
        println!("an owner killed: the other one's blocks come by RDMA");
        owners[0].start_daemon().expect("started");
        status_when(&socket, "the owner to be back", |now| now.pointer("/peers/hosts/0/is_up") == Some(&true.into()));
        more("blocks by RDMA of the owner that is back", || {
            let (hits, before) = (heard[0].hits.load(Ordering::Relaxed), by_rdma(&socket));
            hits.min(before)
        });
        stop.store(true, Ordering::Relaxed);
        let longest = readers.map(|reader| reader.join().expect("no wrong byte, no panic"));
        println!("longest calls, of a deadline of {DEADLINE:?}: {longest:?}");
        assert!(longest.into_iter().all(|longest| longest < DEADLINE + LATE), "{longest:?}");
    });
    let now = eventually("a status", || status(&socket));
    println!(
        "{} bytes came, {} of them by RDMA; {} blocks did not come, {} did not fit their sum",
        at(&now, "/peers/bytes_read"),
        at(&now, "/peers/bytes_read_rdma"),
        at(&now, "/peers/blocks_failed"),
        at(&now, "/peers/blocks_corrupt"),
    );
}

/// Whoever reads on another thread stops, also when a test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
