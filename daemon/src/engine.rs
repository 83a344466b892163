//! The engine loop: where the core, the shared memory and the wire meet. It carries requests from the rings to the
//! core and the core's actions to movers and rings; it decides nothing about blocks. It runs over real sockets and
//! threads in the daemon and over simulated ones in the tests: time comes in as an argument.
//!
//! Invariant: a client's frame is copied out of shared memory before anything of it is looked at.
//! Invariant: a slot number leaves the daemon only after its state was written to the kept memory (by the core).

mod gpus;
mod lives;
mod peers;
mod recovery;
mod requests;
mod ssd;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lapis_arena::StoredBlock;
use lapis_config::{ClientId, GpuId, Key, PoolId, SlotId, Time};
use lapis_ssd::format::LogId;
use lapis_tiering::{
    Shares,
    face::{Action, Put},
    kept::Kept,
};
use lapis_transport::{
    hello::CallDefaults,
    hold::Keeper,
    wire::{ConnId, Event, Peer, Wire},
};

pub use self::peers::DrainReport;
use self::peers::is_remote;
pub(crate) use self::{gpus::GROUP as GPU_GROUP, peers::Drain};
use crate::{
    error::DaemonError,
    gpus::{GpuJob, GpuShown},
    group::{Found, Group, GroupOptions},
    movers::{Done, Job, Movers},
    peers::Peers,
    server,
    tier::{Tier, TierOptions},
};

/// Frames taken from one client before the next one has its turn.
const FRAMES_PER_TURN: usize = 64;
/// Lines of a former daemon taken over between two looks at sockets: under 1 ms.
const ADOPT_LINES_PER_TURN: u32 = 8 * 1024;
/// Answers that found no room in a completion ring are tried again so soon: nobody rings when there is room.
const OWED_PAUSE: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
pub struct EngineOptions {
    pub groups: Vec<GroupOptions>,
    pub clients_max: usize,
    /// Bytes of DRAM over all groups.
    pub dram_bytes: u64,
    pub extent_bytes_max: u64,
    pub magazine_bytes_max: u64,
    /// `None`: DRAM alone.
    pub tier: Option<TierOptions>,
    pub call_defaults: CallDefaults,
}

/// What a connection is to the engine.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// Connected, has not said what it wants.
    Greeting {
        group: usize,
        peer: Peer,
    },
    Client {
        group: usize,
        id: ClientId,
    },
}

/// Events that the metrics count and no core knows. Since the daemon's start.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineCounts {
    pub clients_connected: u64,
    pub clients_resumed: u64,
    pub clients_died: u64,
    pub clients_expelled: u64,
    pub client_faults: u64,
    pub frames: u64,
    /// Of them, those that puts are made of.
    pub put_frames: u64,
    /// Turns of more than a second.
    pub stalls: u64,
}

pub struct Engine<W: Wire, M: Movers> {
    pub(crate) wire: W,
    pub(crate) movers: M,
    pub(crate) keeper: Box<dyn Keeper>,
    pub(crate) entropy: Box<dyn FnMut() -> u64 + Send>,
    pub(crate) options: EngineOptions,
    pub(crate) groups: Vec<Group>,
    pub(crate) roles: BTreeMap<ConnId, Role>,
    pub(crate) counts: EngineCounts,
    pub(crate) draining: bool,
    pub(crate) started: Time,
    /// When `work` was called last.
    worked: Time,
    pub(crate) shares: Shares,
    pub(crate) tier: Option<Tier>,
    pub(crate) peers: Option<Peers>,
    /// Those of the HBM tier; none where `hbm.bytes` is 0.
    pub(crate) gpus: Vec<Arc<GpuShown>>,
    /// By which the first group's core knows them; none where it has no memory for them.
    gpu_ids: Vec<GpuId>,
    /// Lost, and its core does not know yet.
    gpus_lost: Vec<GpuId>,
    /// Copies of this turn, by GPU.
    gpu_jobs: BTreeMap<usize, Vec<GpuJob>>,
    events: Vec<Event>,
    puts: Vec<Put>,
}

impl<W: Wire, M: Movers> Engine<W, M> {
    /// Opens every group over what the keeper had (`found`, by full name) or over new memory. Clients can be accepted
    /// when this returns; memory is populated and lines are adopted by later turns.
    pub fn open(
        now: Time,
        options: EngineOptions,
        mut wire: W,
        movers: M,
        mut keeper: Box<dyn Keeper>,
        found: Vec<(String, std::os::fd::OwnedFd)>,
        mut entropy: Box<dyn FnMut() -> u64 + Send>,
    ) -> Result<Self, DaemonError> {
        let mut by_group: BTreeMap<String, Found> = BTreeMap::new();
        for (name, fd) in found {
            match name.split_once('.') {
                Some((group, part)) if options.groups.iter().any(|g| g.name == group) => {
                    by_group.entry(group.to_owned()).or_default().insert(part.to_owned(), fd);
                }
                _ => {
                    tracing::warn!(name, "what was kept belongs to no configured group; dropped");
                    keeper.forget(&name).map_err(DaemonError::keeper("drop"))?;
                }
            }
        }
        let limits: Vec<(u64, u64)> =
            options.groups.iter().map(|g| (g.geometry.floor_bytes, g.geometry.ceiling_bytes)).collect();
        let mut shares = Shares::new(options.dram_bytes, options.extent_bytes_max, &limits);
        let (mut groups, mut roles) = (Vec::new(), BTreeMap::new());
        for (index, group_options) in options.groups.iter().enumerate() {
            let found = by_group.remove(&group_options.name).unwrap_or_default();
            let (mut group, formers) = Group::open(group_options.clone(), found, keeper.as_mut(), &mut *entropy)?;
            tracing::info!(group = group_options.name, start = %group.start, "memory of the group");
            for extent in &group.extents {
                shares.taken(index, extent.bytes());
            }
            for former in formers {
                server::adopt_client(index, &mut group, &mut wire, former, &mut roles)?;
            }
            groups.push(group);
        }
        let mut log_fresh = [0; 16];
        log_fresh[..8].copy_from_slice(&entropy().to_le_bytes());
        log_fresh[8..].copy_from_slice(&entropy().to_le_bytes());
        let tier = options.tier.clone().map(|options| Tier::new(options, now, LogId(log_fresh)));
        if tier.is_some() {
            groups.iter_mut().for_each(|group: &mut Group| group.core.ssd_coming());
        }
        let mut engine = Self {
            tier,
            peers: None,
            gpus: Vec::new(),
            gpu_ids: Vec::new(),
            gpus_lost: Vec::new(),
            gpu_jobs: BTreeMap::new(),
            wire,
            movers,
            keeper,
            entropy,
            options,
            groups,
            roles,
            counts: EngineCounts::default(),
            draining: false,
            started: now,
            worked: now,
            shares,
            events: Vec::new(),
            puts: Vec::new(),
        };
        for index in 0..engine.groups.len() {
            while let Some(bytes) = engine.shares.at_start(index) {
                engine.add_extent(index, bytes)?;
            }
        }
        // When all is mapped: making mappings and filling them wait for each other.
        for index in 0..engine.groups.len() {
            for extent in 0..engine.groups[index].extents.len() {
                engine.populate(index, extent)?;
            }
        }
        Ok(engine)
    }

    fn populate(&mut self, index: usize, extent: usize) -> Result<(), DaemonError> {
        let memory = self.groups[index].to_populate(extent)?;
        self.movers.submit(Job::Populate { group: index, extent, memory });
        Ok(())
    }

    fn add_extent(&mut self, index: usize, bytes: u64) -> Result<(), DaemonError> {
        let group = &mut self.groups[index];
        let at = group.extents.len();
        let pages = group.add_extent(bytes, self.keeper.as_mut())?;
        self.shares.taken(index, bytes);
        let node = group.options.spread.node_of(at);
        tracing::info!(group = group.options.name, bytes, node, %pages, "one more extent");
        server::announce_extent(group, &mut self.wire, at);
        Ok(())
    }

    /// Waits for the outside world, at most `timeout`, and handles what it said.
    pub fn listen(&mut self, now: Time, timeout: Option<Duration>) -> std::io::Result<bool> {
        let mut events = std::mem::take(&mut self.events);
        self.wire.wait(timeout, &mut events)?;
        let any = !events.is_empty();
        for event in events.drain(..) {
            self.handle(now, event);
        }
        self.events = events;
        Ok(any)
    }

    /// One turn over movers, rings and cores. True if there was anything to do.
    pub fn work(&mut self, now: Time) -> bool {
        self.worked = now;
        let mut busy = self.collect_done(now);
        busy |= self.tell(now);
        busy |= self.peers_turn(now);
        self.care(now);
        self.reserve_sequences(now);
        for index in 0..self.groups.len() {
            if self.groups[index].adoption.is_some() {
                self.adopt_some(now, index);
                busy = true;
                continue;
            }
            self.bury_gpus(now, index);
            busy |= self.serve_rings(now, index);
            self.bury_the_dead(now, index);
            if self.groups[index].core.poll_timeout().is_some_and(|at| at <= now) {
                self.groups[index].core.tick(now);
                busy = true;
            }
            // Before `perform`: what an expelled client waited for, or stood in the way of, makes actions.
            self.watch_pins(now, index);
            busy |= self.perform(now, index);
            busy |= self.pump_peers(now, index);
        }
        busy
    }

    /// Whether every core's wishes are carried out: before a sleep they must be, nothing wakes for them.
    pub fn is_at_rest(&self) -> bool {
        self.groups.iter().all(|group| group.adoption.is_some() || !group.core.has_actions())
    }

    /// Whether any ring has something: the last look before sleeping, after `set_sleeping(true)`.
    pub fn rings_waiting(&self) -> bool {
        self.groups.iter().any(|group| {
            group.adoption.is_some()
                || group.clients.values().any(|client| client.connected && client.control.has_requests())
        })
    }

    /// Lets the keeper look after itself; called a few times a second.
    pub fn tend_keeper(&mut self) {
        self.keeper.tick();
    }

    /// Tells all clients whether they must ring. Fences, so that the look after it sees every frame whose client did
    /// not see the word.
    pub fn set_sleeping(&mut self, sleeping: bool) {
        for group in &mut self.groups {
            group.core.kept_mut().table.set_sleeping(sleeping);
        }
    }

    /// When `work` is due without anything happening.
    pub fn next_timeout(&self) -> Option<Time> {
        let core = self.groups.iter().filter_map(|group| group.core.poll_timeout()).min();
        let graves = self.groups.iter().flat_map(|g| g.clients.values()).filter_map(|client| client.gone_at).min();
        let pins = self.groups.iter().filter_map(|group| group.pins.poll_timeout()).min();
        let owing =
            self.groups.iter().flat_map(|g| g.clients.values()).any(|client| client.connected && client.is_owed());
        let owed = owing.then(|| self.worked.after(OWED_PAUSE));
        let (tier, peers) = (self.tier_timeout(), self.peers_timeout());
        [core, graves, pins, owed, tier, peers].into_iter().flatten().min()
    }

    /// From now on every new put is refused; what was granted may still be committed.
    pub fn drain(&mut self) {
        self.draining = true;
        self.groups.iter_mut().for_each(|group| group.core.set_draining(true));
        self.leave_peers(self.worked);
        self.flush();
    }

    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub fn counts(&self) -> EngineCounts {
        self.counts
    }

    pub fn wire_mut(&mut self) -> &mut W {
        &mut self.wire
    }

    pub fn movers_mut(&mut self) -> &mut M {
        &mut self.movers
    }

    /// True when no former daemon's lines are left to take over.
    pub fn adopted(&self) -> bool {
        self.groups.iter().all(|group| group.adoption.is_none())
    }

    fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Connected { conn, listener, peer } => {
                self.roles.insert(conn, Role::Greeting { group: listener, peer });
            }
            Event::Message { conn, message } => server::message(self, now, conn, message),
            Event::Garbled { conn, reason } => self.refuse(now, conn, &reason),
            Event::HungUp { conn } => self.hung_up(now, conn),
            Event::Exited { conn } => self.exited(now, conn),
            Event::LifelineEnded { conn } => {
                if let Some(client) = self.client_of(conn) {
                    client.lifeline_ended = true;
                    self.check_gone(now, conn);
                }
            }
            Event::Doorbell { .. } | Event::Woken => {}
        }
    }

    fn collect_done(&mut self, now: Time) -> bool {
        let mut any = false;
        while let Some(done) = self.movers.poll() {
            any = true;
            match done {
                Done::Populated { group: group_index, extent, bytes } => {
                    let group = &mut self.groups[group_index];
                    let state = &mut group.core.kept_mut().state;
                    state.set_populated(extent, bytes);
                    // Not more than a restart will know of: it gives the rest its memory anew, and clears it.
                    let bytes = state.populated_bytes(extent);
                    group.extents[extent].populated_bytes = bytes;
                    group.core.populated(extent, bytes);
                    self.register(group_index, extent);
                    self.register_with_gpus(group_index, extent);
                    self.show_memory(group_index, extent);
                }
                Done::PopulateFailed { group: group_index, extent, reason } => {
                    let group = &self.groups[group_index];
                    tracing::error!(
                        group = group.options.name,
                        extent,
                        populated = group.extents[extent].populated_bytes,
                        reason,
                        "no memory for the rest of an extent; lower dram.bytes or free memory"
                    );
                    self.groups[group_index].core.populate_failed(extent);
                }
                Done::Verified { group, op, outcome } => self.groups[group].core.completed(now, op, outcome),
                Done::Summed { group, op, sum } => self.groups[group].core.summed(now, op, Some(sum)),
                Done::Drive { device, from } => self.drive_said(now, device, from),
                Done::Merged { recovered, device } => self.merged(now, recovered, device),
                Done::Paths(said) => self.paths_said(now, said),
                Done::Gpu { gpu, from } => self.gpu_said(now, gpu, from),
            }
        }
        any
    }

    fn adopt_some(&mut self, now: Time, index: usize) {
        let group = &mut self.groups[index];
        let Some(mut adoption) = group.adoption.take() else { return };
        let table = &mut group.core.kept_mut().table;
        let lines = &mut group.adopted_lines;
        let found = table.is_ready()
            || adoption.step(table, ADOPT_LINES_PER_TURN, &mut |line, _| {
                lines.push(line);
                true
            });
        if found {
            // Only now may the core unpublish what it does not believe. Readers check sums meanwhile, as those of all
            // lines that were not verified since the restart.
            let left = lines.len().saturating_sub(ADOPT_LINES_PER_TURN as usize);
            for line in lines.split_off(left) {
                if let Some(live) = group.core.kept().live(line) {
                    group.core.kept_mut().came(&live);
                    group.core.adopt_line(line, live);
                }
            }
        }
        if !found || !group.adopted_lines.is_empty() {
            group.adoption = Some(adoption);
            return;
        }
        group.core.adopt_done(now);
        for extent in 0..group.extents.len() {
            group.core.populated(extent, group.extents[extent].populated_bytes);
        }
        let counts = group.core.counts();
        tracing::info!(
            group = group.options.name,
            blocks = counts.blocks,
            aside = counts.slots_aside,
            granted = counts.slots_granted,
            us = now.since_us(self.started),
            "took over the blocks of the former daemon"
        );
        self.say_adopted_on_gpus(index);
    }

    /// Carries out what the core wants.
    fn perform(&mut self, now: Time, index: usize) -> bool {
        let mut busy = false;
        while let Some(action) = self.groups[index].core.poll_action() {
            busy = true;
            match action {
                Action::Reply { to, reply } if is_remote(to.client) => self.remote_answered(now, index, to, reply),
                Action::Reply { to, reply } => {
                    if let Some(completion) = requests::completion(to.token, reply) {
                        self.answer(now, index, to.client, completion);
                    }
                }
                Action::Recall { client, pool } => self.recall(now, index, client, pool),
                Action::Expel { client } => self.expel(now, index, client),
                Action::Verify { op, pool, key, slot, bytes, sum, .. } => {
                    let block = self.stored_block(index, pool, key, slot, bytes, sum);
                    self.movers.submit(Job::Verify { group: index, op, block });
                }
                Action::NeedMemory => {
                    if let Some(bytes) = self.shares.on_demand(index) {
                        let extent = self.groups[index].extents.len();
                        if let Err(error) = self.add_extent(index, bytes).and_then(|()| self.populate(index, extent)) {
                            tracing::error!(%error, "the group cannot grow");
                        }
                    }
                }
                Action::Sum { op, pool, key, slot, bytes } => {
                    let block = self.stored_block(index, pool, key, slot, bytes, 0);
                    self.movers.submit(Job::Sum { group: index, op, block });
                }
                Action::Copy { op, from, to, bytes } => self.copy_by_gpu(index, op, [from, to], bytes),
                action => self.perform_ssd(now, index, action),
            }
        }
        self.submit_copies();
        busy
    }

    fn stored_block(&self, index: usize, pool: PoolId, key: Key, slot: SlotId, bytes: u32, sum: u64) -> StoredBlock {
        let group = &self.groups[index];
        let place = group.space.locate(slot, u64::from(bytes));
        let (mapping, offset) = place.expect("a slot of a block lies in an extent");
        let (shape, seed) = &group.shapes[&pool];
        StoredBlock {
            mapping: mapping.clone(),
            offset,
            key,
            bytes,
            pieces: shape.pieces,
            pool_seed: *seed,
            block_bytes: shape.block_bytes,
            sum,
        }
    }
}
