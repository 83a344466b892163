//! What the engine knows of other hosts: connections, whom it asks what for, who asks it. Plain state; `engine/peers.rs`
//! moves it.

mod strangers;

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;
pub use lapis_config::Member;
use lapis_config::{ClientId, HitPolicy, Key, PoolId, SlotId, Time, Wait};
use lapis_membership::KnownBy;
use lapis_tiering::{face::Caller, kept::Kept};
use lapis_transport::peers::{
    asker::AskerOptions,
    directory::PeerId,
    host::{Host, Link},
    links::{LinkId, Links},
    message::{Located, PeerHello},
};

use self::strangers::Strangers;
use crate::{engine::Drain, group::Group};

/// The clients of every core that put what was fetched from other hosts: for somebody who waits for it, and ahead, for
/// nobody. Local clients count up from 1, other hosts from after these.
pub const FETCHER: ClientId = ClientId(1 << 31);
pub const FETCHER_AHEAD: ClientId = ClientId(FETCHER.0 + 1);
const GUEST_FIRST: u32 = FETCHER.0 + 2;
/// Largest digest of another host that is kept, bytes: that of 150 million blocks.
const DIGEST_BYTES_MAX: u64 = 256 << 20;

#[derive(Clone, Debug)]
pub struct PeersOptions {
    /// As others call this host.
    pub host: String,
    pub members: Vec<Member>,
    /// Hosts come by themselves: one that this host does not know yet may only be early.
    pub hosts_are_found: bool,
    /// For each group, the hosts that may ask it; none given: all members.
    pub may_ask: Vec<Vec<String>>,
    /// Where streams of blocks begin; 0: nowhere.
    pub data_port: u16,
    pub asker: AskerOptions,
}

/// Of one group, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// Blocks that came from other hosts, by whichever path, and their bytes; and of them those that somebody waited for.
    pub blocks_read: u64,
    pub blocks_hit: u64,
    pub bytes_read: u64,
    /// Of these, those that came by RDMA.
    pub bytes_read_rdma: u64,
    /// Blocks that a peer was said to have and that did not come: it had them no more, or it, or the way to it, was too
    /// slow; and those whose bytes were not their own.
    pub blocks_failed: u64,
    pub blocks_corrupt: u64,
    /// Blocks that came after they were looked up in a peer's table, which was not asked.
    pub blocks_looked_up: u64,
    /// Chains or lots of objects that were wanted, and those of which nothing came.
    pub wants: u64,
    pub wants_vain: u64,
    /// Blocks shown to other hosts, and their bytes.
    pub blocks_lent: u64,
    pub bytes_lent: u64,
    /// Other hosts, and of them those that are there now.
    pub members: u64,
    pub up: u64,
}

impl PeerCounts {
    /// Sums over groups.
    pub fn add(&mut self, other: &Self) {
        let own = [
            &mut self.blocks_read,
            &mut self.blocks_hit,
            &mut self.bytes_read,
            &mut self.bytes_read_rdma,
            &mut self.blocks_failed,
            &mut self.blocks_corrupt,
            &mut self.blocks_looked_up,
            &mut self.wants,
            &mut self.wants_vain,
            &mut self.blocks_lent,
            &mut self.bytes_lent,
            &mut self.members,
            &mut self.up,
        ];
        let others = [
            other.blocks_read,
            other.blocks_hit,
            other.bytes_read,
            other.bytes_read_rdma,
            other.blocks_failed,
            other.blocks_corrupt,
            other.blocks_looked_up,
            other.wants,
            other.wants_vain,
            other.blocks_lent,
            other.bytes_lent,
            other.members,
            other.up,
        ];
        own.into_iter().zip(others).for_each(|(own, other)| *own += other);
    }
}

/// What a connection is.
#[derive(Clone, Debug)]
pub(crate) enum LinkRole {
    /// To be made, to ask on it.
    Dialling { group: usize, peer: PeerId },
    /// This host asks.
    Asking { group: usize, peer: PeerId, local: std::net::SocketAddr, remote: std::net::SocketAddr },
    /// Another host made it, and has not said what for.
    Greeting { certified: Option<String> },
    /// Another host asks, as that client of the core once it was let in.
    Guest { group: usize, client: Option<ClientId>, name: String, word: u64 },
}

pub(crate) struct Peers {
    pub links: Box<dyn Links>,
    pub options: PeersOptions,
    pub known_by: KnownBy,
    pub roles: BTreeMap<LinkId, LinkRole>,
    /// Of those that are greeted, for the news of them.
    pub strangers: Strangers,
    pub groups: Vec<GroupPeers>,
    /// Names of clients, wants, fills and their calls; never used twice.
    numbers: u64,
    guests: u32,
}

impl Peers {
    /// A client of a core that none of now has been; its number comes again only after billions.
    pub fn guest_id(&mut self) -> ClientId {
        loop {
            self.guests = (self.guests + 1) % (u32::MAX - GUEST_FIRST);
            let id = ClientId(GUEST_FIRST + self.guests);
            if !self.groups.iter().any(|group| group.guests.contains_key(&id)) {
                return id;
            }
        }
    }

    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub fn new(links: Box<dyn Links>, options: PeersOptions) -> Self {
        let known_by = KnownBy::list();
        let (roles, strangers) = (BTreeMap::new(), Strangers::default());
        Self { links, options, known_by, roles, strangers, groups: Vec::new(), numbers: 0, guests: 0 }
    }

    pub fn is_asking(&self, link: LinkId) -> Option<(usize, PeerId)> {
        match self.roles.get(&link)? {
            LinkRole::Dialling { group, peer } | LinkRole::Asking { group, peer, .. } => Some((*group, *peer)),
            _ => None,
        }
    }
}

pub(crate) struct GroupPeers {
    pub host: Host,
    pub members: BTreeMap<PeerId, Member>,
    /// The connections on which this host asks.
    pub to: BTreeMap<PeerId, LinkId>,
    /// Why a peer was hung up on last: the same reason is logged once.
    pub reasons: BTreeMap<PeerId, String>,
    peer_next: u32,

    // ---- Who asks it ----
    pub guests: BTreeMap<ClientId, LinkId>,
    /// What the core was asked for them, by link and call.
    pub locating: BTreeMap<(LinkId, u64), Locating>,
    /// What it was shown, until when.
    pub lent: BTreeSet<(Time, LinkId, u64)>,

    // ---- What it asks ----
    pub parked: BTreeMap<u64, Parked>,
    pub parked_until: BTreeSet<(Time, u64)>,
    pub wants: BTreeMap<u64, Want>,
    /// The wants that are to bring these keys.
    pub coming: HashMap<(PoolId, Key), u64>,
    pub fills: BTreeMap<u64, Fill>,
    /// Calls of the core, and fetches, each with its fill and the indices of its blocks.
    pub reserving: BTreeMap<u64, (u64, Vec<usize>)>,
    pub fetching: BTreeMap<u64, (u64, Vec<usize>)>,
    /// Keys that are being looked up in peers' tables.
    pub looking: BTreeMap<u64, Looking>,
    /// Offers of local clients that are not answered: whose they are.
    pub offers: BTreeMap<u64, Offered>,
    pub drain: Option<Drain>,
    pub counts: PeerCounts,
}

/// Who has offered blocks to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    By(Caller),
    /// This host goes away.
    ByDrain,
}

impl GroupPeers {
    pub fn new(now: Time, options: &PeersOptions, group: &Group, boot: u64) -> Self {
        let own = PeerHello {
            host: options.host.clone(),
            group: group.options.name.clone(),
            boot,
            digest_bytes_max: DIGEST_BYTES_MAX,
            data_port: options.data_port,
            data_word: 0,
        };
        // No table is ever fuller.
        let blocks_max = u64::from(group.core.kept().lines());
        let mut host = Host::new(now, own, blocks_max, 0, options.asker);
        for (&pool, (shape, _)) in &group.shapes {
            host.pool_opened(pool, shape.clone());
        }
        Self {
            host,
            members: BTreeMap::new(),
            to: BTreeMap::new(),
            reasons: BTreeMap::new(),
            peer_next: 0,
            guests: BTreeMap::new(),
            locating: BTreeMap::new(),
            lent: BTreeSet::new(),
            parked: BTreeMap::new(),
            parked_until: BTreeSet::new(),
            wants: BTreeMap::new(),
            coming: HashMap::new(),
            fills: BTreeMap::new(),
            reserving: BTreeMap::new(),
            fetching: BTreeMap::new(),
            looking: BTreeMap::new(),
            offers: BTreeMap::new(),
            drain: None,
            counts: PeerCounts::default(),
        }
    }

    pub fn join(&mut self, now: Time, member: Member) {
        let peer = PeerId(self.peer_next);
        self.peer_next += 1;
        self.members.insert(peer, member.clone());
        self.host.join(now, peer, member.name);
    }

    pub fn leave(&mut self, now: Time, peer: PeerId) {
        self.members.remove(&peer);
        self.reasons.remove(&peer);
        self.host.leave(now, peer);
    }

    /// The connection that the pure half means.
    pub fn link(&self, link: Link) -> Option<LinkId> {
        match link {
            Link::To(peer) => self.to.get(&peer).copied(),
            Link::From(link) => Some(LinkId(link)),
        }
    }

    /// What is on its way from peers of these keys does not come; no keys: of the whole pool.
    pub fn removed(&mut self, pool: PoolId, keys: &[Key]) {
        for key in keys {
            let want = self.coming.get(&(pool, *key)).and_then(|want| self.wants.get_mut(want));
            if let Some(want) = want {
                want.removed.insert(*key);
            }
        }
        if keys.is_empty() {
            self.wants.values_mut().filter(|want| want.pool == pool).for_each(|want| want.purged = true);
        }
    }

    pub fn timeout(&self) -> Option<Time> {
        let lent = self.lent.first().map(|&(at, ..)| at);
        let parked = self.parked_until.first().map(|&(at, _)| at);
        [self.host.poll_timeout(), lent, parked].into_iter().flatten().min()
    }
}

/// A `Locate` of another host that the core has not answered.
#[derive(Debug)]
pub(crate) struct Locating {
    pub pool: PoolId,
    pub each: bool,
    pub keys: Vec<Key>,
    pub until: Time,
}

/// A local client's get that waits for what peers have.
#[derive(Debug)]
pub(crate) struct Parked {
    pub client: ClientId,
    pub token: u64,
    pub asks: Vec<(PoolId, HitPolicy)>,
    pub keys: Vec<Key>,
    pub wait: Wait,
    pub deadline: Time,
    /// Whom to ask first.
    pub from: Option<PeerId>,
    /// How often peers were asked for it.
    pub rounds: u32,
    pub wants: BTreeSet<u64>,
}

/// Blocks that another host has offered, on which link and by which number.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub link: LinkId,
    pub number: u64,
    pub keys: Vec<Key>,
}

#[derive(Debug)]
pub(crate) struct Want {
    pub pool: PoolId,
    pub keys: Vec<Key>,
    /// The parent of each key, as far as it is known from what was asked for; zeros: it has none.
    pub parents: Vec<Option<Key>>,
    pub deadline: Time,
    /// The gets that wait for it.
    pub parked: Vec<u64>,
    /// Of its keys, those that were removed here or by another host while they were on their way; and whether all were.
    pub removed: BTreeSet<Key>,
    pub purged: bool,
    /// The offer of another host that it is for.
    pub offer: Option<Offer>,
}

/// A look in a peer's table, for a call of the pure half.
#[derive(Debug)]
pub(crate) struct Looking {
    pub peer: PeerId,
    pub call: u64,
    pub keys: Vec<Key>,
    /// Of each key.
    pub parents: Vec<Key>,
}

/// Blocks that a peer has shown, on their way into slots here.
#[derive(Debug)]
pub(crate) struct Fill {
    pub peer: PeerId,
    pub want: u64,
    pub link: LinkId,
    pub call: u64,
    /// Whether they were looked up: the peer holds nothing.
    pub looked: bool,
    /// `FETCHER` or `FETCHER_AHEAD`.
    pub client: ClientId,
    pub pool: PoolId,
    /// Of the first block.
    pub parent: Key,
    pub blocks: Vec<FillBlock>,
    /// Answers of the core, then of paths, that are awaited.
    pub awaited: usize,
    pub deadline: Time,
}

#[derive(Debug)]
pub(crate) struct FillBlock {
    /// Index of its key in the want.
    pub index: usize,
    pub key: Key,
    pub located: Located,
    pub at: FillAt,
}

/// How far a block of a fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FillAt {
    /// It has no slot yet, or will have none.
    Nowhere,
    /// It is here by another way.
    Here,
    /// It is being fetched into this slot, or was not fetched.
    Slot(SlotId),
    /// It is in this slot, and its bytes are its own.
    Whole(SlotId),
}
