//! One trust group of this host among its peers: whom it asks, who asks it, what it knows of them and tells them. Pure: links
//! and time come in as calls, what is to be done is taken with `poll`. Blocks are moved by others.
//!
//! Invariant: what a peer said counts as long as the connection lives on which it was said.

mod askers;
mod face;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use askers::Askers;
pub use face::{Do, Link};
use lapis_config::{Key, PoolId, PoolShape, Time, Wait};

use super::{
    answerer::{Answerer, Asked},
    asker::{Asker, AskerOptions, News, Todo},
    digest::{Digest, Unfit},
    directory::{Directory, PeerId},
    message::{CHANGES_MAX, Located, PeerHello, PeerMessage},
    name::{ShortName, pool_name},
    wants::{Outcome, Wants},
};

/// Names of offers, beside those of wants' calls.
const OFFERS: u64 = 1 << 63;
/// Between two deltas of the digest.
const DELTA_EVERY: Duration = Duration::from_millis(100);

struct Member {
    name: String,
    asker: Asker,
}

struct Guest {
    answerer: Answerer,
    /// Whose certificate it has, if there are certificates.
    certified: Option<String>,
}

pub struct Host {
    own: PeerHello,
    options: AskerOptions,
    digest: Digest,
    tell_at: Time,
    members: BTreeMap<PeerId, Member>,
    guests: BTreeMap<u64, Guest>,
    directory: Directory,
    wants: Wants,
    offers: u64,
    pools: BTreeMap<PoolId, (PoolShape, u64)>,
    todo: VecDeque<Do>,
}

impl Host {
    /// Alone at first; `blocks_max` is how many blocks this host may have.
    pub fn new(now: Time, own: PeerHello, blocks_max: u64, sampling: u8, options: AskerOptions) -> Self {
        let digest = Digest::new(blocks_max, sampling, own.boot);
        Self {
            own,
            options,
            digest,
            tell_at: now,
            members: BTreeMap::new(),
            guests: BTreeMap::new(),
            directory: Directory::default(),
            wants: Wants::default(),
            offers: 0,
            pools: BTreeMap::new(),
            todo: VecDeque::new(),
        }
    }

    pub fn poll(&mut self) -> Option<Do> {
        self.todo.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        let askers = self.members.values().filter_map(|member| member.asker.poll_timeout());
        askers.chain(self.digest.has_changes().then_some(self.tell_at)).min()
    }

    pub fn tick(&mut self, now: Time) {
        let peers: Vec<PeerId> = self.members.keys().copied().collect();
        for peer in peers {
            self.with_asker(now, peer, |asker| asker.tick(now));
        }
        if self.digest.has_changes() && self.tell_at <= now {
            self.tell();
            self.tell_at = now.after(DELTA_EVERY);
        }
    }

    // ---- Who belongs to it ----

    pub fn join(&mut self, now: Time, peer: PeerId, name: String) {
        self.directory.join(peer, self.own.digest_bytes_max);
        let asker = Asker::new(now, self.own.clone(), name.clone(), self.options);
        self.members.insert(peer, Member { name, asker });
        self.with_asker(now, peer, |asker| asker.tick(now));
    }

    /// It is no peer any more: its connections end, both ways.
    pub fn leave(&mut self, now: Time, peer: PeerId) {
        self.with_asker(now, peer, |asker| asker.close(now, "it is no peer any more"));
        let Some(member) = self.members.remove(&peer) else { return };
        self.directory.leave(peer);
        let links: Vec<u64> =
            self.guests.iter().filter(|(_, guest)| guest.is(&member.name)).map(|(&link, _)| link).collect();
        for link in links {
            self.with_guest(link, |answerer| answerer.refuse("this host is no peer any more".into()));
        }
    }

    /// This host goes away: nobody asks it for more, and it asks nobody.
    pub fn go(&mut self) {
        let links: Vec<u64> = self.guests.keys().copied().collect();
        links.into_iter().for_each(|link| self.with_guest(link, Answerer::leave));
    }

    /// How many there are.
    pub fn pools(&self) -> usize {
        self.pools.len()
    }

    pub fn has_pool(&self, pool: PoolId) -> bool {
        self.pools.contains_key(&pool)
    }

    pub fn pool_opened(&mut self, pool: PoolId, shape: PoolShape) {
        let links: Vec<u64> = self.guests.keys().copied().collect();
        links.into_iter().for_each(|link| self.with_guest(link, |answerer| answerer.pool_opened(pool, &shape)));
        let name = pool_name(&shape);
        self.pools.insert(pool, (shape, name));
    }

    // ---- Links on which it asks ----

    pub fn dialled(&mut self, now: Time, peer: PeerId) {
        self.with_asker(now, peer, |asker| asker.dialled(now));
    }

    pub fn lost(&mut self, now: Time, peer: PeerId) {
        self.with_asker(now, peer, |asker| asker.lost(now));
    }

    pub fn answered(&mut self, now: Time, peer: PeerId, message: PeerMessage) {
        self.with_asker(now, peer, |asker| asker.message(now, message));
    }

    /// Wants the keys from peers: the rest of a chain, or `each` for itself; false if nobody is asked. `want` was never used
    /// before. `from` is asked first, whatever is known of it, and waits for what it has not if that says so.
    #[allow(clippy::too_many_arguments, reason = "a want has so many parts")]
    pub fn want(
        &mut self,
        now: Time,
        want: u64,
        pool: PoolId,
        each: bool,
        keys: Vec<Key>,
        deadline: Time,
        from: Option<(PeerId, Wait)>,
    ) -> bool {
        let Some((shape, name)) = self.pools.get(&pool) else { return false };
        let names = keys.iter().map(|key| ShortName::new(*name, key)).collect();
        let (shape, mut ask) = (shape.clone(), Askers { now, members: &mut self.members });
        let is_asked = self.wants.begin(want, shape, each, keys, names, deadline, from, &self.directory, &mut ask);
        self.settle(now);
        is_asked
    }

    /// A look ended: where the leading run of its keys lies, none of it if it is not there, or could not be looked up.
    /// `parent`: of the first.
    pub fn looked(&mut self, now: Time, peer: PeerId, call: u64, parent: Key, blocks: Vec<Located>) {
        self.with_asker(now, peer, |asker| asker.looked(call, parent, blocks));
    }

    /// Of what a call found, the blocks of these keys came.
    pub fn filled(&mut self, now: Time, peer: PeerId, call: u64, came: &[usize]) {
        if let Some(member) = self.members.get_mut(&peer) {
            member.asker.release(call);
        }
        let mut ask = Askers { now, members: &mut self.members };
        self.wants.filled(call, came, &self.directory, &mut ask);
        self.settle(now);
    }

    /// Offers blocks of this host to a peer; the offer's name, or `None` if it cannot be asked now.
    pub fn offer(&mut self, now: Time, peer: PeerId, pool: PoolId, keys: &[Key], deadline: Time) -> Option<u64> {
        let (shape, _) = self.pools.get(&pool)?;
        let offer = OFFERS | self.offers;
        self.members.get_mut(&peer)?.asker.offer(now, offer, shape, keys, deadline).ok()?;
        self.offers += 1;
        self.settle(now);
        Some(offer)
    }

    /// Blocks were removed here: other hosts let go of theirs. No keys: all of the pool.
    pub fn tell_removed(&mut self, now: Time, pool: PoolId, keys: &[Key]) {
        let Some((shape, _)) = self.pools.get(&pool) else { return };
        self.members.values_mut().for_each(|member| member.asker.forget(shape, keys));
        self.settle(now);
    }

    /// Peers that are there.
    pub fn peers_up(&self) -> Vec<PeerId> {
        self.members.iter().filter(|(_, member)| member.asker.is_up()).map(|(&peer, _)| peer).collect()
    }

    /// What digests call a block of a pool that is known.
    pub fn name_of(&self, pool: PoolId, key: &Key) -> Option<ShortName> {
        self.pools.get(&pool).map(|(_, name)| ShortName::new(*name, key))
    }

    /// Whose name this is.
    pub fn peer(&self, name: &str) -> Option<PeerId> {
        self.members.iter().find(|(_, member)| member.name == name).map(|(&peer, _)| peer)
    }

    // ---- Links on which it is asked ----

    /// `certified`: whose certificate the other side has shown; `None` where there are no certificates. `data_word`: what
    /// its streams of blocks begin with, told to nobody else.
    pub fn connected(&mut self, link: u64, certified: Option<String>, data_word: u64) {
        let own = PeerHello { data_word, ..self.own.clone() };
        self.guests.insert(link, Guest { answerer: Answerer::new(own), certified });
    }

    pub fn asked(&mut self, now: Time, link: u64, message: PeerMessage) {
        let is_hello = matches!(message, PeerMessage::Hello(_));
        self.with_guest(link, |answerer| answerer.message(message));
        let let_in = self.guests.get(&link).filter(|guest| is_hello && guest.answerer.is_open());
        // Whoever asks is there: if it was away, it is not left alone any longer.
        if let Some(peer) = let_in.and_then(|guest| self.peer(guest.certified.as_deref()?)) {
            self.with_asker(now, peer, |asker| asker.nudge(now));
        }
    }

    pub fn gone(&mut self, link: u64) {
        if self.guests.remove(&link).is_some() {
            self.todo.push_back(Do::Gone(link));
        }
    }

    /// The answer to a `Locate`.
    pub fn found(&mut self, link: u64, token: u64, parent: Key, blocks: Vec<Located>) {
        self.with_guest(link, |answerer| answerer.found(token, parent, blocks));
    }

    /// The answer to an `Offer`.
    pub fn offered(&mut self, link: u64, number: u64, came: u32) {
        self.with_guest(link, |answerer| answerer.offered(number, came));
    }

    /// Nothing is held any more for what was found.
    pub fn expired(&mut self, link: u64, token: u64) {
        self.with_guest(link, |answerer| answerer.expired(token));
    }

    /// What moves blocks at this side has to say to its like at the other one.
    pub fn say(&mut self, now: Time, link: Link, said: Vec<u8>) {
        match link {
            Link::To(peer) => self.with_asker(now, peer, |asker| asker.say(said)),
            Link::From(link) => self.with_guest(link, |answerer| answerer.say(said)),
        }
    }

    /// The next message of a link on which a peer asks: taken as fast as it reads.
    pub fn poll_send(&mut self, link: u64) -> Option<PeerMessage> {
        if self.guests.get(&link)?.answerer.wants_whole() {
            self.tell();
            let (whole, parts) = self.digest.whole();
            self.guests.get_mut(&link)?.answerer.whole(whole, parts);
        }
        self.guests.get_mut(&link)?.answerer.poll_send()
    }

    pub fn has_guest(&self, link: u64) -> bool {
        self.guests.contains_key(&link)
    }

    /// The links on which it is asked.
    pub fn guests(&self) -> Vec<u64> {
        self.guests.keys().copied().collect()
    }

    // ---- What is here ----

    /// A block came or went, in whatever tier.
    pub fn changed(&mut self, now: Time, pool: PoolId, key: &Key, came: bool) {
        let Some((_, name)) = self.pools.get(&pool) else { return };
        if !self.digest.has_changes() {
            self.tell_at = now.after(DELTA_EVERY);
        }
        self.digest.changed(ShortName::new(*name, key), came);
    }

    /// Peers that are there.
    pub fn up(&self) -> usize {
        self.members.values().filter(|member| member.asker.is_up()).count()
    }

    pub fn is_up(&self, peer: PeerId) -> bool {
        self.members.get(&peer).is_some_and(|member| member.asker.is_up())
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    fn tell(&mut self) {
        while let Some(delta) = self.digest.take_delta(CHANGES_MAX) {
            let delta = Arc::new(delta);
            self.guests.values_mut().for_each(|guest| guest.answerer.delta(&delta));
        }
    }

    fn with_asker(&mut self, now: Time, peer: PeerId, call: impl FnOnce(&mut Asker)) {
        let Some(member) = self.members.get_mut(&peer) else { return };
        call(&mut member.asker);
        self.settle(now);
    }

    /// Does what askers and wants ask for, until they ask for nothing more.
    fn settle(&mut self, now: Time) {
        loop {
            let mut todo = Vec::new();
            for (&peer, member) in &mut self.members {
                todo.extend(std::iter::from_fn(|| member.asker.poll()).map(|todo| (peer, todo)));
                if let Some(load) = self.directory.load_mut(peer) {
                    *load = member.asker.under_way() as u64;
                }
            }
            if todo.is_empty() {
                break;
            }
            todo.into_iter().for_each(|(peer, todo)| self.asker_wants(now, peer, todo));
        }
        while let Some(outcome) = self.wants.poll() {
            self.todo.push_back(match outcome {
                Outcome::Read { want, peer, call, looked, parent, blocks } => {
                    Do::Read { want, peer, call, looked, parent, blocks }
                }
                Outcome::Ended { want, came } => Do::Ended { want, came },
            });
        }
    }

    fn asker_wants(&mut self, now: Time, peer: PeerId, todo: Todo) {
        let mut ask = Askers { now, members: &mut self.members };
        let fit = match todo {
            Todo::Dial => return self.todo.push_back(Do::Dial(peer)),
            Todo::Send(message) => return self.todo.push_back(Do::Send(Link::To(peer), message)),
            Todo::HangUp { reason } => return self.todo.push_back(Do::HangUp(Link::To(peer), reason)),
            Todo::Look { call, pool, keys, within } => {
                if let Some(want) = self.wants.of_call(call) {
                    self.todo.push_back(Do::Look { want, peer, call, pool, keys, within });
                }
                return;
            }
            Todo::Tell(News::Found { call, parent, blocks }) => {
                if !self.wants.found(call, parent, blocks, &self.directory, &mut ask) {
                    self.members.get_mut(&peer).expect("its asker spoke").asker.release(call);
                }
                return;
            }
            Todo::Tell(News::Offered { call, came }) => {
                return self.todo.push_back(Do::Offered { offer: call, came });
            }
            Todo::Tell(News::Failed { call }) if call & OFFERS != 0 => {
                return self.todo.push_back(Do::Offered { offer: call, came: 0 });
            }
            Todo::Tell(News::Failed { call }) => return self.wants.failed(call, &self.directory, &mut ask),
            Todo::Tell(News::Up(hello)) => {
                // Another process may answer there now: nothing is known of its blocks.
                self.directory.join(peer, self.own.digest_bytes_max);
                return self.todo.push_back(Do::Up(peer, hello));
            }
            Todo::Tell(News::Down) => {
                self.directory.join(peer, self.own.digest_bytes_max);
                return self.todo.push_back(Do::Down(peer));
            }
            Todo::Tell(News::Path(said)) => return self.todo.push_back(Do::Path(peer, said)),
            Todo::Tell(News::Whole(whole)) => self.directory.mirror_mut(peer).map(|mirror| mirror.begin(whole)),
            Todo::Tell(News::Part(part)) => self.directory.mirror_mut(peer).map(|mirror| mirror.part(&part)),
            Todo::Tell(News::Delta(delta)) => self.directory.mirror_mut(peer).map(|mirror| mirror.delta(&delta)),
        };
        let member = self.members.get_mut(&peer).expect("its asker spoke");
        match fit {
            Some(Err(Unfit::Gap)) => member.asker.want_whole(),
            Some(Err(Unfit::Wrong(what))) => member.asker.close(now, what),
            Some(Ok(())) | None => {}
        }
    }

    fn with_guest(&mut self, link: u64, call: impl FnOnce(&mut Answerer)) {
        let Some(guest) = self.guests.get_mut(&link) else { return };
        call(&mut guest.answerer);
        while let Some(asked) = self.guests.get_mut(&link).and_then(|guest| guest.answerer.poll()) {
            match asked {
                Asked::Hello(hello) => self.judge(link, &hello),
                Asked::HangUp { reason } => self.todo.push_back(Do::HangUp(Link::From(link), reason)),
                asked => self.todo.push_back(Do::Asked(link, asked)),
            }
        }
    }

    /// Whether whoever says hello is one of the peers, and this group's.
    fn judge(&mut self, link: u64, hello: &PeerHello) {
        let guest = self.guests.get_mut(&link).expect("it said hello");
        let other = |certified: &String| *certified != hello.host;
        let refusal = if hello.group != self.own.group {
            Some(format!("this connection is of group {:?}, not {:?}", self.own.group, hello.group))
        } else if let Some(certified) = guest.certified.as_ref().filter(|certified| other(certified)) {
            Some(format!("host {:?} has shown the certificate of {certified:?}", hello.host))
        } else if !self.members.values().any(|member| member.name == hello.host) {
            Some(format!("host {:?} is not one of the peers of {:?}: name it there", hello.host, self.own.host))
        } else {
            None
        };
        match refusal {
            Some(reason) => guest.answerer.refuse(reason),
            None => {
                guest.certified = Some(hello.host.clone());
                self.todo.push_back(Do::Guest(link, hello.host.clone()));
                guest.answerer.accept(self.pools.iter().map(|(&pool, (shape, _))| (pool, shape.clone())));
                self.replace(link, &hello.host);
            }
        }
    }

    /// A peer asks on one link: another one is dead, and nobody has said so, or will be.
    fn replace(&mut self, link: u64, name: &str) {
        let is_former = |of: &u64, guest: &Guest| *of != link && guest.is(name) && guest.answerer.is_open();
        let former: Vec<u64> =
            self.guests.iter().filter(|(of, guest)| is_former(of, guest)).map(|(&of, _)| of).collect();
        for former in former {
            self.with_guest(former, |answerer| answerer.refuse("this host has made another connection".into()));
        }
    }
}

impl Guest {
    fn is(&self, name: &str) -> bool {
        self.certified.as_deref() == Some(name)
    }
}
