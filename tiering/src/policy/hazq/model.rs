//! The policy's lists and counts against a model that is obviously right, under random operations.

use std::collections::BTreeMap;

use lapis_config::{Hint, Key, LineId, PoolId, Time};

use super::{Hazq, class::CLASSES};
use crate::{
    PlainKept,
    kept::{Kept, Place, Tier},
    policy::{Policy, Request, Shelf, Stored, Use, hazq::class},
};

const LINES: u32 = 64;
const POOL: PoolId = PoolId(0);
const SHELVES: usize = 2;

struct Model {
    kept: PlainKept,
    policy: Hazq,
    now: Time,
    /// The shelf of each line that there is, and whether it is linked.
    there: BTreeMap<LineId, (Shelf, bool)>,
    /// For each shelf and class, the oldest first.
    lists: BTreeMap<(u32, u8), Vec<LineId>>,
    next: u64,
}

impl Model {
    fn new() -> Self {
        let mut policy = Hazq::new(32 * 16);
        policy.shelves(SHELVES);
        let (there, lists) = (BTreeMap::new(), BTreeMap::new());
        Self { kept: PlainKept::new(LINES), policy, now: Time(1_000_000), there, lists, next: 0 }
    }

    fn out(&mut self, line: LineId) {
        self.lists.values_mut().for_each(|list| list.retain(|&other| other != line));
    }

    /// Where the policy's own class says that the line belongs.
    fn put(&mut self, line: LineId, newest: bool) {
        self.out(line);
        let (shelf, linked) = self.there.get_mut(&line).expect("a line that is there");
        *linked = true;
        let class = class::of_kept(self.kept.entry(line).class).0;
        let list = self.lists.entry((shelf.0, class)).or_default();
        list.insert(if newest { list.len() } else { 0 }, line);
    }

    fn store(&mut self, random: &mut fastrand::Rng) {
        if self.there.len() == LINES as usize {
            return;
        }
        self.next += 1;
        // Some keys come back.
        let key = Key([random.u64(..self.next), 0, 0, 1]);
        if self.kept.find(POOL, &key).is_some() {
            return;
        }
        let place = Place { slot: lapis_config::SlotId(0), bytes: 1, sum: 0, tier: Tier::Dram };
        let line = self.kept.publish(POOL, &key, place).expect("a free line");
        *self.kept.entry_mut(line) = lapis_config::Entry {
            first_child: LineId::NONE.0,
            parent: LineId::NONE.0,
            ..lapis_config::Entry::default()
        };
        let parent = self.there.keys().next().copied().filter(|_| random.bool());
        let request = self.policy.storing(&self.kept, parent, POOL, [key].iter(), self.now);
        let shelf = Shelf(random.u32(..SHELVES as u32));
        let block = Stored { line, pool: POOL, key: &key, parent, full: random.u8(..) > 30 };
        self.policy.stored(&mut self.kept, shelf, &block, request, self.now);
        self.there.insert(line, (shelf, true));
        self.put(line, true);
    }

    fn step(&mut self, random: &mut fastrand::Rng) {
        self.now.0 += [0, 50_000, 400_000, 9_000_000, 200_000_000][random.usize(..5)];
        if random.u8(..) < 90 || self.there.is_empty() {
            return self.store(random);
        }
        let line = *self.there.keys().nth(random.usize(..self.there.len())).expect("counted");
        let (shelf, linked) = self.there[&line];
        match random.u8(..8) {
            0 | 1 => {
                let request = self.policy.asked(&self.kept, line, self.now);
                self.policy.used(&mut self.kept, Some(shelf), line, Use::Asked(request), self.now);
                self.put(line, true);
            }
            2 => {
                self.policy.used(&mut self.kept, Some(shelf), line, Use::Again, self.now);
                self.put(line, true);
            }
            3 => {
                self.policy.cool(&mut self.kept, shelf, line);
                self.put(line, false);
            }
            4 => {
                self.policy.unlink(&mut self.kept, shelf, line);
                self.out(line);
                self.there.insert(line, (shelf, false));
            }
            5 => {
                let hints = [Hint::Ended, Hint::WillReturn, Hint::Priority(9), Hint::Pinned { ttl_ms: 1 }];
                self.policy.hinted(&mut self.kept, shelf, line, hints[random.usize(..4)], self.now);
                if linked {
                    self.put(line, true);
                }
            }
            6 => {
                let key = Key([random.u64(..) | 1 << 63, 0, 0, 1]);
                self.policy.declined(&mut self.kept, None, POOL, &key, Request::default(), self.now);
            }
            _ => {
                self.policy.unlink(&mut self.kept, shelf, line);
                self.out(line);
                let live = self.kept.live(line).expect("it is there");
                self.policy.gone(&self.kept, line, &live, self.now);
                self.kept.unpublish(line);
                self.there.remove(&line);
            }
        }
    }

    fn check(&mut self) {
        for shelf in 0..SHELVES as u32 {
            let lists = (0..CLASSES as u8).filter_map(|class| self.lists.get(&(shelf, class)));
            let expected: Vec<LineId> = lists.flatten().copied().collect();
            assert_eq!(self.policy.audit(&self.kept, Shelf(shelf)), Ok(expected));
            let coldest = self.policy.coldest(&self.kept, Shelf(shelf), self.now);
            let worth = |line: LineId| self.policy.worth(&self.kept, line, self.now);
            let tails = self.lists.iter().filter(|((of, _), _)| *of == shelf).filter_map(|(_, list)| list.first());
            let least = tails.map(|&line| worth(line)).min();
            assert!(coldest.map(worth) <= least && coldest.is_some() == least.is_some());
        }
        assert_eq!(self.policy.known, self.there.len() as u64);
        let linked = self.there.values().filter(|(_, linked)| *linked).count() as u64;
        assert_eq!(self.policy.listed, linked);
        let lives: u64 = self.policy.hazards.cohorts.lives().iter().sum();
        assert_eq!(lives, self.policy.known + self.policy.ghosts.count());
    }
}

#[test]
fn lists_and_counts_agree_with_the_model() {
    for seed in 0..30 {
        let (mut model, mut random) = (Model::new(), fastrand::Rng::with_seed(seed));
        for _ in 0..3_000 {
            model.step(&mut random);
            model.check();
        }
    }
}
