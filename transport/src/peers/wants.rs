//! What is missing here and wanted from peers: whom to ask for it, and whom next. Pure.
//!
//! A want is the rest of one chain in one pool, or some objects that do not hang on each other. The peer that has most of it
//! is asked where its blocks are; what it has is read (by the caller, into slots of this host); then the next peer is asked
//! for what is still missing, until nobody has more or the time is over.
//!
//! Invariant: a want ends once, and by its deadline as far as its calls do.

use std::collections::{BTreeMap, VecDeque};

use lapis_config::{Key, PoolShape, Time, Wait};

use super::{
    asker::NotNow,
    directory::{Directory, PeerId},
    message::Located,
    name::ShortName,
};

/// Peers that are asked for one chain. Digests err seldom, and every question is a round trip that a client waits for.
const ASKED_MAX: usize = 3;
/// Peers that are asked for objects: each may be somewhere else.
const ASKED_EACH_MAX: usize = 16;

/// Asks a peer, by its asker.
pub trait Ask {
    #[allow(clippy::too_many_arguments, reason = "the request has so many parts")]
    fn locate(
        &mut self,
        call: u64,
        peer: PeerId,
        pool: &PoolShape,
        each: bool,
        wait: Wait,
        keys: &[Key],
        deadline: Time,
    ) -> Result<(), NotNow>;

    /// Looks the leading run of keys up in the peer's table, without asking it. An error: that is not done.
    fn look(&mut self, call: u64, peer: PeerId, pool: &PoolShape, keys: &[Key], deadline: Time) -> Result<(), NotNow>;
}

/// What comes of wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// These blocks lie there, each with the index of its key: they are to be read, then `filled` says so. `parent`: of the
    /// first. `looked`: they were looked up, and nothing is held there.
    Read { want: u64, peer: PeerId, call: u64, looked: bool, parent: Key, blocks: Vec<(usize, Located)> },
    /// So many keys came.
    Ended { want: u64, came: usize },
}

#[derive(Debug)]
struct Want {
    pool: PoolShape,
    /// Each key counts by itself; else the leading run of them.
    each: bool,
    keys: Vec<Key>,
    names: Vec<ShortName>,
    deadline: Time,
    /// Who is asked first, whatever its digest says, and whether it waits for what it has not.
    from: Option<(PeerId, Wait)>,
    /// Indices of the keys that may still come, in order.
    left: Vec<usize>,
    came: usize,
    asked: Vec<PeerId>,
    /// Those in whose tables it was looked up: they may be asked still, for what is not in their memory.
    looked: Vec<PeerId>,
    /// Of whom the call that is under way is, and whether it looks.
    call: Option<(PeerId, bool)>,
    /// Indices of the keys that the call is about.
    of_call: Vec<usize>,
}

impl Want {
    fn may_ask(&self) -> bool {
        !self.left.is_empty() && self.asked.len() < if self.each { ASKED_EACH_MAX } else { ASKED_MAX }
    }

    /// Of a chain, in each of few tables once.
    fn may_look(&self, peer: PeerId) -> bool {
        !self.each && self.looked.len() < ASKED_MAX && !self.looked.contains(&peer)
    }

    /// What a peer says that it has, as far as that can be an answer to what it was asked.
    fn sensible(&self, blocks: Vec<Located>) -> Vec<(usize, Located)> {
        let mut next = 0;
        let mut sensible = Vec::with_capacity(blocks.len().min(self.of_call.len()));
        for block in blocks {
            let at = usize::from(block.index);
            let in_order = if self.each { at >= next } else { at == next };
            let Some(&key) = self.of_call.get(at).filter(|_| in_order) else { break };
            sensible.push((key, block));
            next = at + 1;
        }
        sensible
    }
}

#[derive(Default)]
pub struct Wants {
    wants: BTreeMap<u64, Want>,
    by_call: BTreeMap<u64, u64>,
    calls: u64,
    draws: u64,
    outcomes: VecDeque<Outcome>,
}

impl Wants {
    pub fn poll(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    pub fn len(&self) -> usize {
        self.wants.len()
    }

    pub fn is_empty(&self) -> bool {
        self.wants.is_empty()
    }

    /// Whose call it is.
    pub fn of_call(&self, call: u64) -> Option<u64> {
        self.by_call.get(&call).copied()
    }

    /// Begins a want; false if no peer is likely to have any of it. `names` are those of `keys`; `from` is asked first.
    #[allow(clippy::too_many_arguments, reason = "a want has so many parts")]
    pub fn begin(
        &mut self,
        want: u64,
        pool: PoolShape,
        each: bool,
        keys: Vec<Key>,
        names: Vec<ShortName>,
        deadline: Time,
        from: Option<(PeerId, Wait)>,
        directory: &Directory,
        ask: &mut impl Ask,
    ) -> bool {
        assert_eq!(keys.len(), names.len(), "a name for each key");
        let left = (0..keys.len()).collect();
        let (asked, looked, of_call) = (Vec::new(), Vec::new(), Vec::new());
        let mut begun =
            Want { pool, each, keys, names, deadline, from, left, came: 0, asked, looked, call: None, of_call };
        let is_asked = self.ask_next(want, &mut begun, directory, ask);
        if is_asked {
            let former = self.wants.insert(want, begun);
            assert!(former.is_none(), "a want's name is used once");
        }
        is_asked
    }

    /// A peer has answered. False if nothing of it is to be read: whatever it holds is to go.
    pub fn found(
        &mut self,
        call: u64,
        parent: Key,
        blocks: Vec<Located>,
        directory: &Directory,
        ask: &mut impl Ask,
    ) -> bool {
        let Some(number) = self.by_call.get(&call).copied() else { return false };
        let want = &self.wants[&number];
        let blocks = want.sensible(blocks);
        let is_read = !blocks.is_empty();
        if is_read {
            let (peer, looked) = want.call.expect("one is under way");
            self.outcomes.push_back(Outcome::Read { want: number, peer, call, looked, parent, blocks });
        } else {
            self.failed(call, directory, ask);
        }
        is_read
    }

    /// No answer came, or nothing was found: the next peer is asked.
    pub fn failed(&mut self, call: u64, directory: &Directory, ask: &mut impl Ask) {
        self.filled(call, &[], directory, ask);
    }

    /// Of what a call found, the blocks of these keys are here now, in order.
    pub fn filled(&mut self, call: u64, came: &[usize], directory: &Directory, ask: &mut impl Ask) {
        let Some(number) = self.by_call.remove(&call) else { return };
        let mut want = self.wants.remove(&number).expect("a call belongs to a want");
        want.call = None;
        want.came += came.len();
        want.left.retain(|key| came.binary_search(key).is_err());
        if self.ask_next(number, &mut want, directory, ask) {
            self.wants.insert(number, want);
        } else {
            self.outcomes.push_back(Outcome::Ended { want: number, came: want.came });
        }
    }

    /// Asks the peer that has the most of what is missing. False if there is none, or none may be asked now.
    fn ask_next(&mut self, number: u64, want: &mut Want, directory: &Directory, ask: &mut impl Ask) -> bool {
        let mut away = Vec::new();
        while want.may_ask() {
            let from = want.from.take();
            let chosen = from.or_else(|| Some((self.choose(want, directory, &away)?, Wait::Present)));
            let Some((peer, wait)) = chosen else { return false };
            self.calls += 1;
            let names: Vec<ShortName> = want.left.iter().map(|&key| want.names[key]).collect();
            want.of_call = if want.each && from.is_none() {
                let claims = directory.claims(peer, &names);
                want.left.iter().zip(claims).filter(|(_, claimed)| *claimed).map(|(&key, _)| key).collect()
            } else {
                // More than its digest says: it may have got them since.
                want.left.clone()
            };
            let keys: Vec<Key> = want.of_call.iter().map(|&key| want.keys[key]).collect();
            let is_look = wait == Wait::Present
                && want.may_look(peer)
                && ask.look(self.calls, peer, &want.pool, &keys, want.deadline).is_ok();
            if is_look {
                want.looked.push(peer);
                want.from = from;
            } else {
                match ask.locate(self.calls, peer, &want.pool, want.each, wait, &keys, want.deadline) {
                    Ok(()) => want.asked.push(peer),
                    Err(_) => {
                        away.push(peer);
                        continue;
                    }
                }
            }
            want.call = Some((peer, is_look));
            self.by_call.insert(self.calls, number);
            return true;
        }
        false
    }

    /// Of a chain, whoever has the longest run of it; of objects, whoever has the first that anybody has.
    fn choose(&mut self, want: &Want, directory: &Directory, away: &[PeerId]) -> Option<PeerId> {
        self.draws = self.draws.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        let is_out = |peer| want.asked.contains(&peer) || away.contains(&peer);
        let names: Vec<ShortName> = want.left.iter().map(|&key| want.names[key]).collect();
        let choice = match want.each {
            false => directory.choose(&names, self.draws, is_out),
            true => directory.choose_any(&names, self.draws, is_out),
        };
        choice.map(|choice| choice.peer)
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::{Fingerprint, PoolKind};

    use super::{super::digest::Digest, *};

    fn keys(count: u64) -> Vec<Key> {
        (0..count).map(|n| Key([n, 0, 0, 0])).collect()
    }

    fn names(keys: &[Key]) -> Vec<ShortName> {
        keys.iter().map(|key| ShortName::new(1, key)).collect()
    }

    fn shape() -> PoolShape {
        let (namespace, kind) = (Fingerprint([1; 32]), PoolKind::Chain);
        PoolShape { namespace, label: "kv".into(), kind, block_bytes: 4096, pieces: 1 }
    }

    /// Peers with so many leading blocks each.
    fn directory(runs: &[u64]) -> Directory {
        let mut directory = Directory::default();
        for (at, &run) in runs.iter().enumerate() {
            let peer = PeerId(at as u32);
            directory.join(peer, 1 << 20);
            let mut digest = Digest::new(100, 0, 1);
            names(&keys(run)).into_iter().for_each(|name| digest.changed(name, true));
            digest.take_delta(usize::MAX);
            let mirror = directory.mirror_mut(peer).expect("it joined");
            let (whole, parts) = digest.whole();
            mirror.begin(whole).expect("a sound digest");
            parts.for_each(|part| mirror.part(&part).expect("a sound part"));
        }
        directory
    }

    /// Takes down who was asked for how many keys; some peers are away.
    #[derive(Default)]
    struct Asked {
        calls: Vec<(u64, u32, usize)>,
        waits: Vec<Wait>,
        away: Vec<u32>,
        looks: bool,
        looked: Vec<(u64, u32, usize)>,
    }

    impl Ask for Asked {
        fn locate(
            &mut self,
            call: u64,
            peer: PeerId,
            _pool: &PoolShape,
            _each: bool,
            wait: Wait,
            keys: &[Key],
            _deadline: Time,
        ) -> Result<(), NotNow> {
            if self.away.contains(&peer.0) {
                return Err(NotNow::Away);
            }
            self.calls.push((call, peer.0, keys.len()));
            self.waits.push(wait);
            Ok(())
        }

        fn look(
            &mut self,
            call: u64,
            peer: PeerId,
            _pool: &PoolShape,
            keys: &[Key],
            _deadline: Time,
        ) -> Result<(), NotNow> {
            if !self.looks {
                return Err(NotNow::Asked);
            }
            self.looked.push((call, peer.0, keys.len()));
            Ok(())
        }
    }

    fn blocks(count: u32) -> Vec<Located> {
        let block = |slot| {
            let (index, follows) = (slot as u16, slot > 0);
            Located { index, follows, line: slot, generation: 1, slot, bytes: 4096, sum: 9 }
        };
        (0..count).map(block).collect()
    }

    fn begin(wants: &mut Wants, want: u64, count: u64, directory: &Directory, asked: &mut Asked) -> bool {
        let keys = keys(count);
        let names = names(&keys);
        wants.begin(want, shape(), false, keys, names, Time(1_000), None, directory, asked)
    }

    #[test]
    fn what_one_peer_has_is_read_and_the_rest_is_asked_of_the_next() {
        let (directory, mut wants, mut asked) = (directory(&[2, 5]), Wants::default(), Asked::default());
        assert!(begin(&mut wants, 7, 6, &directory, &mut asked));
        assert_eq!(asked.calls, [(1, 1, 6)]);
        // It has lost one since it told of it.
        wants.found(1, Key::default(), blocks(4), &directory, &mut asked);
        let found = (0..4).zip(blocks(4)).collect();
        let (peer, parent, looked) = (PeerId(1), Key::default(), false);
        let read = Outcome::Read { want: 7, peer, call: 1, looked, parent, blocks: found };
        assert_eq!(wants.poll(), Some(read));
        wants.filled(1, &[0, 1, 2, 3], &directory, &mut asked);
        assert_eq!(wants.poll(), Some(Outcome::Ended { want: 7, came: 4 }), "nobody else is said to have the fifth");
        assert!(wants.is_empty());
    }

    #[test]
    fn a_peer_without_an_answer_is_followed_by_the_next_one_and_by_no_more_than_three() {
        let (directory, mut wants, mut asked) = (directory(&[3; 6]), Wants::default(), Asked::default());
        assert!(begin(&mut wants, 1, 3, &directory, &mut asked));
        for call in 1..=3 {
            assert_eq!(wants.poll(), None);
            if call == 2 {
                wants.found(call, Key::default(), vec![], &directory, &mut asked);
            } else {
                wants.failed(call, &directory, &mut asked);
            }
        }
        let mut peers: Vec<u32> = asked.calls.iter().map(|call| call.1).collect();
        peers.sort_unstable();
        peers.dedup();
        assert_eq!(peers.len(), 3, "each once: {:?}", asked.calls);
        assert_eq!(wants.poll(), Some(Outcome::Ended { want: 1, came: 0 }));
    }

    #[test]
    fn whoever_is_away_is_passed_over_and_where_all_are_nothing_begins() {
        let (directory, mut wants) = (directory(&[3, 2]), Wants::default());
        let mut asked = Asked { away: vec![0], ..Asked::default() };
        assert!(begin(&mut wants, 1, 3, &directory, &mut asked));
        assert_eq!(asked.calls[0].1, 1);
        asked.away.push(1);
        assert!(!begin(&mut wants, 2, 3, &directory, &mut asked));
        assert!(!begin(&mut wants, 3, 0, &directory, &mut asked), "nothing is wanted");
        assert_eq!(wants.len(), 1);
    }

    #[test]
    fn more_than_was_asked_for_is_not_read() {
        let (directory, mut wants, mut asked) = (directory(&[3]), Wants::default(), Asked::default());
        begin(&mut wants, 1, 2, &directory, &mut asked);
        wants.found(1, Key::default(), blocks(9), &directory, &mut asked);
        assert!(matches!(wants.poll(), Some(Outcome::Read { blocks, .. }) if blocks.len() == 2));
    }

    #[test]
    fn what_is_no_answer_to_the_question_is_not_read() {
        let (directory, mut asked) = (directory(&[5]), Asked::default());
        for (indices, sensible) in [(&[1, 2][..], 0), (&[0, 2], 1), (&[0, 0], 1), (&[0, 1, 2, 3, 4, 5], 3)] {
            let mut wants = Wants::default();
            begin(&mut wants, 1, 3, &directory, &mut asked);
            let lie = indices.iter().map(|&index| Located { index, ..blocks(1)[0] }).collect();
            let is_read = wants.found(1, Key::default(), lie, &directory, &mut asked);
            assert_eq!(is_read, sensible > 0);
            match wants.poll().expect("something comes of it") {
                Outcome::Read { blocks, .. } => assert_eq!(blocks.len(), sensible, "{indices:?}"),
                Outcome::Ended { came, .. } => assert_eq!((came, sensible), (0, 0), "{indices:?}"),
            }
        }
    }

    #[test]
    fn a_table_is_looked_at_once_and_its_owner_asked_for_what_was_not_there() {
        let (directory, mut wants) = (directory(&[5, 4]), Wants::default());
        let mut asked = Asked { looks: true, ..Asked::default() };
        assert!(begin(&mut wants, 1, 6, &directory, &mut asked));
        assert_eq!((&asked.looked[..], &asked.calls[..]), (&[(1, 0, 6)][..], &[][..]));
        assert_eq!(wants.of_call(1), Some(1));
        assert!(wants.found(1, Key::default(), blocks(2), &directory, &mut asked));
        assert!(matches!(wants.poll(), Some(Outcome::Read { call: 1, peer: PeerId(0), looked: true, .. })));
        // The second was another's by the time it was read.
        wants.filled(1, &[0], &directory, &mut asked);
        assert_eq!(asked.calls, [(2, 0, 5)], "the same peer is asked for the rest");
        wants.found(2, Key::default(), vec![], &directory, &mut asked);
        assert_eq!(asked.looked, [(1, 0, 6), (3, 1, 5)], "then the next one's table");
        wants.found(3, Key::default(), blocks(5), &directory, &mut asked);
        wants.filled(3, &[1, 2, 3, 4, 5], &directory, &mut asked);
        assert_eq!(std::iter::from_fn(|| wants.poll()).last(), Some(Outcome::Ended { want: 1, came: 6 }));
        assert_eq!((asked.looked.len(), asked.calls.len()), (2, 1));
    }

    #[test]
    fn whoever_is_named_is_asked_after_its_table_and_at_once_if_it_is_to_wait() {
        let (directory, keys) = (directory(&[0, 0]), keys(3));
        for (wait, looked) in [(Wait::Present, 1), (Wait::Filling, 0)] {
            let (mut wants, mut asked) = (Wants::default(), Asked { looks: true, ..Asked::default() });
            let from = Some((PeerId(1), wait));
            wants.begin(1, shape(), false, keys.clone(), names(&keys), Time(9), from, &directory, &mut asked);
            assert_eq!(asked.looked.len(), looked);
            if looked > 0 {
                wants.failed(1, &directory, &mut asked);
            }
            assert_eq!((asked.calls[0].1, asked.waits[0]), (1, wait), "whatever its digest says");
        }
    }

    #[test]
    fn objects_are_not_looked_up() {
        let (directory, mut wants, keys) = (directory(&[3]), Wants::default(), keys(3));
        let mut asked = Asked { looks: true, ..Asked::default() };
        wants.begin(1, shape(), true, keys.clone(), names(&keys), Time(9), None, &directory, &mut asked);
        assert_eq!((asked.looked.len(), asked.calls.len()), (0, 1));
    }

    #[test]
    fn of_objects_each_is_asked_of_who_has_it() {
        let mut directory = directory(&[0, 0, 0]);
        let names = names(&keys(6));
        for (peer, has) in [(0, &[1, 4][..]), (1, &[2, 4]), (2, &[])] {
            let mirror = directory.mirror_mut(PeerId(peer)).expect("it joined");
            let mut digest = Digest::new(100, 0, 2);
            has.iter().for_each(|&name: &usize| digest.changed(names[name], true));
            digest.take_delta(usize::MAX);
            let (whole, parts) = digest.whole();
            mirror.begin(whole).expect("a sound digest");
            parts.for_each(|part| mirror.part(&part).expect("a sound part"));
        }
        let (mut wants, mut asked) = (Wants::default(), Asked::default());
        assert!(wants.begin(1, shape(), true, keys(6), names, Time(1_000), None, &directory, &mut asked));
        assert_eq!(asked.calls, [(1, 0, 2)], "1 and 4");
        wants.found(1, Key::default(), vec![Located { index: 1, ..blocks(1)[0] }], &directory, &mut asked);
        let Some(Outcome::Read { call: 1, blocks: found, .. }) = wants.poll() else { panic!("it has the fifth") };
        assert_eq!(found.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [4]);
        wants.filled(1, &[4], &directory, &mut asked);
        assert_eq!(asked.calls[1..], [(2, 1, 1)], "2, and 4 is here");
        wants.failed(2, &directory, &mut asked);
        assert_eq!(wants.poll(), Some(Outcome::Ended { want: 1, came: 1 }));
    }

    #[test]
    fn whoever_is_named_is_asked_first_whatever_is_known_of_it_and_waits_if_it_shall() {
        let (directory, mut wants, mut asked) = (directory(&[0, 3]), Wants::default(), Asked::default());
        let keys = keys(3);
        let names = names(&keys);
        let from = Some((PeerId(0), Wait::Absent));
        assert!(wants.begin(1, shape(), false, keys, names, Time(1_000), from, &directory, &mut asked));
        wants.failed(1, &directory, &mut asked);
        assert_eq!(asked.calls, [(1, 0, 3), (2, 1, 3)]);
        assert_eq!(asked.waits, [Wait::Absent, Wait::Present]);
    }
}
