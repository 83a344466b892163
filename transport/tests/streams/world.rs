//! Hosts in one process: shared memory, blocks with their sums, paths that can be waited for.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use fastrand::Rng;
use lapis_arena::{Access, Mapping, StoredBlock, Sum, memfd, sum};
use lapis_config::Key;
use lapis_transport::peers::{
    directory::PeerId,
    links::LinkId,
    message::Located,
    paths::{Came, Fetch, FromPaths, Lent, PathKind, Paths, ToPaths, Wanted},
    streams::{StreamOptions, TcpPaths},
};

/// Longer than anything takes that works, however busy the machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// A deadline that nothing in a test reaches.
pub const FAR: Duration = Duration::from_secs(600);
pub const LINK: LinkId = LinkId(7);
pub const WORD: u64 = 0xfeed_beef_0042_1701;
pub const TOKEN: u64 = 99;
const SEED: u64 = 11;
/// What lies in slots before anything came.
pub const BLANK: u8 = 0xee;

/// Calls `ready` until it is true.
pub fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ready() {
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::yield_now();
    }
}

/// For what ends by a deadline, and only on a busy machine before all of it has happened: longer ones, until it has.
pub fn with_time_enough(mut happened: impl FnMut(Duration) -> bool) {
    let mut within = Duration::from_millis(50);
    while !happened(within) {
        within *= 4;
        assert!(within < PATIENCE, "it does not happen, however long it may take");
    }
}

pub fn memory(bytes: usize) -> Mapping {
    let (fd, _) = memfd::create("streams", bytes as u64, memfd::Huge::Never).expect("memory");
    let mapping = Mapping::shared(fd.as_fd(), bytes as u64, Access::ReadWrite).expect("address space");
    mapping.copy_in(0, &vec![BLANK; bytes]);
    mapping
}

/// Bytes of a block and its pieces.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub bytes: u32,
    /// Bytes that go with them, of which the sum says nothing.
    pub tail: u32,
    pub pieces: u16,
    pub block_bytes: u64,
}

impl Shape {
    pub fn plain(bytes: u32) -> Self {
        Self { bytes, tail: 0, pieces: 1, block_bytes: u64::from(bytes) }
    }

    fn sum(&self, key: &Key, payload: &[u8]) -> u64 {
        if self.pieces == 1 {
            return sum::of_bytes(SEED, key, payload);
        }
        let piece_bytes = (self.block_bytes / u64::from(self.pieces)) as usize;
        let pieces = payload.chunks(piece_bytes).enumerate().map(|(index, piece)| {
            let mut sum = Sum::piece(SEED, key, u64::from(self.bytes), index as u16, piece.len() as u64);
            sum.update(piece);
            sum.finish()
        });
        sum::combine(SEED, key, u64::from(self.bytes), &pieces.collect::<Vec<_>>())
    }
}

/// Blocks at their owner and the slots that they go to, a gap after each.
pub struct Blocks {
    pub owned: Mapping,
    pub slots: Mapping,
    pub payloads: Vec<Vec<u8>>,
    pub lent: Vec<Lent>,
    pub wanted: Vec<Wanted>,
}

const GAP: usize = 4096;

impl Blocks {
    pub fn new(shapes: &[Shape]) -> Self {
        let stride = |shape: &Shape| ((shape.bytes + shape.tail) as usize).next_multiple_of(4096) + GAP;
        let bytes = shapes.iter().map(stride).sum::<usize>() + GAP;
        let (owned, slots) = (memory(bytes), memory(bytes));
        let mut rng = Rng::with_seed(3);
        let (mut payloads, mut lent, mut wanted, mut offset) = (vec![], vec![], vec![], 0);
        for (at, shape) in shapes.iter().enumerate() {
            let mut payload = vec![0; (shape.bytes + shape.tail) as usize];
            rng.fill(&mut payload);
            owned.copy_in(offset, &payload);
            let key = Key([at as u64, 1, 2, 3]);
            let Shape { bytes, tail, pieces, block_bytes } = *shape;
            let sum = shape.sum(&key, &payload[..bytes as usize]);
            lent.push(Lent { mapping: owned.clone(), offset, bytes: bytes + tail });
            let mapping = slots.clone();
            let into = StoredBlock { mapping, offset, key, bytes, pieces, block_bytes, pool_seed: SEED, sum };
            let (index, span) = (at as u16, bytes + shape.tail);
            let from = Located { index, follows: true, line: 0, generation: 1, slot: 0, bytes, sum };
            wanted.push(Wanted { from, span, into });
            payloads.push(payload);
            offset += stride(shape);
        }
        Self { owned, slots, payloads, lent, wanted }
    }

    pub fn plain(count: usize, bytes: u32) -> Self {
        Self::new(&vec![Shape::plain(bytes); count])
    }

    /// What lies in the slot of a block.
    pub fn slot(&self, at: usize) -> Vec<u8> {
        self.slots.to_vec(self.wanted[at].into.offset, self.wanted[at].span as usize)
    }

    /// All of the slots' memory is this byte from now on.
    pub fn paint(&self, byte: u8) {
        self.slots.copy_in(0, &vec![byte; self.slots.len()]);
    }

    pub fn is_painted(&self, byte: u8) -> bool {
        self.slots.to_vec(0, self.slots.len()).iter().all(|found| *found == byte)
    }

    /// What is said to have come is there, and nothing lies beside the slots.
    pub fn check(&self, came: &[Came]) {
        assert_eq!(came.len(), self.wanted.len());
        for (at, came) in came.iter().enumerate() {
            match came {
                Came::Whole => assert!(self.slot(at) == self.payloads[at], "block {at} is whole"),
                Came::Corrupt => assert!(self.slot(at) != self.payloads[at], "block {at} is corrupt"),
                Came::Not => {}
            }
            let end = self.wanted[at].into.offset + self.wanted[at].span as usize;
            assert!(self.slots.to_vec(end, GAP).iter().all(|byte| *byte == BLANK), "behind block {at}");
        }
    }
}

/// Paths over TCP, and a bell.
pub struct Host {
    pub paths: Option<TcpPaths>,
    bell: Arc<(Mutex<u64>, Condvar)>,
    ops: u64,
}

impl Host {
    pub fn new(options: StreamOptions) -> Self {
        let bell = Arc::new((Mutex::new(0), Condvar::new()));
        let ring = Arc::clone(&bell);
        let wake = move || {
            *ring.0.lock().expect("no panic") += 1;
            ring.1.notify_all();
        };
        Self { paths: Some(TcpPaths::new(options, Arc::new(wake)).expect("a port")), bell, ops: 0 }
    }

    /// A host that is read from, with a guest.
    pub fn owner() -> Self {
        let mut host = Self::new(StreamOptions { listen: Some(loopback(0)), ..StreamOptions::default() });
        host.submit(ToPaths::Guest { group: 0, link: LINK, word: WORD });
        host
    }

    /// A host that reads.
    pub fn reader(address: SocketAddr, word: u64, options: StreamOptions) -> Self {
        let mut host = Self::new(options);
        host.peer(address, word);
        host
    }

    pub fn peer(&mut self, address: SocketAddr, word: u64) {
        self.peer_called("host-b", address, word);
    }

    pub fn peer_called(&mut self, host: &str, address: SocketAddr, word: u64) {
        let (peer, host, local) = (PeerId(1), String::from(host), loopback(0));
        self.submit(ToPaths::Peer { group: 0, peer, host, link: LINK, local, address, word });
    }

    pub fn submit(&mut self, job: ToPaths) {
        self.paths.as_mut().expect("it lives").submit(job);
    }

    pub fn address(&self) -> SocketAddr {
        loopback(self.paths.as_ref().expect("it lives").data_port())
    }

    pub fn lend(&mut self, blocks: &Blocks) {
        self.submit(ToPaths::Lend { link: LINK, token: TOKEN, blocks: blocks.lent.clone() });
    }

    pub fn begin(&mut self, blocks: &[Wanted], first: u32, within: Duration) -> u64 {
        self.ops += 1;
        let (op, blocks) = (self.ops, blocks.to_vec());
        self.submit(ToPaths::Fetch(Fetch { op, link: LINK, token: TOKEN, first, blocks, within }));
        op
    }

    pub fn poll(&mut self) -> Option<(u64, Vec<Came>)> {
        self.paths.as_mut().expect("it lives").poll().map(|event| match event {
            FromPaths::Fetched { op, came, by } => {
                assert_eq!(by, PathKind::Tcp);
                (op, came)
            }
            other => panic!("paths over TCP say nothing: {other:?}"),
        })
    }

    /// The next fetch that ends. Waits for the bell, so that one which does not ring fails.
    pub fn ended(&mut self) -> (u64, Vec<Came>) {
        let started = Instant::now();
        loop {
            let rung = *self.bell.0.lock().expect("no panic");
            if let Some(ended) = self.poll() {
                return ended;
            }
            let left = PATIENCE.saturating_sub(started.elapsed());
            let guard = self.bell.0.lock().expect("no panic");
            let waited = self.bell.1.wait_timeout_while(guard, left, |now| *now == rung).expect("no panic");
            assert!(!waited.1.timed_out(), "no fetch ended within {PATIENCE:?}");
        }
    }

    pub fn fetch_within(&mut self, blocks: &Blocks, within: Duration) -> Vec<Came> {
        let op = self.begin(&blocks.wanted, 0, within);
        let (ended, came) = self.ended();
        assert_eq!(ended, op);
        blocks.check(&came);
        came
    }

    pub fn fetch(&mut self, blocks: &Blocks) -> Vec<Came> {
        self.fetch_within(blocks, Duration::MAX)
    }

    /// Fetches until all of it comes: a peer that failed is left alone for a while.
    pub fn fetch_again(&mut self, blocks: &Blocks) {
        until("a fetch that comes whole", || self.fetch(blocks).iter().all(|came| *came == Came::Whole));
    }
}

pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// One stream, and no pause that a test would have to wait for.
pub fn one_stream() -> StreamOptions {
    StreamOptions {
        streams: 1,
        pause_min: Duration::from_millis(1),
        pause_max: Duration::from_millis(1),
        ..StreamOptions::default()
    }
}

/// The same, but a peer that failed is not tried again.
pub fn one_try() -> StreamOptions {
    StreamOptions { pause_min: FAR, pause_max: FAR, ..one_stream() }
}
