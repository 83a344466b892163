//! Two programs for the RDMA suite of the test bed: one owns blocks, the other fetches them, over RDMA paths as a daemon uses
//! them and a control connection of their own.
//!
//!     rdma_pair own DEVICE ADDRESS BLOCK_BYTES BLOCKS
//!     rdma_pair fetch DEVICE BLOCK_BYTES BLOCKS WITHIN_MS SECONDS ADDRESS...
//!     rdma_pair rate DEVICE BLOCK_BYTES BLOCKS WITHIN_MS SECONDS ADDRESS...
//!
//! `fetch` fetches blocks of every owner for so many seconds from the first that came, and until each block of each owner could
//! have come once, whatever happens to links and owners; it compares each byte of those that came. `rate` leaves that to the
//! sums that the paths check. Either gives up when that takes a minute longer. Twice a second it prints a line for each owner: what has come so far, what has not, how late the latest
//! fetch ended; at its end the rate while blocks came. Its exit status is 1 if a byte was wrong.

mod frames;

use std::{
    collections::BTreeMap,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use lapis_arena::{Mapping, StoredBlock, sum};
use lapis_config::{Key, SlotId, UNIT_BYTES};
use lapis_transport::peers::{
    directory::PeerId,
    links::LinkId,
    message::{Located, PeerMessage},
    paths::{Came, Fetch, FromPaths, Paths, ToPaths, Wanted, both::Fast},
    rdma::{RdmaOptions, RdmaPaths},
};

use self::frames::{receive, send};

/// Blocks of one fetch, and fetches of one owner under way at once.
const BATCH: usize = 16;
const AT_ONCE: usize = 4;
const SEED: u64 = 9;
const STATUS_EVERY: Duration = Duration::from_millis(500);
/// An owner that says nothing for so long is taken for dead; longer than a fetch may take, so that a cut is met by the
/// deadlines of fetches first.
const SILENCE_MAX: Duration = Duration::from_secs(15);
const PING_EVERY: Duration = Duration::from_secs(1);
const DIAL_PAUSE: Duration = Duration::from_millis(300);
/// For lanes to come up where the processor is emulated and shared, and for blocks to come.
const PATIENCE: Duration = Duration::from_secs(60);
const GROUP: usize = 0;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["own", device, address, block_bytes, blocks] => {
            own(device, address, Blocks { block_bytes: block_bytes.parse()?, count: blocks.parse()? })
        }
        [how @ ("fetch" | "rate"), device, block_bytes, blocks, within_ms, seconds, ref owners @ ..]
            if !owners.is_empty() =>
        {
            let blocks = Blocks { block_bytes: block_bytes.parse()?, count: blocks.parse()? };
            let within = Duration::from_millis(within_ms.parse()?);
            let owners = owners.iter().map(|owner| owner.parse()).collect::<Result<_, _>>()?;
            fetch(device, blocks, within, Duration::from_secs(seconds.parse()?), owners, how == "fetch")
        }
        _ => bail!(
            "own DEVICE ADDRESS BLOCK_BYTES BLOCKS | fetch|rate DEVICE BLOCK_BYTES BLOCKS WITHIN_MS SECONDS ADDRESS..."
        ),
    }
}

/// What both sides know: every byte of every block follows from its number.
#[derive(Clone, Copy)]
struct Blocks {
    block_bytes: u32,
    count: u32,
}

impl Blocks {
    fn units(self) -> u32 {
        self.block_bytes.div_ceil(UNIT_BYTES as u32)
    }

    fn memory(self) -> anyhow::Result<Mapping> {
        Ok(Mapping::anonymous(u64::from(self.units()) * u64::from(self.count) * UNIT_BYTES)?)
    }

    fn offset(self, index: u32) -> usize {
        index as usize * self.units() as usize * UNIT_BYTES as usize
    }

    fn payload(self, index: u32) -> Vec<u8> {
        let word = |n: u64| ((u64::from(index) << 32) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        (0..u64::from(self.block_bytes).div_ceil(8)).flat_map(word).take(self.block_bytes as usize).collect()
    }

    fn key(index: u32) -> Key {
        Key([index.into(), 2, 3, 4])
    }

    fn sum(self, index: u32) -> u64 {
        sum::of_bytes(SEED, &Self::key(index), &self.payload(index))
    }
}

/// What wakes the one thread that does everything.
enum News {
    /// The paths have something.
    Paths,
    Connected(usize, TcpStream),
    Said(LinkId, PeerMessage),
    Lost(LinkId),
}

fn start(device: &str, news: Sender<News>) -> anyhow::Result<RdmaPaths> {
    let wake = Arc::new(move || news.send(News::Paths).unwrap_or_default());
    Ok(RdmaPaths::start(&RdmaOptions { devices: vec![device.to_owned()] }, wake)?)
}

fn memory(mapping: &Mapping) -> ToPaths {
    ToPaths::Memory { group: GROUP, first: SlotId(0), mapping: mapping.clone(), node: None }
}

/// Tells of what comes on a connection until it ends.
fn listen(mut stream: TcpStream, link: LinkId, news: Sender<News>) {
    thread::spawn(move || {
        while let Ok(message) = receive(&mut stream) {
            if news.send(News::Said(link, message)).is_err() {
                return;
            }
        }
        news.send(News::Lost(link)).unwrap_or_default();
    });
}

// ---- Who owns ----

fn own(device: &str, address: &str, blocks: Blocks) -> anyhow::Result<()> {
    let (news, inbox) = channel();
    let mut paths = start(device, news.clone())?;
    let mapping = blocks.memory()?;
    (0..blocks.count).for_each(|index| mapping.copy_in(blocks.offset(index), &blocks.payload(index)));
    paths.submit(memory(&mapping));
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
    let connected = news.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            connected.send(News::Connected(0, stream)).unwrap_or_default();
        }
    });
    println!("owns {} blocks of {} bytes", blocks.count, blocks.block_bytes);
    let (mut guests, mut number): (BTreeMap<LinkId, TcpStream>, u64) = (BTreeMap::new(), 0);
    loop {
        match inbox.recv()? {
            News::Connected(_, stream) => {
                number += 1;
                let link = LinkId(number);
                stream.set_nodelay(true)?;
                listen(stream.try_clone()?, link, news.clone());
                guests.insert(link, stream);
                paths.submit(ToPaths::Guest { group: GROUP, link, word: 0 });
            }
            News::Said(link, PeerMessage::Path { said }) => paths.submit(ToPaths::Heard { link, said }),
            News::Said(link, PeerMessage::Ping { number }) => say(&mut guests, link, &PeerMessage::Pong { number }),
            News::Lost(link) => {
                guests.remove(&link);
                paths.submit(ToPaths::GuestGone { link });
            }
            News::Said(..) | News::Paths => {}
        }
        while let Some(from) = paths.poll() {
            if let FromPaths::Say { link, said } = from {
                say(&mut guests, link, &PeerMessage::Path { said });
            }
        }
    }
}

/// A link that cannot be written to is lost: its reader says so.
fn say(links: &mut BTreeMap<LinkId, TcpStream>, link: LinkId, message: &PeerMessage) {
    if let Some(stream) = links.get_mut(&link)
        && send(stream, message).is_err()
    {
        stream.shutdown(Shutdown::Both).unwrap_or_default();
    }
}

// ---- Who fetches ----

/// One owner and what came of it.
struct Owner {
    address: SocketAddr,
    link: Option<LinkId>,
    heard: Instant,
    under_way: usize,
    whole: u64,
    not: u64,
    corrupt: u64,
    /// Of a fetch after its deadline.
    late: Duration,
    /// Time during which blocks came: from one fetch that was whole to the next.
    whole_at: Option<Instant>,
    busy: Duration,
}

struct Fetcher {
    blocks: Blocks,
    compares: bool,
    within: Duration,
    mapping: Mapping,
    sums: Vec<u64>,
    payloads: Vec<Vec<u8>>,
    paths: RdmaPaths,
    owners: Vec<Owner>,
    links: BTreeMap<LinkId, TcpStream>,
    /// By op: the owner, the place of its slots, its blocks, when it began.
    fetches: BTreeMap<u64, (usize, u32, Vec<u32>, Instant)>,
    next: u64,
}

fn fetch(
    device: &str,
    blocks: Blocks,
    within: Duration,
    lasts: Duration,
    addresses: Vec<SocketAddr>,
    compares: bool,
) -> anyhow::Result<()> {
    let (news, inbox) = channel();
    let places = (addresses.len() * AT_ONCE * BATCH) as u32;
    let mapping = Blocks { count: places, ..blocks }.memory()?;
    let mut paths = start(device, news.clone())?;
    paths.submit(memory(&mapping));
    addresses.iter().copied().enumerate().for_each(|(index, address)| dial(index, address, news.clone()));
    let owner = |address| Owner {
        address,
        link: None,
        heard: Instant::now(),
        under_way: 0,
        whole: 0,
        not: 0,
        corrupt: 0,
        late: Duration::ZERO,
        whole_at: None,
        busy: Duration::ZERO,
    };
    let owners = addresses.into_iter().map(owner).collect();
    let payloads = (0..blocks.count).map(|index| blocks.payload(index)).collect();
    let sums = (0..blocks.count).map(|index| blocks.sum(index)).collect();
    let (links, fetches) = (BTreeMap::new(), BTreeMap::new());
    Fetcher { blocks, compares, within, mapping, sums, payloads, paths, owners, links, fetches, next: 1 }
        .run(lasts, &news, &inbox)
}

/// Connects, however long it takes.
fn dial(index: usize, address: SocketAddr, news: Sender<News>) {
    thread::spawn(move || {
        loop {
            if let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
                return news.send(News::Connected(index, stream)).unwrap_or_default();
            }
            thread::sleep(DIAL_PAUSE);
        }
    });
}

impl Fetcher {
    fn run(mut self, lasts: Duration, news: &Sender<News>, inbox: &Receiver<News>) -> anyhow::Result<()> {
        let began = Instant::now();
        let (mut status_at, mut ping_at, mut first) = (began, began, None);
        loop {
            let came = |owner: &Owner| owner.whole >= self.blocks.count.into();
            if first.is_none() && self.owners.iter().any(|owner| owner.whole > 0) {
                first = Some(Instant::now());
            }
            let is_over = first.is_some_and(|first: Instant| first.elapsed() >= lasts) && self.owners.iter().all(came);
            let is_over = is_over || began.elapsed() > lasts.saturating_add(PATIENCE);
            if is_over && self.fetches.is_empty() {
                break;
            }
            match inbox.recv_timeout(Duration::from_millis(50)) {
                Ok(event) => self.event(event, news)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("every thread is gone"),
            }
            while let Some(from) = self.paths.poll() {
                match from {
                    FromPaths::Say { link, said } => say(&mut self.links, link, &PeerMessage::Path { said }),
                    FromPaths::Fetched { op, came, .. } => self.fetched(op, &came),
                    FromPaths::Looked { .. } => {}
                }
            }
            if !is_over {
                (0..self.owners.len()).for_each(|index| self.fill(index));
            }
            if ping_at.elapsed() >= PING_EVERY {
                ping_at = Instant::now();
                self.look_after(news);
            }
            if status_at.elapsed() >= STATUS_EVERY {
                status_at = Instant::now();
                self.print(began);
            }
        }
        self.print(began);
        for (index, owner) in self.owners.iter().enumerate() {
            let bytes = owner.whole * u64::from(self.blocks.block_bytes);
            println!("rate {index} {:.3} MB/s", bytes as f64 / owner.busy.as_secs_f64().max(1e-6) / 1e6);
        }
        let corrupt: u64 = self.owners.iter().map(|owner| owner.corrupt).sum();
        if corrupt > 0 {
            bail!("{corrupt} blocks with wrong bytes");
        }
        Ok(())
    }

    fn event(&mut self, event: News, news: &Sender<News>) -> anyhow::Result<()> {
        match event {
            News::Connected(index, stream) => {
                let link = LinkId(self.next);
                self.next += 1;
                stream.set_nodelay(true)?;
                let (local, address) = (stream.local_addr()?, self.owners[index].address);
                listen(stream.try_clone()?, link, news.clone());
                self.links.insert(link, stream);
                let owner = &mut self.owners[index];
                (owner.link, owner.heard) = (Some(link), Instant::now());
                let peer = PeerId(index as u32);
                let host = format!("owner {index}");
                self.paths.submit(ToPaths::Peer { group: GROUP, peer, host, link, local, address, word: 0 });
            }
            News::Said(link, message) => {
                if let Some(owner) = self.owners.iter_mut().find(|owner| owner.link == Some(link)) {
                    owner.heard = Instant::now();
                }
                if let PeerMessage::Path { said } = message {
                    self.paths.submit(ToPaths::Heard { link, said });
                }
            }
            News::Lost(link) => self.lose(link, news),
            News::Paths => {}
        }
        Ok(())
    }

    fn lose(&mut self, link: LinkId, news: &Sender<News>) {
        self.links.remove(&link);
        if let Some(index) = self.owners.iter().position(|owner| owner.link == Some(link)) {
            self.owners[index].link = None;
            self.paths.submit(ToPaths::PeerGone { link });
            dial(index, self.owners[index].address, news.clone());
        }
    }

    fn look_after(&mut self, news: &Sender<News>) {
        for index in 0..self.owners.len() {
            let Some(link) = self.owners[index].link else { continue };
            if self.owners[index].heard.elapsed() < SILENCE_MAX {
                say(&mut self.links, link, &PeerMessage::Ping { number: 1 });
            } else {
                // Its reader ends with it.
                if let Some(stream) = self.links.get(&link) {
                    stream.shutdown(Shutdown::Both).unwrap_or_default();
                }
                self.lose(link, news);
            }
        }
    }

    /// As many fetches as may be under way, where RDMA stands.
    fn fill(&mut self, index: usize) {
        while let Some(link) = self.owners[index].link
            && self.owners[index].under_way < AT_ONCE
        {
            let used: Vec<u32> = self.fetches.values().map(|(_, place, ..)| *place).collect();
            let mut places = (index * AT_ONCE) as u32..((index + 1) * AT_ONCE) as u32;
            let place = places.find(|place| !used.contains(place)).expect("a place for each fetch");
            let first = self.next as u32 * BATCH as u32;
            let indices: Vec<u32> = (0..BATCH as u32).map(|n| (first + n) % self.blocks.count).collect();
            let fetch = self.fetch(link, place, &indices);
            if !self.paths.takes(&fetch) {
                return;
            }
            self.next += 1;
            self.owners[index].under_way += 1;
            self.fetches.insert(fetch.op, (index, place, indices, Instant::now()));
            self.paths.submit(ToPaths::Fetch(fetch));
        }
    }

    fn fetch(&self, link: LinkId, place: u32, indices: &[u32]) -> Fetch {
        let one = |(nth, index): (usize, &u32)| {
            let (bytes, sum) = (self.blocks.block_bytes, self.sums[*index as usize]);
            let slot = index * self.blocks.units();
            let from = Located { index: nth as u16, follows: false, line: 0, generation: 0, slot, bytes, sum };
            let into = StoredBlock {
                mapping: self.mapping.clone(),
                offset: self.blocks.offset(place * BATCH as u32 + nth as u32),
                key: Blocks::key(*index),
                bytes,
                pieces: 1,
                block_bytes: bytes.into(),
                pool_seed: SEED,
                sum,
            };
            Wanted { from, span: bytes, into }
        };
        let blocks = indices.iter().enumerate().map(one).collect();
        Fetch { op: self.next, link, token: 0, first: 0, blocks, within: self.within }
    }

    fn fetched(&mut self, op: u64, came: &[Came]) {
        let (index, place, indices, began) = self.fetches.remove(&op).expect("one that was begun");
        let now = Instant::now();
        let late = began.elapsed().saturating_sub(self.within);
        let owner = &mut self.owners[index];
        owner.under_way -= 1;
        owner.late = owner.late.max(late);
        for (nth, (came, block)) in came.iter().zip(&indices).enumerate() {
            let offset = self.blocks.offset(place * BATCH as u32 + nth as u32);
            let is_it =
                || self.mapping.to_vec(offset, self.blocks.block_bytes as usize) == self.payloads[*block as usize];
            match came {
                Came::Whole if !self.compares || is_it() => owner.whole += 1,
                Came::Whole | Came::Corrupt => owner.corrupt += 1,
                Came::Not => owner.not += 1,
            }
        }
        let is_whole = came.iter().all(|came| *came == Came::Whole);
        if let Some(before) = owner.whole_at.filter(|_| is_whole) {
            owner.busy += now - before;
        }
        owner.whole_at = is_whole.then_some(now);
    }

    fn print(&self, began: Instant) {
        for (index, owner) in self.owners.iter().enumerate() {
            println!(
                "at {:.1} owner {index} whole {} not {} corrupt {} late_ms {} under_way {}",
                began.elapsed().as_secs_f64(),
                owner.whole,
                owner.not,
                owner.corrupt,
                owner.late.as_millis(),
                owner.under_way
            );
        }
    }
}
