//! A peer whose blocks are fetched: its lanes, and what waits for one.

use std::collections::VecDeque;

use lapis_arena::table::TableShape;
use lapis_config::Time;

use super::{
    fetches::{Piece, Place},
    lane::{Change, Lane, Over},
    memory::{Group, Stretch},
    pace,
    provider::{Completion, Nic},
    said::LANES_MAX,
};

/// Bytes of one READ, at most.
const SLICE_BYTES: u64 = 1 << 20;
/// How often a piece is tried, on one lane or several.
const TRIES_MAX: u8 = 3;

pub(super) struct Asking<N: Nic> {
    pub group: usize,
    /// Of the link, for the log.
    name: String,
    pub lanes: Vec<Lane<N::Pair>>,
    queue: VecDeque<Piece>,
}

/// Where a piece goes.
enum Choice {
    Post {
        lane: usize,
        from: Stretch,
        into: Stretch,
        bytes: u32,
    },
    /// All lanes that could have it have enough.
    Wait,
    /// No lane that is up can have it, or none in time.
    Nowhere,
}

impl<N: Nic> Asking<N> {
    pub(super) fn new(group: usize, name: String) -> Self {
        Self { group, name, lanes: Vec::new(), queue: VecDeque::new() }
    }

    /// By another NIC too, unless there are lanes enough.
    pub(super) fn add_lane(&mut self, now: Time, nic: usize, on: &N) {
        if self.lanes.len() < LANES_MAX {
            self.lanes.push(Lane::new(now, nic, on.node(), format!("{}, {}", self.name, on.name())));
        }
    }

    pub(super) fn add(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        self.queue.extend(pieces);
    }

    /// A piece of a look: they are small, and a fetch waits for what they find.
    pub(super) fn add_first(&mut self, piece: Piece) {
        self.queue.push_front(piece);
    }

    /// What can be looked up, and where: the lanes of a link are of one owner, but who lies may say as many tables.
    pub(super) fn table(&self) -> Option<TableShape> {
        self.lanes.iter().filter(|lane| lane.is_up()).find_map(|lane| lane.there().table())
    }

    /// A piece came back that is still wanted: tried again, unless it was often enough.
    pub(super) fn again(&mut self, piece: Piece) -> bool {
        let again = piece.tries < TRIES_MAX && self.lanes.iter().any(Lane::is_up);
        if again {
            self.queue.push_front(piece);
        }
        again
    }

    /// Posts what can be posted; pieces that no lane can have are handed to `nowhere`.
    pub(super) fn pump<'a>(
        &mut self,
        now: Time,
        memory: &Group<N>,
        place: impl Fn(&Piece) -> Option<Place<'a>>,
        changes: &mut Vec<Change>,
        nowhere: &mut Vec<Piece>,
    ) {
        while let Some(piece) = self.queue.pop_front() {
            // Decided meanwhile: its fetch gave up, or another piece of its block failed.
            let Some(place) = place(&piece) else { continue };
            match self.choose(now, memory, &piece, &place) {
                Choice::Post { lane, from, into, bytes } => {
                    if bytes < piece.bytes {
                        self.queue.push_front(Piece { at: piece.at + bytes, bytes: piece.bytes - bytes, ..piece });
                    }
                    self.lanes[lane].post(now, Piece { bytes, ..piece }, from, into, changes);
                }
                Choice::Wait => {
                    self.queue.push_front(piece);
                    break;
                }
                Choice::Nowhere => nowhere.push(piece),
            }
        }
        self.lanes.iter_mut().for_each(|lane| lane.flush(now, changes));
    }

    fn choose(&self, now: Time, memory: &Group<N>, piece: &Piece, place: &Place<'_>) -> Choice {
        let reach = |lane: &Lane<N::Pair>| {
            let from = lane.there().at(place.from)?;
            let into = memory.here(lane.nic, place.mapping, place.offset)?;
            let bytes = from.bytes.min(into.bytes).min(SLICE_BYTES).min(piece.bytes.into());
            Some((from, into, bytes as u32))
        };
        let up = || self.lanes.iter().enumerate().filter(|(_, lane)| lane.is_up() && reach(lane).is_some());
        let room = up().filter(|(_, lane)| lane.has_room(piece.bytes.min(SLICE_BYTES as u32)));
        let node = memory.node_of(place.mapping);
        let is_near = |lane: &Lane<N::Pair>| node.is_some() && lane.node == node;
        let paces = room.map(|(index, lane)| (index, is_near(lane), &lane.pace));
        let Some(lane) = pace::soonest(paces, piece.bytes.into()) else {
            return if up().next().is_some() { Choice::Wait } else { Choice::Nowhere };
        };
        let (from, into, bytes) = reach(&self.lanes[lane]).expect("just seen");
        // What has no hope is not begun: to take it back would cost all others their pair. Twice as fast as on average
        // is hope; and a lane that does nothing else may try.
        let pace = &self.lanes[lane].pace;
        let left_us = place.deadline.since_us(now);
        if pace.under_way() > 0 && pace.finish_us(bytes.into(), None) / 2 > left_us {
            return Choice::Nowhere;
        }
        Choice::Post { lane, from, into, bytes }
    }

    pub(super) fn poll(&mut self, now: Time, done: &mut Vec<Completion>, changes: &mut Vec<Change>) {
        self.lanes.iter_mut().for_each(|lane| lane.poll(now, done, changes));
    }

    pub(super) fn tick(&mut self, now: Time, memory: Option<&Group<N>>, changes: &mut Vec<Change>) {
        for lane in &mut self.lanes {
            lane.tick(now, changes);
            if let Some(scratch) = memory.and_then(|memory| memory.scratch(lane.nic)) {
                lane.try_out(now, scratch);
            }
        }
    }

    /// A fetch gave up: the lanes that have some of it let go of it.
    pub(super) fn take_back(&mut self, now: Time, op: u64) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.has_of(op)) {
            lane.kill(now, "it did not read all in time");
        }
    }

    /// Its pairs are over.
    pub(super) fn close(&mut self, now: Time) {
        self.queue.clear();
        self.lanes.iter_mut().for_each(|lane| lane.close(now));
    }

    pub(super) fn over(&mut self) -> impl Iterator<Item = Over<N::Pair>> {
        self.lanes.iter_mut().flat_map(|lane| lane.over.drain(..))
    }

    pub(super) fn next_at(&self) -> Option<Time> {
        self.lanes.iter().filter_map(Lane::next_at).min()
    }
}
