//! All that RDMA paths decide: which pairs there are, what is read by which, when to give up. Driven by calls with the time;
//! what takes long is handed out as `Work` and comes back as `Done`. No thread, no clock, no sleep: the threads that turn
//! this are in `rdma`, and a test turns it with NICs that lie.

mod turning;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::fd::BorrowedFd,
    sync::Arc,
};

use lapis_arena::{Mapping, StoredBlock};
use lapis_config::Time;

use super::{
    asking::Asking,
    fetches::{Fetches, Piece},
    guest::{Begun, Guest},
    lane::{Change, Lane, Over},
    looks::{Looks, SCRATCH_BYTES},
    memory::{Group, Holds, Shown},
    partner::partner,
    provider::{Completion, Nic, Pair},
    reach::Reaches,
    said::{REGIONS_MAX, Said},
    work::{Done, Which, Work},
};
use crate::peers::{
    links::LinkId,
    paths::{Came, FromPaths, ToPaths},
};

pub(super) struct Mover<N: Nic> {
    // Pairs are destroyed before the memory that they read into is forgotten: fields are dropped in this order.
    asking: BTreeMap<LinkId, Asking<N>>,
    guests: BTreeMap<LinkId, Guest<N::Pair>>,
    groups: BTreeMap<usize, Group<N>>,
    nics: Vec<Arc<N>>,
    /// Those whose devices are gone.
    gone: BTreeSet<usize>,
    fetches: Fetches,
    /// What pairs have that are being destroyed.
    destroying: BTreeMap<u64, Vec<Piece>>,
    destroyed: u64,
    looks: Looks,
    work: VecDeque<Work<N>>,
    out: VecDeque<FromPaths>,
    reaches: Arc<Reaches>,
    /// `reaches` is to be told anew.
    changed: bool,
    // Buffers.
    done: Vec<Completion>,
    changes: Vec<Change>,
    nowhere: Vec<Piece>,
}

impl<N: Nic> Mover<N> {
    pub(super) fn new(nics: Vec<Arc<N>>, reaches: Arc<Reaches>) -> Self {
        Self {
            asking: BTreeMap::new(),
            guests: BTreeMap::new(),
            groups: BTreeMap::new(),
            nics,
            gone: BTreeSet::new(),
            fetches: Fetches::default(),
            destroying: BTreeMap::new(),
            destroyed: 0,
            looks: Looks::default(),
            work: VecDeque::new(),
            out: VecDeque::new(),
            reaches,
            changed: false,
            done: Vec::new(),
            changes: Vec::new(),
            nowhere: Vec::new(),
        }
    }

    // ---- What is wanted ----

    pub(super) fn tell(&mut self, now: Time, job: ToPaths) {
        match job {
            ToPaths::Memory { group, first, mapping, node } => {
                self.memory(group, Holds::Blocks(first), mapping, node);
            }
            ToPaths::Table { group, mapping, shape } => {
                self.memory(group, Holds::Table(shape), mapping, None);
                self.scratch(group);
            }
            ToPaths::Guest { group, link, .. } => {
                self.guests.insert(link, Guest::new(group));
            }
            ToPaths::GuestGone { link } => {
                if let Some(guest) = self.guests.remove(&link) {
                    self.destroy_guests(guest.into_pairs());
                }
            }
            ToPaths::Peer { group, link, peer, .. } => {
                let mut asking: Asking<N> = Asking::new(group, format!("peer {}, link {}", peer.0, link.0));
                self.nics.iter().enumerate().for_each(|(nic, on)| asking.add_lane(now, nic, on));
                self.asking.insert(link, asking);
            }
            ToPaths::PeerGone { link } => self.peer_gone(now, link),
            ToPaths::Fetch(fetch) => {
                let link = fetch.link;
                let pieces = self.fetches.begin(now, fetch);
                let empty: Vec<(Piece, StoredBlock)> =
                    pieces.iter().filter_map(|piece| Some((*piece, self.fetches.empty(piece)?))).collect();
                for (piece, stored) in empty {
                    self.work.push_back(Work::Check { op: piece.op, block: piece.block, stored });
                }
                match self.asking.get_mut(&link) {
                    Some(asking) => asking.add(pieces.into_iter().filter(|piece| piece.bytes > 0)),
                    None => self.fetches.fail_all(link),
                }
            }
            ToPaths::Look(look) => {
                let asking = self.asking.get(&look.link).map(|asking| (asking.group, asking.table()));
                let (group, table) = asking.unwrap_or_default();
                self.looks.begin(now, group, look, table);
            }
            ToPaths::Heard { link, said } => self.heard(now, link, &said),
            // Its own memory may be read by each that may ask.
            ToPaths::Lend { .. } | ToPaths::Unlend { .. } => {}
        }
    }

    fn group(&mut self, group: usize) -> &mut Group<N> {
        let nics = self.nics.len();
        self.groups.entry(group).or_insert_with(|| Group::new(nics))
    }

    fn memory(&mut self, group: usize, holds: Holds, mapping: Mapping, node: Option<u32>) {
        let memory = self.group(group).add(holds, mapping.clone(), node);
        (0..self.nics.len()).for_each(|nic| self.register(group, memory, nic, holds, mapping.clone()));
    }

    fn register(&mut self, group: usize, memory: usize, nic: usize, holds: Holds, mapping: Mapping) {
        let on = self.nics[nic].clone();
        let (start, what_for) = (holds.start(), holds.what_for());
        match self.group(group).domain(nic, &on) {
            Ok(domain) => {
                self.work.push_back(Work::Register { group, memory, nic, on, domain, mapping, start, what_for });
            }
            Err(error) => tracing::warn!(nic = on.name(), group, %error, "no protection domain: TCP is used"),
        }
    }

    /// There is a NIC more.
    pub(super) fn add(&mut self, now: Time, on: Arc<N>) {
        let nic = self.nics.len();
        self.asking.values_mut().for_each(|asking| asking.add_lane(now, nic, &on));
        self.nics.push(on);
        for group in self.groups.keys().copied().collect::<Vec<usize>>() {
            for (memory, (holds, of)) in self.group(group).add_nic().into_iter().enumerate() {
                self.register(group, memory, nic, holds, of);
            }
        }
    }

    /// A NIC's device is gone, with all that it had under way. One of its name that comes back is another.
    pub(super) fn lose(&mut self, now: Time, nic: usize) {
        tracing::warn!(nic = self.nics[nic].name(), "the device is gone: removed, or its driver was loaded anew");
        self.gone.insert(nic);
        let lanes = self.asking.values_mut().flat_map(|asking| &mut asking.lanes);
        lanes.filter(|lane| lane.nic == nic).for_each(|lane| lane.kill(now, "its device is gone"));
    }

    /// Into which tables of others are read.
    fn scratch(&mut self, group: usize) {
        if self.looks.has_scratch(group) {
            return;
        }
        match Mapping::anonymous(SCRATCH_BYTES) {
            Ok(mapping) => {
                self.memory(group, Holds::Scratch, mapping.clone(), None);
                self.looks.add_scratch(group, mapping);
            }
            Err(error) => tracing::warn!(group, %error, "no memory to look keys up in: peers are asked"),
        }
    }

    fn peer_gone(&mut self, now: Time, link: LinkId) {
        if let Some(mut asking) = self.asking.remove(&link) {
            asking.close(now);
            asking.over().for_each(|over| self.destroy(over));
            self.changed = true;
        }
        self.fetches.fail_all(link);
        self.looks.fail_all(link);
    }

    fn destroy(&mut self, Over { pair, pieces }: Over<N::Pair>) {
        self.destroyed += 1;
        self.destroying.insert(self.destroyed, pieces);
        self.work.push_back(Work::Destroy { number: self.destroyed, pair });
    }

    /// What nobody waits for any more.
    fn destroy_unused(&mut self, pair: Option<N::Pair>) {
        if let Some(pair) = pair {
            self.destroy(Over { pair, pieces: Vec::new() });
        }
    }

    /// Nothing is read by these from now on; they are destroyed when there is time for it.
    fn destroy_guests(&mut self, pairs: impl IntoIterator<Item = N::Pair>) {
        for mut pair in pairs {
            match pair.fail() {
                Ok(()) => self.destroy(Over { pair, pieces: Vec::new() }),
                Err(_) => drop(pair),
            }
        }
    }

    // ---- What the other sides say ----

    fn heard(&mut self, now: Time, link: LinkId, said: &[u8]) {
        let said = match Said::decode(said) {
            Ok(said) => said,
            Err(error) => return tracing::warn!(link = link.0, %error, "the peer's RDMA paths said what is not known"),
        };
        match said {
            Said::Begin { lane, session, nic, end } => self.begun(link, lane, Begun { session, nic, end }),
            Said::Answer { lane, session, end, .. } => {
                let Some(of) = self.lane(link, lane) else { return };
                if let Some(pair) = of.answered(now, session, &end) {
                    let which = Which { link, lane, session };
                    self.work.push_back(Work::Connect { which, pair, there: end });
                }
            }
            Said::Refused { lane, session, reason } => {
                if let Some(of) = self.lane(link, lane) {
                    of.refused(now, session, &reason);
                }
            }
            Said::Regions { lane, session, regions } => {
                if let Some(of) = self.lane(link, lane) {
                    of.regions(now, session, &regions);
                    self.changed = true;
                }
            }
            Said::Table { lane, session, shape, regions } => {
                if let Some(of) = self.lane(link, lane) {
                    of.table(session, shape, &regions);
                    self.changed = true;
                }
            }
        }
    }

    fn lane(&mut self, link: LinkId, lane: u8) -> Option<&mut Lane<N::Pair>> {
        self.asking.get_mut(&link)?.lanes.get_mut(usize::from(lane))
    }

    fn begun(&mut self, link: LinkId, lane: u8, begun: Begun) {
        let Some(guest) = self.guests.get_mut(&link) else { return };
        let group = guest.group;
        let Some(Begun { session, nic, end }) = guest.begun(lane, begun) else { return };
        let refuse = |reason: String| FromPaths::Say { link, said: Said::Refused { lane, session, reason }.encode() };
        let there = self.nics.iter().enumerate().filter(|(index, _)| !self.gone.contains(index));
        let kinds = there.map(|(index, nic)| (index, (nic.kind(), nic.name())));
        let Some(index) = partner(kinds, &nic, end.kind, lane) else {
            return self.out.push_back(refuse(format!("no NIC here has an address like that of {nic}")));
        };
        let on = self.nics[index].clone();
        match self.group(group).domain(index, &on) {
            Ok(domain) => {
                let former = self.guests.get_mut(&link).expect("found above").making(lane, session, index);
                self.destroy_guests(former);
                let which = Which { link, lane, session };
                self.work.push_back(Work::Accept { which, on, domain, there: end });
            }
            Err(error) => self.out.push_back(refuse(format!("no protection domain on {}: {error}", on.name()))),
        }
    }

    // ---- What ended elsewhere ----

    pub(super) fn done(&mut self, now: Time, done: Done<N>) {
        match done {
            Done::Registered { group, memory, nic, parts: Ok(parts) } => {
                let shown = self.group(group).registered(memory, nic, parts);
                let guests = self.guests.iter().filter(|(_, guest)| guest.group == group);
                for (link, guest) in guests {
                    for (lane, session) in guest.up_on(nic) {
                        show(&mut self.out, *link, lane, session, &shown);
                    }
                }
                self.changed = true;
            }
            Done::Registered { nic, parts: Err(error), .. } => {
                let nic = self.nics[nic].name();
                let cure = match error.raw_os_error() {
                    Some(libc::ENOMEM) => "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited in a shell",
                    _ => "see lapis doctor",
                };
                tracing::warn!(nic, %error, cure, "memory cannot be made known to a NIC: it goes by TCP");
            }
            Done::Made { which: Which { link, lane, session }, pair } => {
                let nic = self.asking.get(&link).and_then(|asking| asking.lanes.get(usize::from(lane)));
                let nic = nic.map(|lane| self.nics[lane.nic].name().to_owned());
                let end = match self.lane(link, lane) {
                    Some(lane) => lane.made(now, session, pair),
                    None => {
                        self.destroy_unused(pair.ok());
                        None
                    }
                };
                if let (Some(nic), Some(end)) = (nic, end) {
                    let said = Said::Begin { lane, session, nic, end }.encode();
                    self.out.push_back(FromPaths::Say { link, said });
                }
            }
            Done::Connected { which: Which { link, lane, session }, pair } => {
                if let Some(of) = self.lane(link, lane) {
                    of.connected(now, session, pair);
                    self.changed = true;
                } else {
                    self.destroy_unused(pair.ok());
                }
            }
            Done::Accepted { which, pair } => self.accepted(which, pair),
            Done::Destroyed { number } => {
                let pieces = self.destroying.remove(&number).expect("each is destroyed once");
                self.changes.extend(pieces.into_iter().map(Change::Back));
            }
            Done::Found { nic } => self.add(now, nic),
            Done::Checked { op, block, sound } => {
                self.fetches.decide(op, block, if sound { Came::Whole } else { Came::Corrupt });
            }
        }
    }

    fn accepted(&mut self, Which { link, lane, session }: Which, pair: std::io::Result<N::Pair>) {
        let Some(guest) = self.guests.get_mut(&link) else { return self.destroy_unused(pair.ok()) };
        let (group, end) = (guest.group, pair.as_ref().ok().map(Pair::end));
        let why = pair.as_ref().err().map(ToString::to_string);
        let mut pair = pair.ok();
        let (nic, next) = guest.made(lane, session, &mut pair);
        self.destroy_unused(pair);
        match (nic.zip(end), next) {
            (Some((index, end)), _) => {
                let nic = self.nics[index].name().to_owned();
                let said = Said::Answer { lane, session, nic, end }.encode();
                self.out.push_back(FromPaths::Say { link, said });
                let shown: Vec<Shown> = self.group(group).shown(index).collect();
                shown.iter().for_each(|shown| show(&mut self.out, link, lane, session, shown));
            }
            (None, Some(next)) => self.begun(link, lane, next),
            (None, None) => {
                if let Some(reason) = why {
                    let said = Said::Refused { lane, session, reason }.encode();
                    self.out.push_back(FromPaths::Say { link, said });
                }
            }
        }
    }

    pub(super) fn poll(&mut self) -> Option<FromPaths> {
        self.out.pop_front()
    }

    pub(super) fn poll_work(&mut self) -> Option<Work<N>> {
        self.work.pop_front()
    }

    #[cfg(test)]
    pub(super) fn looks_are_idle(&self) -> bool {
        self.looks.is_idle()
    }

    /// When to turn again if nothing happens.
    pub(super) fn next_at(&self) -> Option<Time> {
        self.asking.values().filter_map(Asking::next_at).chain(self.fetches.next_at()).chain(self.looks.next_at()).min()
    }

    /// Before sleep: the NICs tell of what completes from now on.
    pub(super) fn arm(&mut self, now: Time) {
        self.nics.iter().for_each(|nic| nic.take_events());
        self.asking.values_mut().flat_map(|asking| &mut asking.lanes).for_each(|lane| lane.arm(now));
    }

    /// By NIC.
    pub(super) fn events(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let there = self.nics.iter().enumerate().filter(|(index, _)| !self.gone.contains(index));
        there.filter_map(|(index, nic)| Some((index, nic.events()?)))
    }
}

fn show(out: &mut VecDeque<FromPaths>, link: LinkId, lane: u8, session: u32, shown: &Shown) {
    let mut say = |said: Said| out.push_back(FromPaths::Say { link, said: said.encode() });
    match shown {
        Shown::Nothing => {}
        Shown::Blocks(regions) => regions
            .chunks(REGIONS_MAX)
            .for_each(|regions| say(Said::Regions { lane, session, regions: regions.to_vec() })),
        Shown::Table(shape, regions) => say(Said::Table { lane, session, shape: *shape, regions: regions.clone() }),
    }
}
