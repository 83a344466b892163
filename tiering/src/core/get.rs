//! What is there: hits over several pools at once, and gets that wait for blocks to come.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
};

use lapis_config::{ClientId, HitPolicy, Key, LineId, PoolId, Refusal, Time, Wait};

use super::{
    CLIENT_WAITS_MAX, Core,
    fetch::Fetch,
    hits::{self, There},
    hold::Held,
};
use crate::{
    face::{Caller, Reply},
    hash::Map,
    kept::Kept,
    policy::Policy,
};

/// What a get was answered stays at least so long, us, also if the answer came at the deadline.
const HOLD_US_MIN: u64 = 50_000;
/// A get from SSD brings at most one part in so many of the memory at once.
const FETCH_PART: u32 = 4;
/// How often a get that waits is looked at from its first key on: what keeps going while it waits is not waited for.
const LOOKS_MAX: u32 = 64;

struct GetWait {
    to: Caller,
    asks: Vec<(PoolId, HitPolicy)>,
    keys: Vec<Key>,
    wait: Wait,
    deadline: Time,
    /// How often all of it was looked at.
    looks: u32,
    /// The length that it waits for.
    wanted: usize,
    /// The ask and the key's index that it waits on: what it needs beyond was there when it was passed.
    on: (usize, usize),
    /// Blocks that are on their way from SSD or a GPU for it; the last one counts until it is answered.
    fetching: u32,
    /// What it holds while it waits for blocks from SSD.
    held: Vec<Held>,
}

impl GetWait {
    fn on(&self) -> (PoolId, Key) {
        (self.asks[self.on.0].0, self.keys[self.on.1])
    }

    /// Indices of the keys of one ask that an answer of `hit` stands for.
    fn needed(&self, policy: HitPolicy, hit: usize) -> Range<usize> {
        match policy {
            HitPolicy::Prefix => 0..hit,
            HitPolicy::Trailing(window) => hit.saturating_sub(window as usize)..hit,
            HitPolicy::Any => 0..self.keys.len(),
        }
    }
}

#[derive(Default)]
pub(super) struct GetWaits {
    waiting: BTreeMap<u64, GetWait>,
    next: u64,
    by_key: Map<(PoolId, Key), Vec<u64>>,
    /// Gets that wait for a block from SSD or a GPU.
    by_line: Map<LineId, Vec<u64>>,
    /// Gets that wait for no block any more, in order.
    ready: VecDeque<u64>,
    deadlines: BTreeSet<(Time, u64)>,
    /// Of each client that has some.
    by_client: BTreeMap<ClientId, usize>,
}

impl GetWaits {
    pub fn deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    fn insert(&mut self, wait: GetWait) -> u64 {
        let number = self.next;
        self.next += 1;
        if wait.fetching == 0 {
            self.by_key.entry(wait.on()).or_default().push(number);
        }
        self.deadlines.insert((wait.deadline, number));
        *self.by_client.entry(wait.to.client).or_insert(0) += 1;
        self.waiting.insert(number, wait);
        number
    }

    /// Whether anybody waits for a key to come.
    pub fn any_by_key(&self) -> bool {
        !self.by_key.is_empty()
    }

    /// Whether anybody waits for a block from SSD or a GPU.
    pub fn waits_for(&self, line: LineId) -> bool {
        self.by_line.contains_key(&line)
    }

    /// Whether a get is to be answered that waited for blocks.
    pub fn any_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The gets that waited for the block, which came or will not.
    pub fn fetched(&mut self, line: LineId) -> Vec<u64> {
        self.by_line.remove(&line).unwrap_or_default()
    }

    /// A get that waits for more holds what came.
    pub fn holds(&mut self, number: u64, held: Held) {
        self.waiting.get_mut(&number).expect("a get that waits").held.push(held);
    }

    /// What waiting gets hold.
    pub fn held(&self) -> impl Iterator<Item = Held> + '_ {
        self.waiting.values().flat_map(|get| get.held.iter().copied())
    }

    fn remove(&mut self, number: u64) -> Option<GetWait> {
        let wait = self.waiting.remove(&number)?;
        self.deadlines.remove(&(wait.deadline, number));
        let count = self.by_client.get_mut(&wait.to.client).expect("counted when it came");
        *count -= 1;
        if *count == 0 {
            self.by_client.remove(&wait.to.client);
        }
        if wait.fetching > 0 {
            self.by_line.retain(|_, numbers| {
                numbers.retain(|&other| other != number);
                !numbers.is_empty()
            });
        } else if let Some(numbers) = self.by_key.get_mut(&wait.on()) {
            numbers.retain(|&other| other != number);
            if numbers.is_empty() {
                self.by_key.remove(&wait.on());
            }
        }
        Some(wait)
    }

    fn is_full(&self, id: ClientId, most: usize) -> bool {
        self.waiting.len() >= most || self.by_client.get(&id).is_some_and(|&count| count >= CLIENT_WAITS_MAX)
    }
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// Asks how many of `keys` are hits under all of `asks`; answered by `Got`, at once if that is all or nothing may be
    /// waited for. What was answered stays until `release` of the same caller, at most until the deadline. More than
    /// `ASKS_MAX` asks that differ are answered `Refused`.
    pub fn get(
        &mut self,
        now: Time,
        to: Caller,
        asks: &[(PoolId, HitPolicy)],
        keys: &[Key],
        wait: Wait,
        deadline: Time,
    ) {
        self.clock(now);
        if !self.clients.get(&to.client).is_some_and(|client| client.connected) {
            return;
        }
        if self.adopting.is_some() {
            return self.reply(to, Reply::Got { hit: 0 });
        }
        let Some(asks) = hits::merge(asks) else { return self.reply(to, Reply::Refused(Refusal::Limit)) };
        let keys = keys.to_vec();
        self.answer_or_wait(GetWait {
            to,
            asks,
            keys,
            wait,
            deadline,
            looks: 0,
            wanted: 0,
            on: (0, 0),
            fetching: 0,
            held: Vec::new(),
        });
        self.run();
    }

    fn answer_or_wait(&mut self, mut get: GetWait) {
        get.looks += 1;
        let may_wait = self.now < get.deadline
            && get.looks <= LOOKS_MAX
            && !self.gets.is_full(get.to.client, self.options.waits_max);
        let wait = if may_wait { get.wait } else { Wait::Present };
        let hits = hits::longest(&get.asks, &get.keys, wait, |pool, key| self.there(pool, key, wait));
        if wait != Wait::Present && hits.wanted > hits.present {
            get.wanted = hits.wanted;
            if let Some(on) = self.last_missing(&get, (0, get.keys.len())) {
                get.on = on;
                self.gets.insert(get);
                return;
            }
        }
        self.fetch_or_answer(get, hits.present, may_wait);
    }

    /// Answers with `hit`, when all that this stands for is in DRAM. What a device does not bring before the deadline, or
    /// does not fit, is no hit.
    fn fetch_or_answer(&mut self, get: GetWait, hit: usize, may_wait: bool) {
        let lines = self.lines_needed(&get, hit);
        if lines.iter().all(|&line| self.in_dram(line)) {
            return self.answer(get, hit);
        }
        if may_wait && self.may_fetch(get.deadline) {
            return self.fetch_all(get, lines);
        }
        self.answer_from_dram(get);
    }

    fn answer_from_dram(&mut self, get: GetWait) {
        let hits = hits::longest(&get.asks, &get.keys, Wait::Present, |pool, key| {
            let line = self.kept.find(pool, key);
            if line.is_some_and(|line| self.in_dram(line)) { There::Present } else { There::Absent }
        });
        self.answer(get, hits.present);
    }

    fn lines_needed(&self, get: &GetWait, hit: usize) -> Vec<LineId> {
        let mut lines: Vec<LineId> = Vec::new();
        for &(pool, policy) in get.asks.iter().filter(|_| hit > 0) {
            lines.extend(get.keys[get.needed(policy, hit)].iter().filter_map(|key| self.kept.find(pool, key)));
        }
        lines
    }

    /// Holds what is in DRAM and waits for the rest, as far as it takes no more than its part of the memory.
    fn fetch_all(&mut self, mut get: GetWait, lines: Vec<LineId>) {
        let last = lines.last().copied();
        let mut left = u64::from(self.memory.buddy.units() / FETCH_PART);
        let (mut wanted, mut seen) = (Vec::new(), Map::<LineId, ()>::default());
        for line in lines {
            if seen.insert(line, ()).is_some() {
                continue;
            }
            let pages = u64::from(self.pages_of(&self.kept.live(line).expect("found by the caller")));
            if !wanted.is_empty() && pages > left {
                break;
            }
            left = left.saturating_sub(pages);
            if self.in_dram(line) {
                get.held.push(self.hold(line));
            } else {
                wanted.push(line);
            }
        }
        // Its number first: a fetch that ends at once finds it.
        get.fetching = wanted.len() as u32 + 1;
        let number = self.gets.insert(get);
        for line in wanted {
            self.gets.by_line.entry(line).or_default().push(number);
            // A block may have made room for one before it.
            let there = self.kept.live(line).is_some();
            if !there || self.fetch(line) == Fetch::Not {
                self.fetch_not(line, number);
            }
        }
        if let Some(last) = last.filter(|&line| self.kept.live(line).is_some()) {
            self.read_ahead(last);
        }
        self.get_fetched(number);
    }

    fn fetch_not(&mut self, line: LineId, number: u64) {
        if let Some(numbers) = self.gets.by_line.get_mut(&line) {
            numbers.retain(|&other| other != number);
            if numbers.is_empty() {
                self.gets.by_line.remove(&line);
            }
            self.get_fetched(number);
        }
    }

    /// One of the blocks that a get waits for came, or will not.
    pub(super) fn get_fetched(&mut self, number: u64) {
        let Some(get) = self.gets.waiting.get_mut(&number) else { return };
        if get.fetching > 1 {
            get.fetching -= 1;
        } else {
            self.gets.ready.push_back(number);
        }
    }

    /// Answers gets that wait for no block any more. Not at once when the last one came or went: what ended the wait may
    /// be a removal, and what it takes along next would be a hit that is none.
    pub(super) fn answer_ready(&mut self) {
        while let Some(number) = self.gets.ready.pop_front() {
            // Its deadline or its client's end may have been first.
            if let Some(get) = self.gets.remove(number) {
                self.answer_from_dram(get);
            }
        }
    }

    /// Goes on with gets that waited for what came, or ended being filled.
    pub(super) fn wake_gets(&mut self) {
        for key in std::mem::take(&mut self.woken) {
            for number in self.gets.by_key.remove(&key).unwrap_or_default() {
                let Some(mut get) = self.gets.remove(number) else { continue };
                // What was passed before is looked at again only when nothing is missing any more.
                match self.last_missing(&get, (get.on.0, get.on.1 + 1)) {
                    Some(on) => {
                        get.on = on;
                        self.gets.insert(get);
                    }
                    None => self.answer_or_wait(get),
                }
            }
        }
    }

    pub(super) fn expire_gets(&mut self) {
        while let Some(&(at, number)) = self.gets.deadlines.first() {
            if at > self.now {
                return;
            }
            let get = self.gets.remove(number).expect("a deadline has its get");
            if get.fetching > 0 {
                // What it waited for and nobody else does makes way in the queue.
                self.stirred = true;
                self.answer_from_dram(get);
            } else {
                self.answer_or_wait(get);
            }
        }
    }

    pub(super) fn cancel_gets(&mut self, id: ClientId) {
        let numbers: Vec<u64> =
            self.gets.waiting.iter().filter(|(_, get)| get.to.client == id).map(|(&number, _)| number).collect();
        for number in numbers {
            let get = self.gets.remove(number).expect("listed above");
            self.stirred |= get.fetching > 0;
            get.held.into_iter().for_each(|held| self.unhold(held));
        }
    }

    fn there(&self, pool: PoolId, key: &Key, wait: Wait) -> There {
        match wait {
            _ if self.kept.find(pool, key).is_some() => There::Present,
            Wait::Absent => There::Coming,
            Wait::Filling if self.filling.contains_key(&(pool, *key)) => There::Coming,
            Wait::Filling | Wait::Present => There::Absent,
        }
    }

    /// The last key that a get needs and that is to come: in the ask of that index before that key, or in a later ask.
    /// `None` also if one is missing and will not come.
    fn last_missing(&self, get: &GetWait, before: (usize, usize)) -> Option<(usize, usize)> {
        for (ask, &(pool, policy)) in get.asks.iter().enumerate().skip(before.0) {
            let needed = get.needed(policy, get.wanted);
            let end = if ask == before.0 { needed.end.min(before.1) } else { needed.end };
            for at in (needed.start..end).rev() {
                match self.there(pool, &get.keys[at], get.wait) {
                    There::Coming => return Some((ask, at)),
                    There::Absent if policy != HitPolicy::Any => return None,
                    There::Absent | There::Present => {}
                }
            }
        }
        None
    }

    /// Answers, and holds what was hit. Of a chain only the deepest block needs it: its parents stay with it.
    fn answer(&mut self, mut get: GetWait, hit: usize) {
        let mut held: Vec<Held> = Vec::new();
        if hit > 0 {
            for &(pool, policy) in &get.asks {
                let mut before: Option<LineId> = None;
                for key in &get.keys[get.needed(policy, hit)] {
                    let line = self.kept.find(pool, key);
                    let line = line.filter(|&line| self.in_dram(line));
                    if let Some(before) = before
                        && line.is_none_or(|line| self.kept.entry(line).parent != before.0)
                    {
                        held.push(self.hold(before));
                    }
                    before = line;
                }
                held.extend(before.map(|line| self.hold(line)));
            }
        }
        std::mem::take(&mut get.held).into_iter().for_each(|held| self.unhold(held));
        if !held.is_empty() {
            let until = get.deadline.max(Time(self.now.0 + HOLD_US_MIN));
            self.keep_got(get.to, until, held);
        }
        self.reply(get.to, Reply::Got { hit: hit as u32 });
    }
}
