//! What a host has, told to others: once whole, then change by change.
//!
//! A digest has an epoch, new whenever the host cannot say any more what changed, and a sequence: the count of changes in
//! it. Whoever missed one, or knows of another epoch, asks for the whole again. A digest may be late, and short names may
//! be shared: it answers where to ask, never what is there.
//!
//! Invariant: a mirror that is whole and at the same epoch and sequence is the same filter as the host's own.

use std::sync::Arc;

use super::{
    filter::{BUCKET_BYTES, Filter},
    name::ShortName,
};

/// Buckets of one part of a whole digest: 64 KiB.
const PART_BUCKETS: u32 = (64 << 10) / BUCKET_BYTES as u32;
/// A mirror takes as many names for which it has no room, and one more for so many buckets: each costs hundreds of moves.
const LEFT_OUT_MIN: u64 = 64;
const LEFT_OUT_SHARE: u64 = 64;
/// Largest sampling: one name in 2^16.
pub const SAMPLING_MAX: u8 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub name: ShortName,
    /// There from now on, or gone.
    pub added: bool,
}

/// Begins a whole digest; its parts follow, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    pub epoch: u64,
    pub sequence: u64,
    pub buckets: u32,
    /// It tells of one name in 2^`sampling`.
    pub sampling: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub first: u32,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    pub epoch: u64,
    /// Of the first change.
    pub sequence: u64,
    pub changes: Vec<Change>,
}

/// The digest of this host.
pub struct Digest {
    /// Shared with the wholes that are being sent; copied when it changes meanwhile.
    filter: Arc<Filter>,
    sampling: u8,
    epoch: u64,
    sequence: u64,
    /// Told to nobody yet; the filter has them.
    changes: Vec<Change>,
    changes_max: usize,
    /// Nobody has heard that the epoch is another.
    untold: bool,
}

impl Digest {
    /// For so many blocks at most; `epoch` is one that no digest of this host had before.
    pub fn new(blocks_max: u64, sampling: u8, epoch: u64) -> Self {
        assert!(sampling <= SAMPLING_MAX, "samplings are checked where they are read");
        let names = (blocks_max >> sampling).max(1);
        // Names are spread by chance: a sample may be a little larger than its share.
        let names = names + if sampling > 0 { 4 * names.isqrt() } else { 0 };
        let changes_max = (names / 4).clamp(1024, 1 << 20) as usize;
        let (filter, changes) = (Arc::new(Filter::for_names(names)), Vec::new());
        Self { filter, sampling, epoch, sequence: 0, changes, changes_max, untold: false }
    }

    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// A block is there, or is there no more.
    pub fn changed(&mut self, name: ShortName, added: bool) {
        if !name.is_sampled(self.sampling) {
            return;
        }
        let filter = Arc::make_mut(&mut self.filter);
        if added {
            filter.add(name);
        } else {
            filter.remove(name);
        }
        if self.changes.len() < self.changes_max {
            self.changes.push(Change { name, added });
        } else {
            // Nobody listens, or all is new: the whole is less.
            self.epoch += 1;
            self.sequence = 0;
            self.changes.clear();
            self.untold = true;
        }
    }

    pub fn has_changes(&self) -> bool {
        self.untold || !self.changes.is_empty()
    }

    /// The first changes that were told to nobody, so many at most, for all who have the whole; `None` if there are none.
    /// Without changes: the epoch is another, and goes on from nothing that anybody knows.
    pub fn take_delta(&mut self, most: usize) -> Option<Delta> {
        if !self.has_changes() {
            return None;
        }
        self.untold = false;
        let rest = self.changes.split_off(most.min(self.changes.len()));
        let changes = std::mem::replace(&mut self.changes, rest);
        let delta = Delta { epoch: self.epoch, sequence: self.sequence, changes };
        self.sequence += delta.changes.len() as u64;
        Some(delta)
    }

    /// The whole as it is now, to be sent in parts; what changed and was told to nobody comes with it, so take that first.
    pub fn whole(&self) -> (Whole, Parts) {
        assert!(!self.has_changes(), "what changed is taken before the whole");
        let buckets = self.filter.buckets();
        let whole = Whole { epoch: self.epoch, sequence: self.sequence, buckets, sampling: self.sampling };
        (whole, Parts { filter: self.filter.clone(), next: 0 })
    }
}

/// The parts of a whole digest, of one moment.
pub struct Parts {
    filter: Arc<Filter>,
    next: u32,
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let count = PART_BUCKETS.min(self.filter.buckets() - self.next);
        if count == 0 {
            return None;
        }
        let mut part = Part { first: self.next, bytes: Vec::with_capacity(count as usize * BUCKET_BYTES) };
        self.filter.write(part.first, count, &mut part.bytes);
        self.next += count;
        Some(part)
    }
}

/// Why what came is no digest that goes on from what is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Something was missed: the whole is wanted.
    Gap,
    /// It says of itself what cannot be: the peer errs.
    Wrong(&'static str),
}

/// What this host knows of another's blocks.
#[derive(Debug)]
pub struct Mirror {
    filter: Filter,
    of: Option<Whole>,
    /// The bucket that comes next, while the whole is on its way.
    next: u32,
    buckets_max: u32,
}

impl Mirror {
    /// Knows nothing. Takes no more memory than `bytes_max`.
    pub fn new(bytes_max: u64) -> Self {
        let buckets_max = u32::try_from(bytes_max / BUCKET_BYTES as u64).unwrap_or(u32::MAX);
        Self { filter: Filter::of_buckets(1), of: None, next: 0, buckets_max }
    }

    pub fn bytes(&self) -> u64 {
        self.filter.bytes()
    }

    /// Epoch and sequence, if all of it is here.
    pub fn known(&self) -> Option<(u64, u64)> {
        self.of.filter(|of| self.next == of.buckets).map(|of| (of.epoch, of.sequence))
    }

    pub fn begin(&mut self, whole: Whole) -> Result<(), Unfit> {
        self.of = None;
        if whole.buckets == 0 || whole.sampling > SAMPLING_MAX {
            return Err(Unfit::Wrong("a digest without buckets, or of too small a sample"));
        }
        if whole.buckets > self.buckets_max {
            return Err(Unfit::Wrong("a digest larger than a peer's may be"));
        }
        self.filter = Filter::of_buckets(whole.buckets);
        (self.of, self.next) = (Some(whole), 0);
        Ok(())
    }

    pub fn part(&mut self, part: &Part) -> Result<(), Unfit> {
        let of = self.of.ok_or(Unfit::Gap)?;
        if part.first != self.next || part.bytes.is_empty() || !self.filter.read(part.first, &part.bytes) {
            self.of = None;
            return Err(Unfit::Wrong("a part of a digest beyond its end, or out of order"));
        }
        self.next += (part.bytes.len() / BUCKET_BYTES) as u32;
        debug_assert!(self.next <= of.buckets, "the filter says so");
        Ok(())
    }

    pub fn delta(&mut self, delta: &Delta) -> Result<(), Unfit> {
        let whole = self.known().ok_or(Unfit::Gap)?;
        if whole != (delta.epoch, delta.sequence) {
            self.of = None;
            return Err(Unfit::Gap);
        }
        let left_out_max = LEFT_OUT_MIN + u64::from(self.filter.buckets()) / LEFT_OUT_SHARE;
        for change in &delta.changes {
            if change.added {
                self.filter.add(change.name);
            } else {
                self.filter.remove(change.name);
            }
            if self.filter.left_out() > left_out_max {
                self.of = None;
                return Err(Unfit::Wrong("a digest of more blocks than it was made for"));
            }
        }
        let of = self.of.as_mut().expect("known above");
        // Where it began is the peer's word: anywhere.
        of.sequence = of.sequence.wrapping_add(delta.changes.len() as u64);
        Ok(())
    }

    /// Of which sample of names it knows, if all of it is here.
    pub(super) fn sampling(&self) -> Option<u8> {
        self.of.filter(|of| self.next == of.buckets).map(|of| of.sampling)
    }

    pub(super) fn has(&self, name: ShortName) -> bool {
        self.filter.contains(name)
    }

    /// How many leading names the peer probably has. Of a sample: up to the last one that was told of and all before it.
    pub fn leading(&self, names: &[ShortName]) -> usize {
        let Some(sampling) = self.sampling() else { return 0 };
        let mut run = 0;
        for (at, name) in names.iter().enumerate().filter(|(_, name)| name.is_sampled(sampling)) {
            if !self.filter.contains(*name) {
                break;
            }
            run = at + 1;
        }
        run
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::Key;
    use proptest::prelude::*;

    use super::*;

    const MIRROR_BYTES: u64 = 64 << 20;

    fn name(n: u64) -> ShortName {
        ShortName::new(0, &Key([n, 1, 2, 3]))
    }

    fn names(range: std::ops::Range<u64>) -> Vec<ShortName> {
        range.map(name).collect()
    }

    fn send(digest: &Digest, mirror: &mut Mirror) {
        let (whole, parts) = digest.whole();
        mirror.begin(whole).expect("a sound digest");
        parts.for_each(|part| mirror.part(&part).expect("a sound part"));
    }

    #[test]
    fn a_mirror_follows_change_by_change() {
        let (mut digest, mut mirror) = (Digest::new(100_000, 0, 5), Mirror::new(MIRROR_BYTES));
        assert_eq!(mirror.leading(&names(0..10)), 0, "nothing is known");
        names(0..90_000).into_iter().for_each(|name| digest.changed(name, true));
        while digest.take_delta(usize::MAX).is_some() {}
        send(&digest, &mut mirror);
        assert_eq!(mirror.leading(&names(89_990..90_010)), 10);
        names(0..500).into_iter().for_each(|name| digest.changed(name, false));
        names(90_000..90_500).into_iter().for_each(|name| digest.changed(name, true));
        mirror.delta(&digest.take_delta(usize::MAX).expect("changes")).expect("the next ones");
        assert_eq!((mirror.leading(&names(89_990..90_010)), mirror.leading(&names(0..10))), (20, 0));
        assert_eq!(&mirror.filter, digest.filter());
    }

    #[test]
    fn whoever_missed_a_change_wants_the_whole() {
        let (mut digest, mut mirror) = (Digest::new(100, 0, 1), Mirror::new(MIRROR_BYTES));
        let delta = |digest: &mut Digest, n| {
            digest.changed(name(n), true);
            digest.take_delta(usize::MAX).expect("a change")
        };
        assert_eq!(mirror.delta(&delta(&mut digest, 1)), Err(Unfit::Gap), "nothing to add it to");
        send(&digest, &mut mirror);
        let missed = delta(&mut digest, 2);
        assert_eq!(mirror.delta(&delta(&mut digest, 3)), Err(Unfit::Gap));
        assert_eq!(
            (mirror.delta(&missed), mirror.leading(&[name(1)])),
            (Err(Unfit::Gap), 0),
            "it counts as nothing now"
        );
        send(&digest, &mut mirror);
        assert_eq!(mirror.leading(&names(1..5)), 3);
    }

    #[test]
    fn when_too_much_changed_untold_the_epoch_is_another() {
        let (mut digest, mut mirror) = (Digest::new(10_000, 0, 1), Mirror::new(MIRROR_BYTES));
        send(&digest, &mut mirror);
        names(0..9_000).into_iter().for_each(|name| digest.changed(name, true));
        while let Some(delta) = digest.take_delta(usize::MAX) {
            assert_eq!(mirror.delta(&delta), Err(Unfit::Gap));
        }
        send(&digest, &mut mirror);
        assert_eq!(mirror.leading(&names(8_000..9_100)), 1_000);
    }

    #[test]
    fn a_sample_is_smaller_by_as_much_and_finds_runs_to_within_a_few() {
        let mut sizes = Vec::new();
        for sampling in [0, 2, 4] {
            let (mut digest, mut mirror) = (Digest::new(100_000, sampling, 1), Mirror::new(MIRROR_BYTES));
            names(0..100_000).into_iter().for_each(|name| digest.changed(name, true));
            while digest.take_delta(usize::MAX).is_some() {}
            send(&digest, &mut mirror);
            let run = mirror.leading(&names(99_000..101_000));
            assert!(run <= 1_000 && run + (8 << sampling) > 1_000, "{run} of 1,000 at one in {}", 1 << sampling);
            assert_eq!(digest.filter().left_out(), 0);
            sizes.push(mirror.bytes());
        }
        assert!(sizes[0] / sizes[1] == 3 && sizes[0] / sizes[2] >= 14, "{sizes:?}");
    }

    #[test]
    fn what_cannot_be_is_refused_and_takes_no_memory() {
        let mut mirror = Mirror::new(1 << 20);
        let wrong = |mirror: &mut Mirror, whole| matches!(mirror.begin(whole), Err(Unfit::Wrong(_)));
        let sound = Whole { epoch: 1, sequence: 0, buckets: 1 << 17, sampling: 0 };
        assert!(wrong(&mut mirror, Whole { buckets: (1 << 17) + 1, ..sound }));
        assert!(wrong(&mut mirror, Whole { buckets: 0, ..sound }));
        assert!(wrong(&mut mirror, Whole { sampling: 17, ..sound }));
        let part = |first, bytes| Part { first, bytes: vec![0; bytes] };
        assert_eq!(mirror.part(&part(0, 8)), Err(Unfit::Gap), "of nothing");
        for bad in [part(1, 8), part(0, 7), part(0, 0), part(0, (1 << 20) + 8)] {
            mirror.begin(sound).expect("a sound digest");
            assert!(matches!(mirror.part(&bad), Err(Unfit::Wrong(_))), "{} at {}", bad.bytes.len(), bad.first);
            assert_eq!(mirror.known(), None);
        }
    }

    #[test]
    fn a_new_epoch_is_told_also_if_nothing_changes_any_more() {
        let (mut digest, mut mirror) = (Digest::new(10, 0, 1), Mirror::new(MIRROR_BYTES));
        send(&digest, &mut mirror);
        names(0..1_024).into_iter().for_each(|name| digest.changed(name, true));
        assert!(!digest.changes.is_empty());
        digest.changed(name(7), false);
        assert!(digest.changes.is_empty() && digest.has_changes());
        let delta = digest.take_delta(usize::MAX).expect("a delta without changes");
        assert_eq!((delta.changes.len(), mirror.delta(&delta)), (0, Err(Unfit::Gap)));
        assert!(!digest.has_changes());
    }

    #[test]
    fn a_whole_that_is_being_sent_is_of_its_moment_and_shared_with_others_of_it() {
        let mut digest = Digest::new(100, 0, 1);
        let [(whole, parts), (_, others)] = [(); 2].map(|()| digest.whole());
        assert!(Arc::ptr_eq(&parts.filter, &others.filter) && Arc::ptr_eq(&parts.filter, &digest.filter));
        digest.changed(name(1), true);
        let mut mirror = Mirror::new(MIRROR_BYTES);
        mirror.begin(whole).expect("a sound digest");
        parts.for_each(|part| mirror.part(&part).expect("a sound part"));
        assert_eq!((mirror.leading(&[name(1)]), digest.filter().contains(name(1))), (0, true));
    }

    #[test]
    fn changes_that_no_digest_can_hold_are_refused_before_they_cost_much() {
        let mut mirror = Mirror::new(MIRROR_BYTES);
        mirror.begin(Whole { epoch: 1, sequence: u64::MAX, buckets: 2, sampling: 0 }).expect("a small digest");
        mirror.part(&Part { first: 0, bytes: vec![0; 2 * BUCKET_BYTES] }).expect("empty");
        let delta = |sequence, range| {
            let changes = names(range).into_iter().map(|name| Change { name, added: true }).collect();
            Delta { epoch: 1, sequence, changes }
        };
        mirror.delta(&delta(u64::MAX, 0..8)).expect("what fits; its numbers go round");
        assert_eq!(mirror.known(), Some((1, 7)));
        assert!(matches!(mirror.delta(&delta(7, 8..10_000)), Err(Unfit::Wrong(_))));
        assert!(mirror.filter.left_out() < 100 && mirror.known().is_none());
    }

    /// All that is sent of a filter, and all that it answers by.
    fn marks(filter: &Filter) -> Vec<u8> {
        let mut out = Vec::new();
        filter.write(0, filter.buckets(), &mut out);
        out
    }

    #[test]
    fn how_many_names_had_no_place_is_not_told_with_a_whole() {
        let (mut digest, mut mirror) = (Digest::new(400, 0, 1), Mirror::new(MIRROR_BYTES));
        // The homes of this one are one bucket, of four places.
        let name = (0..).map(name).find(|name| {
            let mut filter = Filter::for_names(400);
            (0..5).for_each(|_| filter.add(*name));
            filter.left_out() == 1
        });
        (0..5).for_each(|_| digest.changed(name.expect("one in a few hundred"), true));
        digest.take_delta(usize::MAX).expect("five");
        send(&digest, &mut mirror);
        assert_eq!((digest.filter().left_out(), mirror.filter.left_out()), (1, 0));
        assert_eq!(marks(&mirror.filter), marks(digest.filter()));
    }

    proptest! {
        #[test]
        fn a_mirror_that_is_whole_is_the_same_filter(steps in prop::collection::vec((0_u64..400, any::<bool>(), 0_u8..8), 1..600)) {
            let (mut digest, mut mirror) = (Digest::new(400, 0, 1), Mirror::new(MIRROR_BYTES));
            for (n, added, then) in steps {
                digest.changed(name(n), added);
                if then < 3 {
                    let delta = digest.take_delta(usize::MAX);
                    // Some never come.
                    if let Some(delta) = delta.filter(|_| then > 0) && mirror.delta(&delta).is_err() {
                        send(&digest, &mut mirror);
                    }
                    if then == 1 && mirror.known() == Some((digest.epoch, digest.sequence)) {
                        prop_assert_eq!(marks(&mirror.filter), marks(digest.filter()));
                    }
                }
            }
        }
    }
}
