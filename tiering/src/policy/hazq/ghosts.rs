//! What is remembered of blocks that are gone: class, turn and time of the last use, under a short form of the key.
//!
//! Sets of eight within two cache lines; a full set forgets its oldest. So memory is fixed, and a look-up is one miss.

/// Bytes of a ghost.
pub(super) const GHOST_BYTES: u64 = size_of::<Ghost>() as u64;
const WAYS: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ghost {
    /// Short form of pool and key; 0: none.
    name: u64,
    /// Time of the last use, tenths of a second.
    pub since: u32,
    pub class: u8,
    pub turn: u8,
    /// Distinct children that it ever had, as far as counted.
    pub children: u8,
    /// Not of a block that was there: of one that is about to come.
    pub to_come: bool,
}

impl Ghost {
    pub fn new(since: u32, class: u8, turn: u8, children: u8) -> Self {
        Self { name: 0, since, class, turn, children, to_come: false }
    }

    pub fn to_come(since: u32, class: u8, turn: u8) -> Self {
        Self { to_come: true, ..Self::new(since, class, turn, 0) }
    }
}

/// Two cache lines, and no third.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Set([Ghost; WAYS]);

const _: () = assert!(size_of::<Set>() as u64 == WAYS as u64 * GHOST_BYTES && GHOST_BYTES == 16);

#[derive(Debug, Default)]
pub(super) struct Ghosts {
    sets: Vec<Set>,
}

impl Ghosts {
    /// Room for as many as fit in so many bytes.
    pub fn new(bytes: u64) -> Self {
        let sets = bytes / (GHOST_BYTES * WAYS as u64);
        Self { sets: vec![Set::default(); usize::try_from(sets).unwrap_or(usize::MAX)] }
    }

    #[inline]
    fn set(&self, name: u64) -> usize {
        ((u128::from(name) * self.sets.len() as u128) >> 64) as usize
    }

    #[inline]
    pub fn get(&self, name: u64) -> Option<Ghost> {
        self.sets.get(self.set(name))?.0.iter().find(|ghost| ghost.name == name).copied()
    }

    #[inline]
    pub fn take(&mut self, name: u64) -> Option<Ghost> {
        let set = self.set(name);
        let ghost = self.sets.get_mut(set)?.0.iter_mut().find(|ghost| ghost.name == name)?;
        Some(std::mem::take(ghost))
    }

    /// How many there is room for.
    pub fn capacity(&self) -> u64 {
        (self.sets.len() * WAYS) as u64
    }

    /// How many there are.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.sets.iter().flat_map(|set| &set.0).filter(|ghost| ghost.name != 0).count() as u64
    }

    /// Remembers one that is not remembered; returns the one that is forgotten for it: the oldest of its set, or itself
    /// if there is no room.
    #[inline]
    pub fn insert(&mut self, name: u64, ghost: Ghost) -> Option<Ghost> {
        let set = self.set(name);
        let ghost = Ghost { name, ..ghost };
        let Some(Set(set)) = self.sets.get_mut(set) else { return Some(ghost) };
        let oldest = |ghost: &&mut Ghost| if ghost.name == 0 { 0 } else { 1 + u64::from(ghost.since) };
        let place = set.iter_mut().min_by_key(oldest).expect("a set has ways");
        let former = std::mem::replace(place, ghost);
        (former.name != 0).then_some(former)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_set_forgets_its_oldest() {
        let mut ghosts = Ghosts::new(8 * GHOST_BYTES);
        for name in 1..=8 {
            assert_eq!(ghosts.insert(name, Ghost::new(100 - name as u32, 1, 2, 0)), None);
        }
        let forgotten = ghosts.insert(9, Ghost::new(200, 1, 2, 0)).expect("the set is full");
        assert_eq!((forgotten.name, ghosts.get(8)), (8, None));
        assert_eq!(ghosts.take(9).map(|ghost| ghost.since), Some(200));
        assert_eq!((ghosts.get(9), ghosts.capacity()), (None, 8));
    }

    #[test]
    fn memory_is_what_was_given_to_a_set_and_stays_so_however_many_come() {
        let set = size_of::<[Ghost; WAYS]>() as u64;
        assert_eq!((GHOST_BYTES, set), (16, 128), "as documented; nothing but ghosts in a set");
        for bytes in [0, 1, 16, 127, 128, 129, 255, 256, 1_000, 64 << 10, (64 << 10) - 1, (1 << 20) + 37] {
            let mut ghosts = Ghosts::new(bytes);
            let allocated = |ghosts: &Ghosts| ghosts.sets.capacity() as u64 * set;
            assert!(allocated(&ghosts) <= bytes && bytes < allocated(&ghosts) + set, "{bytes} bytes");
            assert_eq!(ghosts.capacity() * GHOST_BYTES, allocated(&ghosts), "{bytes} bytes");
            let before = allocated(&ghosts);
            // Names spread as hashes do; three times as many as there is room for.
            for at in 1..=3 * ghosts.capacity().max(1) {
                ghosts.insert(at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, Ghost::new(at as u32, 1, 2, 0));
            }
            assert_eq!(allocated(&ghosts), before, "{bytes} bytes");
            assert!(ghosts.count() <= ghosts.capacity() && ghosts.count() >= ghosts.capacity() / 2, "{bytes} bytes");
        }
    }

    #[test]
    fn without_room_a_ghost_is_forgotten_at_once() {
        let mut ghosts = Ghosts::new(GHOST_BYTES);
        assert_eq!(ghosts.insert(5, Ghost::new(1, 2, 3, 4)).map(|ghost| ghost.class), Some(2));
        assert_eq!((ghosts.get(5), ghosts.take(5)), (None, None));
    }
}
