//! What was learned: how soon and how surely blocks of each class are used again.
//!
//! A life begins with a use and ends with the next one (a hit, of a ghost too) or when its ghost is forgotten. For each
//! class and bucket of ages: the hits there, and the exposure, the time that lives spent there. Lives that are over are
//! counted by the bucket in which they ended, with a memory that fades; lives that go on by their cohorts. So nothing is
//! ever scanned: a use is two counters, and a refresh costs classes x (buckets + cohorts), whatever the number of blocks.
//!
//! Counts are integers; rates are made of them by +, x and / of f64 alone, which every machine does alike.

use super::{
    ages::{BUCKETS, bucket, width},
    class::{CLASSES, ENDED, FIRST, PRIORITY, PRIORITY_HIGH, STRANGER, WILL_RETURN},
    cohorts::Cohorts,
};

/// Counts are kept in so many parts, so that they can fade.
const ONE: u32 = 1 << 8;
/// A class is taken to be like all are, until it has more lives than so many in a bucket: lives come by the request, tens
/// at a time, so these are a few requests.
const PRIOR_LIVES: f64 = 100.0;
/// And all are taken to be used again with this chance in each bucket: a hazard of one over the age, which is LRU.
const CHANCE: f64 = 0.3;
/// Of those that an engine says will return.
const CHANCE_RETURN: f64 = 0.9;
/// A priority makes a block worth so many doublings more than any; a doubling wears off in a minute without a use.
const PRIORITY_DOUBLINGS: [u32; 2] = [3, 6];
const MINUTE: u32 = 600;
/// Values are hits a block and day, in so many parts.
const SCALE: f64 = 864_000.0 * 4096.0;

/// Lives that are over, in parts of `ONE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ended {
    hits: u32,
    all: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    hits: f64,
    exposure: f64,
}

type Row<T> = [T; BUCKETS];

#[derive(Debug)]
pub(super) struct Hazards {
    pub cohorts: Cohorts,
    ended: Box<[Row<Ended>; CLASSES]>,
    values: Box<[Row<u32>; CLASSES]>,
    /// Of a block of whatever class.
    values_all: Row<u32>,
}

impl Default for Hazards {
    fn default() -> Self {
        let mut hazards = Self {
            cohorts: Cohorts::default(),
            ended: Box::new([[Ended::default(); BUCKETS]; CLASSES]),
            values: Box::new([[0; BUCKETS]; CLASSES]),
            values_all: [0; BUCKETS],
        };
        hazards.refresh(0, u64::MAX);
        hazards
    }
}

impl Hazards {
    /// A life of the class that began then is over: by a hit or not.
    #[inline]
    pub fn end(&mut self, class: u8, since: u32, now: u32, hit: bool) {
        self.cohorts.end(class, since);
        let ended = &mut self.ended[class as usize][bucket(now.saturating_sub(since))];
        ended.all = ended.all.saturating_add(ONE);
        if hit {
            ended.hits = ended.hits.saturating_add(ONE);
        }
    }

    /// What a block of the class and age is worth: hits for the time that it stays, to the horizon where this is best.
    #[inline]
    pub fn value(&self, class: u8, age: u32) -> u32 {
        if class == PRIORITY || class == PRIORITY_HIGH {
            let doublings = PRIORITY_DOUBLINGS[(class - PRIORITY) as usize].saturating_sub(age / MINUTE);
            return self.values_all[bucket(age)].saturating_mul(1 << doublings);
        }
        self.values[class as usize][bucket(age)]
    }

    /// Makes values of what was counted; one part in `fade` of the memory fades.
    pub fn refresh(&mut self, now: u32, fade: u64) {
        let mut rates = self.rates(now);
        // What nobody knows is taken to be like any first request. Those that begin with something known are judged by
        // their own: a scan of prompts of its own does not make them look as worthless as itself.
        let first = rates[FIRST as usize];
        rates[STRANGER as usize].iter_mut().zip(first).for_each(|(stranger, first)| *stranger = stranger.plus(first));
        let mut all = [Rate::default(); BUCKETS];
        for (bucket, all) in all.iter_mut().enumerate() {
            let exposure = PRIOR_LIVES * width(bucket) as f64;
            let own = rates.iter().map(|row| row[bucket]);
            *all = own.fold(Rate { hits: PRIOR_LIVES * CHANCE, exposure }, Rate::plus);
        }
        self.values_all = values(&all);
        for (class, (row, values_of)) in rates.iter().zip(self.values.iter_mut()).enumerate() {
            let prior = |bucket: usize| match class as u8 {
                ENDED => 0.0,
                WILL_RETURN => CHANCE_RETURN / width(bucket) as f64,
                _ => all[bucket].hits / all[bucket].exposure,
            };
            let mut own = *row;
            for (bucket, own) in own.iter_mut().enumerate() {
                let exposure = PRIOR_LIVES * width(bucket) as f64;
                *own = own.plus(Rate { hits: prior(bucket) * exposure, exposure });
            }
            *values_of = values(&own);
        }

        for ended in self.ended.iter_mut().flatten() {
            ended.hits -= (u64::from(ended.hits) / fade) as u32;
            ended.all -= (u64::from(ended.all) / fade) as u32;
        }
    }

    fn rates(&self, now: u32) -> [Row<Rate>; CLASSES] {
        let mut lives = [[0u64; BUCKETS]; CLASSES];
        for (age, counts) in self.cohorts.ages(now) {
            let at = bucket(age);
            for (row, &count) in lives.iter_mut().zip(counts) {
                row[at] += u64::from(count) * u64::from(ONE);
            }
        }
        let mut rates = [[Rate::default(); BUCKETS]; CLASSES];
        for ((rates, lives), ended) in rates.iter_mut().zip(&lives).zip(self.ended.iter()) {
            // Lives that went, or go, on beyond the bucket spent all of its width there; those that are or ended in it
            // half.
            let mut beyond = 0.0;
            for at in (0..BUCKETS).rev() {
                let here = (lives[at] + u64::from(ended[at].all)) as f64 / f64::from(ONE);
                let exposure = (beyond + here / 2.0) * width(at) as f64;
                rates[at] = Rate { hits: f64::from(ended[at].hits) / f64::from(ONE), exposure };
                beyond += here;
            }
        }
        rates
    }

    /// What is kept over a restart: counts of lives that are over. Cohorts come back with the blocks.
    pub fn save(&self, out: &mut Vec<u8>) {
        for ended in self.ended.iter().flatten() {
            out.extend(ended.hits.to_le_bytes());
            out.extend(ended.all.to_le_bytes());
        }
    }

    /// Takes over what `save` wrote; false, and nothing, if it is not of this form.
    pub fn load(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() != SAVED_BYTES {
            return false;
        }
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        for (ended, bytes) in self.ended.iter_mut().flatten().zip(bytes.chunks_exact(8)) {
            let all = word(&bytes[4..]);
            *ended = Ended { hits: word(&bytes[..4]).min(all), all };
        }
        true
    }
}

/// Bytes that `save` writes.
pub(super) const SAVED_BYTES: usize = 8 * BUCKETS * CLASSES;

impl Rate {
    fn plus(self, more: Self) -> Self {
        Self { hits: self.hits + more.hits, exposure: self.exposure + more.exposure }
    }
}

/// For each bucket the highest rate, hits by exposure, from there to any later one.
fn values(rates: &Row<Rate>) -> Row<u32> {
    let mut values = [0; BUCKETS];
    // Stretches of buckets from this one on, the next one last; each has a higher rate than those after it.
    let mut stretches: Vec<Rate> = Vec::with_capacity(BUCKETS);
    for bucket in (0..BUCKETS).rev() {
        let mut here = rates[bucket];
        while let Some(next) = stretches.pop_if(|next| next.hits * here.exposure > here.hits * next.exposure) {
            here = here.plus(next);
        }
        values[bucket] = (here.hits / here.exposure * SCALE) as u32;
        stretches.push(here);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u8 = 10;
    const B: u8 = 11;

    fn lives(hazards: &mut Hazards, class: u8, count: u32, age: u32, hit: bool) {
        for _ in 0..count {
            hazards.cohorts.begin(class, 1_000);
            hazards.end(class, 1_000, 1_000 + age, hit);
        }
    }

    #[test]
    fn without_knowledge_the_older_block_is_worth_less() {
        let hazards = Hazards::default();
        let ages: Vec<u32> =
            (0..BUCKETS - 1).map(|at| hazards.value(A, super::super::ages::start(at) as u32)).collect();
        assert!(ages[1..].is_sorted_by(|young, old| young >= old), "{ages:?}");
    }

    #[test]
    fn a_class_that_comes_back_is_worth_more() {
        let mut hazards = Hazards::default();
        lives(&mut hazards, A, 10_000, 200, true);
        lives(&mut hazards, B, 10_000, 200, false);
        hazards.refresh(2_000, 20);
        assert!(hazards.value(A, 0) > 10 * hazards.value(B, 0));
    }

    #[test]
    fn a_block_is_worth_most_just_before_its_class_comes_back() {
        let mut hazards = Hazards::default();
        lives(&mut hazards, A, 10_000, 600, true);
        hazards.refresh(2_000, 20);
        assert!(hazards.value(A, 500) > hazards.value(A, 10));
        assert!(hazards.value(A, 500) > hazards.value(A, 2_000));
    }

    #[test]
    fn what_was_learned_is_saved_and_loaded() {
        let (mut hazards, mut again, mut saved) = (Hazards::default(), Hazards::default(), Vec::new());
        lives(&mut hazards, A, 1_000, 200, true);
        hazards.save(&mut saved);
        assert!(saved.len() == SAVED_BYTES && again.load(&saved) && !again.load(&saved[1..]));
        assert_eq!(hazards.ended, again.ended);
    }

    #[test]
    fn a_priority_wears_off() {
        let hazards = Hazards::default();
        assert!(hazards.value(PRIORITY_HIGH, 100) > hazards.value(PRIORITY, 100));
        assert!(hazards.value(PRIORITY, 100) > hazards.value(A, 100));
        assert_eq!(hazards.value(PRIORITY_HIGH, 10_000), hazards.values_all[bucket(10_000)]);
    }
}
