//! Other hosts that ask this one: each is a client of the core, which may not put.
//!
//! Invariant: what was shown to a guest is lent by paths until its release, its deadline, or the end of its connection.

use lapis_config::{ClientId, HitPolicy, Key, LineId, Time, sizes};
use lapis_tiering::{
    face::{Caller, Reply},
    kept::{Kept, Tier},
};
use lapis_transport::{
    peers::{
        answerer::Asked,
        links::LinkId,
        message::Located,
        paths::{Lent, ToPaths},
    },
    wire::Wire,
};

use super::super::Engine;
use crate::{
    movers::{Job, Movers},
    peers::{LinkRole, Locating, Offer},
};

/// Of what is removed because another host has removed it: nobody waits for the answer.
const FORGET: u64 = u64::MAX;

impl<W: Wire, M: Movers> Engine<W, M> {
    pub(super) fn guest_came(&mut self, index: usize, link: LinkId, name: &str) {
        let peers = self.peers.as_mut().expect("a guest of peers");
        let id = peers.guest_id();
        let Some(LinkRole::Guest { client, word, .. }) = peers.roles.get_mut(&link) else { return };
        *client = Some(id);
        let word = *word;
        peers.groups[index].guests.insert(id, link);
        self.groups[index].core.client_added(id, false);
        self.movers.submit(Job::Paths(ToPaths::Guest { group: index, link, word }));
        tracing::debug!(group = self.groups[index].options.name, host = name, link = link.0, "a peer asks");
    }

    /// The connection is over; its role may have gone before.
    pub(super) fn guest_gone(&mut self, index: usize, link: LinkId) {
        let peers = self.peers.as_mut().expect("a guest of peers");
        peers.roles.remove(&link);
        let own = &mut peers.groups[index];
        own.locating.retain(|(of, _), _| *of != link);
        own.lent.retain(|(_, of, _)| *of != link);
        let id = own.guests.iter().find(|(_, of)| **of == link).map(|(&id, _)| id);
        if let Some(id) = id {
            own.guests.remove(&id);
            self.groups[index].core.client_gone(id);
            self.movers.submit(Job::Paths(ToPaths::GuestGone { link }));
        }
    }

    pub(super) fn guest_asked(&mut self, now: Time, index: usize, link: LinkId, asked: Asked) {
        let Some(id) = self.guest(link) else { return };
        match asked {
            Asked::Locate { token, pool, each, wait, deadline_us, keys } => {
                let until = Time(now.0 + deadline_us);
                let own = self.group_peers(index);
                if !own.host.has_pool(pool) {
                    return own.host.found(link.0, token, Key::default(), Vec::new());
                }
                own.locating.insert((link, token), Locating { pool, each, keys: keys.clone(), until });
                let policy = if each { HitPolicy::Any } else { HitPolicy::Prefix };
                self.groups[index].core.get(now, Caller { client: id, token }, &[(pool, policy)], &keys, wait, until);
            }
            Asked::Release { token } => self.unlend(index, link, token),
            Asked::Path { said } => self.movers.submit(Job::Paths(ToPaths::Heard { link, said })),
            Asked::Offer { number, pool, deadline_us, keys } => {
                let until = Time(now.0 + deadline_us);
                let offer = Offer { link, number, keys: keys.clone() };
                self.want_ahead(now, index, pool, &keys, until, Some(offer));
            }
            Asked::Forget { pool, keys } if keys.is_empty() => {
                self.group_peers(index).removed(pool, &[]);
                self.groups[index].core.purge(now, Caller { client: id, token: FORGET }, pool);
            }
            Asked::Forget { pool, keys } => {
                self.group_peers(index).removed(pool, &keys);
                self.groups[index].core.remove(now, Caller { client: id, token: FORGET }, pool, &keys);
            }
            Asked::Hello(_) | Asked::HangUp { .. } => unreachable!("kept by the host"),
        }
    }

    fn guest(&self, link: LinkId) -> Option<ClientId> {
        match self.peers.as_ref()?.roles.get(&link)? {
            LinkRole::Guest { client, .. } => *client,
            _ => None,
        }
    }

    /// The core has answered a guest: what it found is shown, and lent.
    pub(super) fn guest_answered(&mut self, now: Time, index: usize, to: Caller, reply: &Reply) {
        let own = self.group_peers(index);
        let Some(&link) = own.guests.get(&to.client) else { return };
        let Some(asked) = own.locating.remove(&(link, to.token)) else {
            // It was released before this answer: what the answer holds is nobody's.
            return self.groups[index].core.release(to);
        };
        let hit = match reply {
            Reply::Got { hit } => *hit as usize,
            _ => 0,
        };
        let (parent, blocks, lent) = self.show(now, index, &asked, hit);
        let bytes: u64 = lent.iter().map(|lent| u64::from(lent.bytes)).sum();
        if blocks.is_empty() {
            self.groups[index].core.release(to);
        }
        let own = self.group_peers(index);
        if !blocks.is_empty() {
            own.counts.blocks_lent += blocks.len() as u64;
            own.counts.bytes_lent += bytes;
            own.lent.insert((asked.until, link, to.token));
        }
        own.host.found(link.0, to.token, parent, blocks);
        if !lent.is_empty() {
            self.movers.submit(Job::Paths(ToPaths::Lend { link, token: to.token, blocks: lent }));
        }
    }

    /// Where the blocks lie that were hit.
    fn show(&mut self, now: Time, index: usize, asked: &Locating, hit: usize) -> (Key, Vec<Located>, Vec<Lent>) {
        let group = &mut self.groups[index];
        let (shape, _) = &group.shapes[&asked.pool];
        let (mut parent, mut blocks, mut lent) = (Key::default(), Vec::with_capacity(hit), Vec::with_capacity(hit));
        let (mut before, mut deepest) = (None, None);
        let kept = group.core.kept();
        let keys = if asked.each { &asked.keys[..] } else { &asked.keys[..hit.min(asked.keys.len())] };
        for (at, key) in keys.iter().enumerate() {
            let found = kept.find(asked.pool, key).and_then(|line| Some((line, kept.live(line)?)));
            let readable = found.filter(|(_, live)| matches!(live.place.tier, Tier::Dram | Tier::DramUnverified));
            let Some((line, live)) = readable else {
                if asked.each && hit > 0 {
                    continue;
                }
                break;
            };
            let above = LineId(kept.entry(line).parent);
            if blocks.is_empty() && above.is_some() {
                parent = kept.live(above).map_or(Key::default(), |above| above.key);
            }
            let bytes = live.place.bytes;
            let span = span(shape, bytes);
            let Some((mapping, offset)) = group.space.locate(live.place.slot, u64::from(span)) else { break };
            lent.push(Lent { mapping: mapping.clone(), offset, bytes: span });
            blocks.push(Located {
                index: at as u16,
                follows: before.is_some_and(|before| before == above),
                line: line.0,
                generation: live.generation,
                slot: live.place.slot.0,
                bytes,
                sum: live.place.sum,
            });
            (before, deepest) = (Some(line), Some((line, live.generation)));
        }
        if let Some((line, generation)) = deepest {
            let (hit, asked) = (blocks.len() as u32, asked.keys.len() as u32);
            // What other hosts read is used.
            group.core.touched(now, line, (generation << 4) as u32, hit, asked);
        }
        (parent, blocks, lent)
    }

    fn unlend(&mut self, index: usize, link: LinkId, token: u64) {
        let Some(id) = self.guest(link) else { return };
        let own = self.group_peers(index);
        own.locating.remove(&(link, token));
        own.lent.retain(|(_, of, number)| (*of, *number) != (link, token));
        self.groups[index].core.release(Caller { client: id, token });
        self.movers.submit(Job::Paths(ToPaths::Unlend { link, token }));
    }

    /// What was lent until now is lent no more.
    pub(super) fn expire_lent(&mut self, now: Time, index: usize) -> bool {
        let mut any = false;
        while let Some(&(until, link, token)) = self.group_peers(index).lent.first() {
            if until > now {
                break;
            }
            any = true;
            self.group_peers(index).host.expired(link.0, token);
            self.unlend(index, link, token);
        }
        any
    }

    /// What is to go out to guests, as fast as each reads.
    pub(super) fn send_to_guests(&mut self, index: usize) -> bool {
        let peers = self.peers.as_mut().expect("a guest of peers");
        let own = &mut peers.groups[index];
        let mut any = false;
        for link in own.host.guests() {
            while peers.links.has_room(LinkId(link)) {
                let Some(message) = own.host.poll_send(link) else { break };
                any = true;
                peers.links.send(LinkId(link), message);
            }
        }
        any
    }
}

/// Bytes that a block takes in its slot, its tail with it.
pub(super) fn span(shape: &lapis_config::PoolShape, bytes: u32) -> u32 {
    let tail = sizes::tail_bytes(shape);
    if tail == 0 { bytes } else { (sizes::tail_offset(u64::from(bytes)) + tail) as u32 }
}

/// Whether a block of a pool may have so many bytes.
pub(super) fn fits(shape: &lapis_config::PoolShape, bytes: u32) -> bool {
    bytes > 0 && u64::from(bytes) <= shape.block_bytes
}
