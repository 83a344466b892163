//! The engine loop: where the core, the shared memory and the wire meet. It carries requests from the rings to the
//! core and the core's actions to movers and rings; it decides nothing about blocks. It runs over real sockets and
//! threads in the daemon and over simulated ones in the tests: time comes in as an argument.
//!
//! Invariant: a client's frame is copied out of shared memory before anything of it is looked at.
//! Invariant: a slot number leaves the daemon only after its state was written to the kept memory (by the core).

use std::{collections::BTreeMap, time::Duration};

use lapis_config::{ClientId, LineId, PoolId, Refusal, Time, UNIT_BYTES};
use lapis_tiering::{
    Shares,
    face::{Action, Caller, CommitItem, Parent, Put, Reply, Reserved},
    kept::Kept,
};
use lapis_transport::{
    frame::{Completion, ParentRef, PutResult, Request, ReserveResult},
    hello::{CallDefaults, ToClient},
    hold::Keeper,
    wire::{ConnId, Event, Peer, Wire},
};

use crate::{
    error::DaemonError,
    group::{Found, Group, GroupOptions},
    movers::{Done, Job, Movers, Verify},
    server,
};

/// Frames taken from one client before the next one has its turn.
const FRAMES_PER_TURN: usize = 64;
/// Touches taken from one client in a turn: a flood makes only its own entries late.
const TOUCHES_PER_TURN: usize = 256;
/// Lines of a former daemon taken over between two looks at sockets: under 1 ms.
const ADOPT_LINES_PER_TURN: u32 = 8 * 1024;
/// Answers that found no room in a completion ring are tried again so soon: nobody rings when there is room.
const OWED_PAUSE: Duration = Duration::from_millis(1);
/// No call waits longer in a core, whatever its client asks.
const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// Granted slots of a dead client that writes by DMA wait so long after its last process ended.
const DMA_GRACE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct EngineOptions {
    pub groups: Vec<GroupOptions>,
    pub clients_max: usize,
    /// Bytes of DRAM over all groups.
    pub dram_bytes: u64,
    pub extent_bytes_max: u64,
    pub magazine_bytes_max: u64,
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
        let mut engine = Self {
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
        let pages = group.add_extent(bytes, self.keeper.as_mut())?;
        self.shares.taken(index, bytes);
        tracing::info!(group = group.options.name, bytes, %pages, "one more extent");
        let at = group.extents.len() - 1;
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
        for index in 0..self.groups.len() {
            if self.groups[index].adoption.is_some() {
                self.adopt_some(now, index);
                busy = true;
                continue;
            }
            busy |= self.serve_rings(now, index);
            self.bury_the_dead(now, index);
            if self.groups[index].core.poll_timeout().is_some_and(|at| at <= now) {
                self.groups[index].core.tick(now);
                busy = true;
            }
            busy |= self.perform(now, index);
            self.watch_pins(now, index);
        }
        busy
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
        [core, graves, pins, owed].into_iter().flatten().min()
    }

    /// From now on every new put is refused; what was granted may still be committed.
    pub fn drain(&mut self) {
        self.draining = true;
        self.groups.iter_mut().for_each(|group| group.core.drain());
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

    pub(crate) fn client_of(&mut self, conn: ConnId) -> Option<&mut crate::client::Client> {
        match self.roles.get(&conn)? {
            Role::Client { group, id } => self.groups[*group].clients.get_mut(id),
            _ => None,
        }
    }

    /// Ends a connection with a reason that its other end can show.
    pub(crate) fn refuse(&mut self, now: Time, conn: ConnId, reason: &str) {
        tracing::warn!(conn = conn.0, reason, "connection refused");
        let message = ToClient::Refused { token: 0, reason: reason.to_owned() };
        if let Err(error) = self.wire.send(conn, &message, &[]) {
            tracing::debug!(%error, "the refused peer does not listen");
        }
        self.wire.hang_up(conn);
        self.hung_up(now, conn);
    }

    /// Ends a connection that was answered.
    pub(crate) fn end(&mut self, conn: ConnId) {
        self.roles.remove(&conn);
        self.wire.hang_up(conn);
        self.wire.forget(conn);
    }

    /// The socket is closed at either end. A client's process and lifeline stay watched.
    fn hung_up(&mut self, now: Time, conn: ConnId) {
        match self.roles.get(&conn) {
            Some(Role::Client { group, id }) => {
                let (group, id) = (*group, *id);
                self.wire.hang_up(conn);
                self.disconnect(now, group, id);
            }
            Some(_) => {
                self.roles.remove(&conn);
                self.wire.hang_up(conn);
                self.wire.forget(conn);
            }
            None => {}
        }
    }

    /// Rings and waits of a client end; slots that it was granted stay its own until its processes ended.
    pub(crate) fn disconnect(&mut self, now: Time, index: usize, id: ClientId) {
        if !self.groups[index].clients.get(&id).is_some_and(|client| client.connected) {
            return;
        }
        let client = self.groups[index].clients.get_mut(&id).expect("looked up above");
        // First: from here on its answers are dropped, and cannot be a reason to disconnect it again.
        client.connected = false;
        client.forget_answers();
        // What it posted before it went counts: those slots were filled.
        self.last_frames(now, index, id);
        self.groups[index].core.client_lost(id);
    }

    fn last_frames(&mut self, now: Time, index: usize, id: ClientId) {
        if self.groups[index].adoption.is_some() {
            return;
        }
        for _ in 0..FRAMES_PER_TURN {
            let Some(client) = self.groups[index].clients.get_mut(&id) else { return };
            match client.control.pop_request() {
                Ok(Some(request @ (Request::Commit { .. } | Request::Abort { .. }))) => {
                    self.request(now, index, id, request);
                }
                Ok(Some(_)) => {}
                // A frame cut short by its writer's death ends the ring like an empty one.
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn exited(&mut self, now: Time, conn: ConnId) {
        let Some(Role::Client { group, id }) = self.roles.get(&conn).cloned() else {
            // Before its `Hello` was heard: nothing else will tell of its end.
            return self.hung_up(now, conn);
        };
        self.counts.clients_died += 1;
        self.disconnect(now, group, id);
        // Its pins end with it. A forked child that reads on does so at its own risk.
        self.groups[group].core.kept_mut().remove_hazards(id);
        if let Some(client) = self.client_of(conn) {
            client.exited = true;
        }
        self.check_gone(now, conn);
    }

    fn check_gone(&mut self, now: Time, conn: ConnId) {
        let Some(client) = self.client_of(conn) else { return };
        if client.exited && client.lifeline_ended && client.gone_at.is_none() {
            client.gone_at = Some(if client.writes_by_dma { now.after(DMA_GRACE) } else { now });
        }
    }

    /// Gives back what ended clients held.
    fn bury_the_dead(&mut self, now: Time, index: usize) {
        let gone: Vec<(ClientId, ConnId)> = self.groups[index]
            .clients
            .values()
            .filter(|client| client.gone_at.is_some_and(|at| at <= now))
            .map(|client| (client.id, client.conn))
            .collect();
        for (id, conn) in gone {
            self.let_go(index, id, conn);
        }
    }

    /// Everything that the client held is free; its descriptors are dropped.
    pub(crate) fn let_go(&mut self, index: usize, id: ClientId, conn: ConnId) {
        let group = &mut self.groups[index];
        group.core.kept_mut().remove_hazards(id);
        group.core.client_gone(id);
        group.remove_client(id, self.keeper.as_mut());
        self.roles.remove(&conn);
        self.wire.hang_up(conn);
        self.wire.forget(conn);
    }

    fn collect_done(&mut self, now: Time) -> bool {
        let mut any = false;
        while let Some(done) = self.movers.poll() {
            any = true;
            match done {
                Done::Populated { group, extent, bytes } => {
                    let group = &mut self.groups[group];
                    let state = &mut group.core.kept_mut().state;
                    state.set_populated(extent, bytes);
                    // Not more than a restart will know of: it gives the rest its memory anew, and clears it.
                    let bytes = state.populated_bytes(extent);
                    group.extents[extent].populated_bytes = bytes;
                    group.core.populated(extent, bytes);
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
    }

    fn serve_rings(&mut self, now: Time, index: usize) -> bool {
        let ids: Vec<ClientId> =
            self.groups[index].clients.values().filter(|client| client.connected).map(|client| client.id).collect();
        let mut busy = false;
        for id in ids {
            busy |= self.serve_ring(now, index, id);
        }
        busy
    }

    fn serve_ring(&mut self, now: Time, index: usize, id: ClientId) -> bool {
        let mut busy = false;
        for _ in 0..FRAMES_PER_TURN {
            let group = &mut self.groups[index];
            let Some(client) = group.clients.get_mut(&id) else { return busy };
            match client.control.pop_request() {
                Ok(Some(request)) => {
                    busy = true;
                    self.counts.frames += 1;
                    self.request(now, index, id, request);
                }
                Ok(None) => break,
                Err(fault) => {
                    self.counts.client_faults += 1;
                    let (conn, reason) = (client.conn, fault.to_string());
                    self.refuse(now, conn, &reason);
                    return true;
                }
            }
        }
        let group = &mut self.groups[index];
        let Some(client) = group.clients.get_mut(&id) else { return busy };
        let core = &mut group.core;
        let mut touches = 0;
        client.control.drain_touches(TOUCHES_PER_TURN, &mut |touch| {
            core.touched(now, LineId(touch.line), touch.bind_low, touch.hit, touch.asked);
            touches += 1;
        });
        busy |= touches == TOUCHES_PER_TURN;
        if client.flush() {
            busy = true;
            // It emptied the ring and went to sleep before these were in it.
            if client.control.client_sleeping() {
                let conn = client.conn;
                self.wire.ring(conn);
            }
        }
        busy
    }

    fn request(&mut self, now: Time, index: usize, id: ClientId, request: Request) {
        let draining = self.draining;
        let group = &mut self.groups[index];
        let caller = |token| Caller { client: id, token };
        let core = &mut group.core;
        let may_put = group.clients.get(&id).is_some_and(|client| client.may_put);
        let refused = |token, reason| Some((id, Completion::Refused { token, reason }));
        let until = |deadline_us| now.after(Duration::from_micros(deadline_us).min(DEADLINE_MAX));
        let answer = match request {
            Request::Commit { token, pool, items } => {
                let items: Vec<CommitItem> = items
                    .iter()
                    .map(|item| CommitItem {
                        slot: item.slot,
                        key: item.key,
                        parent: parent(item.parent),
                        bytes: item.bytes,
                        sum: item.sum,
                    })
                    .collect();
                self.puts.clear();
                core.commit(now, id, pool, &items, &mut self.puts);
                let results = self.puts.iter().map(|put| put_result(*put)).collect();
                Some((id, Completion::Committed { token, results }))
            }
            Request::Refill { token, .. } | Request::Reserve { token, .. } if draining => {
                refused(token, Refusal::Draining)
            }
            Request::Remove { token, .. } | Request::Purge { token, .. } if !may_put => {
                refused(token, Refusal::ReadOnly)
            }
            Request::HintKeys { .. } if !may_put => None,
            Request::Refill { token, pool, slot_bytes, count, deadline_us } => {
                core.refill(now, caller(token), pool, slot_bytes, count, until(deadline_us));
                None
            }
            Request::Reserve { token, pool, slot_bytes, parent: of, deadline_us, keys } => {
                core.reserve(now, caller(token), pool, slot_bytes, &keys, parent(of), until(deadline_us));
                None
            }
            Request::Abort { slots } => {
                core.abort(now, id, &slots);
                None
            }
            Request::Get { token, asks, wait, deadline_us, keys } => {
                core.get(now, caller(token), &asks, &keys, wait, until(deadline_us));
                None
            }
            Request::Release { token } => {
                core.release(caller(token));
                None
            }
            Request::Prefetch { pool, keys } => {
                core.prefetch(now, pool, &keys);
                None
            }
            Request::HintKeys { pool, hint, keys } => {
                core.hint(now, pool, &keys, hint);
                None
            }
            Request::Remove { token, pool, keys } => {
                let blocks = core.remove(now, pool, &keys);
                Some((id, Completion::Removed { token, blocks }))
            }
            Request::Purge { token, pool } => {
                let blocks = core.purge(now, pool);
                Some((id, Completion::Removed { token, blocks }))
            }
        };
        if let Some((id, completion)) = answer {
            self.answer(now, index, id, completion);
        }
    }

    /// Carries out what the core wants.
    fn perform(&mut self, now: Time, index: usize) -> bool {
        let mut busy = false;
        while let Some(action) = self.groups[index].core.poll_action() {
            busy = true;
            match action {
                Action::Reply { to, reply } => {
                    if let Some(completion) = completion(to.token, reply) {
                        self.answer(now, index, to.client, completion);
                    }
                }
                Action::Recall { client, pool } => self.recall(now, index, client, pool),
                Action::Expel { client } => self.expel(now, index, client),
                Action::Verify { op, pool, key, slot, bytes, sum, .. } => {
                    let group = &self.groups[index];
                    let place = group.space.locate(slot, u64::from(bytes));
                    let (mapping, offset) = place.expect("a published slot lies in an extent");
                    let (shape, seed) = &group.shapes[&pool];
                    let block = Verify {
                        mapping: mapping.clone(),
                        offset,
                        key,
                        bytes,
                        pieces: shape.pieces,
                        pool_seed: *seed,
                        block_bytes: shape.block_bytes,
                        sum,
                    };
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
                Action::Copy { .. }
                | Action::WriteSsd { .. }
                | Action::ReadSsd { .. }
                | Action::Fetch { .. }
                | Action::Discard { .. } => unreachable!("a core with DRAM alone names no other tier"),
            }
        }
        busy
    }

    fn answer(&mut self, now: Time, index: usize, id: ClientId, completion: Completion) {
        let Some(client) = self.groups[index].clients.get_mut(&id) else { return };
        if !client.connected {
            return;
        }
        let conn = client.conn;
        let kept_up = client.answer(completion);
        if client.control.client_sleeping() {
            self.wire.ring(conn);
        }
        if !kept_up {
            self.counts.client_faults += 1;
            self.refuse(now, conn, "the completion ring is full and too many answers wait: the client does not read");
        }
    }

    fn recall(&mut self, now: Time, index: usize, id: ClientId, pool: PoolId) {
        let Some(client) = self.groups[index].clients.get(&id).filter(|client| client.connected) else { return };
        let conn = client.conn;
        if let Err(error) = self.wire.send(conn, &ToClient::Recall { pool }, &[]) {
            self.refuse(now, conn, &format!("the socket does not take a recall: {error}"));
        }
    }

    /// Disconnects a client that holds too many pins and ignores its page: only its own views can then see other bytes,
    /// and `View::still_valid` tells.
    fn expel(&mut self, now: Time, index: usize, id: ClientId) {
        let group = &mut self.groups[index];
        let Some(client) = group.clients.get_mut(&id) else { return };
        tracing::warn!(client = id.0, name = client.name, "expelled: more bytes pinned than client.pin_bytes_max");
        client.expelled = true;
        client.control.set_expelled();
        let conn = client.conn;
        self.counts.clients_expelled += 1;
        group.core.kept_mut().remove_hazards(id);
        self.refuse(
            now,
            conn,
            "expelled: more bytes pinned than client.pin_bytes_max for longer than client.pin_age_max",
        );
    }

    /// Under pressure (slots wait for readers), a client over its bound of pinned bytes is warned, then expelled.
    fn watch_pins(&mut self, now: Time, index: usize) {
        let group = &mut self.groups[index];
        let waited_for = group.core.counts().slots_aside > 0;
        if !(waited_for || group.pins.is_watching()) || !group.pins.due(now) {
            return;
        }
        let mut pinned = Vec::new();
        for client in group.clients.values().filter(|client| waited_for && !client.expelled) {
            let mut bytes = 0;
            group.core.kept().hazards_of(client.id, &mut |slot| {
                bytes += u64::from(group.core.slot_units(slot).unwrap_or(0)) * UNIT_BYTES;
            });
            pinned.push((client.id, bytes));
        }
        let verdicts = group.pins.judge(now, &pinned);
        for id in verdicts.warn {
            if let Some(client) = group.clients.get(&id) {
                client.control.set_warned();
            }
        }
        for id in verdicts.pardon {
            if let Some(client) = group.clients.get(&id).filter(|client| !client.expelled) {
                client.control.clear_warning();
            }
        }
        for id in verdicts.expel {
            self.expel(now, index, id);
        }
    }
}

fn parent(parent: ParentRef) -> Parent {
    match parent {
        ParentRef::None => Parent::None,
        ParentRef::Previous => Parent::Previous,
        ParentRef::Key(key) => Parent::Key(key),
    }
}

fn put_result(put: Put) -> PutResult {
    match put {
        Put::Stored => PutResult::Stored,
        Put::Exists => PutResult::Exists,
        Put::Refused(reason) => PutResult::Refused(reason),
    }
}

fn completion(token: u64, reply: Reply) -> Option<Completion> {
    Some(match reply {
        Reply::Got { hit } => Completion::Got { token, hit },
        Reply::Granted { pool, slot_bytes, slots } => Completion::Granted { token, pool, slot_bytes, slots },
        Reply::Reserved { results } => Completion::Reserved {
            token,
            results: results
                .into_iter()
                .map(|result| match result {
                    Reserved::Slot(slot) => ReserveResult::Slot(slot),
                    Reserved::Exists => ReserveResult::Exists,
                    Reserved::Refused(reason) => ReserveResult::Refused(reason),
                })
                .collect(),
        },
        Reply::Committed { results } => {
            Completion::Committed { token, results: results.into_iter().map(put_result).collect() }
        }
        Reply::Removed { blocks } => Completion::Removed { token, blocks },
        Reply::Refused(reason) => Completion::Refused { token, reason },
        Reply::Done => return None,
    })
}
