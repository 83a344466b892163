//! How many lives of each class began when. A life begins with a use of a block and ends with the next one, or with the
//! last trace of it: so what is counted here are the lives that go on, and their ages.
//!
//! This is what makes the exposure incremental: no entry is ever scanned. A life is counted in the cohort of the time at
//! which it began, and found there again by that time; cohorts grow old, not entries. Where two neighbours are young
//! compared with their age they become one, so their number grows with the logarithm of the longest age.

use super::class::CLASSES;

/// Most cohorts: with a second each at first, and an eighth of their age later, they reach back some weeks.
const COHORTS_MAX: usize = 160;
/// No cohort is opened sooner after the one before, tenths of a second.
const SPAN_MIN: u32 = 10;
/// Two cohorts are joined if together they span at most one part in so many of their age.
const SPAN_PART: u32 = 8;

#[derive(Clone, Copy, Debug)]
struct Cohort {
    from: u32,
    lives: [u32; CLASSES],
}

/// Ordered by time; the last one is open.
#[derive(Debug)]
pub(super) struct Cohorts {
    all: Vec<Cohort>,
}

impl Default for Cohorts {
    fn default() -> Self {
        let mut all = Vec::with_capacity(COHORTS_MAX + 1);
        all.push(Cohort { from: 0, lives: [0; CLASSES] });
        Self { all }
    }
}

impl Cohorts {
    /// A life of the class begins: now, or earlier if its block was known and not counted, as after a restart.
    #[inline]
    pub fn begin(&mut self, class: u8, since: u32) {
        let last = self.all.last().expect("never empty").from;
        if since >= last.saturating_add(SPAN_MIN) {
            self.open(since);
        }
        let at = if since >= last { self.all.len() - 1 } else { self.of(since) };
        self.all[at].lives[class as usize] += 1;
    }

    /// A life that began then is over.
    #[inline]
    pub fn end(&mut self, class: u8, since: u32) {
        let at = self.of(since);
        let lives = &mut self.all[at].lives[class as usize];
        assert!(*lives > 0, "a life that ends was counted");
        *lives -= 1;
    }

    /// The cohort of that time. Most lives began lately or together with the ones asked for before.
    #[inline]
    fn of(&self, since: u32) -> usize {
        self.all.partition_point(|cohort| cohort.from <= since) - 1
    }

    /// Lives of each class that go on.
    #[cfg(test)]
    pub fn lives(&self) -> [u64; CLASSES] {
        std::array::from_fn(|class| self.all.iter().map(|cohort| u64::from(cohort.lives[class])).sum())
    }

    /// The lives that go on, with their ages now, cohort by cohort.
    pub fn ages(&self, now: u32) -> impl Iterator<Item = (u32, &[u32; CLASSES])> + '_ {
        let ends = self.all.iter().skip(1).map(|next| next.from).chain([now]);
        self.all.iter().zip(ends).map(move |(cohort, end)| {
            let middle = cohort.from / 2 + end.max(cohort.from) / 2;
            (now.saturating_sub(middle), &cohort.lives)
        })
    }

    fn open(&mut self, now: u32) {
        if self.all.len() > COHORTS_MAX / 2 {
            self.join(now);
        }
        if self.all.len() == COHORTS_MAX {
            self.join_at(0);
        }
        self.all.push(Cohort { from: now, lives: [0; CLASSES] });
    }

    /// Joins neighbours, the oldest first.
    fn join(&mut self, now: u32) {
        let mut at = 0;
        while at + 2 < self.all.len() {
            let (from, end) = (self.all[at].from, self.all[at + 2].from);
            if end - from <= (now - end) / SPAN_PART {
                self.join_at(at);
            } else {
                at += 1;
            }
        }
    }

    fn join_at(&mut self, at: usize) {
        let gone = self.all.remove(at + 1);
        let kept = &mut self.all[at].lives;
        kept.iter_mut().zip(gone.lives).for_each(|(kept, more)| *kept += more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_found_again_however_old() {
        let (mut cohorts, mut begun, mut now) = (Cohorts::default(), Vec::new(), 0u32);
        let mut random = 1u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            now += (random >> 60) as u32 * if random >> 40 & 255 == 0 { 10_000 } else { 1 };
            let class = (random >> 32) as u8 % CLASSES as u8;
            cohorts.begin(class, now);
            begun.push((class, now));
            if random & 3 == 0 {
                let (class, since) = begun.swap_remove((random >> 33) as usize % begun.len());
                cohorts.end(class, since);
            }
        }
        assert_eq!(cohorts.lives().iter().sum::<u64>(), begun.len() as u64);
        assert!(cohorts.all.len() <= COHORTS_MAX);
        for (class, since) in begun {
            cohorts.end(class, since);
        }
        assert_eq!(cohorts.lives(), [0; CLASSES]);
    }

    #[test]
    fn ages_are_known_to_about_an_eighth() {
        let mut cohorts = Cohorts::default();
        for now in 0..100_000 {
            cohorts.begin(0, now);
        }
        let mut before = 100_000;
        for (age, counts) in cohorts.ages(100_000) {
            assert!(age <= before && counts[0] <= before / 4 + 2 * SPAN_MIN, "{} lives at age {age}", counts[0]);
            before = age;
        }
    }
}
