//! One turn: lanes begin, completions are read, READs are posted, what is over is said.

use lapis_config::Time;

use super::{
    super::{
        asking::Asking,
        fetches::Piece,
        lane::{Change, Over},
        provider::Nic,
        work::{Which, Work},
    },
    Group, Mover,
};
use crate::peers::{
    links::LinkId,
    paths::{Came, FromPaths, PathKind},
};

impl<N: Nic> Mover<N> {
    /// Does all that can be done now. Whether anything completed.
    pub(in super::super) fn turn(&mut self, now: Time) -> bool {
        for asking in self.asking.values_mut() {
            asking.tick(now, self.groups.get(&asking.group), &mut self.changes);
        }
        self.begin_lanes(now);
        for asking in self.asking.values_mut() {
            asking.poll(now, &mut self.done, &mut self.changes);
        }
        let completed = !self.changes.is_empty();
        self.apply();
        let over: Vec<Over<N::Pair>> = self.asking.values_mut().flat_map(Asking::over).collect();
        over.into_iter().for_each(|over| self.destroy(over));
        for (op, link) in self.fetches.give_up(now) {
            if let Some(asking) = self.asking.get_mut(&link) {
                asking.take_back(now, op);
            }
        }
        self.looks.expire(now);
        self.pump(now);
        self.end_fetches();
        if std::mem::take(&mut self.changed) || self.lanes_changed() {
            self.tell_reaches();
        }
        completed
    }

    fn begin_lanes(&mut self, now: Time) {
        for (link, asking) in &mut self.asking {
            let group = asking.group;
            for (index, lane) in asking.lanes.iter_mut().enumerate() {
                let Some(session) = lane.begin(now) else { continue };
                let (lane_index, on) = (index as u8, self.nics[lane.nic].clone());
                let nics = self.nics.len();
                let memory = self.groups.entry(group).or_insert_with(|| Group::new(nics));
                match memory.domain(lane.nic, &on) {
                    Ok(domain) => {
                        let which = Which { link: *link, lane: lane_index, session };
                        self.work.push_back(Work::Make { which, on, domain });
                    }
                    Err(error) => {
                        lane.made(now, session, Err(error));
                    }
                }
            }
        }
    }

    fn pump(&mut self, now: Time) {
        loop {
            for (link, piece) in self.looks.assign().into_iter().rev() {
                match self.asking.get_mut(&link) {
                    Some(asking) => asking.add_first(piece),
                    None => self.looks.lost(&piece),
                }
            }
            let place = |piece: &Piece| self.fetches.place(piece).or_else(|| self.looks.place(piece));
            for asking in self.asking.values_mut() {
                let Some(memory) = self.groups.get(&asking.group) else { continue };
                asking.pump(now, memory, place, &mut self.changes, &mut self.nowhere);
            }
            // What one lane did not take another may; and a window that is not read leaves its place to another.
            let again = self.apply() | !self.nowhere.is_empty();
            for piece in self.nowhere.drain(..) {
                self.looks.lost(&piece);
                self.fetches.decide(piece.op, piece.block, Came::Not);
            }
            if !again {
                break;
            }
        }
    }

    /// What lanes say became of pieces. Whether one is to be posted again.
    fn apply(&mut self) -> bool {
        let mut again = false;
        for change in std::mem::take(&mut self.changes) {
            match change {
                Change::Given(piece) if self.looks.has(&piece) => self.looks.given(&piece),
                Change::Given(piece) => self.fetches.given(&piece),
                Change::Whole(piece) if self.looks.has(&piece) => {
                    self.looks.read(&piece);
                    // It may have a second home, and its place is another's turn.
                    again = true;
                }
                Change::Whole(piece) => {
                    if let Some(stored) = self.fetches.taken(&piece, true) {
                        self.work.push_back(Work::Check { op: piece.op, block: piece.block, stored });
                    }
                }
                Change::Back(piece) => again |= self.back(Piece { tries: piece.tries + 1, ..piece }),
                Change::Refused(piece) => again |= self.back(piece),
            }
        }
        again
    }

    fn back(&mut self, piece: Piece) -> bool {
        if self.looks.has(&piece) {
            self.looks.back(&piece);
        } else {
            self.fetches.taken(&piece, false);
        }
        if piece.bytes == 0 || self.fetches.place(&piece).or_else(|| self.looks.place(&piece)).is_none() {
            return false;
        }
        let link = self.fetches.link(piece.op).or_else(|| self.looks.link(piece.op));
        let again = link.and_then(|link| self.asking.get_mut(&link)).is_some_and(|asking| asking.again(piece));
        if !again {
            self.looks.lost(&piece);
            self.fetches.decide(piece.op, piece.block, Came::Not);
        }
        again
    }

    fn end_fetches(&mut self) {
        for (op, came) in self.fetches.ended() {
            self.out.push_back(FromPaths::Fetched { op, came, by: PathKind::Rdma });
        }
        while let Some((op, found)) = self.looks.ended() {
            self.out.push_back(FromPaths::Looked { op, found });
        }
    }

    fn lanes_changed(&self) -> bool {
        let up =
            |(link, asking): (&LinkId, &Asking<N>)| (*link, asking.lanes.iter().filter(|lane| lane.is_up()).count());
        !self.reaches.is_of(self.asking.iter().map(up))
    }

    pub(super) fn tell_reaches(&self) {
        let of = |asking: &Asking<N>| {
            let memory = self.groups.get(&asking.group);
            let up = asking.lanes.iter().filter(|lane| lane.is_up());
            up.map(|lane| (lane.there().clone(), memory.map(|m| m.spans(lane.nic)).unwrap_or_default())).collect()
        };
        self.reaches.set(self.asking.iter().map(|(link, asking)| (*link, of(asking))).collect());
    }

    // ---- What comes of it ----
}
