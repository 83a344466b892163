//! What local clients miss and peers have: a get is parked while its blocks are fetched into slots here, then goes on as if
//! they had always been here.
//!
//! Invariant: a get that is parked goes on when all that it waits for has ended, at its deadline at the latest.

use std::{collections::BTreeSet, time::Duration};

use lapis_config::{ClientId, HitPolicy, Key, PoolId, PoolKind, Time, Wait};
use lapis_tiering::{face::Caller, kept::Kept};
use lapis_transport::{
    peers::{directory::PeerId, links::LinkId},
    wire::Wire,
};

use super::super::Engine;
use crate::{
    movers::Movers,
    peers::{FETCHER, LinkRole, Offer, Parked, Want},
};

/// What nobody waits for may take so long to come.
pub(super) const PREFETCH_WITHIN: Duration = Duration::from_secs(1);
/// How often peers are asked for what one get misses: the second time for what another get's want did not bring.
const ROUNDS_MAX: u32 = 2;
/// Gets of all clients that may wait for peers at once, and wants: more go on with what is here.
const PARKED_MAX: usize = 4096;
/// Keys that are wanted at once, over all wants.
const COMING_MAX: usize = 1 << 20;

/// A key that is not here, and its parent as far as that is known; zeros: it has none.
struct Missing {
    key: Key,
    parent: Option<Key>,
}

impl<W: Wire, M: Movers> Engine<W, M> {
    /// A get of a local client: answered by the core, once what is missing here and can be had has come from peers.
    #[allow(clippy::too_many_arguments, reason = "the request has so many parts")]
    pub(in crate::engine) fn get(
        &mut self,
        now: Time,
        index: usize,
        to: Caller,
        asks: Vec<(PoolId, HitPolicy)>,
        keys: Vec<Key>,
        wait: Wait,
        deadline: Time,
        from: Option<&str>,
    ) {
        let own = self.peers.as_ref().map(|peers| &peers.groups[index]);
        let from = own.zip(from).and_then(|(own, name)| own.host.peer(name));
        let parked = Parked {
            client: to.client,
            token: to.token,
            asks,
            keys,
            wait,
            deadline,
            from,
            rounds: 0,
            wants: BTreeSet::new(),
        };
        self.ask_peers_or_go_on(now, index, parked);
    }

    fn ask_peers_or_go_on(&mut self, now: Time, index: usize, mut parked: Parked) {
        parked.rounds += 1;
        if self.asks_peers(index) && parked.rounds <= ROUNDS_MAX && parked.deadline > now {
            let missing = self.missing(index, &parked.asks, &parked.keys);
            if !missing.is_empty() {
                let from = parked.from.map(|peer| (peer, parked.wait));
                parked.wants = self.want(now, index, missing, parked.deadline, from, None);
            }
        }
        if parked.wants.is_empty() {
            let to = Caller { client: parked.client, token: parked.token };
            let core = &mut self.groups[index].core;
            return core.get(now, to, &parked.asks, &parked.keys, parked.wait, parked.deadline);
        }
        let peers = self.peers.as_mut().expect("it asks peers");
        let number = peers.number();
        let own = &mut peers.groups[index];
        for want in &parked.wants {
            own.wants.get_mut(want).expect("begun or joined").parked.push(number);
        }
        own.parked_until.insert((parked.deadline, number));
        own.parked.insert(number, parked);
        self.pump_peers(now, index);
    }

    fn asks_peers(&self, index: usize) -> bool {
        let Some(peers) = &self.peers else { return false };
        let own = &peers.groups[index];
        let has_room = own.parked.len() < PARKED_MAX && own.wants.len() < PARKED_MAX && own.coming.len() < COMING_MAX;
        !self.draining && has_room && own.host.up() > 0
    }

    /// The keys that a get needs and that are neither here nor being filled by somebody else, by pool.
    fn missing(&self, index: usize, asks: &[(PoolId, HitPolicy)], keys: &[Key]) -> Vec<(PoolId, Vec<Missing>)> {
        let group = &self.groups[index];
        let own = &self.peers.as_ref().expect("it asks peers").groups[index];
        let mut missing: Vec<(PoolId, Vec<Missing>)> = Vec::new();
        for &(pool, policy) in asks {
            let needed = match policy {
                HitPolicy::Trailing(window) => keys.len().saturating_sub(window as usize)..keys.len(),
                HitPolicy::Prefix | HitPolicy::Any => 0..keys.len(),
            };
            let is_here = |key: &Key| group.core.kept().find(pool, key).is_some();
            let comes = |key: &Key| {
                // What this daemon fetches is waited for as what peers have; what a client fills, only if its get says so.
                group.core.is_filling(pool, key) && !own.coming.contains_key(&(pool, *key))
            };
            // What a get names is a chain, as far as a peer is asked for its leading run.
            let parent = |at: usize| at.checked_sub(1).map_or(Key::default(), |above| keys[above]);
            let is_missing = |at: &usize| !is_here(&keys[*at]) && !comes(&keys[*at]);
            let of_pool: Vec<Missing> =
                needed.filter(is_missing).map(|at| Missing { key: keys[at], parent: Some(parent(at)) }).collect();
            if of_pool.is_empty() || !group.shapes.contains_key(&pool) {
                continue;
            }
            match missing.iter_mut().find(|(other, _)| *other == pool) {
                Some((_, most)) if most.len() < of_pool.len() => *most = of_pool,
                Some(_) => {}
                None => missing.push((pool, of_pool)),
            }
        }
        missing
    }

    /// Wants of peers what nobody wants yet. The wants that are to bring something of it.
    fn want(
        &mut self,
        now: Time,
        index: usize,
        missing: Vec<(PoolId, Vec<Missing>)>,
        deadline: Time,
        from: Option<(PeerId, Wait)>,
        offer: Option<&Offer>,
    ) -> BTreeSet<u64> {
        let mut wants = BTreeSet::new();
        let peers = self.peers.as_mut().expect("it asks peers");
        for (pool, keys) in missing {
            let own = &mut peers.groups[index];
            let (mut fresh, mut parents) = (Vec::with_capacity(keys.len()), Vec::with_capacity(keys.len()));
            for Missing { key, parent } in keys {
                match own.coming.get(&(pool, key)) {
                    Some(&want) => drop(wants.insert(want)),
                    None => {
                        fresh.push(key);
                        parents.push(parent);
                    }
                }
            }
            if fresh.is_empty() {
                continue;
            }
            let number = peers.number();
            let own = &mut peers.groups[index];
            let each = self.groups[index].shapes[&pool].0.kind == PoolKind::Object;
            if own.host.want(now, number, pool, each, fresh.clone(), deadline, from) {
                own.counts.wants += 1;
                own.coming.extend(fresh.iter().map(|&key| ((pool, key), number)));
                own.wants.insert(
                    number,
                    Want {
                        pool,
                        keys: fresh,
                        parents,
                        deadline,
                        parked: Vec::new(),
                        removed: BTreeSet::new(),
                        purged: false,
                        offer: offer.cloned(),
                    },
                );
                wants.insert(number);
            }
        }
        wants
    }

    /// Blocks that may be asked for soon, or that another host offers: nobody waits for them.
    pub(in crate::engine) fn want_ahead(
        &mut self,
        now: Time,
        index: usize,
        pool: PoolId,
        keys: &[Key],
        until: Time,
        offer: Option<Offer>,
    ) {
        let mut wants = BTreeSet::new();
        if self.asks_peers(index) && self.groups[index].shapes.contains_key(&pool) {
            let mut missing = self.missing(index, &[(pool, HitPolicy::Any)], keys);
            // These need not be a chain.
            missing.iter_mut().flat_map(|(_, keys)| keys).for_each(|missing| missing.parent = None);
            let from = offer.as_ref().and_then(|offer| self.peer_of_guest(index, offer.link));
            let from = from.map(|peer| (peer, Wait::Present));
            wants = self.want(now, index, missing, until, from, offer.as_ref());
        }
        // What others want already is not waited for: whoever offers hears of what is here now.
        let own = self.peers.as_ref().map(|peers| &peers.groups[index]);
        let is_this = |other: &Offer| {
            offer.as_ref().is_some_and(|offer| (offer.link, offer.number) == (other.link, other.number))
        };
        let is_begun =
            wants.iter().any(|want| own.is_some_and(|own| own.wants[want].offer.as_ref().is_some_and(is_this)));
        if let Some(offer) = offer.filter(|_| !is_begun) {
            self.answer_offer(index, pool, &offer);
        }
        self.pump_peers(now, index);
    }

    /// Whoever asks on this link, as this host asks it.
    fn peer_of_guest(&self, index: usize, link: LinkId) -> Option<PeerId> {
        let peers = self.peers.as_ref()?;
        match peers.roles.get(&link)? {
            LinkRole::Guest { name, .. } => peers.groups[index].host.peer(name),
            _ => None,
        }
    }

    /// How many of the offered blocks are here.
    fn answer_offer(&mut self, index: usize, pool: PoolId, offer: &Offer) {
        let kept = self.groups[index].core.kept();
        let here = offer.keys.iter().filter(|key| kept.find(pool, key).is_some()).count() as u32;
        self.group_peers(index).host.offered(offer.link.0, offer.number, here);
    }

    /// Gets whose time is over go on with what is here.
    pub(super) fn expire_parked(&mut self, now: Time, index: usize) -> bool {
        let mut any = false;
        while let Some(&(until, number)) = self.group_peers(index).parked_until.first() {
            if until > now {
                break;
            }
            any = true;
            self.go_on(now, index, number, true);
        }
        any
    }

    /// Nothing more comes for a parked get.
    fn go_on(&mut self, now: Time, index: usize, number: u64, is_late: bool) {
        let own = self.group_peers(index);
        let Some(mut parked) = own.parked.remove(&number) else { return };
        own.parked_until.remove(&(parked.deadline, number));
        for want in std::mem::take(&mut parked.wants) {
            if let Some(want) = own.wants.get_mut(&want) {
                want.parked.retain(|other| *other != number);
            }
        }
        if is_late {
            parked.rounds = ROUNDS_MAX;
        }
        self.ask_peers_or_go_on(now, index, parked);
    }

    /// A block that is wanted of peers came by another way: gets that miss nothing any more do not wait for the rest.
    pub(super) fn came_otherwise(&mut self, now: Time, index: usize, want: u64) {
        let parked = self.group_peers(index).wants.get(&want).map_or(Vec::new(), |want| want.parked.clone());
        for number in parked {
            let own = &self.peers.as_ref().expect("it asks peers").groups[index];
            let Some(waiting) = own.parked.get(&number) else { continue };
            if self.missing(index, &waiting.asks, &waiting.keys).is_empty() {
                self.go_on(now, index, number, false);
            }
        }
    }

    pub(super) fn want_ended(&mut self, now: Time, index: usize, number: u64, came: usize) {
        let own = self.group_peers(index);
        let Some(want) = own.wants.remove(&number) else { return };
        own.counts.wants_vain += u64::from(came == 0);
        own.counts.blocks_hit += if want.parked.is_empty() { 0 } else { came as u64 };
        for key in &want.keys {
            own.coming.remove(&(want.pool, *key));
        }
        if let Some(offer) = &want.offer {
            self.answer_offer(index, want.pool, offer);
        }
        for parked in want.parked {
            let own = self.group_peers(index);
            let Some(waiting) = own.parked.get_mut(&parked) else { continue };
            waiting.wants.remove(&number);
            if waiting.wants.is_empty() {
                self.go_on(now, index, parked, false);
            }
        }
    }
}

/// Whether a client is one of other hosts', or the daemon's own.
pub(in crate::engine) fn is_remote(client: ClientId) -> bool {
    client.0 >= FETCHER.0
}
