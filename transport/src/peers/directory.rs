//! Whom to ask: the peer with the longest run, and of two that have it the less loaded.
//!
//! Past about a hundred hosts each would know a part of the keys alone; whoever asks would still ask like this.

mod chain;

use std::collections::BTreeMap;

use chain::Chain;

use super::{digest::Mirror, name::ShortName};

/// Names looked up for objects, over all peers: a get of many objects of a pool that nobody has must not hold up others.
const LOOKS_MAX: usize = 1 << 16;

/// A peer as others of this host know it. Never used for another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

struct Known {
    mirror: Mirror,
    /// How much it has to do, in whatever unit all are told in.
    load: u64,
}

/// The peer to ask, and how many leading blocks it probably has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub peer: PeerId,
    pub run: usize,
}

#[derive(Default)]
pub struct Directory {
    peers: BTreeMap<PeerId, Known>,
}

impl Directory {
    /// A peer of whose blocks nothing is known yet.
    pub fn join(&mut self, peer: PeerId, digest_bytes_max: u64) {
        self.peers.insert(peer, Known { mirror: Mirror::new(digest_bytes_max), load: 0 });
    }

    pub fn leave(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
    }

    pub fn mirror_mut(&mut self, peer: PeerId) -> Option<&mut Mirror> {
        self.peers.get_mut(&peer).map(|known| &mut known.mirror)
    }

    pub fn load_mut(&mut self, peer: PeerId) -> Option<&mut u64> {
        self.peers.get_mut(&peer).map(|known| &mut known.load)
    }

    pub fn bytes(&self) -> u64 {
        self.peers.values().map(|known| known.mirror.bytes()).sum()
    }

    /// Which of these names a peer probably has.
    pub fn claims(&self, peer: PeerId, names: &[ShortName]) -> Vec<bool> {
        let has = |name: &ShortName| self.peers.get(&peer).is_some_and(|known| known.mirror.leading(&[*name]) == 1);
        names.iter().map(has).collect()
    }

    /// Whom to ask for these names of a chain, but for some peers that are not asked. Of all that have the longest run two
    /// are drawn, by `draw`, and the one with less to do is taken.
    pub fn choose(&self, names: &[ShortName], draw: u64, is_out: impl Fn(PeerId) -> bool) -> Option<Choice> {
        let mut chain = Chain::new(names);
        let choice = self.longest(draw, &is_out, |mirror, least| chain.run(mirror, least))?;
        // A shared name, or a peer with holes in its chains, made a run too long: seldom, so that it may cost more.
        let is_sound = self.peers[&choice.peer].mirror.leading(names) == choice.run;
        if is_sound { Some(choice) } else { self.longest(draw, &is_out, |mirror, _| mirror.leading(names)) }
    }

    /// Whom to ask for some of these objects: of those that have the first that anybody has. Of many names at many peers only
    /// some are looked up.
    pub fn choose_any(&self, names: &[ShortName], draw: u64, is_out: impl Fn(PeerId) -> bool) -> Option<Choice> {
        let step = (names.len() * self.peers.len()).div_ceil(LOOKS_MAX).max(1);
        names.iter().step_by(step).find_map(|name| self.choose(&[*name], draw, &is_out))
    }

    /// By `run`, which is given the longest so far and may say 0 where it is not reached.
    fn longest(
        &self,
        draw: u64,
        is_out: impl Fn(PeerId) -> bool,
        mut run: impl FnMut(&Mirror, usize) -> usize,
    ) -> Option<Choice> {
        let (mut longest, mut best) = (0, Vec::new());
        for (&peer, known) in self.peers.iter().filter(|(peer, _)| !is_out(**peer)) {
            let run = run(&known.mirror, longest);
            if run > longest {
                longest = run;
                best.clear();
            }
            if run == longest && run > 0 {
                best.push((known.load, peer));
            }
        }
        let count = best.len() as u64;
        let one = best.get(draw.checked_rem(count)? as usize)?;
        let other = &best[(draw % count + 1 + (draw >> 32) % (count - 1).max(1)) as usize % best.len()];
        Some(Choice { peer: one.min(other).1, run: longest })
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::Key;

    use super::{super::digest::Digest, *};

    fn names(count: u64) -> Vec<ShortName> {
        (0..count).map(|n| ShortName::new(0, &Key([n, 0, 0, 0]))).collect()
    }

    /// Peers with so many leading blocks each.
    fn directory(runs: &[u64]) -> Directory {
        let mut directory = Directory::default();
        for (at, &run) in runs.iter().enumerate() {
            let peer = PeerId(at as u32);
            directory.join(peer, 1 << 20);
            let mut digest = Digest::new(100, 0, 1);
            names(run).into_iter().for_each(|name| digest.changed(name, true));
            digest.take_delta(usize::MAX);
            let mirror = directory.mirror_mut(peer).expect("it joined");
            let (whole, parts) = digest.whole();
            mirror.begin(whole).expect("a sound digest");
            parts.for_each(|part| mirror.part(&part).expect("a sound part"));
        }
        directory
    }

    #[test]
    fn the_longest_run_is_asked_for_and_nobody_if_there_is_none() {
        let directory = directory(&[2, 5, 0, 3]);
        let choose = |count| directory.choose(&names(count), 77, |_| false);
        assert_eq!(choose(9), Some(Choice { peer: PeerId(1), run: 5 }));
        assert_eq!(choose(0), None);
        let out = directory.choose(&names(9), 0, |peer| peer == PeerId(1));
        assert_eq!(out, Some(Choice { peer: PeerId(3), run: 3 }));
        assert_eq!(directory.choose(&names(9), 0, |_| true), None);
        assert_eq!(Directory::default().choose(&names(9), 5, |_| false), None);
    }

    #[test]
    fn of_many_with_the_longest_run_the_most_loaded_is_never_asked_and_each_other_one_is() {
        let mut directory = directory(&[4; 5]);
        *directory.load_mut(PeerId(2)).expect("it joined") = 9;
        let mut asked = [0; 5];
        for draw in 0..2_000_u64 {
            let choice = directory.choose(&names(4), draw.wrapping_mul(0x9e37_79b9_7f4a_7c15), |_| false);
            asked[choice.expect("five have it").peer.0 as usize] += 1;
        }
        assert_eq!(asked[2], 0, "{asked:?}");
        assert!([0, 1, 3, 4].iter().all(|&at| asked[at] > 100), "{asked:?}");
    }

    #[test]
    fn of_objects_the_first_that_anybody_has_decides_also_among_very_many() {
        let directory = directory(&[0, 5, 3]);
        let stranger = |n| ShortName::new(0, &Key([n, 7, 0, 0]));
        let (mut asked, few): (Vec<ShortName>, _) = ((0..9).map(stranger).collect(), |_: PeerId| false);
        assert_eq!(directory.choose_any(&asked, 7, few), None);
        asked.push(names(5)[4]);
        assert_eq!(directory.choose_any(&asked, 7, few).map(|choice| choice.peer), Some(PeerId(1)));
        assert_eq!(directory.choose_any(&asked, 7, |peer| peer == PeerId(1)), None);
        let many: Vec<ShortName> = names(5).into_iter().cycle().take(LOOKS_MAX).collect();
        assert!(directory.choose_any(&many, 7, few).is_some());
    }

    #[test]
    fn a_peer_with_holes_in_a_chain_is_not_taken_for_one_without() {
        let mut directory = directory(&[6, 0, 4]);
        let mut digest = Digest::new(100, 0, 2);
        let all = names(64);
        // Whole but for one name: by its end it has most.
        all.iter().enumerate().filter(|(at, _)| *at != 3).for_each(|(_, name)| digest.changed(*name, true));
        digest.take_delta(usize::MAX);
        let mirror = directory.mirror_mut(PeerId(1)).expect("it joined");
        let (whole, parts) = digest.whole();
        mirror.begin(whole).expect("a sound digest");
        parts.for_each(|part| mirror.part(&part).expect("a sound part"));
        for draw in 0..20 {
            assert_eq!(directory.choose(&all, draw, |_| false), Some(Choice { peer: PeerId(0), run: 6 }));
        }
    }

    #[test]
    fn who_left_is_asked_no_more() {
        let mut directory = directory(&[4, 2]);
        directory.leave(PeerId(0));
        assert_eq!(directory.choose(&names(4), 0, |_| false), Some(Choice { peer: PeerId(1), run: 2 }));
        assert!(directory.mirror_mut(PeerId(0)).is_none());
    }
}
