//! What the clients in processes of their own do. Each takes the words that its comment names.

use std::{
    collections::VecDeque,
    env,
    io::{BufRead, Write},
    ops::Range,
    path::PathBuf,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use lapis_client::{Client, ClientError, ConnectOptions, GetOptions, HitPolicy, Key, Pool, PutOptions, Reservation};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::{Value, json};

use super::{
    PATIENCE,
    blocks::{self, SMALL, bytes_of, get, keys, wrong_bytes},
    device_roles, gpu_roles, quiet,
    worker::{ARGUMENTS, MARK, ROLE},
};

/// Batches of views, and reservations, that a client of chaos holds at once.
const HELD_MAX: usize = 6;
/// Turns after which it holds something.
const BUSY_AFTER: u64 = 8;

pub fn run_if_asked() {
    let Ok(role) = env::var(ROLE) else { return };
    // A test that is killed leaves no client behind.
    set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal that exists");
    let words = env::var(ARGUMENTS).expect("a role has arguments");
    let words = Words(serde_json::from_str(&words).expect("a list of words"));
    let tally = Arc::new(Tally::default());
    match role.as_str() {
        "reader" => reader(&words, &tally),
        "writer" => writer(&words, &tally),
        "flooder" => flooder(&words, &tally),
        "chaos" => chaos(&words),
        "forker" => forker(&words),
        "hits" => hits(&words, &tally),
        "stranger" => stranger(&words),
        other => match (other.strip_prefix("gpu "), other.strip_prefix("device ")) {
            (Some(role), _) => gpu_roles::run(role, &words.0[0]),
            (None, Some(role)) => device_roles::run(role, &words.0),
            (None, None) => panic!("no role {other:?}"),
        },
    }
    tally.say();
}

/// What the test told.
struct Words(Vec<String>);

impl Words {
    fn socket(&self) -> PathBuf {
        PathBuf::from(&self.0[0])
    }

    fn number(&self, at: usize) -> u64 {
        self.0[at].parse().expect("a number")
    }

    /// The second and third word.
    fn ids(&self) -> Range<u64> {
        self.number(1)..self.number(2)
    }

    fn connect(&self, name: &str) -> (Client, Pool) {
        let options = ConnectOptions { name: name.into(), ..ConnectOptions::default() };
        let client = Client::connect(self.socket(), options).expect("a daemon");
        let pool = blocks::pool(&client, SMALL);
        (client, pool)
    }
}

/// How far a role is.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    calls: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    wrong: AtomicU64,
    stored: AtomicU64,
    refused: AtomicU64,
}

impl Tally {
    /// From now on every line of the input is answered; its end stops the role.
    fn listen(self: &Arc<Self>) {
        let tally = self.clone();
        thread::spawn(move || {
            std::io::stdin().lock().lines().map_while(Result::ok).for_each(|_| tally.say());
            tally.stop.store(true, Ordering::Relaxed);
        });
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn say(&self) {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        say(&json!({
            "calls": now(&self.calls), "hits": now(&self.hits), "misses": now(&self.misses),
            "wrong": now(&self.wrong), "stored": now(&self.stored), "refused": now(&self.refused),
        }));
    }

    fn get(&self, client: &Client, pool: &Pool, keys: &[Key]) {
        let (got, wrong) = get(client, pool, keys, &GetOptions::default());
        add(&self.hits, got.hits);
        add(&self.misses, keys.len() - got.hits);
        add(&self.wrong, wrong as usize);
        add(&self.calls, 1);
    }

    fn put(&self, client: &Client, pool: &Pool, keys: &[Key]) {
        let put = blocks::put(client, pool, keys);
        add(&self.stored, put.stored());
        add(&self.refused, put.refused());
        add(&self.calls, 1);
    }
}

fn add(count: &AtomicU64, more: usize) {
    count.fetch_add(more as u64, Ordering::Relaxed);
}

pub fn say(value: &Value) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{MARK}{value}").and_then(|()| output.flush()).expect("somebody listens");
}

/// Reads the same blocks over and over: SOCKET FIRST END.
fn reader(words: &Words, tally: &Arc<Tally>) {
    let (client, pool) = words.connect("reader");
    tally.listen();
    while tally.goes_on() {
        blocks::batches(words.ids()).for_each(|batch| tally.get(&client, &pool, &keys(batch)));
    }
}

/// Puts, reads and removes blocks of its own, in any order: SOCKET FIRST END SEED.
fn writer(words: &Words, tally: &Arc<Tally>) {
    let (client, pool) = words.connect("writer");
    let mut random = fastrand::Rng::with_seed(words.number(3));
    tally.listen();
    while tally.goes_on() {
        let first = random.u64(words.ids());
        let batch = keys(first..(first + random.u64(1..=16)).min(words.ids().end));
        match random.u8(..4) {
            0 | 1 => tally.put(&client, &pool, &batch),
            2 => tally.get(&client, &pool, &batch),
            _ => match client.remove(&pool, &batch, None) {
                Ok(_) | Err(ClientError::Gone | ClientError::Late { .. }) => add(&tally.calls, 1),
                Err(error) => panic!("{error}"),
            },
        }
    }
}

/// Puts block after block, more than there is room for, and reads any before it: SOCKET FIRST END SEED.
fn flooder(words: &Words, tally: &Arc<Tally>) {
    let (client, pool) = words.connect("flooder");
    let mut random = fastrand::Rng::with_seed(words.number(3));
    tally.listen();
    while tally.goes_on() {
        for batch in blocks::batches(words.ids()).take_while(|_| tally.goes_on()) {
            let before = random.u64(words.ids().start..=batch.start);
            tally.put(&client, &pool, &keys(batch));
            tally.get(&client, &pool, &keys(before..before + 8));
        }
    }
}

/// Puts, reserves, commits, drops, views and holds, until it is killed: SOCKET FIRST END SEED.
fn chaos(words: &Words) {
    let (client, pool) = words.connect("chaos");
    let mut random = fastrand::Rng::with_seed(words.number(3));
    let options = PutOptions::default();
    let (mut reserved, mut viewed) = (VecDeque::new(), VecDeque::new());
    for turn in 0u64.. {
        let first = random.u64(words.ids());
        let batch = keys(first..first + random.u64(1..=16));
        match random.u8(..4) {
            0 => drop(blocks::put(&client, &pool, &batch)),
            1 => {
                let reservation = client.reserve(&pool, &batch, None, &options).expect("a sound call");
                reserved.push_back((batch, reservation));
            }
            2 => {
                if let Some((batch, mut reservation)) = reserved.pop_front() {
                    fill(&mut reservation, &batch);
                    client.commit(reservation, None, &options).expect("a sound call");
                }
            }
            _ => viewed.push_back(client.view(&pool, &batch).expect("few views")),
        }
        reserved.truncate(HELD_MAX);
        if viewed.len() > HELD_MAX {
            viewed.pop_front();
        }
        if turn == BUSY_AFTER {
            say(&json!("busy"));
        }
    }
}

fn fill(reservation: &mut Reservation, keys: &[Key]) {
    for (i, key) in keys.iter().enumerate() {
        let block = bytes_of(std::slice::from_ref(key), SMALL);
        reservation.write_at(i, 0, &block).expect("within the block");
    }
}

/// Holds slots, and forks a child that keeps everything open until its input ends: SOCKET FIRST END.
fn forker(words: &Words) {
    let (client, pool) = words.connect("forker");
    let reservation = client.reserve(&pool, &keys(words.ids()), None, &PutOptions::default()).expect("a sound call");
    // SAFETY: the child makes system calls alone, which need neither locks nor memory of the parent's threads.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut byte = 0u8;
        // SAFETY: reads to a byte of our own; then ends the child without running anything of the parent's.
        unsafe {
            while libc::read(0, ptr::from_mut(&mut byte).cast(), 1) == 1 {}
            libc::_exit(0)
        }
    }
    say(&json!({ "reserved": reservation.results().len() }));
    loop {
        thread::park();
    }
}

/// Hits in memory between two marks, to be watched from outside: SOCKET FIRST END ROUNDS.
fn hits(words: &Words, tally: &Arc<Tally>) {
    let (client, pool) = words.connect("hits");
    let keys = keys(words.ids());
    let mut buffer = vec![0; keys.len() * SMALL];
    let asks = [(pool.clone(), HitPolicy::Prefix)];
    let mut round = || {
        let got = client.get_into(&pool, &keys, &mut buffer, &GetOptions::default()).expect("a sound call");
        let there = client.exists(&pool, &keys).expect("a sound call").count();
        let matched = client.match_prefix(&asks, &keys).expect("a sound call");
        let views = client.view(&pool, &keys).expect("few views");
        add(&tally.hits, usize::from([got.hits, there, matched, views.hits()] == [keys.len(); 4]));
        got
    };
    // What is made once, and what the allocator asks the kernel for.
    (0..quiet::WARM_UP).for_each(|_| drop(round()));
    let null = std::fs::File::options().write(true).open("/dev/null").expect("it is everywhere");
    let mark = |bytes: usize| (&null).write_all(&vec![0; bytes]).expect("it takes everything");
    mark(quiet::FIRST_MARK);
    (0..words.number(3)).for_each(|_| drop(round()));
    mark(quiet::LAST_MARK);
    let last = round();
    add(&tally.wrong, wrong_bytes(&pool, &keys, &last, &buffer) as usize);
}

/// Connects as somebody else, and says what it is told: SOCKET UID.
fn stranger(words: &Words) {
    let uid = words.number(1) as libc::uid_t;
    // SAFETY: system calls with numbers alone.
    let changed = unsafe { libc::setgroups(0, ptr::null()) | libc::setgid(uid) | libc::setuid(uid) };
    assert_eq!(changed, 0, "only root may become {uid}");
    let said = |answer: Result<(), ClientError>| answer.map_or_else(|error| error.to_string(), |()| "welcome".into());
    say(&json!({
        "hello": said(Client::connect(words.socket(), ConnectOptions::default()).map(drop)),
        "status": said(lapis_client::status(words.socket(), PATIENCE).map(drop)),
    }));
}
