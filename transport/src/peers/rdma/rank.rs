//! Which ports and which of their addresses are used, and why not the others. Pure.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::said::GidKind;

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    InfiniBand,
    Ethernet,
    /// RDMA over TCP: its pairs connect by a manager of connections alone.
    Iwarp,
}

/// How good an address is; the first is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    RoceV2Ip4,
    RoceV2Ip6,
    InfiniBand,
    RoceV1,
    /// Of RoCE: heard on its own Ethernet alone, and there even before anybody has configured the interface.
    LinkLocal,
}

/// A GID of a port: what it may be used by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub device: String,
    pub port: u8,
    pub layer: Layer,
    /// As the kernel says it: "ACTIVE", "DOWN".
    pub state: String,
    /// In the port's table.
    pub index: u16,
    pub gid: [u8; 16],
    /// Of RoCE: version 2, in UDP.
    pub is_v2: bool,
    /// The network interface under it, and whether it is in this network namespace.
    pub interface: Option<(String, bool)>,
}

/// Why a candidate is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unused {
    NotNamed,
    Iwarp,
    State(String),
    /// Its interface is in another network namespace.
    Elsewhere(String),
    /// The same port has a better one, or an equal one before it.
    Better {
        index: u16,
        rank: Rank,
    },
    /// Another port has a better one; both at once are used only when both are named.
    OtherPort {
        device: String,
        rank: Rank,
    },
    /// More ports than lanes.
    TooMany {
        max: usize,
    },
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RoceV2Ip4 => "RoCE v2, IPv4",
            Self::RoceV2Ip6 => "RoCE v2, IPv6",
            Self::InfiniBand => "InfiniBand",
            Self::RoceV1 => "RoCE v1",
            Self::LinkLocal => "RoCE, link-local",
        })
    }
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNamed => f.write_str("not named in peers.rdma_devices"),
            Self::Iwarp => f.write_str("it speaks iWARP; RoCE and InfiniBand are known here"),
            Self::State(state) => write!(f, "its port is {state}"),
            Self::Elsewhere(interface) => write!(f, "its interface {interface} is in another network namespace"),
            Self::Better { index, rank } => write!(f, "index {index} of its port is preferred ({rank})"),
            Self::OtherPort { device, rank } => {
                write!(f, "{device} has a better one ({rank}); name both in peers.rdma_devices to use both")
            }
            Self::TooMany { max } => write!(f, "{max} ports are used already, the limit"),
        }
    }
}

impl Candidate {
    pub fn rank(&self) -> Rank {
        match (self.layer, self.address()) {
            (Layer::InfiniBand, _) => Rank::InfiniBand,
            (_, Address::Ip6(ip)) if ip.is_unicast_link_local() => Rank::LinkLocal,
            (_, Address::Ip4(ip)) if ip.is_link_local() => Rank::LinkLocal,
            _ if !self.is_v2 => Rank::RoceV1,
            (_, Address::Ip4(_)) => Rank::RoceV2Ip4,
            (_, Address::Ip6(_)) => Rank::RoceV2Ip6,
        }
    }

    pub fn kind(&self) -> GidKind {
        match (self.layer, self.is_v2, self.address()) {
            (Layer::InfiniBand, ..) => GidKind::InfiniBand,
            (_, false, _) => GidKind::RoceV1,
            (_, true, Address::Ip4(_)) => GidKind::RoceV2Ip4,
            (_, true, Address::Ip6(_)) => GidKind::RoceV2Ip6,
        }
    }

    pub fn address(&self) -> Address {
        let ip = Ipv6Addr::from(self.gid);
        ip.to_ipv4_mapped().map_or(Address::Ip6(ip), Address::Ip4)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    Ip4(Ipv4Addr),
    Ip6(Ipv6Addr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip4(ip) => ip.fmt(f),
            Self::Ip6(ip) => ip.fmt(f),
        }
    }
}

/// One verdict a candidate: `Ok` is used. At most one a port, and at most `max` in all. `named`: names of devices; none: of
/// all ports those with an address of the best rank that any has. A named device is used with the best that it has.
pub fn choose(candidates: &[Candidate], named: &[String], max: usize) -> Vec<Result<(), Unused>> {
    let fit = |c: &Candidate| match &c.interface {
        _ if !named.is_empty() && !named.contains(&c.device) => Err(Unused::NotNamed),
        _ if c.layer == Layer::Iwarp => Err(Unused::Iwarp),
        _ if c.state != "ACTIVE" => Err(Unused::State(c.state.clone())),
        Some((interface, false)) => Err(Unused::Elsewhere(interface.clone())),
        _ => Ok(()),
    };
    let usable = || candidates.iter().filter(|c| fit(c).is_ok());
    let place = |c: &Candidate| (c.rank(), c.index);
    let best = usable().min_by_key(|c| place(c));
    let mut used = 0;
    let mut judge = |candidate: &Candidate| {
        fit(candidate)?;
        let on_port = usable().filter(|c| (&c.device, c.port) == (&candidate.device, candidate.port));
        let first = on_port.min_by_key(|c| place(c)).expect("at least this one");
        if place(first) != place(candidate) {
            return Err(Unused::Better { index: first.index, rank: first.rank() });
        }
        if let Some(best) = best.filter(|best| named.is_empty() && best.rank() < candidate.rank()) {
            return Err(Unused::OtherPort { device: best.device.clone(), rank: best.rank() });
        }
        used += 1;
        if used > max { Err(Unused::TooMany { max }) } else { Ok(()) }
    };
    candidates.iter().map(&mut judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(device: &str, index: u16, gid: &str, is_v2: bool) -> Candidate {
        let gid = match gid.parse::<Ipv4Addr>() {
            Ok(ip) => ip.to_ipv6_mapped().octets(),
            Err(_) => gid.parse::<Ipv6Addr>().expect("an address").octets(),
        };
        let interface = Some((format!("{device}-if"), true));
        let (device, state) = (device.to_owned(), "ACTIVE".to_owned());
        Candidate { device, port: 1, layer: Layer::Ethernet, state, index, gid, is_v2, interface }
    }

    fn infiniband(device: &str) -> Candidate {
        Candidate { layer: Layer::InfiniBand, interface: None, ..of(device, 0, "fe80::9803:9b03:1:2", false) }
    }

    /// As a port with an IPv4 and an IPv6 address has them.
    fn usual(device: &str) -> Vec<Candidate> {
        vec![
            of(device, 0, "fe80::1", false),
            of(device, 1, "fe80::1", true),
            of(device, 2, "2001:db8::1", true),
            of(device, 3, "10.0.0.1", false),
            of(device, 4, "10.0.0.1", true),
        ]
    }

    fn chosen(candidates: &[Candidate], named: &[&str]) -> Vec<(String, u16)> {
        let named: Vec<String> = named.iter().map(|&name| name.to_owned()).collect();
        let verdicts = choose(candidates, &named, 8);
        let used = candidates.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_ok());
        used.map(|(c, _)| (c.device.clone(), c.index)).collect()
    }

    #[test]
    fn ranks_go_from_roce_v2_over_ip4_down_to_link_local() {
        let ranks: Vec<Rank> = usual("a").iter().map(Candidate::rank).collect();
        let (local, v1) = (Rank::LinkLocal, Rank::RoceV1);
        assert_eq!(ranks, [local, local, Rank::RoceV2Ip6, v1, Rank::RoceV2Ip4]);
        assert_eq!(infiniband("a").rank(), Rank::InfiniBand, "its GIDs look link-local and are not");
        assert_eq!(of("a", 0, "169.254.1.1", true).rank(), Rank::LinkLocal);
        assert!(Rank::RoceV2Ip4 < Rank::RoceV2Ip6 && Rank::RoceV2Ip6 < Rank::InfiniBand);
        assert!(Rank::InfiniBand < Rank::RoceV1 && Rank::RoceV1 < Rank::LinkLocal);
    }

    #[test]
    fn a_port_is_used_once_with_its_best_address() {
        assert_eq!(chosen(&usual("a"), &[]), [("a".into(), 4)]);
        assert_eq!(chosen(&usual("a")[..3], &[]), [("a".into(), 2)]);
        assert_eq!(chosen(&usual("a")[..2], &[]), [("a".into(), 0)], "the first of equals");
        let verdicts = choose(&usual("a"), &[], 8);
        assert_eq!(verdicts[0], Err(Unused::Better { index: 4, rank: Rank::RoceV2Ip4 }));
    }

    #[test]
    fn ports_of_the_best_rank_are_used_together_and_others_only_by_name() {
        let mut all = usual("a");
        all.extend(usual("b"));
        all.push(of("c", 0, "fe80::3", true));
        all.push(infiniband("d"));
        assert_eq!(chosen(&all, &[]), [("a".into(), 4), ("b".into(), 4)]);
        assert_eq!(chosen(&all, &["b"]), [("b".into(), 4)]);
        assert_eq!(chosen(&all, &["c", "d"]), [("c".into(), 0), ("d".into(), 0)]);
        let verdicts = choose(&all, &[], 8);
        let other = Unused::OtherPort { device: "a".into(), rank: Rank::RoceV2Ip4 };
        assert_eq!(verdicts.last(), Some(&Err(other)));
    }

    #[test]
    fn what_cannot_be_used_hides_nothing_that_can() {
        let mut all = usual("a");
        all.iter_mut().for_each(|c| c.state = "DOWN".into());
        all.extend(usual("b"));
        all.iter_mut().filter(|c| c.device == "b").for_each(|c| c.interface = Some(("v1".into(), false)));
        all.push(of("c", 0, "fe80::3", true));
        all.push(Candidate { layer: Layer::Iwarp, ..of("i", 0, "10.0.0.9", true) });
        assert_eq!(chosen(&all, &[]), [("c".into(), 0)]);
        let verdicts = choose(&all, &[], 8);
        assert_eq!(verdicts[11], Err(Unused::Iwarp));
        assert_eq!(verdicts[4].as_ref().map_err(ToString::to_string), Err("its port is DOWN".into()));
        let elsewhere = "its interface v1 is in another network namespace";
        assert_eq!(verdicts[9].as_ref().map_err(ToString::to_string), Err(elsewhere.into()));
        assert_eq!(chosen(&all, &["a"]), [], "a named one that is down is not used");
    }

    #[test]
    fn there_is_a_bound_on_ports() {
        let all: Vec<Candidate> = (0..10).map(|n| of(&format!("n{n}"), 0, "10.0.0.1", true)).collect();
        assert_eq!(chosen(&all, &[]).len(), 8);
        assert_eq!(choose(&all, &[], 8)[9], Err(Unused::TooMany { max: 8 }));
    }
}
