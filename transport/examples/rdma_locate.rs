//! Two programs for the RDMA suite of the test bed: how long it takes to find out where another host's blocks lie, by asking it
//! and by READs in its block table.
//!
//!     rdma_locate own DEVICE ADDRESS
//!     rdma_locate ask DEVICE ADDRESS ROUNDS
//!
//! `ask` does both in turn, for as many keys as `BATCHES` says, and prints the medians of the times and of their ratios in the
//! same rounds. The owner answers out of the same table: without the pins, the counting of use and the TLS of a daemon, so that
//! asking costs less here than in truth. Its exit status is 1 if the two do not find the same, or nothing.

mod frames;

use std::{
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use lapis_arena::{
    LineState, MappedWords, Mapping, TableWriter,
    table::{TableShape, bytes_for},
};
use lapis_config::{Key, PoolId, SlotId, UNIT_BYTES, Wait};
use lapis_transport::peers::{
    directory::PeerId,
    links::LinkId,
    message::{Located, PeerMessage},
    paths::{FromPaths, Look, Paths, ToPaths, both::Fast},
    rdma::{RdmaOptions, RdmaPaths},
};

use self::frames::{receive, send};

const BATCHES: [usize; 4] = [1, 8, 32, 128];
/// Blocks of the owner, and lines of its table.
const BLOCKS: u32 = 40_000;
const LINES: u32 = 65_536;
const POOL: PoolId = PoolId(1);
const GROUP: usize = 0;
const LINK: LinkId = LinkId(1);
/// For lanes to come up, and for an answer, where the processor is emulated.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["own", device, address] => own(device, address),
        ["ask", device, address, rounds] => ask(device, address, rounds.parse()?),
        _ => bail!("own DEVICE ADDRESS | ask DEVICE ADDRESS ROUNDS"),
    }
}

enum News {
    Paths,
    Said(PeerMessage),
    Lost,
}

fn key(number: u32) -> Key {
    Key([u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15), number.into(), 3, 4])
}

fn table() -> anyhow::Result<(TableWriter, Mapping)> {
    let mapping = Mapping::anonymous(bytes_for(LINES))?;
    let words = MappedWords::new(&mapping, 0, mapping.len() / 8);
    Ok((TableWriter::create(words, LINES, 7, [11, 22, 33])?, mapping))
}

fn start(device: &str, news: &Sender<News>, writer: &TableWriter, mapping: Mapping) -> anyhow::Result<RdmaPaths> {
    let news = news.clone();
    let wake = Arc::new(move || news.send(News::Paths).unwrap_or_default());
    let mut paths = RdmaPaths::start(&RdmaOptions { devices: vec![device.to_owned()] }, wake)?;
    let blocks = Mapping::anonymous(UNIT_BYTES)?;
    paths.submit(ToPaths::Memory { group: GROUP, first: SlotId(0), mapping: blocks, node: None });
    paths.submit(ToPaths::Table { group: GROUP, mapping, shape: TableShape::of(writer.table()) });
    Ok(paths)
}

/// Tells of what comes on a connection until it ends.
fn listen(mut stream: TcpStream, news: Sender<News>) {
    thread::spawn(move || {
        while let Ok(message) = receive(&mut stream) {
            news.send(News::Said(message)).unwrap_or_default();
        }
        news.send(News::Lost).unwrap_or_default();
    });
}

fn own(device: &str, address: &str) -> anyhow::Result<()> {
    let (news, inbox) = channel();
    let (mut writer, mapping) = table()?;
    for number in 0..BLOCKS {
        let published = writer.publish(POOL, &key(number), SlotId(number), 4096, number.into(), LineState::Dram);
        ensure!(published.is_ok(), "no room for block {number}");
    }
    let mut paths = start(device, &news, &writer, mapping)?;
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
    println!("owns {BLOCKS} blocks");
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    listen(stream.try_clone()?, news);
    paths.submit(ToPaths::Guest { group: GROUP, link: LINK, word: 0 });
    loop {
        match inbox.recv()? {
            News::Said(PeerMessage::Path { said }) => paths.submit(ToPaths::Heard { link: LINK, said }),
            News::Said(PeerMessage::Locate { token, pool, keys, .. }) => {
                let blocks = find(&writer, pool, &keys);
                send(&mut stream, &PeerMessage::Found { token, parent: Key::default(), blocks })?;
            }
            News::Lost => return Ok(()),
            News::Said(_) | News::Paths => {}
        }
        while let Some(from) = paths.poll() {
            if let FromPaths::Say { said, .. } = from {
                send(&mut stream, &PeerMessage::Path { said })?;
            }
        }
    }
}

fn find(writer: &TableWriter, pool: PoolId, keys: &[Key]) -> Vec<Located> {
    let found = |(index, key)| {
        let found = writer.find(pool, key)?;
        let (line, generation) = (found.line.0, found.generation());
        let (slot, bytes, sum) = (found.slot.0, found.bytes, found.sum);
        Some(Located { index, follows: false, line, generation, slot, bytes, sum })
    };
    (0..).zip(keys).map_while(found).collect()
}

struct Asker {
    stream: TcpStream,
    paths: RdmaPaths,
    inbox: Receiver<News>,
    op: u64,
}

fn ask(device: &str, address: &str, rounds: usize) -> anyhow::Result<()> {
    ensure!(rounds > 0, "no rounds");
    let (news, inbox) = channel();
    let (writer, mapping) = table()?;
    let mut paths = start(device, &news, &writer, mapping)?;
    let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    listen(stream.try_clone()?, news);
    let (local, remote) = (stream.local_addr()?, stream.peer_addr()?);
    let (peer, host) = (PeerId(0), "owner".to_owned());
    paths.submit(ToPaths::Peer { group: GROUP, peer, host, link: LINK, local, address: remote, word: 0 });
    let mut asker = Asker { stream, paths, inbox, op: 0 };
    asker.until_up()?;
    for count in BATCHES {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..rounds {
            let first = (round * 131) as u32 % (BLOCKS - count as u32);
            let keys: Vec<Key> = (first..first + count as u32).map(key).collect();
            let (asked, there) = asker.by_asking(&keys)?;
            let (looked, seen) = asker.by_looking(&keys)?;
            ensure!(there == seen && seen.len() == count, "{} asked for, {} seen of {count}", there.len(), seen.len());
            [asked, looked, looked / asked].into_iter().zip(&mut times).for_each(|(time, times)| times.push(time));
        }
        let [asked, looked, ratio] = times.map(median);
        println!("locate {count} keys: asked {asked:.0} us, one-sided {looked:.0} us, ratio {ratio:.2}");
    }
    Ok(())
}

impl Asker {
    fn until_up(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.paths.looks(LINK) {
            ensure!(began.elapsed() < PATIENCE, "no lane is up with a table");
            if let Ok(event) = self.inbox.recv_timeout(Duration::from_millis(20)) {
                self.take(event)?;
            }
        }
        Ok(())
    }

    /// Microseconds, and what was found.
    fn by_asking(&mut self, keys: &[Key]) -> anyhow::Result<(f64, Vec<Located>)> {
        self.op += 1;
        let (token, began) = (self.op, Instant::now());
        let (pool, wait, deadline_us) = (POOL, Wait::Present, 1_000_000);
        let keys = keys.to_vec();
        send(&mut self.stream, &PeerMessage::Locate { token, pool, each: false, wait, deadline_us, keys })?;
        loop {
            let event = self.inbox.recv_timeout(PATIENCE)?;
            if let News::Said(PeerMessage::Found { token: of, blocks, .. }) = event {
                ensure!(of == token, "an answer to another question");
                return Ok((micros(began), blocks));
            }
            self.take(event)?;
        }
    }

    fn by_looking(&mut self, keys: &[Key]) -> anyhow::Result<(f64, Vec<Located>)> {
        self.op += 1;
        let began = Instant::now();
        let (op, keys) = (self.op, keys.to_vec());
        self.paths.submit(ToPaths::Look(Look { op, link: LINK, pool: POOL, keys, within: PATIENCE }));
        loop {
            let event = self.inbox.recv_timeout(PATIENCE)?;
            if let Some(found) = self.take(event)? {
                return Ok((micros(began), found));
            }
        }
    }

    /// What a look has found, if one has ended.
    fn take(&mut self, event: News) -> anyhow::Result<Option<Vec<Located>>> {
        match event {
            News::Said(PeerMessage::Path { said }) => self.paths.submit(ToPaths::Heard { link: LINK, said }),
            News::Lost => bail!("the owner is gone"),
            News::Said(_) | News::Paths => {}
        }
        let mut looked = None;
        while let Some(from) = self.paths.poll() {
            match from {
                FromPaths::Say { said, .. } => send(&mut self.stream, &PeerMessage::Path { said })?,
                FromPaths::Looked { found, .. } => looked = Some(found.context("no table")?),
                FromPaths::Fetched { .. } => {}
            }
        }
        Ok(looked)
    }
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
