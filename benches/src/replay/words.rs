//! The words of the command line: policies, capacities, scans, admissions, budgets.

use std::sync::Arc;

use lapis_config::{Bytes, PolicyName, size};

use super::{CAPACITY_MAX, workload::Scan, yardsticks::Yardstick};

/// Bytes of a block: a page to 1 GiB.
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 4 << 10..=1 << 30;
/// Blocks of a request of a scan; more than any trace has.
const SCAN_BLOCKS_MAX: u32 = 1 << 20;

/// Blocks, in the order given.
pub type Capacities = Arc<[u64]>;
pub type Subjects = Arc<[Subject]>;

/// What is replayed: the core with one of its policies, or something to hold it against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Core(PolicyName),
    Yardstick(Yardstick),
}

impl Subject {
    fn all() -> impl Iterator<Item = (&'static str, Self)> {
        let core = PolicyName::CHOICES.0.iter().map(|(word, policy)| (*word, Self::Core(*policy)));
        core.chain(Yardstick::CHOICES.map(|(word, yardstick)| (word, Self::Yardstick(yardstick))))
    }

    pub fn word(self) -> &'static str {
        let found = Self::all().find(|(_, known)| *known == self);
        found.map(|(word, _)| word).expect("every policy has a name")
    }
}

/// What is written to SSD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Admission {
    /// Every block as soon as it is stored, the last one of a request included: a plain model, policy lru alone.
    WriteThrough,
    /// Every full block when memory gets short, as the daemon does without a budget.
    Full,
    /// Full blocks of the classes that are likely to be asked for again, as many as the budget allows.
    Class,
}

impl Admission {
    pub fn word(self) -> &'static str {
        match self {
            Self::WriteThrough => "write-through",
            Self::Full => "full",
            Self::Class => "class",
        }
    }
}

/// How much may be written to SSD.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WriteBudget {
    /// Of the bytes of the trace's distinct blocks, spread over its span.
    Percent(f64),
    BytesPerDay(u64),
}

/// A list such as "lru,arc,opt".
pub fn subjects(text: &str) -> Result<Subjects, String> {
    let subject = |word: &str| {
        let words = || Subject::all().map(|(word, _)| word).collect::<Vec<_>>().join(", ");
        let found = Subject::all().find(|(known, _)| *known == word);
        found.map(|(_, subject)| subject).ok_or_else(|| format!("{word:?} is not one of: {}", words()))
    };
    text.split(',').map(|word| subject(word.trim())).collect()
}

/// A list such as "1k,3k,10k".
pub fn capacities(text: &str) -> Result<Capacities, String> {
    text.split(',').map(|word| capacity(word.trim())).collect()
}

pub fn capacity(word: &str) -> Result<u64, String> {
    let (digits, scale) = match word.char_indices().last() {
        Some((at, 'k' | 'K')) => (&word[..at], 1_000),
        Some((at, 'm' | 'M')) => (&word[..at], 1_000_000),
        _ => (word, 1),
    };
    let blocks = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale));
    blocks
        .filter(|blocks| (1..=CAPACITY_MAX).contains(blocks))
        .ok_or_else(|| format!("{word:?} is no number of blocks from 1 to {CAPACITY_MAX}, like 500, 10k or 1M"))
}

pub fn block_bytes(text: &str) -> Result<u64, String> {
    let bytes = size(text).map_err(|e| e.to_string())?;
    let range = || format!("{text}: a block has {} to {}", Bytes(*BLOCK_BYTES.start()), Bytes(*BLOCK_BYTES.end()));
    Some(bytes).filter(|bytes| BLOCK_BYTES.contains(bytes)).ok_or_else(range)
}

/// "250/10": a request of 250 blocks after each tenth.
pub fn scan(text: &str) -> Result<Scan, String> {
    let parts = text.split_once('/').and_then(|(blocks, every)| Some((blocks.parse().ok()?, every.parse().ok()?)));
    parts
        .filter(|(blocks, every)| (1..=SCAN_BLOCKS_MAX).contains(blocks) && *every > 0)
        .map(|(blocks, every)| Scan { blocks, every })
        .ok_or_else(|| {
            format!("{text:?} is no scan: BLOCKS/EVERY, 1 to {SCAN_BLOCKS_MAX} blocks after each so many, like 250/10")
        })
}

/// "50%" or "68TB/day".
pub fn write_budget(text: &str) -> Result<WriteBudget, String> {
    let wrong = |why: &str| format!("{text:?} is no write budget like 50% or 68TB/day: {why}");
    let given = text.trim();
    if let Some(number) = given.strip_suffix('%') {
        let percent = number.trim_end().parse::<f64>().ok().filter(|percent| percent.is_finite() && *percent > 0.0);
        return percent.map(WriteBudget::Percent).ok_or_else(|| wrong("the per cent are not a number above 0"));
    }
    let bytes = given.strip_suffix("/day").ok_or_else(|| wrong("it ends neither in % nor in /day"))?;
    match size(bytes) {
        Ok(0) => Err(wrong("it is nothing")),
        Ok(bytes) => Ok(WriteBudget::BytesPerDay(bytes)),
        Err(mistake) => Err(wrong(&mistake.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_are_counts_of_blocks_with_thousands() {
        assert_eq!(capacities("1k, 3000,2M,7").expect("a list")[..], [1_000, 3_000, 2_000_000, 7]);
        for wrong in ["", "1k,", "0", "-1", "k", "1.5k", "1G", "2000M", "99999999999999999999", "é"] {
            assert!(capacities(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_policy_is_found_by_its_word() {
        for (word, subject) in Subject::all() {
            assert_eq!(subjects(word).expect("a policy")[..], [subject]);
            assert_eq!(subject.word(), word);
        }
        assert_eq!(subjects("lru, opt").expect("a list").len(), 2);
        let error = subjects("lru,belady").expect_err("no policy");
        assert!(error.contains("\"belady\" is not one of: ") && error.contains("lru, s3fifo, arc, opt"), "{error}");
    }

    #[test]
    fn a_scan_is_blocks_by_every_so_many() {
        assert_eq!(scan("250/10"), Ok(Scan { blocks: 250, every: 10 }));
        for wrong in ["", "250", "0/10", "250/0", "a/b", "250/10/1", "-1/5", "9999999/1"] {
            let error = scan(wrong).expect_err("no scan");
            assert!(error.contains("like 250/10"), "{error}");
        }
    }

    #[test]
    fn a_budget_is_a_share_or_bytes_a_day() {
        assert_eq!(write_budget("50%"), Ok(WriteBudget::Percent(50.0)));
        assert_eq!(write_budget(" 68TB/day "), Ok(WriteBudget::BytesPerDay(68_000_000_000_000)));
        for (wrong, why) in [
            ("50", "neither in % nor in /day"),
            ("0%", "above 0"),
            ("x%", "above 0"),
            ("inf%", "above 0"),
            ("0B/day", "nothing"),
            ("68/day", "68/day"),
            ("68 parsecs/day", "parsecs"),
        ] {
            let error = write_budget(wrong).expect_err("no budget");
            assert!(error.contains(why) && error.contains("68TB/day"), "{error}");
        }
    }
}
