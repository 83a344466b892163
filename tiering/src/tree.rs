//! Who is whose parent, over the entries of lines: `parent` and `first_child` lie in the entry, the links between
//! siblings here (8 bytes a line), so that a subtree is found and a block unlinked without a scan.
//!
//! Invariant: a line's parent is resident and lists it among its children exactly once.
//! Invariant: children with a copy in DRAM come before those that are on SSD alone, so the first one tells whether there
//! are any.

use lapis_config::LineId;

use crate::{copies::Copy, kept::Kept};

pub(crate) struct Tree {
    /// Per line: next and previous sibling, each line + 1, 0 for none (so fresh memory is an empty tree). The one before
    /// the first is the last.
    siblings: Vec<[u32; 2]>,
}

const NEXT: usize = 0;
const PREVIOUS: usize = 1;

fn link(line: LineId) -> u32 {
    line.0.wrapping_add(1)
}

fn line(link: u32) -> LineId {
    LineId(link.wrapping_sub(1))
}

impl Tree {
    pub fn new(lines: u32) -> Self {
        Self { siblings: vec![[0; 2]; lines as usize] }
    }

    /// The line gets a parent or a child soon: a hint.
    #[inline]
    pub fn prefetch<K: Kept>(&self, kept: &K, line: LineId) {
        if let Some(siblings) = self.siblings.get(line.0 as usize) {
            kept.prefetch_value(siblings);
        }
    }

    /// Makes `child`, which has no parent, a child of `parent`, whose generation is given.
    pub fn attach<K: Kept>(&mut self, kept: &mut K, parent: LineId, generation: u64, child: LineId) {
        let entry = kept.entry_mut(child);
        assert!(entry.parent == LineId::NONE.0, "a block has one parent");
        entry.parent = parent.0;
        entry.parent_generation = generation as u16;
        let in_dram = Copy::of_dram(entry).is_readable();
        self.insert(kept, parent, child, in_dram);
    }

    fn insert<K: Kept>(&mut self, kept: &mut K, parent: LineId, child: LineId, in_front: bool) {
        let first = LineId(kept.entry(parent).first_child);
        if !first.is_some() {
            self.siblings[child.0 as usize] = [0, link(child)];
            kept.entry_mut(parent).first_child = child.0;
            return;
        }
        let last = line(self.siblings[first.0 as usize][PREVIOUS]);
        if in_front {
            self.siblings[child.0 as usize] = [link(first), link(last)];
            kept.entry_mut(parent).first_child = child.0;
        } else {
            self.siblings[child.0 as usize] = [0, link(last)];
            self.siblings[last.0 as usize][NEXT] = link(child);
        }
        self.siblings[first.0 as usize][PREVIOUS] = link(child);
    }

    /// The child came into DRAM, or left it: its place among its siblings follows.
    pub fn moved<K: Kept>(&mut self, kept: &mut K, child: LineId) {
        let entry = kept.entry(child);
        let (parent, in_dram) = (LineId(entry.parent), Copy::of_dram(entry).is_readable());
        if parent.is_some() {
            self.remove(kept, parent, child);
            self.insert(kept, parent, child, in_dram);
        }
    }

    /// Takes `child` from its parent, if it has one, and returns that.
    pub fn detach<K: Kept>(&mut self, kept: &mut K, child: LineId) -> Option<LineId> {
        let parent = LineId(std::mem::replace(&mut kept.entry_mut(child).parent, LineId::NONE.0));
        if !parent.is_some() {
            return None;
        }
        self.remove(kept, parent, child);
        Some(parent)
    }

    fn remove<K: Kept>(&mut self, kept: &mut K, parent: LineId, child: LineId) {
        let [next, previous] = std::mem::take(&mut self.siblings[child.0 as usize]);
        let first = LineId(kept.entry(parent).first_child);
        if first == child {
            kept.entry_mut(parent).first_child = line(next).0;
            if next != 0 {
                self.siblings[line(next).0 as usize][PREVIOUS] = previous;
            }
            return;
        }
        self.siblings[line(previous).0 as usize][NEXT] = next;
        let after = if next == 0 { first } else { line(next) };
        self.siblings[after.0 as usize][PREVIOUS] = previous;
    }

    /// True if no child has a copy in DRAM.
    pub fn is_dram_leaf<K: Kept>(&self, kept: &K, of: LineId) -> bool {
        let first = LineId(kept.entry(of).first_child);
        !first.is_some() || !Copy::of_dram(kept.entry(first)).is_readable()
    }

    pub fn is_leaf<K: Kept>(&self, kept: &K, of: LineId) -> bool {
        kept.entry(of).first_child == LineId::NONE.0
    }

    /// True if the block has exactly one child.
    pub fn has_one_child<K: Kept>(&self, kept: &K, of: LineId) -> bool {
        let first = LineId(kept.entry(of).first_child);
        first.is_some() && self.siblings[first.0 as usize][NEXT] == 0
    }

    /// True if this child of `of`, which has a copy in DRAM, is the only one that has.
    pub fn is_only_in_dram<K: Kept>(&self, kept: &K, of: LineId, child: LineId) -> bool {
        let next = line(self.siblings[child.0 as usize][NEXT]);
        kept.entry(of).first_child == child.0 && !(next.is_some() && Copy::of_dram(kept.entry(next)).is_readable())
    }

    pub fn children<K: Kept>(&self, kept: &K, of: LineId) -> impl Iterator<Item = LineId> + '_ {
        let first = LineId(kept.entry(of).first_child);
        let next = |at: &LineId| Some(line(self.siblings[at.0 as usize][NEXT])).filter(|next| next.is_some());
        std::iter::successors(Some(first).filter(|first| first.is_some()), next)
    }

    /// Appends the block and all below it, parents before children. False once there are more than `most`: then what
    /// was appended is not all.
    pub fn subtree<K: Kept>(&self, kept: &K, root: LineId, most: usize, out: &mut Vec<LineId>) -> bool {
        let mut at = out.len();
        let end = at.saturating_add(most);
        out.push(root);
        while at < out.len() && out.len() <= end {
            let parent = out[at];
            at += 1;
            for child in self.children(kept, parent) {
                if out.len() > end {
                    break;
                }
                out.push(child);
            }
        }
        out.len() <= end
    }

    /// Checks the links of one resident line.
    pub fn audit<K: Kept>(&self, kept: &K, of: LineId) -> Result<(), String> {
        let (first, mut before) = (LineId(kept.entry(of).first_child), None);
        for (count, child) in self.children(kept, of).enumerate() {
            let [next, previous] = self.siblings[child.0 as usize];
            let linked = before.is_none_or(|before| previous == link(before));
            let is_last = next == 0;
            if kept.entry(child).parent != of.0
                || !linked
                || is_last && self.siblings[first.0 as usize][PREVIOUS] != link(child)
                || count > kept.lines() as usize
            {
                return Err(format!("line {}: broken link to its child {}", of.0, child.0));
            }
            if kept.live(child).is_none() {
                return Err(format!("line {}: its child {} is not resident", of.0, child.0));
            }
            let in_dram = |line: LineId| Copy::of_dram(kept.entry(line)).is_readable();
            if before.is_some_and(|before| in_dram(child) && !in_dram(before)) {
                return Err(format!("line {}: its child {} in DRAM comes after one that is not", of.0, child.0));
            }
            before = Some(child);
        }
        let parent = LineId(kept.entry(of).parent);
        if parent.is_some() {
            let [_, previous] = self.siblings[of.0 as usize];
            if previous == 0 || kept.live(parent).is_none() {
                return Err(format!("line {}: its parent {} does not know it, or is gone", of.0, parent.0));
            }
        }
        Ok(())
    }
}
