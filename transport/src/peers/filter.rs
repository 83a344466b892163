//! A set of short names that can forget again: a cuckoo filter of 16-bit marks, four to a bucket.
//!
//! Invariant: the same calls in the same order make the same filter: a host and its peers hold the same one.
//! Invariant: a name that was added and not removed is found, but for as many as `left_out` says.

use super::name::{ShortName, mix};

const MARKS: usize = 4;
/// Of a filter's places, so many of 100 are taken when it holds what it was made for.
const LOAD: u64 = 90;
/// Marks that move, one for the other, to make room for one more.
const MOVES_MAX: u32 = 500;

/// Bytes of a bucket as it is sent.
pub const BUCKET_BYTES: usize = 2 * MARKS;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// 0: no mark.
    buckets: Vec<[u16; MARKS]>,
    marks: u64,
    left_out: u64,
}

impl Filter {
    /// For so many names.
    pub fn for_names(names: u64) -> Self {
        let buckets = (names * 100).div_ceil(LOAD * MARKS as u64).max(2);
        Self::of_buckets(u32::try_from(buckets).expect("lines are counted in 32 bits, and fewer are buckets"))
    }

    pub fn of_buckets(buckets: u32) -> Self {
        Self { buckets: vec![[0; MARKS]; buckets as usize], marks: 0, left_out: 0 }
    }

    pub fn buckets(&self) -> u32 {
        self.buckets.len() as u32
    }

    /// Names in it. A name that was added twice counts twice.
    pub fn len(&self) -> u64 {
        self.marks
    }

    pub fn is_empty(&self) -> bool {
        self.marks == 0
    }

    /// Names for which no room could be made, so far.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    pub fn bytes(&self) -> u64 {
        (self.buckets.len() * BUCKET_BYTES) as u64
    }

    pub fn contains(&self, name: ShortName) -> bool {
        let (mark, [one, other]) = (name.mark(), self.homes(name));
        self.buckets[one as usize].contains(&mark) || self.buckets[other as usize].contains(&mark)
    }

    pub fn add(&mut self, name: ShortName) {
        let (mut mark, [one, other]) = (name.mark(), self.homes(name));
        if self.place(one, mark) || self.place(other, mark) {
            self.marks += 1;
            return;
        }
        // Which of four moves must not depend on anything but the filter.
        let (mut at, mut turn) = (other, name.bits());
        for _ in 0..MOVES_MAX {
            turn = mix(turn);
            std::mem::swap(&mut mark, &mut self.buckets[at as usize][turn as usize % MARKS]);
            at = self.other_home(at, mark);
            if self.place(at, mark) {
                self.marks += 1;
                return;
            }
        }
        // One was put in, and another is without a place.
        self.left_out += 1;
    }

    /// Takes out one name that was added. If it was left out, another that looks the same may go in its place.
    pub fn remove(&mut self, name: ShortName) {
        let (mark, homes) = (name.mark(), self.homes(name));
        for home in homes {
            if let Some(found) = self.buckets[home as usize].iter_mut().find(|found| **found == mark) {
                *found = 0;
                self.marks -= 1;
                return;
            }
        }
    }

    /// Buckets as they are sent, from the `first` on.
    pub fn write(&self, first: u32, count: u32, out: &mut Vec<u8>) {
        let buckets = &self.buckets[first as usize..(first + count) as usize];
        out.extend(buckets.iter().flatten().flat_map(|mark| mark.to_le_bytes()));
    }

    /// Buckets as they came: false if they lie beyond the filter's end or are no whole buckets.
    pub fn read(&mut self, first: u32, bytes: &[u8]) -> bool {
        let (first, count) = (first as usize, bytes.len() / BUCKET_BYTES);
        let fits = bytes.len().is_multiple_of(BUCKET_BYTES) && first.saturating_add(count) <= self.buckets.len();
        if fits {
            let places = self.buckets[first..first + count].iter_mut().flatten();
            for (place, mark) in places.zip(bytes.chunks_exact(2)) {
                let mark = u16::from_le_bytes([mark[0], mark[1]]);
                self.marks = self.marks + u64::from(mark != 0) - u64::from(*place != 0);
                *place = mark;
            }
        }
        fits
    }

    fn place(&mut self, bucket: u32, mark: u16) -> bool {
        let free = self.buckets[bucket as usize].iter_mut().find(|found| **found == 0);
        free.map(|free| *free = mark).is_some()
    }

    fn homes(&self, name: ShortName) -> [u32; 2] {
        let one = name.place(self.buckets());
        [one, self.other_home(one, name.mark())]
    }

    /// Leads back as it leads there, for any number of buckets.
    fn other_home(&self, home: u32, mark: u16) -> u32 {
        let buckets = u64::from(self.buckets());
        let sum = mix(u64::from(mark)) % buckets;
        ((sum + buckets - u64::from(home)) % buckets) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lapis_config::Key;
    use proptest::prelude::*;

    use super::*;

    fn name(n: u64) -> ShortName {
        ShortName::new(7, &Key([n, 0, 0, 0]))
    }

    #[test]
    fn what_it_was_made_for_fits_and_is_found_and_strangers_seldom_are() {
        for names in [1, 10, 1_000, 300_000] {
            let mut filter = Filter::for_names(names);
            (0..names).for_each(|n| filter.add(name(n)));
            assert_eq!((filter.len(), filter.left_out()), (names, 0));
            assert!((0..names).all(|n| filter.contains(name(n))));
            let strangers = (0..100_000).filter(|n| filter.contains(name(1 << 40 | n))).count();
            assert!(strangers < 40, "{strangers} of 100,000 strangers in {names}");
            (0..names).for_each(|n| filter.remove(name(n)));
            assert!(filter.is_empty() && !(0..names).any(|n| filter.contains(name(n))));
        }
    }

    #[test]
    fn with_too_many_names_it_says_how_many_are_left_out() {
        let mut filter = Filter::for_names(1_000);
        (0..2_000).for_each(|n| filter.add(name(n)));
        assert!(filter.left_out() > 800, "{}", filter.left_out());
        assert_eq!(filter.len() + filter.left_out(), 2_000);
    }

    #[test]
    fn it_is_the_same_after_a_way_in_pieces() {
        let mut filter = Filter::for_names(5_000);
        (0..5_000).for_each(|n| filter.add(name(n)));
        let mut copy = Filter::of_buckets(filter.buckets());
        let mut first = 0;
        while first < filter.buckets() {
            let (mut bytes, count) = (Vec::new(), 100.min(filter.buckets() - first));
            filter.write(first, count, &mut bytes);
            assert!(copy.read(first, &bytes));
            first += count;
        }
        assert_eq!(copy, filter);
        assert!(
            !copy.read(first - 1, &[0; 2 * BUCKET_BYTES]) && !copy.read(0, &[0; 7]),
            "beyond its end, and no bucket"
        );
    }

    proptest! {
        #[test]
        fn what_is_in_it_is_found_whatever_was_added_and_removed(calls in prop::collection::vec((any::<bool>(), 0_u64..60), 1..400)) {
            let (mut filter, mut set) = (Filter::for_names(60), BTreeSet::new());
            for (add, n) in calls {
                if add && set.insert(n) {
                    filter.add(name(n));
                } else if !add && set.remove(&n) {
                    filter.remove(name(n));
                }
                if filter.left_out() == 0 {
                    prop_assert!(set.iter().all(|&n| filter.contains(name(n))));
                    prop_assert_eq!(filter.len(), set.len() as u64);
                }
            }
        }
    }
}
