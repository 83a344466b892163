//! Gets into the memory of a GPU. A block that the daemon has on that GPU, or on one that it reaches, is copied from there; one
//! in DRAM is copied from where it lies, also if it is on another GPU that is far; for any other the daemon is asked first.
//!
//! All that is read is pinned, then fenced once, then looked at again, and only then are copies put on the stream. The pins go
//! when a mark behind the copies is over. What is in memory at the first look is one wave of copies, what comes later is others;
//! pieces are told of behind the last.

use std::{sync::Arc, time::Duration};

use lapis_arena::{
    Found, LineState, OnDevice,
    hbm::{Device, HbmExtent, HostExtent, Mark},
};
use lapis_config::{Key, PoolKind, UNIT_BYTES, Wait};
use lapis_transport::{control::Counters, frame::Request};

use super::{
    DeviceObjectStatus, DevicePiece, DevicePins, DevicePtr, DeviceStream, Flight, OpenGpu, Places, Watch,
    objects::Objects, peers::Peer, pieces::Targets,
};
use crate::{
    ClientError, GetOptions, Pool, keys,
    session::{
        Answer, BlockStatus, Busy, Got, Session, Step, Verify, View, get::Part, put::daemons_share_us, view::Pinned,
        windows::Windows,
    },
};

/// How often a block is tried whose line changes between look-up and pin.
const TRIES: u8 = 3;

/// Where a block is read.
pub(super) enum Source {
    Gpu { at: OnDevice, extent: Arc<HbmExtent>, offset: u64, bytes: u64, peer: Option<Arc<Peer>> },
    Dram { view: View, host: Arc<HostExtent>, offset: u64 },
}

impl Source {
    /// Bytes of the block.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Gpu { bytes, .. } => *bytes,
            Self::Dram { view, .. } => view.len() as u64,
        }
    }
}

/// What became of one look at a block.
pub(super) enum Look {
    Read(Found, Source),
    /// Of an object: it is there, and not to be copied.
    Told(DeviceObjectStatus),
    /// The daemon can fetch it.
    Elsewhere,
    Miss,
    /// Memory that is being registered, or a daemon that begins.
    NotYet,
}

/// A block that is pinned, and was seen to be what was asked for since.
struct Ready {
    block: usize,
    found: Found,
    source: Source,
}

/// A get under way. Whatever is in memory is on the stream after the first `step`.
pub struct DeviceGetJob<'a> {
    pub(super) session: Arc<Session>,
    pub(super) pool: Pool,
    pub(super) keys: &'a [Key],
    /// Where the keys are those of objects.
    pub(super) objects: Option<Objects<'a>>,
    to: Targets<'a>,
    gpu: Arc<OpenGpu>,
    wait: Wait,
    from: Option<String>,
    pub(super) verify: Option<Verify>,
    got: Got,
    /// Of the hits: read in the memory of GPUs.
    hits_hbm: u64,
    deepest: Option<(usize, Found)>,
    windows: Windows,
    /// To be looked at again, with how often their line had changed.
    later: Vec<(u32, u8)>,
    /// To be copied, and the pins of these.
    ready: Vec<Ready>,
    pins: Vec<DevicePins>,
    flights: Vec<Flight>,
    error: Option<ClientError>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Asking,
    Done,
}

impl<'a> DeviceGetJob<'a> {
    /// Checks what is asked, and opens the GPU at the first call; copies nothing yet.
    ///
    /// # Safety
    /// Each address of `to` is memory of the stream's GPU with room for an equal part of what is asked of a block, and
    /// nobody frees it, or reads or writes it other than on this stream, before what is put on the stream has ended.
    pub unsafe fn new(
        session: Arc<Session>,
        pool: &Pool,
        keys: &'a [Key],
        to: &'a [DevicePtr],
        stream: &DeviceStream,
        options: &GetOptions,
    ) -> Result<Self, ClientError> {
        Self::check(&session, pool, keys, PoolKind::Chain)?;
        let part = Part::of(pool, options.pieces.as_ref())?;
        let places = Places::new(to, keys.len(), part.bytes as u64)?;
        let (gpu, stream) = session.open_gpu(stream)?;
        Ok(Self::begin(session, pool, keys, Targets::whole(part.offset as u64, places, stream), gpu, options))
    }

    /// The same in pieces, on a stream of the client's own, behind what is on the caller's now.
    ///
    /// # Safety
    /// As of `new`, until the flag of the address's piece is seen, or what [`Self::finish`] gives for it is over; a flag is not
    /// freed before its piece is over.
    pub unsafe fn in_pieces(
        session: Arc<Session>,
        pool: &Pool,
        keys: &'a [Key],
        pieces: &[DevicePiece<'a>],
        stream: &DeviceStream,
        options: &GetOptions,
    ) -> Result<Self, ClientError> {
        Self::check(&session, pool, keys, PoolKind::Chain)?;
        let (gpu, behind) = session.open_gpu(stream)?;
        let to = Targets::in_pieces(pieces, keys.len(), pool.block_bytes(), &gpu, &behind)?;
        Ok(Self::begin(session, pool, keys, to, gpu, options))
    }

    pub(super) fn check(session: &Session, pool: &Pool, keys: &[Key], kind: PoolKind) -> Result<(), ClientError> {
        if session.here().is_err() {
            return Err(ClientError::Closed);
        }
        keys::check(keys.len())?;
        pool.expect_kind(kind)
    }

    pub(super) fn begin(
        session: Arc<Session>,
        pool: &Pool,
        keys: &'a [Key],
        to: Targets<'a>,
        gpu: Arc<OpenGpu>,
        options: &GetOptions,
    ) -> Self {
        Self {
            session,
            pool: pool.clone(),
            keys,
            objects: None,
            to,
            gpu,
            wait: options.wait,
            from: options.from.clone(),
            verify: options.verify,
            got: Got { statuses: vec![BlockStatus::Miss; keys.len()], hits: 0, bytes: 0 },
            hits_hbm: 0,
            deepest: None,
            windows: Windows::default(),
            later: Vec::new(),
            ready: Vec::new(),
            pins: Vec::new(),
            flights: Vec::new(),
            error: None,
            state: State::New,
        }
    }

    /// Bytes asked for; what the default deadline depends on.
    pub fn bytes(&self) -> u64 {
        match &self.objects {
            Some(objects) => objects.bytes(),
            None => self.to.bytes() * self.keys.len() as u64,
        }
    }

    /// What became of each object.
    pub fn take_told(&mut self) -> Vec<DeviceObjectStatus> {
        self.objects.as_mut().map(|objects| std::mem::take(&mut objects.told)).unwrap_or_default()
    }

    /// Goes on as far as possible without waiting. `left`: until the caller's deadline.
    pub fn step(&mut self, left: Duration) -> Step {
        let step = self.turn(left);
        self.flush(self.state == State::Done);
        if self.error.is_none() {
            return step;
        }
        // Nothing is copied any more, so nothing is waited for.
        self.state = State::Done;
        self.flush(true);
        Step::Done
    }

    fn turn(&mut self, left: Duration) -> Step {
        if self.state == State::New {
            let all: Vec<(u32, u8)> = (0..self.keys.len() as u32).map(|i| (i, 0)).collect();
            self.read(&all);
            self.state = State::Asking;
            self.plan();
        }
        if self.state == State::Done || self.error.is_some() {
            self.state = State::Done;
            return Step::Done;
        }
        let mut posted = self.take_answers();
        let later = std::mem::take(&mut self.later);
        self.read(&later);
        loop {
            match self.ask(left) {
                Ok(true) => posted = true,
                Ok(false) => break,
                Err(Busy::Full) => return Step::Full,
                Err(Busy::Gone) => {
                    self.windows.forget_rest();
                    break;
                }
            }
        }
        let waits = !self.later.is_empty();
        if self.windows.is_done() && !waits {
            self.state = State::Done;
        }
        match (posted, self.state) {
            (true, _) => Step::Posted,
            (false, State::Done) => Step::Done,
            (false, _) if waits => Step::Full,
            (false, _) => Step::Waiting,
        }
    }

    /// What was put on the stream: its blocks are there for whatever is put on the stream after this, and what is to be held
    /// until the copies have ended. What was still awaited is a miss. An error is the GPU's, or the driver's; copies may be
    /// under way all the same. Last, of a get in pieces, what tells of each piece.
    pub fn finish(mut self) -> (Result<Got, ClientError>, Vec<Flight>, Vec<Watch>) {
        let pieces = self.end();
        if self.objects.is_none() {
            let deepest = self.deepest.map(|(_, found)| found);
            let (asked, hit, bytes) = (self.keys.len() as u64, self.got.hits as u64, self.got.bytes);
            self.session.report_into(self.gpu.id(), deepest, Counters { asked, hit, bytes, hit_hbm: self.hits_hbm });
        }
        let got = match self.error.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut self.got)),
        };
        (got, std::mem::take(&mut self.flights), pieces)
    }

    /// Asks for nothing more. What tells of each piece.
    fn end(&mut self) -> Vec<Watch> {
        self.windows.abandon(&self.session);
        self.flush(true);
        let marks = self.to.take_marks();
        if let (Some(last), Some(lent)) = (marks.last(), self.to.lent()) {
            self.flights.push(Flight::new(last.clone(), lent));
        }
        marks.iter().map(Watch::of).collect()
    }

    /// As of a get into memory of the host.
    fn plan(&mut self) {
        let told = |i: u32| self.objects.as_ref().is_some_and(|objects| objects.is_told(i as usize));
        let coming = |i: u32| self.later.iter().any(|(later, _)| *later == i) || told(i);
        let statuses = self.got.statuses.iter().zip(0..);
        let missing: Vec<u32> =
            statuses.filter(|&(status, i)| !status.is_hit() && !coming(i)).map(|(_, i)| i).collect();
        let (absent, remote) =
            (self.wait != Wait::Present && !missing.is_empty(), !missing.is_empty() && self.session.has_peers());
        if self.windows.is_empty() && !absent && !remote || !self.session.is_connected() {
            return self.windows.forget_rest();
        }
        let slot_bytes = self.objects.as_ref().map(|objects| objects.slot_bytes(&self.pool));
        self.windows
            .set_size(self.session.maps().extents.bytes(), slot_bytes.unwrap_or_else(|| self.pool.slot_bytes()));
        if absent {
            self.windows.await_absent(missing.into_iter());
        } else if remote {
            self.windows.want_all(missing.into_iter());
        }
    }

    fn ask(&mut self, left: Duration) -> Result<bool, Busy> {
        if !self.windows.may_ask() {
            return Ok(false);
        }
        let pool = self.session.pool_id(&self.pool).ok_or(Busy::Gone)?;
        let from = self.from.as_deref();
        self.windows.ask(&self.session, pool, self.keys, (self.wait, from), daemons_share_us(left))?;
        Ok(true)
    }

    /// Reads what came, and lets it go: it is pinned by then. True if anything was answered that is to be released.
    fn take_answers(&mut self) -> bool {
        let mut released = false;
        while let Some((token, answer, window)) = self.windows.take(&self.session) {
            let window: Vec<(u32, u8)> = window.into_iter().map(|i| (i, 0)).collect();
            self.read(&window);
            if matches!(answer, Answer::Got { hit: 0 }) {
                self.windows.forget_rest();
            }
            if matches!(answer, Answer::Got { .. }) {
                self.session.post(Request::Release { token: token.number() });
                released = true;
            }
        }
        released
    }

    /// Looks these blocks up, pins them, and looks again: what is still there is ready.
    fn read(&mut self, wanted: &[(u32, u8)]) {
        if wanted.is_empty() || self.error.is_some() {
            return;
        }
        if !self.gpu.is_current(&self.session) {
            match self.session.gpus.open(self.to.device()) {
                Ok(gpu) => self.gpu = gpu,
                Err(error) => return self.error = Some(error),
            }
        }
        let mut pins = self.gpu.told.as_ref().map(|devices| DevicePins::new(&self.session, devices));
        let mut reads: Vec<(u32, u8, Found, Source)> = Vec::with_capacity(wanted.len());
        for &(i, tries) in wanted {
            let look = match &self.objects {
                Some(objects) => self.look_at_object(objects, i as usize, pins.as_mut()),
                None => self.look(&self.keys[i as usize], pins.as_mut()),
            };
            match look {
                Look::Read(found, source) => reads.push((i, tries, found, source)),
                Look::Told(status) => self.tell(i as usize, status),
                // Asked for once: what leaves again is a miss.
                Look::Elsewhere if self.state == State::New => self.windows.want(i),
                Look::NotYet => self.later.push((i, tries)),
                Look::Elsewhere | Look::Miss => {}
            }
        }
        // One fence for all: both pages lie in front of it.
        self.session.pins.fence();
        if !self.session.views_are_safe() || !self.gpu.is_current(&self.session) {
            // A daemon that does not know what we name: when it does, all is looked up again.
            let again = reads.into_iter().map(|(i, tries, ..)| (i, tries));
            return if self.session.may_come_back() {
                self.later.extend(again)
            };
        }
        for (i, tries, found, source) in reads {
            if !self.is_still(&found, &source) {
                self.session.counts.retried();
                if tries < TRIES {
                    self.later.push((i, tries + 1));
                }
                continue;
            }
            if let Source::Dram { view, .. } = &source
                && !self.session.is_sound(view, &self.pool, &self.keys[i as usize], self.verify)
            {
                continue;
            }
            self.ready.push(Ready { block: i as usize, found, source });
        }
        self.pins.extend(pins);
    }

    /// Puts copies of what is ready on the stream. Behind the last, pieces are told of.
    fn flush(&mut self, is_last: bool) {
        let (ready, pins) = (std::mem::take(&mut self.ready), std::mem::take(&mut self.pins));
        let blocks: Vec<(usize, &Source)> = match self.error {
            None => ready.iter().map(|Ready { block, source, .. }| (*block, source)).collect(),
            Some(_) => Vec::new(),
        };
        // SAFETY: what is read is pinned, and held until a mark behind this is over; the addresses are the promise of who made
        // this job.
        let copied = unsafe { self.to.copy(&blocks, is_last) };
        if blocks.is_empty() {
            return self.fail(copied);
        }
        let peer = |ready: &Ready| match &ready.source {
            Source::Gpu { peer: Some(peer), .. } => Some(peer.device.clone()),
            _ => None,
        };
        let mut peers: Vec<Arc<Device>> = ready.iter().filter_map(peer).collect();
        peers.sort_by_key(|device| device.index());
        peers.dedup_by_key(|device| device.index());
        if copied.is_ok() {
            ready.iter().for_each(|ready| self.hit(ready));
        }
        self.fail(copied);
        // Of blocks that were refused a part may be on the stream. Pins before what they pin.
        let mark: Arc<Mark> = Arc::new(self.to.mark());
        let sources: Vec<Source> = ready.into_iter().map(|ready| ready.source).collect();
        self.flights.push(Flight::reading(mark, peers, (pins, sources, self.gpu.clone())));
    }

    fn fail(&mut self, outcome: Result<(), ClientError>) {
        if let Err(error) = outcome {
            self.error.get_or_insert(error);
        }
    }

    fn look(&self, key: &Key, pins: Option<&mut DevicePins>) -> Look {
        let session = &self.session;
        let Some(found) = session.find(&self.pool, key) else { return Look::Miss };
        if u64::from(found.bytes) != self.pool.block_bytes() {
            return Look::Miss;
        }
        self.place(found, pins)
    }

    /// Pins the block where it is read best.
    pub(super) fn place(&self, found: Found, mut pins: Option<&mut DevicePins>) -> Look {
        let session = &self.session;
        // Nobody checks a sum on a GPU: who wants all checked is served from DRAM.
        let at = if session.verify_of(self.verify) == Verify::Always { None } else { self.device_slot(&found) };
        let far = at.filter(|at| found.state == LineState::Dram && !self.is_near(at));
        if let Some(at) = at.filter(|_| far.is_none())
            && let Some(source) = self.pinned_on_gpu(&found, at, pins.as_deref_mut())
        {
            return Look::Read(found, source);
        }
        if found.state == LineState::Elsewhere || found.state == LineState::Hbm {
            return Look::Elsewhere;
        }
        let look = match session.pin(&self.pool, found) {
            Pinned::View(view) => self.registered(found, view),
            Pinned::NoEntry => Look::NotYet,
            Pinned::Miss => Look::Miss,
        };
        // What DRAM does not give comes from afar; while memory is being registered only where that opens nothing.
        let from_afar = match (&look, far) {
            (Look::Miss, Some(at)) => self.pinned_on_gpu(&found, at, pins),
            (Look::NotYet, Some(at)) if self.gpu.has_reached(at.at.gpu) => self.pinned_on_gpu(&found, at, pins),
            _ => None,
        };
        from_afar.map_or(look, |source| Look::Read(found, source))
    }

    fn device_slot(&self, found: &Found) -> Option<OnDevice> {
        let at = self.gpu.told.as_ref()?.table.find(found.line, found.generation())?;
        (u64::from(at.at.units) * UNIT_BYTES >= u64::from(found.bytes)).then_some(at)
    }

    /// Whether a block is read from there though it is in DRAM too.
    fn is_near(&self, at: &OnDevice) -> bool {
        self.gpu.id() == Some(at.at.gpu) || self.gpu.reads_from(at.at.gpu)
    }

    fn pinned_on_gpu(&self, found: &Found, at: OnDevice, pins: Option<&mut DevicePins>) -> Option<Source> {
        let (pins, source) = (pins?, self.on_gpu(found, at)?);
        pins.set(&at).then_some(source)
    }

    /// Where the block lies on this GPU, or on one that it reaches.
    fn on_gpu(&self, found: &Found, at: OnDevice) -> Option<Source> {
        let own = self.gpu.own.as_ref().filter(|own| own.id == at.at.gpu);
        let peer = if own.is_some() { None } else { Some(self.gpu.peer(&self.session.gpus, at.at.gpu)?) };
        let slices = own.or(peer.as_deref().map(|peer| &peer.slices))?;
        let (extent, offset) = slices.locate(at.at.slot, u64::from(found.bytes))?;
        let extent = extent.clone();
        Some(Source::Gpu { at, extent, offset, bytes: u64::from(found.bytes), peer })
    }

    /// A block in DRAM, if its memory is registered that far.
    fn registered(&self, found: Found, view: View) -> Look {
        let (mapping, offset) = view.place();
        let host = match self.session.gpus.host(&self.gpu.device, mapping) {
            Ok(host) => host,
            Err(error) => {
                tracing::warn!(%error, "memory of the host is out of a GPU's reach");
                return Look::Miss;
            }
        };
        let end = offset as u64 + u64::from(found.bytes);
        if end <= host.registered_bytes() {
            return Look::Read(found, Source::Dram { view, host, offset: offset as u64 });
        }
        // It was said why.
        if host.failure().is_some() { Look::Miss } else { Look::NotYet }
    }

    fn is_still(&self, found: &Found, source: &Source) -> bool {
        match (source, &self.gpu.told) {
            // The name of an object was read in DRAM.
            (Source::Gpu { at, .. }, Some(devices)) => {
                devices.table.still(at) && (self.objects.is_none() || self.session.maps().table.still(found))
            }
            (Source::Gpu { .. }, None) => false,
            (Source::Dram { .. }, _) => self.session.maps().table.still(found),
        }
    }

    fn tell(&mut self, i: usize, status: DeviceObjectStatus) {
        if let Some(told) = self.objects.as_mut().and_then(|objects| objects.told.get_mut(i)) {
            *told = status;
        }
    }

    fn hit(&mut self, &Ready { block: i, found, ref source }: &Ready) {
        let hit_hbm = u64::from(matches!(source, Source::Gpu { .. }));
        if self.objects.is_some() {
            let bytes = u64::from(found.bytes);
            self.tell(i, DeviceObjectStatus::Hit { bytes });
            self.got.statuses[i] = BlockStatus::Hit { bytes: found.bytes };
            // Objects have no parents: each has to be told of by itself.
            return self.session.report_into(self.gpu.id(), Some(found), Counters { asked: 1, hit: 1, bytes, hit_hbm });
        }
        self.hits_hbm += hit_hbm;
        self.got.statuses[i] = BlockStatus::Hit { bytes: self.to.bytes() as u32 };
        self.got.hits += 1;
        self.got.bytes += self.to.bytes();
        self.hits_hbm += hit_hbm;
        if self.deepest.is_none_or(|(deepest, _)| deepest < i) {
            self.deepest = Some((i, found));
        }
    }
}

impl Drop for DeviceGetJob<'_> {
    fn drop(&mut self) {
        self.end();
        // Without `finish`: nobody else waits for what is under way.
        super::wait_for(&self.flights);
    }
}
