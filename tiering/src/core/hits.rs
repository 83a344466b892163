//! How many leading keys are hits under the policies of several pools. Pure.
//!
//! Invariant: each pool is asked about each key at most once per policy, and each key is passed once.

use lapis_config::{HitPolicy, Key, PoolId, Wait};

/// Most asks of one get once those that others imply are left out. A get of `BATCH_KEYS_MAX` keys is then at most
/// 131 072 look-ups in one turn of the daemon's loop; engines ask one pool per cache group and rank.
pub(super) const ASKS_MAX: usize = 16;

/// What a pool has under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum There {
    Present,
    /// Not there, but waited for.
    Coming,
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hits {
    /// From what is there.
    pub present: usize,
    /// If all came that is waited for.
    pub wanted: usize,
}

/// One trailing ask, as lengths grow.
struct Window {
    pool: PoolId,
    keys: usize,
    present: usize,
    wanted: usize,
}

/// The same question in fewer asks: equal ones once, and of one pool a prefix instead of windows, the longest window
/// instead of shorter ones. `None` beyond `ASKS_MAX`.
pub(super) fn merge(asks: &[(PoolId, HitPolicy)]) -> Option<Vec<(PoolId, HitPolicy)>> {
    let mut merged: Vec<(PoolId, HitPolicy)> = Vec::new();
    for &(pool, policy) in asks {
        let is_any = policy == HitPolicy::Any;
        let full = merged.len() == ASKS_MAX;
        let known = merged.iter_mut().find(|(of, known)| *of == pool && is_any == (*known == HitPolicy::Any));
        match (known, policy) {
            (Some((_, HitPolicy::Trailing(most))), HitPolicy::Trailing(window)) => *most = window.max(*most),
            (Some((_, known)), HitPolicy::Prefix) => *known = policy,
            (Some(_), _) => {}
            (None, _) if full => return None,
            (None, _) => merged.push((pool, policy)),
        }
    }
    Some(merged)
}

/// The longest leading length that every ask accepts; for `Any` alone the number of keys. `asks` are merged.
pub(super) fn longest(
    asks: &[(PoolId, HitPolicy)],
    keys: &[Key],
    wait: Wait,
    mut look: impl FnMut(PoolId, &Key) -> There,
) -> Hits {
    if let [(pool, HitPolicy::Any)] = asks[..] {
        let mut hits = Hits { present: 0, wanted: 0 };
        for key in keys {
            let there = look(pool, key);
            hits.present += usize::from(there == There::Present);
            hits.wanted += usize::from(there != There::Absent);
        }
        return hits;
    }
    // Prefixes first: each one shortens what the next ones look up.
    let mut most = Hits { present: keys.len(), wanted: keys.len() };
    for &(pool, policy) in asks {
        if policy == HitPolicy::Prefix {
            shorten(&mut most, pool, keys, wait, &mut look);
        }
    }
    let windows = asks.iter().filter_map(|&(pool, policy)| match policy {
        HitPolicy::Trailing(keys) => Some(Window { pool, keys: keys as usize, present: 0, wanted: 0 }),
        HitPolicy::Prefix | HitPolicy::Any => None,
    });
    accepted(windows.collect(), most, keys, wait, look)
}

/// How many keys are worth a look: where everything may come, none beyond those that are there.
fn worth(most: Hits, wait: Wait) -> usize {
    if wait == Wait::Filling { most.wanted } else { most.present }
}

fn shorten(most: &mut Hits, pool: PoolId, keys: &[Key], wait: Wait, look: &mut impl FnMut(PoolId, &Key) -> There) {
    let mut at = 0;
    while at < worth(*most, wait) {
        match look(pool, &keys[at]) {
            There::Present => {}
            There::Coming => most.present = most.present.min(at),
            There::Absent => *most = Hits { present: most.present.min(at), wanted: at },
        }
        at += 1;
    }
}

/// The longest lengths up to `most` before which every window is there.
fn accepted(
    mut windows: Vec<Window>,
    most: Hits,
    keys: &[Key],
    wait: Wait,
    mut look: impl FnMut(PoolId, &Key) -> There,
) -> Hits {
    if windows.is_empty() {
        return most;
    }
    let mut best = Hits { present: 0, wanted: if wait == Wait::Absent { most.wanted } else { 0 } };
    for (key, length) in keys[..worth(most, wait)].iter().zip(1..) {
        for window in &mut windows {
            let there = look(window.pool, key);
            window.present = if there == There::Present { window.present + 1 } else { 0 };
            window.wanted = if there == There::Absent { 0 } else { window.wanted + 1 };
        }
        if length <= most.present && windows.iter().all(|window| window.present >= window.keys.min(length)) {
            best.present = length;
        }
        if windows.iter().all(|window| window.wanted >= window.keys.min(length)) {
            best.wanted = best.wanted.max(length);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use lapis_config::BATCH_KEYS_MAX;
    use proptest::prelude::*;

    use super::*;

    /// The definition, word by word.
    fn naive(asks: &[(PoolId, HitPolicy)], keys: usize, there: &dyn Fn(PoolId, usize) -> bool) -> usize {
        if let [(pool, HitPolicy::Any)] = asks[..] {
            return (0..keys).filter(|&at| there(pool, at)).count();
        }
        let accepts = |&(pool, policy): &(PoolId, HitPolicy), length: usize| match policy {
            HitPolicy::Prefix => (0..length).all(|at| there(pool, at)),
            HitPolicy::Trailing(window) => (length.saturating_sub(window as usize)..length).all(|at| there(pool, at)),
            HitPolicy::Any => true,
        };
        (0..=keys).rev().find(|&length| asks.iter().all(|ask| accepts(ask, length))).expect("0 is accepted")
    }

    fn keys(count: usize) -> Vec<Key> {
        (0..count as u64).map(|at| Key([at, 0, 0, 0])).collect()
    }

    fn ask() -> impl Strategy<Value = (PoolId, HitPolicy)> {
        let window = prop_oneof![0u32..5, Just(u32::MAX)];
        let policy = prop_oneof![Just(HitPolicy::Prefix), window.prop_map(HitPolicy::Trailing), Just(HitPolicy::Any)];
        ((0u16..3).prop_map(PoolId), policy)
    }

    fn there() -> impl Strategy<Value = There> {
        prop_oneof![8 => Just(There::Present), 1 => Just(There::Coming), 1 => Just(There::Absent)]
    }

    proptest! {
        #[test]
        fn one_pass_finds_what_the_definition_finds(
            asks in prop::collection::vec(ask(), 0..6),
            there in prop::collection::vec([there(), there(), there()], 0..24),
            wait in prop::sample::select(vec![Wait::Present, Wait::Filling, Wait::Absent]),
        ) {
            let of = |pool: PoolId, at: usize| match (there[at][pool.0 as usize], wait) {
                (There::Present, _) => There::Present,
                (_, Wait::Absent) | (There::Coming, Wait::Filling) => There::Coming,
                _ => There::Absent,
            };
            // One key for itself: how often it is asked for changes nothing.
            let alone = asks.iter().all(|ask| *ask == asks[0]);
            let asked = if alone { &asks[..asks.len().min(1)] } else { &asks[..] };
            let merged = merge(&asks).unwrap();
            let hits = longest(&merged, &keys(there.len()), wait, |pool, key| of(pool, key.0[0] as usize));
            let present = naive(asked, there.len(), &|pool, at| of(pool, at) == There::Present);
            prop_assert_eq!(hits.present, present);
            if wait != Wait::Present {
                prop_assert_eq!(hits.wanted, naive(asked, there.len(), &|pool, at| of(pool, at) != There::Absent));
            }
        }
    }

    #[test]
    fn no_key_is_looked_up_twice_in_a_pool_however_the_windows_disagree() {
        let asks: Vec<_> = (0..256).map(|at| (PoolId(at % 2), HitPolicy::Trailing(1 + u32::from(at / 2)))).collect();
        let mut looks = 0;
        let hits = longest(&merge(&asks).unwrap(), &keys(BATCH_KEYS_MAX), Wait::Present, |pool, key| {
            looks += 1;
            if key.0[0] % 2 == u64::from(pool.0) { There::Present } else { There::Absent }
        });
        assert_eq!((hits.present, looks), (0, 2 * BATCH_KEYS_MAX));
    }

    #[test]
    fn nothing_is_looked_up_beyond_the_shortest_prefix() {
        let asks =
            [(PoolId(0), HitPolicy::Prefix), (PoolId(1), HitPolicy::Prefix), (PoolId(2), HitPolicy::Trailing(1))];
        let mut looks = 0;
        let hits = longest(&asks, &keys(BATCH_KEYS_MAX), Wait::Absent, |pool, key| {
            looks += 1;
            if pool == PoolId(0) && key.0[0] >= 5 { There::Coming } else { There::Present }
        });
        assert_eq!((hits, looks), (Hits { present: 5, wanted: BATCH_KEYS_MAX }, 6 + 5 + 5));
    }

    #[test]
    fn seventeen_different_asks_are_too_many() {
        let of = |pools: u16| (0..pools).map(|at| (PoolId(at), HitPolicy::Prefix)).collect::<Vec<_>>();
        assert!(merge(&of(16)).is_some() && merge(&of(17)).is_none());
        assert_eq!(merge(&[of(16), of(16)].concat()), Some(of(16)));
    }
}
