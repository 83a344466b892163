//! A peer that may read this host's blocks: its pairs here. They have no READs of their own, and are told nothing: whoever
//! reads begins them anew when they fail.

use std::collections::BTreeMap;

use super::said::End;

/// What whoever reads has begun.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    pub session: u32,
    /// Its NIC, and that one's end.
    pub nic: String,
    pub end: End,
}

enum Stand<P> {
    /// A pair is being made for this session; what was begun meanwhile.
    Making { session: u32, nic: usize, next: Option<Begun> },
    /// It may be read by. Held, not used.
    Up { session: u32, nic: usize, pair: P },
}

impl<P> Stand<P> {
    fn pair(self) -> Option<P> {
        match self {
            Self::Making { .. } => None,
            Self::Up { pair, .. } => Some(pair),
        }
    }
}

pub(super) struct Guest<P> {
    pub group: usize,
    lanes: BTreeMap<u8, Stand<P>>,
}

impl<P> Guest<P> {
    pub(super) fn new(group: usize) -> Self {
        Self { group, lanes: BTreeMap::new() }
    }

    /// Whether a pair is to be made now: not for an old session, and one at a time for each lane.
    pub(super) fn begun(&mut self, lane: u8, begun: Begun) -> Option<Begun> {
        match self.lanes.get_mut(&lane) {
            Some(Stand::Making { session, next, .. }) => {
                if begun.session > next.as_ref().map_or(*session, |next| next.session) {
                    *next = Some(begun);
                }
                None
            }
            Some(Stand::Up { session, .. }) if begun.session <= *session => None,
            _ => Some(begun),
        }
    }

    /// The former pair of the lane, which is to go.
    pub(super) fn making(&mut self, lane: u8, session: u32, nic: usize) -> Option<P> {
        self.lanes.insert(lane, Stand::Making { session, nic, next: None }).and_then(Stand::pair)
    }

    /// Its pairs, which are to go.
    pub(super) fn into_pairs(self) -> impl Iterator<Item = P> {
        self.lanes.into_values().filter_map(Stand::pair)
    }

    /// A pair was made and connected, and is taken. Its NIC here; and what was begun meanwhile, which is to be looked at
    /// again: then the pair is not wanted any more.
    pub(super) fn made(&mut self, lane: u8, session: u32, pair: &mut Option<P>) -> (Option<usize>, Option<Begun>) {
        let Some(Stand::Making { session: of, nic, next }) = self.lanes.get_mut(&lane) else { return (None, None) };
        if *of != session {
            return (None, None);
        }
        let (nic, next) = (*nic, next.take());
        self.lanes.remove(&lane);
        let Some(pair) = pair.take_if(|_| next.is_none()) else { return (None, next) };
        self.lanes.insert(lane, Stand::Up { session, nic, pair });
        (Some(nic), None)
    }

    /// Lanes, with their sessions, by which a NIC's memory can be read.
    pub(super) fn up_on(&self, nic: usize) -> impl Iterator<Item = (u8, u32)> {
        self.lanes.iter().filter_map(move |(lane, stand)| match stand {
            Stand::Up { session, nic: on, .. } if *on == nic => Some((*lane, *session)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::rdma::said::GidKind;

    fn begun(session: u32) -> Begun {
        let end = End { pair: 1, packet: 2, gid: [0; 16], kind: GidKind::RoceV2Ip4, lid: 0, mtu: 5, reads_max: 1 };
        Begun { session, nic: "a".into(), end }
    }

    #[test]
    fn one_pair_is_made_at_a_time_and_of_those_begun_meanwhile_the_last() {
        let mut guest: Guest<&str> = Guest::new(0);
        assert!(guest.begun(0, begun(1)).is_some());
        guest.making(0, 1, 3);
        for session in [5, 9, 7] {
            assert!(guest.begun(0, begun(session)).is_none());
        }
        let mut first = Some("first");
        let (nic, next) = guest.made(0, 1, &mut first);
        assert_eq!((nic, next.map(|next| next.session), first), (None, Some(9), Some("first")));
        guest.making(0, 9, 3);
        assert_eq!(guest.made(0, 1, &mut Some("late")).0, None, "of another session");
        let mut second = Some("second");
        assert_eq!((guest.made(0, 9, &mut second).0, second), (Some(3), None));
        assert_eq!(guest.up_on(3).collect::<Vec<_>>(), [(0, 9)]);
        assert!(guest.begun(0, begun(9)).is_none() && guest.begun(0, begun(8)).is_none(), "old sessions");
        assert!(guest.begun(0, begun(10)).is_some() && guest.begun(1, begun(1)).is_some());
    }

    #[test]
    fn a_pair_that_could_not_be_made_leaves_room_for_the_next() {
        let mut guest: Guest<&str> = Guest::new(0);
        guest.making(2, 4, 0);
        assert!(matches!(guest.made(2, 4, &mut None), (None, None)));
        assert!(guest.begun(2, begun(5)).is_some());
        assert_eq!(guest.up_on(0).count(), 0);
    }
}
