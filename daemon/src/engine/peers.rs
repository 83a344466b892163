//! The engine's side of other hosts: what comes over connections goes to the pure half (`peers::host`), and what that wants
//! done is done here.
//!
//! Invariant: whatever another host said is believed for the connection on which it was said, no longer.

mod asking;
mod drain;
mod filling;
mod greeting;
mod guests;
mod looking;

pub(super) use asking::is_remote;
pub(crate) use drain::Drain;
pub use drain::DrainReport;

use std::collections::BTreeSet;

use filling::Answer;
use lapis_config::{Key, PoolId, Refusal, SlotId, Time, UNIT_BYTES};
use lapis_membership::KnownBy;
use lapis_tiering::face::{Caller, Reply};
use lapis_transport::{
    frame::Completion,
    peers::{
        directory::PeerId,
        host::{Do, Link},
        links::{LinkEvent, LinkId, Links},
        message::PeerMessage,
        paths::{FromPaths, ToPaths},
    },
    wire::Wire,
};

use super::Engine;
use crate::{
    group::Extent,
    movers::{Job, Movers},
    peers::{FETCHER, FETCHER_AHEAD, GroupPeers, LinkRole, Looking, Member, Offered, PeerCounts, Peers, PeersOptions},
};

/// Messages taken from connections between two looks at clients.
const EVENTS_PER_TURN: usize = 256;

impl<W: Wire, M: Movers> Engine<W, M> {
    /// From now on there are other hosts. Called before the first turn: what is here is told from the start.
    pub fn join_peers(&mut self, now: Time, options: PeersOptions, links: Box<dyn Links>) {
        let mut peers = Peers::new(links, options);
        for group in &mut self.groups {
            let boot = (self.entropy)();
            let mut own = GroupPeers::new(now, &peers.options, group, boot);
            for member in peers.options.members.iter().filter(|member| member.name != peers.options.host) {
                own.join(now, member.clone());
            }
            group.core.kept_mut().take_changes();
            peers.groups.push(own);
        }
        self.peers = Some(peers);
        for index in 0..self.groups.len() {
            (0..self.groups[index].extents.len()).for_each(|extent| self.show_memory(index, extent));
            self.show_table(index);
            self.pump_peers(now, index);
        }
    }

    /// Paths may have to make memory known to a device, once all of an extent is populated.
    pub(super) fn show_memory(&mut self, index: usize, extent: usize) {
        let extents = &self.groups[index].extents;
        let own = &extents[extent];
        if self.peers.is_none() || own.populated_bytes < own.bytes() {
            return;
        }
        let before: u64 = extents[..extent].iter().map(Extent::bytes).sum();
        let first = SlotId((before / UNIT_BYTES) as u32);
        let (mapping, node) = (own.mapping.clone(), self.groups[index].options.spread.node_of(extent));
        self.movers.submit(Job::Paths(ToPaths::Memory { group: index, first, mapping, node }));
    }

    /// Others come and go; who stays keeps its connections.
    pub fn set_members(&mut self, now: Time, members: Vec<Member>) {
        let Some(peers) = &mut self.peers else { return };
        let own = &peers.options.host;
        let members: Vec<Member> = members.into_iter().filter(|member| member.name != *own).collect();
        for group in &mut peers.groups {
            let gone: Vec<PeerId> =
                group.members.iter().filter(|(_, known)| !members.contains(known)).map(|(&peer, _)| peer).collect();
            gone.into_iter().for_each(|peer| group.leave(now, peer));
            for member in &members {
                if !group.members.values().any(|known| known == member) {
                    group.join(now, member.clone());
                }
            }
        }
        peers.options.members = members;
        self.greet_known(now);
        for index in 0..self.groups.len() {
            self.pump_peers(now, index);
        }
    }

    /// How the list of others is known, for whoever asks for the status.
    pub fn set_known_by(&mut self, known_by: KnownBy) {
        if let Some(peers) = &mut self.peers {
            peers.known_by = known_by;
        }
    }

    /// Of a group; zeros where there are no other hosts.
    pub fn peer_counts(&self, index: usize) -> PeerCounts {
        let Some(group) = self.peers.as_ref().map(|peers| &peers.groups[index]) else { return PeerCounts::default() };
        PeerCounts { members: group.members.len() as u64, up: group.host.up() as u64, ..group.counts }
    }

    /// Takes in what connections said, what changed here, and what became due.
    pub(super) fn peers_turn(&mut self, now: Time) -> bool {
        if self.peers.is_none() {
            return false;
        }
        let mut busy = false;
        for _ in 0..EVENTS_PER_TURN {
            let Some(event) = self.peers.as_mut().and_then(|peers| peers.links.poll()) else { break };
            busy = true;
            self.link_event(now, event);
        }
        busy |= self.refuse_unknown(now);
        for index in 0..self.groups.len() {
            self.open_pools(index);
            self.tell_changes(now, index);
            let own = self.group_peers(index);
            if own.host.poll_timeout().is_some_and(|at| at <= now) {
                own.host.tick(now);
                busy = true;
            }
            busy |= self.expire_lent(now, index);
            busy |= self.expire_parked(now, index);
            if self.drain_timeout(index).is_some_and(|at| at <= now) {
                self.pump_drain(now, index);
                busy = true;
            }
            busy |= self.pump_peers(now, index);
        }
        busy
    }

    pub(super) fn peers_timeout(&self) -> Option<Time> {
        let drains = (0..self.groups.len()).filter_map(|index| self.drain_timeout(index)).min();
        let peers = self.peers.as_ref()?;
        let strangers = peers.strangers.poll_timeout();
        peers.groups.iter().filter_map(GroupPeers::timeout).chain(drains).chain(strangers).min()
    }

    /// This host goes away: others ask it for no more.
    pub(super) fn leave_peers(&mut self, now: Time) {
        let Some(peers) = &mut self.peers else { return };
        peers.groups.iter_mut().for_each(|group| group.host.go());
        for index in 0..self.groups.len() {
            self.pump_peers(now, index);
        }
    }

    /// Pools that clients have opened, or that were found on SSD, are told to peers.
    fn open_pools(&mut self, index: usize) {
        let host = &mut self.peers.as_mut().expect("looked at by the caller").groups[index].host;
        if host.pools() == self.groups[index].shapes.len() {
            return;
        }
        for (&pool, (shape, _)) in &self.groups[index].shapes {
            if !host.has_pool(pool) {
                host.pool_opened(pool, shape.clone());
            }
        }
    }

    fn group_peers(&mut self, index: usize) -> &mut GroupPeers {
        &mut self.peers.as_mut().expect("asked for where there are peers").groups[index]
    }

    fn tell_changes(&mut self, now: Time, index: usize) {
        let kept = self.groups[index].core.kept_mut();
        if !kept.has_changes() {
            return;
        }
        let changes = kept.take_changes();
        let own = self.group_peers(index);
        let mut stirred = BTreeSet::new();
        for change in changes {
            own.host.changed(now, change.pool, &change.key, change.came);
            stirred.extend(own.coming.get(&(change.pool, change.key)).filter(|_| change.came));
        }
        stirred.into_iter().for_each(|want| self.came_otherwise(now, index, want));
    }

    // ---- Connections ----

    fn link_event(&mut self, now: Time, event: LinkEvent) {
        let peers = self.peers.as_mut().expect("looked at by the caller");
        match event {
            LinkEvent::Dialled { link, local, remote, .. } => {
                if let Some((group, peer)) = peers.is_asking(link) {
                    peers.roles.insert(link, LinkRole::Asking { group, peer, local, remote });
                    peers.groups[group].host.dialled(now, peer);
                }
            }
            LinkEvent::Accepted { link, certified, .. } => {
                peers.roles.insert(link, LinkRole::Greeting { certified });
            }
            LinkEvent::Message { link, message } => self.link_message(now, link, message),
            LinkEvent::Room { .. } => {}
            LinkEvent::Closed { link, reason } => self.link_closed(now, link, reason),
        }
    }

    fn link_message(&mut self, now: Time, link: LinkId, message: PeerMessage) {
        let peers = self.peers.as_mut().expect("looked at by the caller");
        match peers.roles.get(&link) {
            Some(LinkRole::Asking { group, peer, .. }) => {
                let (group, peer) = (*group, *peer);
                peers.groups[group].host.answered(now, peer, message);
            }
            Some(LinkRole::Guest { group, .. }) => peers.groups[*group].host.asked(now, link.0, message),
            Some(LinkRole::Greeting { certified }) => {
                let certified = certified.clone();
                self.greeted(now, link, certified, message);
            }
            Some(LinkRole::Dialling { .. }) | None => {}
        }
    }

    fn link_closed(&mut self, now: Time, link: LinkId, reason: String) {
        let peers = self.peers.as_mut().expect("looked at by the caller");
        peers.strangers.gone(link);
        match peers.roles.remove(&link) {
            Some(LinkRole::Dialling { group, peer } | LinkRole::Asking { group, peer, .. }) => {
                let own = &mut peers.groups[group];
                if own.to.get(&peer) == Some(&link) {
                    own.to.remove(&peer);
                    note(own, peer, &reason);
                    own.host.lost(now, peer);
                }
                self.movers.submit(Job::Paths(ToPaths::PeerGone { link }));
            }
            Some(LinkRole::Guest { group, .. }) => {
                tracing::debug!(link = link.0, reason, "a host that asked is gone");
                peers.groups[group].host.gone(link.0);
                // Its role went before: what is to end is found by its number.
                self.pump_peers(now, group);
            }
            Some(LinkRole::Greeting { .. }) => tracing::debug!(link = link.0, reason, "a connection ended unused"),
            None => {}
        }
    }

    // ---- What the pure half wants ----

    /// Does what the group's host wants done. True if that was anything.
    pub(super) fn pump_peers(&mut self, now: Time, index: usize) -> bool {
        if self.peers.is_none() {
            return false;
        }
        let mut busy = false;
        while let Some(todo) = self.group_peers(index).host.poll() {
            busy = true;
            self.peers_do(now, index, todo);
        }
        busy | self.send_to_guests(index)
    }

    fn peers_do(&mut self, now: Time, index: usize, todo: Do) {
        match todo {
            Do::Dial(peer) => self.dial(index, peer),
            Do::Send(link, message) => {
                let peers = self.peers.as_mut().expect("looked at by the caller");
                if let Some(link) = peers.groups[index].link(link) {
                    peers.links.send(link, message);
                }
            }
            Do::HangUp(link, reason) => self.hang_up_peer(index, link, &reason),
            Do::Up(peer, hello) => self.peer_up(index, peer, &hello),
            Do::Down(peer) => {
                // It may have been the last one.
                self.pump_drain(now, index);
                let table = &self.groups[index].core.kept().table;
                let peers = self.peers.as_mut().expect("looked at by the caller");
                table.set_peers(peers.groups[index].host.up() as u64);
                if let Some(&link) = peers.groups[index].to.get(&peer) {
                    self.movers.submit(Job::Paths(ToPaths::PeerGone { link }));
                }
            }
            Do::Path(peer, said) => {
                if let Some(&link) = self.group_peers(index).to.get(&peer) {
                    self.movers.submit(Job::Paths(ToPaths::Heard { link, said }));
                }
            }
            Do::Guest(link, name) => self.guest_came(index, LinkId(link), &name),
            Do::Asked(link, asked) => self.guest_asked(now, index, LinkId(link), asked),
            Do::Gone(link) => self.guest_gone(index, LinkId(link)),
            Do::Read { want, peer, call, looked, parent, blocks } => {
                self.begin_fill(now, index, Answer { want, peer, call, looked, parent }, blocks)
            }
            Do::Look { want, peer, call, pool, keys, within } => {
                let looking = Looking { peer, call, keys, parents: Vec::new() };
                self.begin_look(now, index, want, pool, within, looking);
            }
            Do::Offered { offer, came } => self.offer_answered(now, index, offer, came),
            Do::Ended { want, came } => self.want_ended(now, index, want, came),
        }
    }

    fn dial(&mut self, index: usize, peer: PeerId) {
        let peers = self.peers.as_mut().expect("looked at by the caller");
        let own = &mut peers.groups[index];
        let Some(member) = own.members.get(&peer) else { return };
        let link = peers.links.dial(&member.name, &member.address);
        if let Some(former) = own.to.insert(peer, link) {
            peers.roles.remove(&former);
            peers.links.hang_up(former);
        }
        peers.roles.insert(link, LinkRole::Dialling { group: index, peer });
    }

    fn hang_up_peer(&mut self, index: usize, link: Link, reason: &str) {
        let peers = self.peers.as_mut().expect("looked at by the caller");
        let own = &mut peers.groups[index];
        match link {
            Link::To(peer) => {
                note(own, peer, reason);
                let Some(link) = own.to.remove(&peer) else { return };
                peers.roles.remove(&link);
                peers.links.hang_up(link);
                self.movers.submit(Job::Paths(ToPaths::PeerGone { link }));
            }
            Link::From(number) => {
                let link = LinkId(number);
                tracing::warn!(link = number, reason, "a connection of another host is refused");
                while let Some(message) = own.host.poll_send(number) {
                    peers.links.send(link, message);
                }
                own.host.gone(number);
                peers.links.hang_up(link);
            }
        }
    }

    fn peer_up(&mut self, index: usize, peer: PeerId, hello: &lapis_transport::peers::message::PeerHello) {
        let table = &self.groups[index].core.kept().table;
        let peers = self.peers.as_mut().expect("looked at by the caller");
        let own = &mut peers.groups[index];
        own.reasons.remove(&peer);
        table.set_peers(own.host.up() as u64);
        tracing::info!(group = self.groups[index].options.name, host = hello.host, "a peer is there");
        let Some(&link) = own.to.get(&peer) else { return };
        let Some(&LinkRole::Asking { local, remote, .. }) = peers.roles.get(&link) else { return };
        let address = std::net::SocketAddr::new(remote.ip(), hello.data_port);
        let (word, host) = (hello.data_word, hello.host.clone());
        self.movers.submit(Job::Paths(ToPaths::Peer { group: index, peer, host, link, local, address, word }));
    }

    /// The core has answered a guest, or the daemon's own client.
    pub(super) fn remote_answered(&mut self, now: Time, index: usize, to: Caller, reply: Reply) {
        if self.peers.is_none() {
            return;
        }
        if to.client == FETCHER || to.client == FETCHER_AHEAD {
            self.fetcher_answered(now, index, to.token, reply);
        } else {
            self.guest_answered(now, index, to, &reply);
        }
    }

    pub(super) fn prefetch_from_peers(&mut self, now: Time, index: usize, pool: PoolId, keys: &[Key]) {
        self.want_ahead(now, index, pool, keys, now.after(asking::PREFETCH_WITHIN), None);
    }

    /// A local client offers blocks to a peer.
    #[allow(clippy::too_many_arguments, reason = "the request has so many parts")]
    pub(super) fn offer(
        &mut self,
        now: Time,
        index: usize,
        to: Caller,
        peer: &str,
        pool: PoolId,
        keys: &[Key],
        until: Time,
    ) {
        let own = self.peers.as_mut().map(|peers| &mut peers.groups[index]);
        let offer = own.and_then(|own| {
            let offer = own.host.offer(now, own.host.peer(peer)?, pool, keys, until)?;
            own.offers.insert(offer, Offered::By(to));
            Some(offer)
        });
        if offer.is_none() {
            let (token, reason) = (to.token, Refusal::NoPeer);
            return self.answer(now, index, to.client, Completion::Refused { token, reason });
        }
        self.pump_peers(now, index);
    }

    fn offer_answered(&mut self, now: Time, index: usize, offer: u64, came: u32) {
        match self.group_peers(index).offers.remove(&offer) {
            Some(Offered::By(to)) => self.answer(now, index, to.client, Completion::Got { token: to.token, hit: came }),
            Some(Offered::ByDrain) => self.drain_answered(now, index, came),
            None => {}
        }
    }

    /// Blocks were removed here: their copies at other hosts go too.
    pub(super) fn tell_removed(&mut self, now: Time, index: usize, pool: PoolId, keys: &[Key]) {
        if self.peers.is_some() {
            let own = self.group_peers(index);
            own.removed(pool, keys);
            own.host.tell_removed(now, pool, keys);
            self.pump_peers(now, index);
        }
    }

    // ---- What paths say ----

    pub(super) fn paths_said(&mut self, now: Time, said: FromPaths) {
        if self.peers.is_none() {
            return;
        }
        match said {
            FromPaths::Fetched { op, came, by } => self.fetched(now, op, &came, by),
            FromPaths::Looked { op, found } => self.looked(now, op, found.unwrap_or_default()),
            FromPaths::Say { link, said } => {
                let peers = self.peers.as_mut().expect("looked at above");
                let (group, to) = match peers.roles.get(&link) {
                    Some(LinkRole::Asking { group, peer, .. }) => (*group, Link::To(*peer)),
                    Some(LinkRole::Guest { group, .. }) => (*group, Link::From(link.0)),
                    _ => return,
                };
                peers.groups[group].host.say(now, to, said);
            }
        }
    }
}

/// A peer was lost, or is not to be had: said once for each reason, until it is there again.
fn note(own: &mut GroupPeers, peer: PeerId, reason: &str) {
    let name = own.members.get(&peer).map_or("", |member| member.name.as_str());
    if own.reasons.get(&peer).is_none_or(|before| before != reason) {
        tracing::warn!(host = name, reason, "no connection to a peer; it is tried again");
        own.reasons.insert(peer, reason.to_owned());
    }
}
