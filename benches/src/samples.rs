//! What many measurements say together: percentiles, and ratios to a limit that was measured beside them. Pure.

/// Measurements of one thing.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    values: Vec<f64>,
    sorted: bool,
}

impl Samples {
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
        self.sorted = false;
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The least value that `share` (0 to 1) of all are not above; 0 without any.
    pub fn percentile(&mut self, share: f64) -> f64 {
        if !self.sorted {
            self.values.sort_by(f64::total_cmp);
            self.sorted = true;
        }
        let rank = (share * self.values.len() as f64).ceil() as usize;
        self.values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }

    pub fn median(&mut self) -> f64 {
        self.percentile(0.5)
    }

    pub fn sum(&self) -> f64 {
        self.values.iter().sum()
    }
}

/// A figure and its limit, each round's pair taken together: the machine's speed drifts twofold within minutes, so
/// that only the ratio within a round says something.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    pub ours: Samples,
    pub limit: Samples,
    ratios: Samples,
}

impl Pairs {
    /// Both of one round, in the same unit.
    pub fn push(&mut self, ours: f64, limit: f64) {
        self.ours.push(ours);
        self.limit.push(limit);
        self.ratios.push(ours / limit);
    }

    pub fn rounds(&self) -> usize {
        self.ratios.len()
    }

    /// Ours to the limit's: median, least, greatest.
    pub fn ratio(&mut self) -> [f64; 3] {
        [self.ratios.median(), self.ratios.percentile(0.0), self.ratios.percentile(1.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut samples = Samples::default();
        assert_eq!(samples.median(), 0.0);
        (1..=100).rev().for_each(|i| samples.push(f64::from(i)));
        let asked = [0.0, 0.01, 0.5, 0.99, 0.999, 1.0];
        assert_eq!(asked.map(|share| samples.percentile(share)), [1.0, 1.0, 50.0, 99.0, 100.0, 100.0]);
        samples.push(0.0);
        assert_eq!(samples.percentile(0.0), 0.0);
    }

    #[test]
    fn a_ratio_is_of_one_round_not_of_two_medians() {
        let mut pairs = Pairs::default();
        for (ours, limit) in [(10.0, 20.0), (5.0, 10.0), (1.0, 2.0), (30.0, 10.0)] {
            pairs.push(ours, limit);
        }
        assert_eq!(pairs.ratio(), [0.5, 0.5, 3.0]);
        assert_eq!((pairs.ours.median(), pairs.limit.median(), pairs.rounds()), (5.0, 10.0, 4));
    }
}
