//! How much of what leaves DRAM may be written to SSD: a bucket of bytes that fills by a day's budget in a day, and a
//! threshold on what blocks are worth that follows it. Pure: integers and the time that it is told.
//!
//! The bucket begins empty, so that a daemon that starts again and again does not spend a day's bytes each time; but it
//! may be overdrawn by an hour's worth while there is room that was never used. What is overdrawn is paid back, and what is
//! saved is spent, slowly: the threshold aims at half an hour.

use lapis_config::Time;

const DAY_US: u128 = 86_400_000_000;
/// No more than one part in so many of a day's budget is overdrawn.
const OVERDRAWN_PART: u128 = 24;
/// How soon the bucket is to be neither saved nor overdrawn, us.
const EVEN_US: i128 = 1_800_000_000;
/// Blocks between two looks at the threshold.
const OFFERS: u32 = 128;
/// Worths are sorted by powers of two, in halves.
const BINS: usize = 64;

#[derive(Debug)]
pub(super) struct Budget {
    bytes_a_day: u64,
    /// Bytes times `DAY_US`; negative when more was written than the budget had.
    balance: i128,
    /// All that was spent, bytes; of it what lies beside records.
    spent: u64,
    beside: u64,
    at: Time,
    /// Bytes that were offered, by worth, fading; and the time that they stand for, us.
    offered: [u64; BINS],
    span_us: u64,
    since: Time,
    offers: u32,
    /// Blocks of a higher bin are written; of this one so many bytes until the next look.
    cut: usize,
    edge: i64,
}

fn bin(worth: u32) -> usize {
    if worth < 2 {
        return worth as usize;
    }
    let doubling = worth.ilog2();
    (2 * doubling + (worth >> (doubling - 1) & 1)) as usize
}

impl Budget {
    pub fn new(bytes_a_day: u64) -> Self {
        Self {
            bytes_a_day,
            balance: 0,
            spent: 0,
            beside: 0,
            at: Time(0),
            offered: [0; BINS],
            span_us: 0,
            since: Time(0),
            offers: 0,
            cut: 0,
            edge: 0,
        }
    }

    /// Time passed.
    pub fn clock(&mut self, now: Time) {
        if self.at == Time(0) {
            (self.at, self.since) = (now, now);
        }
        let more = u128::from(now.since_us(self.at)) * u128::from(self.bytes_a_day);
        let most = u128::from(self.bytes_a_day) * DAY_US;
        self.balance = (self.balance + more as i128).min(most as i128);
        self.at = self.at.max(now);
    }

    pub fn spend(&mut self, bytes: u64) {
        self.spent += bytes;
        self.balance -= (u128::from(bytes) * DAY_US) as i128;
    }

    /// So many bytes of headers and contents were written since the start.
    pub fn spend_beside(&mut self, bytes: u64) {
        self.spend(bytes.saturating_sub(self.beside));
        self.beside = self.beside.max(bytes);
    }

    pub fn bytes_a_day(&self) -> u64 {
        self.bytes_a_day
    }

    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// Bytes that are saved; negative when more was written than there were.
    pub fn available(&self) -> i64 {
        (self.balance / DAY_US as i128) as i64
    }

    /// Whether there are bytes for any block: where room was never used there is no need to choose.
    pub fn is_unspent(&self) -> bool {
        self.balance > -((u128::from(self.bytes_a_day) * DAY_US / OVERDRAWN_PART) as i128)
    }

    /// Whether a block of that worth is to be written.
    pub fn accepts(&self, worth: u32) -> bool {
        let bin = bin(worth);
        self.is_unspent() && (bin > self.cut || bin == self.cut && self.edge > 0)
    }

    /// A block of that worth left DRAM, or was written ahead.
    pub fn offered(&mut self, worth: u32, bytes: u64, written: bool) {
        let bin = bin(worth);
        self.offered[bin] += bytes;
        if written {
            self.spend(bytes);
            self.edge -= if bin == self.cut { bytes as i64 } else { 0 };
        }
        self.offers += 1;
        if self.offers >= OFFERS {
            self.offers = 0;
            self.cut();
        }
    }

    /// The worthiest of what was offered lately that the budget has bytes for.
    fn cut(&mut self) {
        let new_us = self.at.since_us(self.since);
        self.span_us += new_us;
        self.since = self.at;
        let span_us = i128::from(self.span_us);
        let income = span_us * i128::from(self.bytes_a_day) + self.balance / EVEN_US * span_us;
        let mut left = income.max(0) / DAY_US as i128;
        (self.cut, self.edge) = (0, i64::MAX);
        for bin in (0..BINS).rev() {
            let offered = i128::from(self.offered[bin]);
            if left < offered {
                // As much of these in the time until the next look as in all that is looked back at.
                (self.cut, self.edge) = (bin, (left * i128::from(new_us) / span_us.max(1)) as i64);
                break;
            }
            left -= offered;
        }
        let fades = |count: &mut u64| *count -= *count / 8;
        self.offered.iter_mut().for_each(fades);
        fades(&mut self.span_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of some worth, one a second, under a budget of half of them: how many were written of each, and
    /// the most bytes that were ever saved.
    fn run(worths: &[u32]) -> (Vec<u32>, i64) {
        let mut budget = Budget::new(86_400 / 2 * 4096);
        let (mut written, mut saved_most) = (vec![0; worths.len()], 0);
        for second in 0..20_000u64 {
            budget.clock(Time(1 + second * 1_000_000));
            let kind = (second as usize * 7 / 3) % worths.len();
            let accepted = budget.accepts(worths[kind]);
            written[kind] += u32::from(accepted);
            budget.offered(worths[kind], 4096, accepted);
            saved_most = saved_most.max(budget.available());
        }
        (written, saved_most)
    }

    #[test]
    fn the_threshold_follows_the_budget() {
        let (written, _) = run(&[10, 1_000, 100_000, 10_000_000]);
        let all: u32 = written.iter().sum();
        assert!((9_000..=11_000).contains(&all), "{written:?}");
        assert!(written[0] < 500 && written[3] > 4_500, "{written:?}");
    }

    #[test]
    fn where_all_are_worth_the_same_the_budget_is_spent_all_the_same() {
        let (written, saved_most) = run(&[77, 77, 77]);
        let all: u32 = written.iter().sum();
        assert!((9_000..=11_000).contains(&all), "{all}");
        assert!(saved_most <= 16 * 4096, "as it comes, not in bursts: {saved_most} bytes were saved");
    }

    #[test]
    fn what_is_saved_is_a_day_at_most_and_what_is_overdrawn_an_hour() {
        let mut budget = Budget::new(2_400_000);
        budget.clock(Time(1));
        assert!(budget.is_unspent() && budget.accepts(9));
        budget.spend(100_000);
        assert!(!budget.is_unspent() && !budget.accepts(u32::MAX));
        budget.clock(Time(1 + 100 * DAY_US as u64));
        assert_eq!((budget.available(), budget.spent()), (2_400_000, 100_000));
        budget.spend(2_499_999);
        assert!(budget.is_unspent());
        budget.spend(1);
        assert_eq!((budget.is_unspent(), budget.available()), (false, -100_000));
    }

    #[test]
    fn what_was_overdrawn_is_paid_back_within_hours() {
        let mut budget = Budget::new(86_400 / 2 * 4096);
        budget.spend(1_000 * 4096);
        let mut written = 0;
        for second in 0..14_400u64 {
            budget.clock(Time(1 + second * 1_000_000));
            let accepted = budget.accepts(77);
            written += u32::from(accepted);
            budget.offered(77, 4096, accepted);
        }
        assert!((6_000..=6_600).contains(&written) && budget.available().abs() < 100 * 4096, "{written} of 7,200");
    }
}
