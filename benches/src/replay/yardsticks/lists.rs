//! Lists over block numbers. A block is in one list at most; every operation takes constant time.
//! Invariant: `of[id]` is the list that `id` is linked in, and the links of a list lead through exactly those.

const NONE: u32 = u32::MAX;
const NOWHERE: u8 = u8::MAX;

/// `N` lists, numbered from 0; new blocks come in at the front.
pub struct Lists<const N: usize> {
    of: Vec<u8>,
    /// Neighbours towards the front and towards the back.
    links: Vec<[u32; 2]>,
    /// First and last.
    ends: [[u32; 2]; N],
    len: [u64; N],
}

impl<const N: usize> Lists<N> {
    /// For blocks numbered below `blocks`.
    ///
    /// # Panics
    /// If there are 2^32 - 1 blocks or more.
    pub fn new(blocks: u64) -> Self {
        assert!(blocks < u64::from(NONE) && N < usize::from(NOWHERE), "blocks are counted in 32 bits");
        let blocks = blocks as usize;
        Self { of: vec![NOWHERE; blocks], links: vec![[NONE; 2]; blocks], ends: [[NONE; 2]; N], len: [0; N] }
    }

    pub fn len(&self, list: usize) -> u64 {
        self.len[list]
    }

    /// The list that the block is in.
    pub fn find(&self, id: u64) -> Option<usize> {
        Some(self.of[id as usize]).filter(|list| *list != NOWHERE).map(usize::from)
    }

    /// Puts the block in front of `list`, taking it from where it was.
    pub fn put_first(&mut self, list: usize, id: u64) {
        self.remove(id);
        let (block, first) = (id as u32, self.ends[list][0]);
        self.links[block as usize] = [NONE, first];
        match first {
            NONE => self.ends[list][1] = block,
            first => self.links[first as usize][0] = block,
        }
        self.ends[list][0] = block;
        self.of[block as usize] = list as u8;
        self.len[list] += 1;
    }

    pub fn last(&self, list: usize) -> Option<u64> {
        Some(self.ends[list][1]).filter(|id| *id != NONE).map(u64::from)
    }

    pub fn pop_last(&mut self, list: usize) -> Option<u64> {
        let last = self.last(list)?;
        self.remove(last);
        Some(last)
    }

    /// Takes the block out; it may be in none.
    pub fn remove(&mut self, id: u64) {
        let Some(list) = self.find(id) else { return };
        let [front, back] = self.links[id as usize];
        match front {
            NONE => self.ends[list][0] = back,
            front => self.links[front as usize][1] = back,
        }
        match back {
            NONE => self.ends[list][1] = front,
            back => self.links[back as usize][0] = front,
        }
        self.of[id as usize] = NOWHERE;
        self.len[list] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_agree_with_queues(steps in prop::collection::vec((0..3usize, 0..3usize, 0..12u64), 0..200)) {
            let mut lists = Lists::<3>::new(12);
            let mut queues: [VecDeque<u64>; 3] = Default::default();
            for (what, list, id) in steps {
                match what {
                    0 => {
                        queues.iter_mut().for_each(|queue| queue.retain(|other| *other != id));
                        queues[list].push_front(id);
                        lists.put_first(list, id);
                    }
                    1 => prop_assert_eq!(lists.pop_last(list), queues[list].pop_back()),
                    _ => {
                        queues.iter_mut().for_each(|queue| queue.retain(|other| *other != id));
                        lists.remove(id);
                    }
                }
                for (list, queue) in queues.iter().enumerate() {
                    prop_assert_eq!((lists.len(list), lists.last(list)), (queue.len() as u64, queue.back().copied()));
                    prop_assert!(queue.iter().all(|id| lists.find(*id) == Some(list)));
                }
            }
        }
    }
}
