//! How much of a chain digests know of, in few looks: whoever has a block has all above it, so that the end of a run is
//! searched for, not walked to. Each look is two places in a filter that no cache holds.

use super::super::{
    digest::{Mirror, SAMPLING_MAX},
    name::ShortName,
};

pub(super) struct Chain<'a> {
    names: &'a [ShortName],
    /// By sampling: indices of the names that such a digest tells of. Made when the first one is met.
    samples: [Option<Vec<usize>>; SAMPLING_MAX as usize + 1],
}

impl<'a> Chain<'a> {
    pub(super) fn new(names: &'a [ShortName]) -> Self {
        Self { names, samples: Default::default() }
    }

    /// How many leading names the peer probably has; 0 if fewer than `least`. As `Mirror::leading`, where there are no holes.
    pub(super) fn run(&mut self, mirror: &Mirror, least: usize) -> usize {
        let names = self.names;
        let Some(sample) = self.sample(mirror) else { return 0 };
        // Counts of the sampled names: `low` are there, `high` are not.
        let mut low = sample.partition_point(|at| at + 1 < least) + 1;
        let has = |count: usize| mirror.has(names[sample[count - 1]]);
        if low > sample.len() || !has(low) {
            return 0;
        }
        let mut step = 1;
        let mut high = loop {
            let next = low + step;
            if next > sample.len() {
                break sample.len() + 1;
            }
            if !has(next) {
                break next;
            }
            (low, step) = (next, step * 2);
        };
        while high - low > 1 {
            let middle = low.midpoint(high);
            *(if has(middle) { &mut low } else { &mut high }) = middle;
        }
        sample[low - 1] + 1
    }

    fn sample(&mut self, mirror: &Mirror) -> Option<&[usize]> {
        let (names, sampling) = (self.names, mirror.sampling()?);
        let of_names = || (0..names.len()).filter(|at| names[*at].is_sampled(sampling)).collect();
        Some(self.samples[usize::from(sampling)].get_or_insert_with(of_names))
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::Key;
    use proptest::prelude::*;

    use super::{super::super::digest::Digest, *};

    fn mirror(names: &[ShortName], sampling: u8) -> Mirror {
        let mut digest = Digest::new(2_000, sampling, 1);
        names.iter().for_each(|name| digest.changed(*name, true));
        while digest.take_delta(usize::MAX).is_some() {}
        let (whole, parts) = digest.whole();
        let mut mirror = Mirror::new(1 << 20);
        mirror.begin(whole).expect("a sound digest");
        parts.for_each(|part| mirror.part(&part).expect("a sound part"));
        mirror
    }

    proptest! {
        #[test]
        fn it_is_what_a_walk_finds(length in 0_usize..700, has in 0_usize..700, least in 0_usize..700, sampling in 0_u8..4) {
            let names: Vec<ShortName> = (0..length as u64).map(|n| ShortName::new(1, &Key([n, 0, 0, 0]))).collect();
            let mirror = mirror(&names[..has.min(length)], sampling);
            let mut chain = Chain::new(&names);
            let walked = mirror.leading(&names);
            let found = chain.run(&mirror, least);
            // A name that it shares with another one may lengthen what is found.
            let is_shared = found > walked && mirror.has(names[found - 1]);
            let expected = if walked >= least { walked } else { 0 };
            prop_assert!(found == expected || is_shared && found >= least, "{found}, not {expected}");
        }
    }

    #[test]
    fn of_what_is_not_whole_nothing_is_known() {
        let names = [ShortName::from_bits(5)];
        let mut chain = Chain::new(&names);
        assert_eq!(chain.run(&Mirror::new(64), 0), 0);
    }
}
