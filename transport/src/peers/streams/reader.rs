//! The reader's end: a peer, with the streams to it and a thread for each.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::{
    Events, Fetching, Part, Run, SpreadOptions, StreamOptions,
    crew::Crew,
    head::{ANSWER_BYTES, Answer, Ask, Greeting, HeadError, Said, WELCOME_BYTES, Welcome},
    lock,
    socket::{Head, Place, Socket},
    spread::{Spread, Todo},
    wire::{SealError, Wire},
};
use crate::peers::{
    links::LinkId,
    paths::{Came, Fetch, Wanted},
    tls::Credentials,
};

/// Bytes of small blocks that are received at once, before their sums are computed: what stays in a second-level cache.
const GULP_BYTES: usize = 256 << 10;

pub(super) struct Peer {
    link: LinkId,
    /// Its name, also in its certificate.
    host: String,
    address: SocketAddr,
    word: u64,
    credentials: Option<Credentials>,
    idle: Duration,
    greeting: Duration,
    events: Arc<Events>,
    crew: Crew,
    state: Mutex<State>,
}

struct State {
    spread: Spread<Run>,
    streams: Vec<Stream>,
}

#[derive(Default)]
struct Stream {
    /// While its thread runs.
    wire: Option<Arc<Wire>>,
    /// Asks that were sent on it.
    asks: u32,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it is not needed any more")]
    Idle,
    #[error("nothing was to come")]
    HungUp,
    #[error("this host ended it")]
    Unwanted,
    #[error("the peer does not know the word of this connection")]
    Unknown,
    #[error("it spoke out of turn")]
    OutOfTurn,
    #[error("{bytes} bytes came where {wanted} were located")]
    Bytes { bytes: u64, wanted: u64 },
    #[error("it was late")]
    Late,
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("{op}")]
    Io { op: &'static str, source: io::Error },
}

impl Peer {
    pub fn new(
        link: LinkId,
        host: String,
        address: SocketAddr,
        word: u64,
        options: &StreamOptions,
        events: Arc<Events>,
        crew: Crew,
    ) -> Arc<Self> {
        let spread = Spread::new(SpreadOptions {
            streams: options.streams,
            part_bytes_min: options.part_bytes_min,
            part_bytes_max: options.part_bytes_max,
            pause_min: options.pause_min,
            pause_max: options.pause_max,
        });
        let streams = (0..options.streams).map(|_| Stream::default()).collect();
        let state = Mutex::new(State { spread, streams });
        let (idle, greeting) = (options.idle, options.greeting);
        let credentials = options.credentials.clone();
        Arc::new(Self { link, host, address, word, credentials, idle, greeting, events, crew, state })
    }

    pub fn fetch(self: &Arc<Self>, fetch: Fetch, deadline: Instant) {
        let bytes: Vec<u64> = fetch.blocks.iter().map(|block| u64::from(block.span)).collect();
        let fetching = Fetching::new(fetch, deadline, Arc::clone(&self.events));
        let mut state = lock(&self.state);
        for range in state.spread.cut(&bytes) {
            let what = Run::new(&fetching, range);
            let bytes = what.bytes();
            state.spread.push(Part { what, bytes, deadline });
        }
        self.carry_out(state);
    }

    /// Ends what is late; the answer is when to look again.
    pub fn expire(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        let mut state = lock(&self.state);
        let (late, shut) = state.spread.expire(now);
        for stream in shut {
            state.shut(stream);
        }
        let next = state.spread.next_deadline();
        self.carry_out(state);
        late.iter().for_each(|run| run.end(&[]));
        next
    }

    /// Ends all fetches, and nothing is asked any more.
    pub fn end(&self) {
        let mut state = lock(&self.state);
        let waiting = state.spread.end();
        (0..state.streams.len()).for_each(|stream| state.shut(stream));
        drop(state);
        waiting.iter().for_each(|run| run.end(&[]));
    }

    /// Does what is to be done, and lets go of the state.
    fn carry_out(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let (now, mut failed) = (Instant::now(), Vec::new());
        while let Some(todo) = state.spread.next(now) {
            match todo {
                Todo::Open { stream } => {
                    let peer = Arc::clone(self);
                    let name = format!("lapis-read-{}-{stream}", self.link.0);
                    if let Err(error) = self.crew.spawn(name, move || peer.run(stream)) {
                        tracing::warn!(%error, "no thread for a stream to a peer");
                        let lost = state.spread.lost(stream, now, false);
                        assert!(lost.is_empty(), "nothing is asked on a stream before it is up");
                    }
                }
                Todo::Ask { stream, what } => {
                    if let Err(error) = state.ask(stream, &what) {
                        tracing::debug!(%error, peer = %self.address, "a stream takes no ask");
                        state.spread.shut(stream, now);
                        state.shut(stream);
                    }
                }
                Todo::Fail(what) => failed.push(what),
            }
        }
        drop(state);
        failed.iter().for_each(|run| run.end(&[]));
    }

    /// A stream's thread.
    fn run(self: Arc<Self>, stream: usize) {
        let mut here = Here { peer: &self, stream, is_orderly: false, came: Vec::new() };
        let ended = here.open().and_then(|wire| here.receive(&wire));
        let Err(reason) = ended;
        here.is_orderly = matches!(reason, Ended::Idle | Ended::HungUp | Ended::Unwanted);
        let peer = self.address;
        match &reason {
            Ended::Idle | Ended::HungUp | Ended::Unwanted => tracing::debug!(%peer, stream, %reason, "a stream ended"),
            _ => tracing::warn!(%peer, stream, reason = &reason as &dyn std::error::Error, "a stream was lost"),
        }
    }
}

impl State {
    fn ask(&mut self, at: usize, what: &Run) -> io::Result<()> {
        let stream = &mut self.streams[at];
        let wire = stream.wire.as_ref().expect("a stream that is up has a connection");
        let (first, count) = (what.first(), what.blocks().len() as u32);
        let ask = Ask { number: stream.asks, token: what.token(), first, count, bytes: what.bytes() };
        stream.asks = stream.asks.wrapping_add(1);
        wire.send_at_once(&ask.encode())
    }

    fn shut(&mut self, stream: usize) {
        if let Some(wire) = &self.streams[stream].wire {
            wire.socket.shut();
        }
    }
}

/// The thread of one stream. When it ends, by a panic too, what was asked on it ends.
struct Here<'a> {
    peer: &'a Arc<Peer>,
    stream: usize,
    is_orderly: bool,
    /// Of the part that is being answered.
    came: Vec<Came>,
}

impl Here<'_> {
    fn open(&self) -> Result<Arc<Wire>, Ended> {
        let failed = |op| move |source| Ended::Io { op, source };
        let peer = self.peer;
        let socket = Socket::begin(peer.address).map_err(failed("connecting"))?;
        let wire = Arc::new(Wire::to_owner(socket, peer.credentials.as_ref(), &peer.host)?);
        {
            let mut state = lock(&peer.state);
            if state.spread.is_ended() {
                return Err(Ended::Unwanted);
            }
            state.streams[self.stream] = Stream { wire: Some(Arc::clone(&wire)), asks: 0 };
        }
        let socket = &wire.socket;
        socket.connected(peer.greeting).map_err(failed("connecting"))?;
        socket.set_patience(Some(peer.greeting), Some(peer.greeting)).map_err(failed("setting a socket up"))?;
        wire.seal(Some(&peer.host))?;
        let greeting = Greeting { stream: self.stream as u16, word: peer.word };
        wire.send_at_once(&greeting.encode()).map_err(failed("greeting"))?;
        let mut bytes = [0; WELCOME_BYTES];
        match wire.receive_head(&mut bytes).map_err(failed("greeting"))? {
            Head::Came => {}
            Head::Ended => return Err(failed("greeting")(io::ErrorKind::UnexpectedEof.into())),
            Head::Nothing => return Err(failed("greeting")(io::ErrorKind::TimedOut.into())),
        }
        match Welcome::decode(&bytes)? {
            Welcome::In => {}
            Welcome::Unknown => return Err(Ended::Unknown),
            Welcome::Version(version) => return Err(HeadError::Version { version }.into()),
        }
        socket.set_patience(Some(peer.idle), None).map_err(failed("setting a socket up"))?;
        let mut state = lock(&peer.state);
        if !state.spread.up(self.stream) {
            return Err(Ended::Unwanted);
        }
        peer.carry_out(state);
        Ok(wire)
    }

    /// Receives answers until the stream ends.
    fn receive(&mut self, wire: &Wire) -> Result<std::convert::Infallible, Ended> {
        let mut bytes = [0; ANSWER_BYTES];
        let mut number = 0;
        loop {
            match wire.receive_head(&mut bytes).map_err(|error| self.lost(error))? {
                Head::Came => {}
                Head::Ended if self.end_idle() => return Err(Ended::HungUp),
                Head::Ended => return Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
                Head::Nothing if self.end_idle() => return Err(Ended::Idle),
                Head::Nothing => continue,
            }
            let answer = Answer::decode(&bytes)?;
            let run = lock(&self.peer.state).spread.front(self.stream).cloned();
            let run = run.filter(|_| answer.number == number).ok_or(Ended::OutOfTurn)?;
            number = number.wrapping_add(1);
            self.came.clear();
            match answer.said {
                Said::Here { bytes } if bytes == run.bytes() => self.receive_blocks(wire, &run)?,
                Said::Here { bytes } => return Err(Ended::Bytes { bytes, wanted: run.bytes() }),
                Said::Gone => {}
                Said::Differs { bytes } => {
                    tracing::warn!(peer = %self.peer.address, bytes, located = run.bytes(), "blocks are of other lengths");
                }
            }
            let mut state = lock(&self.peer.state);
            state.spread.done(self.stream);
            // First the next ask: the owner works while this is reported.
            self.peer.carry_out(state);
            run.end(&std::mem::take(&mut self.came));
        }
    }

    fn receive_blocks(&mut self, wire: &Wire, run: &Run) -> Result<(), Ended> {
        let mut blocks = run.blocks();
        while !blocks.is_empty() {
            if run.deadline() <= Instant::now() {
                return Err(Ended::Late);
            }
            let (gulp, rest) = blocks.split_at(gulp(blocks));
            let places: Vec<Place<'_>> = gulp.iter().map(|block| place(block)).collect();
            let (came, result) = wire.receive(&places);
            let mut end = 0;
            for block in gulp {
                end += block.span as usize;
                if end <= came {
                    self.came.push(if block.into.is_sound() { Came::Whole } else { Came::Corrupt });
                }
            }
            result.map_err(|error| self.lost(error))?;
            blocks = rest;
        }
        Ok(())
    }

    fn end_idle(&self) -> bool {
        lock(&self.peer.state).spread.end_idle(self.stream)
    }

    /// What to call a connection that failed: this host may have shut it.
    fn lost(&self, source: io::Error) -> Ended {
        let state = lock(&self.peer.state);
        if state.spread.is_ended() {
            return Ended::Unwanted;
        }
        match state.spread.front(self.stream) {
            Some(run) if run.deadline() <= Instant::now() => Ended::Late,
            _ => Ended::Io { op: "receiving", source },
        }
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.peer.state);
        // Closed before the peer may be asked on another one of this number.
        state.streams[self.stream].wire = None;
        let lost = state.spread.lost(self.stream, Instant::now(), self.is_orderly);
        self.peer.carry_out(state);
        let mut came = std::mem::take(&mut self.came);
        for part in lost {
            part.what.end(&came);
            came.clear();
        }
    }
}

/// How many of the first blocks are received at once.
fn gulp(blocks: &[Wanted]) -> usize {
    let mut bytes = 0;
    let fitting = blocks.iter().take_while(|block| {
        bytes += block.span as usize;
        bytes <= GULP_BYTES
    });
    fitting.count().max(1)
}

fn place(block: &Wanted) -> Place<'_> {
    Place { mapping: &block.into.mapping, offset: block.into.offset, bytes: block.span as usize }
}
