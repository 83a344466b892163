//! The first message of a connection that another host made: which group it is about, and whether that host is known.

use lapis_config::Time;
use lapis_transport::{
    peers::{
        links::LinkId,
        message::{PeerHello, PeerMessage},
    },
    wire::Wire,
};

use super::super::Engine;
use crate::{
    movers::Movers,
    peers::{LinkRole, Peers},
};

impl<W: Wire, M: Movers> Engine<W, M> {
    pub(super) fn greeted(&mut self, now: Time, link: LinkId, certified: Option<String>, message: PeerMessage) {
        let word = (self.entropy)();
        let groups = self.groups.iter().map(|group| group.options.name.as_str());
        let peers = self.peers.as_mut().expect("looked at by the caller");
        let PeerMessage::Hello(hello) = message else {
            return peers.refuse(link, "it asked before it was greeted".into());
        };
        let group = match peers.group(groups, &hello) {
            Ok(group) => group,
            Err(refusal) => return peers.refuse(link, refusal),
        };
        if peers.options.hosts_are_found && peers.is_stranger(&certified, &hello) {
            let refusal = peers.unknown(&hello.host);
            if !peers.strangers.wait(now, link, certified, hello) {
                peers.strangers.gone(link);
                peers.refuse(link, refusal);
            }
            return;
        }
        let name = hello.host.clone();
        peers.roles.insert(link, LinkRole::Guest { group, client: None, name, word });
        let host = &mut peers.groups[group].host;
        host.connected(link.0, certified, word);
        host.asked(now, link.0, PeerMessage::Hello(hello));
    }

    /// Other hosts are known than before, perhaps some that wait for it.
    pub(super) fn greet_known(&mut self, now: Time) {
        let peers = self.peers.as_mut().expect("looked at by the caller");
        let members = &peers.options.members;
        let known = peers.strangers.take_known(|host| members.iter().any(|member| member.name == host));
        for (link, stranger) in known {
            self.greeted(now, link, stranger.certified, PeerMessage::Hello(stranger.hello));
        }
    }

    /// False: there was none whose time is over.
    pub(super) fn refuse_unknown(&mut self, now: Time) -> bool {
        let peers = self.peers.as_mut().expect("looked at by the caller");
        let unknown = peers.strangers.take_unknown(now);
        for (link, stranger) in &unknown {
            let refusal = peers.unknown(&stranger.hello.host);
            peers.refuse(*link, refusal);
        }
        !unknown.is_empty()
    }
}

impl Peers {
    /// The one that it may ask.
    fn group<'a>(&self, mut groups: impl Iterator<Item = &'a str>, hello: &PeerHello) -> Result<usize, String> {
        let group = groups.position(|group| group == hello.group);
        let group = group.ok_or_else(|| format!("host {:?} has no group {:?}", self.options.host, hello.group))?;
        let names = &self.options.may_ask[group];
        match names.is_empty() || names.contains(&hello.host) {
            true => Ok(group),
            false => Err(format!(
                "host {:?} may not ask group {:?}: its group.peers does not name it",
                hello.host, hello.group
            )),
        }
    }

    /// Who shows the certificate of another one is refused for that, by the pure half, and at once.
    fn is_stranger(&self, certified: &Option<String>, hello: &PeerHello) -> bool {
        let is_itself = certified.as_ref().is_none_or(|certified| *certified == hello.host);
        is_itself && !self.options.members.iter().any(|member| member.name == hello.host)
    }

    /// Why a host that is not found is refused.
    fn unknown(&self, host: &str) -> String {
        let own = &self.options.host;
        let hint = match self.known_by.stale_since {
            None => "it is in etcd under another peers.etcd_prefix, or not at all",
            Some(_) => "etcd is lost there, and who joins meanwhile is not heard of",
        };
        format!("host {host:?} is not one of the peers that {own:?} has found: {hint}")
    }

    fn refuse(&mut self, link: LinkId, refusal: String) {
        tracing::warn!(link = link.0, refusal, "a connection of another host is refused");
        self.roles.remove(&link);
        self.links.send(link, PeerMessage::Refused { reason: refusal });
        self.links.hang_up(link);
    }
}
