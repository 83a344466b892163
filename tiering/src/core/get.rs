//! What is there: hits over several pools at once, and gets that wait for blocks to come.

use std::collections::{BTreeMap, BTreeSet};

use lapis_config::{ClientId, HitPolicy, Key, LineId, PoolId, Time, Wait};

use super::{Core, hold::Held};
use crate::{
    face::{Caller, Reply},
    hash::Map,
    kept::Kept,
    policy::Policy,
};

/// What a get was answered stays at least so long, us, also if the answer came at the deadline.
const HOLD_US_MIN: u64 = 50_000;

struct GetWait {
    to: Caller,
    asks: Vec<(PoolId, HitPolicy)>,
    keys: Vec<Key>,
    wait: Wait,
    deadline: Time,
    /// The last key that it needs and that is not there.
    on: (PoolId, Key),
}

#[derive(Default)]
pub(super) struct GetWaits {
    waiting: BTreeMap<u64, GetWait>,
    next: u64,
    by_key: Map<(PoolId, Key), Vec<u64>>,
    deadlines: BTreeSet<(Time, u64)>,
}

impl GetWaits {
    pub fn deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    fn insert(&mut self, wait: GetWait) {
        let number = self.next;
        self.next += 1;
        self.by_key.entry(wait.on).or_default().push(number);
        self.deadlines.insert((wait.deadline, number));
        self.waiting.insert(number, wait);
    }

    fn remove(&mut self, number: u64) -> Option<GetWait> {
        let wait = self.waiting.remove(&number)?;
        self.deadlines.remove(&(wait.deadline, number));
        if let Some(numbers) = self.by_key.get_mut(&wait.on) {
            numbers.retain(|&other| other != number);
            if numbers.is_empty() {
                self.by_key.remove(&wait.on);
            }
        }
        Some(wait)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// Asks how many of `keys` are hits under all of `asks`; answered by `Got`, at once if that is all or nothing may be
    /// waited for. What was answered stays until `release` of the same caller, at most until the deadline.
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
        let wait = GetWait { to, asks: asks.to_vec(), keys: keys.to_vec(), wait, deadline, on: Default::default() };
        self.answer_or_wait(wait);
    }

    fn answer_or_wait(&mut self, mut get: GetWait) {
        let hit = self.hits(&get, Wait::Present);
        if self.now < get.deadline && get.wait != Wait::Present && self.gets.len() < self.options.waits_max {
            let wanted = self.hits(&get, get.wait);
            if wanted > hit
                && let Some(on) = self.last_missing(&get, wanted)
            {
                get.on = on;
                return self.gets.insert(get);
            }
        }
        self.answer(&get, hit);
    }

    /// Looks again at gets that waited for what came, or ended being filled.
    pub(super) fn wake_gets(&mut self) {
        for key in std::mem::take(&mut self.woken) {
            for number in self.gets.by_key.get(&key).cloned().unwrap_or_default() {
                if let Some(get) = self.gets.remove(number) {
                    self.answer_or_wait(get);
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
            self.answer_or_wait(get);
        }
    }

    pub(super) fn cancel_gets(&mut self, id: ClientId) {
        let numbers: Vec<u64> =
            self.gets.waiting.iter().filter(|(_, get)| get.to.client == id).map(|(&number, _)| number).collect();
        for number in numbers {
            self.gets.remove(number);
        }
    }

    /// Whether a key counts as there: also what is waited for, if `wait` says so.
    fn there(&self, pool: PoolId, key: &Key, wait: Wait) -> bool {
        match wait {
            Wait::Absent => true,
            _ if self.kept.find(pool, key).is_some() => true,
            Wait::Filling => self.filling.contains_key(&(pool, *key)),
            Wait::Present => false,
        }
    }

    /// The longest leading length that every ask accepts; for `Any` alone the number of keys there.
    fn hits(&self, get: &GetWait, wait: Wait) -> usize {
        let GetWait { asks, keys, .. } = get;
        if let [(pool, HitPolicy::Any)] = asks[..] {
            return keys.iter().filter(|key| self.there(pool, key, wait)).count();
        }
        let mut length = keys.len();
        for &(pool, policy) in asks {
            if policy == HitPolicy::Prefix {
                length = keys[..length].iter().take_while(|key| self.there(pool, key, wait)).count();
            }
        }
        // A length that one trailing ask accepts may be none for another: down until all agree.
        loop {
            let before = length;
            for &(pool, policy) in asks {
                if let HitPolicy::Trailing(window) = policy {
                    length = self.trailing(pool, &keys[..length], window as usize, wait);
                }
            }
            if length == before {
                return length;
            }
        }
    }

    /// The longest length whose last `window` keys are there.
    fn trailing(&self, pool: PoolId, keys: &[Key], window: usize, wait: Wait) -> usize {
        let (mut end, mut run) = (keys.len(), 0);
        for (at, key) in keys.iter().enumerate().rev() {
            if run == window {
                break;
            }
            if self.there(pool, key, wait) {
                run += 1;
            } else {
                (end, run) = (at, 0);
            }
        }
        end
    }

    /// The keys of one ask that an answer of `hit` stands for.
    fn needed(policy: HitPolicy, hit: usize, keys: &[Key]) -> &[Key] {
        match policy {
            HitPolicy::Prefix => &keys[..hit],
            HitPolicy::Trailing(window) => &keys[hit.saturating_sub(window as usize)..hit],
            HitPolicy::Any => keys,
        }
    }

    fn last_missing(&self, get: &GetWait, wanted: usize) -> Option<(PoolId, Key)> {
        get.asks.iter().find_map(|&(pool, policy)| {
            let missing = |key: &&Key| self.kept.find(pool, key).is_none() && self.there(pool, key, get.wait);
            Self::needed(policy, wanted, &get.keys).iter().rev().find(missing).map(|&key| (pool, key))
        })
    }

    /// Answers, and holds what was hit. Of a chain only the deepest block needs it: its parents stay with it.
    fn answer(&mut self, get: &GetWait, hit: usize) {
        let mut held: Vec<Held> = Vec::new();
        if hit > 0 {
            for &(pool, policy) in &get.asks {
                let mut before: Option<LineId> = None;
                for key in Self::needed(policy, hit, &get.keys) {
                    let line = self.kept.find(pool, key);
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
        if !held.is_empty() {
            let until = get.deadline.max(Time(self.now.0 + HOLD_US_MIN));
            self.keep_got(get.to, until, held);
        }
        self.reply(get.to, Reply::Got { hit: hit as u32 });
    }
}
